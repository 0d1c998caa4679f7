//! Several runs of different load beside each other: a table, and a page with each latency against the load. Pure.

use std::fmt::Write;

use crate::html::{escape, head};
use crate::plot::{Plot, Series, Shape};
use crate::search::Judged;

/// A latency beyond so many times its limit is drawn there, so that the limit stays to be seen.
const SHOWN_OVER_LIMIT: f64 = 4.0;

/// What differs from run to run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Requests a second that were asked for.
    Rate,
    /// Most requests in flight.
    Concurrency,
}

impl Load {
    /// What a table and an axis say.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rate => "requests/s asked for",
            Self::Concurrency => "requests at once",
        }
    }

    /// Begins the names of a run's figures.
    pub fn figure(self) -> &'static str {
        match self {
            Self::Rate => "request_rate",
            Self::Concurrency => "max_concurrency",
        }
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its load.
    pub load: f64,
    /// How it ended: that it met the objective or why not, or that the client was the limit.
    pub verdict: String,
    /// Its latencies.
    pub judged: Vec<Judged>,
    /// Requests completed a second.
    pub requests_per_s: f64,
    /// Output tokens a second.
    pub tokens_per_s: f64,
}

/// The runs as a table.
pub fn table(load: Load, points: &[Point]) -> String {
    let Some(first) = points.first() else { return String::new() };
    let mut out = format!("{:>20} {:>10} {:>10}", load.name(), "req/s", "tok/s");
    for judged in &first.judged {
        let _ = write!(out, " {:>12}", judged.label);
    }
    out += "   ms\n";
    for point in points {
        let _ = write!(out, "{:>20} {:>10.2} {:>10.1}", shown(point.load), point.requests_per_s, point.tokens_per_s);
        for label in first.judged.iter().map(|j| &j.label) {
            let value = point.judged.iter().find(|j| j.label == *label).map(|j| format!("{:.2}", j.value_ms));
            let _ = write!(out, " {:>12}", value.as_deref().unwrap_or("-"));
        }
        let _ = writeln!(out, "   {}", point.verdict);
    }
    out
}

/// A load in as many digits as it needs.
pub fn shown(load: f64) -> String {
    let text = format!("{load:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The page: every latency against the load with its limit, throughput, latency against throughput, every run.
pub fn page(title: &str, found: &str, command: &[String], load: Load, points: &[Point]) -> String {
    let mut points = points.to_vec();
    points.sort_by(|a, b| a.load.total_cmp(&b.load));
    let mut labels: Vec<(&str, Option<f64>)> = Vec::new();
    for judged in points.iter().flat_map(|p| &p.judged) {
        if !labels.iter().any(|(label, _)| *label == judged.label) {
            labels.push((&judged.label, judged.limit_ms));
        }
    }
    let mut sections = String::new();
    let against = match load {
        Load::Rate => "the rate",
        Load::Concurrency => "requests at once",
    };
    for (label, limit) in &labels {
        let at = |x: fn(&Point) -> f64| along(&points, label, *limit, x);
        section(&mut sections, &format!("{label} against {against}"), load.name(), at(|p| p.load), *limit);
    }
    let tokens: Vec<(f64, f64)> = points.iter().map(|p| (p.load, p.tokens_per_s)).collect();
    let throughput = Plot {
        x: load.name(),
        y: "output tokens/s",
        log_x: true,
        series: vec![series("", 'c', Shape::Line, tokens.clone()), series("", 'c', Shape::Dots, tokens)],
    };
    let _ = write!(sections, "<section><h2>Throughput against {against}</h2>{}</section>", throughput.svg());
    if let Some((label, limit)) = labels.first() {
        let title = format!("{label} against throughput");
        section(&mut sections, &title, "output tokens/s", along(&points, label, *limit, |p| p.tokens_per_s), *limit);
    }
    let _ = write!(
        sections,
        "<section class=\"wide\"><h2>Runs</h2><div class=\"scroll\"><table>{}</table></div></section><section class=\"wide\"><h2>To repeat it</h2><p><code>{}</code></p></section>",
        rows(load, &points, &labels),
        escape(&command.join(" "))
    );
    format!(
        "{}<h1>{}</h1><p class=\"verdict\">{}</p><main>{sections}</main></body></html>\n",
        head(title),
        escape(title),
        escape(found)
    )
}

fn series(name: &str, class: char, shape: Shape, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.to_owned(), class, shape, points }
}

/// One latency against `x` of each run, cut off where it would hide its limit.
fn along(points: &[Point], label: &str, limit: Option<f64>, x: fn(&Point) -> f64) -> Vec<(f64, f64)> {
    let top = limit.map_or(f64::INFINITY, |l| l * SHOWN_OVER_LIMIT);
    let value = |p: &Point| p.judged.iter().find(|j| j.label == label).map(|j| (x(p), j.value_ms.min(top)));
    points.iter().filter_map(value).collect()
}

fn section(out: &mut String, title: &str, x: &'static str, points: Vec<(f64, f64)>, limit: Option<f64>) {
    let mut all =
        vec![series("", 'a', Shape::Line, points.clone()), series("measured", 'a', Shape::Dots, points.clone())];
    let mut note = String::new();
    if let Some(limit) = limit {
        let xs = || points.iter().map(|p| p.0);
        if let (Some(low), Some(high)) = (xs().min_by(f64::total_cmp), xs().max_by(f64::total_cmp)) {
            all.push(series("limit", 'd', Shape::Line, vec![(low, limit), (high, limit)]));
        }
        if points.iter().any(|p| p.1 >= limit * SHOWN_OVER_LIMIT) {
            note = format!("<p><small>Cut off at {SHOWN_OVER_LIMIT} times the limit.</small></p>");
        }
    }
    let plot = Plot { x, y: "milliseconds", log_x: true, series: all };
    let _ = write!(out, "<section><h2>{}</h2>{}{note}</section>", escape(title), plot.svg());
}

fn rows(load: Load, points: &[Point], labels: &[(&str, Option<f64>)]) -> String {
    let mut out = format!("<tr><th>{}</th><th>requests/s</th><th>tokens/s</th>", load.name());
    for (label, _) in labels {
        let _ = write!(out, "<th>{}, ms</th>", escape(label));
    }
    out += "<th></th></tr>";
    for point in points {
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{:.2}</td><td>{:.1}</td>",
            shown(point.load),
            point.requests_per_s,
            point.tokens_per_s
        );
        for (label, _) in labels {
            let value = point.judged.iter().find(|j| j.label == *label);
            let _ = write!(out, "<td>{}</td>", value.map_or("-".to_owned(), |j| format!("{:.2}", j.value_ms)));
        }
        let _ = write!(out, "<td class=\"words\">{}</td></tr>", escape(&point.verdict));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(load: f64, value_ms: f64, limit_ms: Option<f64>) -> Point {
        let judged = vec![Judged { label: "ttft p99".into(), value_ms, limit_ms }];
        Point { load, verdict: "met".into(), judged, requests_per_s: load, tokens_per_s: load * 9.0 }
    }

    #[test]
    fn a_page_shows_its_limits() {
        let points = [point(4.0, 90_000.0, Some(1000.0)), point(2.0, 300.0, Some(1000.0))];
        let page = page("ttft:p99<1s", "between 2 and 4", &["loadgen".into()], Load::Rate, &points);
        assert_eq!((page.matches("<svg").count(), page.matches(">met</td>").count()), (3, 2));
        assert_eq!(page.matches("Cut off").count(), 2, "90 s are far above one second");
        assert!(page.contains("90000.00"), "the table has what was measured");
        // Drawn as high as four times the limit, no higher and no lower.
        let plots = |value_ms: f64| -> String {
            let points = [point(4.0, value_ms, Some(1000.0)), points[1].clone()];
            let page = super::page("o", "f", &[], Load::Rate, &points);
            page.split_inclusive("</svg>")
                .filter_map(|part| part.split_once("<svg"))
                .map(|(_, svg)| svg.to_owned())
                .collect()
        };
        assert_eq!(plots(90_000.0), plots(4000.0));
        assert_ne!(plots(3000.0), plots(4000.0));
        assert!(page.contains("ttft:p99&lt;1s") && page.contains("line d") && !page.contains("NaN"));
    }

    #[test]
    fn without_a_limit_there_is_no_line_and_without_runs_no_curve() {
        let page = |points: &[Point]| page("o", "f", &[], Load::Concurrency, points);
        assert!(!page(&[point(1.0, 2.0, None), point(8.0, 3.0, None)]).contains("line d"));
        assert!(!page(&[point(1.0, 2.0, Some(9.0))]).contains("Cut off"));
        assert!(!page(&[]).contains("NaN"));
    }

    #[test]
    fn a_run_without_a_latency_has_a_dash() {
        let mut points = [point(0.5, 12.0, None), point(16.0, 13.0, None)];
        points[1].judged.clear();
        let table = table(Load::Rate, &points);
        let cells = |line: usize| -> Vec<&str> { table.lines().nth(line).unwrap().split_whitespace().collect() };
        assert_eq!(cells(1), ["0.5", "0.50", "4.5", "12.00", "met"]);
        assert_eq!(cells(2), ["16", "16.00", "144.0", "-", "met"]);
    }
}
