//! Reserved addresses and physical handles against a model of pages.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const BASE: u64 = 1 << 40;
const PAGE: u64 = HANDLE_BYTES;

/// One of `len`.
fn pick(any: u64, len: usize) -> usize {
    (any % len as u64) as usize
}

/// What the device would show: window page → (memory of a handle, page of it).
type Shown = BTreeMap<u64, (PhysAddr, u64)>;

/// A use by work in flight: what it holds, and what each page of it must show until then.
struct Pin {
    block: BlockId,
    first: u64,
    pages: Vec<(PhysAddr, u64)>,
}

struct Model {
    space: AddressSpace,
    shown: Shown,
    /// Start, pages, window.
    reservations: Vec<(u64, u64, u64)>,
    /// Number, memory, pages.
    handles: Vec<(u64, PhysAddr, u64)>,
    /// Address, pages, handle number.
    pieces: Vec<(u64, u64, u64)>,
    /// Client page → what is there.
    mapped: BTreeMap<u64, (PhysAddr, u64)>,
    /// Window address of each piece that is unmapped and not back yet → pages.
    leaving: BTreeMap<u64, u64>,
    pins: Vec<Pin>,
    /// Memory of every handle that is not back yet → pages.
    out: BTreeMap<u64, u64>,
    windows: BTreeMap<u64, u64>,
    made: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            space: AddressSpace::new(BASE, 200 * PAGE),
            shown: BTreeMap::new(),
            reservations: vec![],
            handles: vec![],
            pieces: vec![],
            mapped: BTreeMap::new(),
            leaving: BTreeMap::new(),
            pins: vec![],
            out: BTreeMap::new(),
            windows: BTreeMap::new(),
            made: 0,
        }
    }

    fn released(&mut self, released: Vec<Released>) {
        for r in released {
            match r {
                Released::Piece(at) => {
                    let pages = self.leaving.remove(&at.0).expect("a piece goes once, when it is unmapped");
                    for page in (0..pages).map(|i| at.0 + i * PAGE) {
                        assert!(!self.is_mapped_window(page), "a mapped page was taken away");
                        assert!(self.shown.remove(&page).is_some(), "taken away twice");
                    }
                }
                Released::Handle(physical) => {
                    assert!(self.out.remove(&physical.0).is_some(), "given back twice");
                    assert!(self.shown.values().all(|s| s.0 != physical), "still shown somewhere");
                    assert!(self.pins.iter().all(|p| p.pages.iter().all(|s| s.0 != physical)), "still in use");
                }
                Released::Window(window) => {
                    assert!(self.windows.remove(&window.0).is_some());
                }
                Released::Block(_) => panic!("no allocation was made"),
            }
        }
    }

    fn is_mapped_window(&self, page: u64) -> bool {
        self.reservations.iter().any(|&(start, pages, window)| {
            page >= window && page < window + pages * PAGE && self.mapped.contains_key(&(start + page - window))
        })
    }

    fn apply(&mut self, (what, a, b, n): (u8, u64, u64, u64)) {
        let mut back = Vec::new();
        match what {
            0 => {
                let size = n * PAGE;
                if let Ok(start) = self.space.find_gap_aligned(size, PAGE) {
                    assert!(start.is_multiple_of(PAGE) && start >= BASE && start + size <= BASE + 200 * PAGE);
                    assert!(self.reservations.iter().all(|&(s, p, _)| start > s + p * PAGE || s > start + size));
                    self.made += 1;
                    let window = self.made << 50;
                    self.space.reserve(start, size, PhysAddr(window));
                    self.windows.insert(window, size);
                    self.reservations.push((start, n, window));
                }
            }
            1 if !self.reservations.is_empty() => {
                let index = pick(a, self.reservations.len());
                let (start, pages, _) = self.reservations[index];
                let inside = self.pieces.iter().filter(|p| (start..start + pages * PAGE).contains(&p.0)).count();
                let result = self.space.release(start, |r| back.push(r));
                match inside {
                    0 => {
                        assert_eq!(result, Ok(()));
                        self.reservations.swap_remove(index);
                    }
                    pieces => assert_eq!(result, Err(ReserveError::InUse { start, pieces })),
                }
            }
            2 => {
                self.made += 1;
                let physical = PhysAddr(self.made << 32);
                self.handles.push((self.space.add_handle(physical, n * PAGE), physical, n));
                self.out.insert(physical.0, n);
            }
            3 if !self.handles.is_empty() => {
                let (number, ..) = self.handles.swap_remove(pick(a, self.handles.len()));
                assert_eq!(self.space.free_handle(number, |r| back.push(r)), Ok(()));
                let again = self.space.free_handle(number, |_| panic!("freed twice"));
                assert_eq!(again, Err(ReserveError::NoHandle(number)));
            }
            4 | 5 if !self.reservations.is_empty() && !self.handles.is_empty() => {
                let (start, pages, window) = self.reservations[pick(a, self.reservations.len())];
                let (number, physical, whole) = self.handles[pick(b, self.handles.len())];
                let at = start + pick(a, pages as usize) as u64 * PAGE;
                let offset = pick(b, whole as usize) as u64;
                let size = n * PAGE;
                let fits = at + size <= start + pages * PAGE && offset + n <= whole;
                let free = (0..n).all(|i| !self.mapped.contains_key(&(at + i * PAGE)));
                let drained = (0..n).all(|i| !self.shown.contains_key(&(window + at - start + i * PAGE)));
                match self.space.check_map(at, size, offset * PAGE, number) {
                    Ok((device, memory)) => {
                        assert!(fits && free && drained);
                        assert_eq!((device.0, memory), (window + at - start, physical));
                        self.space.map_handle(at, size, number);
                        self.pieces.push((at, n, number));
                        for i in 0..n {
                            self.mapped.insert(at + i * PAGE, (physical, offset + i));
                            self.shown.insert(device.0 + i * PAGE, (physical, offset + i));
                        }
                    }
                    Err(ReserveError::Draining { .. }) => assert!(fits && free && !drained),
                    Err(ReserveError::Mapped { .. }) => assert!(fits && !free),
                    Err(e) => assert!(!fits, "{e}"),
                }
            }
            6 if !self.pieces.is_empty() => {
                let (at, pages, _) = self.pieces.swap_remove(pick(a, self.pieces.len()));
                for i in 0..pages {
                    self.mapped.remove(&(at + i * PAGE));
                }
                let inside = |&&(start, pages, _): &&(u64, u64, u64)| (start..start + pages * PAGE).contains(&at);
                let &(start, _, window) = self.reservations.iter().find(inside).unwrap();
                assert!(self.leaving.insert(window + at - start, pages).is_none(), "mapped over what is leaving");
                assert_eq!(self.space.unmap_handle(at, |r| back.push(r)), Ok(()));
                assert!(self.space.unmap_handle(at, |_| panic!("unmapped twice")).is_err());
            }
            7 | 8 if !self.reservations.is_empty() => {
                let (start, pages, window) = self.reservations[pick(a, self.reservations.len())];
                let from = start + pick(b, (pages * PAGE) as usize) as u64;
                let len = 1 + n * PAGE / 2;
                let touched: Vec<u64> = (from / PAGE..=(from + len - 1) / PAGE).map(|p| p * PAGE).collect();
                let there = touched.iter().all(|p| self.mapped.contains_key(p));
                match self.space.resolve(from, len) {
                    Ok(found) => {
                        assert!(there, "{from:#x}+{len:#x}");
                        assert_eq!(found.physical.0, window + from - start);
                        let block = self.space.pin(found.block);
                        let first = window + touched[0] - start;
                        self.pins.push(Pin { block, first, pages: touched.iter().map(|p| self.mapped[p]).collect() });
                    }
                    Err(_) => assert!(!there, "{from:#x}+{len:#x}"),
                }
            }
            _ if !self.pins.is_empty() => {
                let pin = self.pins.swap_remove(pick(a, self.pins.len()));
                self.space.unpin(pin.block, |r| back.push(r));
            }
            _ => {}
        }
        self.released(back);
        for pin in &self.pins {
            for (i, want) in pin.pages.iter().enumerate() {
                assert_eq!(
                    self.shown.get(&(pin.first + i as u64 * PAGE)),
                    Some(want),
                    "work in flight lost its memory"
                );
            }
        }
        assert_eq!(self.space.held_bytes(), self.out.values().sum::<u64>() * PAGE);
        assert_eq!(self.space.pieces(), self.pieces.len());
        assert_eq!(self.space.is_draining(), self.shown.len() > self.mapped.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn work_in_flight_keeps_its_pages_and_everything_comes_back_once(
        steps in prop::collection::vec((0u8..10, any::<u64>(), any::<u64>(), 1u64..6), 1..150),
        end in any::<bool>(),
    ) {
        let mut model = Model::new();
        for step in steps {
            model.apply(step);
        }
        if end {
            let mut space = std::mem::replace(&mut model.space, AddressSpace::new(BASE, PAGE));
            model.pins.clear();
            model.shown.clear();
            let mut back = Vec::new();
            space.release_all(|r| back.push(r));
            model.released(back);
            prop_assert_eq!((space.held_bytes(), space.unmapped_bytes(), space.blocks()), (0, 0, 0));
        } else {
            for what in [9, 6, 3, 1] {
                for _ in 0..200 {
                    // Any index will do: one after the other goes.
                    model.apply((what, 0, 0, 1));
                }
            }
        }
        prop_assert!(model.out.is_empty() && model.windows.is_empty());
    }
}

#[test]
fn refusals_say_what_is_wrong() {
    let mut space = AddressSpace::new(BASE, 200 * PAGE);
    let start = space.find_gap_aligned(4 * PAGE, PAGE).unwrap();
    space.reserve(start, 4 * PAGE, PhysAddr(1 << 50));
    let handle = space.add_handle(PhysAddr(1 << 32), 2 * PAGE);
    for (addr, size, offset, number, want) in [
        (start + 1, PAGE, 0, handle, "address 0x"),
        (start, 0, 0, handle, "size 0x0 is not a positive multiple of 2097152 bytes"),
        (start, PAGE + 512, 0, handle, "size 0x200200"),
        (start, PAGE, 5, handle, "offset 0x5"),
        (start, 3 * PAGE, 0, handle, "more than the 4194304 bytes"),
        (start, PAGE, 0, 77, "physical memory 77 does not exist"),
        (start + 3 * PAGE, 2 * PAGE, 0, handle, "are not inside one reserved range"),
        (BASE + 100 * PAGE, PAGE, 0, handle, "are not inside one reserved range"),
    ] {
        let error = space.check_map(addr, size, offset, number).unwrap_err().to_string();
        assert!(error.contains(want), "{error} / {want}");
    }
    space.check_map(start, 2 * PAGE, 0, handle).unwrap();
    space.map_handle(start, 2 * PAGE, handle);
    let error = space.check_map(start + PAGE, PAGE, 0, handle).unwrap_err().to_string();
    assert!(error.contains("overlap what is mapped"), "{error}");
    let hole = space.resolve(start + 2 * PAGE, 1).unwrap_err().to_string();
    assert!(hole.contains("nothing is mapped at"), "{hole}");
    let past = space.resolve(start + 2 * PAGE - 1, 2).unwrap_err().to_string();
    assert!(past.contains("run 1 bytes past the end"), "{past}");
    assert!(matches!(space.unmap(start), Err(BoundsError::Unmapped { .. })), "no allocation");
    assert_eq!(space.unmap_handle(start + PAGE, |_| ()), Err(ReserveError::NotMapped(start + PAGE)));
    assert_eq!(space.release(start, |_| ()), Err(ReserveError::InUse { start, pieces: 1 }));
    assert_eq!(space.release(start + PAGE, |_| ()), Err(ReserveError::NoReservation(start + PAGE)));
}
