//! Memory shared between processes of a tenant, through the whole runtime on a functional device.

mod common;

use common::{Bench, FUNCTIONAL, add};
use wire::{Record, Reply};

const MIB: u64 = 1 << 20;

fn ok(reply: Reply) -> [u64; 4] {
    assert_eq!(reply.status, 0, "{}", reply.text);
    reply.payload
}

#[track_caller]
fn refused(reply: Reply, part: &str) {
    assert_eq!(reply.status, 107_000, "{}", reply.text);
    assert!(reply.text.contains(part), "`{}` does not say `{part}`", reply.text);
}

fn export(bench: &mut Bench, s: usize, handle: bool, subject: u64, size: u64, named_only: bool) -> Reply {
    bench.call(s, move |reply| Record::Export { handle, subject, size, named_only, reply })
}

fn import(bench: &mut Bench, s: usize, key: [u64; 4], handle: bool) -> Reply {
    bench.call(s, move |reply| Record::Import { key, handle, reply })
}

fn held(bench: &Bench) -> Vec<u64> {
    bench.core.snapshot(Default::default(), 0).sessions.iter().map(|s| s.memory_bytes).collect()
}

#[test]
fn a_block_is_one_memory_for_all_and_outlives_who_exported_it() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let before = bench.free_bytes();
    let [a, b, c] = [0; 3].map(|_| bench.open());
    let block = bench.malloc(a, MIB);
    bench.write(a, block, &[7; 1000]);
    let key = ok(export(&mut bench, a, false, block, MIB, false));
    assert_ne!(key, ok(export(&mut bench, a, false, block, MIB, false)), "each export has a key of its own");
    let [in_b, size, ..] = ok(import(&mut bench, b, key, false));
    let [in_c, ..] = ok(import(&mut bench, c, key, false));
    assert_eq!(size, MIB);
    assert_eq!(bench.read(b, in_b, 1000).unwrap(), [7; 1000]);
    bench.write(b, in_b, &[9; 10]);
    bench.op(b, 0, &add(in_b + 4096, in_b + 4096, in_b + 8192, &[16]));
    ok(bench.sync(b, 0));
    assert_eq!(bench.read(a, block, 11).unwrap(), [vec![9; 10], vec![7]].concat(), "writes are seen");
    assert_eq!((held(&bench), bench.free_bytes()), (vec![MIB, 0, 0], before - MIB), "counted once, for the owner");
    refused(import(&mut bench, b, key, false), "holds the memory already");
    refused(import(&mut bench, a, key, false), "holds the memory already");
    refused(export(&mut bench, b, false, in_b, MIB, false), "only its owner exports it");
    // An importer that lets go, and one whose exporter dies with work in flight.
    ok(bench.free(c, in_c));
    for _ in 0..20 {
        bench.op(a, 0, &add(block, block, block, &[100_000]));
    }
    let id = bench.id(a);
    bench.core.detach(bench.now, id);
    assert_eq!((held(&bench), bench.free_bytes()), (vec![MIB, 0], before - MIB), "now it counts for who has it");
    refused(import(&mut bench, c, key, false), "the key is unknown");
    bench.write(b, in_b, &[3; 64]);
    assert_eq!(bench.read(b, in_b, 64).unwrap(), [3; 64]);
    ok(bench.free(b, in_b));
    assert_eq!((held(&bench), bench.free_bytes()), (vec![0, 0], before));
    let fresh = bench.malloc(c, MIB);
    assert_eq!(bench.read(c, fresh, 1000).unwrap(), [0; 1000], "and holds nothing of it");
}

#[test]
fn a_physical_handle_is_mapped_by_two_processes() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let before = bench.free_bytes();
    let [a, b] = [0; 2].map(|_| bench.open());
    let [number, ..] = ok(bench.call(a, |reply| Record::PhysicalAlloc { size: 4 * MIB, reply }));
    let [key, rest @ ..] = ok(export(&mut bench, a, true, number, 0, true));
    assert!(key != 0 && rest == [0; 3], "what a 64-bit handle has room for");
    let key = [key, 0, 0, 0];
    refused(import(&mut bench, b, key, true), "is not among those");
    refused(bench.call(b, |reply| Record::ExportAllow { key, pid: 1, reply }), "the key is unknown");
    let pid = std::process::id();
    ok(bench.call(a, |reply| Record::ExportAllow { key, pid, reply }));
    refused(import(&mut bench, b, key, false), "the key is unknown");
    let [theirs, size, ..] = ok(import(&mut bench, b, key, true));
    assert_eq!(size, 4 * MIB);
    let base = [(a, number), (b, theirs)].map(|(s, handle)| {
        let [base, ..] = ok(bench.call(s, |reply| Record::Reserve { size: 16 * MIB, reply }));
        let addr = base + 2 * MIB * s as u64;
        ok(bench.call(s, move |reply| Record::Map { addr, size: 4 * MIB, offset: 0, handle, reply }));
        addr
    });
    bench.write(a, base[0] + 3 * MIB, &[5; 100]);
    assert_eq!(bench.read(b, base[1] + 3 * MIB, 100).unwrap(), [5; 100]);
    assert_eq!(bench.free_bytes(), before - 4 * MIB);
    let id = bench.id(a);
    bench.core.detach(bench.now, id);
    assert_eq!(bench.read(b, base[1] + 3 * MIB, 100).unwrap(), [5; 100], "its exporter is gone");
    assert_eq!(held(&bench), [4 * MIB]);
    ok(bench.call(b, |reply| Record::PhysicalFree { handle: theirs, reply }));
    assert_eq!(bench.free_bytes(), before - 4 * MIB, "still mapped");
    ok(bench.call(b, |reply| Record::Unmap { addr: base[1], reply }));
    assert_eq!((bench.free_bytes(), held(&bench)), (before, vec![0]));
}

#[test]
fn keys_of_what_is_not_there_are_refused() {
    let mut bench = Bench::new(FUNCTIONAL, "passthrough");
    let [a, b] = [0; 2].map(|_| bench.open());
    let block = bench.malloc(a, 4096);
    refused(export(&mut bench, a, false, block + 512, 512, false), "is in no live allocation");
    refused(export(&mut bench, a, false, block, 8192, false), "8192 bytes of an allocation of 4096");
    refused(export(&mut bench, a, true, 1, 0, false), "does not exist");
    refused(export(&mut bench, b, false, block, 4096, false), "is in no live allocation");
    let key = ok(export(&mut bench, a, false, block, 4096, false));
    refused(bench.call(b, |reply| Record::ExportClose { key, reply }), "the key is unknown");
    refused(import(&mut bench, b, [key[0], key[1], key[2], key[3] ^ 1], false), "the key is unknown");
    ok(bench.call(a, |reply| Record::ExportClose { key, reply }));
    refused(import(&mut bench, b, key, false), "the key is unknown");
    let key = ok(export(&mut bench, a, false, block, 4096, false));
    ok(bench.free(a, block));
    refused(import(&mut bench, b, key, false), "the key is unknown");
}
