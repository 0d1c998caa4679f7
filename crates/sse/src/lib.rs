//! Server-sent events cut out of a byte stream, however it is chunked.
//!
//! [`Splitter`] gives whole events as they came, for a proxy that passes them on; [`Parser`] gives their data. Events end
//! in a blank line (LF or CRLF), lines that start with `:` are comments. Bounded: an event larger than [`EVENT_BYTES_MAX`]
//! is an error instead of memory.

pub mod testing;

use std::borrow::Cow;

use memchr::memchr;

/// Largest event accepted, bytes.
pub const EVENT_BYTES_MAX: usize = 4 << 20;

/// The stream holds an event larger than [`EVENT_BYTES_MAX`].
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("server-sent event larger than {EVENT_BYTES_MAX} bytes")]
pub struct TooLarge;

/// Cuts a byte stream into whole events, line ends and comments included.
#[derive(Default)]
pub struct Splitter {
    /// The beginning of an event whose end has not come.
    held: Vec<u8>,
    /// Where in `held` its last, unfinished line begins.
    line_start: usize,
}

impl Splitter {
    /// Feeds `bytes`; calls `event` with each event that they complete. Events without data (comments, stray blank lines)
    /// are events here.
    ///
    /// # Errors
    /// [`TooLarge`], after which the stream should be dropped.
    pub fn feed(&mut self, bytes: &[u8], mut event: impl FnMut(&[u8])) -> Result<(), TooLarge> {
        let mut rest = bytes;
        if !self.held.is_empty() {
            let known = self.held.len();
            let Some(end) = self.end_with(rest) else {
                self.held.extend_from_slice(rest);
                return if self.held.len() > EVENT_BYTES_MAX { Err(TooLarge) } else { Ok(()) };
            };
            self.held.extend_from_slice(&rest[..end - known]);
            event(&self.held);
            rest = &rest[end - known..];
            self.held.clear();
        }
        self.line_start = 0;
        while let Some(end) = event_end(rest, &mut self.line_start) {
            event(&rest[..end]);
            rest = &rest[end..];
            self.line_start = 0;
        }
        self.held.extend_from_slice(rest);
        if self.held.len() > EVENT_BYTES_MAX { Err(TooLarge) } else { Ok(()) }
    }

    /// Whether an event has begun and not ended.
    pub fn is_inside(&self) -> bool {
        !self.held.is_empty()
    }

    /// Where the held event ends, counted from its beginning, if `more` completes it.
    fn end_with(&mut self, more: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(newline) = memchr(b'\n', &more[at..]).map(|n| at + n) {
            let line_end = self.held.len() + newline;
            let blank = match line_end - self.line_start {
                0 => true,
                1 => newline.checked_sub(1).map_or_else(|| self.held.last() == Some(&b'\r'), |n| more[n] == b'\r'),
                _ => false,
            };
            self.line_start = line_end + 1;
            at = newline + 1;
            if blank {
                return Some(self.line_start);
            }
        }
        None
    }
}

/// Length of the first event of `bytes` with its blank line; moves `line_start` to the last line that has begun.
fn event_end(bytes: &[u8], line_start: &mut usize) -> Option<usize> {
    while let Some(newline) = memchr(b'\n', &bytes[*line_start..]).map(|n| *line_start + n) {
        let line = &bytes[*line_start..newline];
        *line_start = newline + 1;
        if line.is_empty() || line == b"\r" {
            return Some(newline + 1);
        }
    }
    None
}

/// The data of a whole event: its `data:` lines, joined; `None` if it has none.
pub fn data(event: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut found: Option<Cow<'_, [u8]>> = None;
    let mut rest = event;
    while !rest.is_empty() {
        let end = memchr(b'\n', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(value) = line.strip_prefix(b"data:") else { continue };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &mut found {
            None => found = Some(Cow::Borrowed(value)),
            Some(found) => {
                let found = found.to_mut();
                found.push(b'\n');
                found.extend_from_slice(value);
            }
        }
    }
    found
}

/// Splits a byte stream into the data of its events.
#[derive(Default)]
pub struct Parser {
    events: Splitter,
}

impl Parser {
    /// Feeds `bytes`; calls `event` with the data of each event that they complete.
    ///
    /// # Errors
    /// [`TooLarge`], after which the stream should be dropped.
    pub fn feed(&mut self, bytes: &[u8], mut event: impl FnMut(&[u8])) -> Result<(), TooLarge> {
        self.events.feed(bytes, |raw| {
            if let Some(data) = data(raw) {
                event(&data);
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] =
        b"data: {\"a\":1}\n\n: ping\r\n\r\n\n\r\ndata: two\ndata:lines\n\ndata: x\r\n\r\nevent: e\ndata: [DONE]\n\n";

    fn all(chunks: &[&[u8]]) -> Vec<String> {
        let (mut parser, mut out) = (Parser::default(), Vec::new());
        for chunk in chunks {
            parser.feed(chunk, |e| out.push(String::from_utf8_lossy(e).into_owned())).unwrap();
        }
        out
    }

    fn raw(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut splitter, mut out) = (Splitter::default(), Vec::new());
        for chunk in chunks {
            splitter.feed(chunk, |e| out.push(e.to_vec())).unwrap();
        }
        assert!(!splitter.is_inside());
        out
    }

    #[test]
    fn both_line_ends_comments_and_multi_line_data() {
        assert_eq!(all(&[b": hi\ndata: a\n\ndata:b\r\n\r\nevent: x\ndata: c\ndata: d\n\n\n"]), ["a", "b", "c\nd"]);
        assert_eq!(all(&[TEXT]), ["{\"a\":1}", "two\nlines", "x", "[DONE]"]);
    }

    #[test]
    fn unfinished_event_stays_inside() {
        assert!(all(&[b"data: a\n"]).is_empty());
    }

    #[test]
    fn endless_event_is_refused() {
        for chunk in [vec![b'x'; 1 << 20], b"data: x\n".repeat(1 << 17)] {
            let mut parser = Parser::default();
            let mut result = Ok(());
            for _ in 0..8 {
                result = result.and_then(|()| parser.feed(&chunk, |_| ()));
            }
            assert_eq!(result, Err(TooLarge));
        }
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(cuts in prop::collection::vec(0usize..=TEXT.len(), 0..12)) {
            let mut cuts = cuts;
            cuts.extend([0, TEXT.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &TEXT[w[0]..w[1]]).collect();
            prop_assert_eq!(all(&pieces), all(&[TEXT]));
            prop_assert_eq!(raw(&pieces), raw(&[TEXT]));
            prop_assert_eq!(raw(&pieces).concat(), TEXT);
        }
    }
}
