//! `loadgen policies`: the same run under one dispatch policy of a daemon after another, and one table of all.
//!
//! The policy is changed through the daemon's admin API and put back at the end, however the runs end.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use loadgen::audit;
use loadgen::policies::{self, Named};
use serde_json::{Value, json};

use crate::cli::RunArgs;
use crate::out::say;
use crate::{plan, run, several};

/// For one answer of a daemon.
const PATIENCE: Duration = Duration::from_secs(10);

/// A target, the daemon under it, and policies.
#[derive(Clone, Debug, clap::Args)]
pub struct PoliciesArgs {
    /// The target and what it is sent.
    #[command(flatten)]
    pub run: RunArgs,
    /// Admin API of the daemon under the target's engine, `host:port`.
    #[arg(long, value_name = "HOST:PORT")]
    pub daemon: String,
    /// Policies, as `vnpu policy set` takes them; the first is what the second is compared with.
    #[arg(long, value_delimiter = ',', default_values = ["fifo", "phase"])]
    pub policies: Vec<String>,
}

/// `loadgen policies`.
///
/// # Errors
/// As a run's, or a daemon that does not answer or does not know a policy.
pub fn command(args: &PoliciesArgs) -> anyhow::Result<u8> {
    several::only(&args.run, false)?;
    let plan = plan::plan(&args.run)?;
    let daemon = Daemon { address: &args.daemon };
    let status = daemon.ask("GET", "/v1/status", "")?;
    let label = status["device"]["label"].as_str().context("the daemon's status has no device label")?.to_owned();
    // As `set` takes it: parameters that were given to it come back with it.
    let before = daemon.ask("GET", "/v1/policy", "")?;
    let runs = measure(args, &plan, &daemon);
    daemon.ask("PUT", "/v1/policy", &before.to_string()).context("putting the policy back")?;
    let (runs, limited) = runs?;
    say!("{}", policies::table(&label, &runs));
    say!("   {}\n", limited.as_ref().map_or_else(|| audit::Verdict::Valid.to_string(), ToString::to_string));
    let all = runs.iter().flat_map(|(name, figures)| {
        figures.iter().map(move |(figure, value)| (format!("{name}_{figure}"), value.clone()))
    });
    let label = [("device".to_owned(), json!(label))];
    several::write(args.run.json.as_deref(), Value::Object(all.chain(label).collect()))?;
    Ok(if limited.is_some() { 3 } else { 0 })
}

fn measure(
    args: &PoliciesArgs,
    plan: &[loadgen::dataset::Planned],
    daemon: &Daemon<'_>,
) -> anyhow::Result<(Vec<Named>, Option<audit::Verdict>)> {
    let (mut runs, mut limited) = (Vec::new(), None);
    for policy in &args.policies {
        daemon.ask("PUT", "/v1/policy", policy).with_context(|| format!("policy {policy}"))?;
        eprintln!("{policy}: {} requests …", plan.len());
        let finished = run::finish(&args.run, plan)?;
        ensure!(finished.report.completed > 0, "{policy}: every request failed: {:?}", finished.report.errors.first());
        if finished.audit.verdict() != audit::Verdict::Valid {
            limited = Some(finished.audit.verdict());
        }
        runs.push((policy.clone(), finished.report.figures()));
    }
    Ok((runs, limited))
}

struct Daemon<'a> {
    address: &'a str,
}

impl Daemon<'_> {
    /// One exchange: a few hundred bytes either way, the connection closed after it.
    fn ask(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
        let address = self.address;
        let context = || format!("no answer from a daemon's admin API at {address}");
        let mut stream = TcpStream::connect(address).with_context(context)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let kind = if body.starts_with('{') { "application/json" } else { "text/plain" };
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {length}"
        );
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(context)?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(context)?;
        // Axum sends such short answers with their length, not in chunks.
        let value: Value = serde_json::from_str(body).with_context(|| format!("{address} answers {body:?}"))?;
        if head.split(' ').nth(1) != Some("200") {
            bail!("{address}: {}", value["error"].as_str().unwrap_or(body));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_daemon_are_in_its_own_words() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            for (status, body) in
                [("200 OK", r#"{"name":"fifo"}"#), ("400 Bad Request", r#"{"error":"no such policy"}"#)]
            {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).unwrap();
                assert!(String::from_utf8_lossy(&request[..read]).contains("content-type: text/plain"));
                write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
        });
        let daemon = Daemon { address: &address };
        assert_eq!(daemon.ask("PUT", "/v1/policy", "fifo").unwrap()["name"], "fifo");
        let error = daemon.ask("PUT", "/v1/policy", "lottery").unwrap_err().to_string();
        assert!(error.contains("no such policy"), "{error}");
        server.join().unwrap();
    }
}
