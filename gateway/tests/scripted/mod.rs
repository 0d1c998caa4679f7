//! A scripted upstream: a socket that plays an engine's good and bad days to the byte.

#![allow(dead_code)] // each test program uses its part

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::net;
use serde_json::json;
use stack::{Gateway, Http};

/// Bound on every wait of these tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One connection accepted by the scripted upstream: its request is read whole.
pub struct Exchange {
    pub stream: TcpStream,
    pub head: String,
    pub body: Vec<u8>,
}

impl Exchange {
    pub fn read(stream: TcpStream) -> Option<Self> {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let length =
            head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        Some(Self { stream, head, body })
    }

    /// Answers the gateway's own looks at the engine (health, models, metrics), and reads on until a client's request.
    pub fn unlooked(mut self) -> Option<Self> {
        while ["GET /health ", "GET /metrics ", "GET /v1/models "].iter().any(|look| self.head.starts_with(look)) {
            self.stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").ok()?;
            self = Self::read(self.stream)?;
        }
        Some(self)
    }

    /// A whole JSON answer.
    pub fn answer(&mut self, status: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}", body.len());
        self.say(&format!("{head}\r\n\r\n{body}"));
    }

    /// The request's body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Value of a request header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|l| {
            let (key, value) = l.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    pub fn start_stream(&mut self) {
        self.say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
    }

    pub fn event(&mut self, data: &str) {
        let event = format!("data: {data}\n\n");
        self.say(&format!("{:x}\r\n{event}\r\n", event.len()));
    }

    pub fn token(&mut self, text: &str) {
        self.event(&json!({ "choices": [{ "text": text }] }).to_string());
    }

    pub fn end_stream(&mut self) {
        self.event("[DONE]");
        self.say("0\r\n\r\n");
    }

    /// Waits until the peer closes; how long it took.
    pub fn closed(&mut self) -> Duration {
        let start = Instant::now();
        let mut rest = Vec::new();
        // A reset is as much an end as a FIN.
        let _ = self.stream.read_to_end(&mut rest);
        start.elapsed()
    }
}

/// Plays `script` for each connection, in a thread of its own; returns the upstream's address.
pub fn upstream(script: impl Fn(Exchange) + Send + Sync + 'static) -> Http {
    plain_upstream(move |exchange| {
        if let Some(exchange) = exchange.unlooked() {
            script(exchange);
        }
    })
}

pub fn gateway(upstream: &Http) -> Gateway {
    Gateway::start(upstream, None, &[]).unwrap()
}

pub fn metric(gateway: &Gateway, name: &str) -> f64 {
    let url = gateway.program.ready_field("metrics").unwrap();
    Http::new(url.trim_end_matches("/metrics")).metric(name).unwrap()
}

pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Like [`upstream`], the gateway's own looks included.
pub fn plain_upstream(script: impl Fn(Exchange) + Send + Sync + 'static) -> Http {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let script = std::sync::Arc::new(script);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let script = std::sync::Arc::clone(&script);
            std::thread::spawn(move || {
                if let Some(exchange) = Exchange::read(stream) {
                    script(exchange);
                }
            });
        }
    });
    Http::new(&address)
}

/// An engine's address that refuses connections until it listens; nobody else gets it in the meantime.
pub struct Deaf {
    socket: OwnedFd,
    address: String,
}

impl Deaf {
    pub fn new() -> Self {
        let socket = net::socket(net::AddressFamily::INET, net::SocketType::STREAM, None).unwrap();
        net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = SocketAddr::try_from(net::getsockname(&socket).unwrap()).unwrap().to_string();
        Self { socket, address }
    }

    pub fn http(&self) -> Http {
        Http::new(&self.address)
    }

    /// From now on connections are accepted.
    pub fn listen(self) -> TcpListener {
        net::listen(&self.socket, 128).unwrap();
        self.socket.into()
    }

    /// From now on connections are neither accepted nor refused: the queue of the socket is full. Until the result is dropped.
    pub fn stall(&self) -> Vec<TcpStream> {
        net::listen(&self.socket, 0).unwrap();
        let address: SocketAddr = self.address.parse().unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            waiting.push(stream);
        }
        waiting
    }
}

/// A metric that may not exist yet.
pub fn try_metric(gateway: &Gateway, name: &str) -> Option<f64> {
    gateway.admin().unwrap().metric(name).ok()
}

/// A client that sees every byte.
pub struct Raw {
    reader: BufReader<TcpStream>,
    pub status: u16,
    pub head: String,
}

impl Raw {
    /// Sends a request; headers are whole lines.
    pub fn send(to: &Http, path: &str, headers: &[&str], body: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(to.authority()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let more: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
        let length = body.len();
        write!(stream, "POST {path} HTTP/1.1\r\nhost: x\r\n{more}content-length: {length}\r\n\r\n{body}").unwrap();
        BufReader::new(stream)
    }

    /// Reads the head of the answer.
    pub fn head(mut reader: BufReader<TcpStream>) -> Self {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "closed after `{head}`");
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { reader, status, head: head.to_ascii_lowercase() }
    }

    /// Sends a request and reads the head of the answer.
    pub fn post(to: &Http, path: &str, headers: &[&str], body: &str) -> Self {
        Self::head(Self::send(to, path, headers, body))
    }

    /// Value of a header of the answer.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    }

    /// The next piece of a chunked body; empty at its end.
    pub fn chunk(&mut self) -> String {
        let mut size = String::new();
        self.reader.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_else(|_| panic!("chunk size `{size}`"));
        let mut chunk = vec![0; size + 2];
        self.reader.read_exact(&mut chunk).unwrap();
        chunk.truncate(size);
        String::from_utf8(chunk).unwrap()
    }

    /// The whole rest of a chunked body, or one with a length.
    pub fn rest(&mut self) -> String {
        if let Some(length) = self.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            self.reader.read_exact(&mut body).unwrap();
            return String::from_utf8(body).unwrap();
        }
        let mut body = String::new();
        loop {
            let chunk = self.chunk();
            if chunk.is_empty() {
                return body;
            }
            body += &chunk;
        }
    }

    /// The body as JSON.
    pub fn json(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.rest()).unwrap()
    }
}

/// The text of a configuration file; `upstreams` are its engines, called `e0`, `e1`, ….
pub fn file_text(upstreams: &[&Http], engine_fields: &str, rest: &str) -> String {
    let engines = upstreams.iter().enumerate();
    let engines: String = engines
        .map(|(i, u)| format!("[[engines]]\nname = \"e{i}\"\naddress = \"{}\"\n{engine_fields}\n", u.authority()))
        .collect();
    format!("{rest}\n{engines}")
}

/// A gateway with that file.
pub fn configured(upstreams: &[&Http], engine_fields: &str, rest: &str) -> Gateway {
    Filed::start(&file_text(upstreams, engine_fields, rest)).gateway
}

/// A gateway and its configuration file, to be changed.
pub struct Filed {
    pub gateway: Gateway,
    pub path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Filed {
    pub fn start(text: &str) -> Self {
        let dir = stack::scratch().unwrap();
        let path = dir.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        Self { gateway: Gateway::configured(&path, &[]).unwrap(), path, _dir: dir }
    }

    /// Changes the file and has it read; the answer.
    pub fn reload(&self, text: &str) -> (u16, serde_json::Value) {
        std::fs::write(&self.path, text).unwrap();
        let (status, body) = self.gateway.admin().unwrap().send("POST", "/v1/reload", "").unwrap();
        (status, serde_json::from_str(&body).unwrap())
    }
}
