//! Streams that others wait for: what they have to do first is held back by no policy.
//!
//! A collective runs on several devices, each with a dispatcher of its own. Once one of them has got to it, it stands there until
//! the others have; a dispatcher that held its own part back would hold back the whole group. So the caller presses the stream
//! of an operator that other devices wait for, and releases it when the stream has got there. A pressed stream's operators are
//! submitted as soon as they can be, in the order of the device's queue like everyone's; where it waits for an event, so are
//! those of the stream that records it, as far as the record.

use super::stream::Entry;
use super::{Dispatcher, RecordEntry, StreamKey};
use crate::Nanos;
use crate::policy::{Choice, StreamIndex};

/// Event waits followed from one stream to the next.
const DEPTH_MAX: u32 = 8;

impl Dispatcher {
    /// Others wait for the stream, or do not any more. Takes effect with the next step; nothing happens to a stream that is
    /// not open.
    pub fn press(&mut self, now: Nanos, key: StreamKey, on: bool) {
        self.log(|| RecordEntry::Press(now, key, on));
        self.advance(now);
        let Some(&index) = self.keys.get(&key) else { return };
        let known = self.pressed.iter().position(|&i| i == index);
        match (on, known) {
            (true, None) => self.pressed.push(index),
            (false, Some(at)) => drop(self.pressed.swap_remove(at)),
            _ => {}
        }
    }

    /// An operator that others wait for, if one could be submitted.
    pub(super) fn next_pressed(&self) -> Option<Choice> {
        let found = self.pressed.iter().find_map(|&index| self.pressed_at(index));
        found.map(|stream| Choice { stream, expired: false })
    }

    /// The stream whose next operator `index` stands or falls with.
    fn pressed_at(&self, mut index: StreamIndex) -> Option<StreamIndex> {
        for _ in 0..DEPTH_MAX {
            let stream = self.streams.get(index)?.as_ref()?;
            match *stream.next()? {
                Entry::Op { .. } => return stream.ready_at.is_some().then_some(index),
                Entry::Wait { mark } => {
                    let mark = self.events.mark(mark)?;
                    let recorder = self.streams.get(mark.stream)?.as_ref()?;
                    if recorder.is_past(mark.place) {
                        return None;
                    }
                    index = mark.stream;
                }
                _ => return None,
            }
        }
        None
    }
}
