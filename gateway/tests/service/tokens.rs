//! Token counts: exact with a tokenizer, learned without.

use super::*;
use scripted::{Filed, file_text};

/// A tokenizer of words, with one special token before every text.
const TOKENIZER: &str = r#"{"version":"1.0","truncation":null,"padding":null,"normalizer":null,"decoder":null,
    "added_tokens":[{"id":1,"content":"[B]","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
    "pre_tokenizer":{"type":"WhitespaceSplit"},
    "post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"[B]","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
        "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
        "special_tokens":{"[B]":{"id":"[B]","ids":[1],"tokens":["[B]"]}}},
    "model":{"type":"WordLevel","vocab":{"[UNK]":0,"[B]":1},"unk_token":"[UNK]"}}"#;

#[test]
fn configured_tokenizer_counts_exactly() {
    let engine = upstream(|mut e| finish(&mut e));
    let dir = stack::scratch().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, TOKENIZER).unwrap();
    let model = format!("[[models]]\nname = \"m\"\ntokenizer = \"{}\"\ntokenizer_bytes_max = 100", path.display());
    let filed = Filed::start(&file_text(&[&engine], "", &model));
    let words = |n: usize| vec!["considerably"; n].join(" ");
    for (body, tokens, exact) in [
        (json!({ "model": "m", "prompt": words(5) }), 6, true),
        (json!({ "model": "m", "prompt": [words(2), words(3)] }), 7, true),
        (json!({ "model": "m", "messages": [{ "role": "user", "content": words(5) }] }), 5, false),
        // 4 bytes a token where nothing is known: another model, and text that is too long to count.
        (json!({ "model": "other", "prompt": words(4) }), 13, false),
        (json!({ "model": "m", "prompt": words(8) }), 26, false),
    ] {
        let told = Raw::post(&filed.gateway.http, "/v1/explain", &[], &body.to_string()).json();
        assert_eq!((&told["prompt_tokens"], &told["prompt_tokens_exact"]), (&json!(tokens), &json!(exact)), "{body}");
    }
    std::fs::write(&path, "{}").unwrap();
    let (status, answer) = filed.reload(&file_text(&[&engine], "", &model));
    assert!(status == 409 && answer["error"].as_str().unwrap().contains("line 3"), "{answer}");
}
