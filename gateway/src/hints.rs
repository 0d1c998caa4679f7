//! The way of hints from requests to the interposer's listener.
//!
//! A request never waits for a hint: it goes into a bounded queue, and a task writes the queue to the Unix socket,
//! reconnecting when the engine restarts. What does not fit, or has no listener, is dropped and counted. On a new
//! connection old hints are not replayed: they describe requests of an engine that is gone.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use wire::Hint;

use crate::metrics::Metrics;

/// Hints waiting for the socket; at one kilobyte or less each this bounds memory, and a listener that is this far behind
/// reads history.
const QUEUE_LEN_MAX: usize = 4096;
/// Pause between attempts to connect.
const RECONNECT_EVERY: Duration = Duration::from_millis(100);

/// The listeners of all engines: each its own where the configuration names one, else the one of `--hints`.
pub struct Listeners {
    any: Hints,
    own: Mutex<HashMap<PathBuf, Hints>>,
}

impl Listeners {
    /// `any` is for engines that name none.
    pub fn new(any: Hints) -> Self {
        Self { any, own: Mutex::default() }
    }

    /// The one of an engine that names `own`, or none.
    pub fn of(&self, own: Option<&Path>) -> Hints {
        let Some(path) = own else { return self.any.clone() };
        let mut known = self.own.lock();
        if let Some(hints) = known.get(path) {
            return hints.clone();
        }
        let hints = Hints::start(Some(path.to_owned()), Arc::clone(&self.any.metrics));
        known.insert(path.to_owned(), hints.clone());
        hints
    }

    /// Forgets those that no engine names any more; their writers end with the last request that uses them.
    pub fn keep(&self, named: &[&Path]) {
        self.own.lock().retain(|path, _| named.contains(&path.as_path()));
    }
}

/// Where requests put their hints. Cheap to clone.
#[derive(Clone)]
pub struct Hints {
    queue: Option<mpsc::Sender<Hint>>,
    metrics: Arc<Metrics>,
}

impl Hints {
    /// Starts the writer for the listener at `path`; without a path every hint is dropped silently.
    pub fn start(path: Option<PathBuf>, metrics: Arc<Metrics>) -> Self {
        let queue = path.map(|path| {
            let (sender, receiver) = mpsc::channel(QUEUE_LEN_MAX);
            tokio::spawn(write(path, receiver, Arc::clone(&metrics)));
            sender
        });
        Self { queue, metrics }
    }

    /// Whether both go to one listener.
    pub fn is(&self, other: &Self) -> bool {
        match (&self.queue, &other.queue) {
            (Some(a), Some(b)) => a.same_channel(b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }

    /// Hands a hint over; never waits.
    pub fn send(&self, hint: Hint) {
        if let Some(queue) = &self.queue {
            match queue.try_send(hint) {
                Ok(()) => {}
                Err(_) => {
                    self.metrics.hints_dropped.inc();
                }
            }
        }
    }
}

async fn write(path: PathBuf, mut queue: mpsc::Receiver<Hint>, metrics: Arc<Metrics>) {
    // Before the first request: its hints must not wait for a connection.
    let mut stream: Option<UnixStream> = UnixStream::connect(&path).await.ok();
    while let Some(hint) = queue.recv().await {
        if stream.is_none() {
            stream = UnixStream::connect(&path).await.ok();
        }
        let Ok(mut line) = hint.to_json() else {
            metrics.hints_dropped.inc();
            continue;
        };
        line.push('\n');
        let sent = match &mut stream {
            Some(s) => s.write_all(line.as_bytes()).await.is_ok(),
            None => false,
        };
        if sent {
            metrics.hints_sent.inc();
            continue;
        }
        metrics.hints_dropped.inc();
        if stream.take().is_some() {
            tracing::warn!(path = %path.display(), "lost the hint listener; hints are dropped until it is back");
        }
        // The rest of the queue describes requests of the engine that has gone.
        while let Ok(_stale) = queue.try_recv() {
            metrics.hints_dropped.inc();
        }
        tokio::time::sleep(RECONNECT_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};

    #[tokio::test]
    async fn hints_reach_a_listener_that_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hints.sock");
        let metrics = Arc::new(Metrics::default());
        let hints = Hints::start(Some(path.clone()), Arc::clone(&metrics));
        hints.send(Hint::Finished { request: 1 });
        while metrics.hints_dropped.get() < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for round in 2..4 {
            let listener = tokio::net::UnixListener::bind(&path).unwrap();
            let sender = tokio::spawn({
                let hints = hints.clone();
                async move {
                    // The writer notices a closed socket only when it writes: keep sending until one arrives.
                    loop {
                        hints.send(Hint::Finished { request: round });
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            });
            let (stream, _) = tokio::time::timeout(Duration::from_secs(10), listener.accept()).await.unwrap().unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.unwrap();
            sender.abort();
            assert_eq!(Hint::from_json(line.as_bytes()).unwrap().request(), round);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[tokio::test]
    async fn engines_have_listeners_of_their_own_for_as_long_as_they_are_named() {
        let metrics = Arc::new(Metrics::default());
        let all = Listeners::new(Hints::start(Some("/any".into()), Arc::clone(&metrics)));
        let [a, b] = ["/a", "/b"].map(Path::new);
        assert!(all.of(Some(a)).is(&all.of(Some(a))) && all.of(None).is(&all.of(None)));
        assert!(!all.of(Some(a)).is(&all.of(Some(b))) && !all.of(Some(a)).is(&all.of(None)));
        let (old, kept) = (all.of(Some(a)), all.of(Some(b)));
        all.keep(&[b]);
        assert!(!all.of(Some(a)).is(&old) && all.of(Some(b)).is(&kept));
    }

    #[tokio::test]
    async fn without_a_listener_nothing_is_counted() {
        let metrics = Arc::new(Metrics::default());
        Hints::start(None, Arc::clone(&metrics)).send(Hint::Finished { request: 1 });
        assert_eq!(metrics.hints_dropped.get(), 0);
    }
}
