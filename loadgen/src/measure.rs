//! What is measured, and how: definitions first, because rivals differ in all of them.
//!
//! Five moments a request: *scheduled*, *sent* (the connection is asked for), *headers*, *first content*, *last content*.
//!
//! - **TTFT**: from the moment the request was *scheduled* to the arrival of the first chunk with non-empty content. A
//!   role-only chunk does not count; time the request waited inside this program does. **TTFT from send** is the same from
//!   the moment it was sent, as vLLM's benchmark has it: a client that falls behind hides there.
//! - **TPOT**: `(last − first content chunk) / (n − 1)`, n = completion tokens as the server's usage says, else chunks.
//!   Undefined for n < 2, and such requests do not enter its percentiles.
//! - **ITL** (chunk gap): gaps between successive content chunks, pooled over requests. A chunk may carry several tokens.
//! - **Token gap**: a chunk's gap over the tokens it brought, counted once a token. Tokens come from the usage that some
//!   servers send with every chunk (`continuous_usage_stats`); elsewhere a request's tokens are spread evenly over its chunks.
//! - **E2E**: from the scheduled moment to the last content chunk; **from send** likewise.
//! - **Send lag**: from the scheduled moment to sending. With a limit on concurrency, waiting for a place is part of it.
//! - **Throughput**: completed requests' output tokens over the time from the first scheduled send to the last chunk.
//! - **Cancelled** requests are those that the plan ends before their answer does. They are counted, and enter nothing else.
//! - **Goodput**: requests that meet every given objective, over the same duration. A failed request meets none.
//!
//! Percentiles are exact (nearest rank on all samples), not estimated from buckets. Times are nanoseconds from the start of
//! the run; what is shown is milliseconds. Pure.

/// What happened to one request. Times are nanoseconds from the start of the run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Which request of the plan.
    pub index: usize,
    /// When it was to be sent.
    pub scheduled_ns: u64,
    /// When there was a place for it under the limit on concurrency; its schedule where there is none.
    pub permitted_ns: u64,
    /// When it was sent.
    pub sent_ns: u64,
    /// Arrival of the answer's headers.
    pub headers_ns: Option<u64>,
    /// Arrival of every chunk with content.
    pub chunks_ns: Vec<u64>,
    /// Completion tokens so far at each such chunk, if the server tells them with every one; else empty.
    pub told: Vec<u32>,
    /// Prompt tokens that the server should count; `None` where the plan only guesses.
    pub expected_prompt_tokens: Option<u32>,
    /// Prompt tokens: from the server's usage, else as planned.
    pub prompt_tokens: u32,
    /// Completion tokens: from the server's usage, else the number of chunks.
    pub output_tokens: u32,
    /// The client left before the end, as the plan has it.
    pub cancelled: bool,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Outcome {
    /// True if it neither failed nor was cancelled.
    pub fn completed(&self) -> bool {
        self.error.is_none() && !self.cancelled
    }

    /// Arrival of the first chunk with content.
    pub fn first_ns(&self) -> Option<u64> {
        self.chunks_ns.first().copied()
    }

    /// Arrival of the last chunk with content.
    pub fn last_ns(&self) -> Option<u64> {
        self.chunks_ns.last().copied()
    }

    /// Time to first token from the schedule, milliseconds.
    pub fn ttft_ms(&self) -> Option<f64> {
        self.first_ns().map(|t| span_ms(self.scheduled_ns, t))
    }

    /// Time to first token from sending, milliseconds.
    pub fn ttft_from_send_ms(&self) -> Option<f64> {
        self.first_ns().map(|t| span_ms(self.sent_ns, t))
    }

    /// Time per output token after the first, milliseconds.
    pub fn tpot_ms(&self) -> Option<f64> {
        (self.output_tokens >= 2)
            .then(|| Some(span_ms(self.first_ns()?, self.last_ns()?) / f64::from(self.output_tokens - 1)))
            .flatten()
    }

    /// End-to-end latency from the schedule, milliseconds.
    pub fn e2e_ms(&self) -> Option<f64> {
        self.last_ns().map(|t| span_ms(self.scheduled_ns, t))
    }

    /// End-to-end latency from sending, milliseconds.
    pub fn e2e_from_send_ms(&self) -> Option<f64> {
        self.last_ns().map(|t| span_ms(self.sent_ns, t))
    }

    /// How much later than its schedule it was sent, milliseconds.
    pub fn send_lag_ms(&self) -> f64 {
        span_ms(self.scheduled_ns, self.sent_ns)
    }

    /// How much later than it could have been it was sent, milliseconds: what this program is to blame for.
    pub fn own_lag_ms(&self) -> f64 {
        span_ms(self.scheduled_ns.max(self.permitted_ns), self.sent_ns)
    }

    /// Gaps between content chunks, milliseconds.
    pub fn chunk_gaps_ms(&self) -> impl Iterator<Item = f64> + '_ {
        self.chunks_ns.windows(2).map(|w| span_ms(w[0], w[1]))
    }

    /// Gaps between tokens, milliseconds, one for every token after the first chunk's.
    pub fn token_gaps_ms(&self) -> impl Iterator<Item = f64> + '_ {
        let gaps = self.chunks_ns.len().saturating_sub(1);
        let told = self.told.len() == self.chunks_ns.len();
        // Tokens after the first, spread evenly: chunk i ends at token ⌊(i+1)·n/gaps⌋.
        let after_first = (self.output_tokens as usize).saturating_sub(1).max(gaps);
        self.chunk_gaps_ms().enumerate().flat_map(move |(i, gap)| {
            let tokens = match told {
                true => self.told[i + 1].saturating_sub(self.told[i]) as usize,
                false => (i + 1) * after_first / gaps - i * after_first / gaps,
            };
            std::iter::repeat_n(gap / tokens.max(1) as f64, tokens)
        })
    }

    /// True if it completed and its TTFT and TPOT are within the objectives.
    pub fn meets(&self, goal: &Objectives) -> bool {
        let within = |value: Option<f64>, limit: Option<f64>| limit.is_none_or(|l| value.is_none_or(|v| v <= l));
        self.completed()
            && within(self.ttft_ms(), goal.ttft_ms)
            && within(self.tpot_ms(), goal.tpot_ms)
            && within(self.e2e_ms(), goal.e2e_ms)
    }
}

fn span_ms(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e6
}

/// Service-level objectives, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Objectives {
    /// Time to first token.
    pub ttft_ms: Option<f64>,
    /// Time per output token.
    pub tpot_ms: Option<f64>,
    /// End to end.
    pub e2e_ms: Option<f64>,
}

impl Objectives {
    /// Parses `name:milliseconds` pairs, as in `ttft:1000 tpot:50`.
    ///
    /// # Errors
    /// A sentence naming the pair and what was expected.
    pub fn parse(pairs: &[String]) -> Result<Self, String> {
        let mut out = Self::default();
        for pair in pairs {
            let parsed = pair.split_once(':').and_then(|(n, v)| Some((n, v.parse::<f64>().ok()?)));
            let Some((name, ms)) = parsed.filter(|(_, ms)| *ms > 0.0) else {
                return Err(format!("--goodput {pair}: want name:milliseconds, as in ttft:1000"));
            };
            match name {
                "ttft" => out.ttft_ms = Some(ms),
                "tpot" => out.tpot_ms = Some(ms),
                "e2el" | "e2e" => out.e2e_ms = Some(ms),
                other => return Err(format!("--goodput {other}: unknown objective, want ttft, tpot or e2el")),
            }
        }
        Ok(out)
    }
}

/// One distribution, sorted.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Sorts `values`.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }

    /// The values, ascending.
    pub fn sorted(&self) -> &[f64] {
        &self.0
    }

    /// Exact percentile by nearest rank, `p` in percent.
    pub fn p(&self, p: f64) -> Option<f64> {
        let rank = (p / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).copied()
    }

    /// Mean.
    pub fn mean(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.iter().sum::<f64>() / self.0.len() as f64)
    }

    /// Standard deviation of the sample.
    pub fn deviation(&self) -> Option<f64> {
        let mean = self.mean()?;
        let n = self.0.len();
        (n >= 2).then(|| (self.0.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(scheduled_ms: u64, chunks_ms: &[u64], tokens: u32) -> Outcome {
        Outcome {
            scheduled_ns: scheduled_ms * 1_000_000,
            sent_ns: (scheduled_ms + 100) * 1_000_000,
            permitted_ns: scheduled_ms * 1_000_000,
            chunks_ns: chunks_ms.iter().map(|ms| ms * 1_000_000).collect(),
            output_tokens: tokens,
            ..Outcome::default()
        }
    }

    #[test]
    fn definitions() {
        let o = outcome(1000, &[1500, 1600, 1900], 5);
        assert_eq!((o.ttft_ms(), o.ttft_from_send_ms()), (Some(500.0), Some(400.0)));
        assert_eq!(o.tpot_ms(), Some(100.0), "five tokens in three chunks: (1900 − 1500)/4");
        assert_eq!((o.e2e_ms(), o.e2e_from_send_ms(), o.send_lag_ms()), (Some(900.0), Some(800.0), 100.0));
        assert_eq!(outcome(0, &[1000], 1).tpot_ms(), None);
        assert_eq!(outcome(0, &[], 3).tpot_ms(), None);
    }

    #[test]
    fn chunk_gaps_are_not_token_gaps() {
        let even = outcome(0, &[500, 600, 900], 5);
        assert_eq!(even.chunk_gaps_ms().collect::<Vec<_>>(), [100.0, 300.0]);
        assert_eq!(even.token_gaps_ms().collect::<Vec<_>>(), [50.0, 50.0, 150.0, 150.0], "four tokens over two chunks");
        let told = Outcome { told: vec![1, 2, 5], ..even };
        assert_eq!(told.token_gaps_ms().collect::<Vec<_>>(), [100.0, 100.0, 100.0, 100.0], "one, then three");
    }

    #[test]
    fn waiting_for_a_place_is_latency_but_not_the_client_s_fault() {
        let held = Outcome { permitted_ns: 90_000_000, ..outcome(0, &[200], 1) };
        assert_eq!((held.send_lag_ms(), held.own_lag_ms()), (100.0, 10.0));
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let v = Samples::new((1..=10).rev().map(f64::from).collect());
        for (p, want) in [(50.0, 5.0), (90.0, 9.0), (99.0, 10.0), (100.0, 10.0), (1.0, 1.0)] {
            assert_eq!(v.p(p), Some(want), "p{p}");
        }
        assert_eq!(Samples::default().p(50.0), None);
    }

    #[test]
    fn bad_objectives_say_what_to_write() {
        for (pair, want) in
            [("ttft", "name:milliseconds"), ("ttft:-1", "name:milliseconds"), ("speed:1", "want ttft, tpot or e2el")]
        {
            let error = Objectives::parse(&[pair.to_owned()]).unwrap_err();
            assert!(error.contains(want), "{pair}: {error}");
        }
    }
}
