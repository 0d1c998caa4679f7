//! Bytes to lines of a bounded length.

/// Splits a stream of bytes at newlines. A line over the bound is thrown away and counted as one.
#[derive(Debug)]
pub struct Lines {
    buffer: Vec<u8>,
    line_bytes_max: usize,
    /// The rest of a line that was too long is still coming.
    skipping: bool,
}

/// A line, or the place of one that was too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// Without its newline.
    Whole(&'a [u8]),
    /// Longer than the bound.
    TooLong,
}

impl Lines {
    /// Nothing received; lines may have `line_bytes_max` bytes without the newline.
    pub fn new(line_bytes_max: usize) -> Self {
        Self { buffer: Vec::new(), line_bytes_max, skipping: false }
    }

    /// Takes bytes and hands out the lines that end in them.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Line<'_>)) {
        for part in bytes.split_inclusive(|&b| b == b'\n') {
            let (content, ends) = match part.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (part, false),
            };
            if !self.skipping && self.buffer.len() + content.len() > self.line_bytes_max {
                self.skipping = true;
                self.buffer.clear();
                each(Line::TooLong);
            }
            if !self.skipping {
                self.buffer.extend_from_slice(content);
            }
            if ends {
                if !std::mem::take(&mut self.skipping) {
                    each(Line::Whole(&self.buffer));
                }
                self.buffer.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(parts: &[&str]) -> Vec<Option<String>> {
        let (mut lines, mut out) = (Lines::new(4), Vec::new());
        for part in parts {
            lines.push(part.as_bytes(), |line| {
                out.push(match line {
                    Line::Whole(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
                    Line::TooLong => None,
                });
            });
        }
        out
    }

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        let some = |s: &str| Some(s.to_owned());
        for (parts, want) in [
            (&["ab\ncd\n"][..], vec![some("ab"), some("cd")]),
            (&["a", "b\nc", "d\n", "rest"], vec![some("ab"), some("cd")]),
            (&["\n\n"], vec![some(""), some("")]),
            (&["abcd\n"], vec![some("abcd")]),
            (&["abcde\nx\n"], vec![None, some("x")]),
            (&["abc", "de", "fghijkl", "\nx\n"], vec![None, some("x")]),
        ] {
            assert_eq!(lines(parts), want, "{parts:?}");
        }
    }

    #[test]
    fn memory_stays_bounded_without_newlines() {
        let mut lines = Lines::new(64);
        for _ in 0..1000 {
            lines.push(&[b'x'; 100], |_| ());
        }
        assert!(lines.buffer.capacity() <= 128);
    }
}
