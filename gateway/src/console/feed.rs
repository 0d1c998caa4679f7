//! What the console shows: gathered once a second for everyone who looks.
//!
//! A task asks each daemon for its status and puts it beside the gateway's own. It runs while somebody looks, and ends when the last
//! one is gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config::Config;
use crate::gateway::Gateway;

use super::histograms;

/// Between two events.
const EVERY: Duration = Duration::from_secs(1);
/// For a daemon's answer.
const PATIENCE: Duration = Duration::from_millis(900);
/// Longest answer of a daemon.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Parts of a daemon's status that the page has no use for.
const UNUSED: [&str; 3] = ["predictions", "turns", "recording"];

/// Events for whoever looks.
#[derive(Default)]
pub struct Feed {
    running: Mutex<Option<watch::Sender<Arc<str>>>>,
}

impl Feed {
    /// The events from now on; the first is there as soon as it has been gathered.
    pub fn look(&self, gateway: &Arc<Gateway>) -> watch::Receiver<Arc<str>> {
        let mut running = self.running.lock();
        if let Some(sender) = &*running {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(Arc::from(""));
        *running = Some(sender);
        tokio::spawn(gather(Arc::clone(gateway)));
        receiver
    }

    /// Tells everyone; false, and over, if there is nobody.
    fn tell(&self, event: Arc<str>) -> bool {
        let mut running = self.running.lock();
        let heard = running.as_ref().is_some_and(|sender| sender.send(event).is_ok());
        if !heard {
            *running = None;
        }
        heard
    }
}

async fn gather(gateway: Arc<Gateway>) {
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let setup = gateway.setup();
        let asked: Vec<_> = daemons(&setup.config)
            .into_iter()
            .map(|address| tokio::task::spawn_blocking(move || daemon(&address)))
            .collect();
        let mut found = Vec::new();
        for answer in asked {
            found.extend(answer.await);
        }
        let event = event(&gateway, found);
        if !gateway.console.tell(Arc::from(event.to_string())) {
            return;
        }
    }
}

fn event(gateway: &Gateway, daemons: Vec<Value>) -> Value {
    let page = gateway.metrics_page();
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "at_ms": at.as_millis() as u64,
        "gateway": crate::admin::status_of(gateway),
        "phases": histograms::by_label(&page, "gateway_requests", "phase"),
        "tokens": histograms::by_label(&page, "gateway_tenant_tokens_total", "kind"),
        "ttft": histograms::buckets(&page, "gen_ai_server_time_to_first_token_seconds"),
        "tpot": histograms::buckets(&page, "gen_ai_server_time_per_output_token_seconds"),
        "operators": !gateway.setup().config.console.operator_key_sha256.is_empty(),
        "daemons": daemons,
    })
}

/// Admin addresses of every daemon that the configuration names, each once.
pub fn daemons(config: &Config) -> BTreeSet<String> {
    config.engines.iter().filter_map(|e| e.daemon.clone()).chain(config.console.daemons.iter().cloned()).collect()
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build().into()
}

fn daemon(address: &str) -> Value {
    let ask = || -> Result<Value, ureq::Error> {
        let mut answer = agent().get(format!("http://{address}/v1/status")).call()?;
        answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_json()
    };
    match ask() {
        Ok(Value::Object(mut status)) => {
            UNUSED.iter().for_each(|name| drop(status.remove(*name)));
            json!({ "address": address, "status": status })
        }
        Ok(_) => json!({ "address": address, "error": "its answer is no status" }),
        Err(e) => json!({ "address": address, "error": e.to_string() }),
    }
}

/// Asks a daemon for another policy: its answer.
///
/// # Errors
/// There is none.
pub fn put_policy(address: &str, policy: &str) -> Result<(u16, Value), ureq::Error> {
    let ask = agent().put(format!("http://{address}/v1/policy")).content_type("text/plain");
    let mut answer = ask.send(policy)?;
    Ok((answer.status().as_u16(), answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_json()?))
}
