//! `config.json` of Qwen2, Qwen2.5 and Llama checkpoints, as Hugging Face writes it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::rope::{Rope, RopeScaling};

/// Shapes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `architectures[0]`.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Dimension of a head.
    pub head_dim: usize,
    /// Rows of the embedding and of the output layer.
    pub vocab: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Rotary positions.
    pub rope: Rope,
    /// Positions the model was made for.
    pub max_position: usize,
    /// The output layer is the embedding.
    pub tied_embeddings: bool,
    /// Query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Element type of the checkpoint as named there, e.g. `bfloat16`.
    pub torch_dtype: Option<String>,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
}

/// What is wrong with a `config.json`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// File.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// Not JSON, or not an object.
    #[error("{path} is not a JSON object{cause}")]
    Json {
        /// File.
        path: PathBuf,
        /// Where the parser stopped.
        cause: String,
    },
    /// A key is missing or has a value of the wrong kind.
    #[error("{path}: key `{key}`: {problem}")]
    Key {
        /// File.
        path: PathBuf,
        /// Key.
        key: String,
        /// What is wrong.
        problem: String,
    },
}

/// A JSON object with the file it came from, for error messages.
struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError::Key { path: self.path.to_owned(), key: key.to_owned(), problem: problem.into() }
    }

    /// The value, with null as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn size(&self, key: &str) -> Result<usize, ConfigError> {
        let value = self.get(key).ok_or_else(|| self.error(key, "is missing"))?;
        let number = value.as_u64().filter(|&n| (1..=1 << 32).contains(&n));
        number.map(|n| n as usize).ok_or_else(|| self.error(key, format!("want a positive integer, found {value}")))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        if self.get(key).is_some() { self.size(key) } else { Ok(default) }
    }

    fn number(&self, key: &str) -> Result<f64, ConfigError> {
        let value = self.get(key).ok_or_else(|| self.error(key, "is missing"))?;
        let number = value.as_f64().filter(|n| n.is_finite() && *n > 0.0);
        number.ok_or_else(|| self.error(key, format!("want a positive number, found {value}")))
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        if self.get(key).is_some() { self.number(key) } else { Ok(default) }
    }

    fn flag_or(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.error(key, format!("want true or false, found {value}"))),
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }
}

impl ModelConfig {
    /// Reads `config.json` of a checkpoint directory, and the end tokens of its `generation_config.json` if there is one.
    ///
    /// # Errors
    /// [`ConfigError`], naming file and key.
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let mut config = Self::from_json(&path, &read_object(&path)?)?;
        let generation = dir.join("generation_config.json");
        if generation.exists() {
            let map = read_object(&generation)?;
            for id in eos_token_ids(&Fields { path: &generation, map: &map })? {
                if !config.eos_token_ids.contains(&id) {
                    config.eos_token_ids.push(id);
                }
            }
        }
        Ok(config)
    }

    fn from_json(path: &Path, map: &Map<String, Value>) -> Result<Self, ConfigError> {
        let fields = Fields { path, map };
        let architecture = map
            .get("architectures")
            .and_then(|a| a.get(0))
            .and_then(Value::as_str)
            .ok_or_else(|| fields.error("architectures", "is missing"))?;
        let qkv_bias = match architecture {
            "Qwen2ForCausalLM" => true,
            "LlamaForCausalLM" => {
                if fields.flag_or("attention_bias", false)? {
                    return Err(fields.error("attention_bias", "a bias on the output projection is not supported"));
                }
                false
            }
            other => {
                let problem = format!("{other} is not supported; Qwen2ForCausalLM and LlamaForCausalLM are");
                return Err(fields.error("architectures", problem));
            }
        };
        for key in ["mlp_bias", "use_sliding_window"] {
            if fields.flag_or(key, false)? {
                return Err(fields.error(key, "is not supported"));
            }
        }
        if let Some(act) = fields.text("hidden_act").filter(|&a| a != "silu") {
            return Err(fields.error("hidden_act", format!("{act} is not supported; silu is")));
        }
        let hidden = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        let kv_heads = fields.size_or("num_key_value_heads", heads)?;
        if heads % kv_heads != 0 {
            return Err(fields.error("num_key_value_heads", format!("{kv_heads} does not divide {heads} query heads")));
        }
        let head_dim = fields.size_or("head_dim", hidden / heads)?;
        if head_dim % 2 != 0 || head_dim == 0 {
            return Err(fields.error("head_dim", format!("{head_dim} cannot be rotated in halves")));
        }
        Ok(Self {
            architecture: architecture.to_owned(),
            hidden,
            intermediate: fields.size("intermediate_size")?,
            layers: fields.size("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            vocab: fields.size("vocab_size")?,
            rms_norm_eps: fields.number("rms_norm_eps")?,
            rope: rope(&fields)?,
            max_position: fields.size("max_position_embeddings")?,
            tied_embeddings: fields.flag_or("tie_word_embeddings", false)?,
            qkv_bias,
            torch_dtype: fields.text("torch_dtype").or_else(|| fields.text("dtype")).map(str::to_owned),
            eos_token_ids: eos_token_ids(&fields)?,
        })
    }

    /// Elements of one token's key, or value, of one layer.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Rows of the fused query, key and value projection.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>, ConfigError> {
    let text = fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ConfigError::Json { path: path.to_owned(), cause: String::new() }),
        Err(e) => Err(ConfigError::Json { path: path.to_owned(), cause: format!(": {e}") }),
    }
}

/// `eos_token_id`: absent, one number, or several.
fn eos_token_ids(fields: &Fields<'_>) -> Result<Vec<u32>, ConfigError> {
    let values = match fields.get("eos_token_id") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    let ids: Option<Vec<u32>> = values.iter().map(id).collect();
    ids.ok_or_else(|| fields.error("eos_token_id", "want a token number or a list of them"))
}

/// Rotary parameters: `rope_parameters` as newer checkpoints write them, else `rope_theta` and `rope_scaling`.
fn rope(fields: &Fields<'_>) -> Result<Rope, ConfigError> {
    let nested = ["rope_parameters", "rope_scaling"]
        .into_iter()
        .find_map(|key| Some((key, fields.get(key)?.as_object()?)))
        .map(|(key, map)| (key, Fields { path: fields.path, map }));
    let theta = match &nested {
        Some((_, inner)) if inner.get("rope_theta").is_some() => inner.number("rope_theta")?,
        _ => fields.number_or("rope_theta", 10_000.0)?,
    };
    let scaling = match &nested {
        None => RopeScaling::None,
        Some((key, inner)) => match inner.text("rope_type").or_else(|| inner.text("type")).unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: inner.number("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: inner.number("factor")?,
                low_freq_factor: inner.number("low_freq_factor")?,
                high_freq_factor: inner.number("high_freq_factor")?,
                original_max_position: inner.size("original_max_position_embeddings")?,
            },
            other => {
                return Err(
                    fields.error(key, format!("rope type `{other}` is not supported; default, linear, llama3 are"))
                );
            }
        },
    };
    Ok(Rope { theta, scaling })
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN: &str = r#"{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "max_position_embeddings": 512, "eos_token_id": 7,
        "hidden_act": "silu", "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false}"#;

    fn parse(text: &str) -> Result<ModelConfig, ConfigError> {
        let Value::Object(map) = serde_json::from_str(text).unwrap() else { panic!("an object") };
        ModelConfig::from_json(Path::new("config.json"), &map)
    }

    fn with(key: &str, value: Value) -> Result<ModelConfig, ConfigError> {
        let Value::Object(mut map) = serde_json::from_str(QWEN).unwrap() else { panic!("an object") };
        map.insert(key.to_owned(), value);
        ModelConfig::from_json(Path::new("config.json"), &map)
    }

    #[test]
    fn qwen2_has_biases_and_its_head_dimension_follows() {
        let config = parse(QWEN).unwrap();
        assert!(config.qkv_bias && config.tied_embeddings);
        assert_eq!((config.head_dim, config.kv_width(), config.qkv_width()), (16, 32, 128));
        assert_eq!(config.eos_token_ids, [7]);
        assert_eq!(config.rope, Rope { theta: 1e6, scaling: RopeScaling::None });
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        let new = serde_json::json!({"rope_type": "default", "rope_theta": 5e5});
        assert_eq!(with("rope_parameters", new).unwrap().rope.theta, 5e5);
        let old = serde_json::json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        let rope = with("rope_scaling", old).unwrap().rope;
        assert_eq!(rope.theta, 1e6);
        assert!(matches!(rope.scaling, RopeScaling::Llama3 { original_max_position: 8192, .. }));
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (key, value) in [
            ("architectures", serde_json::json!(["GPT2LMHeadModel"])),
            ("use_sliding_window", serde_json::json!(true)),
            ("hidden_act", serde_json::json!("gelu")),
            ("rope_scaling", serde_json::json!({"type": "yarn", "factor": 4.0})),
            ("num_key_value_heads", serde_json::json!(3)),
            ("hidden_size", serde_json::json!("wide")),
            ("eos_token_id", serde_json::json!("</s>")),
        ] {
            let error = with(key, value).unwrap_err().to_string();
            assert!(error.contains("config.json") && error.contains(key), "{error}");
        }
    }
}
