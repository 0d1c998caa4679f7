//! What is sent: prompt and output lengths, from a distribution or from a recorded trace.
//!
//! Prompts are token-id arrays, so their length in tokens is exact whatever the server's tokenizer is. Trace formats:
//! Azure LLM inference CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`) and Mooncake JSON lines (`timestamp` in ms,
//! `input_length`, `output_length`). Lines are never skipped silently: a bad one is an error with its number.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// One request to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Offset from the start of the run, seconds.
    pub at_s: f64,
    /// Prompt length, tokens.
    pub prompt_tokens: u32,
    /// Most tokens to generate.
    pub output_tokens: u32,
}

/// What is wrong with a trace.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum TraceError {
    /// Neither known format.
    #[error(
        "unknown trace format: want an Azure CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens or Mooncake JSON lines, found `{0}`"
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

/// Parses a trace of either format; offsets count from its first request and are sorted.
pub fn parse_trace(text: &str) -> Result<Vec<Planned>, TraceError> {
    let first = text.lines().find(|l| !l.trim().is_empty() && !l.starts_with('#')).unwrap_or_default();
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with("TIMESTAMP") {
            continue;
        }
        let parsed = if first.starts_with("TIMESTAMP") {
            azure_row(line)
        } else if first.starts_with('{') {
            mooncake_row(line)
        } else {
            return Err(TraceError::Format(first.chars().take(60).collect()));
        };
        rows.push(parsed.map_err(|what| TraceError::Line { line: index + 1, what })?);
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

fn azure_row(line: &str) -> Result<Planned, String> {
    let fields: Vec<&str> = line.split(',').collect();
    let [timestamp, prompt, output] = fields[..] else {
        return Err(format!("want 3 comma-separated fields, found {}", fields.len()));
    };
    Ok(Planned {
        at_s: seconds(timestamp)?,
        prompt_tokens: count("ContextTokens", prompt)?,
        output_tokens: count("GeneratedTokens", output)?,
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

fn mooncake_row(line: &str) -> Result<Planned, String> {
    let value: serde_json::Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let number = |key: &str| value[key].as_f64().ok_or_else(|| format!("`{key}` is missing or not a number"));
    let tokens = |key: &str| number(key).map(|n| n as u32);
    Ok(Planned {
        at_s: number("timestamp")? / 1000.0,
        prompt_tokens: tokens("input_length")?,
        output_tokens: tokens("output_length")?,
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

/// Token ids of one prompt: reproducible from the seed and the request's index; never id 0, often a padding id.
pub fn prompt_ids(tokens: u32, vocab: u32, seed: u64, index: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (0..tokens.max(1)).map(|_| rng.random_range(1..vocab.max(2))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azure_rows_become_offsets() {
        let text =
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 23:59:59.5,374,44\n2023-11-17 00:00:01.0,396,109\n";
        let rows = parse_trace(text).unwrap();
        assert_eq!(rows[0], Planned { at_s: 0.0, prompt_tokens: 374, output_tokens: 44 });
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
        assert_eq!(rows[1], Planned { at_s: 2.5, prompt_tokens: 8, output_tokens: 6 });
    }

    #[test]
    fn rescaling_keeps_the_shape_of_arrivals() {
        let at = |rate| {
            let mut plan: Vec<Planned> =
                [10.0, 11.0, 14.0].map(|at_s| Planned { at_s, prompt_tokens: 1, output_tokens: 1 }).to_vec();
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

    #[test]
    fn prompts_are_reproducible_and_in_the_vocabulary() {
        let ids = prompt_ids(1000, 50, 3, 1);
        assert_eq!(ids, prompt_ids(1000, 50, 3, 1));
        assert_ne!(ids, prompt_ids(1000, 50, 3, 2));
        assert!(ids.iter().all(|&id| (1..50).contains(&id)));
    }
}
