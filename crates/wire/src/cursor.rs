//! Reading and writing little-endian fields.

use crate::DecodeError;

/// Bytes not read yet.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) =
            self.rest.split_first_chunk().ok_or(DecodeError::Truncated { need: N, have: self.rest.len() })?;
        self.rest = rest;
        Ok(*head)
    }

    #[inline]
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) =
            self.rest.split_at_checked(len).ok_or(DecodeError::Truncated { need: len, have: self.rest.len() })?;
        self.rest = rest;
        Ok(head)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline]
    pub(crate) fn i8(&mut self) -> Result<i8, DecodeError> {
        self.array().map(i8::from_le_bytes)
    }

    #[inline]
    pub(crate) fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_le_bytes)
    }

    #[inline]
    pub(crate) fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_le_bytes)
    }

    /// A UTF-8 string with a 16-bit length of at most `max` bytes.
    pub(crate) fn text(&mut self, what: &'static str, max: usize) -> Result<&'a str, DecodeError> {
        let len = usize::from(self.u16()?);
        if len > max {
            return Err(DecodeError::TooMany { what, count: len, max });
        }
        std::str::from_utf8(self.take(len)?).map_err(|_| DecodeError::Text(what))
    }

    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }
}

/// Appending fields to a buffer.
pub(crate) trait Put {
    fn put<const N: usize>(&mut self, bytes: [u8; N]);

    #[inline]
    fn u8(&mut self, v: u8) {
        self.put([v]);
    }

    #[inline]
    fn u16(&mut self, v: u16) {
        self.put(v.to_le_bytes());
    }

    #[inline]
    fn u32(&mut self, v: u32) {
        self.put(v.to_le_bytes());
    }

    #[inline]
    fn u64(&mut self, v: u64) {
        self.put(v.to_le_bytes());
    }

    #[inline]
    fn i32(&mut self, v: i32) {
        self.put(v.to_le_bytes());
    }

    #[inline]
    fn i64(&mut self, v: i64) {
        self.put(v.to_le_bytes());
    }
}

impl Put for Vec<u8> {
    #[inline]
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.extend_from_slice(&bytes);
    }
}

/// Appends a 16-bit length and the text; the caller has bounded it.
pub(crate) fn put_text(text: &str, out: &mut Vec<u8>) {
    debug_assert!(text.len() <= usize::from(u16::MAX));
    out.u16(text.len() as u16);
    out.extend_from_slice(text.as_bytes());
}

/// `text` cut to at most `max` bytes at a character boundary.
pub(crate) fn clip(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
