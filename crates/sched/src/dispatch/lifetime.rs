//! Sessions and streams come and go.

use super::stream::Entry;
use super::{Dispatcher, RecordEntry, Refused, Session, SessionParams, Stream, StreamKey, Token};
use crate::Nanos;
use crate::policy::StreamInfo;

impl Dispatcher {
    /// Opens a session and its default stream 0.
    pub fn open_session(&mut self, session: u64, params: SessionParams) -> Result<(), Refused> {
        self.log(|| RecordEntry::OpenSession(session, params));
        if self.sessions.contains_key(&session) {
            return Err(Refused::SessionExists(session));
        }
        if self.sessions.len() >= self.limits.sessions_max {
            return Err(Refused::TooManySessions(self.limits.sessions_max));
        }
        self.meet_tenant(params.tenant);
        self.sessions.insert(session, Session { params, streams: Vec::new(), items: 0, events: 0 });
        self.open_stream(StreamKey { session, stream: 0 }, 0)
    }

    /// Drops everything that the session queued; `dropped` takes the tokens of operators never submitted and of waiters
    /// never answered. Operators in flight stay the device's until [`Dispatcher::complete`]. Streams of other sessions that
    /// wait for a record of this one go on, at once if the record would have needed operators that never ran.
    pub fn close_session(&mut self, now: Nanos, session: u64, dropped: &mut Vec<Token>) {
        self.log(|| RecordEntry::CloseSession(now, session));
        let now = self.advance(now);
        let Some(closed) = self.sessions.remove(&session) else { return };
        let before = dropped.len();
        dropped.extend(self.events.abandon_waiters(session));
        for index in closed.streams {
            let Some(stream) = self.streams[index].as_mut() else { continue };
            self.keys.remove(&stream.key);
            if let Some(mark) = stream.blocked_on {
                self.events.unblock(mark, index);
            }
            self.items -= stream.len();
            let mut entries = Vec::new();
            stream.abandon(|entry| entries.push(entry));
            self.unready(now, index);
            for entry in entries {
                match entry {
                    Entry::Op { op, .. } => {
                        self.policy.dropped(now, index, &op);
                        dropped.push(op.token);
                    }
                    Entry::Record { mark } => self.release(mark, None),
                    Entry::Notify { token } => dropped.push(token),
                    Entry::Fence { fence } => {
                        if let Some(f) = self.fences.remove(&fence) {
                            dropped.push(f.token);
                        }
                    }
                    Entry::Wait { .. } | Entry::Await { .. } | Entry::Flag { .. } => {}
                }
            }
            self.awaited.retain(|&s| s != index);
            self.free_if_drained(index);
        }
        self.events.forget_session(session);
        self.flags.forget_session(session);
        self.policy.session_closed(session);
        self.stats.dropped += (dropped.len() - before) as u64;
        self.settle(now);
    }

    /// Opens a stream. Opening an open one changes its priority only.
    pub fn open_stream(&mut self, key: StreamKey, priority: u32) -> Result<(), Refused> {
        self.log(|| RecordEntry::OpenStream(key, priority));
        let session = self.sessions.get_mut(&key.session).ok_or(Refused::NoSession(key.session))?;
        if let Some(&index) = self.keys.get(&key) {
            if let Some(stream) = self.streams[index].as_mut() {
                stream.priority = priority;
            }
            return Ok(());
        }
        if session.streams.len() >= self.limits.streams_per_session_max {
            return Err(Refused::TooManyStreams(self.limits.streams_per_session_max));
        }
        let stream = Stream::new(key, session.params, priority);
        let info = info(&stream);
        let index = match self.free.pop() {
            Some(index) => {
                self.streams[index] = Some(stream);
                index
            }
            None => {
                self.streams.push(Some(stream));
                self.streams.len() - 1
            }
        };
        session.streams.push(index);
        self.keys.insert(key, index);
        self.policy.opened(index, &info);
        Ok(())
    }

    /// Destroys a stream once its queued work has drained; nothing can be pushed to it from now on.
    pub fn close_stream(&mut self, now: Nanos, key: StreamKey) {
        self.log(|| RecordEntry::CloseStream(now, key));
        self.advance(now);
        let Some(index) = self.keys.remove(&key) else { return };
        if let Some(stream) = self.streams[index].as_mut() {
            stream.closing = true;
        }
        self.free_if_drained(index);
    }
}

/// What a policy is told of a stream.
pub(super) fn info(stream: &Stream) -> StreamInfo {
    StreamInfo {
        session: stream.key.session,
        weight: stream.weight,
        priority: stream.session_priority,
        stream_priority: stream.priority,
    }
}
