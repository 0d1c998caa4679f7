//! What a trace file must fulfil: the published format's rules, and ours. Stricter than the viewers, which drop what they do not
//! understand without a word.
//!
//! Checked: the JSON object form; known kinds of events with their mandatory fields; times in order, none negative; every process and
//! thread with events has a name; complete events of one thread do not overlap; async events nest within their id, every
//! begin has its end and the same name; counters hold numbers only; colours are reserved names.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// What a file holds, for further checks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Events.
    pub events: usize,
    /// Time of complete events by category, nanoseconds, and how many.
    pub by_category: BTreeMap<String, (u64, u64)>,
    /// The same of hold-backs by name (reason): summed time, count, of them not over.
    pub holds: BTreeMap<String, (u64, u64, u64)>,
    /// Async spans by name, `request N` as `request`.
    pub spans: BTreeMap<String, u64>,
    /// Names of counters.
    pub counters: BTreeSet<String>,
    /// Names of threads.
    pub threads: BTreeSet<String>,
    /// Names of processes.
    pub processes: BTreeSet<String>,
}

/// Reserved colour names that we use.
const COLOURS: [&str; 5] = ["thread_state_iowait", "thread_state_running", "rail_animation", "grey", "bad"];

/// Nanoseconds of a field in microseconds.
fn ns(event: &Map<String, Value>, field: &str) -> Result<u64, String> {
    let us = event.get(field).and_then(Value::as_f64).ok_or_else(|| format!("{field} is no number: {event:?}"))?;
    if us < 0.0 { Err(format!("{field} is negative: {event:?}")) } else { Ok((us * 1e3).round() as u64) }
}

fn text<'a>(event: &'a Map<String, Value>, field: &str) -> Result<&'a str, String> {
    event.get(field).and_then(Value::as_str).ok_or_else(|| format!("{field} is no text: {event:?}"))
}

fn number(event: &Map<String, Value>, field: &str) -> Result<u64, String> {
    event.get(field).and_then(Value::as_u64).ok_or_else(|| format!("{field} is no number: {event:?}"))
}

#[derive(Default)]
struct Checker {
    summary: Summary,
    named: BTreeSet<(u64, u64)>,
    used: BTreeSet<(u64, u64)>,
    /// When the last complete event of a thread ends.
    ends: BTreeMap<(u64, u64), u64>,
    /// Open async spans by category and id.
    open: BTreeMap<(String, String), Vec<String>>,
    last: u64,
}

/// Checks a file.
///
/// # Errors
/// The first rule that is broken, with the event.
pub fn check(file: &str) -> Result<Summary, String> {
    let value: Value = serde_json::from_str(file).map_err(|e| format!("no JSON: {e}"))?;
    let events = value.get("traceEvents").and_then(Value::as_array).ok_or("no traceEvents")?;
    if !matches!(value["displayTimeUnit"].as_str(), Some("ns" | "ms")) {
        return Err("displayTimeUnit is neither ns nor ms".into());
    }
    let mut checker = Checker::default();
    for event in events {
        checker.event(event.as_object().ok_or("an event is no object")?)?;
    }
    checker.end()
}

impl Checker {
    fn event(&mut self, event: &Map<String, Value>) -> Result<(), String> {
        let (name, kind) = (text(event, "name")?, text(event, "ph")?);
        let (pid, tid, ts) = (number(event, "pid")?, number(event, "tid")?, ns(event, "ts")?);
        self.summary.events += 1;
        if kind == "M" {
            return self.metadata(event, name, (pid, tid));
        }
        if ts < self.last {
            return Err(format!("time goes back: {event:?}"));
        }
        self.last = ts;
        match kind {
            "X" => self.complete(event, name, (pid, tid), ts),
            "b" | "e" => self.span(event, name, kind),
            "C" => {
                let args = event.get("args").and_then(Value::as_object).filter(|a| !a.is_empty());
                if !args.is_some_and(|a| a.values().all(Value::is_number)) {
                    return Err(format!("a counter without numbers: {event:?}"));
                }
                self.summary.counters.insert(name.to_owned());
                Ok(())
            }
            "i" if matches!(event.get("s").and_then(Value::as_str), Some("g" | "p" | "t")) => Ok(()),
            _ => Err(format!("an unknown kind of event: {event:?}")),
        }
    }

    fn metadata(&mut self, event: &Map<String, Value>, name: &str, track: (u64, u64)) -> Result<(), String> {
        if self.last > 0 {
            return Err(format!("metadata behind events: {event:?}"));
        }
        let args = &event["args"];
        let named = args["name"].as_str().map(str::to_owned);
        match (name, named) {
            ("process_name", Some(named)) => {
                self.summary.processes.insert(named);
                Ok(())
            }
            ("thread_name", Some(named)) => {
                self.summary.threads.insert(named);
                self.named.insert(track);
                Ok(())
            }
            ("process_sort_index" | "thread_sort_index", None) if args["sort_index"].is_u64() => Ok(()),
            _ => Err(format!("unknown metadata: {event:?}")),
        }
    }

    fn complete(&mut self, event: &Map<String, Value>, name: &str, track: (u64, u64), ts: u64) -> Result<(), String> {
        let (category, dur) = (text(event, "cat")?, ns(event, "dur")?);
        if !COLOURS.contains(&text(event, "cname")?) {
            return Err(format!("not a reserved colour: {event:?}"));
        }
        self.used.insert(track);
        let end = self.ends.entry(track).or_default();
        if ts < *end {
            return Err(format!("overlaps the one before on its thread, which ends at {end} ns: {event:?}"));
        }
        *end = ts + dur;
        let sum = self.summary.by_category.entry(category.to_owned()).or_default();
        (sum.0, sum.1) = (sum.0 + dur, sum.1 + 1);
        if category == "hold" {
            let sum = self.summary.holds.entry(name.to_owned()).or_default();
            let open = u64::from(event["args"]["not over"] == true);
            *sum = (sum.0 + dur * (1 - open), sum.1 + 1, sum.2 + open);
        }
        Ok(())
    }

    fn span(&mut self, event: &Map<String, Value>, name: &str, kind: &str) -> Result<(), String> {
        let key = (text(event, "cat")?.to_owned(), text(event, "id")?.to_owned());
        let open = self.open.entry(key).or_default();
        if kind == "b" {
            // `request N`, and one level within.
            if open.len() != usize::from(!name.starts_with("request")) {
                return Err(format!("nests {} deep: {event:?}", open.len()));
            }
            open.push(name.to_owned());
            let name = name.split(' ').next().unwrap_or(name);
            *self.summary.spans.entry(name.to_owned()).or_default() += 1;
        } else if open.pop().as_deref() != Some(name) {
            return Err(format!("ends what did not begin last: {event:?}"));
        }
        Ok(())
    }

    fn end(self) -> Result<Summary, String> {
        if let Some((key, open)) = self.open.iter().find(|(_, open)| !open.is_empty()) {
            return Err(format!("{open:?} of {key:?} never end"));
        }
        match self.used.difference(&self.named).next() {
            Some(track) => Err(format!("thread {track:?} has no name")),
            None => Ok(self.summary),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(events: &str) -> Result<Summary, String> {
        check(&format!(r#"{{"displayTimeUnit":"ns","traceEvents":[{events}]}}"#))
    }

    #[test]
    fn what_viewers_would_swallow_is_refused() {
        let name = r#"{"name":"thread_name","ph":"M","pid":1,"tid":2,"ts":0,"args":{"name":"t"}}"#;
        let slice = |ts: &str, dur: &str| {
            format!(r#"{{"name":"a","cat":"x","ph":"X","pid":1,"tid":2,"ts":{ts},"dur":{dur},"cname":"grey"}}"#)
        };
        let span = |name: &str, ph: &str, ts: u32| {
            format!(r#"{{"name":"{name}","cat":"request","ph":"{ph}","id":"1","pid":1,"tid":0,"ts":{ts}}}"#)
        };
        assert!(file(&[name.to_owned(), slice("1.5", "2.25"), slice("3.75", "1")].join(",")).is_ok());
        assert!(file(&[span("request 1", "b", 1), span("queued", "b", 1), span("queued", "e", 2)].join(",")).is_err());
        for (events, word) in [
            (vec![slice("1", "1")], "no name"),
            (vec![name.into(), slice("1.5", "2.25"), slice("3.74", "1")], "overlaps"),
            (vec![name.into(), slice("5", "1"), slice("3", "1")], "goes back"),
            (vec![name.into(), slice("-5", "1")], "negative"),
            (vec![name.into(), slice("5", "\"1\"")], "no number"),
            (vec![span("queued", "b", 1)], "nests 0 deep"),
            (vec![span("request 1", "b", 1), span("queued", "e", 2)], "did not begin last"),
            (vec![span("request 1", "b", 1)], "never end"),
            (vec![r#"{"name":"c","ph":"C","pid":0,"tid":0,"ts":1,"args":{"a":"b"}}"#.into()], "counter"),
            (vec![r#"{"name":"c","ph":"Q","pid":0,"tid":0,"ts":1}"#.into()], "unknown kind"),
        ] {
            let error = file(&events.join(",")).unwrap_err();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
