//! The usage ledger: what tenants used, in an append-only file that outlives the daemon, however it ends.
//!
//! Every [`EVERY`] one line with what came since the last is appended in one write, so a killed daemon loses at most that much, and
//! the next one goes on from there: the operating system has what was written. (Against a power failure the file is as good as the
//! file system.) A last line that was never finished is cut off, and said. Above [`BYTES_MAX`] the file is written anew, hours that
//! are over as one line each and the oldest hours merged, and takes the old one's place in one step.
//!
//! Without a file the same books are kept in memory, from the daemon's start.
//!
//! **Ownership:** one thread samples; whoever asks for the books samples as well, under the same lock. A lock on the file keeps
//! a second daemon out.

mod book;

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use runtime::{Books, DeviceHandle, Usage};
use tracing::{error, info, warn};

pub use book::Book;
use book::Entry;

/// Between two lines: what a killed daemon loses at most.
pub const EVERY: Duration = Duration::from_millis(250);
/// Bytes at which the file is written anew: some hours of lines of a few tenants.
pub const BYTES_MAX: u64 = 16 << 20;

/// Speaks to the ledger. Clones speak to the same one.
#[derive(Clone)]
pub struct Ledger {
    open: Arc<Mutex<Open>>,
    stop: Sender<()>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

struct Open {
    handle: DeviceHandle,
    book: Book,
    /// Where the daemon's own books stood at the last line, and when that was.
    before: Books,
    at_ms: u64,
    file: Option<Kept>,
    /// A failure was said already.
    said: bool,
}

struct Kept {
    path: PathBuf,
    file: File,
    bytes: u64,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl Kept {
    fn open(path: &Path) -> Result<(Self, Book)> {
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).open(path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .context("another daemon writes it; give each daemon a ledger of its own")?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (book, damage, whole) = Book::read(&bytes);
        if damage.torn_bytes > 0 {
            warn!(bytes = damage.torn_bytes, "the ledger's last line was never finished, it is dropped");
            file.set_len(whole as u64)?;
        }
        if damage.lines > 0 {
            warn!(lines = damage.lines, "the ledger has lines that are none of its own, they do not count");
        }
        Ok((Self { path: path.to_owned(), file, bytes: whole as u64 }, book))
    }

    fn append(&mut self, line: &str) -> std::io::Result<()> {
        if let Err(e) = self.file.write_all(line.as_bytes()) {
            // A part of a line must not be gone on behind.
            self.file.set_len(self.bytes)?;
            return Err(e);
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Writes the file anew, with as few lines as say the same.
    fn compact(&mut self, book: &mut Book) -> Result<()> {
        let text = book.compact(BYTES_MAX as usize / 2);
        let fresh = self.path.with_extension("new");
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&fresh)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        (self.file, self.bytes) = (file, text.len() as u64);
        info!(bytes = self.bytes, "the ledger was compacted");
        Ok(())
    }
}

impl Open {
    /// A line with what came since the last one, if anything did.
    fn sample(&mut self) -> Result<()> {
        let books = self.handle.books()?;
        let (from_ms, to_ms) = (self.at_ms, now_ms().max(self.at_ms));
        let none = Usage::default();
        let since = |(name, usage): (&String, &Usage)| {
            let more = usage.since(self.before.tenants.get(name).unwrap_or(&none));
            (more != none).then(|| (name.clone(), more))
        };
        let tenants = books.tenants.iter().filter_map(since).collect();
        let busy_ns = books.busy_ns.saturating_sub(self.before.busy_ns);
        let entry = Entry { from_ms, to_ms, busy_ns, tenants };
        if entry.busy_ns > 0 || !entry.tenants.is_empty() {
            if let Some(kept) = &mut self.file {
                kept.append(&entry.line()).with_context(|| format!("cannot write {}", kept.path.display()))?;
            }
            self.book.add(entry);
        }
        (self.before, self.at_ms) = (books, to_ms);
        if let Some(kept) = self.file.as_mut().filter(|kept| kept.bytes > BYTES_MAX) {
            kept.compact(&mut self.book).with_context(|| format!("cannot compact {}", kept.path.display()))?;
        }
        Ok(())
    }

    /// [`Self::sample`]; what goes wrong is said once, and made up for by the next line that can be written.
    fn sample_or_say(&mut self) {
        match self.sample() {
            Ok(()) if std::mem::take(&mut self.said) => info!("the ledger is written again"),
            Ok(()) => {}
            Err(e) if !std::mem::replace(&mut self.said, true) => error!("ledger: {e:#}"),
            Err(_) => {}
        }
    }
}

impl Ledger {
    /// Opens the ledger, at `path` or in memory, and begins to write.
    ///
    /// # Errors
    /// The file cannot be read and written, or another daemon has it.
    pub fn start(handle: DeviceHandle, path: Option<&Path>) -> Result<Self> {
        let (file, book) = match path {
            None => (None, Book::default()),
            Some(path) => {
                let (kept, book) =
                    Kept::open(path).with_context(|| format!("cannot keep a ledger at {}", path.display()))?;
                (Some(kept), book)
            }
        };
        if let (Some(path), Some(total)) = (path, book.total()) {
            info!(ledger = %path.display(), busy_s = total.busy_ns / 1_000_000_000, tenants = total.tenants.len(), "goes on");
        }
        let before = Books { busy_ns: 0, tenants: Default::default() };
        let open = Open { handle, book, before, at_ms: now_ms(), file, said: false };
        let open = Arc::new(Mutex::new(open));
        let (stop, stopped) = channel();
        let own = Arc::clone(&open);
        let run = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(EVERY) {
                own.lock().unwrap_or_else(PoisonError::into_inner).sample_or_say();
            }
        };
        let thread = std::thread::Builder::new().name("ledger".into()).spawn(run).context("cannot start the ledger")?;
        Ok(Self { open, stop, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    /// The books up to the present.
    ///
    /// # Errors
    /// The dispatch thread does not answer, or the file cannot be written.
    pub fn book(&self) -> Result<Book> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.sample()?;
        Ok(open.book.clone())
    }

    /// Writes the last line and ends.
    pub fn stop(&self) {
        let _ = self.stop.send(());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            error!("the ledger's thread panicked");
        }
        self.open.lock().unwrap_or_else(PoisonError::into_inner).sample_or_say();
    }
}
