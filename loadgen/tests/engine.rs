//! The engine and its audit against the mock: what is counted, what fails, what is the client's fault.
//!
//! The machine may be slow: times have lower bounds, which the mock guarantees, and no upper ones.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{Mock, PROGRAM, loadgen, number, run, text};

#[test]
fn figures_are_the_mock_s() {
    let mock = Mock::start(&["--ttft-ms", "30", "--itl-ms", "10"]);
    for endpoint in ["/v1/completions", "/v1/chat/completions"] {
        let (out, figures) = run(
            &mock,
            &["--endpoint", endpoint, "--num-prompts", "20", "--request-rate", "50", "--random-output-len", "5"],
        );
        assert!(matches!(out.status.code(), Some(0 | 3)), "{}", text(&out));
        assert!(text(&out).lines().any(|l| l == "VALID" || l.starts_with("CLIENT-LIMITED: ")));
        for (name, want) in [("completed", 20.0), ("failed", 0.0), ("output_tokens", 100.0), ("prompt_tokens", 160.0)] {
            assert_eq!(number(&figures, name), want, "{name}");
        }
        for (name, least) in [("ttft_from_send_p50_ms", 30.0), ("ttft_p50_ms", 30.0), ("e2el_p50_ms", 70.0)] {
            assert!(number(&figures, name) >= least, "{name} in {figures}");
        }
        assert!(number(&figures, "ttft_p50_ms") >= number(&figures, "ttft_from_send_p50_ms"));
    }
}

#[test]
fn tokens_in_one_chunk_are_one_gap_and_several_tokens() {
    for usage in [&[][..], &["--continuous-usage"]] {
        let mock = Mock::start(&[&["--ttft-ms", "5", "--itl-ms", "20", "--tokens-per-chunk", "4"], usage].concat());
        let (out, figures) = run(&mock, &["--num-prompts", "4", "--random-output-len", "12"]);
        assert_eq!(number(&figures, "output_tokens"), 48.0, "{}", text(&out));
        let (chunk, token) = (number(&figures, "itl_mean_ms"), number(&figures, "token_gap_mean_ms"));
        assert!(chunk >= 3.9 * token, "{chunk} a chunk, {token} a token");
    }
}

#[test]
fn where_chunks_are_cut_does_not_matter() {
    let mock = Mock::start(&["--ttft-ms", "1", "--itl-ms", "1", "--split-bytes", "7"]);
    let (out, figures) = run(&mock, &["--num-prompts", "5", "--random-output-len", "6"]);
    assert_eq!((number(&figures, "completed"), number(&figures, "output_tokens")), (5.0, 30.0), "{}", text(&out));
}

#[test]
fn every_kind_of_broken_answer_is_a_failure() {
    for (flag, want) in [
        ("--refuse-every", "HTTP 500 Internal Server Error"),
        ("--truncate-every", "stream ended without [DONE]"),
        ("--error-every", "server error in the stream"),
        ("--empty-every", "no content in the answer"),
    ] {
        let mock = Mock::start(&["--ttft-ms", "1", "--itl-ms", "1", flag, "2"]);
        let (out, figures) = run(&mock, &["--num-prompts", "10", "--random-output-len", "4", "--model", "m"]);
        assert_eq!((number(&figures, "completed"), number(&figures, "failed")), (5.0, 5.0), "{flag}");
        assert!(text(&out).contains(&format!("failed 5×: {want}")), "{flag}: {}", text(&out));
        let all = Mock::start(&[flag, "1"]);
        let (out, _) = run(&all, &["--num-prompts", "2", "--random-output-len", "4", "--model", "m"]);
        assert_eq!(out.status.code(), Some(1), "{flag}: a run in which everything failed has failed");
    }
}

#[test]
fn http2_and_tls_carry_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    let tls = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    for (tls, http2) in [(&[][..], true), (&tls[..], false), (&tls[..], true)] {
        let two: &[&str] = if http2 { &["--http2"] } else { &[] };
        let mock = Mock::start(&[&["--ttft-ms", "5", "--itl-ms", "2"], tls, two].concat());
        let out = std::process::Command::new(PROGRAM)
            .args(["--base-url", &mock.url, "--num-prompts", "30", "--random-output-len", "5", "--no-progress"])
            .args(two)
            .env("SSL_CERT_FILE", &cert)
            .output()
            .unwrap();
        let succeeded =
            text(&out).lines().any(|l| l.starts_with("Successful requests:") && l.trim_end().ends_with(" 30"));
        assert!(succeeded, "{tls:?} {http2}: {}", text(&out));
    }
    let mock = Mock::start(&["--ttft-ms", "300", "--http2"]);
    let (_, figures) = run(&mock, &["--http2", "--num-prompts", "80", "--random-output-len", "1", "--threads", "1"]);
    assert_eq!(number(&figures, "client_connections"), 1.0, "eighty streams share a connection");
    let mock = Mock::start(&tls);
    let stranger = loadgen(&["--base-url", &mock.url, "--num-prompts", "1", "--model", "m", "--no-progress"]);
    assert!(text(&stranger).contains("TLS: "), "an unknown certificate is refused: {}", text(&stranger));
}

#[test]
fn a_stalled_server_shows_at_its_full_size_from_schedule() {
    let mock = Mock::start(&["--ttft-ms", "5", "--itl-ms", "1"]);
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("figures.json");
    let mut child = std::process::Command::new(PROGRAM)
        .args(["--base-url", &mock.url, "--num-prompts", "160", "--request-rate", "40", "--burstiness", "1000"])
        .args(["--random-input-len", "8", "--random-output-len", "2", "--no-progress", "--json"])
        .arg(&json)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let http = ureq::Agent::new_with_defaults();
    let deadline = Instant::now() + Duration::from_secs(60);
    while http.get(&format!("{}/truth", mock.url)).call().unwrap().body_mut().read_to_string().unwrap() == "[]" {
        assert!(Instant::now() < deadline, "no stream ended in 60 s");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&mock.child);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let status = child.wait().unwrap();
    assert!(matches!(status.code(), Some(0 | 3)), "{status}");
    let figures = common::figures(&json);
    assert_eq!(number(&figures, "completed"), 160.0);
    // A request was due every 25 ms; the one after the stop waited through nearly all of it.
    assert!(number(&figures, "ttft_p99_ms") >= 1900.0, "{figures}");
    assert!(number(&figures, "ttft_p50_ms") < number(&figures, "ttft_p99_ms") - 500.0, "{figures}");
}

#[test]
fn missing_descriptors_are_the_client_s_fault() {
    let mock = Mock::start(&["--ttft-ms", "1000", "--itl-ms", "1"]);
    let command = format!(
        "ulimit -n 40; exec {PROGRAM} --base-url {} --num-prompts 80 --random-output-len 2 --threads 1 --model m --no-progress",
        mock.url
    );
    let out = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
    assert_eq!(out.status.code(), Some(3), "{}", text(&out));
    assert!(text(&out).contains("CLIENT-LIMITED: ") && text(&out).contains("ulimit -n"), "{}", text(&out));
}

#[test]
fn waiting_for_a_place_counts_from_the_schedule() {
    let mock = Mock::start(&["--ttft-ms", "100", "--itl-ms", "1"]);
    let (_, figures) = run(&mock, &["--num-prompts", "3", "--max-concurrency", "1", "--random-output-len", "1"]);
    assert!(number(&figures, "ttft_p99_ms") >= 300.0, "the third waits for two others: {figures}");
    assert!(number(&figures, "send_lag_p99_ms") >= 200.0, "{figures}");
}

#[test]
fn same_seed_same_schedule_byte_for_byte() {
    let dry = |flags: &[&str]| {
        let out = loadgen(&[&["--dry-run", "--num-prompts", "200", "--request-rate", "7"], flags].concat());
        assert!(out.status.success(), "{}", text(&out));
        out.stdout
    };
    let first = dry(&["--seed", "3"]);
    assert_eq!(first.iter().filter(|b| **b == b'\n').count(), 200);
    assert_eq!(first, dry(&["--seed", "3", "--threads", "5"]));
    assert_ne!(first, dry(&["--seed", "4"]));
}

/// A server that reads `reads` bytes of each connection's only request, says `says` and closes; its address.
fn abrupt_server(reads: usize, says: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // A client may keep one connection idle while it waits on another.
    let serve = move |mut stream: TcpStream| {
        let (mut buffer, mut seen) = (vec![0; 1 << 16], 0);
        while seen < reads {
            match stream.read(&mut buffer).unwrap_or(0) {
                0 => break,
                n => seen += n,
            }
        }
        let _ = stream.write_all(says.as_bytes());
        // What is still under way would turn the close into a reset, which takes the answer with it.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    url
}

#[test]
fn servers_that_close_after_each_answer_are_measured_too() {
    const EVENTS: &str = "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]\n\n";
    for (head, failure) in [
        ("HTTP/1.0 200 OK\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\ncontent-length: 48\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\ncontent-length: 49\r\n\r\n", Some("stream broke off: connection closed in the middle")),
        ("HTTP/1.1 413 Too Large\r\n\r\n", Some("HTTP 413 Payload Too Large: data: {")),
    ] {
        assert_eq!(EVENTS.len(), 48);
        let url = abrupt_server(100, Box::leak(format!("{head}{EVENTS}").into_boxed_str()));
        // Some 200 kB: more than a socket takes from a client whose server has stopped reading.
        let long = if failure.is_some() { "60000" } else { "8" };
        let out = loadgen(
            &[
                &["--base-url", &url, "--model", "m", "--no-progress", "--num-prompts", "6", "--max-concurrency", "1"]
                    [..],
                &["--random-input-len", long],
            ]
            .concat(),
        );
        let told = text(&out);
        let count =
            |name: &str| told.lines().find(|l| l.starts_with(name)).and_then(|l| l.split_whitespace().next_back());
        let want = if failure.is_some() { ["0", "6"] } else { ["6", "0"] };
        assert_eq!(["Successful requests:", "Failed requests:"].map(count), want.map(Some), "{head}: {told}");
        assert!(failure.is_none_or(|why| told.contains(&format!("failed 6×: {why}"))), "{head}: {told}");
    }
}
