//! The session with a daemon: what crosses the ring, hints, and a daemon that refuses or goes away.
//!
//! The daemon here is a few lines that note every record and answer "done": what it computes does not matter.

mod common;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use acl_abi::OpCall;
use common::{Acl, F32, NULL, Ptr, load};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use session::{DeviceFacts, Doorbell, Layout, Listener, Replier};
use wire::{Hint, HostSource, Record, Reply, ReplyTo};

const LOST: i32 = 507_010;
/// No wait of these tests is longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Device numbers, and what listens at their sockets.
const HINTED: i32 = 0;
const MORTAL: i32 = 1;
const REFUSING: i32 = 2;

fn socket(device: i32) -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| tempfile::tempdir().unwrap()).path().join(format!("{device}.sock"))
}

fn hints() -> PathBuf {
    socket(0).with_file_name("hints.sock")
}

fn acl() -> &'static Acl {
    let sockets = [HINTED, MORTAL, REFUSING].map(|d| socket(d).display().to_string()).join(",");
    load(&[("VNPU_SOCKET", &sockets), ("VNPU_HINTS", hints().to_str().unwrap())])
}

/// A daemon with one client.
struct Daemon {
    seen: Receiver<String>,
    /// Lines that it was told were no hints; in how many records, and between which others, depends on how they were read.
    refused: Arc<AtomicU32>,
    end: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Listens at `path`; `answers` says whether a record gets its answer.
    fn start(path: &Path, answers: impl Fn(&Record<'_>) -> bool + Send + 'static) -> Self {
        let facts = DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 1 << 30, device_index: 0, epoch: 1 };
        let listener = Listener::bind(path, Layout::default(), Doorbell::new().unwrap(), facts).unwrap();
        let (note, seen) = channel();
        let (end, ended) = channel::<()>();
        let refused = Arc::new(AtomicU32::new(0));
        let told = Arc::clone(&refused);
        let thread = std::thread::spawn(move || {
            let (mut server, _connection) = listener.accept().unwrap();
            let va = server.peer().va_base;
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_micros(50)) {
                let each = &mut |replier: &Replier, record: Record<'_>, call: &mut OpCall| {
                    if let Record::HintsRefused { lines } = record {
                        told.fetch_add(lines, Relaxed);
                        return;
                    }
                    let _ = note.send(name(&record, call));
                    if let (true, Some(to)) = (answers(&record), reply_of(&record)) {
                        replier.reply(to, &Reply::value(va + 4096));
                    }
                    if let Record::CopyIn { source: HostSource::Staging { block, .. }, .. } = record {
                        replier.release_staging(block);
                    }
                };
                server.drain(1000, each).unwrap();
            }
        });
        Self { seen, refused, end, thread: Some(thread) }
    }

    /// The next records; each must be there in time.
    fn expect(&self, want: &[&str]) {
        for want in want {
            assert_eq!(self.seen.recv_timeout(PATIENCE).as_deref(), Ok(*want));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.end.send(());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn name(record: &Record<'_>, call: &OpCall) -> String {
    match record {
        Record::Op { stream } => format!("{} in {stream}", call.op.name()),
        Record::Hint(hint) => format!("hint of {}", hint.request()),
        other => format!("{other:?}").split([' ', '{']).next().unwrap().to_owned(),
    }
}

fn reply_of(record: &Record<'_>) -> Option<ReplyTo> {
    match *record {
        Record::Malloc { reply, .. } | Record::StreamSync { reply, .. } | Record::DeviceSync { reply } => Some(reply),
        Record::CopyIn { reply, .. } => reply,
        _ => None,
    }
}

#[test]
fn hints_keep_their_order_among_operators_and_bad_lines_harm_nobody() {
    let daemon = Daemon::start(&socket(HINTED), |_| true);
    let acl = acl();
    assert!(UnixStream::connect(hints()).is_err(), "no listener before the first use of the device");
    acl.ok((acl.aclrtSetDevice)(HINTED));
    let memory = acl.malloc(64);
    let (t, one) = (acl.tensor(memory, F32, &[4]), acl.scalar(1.0));
    let stream = acl.stream();
    daemon.expect(&["Malloc", "StreamCreate"]);

    let mut gateway = UnixStream::connect(hints()).unwrap();
    let send = |gateway: &mut UnixStream, request| {
        let line = Hint::FirstToken { request }.to_json().unwrap() + "\n";
        gateway.write_all(line.as_bytes()).unwrap();
    };
    for request in [1, 2] {
        send(&mut gateway, request);
        daemon.expect(&[&format!("hint of {request}")]);
        acl.run_on(|w, e| (acl.aclnnMulsGetWorkspaceSize)(t, one, t, w, e), acl.aclnnMuls, stream);
        daemon.expect(&["aclnnMuls in 1"]);
    }
    gateway.write_all(b"{\"hint\":\"nonsense\"}\n\n").unwrap();
    gateway.write_all(&[b'x'; 5000]).unwrap();
    gateway.write_all(b"\n").unwrap();
    send(&mut gateway, 3);
    daemon.expect(&["hint of 3"]);

    let mut more: Vec<UnixStream> =
        (0..interposer_connections() - 1).map(|_| UnixStream::connect(hints()).unwrap()).collect();
    send(more.last_mut().unwrap(), 4);
    daemon.expect(&["hint of 4"]);
    let mut refused = UnixStream::connect(hints()).unwrap();
    refused.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(refused.read(&mut [0]).unwrap_or(0), 0, "one connection too many is closed");
    drop(more);
    send(&mut gateway, 5);
    daemon.expect(&["hint of 5"]);
    assert_eq!(daemon.refused.load(Relaxed), 2);
}

const fn interposer_connections() -> usize {
    vnpu_interposer::hints::CONNECTIONS_MAX
}

#[test]
fn a_daemon_that_ends_is_an_error_at_once_and_another_can_take_its_place() {
    // Leaves synchronisation unanswered, so that somebody waits when it ends.
    let daemon = Daemon::start(&socket(MORTAL), |record| !matches!(record, Record::StreamSync { .. }));
    let acl = acl();
    acl.ok((acl.aclrtSetDevice)(MORTAL));
    let (stream, event) = (acl.stream(), acl.event());
    let memory = acl.malloc(64);
    acl.ok((acl.aclrtMemsetAsync)(memory, 64, 0, 64, stream));
    daemon.expect(&["StreamCreate", "EventCreate", "Malloc", "Memset"]);

    let waiting = stream.addr();
    let waiter = std::thread::spawn(move || {
        let status = (acl.aclrtSynchronizeStream)(std::ptr::without_provenance_mut(waiting));
        (status, acl.message())
    });
    daemon.expect(&["StreamSync"]);
    drop(daemon);
    let begin = Instant::now();
    let (status, message) = waiter.join().unwrap();
    assert_eq!(status, LOST, "{message}");
    assert!(message.contains("device 1 is lost") && message.contains("aclrtResetDevice"), "{message}");
    assert!(begin.elapsed() < PATIENCE);

    let mut host = [0u8; 8];
    let host: Ptr = host.as_mut_ptr().cast();
    let calls: [&dyn Fn() -> i32; 7] = [
        &|| (acl.aclrtMemcpy)(memory, 64, host, 8, common::H2D),
        &|| (acl.aclrtMemsetAsync)(memory, 64, 0, 64, stream),
        &|| (acl.aclrtSynchronizeStream)(stream),
        &|| (acl.aclrtSynchronizeStream)(NULL),
        &|| (acl.aclrtSynchronizeEvent)(event),
        &|| (acl.aclrtSynchronizeDevice)(),
        &|| (acl.aclrtSetDevice)(MORTAL),
    ];
    for call in calls {
        acl.fails(call(), LOST, "is lost");
    }
    acl.ok((acl.aclrtDestroyStream)(stream));
    acl.ok((acl.aclrtDestroyEvent)(event));

    let second = Daemon::start(&socket(MORTAL), |_| true);
    acl.ok((acl.aclrtResetDevice)(MORTAL));
    acl.ok((acl.aclrtSetDevice)(MORTAL));
    acl.malloc(64);
    second.expect(&["Malloc"]);
}

#[test]
fn a_daemon_of_another_version_says_both_versions() {
    let path = socket(REFUSING);
    let listening =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&listening, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listening, 1).unwrap();
    let listening = Arc::new(listening);
    let server = std::thread::spawn(move || {
        let client = rustix::net::accept(&*listening).unwrap();
        let refuse = wire::control::refuse_version(wire::PROTOCOL_VERSION);
        let message =
            refuse.message.replace(&format!("this daemon speaks {}", wire::PROTOCOL_VERSION), "this daemon speaks 77");
        let answer = wire::control::Answer::Refuse(wire::control::Refuse { message, ..refuse });
        rustix::net::send(&client, &answer.encode(), SendFlags::empty()).unwrap();
        // The client closes first.
        let _ = rustix::net::recv(&client, &mut [0u8; 4096][..], rustix::net::RecvFlags::empty());
    });
    let acl = acl();
    let status = (acl.aclrtSetDevice)(REFUSING);
    let message = acl.message();
    assert_eq!(status, 507_033, "{message}");
    let ours = format!("speaks session protocol {}", wire::PROTOCOL_VERSION);
    for part in [&ours, "this daemon speaks 77", "2.sock"] {
        assert!(message.contains(part), "{message}");
    }
    server.join().unwrap();
}
