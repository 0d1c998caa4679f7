//! Incremental parser of server-sent events: bytes in, `data:` payloads out.
//!
//! Events end in a blank line (LF or CRLF), may be cut anywhere between chunks, and lines that start with `:` are
//! comments. Bounded: an event larger than [`EVENT_BYTES_MAX`] is an error instead of memory.

/// Largest event accepted, bytes.
pub const EVENT_BYTES_MAX: usize = 4 << 20;

/// Splits a byte stream into events.
#[derive(Default)]
pub struct Parser {
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
}

/// The stream holds an event larger than [`EVENT_BYTES_MAX`].
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("server-sent event larger than {EVENT_BYTES_MAX} bytes")]
pub struct TooLarge;

impl Parser {
    /// Feeds `bytes`; calls `event` with the data of each event that they complete.
    ///
    /// # Errors
    /// [`TooLarge`], after which the stream should be dropped.
    pub fn feed(&mut self, bytes: &[u8], mut event: impl FnMut(&[u8])) -> Result<(), TooLarge> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() + self.data.len() > EVENT_BYTES_MAX {
                    return Err(TooLarge);
                }
                continue;
            }
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
            if self.line.is_empty() {
                if self.has_data {
                    event(&self.data);
                }
                self.data.clear();
                self.has_data = false;
            } else if let Some(value) = self.line.strip_prefix(b"data:") {
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
                self.has_data = true;
            }
            self.line.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(chunks: &[&[u8]]) -> Vec<String> {
        let (mut parser, mut out) = (Parser::default(), Vec::new());
        for chunk in chunks {
            parser.feed(chunk, |e| out.push(String::from_utf8_lossy(e).into_owned())).unwrap();
        }
        out
    }

    #[test]
    fn both_line_ends_comments_and_multi_line_data() {
        assert_eq!(all(&[b": hi\ndata: a\n\ndata:b\r\n\r\nevent: x\ndata: c\ndata: d\n\n\n"]), ["a", "b", "c\nd"]);
    }

    #[test]
    fn unfinished_event_stays_inside() {
        assert!(all(&[b"data: a\n"]).is_empty());
    }

    #[test]
    fn endless_event_is_refused() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; 1 << 20];
        let mut result = Ok(());
        for _ in 0..8 {
            result = result.and_then(|()| parser.feed(&chunk, |_| ()));
        }
        assert_eq!(result, Err(TooLarge));
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(cuts in prop::collection::vec(0usize..60, 0..6)) {
            let text = b"data: {\"a\":1}\n\n: ping\r\n\r\ndata: two\ndata: lines\n\ndata: [DONE]\n\n";
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            prop_assert_eq!(all(&pieces), all(&[text]));
        }
    }
}
