//! HTTP/1.1 as both ends of a stream read it: heads, and bodies cut out of whatever a read brings.
//!
//! hyper hands a chunk from one task to another through a channel, which costs more than reading it from the socket. Here
//! what a read brought is looked through in place: nothing is copied, allocated or woken for a chunk. httparse reads heads.
//! Pure: bytes in, parts out, so that where reads happen to be cut can be tried in any way.

/// Largest head accepted, bytes.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// Header lines of a head at most.
const HEADERS_MAX: usize = 128;
/// Digits of a chunk's size at most: 64 bits.
const SIZE_DIGITS_MAX: u8 = 16;

/// What is no HTTP/1.1.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Malformed {
    /// Not a head.
    #[error("not HTTP/1.1")]
    Head(#[from] httparse::Error),
    /// A head that does not end.
    #[error("head larger than {HEAD_BYTES_MAX} bytes")]
    HeadTooLarge,
    /// A length that is no number, or two that differ.
    #[error("content-length is no number")]
    Length,
    /// Where a chunk's size should stand.
    #[error("chunk without a size")]
    ChunkSize,
    /// A chunk longer than its size.
    #[error("chunk longer than its size says")]
    ChunkEnd,
}

/// The head of an answer.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// What follows.
    pub body: Body,
    /// Whether the connection may carry another request after it.
    pub keeps: bool,
}

/// The head of a request.
#[derive(Debug, PartialEq)]
pub struct Asked {
    /// In capitals.
    pub method: String,
    /// Without a query.
    pub path: String,
    /// `x-request-id`.
    pub id: Option<String>,
    /// What follows.
    pub body: Body,
    /// Whether the client wants another answer on this connection.
    pub keeps: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub waits: bool,
}

/// Reads an answer's head off the beginning of `bytes`, with its length; interim answers (1xx) before it are skipped. `None`
/// until it is whole.
///
/// # Errors
/// What it is instead.
pub fn answer(bytes: &[u8]) -> Result<Option<(Answer, usize)>, Malformed> {
    let mut skipped = 0;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(length) = head.parse(&bytes[skipped..])? else { return unfinished(bytes) };
        let (status, minor) = (head.code.unwrap_or_default(), head.version.unwrap_or_default());
        let fields = Fields::of(head.headers, minor)?;
        skipped += length;
        if !(100..200).contains(&status) {
            let body = match (status, fields.length) {
                (204 | 304, _) => Body::Ended,
                _ if fields.chunked => Body::chunked(),
                (_, Some(length)) => Body::of_length(length),
                (_, None) => Body::UntilClose,
            };
            let keeps = fields.keeps && body != Body::UntilClose;
            return Ok(Some((Answer { status, body, keeps }, skipped)));
        }
    }
}

/// Reads a request's head off the beginning of `bytes`, with its length. `None` until it is whole.
///
/// # Errors
/// What it is instead.
pub fn request(bytes: &[u8]) -> Result<Option<(Asked, usize)>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(bytes)? else { return unfinished(bytes) };
    let fields = Fields::of(head.headers, head.version.unwrap_or_default())?;
    let path = head.path.unwrap_or_default();
    let asked = Asked {
        method: head.method.unwrap_or_default().to_owned(),
        path: path.split('?').next().unwrap_or_default().to_owned(),
        id: fields.id,
        body: match fields.length {
            _ if fields.chunked => Body::chunked(),
            length => Body::of_length(length.unwrap_or_default()),
        },
        keeps: fields.keeps,
        waits: fields.waits,
    };
    Ok(Some((asked, length)))
}

fn unfinished<T>(bytes: &[u8]) -> Result<Option<T>, Malformed> {
    if bytes.len() > HEAD_BYTES_MAX { Err(Malformed::HeadTooLarge) } else { Ok(None) }
}

/// What header lines say of the message.
struct Fields {
    length: Option<u64>,
    chunked: bool,
    keeps: bool,
    waits: bool,
    id: Option<String>,
}

impl Fields {
    fn of(headers: &[httparse::Header<'_>], minor: u8) -> Result<Self, Malformed> {
        let mut out = Self { length: None, chunked: false, keeps: minor >= 1, waits: false, id: None };
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            let words = || header.value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
            let says = |word: &str| words().any(|w| w.eq_ignore_ascii_case(word.as_bytes()));
            if is("content-length") {
                let length = std::str::from_utf8(header.value).ok().and_then(|v| v.trim().parse().ok());
                let length = length.ok_or(Malformed::Length)?;
                if out.length.replace(length).is_some_and(|before| before != length) {
                    return Err(Malformed::Length);
                }
            } else if is("transfer-encoding") {
                out.chunked |= says("chunked");
            } else if is("connection") {
                out.keeps = (out.keeps || says("keep-alive")) && !says("close");
            } else if is("expect") {
                out.waits = says("100-continue");
            } else if is("x-request-id") {
                out.id = std::str::from_utf8(header.value).ok().map(str::to_owned);
            }
        }
        Ok(out)
    }
}

/// How much of a body is still to come.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Nothing.
    Ended,
    /// So many bytes.
    Length(u64),
    /// Chunks, the last of which is empty.
    Chunked(Chunk),
    /// Everything until the connection ends.
    UntilClose,
}

/// Where in a chunked body a read ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Chunk {
    /// In the digits of a size.
    Size {
        /// What they say so far.
        size: u64,
        /// How many they are.
        digits: u8,
    },
    /// Behind a size, before its line's end.
    Extension(u64),
    /// So many bytes before a chunk's end.
    Data(u64),
    /// In the line end behind a chunk.
    LineEnd,
    /// In a line behind the last chunk; whether it has anything in it.
    Trailer(bool),
}

impl Chunk {
    const BEGIN: Self = Self::Size { size: 0, digits: 0 };

    fn of_size(size: u64) -> Self {
        if size == 0 { Self::Trailer(false) } else { Self::Data(size) }
    }
}

impl Body {
    fn chunked() -> Self {
        Self::Chunked(Chunk::BEGIN)
    }

    fn of_length(length: u64) -> Self {
        if length == 0 { Self::Ended } else { Self::Length(length) }
    }

    /// Whether all has come.
    pub fn has_ended(&self) -> bool {
        *self == Self::Ended
    }

    /// Gives the body's parts in `bytes` to `part`; how many bytes belong to it: all of them unless it ends among them.
    ///
    /// # Errors
    /// A chunk that is none.
    pub fn feed(&mut self, bytes: &[u8], mut part: impl FnMut(&[u8])) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let (next, used) = match self {
                Self::Ended => break,
                Self::UntilClose => {
                    part(rest);
                    return Ok(bytes.len());
                }
                Self::Length(left) => {
                    let (left, taken) = take(*left, rest, &mut part);
                    (Self::of_length(left), taken)
                }
                Self::Chunked(Chunk::Data(left)) => match take(*left, rest, &mut part) {
                    (0, taken) => (Self::Chunked(Chunk::LineEnd), taken),
                    (left, taken) => (Self::Chunked(Chunk::Data(left)), taken),
                },
                Self::Chunked(Chunk::Trailer(false)) if rest[0] == b'\n' => (Self::Ended, 1),
                Self::Chunked(chunk) => (Self::Chunked(between(*chunk, rest[0])?), 1),
            };
            *self = next;
            at += used;
        }
        Ok(at)
    }
}

/// Gives `part` what of `rest` belongs to the next `left` bytes; how many are left then, and how many those were.
fn take(left: u64, rest: &[u8], part: &mut impl FnMut(&[u8])) -> (u64, usize) {
    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
    part(&rest[..taken]);
    (left - taken as u64, taken)
}

/// One byte of what stands between chunks.
fn between(chunk: Chunk, byte: u8) -> Result<Chunk, Malformed> {
    Ok(match (chunk, byte) {
        (Chunk::Size { size, digits: 1.. }, b'\n') | (Chunk::Extension(size), b'\n') => Chunk::of_size(size),
        (Chunk::Extension(size), _) | (Chunk::Size { size, digits: 1.. }, b';' | b' ' | b'\t' | b'\r') => {
            Chunk::Extension(size)
        }
        (Chunk::Size { size, digits }, byte) => match char::from(byte).to_digit(16) {
            Some(digit) if digits < SIZE_DIGITS_MAX => {
                Chunk::Size { size: (size << 4) | u64::from(digit), digits: digits + 1 }
            }
            _ => return Err(Malformed::ChunkSize),
        },
        (Chunk::LineEnd, b'\r') => Chunk::LineEnd,
        (Chunk::LineEnd, b'\n') => Chunk::BEGIN,
        (Chunk::LineEnd | Chunk::Data(_), _) => return Err(Malformed::ChunkEnd),
        (Chunk::Trailer(any), byte) => Chunk::Trailer(byte != b'\n' && (any || byte != b'\r')),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(text: &str) -> Answer {
        let (answer, length) = answer(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        answer
    }

    #[test]
    fn a_head_says_what_follows_and_whether_the_connection_stays() {
        for (text, status, body, keeps) in [
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n", 200, Body::chunked(), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", 200, Body::Length(7), true),
            ("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", 500, Body::Ended, true),
            ("HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 7\r\n\r\n", 200, Body::Length(7), false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 7\r\n\r\n", 200, Body::Length(7), false),
            ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 7\r\n\r\n", 200, Body::Length(7), true),
            ("HTTP/1.1 200 OK\r\n\r\n", 200, Body::UntilClose, false),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, Body::Ended, true),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\ncontent-length: 1\r\n\r\n", 404, Body::Length(1), true),
        ] {
            assert_eq!(head(text), Answer { status, body, keeps }, "{text}");
        }
    }

    #[test]
    fn a_request_says_who_asks_what() {
        let text = "POST /v1/completions?x=1 HTTP/1.1\r\nX-Request-Id: a-7\r\nExpect: 100-continue\r\ncontent-length: 2\r\n\r\n{}";
        let (asked, length) = request(text.as_bytes()).unwrap().unwrap();
        assert_eq!(&text[length..], "{}");
        assert_eq!((&*asked.method, &*asked.path, asked.id.as_deref()), ("POST", "/v1/completions", Some("a-7")));
        assert_eq!((asked.body, asked.keeps, asked.waits), (Body::Length(2), true, true));
        let (get, _) = request(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap().unwrap();
        assert_eq!((get.body, get.keeps), (Body::Ended, false));
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(matches!(answer(b"<html>"), Err(Malformed::Head(_))));
        let lengths = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n";
        assert_eq!(answer(lengths), Err(Malformed::Length));
        assert_eq!(answer(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"), Err(Malformed::Length));
        let endless = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'y'; HEAD_BYTES_MAX]].concat();
        assert_eq!(answer(&endless), Err(Malformed::HeadTooLarge));
        for (bytes, want) in [
            ("\r\n", Malformed::ChunkSize),
            ("g\r\n", Malformed::ChunkSize),
            ("00000000000000001\r\n", Malformed::ChunkSize),
            ("1\r\nab", Malformed::ChunkEnd),
        ] {
            assert_eq!(Body::chunked().feed(bytes.as_bytes(), |_| ()), Err(want), "{bytes}");
        }
    }

    /// The body in `pieces`, how many bytes belonged to it, and whether it ended.
    fn read(mut body: Body, pieces: &[&[u8]]) -> (Vec<u8>, usize, bool) {
        let (mut out, mut used) = (Vec::new(), 0);
        for piece in pieces {
            used += body.feed(piece, |part| out.extend_from_slice(part)).unwrap();
        }
        (out, used, body.has_ended())
    }

    proptest! {
        #[test]
        fn where_reads_are_cut_does_not_matter(
            parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), ".{0,3}"), 0..6),
            trailer in prop_oneof![Just(""), Just("x: y\r\nz:\r\n")],
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut wire = Vec::new();
            for (data, note) in &parts {
                let note = note.replace(['\n', '\r'], "");
                wire.extend(format!("{:X};{note}\r\n", data.len()).bytes().chain(data.iter().copied()).chain(*b"\r\n"));
            }
            wire.extend(format!("0\r\n{trailer}\r\n").bytes());
            let length = wire.len();
            wire.extend(b"HTTP/1.1 200 OK");
            let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(wire.len())).chain([0, wire.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &wire[w[0]..w[1]]).collect();
            let data: Vec<u8> = parts.iter().flat_map(|(data, _)| data.clone()).collect();
            prop_assert_eq!(read(Body::chunked(), &pieces), (data, length, true));
            prop_assert_eq!(read(Body::Length(9), &pieces), (wire[..9.min(wire.len())].to_vec(), 9, true));
            prop_assert_eq!(read(Body::UntilClose, &pieces), (wire.clone(), wire.len(), false));
            prop_assert!(!read(Body::chunked(), &[&wire[..length - 1]]).2);
        }
    }
}
