//! Conversations to prompts: the checkpoint's own Jinja template.
//!
//! Templates are written for Python's Jinja2 as Hugging Face configures it: blocks trimmed, string and dictionary methods
//! called Python's way, `raise_exception` to refuse a conversation, `tojson` without HTML escaping. A template is compiled
//! once and is trusted as far as the checkpoint is.

use std::path::{Path, PathBuf};

use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;

/// Why a conversation has no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file of the checkpoint cannot be used.
    #[error("cannot use the chat template of {path}: {message}", path = path.display())]
    Unusable {
        /// File.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// The template refused the conversation or does not know what to do with it; the message is the template's.
    #[error("{0}")]
    Refused(String),
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// The format of Qwen and many others: for models without weights that have no template of their own.
const CHATML: &str = "{% for message in messages %}\
    {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Reads `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`. `None`: this checkpoint has none (a base
    /// model), so there is no chat.
    ///
    /// # Errors
    /// [`TemplateError::Unusable`] for a file that exists and cannot be read, parsed or compiled.
    pub fn load(dir: &Path) -> Result<Option<Self>, TemplateError> {
        let config_path = dir.join("tokenizer_config.json");
        let config = match read_if_there(&config_path)? {
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| TemplateError::Unusable { path: config_path.clone(), message: error.to_string() })?,
            None => serde_json::Value::Null,
        };
        let jinja_path = dir.join("chat_template.jinja");
        let (path, source) = match read_if_there(&jinja_path)? {
            Some(source) => (jinja_path, source),
            None => match source_in(&config["chat_template"]) {
                Some(source) => (config_path, source.to_owned()),
                None => return Ok(None),
            },
        };
        let mut template =
            Self::compile(source).map_err(|error| TemplateError::Unusable { path, message: describe(&error) })?;
        template.bos_token = token_text(&config["bos_token"]);
        template.eos_token = token_text(&config["eos_token"]);
        Ok(Some(template))
    }

    /// The ChatML format.
    pub fn chatml() -> Self {
        Self::compile(CHATML.to_owned()).expect("the built-in template compiles")
    }

    fn compile(source: String) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", |value: Value| {
            serde_json::to_string(&value).map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        environment.add_template_owned(NAME, source)?;
        Ok(Self { environment, bos_token: None, eos_token: None })
    }

    /// The prompt that asks for the assistant's next message. `messages` serialises as a list of objects with string
    /// `role` and `content`.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] with the template's own reason.
    pub fn render(&self, messages: &impl Serialize) -> Result<String, TemplateError> {
        let render = || {
            self.environment.get_template(NAME)?.render(context! {
                messages => Value::from_serialize(messages),
                add_generation_prompt => true,
                ..context_of_tokens(self.bos_token.as_deref(), self.eos_token.as_deref())
            })
        };
        render().map_err(|error| TemplateError::Refused(describe(&error)))
    }
}

/// Only the tokens that the checkpoint names: templates test whether `bos_token` is defined.
fn context_of_tokens(bos_token: Option<&str>, eos_token: Option<&str>) -> Value {
    [("bos_token", bos_token), ("eos_token", eos_token)]
        .into_iter()
        .filter_map(|(name, token)| token.map(|token| (name, Value::from(token))))
        .collect()
}

fn describe(error: &Error) -> String {
    match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.to_string(),
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>, TemplateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TemplateError::Unusable { path: path.to_path_buf(), message: error.to_string() }),
    }
}

/// A template is a string, or a list of `{name, template}` of which `default` counts.
fn source_in(value: &serde_json::Value) -> Option<&str> {
    match value {
        serde_json::Value::String(source) => Some(source),
        serde_json::Value::Array(entries) => {
            let named = entries.iter().find(|entry| entry["name"] == "default").or(entries.first())?;
            named["template"].as_str()
        }
        _ => None,
    }
}

/// A special token is a string or an object with `content`.
fn token_text(value: &serde_json::Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// In the manner of Qwen2.5: default system prompt, an empty tools branch, parenthesised conditions on undefined keys.
    const QWEN_STYLE: &str = r#"{%- if tools %}
    {{- '# Tools\n' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nBe helpful.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- 'calls ' + message.tool_calls | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"#;

    /// In the manner of Llama: begin-of-text, alternation enforced, Python string methods, a namespace.
    const LLAMA_STYLE: &str = r#"{{ bos_token }}
{%- set ns = namespace(count=0) %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- set ns.count = ns.count + 1 %}
    {{- '<|start|>' + message['role'].upper() + '\n' + message['content'].strip().split('|')[-1] + '<|eot|>' }}
{%- endfor %}
{%- if messages[-1].content.startswith('hi') %}{{ '[greeting]' }}{% endif %}
{{- ns.count }}"#;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::compile(source.to_owned()).expect("compiles")
    }

    #[test]
    fn qwen_style_templates_render_with_and_without_a_system_message() {
        let template = template(QWEN_STYLE);
        let cases = [
            (
                json!([{"role": "user", "content": "hi"}]),
                "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                json!([{"role": "system", "content": "Terse."}, {"role": "user", "content": "a <b> & 'c'"},
                       {"role": "assistant", "content": "ok"}, {"role": "user", "content": "你好"}]),
                "<|im_start|>system\nTerse.<|im_end|>\n<|im_start|>user\na <b> & 'c'<|im_end|>\n\
                 <|im_start|>assistant\nok<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n",
            ),
        ];
        for (messages, expected) in cases {
            assert_eq!(template.render(&messages).expect("renders"), expected);
        }
    }

    #[test]
    fn python_methods_namespaces_and_refusals_work() {
        let mut template = template(LLAMA_STYLE);
        template.bos_token = Some("<s>".to_owned());
        let prompt = template.render(&json!([{"role": "user", "content": " hi|there \n"}])).expect("renders");
        assert_eq!(prompt, "<s><|start|>USER\nthere<|eot|>1");
        let prompt = template.render(&json!([{"role": "user", "content": "hi"}])).expect("renders");
        assert_eq!(prompt, "<s><|start|>USER\nhi<|eot|>[greeting]1");
        let refused = template.render(&json!([{"role": "assistant", "content": "x"}])).expect_err("refuses");
        assert_eq!(refused.to_string(), "roles must alternate user/assistant");
    }

    #[test]
    fn tojson_writes_plain_json() {
        let prompt = template(QWEN_STYLE)
            .render(&json!([{"role": "system", "content": "s"},
                            {"role": "assistant", "content": "", "tool_calls": [{"q": "a<b>"}]}]))
            .expect("renders");
        assert!(prompt.contains(r#"calls [{"q":"a<b>"}]"#), "{prompt}");
    }

    #[test]
    fn templates_are_found_where_checkpoints_keep_them() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(ChatTemplate::load(dir.path()).expect("nothing is no error").is_none());

        let config = dir.path().join("tokenizer_config.json");
        std::fs::write(&config, json!({"chat_template": null}).to_string()).expect("writes");
        assert!(ChatTemplate::load(dir.path()).expect("null is no error").is_none());

        let render = || {
            let template = ChatTemplate::load(dir.path()).expect("loads").expect("there is one");
            template.render(&json!([{"role": "user", "content": "x"}])).expect("renders")
        };
        let named =
            json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}list"}]);
        std::fs::write(&config, json!({"chat_template": named, "bos_token": {"content": "<s>"}}).to_string())
            .expect("writes");
        assert_eq!(render(), "<s>list");

        std::fs::write(dir.path().join("chat_template.jinja"), "file {{ bos_token }}").expect("writes");
        assert_eq!(render(), "file <s>");

        std::fs::write(dir.path().join("chat_template.jinja"), "{% if %}").expect("writes");
        let error = ChatTemplate::load(dir.path()).expect_err("does not compile").to_string();
        assert!(error.contains("chat_template.jinja"), "{error}");
    }

    #[test]
    fn the_built_in_format_is_chatml() {
        let prompt = ChatTemplate::chatml()
            .render(&json!([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]))
            .expect("renders");
        assert_eq!(prompt, "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n");
    }
}
