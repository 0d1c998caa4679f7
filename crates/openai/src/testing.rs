//! What clients and engines may send as JSON, for fuzz targets and the replay of their corpora. The model to compare with is
//! `serde_json`'s own reading of the whole document.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::{Chunk, Peek, Splice, Usage, usage_of_answer, whole};

type Object = Map<String, Value>;

/// Any bytes as a request: what `serde_json` takes is taken, and read alike where there is no leniency; edits change what they say
/// and nothing else.
///
/// # Panics
/// If a promise is broken.
pub fn check_request(body: &[u8]) {
    let model = serde_json::from_slice::<Object>(body).ok();
    let Ok(peek) = Peek::of(body) else {
        assert!(model.is_none(), "a valid object is refused");
        return;
    };
    let mut text_bytes = 0;
    peek.each_text(|text| text_bytes += text.len() as u64);
    assert_eq!(text_bytes, peek.prompt.text_bytes);
    assert!(peek.choices >= 1 && peek.prompt.prompts >= 1);
    assert!(peek.prompt.text_bytes <= body.len() as u64 && peek.prompt.tokens <= body.len() as u64);
    let _ = (peek.is_plain(true), peek.is_plain(false));
    let (usage, name) = (peek.ask_for_usage(), peek.name_max_tokens());
    let Some(model) = model else { return };
    match model.get("model") {
        Some(Value::String(name)) => assert_eq!(peek.model.as_deref(), Some(name.as_str())),
        _ => assert_eq!(peek.model, None),
    }
    match model.get("stream") {
        Some(Value::Bool(stream)) => assert_eq!(peek.stream, *stream),
        None => assert!(!peek.stream),
        Some(_) => {}
    }
    let edits: Vec<Splice> = usage.iter().chain(&name).cloned().collect();
    let edited = edited(body, &edits);
    let mut want = model;
    if usage.is_some() {
        let mut options = match want.get("stream_options") {
            Some(Value::Object(options)) => options.clone(),
            _ => Object::new(),
        };
        options.insert("include_usage".into(), true.into());
        want.insert("stream_options".into(), options.into());
    }
    if name.is_some() {
        want.insert("max_tokens".into(), peek.max_tokens.into());
    }
    assert_eq!(edited, want);
}

/// Any bytes as an event's data or a whole answer: facts that make sense, and usage hidden without touching the rest.
///
/// # Panics
/// If a promise is broken.
pub fn check_answer(data: &[u8]) {
    let chunk = Chunk::of(data);
    for usage in chunk.usage.iter().chain(&usage_of_answer(data)) {
        let Usage { prompt_tokens, cached_tokens, .. } = usage;
        assert!(cached_tokens <= prompt_tokens);
    }
    assert!(!(chunk.no_choices && chunk.tokens > 0 && !delta(data)), "tokens without a choice");
    let Some(member) = chunk.usage_member else { return };
    let mut rest = data[..member.start].to_vec();
    rest.extend_from_slice(&data[member.end..]);
    let Ok(mut want) = serde_json::from_slice::<Object>(data) else { return };
    // Of several members of that name, which no engine sends, one is hidden.
    if data.windows(5).filter(|w| w == b"usage").count() == 1 {
        want.shift_remove("usage");
        assert_eq!(serde_json::from_slice::<Object>(&rest).ok(), Some(want));
    }
}

/// Whether it is an event of the Responses API, whose text is no choice's.
fn delta(data: &[u8]) -> bool {
    data.windows(5).any(|w| w == b"delta")
}

fn edited(body: &[u8], edits: &[Splice]) -> Object {
    let pieces = whole(&Bytes::copy_from_slice(body), edits);
    let bytes = pieces.concat();
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(target: &str, check: fn(&[u8])) {
        let seeds = format!("{}/../../fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut replayed = 0;
        for entry in std::fs::read_dir(seeds).unwrap() {
            check(&std::fs::read(entry.unwrap().path()).unwrap());
            replayed += 1;
        }
        assert!(replayed >= 10, "{target}: {replayed} seeds");
    }

    #[test]
    fn corpora_of_requests_and_answers_replay() {
        replay("request", check_request);
        replay("answer", check_answer);
    }
}
