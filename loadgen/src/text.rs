//! Requests out of files of texts: ShareGPT conversations and JSON lines.
//!
//! Their lengths in tokens are the server's to count; what is planned is a guess that a report says is one. Pure.

use serde_json::{Value, json};

use crate::dataset::{Planned, TraceError};
use crate::prompt::{Prompt, text_tokens};

/// A conversation's turns, each to be sent when the answer before it has come.
pub type Session = Vec<Planned>;

/// Reads ShareGPT's JSON: a list of `{"conversations": [{"from": "human", "value": …}, {"from": "gpt", …}, …]}`.
///
/// With `multi_turn` each question is a turn that carries what was said before it; else the first question alone. The recorded
/// answer gives the number of tokens to ask for. Conversations that do not begin with a question and an answer are left out, as
/// in vLLM.
///
/// # Errors
/// If it is no such list, or holds no conversation.
pub fn sharegpt(text: &str, multi_turn: bool) -> Result<Vec<Session>, TraceError> {
    let wrong = |what: &str| TraceError::Line { line: 1, what: what.to_owned() };
    let value: Value = serde_json::from_str(text).map_err(|e| wrong(&format!("not JSON: {e}")))?;
    let list = value.as_array().ok_or_else(|| wrong("want ShareGPT's list of conversations"))?;
    let sessions: Vec<Session> = list.iter().filter_map(|c| conversation(c, multi_turn)).collect();
    if sessions.is_empty() { Err(TraceError::Empty) } else { Ok(sessions) }
}

fn conversation(value: &Value, multi_turn: bool) -> Option<Session> {
    let said: Vec<(&str, &str)> = value["conversations"]
        .as_array()?
        .iter()
        .map(|m| Some((m["from"].as_str()?, m["value"].as_str()?)))
        .collect::<Option<_>>()?;
    let role = |from: &str| match from {
        "human" | "user" => Some("user"),
        "gpt" | "chatgpt" | "assistant" => Some("assistant"),
        "system" => Some("system"),
        _ => None,
    };
    let mut before: Vec<Value> = Vec::new();
    let mut turns = Vec::new();
    for pair in said.windows(2) {
        let ((from, question), (next, answer)) = (pair[0], pair[1]);
        before.push(json!({ "role": role(from)?, "content": question }));
        if role(from)? == "user" && role(next)? == "assistant" {
            let prompt = match multi_turn {
                true => Prompt::Messages(Value::Array(before.clone())),
                false => Prompt::Text(question.to_owned()),
            };
            turns.push(Planned::new(0.0, prompt, text_tokens(answer)));
            if !multi_turn {
                break;
            }
        }
    }
    (!turns.is_empty()).then_some(turns)
}

/// Reads JSON lines: `{"prompt": text or token ids}` or `{"messages": […]}`, with `output_tokens` (or `max_tokens`) if it shall
/// not be `output_tokens`.
///
/// # Errors
/// The first line that is none, with its number.
pub fn json_lines(text: &str, output_tokens: u32) -> Result<Vec<Planned>, TraceError> {
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let planned: Vec<Planned> = lines
        .map(|(index, line)| json_line(line, output_tokens).map_err(|what| TraceError::Line { line: index + 1, what }))
        .collect::<Result<_, _>>()?;
    if planned.is_empty() { Err(TraceError::Empty) } else { Ok(planned) }
}

fn json_line(line: &str, output_tokens: u32) -> Result<Planned, String> {
    let mut value: Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
    let output = ["output_tokens", "max_tokens"].iter().find_map(|key| value.get(key)?.as_u64());
    let mut take = |key: &str| value.get_mut(key).map(Value::take).unwrap_or_default();
    let prompt = match (take("prompt"), take("messages")) {
        (Value::String(text), _) => Prompt::Text(text),
        (ids @ Value::Array(_), _) => {
            Prompt::Ids(serde_json::from_value(ids).map_err(|e| format!("`prompt` is no list of token ids: {e}"))?)
        }
        (_, messages @ Value::Array(_)) => Prompt::Messages(messages),
        _ => return Err("want `prompt`, a text or token ids, or `messages`".into()),
    };
    Ok(Planned::new(0.0, prompt, output.map_or(output_tokens, |n| n as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHATS: &str = r#"[
        {"conversations": [{"from": "gpt", "value": "I begin"}]},
        {"conversations": [
            {"from": "human", "value": "What is prefill?"}, {"from": "gpt", "value": "The first pass."},
            {"from": "human", "value": "And decode?"}, {"from": "gpt", "value": "Every pass after it, a token each."}]}
    ]"#;

    #[test]
    fn conversations_become_questions_or_turns() {
        let single = sharegpt(CHATS, false).unwrap();
        assert_eq!(single, [vec![Planned::new(0.0, Prompt::Text("What is prefill?".into()), 4)]]);
        let turns = &sharegpt(CHATS, true).unwrap()[0];
        assert_eq!(turns.len(), 2);
        let Prompt::Messages(second) = &turns[1].prompt else { panic!("{turns:?}") };
        let roles: Vec<&str> = second.as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant", "user"], "a turn carries what was said before it");
    }

    #[test]
    fn lines_of_every_kind() {
        let text = "{\"prompt\": \"abcdefgh\"}\n\n{\"prompt\": [1, 2, 3], \"output_tokens\": 7}\n{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"max_tokens\": 2}\n";
        let lines = json_lines(text, 16).unwrap();
        let shape: Vec<(u32, u32)> = lines.iter().map(|p| (p.prompt_tokens, p.output_tokens)).collect();
        assert_eq!(shape, [(2, 16), (3, 7), (1, 2)]);
    }

    #[test]
    fn bad_files_are_named() {
        for (text, want) in [
            ("{\"x\": 1}", "line 1: want `prompt`"),
            ("{\"prompt\": [\"a\"]}", "no list of token ids"),
            ("\n", "no request"),
        ] {
            let error = json_lines(text, 1).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        assert!(sharegpt("{}", false).unwrap_err().to_string().contains("list of conversations"));
        assert_eq!(sharegpt("[]", false), Err(TraceError::Empty));
    }
}
