//! Clients on hyper: one connection each, whole answers or streams.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A connection that is kept.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// If nobody listens.
    pub async fn connect(authority: &str) -> Result<Self> {
        let stream = TcpStream::connect(authority).await.with_context(|| authority.to_owned())?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Posts JSON; the head of the answer has come.
    ///
    /// # Errors
    /// If the connection breaks or the answer is no success.
    pub async fn post(&mut self, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        self.sender.ready().await?;
        let request = Request::post(path).header("host", "localhost").header("content-type", "application/json");
        let response = self.sender.send_request(request.body(Full::new(body))?).await?;
        ensure!(response.status().is_success(), "{path}: {}", response.status());
        Ok(response)
    }

    /// Body of a GET.
    ///
    /// # Errors
    /// If the connection breaks or the answer is no success.
    pub async fn get(&mut self, path: &str) -> Result<String> {
        self.sender.ready().await?;
        let request = Request::get(path).header("host", "localhost").body(Full::default())?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status().is_success(), "{path}: {}", response.status());
        Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?)
    }

    /// Posts JSON and reads the whole answer.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub async fn whole(&mut self, path: &str, body: Bytes) -> Result<usize> {
        let mut answer = self.post(path, body).await?.into_body();
        let mut bytes = 0;
        while let Some(frame) = answer.frame().await {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(bytes)
    }
}

/// One token of the mock engine: which one, and when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Counted from 0.
    pub number: u64,
    /// Microseconds of [`super::mock::now_us`].
    pub sent_us: u64,
}

impl Token {
    /// In the data of an event; `None` if it has no text.
    pub fn of(data: &[u8]) -> Option<Self> {
        const TEXT: &[u8] = b"\"content\":";
        let at = data.windows(TEXT.len()).position(|w| w == TEXT)? + TEXT.len();
        let rest = data[at..].trim_ascii_start().strip_prefix(b"\"")?;
        let end = rest.iter().position(|&b| b == b' ' || b == b'"')?;
        let (number, sent_us) = std::str::from_utf8(&rest[..end]).ok()?.split_once('@')?;
        Some(Self { number: number.parse().ok()?, sent_us: sent_us.parse().ok()? })
    }
}

/// A chat request of about so many bytes.
pub fn chat(bytes: usize, stream: bool, max_tokens: u64) -> Bytes {
    let head = format!("{{\"model\":\"m\",\"stream\":{stream},\"max_tokens\":{max_tokens},\"messages\":[");
    let text = "The quick brown fox jumps over the lazy dog. ";
    let text: String = text.chars().cycle().take(bytes.saturating_sub(head.len() + 30)).collect();
    format!("{head}{{\"role\":\"user\",\"content\":\"{text}\"}}]}}").into()
}

/// Percentile of values that need not be sorted; NaN of none.
pub fn percentile(values: &mut [f64], percent: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * percent / 100.0).round() as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_from_any_spacing() {
        let token = Some(Token { number: 17, sent_us: 5 });
        assert_eq!(Token::of(br#"{"choices":[{"delta":{"content":"17@5 "}}]}"#), token);
        assert_eq!(Token::of(br#"{"choices": [{"delta": {"content": "17@5 "}}]}"#), token);
        assert_eq!(Token::of(br#"{"choices":[{"delta":{"content":""}}]}"#), None);
        assert_eq!(chat(1000, true, 5).len(), 1000);
    }

    #[test]
    fn percentiles_of_few_and_none() {
        assert_eq!(percentile(&mut [3.0, 1.0, 2.0], 50.0), 2.0);
        assert_eq!(percentile(&mut [3.0, 1.0, 2.0], 99.0), 3.0);
        assert!(percentile(&mut [], 50.0).is_nan());
    }
}
