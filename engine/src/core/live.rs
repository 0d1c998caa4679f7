//! A live request: parameters, seed, and the one place that ends its event channel.

use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use super::request::{EngineRequest, FailKind, FinishReason, SamplingParams, TokenEvent, Usage};
use super::scheduler::Payload;

/// What the loops know of a request besides its tokens.
///
/// Its sender is taken by whoever ends the request, so exactly one last event is sent and no token follows it, whichever
/// thread comes first.
#[derive(Debug)]
pub(super) struct Live {
    /// The caller's name for it.
    pub(super) id: u64,
    pub(super) params: SamplingParams,
    /// The request's own, or drawn once when it came.
    pub(super) seed: u64,
    /// Tokens that end it.
    pub(super) end_tokens: Vec<u32>,
    /// False without weights: there is nothing to sample from.
    samples: bool,
    events: Mutex<Option<UnboundedSender<TokenEvent>>>,
}

impl Live {
    /// Splits a request into its live part and its prompt. `eos` are the model's end tokens; a `dummy` model ends at none.
    pub(super) fn new(request: EngineRequest, eos: &[u32], dummy: bool) -> (Self, Vec<u32>) {
        let EngineRequest { id, prompt, params, events } = request;
        let mut end_tokens = Vec::new();
        if !dummy {
            end_tokens.extend_from_slice(&params.stop_token_ids);
            if !params.ignore_eos {
                end_tokens.extend_from_slice(eos);
            }
        }
        let seed = params.seed.unwrap_or_else(rand::random);
        let live = Self { id, params, seed, end_tokens, samples: !dummy, events: Mutex::new(Some(events)) };
        (live, prompt)
    }

    /// End tokens while fewer than `min_tokens` were generated, else nothing.
    pub(super) fn forbidden(&self, generated: usize) -> &[u32] {
        if generated < self.params.min_tokens { &self.end_tokens } else { &[] }
    }

    /// Sends a token event; false if nobody listens any more.
    pub(super) fn send(&self, event: TokenEvent) -> bool {
        self.events.lock().as_ref().is_none_or(|sender| sender.send(event).is_ok())
    }

    /// Sends the last event, unless one was sent already.
    fn end(&self, event: TokenEvent) {
        if let Some(sender) = self.events.lock().take() {
            // A receiver that is gone needs no last event.
            let _ = sender.send(event);
        }
    }

    pub(super) fn finish(&self, reason: FinishReason, usage: Usage) {
        self.end(TokenEvent::Finished { reason, usage });
    }

    pub(super) fn fail(&self, kind: FailKind, message: String) {
        self.end(TokenEvent::Failed { kind, message });
    }
}

impl Payload for std::sync::Arc<Live> {
    fn wants_logits(&self, generated: usize) -> bool {
        self.samples
            && (self.params.temperature > 0.0
                || self.params.logprobs.is_some()
                || !self.forbidden(generated).is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;

    use super::*;

    fn live(params: SamplingParams, dummy: bool) -> (Arc<Live>, mpsc::UnboundedReceiver<TokenEvent>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let (live, prompt) = Live::new(EngineRequest { id: 1, prompt: vec![5], params, events }, &[2], dummy);
        assert_eq!(prompt, [5]);
        (Arc::new(live), receiver)
    }

    #[test]
    fn nothing_follows_the_last_event() {
        let (live, mut receiver) = live(SamplingParams::default(), false);
        let token = TokenEvent::Token { id: 1, logprobs: None };
        assert!(live.send(token.clone()));
        live.finish(FinishReason::Abort, Usage::default());
        live.fail(FailKind::DeviceLost, String::new());
        assert!(live.send(token.clone()), "a late token is dropped silently");
        assert_eq!(receiver.try_recv(), Ok(token));
        assert!(matches!(receiver.try_recv(), Ok(TokenEvent::Finished { reason: FinishReason::Abort, .. })));
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn only_what_the_device_cannot_choose_wants_logits() {
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        for (params, dummy, want) in [
            (greedy.clone(), false, [false, false]),
            (SamplingParams { min_tokens: 1, ..greedy.clone() }, false, [true, false]),
            (SamplingParams { min_tokens: 1, ignore_eos: true, ..greedy.clone() }, false, [false, false]),
            (SamplingParams { logprobs: Some(0), ..greedy.clone() }, false, [true, true]),
            (SamplingParams::default(), false, [true, true]),
            (SamplingParams { logprobs: Some(3), ..SamplingParams::default() }, true, [false, false]),
        ] {
            let (live, _receiver) = live(params.clone(), dummy);
            assert_eq!([live.wants_logits(0), live.wants_logits(1)], want, "{params:?}");
        }
    }

    #[test]
    fn end_tokens_follow_the_parameters() {
        let stop = SamplingParams { stop_token_ids: vec![7], ..SamplingParams::default() };
        assert_eq!(live(stop.clone(), false).0.end_tokens, [7, 2]);
        assert_eq!(live(SamplingParams { ignore_eos: true, ..stop.clone() }, false).0.end_tokens, [7]);
        assert!(live(stop, true).0.end_tokens.is_empty());
    }
}
