//! What is sent: prompt and output lengths, from a distribution or from a recorded trace.
//!
//! Prompts are token-id arrays, so their length in tokens is exact whatever the server's tokenizer is. Trace formats:
//! Azure LLM inference CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`), BurstGPT CSV (`Timestamp,…,Request tokens,Response
//! tokens,…`) and Mooncake JSON lines (`timestamp` in ms, `input_length`, `output_length`, `hash_ids` of blocks of 512 tokens:
//! requests that share ids share those tokens). Lines are never skipped silently: a bad one is an error with its number.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::prompt::{Block, Kind, Prompt};

/// Tokens of a block that one of Mooncake's hash ids stands for.
const HASH_BLOCK_TOKENS: u32 = 512;

/// One request to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Offset from the start of the run, seconds; of a session's later turns, from the end of the answer before.
    pub at_s: f64,
    /// Prompt length, tokens; of text, a guess.
    pub prompt_tokens: u32,
    /// Most tokens to generate.
    pub output_tokens: u32,
    /// What is asked.
    pub prompt: Prompt,
    /// Its session if it has one, and which turn of it, from 0.
    pub turn: Option<(u32, u32)>,
    /// The client leaves this long after sending, seconds.
    pub cancel_after_s: Option<f64>,
}

impl Planned {
    /// A request that stands alone.
    pub fn new(at_s: f64, prompt: Prompt, output_tokens: u32) -> Self {
        let prompt_tokens = prompt.tokens();
        Self { at_s, prompt_tokens, output_tokens, prompt, turn: None, cancel_after_s: None }
    }

    /// Whether it waits for an answer before it is due.
    pub fn follows(&self) -> bool {
        self.turn.is_some_and(|(_, turn)| turn > 0)
    }
}

/// What is wrong with a trace.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum TraceError {
    /// Neither known format.
    #[error(
        "unknown trace format: want an Azure CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens, a BurstGPT CSV with Timestamp, Request tokens and Response tokens, or Mooncake JSON lines, found `{0}`"
    )]
    Format(String),
    /// A line that does not parse.
    #[error("line {line}: {what}")]
    Line {
        /// 1-based.
        line: usize,
        /// What is wrong and what was expected.
        what: String,
    },
    /// No request in it.
    #[error("the trace holds no request")]
    Empty,
}

/// Parses a trace of any of the formats; offsets count from its first request and are sorted.
pub fn parse_trace(text: &str) -> Result<Vec<Planned>, TraceError> {
    let first = text.lines().find(|l| !l.trim().is_empty() && !l.starts_with('#')).unwrap_or_default();
    let format = Format::of(first).ok_or_else(|| TraceError::Format(first.chars().take(60).collect()))?;
    let header_lines = usize::from(format != Format::Mooncake);
    let lines =
        text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty() && !l.starts_with('#')).skip(header_lines);
    let mut rows = Vec::new();
    for (index, line) in lines {
        let row = match &format {
            Format::Azure => azure_row(line),
            Format::BurstGpt(columns) => burst_row(line, columns),
            Format::Mooncake => mooncake_row(line),
        };
        let row = row.map_err(|what| TraceError::Line { line: index + 1, what })?;
        let hashes: Vec<u64> = row.hashes;
        let prompt = if hashes.is_empty() {
            Prompt::own(0, rows.len(), row.prompt_tokens)
        } else {
            hashed(&hashes, row.prompt_tokens)
        };
        rows.push(Planned { prompt_tokens: row.prompt_tokens, ..Planned::new(row.at_s, prompt, row.output_tokens) });
    }
    let start = rows.iter().map(|r| r.at_s).fold(f64::INFINITY, f64::min);
    if rows.is_empty() {
        return Err(TraceError::Empty);
    }
    for row in &mut rows {
        row.at_s -= start;
    }
    rows.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    Ok(rows)
}

#[derive(PartialEq)]
enum Format {
    Azure,
    /// Columns of time, prompt and answer.
    BurstGpt([usize; 3]),
    Mooncake,
}

impl Format {
    fn of(first: &str) -> Option<Self> {
        if first.starts_with("TIMESTAMP") {
            return Some(Self::Azure);
        }
        if first.starts_with('{') {
            return Some(Self::Mooncake);
        }
        let header: Vec<&str> = first.split(',').map(str::trim).collect();
        let column = |name: &str| header.iter().position(|h| *h == name);
        Some(Self::BurstGpt([column("Timestamp")?, column("Request tokens")?, column("Response tokens")?]))
    }
}

/// A line of a trace.
struct Row {
    at_s: f64,
    prompt_tokens: u32,
    output_tokens: u32,
    hashes: Vec<u64>,
}

/// The prompt that hash ids stand for: a block an id, what is left beyond them in the last.
fn hashed(ids: &[u64], tokens: u32) -> Prompt {
    let mut left = tokens;
    let mut blocks: Vec<Block> = Vec::with_capacity(ids.len());
    for &id in ids {
        let take = left.min(HASH_BLOCK_TOKENS);
        left -= take;
        blocks.push(Block::new(Kind::Hash, 0, id, take));
    }
    if let Some(last) = blocks.last_mut() {
        last.tokens += left;
    }
    Prompt::Blocks(blocks)
}

fn azure_row(line: &str) -> Result<Row, String> {
    let fields: Vec<&str> = line.split(',').collect();
    let [timestamp, prompt, output] = fields[..] else {
        return Err(format!("want 3 comma-separated fields, found {}", fields.len()));
    };
    Ok(Row {
        at_s: seconds(timestamp)?,
        prompt_tokens: count("ContextTokens", prompt)?,
        output_tokens: count("GeneratedTokens", output)?,
        hashes: Vec::new(),
    })
}

fn burst_row(line: &str, [at, prompt, output]: &[usize; 3]) -> Result<Row, String> {
    let fields: Vec<&str> = line.split(',').collect();
    let field = |i: usize| fields.get(i).copied().ok_or_else(|| format!("only {} fields", fields.len()));
    let at_s = field(*at)?;
    Ok(Row {
        at_s: at_s.trim().parse().map_err(|_| format!("Timestamp is not a number of seconds: `{at_s}`"))?,
        prompt_tokens: count("Request tokens", field(*prompt)?)?,
        output_tokens: count("Response tokens", field(*output)?)?,
        hashes: Vec::new(),
    })
}

fn count(name: &str, text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| format!("{name} is not a whole number: `{text}`"))
}

/// `2023-11-16 18:17:03.9799600` as seconds on a common axis (days since the civil epoch, UTC, no leap seconds).
fn seconds(text: &str) -> Result<f64, String> {
    let bad = || format!("TIMESTAMP is not `YYYY-MM-DD hh:mm:ss.fff`: `{text}`");
    let (date, time) = text.trim().split_once([' ', 'T']).ok_or_else(bad)?;
    let date: Vec<i64> = date.split('-').map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
    let mut clock = time.trim_end_matches('Z').split(':');
    let mut next = || clock.next().and_then(|f| f.parse::<f64>().ok());
    let (Some(h), Some(m), Some(s)) = (next(), next(), next()) else { return Err(bad()) };
    let [y, mo, d] = date[..] else { return Err(bad()) };
    // Days from civil date, H. Hinnant's algorithm: years start in March so that the leap day comes last.
    let y = if mo <= 2 { y - 1 } else { y };
    let day_of_year = (153 * ((mo + 9) % 12) + 2) / 5 + d - 1;
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + day_of_year;
    Ok(days as f64 * 86_400.0 + h * 3600.0 + m * 60.0 + s)
}

fn mooncake_row(line: &str) -> Result<Row, String> {
    let value: serde_json::Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let number = |key: &str| value[key].as_f64().ok_or_else(|| format!("`{key}` is missing or not a number"));
    let tokens = |key: &str| number(key).map(|n| n as u32);
    let hashes = match &value["hash_ids"] {
        serde_json::Value::Null => Vec::new(),
        ids => serde_json::from_value(ids.clone()).map_err(|e| format!("`hash_ids` is no list of numbers: {e}"))?,
    };
    Ok(Row {
        at_s: number("timestamp")? / 1000.0,
        prompt_tokens: tokens("input_length")?,
        output_tokens: tokens("output_length")?,
        hashes,
    })
}

/// Lets the first request open the run and, given a `rate` in requests a second, stretches or squeezes the gaps to that mean
/// rate; an infinite one sends everything at once.
pub fn rescale(plan: &mut [Planned], rate: Option<f64>) {
    let (Some(first), Some(last)) = (plan.first(), plan.last()) else { return };
    let (first_s, span_s) = (first.at_s, last.at_s - first.at_s);
    let scale = match rate {
        Some(rate) if rate.is_infinite() => 0.0,
        Some(rate) if span_s > 0.0 => plan.len() as f64 / span_s / rate,
        _ => 1.0,
    };
    plan.iter_mut().for_each(|r| r.at_s = (r.at_s - first_s) * scale);
}

/// Lengths drawn uniformly from `[mean·(1−ratio), mean·(1+ratio)]`, at least 1.
pub fn random_lengths(count: usize, prompt: u32, output: u32, ratio: f64, seed: u64) -> Vec<(u32, u32)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x1e57);
    let mut draw = |mean: u32| {
        let reach = (f64::from(mean) * ratio) as u32;
        rng.random_range(mean.saturating_sub(reach)..=mean + reach).max(1)
    };
    (0..count).map(|_| (draw(prompt), draw(output))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azure_rows_become_offsets() {
        let text =
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 23:59:59.5,374,44\n2023-11-17 00:00:01.0,396,109\n";
        let rows = parse_trace(text).unwrap();
        assert_eq!((rows[0].at_s, rows[0].prompt_tokens, rows[0].output_tokens), (0.0, 374, 44));
        assert_eq!(rows[0].prompt.ids(100).unwrap().len(), 374);
        assert!((rows[1].at_s - 1.5).abs() < 1e-6, "across midnight: {}", rows[1].at_s);
    }

    #[test]
    fn offsets_cross_a_leap_day() {
        let at = |d: &str| seconds(&format!("{d} 00:00:00")).unwrap();
        assert_eq!(at("2024-03-01") - at("2024-02-28"), 2.0 * 86_400.0);
        assert_eq!(at("2023-03-01") - at("2023-02-28"), 86_400.0);
        assert_eq!(at("2024-01-01") - at("2023-12-31"), 86_400.0);
    }

    #[test]
    fn mooncake_rows_become_offsets() {
        let text = "{\"timestamp\": 1000, \"input_length\": 7, \"output_length\": 5, \"hash_ids\": [0]}\n{\"timestamp\": 3500, \"input_length\": 8, \"output_length\": 6}\n";
        let rows = parse_trace(text).unwrap();
        assert_eq!((rows[1].at_s, rows[1].prompt_tokens, rows[1].output_tokens), (2.5, 8, 6));
    }

    #[test]
    fn equal_hash_ids_are_equal_prefixes() {
        let line = |length: u32, ids: &str| {
            format!("{{\"timestamp\": 0, \"input_length\": {length}, \"output_length\": 1, \"hash_ids\": [{ids}]}}\n")
        };
        let text = line(1100, "7, 8, 9") + &line(1030, "7, 8, 5") + &line(600, "1, 8");
        let ids: Vec<Vec<u32>> = parse_trace(&text).unwrap().iter().map(|r| r.prompt.ids(1000).unwrap()).collect();
        assert_eq!([ids[0].len(), ids[1].len(), ids[2].len()], [1100, 1030, 600]);
        assert_eq!(ids[0][..1024], ids[1][..1024]);
        assert_ne!(ids[0][1024..1030], ids[1][1024..1030]);
        assert_ne!(ids[0][..512], ids[2][..512]);
    }

    #[test]
    fn burst_gpt_rows_become_offsets() {
        let text = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,,1.2,ChatGPT,472,18,490,Conversation log\n45.5,,2,GPT-4,1087,230,1317,Conversation log\n";
        let rows = parse_trace(text).unwrap();
        assert_eq!((rows[1].at_s, rows[1].prompt_tokens, rows[1].output_tokens), (40.5, 1087, 230));
    }

    #[test]
    fn rescaling_keeps_the_shape_of_arrivals() {
        let at = |rate| {
            let mut plan: Vec<Planned> =
                [10.0, 11.0, 14.0].map(|at_s| Planned::new(at_s, Prompt::own(0, 0, 1), 1)).to_vec();
            rescale(&mut plan, rate);
            [plan[0].at_s, plan[1].at_s, plan[2].at_s]
        };
        assert_eq!(at(None), [0.0, 1.0, 4.0]);
        assert_eq!(at(Some(1.5)), [0.0, 0.5, 2.0], "three requests in two seconds");
        assert_eq!(at(Some(f64::INFINITY)), [0.0; 3]);
    }

    #[test]
    fn bad_lines_are_named() {
        let cases = [
            (
                "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,a,1\n",
                "line 2: ContextTokens is not a whole number: `a`",
            ),
            (
                "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n",
                "line 2: TIMESTAMP is not `YYYY-MM-DD hh:mm:ss.fff`: `yesterday`",
            ),
            ("{\"timestamp\": 1, \"input_length\": 2}\n", "line 1: `output_length` is missing or not a number"),
            ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "the trace holds no request"),
        ];
        for (text, want) in cases {
            assert_eq!(parse_trace(text).unwrap_err().to_string(), want);
        }
        assert!(matches!(parse_trace("hello\n"), Err(TraceError::Format(_))));
    }
}
