//! `/v1/chat/completions`: messages to a prompt, and the shapes of a chat choice.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::ApiError;
use super::logprobs::ChatLogprobs;
use super::request::{MessageBody, Prompt};
use super::running::{Finish, Step};
use super::server::Server;
use super::sse::Format;
use crate::core::Logprobs;
use crate::text::Tokenizer;

/// A message as templates see it.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Message {
    role: &'static str,
    content: String,
}

/// The prompt of a conversation, through the model's chat template.
///
/// # Errors
/// 400 naming the message, or with the template's own reason.
pub(crate) fn prompt(server: &Server, messages: Option<Vec<MessageBody>>) -> Result<Prompt, ApiError> {
    let messages = messages.filter(|messages| !messages.is_empty());
    let messages = messages.ok_or_else(|| ApiError::invalid("messages", "messages must be a non-empty list."))?;
    let template = server.template.as_ref().ok_or_else(|| {
        ApiError::invalid("messages", "This model has no chat template (a base model); use /v1/completions instead.")
    })?;
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| convert(index, message))
        .collect::<Result<Vec<Message>, ApiError>>()?;
    let text = template.render(&messages).map_err(|error| ApiError::invalid("messages", error.to_string()))?;
    Ok(Prompt::Text(text))
}

fn convert(index: usize, message: MessageBody) -> Result<Message, ApiError> {
    let param = |field: &str| format!("messages[{index}].{field}");
    let role = match message.role.as_deref() {
        Some("user") => "user",
        Some("assistant") => "assistant",
        // The name that newer clients give to the system message; templates know only the old one.
        Some("system" | "developer") => "system",
        Some(other) => {
            let message = format!("Role `{other}` is not supported; use system, developer, user or assistant.");
            return Err(ApiError::invalid(param("role"), message));
        }
        None => return Err(ApiError::invalid(param("role"), "Every message needs a role.")),
    };
    if message.tool_calls.is_some_and(|calls| !calls.is_empty()) {
        return Err(ApiError::not_supported(&param("tool_calls"), "Tool calling is"));
    }
    let content = match message.content {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts =
                parts.iter().enumerate().map(|(part, value)| match (value["type"].as_str(), value["text"].as_str()) {
                    (Some("text"), Some(text)) => Ok(text),
                    (Some(kind), _) if kind != "text" => Err(ApiError::not_supported(
                        &param(&format!("content[{part}]")),
                        &format!("Content of type `{kind}` is"),
                    )),
                    _ => Err(ApiError::invalid(
                        param(&format!("content[{part}]")),
                        "A content part needs a type and a text.",
                    )),
                });
            texts.collect::<Result<Vec<&str>, ApiError>>()?.join("\n")
        }
        Some(Value::Null) | None if role == "assistant" => String::new(),
        _ => return Err(ApiError::invalid(param("content"), "content must be a string or a list of text parts.")),
    };
    Ok(Message { role, content })
}

/// Shapes of chat choices.
pub(crate) struct ChatFormat {
    pub tokenizer: Arc<Tokenizer>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ChatDelta {
    index: usize,
    delta: DeltaBody,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct DeltaBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ChatChoice {
    index: usize,
    message: MessageOut,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
struct MessageOut {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

impl Format for ChatFormat {
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";
    type Delta = ChatDelta;
    type Choice = ChatChoice;

    fn deltas(&mut self, step: Step) -> Vec<ChatDelta> {
        let index = step.choice;
        let mut out = Vec::with_capacity(2);
        if step.first {
            let delta = DeltaBody { role: Some("assistant"), content: Some(String::new()) };
            out.push(ChatDelta { index, delta, logprobs: None, finish_reason: None });
        }
        if !step.text.is_empty() || !step.logprobs.is_empty() {
            let delta = DeltaBody { role: None, content: Some(step.text) };
            let logprobs = ChatLogprobs::new(&self.tokenizer, &step.logprobs);
            out.push(ChatDelta { index, delta, logprobs, finish_reason: None });
        }
        if let Some(finish) = step.finish {
            out.push(ChatDelta {
                index,
                delta: DeltaBody::default(),
                logprobs: None,
                finish_reason: Some(finish.as_str()),
            });
        }
        out
    }

    fn choice(&mut self, index: usize, text: String, logprobs: Vec<(u32, Logprobs)>, finish: Finish) -> ChatChoice {
        ChatChoice {
            index,
            message: MessageOut { role: "assistant", content: text, refusal: None },
            logprobs: ChatLogprobs::new(&self.tokenizer, &logprobs),
            finish_reason: finish.as_str(),
        }
    }
}
