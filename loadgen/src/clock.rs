//! The monotonic clock in nanoseconds, and alarms on it.
//!
//! tokio's timer counts milliseconds, which is as long as what is measured here. [`Alarms`] is one timer descriptor a
//! thread, set to the earliest moment anybody waits for; it fires within the kernel's own accuracy.
//!
//! An alarm costs a heap entry; each distinct moment costs one `timerfd_settime` and one wake-up. Not thread-safe by design:
//! each thread has its own.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Nanoseconds of the monotonic clock; comparable between processes of one machine.
pub fn now_ns() -> u64 {
    nanos(clock_gettime(ClockId::Monotonic))
}

/// CPU time that the calling thread has used, nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    nanos(clock_gettime(ClockId::ThreadCPUTime))
}

/// CPU time that all threads of this process have used, nanoseconds.
pub fn process_cpu_ns() -> u64 {
    nanos(clock_gettime(ClockId::ProcessCPUTime))
}

fn nanos(t: Timespec) -> u64 {
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Who waits for which moment, on this thread.
pub struct Alarms {
    timer: AsyncFd<OwnedFd>,
    waiting: RefCell<BinaryHeap<Reverse<Alarm>>>,
}

struct Alarm {
    at_ns: u64,
    waker: Waker,
}

impl PartialEq for Alarm {
    fn eq(&self, other: &Self) -> bool {
        self.at_ns == other.at_ns
    }
}
impl Eq for Alarm {}
impl PartialOrd for Alarm {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Alarm {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at_ns.cmp(&other.at_ns)
    }
}

impl Alarms {
    /// A timer of this thread and the task that serves it, which must be inside a [`tokio::task::LocalSet`].
    ///
    /// # Errors
    /// If the system gives no timer descriptor.
    pub fn start() -> io::Result<Rc<Self>> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // The descriptor is owned and never replaced, which is all that the unsafe `register` would ask for.
        #[allow(deprecated, reason = "this crate forbids unsafe")]
        let timer = AsyncFd::new(fd)?;
        let alarms = Rc::new(Self { timer, waiting: RefCell::default() });
        tokio::task::spawn_local(Rc::clone(&alarms).serve());
        Ok(alarms)
    }

    /// Waits for `at_ns` of [`now_ns`]; a moment that has passed is no wait. One task polls the future to its end.
    pub fn until(self: &Rc<Self>, at_ns: u64) -> Until {
        Until { alarms: Rc::clone(self), at_ns, queued: false }
    }

    async fn serve(self: Rc<Self>) {
        while let Ok(mut fired) = self.timer.readable().await {
            fired.clear_ready();
            let mut waiting = self.waiting.borrow_mut();
            let now = now_ns();
            while waiting.peek().is_some_and(|a| a.0.at_ns <= now) {
                waiting.pop().expect("peeked").0.waker.wake();
            }
            if let Some(next) = waiting.peek() {
                self.set(next.0.at_ns);
            }
        }
    }

    /// Setting the timer also clears what has expired.
    fn set(&self, at_ns: u64) {
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Zero would disarm it.
        let at_ns = at_ns.max(1);
        let at = Timespec { tv_sec: (at_ns / 1_000_000_000) as _, tv_nsec: (at_ns % 1_000_000_000) as _ };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval: zero, it_value: at })
            .expect("a timer of our own takes any moment");
    }
}

/// Completes at its moment.
pub struct Until {
    alarms: Rc<Alarms>,
    at_ns: u64,
    queued: bool,
}

impl Future for Until {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if now_ns() >= self.at_ns {
            return Poll::Ready(());
        }
        if !self.queued {
            self.queued = true;
            let mut waiting = self.alarms.waiting.borrow_mut();
            let earliest = waiting.peek().is_none_or(|a| self.at_ns < a.0.at_ns);
            waiting.push(Reverse(Alarm { at_ns: self.at_ns, waker: cx.waker().clone() }));
            if earliest {
                self.alarms.set(self.at_ns);
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_fire_in_order_and_never_early() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let alarms = Alarms::start().unwrap();
            let start = now_ns();
            let order = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = [30, 10, 0, 20, 10]
                .into_iter()
                .map(|ms| {
                    let (alarms, order) = (Rc::clone(&alarms), Rc::clone(&order));
                    tokio::task::spawn_local(async move {
                        let at = start + ms * 1_000_000;
                        alarms.until(at).await;
                        assert!(now_ns() >= at);
                        order.borrow_mut().push(ms);
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(*order.borrow(), [0, 10, 10, 20, 30]);
        });
    }
}
