//! Traces and metrics over OTLP (HTTP, protobuf), by OpenTelemetry's conventions for generative AI. Off unless configured.
//!
//! A request is one span, and each phase that it went through a child of it; `traceparent` is taken from the client and passed
//! on to the engine, so that the engine's own spans are below ours. Threads of the SDK export; what does not fit into their
//! bounded queues is dropped. A request that is not sampled costs its decision.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use opentelemetry::metrics::{Histogram, Meter, MeterProvider};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

use crate::config;
use crate::metrics::{DURATION_BUCKETS_S, TPOT_BUCKETS_S, TTFT_BUCKETS_S};
use crate::phase::End;

/// Names of the conventions, which are still in development: this table is the one place that knows them.
mod names {
    pub const OPERATION: &str = "gen_ai.operation.name";
    pub const PROVIDER: &str = "gen_ai.provider.name";
    pub const MODEL: &str = "gen_ai.request.model";
    pub const MAX_TOKENS: &str = "gen_ai.request.max_tokens";
    pub const INPUT: &str = "gen_ai.usage.input_tokens";
    pub const OUTPUT: &str = "gen_ai.usage.output_tokens";
    pub const TOKEN_TYPE: &str = "gen_ai.token.type";
    pub const TOKEN_USAGE: &str = "gen_ai.client.token.usage";
    pub const DURATION: &str = "gen_ai.server.request.duration";
    pub const FIRST_TOKEN: &str = "gen_ai.server.time_to_first_token";
    pub const PER_TOKEN: &str = "gen_ai.server.time_per_output_token";
    pub const ERROR: &str = "error.type";
    pub const SERVER: &str = "server.address";
    pub const STATUS: &str = "http.response.status_code";
    // Ours.
    pub const REQUEST: &str = "gateway.request.id";
    pub const TENANT: &str = "gateway.tenant";
    pub const ENGINE: &str = "gateway.engine";
    pub const STREAM: &str = "gateway.stream";
    pub const CACHED: &str = "gateway.usage.cached_tokens";
}

/// Longest wait for the collector.
const EXPORT_TIME_MAX: Duration = Duration::from_secs(5);
/// Upper bounds of the histogram of tokens: those of the convention.
const TOKEN_BUCKETS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// Where spans and figures go.
pub struct Telemetry {
    tracer: SdkTracer,
    traces: SdkTracerProvider,
    meters: SdkMeterProvider,
    duration_s: Histogram<f64>,
    ttft_s: Histogram<f64>,
    tpot_s: Histogram<f64>,
    tokens: Histogram<u64>,
}

/// A request that is over.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// `chat`, `text_completion` or `embeddings`.
    pub operation: &'static str,
    /// Model, as the request names it.
    pub model: &'a str,
    /// Name of the request.
    pub request: &'a str,
    /// Who asked.
    pub tenant: &'a str,
    /// Name, address and kind of the engine that it went to.
    pub engine: Option<(&'a str, &'a str, &'static str)>,
    /// Its answer is streamed.
    pub stream: bool,
    /// Most tokens that it may generate.
    pub max_tokens: u32,
    /// When it came.
    pub arrived: Instant,
    /// When it went to an engine.
    pub sent: Option<Instant>,
    /// When its first token came back.
    pub first_token: Option<Instant>,
    /// Seconds a token after the first.
    pub tpot_s: Option<f64>,
    /// What it cost.
    pub usage: openai::Usage,
    /// Status that the client saw; 0 if none.
    pub status: u16,
    /// How it ended.
    pub end: End,
}

impl Telemetry {
    /// Begins to export.
    ///
    /// # Errors
    /// If the endpoint is no URL.
    pub fn start(config: &config::Telemetry) -> anyhow::Result<Self> {
        let resource = Resource::builder()
            .with_service_name(config.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let endpoint = |signal: &str| format!("{}/v1/{signal}", config.endpoint.trim_end_matches('/'));
        let spans = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint("traces"))
            .build()
            .context("[telemetry] endpoint")?;
        let figures = MetricExporter::builder()
            .with_http()
            .with_http_client(Client::new())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint("metrics"))
            .build()
            .context("[telemetry] endpoint")?;
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sampled_part)));
        let traces = SdkTracerProvider::builder()
            .with_batch_exporter(spans)
            .with_sampler(sampler)
            .with_resource(resource.clone())
            .build();
        let every = Duration::from_millis(config.metrics_every_ms);
        let reader = PeriodicReader::builder(figures).with_interval(every).build();
        let meters = SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build();
        let meter = meters.meter("gateway");
        Ok(Self {
            tracer: traces.tracer("gateway"),
            duration_s: seconds(&meter, names::DURATION, &DURATION_BUCKETS_S),
            ttft_s: seconds(&meter, names::FIRST_TOKEN, &TTFT_BUCKETS_S),
            tpot_s: seconds(&meter, names::PER_TOKEN, &TPOT_BUCKETS_S),
            tokens: meter
                .u64_histogram(names::TOKEN_USAGE)
                .with_unit("{token}")
                .with_boundaries(TOKEN_BUCKETS.to_vec())
                .build(),
            traces,
            meters,
        })
    }

    /// A request came with these headers: its span, below the client's if they name one.
    pub fn arrived(&self, headers: &HeaderMap, operation: &'static str, model: &str) -> Context {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let name = format!("{operation} {model}").trim_end().to_owned();
        let span = self.tracer.span_builder(name).with_kind(SpanKind::Server);
        let span = span.start_with_context(&self.tracer, &parent);
        parent.with_span(span)
    }

    /// Headers that tell an engine whose part its work is.
    pub fn headers(context: &Context) -> HeaderMap {
        let mut headers = HeaderMap::new();
        TraceContextPropagator::new().inject_context(context, &mut HeaderInjector(&mut headers));
        if headers.get("tracestate").is_some_and(HeaderValue::is_empty) {
            headers.remove("tracestate");
        }
        headers
    }

    /// The request of `context` is over.
    pub fn ended(&self, context: &Context, ended: &Ended<'_>) {
        let now = Instant::now();
        let mut metered =
            vec![KeyValue::new(names::OPERATION, ended.operation), KeyValue::new(names::MODEL, ended.model.to_owned())];
        if let Some((_, address, kind)) = ended.engine {
            metered.push(KeyValue::new(names::PROVIDER, kind));
            metered.push(KeyValue::new(names::SERVER, address.to_owned()));
        }
        for (kind, tokens) in [("input", ended.usage.prompt_tokens), ("output", ended.usage.output_tokens)] {
            if tokens > 0 {
                let kind = [KeyValue::new(names::TOKEN_TYPE, kind)];
                self.tokens.record(tokens, &[&metered[..], &kind[..]].concat());
            }
        }
        if let Some(first) = ended.first_token {
            self.ttft_s.record((first - ended.arrived).as_secs_f64(), &metered);
        }
        if let Some(tpot_s) = ended.tpot_s {
            self.tpot_s.record(tpot_s, &metered);
        }
        let error = match ended.end {
            End::Finished => None,
            End::ClientLeft => Some("client_left"),
            End::Failed => Some("failed"),
        };
        metered.extend(error.map(|error| KeyValue::new(names::ERROR, error)));
        self.duration_s.record((now - ended.arrived).as_secs_f64(), &metered);

        let span = context.span();
        if !span.is_recording() {
            return;
        }
        let own = [
            KeyValue::new(names::REQUEST, ended.request.to_owned()),
            KeyValue::new(names::TENANT, ended.tenant.to_owned()),
            KeyValue::new(names::STREAM, ended.stream),
            KeyValue::new(names::MAX_TOKENS, i64::from(ended.max_tokens)),
        ];
        let engine = ended.engine.map(|(name, ..)| KeyValue::new(names::ENGINE, name.to_owned()));
        let attributes: Vec<KeyValue> = metered.into_iter().chain(own).chain(engine).collect();
        self.phases(context, ended, now, &attributes);
        let tokens = |name, tokens| KeyValue::new(name, i64::try_from(tokens).unwrap_or(i64::MAX));
        span.set_attributes(attributes);
        span.set_attributes([
            tokens(names::INPUT, ended.usage.prompt_tokens),
            tokens(names::OUTPUT, ended.usage.output_tokens),
            tokens(names::CACHED, ended.usage.cached_tokens),
            KeyValue::new(names::STATUS, i64::from(ended.status)),
        ]);
        if let Some(error) = error {
            span.set_status(Status::error(error));
        }
        span.end();
    }

    /// A span for each phase. The phases of an answer that is not streamed cannot be told apart from here.
    fn phases(&self, context: &Context, ended: &Ended<'_>, now: Instant, attributes: &[KeyValue]) {
        let wall = SystemTime::now();
        let at = |instant: Instant| wall - (now - instant);
        let (queued_end, sent) = (ended.sent.unwrap_or(now), ended.sent);
        let prefill = if ended.stream { "prefill" } else { "generate" };
        let phases = [
            ("queued", Some(ended.arrived), queued_end),
            (prefill, sent, ended.first_token.unwrap_or(now)),
            ("decode", ended.first_token, now),
        ];
        for (name, from, to) in phases {
            let Some(from) = from else { continue };
            let builder = self.tracer.span_builder(name).with_kind(SpanKind::Internal).with_start_time(at(from));
            let mut span = builder.with_attributes(attributes.to_vec()).start_with_context(&self.tracer, context);
            opentelemetry::trace::Span::end_with_timestamp(&mut span, at(to));
        }
    }

    /// Exports what is left. Blocks, for as long as the collector may take.
    pub fn stop(&self) {
        for stopped in [self.traces.shutdown(), self.meters.shutdown()] {
            if let Err(error) = stopped {
                tracing::warn!(%error, "telemetry: the last of it is lost");
            }
        }
    }
}

fn seconds(meter: &Meter, name: &'static str, bounds: &[f64]) -> Histogram<f64> {
    meter.f64_histogram(name).with_unit("s").with_boundaries(bounds.to_vec()).build()
}

/// What the conventions call a request to `path`.
pub fn operation(path: &str) -> &'static str {
    match path {
        "/v1/embeddings" => "embeddings",
        "/v1/completions" => "text_completion",
        _ => "chat",
    }
}

/// Carries exports; the SDK's own threads call it and wait.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(EXPORT_TIME_MAX));
        Self(config.build().into())
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.0.run(request.map(|body| body.to_vec()))?;
        let (parts, mut body) = answer.into_parts();
        Ok(Response::from_parts(parts, body.read_to_vec()?.into()))
    }
}
