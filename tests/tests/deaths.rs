//! What dies and what must live on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use stack::{Daemon, Gateway, StreamEvent, Via};
use system_tests::{FUNCTIONAL, MODEL, Path, greedy, tiny_engine, wait_for};

fn endless() -> serde_json::Value {
    json!({ "model": MODEL, "prompt": "Hello", "max_tokens": 1900, "ignore_eos": true, "temperature": 0 })
}

#[test]
fn killed_engine_leaves_nothing_behind_and_a_new_one_serves() {
    let mut path = Path::tiny(&[]);
    let before = path.daemon.status().unwrap();
    assert_eq!(before["sessions"].as_array().map(Vec::len), Some(1), "{before}");
    let mut stream = path.gateway.http.stream("/v1/completions", &endless()).unwrap();
    assert!(matches!(stream.next(), Some(Ok(StreamEvent::Text(..)))));

    let killed = Instant::now();
    path.engine.program.kill();
    wait_for("the daemon drops the session", || {
        path.daemon.status().is_ok_and(|s| s["sessions"].as_array().is_some_and(Vec::is_empty))
    });
    let took = killed.elapsed();
    let after = path.daemon.status().unwrap();
    assert_eq!(after["memory"]["used_bytes"], 0, "all memory is back: {after}");
    println!("session freed after {took:?}");
    // The promise is 100 ms; a loaded two-core machine gets slack, a leak or a polling loop does not pass.
    assert!(took < Duration::from_millis(1000), "took {took:?}");

    // The client's stream ends in an error event, not in silence and not in a fake finish.
    let last = stream.by_ref().map(|e| e.unwrap()).last();
    assert!(matches!(&last, Some(StreamEvent::Error(e)) if e["code"] == "engine_lost"), "{last:?}");

    let engine = tiny_engine(&Via::Daemon(&path.daemon), None, &[]);
    let gateway = Gateway::start(&engine.http, None, &[]).unwrap();
    assert!(!greedy(&gateway.http, &json!("Hello"), 8).is_empty());
}

#[test]
fn killed_daemon_is_an_error_to_the_engine_never_a_hang() {
    let mut path = Path::tiny(&[]);
    let mut stream = path.gateway.http.stream("/v1/completions", &endless()).unwrap();
    assert!(matches!(stream.next(), Some(Ok(StreamEvent::Text(..)))));
    let killed = Instant::now();
    path.daemon.program.kill();
    let last = stream.by_ref().map(|e| e.unwrap()).last();
    assert!(matches!(last, Some(StreamEvent::Error(_))), "{last:?}");
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(5), "the error took {took:?}");
    let status = path.engine.http.send("GET", "/health", "").map(|(status, _)| status);
    // The engine either still answers that it is unhealthy, or has ended with an error.
    match status {
        Ok(status) => assert_eq!(status, 503),
        Err(_) => {
            let status = path.engine.program.wait(Duration::from_secs(10)).expect("an engine without a port has ended");
            assert!(!status.success(), "{status}");
        }
    }
}

/// Only an answer that had begun may end for want of its device.
#[test]
fn clients_of_a_killed_daemon_are_served_by_another_engine() {
    let dir = stack::scratch().unwrap();
    let mut daemons = ["npu0", "npu1"].map(|name| Daemon::start_named(dir.path(), name, FUNCTIONAL, "phase").unwrap());
    let engines = [0, 1].map(|i| tiny_engine(&Via::Daemon(&daemons[i]), None, &["--failed-exit-delay-s", "2"]));
    let config: String = engines
        .iter()
        .enumerate()
        .map(|(i, e)| format!("[[engines]]\nname = \"e{i}\"\naddress = \"{}\"\n", e.http.authority()))
        .collect();
    let file = dir.path().join("gateway.toml");
    std::fs::write(&file, config).unwrap();
    let gateway = Gateway::configured(&file, &[]).unwrap();
    let body = json!({ "model": MODEL, "prompt": [1, 2, 3], "max_tokens": 100, "ignore_eos": true });
    let over = AtomicBool::new(false);
    let asked = AtomicUsize::new(0);
    let ended: Vec<String> = std::thread::scope(|scope| {
        let client = |streams: bool| {
            let (http, body, over, asked) = (&gateway.http, &body, &over, &asked);
            scope.spawn(move || {
                let mut failed = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    if !streams {
                        failed.extend(http.post_json("/v1/completions", body).err().map(|e| format!("plain: {e:#}")));
                        continue;
                    }
                    match http.stream("/v1/completions", body) {
                        Err(e) => failed.push(format!("stream refused: {e:#}")),
                        Ok(stream) => {
                            let mut begun = false;
                            for event in stream {
                                match event {
                                    Ok(StreamEvent::Text(..)) => begun = true,
                                    Ok(StreamEvent::Error(e)) if !begun => failed.push(format!("stream: {e}")),
                                    Ok(_) => {}
                                    Err(e) => failed.push(format!("stream broke off: {e:#}")),
                                }
                            }
                        }
                    }
                }
                failed
            })
        };
        let clients: Vec<_> = (0..8).map(|i| client(i % 2 == 0)).collect();
        let later = |more: usize| {
            let from = asked.load(Ordering::Relaxed);
            wait_for("clients to go on", || asked.load(Ordering::Relaxed) >= from + more);
        };
        later(40);
        daemons[0].program.kill();
        later(80);
        over.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    assert!(ended.is_empty(), "{ended:#?}");
    let retried = gateway.admin().unwrap().metric("gateway_retries_total").unwrap();
    assert!(retried > 0.0, "nobody met the lost device: the test has shown nothing");
}

#[test]
fn neighbour_does_not_notice_a_death() {
    let path = Path::tiny(&[]);
    let mut neighbour = tiny_engine(&Via::Daemon(&path.daemon), None, &[]);
    let want = greedy(&path.engine.http, &json!("What is a stream?"), 200);
    let mut dying = neighbour.http.stream("/v1/completions", &endless()).unwrap();
    assert!(dying.next().is_some());
    let http = path.engine.http.clone();
    let running = std::thread::spawn(move || greedy(&http, &json!("What is a stream?"), 200));
    neighbour.program.kill();
    assert_eq!(running.join().unwrap(), want);
}

/// An idle daemon once counted a client's time for its hello from before the wait.
#[test]
fn daemon_that_has_idled_takes_the_next_client() {
    let dir = stack::scratch().unwrap();
    let daemon = stack::Daemon::start(dir.path(), system_tests::FUNCTIONAL, "fifo").unwrap();
    // Longer than the time that a client has for its hello.
    std::thread::sleep(Duration::from_millis(2300));
    let engine = tiny_engine(&Via::Daemon(&daemon), None, &[]);
    assert!(!greedy(&engine.http, &json!("Hello"), 4).is_empty());
}

#[test]
fn programs_end_on_request_and_remove_their_sockets() {
    let mut path = Path::tiny(&[]);
    assert!(path.gateway.program.stop().success(), "{}", path.gateway.program.output());
    assert!(path.engine.program.stop().success(), "{}", path.engine.program.output());
    assert!(path.daemon.program.stop().success(), "{}", path.daemon.program.output());
    let left: Vec<_> = std::fs::read_dir(path.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
