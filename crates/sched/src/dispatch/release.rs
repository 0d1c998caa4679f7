//! When a waiter could be answered at the earliest.
//!
//! A daemon that paces an emulated device need not wake for every operator: nobody can see anything before a waiter is
//! answered. The bound is what the operators ahead of the waiter need alone: rates are at most 1, hold-backs and
//! contention only add. It looks through event waits (a copy stream that waits for a decode step is bounded by the
//! step), at most [`DEPTH_MAX`] of them; beyond, and for anything it cannot see, it answers an earlier time, never a later
//! one. It is exact as far as the predicted solo times are.

use super::Dispatcher;
use super::stream::{MarkId, Place};
use crate::Nanos;

/// Event waits followed from one stream to the next.
const DEPTH_MAX: u32 = 8;

impl Dispatcher {
    /// No waiter can be answered before this time, not earlier than `now`; `None` without a waiter.
    pub fn earliest_release(&self, now: Nanos) -> Option<Nanos> {
        if !self.done.is_empty() {
            return Some(now);
        }
        let on_streams = self.awaited.iter().filter_map(|&index| {
            let &place = self.streams[index].as_ref()?.waiters.front()?;
            Some(self.reached(now, index, place, DEPTH_MAX))
        });
        let on_events = self.events.awaited().map(|m| self.reached(now, m.stream, m.place, DEPTH_MAX));
        let on_devices = self.fences.values().map(|f| {
            f.after.iter().map(|&(index, place)| self.reached(now, index, place, DEPTH_MAX)).max().unwrap_or(now)
        });
        on_streams.chain(on_events).chain(on_devices).min()
    }

    /// Earliest time at which a stream reaches a place.
    fn reached(&self, now: Nanos, index: usize, place: Place, depth: u32) -> Nanos {
        let Some(stream) = self.streams[index].as_ref() else { return now };
        let from = if stream.in_flight > 0 { stream.running_since } else { now };
        let in_order = from.saturating_add(place.solo_before.saturating_sub(stream.solo_done));
        if stream.is_past(place) {
            return in_order.max(now);
        }
        // What stands behind a blocked wait starts when its record completes.
        let start = match stream.blocked_on {
            Some(mark) if depth > 0 => self.recorded(now, mark, depth - 1),
            _ => now,
        };
        in_order.max(start.saturating_add(place.solo_before.saturating_sub(stream.solo_submitted)))
    }

    fn recorded(&self, now: Nanos, mark: MarkId, depth: u32) -> Nanos {
        self.events.mark(mark).map_or(now, |m| self.reached(now, m.stream, m.place, depth))
    }
}
