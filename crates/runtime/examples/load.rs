//! Posts model steps to a daemon at a fixed rate: the load under which a daemon's cost is measured from outside.
//!
//! `load SOCKET OPERATORS_PER_S SECONDS [even]` posts decode steps of Qwen2.5-7B, operator for operator, on one stream and
//! prefill steps on another, in turns, and synchronises after each as an engine does. With `even`, single operators come at equal
//! distances instead and are synchronised once a step: the worst case for a thread that sleeps between bursts. Prints the
//! operators posted and the seconds it took.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use acl_abi::OpCall;
use sched::calls::{Batch, step};
use sched::model::Model;
use session::{Client, ConnectOptions};
use wire::Record;

/// Tokens of a prompt, sequences of a decode batch, and their context.
const PROMPT: u64 = 512;
const BATCH: usize = 32;
const CONTEXT: u64 = 1024;
/// What every tensor lies in: larger than the largest, the embedding.
const BYTES: u64 = 4 << 30;

/// The operators of a step, all of whose tensors lie at `addr`.
fn calls(batch: &Batch, addr: u64) -> Vec<OpCall> {
    let mut calls = step(&Model::QWEN2_5_7B, batch, batch.queries.len() as u64);
    calls.iter_mut().flat_map(|c| c.tensors.iter_mut()).for_each(|t| t.addr = addr);
    calls
}

fn wait_until(at: Instant) {
    // Timers are late by more than the distance of two operators.
    const SPIN: Duration = Duration::from_micros(100);
    loop {
        let left = at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        if left > SPIN {
            std::thread::sleep(left - SPIN);
        } else {
            std::hint::spin_loop();
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [socket, rate, seconds, more @ ..] = &args[..] else { panic!("want SOCKET OPERATORS_PER_S SECONDS [even]") };
    let (rate, seconds): (f64, f64) = (rate.parse().expect("a rate"), seconds.parse().expect("a time"));
    let even = more.iter().any(|m| m == "even");
    let client = Client::connect(&PathBuf::from(socket), &ConnectOptions::default()).expect("a daemon at the socket");
    let memory = client.call(|reply| Record::Malloc { size: BYTES, reply }).expect("a live session");
    assert_eq!(memory.status, 0, "{}", memory.text);
    let steps = [Batch::decode(BATCH, CONTEXT), Batch::prefill(PROMPT)].map(|b| calls(&b, memory.payload[0]));
    for stream in [1, 2] {
        client.post(&Record::StreamCreate { stream, priority: 0, flags: 0 }, None).expect("a live session");
    }
    let start = Instant::now();
    let mut posted = 0u64;
    for stream in [0, 1].into_iter().cycle() {
        if start.elapsed().as_secs_f64() >= seconds {
            break;
        }
        let at = |n: u64| start + Duration::from_secs_f64(n as f64 / rate);
        wait_until(at(posted));
        for call in &steps[stream] {
            if even {
                wait_until(at(posted));
            }
            client.post(&Record::Op { stream: stream as u32 + 1 }, Some(call)).expect("a live session");
            posted += 1;
        }
        let reply = client.call(|reply| Record::StreamSync { stream: stream as u32 + 1, reply });
        let reply = reply.expect("a live session");
        assert_eq!(reply.status, 0, "{}", reply.text);
    }
    println!("{posted} {}", start.elapsed().as_secs_f64());
}
