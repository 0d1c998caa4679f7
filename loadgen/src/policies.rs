//! One workload under one dispatch policy after another: the table of `loadgen policies` and of `./x demo`.

use serde_json::{Map, Value};

/// Rows: figure, title, unit.
const ROWS: [(&str, &str, &str); 9] = [
    ("ttft_p50_ms", "TTFT p50", "ms"),
    ("ttft_p99_ms", "TTFT p99", "ms"),
    ("tpot_p50_ms", "TPOT p50", "ms"),
    ("tpot_p99_ms", "TPOT p99", "ms"),
    ("itl_p99_ms", "ITL p99", "ms"),
    ("e2el_p50_ms", "E2E p50", "ms"),
    ("output_tokens_per_s", "throughput", "tok/s"),
    ("goodput_share", "goodput", "share"),
    ("failed", "failed", "requests"),
];

/// A run's name and its figures.
pub type Named = (String, Map<String, Value>);

/// The runs side by side and, of two, how the second differs from the first. `label` says what was measured; the table itself
/// says that it was emulated where the label does.
pub fn table(label: &str, runs: &[Named]) -> String {
    let mut out = format!("\n   {label}\n   {:<12}", "");
    for (name, _) in runs {
        out += &format!(" {name:>12}");
    }
    out += &format!("  {:<9}{}\n", "", if runs.len() == 2 { " change" } else { "" });
    for (figure, title, unit) in ROWS {
        let values: Vec<Option<f64>> = runs.iter().map(|(_, figures)| figures.get(figure)?.as_f64()).collect();
        out += &format!("   {title:<12}");
        for value in &values {
            out += &format!(" {:>12}", value.map_or("-".into(), |v| format!("{v:.2}")));
        }
        out += &format!("  {unit:<9}");
        if let [a, b] = values[..] {
            out += &match (a, b) {
                (Some(a), Some(b)) if a != 0.0 => format!(" {:+.1} %", (b / a - 1.0) * 100.0),
                _ => " -".into(),
            };
        }
        out.push('\n');
    }
    if label.contains("emulated") {
        out += "   Every figure above is of an emulated device: what its cost model says, not what silicon does.\n";
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_shows_change_against_the_first() {
        let run = |name: &str, p50: f64| {
            (name.to_owned(), [("ttft_p50_ms".to_owned(), p50.into())].into_iter().collect::<Map<_, _>>())
        };
        let two = [run("fifo", 200.0), run("phase", 50.0)];
        let text = table("emulated X", &two);
        assert!(
            text.contains("emulated X\n") && text.contains("-75.0 %") && text.contains("not what silicon does"),
            "{text}"
        );
        assert!(text.lines().any(|l| l.contains("TPOT p99") && l.trim_end().ends_with('-')), "{text}");
        let text = table("X", &[run("fifo", 1.0)]);
        assert!(!text.contains("change") && !text.contains("silicon"), "{text}");
    }
}
