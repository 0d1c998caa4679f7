//! What happens without the device: records complete, waits open, waiters are answered, streams become ready or go.
//!
//! One push or completion can release a chain of streams through events. The chain is walked with a work list, one stream
//! at a time, never by recursion: a client chooses its length.

use super::stream::{Entry, MarkId};
use super::{Dispatcher, Stream, Window};
use crate::{Nanos, Phase};

impl Dispatcher {
    /// Moves every stream in `work`, and every stream that this releases, as far as it goes without the device.
    pub(super) fn settle(&mut self, now: Nanos) {
        while let Some(index) = self.work.pop() {
            self.settle_stream(now, index);
            self.refresh(now, index);
            self.free_if_drained(index);
        }
    }

    fn settle_stream(&mut self, now: Nanos, index: usize) {
        loop {
            let Some(stream) = self.streams[index].as_mut() else { return };
            if let Some(entry) = stream.retire() {
                let key = stream.key;
                if !stream.dead {
                    self.items -= 1;
                    if let Some(session) = self.sessions.get_mut(&key.session) {
                        session.items -= 1;
                    }
                }
                self.retired(now, index, entry);
                continue;
            }
            match stream.next() {
                None | Some(Entry::Op { .. }) => return,
                Some(&Entry::Wait { mark }) => {
                    if stream.blocked_on == Some(mark) && self.events.mark(mark).is_some() {
                        return;
                    }
                    if self.events.block(mark, index) {
                        stream.blocked_on = Some(mark);
                        return;
                    }
                    stream.blocked_on = None;
                    stream.pass();
                }
                Some(&Entry::Await { flag }) => {
                    if !self.flags.reached(flag, index) {
                        return;
                    }
                    if let Some(stream) = self.streams[index].as_mut() {
                        stream.pass();
                    }
                }
                Some(_) => stream.pass(),
            }
        }
    }

    /// An entry has left its stream: everything before it has completed.
    fn retired(&mut self, now: Nanos, index: usize, entry: Entry) {
        match entry {
            Entry::Op { .. } | Entry::Wait { .. } | Entry::Await { .. } => return,
            Entry::Flag { flag, set: true } => {
                let streams = self.flags.set(flag);
                self.work.extend(streams);
            }
            Entry::Flag { flag, set: false } => self.flags.clear(flag),
            Entry::Record { mark } => self.release(mark, Some(now)),
            Entry::Notify { token } => {
                self.done.push(token);
                if let Some(stream) = self.streams[index].as_mut() {
                    stream.waiters.pop_front();
                    if stream.waiters.is_empty() {
                        self.awaited.retain(|&s| s != index);
                    }
                }
            }
            Entry::Fence { fence } => {
                let reached = self.fences.get_mut(&fence).is_some_and(|f| {
                    f.after.retain(|&(s, _)| s != index);
                    f.after.is_empty()
                });
                if reached && let Some(f) = self.fences.remove(&fence) {
                    self.done.push(f.token);
                }
            }
        }
        self.policy.boundary(now, index, &mut self.stats);
    }

    /// A record has completed (`time`) or never will: whoever waits for it goes on.
    pub(super) fn release(&mut self, mark: MarkId, time: Option<Nanos>) {
        if let Some(mark) = self.events.complete(mark, time) {
            self.done.extend(mark.tokens);
            self.work.extend(mark.streams);
        }
    }

    fn window(&self, stream: &Stream) -> u32 {
        let mean = stream.mean_solo();
        let configured = match self.limits.window {
            Window::Fixed(n) => n,
            Window::Adaptive { handoff, max } => {
                let hidden = (handoff as f64 / mean.max(1.0)).ceil();
                (hidden as u32).saturating_add(1).min(max)
            }
        };
        let phase = stream.next_op().map_or(Phase::Unknown, |op| op.phase);
        self.policy.window(phase, mean, configured.max(1))
    }

    /// Puts a stream on the list of ready ones or takes it off.
    pub(super) fn refresh(&mut self, now: Nanos, index: usize) {
        let Some(stream) = self.streams[index].as_ref() else { return };
        let ready = !stream.dead && stream.next_op().is_some() && stream.in_flight < self.window(stream);
        match (ready, stream.ready_at) {
            (true, None) => {
                let at = self.ready.len();
                self.ready.push(index);
                if let Some(stream) = self.streams[index].as_mut() {
                    stream.ready_at = Some(at);
                    stream.ready_since = now;
                }
            }
            (false, Some(_)) => self.unready(now, index),
            _ => {}
        }
    }

    pub(super) fn unready(&mut self, now: Nanos, index: usize) {
        let Some(at) = self.streams[index].as_mut().and_then(|s| s.ready_at.take()) else { return };
        self.end_hold(now, index);
        self.ready.swap_remove(at);
        if let Some(&moved) = self.ready.get(at)
            && let Some(stream) = self.streams[moved].as_mut()
        {
            stream.ready_at = Some(at);
        }
    }

    pub(super) fn free_if_drained(&mut self, index: usize) {
        let drained = self.streams[index].as_ref().is_some_and(|s| s.is_empty() && (s.closing || s.dead));
        if !drained {
            return;
        }
        if let Some(stream) = self.streams[index].take() {
            if let Some(session) = self.sessions.get_mut(&stream.key.session) {
                session.streams.retain(|&s| s != index);
            }
            self.policy.closed(index);
            self.pressed.retain(|&i| i != index);
            self.free.push(index);
        }
    }
}
