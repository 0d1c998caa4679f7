//! A timeline in the Chrome trace event format, JSON object form: opens in Perfetto (ui.perfetto.dev) and `chrome://tracing`.
//!
//! | in the file | what it is |
//! |---|---|
//! | process | a session; process 0 is the device |
//! | thread | a stream's operators; beside it the stream's hold-backs; the session's synchronous copies |
//! | complete event (`X`), category = phase | an operator: predicted time alone, time queued, time on the device |
//! | complete event (`X`), category `hold` | a hold-back, named by its reason |
//! | async events (`b`, `e`), category `request` | a request, and in it `queued`, `prefill`, `decode`, from hints |
//! | counters (`C`) | operators running by phase; part of the busy time in which both phases ran |
//! | instant events (`i`) | changes of policy |
//!
//! Times are microseconds since the daemon's start with three decimals: nanoseconds, exact. Events are in order of time, metadata
//! first. Colours are Chrome's reserved names; Perfetto colours by name and filters by category.

use std::fmt::Write as _;
use std::io;

use sched::{Nanos, Phase, StreamKey};
use serde_json::json;

use crate::timeline::{Hold, Operator, Request, RequestEnd, Timeline};

/// Buckets of the co-run counter: as many as a screen has columns.
const BUCKETS: u64 = 2000;
/// Shortest bucket: a few operators.
const BUCKET_NS_MIN: Nanos = 1_000_000;

/// What a phase looks like in `chrome://tracing`.
const fn colour(phase: Phase) -> &'static str {
    match phase {
        Phase::Prefill => "thread_state_iowait",
        Phase::Decode => "thread_state_running",
        Phase::Mixed => "rail_animation",
        Phase::Unknown => "grey",
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Written {
    /// Bytes.
    pub bytes: u64,
    /// Events.
    pub events: u64,
    /// Events left out because the file would have become too large: the last ones.
    pub left_out: u64,
}

#[derive(Clone, Copy)]
enum What {
    Operator(usize),
    Hold(usize),
    Request(usize, Edge),
    Running([u32; 4]),
    Together { both: Nanos, busy: Nanos },
    Policy(usize),
}

/// Begins and ends of a request's spans, in the order in which they may coincide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    End(Span),
    Begin(Span),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Span {
    Queued,
    Prefill,
    Decode,
    Whole,
}

/// Numbers of processes and threads.
struct Tracks {
    streams: Vec<StreamKey>,
    sessions: Vec<u64>,
}

impl Tracks {
    fn of(timeline: &Timeline) -> Self {
        let mut streams: Vec<StreamKey> = timeline.operators.iter().filter_map(|op| op.stream).collect();
        streams.extend(timeline.holds.iter().map(|h| h.stream));
        streams.sort_unstable();
        streams.dedup();
        let mut sessions: Vec<u64> = streams.iter().map(|s| s.session).collect();
        sessions.extend(timeline.operators.iter().map(|op| op.session));
        sessions.extend(timeline.requests.iter().map(|r| r.session));
        sessions.sort_unstable();
        sessions.dedup();
        Self { streams, sessions }
    }

    fn process(&self, session: u64) -> usize {
        self.sessions.binary_search(&session).map_or(0, |i| i + 1)
    }

    /// Of a stream's operators; its hold-backs are the one behind.
    fn thread(&self, stream: Option<StreamKey>) -> usize {
        let index = stream.and_then(|s| self.streams.binary_search(&s).ok());
        index.map_or(1, |i| 2 * i + 2)
    }
}

/// Microseconds.
fn us(ns: Nanos) -> String {
    format!("{}.{:03}", ns / 1000, ns % 1000)
}

struct Writer<'a> {
    timeline: &'a Timeline,
    tracks: Tracks,
    line: String,
}

/// Writes a timeline; events beyond `bytes_max` are left out and counted.
///
/// # Errors
/// What `out` says.
pub fn write(timeline: &Timeline, out: &mut dyn io::Write, bytes_max: u64) -> io::Result<Written> {
    let mut writer = Writer { timeline, tracks: Tracks::of(timeline), line: String::new() };
    let mut written = Written::default();
    let head = format!("{{\"displayTimeUnit\":\"ns\",\"otherData\":{},\n\"traceEvents\":[", writer.about());
    let tail = "\n]}\n";
    let mut first = true;
    out.write_all(head.as_bytes())?;
    written.bytes = (head.len() + tail.len()) as u64;
    let events = writer.events();
    let mut names = writer.names();
    let mut body = events.into_iter();
    loop {
        writer.line.clear();
        match names.pop() {
            Some(name) => writer.line.push_str(&name),
            None => match body.next() {
                Some((at, what)) => writer.event(at, what),
                None => break,
            },
        }
        let lead: &[u8] = if first { b"\n" } else { b",\n" };
        let bytes = (lead.len() + writer.line.len()) as u64;
        if written.bytes + bytes > bytes_max {
            written.left_out += 1 + body.len() as u64;
            break;
        }
        out.write_all(lead)?;
        out.write_all(writer.line.as_bytes())?;
        (first, written.bytes, written.events) = (false, written.bytes + bytes, written.events + 1);
    }
    out.write_all(tail.as_bytes())?;
    Ok(written)
}

impl Writer<'_> {
    fn about(&self) -> String {
        let t = self.timeline;
        json!({
            "device": t.about.device,
            "policy": t.policies.first().map(|p| p.policy),
            "began_us": t.began as f64 / 1e3,
            "ended_us": t.ended as f64 / 1e3,
            "decisions": t.replayed.decisions,
            "entries_forgotten_before": t.forgotten,
        })
        .to_string()
    }

    /// Metadata, the first last.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut name = |kind: &str, pid: usize, tid: usize, args: serde_json::Value| {
            names.push(json!({ "name": kind, "ph": "M", "pid": pid, "tid": tid, "ts": 0, "args": args }).to_string());
        };
        let device = if self.timeline.about.device.is_empty() { "device" } else { &self.timeline.about.device };
        name("process_name", 0, 0, json!({ "name": device }));
        name("process_sort_index", 0, 0, json!({ "sort_index": 0 }));
        for &session in &self.tracks.sessions {
            let pid = self.tracks.process(session);
            name("process_name", pid, 0, json!({ "name": self.timeline.about.session(session) }));
            name("process_sort_index", pid, 0, json!({ "sort_index": pid }));
            if self.timeline.operators.iter().any(|op| op.stream.is_none() && op.session == session) {
                name("thread_name", pid, 1, json!({ "name": "synchronous copies" }));
                name("thread_sort_index", pid, 1, json!({ "sort_index": usize::MAX >> 33 }));
            }
        }
        for &stream in &self.tracks.streams {
            let (pid, tid) = (self.tracks.process(stream.session), self.tracks.thread(Some(stream)));
            for (tid, what) in [(tid, "operators"), (tid + 1, "held back")] {
                name("thread_name", pid, tid, json!({ "name": format!("stream {} {what}", stream.stream) }));
                name("thread_sort_index", pid, tid, json!({ "sort_index": tid }));
            }
        }
        names.reverse();
        names
    }

    /// Everything that happened, in order of time; what ends comes before what begins.
    fn events(&self) -> Vec<(Nanos, What)> {
        let t = self.timeline;
        let mut events: Vec<(Nanos, u8, What)> = Vec::new();
        events.extend((0..t.operators.len()).map(|i| (t.operators[i].began, 2, What::Operator(i))));
        events.extend((0..t.holds.len()).map(|i| (t.holds[i].since.max(t.began), 2, What::Hold(i))));
        for (i, request) in t.requests.iter().enumerate() {
            for (at, edge) in edges(request) {
                let order = match edge {
                    Edge::End(Span::Whole) => 1,
                    Edge::End(_) => 0,
                    Edge::Begin(Span::Whole) => 2,
                    Edge::Begin(_) => 3,
                };
                events.push((at, order, What::Request(i, edge)));
            }
        }
        events.extend((0..t.policies.len()).map(|i| (t.policies[i].at, 1, What::Policy(i))));
        events.extend(running(&t.operators).into_iter().map(|(at, n)| (at, 4, What::Running(n))));
        let bucket = ((t.ended - t.began) / BUCKETS).max(BUCKET_NS_MIN);
        let mut before = None;
        for (i, cell) in t.occupancy(bucket).into_iter().enumerate() {
            let share = (cell.both, cell.busy);
            // An idle stretch is one event.
            if before != Some(share) || cell.busy > 0 {
                events.push((t.began + i as u64 * bucket, 5, What::Together { both: cell.both, busy: cell.busy }));
            }
            before = Some(share);
        }
        events.sort_by_key(|&(at, order, _)| (at, order));
        events.into_iter().map(|(at, _, what)| (at, what)).collect()
    }

    fn event(&mut self, at: Nanos, what: What) {
        match what {
            What::Operator(i) => self.operator(&self.timeline.operators[i]),
            What::Hold(i) => self.hold(&self.timeline.holds[i]),
            What::Request(i, edge) => self.request(at, &self.timeline.requests[i], edge),
            What::Running([_, prefill, decode, mixed]) => {
                let args = format!("{{\"prefill\":{prefill},\"decode\":{decode},\"mixed\":{mixed}}}");
                self.counter("running operators", at, &args);
            }
            What::Together { both, busy } => {
                let share = if busy > 0 { both as f64 / busy as f64 } else { 0.0 };
                self.counter("prefill and decode together", at, &format!("{{\"share of busy time\":{share:.4}}}"));
            }
            What::Policy(i) => {
                let change = &self.timeline.policies[i];
                let event = json!({
                    "name": format!("policy {}", change.policy.name.name()),
                    "cat": "policy", "ph": "i", "s": "g", "pid": 0, "tid": 0, "ts": 0,
                    "args": change.policy,
                });
                let text = event.to_string().replacen("\"ts\":0", &format!("\"ts\":{}", us(at)), 1);
                self.line.push_str(&text);
            }
        }
    }

    fn counter(&mut self, name: &str, at: Nanos, args: &str) {
        let _ = write!(self.line, r#"{{"name":"{name}","ph":"C","pid":0,"tid":0,"ts":{},"args":{args}}}"#, us(at));
    }

    fn operator(&mut self, op: &Operator) {
        let (pid, tid) = (self.tracks.process(op.session), self.tracks.thread(op.stream));
        let Operator { solo, pushed, began, ended, clipped, .. } = *op;
        let _ = write!(
            self.line,
            r#"{{"name":"{}","cat":"{}","ph":"X","pid":{pid},"tid":{tid},"ts":{},"dur":{},"cname":"{}","args":{{"#,
            op.label.name(),
            op.phase.name(),
            us(began),
            us(ended - began),
            colour(op.phase),
        );
        let _ = write!(
            self.line,
            r#""predicted alone, us":{},"actual, us":{},"queued before, us":{}"#,
            us(solo),
            us(ended - began),
            us(began.saturating_sub(pushed)),
        );
        self.line.push_str(if clipped { r#","began before the record":true}}"# } else { "}}" });
    }

    fn hold(&mut self, hold: &Hold) {
        let (pid, tid) = (self.tracks.process(hold.stream.session), self.tracks.thread(Some(hold.stream)) + 1);
        let since = hold.since.max(self.timeline.began);
        let _ = write!(
            self.line,
            r#"{{"name":"{}","cat":"hold","ph":"X","pid":{pid},"tid":{tid},"ts":{},"dur":{},"cname":"bad","args":{{"#,
            hold.reason.name(),
            us(since),
            us(hold.ended.saturating_sub(since)),
        );
        let _ = write!(
            self.line,
            r#""why":"{}","operator":"{}","phase":"{}","ended by the age bound":{},"not over":{}}}}}"#,
            hold.reason.words(),
            hold.label.name(),
            hold.phase.name(),
            hold.expired,
            hold.open,
        );
    }

    fn request(&mut self, at: Nanos, request: &Request, edge: Edge) {
        let (ph, span) = match edge {
            Edge::Begin(span) => ("b", span),
            Edge::End(span) => ("e", span),
        };
        let name = match span {
            Span::Whole => format!("request {}", request.request),
            Span::Queued => "queued".to_owned(),
            Span::Prefill => "prefill".to_owned(),
            Span::Decode => "decode".to_owned(),
        };
        let _ = write!(
            self.line,
            r#"{{"name":"{name}","cat":"request","ph":"{ph}","id":"{}-{}","pid":{},"tid":0,"ts":{}"#,
            request.session,
            request.request,
            self.tracks.process(request.session),
            us(at),
        );
        if edge == Edge::Begin(Span::Whole) {
            let end = match request.end {
                RequestEnd::Finished => "finished",
                RequestEnd::Aborted => "aborted",
                RequestEnd::Open => "not over",
            };
            let Request { prompt_tokens, tokens, .. } = request;
            let _ = write!(self.line, r#","args":{{"prompt tokens":{prompt_tokens},"tokens":{tokens},"end":"{end}"}}"#);
        }
        self.line.push('}');
    }
}

/// Begins and ends of a request's spans.
fn edges(request: &Request) -> Vec<(Nanos, Edge)> {
    let Request { admitted, prefill, first_token, ended, .. } = *request;
    let mut edges = vec![(admitted, Edge::Begin(Span::Whole)), (ended, Edge::End(Span::Whole))];
    let mut span = |span: Span, from: Nanos, to: Nanos| {
        edges.extend([(from, Edge::Begin(span)), (to, Edge::End(span))]);
    };
    let decode = first_token.unwrap_or(ended);
    let prefill = prefill.unwrap_or(decode).min(decode);
    // A span of no length would end before it begins.
    if prefill > admitted {
        span(Span::Queued, admitted, prefill);
    }
    if decode > prefill {
        span(Span::Prefill, prefill, decode);
    }
    if ended > decode {
        span(Span::Decode, decode, ended);
    }
    if ended == admitted {
        edges.clear();
    }
    edges
}

/// How many operators of each phase run, at each change.
fn running(operators: &[Operator]) -> Vec<(Nanos, [u32; 4])> {
    let mut changes: Vec<(Nanos, bool, usize)> = Vec::with_capacity(2 * operators.len());
    for op in operators.iter().filter(|op| op.ended > op.began) {
        changes.push((op.began, true, op.phase.index()));
        changes.push((op.ended, false, op.phase.index()));
    }
    changes.sort_unstable_by_key(|&(at, begins, _)| (at, begins));
    let mut now = [0u32; 4];
    let mut out: Vec<(Nanos, [u32; 4])> = Vec::new();
    for (at, begins, phase) in changes {
        now[phase] = if begins { now[phase] + 1 } else { now[phase].saturating_sub(1) };
        match out.last_mut() {
            Some(last) if last.0 == at => last.1 = now,
            _ => out.push((at, now)),
        }
    }
    // Back to back operators leave the numbers as they were.
    out.dedup_by(|next, last| next.1 == last.1);
    out
}
