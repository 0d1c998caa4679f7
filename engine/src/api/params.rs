//! From request JSON to a validated generation: what is asked for, in the core's terms, with nothing left to check but
//! the length of the prompt.
//!
//! Three kinds of fields: those that are honoured, those that change the output and are not implemented (refused with a
//! 400 that names them, unless their value asks for nothing), and all others (ignored).

use serde_json::Value;

use super::ApiError;
use super::request::{Body, Stops};
use crate::core::{LOGPROBS_MAX, SamplingParams};

/// Most alternatives of one prompt.
pub const N_MAX: i64 = 8;
/// Most stop strings, as in the OpenAI API.
pub(crate) const STOPS_MAX: usize = 4;
/// Longest stop string. Text this long may be held back, and matching costs time proportional to it for every token.
pub(crate) const STOP_BYTES_MAX: usize = 1024;
/// Most extra end tokens.
pub(crate) const STOP_TOKEN_IDS_MAX: usize = 64;
/// `max_tokens` of a completion that does not say, as in the OpenAI API.
const COMPLETION_MAX_TOKENS_DEFAULT: usize = 16;

/// Which route a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Chat,
    Completions,
}

impl Route {
    /// The field that holds the prompt.
    pub(crate) fn prompt_param(self) -> &'static str {
        match self {
            Self::Chat => "messages",
            Self::Completions => "prompt",
        }
    }
}

/// A validated request, except for its prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Generation {
    pub route: Route,
    pub n: usize,
    pub stream: bool,
    pub include_usage: bool,
    pub stops: Vec<String>,
    /// Tokens asked for; `None` is all that the context holds.
    pub max_tokens: Option<usize>,
    /// All but `max_tokens`, which depends on the prompt.
    pub sampling: SamplingParams,
}

impl Generation {
    /// Checks every field.
    ///
    /// # Errors
    /// 400 naming the first field at fault.
    pub(crate) fn new(route: Route, body: &Body) -> Result<Self, ApiError> {
        refuse_unsupported(route, body)?;
        let stream = body.stream.unwrap_or(false);
        if body.stream_options.is_some() && !stream {
            return Err(ApiError::invalid("stream_options", "stream_options is only allowed when stream is true."));
        }
        let n = in_range("n", body.n, 1, N_MAX)?.unwrap_or(1) as usize;
        let max_tokens = match (route, body.max_completion_tokens) {
            (Route::Chat, Some(tokens)) => in_range("max_completion_tokens", Some(tokens), 1, i64::from(u32::MAX))?,
            (Route::Chat, None) => in_range("max_tokens", body.max_tokens, 1, i64::from(u32::MAX))?,
            (Route::Completions, _) => Some(
                in_range("max_tokens", body.max_tokens, 1, i64::from(u32::MAX))?
                    .unwrap_or(COMPLETION_MAX_TOKENS_DEFAULT as i64),
            ),
        };
        let max_tokens = max_tokens.map(|tokens| tokens as usize);
        let min_tokens = in_range("min_tokens", body.min_tokens, 0, i64::from(u32::MAX))?.unwrap_or(0) as usize;
        if max_tokens.is_some_and(|max_tokens| min_tokens > max_tokens) {
            return Err(ApiError::invalid("min_tokens", "min_tokens must not exceed max_tokens."));
        }
        let stop_token_ids = body.stop_token_ids.clone().unwrap_or_default();
        if stop_token_ids.len() > STOP_TOKEN_IDS_MAX {
            return Err(ApiError::invalid("stop_token_ids", format!("At most {STOP_TOKEN_IDS_MAX} stop_token_ids.")));
        }
        let sampling = SamplingParams {
            temperature: between("temperature", body.temperature, 0.0, 2.0)?.unwrap_or(1.0),
            top_p: match between("top_p", body.top_p, 0.0, 1.0)? {
                Some(0.0) => return Err(ApiError::invalid("top_p", "top_p must be above 0 and at most 1.")),
                other => other.unwrap_or(1.0),
            },
            top_k: in_range("top_k", body.top_k, -1, i64::from(i32::MAX))?.unwrap_or(-1) as i32,
            // Any 64 bits are a seed; the sign has no meaning.
            seed: body.seed.map(|seed| seed as u64),
            max_tokens: 1,
            stop_token_ids,
            ignore_eos: body.ignore_eos.unwrap_or(false),
            min_tokens,
            logprobs: logprobs(route, body)?,
        };
        let include_usage = body.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
        Ok(Self { route, n, stream, include_usage, stops: stops(body.stop.as_ref())?, max_tokens, sampling })
    }
}

fn in_range(param: &str, value: Option<i64>, min: i64, max: i64) -> Result<Option<i64>, ApiError> {
    match value {
        Some(value) if value < min || value > max => {
            Err(ApiError::invalid(param, format!("{param} must be between {min} and {max}, not {value}.")))
        }
        other => Ok(other),
    }
}

fn between(param: &str, value: Option<f64>, min: f64, max: f64) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !(min..=max).contains(&value) => {
            Err(ApiError::invalid(param, format!("{param} must be between {min} and {max}, not {value}.")))
        }
        other => Ok(other.map(|value| value as f32)),
    }
}

fn stops(stops: Option<&Stops>) -> Result<Vec<String>, ApiError> {
    let stops: Vec<String> = match stops {
        None => Vec::new(),
        Some(Stops::One(stop)) => vec![stop.clone()],
        Some(Stops::Many(stops)) => stops.clone(),
    };
    if stops.len() > STOPS_MAX {
        return Err(ApiError::invalid(
            "stop",
            format!("At most {STOPS_MAX} stop strings are allowed, not {}.", stops.len()),
        ));
    }
    if let Some(stop) = stops.iter().find(|stop| stop.len() > STOP_BYTES_MAX) {
        let message = format!("A stop string has {} bytes; at most {STOP_BYTES_MAX} are allowed.", stop.len());
        return Err(ApiError::invalid("stop", message));
    }
    if stops.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "A stop string must not be empty."));
    }
    Ok(stops)
}

/// `Some(k)`: log-probabilities with `k` alternatives.
fn logprobs(route: Route, body: &Body) -> Result<Option<usize>, ApiError> {
    let asked = body.logprobs.as_ref().filter(|value| !value.is_null());
    let max = LOGPROBS_MAX as i64;
    match (route, asked) {
        (Route::Chat, Some(Value::Bool(true))) => {
            Ok(Some(in_range("top_logprobs", body.top_logprobs, 0, max)?.unwrap_or(0) as usize))
        }
        (Route::Chat, None | Some(Value::Bool(false))) if body.top_logprobs.unwrap_or(0) == 0 => Ok(None),
        (Route::Chat, None | Some(Value::Bool(false))) => {
            Err(ApiError::invalid("top_logprobs", "top_logprobs needs logprobs to be true."))
        }
        (Route::Chat, Some(_)) => Err(ApiError::invalid("logprobs", "logprobs must be a boolean; see top_logprobs.")),
        (Route::Completions, None) => Ok(None),
        (Route::Completions, Some(value)) => match value.as_i64() {
            Some(count) => Ok(in_range("logprobs", Some(count), 0, max)?.map(|count| count as usize)),
            None => Err(ApiError::invalid("logprobs", format!("logprobs must be a number between 0 and {max}."))),
        },
    }
}

fn refuse_unsupported(route: Route, body: &Body) -> Result<(), ApiError> {
    let given = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
    let tool_choice = |value: &Option<Value>| {
        value.as_ref().is_some_and(|value| !value.is_null() && !matches!(value.as_str(), Some("none" | "auto")))
    };
    let format = body.response_format.as_ref();
    let asks_for_format = format.is_some_and(|format| !format.is_null() && format["type"] != "text");
    let not_text = |modalities: &Vec<String>| modalities.iter().any(|modality| modality != "text");
    let completions = route == Route::Completions;
    let checks: [(bool, &str, &str); 22] = [
        (body.tools.as_ref().is_some_and(|tools| !tools.is_empty()), "tools", "Tool calling is"),
        (body.functions.as_ref().is_some_and(|functions| !functions.is_empty()), "functions", "Function calling is"),
        (tool_choice(&body.tool_choice), "tool_choice", "Tool calling is"),
        (tool_choice(&body.function_call), "function_call", "Function calling is"),
        (asks_for_format, "response_format", "Structured output (any response_format but text) is"),
        (body.modalities.as_ref().is_some_and(not_text), "modalities", "Output other than text is"),
        (given(&body.audio), "audio", "Audio output is"),
        (body.logit_bias.as_ref().is_some_and(|bias| !bias.is_empty()), "logit_bias", "logit_bias is"),
        (body.presence_penalty.unwrap_or(0.0) != 0.0, "presence_penalty", "A presence_penalty other than 0 is"),
        (body.frequency_penalty.unwrap_or(0.0) != 0.0, "frequency_penalty", "A frequency_penalty other than 0 is"),
        (body.repetition_penalty.unwrap_or(1.0) != 1.0, "repetition_penalty", "A repetition_penalty other than 1 is"),
        (body.min_p.unwrap_or(0.0) != 0.0, "min_p", "A min_p other than 0 is"),
        (given(&body.guided_json), "guided_json", "Guided decoding is"),
        (given(&body.guided_regex), "guided_regex", "Guided decoding is"),
        (given(&body.guided_choice), "guided_choice", "Guided decoding is"),
        (given(&body.guided_grammar), "guided_grammar", "Guided decoding is"),
        (given(&body.structured_outputs), "structured_outputs", "Guided decoding is"),
        (given(&body.prompt_logprobs), "prompt_logprobs", "Log-probabilities of the prompt are"),
        (body.use_beam_search.unwrap_or(false), "use_beam_search", "Beam search is"),
        (completions && body.echo.unwrap_or(false), "echo", "echo is"),
        (completions && body.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()), "suffix", "suffix is"),
        (
            completions && body.best_of.is_some_and(|best_of| best_of != body.n.unwrap_or(1)),
            "best_of",
            "best_of different from n is",
        ),
    ];
    match checks.into_iter().find(|(refused, _, _)| *refused) {
        Some((_, param, what)) => Err(ApiError::not_supported(param, what)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn generation(route: Route, body: Value) -> Result<Generation, ApiError> {
        Generation::new(route, &serde_json::from_value(body).expect("well-formed"))
    }

    #[test]
    fn defaults_are_those_of_the_openai_api() {
        let chat = generation(Route::Chat, json!({})).expect("valid");
        assert_eq!((chat.n, chat.stream, chat.max_tokens, chat.include_usage), (1, false, None, false));
        assert_eq!(chat.sampling, SamplingParams { max_tokens: 1, ..SamplingParams::default() });
        let completion = generation(Route::Completions, json!({"temperature": null, "stop": null})).expect("valid");
        assert_eq!(completion.max_tokens, Some(16));
    }

    #[test]
    fn every_honoured_field_arrives() {
        let body = json!({
            "temperature": 0.5, "top_p": 0.25, "top_k": 7, "seed": -1, "stop": ["a", "b"], "stop_token_ids": [3],
            "stream": true, "stream_options": {"include_usage": true}, "n": 3, "ignore_eos": true, "min_tokens": 2,
            "max_tokens": 5, "max_completion_tokens": 9, "logprobs": true, "top_logprobs": 4, "unknown": {"x": 1},
        });
        let got = generation(Route::Chat, body).expect("valid");
        let sampling = SamplingParams {
            temperature: 0.5,
            top_p: 0.25,
            top_k: 7,
            seed: Some(u64::MAX),
            max_tokens: 1,
            stop_token_ids: vec![3],
            ignore_eos: true,
            min_tokens: 2,
            logprobs: Some(4),
        };
        let expected = Generation {
            route: Route::Chat,
            n: 3,
            stream: true,
            include_usage: true,
            stops: vec!["a".into(), "b".into()],
            max_tokens: Some(9),
            sampling,
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn values_that_ask_for_nothing_are_not_refused() {
        let body = json!({
            "tools": [], "tool_choice": "none", "functions": [], "response_format": {"type": "text"}, "logit_bias": {},
            "presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "min_p": 0, "echo": false,
            "suffix": "", "best_of": 2, "n": 2, "guided_json": null, "modalities": ["text"], "use_beam_search": false,
            "logprobs": null, "user": "somebody", "service_tier": "auto", "parallel_tool_calls": true, "store": false,
        });
        for route in [Route::Chat, Route::Completions] {
            generation(route, body.clone()).expect("valid");
        }
    }
}
