//! Lines on stderr, and only as many as `VNPU_LOG` asks for (`off|error|warn|info|debug`, `warn` without it).
//!
//! The interposer lives in other people's processes: nothing else in it prints. A line is one `write`, so that lines of
//! several threads and processes do not mix.

use std::fmt;
use std::io::Write as _;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Nothing.
    Off = 0,
    /// A call failed because of us or our surroundings.
    Error = 1,
    /// Something works otherwise than asked: an unsupported function, a malformed hint.
    Warn = 2,
    /// Sessions opening and closing.
    Info = 3,
    /// Every failed call.
    Debug = 4,
}

impl FromStr for Level {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.trim() {
            "off" => Ok(Self::Off),
            "error" => Ok(Self::Error),
            "warn" | "" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            _ => Err(()),
        }
    }
}

/// `UNSET` until the variable has been read.
static LEVEL: AtomicU8 = AtomicU8::new(UNSET);
const UNSET: u8 = u8::MAX;

fn level() -> u8 {
    match LEVEL.load(Ordering::Relaxed) {
        UNSET => {
            let text = std::env::var("VNPU_LOG").unwrap_or_default();
            let level = text.parse().unwrap_or(Level::Warn);
            LEVEL.store(level as u8, Ordering::Relaxed);
            level as u8
        }
        level => level,
    }
}

/// True if lines of `at` are wanted: ask before building an expensive one.
pub fn enabled(at: Level) -> bool {
    at as u8 <= level()
}

/// Writes one line.
pub fn line(at: Level, text: fmt::Arguments<'_>) {
    if !enabled(at) {
        return;
    }
    let name = match at {
        Level::Off => return,
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    let line = format!("vnpu[{}] {name}: {text}\n", std::process::id());
    // Nobody can be told that stderr is closed.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
}

/// `log!(Warn, "…", …)`.
macro_rules! log {
    ($level:ident, $($text:tt)*) => {
        $crate::log::line($crate::log::Level::$level, format_args!($($text)*))
    };
}
pub(crate) use log;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_parse_and_order() {
        for (text, want) in [("off", Level::Off), ("", Level::Warn), ("debug", Level::Debug), ("info", Level::Info)] {
            assert_eq!(text.parse(), Ok(want));
        }
        assert_eq!("loud".parse::<Level>(), Err(()));
        assert!(Level::Error < Level::Warn && Level::Warn < Level::Debug);
    }
}
