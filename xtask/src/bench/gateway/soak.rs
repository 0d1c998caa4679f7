//! Mixed traffic for a long time while engines are killed and come back: no request hangs, no token is lost or comes twice,
//! nothing is held at the end, memory stays where it was.
//!
//! A stream that its engine's death cuts off ends in an error event; that is counted and right. What is wrong is a stream
//! that ends without a word, or whose tokens are not 0, 1, 2, ….

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use stack::{Held, Program};

use super::books::Books;
use super::client::{Client, Token, chat};
use super::contender::{engine_table, free_port, gateway, mock};
use super::pinned::{Usage, on_other_core};
use crate::Measure;
use crate::build::Scratch;
use crate::figures::{Figures, median};

/// Engines, and clients that send one request after the other.
const ENGINES: usize = 3;
const CLIENTS: u64 = 12;
/// Longest life of a request: the longest takes a second.
const HUNG: Duration = Duration::from_secs(30);
/// Between two looks at the gateway's memory.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How much the gateway may have grown from the second quarter of the time to the last, MiB.
const GROWTH_MAX_MIB: f64 = 8.0;
/// Time to the first token and tokens a second of the engines.
const FIRST_TOKEN_MS: u64 = 20;
const TOKENS_PER_S: f64 = 100.0;

/// How requests ended.
#[derive(Default)]
struct Ends {
    whole: AtomicU64,
    left: AtomicU64,
    cut: AtomicU64,
    refused: AtomicU64,
    silent: AtomicU64,
    misordered: AtomicU64,
    hung: AtomicU64,
    tokens: AtomicU64,
    over: AtomicBool,
}

/// Runs it.
///
/// # Errors
/// If anything that must not happen did.
pub fn run(measure: &Measure, minutes: u64) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut engines = Vec::new();
    let mut config = "[timeouts]\nhealth_ms = 200\nfirst_token_ms = 10000\ninter_token_ms = 5000\n".to_owned();
    for _ in 0..ENGINES {
        let port = free_port()?;
        let (program, http) = mock(port, FIRST_TOKEN_MS, TOKENS_PER_S)?;
        config += &engine_table(&http, "");
        engines.push((port, program));
    }
    let (program, http) = gateway(scratch.path(), &config)?;
    let ends = Ends::default();
    println!("soak: {minutes} minutes, {CLIENTS} clients, {ENGINES} engines of which one is killed every few seconds");
    let (kills, memory) = std::thread::scope(|scope| {
        let clients = scope.spawn(|| on_other_core(traffic(http.authority(), &ends)));
        // Programs end with the thread that started them, so it is this one that kills and starts engines.
        let seen = disturb(&program, &mut engines, Duration::from_secs(minutes * 60), &ends);
        ends.over.store(true, Ordering::Relaxed);
        clients.join().ok().context("the clients panicked")??;
        seen
    })?;
    on_other_core(async { Books::open(&program).await?.wait_for_nothing().await })?;
    report(measure, &program, &ends, kills, &memory)
}

/// Kills engines and looks at the gateway's memory until the time is over: kills, and MiB at each look.
fn disturb(gateway: &Program, engines: &mut [(u16, Program)], time: Duration, ends: &Ends) -> Result<(u64, Vec<f64>)> {
    let mut random = SmallRng::seed_from_u64(1);
    let end = Instant::now() + time;
    let (mut kills, mut memory) = (0, Vec::new());
    let (mut next_look, mut next_kill) = (Instant::now(), Instant::now());
    while Instant::now() < end {
        if Instant::now() >= next_look {
            next_look += LOOK_EVERY;
            memory.push(Usage::of(gateway)?.resident_mib);
            if memory.len() % 12 == 0 {
                let [whole, cut] = [&ends.whole, &ends.cut].map(|n| n.load(Ordering::Relaxed));
                println!("  {:>4} s: {whole} whole, {cut} cut, {kills} kills", memory.len() * 5);
            }
        }
        if Instant::now() >= next_kill {
            next_kill += Duration::from_millis(random.random_range(3000..9000));
            let (port, program) = &mut engines[random.random_range(0..ENGINES)];
            program.kill();
            kills += 1;
            std::thread::sleep(Duration::from_millis(random.random_range(100..2000)));
            *program = mock(*port, FIRST_TOKEN_MS, TOKENS_PER_S)?.0;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((kills, memory))
}

async fn traffic(to: &str, ends: &Ends) -> Result<()> {
    let clients = (0..CLIENTS).map(|seed| async move {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut client = None;
        while !ends.over.load(Ordering::Relaxed) {
            let request = one(to, &mut client, &mut random, ends);
            let counter = match tokio::time::timeout(HUNG, request).await {
                Ok(Ok(counter)) => counter,
                // Refused, or its connection closed: the next request gets one of its own.
                Ok(Err(_)) => {
                    client = None;
                    &ends.refused
                }
                Err(_) => {
                    client = None;
                    &ends.hung
                }
            };
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
        }
    });
    futures::future::join_all(clients).await;
    Ok(())
}

/// One request of any kind; the counter of its end.
async fn one<'a>(
    to: &str,
    client: &mut Option<Client>,
    random: &mut SmallRng,
    ends: &'a Ends,
) -> Result<&'a AtomicU64> {
    let mut connection = match client.take() {
        Some(client) => client,
        None => Client::connect(to).await?,
    };
    let tokens = random.random_range(5..80);
    let bytes = if random.random_bool(0.05) { 220_000 } else { random.random_range(300..8000) };
    let stream = random.random_bool(0.85);
    let body = chat(bytes, stream, tokens);
    if !stream {
        connection.whole("/v1/chat/completions", body).await?;
        *client = Some(connection);
        return Ok(&ends.whole);
    }
    let leaves_after = if random.random_bool(0.1) { random.random_range(0..tokens) } else { u64::MAX };
    let answer = connection.post("/v1/chat/completions", body).await?.into_body();
    let end = follow(answer, tokens, leaves_after, ends).await?;
    if std::ptr::eq(end, &ends.whole) {
        *client = Some(connection);
    }
    Ok(end)
}

/// Reads a stream of so many tokens, or the first few of it.
async fn follow(mut answer: Incoming, tokens: u64, leaves_after: u64, ends: &Ends) -> Result<&AtomicU64> {
    let mut events = sse::Parser::default();
    let (mut next, mut ordered, mut done, mut error) = (0, true, false, false);
    while let Some(frame) = answer.frame().await {
        let Some(data) = frame.ok().and_then(|f| f.into_data().ok()) else { break };
        events.feed(&data, |data| {
            done |= data == b"[DONE]";
            error |= data.starts_with(b"{\"error\"");
            if let Some(token) = Token::of(data) {
                ordered &= token.number == next && !done;
                next += 1;
            }
        })?;
        if next > leaves_after {
            break;
        }
    }
    ends.tokens.fetch_add(next, Ordering::Relaxed);
    Ok(match (ordered, done, error) {
        (false, ..) => &ends.misordered,
        (true, true, _) if next == tokens => &ends.whole,
        (true, true, _) => &ends.misordered,
        (true, false, true) => &ends.cut,
        (true, false, false) if next > leaves_after => &ends.left,
        (true, false, false) => &ends.silent,
    })
}

fn report(measure: &Measure, program: &Program, ends: &Ends, kills: u64, memory: &[f64]) -> Result<()> {
    let mut figures = Figures::default();
    for (name, what, count) in [
        ("soak_whole", "whole", &ends.whole),
        ("soak_left", "left by their client", &ends.left),
        ("soak_cut", "cut off by a kill, and told so", &ends.cut),
        ("soak_refused", "refused: no engine could be reached", &ends.refused),
        ("soak_tokens", "tokens", &ends.tokens),
        ("soak_silent", "ended without a word", &ends.silent),
        ("soak_misordered", "with lost or doubled tokens", &ends.misordered),
        ("soak_hung", "hung", &ends.hung),
    ] {
        println!("{:>10} {what}", count.load(Ordering::Relaxed));
        figures.set(name, count.load(Ordering::Relaxed) as f64);
    }
    let quarter = memory.len() / 4;
    let (early, late) = (median(&memory[quarter..2 * quarter]), median(&memory[3 * quarter..]));
    let descriptors = Held::by(program.pid())?.descriptors;
    println!(
        "{kills} kills; gateway {early:.1} MiB in the second quarter of the time, {late:.1} MiB in the last; \
         {descriptors} descriptors"
    );
    figures.set("soak_kills", kills as f64);
    figures.set("soak_rss_early_mib", early);
    figures.set("soak_rss_late_mib", late);
    figures.write(measure.json.as_deref())?;
    for (what, count) in [("hung", &ends.hung), ("ended without a word", &ends.silent), ("wrong", &ends.misordered)] {
        ensure!(count.load(Ordering::Relaxed) == 0, "{} requests {what}", count.load(Ordering::Relaxed));
    }
    ensure!(ends.whole.load(Ordering::Relaxed) > 0 && kills > 0, "nothing was tested");
    ensure!(late <= early + GROWTH_MAX_MIB, "memory grew from {early:.1} to {late:.1} MiB");
    Ok(())
}
