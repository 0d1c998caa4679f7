//! Both ends of HTTP by hand, for what a library hides: a client that leaves at any moment, an engine that sees it leave.

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Sends a completion request on a connection of its own; the answer has not been waited for.
///
/// # Errors
/// If nobody listens.
pub async fn send(authority: &str, body: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(authority).await.with_context(|| authority.to_owned())?;
    stream.set_nodelay(true)?;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length:";
    stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
    Ok(stream)
}

/// A connection accepted by an engine.
pub struct Exchange {
    stream: BufReader<TcpStream>,
}

impl Exchange {
    /// On this connection.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }

    /// Body of the next request that is none of the gateway's own looks; `None` at the end of the connection. A list of
    /// models is answered with `model`.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn request(&mut self, model: &str) -> Result<Option<String>> {
        loop {
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if self.stream.read_line(&mut line).await? == 0 {
                    return Ok(None);
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse()?;
                }
                if line == "\r\n" {
                    break;
                }
                head += &line;
            }
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).await?;
            if !head.starts_with("GET ") {
                return Ok(Some(String::from_utf8(body)?));
            }
            self.answer(&format!("{{\"data\":[{{\"id\":\"{model}\"}}]}}")).await?;
        }
    }

    /// A whole answer.
    ///
    /// # Errors
    /// If the other side has left.
    pub async fn answer(&mut self, body: &str) -> Result<()> {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length:";
        self.say(&format!("{head} {}\r\n\r\n{body}", body.len())).await
    }

    /// The head of a stream.
    ///
    /// # Errors
    /// If the other side has left.
    pub async fn start_stream(&mut self) -> Result<()> {
        self.say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await
    }

    /// One event.
    ///
    /// # Errors
    /// If the other side has left.
    pub async fn event(&mut self, data: &str) -> Result<()> {
        self.say(&format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8)).await
    }

    /// The end of a stream.
    ///
    /// # Errors
    /// If the other side has left.
    pub async fn end_stream(&mut self) -> Result<()> {
        self.event("[DONE]").await?;
        self.say("0\r\n\r\n").await
    }

    /// Waits until the other side closes; whatever it still sends is none of ours.
    pub async fn closed(&mut self) {
        let mut rest = [0; 256];
        // A reset is as much an end as a FIN.
        while self.stream.read(&mut rest).await.is_ok_and(|n| n > 0) {}
    }

    async fn say(&mut self, text: &str) -> Result<()> {
        Ok(self.stream.get_mut().write_all(text.as_bytes()).await?)
    }
}

/// One token's event in the completions API.
pub const TOKEN: &str = r#"{"object":"text_completion","choices":[{"index":0,"text":"a"}]}"#;
