//! Tenants and what they used, over the admin API.

use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use runtime::tenants::check_name;
use runtime::usage::Class;
use runtime::{DeviceHandle, TenantConfig, TenantError, TenantSnapshot, Usage};
use sched::Phase;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::info;

use crate::admin::{Admin, Failure, ask, object};
use crate::ledger::Book;

/// A table for a spreadsheet.
const CSV: &str = "text/csv; charset=utf-8; header=present";

impl From<TenantError> for Failure {
    fn from(e: TenantError) -> Self {
        match e {
            TenantError::Unknown { .. } => Self::missing(e.to_string()),
            TenantError::Busy { .. }
            | TenantError::Default
            | TenantError::AboveLimit { .. }
            | TenantError::Guarantees { .. }
            | TenantError::TooMany(_) => Self::conflict(&e.to_string()),
            _ => Self::bad(e.to_string()),
        }
    }
}

/// A tenant, and where its processes come in.
#[derive(Serialize)]
pub struct Shown {
    #[serde(flatten)]
    tenant: TenantSnapshot,
    /// Device time used since the daemon started, seconds.
    device_s: f64,
    /// The socket that is this tenant's.
    socket: Option<String>,
}

async fn all(admin: &Admin) -> Result<Vec<Shown>, Failure> {
    let tenants = ask(admin.handle.clone(), DeviceHandle::snapshot).await?.tenants;
    let shown = |tenant: TenantSnapshot| {
        let socket = match tenant.tenant.as_str() {
            runtime::DEFAULT_TENANT => None,
            name => admin.doors.path(name).map(|path| path.display().to_string()),
        };
        Shown { device_s: tenant.usage.device_total_ns() as f64 * 1e-9, socket, tenant }
    };
    Ok(tenants.into_iter().map(shown).collect())
}

/// `GET /v1/tenants`.
pub async fn list(State(admin): State<Admin>) -> Result<Json<Vec<Shown>>, Failure> {
    Ok(Json(all(&admin).await?))
}

async fn one(admin: &Admin, name: &str) -> Result<Json<Shown>, Failure> {
    check_name(name)?;
    let found = all(admin).await?.into_iter().find(|t| t.tenant.tenant == name);
    let missing = || Failure::missing(format!("no tenant is called {name:?}; PUT makes it"));
    found.map(Json).ok_or_else(missing)
}

/// `GET /v1/tenants/{name}`.
pub async fn get(
    State(admin): State<Admin>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, Failure> {
    let Path(name) = name?;
    one(&admin, &name).await
}

/// `PUT /v1/tenants/{name}`: makes it, or changes what it may have. What is left out has its default.
pub async fn put(
    State(admin): State<Admin>,
    name: Result<Path<String>, PathRejection>,
    body: Bytes,
) -> Result<Json<Shown>, Failure> {
    let Path(name) = name?;
    let wrong = |e: serde_json::Error| Failure::bad(format!("not what a tenant may have: {e}"));
    let config = object(&body).and_then(|o| serde_json::from_value(Value::Object(o))).map_err(wrong)?;
    let config: TenantConfig = config;
    let called = name.clone();
    ask(admin.handle.clone(), move |handle| handle.set_tenant(&called, config)).await??;
    admin.doors.let_in(&name).map_err(|e| Failure::unavailable(format!("{e:#}")))?;
    info!(tenant = name, ?config, "tenant changed");
    one(&admin, &name).await
}

/// `DELETE /v1/tenants/{name}`. What it used stays in the books.
pub async fn delete(
    State(admin): State<Admin>,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Failure> {
    let Path(name) = name?;
    check_name(&name)?;
    let called = name.clone();
    ask(admin.handle.clone(), move |handle| handle.remove_tenant(&called)).await??;
    let doors = admin.doors.clone();
    let called = name.clone();
    // The door's thread may be in the middle of a client's hello.
    let _ = tokio::task::spawn_blocking(move || doors.close(&called)).await;
    info!(tenant = name, "tenant removed");
    Ok(StatusCode::NO_CONTENT)
}

async fn book(admin: Admin) -> Result<Book, Failure> {
    let book = tokio::task::spawn_blocking(move || admin.ledger.book()).await;
    let book = book.map_err(|e| Failure::unavailable(e.to_string()))?;
    book.map_err(|e| Failure::unavailable(format!("{e:#}")))
}

/// One tenant's figures, device time by phase and class.
fn figures(usage: &Usage) -> Value {
    let by_class = |phase: Phase| {
        let ns = |class: Class| (class.name().to_owned(), json!(usage.device_ns[phase.index()][class as usize]));
        (phase.name().to_owned(), Value::Object(Class::ALL.into_iter().map(ns).collect()))
    };
    json!({
        "device_ns": usage.device_total_ns(),
        "device_by_phase_and_class_ns": Phase::ALL.into_iter().map(by_class).collect::<Map<_, _>>(),
        "operators": usage.operators,
        "memory_byte_seconds": usage.memory_byte_seconds,
        "bytes_in": usage.bytes_in,
        "bytes_out": usage.bytes_out,
        "hbm_bytes": usage.hbm_bytes,
        "prompt_tokens": usage.prompt_tokens,
        "output_tokens": usage.output_tokens,
    })
}

/// `GET /v1/usage`: all time that the ledger knows.
pub async fn usage(State(admin): State<Admin>) -> Result<Json<Value>, Failure> {
    let total = book(admin).await?.total().unwrap_or_default();
    let tenants: Map<_, _> = total.tenants.iter().map(|(name, usage)| (name.clone(), figures(usage))).collect();
    Ok(Json(json!({
        "from_ms": total.from_ms,
        "to_ms": total.to_ms,
        "busy_ns": total.busy_ns,
        "tenants": tenants,
    })))
}

/// Rows of a table.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    /// One of all time.
    #[default]
    Total,
    /// One an hour.
    Hour,
}

/// Parameters of a table.
#[derive(Deserialize)]
pub struct Table {
    #[serde(default)]
    by: By,
}

/// `GET /v1/usage.csv`.
pub async fn csv(State(admin): State<Admin>, table: Result<Query<Table>, QueryRejection>) -> Result<Response, Failure> {
    let Query(table) = table?;
    let text = book(admin).await?.csv(matches!(table.by, By::Hour));
    Ok(([(header::CONTENT_TYPE, CSV)], text).into_response())
}
