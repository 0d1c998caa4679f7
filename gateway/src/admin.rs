//! The operators' side: health, readiness, metrics, state, and taking an engine out of service. No client's data is here.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{MethodRouter, get, post, put};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::console;
use crate::engines::Engine;
use crate::gateway::Gateway;
use crate::monitor;

/// The admin API's paths, their methods and handlers.
fn routes() -> [(&'static str, &'static str, MethodRouter<Arc<Gateway>>); 13] {
    [
        ("/health", "get", get(|| async { "ok\n" })),
        ("/ready", "get", get(ready)),
        ("/metrics", "get", get(metrics)),
        ("/v1/status", "get", get(status)),
        ("/v1/engines/{name}", "put", put(put_engine)),
        ("/v1/reload", "post", post(reload)),
        ("/", "get", get(console::page)),
        ("/console", "get", get(console::page)),
        ("/console/console.css", "get", get(console::style)),
        ("/console/console.js", "get", get(console::script)),
        ("/console/icon.svg", "get", get(console::icon)),
        ("/console/events", "get", get(console::events)),
        ("/console/policy", "put", put(console::put_policy)),
    ]
}

/// Every path, parameters as they are written in routes.
#[cfg(any(test, feature = "testing"))]
pub fn paths() -> Vec<&'static str> {
    routes().into_iter().map(|(path, ..)| path).collect()
}

/// The admin API, as `openapi/gateway.yaml` describes it.
pub fn router(gateway: Arc<Gateway>) -> Router {
    let add = |router: Router<Arc<Gateway>>, (path, _, handler)| router.route(path, handler);
    routes()
        .into_iter()
        .fold(Router::new(), add)
        .fallback(|| async { error(StatusCode::NOT_FOUND, "no such path; see openapi/gateway.yaml") })
        .method_not_allowed_fallback(|| async {
            error(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method; see openapi/gateway.yaml")
        })
        .with_state(gateway)
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}

async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    if gateway.is_ready() {
        "ready\n".into_response()
    } else {
        error(StatusCode::SERVICE_UNAVAILABLE, "stopping, or no engine is up")
    }
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], gateway.metrics_page()).into_response()
}

async fn status(State(gateway): State<Arc<Gateway>>) -> Json<Value> {
    Json(status_of(&gateway))
}

/// What the gateway does now.
pub fn status_of(gateway: &Gateway) -> Value {
    let (requests, bytes, running) = gateway.admitter.load();
    let setup = gateway.setup();
    let tenants = setup.tenants.all().iter().map(|t| {
        let (served_tokens, sequences) = gateway.admitter.tenant(t.index);
        json!({ "name": t.name, "weight": t.tier.weight, "band": t.tier.band,
                "served_tokens": served_tokens, "sequences": sequences })
    });
    json!({
        "generation": setup.generation,
        "version": env!("CARGO_PKG_VERSION"),
        "ready": gateway.is_ready(),
        "requests": gateway.in_flight(),
        "queue": { "requests": requests, "bytes": bytes,
                   "requests_max": setup.config.queue.requests, "bytes_max": setup.config.queue.bytes },
        "admitted": running,
        "engines": setup.engines.iter().map(|e| engine(gateway, e)).collect::<Vec<_>>(),
        "tenants": tenants.collect::<Vec<_>>(),
    })
}

fn engine(gateway: &Gateway, engine: &Engine) -> Value {
    let mut load = engine.load(&gateway.admitter);
    let models: Vec<Value> = engine.models().iter().map(|m| m["id"].clone()).collect();
    for (name, value) in [
        ("name", json!(engine.config.name)),
        ("address", json!(engine.config.address)),
        ("draining", json!(engine.is_draining())),
        ("models", json!(models)),
    ] {
        load.insert(name.to_owned(), value);
    }
    load.into()
}

/// Reads the file again. A mistake in it, and its line, is the caller's to see; what was in force stays.
async fn reload(State(gateway): State<Arc<Gateway>>) -> Response {
    // It resolves names and reads files.
    match tokio::task::spawn_blocking(move || monitor::reload(&gateway)).await {
        Ok(Ok(reloaded)) => Json(reloaded).into_response(),
        Ok(Err(e)) => error(StatusCode::CONFLICT, &format!("{e:#}")),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    draining: bool,
}

async fn put_engine(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    body: axum::body::Bytes,
) -> Response {
    // An object: a list of its values would do for serde, too.
    let wanted =
        serde_json::from_slice::<Map<String, Value>>(&body).map(Value::Object).and_then(serde_json::from_value);
    let wanted: Wanted = match wanted {
        Ok(wanted) => wanted,
        Err(e) => return error(StatusCode::BAD_REQUEST, &format!("want {{\"draining\": true}} or false: {e}")),
    };
    let setup = gateway.setup();
    let Some(found) = setup.engines.named(&name) else {
        return error(StatusCode::NOT_FOUND, "no engine of that name; see /v1/status");
    };
    found.set_draining(wanted.draining, &gateway.admitter);
    Json(engine(&gateway, found)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;
    use crate::route::Route;
    use std::collections::BTreeSet;

    const DESCRIPTION: &str = include_str!("../../openapi/gateway.yaml");

    #[test]
    fn description_has_exactly_what_is_served() {
        let (mut described, mut path) = (BTreeSet::new(), "");
        for line in DESCRIPTION.lines().skip_while(|l| *l != "paths:").skip(1).take_while(|l| l.starts_with(' ')) {
            let key = line.trim().trim_end_matches(':');
            match line.len() - line.trim_start().len() {
                2 => path = key,
                4 => {
                    described.insert((path, key));
                }
                _ => {}
            }
        }
        let clients = [("/v1/models", "get"), ("/v1/explain", "post")];
        let served: BTreeSet<_> = routes().iter().map(|(path, method, _)| (*path, *method)).chain(clients).collect();
        assert_eq!(described, served);
        for (path, method) in clients {
            let method = http::Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            assert!(matches!(Route::of(&method, path), Route::Models | Route::Explain), "{path}");
        }
    }

    #[test]
    fn description_lists_the_codes_of_refusals() {
        for failure in [Failure::Unauthorized, Failure::EngineLost, Failure::WaitedTooLong { waited_ms: 1 }] {
            assert!(DESCRIPTION.contains(&format!("- {}\n", failure.code())), "{failure:?}");
        }
    }
}
