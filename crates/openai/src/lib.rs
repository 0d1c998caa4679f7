//! What a proxy reads and changes of OpenAI-shaped requests and answers. Bytes in, facts and edits out.
//!
//! Bodies are peeked with borrowed serde and travel on as they came; a field that must change is spliced into them, so
//! members that no one here knows arrive unchanged. Reading is lenient where engines are (numbers in strings, the last of
//! two equal members counts), because what the reader misses would pass by admission.
//!
//! Deliberately not here: sockets, limits, any decision.

mod chunk;
mod count;
mod object;
mod request;
mod splice;
pub mod testing;
mod usage;

pub use chunk::Chunk;
pub use count::Prompt;
pub use request::{Malformed, Peek};
pub use splice::{Splice, whole};
pub use usage::{Usage, usage_of_answer};
