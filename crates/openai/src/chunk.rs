//! One event of a streamed answer: does it carry tokens, usage, an error, the end?
//!
//! Each event is read once, without a copy: this is what a token costs beside the kernel's work.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::object;
use crate::usage::Usage;

/// Facts of one event's data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Choices that got text (or a tool call's arguments) by it: one token each, as engines stream.
    pub tokens: u32,
    /// What it cost so far.
    pub usage: Option<Usage>,
    /// What to leave out of the data to hide its member `usage`, null or not; every other byte stays.
    pub usage_member: Option<Range<usize>>,
    /// It has an empty list of choices.
    pub no_choices: bool,
    /// The engine reports a failure.
    pub error: bool,
    /// The stream is complete: `[DONE]`, or the last event of the Responses API.
    pub done: bool,
}

#[derive(Default)]
struct Members<'a> {
    tokens: u32,
    no_choices: bool,
    usage: Option<&'a RawValue>,
    error: Option<&'a RawValue>,
    kind: Option<Cow<'a, str>>,
    delta_text: bool,
    response: Option<&'a RawValue>,
}

impl Chunk {
    /// Reads the data of an event; what is no JSON object says nothing.
    pub fn of(data: &[u8]) -> Self {
        if data.trim_ascii() == b"[DONE]" {
            return Self { done: true, ..Self::default() };
        }
        let Ok(members) = object::read::<Members<'_>>(data) else { return Self::default() };
        let mut chunk = Self {
            tokens: members.tokens,
            usage: members.usage.and_then(|u| Usage::of(u.get())),
            usage_member: members.usage.and_then(|u| member(data, "usage", u.get())),
            no_choices: members.no_choices,
            error: members.error.is_some_and(|e| e.get() != "null"),
            done: false,
        };
        // The Responses API: typed events.
        match members.kind.as_deref() {
            Some("response.completed" | "response.incomplete") => {
                chunk.done = true;
                chunk.usage = members.response.and_then(|r| crate::usage_of_answer(r.get().as_bytes()));
            }
            Some("response.failed" | "error") => chunk.error = true,
            Some(kind) if kind.ends_with(".delta") && members.delta_text => chunk.tokens += 1,
            _ => {}
        }
        chunk
    }
}

/// Where the member `name` with this `value`, a slice of `data`, stands in an object, with the comma that goes with it; `None`
/// if its name is written with escapes.
fn member(data: &[u8], name: &str, value: &str) -> Option<Range<usize>> {
    let value_start = value.as_ptr() as usize - data.as_ptr() as usize;
    let mut end = value_start + value.len();
    let key = data[..value_start].trim_ascii_end().strip_suffix(b":")?.trim_ascii_end();
    let key = key.strip_suffix(b"\"")?.strip_suffix(name.as_bytes())?.strip_suffix(b"\"")?;
    let mut start = key.trim_ascii_end().len();
    if start.checked_sub(1).is_some_and(|at| data[at] == b',') {
        start -= 1;
    } else {
        let rest = &data[end..];
        let blank = rest.len() - rest.trim_ascii_start().len();
        end += if rest.get(blank) == Some(&b',') { blank + 1 } else { 0 };
    }
    Some(start..end)
}

impl<'de> object::Members<'de> for Members<'de> {
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "choices" => {
                let choices: Choices = map.next_value()?;
                self.tokens = choices.with_text;
                self.no_choices = choices.is_list && choices.count == 0;
            }
            "usage" => self.usage = Some(map.next_value()?),
            "error" => self.error = Some(map.next_value()?),
            "type" => self.kind = map.next_value::<Loose<'de>>()?.text,
            "delta" => self.delta_text = map.next_value::<Loose<'de>>()?.has_text(),
            "response" => self.response = Some(map.next_value()?),
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object::object(deserializer)
    }
}

/// `choices`, of which only those with text count.
#[derive(Default)]
struct Choices {
    is_list: bool,
    count: u32,
    with_text: u32,
}

impl<'de> Deserialize<'de> for Choices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Choices;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of choices")
            }
            fn visit_unit<E>(self) -> Result<Choices, E> {
                Ok(Choices::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Choices, A::Error> {
                let mut choices = Choices { is_list: true, ..Choices::default() };
                while let Some(choice) = seq.next_element::<Loose<'de>>()? {
                    choices.count += 1;
                    choices.with_text += u32::from(choice.inner_text);
                }
                Ok(choices)
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// Members that carry generated text, in a choice or its delta.
const TEXT_KEYS: [&str; 5] = ["text", "content", "reasoning_content", "reasoning", "refusal"];

/// Any value: its text if it is a string, whether text is in it if it is an object.
#[derive(Default)]
struct Loose<'a> {
    text: Option<Cow<'a, str>>,
    inner_text: bool,
}

impl Loose<'_> {
    fn has_text(&self) -> bool {
        self.inner_text || self.text.as_ref().is_some_and(|t| !t.is_empty())
    }
}

impl<'de> object::Members<'de> for Loose<'de> {
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "delta" | "message" | "tool_calls" => self.inner_text |= map.next_value::<Loose<'de>>()?.inner_text,
            key if TEXT_KEYS.contains(&key) => self.inner_text |= map.next_value::<Loose<'de>>()?.has_text(),
            _ => drop(map.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Loose<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Loose<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Loose { text: Some(Cow::Borrowed(text)), inner_text: false })
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Loose { text: Some(Cow::Owned(text.to_owned())), inner_text: false })
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Loose::default())
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Loose::default())
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Loose::default())
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Loose::default())
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Loose::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                // A list counts as text if it is one of tool calls or parts, that is, not empty.
                let mut any = false;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    any = true;
                }
                Ok(Loose { text: None, inner_text: any })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                object::members(map)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_apart() {
        let plain = Chunk::default();
        let usage = Usage { prompt_tokens: 3, cached_tokens: 0, output_tokens: 2 };
        for (event, want) in [
            (
                r#"{"choices":[{"text":"a"},{"text":""},{"delta":{"content":"b\n"}}]}"#,
                Chunk { tokens: 2, ..plain.clone() },
            ),
            (
                r#"{"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}"#,
                Chunk { usage_member: Some(56..69), ..plain.clone() },
            ),
            (r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#, Chunk { tokens: 1, ..plain.clone() }),
            (
                r#"{"choices":[{"delta":{"tool_calls":[],"reasoning_content":"hm"}}]}"#,
                Chunk { tokens: 1, ..plain.clone() },
            ),
            (
                r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#,
                Chunk { usage: Some(usage), usage_member: Some(13..63), no_choices: true, ..plain.clone() },
            ),
            (r#"{"error":{"message":"x"}}"#, Chunk { error: true, ..plain.clone() }),
            (r#"{"error":null,"choices":null}"#, plain.clone()),
            (r#"{"type":"response.output_text.delta","delta":"hi"}"#, Chunk { tokens: 1, ..plain.clone() }),
            (
                r#"{"type":"response.completed","response":{"usage":{"input_tokens":3,"output_tokens":2}}}"#,
                Chunk { done: true, usage: Some(usage), ..plain.clone() },
            ),
            ("[DONE]", Chunk { done: true, ..plain.clone() }),
            ("garbage", plain),
        ] {
            assert_eq!(Chunk::of(event.as_bytes()), want, "{event}");
        }
    }

    #[test]
    fn usage_is_hidden_and_nothing_else() {
        let hidden = |data: &str| {
            let member = Chunk::of(data.as_bytes()).usage_member?;
            Some([&data[..member.start], &data[member.end..]].concat())
        };
        for (data, want) in [
            (r#"{"a":1,"usage":null}"#, r#"{"a":1}"#),
            (r#"{"a":1, "usage" : null , "b":2}"#, r#"{"a":1 , "b":2}"#),
            (r#"{"usage":{"x":"}"},"b":"\"usage\":1"}"#, r#"{"b":"\"usage\":1"}"#),
            (r#"{"usage":null}"#, r#"{}"#),
        ] {
            assert_eq!(hidden(data).as_deref(), Some(want), "{data}");
        }
        assert!(hidden(r#"{"choices":[{"usage":null}]}"#).is_none());
        assert!(hidden("[DONE]").is_none());
    }
}
