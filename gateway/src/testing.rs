//! What operators' clients and engines may send, for fuzz targets and the replay of their corpora: any request to the admin API,
//! any answer of an engine.

use std::path::PathBuf;
use std::sync::Arc;

use axum::http::StatusCode;
use probe::Probe;

use crate::admin;
use crate::config::Config;
use crate::events::{Events, Seen};
use crate::gateway::Gateway;
use crate::hints::Hints;
use crate::metrics::Metrics;
use crate::wants::Wants;

/// A gateway without its sockets.
pub struct Admin {
    probe: Probe,
}

impl Admin {
    /// In front of one engine that is not there. `file`, if there is one, is what a reload reads.
    ///
    /// # Panics
    /// If the configuration cannot be had.
    pub fn start(file: Option<PathBuf>) -> Self {
        let router = || {
            let config = match &file {
                Some(file) => Config::read(file).expect("a configuration"),
                None => Config::sidecar(&["127.0.0.1:9".to_owned()]),
            };
            let metrics = Arc::new(Metrics::default());
            let hints = Hints::start(None, Arc::clone(&metrics));
            let objectives = (Wants::objectives(1000, 50), false);
            let gateway = Gateway::new((config, file), objectives, hints, metrics, None).expect("a gateway");
            (admin::router(Arc::new(gateway)), admin::paths())
        };
        Self { probe: Probe::new(router) }
    }

    /// Sends the request that `bytes` make; see [`Probe::check`].
    ///
    /// # Panics
    /// If a promise is broken.
    pub fn check(&self, bytes: &[u8]) -> Option<StatusCode> {
        self.probe.check(bytes)
    }
}

/// However an engine's stream is cut, the client gets the same and the same is counted; without usage to hide, what it gets is what
/// came. The first byte says whether to hide it, the second into pieces of how many bytes to cut.
///
/// # Panics
/// If a promise is broken.
pub fn check_events(bytes: &[u8]) {
    let [hide, size, stream @ ..] = bytes else { return };
    let hide = hide & 1 == 1;
    let whole = passed(hide, std::iter::once(stream));
    let cut = passed(hide, stream.chunks(usize::from(*size).max(1)));
    assert_eq!(cut, whole, "pieces of {size} bytes");
    if !hide {
        assert_eq!(whole.0, stream[..whole.0.len()]);
    }
}

/// What the client gets, and what was counted.
fn passed<'a>(hide: bool, pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Seen, Option<openai::Usage>) {
    let (mut events, mut out, mut all) = (Events::new(hide), Vec::new(), Seen::default());
    for piece in pieces {
        let seen = events.feed(piece, &mut out).expect("shorter than the bound");
        all.tokens += seen.tokens;
        all.done |= seen.done;
        all.error |= seen.error;
    }
    (out, all, events.usage())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(target: &str, check: impl Fn(&[u8])) {
        let seeds = format!("{}/../fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
        let replayed = wire::testing::replay(seeds.as_ref(), check);
        assert!(replayed >= 10, "{target}: {replayed} seeds");
    }

    #[test]
    fn corpus_of_admin_requests_replays() {
        let admin = Admin::start(None);
        replay("gateway_admin", |bytes| {
            admin.check(bytes);
        });
    }

    #[test]
    fn corpus_of_engines_streams_replays() {
        replay("gateway_stream", check_events);
    }

    #[test]
    fn every_route_refuses_nonsense_without_a_fault() {
        let admin = Admin::start(None);
        for path in 0..admin.probe.paths().len() as u8 {
            for method in 0..7 {
                for rest in ["", "?a=b", "?%ff=%zz\n", "\n{", "\n[]", "\n{\"draining\":{}}", "\n\u{0}"] {
                    admin.check(&[&[method, b' ', path], rest.as_bytes()].concat());
                }
            }
        }
    }
}
