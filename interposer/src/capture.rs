//! Capturing streams into a graph: who captures what, and what is forbidden meanwhile.
//!
//! A capture begins on one stream and spreads to others through events: a stream that waits for an event which was
//! recorded in the capture joins it. It ends where it began, once every stream that joined is joined again. While it
//! lasts, what is posted to its streams goes into the graph and nowhere else.
//!
//! Pure: a [`Captures`] is told what happens to streams and events, by number, and answers what to do. The session's lock
//! around it is taken only while anything is captured.
//!
//! **Joining** is decided with clocks: each lane counts its nodes, an event carries what its lane knew when it was recorded,
//! and a wait takes that over. A capture may end when its first lane knows of every node.

use std::collections::BTreeMap;

use acl_abi::values as acl;

use crate::error::Failure;

/// Streams of one capture; the daemon has the same bound.
pub const LANES_MAX: usize = 64;

/// `aclmdlRICaptureMode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No thread may do what is forbidden.
    Global,
    /// The capturing thread may not.
    ThreadLocal,
    /// Everyone may.
    Relaxed,
}

impl Mode {
    /// The mode with this number.
    ///
    /// # Errors
    /// No such mode.
    pub fn of(value: i32) -> Result<Self, Failure> {
        match value {
            acl::ACL_MODEL_RI_CAPTURE_MODE_GLOBAL => Ok(Self::Global),
            acl::ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL => Ok(Self::ThreadLocal),
            acl::ACL_MODEL_RI_CAPTURE_MODE_RELAXED => Ok(Self::Relaxed),
            other => Err(Failure::invalid(format!("parameter mode: {other} is no aclmdlRICaptureMode"))),
        }
    }

    /// Its number.
    pub fn value(self) -> i32 {
        match self {
            Self::Global => acl::ACL_MODEL_RI_CAPTURE_MODE_GLOBAL,
            Self::ThreadLocal => acl::ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL,
            Self::Relaxed => acl::ACL_MODEL_RI_CAPTURE_MODE_RELAXED,
        }
    }
}

/// Nodes known of each lane.
type Clock = Vec<u64>;

#[derive(Debug)]
struct Lane {
    stream: u32,
    clock: Clock,
    /// Task group that nodes go into.
    group: Option<u32>,
}

#[derive(Debug)]
struct Capture {
    graph: u32,
    mode: Mode,
    thread: u64,
    lanes: Vec<Lane>,
    /// Why it cannot become a graph any more.
    broken: Option<String>,
    groups: u32,
    /// Operators of the open groups.
    group_ops: BTreeMap<u32, u32>,
}

/// Where a record of a captured stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Graph.
    pub graph: u32,
    /// Task group, 0 for none.
    pub group: u32,
}

/// A task group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Graph.
    pub graph: u32,
    /// Its number in the graph, from 1.
    pub number: u32,
    /// Operators in it.
    pub ops: u32,
}

/// The captures of one session.
#[derive(Debug, Default)]
pub struct Captures {
    captures: Vec<Capture>,
    /// Events recorded in a capture: graph, and what their lane knew.
    events: BTreeMap<u32, (u32, Clock)>,
}

fn invalidated(why: &str) -> Failure {
    Failure::new(acl::ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED, format!("the capture cannot be completed: {why}"))
}

impl Captures {
    /// True if nothing is captured.
    pub fn is_empty(&self) -> bool {
        self.captures.is_empty()
    }

    fn of(&self, stream: u32) -> Option<(usize, usize)> {
        self.captures.iter().enumerate().find_map(|(c, capture)| {
            let lane = capture.lanes.iter().position(|l| l.stream == stream)?;
            Some((c, lane))
        })
    }

    /// Begins a capture of `stream` into `graph` by `thread`.
    ///
    /// # Errors
    /// The stream is captured already.
    pub fn begin(&mut self, stream: u32, graph: u32, mode: Mode, thread: u64) -> Result<(), Failure> {
        if self.of(stream).is_some() {
            let text = "parameter stream: it is being captured already";
            return Err(Failure::new(acl::ACL_ERROR_RT_STREAM_CAPTURED, text));
        }
        let lanes = vec![Lane { stream, clock: vec![0], group: None }];
        let group_ops = BTreeMap::new();
        self.captures.push(Capture { graph, mode, thread, lanes, broken: None, groups: 0, group_ops });
        Ok(())
    }

    /// Graph and whether the capture is whole, for a stream that is captured.
    pub fn status(&self, stream: u32) -> Option<(u32, bool)> {
        let (c, _) = self.of(stream)?;
        Some((self.captures[c].graph, self.captures[c].broken.is_none()))
    }

    /// A record of `stream` is about to be posted: where it goes, `None` for the stream itself. `op`: it is an operator.
    ///
    /// # Errors
    /// The stream's capture is broken.
    pub fn node(&mut self, stream: u32, op: bool) -> Result<Option<Target>, Failure> {
        let Some((c, lane)) = self.of(stream) else { return Ok(None) };
        let capture = &mut self.captures[c];
        if let Some(why) = &capture.broken {
            return Err(invalidated(why));
        }
        capture.lanes[lane].clock[lane] += 1;
        let group = capture.lanes[lane].group.filter(|_| op);
        if let Some(group) = group {
            *capture.group_ops.entry(group).or_default() += 1;
        }
        Ok(Some(Target { graph: capture.graph, group: group.unwrap_or(0) }))
    }

    /// `event` is recorded in `stream`: where that goes, `None` for the stream itself.
    ///
    /// # Errors
    /// The stream's capture is broken.
    pub fn record(&mut self, stream: u32, event: u32) -> Result<Option<Target>, Failure> {
        let Some((c, lane)) = self.of(stream) else {
            self.events.remove(&event);
            return Ok(None);
        };
        let capture = &self.captures[c];
        if let Some(why) = &capture.broken {
            return Err(invalidated(why));
        }
        self.events.insert(event, (capture.graph, capture.lanes[lane].clock.clone()));
        Ok(Some(Target { graph: capture.graph, group: 0 }))
    }

    /// `stream` is made to wait for `event`: where that goes, `None` for the stream itself. A stream that is not captured
    /// joins the capture of the event.
    ///
    /// # Errors
    /// A captured stream and an event from outside its capture; too many streams; a broken capture.
    pub fn wait(&mut self, stream: u32, event: u32) -> Result<Option<Target>, Failure> {
        let recorded = self.events.get(&event);
        let at = self.of(stream);
        let (graph, known) = match (recorded, at) {
            (None, None) => return Ok(None),
            (None, Some((c, _))) => {
                let text = "a captured stream waits for an event that was not recorded in the capture";
                self.captures[c].broken.get_or_insert(text.to_owned());
                return Err(Failure::new(acl::ACL_ERROR_RT_CAPTURE_DEPENDENCY, format!("parameter event: {text}")));
            }
            (Some((graph, clock)), _) => (*graph, clock.clone()),
        };
        let Some(c) = self.captures.iter().position(|capture| capture.graph == graph) else {
            // Recorded in a capture that is over: nothing to wait for outside of graphs.
            self.events.remove(&event);
            return if at.is_some() { self.wait(stream, event) } else { Ok(None) };
        };
        if let Some((other, _)) = at.filter(|&(other, _)| other != c) {
            for c in [c, other] {
                self.captures[c].broken.get_or_insert("two captures were joined by an event".to_owned());
            }
            let text = "parameter event: it was recorded in another capture than the stream's";
            return Err(Failure::new(acl::ACL_ERROR_STREAM_CAPTURE_CONFLICT, text));
        }
        let capture = &mut self.captures[c];
        if let Some(why) = &capture.broken {
            return Err(invalidated(why));
        }
        let lane = match at {
            Some((_, lane)) => lane,
            None if capture.lanes.len() >= LANES_MAX => {
                let text = format!("parameter stream: {LANES_MAX} streams are in this capture, the most allowed");
                return Err(Failure::new(acl::ACL_ERROR_RT_NO_STREAM_RESOURCE, text));
            }
            None => {
                capture.lanes.push(Lane { stream, clock: Vec::new(), group: None });
                let lanes = capture.lanes.len();
                capture.lanes.iter_mut().for_each(|lane| lane.clock.resize(lanes, 0));
                // Joining makes it something to be joined again.
                capture.lanes[lanes - 1].clock[lanes - 1] = 1;
                lanes - 1
            }
        };
        for (own, theirs) in capture.lanes[lane].clock.iter_mut().zip(known) {
            *own = (*own).max(theirs);
        }
        Ok(Some(Target { graph, group: 0 }))
    }

    /// The graph in whose capture `event` was recorded last, while that lasts.
    pub fn is_captured(&self, event: u32) -> Option<u32> {
        let (graph, _) = self.events.get(&event)?;
        self.captures.iter().any(|c| c.graph == *graph).then_some(*graph)
    }

    /// Something happens to `stream` that no graph can hold.
    ///
    /// # Errors
    /// The stream is captured; the capture is broken by it.
    pub fn forbid(&mut self, stream: u32, what: &str) -> Result<(), Failure> {
        let Some((c, _)) = self.of(stream) else { return Ok(()) };
        self.captures[c].broken.get_or_insert(format!("{what} while the stream was captured"));
        Err(Failure::new(
            acl::ACL_ERROR_RT_STREAM_CAPTURED,
            format!("{what} is not possible while the stream is captured"),
        ))
    }

    /// As [`Captures::forbid`], for an event.
    ///
    /// # Errors
    /// The event was recorded in a capture that lasts.
    pub fn forbid_event(&mut self, event: u32, what: &str) -> Result<(), Failure> {
        let Some(graph) = self.is_captured(event) else { return Ok(()) };
        if let Some(capture) = self.captures.iter_mut().find(|c| c.graph == graph) {
            capture.broken.get_or_insert(format!("{what} of an event that was captured"));
        }
        Err(Failure::new(acl::ACL_ERROR_RT_EVENT_CAPTURED, format!("{what} is not possible: the event is captured")))
    }

    /// `thread`, whose own mode is `own`, does something that waits for the device or changes memory at once.
    ///
    /// # Errors
    /// A capture's mode forbids it; the capture is broken by it.
    pub fn unsafe_call(&mut self, thread: u64, own: Mode, what: &str) -> Result<(), Failure> {
        if own == Mode::Relaxed {
            return Ok(());
        }
        let hit = self.captures.iter_mut().find(|c| match c.mode {
            Mode::Global => own == Mode::Global || c.thread == thread,
            Mode::ThreadLocal => c.thread == thread,
            Mode::Relaxed => false,
        });
        let Some(capture) = hit else { return Ok(()) };
        capture.broken.get_or_insert(format!("{what} was called"));
        let text = format!("{what} is not possible while a stream is captured in this mode");
        Err(Failure::new(acl::ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT, text))
    }

    /// Ends the capture of `stream`; its graph. It is over either way once its first stream ends it.
    ///
    /// # Errors
    /// Not captured; not where it began, or not the thread; streams that were not joined; a broken capture. The second
    /// value is the graph that must be thrown away, if any.
    pub fn end(&mut self, stream: u32, thread: u64) -> Result<u32, (Failure, Option<u32>)> {
        let fail = |code, text: &str| Failure::new(code, format!("parameter stream: {text}"));
        let Some((c, lane)) = self.of(stream) else {
            return Err((fail(acl::ACL_ERROR_RT_STREAM_NOT_CAPTURED, "it is not being captured"), None));
        };
        if lane != 0 {
            let text = "the capture did not begin on it";
            return Err((fail(acl::ACL_ERROR_RT_STREAM_CAPTURE_UNMATCHED, text), None));
        }
        if self.captures[c].mode != Mode::Relaxed && self.captures[c].thread != thread {
            let text = "another thread began its capture";
            return Err((fail(acl::ACL_ERROR_RT_STREAM_CAPTURE_WRONG_THREAD, text), None));
        }
        let capture = self.captures.swap_remove(c);
        self.events.retain(|_, (graph, _)| *graph != capture.graph);
        if let Some(why) = &capture.broken {
            return Err((invalidated(why), Some(capture.graph)));
        }
        if capture.lanes.iter().any(|lane| lane.group.is_some()) {
            let text = "a task group is still open";
            return Err((fail(acl::ACL_ERROR_STREAM_TASK_GROUP_STATUS, text), Some(capture.graph)));
        }
        let known = &capture.lanes[0].clock;
        let unjoined = capture.lanes.iter().enumerate().position(|(i, lane)| lane.clock[i] > known[i]);
        if unjoined.is_some() {
            let text = "a stream that joined the capture has work that it does not wait for";
            return Err((fail(acl::ACL_ERROR_RT_STREAM_UNJOINED, text), Some(capture.graph)));
        }
        Ok(capture.graph)
    }

    /// Opens a task group: operators of `stream` from here on can be replaced.
    ///
    /// # Errors
    /// Not captured; a group is open already.
    pub fn begin_group(&mut self, stream: u32) -> Result<(), Failure> {
        let (c, lane) = self.captured(stream)?;
        let capture = &mut self.captures[c];
        if capture.lanes[lane].group.is_some() {
            return Err(Failure::new(acl::ACL_ERROR_STREAM_TASK_GROUP_STATUS, "a task group is open already"));
        }
        capture.groups += 1;
        capture.lanes[lane].group = Some(capture.groups);
        Ok(())
    }

    /// Closes the task group of `stream`.
    ///
    /// # Errors
    /// Not captured; no group is open.
    pub fn end_group(&mut self, stream: u32) -> Result<Group, Failure> {
        let (c, lane) = self.captured(stream)?;
        let capture = &mut self.captures[c];
        let none = || Failure::new(acl::ACL_ERROR_STREAM_TASK_GROUP_STATUS, "no task group is open");
        let number = capture.lanes[lane].group.take().ok_or_else(none)?;
        let ops = capture.group_ops.remove(&number).unwrap_or(0);
        Ok(Group { graph: capture.graph, number, ops })
    }

    fn captured(&self, stream: u32) -> Result<(usize, usize), Failure> {
        let none = || Failure::new(acl::ACL_ERROR_RT_STREAM_NOT_CAPTURED, "parameter stream: it is not being captured");
        self.of(stream).ok_or_else(none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn capturing() -> Captures {
        let mut c = Captures::default();
        c.begin(1, 10, Mode::Global, 7).unwrap();
        c
    }

    fn code<T: std::fmt::Debug>(result: Result<T, Failure>) -> i32 {
        result.map_or_else(|f| f.code, |_| 0)
    }

    fn end_code(c: &mut Captures, stream: u32, thread: u64) -> i32 {
        c.end(stream, thread).map_or_else(|(f, _)| f.code, |_| 0)
    }

    #[test]
    fn a_fork_must_be_joined() {
        let mut c = capturing();
        let here = Ok(Some(Target { graph: 10, group: 0 }));
        assert_eq!(c.node(2, true), Ok(None), "another stream is left alone");
        assert_eq!(c.record(1, 5), here.clone());
        assert_eq!(c.wait(2, 5), here.clone());
        assert_eq!(c.node(2, true), here.clone());
        assert_eq!(c.status(2), Some((10, true)));
        assert_eq!(c.record(2, 6), here.clone());
        assert_eq!(c.wait(1, 6), here);
        assert_eq!(c.end(1, 7).unwrap(), 10);
        assert!(c.is_empty() && c.node(2, true) == Ok(None) && c.is_captured(5).is_none());

        let mut c = capturing();
        c.record(1, 5).unwrap();
        c.wait(2, 5).unwrap();
        c.record(2, 6).unwrap();
        c.wait(1, 6).unwrap();
        c.node(2, true).unwrap();
        assert_eq!(end_code(&mut c, 1, 7), acl::ACL_ERROR_RT_STREAM_UNJOINED, "work behind the joining event");
        assert!(c.is_empty());
    }

    #[test]
    fn what_is_forbidden_breaks_the_capture() {
        type Break = fn(&mut Captures) -> i32;
        let table: [(Break, i32); 6] = [
            (|c| code(c.forbid(1, "x")), acl::ACL_ERROR_RT_STREAM_CAPTURED),
            (
                |c| {
                    c.record(1, 5).unwrap();
                    code(c.forbid_event(5, "x"))
                },
                acl::ACL_ERROR_RT_EVENT_CAPTURED,
            ),
            (|c| code(c.wait(1, 77)), acl::ACL_ERROR_RT_CAPTURE_DEPENDENCY),
            (|c| code(c.unsafe_call(8, Mode::Global, "x")), acl::ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT),
            (|c| code(c.unsafe_call(7, Mode::ThreadLocal, "x")), acl::ACL_ERROR_RT_CAPTURE_MODE_NOT_SUPPORT),
            (
                |c| {
                    c.begin(3, 11, Mode::Relaxed, 9).unwrap();
                    c.record(3, 5).unwrap();
                    code(c.wait(1, 5))
                },
                acl::ACL_ERROR_STREAM_CAPTURE_CONFLICT,
            ),
        ];
        for (i, (breaks, want)) in table.into_iter().enumerate() {
            let mut c = capturing();
            assert_eq!(breaks(&mut c), want, "case {i}");
            assert_eq!(c.status(1), Some((10, false)), "case {i}");
            assert_eq!(code(c.node(1, true)), acl::ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED);
            assert_eq!(end_code(&mut c, 1, 7), acl::ACL_ERROR_RT_STREAM_CAPTURE_INVALIDATED);
            assert_eq!(c.status(1), None);
        }
    }

    #[test]
    fn modes_and_threads() {
        for (mode, thread, own, allowed) in [
            (Mode::Global, 8, Mode::Relaxed, true),
            (Mode::Global, 8, Mode::ThreadLocal, true),
            (Mode::ThreadLocal, 8, Mode::Global, true),
            (Mode::ThreadLocal, 7, Mode::Global, false),
            (Mode::Relaxed, 7, Mode::Global, true),
        ] {
            let mut c = Captures::default();
            c.begin(1, 10, mode, 7).unwrap();
            assert_eq!(c.unsafe_call(thread, own, "x").is_ok(), allowed, "{mode:?} {thread} {own:?}");
        }
        let mut c = capturing();
        assert_eq!(code(c.begin(1, 12, Mode::Global, 7)), acl::ACL_ERROR_RT_STREAM_CAPTURED);
        assert_eq!(end_code(&mut c, 2, 7), acl::ACL_ERROR_RT_STREAM_NOT_CAPTURED);
        c.record(1, 5).unwrap();
        c.wait(2, 5).unwrap();
        assert_eq!(end_code(&mut c, 2, 7), acl::ACL_ERROR_RT_STREAM_CAPTURE_UNMATCHED);
        assert_eq!(end_code(&mut c, 1, 8), acl::ACL_ERROR_RT_STREAM_CAPTURE_WRONG_THREAD);
        assert_eq!(c.status(1), Some((10, true)), "it goes on");
    }

    #[test]
    fn groups_count_their_operators() {
        let mut c = capturing();
        assert_eq!(code(c.end_group(1)), acl::ACL_ERROR_STREAM_TASK_GROUP_STATUS);
        c.begin_group(1).unwrap();
        assert_eq!(code(c.begin_group(1)), acl::ACL_ERROR_STREAM_TASK_GROUP_STATUS);
        assert_eq!(c.node(1, true), Ok(Some(Target { graph: 10, group: 1 })));
        assert_eq!(c.node(1, false), Ok(Some(Target { graph: 10, group: 0 })), "a copy is no task");
        assert_eq!(c.end_group(1), Ok(Group { graph: 10, number: 1, ops: 1 }));
        assert_eq!(code(c.begin_group(2)), acl::ACL_ERROR_RT_STREAM_NOT_CAPTURED);
        c.begin_group(1).unwrap();
        assert_eq!(end_code(&mut c, 1, 7), acl::ACL_ERROR_STREAM_TASK_GROUP_STATUS, "left open");
    }

    proptest! {
        /// Clocks against reachability: a capture may end if and only if every node has a path to the end of the first lane.
        #[test]
        fn a_capture_ends_when_every_node_is_reached(steps in proptest::collection::vec((0..3u8, 1..4u32, 1..4u32), 0..40)) {
            let mut c = capturing();
            // Edges of the graph: each step's number points at what it follows.
            let mut follows: Vec<Vec<usize>> = Vec::new();
            let (mut last, mut recorded) = (BTreeMap::<u32, usize>::new(), BTreeMap::<u32, Option<usize>>::new());
            let mut lanes = std::collections::BTreeSet::from([1u32]);
            let mut must = Vec::new();
            let push = |follows: &mut Vec<Vec<usize>>, from: Vec<usize>| {
                follows.push(from);
                follows.len() - 1
            };
            for (kind, stream, event) in steps {
                match kind {
                    0 if lanes.contains(&stream) => {
                        c.node(stream, true).unwrap();
                        let node = push(&mut follows, last.get(&stream).copied().into_iter().collect());
                        last.insert(stream, node);
                        must.push(node);
                    }
                    1 if lanes.contains(&stream) => {
                        c.record(stream, event).unwrap();
                        recorded.insert(event, last.get(&stream).copied());
                    }
                    2 if recorded.contains_key(&event) => {
                        c.wait(stream, event).unwrap();
                        let from = last.get(&stream).copied().into_iter().chain(recorded[&event]).collect();
                        let node = push(&mut follows, from);
                        last.insert(stream, node);
                        if lanes.insert(stream) {
                            must.push(node);
                        }
                    }
                    _ => {}
                }
            }
            let mut reached = std::collections::BTreeSet::new();
            let mut open: Vec<usize> = last.get(&1).copied().into_iter().collect();
            while let Some(node) = open.pop() {
                if reached.insert(node) {
                    open.extend(&follows[node]);
                }
            }
            let joined = must.iter().all(|node| reached.contains(node));
            prop_assert_eq!(c.end(1, 7).is_ok(), joined);
        }
    }
}
