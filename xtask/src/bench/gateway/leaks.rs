//! Whether everything returns: many requests, clients that leave at any moment, engines that stall, break off and die.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use stack::{Http, Program};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use super::books::{Books, HELD, sum};
use super::contender::{engine_table, gateway};
use super::pinned::on_other_core;
use super::raw::{Exchange, TOKEN, send};
use crate::figures::Figures;

/// Requests, and how many at once.
const REQUESTS: usize = 100_000;
const REQUESTS_QUICK: usize = 5_000;
const CLIENTS: usize = 128;
/// Longest answer that a client waits for: none may take as long.
const HUNG: Duration = Duration::from_secs(30);

/// Sends them and looks at the books.
///
/// # Errors
/// If anything is still held afterwards.
pub fn run(dir: &Path, quick: bool, figures: &mut Figures) -> Result<()> {
    let listeners = [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0"));
    let mut config = "[timeouts]\nfirst_token_ms = 300\nkeep_alive_ms = 20\nhealth_ms = 100\n\
                      [queue]\nrequests = 100\nwait_max_ms = 500\n"
        .to_owned();
    let mut engines = Vec::new();
    for listener in listeners {
        let listener = listener?;
        listener.set_nonblocking(true)?;
        let http = Http::new(&listener.local_addr()?.to_string());
        config += &engine_table(&http, "prefill_tokens = 600\nsequences = 40");
        engines.push(listener);
    }
    let (program, http) = gateway(dir, &config)?;
    let requests = if quick { REQUESTS_QUICK } else { REQUESTS };
    let start = Instant::now();
    let (page, hung) = on_other_core(all(&program, http.authority(), engines, requests))?;
    println!(
        "\n{requests} requests, clients and engines that leave at random, {:.0} s:",
        start.elapsed().as_secs_f64()
    );
    figures.set("leaks_requests", requests as f64);
    for end in ["finished", "client_left", "failed"] {
        let count = sum(&page, &format!("gateway_requests_ended_total{{end=\"{end}\"}}"));
        println!("  {count:.0} {end}");
        figures.set(format!("leaks_{end}"), count);
    }
    println!("  {hung} of them hung");
    figures.set("leaks_hung", hung as f64);
    let held: f64 = HELD.iter().map(|name| sum(&page, name).abs()).sum();
    println!("  held afterwards: {held:.0} ({})", HELD.join(", "));
    figures.set("leaks_held", held);
    Ok(())
}

async fn all(
    program: &Program,
    to: &str,
    engines: Vec<std::net::TcpListener>,
    requests: usize,
) -> Result<(String, usize)> {
    for (i, listener) in engines.into_iter().enumerate() {
        tokio::spawn(engine(TcpListener::from_std(listener)?, i as u64));
    }
    let (next, hung) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for seed in 0..CLIENTS {
        let (to, next, hung) = (to.to_owned(), Arc::clone(&next), Arc::clone(&hung));
        clients.spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed as u64);
            while next.fetch_add(1, Ordering::Relaxed) < requests {
                if tokio::time::timeout(HUNG, client(&to, &mut random)).await.is_err() {
                    hung.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.context("a client panicked")?;
    }
    let mut books = Books::open(program).await?;
    books.wait_for_nothing().await?;
    Ok((books.page().await?, hung.load(Ordering::Relaxed)))
}

/// One request; the client leaves at once, after a while, after a piece of the answer, or when it has it all.
async fn client(to: &str, random: &mut SmallRng) {
    let prompt: Vec<&str> = (0..random.random_range(1..60)).map(|_| "1").collect();
    let stream = random.random_bool(0.7);
    let body = format!("{{\"model\":\"m\",\"stream\":{stream},\"max_tokens\":9,\"prompt\":[{}]}}", prompt.join(","));
    let Ok(mut connection) = send(to, &body).await else { return };
    let mut piece = vec![0; 4096];
    let pieces = match random.random_range(0..4) {
        0 => 0,
        1 => {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..30))).await;
            0
        }
        2 => random.random_range(1..4),
        _ => usize::MAX,
    };
    let mut read = Vec::new();
    for _ in 0..pieces {
        match connection.read(&mut piece).await {
            Ok(n) if n > 0 => read.extend_from_slice(&piece[..n]),
            _ => return,
        }
        // Connections are kept: the end of an answer is in its bytes.
        if read.ends_with(b"0\r\n\r\n") || read.ends_with(b"}") {
            return;
        }
    }
}

async fn engine(listener: TcpListener, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    while let Ok((stream, _)) = listener.accept().await {
        let mut random = SmallRng::from_rng(&mut random);
        tokio::spawn(async move {
            let mut exchange = Exchange::new(stream);
            while let Ok(Some(body)) = exchange.request("m").await {
                let ends = serve(&mut exchange, &body, &mut random).await;
                if !matches!(ends, Ok(true)) {
                    return;
                }
            }
        });
    }
}

/// Answers, or not; true if the connection goes on.
async fn serve(exchange: &mut Exchange, body: &str, random: &mut SmallRng) -> Result<bool> {
    let what = random.random_range(0..20);
    if what == 0 {
        exchange.closed().await;
        return Ok(false);
    }
    tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
    if what == 1 {
        return Ok(false);
    }
    if !body.contains("\"stream\":true") {
        exchange.answer(r#"{"choices":[{"text":"a"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#).await?;
        return Ok(true);
    }
    exchange.start_stream().await?;
    for _ in 0..random.random_range(1..9) {
        exchange.event(TOKEN).await?;
        if what == 2 {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..5))).await;
    }
    exchange.end_stream().await?;
    Ok(true)
}
