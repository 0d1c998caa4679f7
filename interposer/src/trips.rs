//! Calls that waited for the daemon's answer, counted by what they were for: a session's closing line tells them.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use wire::Record;

/// What calls are for, as the closing line calls it.
const KINDS: [&str; 6] = ["synchronise", "query", "copy", "memory", "operator", "other"];

/// Calls by kind.
#[derive(Debug, Default)]
pub struct Trips([AtomicU64; KINDS.len()]);

fn kind_of(record: &Record<'_>) -> usize {
    match record {
        Record::StreamSync { .. }
        | Record::StreamFetch { .. }
        | Record::DeviceSync { .. }
        | Record::EventSync { .. } => 0,
        Record::StreamQuery { .. }
        | Record::EventQuery { .. }
        | Record::EventElapsed { .. }
        | Record::EventTime { .. }
        | Record::MemInfo { .. } => 1,
        Record::CopyIn { .. } | Record::CopyOut { .. } | Record::CopyDevice { .. } | Record::Memset { .. } => 2,
        Record::Malloc { .. }
        | Record::Free { .. }
        | Record::Reserve { .. }
        | Record::Release { .. }
        | Record::PhysicalAlloc { .. }
        | Record::PhysicalFree { .. }
        | Record::Map { .. }
        | Record::Unmap { .. } => 3,
        Record::OpAnswered { .. } | Record::Op { .. } => 4,
        _ => 5,
    }
}

impl Trips {
    /// A call of this record waits.
    pub fn count(&self, record: &Record<'_>) {
        self.0[kind_of(record)].fetch_add(1, Relaxed);
    }

    /// An operator waits.
    pub fn count_operator(&self) {
        self.0[4].fetch_add(1, Relaxed);
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|n| n.load(Relaxed)).sum()
    }
}

impl fmt::Display for Trips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} round trips", self.total())?;
        let counts = self.0.iter().map(|n| n.load(Relaxed)).zip(KINDS).filter(|(n, _)| *n > 0);
        for (i, (n, kind)) in counts.enumerate() {
            write!(f, "{}{n} {kind}", if i == 0 { " (" } else { ", " })?;
        }
        if self.total() > 0 { f.write_str(")") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::ReplyTo;

    #[test]
    fn calls_are_told_by_kind() {
        let (trips, reply) = (Trips::default(), ReplyTo { slot: 0, seq: 0 });
        assert_eq!(trips.to_string(), "0 round trips");
        trips.count(&Record::StreamSync { stream: 0, reply });
        trips.count(&Record::Malloc { size: 1, reply });
        trips.count(&Record::DeviceSync { reply });
        trips.count_operator();
        assert_eq!(trips.to_string(), "4 round trips (2 synchronise, 1 memory, 1 operator)");
    }
}
