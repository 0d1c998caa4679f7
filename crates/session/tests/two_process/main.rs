//! Two real processes: handshakes, refusals, deaths. The binary starts itself again in a role (see `roles`).
//!
//! No test sleeps for a result: each waits on an event, at most [`PATIENCE`].

mod raw;
mod roles;

use roles::{Child, Mode};
use session::{AcceptError, Client, ConnectError, ConnectOptions, DeviceFacts, Doorbell, Layout, Listener, Lost};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wire::control::RefuseCode;
use wire::{HostSource, PROTOCOL_VERSION, Record};

/// Longest wait for something that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// How soon a process must notice that its peer was killed. Measured: well below 5 ms on an idle machine; the rest is for
/// a machine that builds something at the same time.
const DEATH_NOTICED: Duration = Duration::from_millis(200);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, rest @ ..] = &args[..]
        && role == "role"
    {
        return roles::run(rest);
    }
    type Test = fn(&Path);
    let tests: &[(&str, Test)] = &[
        ("handshake_tells_facts_and_identity", handshake_tells_facts_and_identity),
        ("other_versions_are_refused_with_both_versions", other_versions_are_refused_with_both_versions),
        ("other_operator_tables_are_refused", other_operator_tables_are_refused),
        ("nobody_listening_says_what_to_start", nobody_listening_says_what_to_start),
        ("too_many_sessions_are_refused_until_one_ends", too_many_sessions_are_refused_until_one_ends),
        ("a_silent_client_delays_nobody", a_silent_client_delays_nobody),
        ("nonsense_instead_of_hello_is_refused", nonsense_instead_of_hello_is_refused),
        ("calls_from_many_threads", calls_from_many_threads),
        ("staging_blocks_are_reused_across_processes", staging_blocks_are_reused_across_processes),
        ("killed_daemon_means_lost_for_everyone", killed_daemon_means_lost_for_everyone),
        ("killed_client_is_noticed", killed_client_is_noticed),
        ("killed_client_is_noticed_although_its_child_lives", killed_client_is_noticed_although_its_child_lives),
        ("dropped_client_is_noticed", dropped_client_is_noticed),
        ("hostile_client_cannot_resize_the_memory_or_hurt_a_neighbour", hostile_client_cannot_hurt_a_neighbour),
        ("client_does_not_trust_memory_that_can_shrink", client_does_not_trust_memory_that_can_shrink),
        ("silent_daemon_times_out", silent_daemon_times_out),
        ("forked_child_is_lost_and_harmless", forked_child_is_lost_and_harmless),
        ("stale_socket_is_taken_over_and_a_live_one_is_not", stale_socket_is_taken_over_and_a_live_one_is_not),
        ("stopped_listener_stays_stopped", stopped_listener_stays_stopped),
    ];
    // As the built-in harness does: a word filters by name and `--list` lists; other options are not ours.
    let filter = args.iter().find(|word| !word.starts_with('-')).cloned().unwrap_or_default();
    if args.iter().any(|word| word == "--list") {
        return tests.iter().for_each(|(name, _)| println!("{name}: test"));
    }
    let mut ran = 0;
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&filter)) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // A failing test panics and ends the process, which ends its children: they watch their standard input.
        println!("test {name} ...");
        test(&dir.path().join("vnpu.sock"));
        ran += 1;
    }
    println!("test result: ok. {ran} passed");
}

fn connect(path: &Path) -> Client {
    Client::connect(path, &ConnectOptions::default()).expect("a session")
}

fn listener(path: &Path) -> Listener {
    let facts = DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 64 << 30, device_index: 0, epoch: 5 };
    Listener::bind(path, roles::layout(), Doorbell::new().unwrap(), facts).unwrap()
}

fn handshake_tells_facts_and_identity(path: &Path) {
    let _daemon = Child::serve(path, Mode::Honest);
    let client =
        Client::connect(path, &ConnectOptions { process_name: "tester".into(), ..Default::default() }).unwrap();
    let facts = client.facts().clone();
    assert_eq!((facts.soc_name.as_str(), facts.hbm_bytes, facts.epoch), ("Ascend910B3", 64 << 30, 5));
    assert_eq!(facts.layout, roles::layout());
    let (base, len) = client.va();
    assert!(base > 0 && len >= 64 << 30);
    let reply = client.call(|reply| Record::MemInfo { reply }).unwrap();
    assert_eq!(reply.payload, [u64::from(std::process::id()), base, len, facts.session]);
    assert_eq!(reply.text, "tester");
    assert_ne!(connect(path).facts().session, facts.session);
}

fn refusal(path: &Path, options: ConnectOptions) -> (RefuseCode, String) {
    match Client::connect(path, &options) {
        Err(ConnectError::Refused { code, message, .. }) => (code, message),
        other => panic!("{other:?}"),
    }
}

fn other_versions_are_refused_with_both_versions(path: &Path) {
    let _daemon = Child::serve(path, Mode::Honest);
    let (code, message) = refusal(path, ConnectOptions { version: 4711, ..Default::default() });
    assert_eq!(code, RefuseCode::Version);
    for part in ["4711".to_string(), PROTOCOL_VERSION.to_string(), "vnpu run".into()] {
        assert!(message.contains(&part), "{message}");
    }
    connect(path);
}

fn other_operator_tables_are_refused(path: &Path) {
    let _daemon = Child::serve(path, Mode::Honest);
    let (code, message) = refusal(path, ConnectOptions { signatures_digest: 0xabc, ..Default::default() });
    assert_eq!(code, RefuseCode::Signatures);
    for part in ["0x0000000000000abc".to_string(), format!("{:#018x}", acl_abi::SIGNATURES_DIGEST), "vnpu run".into()] {
        assert!(message.contains(&part), "{message}");
    }
}

fn nobody_listening_says_what_to_start(path: &Path) {
    let error = Client::connect(path, &ConnectOptions::default()).unwrap_err();
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("vnpu-daemon") && error.to_string().contains(&*path.to_string_lossy()));
}

fn too_many_sessions_are_refused_until_one_ends(path: &Path) {
    let listener = listener(path).with_sessions_max(1);
    let stop = listener.stopper();
    let (tell, told) = std::sync::mpsc::channel();
    let accepting = std::thread::spawn(move || {
        loop {
            match listener.accept() {
                Err(AcceptError::Stopped) => break,
                accepted => tell.send(accepted).unwrap(),
            }
        }
    });
    let first = connect(path);
    let held = told.recv_timeout(PATIENCE).unwrap().unwrap();
    let (code, message) = refusal(path, ConnectOptions::default());
    assert_eq!(code, RefuseCode::Busy);
    assert!(message.contains("1 sessions"), "{message}");
    assert!(matches!(told.recv_timeout(PATIENCE).unwrap(), Err(AcceptError::Refused { .. })));
    drop(held);
    assert!(first.is_lost());
    connect(path);
    stop.stop();
    accepting.join().unwrap();
}

fn a_silent_client_delays_nobody(path: &Path) {
    let _daemon = Child::serve(path, Mode::Honest);
    let _silent: Vec<_> = (0..10).map(|_| raw::connect(path)).collect();
    let start = Instant::now();
    connect(path);
    assert!(start.elapsed() < session::HANDSHAKE_TIMEOUT, "{:?}", start.elapsed());
}

fn nonsense_instead_of_hello_is_refused(path: &Path) {
    let _daemon = Child::serve(path, Mode::Honest);
    let socket = raw::connect(path);
    raw::send(&socket, b"GET / HTTP/1.1\r\n\r\n");
    let (answer, fds) = raw::receive(&socket, PATIENCE);
    let Ok(wire::control::Answer::Refuse(refuse)) = wire::control::Answer::decode(&answer) else {
        panic!("{answer:?}")
    };
    assert_eq!((refuse.code, fds.len()), (RefuseCode::Malformed, 0));
    connect(path);
}

fn calls_from_many_threads(path: &Path) {
    let _daemon = Child::serve(path, Mode::Honest);
    let client = connect(path);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let client = &client;
            scope.spawn(move || {
                for i in 0..1000 {
                    let size = thread << 32 | i;
                    client.post(&Record::StreamDestroy { stream: 1 }, None).unwrap();
                    let reply = client.call(|reply| Record::Malloc { size, reply }).unwrap();
                    assert_eq!(reply.payload[0], !size);
                }
            });
        }
    });
    // The honest daemon counts what it was posted.
    assert_eq!(client.call(|reply| Record::DeviceSync { reply }).unwrap().payload[0], 4000);
}

fn staging_blocks_are_reused_across_processes(path: &Path) {
    let _daemon = Child::serve(path, Mode::Honest);
    let client = connect(path);
    let copies = 20 * u64::from(roles::layout().staging_blocks);
    for i in 0..copies {
        let block = client.staging_take().unwrap();
        // SAFETY: the block is ours and longer than eight bytes.
        unsafe { block.ptr.cast::<u64>().write(i) };
        let source = HostSource::Staging { block: block.block, len: 8 };
        client.post(&Record::CopyIn { dst: 0, source, stream: Some(0), reply: None }, None).unwrap();
    }
    // The honest daemon adds up what it read.
    assert_eq!(client.call(|reply| Record::DeviceSync { reply }).unwrap().payload[1], copies * (copies - 1) / 2);
}

fn killed_daemon_means_lost_for_everyone(path: &Path) {
    let daemon = Child::serve(path, Mode::Deaf);
    let client = connect(path);
    for _ in 0..roles::layout().staging_blocks {
        client.staging_take().unwrap();
    }
    std::thread::scope(|scope| {
        let client = &client;
        let mut waiting: Vec<_> =
            (0..8).map(|_| scope.spawn(|| client.call(|reply| Record::MemInfo { reply }).map(|_| ()))).collect();
        waiting.push(scope.spawn(|| client.staging_take().map(|_| ())));
        waiting.push(scope.spawn(|| {
            loop {
                client.post(&Record::StreamDestroy { stream: 1 }, None)?;
            }
        }));
        // Long enough that all of them sleep in the kernel; if one does not yet, the test is merely easier to pass.
        std::thread::sleep(Duration::from_millis(50));
        assert!(waiting.iter().all(|w| !w.is_finished()));
        let start = Instant::now();
        daemon.kill();
        for w in waiting {
            assert_eq!(w.join().unwrap(), Err(Lost));
        }
        let took = start.elapsed();
        println!("    every caller learned of the death within {took:?}");
        assert!(took < DEATH_NOTICED, "{took:?}");
    });
    assert!(client.is_lost());
    let start = Instant::now();
    assert_eq!(client.post(&Record::StreamDestroy { stream: 1 }, None), Err(Lost));
    assert_eq!(client.call(|reply| Record::MemInfo { reply }), Err(Lost));
    assert!(start.elapsed() < DEATH_NOTICED);
}

/// Accepts the session of a client in another process, ends that process with `end`, and wants it noticed.
fn noticed(path: &Path, role: &str, end: impl FnOnce(Child) -> Option<Child>) {
    let listener = listener(path);
    let client = Child::client(path, role);
    let (mut server, connection) = listener.accept().unwrap();
    assert_eq!(server.peer().pid, client.pid());
    let client = client.ready();
    assert!(!connection.is_gone());
    assert!(!connection.wait_gone(Some(Duration::from_millis(1))).unwrap());
    let start = Instant::now();
    let _living = end(client);
    assert!(connection.wait_gone(Some(PATIENCE)).unwrap());
    println!("    noticed within {:?}", start.elapsed());
    assert!(start.elapsed() < DEATH_NOTICED, "{:?}", start.elapsed());
    assert!(connection.is_gone());
    // What it posted before it died is still there, and nothing else.
    let mut posted = Vec::new();
    server.drain(100, &mut |_, record, _| posted.push(format!("{record:?}"))).unwrap();
    assert_eq!(posted, ["StreamDestroy { stream: 11 }", "StreamDestroy { stream: 12 }"]);
}

fn killed_client_is_noticed(path: &Path) {
    noticed(path, "idle", killed);
}

fn killed_client_is_noticed_although_its_child_lives(path: &Path) {
    noticed(path, "idle-with-child", killed);
}

fn dropped_client_is_noticed(path: &Path) {
    // The process stays, so it is the session's end that is noticed.
    noticed(path, "leave", |child| Some(child.tell()));
}

fn killed(child: Child) -> Option<Child> {
    child.kill();
    None
}

fn hostile_client_cannot_hurt_a_neighbour(path: &Path) {
    let _daemon = Child::serve(path, Mode::Honest);
    let neighbour = connect(path);
    let hostile = raw::Session::open(path);
    assert!(hostile.resize(0).is_err() && hostile.resize(1 << 40).is_err(), "the memory is sealed");
    hostile.drain_and_block_doorbell();
    hostile.write_words(raw::TAIL_BYTES, &[u64::MAX / 3]);
    hostile.ring();
    // The daemon drops it, which closes its socket.
    assert!(hostile.wait_closed(PATIENCE));
    for i in 0..100 {
        assert_eq!(neighbour.call(|reply| Record::Malloc { size: i, reply }).unwrap().payload[0], !i);
    }
    assert!(!neighbour.is_lost());
}

fn client_does_not_trust_memory_that_can_shrink(path: &Path) {
    let total = roles::layout().offsets().total;
    let attacks: [(&str, u64, bool, usize, &str); 4] = [
        ("not sealed", total, false, 2, "not sealed"),
        ("too small", total - 4096, true, 2, "bytes where"),
        ("one descriptor", total, true, 1, "instead of 2"),
        ("no descriptor", total, true, 0, "instead of 2"),
    ];
    for (what, bytes, sealed, fds, want) in attacks {
        let path: PathBuf = path.with_file_name(what);
        let daemon = raw::FakeDaemon::listen(&path);
        let answering = std::thread::spawn(move || daemon.welcome(roles::layout(), bytes, sealed, fds));
        let error = Client::connect(&path, &ConnectOptions::default()).unwrap_err();
        let ConnectError::Setup { source, .. } = error else { panic!("{what}: {error}") };
        assert!(source.to_string().contains(want), "{what}: {source}");
        answering.join().unwrap();
    }
}

fn silent_daemon_times_out(path: &Path) {
    let _daemon = raw::FakeDaemon::listen(path);
    let options = ConnectOptions { timeout: Duration::from_millis(30), ..Default::default() };
    let error = Client::connect(path, &options).unwrap_err();
    assert!(matches!(error, ConnectError::Silent { .. }), "{error}");
}

fn forked_child_is_lost_and_harmless(path: &Path) {
    let _daemon = Child::serve(path, Mode::Honest);
    let client = connect(path);
    let pinned = client.pinned_alloc(100).unwrap();
    let status = roles::in_fork(|| {
        let lost = client.is_lost()
            && client.post(&Record::StreamDestroy { stream: 1 }, None) == Err(Lost)
            && client.call(|reply| Record::MemInfo { reply }) == Err(Lost)
            && client.staging_take().is_err()
            && client.pinned_alloc(10).is_none()
            && !client.pinned_free(pinned);
        // A session of its own, and the end of the inherited one.
        let own = Client::connect(path, &ConnectOptions::default()).expect("a session for the child");
        let works = own.call(|reply| Record::Malloc { size: 1, reply }).is_ok() && !own.is_lost();
        // SAFETY: the child ends without using the client again.
        drop(unsafe { std::ptr::read(&raw const client) });
        let still_works = own.call(|reply| Record::Malloc { size: 1, reply }).is_ok();
        if lost && works && still_works { 0 } else { 1 }
    });
    assert_eq!(status, 0);
    assert!(!client.is_lost());
    assert_eq!(client.call(|reply| Record::Malloc { size: 7, reply }).unwrap().payload[0], !7);
    assert_eq!(
        client.call(|reply| Record::DeviceSync { reply }).unwrap().payload[0],
        0,
        "the child posted nothing here"
    );
}

fn stale_socket_is_taken_over_and_a_live_one_is_not(path: &Path) {
    let daemon = Child::serve(path, Mode::Honest);
    let facts = DeviceFacts { soc_name: "x".into(), hbm_bytes: 1, device_index: 0, epoch: 1 };
    let bind = |layout| Listener::bind(path, layout, Doorbell::new().unwrap(), facts.clone());
    let error = bind(Layout::default()).unwrap_err();
    assert!(error.to_string().contains("another daemon"), "{error}");
    daemon.kill();
    assert!(path.exists(), "a killed daemon leaves its socket");
    assert!(bind(Layout { ring_bytes: 1, ..Layout::default() }).is_err());
    let listener = bind(Layout::default()).unwrap();
    drop(listener);
    assert!(!path.exists());
}

fn stopped_listener_stays_stopped(path: &Path) {
    let listener = listener(path);
    let stop = listener.stopper();
    let thread = std::thread::spawn(move || {
        let first = listener.accept().map(|_| ());
        (first, listener.accept().map(|_| ()))
    });
    stop.stop();
    let (first, second) = thread.join().unwrap();
    assert!(matches!(first, Err(AcceptError::Stopped)) && matches!(second, Err(AcceptError::Stopped)));
    assert!(Client::connect(path, &ConnectOptions::default()).is_err(), "its path is gone");
}
