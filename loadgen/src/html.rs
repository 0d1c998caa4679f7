//! One run as one page: no script, no other file, light and dark as the reader has it. Pure.

use std::fmt::Write;

use crate::audit::Audit;
use crate::measure::{Outcome, Samples};
use crate::plot::{Plot, Series, Shape};
use crate::report::{Report, marks};
use crate::result::About;
use crate::stats;
use crate::steady::Steady;

/// Points of a distribution's curve.
const CURVE_POINTS: usize = 200;
/// Stretches that a run is cut into for throughput over time.
const BINS: usize = 120;
/// Kinds of failure that are named.
const ERRORS_SHOWN: usize = 20;

const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2024;--soft:#6b7280;--grid:#e5e7eb;--card:#f8fafc;--a:#2563eb;--b:#d97706;--c:#059669;--d:#dc2626}\
@media(prefers-color-scheme:dark){:root{--bg:#111418;--fg:#e6e8eb;--soft:#9aa3ad;--grid:#2a3038;--card:#191e24;--a:#6ea8fe;--b:#f5b041;--c:#34d399;--d:#f87171}}\
*{box-sizing:border-box}body{margin:0 auto;padding:1rem;max-width:1360px;background:var(--bg);color:var(--fg);font:15px/1.45 system-ui,sans-serif}\
h1{font-size:1.35rem;margin:.2rem 0;overflow-wrap:anywhere}h2{font-size:1rem;margin:0 0 .5rem}.verdict{font-weight:600;margin:.2rem 0 1rem}.verdict.ok{color:var(--c)}.verdict.bad{color:var(--d)}\
main{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr))}\
section{background:var(--card);border:1px solid var(--grid);border-radius:8px;padding:.8rem;min-width:0}.wide{grid-column:1/-1}\
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}td,th{padding:.2rem .5rem;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}\
td:first-child,th:first-child{text-align:left}td.words{text-align:left;white-space:normal;min-width:11rem}th{color:var(--soft);font-weight:500}small{color:var(--soft)}\
svg{width:100%;height:auto;display:block}.grid{stroke:var(--grid);fill:none}.tick,.label{fill:var(--soft);font-size:11px}.label{font-size:12px}\
@media(max-width:600px){.tick,.label{font-size:18px}}.line{fill:none;stroke-width:1.8}.band{opacity:.18}.dot{opacity:.55}\
.line.a{stroke:var(--a)}.line.b{stroke:var(--b)}.line.c{stroke:var(--c)}.line.d{stroke:var(--d);stroke-dasharray:5 4}\
.band.a,.dot.a{fill:var(--a)}.band.b,.dot.b{fill:var(--b)}.band.c,.dot.c{fill:var(--c)}.band.d,.dot.d{fill:var(--d)}\
.legend{margin:.3rem 0 0;color:var(--soft);font-size:13px}.legend span{margin-right:1em;white-space:nowrap}.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}\
.key.a{background:var(--a)}.key.b{background:var(--b)}.key.c{background:var(--c)}.key.d{background:var(--d)}code{overflow-wrap:anywhere;font-size:13px}";

/// The beginning of a page, up to its body.
pub(crate) fn head(title: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><link rel=\"icon\" href=\"data:,\"><title>loadgen: {}</title><style>{STYLE}</style></head><body>",
        escape(title)
    )
}

/// The page of a run.
pub fn page(about: &About, report: &Report, audit: &Audit, outcomes: &[Outcome]) -> String {
    let verdict = audit.verdict();
    let ok = verdict == crate::audit::Verdict::Valid;
    let mut out = format!(
        "{}<h1>{}, {} requests in {:.1} s</h1><p class=\"verdict {}\">{}</p><main>",
        head(&about.model),
        escape(&about.model),
        report.completed + report.failed,
        report.duration_s,
        if ok { "ok" } else { "bad" },
        escape(&verdict.to_string()),
    );
    let mut section = |class: &str, title: &str, body: String| {
        let _ = write!(out, "<section class=\"{class}\"><h2>{title}</h2>{body}</section>");
    };
    section("wide", "Figures", figures(report, outcomes));
    for (title, names) in [
        (
            "Time to first token: share of requests within",
            &[("ttft", "from schedule"), ("ttft_from_send", "from send")][..],
        ),
        ("Time per output token: share of requests within", &[("tpot", "")]),
        ("Gaps: share within", &[("itl", "between chunks"), ("token_gap", "between tokens")]),
        ("End to end: share of requests within", &[("e2el", "from schedule"), ("e2el_from_send", "from send")]),
    ] {
        section("", title, distribution(report, names));
    }
    section("", "Time to first token over time", over_time(outcomes));
    let [throughput, in_flight, scatter] = load(outcomes);
    section("", "Throughput over time", throughput);
    section("", "Requests in flight over time", in_flight);
    section("", "Throughput against requests in flight", scatter);
    if !report.errors.is_empty() {
        section("wide", "Failures", errors(report));
    }
    section("wide", "The client", client(audit));
    section(
        "wide",
        "To repeat it",
        format!(
            "<p><code>{}</code></p><p>seed {}, workload <code>{}</code></p>",
            escape(&about.command.join(" ")),
            about.seed,
            &about.workload
        ),
    );
    out + "</main></body></html>\n"
}

fn figures(report: &Report, outcomes: &[Outcome]) -> String {
    let per_s = |n: f64| n / report.duration_s.max(1e-9);
    let mut out = format!(
        "<p>{} completed, {} failed, {} cancelled · {:.2} requests/s · {:.1} output tokens/s",
        report.completed,
        report.failed,
        report.cancelled,
        per_s(report.completed as f64),
        per_s(report.output_tokens as f64)
    );
    if let Some(good) = report.good {
        let _ = write!(out, " · {good} met the objectives");
    }
    if let Some(steady) = Steady::find(outcomes) {
        let (from, to) = (steady.from_ns as f64 / 1e9, steady.to_ns as f64 / 1e9);
        let _ = write!(out, " · steady from {from:.1} s to {to:.1} s: {:.1} tokens/s", steady.tokens_per_s);
    }
    out += "</p><div class=\"scroll\"><table><tr><th>ms</th><th>mean</th><th>p50</th><th>p90</th><th>p99</th></tr>";
    for (name, samples) in &report.samples {
        let _ = write!(out, "<tr><td>{}</td>", name.replace('_', " "));
        for (mark, value) in marks(samples) {
            let _ = match value {
                Some(value) => write!(out, "<td>{value:.2} <small>{}</small></td>", doubt(samples, mark)),
                None => write!(out, "<td>-</td>"),
            };
        }
        out += "</tr>";
    }
    out + "</table></div><p><small>In brackets the 95 % interval; none where the samples are too few to say.</small></p>"
}

fn doubt(samples: &Samples, mark: &str) -> String {
    let values = samples.sorted();
    let interval = match mark.strip_prefix('p').and_then(|p| p.parse::<f64>().ok()) {
        Some(p) => stats::quantile(values.len(), p / 100.0, |rank| values[rank]),
        None => stats::mean(values),
    };
    interval.map_or(String::new(), |i| format!("[{:.2}, {:.2}]", i.low, i.high))
}

/// Cumulative distributions, each with its pointwise 95 % band.
fn distribution(report: &Report, names: &[(&str, &str)]) -> String {
    let mut series = Vec::new();
    for ((name, label), class) in names.iter().zip(['a', 'b']) {
        let Some(values) = report.metric(name).map(Samples::sorted).filter(|v| !v.is_empty()) else { continue };
        let shares: Vec<f64> = (0..=CURVE_POINTS).map(|i| i as f64 / CURVE_POINTS as f64).collect();
        let rank = |share: f64| ((share * values.len() as f64).ceil() as usize).clamp(1, values.len()) - 1;
        let curve = shares.iter().map(|s| (values[rank(*s)], *s)).collect();
        let bands: Vec<(f64, stats::Interval)> = shares
            .iter()
            .filter(|s| (0.0..1.0).contains(*s) && **s > 0.0)
            .filter_map(|s| Some((*s, stats::quantile(values.len(), *s, |rank| values[rank])?)))
            .collect();
        let low = bands.iter().map(|(s, i)| (i.low, *s)).collect();
        let high = bands.iter().map(|(s, i)| (i.high, *s)).collect();
        series.push(Series { name: String::new(), class, shape: Shape::Band(high), points: low });
        series.push(Series { name: (*label).to_owned(), class, shape: Shape::Line, points: curve });
    }
    Plot { x: "milliseconds", y: "share", log_x: true, series }.svg()
}

fn over_time(outcomes: &[Outcome]) -> String {
    let points = |f: fn(&Outcome) -> Option<f64>| -> Vec<(f64, f64)> {
        outcomes.iter().filter(|o| o.completed()).filter_map(|o| Some((o.scheduled_ns as f64 / 1e9, f(o)?))).collect()
    };
    let failed: Vec<(f64, f64)> =
        outcomes.iter().filter(|o| o.error.is_some()).map(|o| (o.scheduled_ns as f64 / 1e9, 0.0)).collect();
    let dots = |name: &str, class, points| Series { name: name.into(), class, shape: Shape::Dots, points };
    let mut series = vec![
        dots("from schedule", 'a', points(Outcome::ttft_ms)),
        dots("from send", 'b', points(Outcome::ttft_from_send_ms)),
    ];
    if !failed.is_empty() {
        series.push(dots("failed", 'd', failed));
    }
    Plot { x: "scheduled, seconds", y: "milliseconds", log_x: false, series }.svg()
}

/// Throughput and requests in flight over time, and one against the other.
fn load(outcomes: &[Outcome]) -> [String; 3] {
    let end_ns = outcomes.iter().filter_map(Outcome::last_ns).max().unwrap_or(0).max(1);
    let bin_ns = end_ns.div_ceil(BINS as u64);
    let bin = |at_ns: u64| ((at_ns / bin_ns) as usize).min(BINS - 1);
    let (mut tokens, mut in_flight) = ([0.0; BINS], [0.0; BINS]);
    for o in outcomes {
        let each = f64::from(o.output_tokens) / o.chunks_ns.len().max(1) as f64;
        o.chunks_ns.iter().for_each(|at| tokens[bin(*at)] += each);
        let Some(last_ns) = o.last_ns() else { continue };
        // The part of each stretch that the request spent in flight.
        for (i, sum) in in_flight.iter_mut().enumerate().take(bin(last_ns) + 1).skip(bin(o.sent_ns)) {
            let (from, to) = (i as u64 * bin_ns, (i as u64 + 1) * bin_ns);
            *sum += last_ns.min(to).saturating_sub(o.sent_ns.max(from)) as f64 / bin_ns as f64;
        }
    }
    let bin_s = bin_ns as f64 / 1e9;
    let middle = |i: usize| (i as f64 + 0.5) * bin_s;
    let rate: Vec<(f64, f64)> = tokens.iter().enumerate().map(|(i, n)| (middle(i), n / bin_s)).collect();
    let flight: Vec<(f64, f64)> = in_flight.iter().enumerate().map(|(i, n)| (middle(i), *n)).collect();
    let both = flight.iter().zip(&rate).map(|(f, r)| (f.1, r.1)).collect();
    let plot = |x, y, class, shape, points| {
        Plot { x, y, log_x: false, series: vec![Series { name: String::new(), class, shape, points }] }.svg()
    };
    [
        plot("seconds", "output tokens/s", 'c', Shape::Line, rate),
        plot("seconds", "requests", 'a', Shape::Line, flight),
        plot("requests in flight", "output tokens/s", 'c', Shape::Dots, both),
    ]
}

fn errors(report: &Report) -> String {
    let rows: String = report
        .errors
        .iter()
        .take(ERRORS_SHOWN)
        .map(|(what, count)| format!("<tr><td>{count}</td><td class=\"words\">{}</td></tr>", escape(what)))
        .collect();
    format!("<div class=\"scroll\"><table>{rows}</table></div>")
}

fn client(audit: &Audit) -> String {
    let rows: String = audit
        .figures()
        .iter()
        .map(|(name, value)| {
            let value = match (value.as_u64(), value.as_f64()) {
                (Some(whole), _) => whole.to_string(),
                (None, Some(part)) => format!("{part:.3}"),
                (None, None) => value.as_str().unwrap_or("-").to_owned(),
            };
            let name = name.trim_start_matches("client_").replace('_', " ");
            format!("<tr><td>{name}</td><td class=\"words\">{}</td></tr>", escape(&value))
        })
        .collect();
    format!("<div class=\"scroll\"><table>{rows}</table></div>")
}

/// Text that may stand in a page.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::Objectives;

    #[test]
    fn the_page_stands_alone_and_takes_any_words() {
        let mut outcomes: Vec<Outcome> = (0..60u64)
            .map(|i| {
                let at_ns = i * 50_000_000;
                let chunks_ns = vec![at_ns + (i + 20) * 1_000_000, at_ns + (i + 40) * 1_000_000];
                Outcome { scheduled_ns: at_ns, sent_ns: at_ns, chunks_ns, output_tokens: 2, ..Outcome::default() }
            })
            .collect();
        outcomes[3].error = Some("<script>alert(1)</script> & \"more\"".into());
        let about = About { model: "a<b".into(), command: vec!["loadgen".into(), "--seed".into()], ..About::default() };
        let report = Report::new(&outcomes, &Objectives::default());
        let page = page(&about, &report, &Audit::default(), &outcomes);
        assert!(page.contains("a&lt;b") && page.contains("&lt;script&gt;") && !page.contains("<script"));
        assert!(!page.contains("http") && !page.contains("NaN") && !page.contains("inf "), "{page}");
        assert_eq!(page.matches("<svg").count(), 8);
        assert_eq!(page.matches("<section").count(), page.matches("</section>").count());
    }

    #[test]
    fn a_run_without_an_answer_has_a_page() {
        let failed = Outcome { error: Some("no".into()), ..Outcome::default() };
        let report = Report::new(std::slice::from_ref(&failed), &Objectives::default());
        let page = page(&About::default(), &report, &Audit::default(), &[failed]);
        assert!(page.contains("Failures") && !page.contains("NaN"));
    }
}
