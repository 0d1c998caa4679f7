//! The requests of one session: what hints say of them, and which of a step's sequences is whose.
//!
//! A request lives on a lease that every hint about it renews. A gateway that is dead, stopped or cut off is forgotten
//! when its leases run out, whatever it said last; the request's operators go on without a name.
//!
//! Hints and operators come in one order but name different things: a hint a request, an attention operator a list of
//! lengths. They meet in lengths. A sequence that starts at nothing and ends at a prompt's length is that prompt; one that
//! starts where a request was left is the next piece of it, or its next token. Where lengths do not decide, because the gateway
//! could only estimate the tokens of a text, the longest waiting request is taken: engines begin prompts in order of
//! arrival. A wrong match confuses two requests of one session with each other, nothing else.
//!
//! A hint travels beside the request and may come a moment after the first operators: then the request claims the prompt
//! that nobody has ([`Requests::claim`]).
//!
//! Cost: O(n log n) a step of n sequences, at its first attention; nothing for other operators. Bounded by the caller's
//! limit of live requests.

use crate::Nanos;
use crate::dispatch::{HintInput, HintKind};
use std::collections::BTreeMap;

/// A sequence as an attention operator shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// New tokens.
    pub new: u64,
    /// Tokens in the cache afterwards.
    pub context: u64,
}

/// What is known of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who pays; empty where nobody said.
    pub tenant: String,
    /// Tokens of the prompt, as the gateway counts them.
    pub prompt_tokens: u32,
    /// Most tokens it may generate.
    pub max_tokens: u32,
    /// Time to first token that is wanted, from its admission; 0: the policy's.
    pub ttft: Nanos,
    /// Time between tokens that is wanted; 0: the policy's.
    pub tpot: Nanos,
    /// Larger is more urgent.
    pub priority: u8,
    /// When it was admitted.
    pub admitted: Nanos,
    /// When the gateway last mentioned it.
    pub heard: Nanos,
    /// The engine is believed to work on its prompt.
    pub started: bool,
    /// Its first token is out.
    pub first_token: bool,
    /// Tokens that the gateway has seen.
    pub tokens: u32,
    /// Tokens in the cache after its last step.
    pub context: u64,
    /// Steps that it had a part in.
    pub steps: u64,
}

/// The requests of one session.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    live: BTreeMap<u64, Request>,
    /// No lease runs out before this time.
    expires: Nanos,
    /// Reused: context and number of requests that a step may continue, in order; number of those taken.
    started: Vec<(u64, u64)>,
    taken: Vec<u64>,
}

impl Requests {
    /// True if no request is alive.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Requests that are alive, by number.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, &Request)> {
        self.live.iter().map(|(&id, r)| (id, r))
    }

    /// Takes a hint in; answers the request that was forgotten because there would be more than `most`.
    pub fn hint(&mut self, now: Nanos, hint: &HintInput, tenant: &str, lease: Nanos, most: usize) -> Option<u64> {
        let id = hint.request;
        let mut forgotten = None;
        match hint.kind {
            HintKind::Admitted { prompt_tokens, max_tokens, ttft, tpot, priority } => {
                if self.live.len() >= most && !self.live.contains_key(&id) {
                    forgotten = self.live.iter().min_by_key(|(_, r)| r.heard).map(|(&oldest, _)| oldest);
                    forgotten.map(|oldest| self.live.remove(&oldest));
                }
                let (tenant, admitted, heard) = (tenant.to_owned(), now, now);
                let (started, first_token, tokens, context, steps) = (false, false, 0, 0, 0);
                let request = Request {
                    tenant,
                    prompt_tokens,
                    max_tokens,
                    ttft,
                    tpot,
                    priority,
                    admitted,
                    heard,
                    started,
                    first_token,
                    tokens,
                    context,
                    steps,
                };
                self.live.insert(id, request);
            }
            HintKind::Finished | HintKind::Aborted => {
                self.live.remove(&id);
            }
            HintKind::PrefillStarted | HintKind::FirstToken | HintKind::Progress { .. } => {
                let request = self.live.get_mut(&id)?;
                request.heard = now;
                match hint.kind {
                    HintKind::Progress { tokens } => (request.first_token, request.tokens) = (true, tokens),
                    HintKind::FirstToken => (request.first_token, request.tokens) = (true, request.tokens.max(1)),
                    _ => request.started = true,
                }
            }
        }
        // Renewing the oldest of several, or its end, leaves this early, which costs a look.
        let end = now.saturating_add(lease);
        let alone = self.live.len() == 1 && self.live.contains_key(&id);
        self.expires = if alone { end } else { self.expires.min(end) };
        forgotten
    }

    /// When [`Self::expire`] has something to look at, at the earliest.
    pub fn expires(&self) -> Nanos {
        if self.live.is_empty() { Nanos::MAX } else { self.expires }
    }

    /// Forgets requests whose lease has run out; appends them to `gone`.
    pub fn expire(&mut self, now: Nanos, lease: Nanos, gone: &mut Vec<u64>) {
        if now < self.expires() {
            return;
        }
        self.live.retain(|&id, r| {
            let lives = now < r.heard.saturating_add(lease);
            if !lives {
                gone.push(id);
            }
            lives
        });
        let oldest = self.live.values().map(|r| r.heard).min();
        self.expires = oldest.map_or(Nanos::MAX, |heard| heard.saturating_add(lease));
    }

    /// A request that was told of only now has a prompt that a step works on already.
    pub fn claim(&mut self, id: u64, prompt: Sequence) {
        if let Some(request) = self.live.get_mut(&id).filter(|r| r.context == 0) {
            request.context = prompt.context;
            request.steps += 1;
        }
    }

    /// Finds whose the sequences of a step are, in their order, and notes where the step leaves them. Answers how many of
    /// the sequences decode, and how many do not.
    pub fn assign(&mut self, sequences: &[Sequence], whose: &mut Vec<Option<u64>>) -> (u64, u64) {
        self.taken.clear();
        self.started.clear();
        self.started.extend(self.live.iter().filter(|(_, r)| r.context > 0).map(|(&id, r)| (r.context, id)));
        self.started.sort_unstable();
        let mut decoding = 0;
        for sequence in sequences {
            let start = sequence.context.saturating_sub(sequence.new);
            let found = match start {
                0 => self.beginning(sequence.context),
                _ => self.continued(start).or_else(|| self.unseen(sequence)),
            };
            whose.push(found);
            let request = found.and_then(|id| self.live.get_mut(&id));
            let ends_prompt = request.as_ref().is_some_and(|r| {
                !r.first_token && r.context < sequence.context && u64::from(r.prompt_tokens) == sequence.context
            });
            decoding += u64::from(sequence.new == 1 && start > 0 && !ends_prompt);
            if let Some(request) = request {
                request.context = sequence.context;
                request.steps += 1;
                self.taken.extend(found);
            }
        }
        (decoding, sequences.len() as u64 - decoding)
    }

    /// A prompt of this length, or its first piece: a waiting request of just this length, one that lost its cache at this
    /// length, or the one that has waited longest.
    fn beginning(&self, length: u64) -> Option<u64> {
        let free = |id: &u64| !self.taken.contains(id);
        let waiting = || self.live.iter().filter(|(id, r)| r.context == 0 && !r.first_token && free(id));
        let exact = waiting().find(|(_, r)| u64::from(r.prompt_tokens) == length).map(|(&id, _)| id);
        // What it had and the token that came out of its last step.
        let again = || self.started.iter().find(|(context, id)| context + 1 == length && free(id)).map(|&(_, id)| id);
        exact.or_else(again).or_else(|| waiting().min_by_key(|(id, r)| (r.admitted, **id)).map(|(&id, _)| id))
    }

    /// The request that was left with so many tokens in the cache.
    fn continued(&self, context: u64) -> Option<u64> {
        let first = self.started.partition_point(|&(c, _)| c < context);
        let same = self.started[first..].iter().take_while(|&&(c, _)| c == context);
        same.map(|&(_, id)| id).find(|id| !self.taken.contains(id))
    }

    /// A request whose earlier steps were not matched, or whose first tokens were in the cache already.
    fn unseen(&self, sequence: &Sequence) -> Option<u64> {
        let fits = |r: &Request| {
            let prompt = u64::from(r.prompt_tokens);
            let longest = prompt + u64::from(r.max_tokens);
            match sequence.new {
                1 => r.first_token && (prompt..=longest).contains(&sequence.context),
                _ => !r.first_token && sequence.context <= prompt,
            }
        };
        let unseen = self.live.iter().filter(|(id, r)| r.context == 0 && !self.taken.contains(id) && fits(r));
        unseen.min_by_key(|(id, r)| (r.admitted, **id)).map(|(&id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Nanos = 100;

    fn hint(requests: &mut Requests, now: Nanos, request: u64, kind: HintKind) -> Option<u64> {
        requests.hint(now, &HintInput { request, kind }, "blue", LEASE, 8)
    }

    fn admit(requests: &mut Requests, now: Nanos, request: u64, prompt_tokens: u32) -> Option<u64> {
        let kind = HintKind::Admitted { prompt_tokens, max_tokens: 50, ttft: 7, tpot: 8, priority: 9 };
        hint(requests, now, request, kind)
    }

    /// Whose the sequences of `(new, context)` are, and how many decode.
    fn assign(requests: &mut Requests, sequences: &[(u64, u64)]) -> (Vec<Option<u64>>, u64) {
        let sequences: Vec<_> = sequences.iter().map(|&(new, context)| Sequence { new, context }).collect();
        let mut whose = Vec::new();
        let (decoding, prefilling) = requests.assign(&sequences, &mut whose);
        assert_eq!((decoding + prefilling) as usize, sequences.len());
        (whose, decoding)
    }

    #[test]
    fn every_field_of_a_hint_is_kept() {
        let mut requests = Requests::default();
        admit(&mut requests, 5, 1, 40);
        hint(&mut requests, 6, 1, HintKind::PrefillStarted);
        hint(&mut requests, 7, 1, HintKind::FirstToken);
        hint(&mut requests, 9, 1, HintKind::Progress { tokens: 17 });
        let want = Request {
            tenant: "blue".to_owned(),
            prompt_tokens: 40,
            max_tokens: 50,
            ttft: 7,
            tpot: 8,
            priority: 9,
            admitted: 5,
            heard: 9,
            started: true,
            first_token: true,
            tokens: 17,
            context: 0,
            steps: 0,
        };
        assert_eq!(requests.iter().collect::<Vec<_>>(), [(1, &want)]);
        hint(&mut requests, 10, 1, HintKind::Finished);
        assert!(requests.is_empty());
        assert_eq!(hint(&mut requests, 11, 1, HintKind::Progress { tokens: 18 }), None, "nobody we know");
    }

    #[test]
    fn silence_is_forgotten_and_every_hint_is_a_sign_of_life() {
        let mut requests = Requests::default();
        admit(&mut requests, 0, 1, 10);
        admit(&mut requests, 10, 2, 10);
        hint(&mut requests, 60, 1, HintKind::Progress { tokens: 5 });
        for (now, want) in [(99, &[][..]), (110, &[2]), (159, &[]), (160, &[1]), (999, &[])] {
            let mut gone = Vec::new();
            requests.expire(now, LEASE, &mut gone);
            assert_eq!(gone, want, "at {now}");
        }
        assert_eq!(requests.expires(), Nanos::MAX);
        admit(&mut requests, 1_000, 3, 10);
        admit(&mut requests, 1_010, 4, 10);
        hint(&mut requests, 1_050, 4, HintKind::Finished);
        assert!(requests.expires() <= 1_100, "the end of one renews no other");
    }

    #[test]
    fn more_requests_than_allowed_forget_the_one_not_heard_of_longest() {
        let mut requests = Requests::default();
        for i in 0..8 {
            assert_eq!(admit(&mut requests, i, i, 10), None);
        }
        hint(&mut requests, 9, 0, HintKind::PrefillStarted);
        assert_eq!(admit(&mut requests, 10, 99, 10), Some(1));
        assert_eq!(requests.iter().len(), 8);
    }

    #[test]
    fn a_batch_is_told_apart_by_lengths() {
        let mut requests = Requests::default();
        for (id, prompt) in [(1, 30), (2, 40), (3, 30), (4, 7)] {
            admit(&mut requests, id, id, prompt);
        }
        assert_eq!(assign(&mut requests, &[(40, 40), (30, 30)]), (vec![Some(2), Some(1)], 0));
        // The two decode, whether or not the gateway has seen their tokens; the third's prompt comes in pieces.
        let step = assign(&mut requests, &[(1, 31), (1, 41), (29, 29)]);
        assert_eq!(step, (vec![Some(1), Some(2), Some(3)], 2));
        // Its last token alone looks like decode; its length says what it is.
        assert_eq!(assign(&mut requests, &[(1, 32), (1, 42), (1, 30)]), (vec![Some(1), Some(2), Some(3)], 2));
        assert_eq!(assign(&mut requests, &[(1, 31), (1, 43), (1, 33)]), (vec![Some(3), Some(2), Some(1)], 3));
        // The second lost its cache and starts over with what it had generated.
        assert_eq!(assign(&mut requests, &[(44, 44), (7, 7)]), (vec![Some(2), Some(4)], 0));
    }

    #[test]
    fn estimated_prompts_are_taken_in_order_of_arrival() {
        let mut requests = Requests::default();
        for (id, estimate) in [(1, 25), (2, 12)] {
            admit(&mut requests, id, id, estimate);
        }
        assert_eq!(assign(&mut requests, &[(21, 21)]), (vec![Some(1)], 0));
        assert_eq!(assign(&mut requests, &[(1, 22)]), (vec![Some(1)], 1), "decode, though the estimate is longer");
        assert_eq!(assign(&mut requests, &[(13, 13)]), (vec![Some(2)], 0));
        assert_eq!(assign(&mut requests, &[(50, 50), (1, 99)]), (vec![None, None], 1), "nobody's");
    }

    #[test]
    fn a_prompt_that_began_before_its_hint_is_claimed_once() {
        let mut requests = Requests::default();
        assert_eq!(assign(&mut requests, &[(30, 30)]), (vec![None], 0));
        admit(&mut requests, 5, 1, 30);
        requests.claim(1, Sequence { new: 30, context: 30 });
        requests.claim(1, Sequence { new: 40, context: 40 });
        assert_eq!(requests.iter().map(|(_, r)| (r.context, r.steps)).collect::<Vec<_>>(), [(30, 1)]);
        assert_eq!(assign(&mut requests, &[(1, 31)]), (vec![Some(1)], 1));
    }

    #[test]
    fn a_request_that_was_hinted_late_is_found_while_it_decodes() {
        let mut requests = Requests::default();
        admit(&mut requests, 0, 1, 30);
        hint(&mut requests, 1, 1, HintKind::FirstToken);
        assert_eq!(assign(&mut requests, &[(1, 35)]), (vec![Some(1)], 1));
        assert_eq!(assign(&mut requests, &[(1, 36)]), (vec![Some(1)], 1));
    }
}
