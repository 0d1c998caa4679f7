//! The events of a streamed answer on their way to the client: counted, and cleaned of usage that only we asked for.
//!
//! Pure. Only whole events are passed on, so that whatever is said after an engine's death begins at an event's boundary.
//! Each goes through byte for byte, unless it carries usage that the client did not ask for.

use std::borrow::Cow;
use std::ops::Range;

use openai::{Chunk, Usage};
use sse::{Splitter, TooLarge};

/// What a piece of a stream held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Events with data: comments are none.
    pub events: u32,
    /// Tokens.
    pub tokens: u32,
    /// The stream says it is complete.
    pub done: bool,
    /// The engine reports a failure.
    pub error: bool,
}

/// One stream.
#[derive(Default)]
pub struct Events {
    splitter: Splitter,
    hide_usage: bool,
    usage: Option<Usage>,
}

impl Events {
    /// Passes everything on, but for usage if that is to be hidden.
    pub fn new(hide_usage: bool) -> Self {
        Self { hide_usage, ..Self::default() }
    }

    /// The engine's last count.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Takes a piece; appends what the client gets to `out`.
    ///
    /// # Errors
    /// If an event is larger than any engine sends.
    pub fn feed(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<Seen, TooLarge> {
        let mut seen = Seen::default();
        let (usage, hide) = (&mut self.usage, self.hide_usage);
        self.splitter.feed(piece, |event| {
            let Some(data) = sse::data(event) else { return out.extend_from_slice(event) };
            let chunk = Chunk::of(&data);
            seen.events += 1;
            seen.tokens += chunk.tokens;
            seen.done |= chunk.done;
            seen.error |= chunk.error;
            *usage = chunk.usage.or(*usage);
            match chunk.usage_member.filter(|_| hide) {
                None => out.extend_from_slice(event),
                Some(_) if chunk.no_choices => {}
                Some(member) => without(event, data, member, out),
            }
        })?;
        Ok(seen)
    }
}

/// Writes `event` without the bytes `member` of its data. Data over several lines becomes one line.
fn without(event: &[u8], data: Cow<'_, [u8]>, member: Range<usize>, out: &mut Vec<u8>) {
    match data {
        Cow::Borrowed(data) => {
            // Borrowed data is a slice of its event.
            let at = data.as_ptr() as usize - event.as_ptr() as usize;
            out.extend_from_slice(&event[..at + member.start]);
            out.extend_from_slice(&event[at + member.end..]);
        }
        Cow::Owned(data) => {
            let rest = data[..member.start].iter().chain(&data[member.end..]);
            out.extend_from_slice(b"data: ");
            out.extend(rest.map(|&b| if b == b'\n' { b' ' } else { b }));
            out.extend_from_slice(b"\n\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        ": engine\n\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}],\"usage\":null}\r\n\r\n",
        "event: x\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null,\"own\":1}\n\n",
        "data: {\"choices\":\ndata: [{\"text\":\"b\"}], \"usage\":null}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n",
        "data: [DONE]\n\n"
    );
    const HIDDEN: &str = concat!(
        ": engine\n\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\r\n\r\n",
        "event: x\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"own\":1}\n\n",
        "data: {\"choices\": [{\"text\":\"b\"}]}\n\n",
        "data: [DONE]\n\n"
    );

    #[test]
    fn usage_is_metered_and_hidden_however_the_stream_is_cut() {
        for (hide, want) in [(false, STREAM), (true, HIDDEN)] {
            for size in 1..STREAM.len() {
                let mut events = Events::new(hide);
                let (mut out, mut tokens, mut done) = (Vec::new(), 0, false);
                for piece in STREAM.as_bytes().chunks(size) {
                    let seen = events.feed(piece, &mut out).unwrap();
                    tokens += seen.tokens;
                    done |= seen.done;
                    assert!(!seen.error);
                }
                assert_eq!(String::from_utf8(out).unwrap(), want, "pieces of {size}");
                assert_eq!((tokens, done), (2, true));
                assert_eq!(events.usage().map(|u| (u.prompt_tokens, u.output_tokens)), Some((3, 2)));
            }
        }
    }

    #[test]
    fn half_an_event_is_held_back() {
        let mut events = Events::default();
        let mut out = Vec::new();
        events.feed(b"data: {\"choices\":[]}\n\ndata: {\"cho", &mut out).unwrap();
        assert_eq!(out, b"data: {\"choices\":[]}\n\n");
    }
}
