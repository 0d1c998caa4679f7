//! How much prompt a request carries: exact where it is tokens, bytes of text where it is text.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::object::Key;

/// Members whose value is a picture, sound or file, not text: their bytes say nothing about tokens.
const MEDIA_KEYS: [&str; 6] = ["image_url", "input_audio", "video_url", "audio_url", "file", "file_data"];
/// Members of messages and parts that are no text of the prompt.
const PLAIN_KEYS: [&str; 4] = ["role", "type", "id", "tool_call_id"];

/// Size of everything that the model reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Tokens given as numbers.
    pub tokens: u64,
    /// Bytes of text.
    pub text_bytes: u64,
    /// Pictures, sounds, files.
    pub media: u64,
    /// Separate prompts: each is a sequence of its own.
    pub prompts: u64,
}

impl Prompt {
    /// Whether `tokens` is the whole of it.
    pub fn is_exact(&self) -> bool {
        self.text_bytes == 0 && self.media == 0
    }
}

/// Where goes what is found.
pub(crate) trait Sink {
    /// Text of the prompt.
    fn text(&mut self, text: &str);
    /// A token given as a number.
    fn token(&mut self) {}
    /// A picture, sound or file.
    fn media(&mut self) {}
    /// What was found since the last one is a prompt of its own.
    fn prompt(&mut self) {}
}

impl Sink for Prompt {
    fn text(&mut self, text: &str) {
        self.text_bytes += text.len() as u64;
    }
    fn token(&mut self) {
        self.tokens += 1;
    }
    fn media(&mut self) {
        self.media += 1;
    }
    fn prompt(&mut self) {
        self.prompts += 1;
    }
}

/// Texts alone.
pub(crate) struct Texts<F>(pub F);

impl<F: FnMut(&str)> Sink for Texts<F> {
    fn text(&mut self, text: &str) {
        self.0(text);
    }
}

/// Finds what a JSON value holds, every string being text.
pub(crate) fn find_text(json: &str, sink: &mut impl Sink) {
    // The value comes out of a document that was parsed before.
    let _ = Text(sink).deserialize(&mut serde_json::Deserializer::from_str(json));
}

/// Finds what a `prompt` or `input` holds: a string, a list of strings, a token array or a list of token arrays.
pub(crate) fn find_prompt(json: &str, sink: &mut impl Sink) {
    let _ = Items(sink).deserialize(&mut serde_json::Deserializer::from_str(json));
}

/// Finds strings anywhere below a value.
struct Text<'a, S>(&'a mut S);

impl<'de, S: Sink> DeserializeSeed<'de> for Text<'_, S> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: Sink> Visitor<'de> for Text<'_, S> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }
    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.text(text);
        Ok(())
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Text(self.0))?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Key(key)) = map.next_key()? {
            if MEDIA_KEYS.contains(&&*key) {
                map.next_value::<IgnoredAny>()?;
                self.0.media();
            } else if PLAIN_KEYS.contains(&&*key) {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Text(self.0))?;
            }
        }
        Ok(())
    }
}

/// Finds a prompt: numbers are tokens, strings text. Says whether the value is a number.
struct Items<'a, S>(&'a mut S);

impl<'de, S: Sink> DeserializeSeed<'de> for Items<'_, S> {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: Sink> Visitor<'de> for Items<'_, S> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a prompt")
    }
    fn visit_str<E>(self, text: &str) -> Result<bool, E> {
        self.0.text(text);
        self.0.prompt();
        Ok(false)
    }
    fn visit_bool<E>(self, _: bool) -> Result<bool, E> {
        Ok(false)
    }
    fn visit_u64<E>(self, _: u64) -> Result<bool, E> {
        self.0.token();
        Ok(true)
    }
    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<bool, E> {
        self.visit_u64(0)
    }
    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<bool, E> {
        self.visit_u64(0)
    }
    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
        let mut numbers = false;
        while let Some(number) = seq.next_element_seed(Items(self.0))? {
            numbers |= number;
        }
        // A list of numbers is one prompt, a list of lists or strings one each.
        if numbers {
            self.0.prompt();
        }
        Ok(false)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<bool, A::Error> {
        Text(self.0).visit_map(map).map(|()| false)
    }
}
