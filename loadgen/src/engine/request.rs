//! One request: sent, read, timed. No JSON is parsed here; chunks are scanned as they come.

use bytes::Bytes;
use http::StatusCode;
use loadgen::measure::Outcome;
use loadgen::scan;

use super::Failure;
use super::connect::{Connection, Pool};
use super::target::Head;
use crate::clock::now_ns;

/// Longest answer that an error quotes, bytes.
const ANSWER_BYTES_MAX: usize = 300;
/// Connections on which a request is tried that no server has taken.
const TRIES_MAX: usize = 4;
/// Chunks that room is made for at first.
const CHUNKS_EXPECTED_MAX: u32 = 4096;

/// Sends `body` under `head` and fills in `outcome`, whose times count from `start_ns`.
///
/// # Errors
/// Why the request failed: no connection, a status, a stream that broke off, ended without `[DONE]`, carried an error or
/// nothing.
pub async fn run(
    pool: &Pool,
    head: &Head,
    id: &str,
    body: Bytes,
    start_ns: u64,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    outcome.sent_ns = now_ns() - start_ns;
    let (mut connection, status) = send(pool, head, Some(id), &body).await?;
    drop(body);
    outcome.headers_ns = Some(connection.read_ns().saturating_sub(start_ns));
    if !status.is_success() {
        let text = whole(&mut connection).await.unwrap_or_default();
        pool.give_back(connection);
        return Err(Failure(format!(
            "HTTP {status}: {}",
            String::from_utf8_lossy(&text[..text.len().min(ANSWER_BYTES_MAX)])
        )));
    }
    let mut events = sse::Parser::default();
    let mut stream = Stream::default();
    let stamp = connection.stamp();
    loop {
        let mut scanned = Ok(());
        let read = connection.read(|data| {
            let read_ns = stamp.get().saturating_sub(start_ns);
            if scanned.is_ok() {
                scanned = events.feed(data, |data| stream.event(data, read_ns, outcome));
            }
        });
        let more = read.await.map_err(|e| Failure(format!("stream broke off: {e}")))?;
        scanned.map_err(|e| Failure(e.to_string()))?;
        if !more {
            break;
        }
    }
    let result = stream.finish(outcome);
    pool.give_back(connection);
    result
}

/// Sends on an idle connection; where the server turns out to close that one, on a new one.
async fn send(pool: &Pool, head: &Head, id: Option<&str>, body: &Bytes) -> Result<(Connection, StatusCode), Failure> {
    let mut tries = 0;
    loop {
        let mut connection = pool.take(tries == 0).await?;
        tries += 1;
        match connection.send(head, id, body).await {
            Ok(status) => {
                let status = StatusCode::from_u16(status).map_err(|e| Failure(e.to_string()))?;
                return Ok((connection, status));
            }
            Err(unanswered) if unanswered.again && tries < TRIES_MAX => {}
            Err(unanswered) => return Err(unanswered.failure),
        }
    }
}

/// The rest of an answer.
async fn whole(connection: &mut Connection) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::new();
    while connection.read(|part| out.extend_from_slice(part)).await? {}
    Ok(out)
}

/// What the events of one response have said so far.
#[derive(Default)]
struct Stream {
    output_tokens: Option<u32>,
    done: bool,
    error: Option<String>,
}

impl Stream {
    fn event(&mut self, data: &[u8], read_ns: u64, outcome: &mut Outcome) {
        let event = scan::event(data);
        if event.content {
            if outcome.chunks_ns.is_empty() {
                outcome.chunks_ns.reserve(outcome.output_tokens.min(CHUNKS_EXPECTED_MAX) as usize);
            }
            outcome.chunks_ns.push(read_ns);
            outcome.told.extend(event.completion_tokens);
        }
        self.done |= event.done;
        self.output_tokens = event.completion_tokens.or(self.output_tokens);
        outcome.prompt_tokens = event.prompt_tokens.unwrap_or(outcome.prompt_tokens);
        if self.error.is_none() {
            self.error = event.error;
        }
    }

    fn finish(self, outcome: &mut Outcome) -> Result<(), Failure> {
        outcome.output_tokens = self.output_tokens.unwrap_or(outcome.chunks_ns.len() as u32);
        match self.error {
            Some(error) => Err(Failure(error)),
            None if !self.done => Err(Failure("stream ended without [DONE]".into())),
            None if outcome.chunks_ns.is_empty() => Err(Failure("no content in the answer".into())),
            None => Ok(()),
        }
    }
}

/// Body of a GET.
///
/// # Errors
/// A sentence with the HTTP status or the connection's failure.
pub async fn get(pool: &Pool, head: &Head) -> Result<Bytes, Failure> {
    let (mut connection, status) = send(pool, head, None, &Bytes::new()).await?;
    let body = whole(&mut connection).await?;
    pool.give_back(connection);
    if status.is_success() { Ok(body.into()) } else { Err(Failure(format!("HTTP {status}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(events: &[&str]) -> (Result<(), String>, Outcome) {
        let (mut stream, mut outcome) = (Stream::default(), Outcome::default());
        for (i, e) in events.iter().enumerate() {
            stream.event(e.as_bytes(), i as u64, &mut outcome);
        }
        (stream.finish(&mut outcome).map_err(|f| f.to_string()), outcome)
    }

    #[test]
    fn role_only_and_usage_chunks_are_not_tokens() {
        let (result, outcome) = play(&[
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"content":"Hel"}}]}"#,
            r#"{"choices":[{"delta":{"content":"lo"}}],"usage":null}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}"#,
            "[DONE]",
        ]);
        assert_eq!(result, Ok(()));
        assert_eq!((outcome.chunks_ns, outcome.output_tokens, outcome.prompt_tokens), (vec![1, 2], 4, 9));
        assert!(outcome.told.is_empty());
    }

    #[test]
    fn broken_streams_are_failures() {
        let chunk = r#"{"choices":[{"text":"a"}]}"#;
        for (events, want) in [
            (vec![chunk], "stream ended without [DONE]"),
            (vec!["[DONE]"], "no content in the answer"),
            (vec![chunk, r#"{"error":{"message":"device lost"}}"#], "server error in the stream"),
            (vec![chunk, "{oops", "[DONE]"], "event is not JSON"),
        ] {
            let error = play(&events).0.unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
