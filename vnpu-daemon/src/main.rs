//! `vnpu-daemon`: the program that owns one device and lends it to client processes.
//!
//! It puts the pieces together and decides nothing: `runtime` runs the device on its dispatch thread, `tenants` lets clients
//! in, `watch` notices that they are gone, `ledger` keeps what they used, `admin` shows and changes what an operator may see
//! and change.
//!
//! | thread | owns | waits in |
//! |---|---|---|
//! | `dispatch` | device, sessions, scheduling | its doorbell |
//! | `accept` | a listening socket, one a tenant | `poll` |
//! | `watch` | liveness of every client | `poll` |
//! | `ledger` | the ledger's file | a timer |
//! | `peers`, and one a rank of a communicator | daemons of other devices | `poll` |
//! | tokio | admin API, signals | `epoll` |
//!
//! **Invariants:** the data path is the dispatch thread's alone; the others send it requests. Standard output carries the
//! `ready` line and nothing else; logs go to standard error.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser as _;
use device::Emulated;
use runtime::{DEFAULT_TENANT, DeviceHandle, DeviceLoop};
use session::peers::Peers;
use session::{DeviceFacts, Doorbell};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use vnpu_daemon::args::Args;
use vnpu_daemon::ledger::Ledger;
use vnpu_daemon::tenants::{Configured, Doors};
use vnpu_daemon::watch::Watch;
use vnpu_daemon::{admin, record};

/// How often the main thread makes sure that the dispatch thread lives: it ends only through a bug of ours, and clients notice
/// at once by themselves.
const DISPATCH_LOOK: Duration = Duration::from_millis(200);

fn main() -> Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_env("VNPU_LOG").unwrap_or_else(|_| "info".into()))
        .init();
    // Only this user may connect: whoever can write to the socket can use the device.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));

    let policy = args.policy()?;
    let doorbell = Doorbell::new().context("cannot make a doorbell")?;
    let worker_bell = doorbell.clone();
    let device = Emulated::new(args.device.clone().emulated(Arc::new(move || worker_bell.ring())))?;
    let handle = DeviceLoop::spawn(Box::new(device), policy, args.limits(), doorbell.clone())?;
    let info = handle.info().clone();
    if let Some(mib) = args.record {
        record::start(&handle, mib)?;
    }

    let configured = args.tenants.as_deref().map(Configured::read).transpose()?.unwrap_or_default();
    for (name, &config) in &configured.tenants {
        handle.set_tenant(name, config)?.with_context(|| format!("tenant {name:?} of the tenants' file"))?;
    }
    let ledger = Ledger::start(handle.clone(), args.ledger.as_deref())?;

    let bell = doorbell.clone();
    let facts = DeviceFacts {
        soc_name: info.soc_name.clone(),
        hbm_bytes: info.hbm_bytes,
        device_index: args.index,
        epoch: epoch(),
    };
    let admin = args.admin.map(bind_admin).transpose()?;
    let peers = listen_to_peers(&args, &handle, bell);

    info!(device = info.label, socket = %args.socket.display(), "serving");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("admin")
        .enable_all()
        .build()
        .context("cannot start the admin runtime")?;
    let result = runtime.block_on(serve(&args, &handle, &ledger, configured, (doorbell, facts), admin));
    ledger.stop();
    if let Some(peers) = peers {
        peers.stop();
    }
    let clean = handle.shutdown();
    result?;
    ensure!(clean, "the dispatch thread panicked; the log says where");
    info!("ended");
    Ok(())
}

/// Lets devices work together. Without it collectives are refused, and everything else works.
fn listen_to_peers(args: &Args, handle: &DeviceHandle, doorbell: Doorbell) -> Option<Peers> {
    let result = Peers::listen(&args.socket, doorbell);
    let peers = result
        .inspect_err(|e| warn!("no collectives with other devices: cannot listen for their daemons: {e}"))
        .ok()?;
    handle.set_peers(peers.clone()).inspect_err(|e| warn!("no collectives with other devices: {e}")).ok()?;
    Some(peers)
}

/// Tells one start of the daemon from another.
fn epoch() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_nanos() as u64).rotate_left(20) ^ u64::from(std::process::id())
}

fn bind_admin(address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot serve the admin API on {address}"))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Serves until a signal says to end, or something that must not end has ended.
async fn serve(
    args: &Args,
    handle: &DeviceHandle,
    ledger: &Ledger,
    configured: Configured,
    (doorbell, facts): (Doorbell, DeviceFacts),
    admin: Option<(TcpListener, SocketAddr)>,
) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (failed, mut failure) = mpsc::channel(1);
    let watch = Watch::start(handle.clone())?;
    let about = (doorbell, facts, args.limits().sessions_max);
    let doors = Doors::new(args.tenant_sockets.clone(), about, handle.clone(), watch.clone(), failed);
    doors.open_at(DEFAULT_TENANT, &args.socket)?;
    configured.tenants.keys().try_for_each(|name| doors.let_in(name))?;

    let mut ready = format!("ready socket={}", args.socket.display());
    if let Some((listener, address)) = admin {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let router = admin::router(admin::Admin::new(handle.clone(), ledger.clone(), doors.clone()));
        tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, router).await {
                error!("admin API: {e}");
            }
        });
        ready.push_str(&format!(" admin={address}"));
    }
    // A parent that does not read our output is no reason to end.
    let _ = writeln!(std::io::stdout(), "{ready}").and_then(|()| std::io::stdout().flush());

    let ended = loop {
        tokio::select! {
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            Some(e) = failure.recv() => break Err(e),
            () = tokio::time::sleep(DISPATCH_LOOK) => {
                if !handle.is_running() {
                    break Err(anyhow!("the dispatch thread has ended"));
                }
            }
        }
    };
    if !doors.close_all() {
        bail!("the accept thread panicked; the log says where");
    }
    watch.stop();
    ended
}
