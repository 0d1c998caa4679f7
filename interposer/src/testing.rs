//! What any process that may connect can send to the hint listener, for a fuzz target and the replay of its corpus.

use std::cell::RefCell;

use session::{Client, DeviceFacts, Doorbell, Layout, ServerSession, local};
use wire::testing::Source;
use wire::{HINT_JSON_BYTES_MAX, Hint, Record};

use crate::hints::feed;
use crate::lines::Lines;

const LAYOUT: Layout = Layout {
    ring_bytes: 1 << 20,
    arena_bytes: 1 << 20,
    staging_block_bytes: 16 << 10,
    staging_blocks: 8,
    reply_slots: 16,
};

thread_local! {
    static SESSION: RefCell<Option<(Client, ServerSession)>> = const { RefCell::new(None) };
}

/// However the bytes of a connection are cut, the daemon reads the hints of its lines, in order, and every other line is counted.
///
/// # Panics
/// If a promise is broken.
pub fn check_hints(bytes: &[u8]) {
    SESSION.with_borrow_mut(|session| {
        let (client, server) = session.get_or_insert_with(open);
        let (mut source, mut lines) = (Source::new(bytes), Lines::new(HINT_JSON_BYTES_MAX));
        let (mut all, mut refused, mut got) = (Vec::new(), 0, Vec::new());
        while !source.is_empty() {
            let len = source.below(1 << 11);
            let piece = source.bytes(len);
            refused += feed(client, &mut lines, piece);
            all.extend_from_slice(piece);
            // A connection's piece is read at once, so the ring has room for what it holds.
            let drained = server.drain(usize::MAX, &mut |_, record, _| match record {
                Record::Hint(hint) => got.push(hint),
                other => panic!("{other:?} is no hint"),
            });
            drained.expect("what the listener posts is valid");
        }
        let (want, none) = expected(&all);
        assert_eq!(got, want);
        assert_eq!(refused, none, "lines that are no hints");
    });
}

/// What is to come of a whole connection: its hints, and how many other lines.
fn expected(all: &[u8]) -> (Vec<Hint>, u32) {
    let (mut hints, mut refused) = (Vec::new(), 0);
    for line in all.split_inclusive(|&b| b == b'\n') {
        let whole = line.strip_suffix(b"\n");
        match whole.map(|line| (line, Hint::from_json(line))) {
            // Said as soon as it is too long, though its end has not come.
            _ if whole.unwrap_or(line).len() > HINT_JSON_BYTES_MAX => refused += 1,
            Some((b"", _)) | None => {}
            Some((_, Ok(hint))) => hints.push(hint),
            Some((_, Err(_))) => refused += 1,
        }
    }
    (hints, refused)
}

fn open() -> (Client, ServerSession) {
    let facts = DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 0, device_index: 0, epoch: 1 };
    local(LAYOUT, Doorbell::new().expect("an eventfd"), facts).expect("shared memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corpus_of_the_hint_socket_replays() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/hints");
        let replayed = wire::testing::replay(seeds.as_ref(), check_hints);
        assert!(replayed >= 10, "{replayed} seeds");
    }
}
