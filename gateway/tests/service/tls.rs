//! TLS towards clients and engines.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::*;
use scripted::{Filed, file_text};

/// A certificate that signs itself, and its key, as files.
struct Certificate {
    der: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Certificate {
    fn new(dir: &Path, name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        std::fs::write(dir.join(format!("{name}.pem")), made.cert.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        Self { der: made.cert.der().clone(), key }
    }

    fn trusted(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }

    /// An engine behind it that answers everything with the request's head.
    fn engine(&self) -> String {
        let builder = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = Arc::new(builder.with_single_cert(vec![self.der.clone()], self.key.clone_key()).unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                std::thread::spawn(move || answer(StreamOwned::new(connection, stream)));
            }
        });
        address
    }
}

/// Answers the requests of a connection, as far as they come in whole.
fn answer(mut stream: StreamOwned<ServerConnection, TcpStream>) -> std::io::Result<()> {
    let (mut seen, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let length = stream.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        seen.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&seen).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let announced = head.to_ascii_lowercase();
        let announced = announced.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
        if body.len() < announced.unwrap_or(0) {
            continue;
        }
        let body = json!({ "head": head }).to_string();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        stream.flush()?;
        seen.clear();
    }
}

/// What a client sees that trusts `config`'s certificates, and the certificate that it was shown.
fn ask(to: &Http, config: Arc<ClientConfig>) -> std::io::Result<(String, CertificateDer<'static>)> {
    let stream = TcpStream::connect(to.authority())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(config, name).unwrap(), stream);
    let body = completion(3, 5, false);
    let length = body.len();
    write!(
        stream,
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // Its answer has a length: how the connection ends says nothing.
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        read => drop(read?),
    }
    let shown = stream.conn.peer_certificates().unwrap()[0].clone().into_owned();
    Ok((String::from_utf8(answer).unwrap(), shown))
}

#[test]
fn clients_and_engines_speak_tls_and_certificates_are_checked() {
    let dir = stack::scratch().unwrap();
    let [own, engine, other] = ["own", "engine", "other"].map(|name| Certificate::new(dir.path(), name));
    let file = |name: &str| dir.path().join(name).display().to_string();
    let tls = |name: &str| {
        format!("[tls]\ncertificate = \"{}\"\nkey = \"{}\"", file(&format!("{name}.pem")), file(&format!("{name}.key")))
    };
    let address = Http::new(&engine.engine());
    let text = |ca: &str, own: &str| {
        let text = file_text(&[&address], &format!("ca = \"{}\"", file(ca)), &tls(own));
        text.replace("address = \"", "address = \"https://")
    };
    let filed = Filed::start(&text("engine.pem", "own"));
    let (answer, shown) = ask(&filed.gateway.http, own.trusted()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("POST /v1/completions"), "{answer}");
    assert_eq!(shown, own.der);
    let distrusted = ask(&filed.gateway.http, other.trusted()).unwrap_err().to_string();
    assert!(distrusted.contains("certificate"), "{distrusted}");
    // An engine that shows what nobody in `ca` has signed is not spoken to.
    assert_eq!(filed.reload(&text("other.pem", "own")).0, 200);
    let (answer, _) = ask(&filed.gateway.http, own.trusted()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("engine_unreachable"), "{answer}");
    // A new certificate is shown at once; one without its key is refused and the old one stays.
    assert_eq!(filed.reload(&text("engine.pem", "other")).0, 200);
    assert_eq!(ask(&filed.gateway.http, other.trusted()).unwrap().1, other.der);
    let (status, error) = filed.reload(&text("engine.pem", "other").replace("other.key", "own.key"));
    assert!(status == 409 && error["error"].as_str().unwrap().contains("line 3"), "{error}");
    let (status, error) = filed.reload(&text("missing.pem", "other"));
    assert!(status == 409 && error["error"].as_str().unwrap().contains("line 7"), "{error}");
    assert_eq!(ask(&filed.gateway.http, other.trusted()).unwrap().1, other.der);
    // Who speaks plain HTTP here is not answered in it.
    let mut plain = TcpStream::connect(filed.gateway.http.authority()).unwrap();
    plain.set_read_timeout(Some(PATIENCE)).unwrap();
    plain.write_all(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}
