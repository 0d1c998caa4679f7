//! `vnpu health`: asks a program whether it is well, by its exit code. For images that have nothing but the program itself: the
//! health checks of containers cannot rely on a shell or `curl`.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

/// Longer than any program of ours takes, shorter than an orchestrator's patience.
const PATIENCE: Duration = Duration::from_secs(3);

/// Ask a program whether it is well: exit code 0 if the URL answers with a success.
#[derive(Debug, Args)]
pub struct Health {
    /// As in http://127.0.0.1:9100/health
    url: String,
}

impl Health {
    /// Asks.
    ///
    /// # Errors
    /// If there is no answer, or another than a success.
    pub fn run(&self) -> Result<()> {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build();
        let answer = ureq::Agent::from(config).get(&self.url).call();
        let status = answer.with_context(|| format!("no answer from {}", self.url))?.status();
        ensure!(status.is_success(), "{} answers {status}", self.url);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn only_a_success_is_well() {
        for (status, words) in [("200 OK", None), ("503 Service Unavailable", Some("503")), ("", Some("no answer"))] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let url = format!("http://{}/health", listener.local_addr().unwrap());
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                if !status.is_empty() {
                    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
                }
            });
            let said = Health { url }.run().map_err(|e| format!("{e:#}"));
            server.join().unwrap();
            assert_eq!(said.is_ok(), words.is_none(), "{said:?}");
            assert!(words.is_none_or(|w| said.as_ref().unwrap_err().contains(w)), "{said:?}");
        }
    }
}
