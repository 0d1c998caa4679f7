//! What each token id adds to the text, as bytes, in one flat table.
//!
//! Tokenizer libraries decode a list of ids; decoding one more id that way either costs time proportional to the window
//! it is decoded with or splits characters. The families this engine serves (GPT-2 style byte-level BPE of Qwen and Llama
//! 3, and SentencePiece BPE with byte fallback of Llama 2 and Mistral) share a simpler property: a token's bytes do not
//! depend on its neighbours. So the table is built once at load and decoding is a copy. Tokenizers without that property
//! are refused at load.
//!
//! Size: the bytes of all pieces plus four bytes per id, about 1.8 MB for Qwen2.5.

use std::collections::HashMap;

/// How a piece as written in the vocabulary becomes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// Every character stands for one byte (GPT-2's printable alphabet).
    ByteLevel,
    /// `▁` is a space, `<0xAB>` is a byte, the rest is itself.
    SentencePiece,
}

impl Spelling {
    /// Reads the `decoder` section of a `tokenizer.json`; `Err` names what is not supported.
    pub(crate) fn of_decoder(decoder: &serde_json::Value) -> Result<Self, String> {
        let kind = decoder["type"].as_str().unwrap_or("none");
        match kind {
            "ByteLevel" => Ok(Self::ByteLevel),
            "Metaspace" => Ok(Self::SentencePiece),
            "Sequence" => {
                let steps = decoder["decoders"].as_array().map(Vec::as_slice).unwrap_or_default();
                if steps.iter().any(|step| step["type"] == "ByteLevel") {
                    return match steps.iter().find(|step| step["type"] != "ByteLevel" && step["type"] != "Fuse") {
                        None => Ok(Self::ByteLevel),
                        Some(step) => Err(format!("Sequence of ByteLevel and {}", step["type"])),
                    };
                }
                // `Strip` removes the space that begins a whole text; a continuation keeps it.
                let known = ["Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];
                match steps.iter().find(|step| !known.iter().any(|kind| step["type"] == *kind)) {
                    None if !steps.is_empty() => Ok(Self::SentencePiece),
                    None => Err("empty Sequence".to_string()),
                    Some(step) => Err(format!("Sequence with {}", step["type"])),
                }
            }
            other => Err(other.to_string()),
        }
    }

    fn bytes(self, piece: &str, alphabet: &HashMap<char, u8>) -> Vec<u8> {
        match self {
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = piece.chars().map(|c| alphabet.get(&c).copied()).collect();
                // A piece outside the alphabet can only be literal text.
                bytes.unwrap_or_else(|| piece.as_bytes().to_vec())
            }
            Self::SentencePiece => {
                let hex = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => piece.replace('▁', " ").into_bytes(),
                }
            }
        }
    }
}

/// Bytes of every token id. Ids without a token have none.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// `ends[id]` is where the piece of `id` ends in `bytes`; it begins where the one before ends.
    ends: Vec<u32>,
}

impl Pieces {
    /// From `(id, piece)` of the ordinary vocabulary and `(id, text)` of the added tokens, which are spelled literally and
    /// win over an ordinary piece of the same id.
    pub(crate) fn new(spelling: Spelling, vocabulary: &HashMap<String, u32>, added: &HashMap<u32, String>) -> Self {
        let alphabet = byte_alphabet();
        let len = vocabulary.values().chain(added.keys()).max().map_or(0, |&max| max as usize + 1);
        let mut table: Vec<Vec<u8>> = vec![Vec::new(); len];
        for (piece, &id) in vocabulary {
            table[id as usize] = spelling.bytes(piece, &alphabet);
        }
        for (&id, text) in added {
            table[id as usize] = text.as_bytes().to_vec();
        }
        Self::flat(&table)
    }

    /// One piece per byte value: the vocabulary of last resort.
    pub(crate) fn single_bytes() -> Self {
        Self::flat(&(0..=u8::MAX).map(|byte| vec![byte]).collect::<Vec<_>>())
    }

    fn flat(table: &[Vec<u8>]) -> Self {
        let mut pieces = Self::default();
        for piece in table {
            pieces.bytes.extend_from_slice(piece);
            pieces.ends.push(u32::try_from(pieces.bytes.len()).expect("a vocabulary of less than 4 GiB"));
        }
        pieces
    }

    /// Number of ids in the table.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of `id`; empty if there is no such token.
    pub(crate) fn get(&self, id: u32) -> &[u8] {
        let Some(&end) = self.ends.get(id as usize) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

/// GPT-2's alphabet: printable Latin-1 characters stand for their own byte, the other bytes take the code points from 256
/// upward in order.
fn byte_alphabet() -> HashMap<char, u8> {
    let mut next = 256u32;
    (0..=u8::MAX)
        .map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let point = if printable {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            (char::from_u32(point).expect("below the surrogates"), byte)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn decoder_sections_are_classified() {
        let cases = [
            (json!({"type": "ByteLevel"}), Ok(Spelling::ByteLevel)),
            (json!({"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}), Ok(Spelling::ByteLevel)),
            (
                json!({"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip"}]}),
                Ok(Spelling::SentencePiece),
            ),
            (json!({"type": "Metaspace"}), Ok(Spelling::SentencePiece)),
            (json!({"type": "WordPiece"}), Err("WordPiece".to_string())),
            (json!({"type": "Sequence", "decoders": [{"type": "CTC"}]}), Err("Sequence with \"CTC\"".to_string())),
            (serde_json::Value::Null, Err("none".to_string())),
        ];
        for (decoder, expected) in cases {
            assert_eq!(Spelling::of_decoder(&decoder), expected, "{decoder}");
        }
    }

    #[test]
    fn pieces_spell_bytes_in_both_families() {
        let vocabulary: HashMap<String, u32> =
            [("Ġhello", 0), ("ä½", 1), ("ł", 2), ("Ċ", 3)].map(|(piece, id)| (piece.to_string(), id)).into();
        let added: HashMap<u32, String> = [(5, "<|im_end|>".to_string())].into();
        let pieces = Pieces::new(Spelling::ByteLevel, &vocabulary, &added);
        assert_eq!(pieces.get(0), b" hello");
        assert_eq!([pieces.get(1), pieces.get(2)].concat(), "你".as_bytes());
        assert_eq!(pieces.get(3), b"\n");
        assert_eq!(pieces.get(4), b"", "a hole in the ids");
        assert_eq!(pieces.get(5), b"<|im_end|>");
        assert_eq!(pieces.get(600), b"", "past the end");
        assert_eq!(pieces.len(), 6);

        let vocabulary: HashMap<String, u32> =
            [("▁the", 0), ("<0x0A>", 1), ("<0xZZ>", 2)].map(|(piece, id)| (piece.to_string(), id)).into();
        let pieces = Pieces::new(Spelling::SentencePiece, &vocabulary, &HashMap::new());
        assert_eq!([pieces.get(0), pieces.get(1), pieces.get(2)], [&b" the"[..], b"\n", b"<0xZZ>"]);
    }

    #[test]
    fn every_byte_has_one_character_in_the_alphabet() {
        let alphabet = byte_alphabet();
        let bytes: std::collections::HashSet<u8> = alphabet.values().copied().collect();
        assert_eq!((alphabet.len(), bytes.len()), (256, 256));
        assert_eq!((alphabet[&'Ġ'], alphabet[&'Ċ'], alphabet[&'!']), (b' ', b'\n', b'!'));
    }
}
