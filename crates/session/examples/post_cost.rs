//! What a post, a drain and a call cost between two processes.
//!
//! `cargo run --release -p session --example post_cost -- [--json] [--quick]`
//!
//! - *post*: a burst of operator records while the daemon's thread is awake and drains; nanoseconds per post, the median
//!   over bursts, with the 10th and 90th percentile. The burst fits the ring, so waiting for room is not in it.
//! - *drain*: copy, validate and pass on, nanoseconds per record, on the daemon's side.
//! - *call*: round trip in microseconds with the daemon's thread awake, and with it asleep on its doorbell.

use acl_abi::{Arg, DataType, Kind, OpCall, TensorDesc, ops};
use session::{Client, ConnectOptions, DeviceFacts, Doorbell, Layout, Listener};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wire::{Record, Reply};

/// How long the daemon's thread polls before it sleeps: longer than a burst takes to encode.
const AWAKE: Duration = Duration::from_millis(3);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, path] = &args[..]
        && role == "serve"
    {
        return serve(Path::new(path));
    }
    let has = |flag: &str| args.iter().any(|a| a == flag);
    let (json, quick) = (has("--json"), has("--quick"));
    let path = std::env::temp_dir().join(format!("vnpu-post-cost-{}.sock", std::process::id()));
    let mut daemon = Command::new(std::env::current_exe().expect("own path"))
        .arg("serve")
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a daemon process");
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().expect("piped")).read_line(&mut line).expect("ready");
    measure(&path, json, if quick { 1 } else { 10 });
    drop(daemon.stdin.take());
    daemon.wait().expect("the daemon's end");
}

/// Records that the daemon's thread drains at once.
const BATCH: usize = 64;

/// Most batches that are kept: enough for the first measurement, which is the one that is reported.
const COSTS_MAX: usize = 1000;

/// A decode-step attention: the operator with the longest signature in common use.
fn attention() -> OpCall {
    let mut call = OpCall::new(ops::aclnnFusedInferAttentionScoreV3);
    let t = TensorDesc::contiguous(0x7f00_1234_0000, DataType::BF16, &[16, 28, 1, 128]);
    for (i, param) in call.op.signature().params.iter().enumerate() {
        match param.kind {
            Kind::Tensor => call.push_tensor((i < 4).then_some(t)),
            Kind::TensorOut => call.push_tensor(Some(t)),
            Kind::TensorList => call.push_tensor_list(&[t]),
            Kind::IntArray if i < 8 => call.push_ints(Some(&[1024])),
            Kind::Str => call.push_str(b"BNSD"),
            Kind::F64 => call.push(Arg::Float(0.088)),
            Kind::Bool => call.push(Arg::Bool(false)),
            Kind::I64 => call.push(Arg::Int(128)),
            _ => call.push(Arg::Absent),
        };
    }
    call
}

fn measure(path: &Path, json: bool, scale: usize) {
    let client = Client::connect(path, &ConnectOptions::default()).expect("a session");
    let call = attention();
    let mut body = Vec::new();
    wire::op::encode_op(&call, &mut body).expect("a valid call");
    let burst = 4000;
    let sync = || client.call(|reply| Record::DeviceSync { reply }).expect("alive");
    let bursts = |post: &dyn Fn()| {
        let mut ns: Vec<f64> = (0..30 * scale)
            .map(|_| {
                sync();
                let start = Instant::now();
                (0..burst).for_each(|_| post());
                start.elapsed().as_nanos() as f64 / f64::from(burst)
            })
            .collect();
        sync();
        percentiles(&mut ns)
    };
    let post_body = bursts(&|| client.post_op(1, &body).expect("alive"));
    let [p10, p50, p90, _] = client.call(|reply| Record::MemInfo { reply }).expect("alive").payload;
    let drain_ns = [p10, p50, p90].map(f64::from_bits);
    let post_call = bursts(&|| client.post(&Record::Op { stream: 1 }, Some(&call)).expect("alive"));
    let post_event = bursts(&|| client.post(&Record::EventRecord { event: 1, stream: 1 }, None).expect("alive"));
    let calls = |n: usize, pause: Duration| {
        let mut us: Vec<f64> = (0..n)
            .map(|_| {
                if !pause.is_zero() {
                    std::thread::sleep(pause);
                }
                let start = Instant::now();
                sync();
                start.elapsed().as_nanos() as f64 / 1e3
            })
            .collect();
        percentiles(&mut us)
    };
    let awake = calls(5000 * scale, Duration::ZERO);
    let asleep = calls(20 * scale, AWAKE * 2);
    let rows = [
        ("post of an encoded operator, ns", "post_body_ns", post_body),
        ("post with encoding, ns", "post_call_ns", post_call),
        ("post of an event record, ns", "post_event_ns", post_event),
        ("drain of an operator, ns", "drain_ns", drain_ns),
        ("call, daemon awake, µs", "call_awake_us", awake),
        ("call, daemon asleep, µs", "call_asleep_us", asleep),
    ];
    if json {
        let fields = rows.map(|(_, key, [p10, p50, p90])| {
            format!("\"{key}\":{{\"p10\":{p10:.1},\"p50\":{p50:.1},\"p90\":{p90:.1}}}")
        });
        println!("{{\"record_bytes\":{},{}}}", body.len() + 5, fields.join(","));
    } else {
        println!("operator record of {} bytes{:12}p10      p50      p90", body.len() + 5, "");
        for (what, _, [p10, p50, p90]) in rows {
            println!("{what:<34}{p10:>9.1}{p50:>9.1}{p90:>9.1}");
        }
    }
}

fn percentiles(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [10, 50, 90].map(|p| values[(values.len() - 1) * p / 100])
}

/// Serves one client. `MemInfo` is answered with percentiles of what draining a record cost so far, in nanoseconds, over
/// full batches of [`BATCH`].
fn serve(path: &Path) {
    let doorbell = Doorbell::new().expect("a doorbell");
    let facts = DeviceFacts { soc_name: "none".into(), hbm_bytes: 0, device_index: 0, epoch: 1 };
    let listener = Listener::bind(path, Layout::default(), doorbell.clone(), facts).expect("a listener");
    println!("ready");
    std::io::stdout().flush().expect("stdout");
    std::thread::spawn(move || {
        let (mut session, connection) = listener.accept().expect("a client");
        let mut costs = vec![0.0; 1];
        while !connection.is_gone() {
            let mut last = Instant::now();
            while last.elapsed() < AWAKE {
                let start = Instant::now();
                let taken = session
                    .drain(BATCH, &mut |replier, record, _| match record {
                        Record::DeviceSync { reply } => replier.reply(reply, &Reply::ok()),
                        Record::MemInfo { reply } => {
                            let [p10, p50, p90] = percentiles(&mut costs).map(f64::to_bits);
                            replier.reply(reply, &Reply { payload: [p10, p50, p90, 0], ..Reply::ok() });
                        }
                        _ => {}
                    })
                    .expect("an honest client");
                if taken > 0 {
                    last = Instant::now();
                }
                if taken == BATCH && costs.len() < COSTS_MAX {
                    costs.push(start.elapsed().as_nanos() as f64 / BATCH as f64);
                }
            }
            if !session.prepare_sleep() {
                doorbell.wait(Some(Duration::from_millis(100)));
            }
            session.cancel_sleep();
        }
    });
    let _ = std::io::stdin().read(&mut [0]);
    let _ = std::fs::remove_file(path);
}
