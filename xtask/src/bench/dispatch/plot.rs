//! Two kinds of plot as inline SVG: bars by group, lines over load. Colours come from the page's style sheet, by series.

use std::fmt::Write;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 44.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 44.0;
/// Decades that a logarithmic axis spans at most.
const DECADES_MAX: f64 = 5.0;

/// Text inside markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Who is drawn last and thick.
const SHOWN_OFF: &str = "phase";

/// A vertical axis.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Between two marks, where it is not logarithmic.
    step: f64,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let finite: Vec<f64> = values.filter(|v| v.is_finite() && (!log || *v > 0.0)).collect();
        let high = finite.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        if !log {
            // The smallest round step of which five at most reach the top.
            let power = 10f64.powf((high / 5.0).log10().floor());
            let step =
                [1.0, 2.0, 2.5, 5.0, 10.0].map(|s| s * power).into_iter().find(|s| s * 5.0 >= high * (1.0 - 1e-9));
            let step = step.unwrap_or(high);
            return Self { low: 0.0, high: (high / step - 1e-9).ceil() * step, log, step };
        }
        let low = finite.iter().copied().fold(high, f64::min);
        let (low, high) = (low.log10().floor(), high.log10().ceil());
        Self { low: low.max(high - DECADES_MAX), high: high.max(low + 1.0), log, step: 1.0 }
    }

    fn y(&self, value: f64) -> f64 {
        let value = if self.log { value.max(f64::MIN_POSITIVE).log10() } else { value };
        let part = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP)
    }

    fn marks(&self) -> Vec<f64> {
        if self.log {
            return (self.low as i32..=self.high as i32).map(|d| 10f64.powi(d)).collect();
        }
        (0..=5).map(|i| self.step * f64::from(i)).filter(|mark| *mark <= self.high * (1.0 + 1e-9)).collect()
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        _ => format!("{value:.3}").trim_end_matches('0').to_owned(),
    }
}

fn frame([title, under]: [&str; 2], axis: &Axis) -> String {
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\"><title>{0} · {1}</title><text class=\"t\" x=\"4\" y=\"15\">{0}</text>\
         <text class=\"m\" x=\"4\" y=\"31\">{1}</text>",
        escape(title),
        escape(under)
    );
    for mark in axis.marks() {
        let y = axis.y(mark);
        let _ = write!(
            out,
            "<line class=\"g\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"m\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT - 5.0,
            y + 4.0,
            number(mark)
        );
    }
    out
}

/// Bars: a value for each series in each group. The title comes in two lines; a series' name names its colour.
pub fn bars(
    title: [&str; 2],
    groups: &[String],
    series: &[String],
    log: bool,
    value: impl Fn(usize, usize) -> f64,
) -> String {
    let all = (0..groups.len()).flat_map(|g| (0..series.len()).map(move |s| (g, s)));
    let axis = Axis::of(all.map(|(g, s)| value(g, s)), log);
    let mut out = frame(title, &axis);
    let step = (WIDTH - LEFT) / groups.len().max(1) as f64;
    let bar = step * 0.86 / series.len().max(1) as f64;
    for (g, group) in groups.iter().enumerate() {
        let start = LEFT + step * (g as f64 + 0.07);
        for (s, name) in series.iter().enumerate() {
            let v = value(g, s);
            if !v.is_finite() {
                continue;
            }
            let (x, y) = (start + bar * s as f64, axis.y(v));
            let _ = write!(
                out,
                "<rect class=\"f-{name}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{} · {name}: {}</title></rect>",
                (bar - 1.0).max(0.5),
                (HEIGHT - BOTTOM - y).max(0.0),
                escape(group),
                number(v),
                name = escape(name)
            );
        }
        let _ = write!(
            out,
            "<text class=\"m\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT + step * (g as f64 + 0.5),
            HEIGHT - BOTTOM + 16.0,
            escape(group)
        );
    }
    out + "</svg>"
}

/// Lines over loads in per cent.
pub fn lines(
    title: [&str; 2],
    loads: &[f64],
    series: &[String],
    log: bool,
    value: impl Fn(usize, usize) -> f64,
) -> String {
    let all = (0..loads.len()).flat_map(|l| (0..series.len()).map(move |s| (l, s)));
    let axis = Axis::of(all.map(|(l, s)| value(l, s)), log);
    let mut out = frame(title, &axis);
    let (first, last) = (loads.first().copied().unwrap_or(0.0), loads.last().copied().unwrap_or(1.0));
    let x = |load: f64| LEFT + 14.0 + (load - first) / (last - first).max(1e-9) * (WIDTH - LEFT - 34.0);
    let (last, others): (Vec<_>, Vec<_>) = series.iter().enumerate().partition(|(_, name)| *name == SHOWN_OFF);
    for (s, name) in others.into_iter().chain(last) {
        let kind = match name.as_str() {
            SHOWN_OFF => " e",
            name if name.starts_with("oracle") => " d",
            _ => "",
        };
        let name = escape(name);
        let points: Vec<(f64, f64, f64)> =
            loads.iter().enumerate().map(|(l, &load)| (x(load), axis.y(value(l, s)), value(l, s))).collect();
        let path: Vec<String> = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(out, "<polyline class=\"s-{name}{kind}\" points=\"{}\"/>", path.join(" "));
        for ((x, y, v), load) in points.iter().zip(loads) {
            let _ = write!(
                out,
                "<circle class=\"f-{name}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>{name} at {load:.0} %: {}</title></circle>",
                number(*v)
            );
        }
    }
    for &load in loads {
        let _ = write!(
            out,
            "<text class=\"m\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{load:.0} %</text>",
            x(load),
            HEIGHT - BOTTOM + 16.0
        );
    }
    out + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_values_stand_higher_on_both_axes() {
        for log in [false, true] {
            let axis = Axis::of([0.2, 40.0].into_iter(), log);
            assert!(axis.y(40.0) < axis.y(0.2) && axis.y(0.2) <= HEIGHT - BOTTOM && axis.y(40.0) >= TOP, "log: {log}");
        }
        let decades = Axis::of([0.2, 40.0].into_iter(), true);
        assert_eq!(decades.marks(), [0.1, 1.0, 10.0, 100.0]);
    }

    #[test]
    fn marks_are_round_and_reach_the_largest_value() {
        for (largest, want) in [(100.0, [0.0, 20.0, 100.0]), (6433.0, [0.0, 2000.0, 8000.0]), (0.61, [0.0, 0.2, 0.8])] {
            let marks = Axis::of([largest].into_iter(), false).marks();
            let got = [marks[0], marks[1], marks[marks.len() - 1]];
            assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-9), "{largest}: {marks:?}");
        }
    }

    #[test]
    fn every_value_is_drawn_and_named() {
        let series = ["phase".to_owned(), "a<b".to_owned()];
        let groups = ["x".to_owned(), "y".to_owned()];
        let svg = bars(["title", "under"], &groups, &series, false, |g, s| (g + s) as f64);
        assert_eq!((svg.matches("<rect").count(), svg.matches("a&lt;b: ").count()), (4, 2));
        let svg = lines(["title", "under"], &[50.0, 80.0], &series, true, |l, _| 1.0 + l as f64);
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (2, 4));
        assert!(svg.find("s-phase e") > svg.find("s-a&lt;b"), "drawn last, over the others");
    }
}
