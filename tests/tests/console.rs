//! The console: what its listener answers, and the page in a real browser, narrow and wide, light and dark.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use stack::{Daemon, Gateway, Http, Via};
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

/// The page's document after some events, and what the browser said.
fn browse(admin: &Http, (width, height): (u32, u32), dark: bool, picture: &Path) -> (String, String) {
    let profile = stack::scratch().unwrap();
    let mut command = Command::new("chromium");
    command.args([
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-dev-shm-usage",
    ]);
    // Whoever asks for anything from elsewhere fails, and says so.
    command.args(["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--enable-logging=stderr", "--v=0"]);
    command.arg(format!("--window-size={width},{height}")).arg(format!("--user-data-dir={}", profile.path().display()));
    if dark {
        command.args(["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]);
    }
    command.arg(format!("--screenshot={}", picture.display()));
    // The stream never ends: the page is taken as it is then.
    command.args(["--dump-dom", "--timeout=6500"]).arg(format!("{}/console", admin.url()));
    let out = command.output().expect("`chromium` is missing: `./x test` installs it, or `apt-get install chromium`");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    (String::from_utf8_lossy(&out.stdout).into_owned(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn the_page_works_in_a_browser_wide_and_narrow_light_and_dark() {
    let stack = start(true);
    let pictures = stack::source_root().unwrap().join("target/console");
    std::fs::create_dir_all(&pictures).unwrap();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let http = Http::new(stack.gateway.http.url()).with_header("authorization", &format!("Bearer {KEY}"));
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let body = json!({ "model": MODEL, "prompt": [1, 2, 3, 4], "max_tokens": 40, "ignore_eos": true });
                http.post_json("/v1/completions", &body).unwrap();
            }
        });
        let pages =
            [((1360, 1500), false, "wide-light"), ((390, 2600), true, "narrow-dark")].map(|(size, dark, name)| {
                let picture = pictures.join(format!("{name}.png"));
                let (page, said) = browse(&stack.admin, size, dark, &picture);
                (name, page, said, std::fs::metadata(picture).map_or(0, |m| m.len()))
            });
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        for (name, page, said, bytes) in pages {
            let complaints: Vec<&str> = said.lines().filter(|line| line.contains("CONSOLE")).collect();
            assert!(complaints.is_empty(), "{name}: {complaints:#?}");
            let events =
                page.split("data-events=\"").nth(1).and_then(|rest| rest.split('"').next()?.parse::<u32>().ok());
            assert!(events.is_some_and(|n| n >= 3), "{name}: {events:?} events\n{page}");
            // A stranger's name is text, in both tables.
            assert_eq!(
                page.matches("&lt;img src=x onerror=console.error(document.domain)&gt;").count(),
                2,
                "{name}: {page}"
            );
            assert!(!page.contains("<img src=\"x\"") && !page.contains("<img src=x"), "{name}");
            for words in
                ["emulated Ascend910B3, functional", "class=\"live on\"", "Device time, last two minutes", "tokens/s"]
            {
                assert!(page.contains(words), "{name}: {words} in {page}");
            }
            assert!(page.contains("The daemon does not answer"), "{name}: the other daemon's problem is shown");
            assert!(bytes > 20_000, "{name}: a picture of {bytes} bytes");
        }
    });
}
