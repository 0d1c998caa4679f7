//! Streams as the client sees them: a number, the session it belongs to, and how much of it is known to be done.
//!
//! A stream that nothing was posted to since it was last waited for is idle, and waiting for it again needs no
//! answer from the daemon: clients synchronise idle streams often.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use acl_abi::values as acl;
use wire::Record;

use crate::error::Failure;
use crate::fetch::{Forecast, Span};
use crate::link::Link;

/// How often a wait with a time limit looks, at first and at most.
const LOOK_FIRST: Duration = Duration::from_micros(20);
const LOOK_LAST: Duration = Duration::from_millis(1);

/// How far a stream has come, in records.
#[derive(Debug, Default)]
pub struct Marks {
    /// Records in the ring. Counted after the record is there, never before: whoever reads `n` here and then asks the
    /// daemon asks about all `n` of them.
    posted: AtomicU64,
    /// Of those, known to be complete.
    settled: AtomicU64,
    /// What its next small copy will read.
    pub forecast: Forecast,
}

impl Marks {
    /// A record of the stream is in the ring.
    pub fn count(&self) {
        self.posted.fetch_add(1, Ordering::Release);
    }

    /// A record of the stream was in the ring and has been answered, after `earlier` others had been counted. A stream is in
    /// order, so those are complete too.
    pub fn count_answered(&self, earlier: u64) {
        let before = self.posted.fetch_add(1, Ordering::AcqRel);
        // Another thread's record that was counted meanwhile may stand behind the answered one.
        self.settle(if before == earlier { earlier + 1 } else { earlier });
    }

    /// Records in the ring.
    pub fn posted(&self) -> u64 {
        self.posted.load(Ordering::Acquire)
    }

    /// The first `posted` records are complete.
    pub fn settle(&self, posted: u64) {
        self.settled.fetch_max(posted, Ordering::AcqRel);
    }

    /// True if the first `posted` records are known to be complete.
    pub fn has_settled(&self, posted: u64) -> bool {
        self.settled.load(Ordering::Acquire) >= posted
    }

    /// True if everything in the ring is known to be complete.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire) >= self.posted()
    }
}

/// A stream.
#[derive(Clone)]
pub struct Stream {
    /// Its session.
    pub link: Arc<Link>,
    /// Number in the session; 0 is the default stream.
    pub id: u32,
    /// As it was created.
    pub priority: u32,
    /// As it was created.
    pub flags: u32,
    /// How far it has come.
    pub marks: Arc<Marks>,
}

impl Stream {
    /// Posts a record of this stream.
    ///
    /// # Errors
    /// Device lost.
    pub fn post(&self, record: &Record<'_>) -> Result<(), Failure> {
        self.post_or_capture(record).map(|_| ())
    }

    /// As [`Stream::post`]; true if the stream is being captured and the record went into the graph.
    ///
    /// # Errors
    /// Device lost; a record that no graph holds, or a broken capture.
    pub fn post_or_capture(&self, record: &Record<'_>) -> Result<bool, Failure> {
        self.link.bridge.pace();
        if self.capture(record)? {
            return Ok(true);
        }
        self.link.post(record)?;
        self.marks.count();
        Ok(false)
    }

    /// Posts an operator by its encoded body; `output` is what it writes, if that is small.
    ///
    /// # Errors
    /// Device lost.
    pub fn post_op(&self, body: &[u8], output: Option<Span>) -> Result<(), Failure> {
        self.link.bridge.pace();
        if self.capture_op(body)? {
            return Ok(());
        }
        self.link.post_op(self.id, body)?;
        self.marks.forecast.wrote(output);
        self.marks.count();
        Ok(())
    }

    /// Posts an operator by its encoded body and waits for it; the extent that it found, if the device knows one.
    ///
    /// # Errors
    /// Device lost; its own error, or an earlier one of the stream.
    pub fn call_op(&self, body: &[u8]) -> Result<Option<u64>, Failure> {
        self.is_free("an operator whose output size is not known before")?;
        let earlier = self.marks.posted();
        let answer = self.link.call_op(self.id, body);
        self.marks.count_answered(earlier);
        answer
    }

    /// Waits until everything posted so far is complete.
    ///
    /// # Errors
    /// Device lost; the first error of the stream's operators.
    pub fn synchronise(&self) -> Result<(), Failure> {
        self.is_free("synchronisation")?;
        let posted = self.marks.posted();
        if self.marks.is_settled() {
            return self.link.check_alive();
        }
        self.link.synchronise(self.id, &self.marks)?;
        self.marks.settle(posted);
        Ok(())
    }

    /// Waits at most `timeout_ms`; any negative number waits without limit.
    ///
    /// # Errors
    /// As [`Stream::synchronise`], and `ACL_ERROR_RT_STREAM_SYNC_TIMEOUT`.
    pub fn synchronise_for(&self, timeout_ms: i32) -> Result<(), Failure> {
        let Ok(limit) = u64::try_from(timeout_ms) else { return self.synchronise() };
        let late = || {
            let text = format!("the stream has unfinished work after {timeout_ms} ms");
            Failure::new(acl::ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, text)
        };
        poll_until(Duration::from_millis(limit), || self.is_idle(), late)
    }

    /// True if everything posted so far is complete.
    ///
    /// # Errors
    /// As [`Stream::synchronise`].
    pub fn is_idle(&self) -> Result<bool, Failure> {
        self.is_free("a query")?;
        let posted = self.marks.posted();
        if self.marks.is_settled() {
            self.link.check_alive()?;
            return Ok(true);
        }
        let [idle, ..] = self.link.call(|reply| Record::StreamQuery { stream: self.id, reply })?;
        if idle != 0 {
            self.marks.settle(posted);
        }
        Ok(idle != 0)
    }
}

/// Asks until the answer is yes or `limit` has passed.
pub fn poll_until(
    limit: Duration,
    mut done: impl FnMut() -> Result<bool, Failure>,
    late: impl FnOnce() -> Failure,
) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut pause = LOOK_FIRST;
    while !done()? {
        let left = limit.saturating_sub(begin.elapsed());
        if left.is_zero() {
            return Err(late());
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LOOK_LAST);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_settle_only_what_was_posted_before() {
        let marks = Marks::default();
        assert!(marks.is_settled());
        marks.count();
        let seen = marks.posted();
        marks.count();
        marks.settle(seen);
        assert!(!marks.is_settled(), "one record came after the question");
        marks.settle(marks.posted());
        marks.settle(1);
        assert!(marks.is_settled(), "an older answer takes nothing back");
    }

    #[test]
    fn an_answered_record_settles_the_stream_unless_another_thread_posted() {
        let marks = Marks::default();
        marks.count();
        marks.count_answered(marks.posted());
        assert!(marks.is_settled());
        let earlier = marks.posted();
        marks.count();
        marks.count_answered(earlier);
        assert!(!marks.is_settled());
    }

    #[test]
    fn polling_ends_at_yes_at_an_error_and_at_the_limit() {
        let late = || Failure::new(507_046, "late");
        let mut looks = 0;
        let third = || {
            looks += 1;
            Ok(looks == 3)
        };
        assert_eq!(poll_until(Duration::from_secs(60), third, late), Ok(()));
        assert_eq!(poll_until(Duration::ZERO, || Ok(false), late), Err(late()));
        let broken = || Err(Failure::null("x"));
        assert_eq!(poll_until(Duration::from_secs(60), broken, late), Err(Failure::null("x")));
    }
}
