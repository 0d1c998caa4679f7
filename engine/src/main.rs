//! `engine`: arguments in, pieces built, serving until a signal. No policy lives here.
//!
//! Order of the start, so that the cheapest mistakes are found first: arguments, port, tokenizer and template, device and
//! weights, then the tokenizer is bound to the model's vocabulary. The port is taken at once but answers only when the
//! engine can serve; then one line `ready http://…` goes to standard output, everything else to standard error.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser};
use engine::api::{KEEP_ALIVE, Server, ServerConfig, serve};
use engine::core::{Dtype, EngineConfig, EngineHandle, Health, KvCacheSize, LoadFormat, ModelSource};
use engine::text::{ChatTemplate, Tokenizer};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// Where the tokenizer of models without one is looked for, below the working directory and above the executable.
const FALLBACK_TOKENIZER: &str = "models/tiny-qwen2";
/// How far above the executable (`target/release/engine`) that directory may be.
const FALLBACK_LEVELS_MAX: usize = 4;

/// An OpenAI-compatible serving engine for causal language models on AscendCL.
#[derive(Debug, Parser)]
#[command(name = "engine", version, about)]
struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    scheduling: SchedulingArguments,
    #[command(flatten)]
    serving: ServingArguments,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
struct ModelArguments {
    /// Checkpoint directory: config.json, *.safetensors, tokenizer.json
    #[arg(long, value_name = "DIR", required_unless_present = "model_preset", conflicts_with = "model_preset")]
    model: Option<PathBuf>,
    /// Built-in model shapes without weights, e.g. qwen2.5-7b
    #[arg(long, value_name = "NAME")]
    model_preset: Option<String>,
    /// auto reads the weights; dummy allocates them without reading, for timing [default: auto; dummy for a preset]
    #[arg(long, value_name = "auto|dummy", value_parser = load_format)]
    load_format: Option<LoadFormat>,
    /// Element type of weights and activations; auto is the checkpoint's
    #[arg(long, value_name = "auto|float32|bfloat16|float16", default_value = "auto", value_parser = dtype)]
    dtype: DtypeChoice,
    /// Directory with tokenizer.json and tokenizer_config.json, if not the checkpoint's own
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Names that requests may use for the model; the first is listed [default: the directory's or preset's name]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    served_model_name: Vec<String>,
    /// Device index
    #[arg(long, default_value_t = 0)]
    device: i32,
    /// AscendCL runtime library, by name or path [default: libascendcl.so]
    #[arg(long, value_name = "LIB")]
    acl_library: Option<String>,
    /// AscendCL operator library, by name or path [default: libopapi.so]
    #[arg(long, value_name = "LIB")]
    op_library: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Scheduling and memory")]
struct SchedulingArguments {
    /// Most sequences in a decode step [default: 64]
    #[arg(long, value_name = "N")]
    max_num_seqs: Option<usize>,
    /// Most tokens of a sequence, prompt included [default: the model's, or what the KV cache holds]
    #[arg(long, value_name = "N")]
    max_model_len: Option<usize>,
    /// Tokens of a KV block [default: 128]
    #[arg(long, value_name = "N")]
    block_size: Option<usize>,
    /// Share of device memory for weights and KV cache together [default: 0.9]
    #[arg(long, value_name = "F", group = "kv_size")]
    gpu_memory_utilization: Option<f64>,
    /// Size of the KV cache, e.g. 4294967296 or 4GiB
    #[arg(long, value_name = "BYTES", group = "kv_size", value_parser = bytes)]
    kv_cache_memory_bytes: Option<u64>,
    /// Size of the KV cache in blocks
    #[arg(long, value_name = "N", group = "kv_size", alias = "num-gpu-blocks-override")]
    num_kv_blocks: Option<usize>,
    /// Split long prompts over several prefill steps
    #[arg(long, overrides_with = "no_enable_chunked_prefill")]
    enable_chunked_prefill: bool,
    /// Do not split prompts
    #[arg(long, overrides_with = "enable_chunked_prefill")]
    no_enable_chunked_prefill: bool,
    /// Run decode and pieces of prompts in one step, on one stream
    #[arg(long)]
    mixed_batches: bool,
    /// Most tokens of a prefill step [default: 8192]
    #[arg(long, value_name = "N")]
    max_num_batched_tokens: Option<usize>,
    /// Sequences that may be prefilled ahead of a free decode slot [default: 0]
    #[arg(long, value_name = "N")]
    prefill_ahead: Option<usize>,
    /// Requests that may wait; one more is refused with 429 [default: 4096]
    #[arg(long, value_name = "N")]
    max_waiting: Option<usize>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Serving")]
struct ServingArguments {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Seconds that running requests get to finish after SIGINT or SIGTERM
    #[arg(long, value_name = "S", default_value_t = 5)]
    shutdown_grace_s: u64,
    /// Seconds between a failure that ends the engine (all answers are 503 then) and the end of the process
    #[arg(long, value_name = "S", default_value_t = 30)]
    failed_exit_delay_s: u64,
}

fn load_format(text: &str) -> Result<LoadFormat, String> {
    match text {
        "auto" => Ok(LoadFormat::Auto),
        "dummy" => Ok(LoadFormat::Dummy),
        _ => Err("expected auto or dummy".to_owned()),
    }
}

/// `None` is the checkpoint's own. (A named type, because `clap` gives a plain `Option` another meaning.)
#[derive(Debug, Clone, Copy)]
struct DtypeChoice(Option<Dtype>);

fn dtype(text: &str) -> Result<DtypeChoice, String> {
    match (text, Dtype::by_name(text)) {
        ("auto", _) => Ok(DtypeChoice(None)),
        (_, Some(dtype)) => Ok(DtypeChoice(Some(dtype))),
        (_, None) => Err("expected auto, float32, bfloat16 or float16".to_owned()),
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        unit => return Err(format!("unknown unit {unit}; use KiB, MiB or GiB")),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number of bytes, e.g. 4294967296 or 4GiB".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too many bytes".to_owned())
}

impl Arguments {
    fn engine_config(&self) -> EngineConfig {
        let source = match (&self.model.model, &self.model.model_preset) {
            (Some(dir), _) => ModelSource::Dir(dir.clone()),
            (None, preset) => ModelSource::Preset(preset.clone().unwrap_or_default()),
        };
        let mut config = EngineConfig::new(source);
        let (model, scheduling) = (&self.model, &self.scheduling);
        config.dtype = model.dtype.0;
        config.device = model.device;
        config.max_model_len = scheduling.max_model_len;
        config.enable_chunked_prefill = scheduling.enable_chunked_prefill;
        config.mixed_batches = scheduling.mixed_batches;
        replace(&mut config.load_format, &model.load_format);
        replace(&mut config.acl_library, &model.acl_library);
        replace(&mut config.op_library, &model.op_library);
        replace(&mut config.max_num_seqs, &scheduling.max_num_seqs);
        replace(&mut config.block_size, &scheduling.block_size);
        replace(&mut config.max_num_batched_tokens, &scheduling.max_num_batched_tokens);
        replace(&mut config.prefill_ahead, &scheduling.prefill_ahead);
        replace(&mut config.max_waiting, &scheduling.max_waiting);
        replace(&mut config.kv_cache, &scheduling.gpu_memory_utilization.map(KvCacheSize::MemoryUtilization));
        replace(&mut config.kv_cache, &scheduling.kv_cache_memory_bytes.map(KvCacheSize::Bytes));
        replace(&mut config.kv_cache, &scheduling.num_kv_blocks.map(KvCacheSize::Blocks));
        config
    }

    /// Names that requests may use, and where the model came from.
    fn names(&self) -> (Vec<String>, String) {
        let root = match (&self.model.model, &self.model.model_preset) {
            (Some(dir), _) => dir.display().to_string(),
            (None, preset) => preset.clone().unwrap_or_default(),
        };
        if !self.model.served_model_name.is_empty() {
            return (self.model.served_model_name.clone(), root);
        }
        let path = Path::new(&root);
        let last = path
            .canonicalize()
            .ok()
            .as_deref()
            .unwrap_or(path)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let mut names: Vec<String> = last.into_iter().chain([root.clone()]).collect();
        names.dedup();
        (names, root)
    }
}

fn replace<T: Clone>(field: &mut T, given: &Option<T>) {
    if let Some(value) = given {
        *field = value.clone();
    }
}

/// The model's way with text, not yet bound to its vocabulary.
struct Text {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Text {
    fn load(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { tokenizer: Tokenizer::load(dir)?, template: ChatTemplate::load(dir)? })
    }

    /// Of a model without weights that has no tokenizer: the one that ships with the project, else single bytes.
    fn fallback() -> anyhow::Result<Self> {
        let executable = std::env::current_exe().unwrap_or_default();
        let above = executable.ancestors().skip(1).take(FALLBACK_LEVELS_MAX).map(|dir| dir.join(FALLBACK_TOKENIZER));
        let found = [PathBuf::from(FALLBACK_TOKENIZER)]
            .into_iter()
            .chain(above)
            .find(|dir| dir.join("tokenizer.json").is_file());
        let mut text = match found {
            Some(dir) => {
                tracing::info!(dir = %dir.display(), "no tokenizer of its own; using");
                Self::load(&dir)?
            }
            None => {
                tracing::info!("no tokenizer of its own; every byte is a token");
                Self { tokenizer: Tokenizer::bytes(), template: None }
            }
        };
        text.template.get_or_insert_with(ChatTemplate::chatml);
        Ok(text)
    }

    fn of(model: &ModelArguments, config: &EngineConfig) -> anyhow::Result<Self> {
        let dummy = config.load_format == LoadFormat::Dummy;
        match (&model.tokenizer, &model.model) {
            (Some(dir), _) => Self::load(dir).context("--tokenizer"),
            (None, Some(dir)) if !dummy || dir.join("tokenizer.json").is_file() => Self::load(dir),
            _ => Self::fallback(),
        }
    }
}

/// Takes the port without answering on it yet.
async fn bind(host: &str, port: u16) -> anyhow::Result<TcpSocket> {
    let address: SocketAddr = tokio::net::lookup_host((host, port))
        .await
        .with_context(|| format!("cannot resolve --host {host}"))?
        .next()
        .with_context(|| format!("--host {host} has no address"))?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).map_err(|error| in_use(error, address))?;
    Ok(socket)
}

fn in_use(error: std::io::Error, address: SocketAddr) -> anyhow::Error {
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => " (another program listens there; choose another --port, or 0 for a free one)",
        _ => "",
    };
    anyhow::anyhow!("cannot listen on {address}: {error}{hint}")
}

/// Resolves at the first SIGINT or SIGTERM. A second one ends the process at once.
fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut stop = Some(stop);
        loop {
            let code = tokio::select! {
                _ = interrupt.recv() => 130,
                _ = terminate.recv() => 143,
            };
            match stop.take() {
                Some(stop) => drop(stop.send(())),
                None => std::process::exit(code),
            }
        }
    });
    Ok(async move { drop(stopped.await) })
}

/// Resolves some time after the engine has failed for good.
async fn failed(engine: EngineHandle, delay: Duration) {
    let mut health = engine.health();
    if health.wait_for(|health| matches!(health, Health::Failed { .. })).await.is_ok() {
        tracing::error!(exit_in_s = delay.as_secs(), "the engine has failed and answers 503 until it ends");
        tokio::time::sleep(delay).await;
    } else {
        std::future::pending::<()>().await;
    }
}

/// Every stream is an open file, and the usual limit of 1024 is fewer than the streams this engine serves. Raises it as far
/// as the system allows.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, ..limit };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, limit = ?limit.current, "cannot raise the limit on open files");
        }
    }
}

async fn run(arguments: Arguments, stop: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
    let config = arguments.engine_config();
    let (model_names, model_root) = arguments.names();
    if let Some(dir) = arguments.model.model.as_ref().filter(|dir| !dir.is_dir()) {
        bail!("--model {} is not a directory", dir.display());
    }
    let serving = arguments.serving;
    let socket = bind(&serving.host, serving.port).await?;
    // What is wrong with the checkpoint itself is the better answer, so a missing tokenizer is an error only after it.
    let text = Text::of(&arguments.model, &config);
    if let Err(error) = &text {
        tracing::warn!("the engine will not start: {error:#}");
    }

    let since = std::time::Instant::now();
    let mut stop = Box::pin(stop);
    let starting = tokio::task::spawn_blocking(move || engine::core::start(config));
    let engine = tokio::select! {
        engine = starting => engine.context("starting the engine")??,
        // A device call in progress cannot be interrupted, but the process can end.
        () = &mut stop => std::process::exit(130),
    };
    let info = engine.info();
    let Text { tokenizer, template } = text?;
    let tokenizer = match info.dummy {
        true => tokenizer.for_dummy_model(info.vocab_size),
        false => tokenizer.for_model(info.vocab_size),
    }?;
    tracing::info!(model = model_names[0], device = info.soc_name, dtype = info.dtype, max_model_len = info.max_model_len,
        dummy = info.dummy, took = ?since.elapsed(), "loaded");

    let server = Server::new(ServerConfig {
        engine: engine.clone(),
        tokenizer,
        template,
        model_names,
        model_root,
        keep_alive: KEEP_ALIVE,
    });
    let listener = listen(socket)?;
    println!("ready http://{}", listener.local_addr()?);
    std::io::stdout().flush()?;

    let failed = failed(engine.clone(), Duration::from_secs(serving.failed_exit_delay_s));
    let health = engine.health();
    let (failure, has_failed) = tokio::sync::oneshot::channel();
    let stop = async move {
        tokio::select! {
            () = stop => tracing::info!("stopping"),
            () = failed => {}
        }
        // Read now: the shutdown that follows turns it into `Stopped`.
        if matches!(&*health.borrow(), Health::Failed { .. }) {
            // Cannot fail: the receiver lives until the end of this function.
            let _ = failure.send(());
        }
    };
    serve(server, listener, stop, Duration::from_secs(serving.shutdown_grace_s)).await.context("serving")?;
    match has_failed.await {
        Ok(()) => bail!("the engine has failed"),
        Err(_) => Ok(()),
    }
}

fn listen(socket: TcpSocket) -> anyhow::Result<TcpListener> {
    let address = socket.local_addr()?;
    socket.listen(BACKLOG).map_err(|error| in_use(error, address))
}

fn main() -> ExitCode {
    // First of all: the first process of a container does not get a signal that nobody has asked for, and `docker stop` would wait for
    // its whole grace.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.and_then(|runtime| {
        let entered = runtime.enter();
        let stop = stop_signal()?;
        drop(entered);
        Ok((runtime, stop))
    });
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    raise_open_files();
    let (runtime, stop) = match runtime {
        Ok(ready) => ready,
        Err(error) => {
            eprintln!("error: cannot start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(arguments, stop)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Arguments, String> {
        let words = std::iter::once("engine").chain(arguments.split_whitespace());
        Arguments::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_map_onto_the_configuration() {
        let config = |arguments: &str| parse(arguments).expect(arguments).engine_config();
        let dir = EngineConfig::new(ModelSource::Dir("m".into()));
        let preset = EngineConfig::new(ModelSource::Preset("qwen2.5-7b".into()));
        let cases = [
            ("--model m", dir.clone()),
            ("--model m --load-format dummy", EngineConfig { load_format: LoadFormat::Dummy, ..dir.clone() }),
            ("--model m --dtype bfloat16", EngineConfig { dtype: Some(Dtype::BFloat16), ..dir.clone() }),
            ("--model m --dtype auto --device 3", EngineConfig { device: 3, ..dir.clone() }),
            ("--model-preset qwen2.5-7b", preset.clone()),
            (
                "--model m --max-num-seqs 4 --max-model-len 512 --block-size 16 --max-num-batched-tokens 99 --prefill-ahead 2",
                EngineConfig {
                    max_num_seqs: 4,
                    max_model_len: Some(512),
                    block_size: 16,
                    max_num_batched_tokens: 99,
                    prefill_ahead: 2,
                    ..dir.clone()
                },
            ),
            ("--model m --enable-chunked-prefill", EngineConfig { enable_chunked_prefill: true, ..dir.clone() }),
            ("--model m --enable-chunked-prefill --no-enable-chunked-prefill", dir.clone()),
            (
                "--model m --gpu-memory-utilization 0.5",
                EngineConfig { kv_cache: KvCacheSize::MemoryUtilization(0.5), ..dir.clone() },
            ),
            (
                "--model m --kv-cache-memory-bytes 2GiB",
                EngineConfig { kv_cache: KvCacheSize::Bytes(2 << 30), ..dir.clone() },
            ),
            ("--model m --num-kv-blocks 60", EngineConfig { kv_cache: KvCacheSize::Blocks(60), ..dir.clone() }),
            (
                "--model m --acl-library a.so --op-library b.so --max-waiting 7",
                EngineConfig { acl_library: "a.so".into(), op_library: "b.so".into(), max_waiting: 7, ..dir.clone() },
            ),
        ];
        for (arguments, expected) in cases {
            assert_eq!(config(arguments), expected, "{arguments}");
        }
    }

    #[test]
    fn defaults_in_the_help_are_the_real_ones() {
        use clap::CommandFactory;
        let help = Arguments::command().render_long_help().to_string().replace(['\n', ' '], "");
        let defaults = EngineConfig::new(ModelSource::Dir(PathBuf::new()));
        for (text, value) in [
            ("sequences in a decode step", defaults.max_num_seqs.to_string()),
            ("Tokens of a KV block", defaults.block_size.to_string()),
            ("tokens of a prefill step", defaults.max_num_batched_tokens.to_string()),
            ("ahead of a free decode slot", defaults.prefill_ahead.to_string()),
            ("refused with 429", defaults.max_waiting.to_string()),
            ("runtime library, by name or path", defaults.acl_library),
            ("operator library, by name or path", defaults.op_library),
        ] {
            let line = format!("{text} [default: {value}]").replace(' ', "");
            assert!(help.contains(&line), "no {line} in the help");
        }
    }

    #[test]
    fn wrong_flags_are_explained() {
        let cases = [
            ("", "--model"),
            ("--model a --model-preset b", "cannot be used with"),
            ("--model a --dtype int8", "expected auto, float32, bfloat16 or float16"),
            ("--model a --load-format fast", "expected auto or dummy"),
            ("--model a --kv-cache-memory-bytes 4parsecs", "use KiB, MiB or GiB"),
            ("--model a --num-kv-blocks 4 --gpu-memory-utilization 0.5", "cannot be used with"),
        ];
        for (arguments, message) in cases {
            let error = parse(arguments).expect_err(arguments);
            assert!(error.contains(message), "{arguments}: {error}");
        }
    }

    #[test]
    fn a_model_is_served_under_its_directory_and_its_path_unless_named() {
        let names = |arguments: &str| parse(arguments).expect(arguments).names();
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        assert_eq!(names("--model some/tiny"), (owned(&["tiny", "some/tiny"]), "some/tiny".to_owned()));
        assert_eq!(names("--model-preset p"), (owned(&["p"]), "p".to_owned()));
        assert_eq!(names("--model some/tiny --served-model-name a b"), (owned(&["a", "b"]), "some/tiny".to_owned()));
    }

    #[tokio::test]
    async fn a_port_in_use_is_said_clearly() {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let error = bind("127.0.0.1", port).await.expect_err("in use").to_string();
        assert!(error.contains(&port.to_string()) && error.contains("choose another --port"), "{error}");
        let free = listen(bind("127.0.0.1", 0).await.expect("free")).expect("listens");
        assert_ne!(free.local_addr().expect("an address").port(), 0);
    }

    #[test]
    fn a_model_without_weights_needs_no_tokenizer_of_its_own() {
        let arguments = parse("--model-preset qwen2.5-7b").expect("valid");
        let text = Text::of(&arguments.model, &arguments.engine_config()).expect("a fallback");
        assert!(text.template.is_some());
        let arguments = parse("--model-preset qwen2.5-7b --tokenizer /nonexistent").expect("valid");
        let error = Text::of(&arguments.model, &arguments.engine_config()).err().expect("named and missing");
        assert!(format!("{error:#}").contains("/nonexistent/tokenizer.json"), "{error:#}");
    }
}
