//! The console: one page for operators, on the admin listener. What the gateway and the daemons under its engines do now, live.
//!
//! The page has no foreign part: its style and script are served from here, and its policy forbids everything else. Figures come as
//! server-sent events, one a second, the same for everyone who looks; while nobody does, nobody is asked. One thing can be changed,
//! a daemon's dispatch policy, by whoever has a key of `[console] operator_key_sha256`.
//!
//! **Invariant:** names of tenants, engines and processes are strangers' text. They travel as JSON and the page sets them as text,
//! never as markup.

mod events;
mod feed;
mod histograms;

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::gateway::Gateway;

pub use events::events;
pub use feed::Feed;

/// Nothing but what this listener serves, and no frame around it.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                              base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const PAGE: &str = include_str!("page/console.html");
const STYLE: &str = include_str!("page/console.css");
const SCRIPT: &str = include_str!("page/console.js");
const ICON: &str = include_str!("page/icon.svg");

fn asset(kind: &'static str, body: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // A newer gateway at the same address has a newer page.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, body).into_response()
}

/// The page.
pub async fn page() -> Response {
    asset("text/html; charset=utf-8", PAGE)
}

/// Its style.
pub async fn style() -> Response {
    asset("text/css; charset=utf-8", STYLE)
}

/// Its script.
pub async fn script() -> Response {
    asset("text/javascript; charset=utf-8", SCRIPT)
}

/// Its icon.
pub async fn icon() -> Response {
    asset("image/svg+xml", ICON)
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}

/// A change of policy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    /// Which daemon, by the address that events name.
    daemon: String,
    /// As `vnpu policy set` takes it.
    policy: String,
}

/// Changes a daemon's policy, for an operator.
pub async fn put_policy(State(gateway): State<Arc<Gateway>>, headers: HeaderMap, body: Bytes) -> Response {
    let setup = gateway.setup();
    let console = &setup.config.console;
    if console.operator_key_sha256.is_empty() {
        let message =
            "nobody may: set `operator_key_sha256` in [console] of the gateway's file (`gateway key` makes a key)";
        return error(StatusCode::FORBIDDEN, message);
    }
    let authorization = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    if !authorization.is_some_and(|value| crate::identity::is_key_of(value, &console.operator_key_sha256)) {
        let refusal = error(StatusCode::UNAUTHORIZED, "want an operator's key: `Authorization: Bearer sk-…`");
        return ([(header::WWW_AUTHENTICATE, "Bearer")], refusal).into_response();
    }
    let wanted = serde_json::from_slice::<serde_json::Map<String, Value>>(&body)
        .map(Value::Object)
        .and_then(serde_json::from_value);
    let Change { daemon, policy } = match wanted {
        Ok(change) => change,
        Err(e) => return error(StatusCode::BAD_REQUEST, &format!("want {{\"daemon\": …, \"policy\": …}}: {e}")),
    };
    if !feed::daemons(&setup.config).contains(&daemon) {
        return error(StatusCode::NOT_FOUND, "no daemon at that address; the console shows those of the configuration");
    }
    // It connects and waits.
    match tokio::task::spawn_blocking(move || feed::put_policy(&daemon, &policy)).await {
        Ok(Ok((status, answer))) => {
            (StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), Json(answer)).into_response()
        }
        Ok(Err(e)) => error(StatusCode::BAD_GATEWAY, &format!("the daemon does not answer: {e}")),
        Err(e) => error(StatusCode::INTERNAL_SERVER_ERROR, &e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere_and_has_no_inline_code() {
        for (what, text) in [("page", PAGE), ("style", STYLE), ("script", SCRIPT), ("icon", ICON)] {
            let foreign = text.replace("http://www.w3.org/2000/svg", "");
            assert!(
                !foreign.contains("http://") && !foreign.contains("https://") && !foreign.contains("//cdn"),
                "{what}"
            );
        }
        for inline in ["<style", "style=", "onclick", "onload", "javascript:"] {
            assert!(!PAGE.contains(inline), "{inline}");
        }
        // Strangers' text is set as text.
        for sink in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "setAttribute(\"on"] {
            assert!(!SCRIPT.contains(sink), "{sink}");
        }
    }
}
