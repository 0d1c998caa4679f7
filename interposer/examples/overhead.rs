//! What the interposer costs an application, call by call.
//!
//! ```text
//! cargo run --release -p interposer --example overhead                                   # device hosted in the process
//! VNPU_SOCKET=/run/vnpu.sock cargo run --release -p interposer --example overhead        # through a daemon
//! ```
//! `--json FILE` writes the medians as one flat object, `--quick` takes fewer samples. Calls go through the exported symbols, as an
//! application's do. Times of single calls are taken in bursts that fit into the ring, with the device idle before each, so
//! that they are the caller's cost and not the device's; a sample is one burst, and the table gives medians and the
//! middle 80 %.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Acl, D2H, F32, H2D, NULL, Ptr, load, load_as_is};

/// Operators of one burst: a small part of the ring, so that none waits for room.
const BURST: usize = 256;

struct Figure {
    /// Name in the JSON object.
    key: &'static str,
    name: &'static str,
    unit: &'static str,
    samples: Vec<f64>,
}

impl Figure {
    fn quantile(&self, q: f64) -> f64 {
        self.samples[((self.samples.len() - 1) as f64 * q).round() as usize]
    }
}

/// Takes `count` samples of `f`, which answers one.
fn figure(
    key: &'static str,
    name: &'static str,
    unit: &'static str,
    count: usize,
    mut f: impl FnMut() -> f64,
) -> Figure {
    // One sample to warm up.
    f();
    let mut samples: Vec<f64> = (0..count).map(|_| f()).collect();
    samples.sort_by(f64::total_cmp);
    Figure { key, name, unit, samples }
}

/// Nanoseconds of one of `BURST` calls of `f`; `settle` runs before and is not counted.
fn burst(settle: impl Fn(), mut f: impl FnMut()) -> f64 {
    settle();
    let begin = Instant::now();
    for _ in 0..BURST {
        f();
    }
    begin.elapsed().as_nanos() as f64 / BURST as f64
}

fn microseconds(mut f: impl FnMut()) -> f64 {
    let begin = Instant::now();
    f();
    begin.elapsed().as_nanos() as f64 / 1e3
}

/// Both phases of `out = x + alpha · y`, with the objects that torch_npu makes and destroys for each call.
fn whole_operator(acl: &Acl, memory: Ptr, stream: Ptr) {
    let tensors = [0, 4096, 8192].map(|offset| acl.tensor(memory.wrapping_byte_add(offset), F32, &[16, 64]));
    let alpha = acl.scalar(1.0);
    let [x, y, out] = tensors;
    acl.run_on(|w, e| (acl.aclnnAddGetWorkspaceSize)(x, y, alpha, out, w, e), acl.aclnnAdd, stream);
    for tensor in tensors {
        acl.ok((acl.aclDestroyTensor)(tensor));
    }
    acl.ok((acl.aclDestroyScalar)(alpha));
}

fn measure(acl: &Acl, quick: bool) -> Vec<Figure> {
    let (many, few, mib) = if quick { (40, 4, 16) } else { (400, 12, 64) };
    let stream = acl.stream();
    let memory = acl.malloc(64 << 10);
    let settle = || acl.ok((acl.aclrtSynchronizeStream)(stream));
    let mut out = Vec::new();

    out.push(figure("create_tensor_ns", "create and destroy a tensor", "ns", many, || {
        burst(|| (), || acl.ok((acl.aclDestroyTensor)(acl.tensor(memory, F32, &[16, 64]))))
    }));
    out.push(figure("operator_ns", "operator: 3 tensors, 1 scalar, both phases", "ns", many, || {
        burst(settle, || whole_operator(acl, memory, stream))
    }));
    let (t, alpha) = (acl.tensor(memory, F32, &[16, 64]), acl.scalar(1.0));
    let (mut workspace, mut executor) = (0, NULL);
    acl.ok((acl.aclnnAddGetWorkspaceSize)(t, t, alpha, t, &raw mut workspace, &raw mut executor));
    acl.ok((acl.aclSetAclOpExecutorRepeatable)(executor));
    out.push(figure("post_ns", "phase two", "ns", many, || {
        burst(settle, || acl.ok((acl.aclnnAdd)(NULL, 0, executor, stream)))
    }));
    let event = acl.event();
    out.push(figure("record_event_ns", "record an event", "ns", many, || {
        burst(settle, || acl.ok((acl.aclrtRecordEvent)(event, stream)))
    }));
    out.push(figure("sync_idle_ns", "synchronise an idle stream", "ns", many, || burst(settle, settle)));

    let (mut free, mut total) = (0usize, 0usize);
    out.push(figure("round_trip_us", "round trip (memory information)", "us", many, || {
        microseconds(|| acl.ok((acl.aclrtGetMemInfo)(1, &raw mut free, &raw mut total)))
    }));
    out.push(figure("sync_us", "one operator and synchronise", "us", many, || {
        microseconds(|| {
            acl.ok((acl.aclnnAdd)(NULL, 0, executor, stream));
            settle();
        })
    }));
    let mut host = [0u8; 64];
    let host: Ptr = host.as_mut_ptr().cast();
    out.push(figure("copy_4_bytes_us", "4 bytes to the host, pageable", "us", many, || {
        microseconds(|| acl.ok((acl.aclrtMemcpy)(host, 4, memory, 4, D2H)))
    }));

    let bytes = mib << 20;
    let device = acl.malloc(bytes);
    let mut pageable = vec![1u8; bytes];
    let pageable: Ptr = pageable.as_mut_ptr().cast();
    let pinned = handle!(acl, |out| (acl.aclrtMallocHost)(out, bytes));
    for (key, name, dst, src, kind) in [
        ("h2d_pageable_gb_s", "to the device, pageable", device, pageable, H2D),
        ("h2d_pinned_gb_s", "to the device, pinned", device, pinned, H2D),
        ("d2h_pageable_gb_s", "to the host, pageable", pageable, device, D2H),
        ("d2h_pinned_gb_s", "to the host, pinned", pinned, device, D2H),
    ] {
        out.push(figure(key, name, "GB/s", few, || {
            bytes as f64 / 1e3 / microseconds(|| acl.ok((acl.aclrtMemcpy)(dst, bytes, src, bytes, kind)))
        }));
    }
    out
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let configured = ["VNPU_SOCKET", "VNPU_DEVICE"].iter().any(|v| std::env::var_os(v).is_some());
    let acl = if configured { load_as_is() } else { load(&[("VNPU_DEVICE", "Ascend910B3:timing")]) };
    acl.ok((acl.aclrtSetDevice)(0));
    let place = match std::env::var("VNPU_SOCKET") {
        Ok(socket) => format!("daemon at {socket}"),
        Err(_) => format!("direct, {}", std::env::var("VNPU_DEVICE").unwrap_or_default()),
    };
    let figures = measure(acl, arguments.iter().any(|a| a == "--quick"));

    println!("{place}; emulated device\n{:<44} {:>10} {:>10} {:>10}", "", "median", "10 %", "90 %");
    for f in &figures {
        let [low, median, high] = [0.1, 0.5, 0.9].map(|q| f.quantile(q));
        println!("{:<44} {median:>10.1} {low:>10.1} {high:>10.1} {}", f.name, f.unit);
    }
    if let Some(path) = value("--json") {
        let all: serde_json::Map<_, _> = figures.iter().map(|f| (f.key.to_owned(), f.quantile(0.5).into())).collect();
        let text = serde_json::to_string_pretty(&all).expect("figures are numbers and names");
        std::fs::write(path, text + "\n").unwrap_or_else(|e| panic!("{path}: {e}"));
    }
}
