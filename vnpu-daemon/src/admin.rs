//! The admin API: health, metrics, status, policy. Described by `openapi/daemon-admin.yaml`.
//!
//! Handlers ask the dispatch thread and translate its answer; a thread that does not answer is a 503, never a hang.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{MethodRouter, get};
use runtime::{DeviceHandle, NoAnswer, Snapshot};
use sched::policy::PolicyName;
use sched::{CoRun, PolicyConfig};
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::metrics;

/// Longest request body: a policy is a few hundred bytes.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// A policy as the API shows and takes it. Fields that are left out have their defaults.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Which policy.
    name: PolicyName,
    /// Time between tokens that decoding streams shall have, milliseconds.
    #[serde(default = "tpot_default")]
    tpot_target_ms: f64,
    /// Time to the first token that prefill streams shall have, milliseconds.
    #[serde(default = "ttft_default")]
    ttft_target_ms: f64,
    /// What the policy believes about contention.
    #[serde(default)]
    corun: CoRun,
}

fn tpot_default() -> f64 {
    PolicyConfig::default().tpot_ms
}

fn ttft_default() -> f64 {
    PolicyConfig::default().ttft_ms
}

impl From<PolicyConfig> for Policy {
    fn from(config: PolicyConfig) -> Self {
        let PolicyConfig { name, tpot_ms, ttft_ms, corun } = config;
        Self { name, tpot_target_ms: tpot_ms, ttft_target_ms: ttft_ms, corun }
    }
}

impl Policy {
    /// The policy in a request, or what is wrong with it.
    fn parse(body: &[u8]) -> Result<PolicyConfig, String> {
        const NAMES: &str = "policies are passthrough, fifo, phase";
        let policy: Self = serde_json::from_slice(body).map_err(|e| format!("not a policy: {e}; {NAMES}"))?;
        for (name, value) in [("tpot_target_ms", policy.tpot_target_ms), ("ttft_target_ms", policy.ttft_target_ms)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(format!("{name} is {value}; it must be a positive number of milliseconds"));
            }
        }
        let CoRun { omega, kappa_prefill, kappa_decode } = policy.corun;
        if !(0.0..=1.0).contains(&omega) || !(kappa_prefill >= 0.0 && kappa_decode >= 0.0) {
            return Err("corun: omega must lie in 0..1, kappa_prefill and kappa_decode must not be negative".into());
        }
        Ok(PolicyConfig {
            name: policy.name,
            tpot_ms: policy.tpot_target_ms,
            ttft_ms: policy.ttft_target_ms,
            corun: policy.corun,
        })
    }
}

#[derive(Serialize)]
struct Status {
    policy: Policy,
    #[serde(flatten)]
    snapshot: Snapshot,
}

#[derive(Serialize)]
struct ErrorBody {
    error: String,
}

struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorBody { error: self.1 })).into_response()
    }
}

impl From<NoAnswer> for Failure {
    fn from(e: NoAnswer) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, e.to_string())
    }
}

/// Asks the dispatch thread, off the async threads: an answer may take up to a second.
async fn ask<T: Send + 'static>(
    handle: DeviceHandle,
    question: impl FnOnce(&DeviceHandle) -> Result<T, NoAnswer> + Send + 'static,
) -> Result<T, Failure> {
    let answer = tokio::task::spawn_blocking(move || question(&handle)).await;
    Ok(answer.map_err(|e| Failure(StatusCode::SERVICE_UNAVAILABLE, e.to_string()))??)
}

async fn health(State(handle): State<DeviceHandle>) -> Result<&'static str, Failure> {
    ask(handle, DeviceHandle::snapshot).await.map(|_| "ok\n")
}

async fn show_metrics(State(handle): State<DeviceHandle>) -> Result<Response, Failure> {
    let snapshot = ask(handle, DeviceHandle::snapshot).await?;
    let text = metrics::text(snapshot).map_err(|e| Failure(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn status(State(handle): State<DeviceHandle>) -> Result<Json<Status>, Failure> {
    let snapshot = ask(handle, DeviceHandle::snapshot).await?;
    Ok(Json(Status { policy: snapshot.policy.into(), snapshot }))
}

async fn get_policy(State(handle): State<DeviceHandle>) -> Result<Json<Policy>, Failure> {
    Ok(Json(ask(handle, DeviceHandle::snapshot).await?.policy.into()))
}

async fn put_policy(State(handle): State<DeviceHandle>, body: Bytes) -> Result<Json<Policy>, Failure> {
    let config = Policy::parse(&body).map_err(|e| Failure(StatusCode::BAD_REQUEST, e))?;
    ask(handle, move |handle| handle.set_policy(config)).await?;
    info!(policy = ?config, "policy changed");
    Ok(Json(config.into()))
}

/// Every route: path, methods as the API description spells them, handlers.
fn routes() -> [(&'static str, &'static [&'static str], MethodRouter<DeviceHandle>); 4] {
    [
        ("/health", &["get"], get(health)),
        ("/metrics", &["get"], get(show_metrics)),
        ("/v1/status", &["get"], get(status)),
        ("/v1/policy", &["get", "put"], get(get_policy).put(put_policy)),
    ]
}

/// The API over one device.
pub fn router(handle: DeviceHandle) -> Router {
    let add = |router: Router<DeviceHandle>, (path, _, methods)| router.route(path, methods);
    let router = routes().into_iter().fold(Router::new(), add);
    router.layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).with_state(handle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const DESCRIPTION: &str = include_str!("../../openapi/daemon-admin.yaml");

    /// `path method` of every operation in the description: entries at fixed indents below `paths:`.
    fn described() -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let (mut inside, mut path) = (false, "");
        for line in DESCRIPTION.lines() {
            let indent = line.len() - line.trim_start().len();
            let key = line.trim().trim_end_matches(':');
            match indent {
                0 if !line.is_empty() => inside = line == "paths:",
                2 if inside => path = key,
                4 if inside => {
                    found.insert(format!("{path} {key}"));
                }
                _ => {}
            }
        }
        found
    }

    #[test]
    fn description_and_router_have_the_same_operations() {
        let served =
            routes().iter().flat_map(|(path, methods, _)| methods.iter().map(move |m| format!("{path} {m}"))).collect();
        assert_eq!(described(), served);
    }

    #[test]
    fn policies_parse_with_defaults_and_errors_say_what_is_valid() {
        let config = Policy::parse(br#"{"name":"phase","tpot_target_ms":40}"#).unwrap();
        assert_eq!((config.name, config.tpot_ms), (PolicyName::Phase, 40.0));
        assert_eq!(config.ttft_ms, PolicyConfig::default().ttft_ms);
        for (body, words) in [
            (r#"{"name":"lottery"}"#, &["lottery", "passthrough", "fifo", "phase"][..]),
            (r#"{"nam":"phase"}"#, &["nam", "passthrough"]),
            (r#"{"name":"phase","tpot_target_ms":-1}"#, &["tpot_target_ms", "-1", "positive"]),
            (r#"{"name":"phase","corun":{"omega":2}}"#, &["omega"]),
            ("", &["not a policy", "phase"]),
        ] {
            let error = Policy::parse(body.as_bytes()).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{word} in {error}");
            }
        }
    }
}
