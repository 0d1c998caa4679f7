//! What goes to standard output. Whoever reads it may have seen enough (`loadgen … | head`): the run and its exit code stay what
//! they are, where `println!` would panic.

use std::fmt::Arguments;
use std::io::{ErrorKind, StdoutLock, Write};

/// Writes text to standard output, as [`with`] does.
pub fn write(text: Arguments<'_>) {
    with(|out| out.write_fmt(text));
}

/// Has `write` write to standard output. A reader that has left is none of the run's business; anything else, such as a full
/// disk, is said.
pub fn with(write: impl FnOnce(&mut StdoutLock<'static>) -> std::io::Result<()>) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = write(&mut out).and_then(|()| out.flush())
        && error.kind() != ErrorKind::BrokenPipe
    {
        eprintln!("loadgen: standard output: {error}");
    }
}

/// As `print!`, by [`write`].
macro_rules! say {
    ($($part:tt)*) => { $crate::out::write(format_args!($($part)*)) };
}
pub(crate) use say;
