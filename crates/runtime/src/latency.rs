//! What hints tell of requests: how many are where, TTFT and time between tokens.
//!
//! TTFT is from `admitted` to `first_token`; the time between tokens is the mean over each stretch between two words about a
//! request that decodes. Both as the daemon sees hints come in, so the client's own network is not in them. Times go into
//! histograms that only grow: whoever looks twice has the distribution of the time between.
//!
//! Cost: a look-up a hint; hints come a few a second and request.

use std::collections::BTreeMap;

use sched::Nanos;
use sched::dispatch::{HintInput, HintKind};
use serde::Serialize;

/// Requests of one session that are followed; beyond, the one unheard for longest is forgotten.
const LIVE_MAX: usize = 4096;
/// Buckets an octave: percentiles are within 9 %.
const PER_OCTAVE: f64 = 8.0;
/// Where the first bucket ends, nanoseconds.
const FIRST_NS: f64 = 1e5;
/// The last bucket begins at 105 s.
const BUCKETS: usize = 161;

/// A distribution of times. Bucket 0 holds what is below 0.1 ms, bucket `i` what is from 0.1 ms · 2^((i−1)/8) on.
#[derive(Clone, Debug)]
pub struct Histogram {
    count: u64,
    sum_ns: u64,
    buckets: [u64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self { count: 0, sum_ns: 0, buckets: [0; BUCKETS] }
    }
}

impl Histogram {
    fn add(&mut self, ns: Nanos) {
        let octaves = (ns as f64 / FIRST_NS).log2();
        let index = if octaves < 0.0 { 0 } else { 1 + (octaves * PER_OCTAVE) as usize };
        self.buckets[index.min(BUCKETS - 1)] += 1;
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.buckets.iter_mut().zip(other.buckets).for_each(|(mine, theirs)| *mine += theirs);
    }

    fn snapshot(&self) -> HistogramSnapshot {
        let filled = self.buckets.iter().enumerate().filter(|(_, n)| **n > 0);
        HistogramSnapshot { count: self.count, sum_ns: self.sum_ns, buckets: filled.map(|(i, &n)| (i, n)).collect() }
    }
}

/// A [`Histogram`] as status shows it.
#[derive(Clone, Debug, Serialize)]
pub struct HistogramSnapshot {
    /// Times.
    pub count: u64,
    /// Summed, nanoseconds.
    pub sum_ns: u64,
    /// Filled buckets: number, times. Bucket 0 is below 0.1 ms, bucket i begins at 0.1 ms · 2^((i−1)/8).
    pub buckets: Vec<(usize, u64)>,
}

/// Requests as hints tell of them.
#[derive(Clone, Debug, Serialize)]
pub struct ServedSnapshot {
    /// Admitted, no word of their prompt yet.
    pub waiting: usize,
    /// Their prompts are processed.
    pub prefilling: usize,
    /// Their tokens come out.
    pub decoding: usize,
    /// Complete so far.
    pub finished: u64,
    /// Given up so far.
    pub aborted: u64,
    /// Time to the first token.
    pub ttft: HistogramSnapshot,
    /// Time between tokens.
    pub tpot: HistogramSnapshot,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    admitted: Nanos,
    prompt_tokens: u32,
    prefilling: bool,
    /// Time and number of tokens of the last word since the first token.
    decoding: Option<(Nanos, u32)>,
    heard: Nanos,
}

/// What one session's hints told.
#[derive(Clone, Debug, Default)]
pub struct Served {
    live: BTreeMap<u64, Live>,
    finished: u64,
    aborted: u64,
    ttft: Histogram,
    tpot: Histogram,
}

impl Served {
    /// Takes a hint in. Tokens that it tells of: of a prompt that is through, and generated.
    pub fn hint(&mut self, now: Nanos, hint: &HintInput) -> (u64, u64) {
        if let HintKind::Admitted { prompt_tokens, .. } = hint.kind {
            if self.live.len() >= LIVE_MAX
                && let Some(oldest) = self.live.iter().min_by_key(|(_, r)| r.heard).map(|(&id, _)| id)
            {
                self.live.remove(&oldest);
            }
            let fresh = Live { admitted: now, prompt_tokens, prefilling: false, decoding: None, heard: now };
            self.live.insert(hint.request, fresh);
            return (0, 0);
        }
        let Some(request) = self.live.get_mut(&hint.request) else { return (0, 0) };
        request.heard = now;
        let (had, prompt) = request.decoding.map_or((0, request.prompt_tokens), |(_, had)| (had, 0));
        let told = match hint.kind {
            HintKind::FirstToken => (prompt, 1u32.saturating_sub(had)),
            HintKind::Progress { tokens } => (prompt, tokens.saturating_sub(had)),
            _ => (0, 0),
        };
        match hint.kind {
            HintKind::Admitted { .. } => {}
            HintKind::PrefillStarted => request.prefilling = true,
            HintKind::FirstToken => {
                if request.decoding.is_none() {
                    request.decoding = Some((now, 1));
                    self.ttft.add(now.saturating_sub(request.admitted));
                }
            }
            HintKind::Progress { tokens } => {
                if let Some((before, had)) = request.decoding
                    && tokens > had
                {
                    self.tpot.add(now.saturating_sub(before) / u64::from(tokens - had));
                }
                request.decoding = Some((now, tokens));
            }
            HintKind::Finished => {
                self.finished += 1;
                self.live.remove(&hint.request);
            }
            HintKind::Aborted => {
                self.aborted += 1;
                self.live.remove(&hint.request);
            }
        }
        (told.0.into(), told.1.into())
    }

    /// Adds another session's.
    pub fn merge(&mut self, other: &Self) {
        self.finished += other.finished;
        self.aborted += other.aborted;
        self.ttft.merge(&other.ttft);
        self.tpot.merge(&other.tpot);
    }

    /// Requests heard of within `lease` before `now`: waiting, prefilling, decoding.
    fn live(&self, now: Nanos, lease: Nanos) -> [usize; 3] {
        let mut counts = [0; 3];
        for request in self.live.values().filter(|r| now < r.heard.saturating_add(lease)) {
            counts[if request.decoding.is_some() { 2 } else { usize::from(request.prefilling) }] += 1;
        }
        counts
    }

    /// As status shows it; `all` are the sessions whose live requests count.
    pub fn snapshot<'a>(&self, now: Nanos, lease: Nanos, all: impl IntoIterator<Item = &'a Served>) -> ServedSnapshot {
        let mut live = [0; 3];
        for served in all {
            live.iter_mut().zip(served.live(now, lease)).for_each(|(sum, n)| *sum += n);
        }
        let [waiting, prefilling, decoding] = live;
        let (ttft, tpot) = (self.ttft.snapshot(), self.tpot.snapshot());
        let (finished, aborted) = (self.finished, self.aborted);
        ServedSnapshot { waiting, prefilling, decoding, finished, aborted, ttft, tpot }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    #[test]
    fn a_requests_times_are_counted_once_and_silence_ends_it() {
        let admitted = HintKind::Admitted { prompt_tokens: 1, max_tokens: 1, ttft: 0, tpot: 0, priority: 0 };
        let mut served = Served::default();
        for (at, request, kind, live) in [
            (0, 1, admitted, [1, 0, 0]),
            (0, 2, admitted, [2, 0, 0]),
            (5, 1, HintKind::PrefillStarted, [1, 1, 0]),
            (100, 1, HintKind::FirstToken, [1, 0, 1]),
            (101, 1, HintKind::FirstToken, [1, 0, 1]),
            (420, 1, HintKind::Progress { tokens: 17 }, [1, 0, 1]),
            (430, 9, HintKind::Progress { tokens: 17 }, [1, 0, 1]),
            (600, 1, HintKind::Progress { tokens: 17 }, [1, 0, 1]),
            (700, 1, HintKind::Finished, [1, 0, 0]),
            (700, 1, HintKind::Finished, [1, 0, 0]),
            (800, 2, HintKind::Aborted, [0, 0, 0]),
            (900, 3, admitted, [1, 0, 0]),
        ] {
            served.hint(at * MS, &HintInput { request, kind });
            assert_eq!(served.live(at * MS, 10_000 * MS), live, "{at} {kind:?}");
        }
        assert_eq!(served.live(11_000 * MS, 10_000 * MS), [0; 3], "a silent gateway's");
        let shown = served.snapshot(900 * MS, 1, [&served]);
        assert_eq!((shown.finished, shown.aborted), (1, 1));
        assert_eq!((shown.ttft.count, shown.ttft.sum_ns), (1, 100 * MS));
        assert_eq!((shown.tpot.count, shown.tpot.sum_ns), (1, 20 * MS));
        // 100 ms is 9.97 octaves above 0.1 ms.
        assert_eq!((shown.ttft.buckets, shown.tpot.buckets), (vec![(80, 1)], vec![(62, 1)]));
    }

    #[test]
    fn every_time_has_a_bucket() {
        let mut h = Histogram::default();
        for ns in [0, 99_999, 100_000, 110_000, 109_050, MS, Nanos::MAX] {
            h.add(ns);
        }
        let want = vec![(0, 2), (1, 2), (2, 1), (27, 1), (BUCKETS - 1, 1)];
        assert_eq!((h.count, h.snapshot().buckets), (7, want));
    }
}
