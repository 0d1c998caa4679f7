//! Streams: many at once at a fixed rate, and long prompts at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use parking_lot::Mutex;

use super::client::{Client, Token, chat, percentile};
use super::contender::{Contender, mock};
use super::mock::now_us;
use super::pinned::on_other_core;
use crate::figures::{Figures, median};

/// Streams asked for, and tokens a second of each.
const STREAMS: usize = 2000;
const TOKENS_PER_S: f64 = 20.0;
/// Streams opened at a time, and the pause between: clients do not all come in one millisecond.
const OPENED_TOGETHER: usize = 20;
const OPEN_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for every stream's first token.
const OPEN_TIME_MAX: Duration = Duration::from_secs(30);
/// Part of the tokens due that must come for streams to count as held.
const HELD: f64 = 0.98;
/// One token in so many is timed: the client shares its core.
const TIMED_EVERY: u64 = 8;

/// Prompts that come at once, and their size.
const PROMPTS: usize = 150;
const PROMPT_BYTES: usize = 220_000;

struct Window {
    tokens_per_s: f64,
    cpu_us_per_token: f64,
    resident_mib: f64,
    delays_us: Vec<f64>,
}

#[derive(Default)]
struct Counts {
    started: AtomicU64,
    tokens: AtomicU64,
    failed: AtomicU64,
    counting: AtomicBool,
    delays_us: Mutex<Vec<f64>>,
}

/// The most streams that engine and clients hold without a proxy, then each proxy with as many.
///
/// # Errors
/// If streams do not start.
pub fn run(all: &[Contender], quick: bool, figures: &mut Figures) -> Result<()> {
    let time = Duration::from_secs(if quick { 3 } else { 10 });
    let mut streams = if quick { STREAMS / 10 } else { STREAMS };
    let direct = loop {
        let window = on_other_core(window(&all[0], streams, time))?;
        if window.tokens_per_s >= HELD * TOKENS_PER_S * streams as f64 || streams < 50 {
            break window;
        }
        streams = streams * 3 / 4;
    };
    println!(
        "\n{streams} streams at {TOKENS_PER_S} tokens/s: what engine and clients hold on one core without a proxy"
    );
    println!(
        "{:<16} {:>10} {:>14} {:>14} {:>14} {:>10}",
        "", "tokens/s", "CPU µs/token", "added p50 ms", "added p99 ms", "RSS MiB"
    );
    figures.set("streams", streams as f64);
    let mut base = direct.delays_us;
    let base = [percentile(&mut base, 50.0), percentile(&mut base, 99.0)];
    for contender in all {
        let mut seen = match on_other_core(window(contender, streams, time)) {
            Ok(seen) => seen,
            Err(error) => {
                println!("{:<16} {error:#}", contender.name);
                continue;
            }
        };
        let [p50, p99] = [50.0, 99.0].map(|p| percentile(&mut seen.delays_us, p));
        let (p50, p99) = ((p50 - base[0]) / 1e3, (p99 - base[1]) / 1e3);
        println!(
            "{:<16} {:>10.0} {:>14.2} {p50:>14.2} {p99:>14.2} {:>10.1}",
            contender.name, seen.tokens_per_s, seen.cpu_us_per_token, seen.resident_mib
        );
        let mut set = |what: &str, value| figures.set(format!("{}_stream_{what}", contender.name), value);
        set("tokens_per_s", seen.tokens_per_s);
        set("cpu_us_per_token", seen.cpu_us_per_token);
        set("added_p50_ms", p50);
        set("added_p99_ms", p99);
        set("rss_mib", seen.resident_mib);
    }
    Ok(())
}

/// Opens the streams, waits until all have a token, and looks at them for `time`.
async fn window(contender: &Contender, streams: usize, time: Duration) -> Result<Window> {
    let counts = Arc::new(Counts::default());
    let body = chat(1024, true, 1_000_000);
    let mut clients = tokio::task::JoinSet::new();
    for i in 0..streams {
        let (authority, path) = (contender.http.authority().to_owned(), contender.path);
        let (body, counts) = (body.clone(), Arc::clone(&counts));
        clients.spawn(async move {
            if follow(&authority, path, body, &counts).await.is_err() {
                counts.failed.fetch_add(1, Ordering::Relaxed);
            }
        });
        if i % OPENED_TOGETHER == OPENED_TOGETHER - 1 {
            tokio::time::sleep(OPEN_PAUSE).await;
        }
    }
    let deadline = Instant::now() + OPEN_TIME_MAX;
    while counts.started.load(Ordering::Relaxed) < streams as u64 {
        let (started, failed) = (counts.started.load(Ordering::Relaxed), counts.failed.load(Ordering::Relaxed));
        if Instant::now() > deadline || failed > 0 {
            bail!("{started} of {streams} streams started in {OPEN_TIME_MAX:?}, {failed} failed");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let used = contender.usage()?;
    let (before, start) = (counts.tokens.load(Ordering::Relaxed), Instant::now());
    counts.counting.store(true, Ordering::Relaxed);
    tokio::time::sleep(time).await;
    counts.counting.store(false, Ordering::Relaxed);
    let tokens = (counts.tokens.load(Ordering::Relaxed) - before) as f64;
    let (took, now) = (start.elapsed(), contender.usage()?);
    clients.shutdown().await;
    Ok(Window {
        tokens_per_s: tokens / took.as_secs_f64(),
        cpu_us_per_token: (now.cpu_s - used.cpu_s) / tokens * 1e6,
        resident_mib: now.resident_mib,
        delays_us: std::mem::take(&mut *counts.delays_us.lock()),
    })
}

async fn follow(authority: &str, path: &str, body: Bytes, counts: &Counts) -> Result<()> {
    let mut client = Client::connect(authority).await?;
    let mut answer = client.post(path, body).await?.into_body();
    let mut events = sse::Parser::default();
    let mut number = 0u64;
    while let Some(frame) = answer.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        events.feed(&data, |data| {
            number += 1;
            if number == 1 {
                counts.started.fetch_add(1, Ordering::Relaxed);
            }
            counts.tokens.fetch_add(1, Ordering::Relaxed);
            let timed = number.is_multiple_of(TIMED_EVERY) && counts.counting.load(Ordering::Relaxed);
            if let Some(token) = timed.then(|| Token::of(data)).flatten() {
                counts.delays_us.lock().push(now_us().saturating_sub(token.sent_us) as f64);
            }
        })?;
    }
    bail!("the stream ended")
}

/// Long prompts at once, again and again, with an engine that takes its time: what a proxy adds to the first token.
///
/// # Errors
/// If a request fails.
pub fn prompts(dir: &std::path::Path, peers: &[super::Peer], quick: bool, figures: &mut Figures) -> Result<()> {
    const FIRST_TOKEN_MS: u64 = 200;
    const TOKENS: u64 = 16;
    let (program, engine) = mock(0, FIRST_TOKEN_MS, TOKENS_PER_S)?;
    let all = super::contender::all(dir, &engine, peers)?;
    let (rounds, time) = if quick { (1, Duration::from_secs(3)) } else { (3, Duration::from_secs(6)) };
    let mut runs = vec![(Vec::new(), Vec::new()); all.len()];
    for round in 0..rounds {
        for turn in 0..all.len() {
            let i = (turn + round) % all.len();
            let mut ttft_ms = on_other_core(first_tokens(&all[i], TOKENS, time))?;
            runs[i].0.push(percentile(&mut ttft_ms, 50.0));
            runs[i].1.push(percentile(&mut ttft_ms, 99.0));
        }
    }
    drop(program);
    println!(
        "\nprompts of 220 KB, {PROMPTS} streams at once of an engine with {FIRST_TOKEN_MS} ms to the first of {TOKENS} tokens; \
         medians of {rounds} rounds"
    );
    println!("{:<16} {:>18} {:>18}", "", "added TTFT p50 ms", "added TTFT p99 ms");
    let base = (median(&runs[0].0), median(&runs[0].1));
    for (contender, (p50, p99)) in all.iter().zip(&runs) {
        let (p50, p99) = (median(p50) - base.0, median(p99) - base.1);
        println!("{:<16} {p50:>18.2} {p99:>18.2}", contender.name);
        figures.set(format!("{}_220k_added_ttft_p50_ms", contender.name), p50);
        figures.set(format!("{}_220k_added_ttft_p99_ms", contender.name), p99);
    }
    figures.set("direct_220k_ttft_p50_ms", base.0);
    figures.set("direct_220k_ttft_p99_ms", base.1);
    Ok(())
}

/// Milliseconds to the first token of each request that began in `time`.
async fn first_tokens(contender: &Contender, tokens: u64, time: Duration) -> Result<Vec<f64>> {
    let body = chat(PROMPT_BYTES, true, tokens);
    let life = Duration::from_secs_f64(0.2 + tokens as f64 / TOKENS_PER_S);
    let mut clients = tokio::task::JoinSet::new();
    for i in 0..PROMPTS {
        let (authority, path, body) = (contender.http.authority().to_owned(), contender.path, body.clone());
        clients.spawn(async move {
            // Spread over a stream's life, as clients that have been at it for a while are.
            tokio::time::sleep(life.mul_f64(i as f64 / PROMPTS as f64)).await;
            let end = Instant::now() + time;
            let mut client = Client::connect(&authority).await?;
            let mut ttft_ms = Vec::new();
            while Instant::now() < end {
                let start = Instant::now();
                let mut answer = client.post(path, body.clone()).await?.into_body();
                let mut first = true;
                while let Some(frame) = answer.frame().await {
                    let Ok(data) = frame?.into_data() else { continue };
                    if first && Token::of(&data).is_some() {
                        first = false;
                        ttft_ms.push(start.elapsed().as_secs_f64() * 1e3);
                    }
                }
            }
            anyhow::Ok(ttft_ms)
        });
    }
    let mut all = Vec::new();
    while let Some(done) = clients.join_next().await {
        all.extend(done??);
    }
    Ok(all)
}
