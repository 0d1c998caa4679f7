//! How long an engine works for a client that has left: from the client's close to the engine seeing its own connection
//! closed, in prefill and in decode. A request that is queued or still connecting has not reached the engine: there it is
//! the time until the gateway's books no longer know it, as read from its metrics.
//!
//! Engine and clients run in this process, on one clock, while other streams run.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use stack::{Http, Program};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::books::Books;
use super::client::{Client, percentile};
use super::contender::{engine_table, gateway};
use super::pinned::on_other_core;
use super::raw::{Exchange, TOKEN, send};
use crate::figures::Figures;

/// Streams that run beside.
const STREAMS: usize = 500;
/// Between their tokens.
const TOKEN_EVERY: Duration = Duration::from_millis(50);
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// Promised, milliseconds.
const P99_MAX_MS: f64 = 20.0;

/// What the engine sees of the request that calls itself `user`.
#[derive(Debug)]
enum Seen {
    Arrived(String),
    Closed(String, Instant),
}

/// Listening sockets of the three engines: one that works, one with room for one request, one that accepts nobody.
struct Engines {
    works: TcpListener,
    one: TcpListener,
    deaf: rustix::fd::OwnedFd,
    /// Fill the queue of the deaf one.
    _waiting: Vec<TcpStream>,
}

/// Measures every state.
///
/// # Errors
/// If a state is not reached.
pub fn run(dir: &Path, quick: bool, figures: &mut Figures) -> Result<()> {
    let engines = Engines::new()?;
    let table = |address: SocketAddr, fields: &str| engine_table(&Http::new(&address.to_string()), fields);
    let deaf = SocketAddr::try_from(rustix::net::getsockname(&engines.deaf)?)?;
    let config = [
        // One look at the start, and connecting takes as long as it takes.
        "[timeouts]\nconnect_ms = 600000\nhealth_ms = 600000\n".to_owned(),
        table(engines.works.local_addr()?, "prefill_tokens = 1000000000\nsequences = 1000000"),
        table(engines.one.local_addr()?, "sequences = 1"),
        table(deaf, "sequences = 1000"),
    ];
    let (program, http) = gateway(dir, &config.concat())?;
    let samples = if quick { 50 } else { 400 };
    let states = on_other_core(measure(&program, &http, (engines.works, engines.one), samples))?;
    println!(
        "\nfrom a client's close to its work's end, {STREAMS} other streams running, {samples} clients in each state"
    );
    println!("{:<12} {:>10} {:>10} {:>10}", "", "p50 ms", "p99 ms", "max ms");
    let mut worst: f64 = 0.0;
    for (state, mut took_ms) in states {
        let [p50, p99, most] = [50.0, 99.0, 100.0].map(|p| percentile(&mut took_ms, p));
        println!("{state:<12} {p50:>10.2} {p99:>10.2} {most:>10.2}");
        figures.set(format!("cancel_{state}_p50_ms"), p50);
        figures.set(format!("cancel_{state}_p99_ms"), p99);
        worst = worst.max(p99);
    }
    figures.set("cancel_p99_ms", worst);
    let verdict = if worst <= P99_MAX_MS { "within" } else { "above" };
    println!("worst p99 {worst:.2} ms, {verdict} the {P99_MAX_MS:.0} ms promised");
    Ok(())
}

impl Engines {
    fn new() -> Result<Self> {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let deaf = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
        rustix::net::bind(&deaf, &local)?;
        rustix::net::listen(&deaf, 0)?;
        let address = SocketAddr::try_from(rustix::net::getsockname(&deaf)?)?;
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            waiting.push(stream);
        }
        let (works, one) = (TcpListener::bind(local)?, TcpListener::bind(local)?);
        works.set_nonblocking(true)?;
        one.set_nonblocking(true)?;
        Ok(Self { works, one, deaf, _waiting: waiting })
    }
}

async fn measure(
    program: &Program,
    http: &Http,
    (works, one): (TcpListener, TcpListener),
    samples: usize,
) -> Result<Vec<(&'static str, Vec<f64>)>> {
    let (tell, mut seen) = unbounded_channel();
    tokio::spawn(engine(tokio::net::TcpListener::from_std(works)?, "works", tell.clone()));
    tokio::spawn(engine(tokio::net::TcpListener::from_std(one)?, "one", tell));
    let to = http.authority();
    let mut books = Books::open(program).await?;
    // Which engine has which model is known only once they have listed them.
    let mut models = Client::connect(to).await?;
    let listed = |page: &str| ["\"works\"", "\"one\""].iter().all(|model| page.contains(model));
    while !listed(&models.get("/v1/models").await?) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _holds = send(to, &request("one", "decode", "holds")).await?;
    arrived(&mut seen, &["holds".to_owned()]).await?;

    let mut others = tokio::task::JoinSet::new();
    for i in 0..STREAMS {
        let stream = send(to, &request("works", "decode", &format!("other-{i}"))).await?;
        others.spawn(drain(stream));
    }
    let mut all = Vec::new();
    for state in ["prefill", "decode"] {
        all.push((state, at_the_engine(to, state, samples, &mut seen).await?));
    }
    for (state, model, gauge) in
        [("queued", "one", "gateway_queue_requests"), ("connecting", "deaf", "gateway_admitted_requests")]
    {
        let base = books.read(gauge).await?;
        let mut took_ms = Vec::new();
        for i in 0..samples {
            let client = send(to, &request(model, "prefill", &format!("{state}-{i}"))).await?;
            books.wait(gauge, |value| value > base).await?;
            let left = Instant::now();
            drop(client);
            books.wait(gauge, |value| value <= base).await?;
            took_ms.push(left.elapsed().as_secs_f64() * 1e3);
        }
        all.push((state, took_ms));
    }
    Ok(all)
}

fn request(model: &str, mode: &str, user: &str) -> String {
    format!(
        "{{\"model\":\"{model}\",\"stream\":true,\"max_tokens\":1000,\"mode\":\"{mode}\",\"user\":\"{user}\",\"prompt\":[1,2,3]}}"
    )
}

/// Value of a member of such a request.
fn member<'a>(body: &'a str, name: &str) -> &'a str {
    let rest = body.split_once(&format!("\"{name}\":\"")).map_or("", |(_, rest)| rest);
    rest.split('"').next().unwrap_or_default()
}

/// Clients in one state of the works engine, which leave one after the other.
async fn at_the_engine(to: &str, state: &str, samples: usize, seen: &mut UnboundedReceiver<Seen>) -> Result<Vec<f64>> {
    let users: Vec<String> = (0..samples).map(|i| format!("{state}-{i}")).collect();
    let mut clients = Vec::new();
    for user in &users {
        clients.push(send(to, &request("works", state, user)).await?);
    }
    arrived(seen, &users).await?;
    if state == "decode" {
        for client in &mut clients {
            let mut piece = vec![0; 4096];
            while !String::from_utf8_lossy(&piece).contains("text_completion") {
                ensure!(client.read(&mut piece).await? > 0, "a stream ended early");
            }
        }
    }
    let mut left = HashMap::new();
    for (user, client) in users.into_iter().zip(clients) {
        left.insert(user, Instant::now());
        drop(client);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut took_ms = Vec::new();
    while took_ms.len() < samples {
        if let Seen::Closed(user, at) = next(seen).await?
            && let Some(left) = left.get(&user)
        {
            took_ms.push(at.duration_since(*left).as_secs_f64() * 1e3);
        }
    }
    Ok(took_ms)
}

async fn next(seen: &mut UnboundedReceiver<Seen>) -> Result<Seen> {
    let seen = tokio::time::timeout(PATIENCE, seen.recv()).await;
    seen.context("the engine saw nothing more")?.context("the engine has ended")
}

async fn arrived(seen: &mut UnboundedReceiver<Seen>, users: &[String]) -> Result<()> {
    let mut missing: std::collections::HashSet<&String> = users.iter().collect();
    while !missing.is_empty() {
        if let Seen::Arrived(user) = next(seen).await? {
            missing.remove(&user);
        }
    }
    Ok(())
}

/// Serves `model`: requests in prefill get nothing, those in decode a token now and then.
async fn engine(listener: tokio::net::TcpListener, model: &'static str, tell: UnboundedSender<Seen>) {
    while let Ok((stream, _)) = listener.accept().await {
        let tell = tell.clone();
        tokio::spawn(async move {
            let mut exchange = Exchange::new(stream);
            let Ok(Some(body)) = exchange.request(model).await else { return };
            let user = member(&body, "user").to_owned();
            let _ = tell.send(Seen::Arrived(user.clone()));
            if member(&body, "mode") == "decode" && exchange.start_stream().await.is_ok() {
                while exchange.event(TOKEN).await.is_ok() {
                    if tokio::time::timeout(TOKEN_EVERY, exchange.closed()).await.is_ok() {
                        break;
                    }
                }
            } else {
                exchange.closed().await;
            }
            let _ = tell.send(Seen::Closed(user, Instant::now()));
        });
    }
}

async fn drain(mut stream: tokio::net::TcpStream) {
    let mut piece = vec![0; 4096];
    while stream.read(&mut piece).await.is_ok_and(|n| n > 0) {}
}
