//! `vnpu top`: what daemons are doing, live.
//!
//! A thread a daemon asks for its status; the main thread keeps what came, and draws. A daemon that does not answer is shown as
//! lost, with its last picture, and asked again. Where standard output is no terminal, or lines are asked for, lines come.
//!
//! Nothing here is known about policies but their names; a change goes through the admin API, after a confirmation.

mod draw;
mod plain;
mod status;
mod view;

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::admin::Admin;
use draw::{Asking, POLICIES};
use status::Status;
use view::{History, View, view};

/// How often the keyboard is looked at.
const KEYS_EVERY: Duration = Duration::from_millis(50);
/// Between the two looks that rates need.
const ONCE_BETWEEN: Duration = Duration::from_secs(1);

/// Watch what daemons are doing: phases, queues, latencies, hold-backs, sessions.
#[derive(Debug, Args)]
pub struct Top {
    /// Address of a daemon's admin API, as its `--admin` says; several, separated by commas or repeated.
    #[arg(long, value_name = "HOST:PORT", env = "VNPU_ADMIN", default_value = "127.0.0.1:9400", value_delimiter = ',')]
    admin: Vec<SocketAddr>,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    interval: u64,
    /// Look once, over one second, and print lines.
    #[arg(long)]
    once: bool,
    /// Print JSON, one object a daemon and look.
    #[arg(long)]
    json: bool,
}

/// What a daemon answered.
type Answer = (usize, Result<Status, String>);

impl Top {
    /// Runs until `q`, or until the reader of the lines has seen enough.
    ///
    /// # Errors
    /// The first daemon to be asked once does not answer; no terminal.
    pub fn run(self) -> Result<()> {
        let lines = self.once || self.json || !std::io::stdout().is_terminal();
        let between = if self.once { ONCE_BETWEEN } else { Duration::from_secs(self.interval) };
        let mut app = App {
            names: self.admin.iter().map(SocketAddr::to_string).collect(),
            admins: self.admin.iter().map(|&a| Admin::new(a, Duration::ZERO)).collect(),
            histories: self.admin.iter().map(|_| History::default()).collect(),
            selected: 0,
            asking: Asking::Nothing,
            message: String::new(),
        };
        let answers = ask_all(&app.admins, between);
        if !lines {
            return app.interactive(&answers);
        }
        app.lines(&answers, self.json, self.once, between)
    }
}

/// Asks every daemon again and again, each on a thread of its own, until nobody listens.
fn ask_all(admins: &[Admin], between: Duration) -> Receiver<Answer> {
    let (sender, answers) = channel();
    for (index, admin) in admins.iter().cloned().enumerate() {
        let sender = sender.clone();
        std::thread::spawn(move || {
            loop {
                let began = Instant::now();
                let status = admin.get("/v1/status").and_then(|value| Ok(serde_json::from_value(value)?));
                if sender.send((index, status.map_err(|e: anyhow::Error| e.root_cause().to_string()))).is_err() {
                    return;
                }
                std::thread::sleep(between.saturating_sub(began.elapsed()));
            }
        });
    }
    answers
}

struct App {
    names: Vec<String>,
    admins: Vec<Admin>,
    histories: Vec<History>,
    selected: usize,
    asking: Asking,
    message: String,
}

impl App {
    fn take(&mut self, (index, answer): Answer) {
        match answer {
            Ok(status) => self.histories[index].push(status),
            Err(why) => self.histories[index].lost = Some(why),
        }
    }

    fn views(&self) -> Vec<View> {
        self.names.iter().zip(&self.histories).map(|(name, history)| view(name, history)).collect()
    }

    /// Lines or JSON of all daemons, once or at every interval.
    fn lines(&mut self, answers: &Receiver<Answer>, json: bool, once: bool, between: Duration) -> Result<()> {
        let mut looks = vec![0u32; self.names.len()];
        loop {
            let until = Instant::now() + between;
            // A rate needs two looks; a daemon that is lost needs one.
            while looks.iter().any(|&n| n < 2) || (!once && Instant::now() < until) {
                let patience = until.saturating_duration_since(Instant::now()).max(KEYS_EVERY);
                match answers.recv_timeout(patience) {
                    Ok(answer) => {
                        looks[answer.0] += if answer.1.is_ok() { 1 } else { 2 };
                        self.take(answer);
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => bail!("the threads that ask have ended"),
                }
            }
            let views = self.views();
            if once && let Some((admin, why)) = views.iter().find_map(|v| Some((&v.admin, v.lost.as_ref()?))) {
                bail!("no answer from a daemon at {admin} ({why}); vnpu-daemon --admin {admin} starts one");
            }
            for view in &views {
                let text = if json { serde_json::to_string(view)? + "\n" } else { plain::plain(view) };
                let mut out = std::io::stdout().lock();
                // A reader that has seen enough is no error.
                if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
                    return Ok(());
                }
            }
            if once {
                return Ok(());
            }
        }
    }

    fn interactive(&mut self, answers: &Receiver<Answer>) -> Result<()> {
        let mut terminal = ratatui::try_init()?;
        let result = self.watch(&mut terminal, answers);
        ratatui::restore();
        result
    }

    fn watch(&mut self, terminal: &mut ratatui::DefaultTerminal, answers: &Receiver<Answer>) -> Result<()> {
        let mut changed = true;
        loop {
            while let Ok(answer) = answers.try_recv() {
                self.take(answer);
                changed = true;
            }
            if changed {
                let views = self.views();
                terminal.draw(|frame| draw::draw(frame, &views, self.selected, &self.asking, &self.message))?;
                changed = false;
            }
            if !event::poll(KEYS_EVERY)? {
                continue;
            }
            changed = true;
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
            {
                let interrupted = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if interrupted || !self.key(key.code) {
                    return Ok(());
                }
            }
        }
    }

    /// False: it was the last one.
    fn key(&mut self, code: KeyCode) -> bool {
        self.message.clear();
        match (std::mem::take(&mut self.asking), code) {
            (Asking::Policy, KeyCode::Char(c)) => {
                let index = c.to_digit(10).and_then(|n| (n as usize).checked_sub(1));
                if let Some(name) = index.and_then(|i| POLICIES.get(i)) {
                    self.asking = Asking::Confirm((*name).to_owned());
                }
            }
            (Asking::Confirm(name), KeyCode::Char('y')) => {
                let done = self.admins[self.selected].put("/v1/policy", "text/plain", &name);
                self.message = match done {
                    Ok(_) => format!("policy changed to {name}"),
                    Err(e) => format!("not changed: {e:#}"),
                };
            }
            (Asking::Nothing, KeyCode::Char('q')) => return false,
            (Asking::Nothing, KeyCode::Char('p')) => self.asking = Asking::Policy,
            (Asking::Nothing, KeyCode::Tab) => self.selected = (self.selected + 1) % self.names.len(),
            _ => {}
        }
        true
    }
}
