//! A daemon's admin API, as commands use it.

use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// The daemon answers within a second or says that it cannot.
const PATIENCE: Duration = Duration::from_secs(5);

/// One daemon.
#[derive(Clone)]
pub struct Admin {
    address: SocketAddr,
    agent: ureq::Agent,
}

impl Admin {
    /// The API at `address`; a call takes `more` longer than others at most.
    pub fn new(address: SocketAddr, more: Duration) -> Self {
        let config =
            ureq::Agent::config_builder().timeout_global(Some(PATIENCE + more)).http_status_as_error(false).build();
        Self { address, agent: config.into() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn answer(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<ureq::Body> {
        let answer = answer.with_context(|| {
            format!("no answer from a daemon at {}; vnpu-daemon --admin {} starts one", self.address, self.address)
        })?;
        let status = answer.status();
        let mut body = answer.into_body();
        if !status.is_success() {
            let value: Value = body.read_json().unwrap_or_default();
            match value["error"].as_str() {
                Some(error) => bail!("{error}"),
                None => bail!("{} answers {status}: is this a daemon's admin API?", self.address),
            }
        }
        Ok(body)
    }

    fn json(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value> {
        self.answer(answer)?.read_json().context("the answer is not JSON: is this a daemon's admin API?")
    }

    /// A GET's answer.
    ///
    /// # Errors
    /// No daemon, or its refusal in its own words.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.json(self.agent.get(self.url(path)).call())
    }

    /// A PUT's answer.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub fn put(&self, path: &str, content_type: &str, body: &str) -> Result<Value> {
        self.json(self.agent.put(self.url(path)).content_type(content_type).send(body))
    }

    /// A DELETE.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub fn delete(&self, path: &str) -> Result<()> {
        self.answer(self.agent.delete(self.url(path)).call()).map(drop)
    }

    /// A GET's bytes, at most `most`.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub fn bytes(&self, path: &str, most: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.answer(self.agent.get(self.url(path)).call())?
            .into_reader()
            .take(most)
            .read_to_end(&mut bytes)
            .with_context(|| format!("the answer of {} breaks off", self.address))?;
        Ok(bytes)
    }
}
