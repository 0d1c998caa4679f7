//! Bytes to whole characters, across token boundaries.
//!
//! A byte-level token may end in the middle of a character. The bytes of an unfinished character (at most three) wait
//! here until the next token completes them. Bytes that can never become a character turn into U+FFFD at once, one per
//! maximal broken run, which is what lossy decoding of the whole sequence gives; so a model that produces garbage still
//! streams, and never stalls the output.

/// The state between two tokens of one sequence: at most three bytes of an unfinished character.
#[derive(Debug, Default, Clone)]
pub struct Detokenizer {
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Appends to `out` every character that `piece` completes.
    ///
    /// What is still unfinished when the sequence ends is dropped: half a character cut off by `max_tokens` is not text.
    pub fn push(&mut self, piece: &[u8], out: &mut String) {
        self.pending.extend_from_slice(piece);
        let mut rest: &[u8] = &self.pending;
        let unfinished = loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    break 0;
                }
                Err(error) => {
                    let (valid, tail) = rest.split_at(error.valid_up_to());
                    // `valid` was just found valid, so nothing is replaced here.
                    out.push_str(&String::from_utf8_lossy(valid));
                    match error.error_len() {
                        Some(broken) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            rest = &tail[broken..];
                        }
                        None => break tail.len(),
                    }
                }
            }
        };
        let done = self.pending.len() - unfinished;
        self.pending.drain(..done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `pieces` one by one and returns the deltas.
    fn deltas(pieces: &[&[u8]]) -> Vec<String> {
        let mut detokenizer = Detokenizer::default();
        pieces
            .iter()
            .map(|piece| {
                let mut out = String::new();
                detokenizer.push(piece, &mut out);
                out
            })
            .collect()
    }

    #[test]
    fn a_character_split_over_tokens_comes_out_once_and_whole() {
        let cases: &[(&[&[u8]], &[&str])] = &[
            (&[b"a", b"b"], &["a", "b"]),
            (&[b"\xe4", b"\xbd", b"\xa0"], &["", "", "你"]),
            (&[b"x\xf0\x9f", b"\x98", b"\x80y"], &["x", "", "😀y"]),
            (&[b"\xc3", b"\xa9\xc3", b"\xa9"], &["", "é", "é"]),
            (&[b"", b"z"], &["", "z"]),
        ];
        for (pieces, expected) in cases {
            assert_eq!(&deltas(pieces), expected, "{pieces:?}");
        }
    }

    #[test]
    fn bytes_that_can_never_be_a_character_do_not_stall_the_output() {
        assert_eq!(deltas(&[b"\xff", b"ok"]), ["\u{fffd}", "ok"]);
        // A lead byte followed by something that is no continuation: replaced when that becomes known.
        assert_eq!(deltas(&[b"\xe4", b"A"]), ["", "\u{fffd}A"]);
        // A lone continuation byte.
        assert_eq!(deltas(&[b"\x80\x80b"]), ["\u{fffd}\u{fffd}b"]);
    }

    #[test]
    fn deltas_add_up_to_lossy_decoding_of_the_whole() {
        let whole = "naïve 😀 日本語".as_bytes();
        let mut broken = whole.to_vec();
        broken.insert(7, 0xfe);
        broken.extend_from_slice(b"end");
        for bytes in [whole, &broken] {
            for size in 1..=5 {
                let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
                assert_eq!(deltas(&pieces).concat(), String::from_utf8_lossy(bytes), "pieces of {size}");
            }
        }
    }
}
