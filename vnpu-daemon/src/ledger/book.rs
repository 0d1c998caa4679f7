//! What a ledger holds, as lines and back. Pure: no file, no clock.
//!
//! One line is one JSON object: a stretch of time, how long the device was busy in it, and what each tenant used. Stretches of an
//! hour that is over merge into one, and the oldest hours merge further where there are too many: a merged entry is an entry, so
//! the sums never change. Each line is written whole, so whatever part of a file is there sums up.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use runtime::Usage;
use runtime::usage::Class;
use sched::Phase;
use serde::{Deserialize, Serialize};

const HOUR_MS: u64 = 3_600_000;

/// A stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// From here, milliseconds since 1970 …
    pub from_ms: u64,
    /// … to here.
    pub to_ms: u64,
    /// Time in which the device held anything, nanoseconds.
    pub busy_ns: u64,
    /// What each tenant used that used anything.
    pub tenants: BTreeMap<String, Usage>,
}

impl Entry {
    fn absorb(&mut self, more: Entry) {
        self.from_ms = self.from_ms.min(more.from_ms);
        self.to_ms = self.to_ms.max(more.to_ms);
        self.busy_ns = self.busy_ns.saturating_add(more.busy_ns);
        for (tenant, usage) in more.tenants {
            let own = self.tenants.entry(tenant).or_default();
            *own = own.plus(&usage);
        }
    }

    /// As it is written, with its newline.
    pub fn line(&self) -> String {
        // Plain numbers and checked names: this cannot fail.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

/// Everything a ledger knows, an entry an hour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    hours: Vec<Entry>,
}

/// What was found in a file besides entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Bytes of a last line that was never finished.
    pub torn_bytes: usize,
    /// Whole lines that are no entries.
    pub lines: usize,
}

impl Book {
    /// Reads a file: every whole line that is an entry, and what was none. How much of the file is whole lines is what a writer
    /// may append to.
    pub fn read(bytes: &[u8]) -> (Self, Damage, usize) {
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let (mut book, mut damage) = (Self::default(), Damage { torn_bytes: bytes.len() - whole, lines: 0 });
        for line in bytes[..whole].split_inclusive(|&b| b == b'\n') {
            match serde_json::from_slice::<Entry>(line) {
                Ok(entry) => book.add(entry),
                Err(_) => damage.lines += 1,
            }
        }
        (book, damage, whole)
    }

    /// Takes an entry in: into the hour that it ends in.
    pub fn add(&mut self, entry: Entry) {
        match self.hours.last_mut() {
            Some(last) if last.to_ms / HOUR_MS == entry.to_ms / HOUR_MS => last.absorb(entry),
            _ => self.hours.push(entry),
        }
    }

    /// The whole as lines of at most `bytes_max`: where hours take more, the oldest are merged.
    pub fn compact(&mut self, bytes_max: usize) -> String {
        let sizes = |hours: &[Entry]| hours.iter().map(|e| e.line().len()).sum::<usize>();
        let mut size = sizes(&self.hours);
        while size > bytes_max && self.hours.len() > 1 {
            // More than half, so that two become one.
            let mut rest = self.hours.split_off(self.hours.len() / 2 + 1);
            let mut merged = Entry { from_ms: u64::MAX, ..Entry::default() };
            self.hours.drain(..).for_each(|e| merged.absorb(e));
            rest.insert(0, merged);
            self.hours = rest;
            size = sizes(&self.hours);
        }
        self.hours.iter().map(Entry::line).collect()
    }

    /// Everything in one entry; `None` for nothing.
    pub fn total(&self) -> Option<Entry> {
        let mut hours = self.hours.iter().cloned();
        let mut total = hours.next()?;
        hours.for_each(|hour| total.absorb(hour));
        Some(total)
    }

    /// A table for a spreadsheet: a row a tenant, and one of the device's busy time, which the rows' device times sum up to. By the
    /// hour, or of all time.
    pub fn csv(&self, by_hour: bool) -> String {
        let mut out = "from,to,tenant,device_s".to_owned();
        for phase in Phase::ALL {
            for class in Class::ALL {
                let _ = write!(out, ",{}_{}_s", phase.name(), class.name());
            }
        }
        out += ",operators,memory_gib_h,bytes_in,bytes_out,hbm_bytes,prompt_tokens,output_tokens\n";
        let total = self.total();
        let entries = if by_hour { &self.hours[..] } else { total.as_slice() };
        for entry in entries {
            let (from, to) = (time(entry.from_ms), time(entry.to_ms));
            let columns = Phase::ALL.len() * Class::ALL.len() + 7;
            let _ = writeln!(out, "{from},{to},*busy*,{}{}", seconds(entry.busy_ns), ",".repeat(columns));
            for (tenant, u) in &entry.tenants {
                let _ = write!(out, "{from},{to},{tenant},{}", seconds(u.device_total_ns()));
                for ns in u.device_ns.iter().flatten() {
                    let _ = write!(out, ",{}", seconds(*ns));
                }
                let gib_h = u.memory_byte_seconds as f64 / f64::from(1 << 30) / 3600.0;
                let Usage { operators, bytes_in, bytes_out, hbm_bytes, prompt_tokens, output_tokens, .. } = u;
                let _ = writeln!(
                    out,
                    ",{operators},{gib_h:.6},{bytes_in},{bytes_out},{hbm_bytes},{prompt_tokens},{output_tokens}"
                );
            }
        }
        out
    }
}

/// Nanoseconds as seconds, exactly.
fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// Milliseconds since 1970 as UTC, `2026-01-31T12:00:00.000Z`.
fn time(ms: u64) -> String {
    let (days, ms_of_day) = (ms / 86_400_000, ms % 86_400_000);
    // Days since 0000-03-01 of the proleptic Gregorian calendar; years begin in March, so that leap days come last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    let (s, ms) = (ms_of_day / 1000, ms_of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{ms:03}Z", s / 3600, s / 60 % 60, s % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(from_ms: u64, to_ms: u64, tenant: &str, ns: u64) -> Entry {
        let mut usage = Usage { operators: 2, output_tokens: 5, ..Usage::default() };
        usage.device_ns[0][0] = ns;
        Entry { from_ms, to_ms, busy_ns: ns, tenants: BTreeMap::from([(tenant.to_owned(), usage)]) }
    }

    fn some() -> Vec<Entry> {
        (0..50).map(|i| entry(i * 1_000_000, (i + 1) * 1_000_000, if i % 2 == 0 { "a" } else { "b" }, 10 + i)).collect()
    }

    fn book(entries: &[Entry]) -> Book {
        let mut book = Book::default();
        entries.iter().cloned().for_each(|e| book.add(e));
        book
    }

    #[test]
    fn lines_read_back_whole_and_a_torn_one_is_dropped_and_said() {
        let text: String = some().iter().map(Entry::line).collect();
        let (read, damage, whole) = Book::read(text.as_bytes());
        assert_eq!((&read, damage, whole), (&book(&some()), Damage::default(), text.len()));
        // Whatever byte a file ends with: every line before it counts, and nothing else.
        let last = some().pop().unwrap().line().len();
        for cut in 1..last {
            let (read, damage, whole) = Book::read(&text.as_bytes()[..text.len() - cut]);
            assert_eq!((read, whole), (book(&some()[..49]), text.len() - last));
            assert_eq!(damage, Damage { torn_bytes: last - cut, lines: 0 });
        }
        let (read, damage, _) = Book::read(format!("{}\nnonsense\n{{}}\n{text}", "x".repeat(99)).as_bytes());
        assert_eq!((read, damage), (book(&some()), Damage { torn_bytes: 0, lines: 3 }));
    }

    #[test]
    fn merging_never_changes_a_sum() {
        let whole = book(&some());
        let total = whole.total().unwrap();
        assert_eq!((total.from_ms, total.to_ms), (0, 50_000_000));
        assert_eq!(total.busy_ns, (10..60).sum::<u64>());
        let used: u64 = total.tenants.values().map(Usage::device_total_ns).sum();
        assert_eq!(used, total.busy_ns);
        let unbounded = whole.clone().compact(usize::MAX).len();
        for bytes_max in [0, 600, 2_000, unbounded] {
            let mut less = whole.clone();
            let text = less.compact(bytes_max);
            assert!(text.len() <= bytes_max || text.lines().count() == 1, "{} of {bytes_max}", text.len());
            assert_eq!(less.total(), whole.total());
            assert_eq!(Book::read(text.as_bytes()).0, less);
        }
        assert_eq!(whole.hours.len(), 14, "50,000 s are 14 hours");
    }

    #[test]
    fn tables_sum_up_and_times_are_calendar_times() {
        let csv = book(&some()).csv(false);
        let rows: Vec<Vec<&str>> = csv.lines().map(|line| line.split(',').collect()).collect();
        assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{csv}");
        let of = |who: &str| rows.iter().find(|row| row[2] == who).unwrap()[3].parse::<f64>().unwrap();
        assert!((of("a") + of("b") - of("*busy*")).abs() < 1e-12);
        assert_eq!(book(&some()).csv(true).lines().filter(|line| line.contains("*busy*")).count(), 14);
        for (ms, want) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_798_761_599_999, "2026-12-31T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(time(ms), want);
        }
    }
}
