//! The real program with real client processes: work, deaths, refusals, the admin API.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use acl_abi::{Arg, DataType, OpCall, Scalar, TensorDesc, ops};
use session::{Client, ConnectError, ConnectOptions};
use stack::{Http, Program};
use wire::control::RefuseCode;
use wire::{HostSource, PROTOCOL_VERSION, Record};

const FUNCTIONAL: &str = "Ascend910B3:functional:hbm=1";
const MIB: u64 = 1 << 20;

struct Daemon {
    program: Program,
    admin: Http,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

fn command(socket: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vnpu-daemon"));
    command.arg("--socket").arg(socket).args(more);
    command
}

impl Daemon {
    fn start(spec: &str, policy: &str) -> Self {
        let dir = stack::scratch().unwrap();
        let socket = dir.path().join("npu0.sock");
        let args = ["--device", spec, "--policy", policy, "--admin", "127.0.0.1:0"];
        let program = Program::start("vnpu-daemon", command(&socket, &args)).unwrap();
        assert_eq!(program.ready_field("socket").as_deref(), socket.to_str());
        let admin = Http::new(&program.ready_field("admin").unwrap());
        Self { program, admin, socket, _dir: dir }
    }

    fn connect(&self) -> Client {
        Client::connect(&self.socket, &ConnectOptions::default()).unwrap()
    }

    fn status(&self) -> serde_json::Value {
        self.admin.get_json("/v1/status").unwrap()
    }

    fn used_bytes(&self) -> u64 {
        self.status()["memory"]["used_bytes"].as_u64().unwrap()
    }
}

fn malloc(client: &Client, size: u64) -> u64 {
    let reply = client.call(|reply| Record::Malloc { size, reply }).unwrap();
    assert_eq!(reply.status, 0, "{}", reply.text);
    reply.payload[0]
}

fn write(client: &Client, dst: u64, values: &[f32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let copy = |reply| Record::CopyIn { dst, source: HostSource::Inline(&bytes), stream: None, reply: Some(reply) };
    assert_eq!(client.call(copy).unwrap().status, 0);
}

/// Bytes of device memory. The pinned buffer is read through `/proc/self/mem`, since this package has no `unsafe`.
fn read(client: &Client, src: u64, len: u64) -> Vec<u8> {
    let pinned = client.pinned_alloc(len).unwrap();
    let dst = client.pinned_range(pinned, len).unwrap();
    let copy = |reply| Record::CopyOut { dst, src, stream: None, reply: Some(reply) };
    let reply = client.call(copy).unwrap();
    assert_eq!(reply.status, 0, "{}", reply.text);
    let mut bytes = vec![0; len as usize];
    File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, pinned as u64).unwrap();
    assert!(client.pinned_free(pinned));
    bytes
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn add(a: u64, b: u64, out: u64, elements: i64) -> OpCall {
    let mut call = OpCall::new(ops::aclnnAdd);
    let tensor = |addr| Some(TensorDesc::contiguous(addr, DataType::F32, &[elements]));
    call.push_tensor(tensor(a)).push_tensor(tensor(b));
    call.push(Arg::Scalar(Scalar { dtype: DataType::F32, bits: u64::from(1f32.to_bits()) })).push_tensor(tensor(out));
    call
}

/// Waits until `done`, looking often; how long it took.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: not after 20 s");
        std::thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

#[test]
fn a_client_process_computes_and_is_seen_in_status_and_metrics() {
    let daemon = Daemon::start(FUNCTIONAL, "fifo");
    let client = daemon.connect();
    assert_eq!((client.facts().soc_name.as_str(), client.facts().hbm_bytes), ("Ascend910B3", 1 << 30));
    let [a, b, out] = [0; 3].map(|_| malloc(&client, 4096));
    let x: Vec<f32> = (0..256).map(|i| i as f32).collect();
    write(&client, a, &x);
    write(&client, b, &[0.5; 256]);
    client.post(&Record::Op { stream: 0 }, Some(&add(a, b, out, 256))).unwrap();
    let reply = client.call(|reply| Record::StreamSync { stream: 0, reply }).unwrap();
    assert_eq!(reply.status, 0, "{}", reply.text);
    assert_eq!(floats(&read(&client, out, 1024)), x.iter().map(|v| v + 0.5).collect::<Vec<_>>());

    let status = daemon.status();
    assert!(status["device"]["label"].as_str().unwrap().starts_with("emulated Ascend910B3"), "{status}");
    assert_eq!(status["policy"]["name"], "fifo");
    assert_eq!(status["memory"]["used_bytes"], 3 * 4096);
    let session = &status["sessions"][0];
    assert_eq!(session["pid"], std::process::id());
    assert_eq!((&session["memory_bytes"], &session["allocations"]), (&(3 * 4096).into(), &3.into()));
    assert_eq!(daemon.admin.metric("vnpu_memory_bytes").unwrap(), (1u64 << 30) as f64, "used and free add up");
    assert_eq!(daemon.admin.metric("vnpu_session_memory_bytes").unwrap(), 3.0 * 4096.0);
    // Two copies in, one operator, one copy out.
    assert_eq!(daemon.admin.metric("vnpu_operators_completed_total").unwrap(), 4.0);
    assert_eq!(daemon.admin.send("GET", "/health", "").unwrap(), (200, "ok\n".into()));
    drop(client);
    wait_for("the session ends", || daemon.status()["sessions"].as_array().unwrap().is_empty());
    assert_eq!(daemon.used_bytes(), 0);
}

/// The child's part of the next test: holds memory, keeps the device busy, and says so.
fn hold(socket: &str) {
    let client = Client::connect(Path::new(socket), &ConnectOptions::default()).unwrap();
    let [a, b, out] = [0; 3].map(|_| malloc(&client, 64 * MIB));
    println!("holding");
    std::io::stdout().flush().unwrap();
    loop {
        client.post(&Record::Op { stream: 0 }, Some(&add(a, b, out, 1 << 20))).unwrap();
    }
}

#[test]
fn a_killed_client_leaves_nothing_within_100_ms_and_its_neighbour_is_untouched() {
    const SOCKET: &str = "VNPU_TEST_HOLD_SOCKET";
    if let Ok(socket) = std::env::var(SOCKET) {
        return hold(&socket);
    }
    let daemon = Daemon::start(FUNCTIONAL, "fifo");
    let neighbour = daemon.connect();
    let own = malloc(&neighbour, 1024);
    write(&neighbour, own, &[7.0; 256]);
    let mut times = Vec::new();
    for _ in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "a_killed_client_leaves_nothing_within_100_ms_and_its_neighbour_is_untouched",
                "--exact",
                "--nocapture",
            ])
            .env(SOCKET, &daemon.socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("holding")), "the child never held memory");
        assert_eq!(daemon.used_bytes(), 1024 + 3 * 64 * MIB);
        let killed = Instant::now();
        child.kill().unwrap();
        wait_for("memory comes back", || daemon.used_bytes() == 1024);
        times.push(killed.elapsed());
        child.wait().unwrap();
    }
    println!("memory back after {times:?}");
    assert!(times.iter().min().unwrap() < &Duration::from_millis(100), "{times:?}");
    assert_eq!(floats(&read(&neighbour, own, 1024)), [7.0; 256]);
    assert_eq!(daemon.status()["sessions"].as_array().unwrap().len(), 1);
}

#[test]
fn a_killed_daemon_is_lost_to_a_client_that_waits() {
    let mut daemon = Daemon::start("Ascend910B3:timing:paced", "fifo");
    let client = daemon.connect();
    let [a, b, out] = [0; 3].map(|_| malloc(&client, 1 << 30));
    for _ in 0..1000 {
        client.post(&Record::Op { stream: 0 }, Some(&add(a, b, out, 1 << 28))).unwrap();
    }
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| client.call(|reply| Record::StreamSync { stream: 0, reply }));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!waiter.is_finished(), "there are seconds of work");
        let killed = Instant::now();
        daemon.program.kill();
        assert!(waiter.join().unwrap().is_err());
        let took = killed.elapsed();
        println!("lost after {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
    });
    assert!(client.is_lost());
    assert!(client.post(&Record::StreamDestroy { stream: 1 }, None).is_err());
    // The socket file is still there; a new daemon replaces it and takes the client's successor.
    assert!(daemon.socket.exists());
    let args = ["--device", FUNCTIONAL, "--policy", "phase"];
    let _second = Program::start("vnpu-daemon", command(&daemon.socket, &args)).unwrap();
    malloc(&daemon.connect(), 4096);
}

#[test]
fn clients_that_do_not_fit_are_told_why() {
    let daemon = Daemon::start(FUNCTIONAL, "fifo");
    let table = [
        (
            ConnectOptions { version: PROTOCOL_VERSION + 1, ..ConnectOptions::default() },
            RefuseCode::Version,
            "protocol",
        ),
        (
            ConnectOptions { signatures_digest: 1, ..ConnectOptions::default() },
            RefuseCode::Signatures,
            "operator table",
        ),
    ];
    for (options, want, word) in table {
        match Client::connect(&daemon.socket, &options) {
            Err(ConnectError::Refused { code, message, .. }) => {
                assert_eq!(code, want);
                assert!(message.contains(word), "{message}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(daemon.status()["sessions"], serde_json::json!([]));
    malloc(&daemon.connect(), 4096);
}

#[test]
fn a_client_that_breaks_the_protocol_makes_room_and_harms_nobody() {
    let daemon = Daemon::start(FUNCTIONAL, "fifo");
    let honest = daemon.connect();
    let hostile = daemon.connect();
    malloc(&hostile, MIB);
    hostile.post_encoded(&[0xff; 64]).unwrap();
    wait_for("the session ends", || daemon.status()["sessions"].as_array().unwrap().len() == 1);
    assert_eq!((daemon.used_bytes(), daemon.admin.metric("vnpu_violations_total").unwrap()), (0, 1.0));
    wait_for("the hostile client hears of it", || hostile.is_lost());
    malloc(&honest, 4096);
}

#[test]
fn the_policy_can_be_seen_and_changed_while_work_runs() {
    let daemon = Daemon::start("Ascend910B3:timing:paced:omega=0.5", "fifo");
    let client = daemon.connect();
    let [a, b, out] = [0; 3].map(|_| malloc(&client, 64 * MIB));
    for _ in 0..2000 {
        client.post(&Record::Op { stream: 0 }, Some(&add(a, b, out, 16 << 20))).unwrap();
    }
    let put = |body: &str| daemon.admin.send("PUT", "/v1/policy", body).unwrap();
    for body in [r#"{"name":"phase","tpot_ms":40}"#, r#"{"name":"passthrough"}"#] {
        let (status, text) = put(body);
        assert_eq!(status, 200, "{text}");
        let (want, got) = (body, daemon.admin.get_json("/v1/policy").unwrap());
        let want: serde_json::Value = serde_json::from_str(want).unwrap();
        for (key, value) in want.as_object().unwrap() {
            let same = got[key] == *value || got[key].as_f64() == value.as_f64() && value.is_number();
            assert!(same, "{key}: {got}");
        }
        assert_eq!(daemon.status()["policy"], got);
    }
    for (body, words) in [
        (r#"{"name":"lottery"}"#, &["lottery", "passthrough", "fifo", "phase"][..]),
        ("{", &["not a policy"]),
        (r#"{"name":"phase","tpot_ms":0}"#, &["tpot_ms"]),
    ] {
        let (status, text) = put(body);
        assert_eq!(status, 400, "{text}");
        for word in words {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
    assert_eq!(daemon.status()["policy"]["name"], "passthrough", "a refused change changes nothing");
    let reply = client.call(|reply| Record::StreamSync { stream: 0, reply }).unwrap();
    assert_eq!(reply.status, 0);
}

#[test]
fn decisions_are_recorded_on_request_and_never_for_nobody() {
    let daemon = Daemon::start("Ascend910B3:timing:paced", "phase");
    let send = |method: &str, path: &str, body: &str| daemon.admin.send(method, path, body).unwrap();
    let recording = || daemon.status()["recording"].clone();
    assert!(recording().is_null());
    for (method, path, body, words) in [
        ("GET", "/v1/record?seconds=601", "", "1 to 600"),
        ("GET", "/v1/record?mib=0", "", "1 to 1024"),
        ("PUT", "/v1/record", r#"{"mib":2000}"#, "1 to 1024"),
        ("PUT", "/v1/record", r#"{"mb":1}"#, "mib"),
    ] {
        let (status, text) = send(method, path, body);
        assert!(status == 400 && text.contains(words), "{method} {path} {body}: {status} {text}");
    }
    assert!(recording().is_null(), "a refused request changes nothing");
    let (status, text) = send("PUT", "/v1/record", r#"{"mib":1,"seconds":2}"#);
    assert_eq!(status, 200, "{text}");
    assert_eq!((&recording()["bytes_max"], &recording()["span_ns"]), (&MIB.into(), &2_000_000_000u64.into()));
    assert_eq!(send("DELETE", "/v1/record", "").0, 204);
    assert!(recording().is_null());

    // For one request, as long as somebody waits for it.
    let mut client = std::net::TcpStream::connect(daemon.admin.authority()).unwrap();
    client.write_all(b"GET /v1/record?seconds=600 HTTP/1.1\r\nhost: d\r\n\r\n").unwrap();
    wait_for("it is recorded", || !recording().is_null());
    for (method, body) in [("GET", ""), ("PUT", "{}")] {
        let (status, text) = send(method, "/v1/record", body);
        assert!(status == 409 && text.contains("another request"), "{method}: {status} {text}");
    }
    drop(client);
    wait_for("nobody waits any more", || recording().is_null());
}

#[test]
fn only_its_user_may_connect_and_nothing_stays_behind() {
    let mut daemon = Daemon::start(FUNCTIONAL, "phase");
    let mode = std::fs::metadata(&daemon.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    let client = daemon.connect();
    let second = command(&daemon.socket, &["--device", FUNCTIONAL]).output().unwrap();
    assert!(!second.status.success(), "a second daemon took over a live socket");
    assert!(String::from_utf8_lossy(&second.stderr).contains("npu0.sock"), "{second:?}");
    malloc(&client, 4096);
    let status = daemon.program.stop();
    assert!(status.success(), "{status}");
    assert!(!daemon.socket.exists());
    assert!(client.call(|reply| Record::MemInfo { reply }).is_err());
}

#[test]
fn nonsense_on_the_command_line_is_refused_with_what_is_valid() {
    let dir = stack::scratch().unwrap();
    let socket = dir.path().join("s");
    for (args, words) in [
        (&["--device", "Ascend310:timing"][..], &["Ascend310", "Ascend910B1", "Ascend910B3"][..]),
        (&["--device", "Ascend910B3:quick"], &["quick", "functional", "timing"]),
        (&["--device", FUNCTIONAL, "--policy", "lottery"], &["lottery", "passthrough", "fifo", "phase"]),
        (&["--device", FUNCTIONAL, "--admin", "256.0.0.1:1"], &["--admin"]),
    ] {
        let out = command(&socket, args).output().unwrap();
        assert!(!out.status.success(), "{args:?}");
        let text = String::from_utf8_lossy(&out.stderr);
        for word in words {
            assert!(text.contains(word), "{word} in {text}");
        }
        assert!(out.stdout.is_empty() && !socket.exists());
    }
}
