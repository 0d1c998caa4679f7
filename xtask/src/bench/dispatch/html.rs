//! One self-contained page: plots, tables, and which requirements are met. No script, no external asset.

use std::fmt::Write;

use super::OMEGAS;
use super::bars::{Bar, Summary};
use super::plot::{bars as bar_plot, escape, lines};
use super::row::{CAVEAT, COLUMNS, Row};

/// Colours that read on white and on black: one hue a kind of contender; `phase` has its own, and thicker lines. Readers
/// without colours have the order and the tooltips.
const COLOURS: [(&str, &str); 14] = [
    ("phase", "14 90% 50%"),
    ("oracle", "145 65% 36%"),
    ("oracle-each-token", "145 45% 60%"),
    ("static-colocation", "220 8% 46%"),
    ("disaggregated", "220 8% 68%"),
    ("chunked-512", "330 60% 65%"),
    ("chunked-2048", "330 70% 42%"),
    ("passthrough", "205 80% 55%"),
    ("fifo", "230 65% 55%"),
    ("quota", "265 50% 60%"),
    ("priority", "188 75% 40%"),
    ("static-ratio", "45 85% 45%"),
    ("core-split", "75 55% 42%"),
    ("alone", "100 25% 60%"),
];

const STYLE: &str = ":root{color-scheme:light dark;--bg:#fff;--fg:#1c2024;--mute:#667;--line:#dde}\
    @media(prefers-color-scheme:dark){:root{--bg:#14171a;--fg:#e6e8ea;--mute:#9aa;--line:#333a40}}\
    body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:1320px;margin:2em auto;padding:0 1em}\
    h1{font-size:1.5em}h2{margin-top:2em}.p{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(360px,100%),1fr));gap:1em}\
    svg{width:100%;height:auto}text{fill:var(--fg);font:11px system-ui,sans-serif}.t{font-size:13px;font-weight:600}.m{fill:var(--mute)}\
    .g{stroke:var(--line)}polyline{fill:none;stroke-width:1.5}.e{stroke-width:3.5}.d{stroke-dasharray:5 3}table{border-collapse:collapse;font-size:12px;width:100%}\
    .w{overflow-x:auto}td,th{padding:2px 8px;text-align:right;vertical-align:top;border-bottom:1px solid var(--line)}\
    td:first-child,th:first-child,.l{text-align:left;min-width:9em}\
    .k span{display:inline-block;margin-right:1.2em}.k i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}\
    .no{color:#d33;font-weight:600}.c{color:var(--mute)}";

fn style() -> String {
    let mut out = STYLE.to_owned();
    for (name, hsl) in COLOURS {
        let _ =
            write!(out, ".f-{name}{{fill:hsl({hsl})}}.s-{name}{{stroke:hsl({hsl})}}.b-{name}{{background:hsl({hsl})}}");
    }
    out
}

/// Distinct values in the order of their first appearance.
fn distinct<'a>(rows: &[&'a Row], of: impl Fn(&'a Row) -> &'a str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for &row in rows {
        if !out.iter().any(|o| o == of(row)) {
            out.push(of(row).to_owned());
        }
    }
    out
}

fn load(text: &str) -> Option<f64> {
    text.strip_suffix(" %")?.parse().ok()
}

/// The page.
pub fn page(rows: &[Row], bars: &[Bar]) -> String {
    let all: Vec<&Row> = rows.iter().collect();
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>FlexNPU: dispatch policies</title><style>{}</style></head><body><h1>Dispatch policies, emulated</h1>\
         <p>Qwen2.5-7B on an <strong>emulated Ascend910B3</strong> in virtual time: the daemon's dispatcher and the emulated \
         device's cost model. ω is the overlap that the model assumes, from 0 (operators take turns) to 1 (they share \
         bandwidth and cores as a fluid); no co-run measurement on Ascend is public, so each result is shown at three.</p>",
        style()
    );
    summary(&mut out, bars);
    for (experiment, title) in [
        ('a', "The paper's workloads"),
        ('b', "Traces"),
        ('c', "Two tenants on one device: a prefill-heavy and a decode-heavy engine"),
    ] {
        let mine: Vec<&Row> = all.iter().copied().filter(|r| r.experiment == experiment).collect();
        if mine.is_empty() {
            continue;
        }
        let _ = write!(out, "<h2>({experiment}) {title}</h2>");
        if experiment == 'a' {
            let _ = write!(out, "<p class=\"c\">{}</p>", escape(CAVEAT));
        }
        let contenders = distinct(&mine, |r| &r.contender);
        out += "<p class=\"k\">";
        for name in &contenders {
            let _ = write!(out, "<span><i class=\"b-{0}\"></i>{0}</span>", escape(name));
        }
        out += "</p><div class=\"p\">";
        match experiment {
            'b' => over_load(&mut out, &mine, &contenders),
            _ => by_workload(&mut out, &mine, &contenders),
        }
        out += "</div><details><summary>All figures</summary>";
        for group in mine.chunk_by(|a, b| a.case() == b.case()) {
            table(&mut out, group);
        }
        out += "</details>";
    }
    requirements(&mut out, bars);
    out + "</body></html>\n"
}

/// Title, whether the axis is logarithmic, value.
type Plot = (&'static str, bool, fn(&Row) -> f64);

/// Finds a row's value; NaN where a contender does not take part.
fn value(rows: &[&Row], omega: f64, workload: &str, load: &str, contender: &str, of: fn(&Row) -> f64) -> f64 {
    rows.iter()
        .find(|r| r.omega == omega && r.workload == workload && r.load == load && r.contender == contender)
        .map_or(f64::NAN, |r| of(r))
}

fn by_workload(out: &mut String, rows: &[&Row], series: &[String]) {
    let workloads = distinct(rows, |r| &r.workload);
    // Workloads that differ in slots only are plotted apart.
    let kind = |w: &str| w.split_once(", ").map_or(String::new(), |(_, slots)| format!(", {slots}"));
    let mut kinds: Vec<String> = Vec::new();
    for kind in workloads.iter().map(|w| kind(w)) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    for load in distinct(rows, |r| &r.load) {
        for slots in &kinds {
            let full: Vec<&String> = workloads.iter().filter(|w| kind(w) == *slots).collect();
            let groups: Vec<String> = full.iter().map(|w| w.trim_end_matches(slots.as_str()).to_owned()).collect();
            for omega in OMEGAS {
                let plots: [Plot; 3] = [
                    ("mean TTFT, s", true, |r| r.report.ttft_s.mean),
                    ("mean TPOT in the slot, ms", false, |r| r.report.tpot_slot_s.mean * 1e3),
                    ("throughput, tok/s", false, |r| r.report.tokens_per_s),
                ];
                for (title, log, of) in plots {
                    let under = format!("{load}{slots} · emulated, ω = {omega}");
                    *out += &bar_plot([title, &under], &groups, series, log, |g, s| {
                        value(rows, omega, full[g], &load, &series[s], of)
                    });
                }
            }
        }
    }
}

fn over_load(out: &mut String, rows: &[&Row], series: &[String]) {
    let names: Vec<String> = distinct(rows, |r| &r.load).into_iter().filter(|l| load(l).is_some()).collect();
    let loads: Vec<f64> = names.iter().filter_map(|l| load(l)).collect();
    for workload in distinct(rows, |r| &r.workload) {
        for omega in OMEGAS {
            let plots: [Plot; 3] = [
                ("goodput, % of requests", false, |r| r.report.goodput_share * 100.0),
                ("TTFT p99, s", true, |r| r.report.ttft_s.p99),
                ("TPOT p99, ms", true, |r| r.report.tpot_s.p99 * 1e3),
            ];
            for (title, log, of) in plots {
                let under = format!("{workload} · over load · emulated, ω = {omega}");
                *out += &lines([title, &under], &loads, series, log, |l, s| {
                    value(rows, omega, &workload, &names[l], &series[s], of)
                });
            }
        }
    }
}

fn table(out: &mut String, group: &[&Row]) {
    let first = group[0];
    let _ = write!(
        out,
        "<h3>{}, {} · emulated, ω = {}</h3><p class=\"c\">Ideal time-sharing bound: {:.1} tok/s</p><div class=\"w\"><table><tr><th></th>",
        escape(&first.workload),
        first.load,
        first.omega,
        first.ideal_tokens_per_s
    );
    let mut before = "";
    for (title, _) in COLUMNS {
        // "p99" belongs to the quantity before it.
        let (name, part) = if title.starts_with('p') { (before, title) } else { (title, "") };
        let _ = write!(out, "<th>{name} {part}</th>");
        before = name;
    }
    *out += "</tr>";
    for row in group {
        let _ = write!(out, "<tr><td>{}</td>", escape(&row.contender));
        COLUMNS.iter().for_each(|(_, value)| _ = write!(out, "<td>{:.3}</td>", value(row)));
        *out += "</tr>";
    }
    *out += "</table></div>";
}

/// How many requirements are met, by requirement, and the cases that miss one.
fn summary(out: &mut String, bars: &[Bar]) {
    if bars.is_empty() {
        return;
    }
    let met = bars.iter().filter(|b| b.met()).count();
    let _ = write!(
        out,
        "<h2>phase meets {met} of {} requirements</h2><div class=\"w\"><table><tr><th>requirement</th><th>wanted</th>\
         <th>cases met</th><th class=\"l\">tightest case</th><th>there</th><th>oracle there</th></tr>",
        bars.len()
    );
    let oracle = |bar: &Bar| bar.oracle.map_or("–".to_owned(), |o| format!("{o:.3}"));
    for summary in Summary::of(bars) {
        let (met, of) = (summary.met(), summary.bars.len());
        let class = if met < of { " class=\"no\"" } else { "" };
        let Some(worst) = summary.worst() else { continue };
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{}</td><td{class}>{met} of {of}</td><td class=\"l\">{}</td><td>{:.3}</td><td>{}</td></tr>",
            escape(summary.name),
            wanted(worst),
            escape(&worst.case),
            worst.value,
            oracle(worst)
        );
    }
    *out += "</table></div>";
    let missed: Vec<&Bar> = bars.iter().filter(|b| !b.met()).collect();
    if !missed.is_empty() {
        *out += "<h3>Missed</h3><p class=\"c\">The oracle knows every arrival and length, has no operator boundaries and pays \
                 nothing for changing over; it is a good schedule, not a proven optimum.</p><div class=\"w\"><table>\
                 <tr><th>case</th><th class=\"l\">requirement</th><th>phase</th><th>wanted</th><th>oracle</th></tr>";
        for bar in missed {
            let _ = write!(
                out,
                "<tr><td>{}</td><td class=\"l\">{}</td><td class=\"no\">{:.3}</td><td>{}</td><td>{}</td></tr>",
                escape(&bar.case),
                escape(bar.name),
                bar.value,
                wanted(bar),
                oracle(bar)
            );
        }
        *out += "</table></div>";
    }
}

fn wanted(bar: &Bar) -> String {
    format!("{} {}", if bar.at_least { "≥" } else { "≤" }, bar.want)
}

/// Every requirement in every case.
fn requirements(out: &mut String, bars: &[Bar]) {
    if bars.is_empty() {
        return;
    }
    *out += "<h2>Requirements, case by case</h2><details><summary>All of them</summary><div class=\"w\"><table><tr><th>case</th>\
             <th class=\"l\">requirement</th><th>phase</th><th>wanted</th><th></th></tr>";
    for bar in bars {
        let verdict = if bar.met() { "<td>met</td>" } else { "<td class=\"no\">missed</td>" };
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"l\">{}</td><td>{:.3}</td><td>{}</td>{verdict}</tr>",
            escape(&bar.case),
            escape(bar.name),
            bar.value,
            wanted(bar)
        );
    }
    *out += "</table></div></details>";
}

#[cfg(test)]
mod tests {
    use super::*;
    use sim::Report;

    #[test]
    fn the_page_stands_alone_and_names_the_overlap() {
        let row = |experiment, omega, load: &str| Row {
            experiment,
            workload: "256/256, 4 slots".into(),
            load: load.into(),
            omega,
            contender: "phase".into(),
            report: Report::default(),
            ideal_tokens_per_s: 1.0,
        };
        let rows: Vec<Row> =
            OMEGAS.iter().flat_map(|&o| [row('a', o, "at once"), row('b', o, "50 %"), row('b', o, "80 %")]).collect();
        let bar = Bar { name: "x", case: "y".into(), value: 1.0, want: 2.0, at_least: true, oracle: Some(1.5) };
        let page = page(&rows, &[bar]);
        for omega in OMEGAS {
            assert!(page.contains(&format!("emulated, ω = {omega}")));
        }
        assert!(page.contains("parked until a slot frees") && page.contains("phase meets 0 of 1 requirements"));
        let first = page.find("<h2>").map(|at| &page[at..]).unwrap();
        assert!(first.starts_with("<h2>phase meets"), "the summary comes first");
        for outside in ["http", "src=", "<script", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }

    #[test]
    fn everyone_who_can_take_part_has_a_colour() {
        use super::super::{contender, workload};
        for case in workload::tenants(true).unwrap().iter().chain(&workload::traces(true).unwrap()) {
            for name in contender::all(case).into_iter().map(|c| c.name()) {
                assert!(COLOURS.iter().any(|(of, _)| *of == name), "{name}");
            }
        }
    }
}
