//! One picture of one daemon, for terminals from 80×24 on: what does not fit is cut at the bottom and at the right, the least
//! important last.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table};

use super::view::{PhaseRow, View};

/// What the keyboard is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Asking {
    /// Nothing.
    #[default]
    Nothing,
    /// Which policy.
    Policy,
    /// Whether really this one.
    Confirm(String),
}

/// Policies that a key changes to, with their default parameters.
pub const POLICIES: [&str; 7] = ["passthrough", "fifo", "quota", "priority", "static-ratio", "core-split", "phase"];

fn phase_colour(phase: &str) -> Color {
    match phase {
        "prefill" => Color::Yellow,
        "decode" => Color::Green,
        "mixed" => Color::Magenta,
        _ => Color::Gray,
    }
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

pub(super) fn millis(ms: Option<f64>) -> String {
    match ms {
        None => "-".to_owned(),
        Some(ms) if ms < 10.0 => format!("{ms:.1}"),
        Some(ms) => format!("{ms:.0}"),
    }
}

/// At most four figures and a unit.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

pub(super) fn count(n: f64) -> String {
    match n {
        n if n >= 1e6 => format!("{:.1}M", n / 1e6),
        n if n >= 1e4 => format!("{:.0}k", n / 1e3),
        n if n >= 10.0 || n == 0.0 => format!("{n:.0}"),
        n => format!("{n:.1}"),
    }
}

pub(super) fn uptime(s: f64) -> String {
    let s = s as u64;
    format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

fn bar(part: f64, width: usize) -> String {
    let filled = (part.clamp(0.0, 1.0) * width as f64).round() as usize;
    format!("{}{}", "█".repeat(filled), "░".repeat(width - filled))
}

fn dim(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Style::new().dark_gray())
}

fn head(titles: impl IntoIterator<Item = &'static str>) -> Row<'static> {
    Row::new(titles.into_iter().map(Cell::from)).style(Style::new().bold().underlined())
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

/// A table of the columns that have room for their width, from the left: a figure without its first digit would be another.
fn table(frame: &mut Frame<'_>, area: Rect, titles: &[&'static str], widths: &[u16], rows: Vec<Vec<Cell<'static>>>) {
    let mut used = 0;
    let fits = |width: &&u16| {
        used += **width + 1;
        used <= area.width + 1
    };
    let columns = widths.iter().take_while(fits).count();
    let rows = rows.into_iter().map(|cells| Row::new(cells.into_iter().take(columns)));
    let widths = widths[..columns].iter().map(|&w| Constraint::Length(w));
    frame.render_widget(
        Table::new(rows, widths).header(head(titles[..columns].iter().copied())).column_spacing(1),
        area,
    );
}

/// Draws the selected daemon; all of them in a line each if there are several.
pub fn draw(frame: &mut Frame<'_>, views: &[View], selected: usize, asking: &Asking, message: &str) {
    let Some(view) = views.get(selected) else { return };
    let area = frame.area();
    let list = if views.len() > 1 { views.len().min(6) as u16 + 1 } else { 0 };
    let phases = view.phases.iter().filter(|p| shown(p)).count().max(2) as u16 + 1;
    let holds = view.holds.len().clamp(1, 5) as u16 + 1;
    let [list_area, top, phase_area, request_area, hold_area, session_area, keys] = Layout::vertical([
        Constraint::Length(list),
        Constraint::Length(6),
        Constraint::Length(phases + 1),
        Constraint::Length(3),
        Constraint::Length(holds + 1),
        Constraint::Min(2),
        Constraint::Length(1),
    ])
    .areas(area);
    if list > 0 {
        daemons(frame, list_area, views, selected);
    }
    overview(frame, top, view);
    phase_table(frame, phase_area, view);
    requests(frame, request_area, view);
    hold_table(frame, hold_area, view);
    session_table(frame, session_area, view);
    let several = if views.len() > 1 { "   tab next daemon" } else { "" };
    let text = if message.is_empty() { format!("q quit   p policy{several}") } else { message.to_owned() };
    frame.render_widget(Line::from(dim(text)), keys);
    ask(frame, area, asking, view);
}

fn daemons(frame: &mut Frame<'_>, area: Rect, views: &[View], selected: usize) {
    let lines = views.iter().enumerate().map(|(i, v)| {
        let state = match &v.lost {
            Some(_) => "lost".red().bold(),
            None => Span::raw(format!("busy {:>5}  queued {:>6}  policy {}", percent(v.busy), v.queued, v.policy)),
        };
        let mark = if i == selected { "▶ " } else { "  " };
        Line::from(vec![Span::raw(mark), Span::raw(format!("{:<22}", v.admin)).bold(), state])
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
}

fn overview(frame: &mut Frame<'_>, area: Rect, v: &View) {
    let mut first = vec![Span::raw(v.admin.clone()).bold(), Span::raw("  ")];
    match &v.lost {
        Some(why) => {
            first.push(Span::styled(format!("lost: {why}"), Style::new().red().bold()));
            first.push(dim("  below: its last answer"));
        }
        None => first.push(Span::raw(format!("up {}", uptime(v.uptime_s)))),
    }
    if let Some(recording) = &v.recording {
        first.push(Span::styled(format!("  ● recording {recording}"), Style::new().red()));
    }
    // The other policies have no use for targets.
    let targets = match v.policy.as_str() {
        "phase" => format!("  TPOT ≤ {:.0} ms, TTFT ≤ {:.0} ms   ", v.tpot_target_ms, v.ttft_target_ms),
        _ => "   ".to_owned(),
    };
    let policy = Line::from(vec![Span::raw(v.policy.clone()).bold().cyan(), dim(targets), Span::raw(v.device.clone())]);
    let memory = v.memory_used_bytes as f64 / (v.memory_total_bytes.max(1)) as f64;
    let width = if area.width >= 110 { 20 } else { 10 };
    let device = Line::from(vec![
        Span::raw(format!("busy {:>5} ", percent(v.busy))),
        Span::raw(bar(v.busy, width)).green(),
        Span::raw(format!("  both phases {:>5}", percent(v.together))),
        Span::raw(format!("  memory {} of {} ", bytes(v.memory_used_bytes), bytes(v.memory_total_bytes))),
        Span::raw(bar(memory, width)).blue(),
    ]);
    let work = Line::from(vec![
        Span::raw(format!("on device {}  queued {}  calls waiting {}", v.in_flight, v.queued, v.calls_waiting)),
        Span::raw(format!("  round trips/s {}  faults {}", count(v.round_trips_per_s), v.faults)),
    ]);
    let steps = Line::from(vec![
        Span::raw(format!("decode steps/s {}  late {}", count(v.decode_steps_per_s), percent(v.late))),
        Span::raw(format!("   co-runs/s {}  overloads {}", count(v.coruns_per_s), v.overloads)),
    ]);
    frame.render_widget(Paragraph::new(vec![Line::from(first), policy, device, work, steps]), area);
}

/// Phases that have never been seen are left out, but for the two that serving has.
fn shown(p: &PhaseRow) -> bool {
    matches!(p.phase.as_str(), "prefill" | "decode") || p.operators_per_s > 0.0 || p.queued + p.in_flight > 0
}

fn phase_table(frame: &mut Frame<'_>, area: Rect, v: &View) {
    let rows = v.phases.iter().filter(|p| shown(p)).map(|p| {
        vec![
            Cell::from(p.phase.clone()).style(Style::new().fg(phase_colour(&p.phase)).bold()),
            right(p.in_flight.to_string()),
            right(p.queued.to_string()),
            right(count(p.operators_per_s)),
            right(percent(p.device)),
            right(percent(p.held)),
        ]
    });
    let titles = ["phase", " on device", "    queued", "   operators/s", "    device", "      held"];
    table(frame, area, &titles, &[10, 10, 10, 14, 10, 10], rows.collect());
}

fn requests(frame: &mut Frame<'_>, area: Rect, v: &View) {
    let r = &v.requests;
    let lines = vec![
        Line::from(vec![
            Span::raw("requests").bold().underlined(),
            Span::raw(format!("  waiting {}  prefill {}  decode {}", r.waiting, r.prefilling, r.decoding)),
            Span::raw(format!("  finished/s {}  aborted {}", count(r.finished_per_s), r.aborted)),
            Span::raw(format!("  hints/s {}", count(v.hints_per_s))),
        ]),
        Line::from(vec![
            Span::raw(format!("TTFT p50 {} p99 {} ms", millis(r.ttft_p50_ms), millis(r.ttft_p99_ms))),
            Span::raw(format!("   TPOT p50 {} p99 {} ms", millis(r.tpot_p50_ms), millis(r.tpot_p99_ms))),
            dim("   last minute, from hints"),
        ]),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn hold_table(frame: &mut Frame<'_>, area: Rect, v: &View) {
    let mut holds: Vec<_> = v.holds.iter().collect();
    holds.sort_by(|a, b| b.time.total_cmp(&a.time));
    let rows = holds.into_iter().map(|h| {
        let now = if h.now > 0 { right(h.now.to_string()).style(Style::new().red().bold()) } else { right("-".into()) };
        vec![
            Cell::from(h.reason.clone()),
            now,
            right(count(h.per_s)),
            right(percent(h.time)),
            right(millis(Some(h.longest_ms))),
            right(h.expired.to_string()),
        ]
    });
    let titles = ["held back because", "  now", "    per s", "     time", "   longest ms", "   expired"];
    table(frame, area, &titles, &[17, 5, 9, 9, 13, 10], rows.collect());
}

fn session_table(frame: &mut Frame<'_>, area: Rect, v: &View) {
    let wide = area.width >= 110;
    let rows = v.sessions.iter().map(|s| {
        let name = if s.back_pressure { format!("{} (full)", s.process) } else { s.process.clone() };
        let mut cells = vec![
            right(s.session.to_string()),
            right(s.pid.to_string()),
            Cell::from(name),
            right(bytes(s.memory_bytes)),
            right(s.queued.to_string()),
            right(count(s.prefill_per_s)),
            right(count(s.decode_per_s)),
            Cell::from(s.held.clone().unwrap_or_default()).style(Style::new().red()),
        ];
        if wide {
            cells.extend([
                right(s.in_flight.to_string()),
                right(count(s.round_trips_per_s)),
                right(millis(s.requests.ttft_p50_ms)),
                right(millis(s.requests.tpot_p50_ms)),
            ]);
        }
        cells
    });
    let mut widths = vec![4, 7, 14, 9, 6, 8, 8, 16];
    let mut titles = vec!["sess", "    pid", "process", "   memory", "queued", "pre op/s", "dec op/s", "held because"];
    if wide {
        widths.extend([9, 8, 7, 7]);
        titles.extend(["on device", "r. tr./s", "TTFT ms", "TPOT ms"]);
        widths[2] = 22;
    }
    table(frame, area, &titles, &widths, rows.collect());
}

fn ask(frame: &mut Frame<'_>, area: Rect, asking: &Asking, view: &View) {
    let lines: Vec<Line<'_>> = match asking {
        Asking::Nothing => return,
        Asking::Policy => {
            let names = POLICIES.iter().enumerate().map(|(i, name)| Line::from(format!(" {}  {name}", i + 1)));
            names.chain([Line::from(" any other key: leave it")]).collect()
        }
        Asking::Confirm(name) => vec![
            Line::from(format!(" {} → {name}, with its default parameters?", view.policy)),
            Line::from(" y  change it   any other key: leave it"),
        ],
    };
    let (width, height) = (60.min(area.width), (lines.len() as u16 + 2).min(area.height));
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    let title = format!(" policy of {} ", view.admin);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), place);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::view::{HoldRow, RequestRow, SessionRow};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn busy() -> View {
        let phase = |name: &str, queued| PhaseRow {
            phase: name.into(),
            in_flight: 1,
            queued,
            operators_per_s: 12_345.0,
            device: 0.61,
            held: 0.25,
        };
        let hold = |reason: &str, time| HoldRow {
            reason: reason.into(),
            now: 1,
            per_s: 3.2,
            time,
            longest_ms: 91.4,
            expired: 0,
        };
        let requests =
            RequestRow { decoding: 31, ttft_p50_ms: Some(82.4), ttft_p99_ms: Some(574.0), ..RequestRow::default() };
        let session = |session, process: &str| SessionRow {
            session,
            pid: 41_234,
            process: process.into(),
            memory_bytes: 41 << 30,
            queued: 2048,
            decode_per_s: 9_100.0,
            held: Some("decode_has_slack".into()),
            requests: requests.clone(),
            ..SessionRow::default()
        };
        View {
            admin: "127.0.0.1:9400".into(),
            device: "emulated Ascend910B3 (timing, paced, ω = 0.5)".into(),
            policy: "phase".into(),
            tpot_target_ms: 50.0,
            ttft_target_ms: 1000.0,
            uptime_s: 3_725.0,
            busy: 0.87,
            together: 0.32,
            memory_used_bytes: 41 << 30,
            memory_total_bytes: 64 << 30,
            recording: Some("12/64 MiB".into()),
            phases: vec![phase("unknown", 3), phase("prefill", 341), phase("decode", 12), phase("mixed", 1)],
            holds: vec![hold("decode_due", 0.1), hold("decode_has_slack", 0.4), hold("prefill_order", 0.01)],
            requests: requests.clone(),
            sessions: vec![session(1, "engine"), session(2, "python3.12-with-a-long-name")],
            ..View::default()
        }
    }

    fn rendered(width: u16, height: u16, views: &[View], asking: &Asking) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, views, 0, asking, "")).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(row).collect()
    }

    #[test]
    fn everything_that_matters_fits_80_by_24() {
        let lines = rendered(80, 24, &[busy()], &Asking::Nothing);
        let text = lines.join("\n");
        for part in [
            "127.0.0.1:9400  up 1:02:05  ● recording 12/64 MiB",
            "phase  TPOT ≤ 50 ms, TTFT ≤ 1000 ms",
            "busy  87 %",
            "both phases  32 %",
            "memory 41.0 GiB of 64.0 GiB",
            "TTFT p50 82 p99 574 ms   TPOT p50 - p99 - ms",
            "python3.12-wit",
            "q quit   p policy",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let row =
            |word: &str| lines.iter().position(|l| l.starts_with(word)).unwrap_or_else(|| panic!("{word}:\n{text}"));
        let cells = |word: &str| lines[row(word)].split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(cells("prefill"), ["prefill", "1", "341", "12k", "61", "%", "25", "%"]);
        assert_eq!(cells("decode_has_slack"), ["decode_has_slack", "1", "3.2", "40", "%", "91", "0"]);
        assert!(row("decode_has_slack") < row("decode_due"), "what holds longest comes first:\n{text}");
        assert!(text.contains("decode_has_slack\n") || lines.iter().any(|l| l.ends_with("decode_has_slack")), "{text}");
    }

    #[test]
    fn wide_terminals_show_latency_of_each_session() {
        let text = rendered(140, 40, &[busy()], &Asking::Nothing).join("\n");
        assert!(text.contains("TTFT ms TPOT ms") && text.contains("python3.12-with-a-long"), "{text}");
    }

    #[test]
    fn a_lost_daemon_says_so_and_keeps_its_last_picture() {
        let lost = View { lost: Some("connection refused".into()), ..busy() };
        let text = rendered(80, 24, &[lost, busy()], &Asking::Nothing).join("\n");
        assert!(text.contains("▶ 127.0.0.1:9400        lost"), "{text}");
        assert!(text.contains("lost: connection refused") && text.contains("busy  87 %"), "{text}");
        assert!(text.contains("tab next daemon"), "{text}");
    }

    #[test]
    fn a_policy_is_changed_after_two_keys_only() {
        let text = rendered(80, 24, &[busy()], &Asking::Policy).join("\n");
        assert!(text.contains("7  phase") && text.contains("policy of 127.0.0.1:9400"), "{text}");
        let text = rendered(80, 24, &[busy()], &Asking::Confirm("fifo".into())).join("\n");
        assert!(text.contains("phase → fifo") && text.contains("y  change it"), "{text}");
    }

    #[test]
    fn narrow_terminals_show_fewer_figures_and_none_in_part() {
        let lines = rendered(60, 24, &[busy()], &Asking::Nothing);
        let cells = |word: &str| {
            let line = lines.iter().find(|l| l.contains(word)).unwrap_or_else(|| panic!("{word}: {lines:?}"));
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(cells("41234"), ["1", "41234", "engine", "41.0", "GiB", "2048", "0"]);
        assert_eq!(cells("prefill  "), ["prefill", "1", "341", "12k", "61", "%"]);
        assert_eq!(cells("decode_due"), ["decode_due", "1", "3.2", "10", "%", "91"]);
    }

    #[test]
    fn small_terminals_do_not_panic() {
        for (width, height) in [(1, 1), (20, 5), (79, 10)] {
            rendered(width, height, &[busy(), View::default()], &Asking::Policy);
        }
    }

    #[test]
    fn figures_are_short() {
        for (n, want) in
            [(0, "0 B"), (999, "999 B"), (1 << 20, "1.0 MiB"), (1000 << 20, "1.0 GiB"), (64 << 30, "64.0 GiB")]
        {
            assert_eq!(bytes(n), want);
        }
        for (n, want) in [(0.0, "0"), (3.24, "3.2"), (9_999.0, "9999"), (12_345.0, "12k"), (2.5e6, "2.5M")] {
            assert_eq!(count(n), want);
        }
    }
}
