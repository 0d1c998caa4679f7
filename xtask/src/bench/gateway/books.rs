//! The gateway's books, as its metrics show them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use stack::Program;

use super::client::Client;

/// Longest wait for a gauge.
const PATIENCE: Duration = Duration::from_secs(60);
/// Everything that a request may hold.
pub const HELD: [&str; 7] = [
    "gateway_requests",
    "gateway_queue_requests",
    "gateway_queue_bytes",
    "gateway_admitted_requests",
    "gateway_engine_prefill_tokens",
    "gateway_engine_sequences",
    "gateway_engine_kv_tokens",
];

/// A connection to the admin listener.
pub struct Books {
    client: Client,
}

impl Books {
    /// Of a gateway.
    ///
    /// # Errors
    /// If its admin listener does not answer.
    pub async fn open(gateway: &Program) -> Result<Self> {
        let admin = gateway.ready_field("admin").context("the gateway's ready line has no admin=")?;
        Ok(Self { client: Client::connect(admin.trim_start_matches("http://")).await? })
    }

    /// The page of metrics.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn page(&mut self) -> Result<String> {
        self.client.get("/metrics").await
    }

    /// A metric, added up over its labels.
    ///
    /// # Errors
    /// If the page cannot be read.
    pub async fn read(&mut self, name: &str) -> Result<f64> {
        Ok(sum(&self.page().await?, name))
    }

    /// Waits until a metric is as wanted; looks as often as it can.
    ///
    /// # Errors
    /// If that takes too long.
    pub async fn wait(&mut self, name: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.read(name).await?;
            if wanted(value) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{name} is still {value}");
        }
    }

    /// Waits until nothing is held.
    ///
    /// # Errors
    /// Names what is still held.
    pub async fn wait_for_nothing(&mut self) -> Result<()> {
        for name in HELD {
            self.wait(name, |value| value == 0.0).await?;
        }
        Ok(())
    }
}

/// Sum of the samples called `name` of a page.
pub fn sum(page: &str, name: &str) -> f64 {
    let lines = page.lines().filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
