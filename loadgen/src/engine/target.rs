//! What is asked of which server: the URL taken apart, names resolved, the request's head.

use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
};
use http::{Method, Request, Uri, Version};
use rustls::pki_types::ServerName;

use super::connect::Endpoint;

/// Names a request to the server, and to whoever looks for it in a server's log.
pub const REQUEST_ID: &str = "x-request-id";

/// A server and how requests to it look.
#[derive(Clone)]
pub struct Target {
    /// Where connections go.
    pub endpoint: Endpoint,
    /// Scheme and authority, without a slash at the end.
    base_url: String,
    /// Path of the endpoint.
    path: String,
    headers: HeaderMap,
    /// A request that takes longer has failed.
    pub timeout: Duration,
}

/// The head of a request, made once: as HTTP/2 takes it, and as HTTP/1.1 writes it without the blank line at its end.
#[derive(Clone)]
pub struct Head {
    /// Of which HTTP/2 requests are made.
    pub request: Request<()>,
    /// Request line and header lines.
    pub lines: Vec<u8>,
}

impl Head {
    /// Leaves out of the lines what differs from request to request.
    fn new(request: Request<()>) -> Self {
        let mut lines = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri()).into_bytes();
        let own = [CONTENT_LENGTH.as_str(), TRANSFER_ENCODING.as_str(), REQUEST_ID];
        for (name, value) in request.headers().iter().filter(|(name, _)| !own.contains(&name.as_str())) {
            lines.extend_from_slice(name.as_str().as_bytes());
            lines.extend_from_slice(b": ");
            lines.extend_from_slice(value.as_bytes());
            lines.extend_from_slice(b"\r\n");
        }
        Self { request, lines }
    }
}

/// How a target is given on the command line.
pub struct Given<'a> {
    /// `http://host:port` or `https://…`, perhaps with a path.
    pub base_url: &'a str,
    /// Path, `/v1/completions` or `/v1/chat/completions`.
    pub path: &'a str,
    /// Bearer token.
    pub api_key: Option<&'a str>,
    /// Extra headers, `Name: value`.
    pub headers: &'a [String],
    /// HTTP/2 instead of HTTP/1.1.
    pub http2: bool,
    /// A request that takes longer has failed.
    pub timeout: Duration,
}

impl Target {
    /// Takes the URL apart and resolves its host.
    ///
    /// # Errors
    /// A URL, host or header that is none, with what was expected.
    pub fn new(given: &Given<'_>) -> anyhow::Result<Self> {
        let base_url = given.base_url.trim_end_matches('/').to_owned();
        let uri: Uri = base_url.parse().with_context(|| format!("--base-url {base_url}: want http://host:port"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            bail!("--base-url {base_url}: want http://host:port or https://host:port");
        };
        let port = match scheme {
            "http" => 80,
            "https" => 443,
            other => bail!("--base-url {base_url}: scheme {other}, want http or https"),
        };
        let host = authority.host().trim_matches(['[', ']']);
        let address = (host, authority.port_u16().unwrap_or(port))
            .to_socket_addrs()
            .with_context(|| format!("resolving {host}"))?
            .next()
            .with_context(|| format!("{host} has no address"))?;
        let tls = match scheme {
            "https" => Some((Arc::new(tls(given.http2)?), ServerName::try_from(host.to_owned())?)),
            _ => None,
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if !given.http2 {
            headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
        }
        if let Some(key) = given.api_key {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}")).context("--api-key is no header value")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        for header in given.headers {
            let wanted = || format!("--header `{header}`: want `Name: value`");
            let (name, value) = header.split_once(':').with_context(wanted)?;
            headers.insert(
                HeaderName::from_bytes(name.trim().as_bytes()).with_context(wanted)?,
                HeaderValue::from_str(value.trim()).with_context(wanted)?,
            );
        }
        Ok(Self {
            endpoint: Endpoint { address, tls, http2: given.http2 },
            base_url,
            path: given.path.to_owned(),
            headers,
            timeout: given.timeout,
        })
    }

    /// The head of a POST to the endpoint.
    ///
    /// # Errors
    /// If base URL and path together are no URL.
    pub fn post(&self) -> anyhow::Result<Head> {
        self.head(Method::POST, &self.path)
    }

    /// The head of a GET of `path`.
    ///
    /// # Errors
    /// If base URL and path together are no URL.
    pub fn get(&self, path: &str) -> anyhow::Result<Head> {
        self.head(Method::GET, path)
    }

    fn head(&self, method: Method, path: &str) -> anyhow::Result<Head> {
        let whole: Uri =
            format!("{}{path}", self.base_url).parse().with_context(|| format!("{}{path} is no URL", self.base_url))?;
        // HTTP/1.1 names the path alone, the authority stands in `Host`.
        let uri = match self.endpoint.http2 {
            true => whole,
            false => whole.path_and_query().map_or("/", |p| p.as_str()).parse()?,
        };
        let version = if self.endpoint.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        let mut request = Request::builder().method(method).uri(uri).version(version).body(())?;
        *request.headers_mut() = self.headers.clone();
        Ok(Head::new(request))
    }
}

/// Trusts what the system trusts; `SSL_CERT_FILE` names other roots.
fn tls(http2: bool) -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(base_url: &str, http2: bool, header: &str) -> anyhow::Result<Target> {
        Target::new(&Given {
            base_url,
            path: "/v1/completions",
            api_key: Some("k"),
            headers: &[header.to_owned()],
            http2,
            timeout: Duration::from_secs(1),
        })
    }

    #[test]
    fn heads_name_what_the_protocol_wants() {
        let one = target("http://127.0.0.1:81/api/", false, "x-a: b").unwrap().post().unwrap();
        let lines = String::from_utf8(one.lines).unwrap();
        assert!(lines.starts_with("POST /api/v1/completions HTTP/1.1\r\n") && lines.ends_with("\r\n"), "{lines}");
        for line in ["host: 127.0.0.1:81", "x-a: b", "authorization: Bearer k"] {
            assert_eq!(lines.split("\r\n").filter(|l| *l == line).count(), 1, "{lines}");
        }
        let own = target("http://127.0.0.1:81", false, "Content-Length: 3").unwrap().post().unwrap();
        assert!(!String::from_utf8(own.lines).unwrap().contains("length"), "that is the request's own to say");
        let two = target("http://[::1]", true, "x-a: b").unwrap();
        assert_eq!(two.endpoint.address, "[::1]:80".parse().unwrap());
        assert_eq!(two.get("/v1/models").unwrap().request.uri(), "http://[::1]/v1/models");
        assert!(target("https://127.0.0.1", true, "x-a: b").unwrap().endpoint.tls.is_some());
    }

    #[test]
    fn nonsense_says_what_was_expected() {
        for (url, header, want) in [
            ("127.0.0.1:80", "x-a: b", "want http://host:port"),
            ("ftp://127.0.0.1", "x-a: b", "scheme ftp"),
            ("http://127.0.0.1", "nonsense", "want `Name: value`"),
        ] {
            let error = format!("{:#}", target(url, false, header).err().unwrap());
            assert!(error.contains(want), "{error}");
        }
    }
}
