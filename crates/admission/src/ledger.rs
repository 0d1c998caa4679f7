//! What one engine has taken on: prefill tokens in flight, sequences and KV tokens in flight.
//!
//! A reservation is taken whole when a request is admitted. Its prefill part ends with the first token; its sequences and
//! KV tokens end with the request. What is larger than a whole limit (a prompt, a batch of prompts) reserves all of it and
//! runs alone: the engine works it off piece by piece. Only what the model's context or its KV cache cannot hold never fits.

/// Limits of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Prompt tokens between admission and first token, all requests together.
    pub prefill_tokens: u64,
    /// Sequences running.
    pub sequences: u64,
    /// Tokens in the KV cache: prompts and what may be generated.
    pub kv_tokens: u64,
    /// Longest sequence, prompt and output; what the model's context allows.
    pub context_tokens: u64,
}

impl Capacity {
    /// No limit at all.
    pub const UNLIMITED: Self =
        Self { prefill_tokens: u64::MAX, sequences: u64::MAX, kv_tokens: u64::MAX, context_tokens: u64::MAX };
}

/// What others than this gateway have on an engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Sequences.
    pub sequences: u64,
    /// KV tokens.
    pub kv_tokens: u64,
}

/// What a request will take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Whether `prompt_tokens` is known, not estimated.
    pub exact: bool,
    /// Tokens reserved for each sequence's output.
    pub output_tokens: u64,
    /// Sequences: prompts × choices.
    pub sequences: u64,
    /// Separate prompts.
    pub prompts: u64,
}

impl Demand {
    /// Tokens it will hold in the KV cache at most.
    pub fn kv_tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.output_tokens.saturating_mul(self.sequences))
    }
}

/// Why a request fits an engine at no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// A prompt alone is longer than a sequence may be.
    Context {
        /// Tokens of the prompt.
        prompt_tokens: u64,
        /// Most tokens of a sequence.
        max: u64,
    },
    /// More sequences than the tenant may run at a time.
    Sequences {
        /// Sequences asked for.
        sequences: u64,
        /// Most at a time.
        max: u64,
    },
    /// A prompt alone needs more KV cache than there is.
    KvTokens {
        /// Tokens of the prompt.
        prompt_tokens: u64,
        /// All there is.
        max: u64,
    },
}

/// An estimated prompt is called too long only beyond this factor: the engine counts, we guess.
const ESTIMATE_SLACK: u64 = 2;

/// One request's part of a ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub prefill_tokens: u64,
    pub sequences: u64,
    pub kv_tokens: u64,
}

/// The two ledgers of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// Limits in force.
    pub capacity: Capacity,
    /// Room that others take. It counts only beside requests of ours: one of them may always run.
    pub others: Others,
    /// Prompt tokens admitted and without a first token.
    pub prefill_tokens: u64,
    /// Sequences admitted.
    pub sequences: u64,
    /// KV tokens reserved.
    pub kv_tokens: u64,
}

impl Ledger {
    /// Nothing in flight.
    pub fn new(capacity: Capacity) -> Self {
        Self { capacity, others: Others::default(), prefill_tokens: 0, sequences: 0, kv_tokens: 0 }
    }

    /// Work that it has taken on and not done: what load is compared by.
    pub fn outstanding_tokens(&self) -> u64 {
        self.prefill_tokens.saturating_add(self.kv_tokens)
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        (self.prefill_tokens, self.sequences, self.kv_tokens) == (0, 0, 0)
    }

    /// Why `demand` can never be met.
    pub fn misfit(&self, demand: &Demand) -> Option<Misfit> {
        let slack = if demand.exact { 1 } else { ESTIMATE_SLACK };
        let sure = demand.prompt_tokens / slack;
        let longest = sure.div_ceil(demand.prompts.max(1));
        let c = &self.capacity;
        if longest > c.context_tokens {
            Some(Misfit::Context { prompt_tokens: longest, max: c.context_tokens })
        } else if longest > c.kv_tokens {
            Some(Misfit::KvTokens { prompt_tokens: longest, max: c.kv_tokens })
        } else {
            None
        }
    }

    pub(crate) fn reservation(&self, demand: &Demand) -> Reservation {
        Reservation {
            prefill_tokens: demand.prompt_tokens.min(self.capacity.prefill_tokens),
            sequences: demand.sequences.min(self.capacity.sequences),
            kv_tokens: demand.kv_tokens().min(self.capacity.kv_tokens),
        }
    }

    pub(crate) fn fits(&self, demand: &Demand) -> bool {
        let r = self.reservation(demand);
        let others = if self.is_idle() { Others::default() } else { self.others };
        let below = |held: [u64; 3], max: u64| {
            held.iter().try_fold(0u64, |sum, &more| sum.checked_add(more)).is_some_and(|sum| sum <= max)
        };
        below([self.prefill_tokens, r.prefill_tokens, 0], self.capacity.prefill_tokens)
            && below([self.sequences, r.sequences, others.sequences], self.capacity.sequences)
            && below([self.kv_tokens, r.kv_tokens, others.kv_tokens], self.capacity.kv_tokens)
    }

    /// Prefill tokens that must end before `demand` has room.
    pub(crate) fn prefill_above(&self, demand: &Demand) -> u64 {
        let with = self.prefill_tokens.saturating_add(self.reservation(demand).prefill_tokens);
        with.saturating_sub(self.capacity.prefill_tokens)
    }

    pub(crate) fn take(&mut self, r: Reservation) {
        self.prefill_tokens += r.prefill_tokens;
        self.sequences += r.sequences;
        self.kv_tokens += r.kv_tokens;
    }

    /// Gives back; more than was taken is a bug of ours.
    pub(crate) fn give(&mut self, r: Reservation) {
        self.prefill_tokens -= r.prefill_tokens;
        self.sequences -= r.sequences;
        self.kv_tokens -= r.kv_tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Capacity = Capacity { prefill_tokens: 100, sequences: 4, kv_tokens: 1000, context_tokens: 500 };

    fn demand(prompt_tokens: u64, output_tokens: u64, sequences: u64) -> Demand {
        Demand { prompt_tokens, exact: true, output_tokens, sequences, prompts: 1 }
    }

    #[test]
    fn what_never_fits_is_told_from_what_must_wait() {
        let ledger = Ledger::new(SMALL);
        for (d, want) in [
            (demand(100, 10, 1), None),
            (demand(101, 10, 1), None),
            (demand(501, 10, 1), Some(Misfit::Context { prompt_tokens: 501, max: 500 })),
            (demand(1, 10, 5), None),
            (demand(1, 100_000, 1), None),
            (Demand { prompts: 3, ..demand(1200, 1, 3) }, None),
            (Demand { exact: false, ..demand(900, 1, 1) }, None),
            (Demand { exact: false, ..demand(1002, 1, 1) }, Some(Misfit::Context { prompt_tokens: 501, max: 500 })),
        ] {
            assert_eq!(ledger.misfit(&d), want, "{d:?}");
        }
        let little = Ledger::new(Capacity { kv_tokens: 400, ..SMALL });
        assert_eq!(little.misfit(&demand(401, 1, 1)), Some(Misfit::KvTokens { prompt_tokens: 401, max: 400 }));
    }

    #[test]
    fn prompt_above_the_prefill_limit_runs_alone() {
        let mut ledger = Ledger::new(SMALL);
        let (large, small) = (demand(300, 1, 1), demand(1, 1, 1));
        assert!(ledger.fits(&large));
        let held = ledger.reservation(&large);
        ledger.take(held);
        assert!(!ledger.fits(&small));
        ledger.give(held);
        assert!(ledger.is_idle() && ledger.fits(&small));
    }

    #[test]
    fn others_take_room_but_never_all_of_it() {
        let mut ledger = Ledger::new(SMALL);
        let (one, batch) = (demand(10, 10, 1), demand(10, 10, 2));
        ledger.others = Others { sequences: 9, kv_tokens: 5000 };
        assert!(ledger.fits(&batch), "nothing of ours runs");
        ledger.take(ledger.reservation(&one));
        assert!(!ledger.fits(&one));
        ledger.others = Others { sequences: 2, kv_tokens: 0 };
        assert!(ledger.fits(&one) && !ledger.fits(&batch));
        ledger.others = Others { sequences: 0, kv_tokens: 960 };
        assert!(ledger.fits(&one) && !ledger.fits(&batch));
        assert_eq!(ledger.misfit(&demand(450, 1, 1)), None, "what others have passes");
    }

    #[test]
    fn numbers_without_bound_do_not_overflow() {
        let mut ledger = Ledger::new(Capacity::UNLIMITED);
        let all = demand(u64::MAX, u64::MAX, 1);
        ledger.take(ledger.reservation(&demand(1, 1, 1)));
        assert!(!ledger.fits(&all));
        assert_eq!(ledger.outstanding_tokens(), 3);
    }
}
