//! What a proxy must know of a request body.
//!
//! One scan finds the members that matter as slices of the body; only those are read. A prompt of megabytes is scanned
//! twice and never copied.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess};
use serde_json::value::RawValue;

use crate::count::{self, Prompt, Texts};
use crate::object;
use crate::splice::{self, Splice};

/// The body is no JSON object; says where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The members of a request that matter before it is sent on.
#[derive(Clone, Debug, Default)]
pub struct Peek<'a> {
    body: &'a [u8],
    /// `model`.
    pub model: Option<Cow<'a, str>>,
    /// `stream`.
    pub stream: bool,
    /// Most tokens to generate a sequence, if the request says so: `max_completion_tokens` before `max_tokens`.
    pub max_tokens: Option<u64>,
    /// Sequences that each prompt becomes: the larger of `n` and `best_of`.
    pub choices: u64,
    /// Size of the prompt with all that goes with it.
    pub prompt: Prompt,
    /// Whether the client asked for usage in the stream.
    pub include_usage: bool,
    /// Where the messages, prompt or input begin: equal beginnings share an engine's prefix cache.
    pub leading: &'a [u8],
    texts: [Option<&'a str>; 3],
    prompts: [Option<&'a str>; 2],
    stream_options: Option<&'a str>,
    max_completion_tokens: bool,
    max_tokens_given: bool,
}

#[derive(Default)]
struct Members<'a> {
    model: Option<&'a RawValue>,
    stream: Option<&'a RawValue>,
    stream_options: Option<&'a RawValue>,
    max_tokens: Option<&'a RawValue>,
    max_completion_tokens: Option<&'a RawValue>,
    max_output_tokens: Option<&'a RawValue>,
    n: Option<&'a RawValue>,
    best_of: Option<&'a RawValue>,
    messages: Option<&'a RawValue>,
    prompt: Option<&'a RawValue>,
    input: Option<&'a RawValue>,
    instructions: Option<&'a RawValue>,
    tools: Option<&'a RawValue>,
}

impl<'de> object::Members<'de> for Members<'de> {
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let slot = match key {
            "model" => &mut self.model,
            "stream" => &mut self.stream,
            "stream_options" => &mut self.stream_options,
            "max_tokens" => &mut self.max_tokens,
            "max_completion_tokens" => &mut self.max_completion_tokens,
            "max_output_tokens" => &mut self.max_output_tokens,
            "n" => &mut self.n,
            "best_of" => &mut self.best_of,
            "messages" => &mut self.messages,
            "prompt" => &mut self.prompt,
            "input" => &mut self.input,
            "instructions" => &mut self.instructions,
            "tools" => &mut self.tools,
            _ => return map.next_value::<IgnoredAny>().map(drop),
        };
        *slot = Some(map.next_value()?);
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object::object(deserializer)
    }
}

impl<'a> Peek<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub fn of(body: &'a [u8]) -> Result<Self, Malformed> {
        let members: Members<'a> = object::read(body).map_err(|e| Malformed(e.to_string()))?;
        let mut prompt = Prompt::default();
        let texts = [members.messages, members.instructions, members.tools].map(|v| v.map(RawValue::get));
        let prompts = [members.prompt, members.input].map(|v| v.map(RawValue::get));
        texts.into_iter().flatten().for_each(|json| count::find_text(json, &mut prompt));
        prompts.into_iter().flatten().for_each(|json| count::find_prompt(json, &mut prompt));
        prompt.prompts = prompt.prompts.max(1);
        let max_completion = number(members.max_completion_tokens);
        let max_tokens = number(members.max_tokens);
        let leading = members.messages.or(members.prompt).or(members.input);
        Ok(Self {
            body,
            model: members.model.and_then(|m| borrowed_text(m.get())),
            stream: members.stream.is_some_and(|v| is_true(v.get())),
            max_tokens: max_completion.or(max_tokens).or_else(|| number(members.max_output_tokens)),
            choices: number(members.n).max(number(members.best_of)).unwrap_or(1).max(1),
            prompt,
            texts,
            prompts,
            include_usage: members.stream_options.is_some_and(asks_for_usage),
            leading: leading.map_or(b"", |v| v.get().as_bytes()),
            stream_options: members.stream_options.map(RawValue::get),
            max_completion_tokens: max_completion.is_some(),
            max_tokens_given: max_tokens.is_some(),
        })
    }

    /// Whether the model reads the prompt as it stands here: no template makes it of messages, tools or, where tokens are
    /// generated, the Responses API's `input`.
    pub fn is_plain(&self, generates: bool) -> bool {
        let [_, input] = self.prompts;
        let templated = self.texts.iter().any(Option::is_some) || (generates && input.is_some());
        !templated && self.prompt.media == 0
    }

    /// Every text of the prompt, as the request has them.
    pub fn each_text(&self, each: impl FnMut(&str)) {
        let mut texts = Texts(each);
        self.texts.into_iter().flatten().for_each(|json| count::find_text(json, &mut texts));
        self.prompts.into_iter().flatten().for_each(|json| count::find_prompt(json, &mut texts));
    }

    /// The edit that makes a streamed answer carry usage; `None` if it does anyway.
    pub fn ask_for_usage(&self) -> Option<Splice> {
        if !self.stream || self.include_usage {
            return None;
        }
        let Some(options) = self.stream_options else {
            return splice::append_member(self.body, r#""stream_options":{"include_usage":true}"#);
        };
        let with = with_include_usage(options);
        Some(Splice { range: self.range_of(options), with: with.into() })
    }

    /// The edit for engines that know only `max_tokens`; `None` if the request does not use the newer name alone.
    pub fn name_max_tokens(&self) -> Option<Splice> {
        let max = self.max_tokens.filter(|_| self.max_completion_tokens && !self.max_tokens_given)?;
        splice::append_member(self.body, &format!(r#""max_tokens":{max}"#))
    }

    fn range_of(&self, part: &str) -> Range<usize> {
        // `part` is a slice of `body`: `RawValue`s are borrowed from it.
        let start = part.as_ptr() as usize - self.body.as_ptr() as usize;
        start..start + part.len()
    }
}

fn borrowed_text(json: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<object::Key<'_>>(json).ok().map(|name| name.0)
}

/// A number, or one in a string, as lenient engines take it.
pub(crate) fn number(json: Option<&RawValue>) -> Option<u64> {
    let text = json?.get().trim_matches('"');
    text.parse().ok().or_else(|| {
        let float: f64 = text.parse().ok()?;
        (0.0..1e15).contains(&float).then_some(float as u64)
    })
}

fn is_true(json: &str) -> bool {
    matches!(json.trim_matches('"').to_ascii_lowercase().as_str(), "true" | "1" | "yes" | "on")
}

fn asks_for_usage(options: &RawValue) -> bool {
    json_object(options.get())
        .is_some_and(|o| o.get("include_usage").is_some_and(|v| *v == serde_json::Value::Bool(true)))
}

fn json_object(json: &str) -> Option<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_str(json).ok()
}

fn with_include_usage(options: &str) -> String {
    let mut object = json_object(options).unwrap_or_default();
    object.insert("include_usage".into(), true.into());
    serde_json::Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splice::applied;

    fn peek(body: &str) -> Peek<'_> {
        Peek::of(body.as_bytes()).unwrap()
    }

    #[test]
    fn prompts_of_every_shape_are_counted() {
        for (body, tokens, text_bytes, media, prompts) in [
            (r#"{"prompt":[1,2,3]}"#, 3, 0, 0, 1),
            (r#"{"prompt":[[1,2],[3]]}"#, 3, 0, 0, 2),
            (r#"{"prompt":"12345678"}"#, 0, 8, 0, 1),
            (r#"{"prompt":["1234","5678"]}"#, 0, 8, 0, 2),
            (r#"{"prompt":"a\nb"}"#, 0, 3, 0, 1),
            (r#"{"input":["1234","5678"]}"#, 0, 8, 0, 2),
            (r#"{"messages":[{"role":"user","content":"1234"}]}"#, 0, 4, 0, 1),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"text","text":"12"},
                    {"type":"image_url","image_url":{"url":"data:verylong"}}]}]}"#,
                0,
                2,
                1,
                1,
            ),
            (r#"{"input":[{"role":"user","content":"1234"}],"instructions":"be"}"#, 0, 6, 0, 1),
            (r#"{}"#, 0, 0, 0, 1),
        ] {
            let want = Prompt { tokens, text_bytes, media, prompts };
            assert_eq!(peek(body).prompt, want, "{body}");
        }
    }

    #[test]
    fn texts_are_those_that_are_counted() {
        for (body, plain, want) in [
            (r#"{"prompt":["a\nb",[1,2],"c"]}"#, true, &["a\nb", "c"][..]),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"text","text":"d"}]}],"tools":[{"x":"e"}]}"#,
                false,
                &["d", "e"],
            ),
            (r#"{"input":"f","instructions":"g"}"#, false, &["g", "f"]),
            (r#"{"input":"f"}"#, false, &["f"]),
            (r#"{"input":[{"role":"user","content":[{"type":"input_image","image_url":"h"}]}]}"#, false, &[]),
        ] {
            let p = peek(body);
            let mut texts = Vec::new();
            p.each_text(|text| texts.push(text.to_owned()));
            assert_eq!(
                (p.is_plain(true), &texts[..]),
                (plain, &want.iter().map(ToString::to_string).collect::<Vec<_>>()[..])
            );
            assert_eq!(p.is_plain(false), plain || body == r#"{"input":"f"}"#, "{body}");
            assert_eq!(texts.iter().map(String::len).sum::<usize>() as u64, p.prompt.text_bytes, "{body}");
        }
    }

    #[test]
    fn limits_and_choices() {
        for (body, max, choices, stream) in [
            (r#"{"max_tokens":5}"#, Some(5), 1, false),
            (r#"{"max_tokens":9,"max_completion_tokens":7,"n":2}"#, Some(7), 2, false),
            (r#"{"max_output_tokens":3,"stream":true,"n":2,"best_of":4}"#, Some(3), 4, true),
            (r#"{"max_tokens":"12","n":"3","stream":"true"}"#, Some(12), 3, true),
            (r#"{"max_tokens":null,"n":null,"stream":null}"#, None, 1, false),
            (r#"{"max_tokens":5,"max_tokens":6,"n":0}"#, Some(6), 1, false),
            ("{\"max\\u005ftokens\":4}", Some(4), 1, false),
        ] {
            let p = peek(body);
            assert_eq!((p.max_tokens, p.choices, p.stream), (max, choices, stream), "{body}");
        }
    }

    #[test]
    fn what_is_no_object_says_where() {
        for body in ["{oops", "[1]", "", "{\"prompt\": NaN}", "{} {}", "\u{feff}{}"] {
            let error = Peek::of(body.as_bytes()).unwrap_err();
            assert!(error.0.contains("line 1"), "{body}: {error}");
        }
    }

    #[test]
    fn usage_is_asked_for_without_touching_the_rest() {
        for (body, want) in [
            (
                r#"{"stream":true, "x":  {"a":1.00}}"#,
                Some(r#"{"stream":true, "x":  {"a":1.00},"stream_options":{"include_usage":true}}"#),
            ),
            (
                r#"{"stream_options" : null ,"stream":true}"#,
                Some(r#"{"stream_options" : {"include_usage":true} ,"stream":true}"#),
            ),
            (
                r#"{"stream":true,"stream_options":{"continuous":7,"include_usage":false}}"#,
                Some(r#"{"stream":true,"stream_options":{"continuous":7,"include_usage":true}}"#),
            ),
            (r#"{"stream":true,"stream_options":{"include_usage":true}}"#, None),
            (r#"{"stream":false}"#, None),
        ] {
            let edited = peek(body).ask_for_usage().map(|s| applied(body.as_bytes(), &[s]));
            assert_eq!(edited.as_deref(), want.map(str::as_bytes), "{body}");
        }
    }

    #[test]
    fn old_engines_get_the_old_name() {
        let body = r#"{"max_completion_tokens":7}"#;
        let edited = applied(body.as_bytes(), &[peek(body).name_max_tokens().unwrap()]);
        assert_eq!(edited, br#"{"max_completion_tokens":7,"max_tokens":7}"#);
        assert!(peek(r#"{"max_completion_tokens":7,"max_tokens":9}"#).name_max_tokens().is_none());
    }
}
