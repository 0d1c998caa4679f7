//! What really happened on the mock's side of a stream.

use serde::{Deserialize, Serialize};

/// One stream. Times are of the machine's monotonic clock, nanoseconds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Truth {
    /// The number at the end of the request's `x-request-id`.
    pub id: u64,
    /// When the request's last bytes were read off the socket, or its place was free.
    pub read_ns: u64,
    /// When its first token was given to the socket.
    pub first_ns: u64,
    /// When its last token was given to the socket.
    pub last_ns: u64,
    /// Tokens.
    pub tokens: u32,
}

impl Truth {
    /// Time to first token, milliseconds.
    pub fn ttft_ms(&self) -> f64 {
        (self.first_ns - self.read_ns) as f64 / 1e6
    }

    /// Time per output token after the first, milliseconds.
    pub fn tpot_ms(&self) -> Option<f64> {
        (self.tokens >= 2).then(|| (self.last_ns - self.first_ns) as f64 / 1e6 / f64::from(self.tokens - 1))
    }
}
