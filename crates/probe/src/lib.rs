//! Requests made of bytes, against an HTTP router without a socket: what fuzz targets and tests of the admin APIs share.
//!
//! The first line of an input is a method and a target, the rest a body. A target that does not begin with `/` chooses a path of
//! the router's by its first byte, parameters filled in from a few names, and goes on as the query: whatever routes are added,
//! inputs reach them. Only tests and fuzzers depend on this crate.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use tower::ServiceExt as _;

/// After so long the client leaves: handlers that answer over time are dropped half done.
const ANSWER_MAX: Duration = Duration::from_millis(50);
/// Longest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 16 << 20;
const METHODS: [Method; 7] =
    [Method::GET, Method::PUT, Method::POST, Method::DELETE, Method::PATCH, Method::HEAD, Method::OPTIONS];
/// What stands in place of `{…}` in a path; the router under test knows some of them.
const NAMES: [&str; 8] = ["engine-0", "0", "default", "18446744073709551616", "%F0%9F%A6%80", "..", "a%00b", "%ff"];

/// A router and its paths, with a runtime to drive it.
pub struct Probe {
    router: Router,
    paths: Vec<&'static str>,
    runtime: tokio::runtime::Runtime,
}

impl Probe {
    /// Drives what `make` gives, inside the runtime that requests will run in: a router, and each of its paths.
    ///
    /// # Panics
    /// If the system gives no runtime.
    pub fn new(make: impl FnOnce() -> (Router, Vec<&'static str>)) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (router, paths) = runtime.block_on(async { make() });
        Self { router, paths, runtime }
    }

    /// The paths.
    pub fn paths(&self) -> &[&'static str] {
        &self.paths
    }

    /// Sends the request that `bytes` make. Whatever they are, no handler panics and none answers that the server is at fault, but
    /// that it is not ready (503); what says JSON is JSON. The status, if there was an answer in time.
    ///
    /// # Panics
    /// If a promise is broken.
    pub fn check(&self, bytes: &[u8]) -> Option<StatusCode> {
        let request = request(bytes, &self.paths)?;
        let asked = format!("{} {}", request.method(), request.uri());
        let router = self.router.clone();
        let answer = self.runtime.block_on(async {
            tokio::time::timeout(ANSWER_MAX, async {
                let answer = router.oneshot(request).await.unwrap_or_else(|never| match never {});
                let (head, body) = answer.into_parts();
                (head, to_bytes(body, ANSWER_BYTES_MAX).await.expect("a body inside its bound"))
            })
            .await
        });
        let (head, body) = answer.ok()?;
        let fault = head.status.is_server_error() && head.status != StatusCode::SERVICE_UNAVAILABLE;
        assert!(!fault, "{asked}: {}: {}", head.status, String::from_utf8_lossy(&body));
        let json = head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
        if json && !body.is_empty() {
            let read = serde_json::from_slice::<serde_json::Value>(&body);
            assert!(read.is_ok(), "{asked}: no JSON: {}", String::from_utf8_lossy(&body));
        }
        Some(head.status)
    }
}

/// The request that `bytes` make; `None` if no HTTP library would have let it in.
fn request(bytes: &[u8], paths: &[&str]) -> Option<Request<Body>> {
    let end = bytes.iter().position(|&b| b == b'\n').unwrap_or(bytes.len());
    let (line, body) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let space = line.iter().position(|&b| b == b' ')?;
    let (method, target) = (&line[..space], &line[space + 1..]);
    // A method is its name, or any byte.
    let method = match method {
        [byte] => METHODS[usize::from(*byte) % METHODS.len()].clone(),
        name => Method::from_bytes(name).ok()?,
    };
    let target = match target.split_first() {
        Some((b'/', _)) => String::from_utf8(target.to_vec()).ok()?,
        Some((&choice, query)) => {
            let path = filled(paths[usize::from(choice) % paths.len()], usize::from(choice) / paths.len());
            format!("{path}{}", std::str::from_utf8(query).ok()?)
        }
        None => return None,
    };
    let mut request = Request::builder().method(method).uri(target);
    if body.first() == Some(&b'{') {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    request.body(Body::from(body.to_vec())).ok()
}

/// A path with something in place of each parameter.
fn filled(path: &str, choice: usize) -> String {
    let name = NAMES[choice % NAMES.len()];
    let mut out = String::new();
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        out.push_str(name);
        rest = after.split_once('}').map_or("", |(_, after)| after);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;

    #[test]
    fn inputs_become_requests() {
        let paths = ["/a", "/b/{name}/c"];
        for (input, want) in [
            (&b"PUT /x?y=1\n{}"[..], Some("PUT /x?y=1")),
            (b"G \x00", Some("PUT /a")),
            (b"GET \x01?q=1\nbody", Some("GET /b/engine-0/c?q=1")),
            (b"GET \x03", Some("GET /b/0/c")),
            (b"GET", None),
            (b"GET /\xff", None),
            (b"", None),
        ] {
            let made = request(input, &paths).map(|r| format!("{} {}", r.method(), r.uri()));
            assert_eq!(made.as_deref(), want, "{input:?}");
        }
    }

    #[test]
    #[should_panic(expected = "500")]
    fn servers_fault_is_found() {
        let fault = || async { StatusCode::INTERNAL_SERVER_ERROR };
        Probe::new(|| (Router::new().route("/x", get(fault)), vec!["/x"])).check(b"GET /x");
    }

    #[test]
    fn handler_that_takes_its_time_is_left() {
        let slow = || async { std::future::pending::<StatusCode>().await };
        let probe = Probe::new(|| (Router::new().route("/x", get(slow)), vec!["/x"]));
        assert_eq!(probe.check(b"GET /x"), None);
        assert_eq!(probe.check(b"GET /y"), Some(StatusCode::NOT_FOUND));
    }
}
