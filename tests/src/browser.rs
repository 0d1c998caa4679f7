//! A headless Chromium for tests of pages, driven over its DevTools protocol: a page that never stops loading can be looked at when it
//! is as wanted, at any size and in either colour scheme, and what it asked for and complained about is heard.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use stack::Http;

/// For anything that the browser does.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest message: a picture.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// A browser with one page. Ends with the value.
pub struct Browser {
    child: Child,
    socket: TcpStream,
    sent: u64,
    /// What the page asked for, by address.
    pub asked: Vec<String>,
    /// What it complained about.
    pub complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts it with an empty page. Names but loopback's do not resolve.
    ///
    /// # Errors
    /// There is no Chromium, or it does not answer.
    pub fn start() -> Result<Self> {
        let profile = stack::scratch()?;
        let mut command = Command::new("chromium");
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]);
        command.args(["--disable-dev-shm-usage", "--remote-debugging-port=0"]);
        command.arg("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1");
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.context("`chromium` is missing: `./x test` installs it, or `apt-get install chromium`")?;
        let (file, deadline) = (profile.path().join("DevToolsActivePort"), Instant::now() + PATIENCE);
        let port = loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            match text.split_once('\n') {
                Some((port, _)) => break port.trim().to_owned(),
                None => ensure!(Instant::now() < deadline, "Chromium does not start"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let http = Http::new(&format!("http://127.0.0.1:{port}"));
        let (_, page) = http.send("PUT", "/json/new?about:blank", "")?;
        let page: Value = serde_json::from_str(&page).with_context(|| format!("no page: {page}"))?;
        let url = page["webSocketDebuggerUrl"].as_str().context("the page has no socket")?;
        let path = url.splitn(4, '/').nth(3).context("an address without a path")?;
        let socket = open(&port, path)?;
        let (asked, complaints) = (Vec::new(), Vec::new());
        let mut browser = Self { child, socket, sent: 0, asked, complaints, _profile: profile };
        for domain in ["Page.enable", "Runtime.enable", "Log.enable", "Network.enable"] {
            browser.ask(domain, &json!({}))?;
        }
        Ok(browser)
    }

    /// Goes to an address, in a window of this size and in this colour scheme.
    ///
    /// # Errors
    /// The browser does not answer.
    pub fn go(&mut self, url: &str, (width, height): (u32, u32), dark: bool) -> Result<()> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.ask("Emulation.setDeviceMetricsOverride", &size)?;
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.ask("Emulation.setEmulatedMedia", &features)?;
        self.ask("Page.navigate", &json!({ "url": url }))?;
        Ok(())
    }

    /// Value of an expression in the page.
    ///
    /// # Errors
    /// It has none.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let answer = self.ask("Runtime.evaluate", &json!({ "expression": expression, "returnByValue": true }))?;
        ensure!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        Ok(answer["result"]["value"].clone())
    }

    /// Waits until an expression is true.
    ///
    /// # Errors
    /// It does not become so.
    pub fn wait_for(&mut self, expression: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.value(expression)? != true {
            ensure!(Instant::now() < deadline, "not after {} s: {expression}", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// A picture of the window, PNG.
    ///
    /// # Errors
    /// The browser gives none.
    pub fn picture(&mut self) -> Result<Vec<u8>> {
        let answer = self.ask("Page.captureScreenshot", &json!({ "format": "png" }))?;
        Ok(unbase64(answer["data"].as_str().context("no picture")?))
    }

    fn ask(&mut self, method: &str, params: &Value) -> Result<Value> {
        self.sent += 1;
        let id = self.sent;
        write(&mut self.socket, &json!({ "id": id, "method": method, "params": params }).to_string())?;
        loop {
            let mut message: Value = serde_json::from_slice(&read(&mut self.socket)?)?;
            if message["id"] == id {
                ensure!(message.get("error").is_none(), "{method}: {}", message["error"]);
                return Ok(message["result"].take());
            }
            let params = &message["params"];
            match message["method"].as_str() {
                Some("Network.requestWillBeSent") => {
                    self.asked.extend(params["request"]["url"].as_str().map(str::to_owned));
                }
                Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded") => {
                    self.complaints.push(params.to_string());
                }
                _ => {}
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A WebSocket, the client's end.
fn open(port: &str, path: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(format!("127.0.0.1:{port}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    write!(
        socket,
        "GET /{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.extend(byte);
        ensure!(head.len() < 4096, "no head of an answer");
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    Ok(socket)
}

/// Sends a text message. The mask is 0, which leaves the bytes as they are.
fn write(socket: &mut TcpStream, text: &str) -> Result<()> {
    let mut frame = vec![0x81];
    match text.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len @ 126..65_536 => frame.extend([&[0x80 | 126][..], &(len as u16).to_be_bytes()].concat()),
        len => frame.extend([&[0x80 | 127][..], &(len as u64).to_be_bytes()].concat()),
    }
    frame.extend([0; 4]);
    frame.extend(text.as_bytes());
    Ok(socket.write_all(&frame)?)
}

/// The next message, put together of its frames.
fn read(socket: &mut TcpStream) -> Result<Vec<u8>> {
    let mut message = Vec::new();
    loop {
        let mut head = [0; 2];
        socket.read_exact(&mut head)?;
        let len = match head[1] & 0x7f {
            126 => {
                let mut len = [0; 2];
                socket.read_exact(&mut len)?;
                u64::from(u16::from_be_bytes(len))
            }
            127 => {
                let mut len = [0; 8];
                socket.read_exact(&mut len)?;
                u64::from_be_bytes(len)
            }
            len => u64::from(len),
        };
        ensure!(len + message.len() as u64 <= MESSAGE_BYTES_MAX, "a message of more than {MESSAGE_BYTES_MAX} bytes");
        let mut payload = vec![0; len as usize];
        socket.read_exact(&mut payload)?;
        match head[0] & 0x0f {
            0..=2 => message.extend(payload),
            8 => bail!("the browser closed its socket"),
            _ => continue,
        }
        if head[0] & 0x80 != 0 {
            return Ok(message);
        }
    }
}

fn unbase64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for digit in text.bytes().filter_map(|b| DIGITS.iter().position(|&d| d == b)) {
        bits = bits << 6 | digit as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn pictures_decode() {
        assert_eq!(super::unbase64("iVBORw0KGgo="), b"\x89PNG\r\n\x1a\n");
        assert_eq!(super::unbase64("YWI="), b"ab");
    }
}
