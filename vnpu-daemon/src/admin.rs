//! The admin API: health, metrics, status, steps, requests, policy. Described by `openapi/daemon.yaml`.
//!
//! Handlers ask the dispatch thread and translate its answer; a thread that does not answer is a 503, never a hang.

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, FromRef, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{MethodRouter, get};
use runtime::{DeviceHandle, NoAnswer, RequestSnapshot, Snapshot, StepSnapshot};
use sched::PolicyConfig;
use sched::policy::{ConfigError, PolicyName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::info;

use crate::ledger::Ledger;
use crate::tenants::Doors;
use crate::{metrics, record, usage};

/// Longest request body: a policy is a few hundred bytes.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// Names that requests may use for targets besides the configuration's own.
const OTHER_NAMES: [(&str, &str); 2] = [("tpot_target_ms", "tpot_ms"), ("ttft_target_ms", "ttft_ms")];

/// The policy in a request (JSON, or text as `--policy` takes it), or what is wrong with it and what would be right.
fn parse_policy(body: &[u8]) -> Result<PolicyConfig, String> {
    let names = PolicyName::ALL.map(PolicyName::name).join(", ");
    let wrong = |e: &dyn std::fmt::Display| format!("{e}; policies are {names}");
    if body.trim_ascii_start().first().is_none_or(|&b| b != b'{') {
        let text = std::str::from_utf8(body).map_err(|e| wrong(&format!("not a policy: {e}")))?;
        return text.parse().map_err(|e: ConfigError| wrong(&e));
    }
    let mut object = object(body).map_err(|e| wrong(&format!("not a policy: {e}")))?;
    for (other, own) in OTHER_NAMES {
        if let Some(value) = object.remove(other)
            && object.insert(own.to_owned(), value).is_some()
        {
            return Err(wrong(&format!("not a policy: {own} and {other} are one")));
        }
    }
    Value::Object(object).to_string().parse().map_err(|e: ConfigError| wrong(&e))
}

#[derive(Serialize)]
struct ErrorBody {
    error: String,
}

/// What a request is answered that fails.
pub struct Failure(StatusCode, String);

impl Failure {
    /// The request is wrong.
    pub fn bad(message: String) -> Self {
        Self(StatusCode::BAD_REQUEST, message)
    }

    /// There is no such thing.
    pub fn missing(message: String) -> Self {
        Self(StatusCode::NOT_FOUND, message)
    }

    /// It failed, and not for what was asked.
    pub fn unavailable(message: String) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// It cannot be done now.
    pub fn conflict(message: &str) -> Self {
        Self(StatusCode::CONFLICT, message.to_owned())
    }
}

/// What handlers work on.
#[derive(Clone)]
pub struct Admin {
    /// The dispatch thread.
    pub handle: DeviceHandle,
    /// Whose recording it is.
    pub turn: record::Turn,
    /// What tenants used.
    pub ledger: Ledger,
    /// Where they come in.
    pub doors: Doors,
}

impl Admin {
    /// Of one daemon.
    pub fn new(handle: DeviceHandle, ledger: Ledger, doors: Doors) -> Self {
        Self { handle, turn: record::Turn::default(), ledger, doors }
    }
}

impl FromRef<Admin> for DeviceHandle {
    fn from_ref(admin: &Admin) -> Self {
        admin.handle.clone()
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorBody { error: self.1 })).into_response()
    }
}

impl From<PathRejection> for Failure {
    fn from(e: PathRejection) -> Self {
        Self::bad(e.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(e: QueryRejection) -> Self {
        Self::bad(e.body_text())
    }
}

/// Reads a body that is to be an object. (A list of its values would do for serde, too.)
pub fn object(body: &[u8]) -> serde_json::Result<Map<String, Value>> {
    let mut object: Map<String, Value> = serde_json::from_slice(body)?;
    object.values_mut().for_each(whole);
    Ok(object)
}

/// JSON has one kind of number: `4.0` is as whole as `4`.
fn whole(value: &mut Value) {
    /// Beyond, a number may be another than it looks.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    let whole = value.as_f64().filter(|n| value.is_f64() && n.fract() == 0.0 && (0.0..=EXACT_MAX).contains(n));
    if let Some(number) = whole {
        *value = Value::from(number as u64);
    }
}

impl From<NoAnswer> for Failure {
    fn from(e: NoAnswer) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, e.to_string())
    }
}

/// Asks the dispatch thread, off the async threads: an answer may take up to a second.
pub async fn ask<T: Send + 'static>(
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

async fn status(State(handle): State<DeviceHandle>) -> Result<Json<Snapshot>, Failure> {
    Ok(Json(ask(handle, DeviceHandle::snapshot).await?))
}

#[derive(Deserialize)]
struct After {
    #[serde(default)]
    after: u64,
}

async fn steps(
    State(handle): State<DeviceHandle>,
    from: Result<Query<After>, QueryRejection>,
) -> Result<Json<Vec<StepSnapshot>>, Failure> {
    let Query(from) = from?;
    Ok(Json(ask(handle, move |handle| handle.steps(from.after)).await?))
}

async fn requests(State(handle): State<DeviceHandle>) -> Result<Json<Vec<RequestSnapshot>>, Failure> {
    Ok(Json(ask(handle, DeviceHandle::requests).await?))
}

async fn get_policy(State(handle): State<DeviceHandle>) -> Result<Json<PolicyConfig>, Failure> {
    Ok(Json(ask(handle, DeviceHandle::snapshot).await?.policy))
}

async fn put_policy(State(handle): State<DeviceHandle>, body: Bytes) -> Result<Json<PolicyConfig>, Failure> {
    let config = parse_policy(&body).map_err(|e| Failure(StatusCode::BAD_REQUEST, e))?;
    ask(handle, move |handle| handle.set_policy(config)).await?;
    info!(policy = ?config, "policy changed");
    Ok(Json(config))
}

/// Every route: path, methods as the API description spells them, handlers.
fn routes() -> [(&'static str, &'static [&'static str], MethodRouter<Admin>); 11] {
    [
        ("/health", &["get"], get(health)),
        ("/metrics", &["get"], get(show_metrics)),
        ("/v1/status", &["get"], get(status)),
        ("/v1/steps", &["get"], get(steps)),
        ("/v1/requests", &["get"], get(requests)),
        ("/v1/policy", &["get", "put"], get(get_policy).put(put_policy)),
        ("/v1/tenants", &["get"], get(usage::list)),
        ("/v1/tenants/{name}", &["get", "put", "delete"], get(usage::get).put(usage::put).delete(usage::delete)),
        ("/v1/usage", &["get"], get(usage::usage)),
        ("/v1/usage.csv", &["get"], get(usage::csv)),
        ("/v1/record", &["get", "put", "delete"], get(record::get).put(record::put).delete(record::delete)),
    ]
}

/// Every path, parameters as they are written in routes.
#[cfg(any(test, feature = "testing"))]
pub fn paths() -> Vec<&'static str> {
    routes().into_iter().map(|(path, ..)| path).collect()
}

/// The API over one device.
pub fn router(admin: Admin) -> Router {
    let add = |router: Router<Admin>, (path, _, methods)| router.route(path, methods);
    let router = routes().into_iter().fold(Router::new(), add);
    router.layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).with_state(admin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const DESCRIPTION: &str = include_str!("../../openapi/daemon.yaml");

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
        for body in [&br#"{"name":"phase","tpot_target_ms":40}"#[..], br#"{"name":"phase","tpot_ms":40}"#] {
            let config = parse_policy(body).unwrap();
            assert_eq!((config.name, config.tpot_ms), (PolicyName::Phase, 40.0));
            assert_eq!(config.ttft_ms, PolicyConfig::default().ttft_ms);
        }
        for name in PolicyName::ALL {
            assert_eq!(parse_policy(name.name().as_bytes()), Ok(PolicyConfig::named(name)));
        }
        assert_eq!(parse_policy(br#"{"name":"quota","quota":4.0}"#).map(|c| c.quota), Ok(4));
        assert_eq!(parse_policy(b" core-split:prefill_part=0.6\n").map(|c| c.prefill_part), Ok(0.6));
        for (body, words) in [
            (r#"{"name":"lottery"}"#, &["lottery", "passthrough", "fifo", "phase"][..]),
            (r#"{"nam":"phase"}"#, &["name", "passthrough"]),
            (r#"{"name":"phase","tpot_target_ms":-1}"#, &["tpot_ms", "-1", "0.001"]),
            (r#"{"name":"phase","corun":{"omega":2}}"#, &["omega", "0 to 1"]),
            ("", &["no policy is called", "phase"]),
            ("lottery:tickets=3", &["lottery", "core-split"]),
            ("quota:quota=17", &["quota = 17", "1 to 16"]),
            ("{", &["not a policy", "phase"]),
            (r#"{"name":"quota","quota":4.5}"#, &["expected u32"]),
            (r#"{"name":"phase","tpot_ms":40,"tpot_target_ms":40}"#, &["tpot_target_ms", "are one"]),
        ] {
            let error = parse_policy(body.as_bytes()).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{word} in {error}");
            }
        }
    }

    /// Every name that JSON `value` contains, at any depth.
    fn names<'a>(value: &'a Value, out: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(object) => object.iter().for_each(|(name, value)| {
                out.insert(name);
                names(value, out);
            }),
            Value::Array(list) => list.iter().for_each(|value| names(value, out)),
            _ => {}
        }
    }

    #[test]
    fn description_has_every_field_of_status_and_policy() {
        let doorbell = session::Doorbell::new().unwrap();
        let spec: device::DeviceSpec = "Ascend910B3:timing".parse().unwrap();
        let device = device::Emulated::new(spec.emulated(std::sync::Arc::new(|| {}))).unwrap();
        let mut core =
            runtime::Core::new(Box::new(device), PolicyConfig::default(), runtime::Limits::default()).unwrap();
        let facts = session::DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 0, device_index: 0, epoch: 0 };
        let (_client, server) = session::local(session::Layout::default(), doorbell, facts).unwrap();
        core.attach(&server, runtime::DEFAULT_TENANT, sched::SessionParams::default()).unwrap();
        core.set_tenant(0, "chat", runtime::TenantConfig { memory_limit_bytes: Some(1), ..Default::default() })
            .unwrap();
        core.start_record(sched::dispatch::RecordLimits { bytes_max: 1 << 20, span: 1 });
        let status = serde_json::to_value(core.snapshot(Default::default(), 0)).unwrap();
        let mut served = BTreeSet::new();
        names(&status, &mut served);
        assert!(served.contains("memory_freeing_bytes") && served.contains("omega"), "{status}");
        let missing: Vec<_> = served.iter().filter(|name| !DESCRIPTION.contains(&format!("        {name}:"))).collect();
        assert!(missing.is_empty(), "not described: {missing:?}");
    }
}
