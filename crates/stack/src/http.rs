//! A small view of an HTTP API: JSON calls and completion streams.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// An `http://host:port`.
#[derive(Clone)]
pub struct Http {
    base: String,
    agent: ureq::Agent,
    headers: Vec<(String, String)>,
}

/// One event of a completion stream.
#[derive(Clone, Debug)]
pub enum StreamEvent {
    /// Text and when it arrived.
    Text(String, Instant),
    /// An `error` object in mid-stream.
    Error(Value),
    /// Usage.
    Usage(Value),
    /// `[DONE]`.
    Done,
}

/// A streamed completion; dropping it closes the connection.
pub struct Completion {
    lines: std::io::Lines<BufReader<ureq::BodyReader<'static>>>,
    finish_reason: Option<String>,
}

impl Http {
    /// An API at `url`, with or without its scheme. TLS is not spoken here.
    pub fn new(url: &str) -> Self {
        let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
        let base = format!("http://{}", authority.trim_end_matches('/'));
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(600)))
            .timeout_connect(Some(Duration::from_secs(5)))
            .max_idle_connections(0)
            .build();
        Self { base, agent: config.into(), headers: Vec::new() }
    }

    /// The same API, every request with this header too.
    #[must_use]
    pub fn with_header(&self, name: &str, value: &str) -> Self {
        let mut with = self.clone();
        with.headers.push((name.to_owned(), value.to_owned()));
        with
    }

    /// The same API; a call, its answer read to the end, that takes longer is an error.
    #[must_use]
    pub fn within(&self, time_max: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(time_max))
            .max_idle_connections(0)
            .build();
        Self { agent: config.into(), ..self.clone() }
    }

    /// `http://host:port`.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// Body of a GET.
    ///
    /// # Errors
    /// On no connection or a status that is not a success.
    pub fn get(&self, path: &str) -> Result<String> {
        let mut response = self.agent.get(format!("{}{path}", self.base)).call().with_context(|| path.to_owned())?;
        let text = response.body_mut().read_to_string()?;
        if !response.status().is_success() {
            bail!("GET {path}: HTTP {}: {text}", response.status());
        }
        Ok(text)
    }

    /// JSON of a GET.
    ///
    /// # Errors
    /// As [`get`](Self::get), and if it is not JSON.
    pub fn get_json(&self, path: &str) -> Result<Value> {
        serde_json::from_str(&self.get(path)?).with_context(|| format!("GET {path}"))
    }

    /// Value of a Prometheus sample: the sum over the lines that start with `name`, up to `{` or a space.
    ///
    /// # Errors
    /// If the page cannot be read or has no such sample.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let page = self.get("/metrics")?;
        let samples: Vec<f64> = page
            .lines()
            .filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter_map(|l| l.rsplit(' ').next()?.parse().ok())
            .collect();
        if samples.is_empty() {
            bail!("no sample `{name}` in {}/metrics", self.base);
        }
        Ok(samples.iter().sum())
    }

    /// Sends a body as it is; status and text of the answer.
    ///
    /// # Errors
    /// On no connection.
    pub fn send(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let mut response = self.run(method, path, body)?;
        Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
    }

    fn run(&self, method: &str, path: &str, body: &str) -> Result<ureq::http::Response<ureq::Body>> {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("content-type", "application/json");
        let request = self.headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        self.agent.run(request.body(body.to_owned())?).with_context(|| format!("{method} {path}"))
    }

    /// Posts JSON; JSON of the answer.
    ///
    /// # Errors
    /// On no connection, a status that is not a success, or an answer that is not JSON.
    pub fn post_json(&self, path: &str, body: &Value) -> Result<Value> {
        let (status, text) = self.send("POST", path, &body.to_string())?;
        if !(200..300).contains(&status) {
            bail!("POST {path}: HTTP {status}: {text}");
        }
        serde_json::from_str(&text).with_context(|| format!("POST {path}: {text}"))
    }

    /// Starts a streamed completion (`stream` is set here).
    ///
    /// # Errors
    /// On no connection or a status that is not a success.
    pub fn stream(&self, path: &str, body: &Value) -> Result<Completion> {
        let mut body = body.clone();
        body["stream"] = Value::Bool(true);
        let mut response = self.run("POST", path, &body.to_string())?;
        if !response.status().is_success() {
            bail!("POST {path}: HTTP {}: {}", response.status(), response.body_mut().read_to_string()?);
        }
        let reader = BufReader::new(response.into_body().into_reader());
        Ok(Completion { lines: reader.lines(), finish_reason: None })
    }
}

impl Completion {
    /// Why the model stopped, once it has said so.
    pub fn finish_reason(&self) -> Option<&str> {
        self.finish_reason.as_deref()
    }

    /// Collects the whole text.
    ///
    /// # Errors
    /// On an error event or a stream that ends without `[DONE]`.
    pub fn text(&mut self) -> Result<String> {
        let mut text = String::new();
        for event in self.by_ref() {
            match event? {
                StreamEvent::Text(t, _) => text += &t,
                StreamEvent::Error(e) => bail!("error in the stream: {e}"),
                StreamEvent::Usage(_) => {}
                StreamEvent::Done => return Ok(text),
            }
        }
        bail!("the stream ended without [DONE] after `{text}`")
    }
}

impl Iterator for Completion {
    type Item = Result<StreamEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let line = match self.lines.next()? {
                Ok(line) => line,
                Err(error) => return Some(Err(error.into())),
            };
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                return Some(Ok(StreamEvent::Done));
            }
            let value: Value = match serde_json::from_str(data) {
                Ok(value) => value,
                Err(error) => return Some(Err(error).with_context(|| data.to_owned())),
            };
            if value.get("error").is_some_and(|e| !e.is_null()) {
                return Some(Ok(StreamEvent::Error(value["error"].clone())));
            }
            let choice = &value["choices"][0];
            if let Some(reason) = choice["finish_reason"].as_str() {
                self.finish_reason = Some(reason.to_owned());
            }
            let text = choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or_default();
            if !text.is_empty() {
                return Some(Ok(StreamEvent::Text(text.to_owned(), Instant::now())));
            }
            if value["usage"].is_object() {
                return Some(Ok(StreamEvent::Usage(value["usage"].clone())));
            }
        }
    }
}
