//! What an engine's answer may be, for a fuzz target and the replay of its corpus.

use crate::{EVENT_BYTES_MAX, Parser, Splitter, data};

/// However a stream is cut into pieces, its events are the same; together they are the stream, but for what has not ended; each ends
/// in its first blank line, and no more is held than one event.
///
/// The first byte says where to cut: pieces of that many bytes, and none empty.
///
/// # Panics
/// If a promise is broken.
pub fn check_stream(bytes: &[u8]) {
    let Some((&size, stream)) = bytes.split_first() else { return };
    let whole = split(&[stream]);
    let pieces: Vec<&[u8]> = stream.chunks(usize::from(size).max(1)).collect();
    let cut = split(&pieces);
    assert_eq!(cut, whole, "pieces of {size} bytes");
    let together = whole.concat();
    assert_eq!(together, stream[..together.len()]);
    let rest = &stream[together.len()..];
    assert!(blank_line(rest).is_none(), "an event has ended and was not given");
    for event in &whole {
        assert_eq!(blank_line(event), Some(event.len()), "an event ends in its first blank line");
    }
    let mut parser = Parser::default();
    let mut parsed = Vec::new();
    for piece in pieces {
        parser.feed(piece, |data| parsed.push(data.to_vec())).expect("shorter than the bound");
    }
    let want: Vec<Vec<u8>> = whole.iter().filter_map(|event| lines_of_data(event)).collect();
    assert_eq!(parsed, want);
    for event in &whole {
        assert_eq!(data(event).map(|d| d.into_owned()), lines_of_data(event));
    }
}

fn split(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
    let (mut splitter, mut events, mut fed) = (Splitter::default(), Vec::<Vec<u8>>::new(), 0);
    for piece in pieces {
        assert!(piece.len() <= EVENT_BYTES_MAX);
        splitter.feed(piece, |event| events.push(event.to_vec())).expect("shorter than the bound");
        fed += piece.len();
        assert_eq!(splitter.is_inside(), events.iter().map(Vec::len).sum::<usize>() < fed);
    }
    events
}

/// Where the first blank line ends, found the slow way.
fn blank_line(bytes: &[u8]) -> Option<usize> {
    let mut end = 0;
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        end += line.len();
        if line == b"\n" || line == b"\r\n" {
            return Some(end);
        }
    }
    None
}

/// The data of an event, found the slow way.
fn lines_of_data(event: &[u8]) -> Option<Vec<u8>> {
    let lines = event.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let values = lines.filter_map(|line| line.strip_prefix(b"data:"));
    let values: Vec<&[u8]> = values.map(|value| value.strip_prefix(b" ").unwrap_or(value)).collect();
    (!values.is_empty()).then(|| values.join(&b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corpus_of_event_streams_replays() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/sse");
        let mut replayed = 0;
        for entry in std::fs::read_dir(seeds).unwrap() {
            check_stream(&std::fs::read(entry.unwrap().path()).unwrap());
            replayed += 1;
        }
        assert!(replayed >= 10, "{replayed} seeds");
    }
}
