//! Edits of a JSON body that leave every other byte alone.

use std::ops::Range;

use bytes::Bytes;

/// Replaces a range of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splice {
    /// Bytes that go.
    pub range: Range<usize>,
    /// Bytes that come instead.
    pub with: Bytes,
}

/// Adds `member` (`"name":value`) as the last of the object that `body` is; `None` if it is no object.
pub(crate) fn append_member(body: &[u8], member: &str) -> Option<Splice> {
    let end = body.trim_ascii_end().len().checked_sub(1).filter(|&at| body[at] == b'}')?;
    let empty = body[..end].trim_ascii_end().last() == Some(&b'{') && body[..end].trim_ascii().len() == 1;
    let with = if empty { member.to_owned() } else { format!(",{member}") };
    Some(Splice { range: end..end, with: with.into() })
}

/// The edited body in pieces that share the original's memory. Edits must not overlap; of two at one place the first comes
/// first.
pub fn whole(body: &Bytes, edits: &[Splice]) -> Vec<Bytes> {
    let mut edits: Vec<&Splice> = edits.iter().collect();
    edits.sort_by_key(|e| (e.range.start, e.range.end));
    let mut pieces = Vec::with_capacity(2 * edits.len() + 1);
    let mut at = 0;
    for edit in edits {
        debug_assert!(at <= edit.range.start, "overlapping edits");
        pieces.push(body.slice(at..edit.range.start));
        pieces.push(edit.with.clone());
        at = edit.range.end;
    }
    pieces.push(body.slice(at..));
    pieces.retain(|p| !p.is_empty());
    pieces
}

#[cfg(test)]
pub(crate) fn applied(body: &[u8], edits: &[Splice]) -> Vec<u8> {
    whole(&Bytes::copy_from_slice(body), edits).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_goes_before_the_last_brace() {
        for (body, want) in [
            ("{}", r#"{"a":1}"#),
            (" { } \n", " { \"a\":1} \n"),
            (r#"{"b":{}}"#, r#"{"b":{},"a":1}"#),
            (r#"{"b":"{"}"#, r#"{"b":"{","a":1}"#),
        ] {
            let edit = append_member(body.as_bytes(), r#""a":1"#).unwrap();
            assert_eq!(applied(body.as_bytes(), &[edit]), want.as_bytes(), "{body}");
        }
        assert!(append_member(b"[1]", "x").is_none());
        assert!(append_member(b"", "x").is_none());
    }

    #[test]
    fn edits_apply_in_order_of_place() {
        let edit = |range, with: &'static str| Splice { range, with: Bytes::from_static(with.as_bytes()) };
        assert_eq!(applied(b"0123456789", &[edit(8..9, "y"), edit(1..3, "x"), edit(8..8, "")]), b"0x34567y9");
        assert_eq!(whole(&Bytes::from_static(b"abc"), &[]).len(), 1);
    }
}
