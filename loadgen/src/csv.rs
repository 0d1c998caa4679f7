//! Every request as a line of CSV, for spreadsheets and notebooks. Pure.

use std::fmt::Write;

use crate::measure::Outcome;

/// Header and a line a request; times in milliseconds from the start of the run, empty where there is none.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut out = String::from(
        "index,scheduled_ms,sent_ms,headers_ms,first_ms,last_ms,chunks,prompt_tokens,output_tokens,ttft_ms,ttft_from_send_ms,tpot_ms,e2el_ms,cancelled,error\n",
    );
    for o in outcomes {
        let at = |ns: Option<u64>| cell(ns.map(|ns| ns as f64 / 1e6));
        let _ = writeln!(
            out,
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}",
            o.index,
            at(Some(o.scheduled_ns)),
            at(Some(o.sent_ns)),
            at(o.headers_ns),
            at(o.first_ns()),
            at(o.last_ns()),
            o.chunks_ns.len(),
            o.prompt_tokens,
            o.output_tokens,
            cell(o.ttft_ms()),
            cell(o.ttft_from_send_ms()),
            cell(o.tpot_ms()),
            cell(o.e2e_ms()),
            o.cancelled,
            quoted(o.error.as_deref().unwrap_or(""))
        );
    }
    out
}

fn cell(value: Option<f64>) -> String {
    value.map_or(String::new(), |v| format!("{v:.6}"))
}

fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_a_request_whatever_an_error_says() {
        let good = Outcome { sent_ns: 1_500_000, chunks_ns: vec![4_000_000], output_tokens: 1, ..Outcome::default() };
        let bad = Outcome { index: 1, error: Some("no, \"never\"".into()), ..Outcome::default() };
        let text = table(&[good, bad]);
        let lines: Vec<&str> = text.lines().collect();
        let fields = lines[0].split(',').count();
        assert_eq!(lines[1], "0,0.000000,1.500000,,4.000000,4.000000,1,0,1,4.000000,2.500000,,4.000000,false,");
        assert_eq!(lines[1].split(',').count(), fields);
        assert!(lines[2].ends_with(",false,\"no, \"\"never\"\"\""), "{}", lines[2]);
    }
}
