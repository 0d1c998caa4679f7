//! Who used the device, and for what: the books of tenants.
//!
//! **Device time** is the time in which the device held something ([`crate::occupancy`]), divided by [`sched::split`] between the
//! streams that ran, and booked by tenant, phase and class of the operator at each stream's head. The parts sum up to the busy time
//! to the nanosecond, whatever ran side by side. **Memory** is what a tenant's processes held, times time. **Bytes** are what
//! crossed the host link, and what the cost model says that operators read and wrote. **Tokens** are what the gateway's hints tell.
//!
//! Figures only grow while the daemon lives; whoever looks twice has the time between. Cost: two look-ups among the streams on the
//! device an operator, of which there are few; nothing is allocated once the pools have grown.

use std::collections::VecDeque;

use sched::split::Split;
use sched::{Label, Nanos, OpClass, Phase, Work};
use serde::{Deserialize, Serialize};

/// What keeps the device busy, as the books tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Matrix products and attention.
    Cube,
    /// Everything on the vector cores, copies within the device included.
    Vector,
    /// Copies between host and device, where nothing else ran.
    Transfer,
    /// Collectives.
    Communication,
}

impl Class {
    /// Every class, in the order of [`Usage::device_ns`].
    pub const ALL: [Self; 4] = [Self::Cube, Self::Vector, Self::Transfer, Self::Communication];

    /// Name as metrics and files show it.
    pub const fn name(self) -> &'static str {
        ["cube", "vector", "transfer", "communication"][self as usize]
    }

    fn of(class: OpClass) -> Self {
        match class {
            OpClass::Matmul => Self::Cube,
            OpClass::Vector => Self::Vector,
            OpClass::Copy => Self::Transfer,
            OpClass::Communication | OpClass::Link { .. } => Self::Communication,
        }
    }
}

/// What one tenant used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Device time by [`Phase::index`] and [`Class`], nanoseconds.
    pub device_ns: [[u64; 4]; 4],
    /// Operators and copies completed.
    pub operators: u64,
    /// Memory held times time, byte-seconds.
    pub memory_byte_seconds: u64,
    /// Copied from the host, bytes.
    pub bytes_in: u64,
    /// Copied to the host, bytes.
    pub bytes_out: u64,
    /// Read from and written to device memory, bytes, as the cost model counts them.
    pub hbm_bytes: u64,
    /// Tokens of prompts that were processed, as hints tell.
    pub prompt_tokens: u64,
    /// Tokens generated, as hints tell.
    pub output_tokens: u64,
}

impl Usage {
    /// Device time of all kinds, nanoseconds.
    pub fn device_total_ns(&self) -> u64 {
        self.device_ns.iter().flatten().sum()
    }

    /// Each figure with that of another by `f`.
    fn each(mut self, other: &Self, f: impl Fn(u64, u64) -> u64) -> Self {
        let apply = |mine: &mut u64, theirs: u64| *mine = f(*mine, theirs);
        for (mine, theirs) in self.device_ns.iter_mut().flatten().zip(other.device_ns.iter().flatten()) {
            apply(mine, *theirs);
        }
        apply(&mut self.operators, other.operators);
        apply(&mut self.memory_byte_seconds, other.memory_byte_seconds);
        apply(&mut self.bytes_in, other.bytes_in);
        apply(&mut self.bytes_out, other.bytes_out);
        apply(&mut self.hbm_bytes, other.hbm_bytes);
        apply(&mut self.prompt_tokens, other.prompt_tokens);
        apply(&mut self.output_tokens, other.output_tokens);
        self
    }

    /// What came since `before`, an earlier state of these books.
    #[must_use]
    pub fn since(self, before: &Self) -> Self {
        self.each(before, u64::saturating_sub)
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, more: &Self) -> Self {
        self.each(more, u64::saturating_add)
    }
}

/// Whose operator it is, its phase and class.
type Key = (u32, u8, u8);

#[derive(Debug)]
struct Lane {
    physical: u32,
    commands: VecDeque<Key>,
}

/// What the device runs, by stream: whose head it is that time passes for.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    split: Split<Key>,
    lanes: Vec<Lane>,
    spare: Vec<VecDeque<Key>>,
}

fn is_transfer(key: Key) -> bool {
    key.2 == Class::Transfer as u8
}

impl Meter {
    /// Time has passed: `charge` is told whose it was.
    pub fn advance(&mut self, now: Nanos, mut charge: impl FnMut(u32, usize, usize, Nanos)) {
        self.split.advance(now, |(tenant, phase, class), ns| charge(tenant, phase.into(), class.into(), ns));
    }

    /// The device got a command on a stream, after [`Meter::advance`].
    pub fn begins(&mut self, tenant: u32, physical: u32, phase: Phase, work: &Work) {
        let key = (tenant, phase.index() as u8, Class::of(work.class) as u8);
        match self.lanes.iter_mut().find(|lane| lane.physical == physical) {
            Some(lane) => lane.commands.push_back(key),
            None => {
                self.split.begin(key, is_transfer(key));
                let mut commands = self.spare.pop().unwrap_or_default();
                commands.push_back(key);
                self.lanes.push(Lane { physical, commands });
            }
        }
    }

    /// The device is through with a stream's oldest command, after [`Meter::advance`].
    pub fn ends(&mut self, physical: u32) {
        let Some(at) = self.lanes.iter().position(|lane| lane.physical == physical) else { return };
        let commands = &mut self.lanes[at].commands;
        if let Some(key) = commands.pop_front() {
            self.split.end(key, is_transfer(key));
        }
        match commands.front() {
            Some(&next) => self.split.begin(next, is_transfer(next)),
            None => {
                let lane = self.lanes.swap_remove(at);
                self.spare.push(lane.commands);
            }
        }
    }
}

/// Books what a completed command moved.
pub(crate) fn book_bytes(usage: &mut Usage, label: Label, work: &Work) {
    usage.operators += 1;
    let bytes = work.hbm_bytes as u64;
    usage.hbm_bytes = usage.hbm_bytes.saturating_add(bytes);
    if label == Label::COPY_IN {
        usage.bytes_in = usage.bytes_in.saturating_add(bytes);
    } else if label == Label::COPY_OUT {
        usage.bytes_out = usage.bytes_out.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_to_the_oldest_command_of_each_stream() {
        let mut meter = Meter::default();
        let mut had = std::collections::BTreeMap::new();
        let cube = Work { class: OpClass::Matmul, ..Work::default() };
        let copy = Work::host_copy(10);
        let mut to = |meter: &mut Meter, now| {
            meter.advance(now, |t, p, c, ns| *had.entry((t, p, c)).or_insert(0) += ns);
        };
        meter.begins(1, 7, Phase::Prefill, &cube);
        meter.begins(1, 7, Phase::Prefill, &copy);
        to(&mut meter, 10);
        meter.begins(2, 9, Phase::Decode, &Work::default());
        to(&mut meter, 30);
        meter.ends(7);
        // The copy that is next is free beside the other tenant's operator …
        to(&mut meter, 40);
        meter.ends(9);
        // … and not when it is all there is.
        to(&mut meter, 45);
        meter.ends(7);
        to(&mut meter, 100);
        let (prefill, decode) = (Phase::Prefill.index(), Phase::Decode.index());
        let want = [((1, prefill, 0), 20), ((1, prefill, 2), 5), ((2, decode, 1), 20)];
        assert_eq!(had, want.into());
        assert!(meter.lanes.is_empty() && meter.spare.len() == 2);
    }

    #[test]
    fn since_and_plus_undo_each_other() {
        let mut a = Usage { operators: 3, bytes_in: 9, ..Usage::default() };
        a.device_ns[1][2] = 70;
        let mut b = Usage { operators: 5, bytes_in: 10, output_tokens: 4, ..a };
        b.device_ns[1][2] = 100;
        assert_eq!(a.plus(&b.since(&a)), b);
        assert_eq!(b.since(&a).device_total_ns(), 30);
    }
}
