//! The console: what its listener answers, and the page in a real browser, narrow and wide, light and dark.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use stack::{Daemon, Gateway, Http, Via};
use system_tests::browser::Browser;
use system_tests::{FUNCTIONAL, MODEL, tiny_engine, wait_for};

const KEY: &str = "key-of-search";
const KEY_SHA256: &str = "bf2e9972d8188c1d2c9315c5574b11d8633aa4cdb3a34b3eb6a03a457fcd0e6c";
/// A name that is markup to whoever takes it for such.
const HOSTILE: &str = "<img src=x onerror=console.error(document.domain)>";

struct Stack {
    gateway: Gateway,
    admin: Http,
    _engine: stack::Engine,
    daemon: Daemon,
    _dir: tempfile::TempDir,
}

fn start(operators: bool) -> Stack {
    let dir = stack::scratch().unwrap();
    let daemon = Daemon::start(dir.path(), FUNCTIONAL, "phase").unwrap();
    let engine = tiny_engine(&Via::Daemon(&daemon), None, &[]);
    let mut config = "[console]\ndaemons = [\"127.0.0.1:1\"]\n".to_owned();
    if operators {
        config += &format!("operator_key_sha256 = [\"{KEY_SHA256}\"]\n");
    }
    config += &format!(
        "[[engines]]\nname = \"{HOSTILE}\"\naddress = \"{}\"\ndaemon = \"{}\"\n[[tenants]]\nname = \"{HOSTILE}\"\nkey_sha256 = [\"{KEY_SHA256}\"]\n",
        engine.http.authority(),
        daemon.admin.authority()
    );
    let file = dir.path().join("gateway.toml");
    std::fs::write(&file, config).unwrap();
    let gateway = Gateway::configured(&file, &[]).unwrap();
    let admin = gateway.admin().unwrap();
    Stack { gateway, admin, _engine: engine, daemon, _dir: dir }
}

/// The first event of the stream.
fn event(admin: &Http) -> Value {
    use std::io::{BufRead as _, Write as _};
    let mut stream = std::net::TcpStream::connect(admin.authority()).unwrap();
    stream.set_read_timeout(Some(system_tests::PATIENCE)).unwrap();
    write!(stream, "GET /console/events HTTP/1.1\r\nhost: {}\r\n\r\n", admin.authority()).unwrap();
    let lines = std::io::BufReader::new(stream).lines().map(Result::unwrap);
    let data = lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_owned)).next().unwrap();
    serde_json::from_str(&data).unwrap()
}

fn headers(admin: &Http, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(admin.authority()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", admin.authority()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase()
}

#[test]
fn console_shows_daemons_and_lets_operators_alone_change_a_policy() {
    let stack = start(true);
    let head = headers(&stack.admin, "/console");
    assert!(
        head.starts_with("http/1.1 200") && head.contains("content-security-policy: default-src 'none';"),
        "{head}"
    );
    assert!(head.contains("frame-ancestors 'none'") && head.contains("x-content-type-options: nosniff"), "{head}");
    assert!(headers(&stack.admin, "/").contains("text/html"), "the address alone is enough");

    let seen = event(&stack.admin);
    let daemons = seen["daemons"].as_array().unwrap();
    let address = stack.daemon.admin.authority();
    let of = |address: &str| daemons.iter().find(|d| d["address"] == address).unwrap();
    assert_eq!(of(address)["status"]["policy"]["name"], "phase");
    assert!(of("127.0.0.1:1")["error"].is_string(), "a daemon that is not there says why: {seen}");
    assert_eq!(seen["gateway"]["engines"][0]["name"], HOSTILE);

    let put = |key: Option<&str>, body: Value| {
        let http = Http::new(stack.admin.url());
        let http = match key {
            Some(key) => http.with_header("authorization", &format!("Bearer {key}")),
            None => http,
        };
        http.send("PUT", "/console/policy", &body.to_string()).unwrap()
    };
    let fifo = json!({ "daemon": address, "policy": "fifo" });
    for (key, body, status, says) in [
        (None, fifo.clone(), 401, "operator's key"),
        (Some("another"), fifo.clone(), 401, "operator's key"),
        (Some(KEY), json!({ "daemon": "10.0.0.1:9", "policy": "fifo" }), 404, "no daemon at that address"),
        (Some(KEY), json!({ "policy": "fifo" }), 400, "daemon"),
        (Some(KEY), json!(["fifo"]), 400, "want"),
        (Some(KEY), json!({ "daemon": address, "policy": "lottery" }), 400, "policies are"),
        (Some(KEY), json!({ "daemon": "127.0.0.1:1", "policy": "fifo" }), 502, "does not answer"),
    ] {
        let (got, answer) = put(key, body.clone());
        assert!(got == status && answer.contains(says), "{body}: {got} {answer}");
    }
    let policy = || stack.daemon.admin.get_json("/v1/policy").unwrap()["name"].clone();
    assert_eq!(policy(), "phase");
    assert_eq!(put(Some(KEY), fifo).0, 200);
    assert_eq!(policy(), "fifo");
}

#[test]
fn without_an_operators_key_nobody_changes_a_policy() {
    let stack = start(false);
    let body = json!({ "daemon": stack.daemon.admin.authority(), "policy": "fifo" }).to_string();
    let (status, answer) = stack.admin.send("PUT", "/console/policy", &body).unwrap();
    assert!(status == 403 && answer.contains("operator_key_sha256"), "{status} {answer}");
    assert_eq!(event(&stack.admin)["operators"], false);
}

#[test]
fn everyone_hears_the_same_and_too_many_are_refused() {
    let stack = start(false);
    let listen = || {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(stack.admin.authority()).unwrap();
        write!(stream, "GET /console/events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (stream, String::from_utf8_lossy(&status).into_owned())
    };
    let all: Vec<_> = (0..33).map(|_| listen()).collect();
    assert!(all[..32].iter().all(|(_, status)| status.ends_with("200")));
    assert!(all[32].1.ends_with("503"), "{}", all[32].1);
    drop(all);
    wait_for("a place", || listen().1.ends_with("200"));
}

/// Ends the load, however the test ends.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_page_works_in_a_browser_wide_and_narrow_light_and_dark() {
    let stack = start(true);
    let pictures = stack::source_root().unwrap().join("target/console");
    std::fs::create_dir_all(&pictures).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let http = Http::new(stack.gateway.http.url()).with_header("authorization", &format!("Bearer {KEY}"));
            while !over.load(Ordering::Relaxed) {
                let body = json!({ "model": MODEL, "prompt": [1, 2, 3, 4], "max_tokens": 40, "ignore_eos": true });
                http.stream("/v1/completions", &body).unwrap().for_each(|event| drop(event.unwrap()));
            }
        });
        let _ended = Ended(&over);
        for (size, dark, name) in [((1360, 1500), false, "wide-light"), ((390, 2600), true, "narrow-dark")] {
            let mut browser = Browser::start().unwrap();
            browser.go(&format!("{}/console", stack.admin.url()), size, dark).unwrap();
            browser.wait_for("Number(document.documentElement?.dataset.events) >= 8").unwrap();
            std::fs::write(pictures.join(format!("{name}.png")), browser.picture().unwrap()).unwrap();
            let page = browser.value("document.documentElement.outerHTML").unwrap();
            let page = page.as_str().unwrap();
            // A stranger's name is text, in both tables.
            let shown = "&lt;img src=x onerror=console.error(document.domain)&gt;";
            assert_eq!(page.matches(shown).count(), 2, "{name}: {page}");
            assert_eq!(browser.value("document.querySelectorAll('img').length").unwrap(), 1, "{name}: the icon alone");
            for words in [
                "emulated Ascend910B3, functional",
                "class=\"live on\"",
                "Device time, last two minutes",
                "tokens/s",
                "The daemon does not answer",
            ] {
                assert!(page.contains(words), "{name}: {words} in {page}");
            }
            let wider = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
            assert_eq!(browser.value(wider).unwrap(), 0, "{name}: nothing is wider than the window");
            let ground = browser.value("getComputedStyle(document.body).backgroundColor").unwrap();
            assert_eq!(ground, if dark { "rgb(16, 19, 24)" } else { "rgb(245, 246, 248)" }, "{name}");
            assert!(
                !page.contains("no first tokens") && !page.contains("no answers"),
                "{name}: streams have both: {page}"
            );
            assert!(browser.complaints.is_empty(), "{name}: {:#?}", browser.complaints);
            let foreign: Vec<_> = browser.asked.iter().filter(|url| !url.starts_with(stack.admin.url())).collect();
            assert!(foreign.is_empty() && browser.asked.len() >= 4, "{name}: {:?}", browser.asked);
        }
    });
}
