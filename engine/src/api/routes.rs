//! The routes, and how a generation request passes through them.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use serde::Serialize;

use super::body::read_json;
use super::chat::{self, ChatFormat};
use super::completions::CompletionFormat;
use super::metrics;
use super::params::{Generation, Route};
use super::request;
use super::server::{Server, unix_seconds};
use super::sse::{self, Envelope};
use super::{ApiError, request::Prompts};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest `x-request-id` that is taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// All routes.
pub fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/health", get(health))
        .route("/metrics", get(metrics_page))
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(server)
}

async fn chat_completions(State(server): State<Arc<Server>>, request: Request<Body>) -> Response {
    generate(server, Route::Chat, request).await
}

async fn completions(State(server): State<Arc<Server>>, request: Request<Body>) -> Response {
    generate(server, Route::Completions, request).await
}

async fn generate(server: Arc<Server>, route: Route, request: Request<Body>) -> Response {
    let arrived = Instant::now();
    let request_id = request_id(request.headers());
    let mut response = match answer(Arc::clone(&server), route, request, &request_id, arrived).await {
        Ok(response) => response,
        Err(error) => {
            server.metrics.error(&error);
            tracing::debug!(request = request_id, %error, "refused");
            error.into_response()
        }
    };
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

async fn answer(
    server: Arc<Server>,
    route: Route,
    request: Request<Body>,
    request_id: &str,
    arrived: Instant,
) -> Result<Response, ApiError> {
    server.check_health()?;
    let mut body: request::Body = read_json(request).await?;
    let model = server.check_model(body.model.as_deref())?;
    let generation = Generation::new(route, &body)?;
    let param = route.prompt_param();
    let (prompts, add_special_tokens, id_prefix) = match route {
        Route::Chat => (vec![chat::prompt(&server, body.messages.take())?], false, "chatcmpl"),
        Route::Completions => {
            let prompts = body.prompt.take().map(|Prompts(prompts)| prompts).unwrap_or_default();
            if prompts.is_empty() {
                return Err(ApiError::invalid("prompt", "You must provide a prompt; it must not be an empty list."));
            }
            (prompts, true, "cmpl")
        }
    };
    drop(body);
    server.check_choices(prompts.len(), &generation)?;
    let mut tokens = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        tokens.push(server.tokens(prompt, param, add_special_tokens).await?);
    }
    let running = server.start(tokens, &generation, arrived)?;
    let envelope = Envelope { id: format!("{id_prefix}-{request_id}"), created: unix_seconds(), model };
    let tokenizer = Arc::clone(&server.tokenizer);
    match route {
        Route::Chat => respond(server, running, ChatFormat { tokenizer }, envelope, &generation).await,
        Route::Completions => {
            let format = CompletionFormat { tokenizer, offsets: vec![0; running.choices()] };
            respond(server, running, format, envelope, &generation).await
        }
    }
}

async fn respond<F: sse::Format>(
    server: Arc<Server>,
    running: super::running::Running,
    format: F,
    envelope: Envelope,
    generation: &Generation,
) -> Result<Response, ApiError> {
    if generation.stream {
        Ok(sse::stream(server, running, format, envelope, generation.include_usage))
    } else {
        sse::collect(running, format, envelope).await
    }
}

/// The client's or the gateway's id, else a fresh one, so that one name follows a request through all logs.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    match given.filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX) {
        Some(id) => id.to_owned(),
        None => format!("{:032x}", rand::random::<u128>()),
    }
}

#[derive(Serialize)]
struct ModelBody<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: &'a str,
    parent: Option<&'a str>,
    max_model_len: usize,
}

impl Server {
    fn model_body(&self) -> ModelBody<'_> {
        ModelBody {
            id: &self.model_names[0],
            object: "model",
            created: self.created,
            owned_by: "engine",
            root: &self.model_root,
            parent: None,
            max_model_len: self.engine.info().max_model_len,
        }
    }
}

async fn models(State(server): State<Arc<Server>>) -> Response {
    #[derive(Serialize)]
    struct List<'a> {
        object: &'static str,
        data: [ModelBody<'a>; 1],
    }
    axum::Json(List { object: "list", data: [server.model_body()] }).into_response()
}

async fn model(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    server.check_model(Some(&id))?;
    Ok(axum::Json(server.model_body()).into_response())
}

async fn health(State(server): State<Arc<Server>>) -> Result<Response, ApiError> {
    server.check_health()?;
    let info = server.engine.info();
    let body = serde_json::json!({
        "status": "ready",
        "model": server.model_names[0],
        "architecture": info.architecture,
        "dtype": info.dtype,
        "dummy": info.dummy,
        "device": info.soc_name,
        "max_model_len": info.max_model_len,
    });
    Ok(axum::Json(body).into_response())
}

async fn metrics_page(State(server): State<Arc<Server>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], server.metrics.encode()).into_response()
}

async fn unknown_route(method: Method, uri: Uri) -> ApiError {
    ApiError::unknown_route(&method, uri.path())
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::method_not_allowed(&method, uri.path())
}
