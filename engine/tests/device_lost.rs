//! The device goes away: every live request hears of it, an idle engine notices too, and the process can start over.

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{config, eventually, greedy, submit, tiny_model};
use engine::core::{
    EngineConfig, EngineHandle, EngineRequest, FailKind, Health, ModelSource, SubmitError, TokenEvent, start,
};

/// A device served by a process of its own, killed with this value.
struct Daemon(Child);

impl Daemon {
    fn start(socket: &Path) -> Self {
        let exe = std::env::current_exe().unwrap();
        let program = exe.ancestors().skip(1).take(2).map(|d| d.join("vnpu-daemon")).find(|p| p.is_file());
        let mut child = Command::new(program.expect("the daemon is not built: run `cargo build --release`"))
            .args(["--device", "Ascend910B3:functional", "--policy", "passthrough", "--socket"])
            .arg(socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "{line}");
        Self(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn is_lost(engine: &EngineHandle) -> bool {
    matches!(&*engine.health().borrow(), Health::Failed { kind: FailKind::DeviceLost, .. })
}

#[test]
fn a_lost_device_ends_the_engine_and_every_request() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("npu.sock");
    // SAFETY: this program has one test, and nothing has read these variables yet.
    unsafe {
        std::env::set_var("VNPU_MODE", "daemon");
        std::env::set_var("VNPU_SOCKET", &socket);
    }
    let config = EngineConfig { max_num_seqs: 2, ..config(ModelSource::Dir(tiny_model())) };

    let daemon = Daemon::start(&socket);
    let engine = start(config.clone()).unwrap();
    assert_eq!(submit(&engine, &[1], &greedy(3)).wait().tokens.len(), 3);
    drop(daemon);
    eventually("an idle engine notices", || is_lost(&engine));
    drop(engine);

    let daemon = Daemon::start(&socket);
    let engine = start(config).unwrap();
    let mut live: Vec<_> = (0..4).map(|_| submit(&engine, &[1, 2, 3], &greedy(2000))).collect();
    assert!(matches!(live[0].next(), TokenEvent::Token { .. }));
    drop(daemon);
    for request in &mut live {
        let last = loop {
            match request.next() {
                TokenEvent::Token { .. } => {}
                last => break last,
            }
        };
        assert!(matches!(last, TokenEvent::Failed { kind: FailKind::DeviceLost, .. }), "{last:?}");
    }
    assert!(is_lost(&engine));
    let (events, _receiver) = tokio::sync::mpsc::unbounded_channel();
    let refused = engine.submit(EngineRequest { id: u64::MAX, prompt: vec![1], params: greedy(1), events });
    assert!(matches!(refused, Err(SubmitError::EngineDead(_))));
    assert_eq!(engine.stats().failed, 4);
}
