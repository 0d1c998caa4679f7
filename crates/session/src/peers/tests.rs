//! Ranks that find each other, and that notice who is gone.

use super::*;
use crate::Doorbell;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(20);

fn join(peers: &Peers, key: [u64; 4], place: (usize, usize), timeout: Duration) -> Receiver<Result<Member, String>> {
    let (tell, told) = channel();
    peers.join(key, place, timeout, move |result| drop(tell.send(result)));
    told
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two daemons in one directory.
fn two() -> (tempfile::TempDir, [(Peers, Doorbell); 2]) {
    let dir = tempfile::tempdir().unwrap();
    let daemon = |name: &str| {
        let bell = Doorbell::new().unwrap();
        (Peers::listen(&dir.path().join(name), bell.clone()).unwrap(), bell)
    };
    let both = [daemon("0.sock"), daemon("1.sock")];
    (dir, both)
}

#[test]
fn ranks_of_two_daemons_share_memory_and_ring_each_other() {
    let (_dir, [(a, _), (b, b_bell)]) = two();
    let key = a.root().unwrap();
    let (first, second) = (join(&a, key, (0, 2), LONG), join(&b, key, (1, 2), LONG));
    let (first, second) = (first.recv().unwrap().unwrap(), second.recv().unwrap().unwrap());
    assert_eq!((first.rank(), second.rank(), second.ranks()), (0, 1, 2));
    while b_bell.wait(Some(Duration::ZERO)) {}
    first.segment().count_sent(0, 1);
    first.ring(1);
    assert!(b_bell.wait(Some(LONG)));
    assert_eq!(second.segment().sent(0, 1), 1);
    assert_eq!(
        join(&b, key, (1, 2), LONG).recv().unwrap().unwrap_err().split(" (").next(),
        Some("the root info is of no communicator that is waiting for ranks")
    );

    first.end();
    until("an end in order is seen", || second.left(0) == Left::InOrder);
}

#[test]
fn a_rank_that_dies_is_noticed_and_a_daemon_that_dies_ends_all() {
    let (_dir, [(a, _), (b, b_bell)]) = two();
    let key = a.root().unwrap();
    let (first, second) = (join(&a, key, (0, 2), LONG), join(&b, key, (1, 2), LONG));
    let (first, second) = (first.recv().unwrap().unwrap(), second.recv().unwrap().unwrap());
    while b_bell.wait(Some(Duration::ZERO)) {}
    drop(first);
    assert_eq!(second.left(0), Left::Died);
    assert!(b_bell.wait(Some(LONG)), "and it rings");
}

#[test]
fn who_cannot_join_is_told_why() {
    let (_dir, [(a, _), (b, _)]) = two();
    let key = a.root().unwrap();
    let alone = join(&b, key, (0, 2), Duration::from_millis(50));
    assert!(alone.recv().unwrap().unwrap_err().contains("not all 2 ranks"));
    // It has gone, so its place is free again.
    let table = [
        ((1, 3), key, "another one said 2"),
        ((0, 2), key, "is there already"),
        ((0, 2), [key[0], 1, 2, 3], "no communicator that is waiting"),
        ((0, 2), [7, 1, 2, 3], "sockets in one directory"),
        ((2, 2), key, "rank 2 of 2"),
    ];
    let (mut first, mut seated) = (None, false);
    until("the place is free", || {
        let again = join(&a, key, (0, 2), LONG);
        seated = again.recv_timeout(Duration::from_millis(100)).is_err();
        first = Some(again);
        seated
    });
    for (place, key, want) in table {
        let why = join(&b, key, place, LONG).recv_timeout(LONG).unwrap().unwrap_err();
        assert!(why.contains(want), "{why} / {want}");
    }
    let second = join(&b, key, (1, 2), LONG).recv().unwrap();
    assert!(second.is_ok() && first.unwrap().recv().unwrap().is_ok());
}
