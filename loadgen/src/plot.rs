//! Plots as SVG text: axes, lines, bands, dots. Colours come from the page's style, by class. Pure.

use std::fmt::Write;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 318.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
/// Room for what is along y, which stands above its numbers: beside them, a phone's larger type would cover them.
const TOP: f64 = 30.0;
const BOTTOM: f64 = 42.0;
/// Most points of one series; more are thinned evenly, first and last kept.
const POINTS_MAX: usize = 1500;

/// Share of the height that stays free above the highest point: a line along the edge would look like part of it.
const HEADROOM: f64 = 0.05;
/// A logarithmic axis with fewer ticks than this takes those of a linear one.
const TICKS_MIN: usize = 3;

/// How a series is drawn.
pub enum Shape {
    /// A line through the points.
    Line,
    /// A filled band between these and the series' points.
    Band(Vec<(f64, f64)>),
    /// A dot a point.
    Dots,
}

/// Points with a name.
pub struct Series {
    /// Shown in the legend; empty for none.
    pub name: String,
    /// Style class: `a`, `b`, `c` or `d`.
    pub class: char,
    /// How it is drawn.
    pub shape: Shape,
    /// The points, ascending in x for lines and bands.
    pub points: Vec<(f64, f64)>,
}

/// One plot.
pub struct Plot<'a> {
    /// What is along x.
    pub x: &'a str,
    /// What is along y.
    pub y: &'a str,
    /// x is logarithmic.
    pub log_x: bool,
    /// What is drawn, first to last.
    pub series: Vec<Series>,
}

/// One axis: data to picture.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    fn of(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let (low, high) = values
            .filter(|v| v.is_finite() && (!log || *v > 0.0))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        match (low.is_finite(), log) {
            (false, _) => Self { low: 1.0, high: 10.0, log },
            (true, true) => Self { low, high: if high > low { high } else { low * 2.0 }, log },
            (true, false) => {
                let low = low.min(0.0);
                Self { low, high: if high > low { high } else { low + 1.0 }, log }
            }
        }
    }

    /// 0 to 1.
    fn part(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.log { v.max(self.low).ln() } else { v };
        ((scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))).clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
            let steps: &[f64] = if decades.clone().count() > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let all = decades.flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
            let round: Vec<f64> = all.filter(|t| (self.low..=self.high).contains(t)).collect();
            // A narrow range has hardly any power of ten in it.
            if round.len() >= TICKS_MIN {
                return round;
            }
        }
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|s| s * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let first = (self.low / step).ceil() as i64;
        (first..).map(|i| i as f64 * step).take_while(|t| *t <= self.high * (1.0 + 1e-9)).collect()
    }
}

impl Plot<'_> {
    /// The plot as an `svg` element.
    pub fn svg(&self) -> String {
        let all = || {
            self.series.iter().flat_map(|s| {
                let band = match &s.shape {
                    Shape::Band(other) => other.as_slice(),
                    _ => &[],
                };
                s.points.iter().chain(band)
            })
        };
        let (x, mut y) = (Axis::of(all().map(|p| p.0), self.log_x), Axis::of(all().map(|p| p.1), false));
        y.high += (y.high - y.low) * HEADROOM;
        let at = |p: &(f64, f64)| {
            let across = LEFT + x.part(p.0) * (WIDTH - LEFT - RIGHT);
            (across, TOP + (1.0 - y.part(p.1)) * (HEIGHT - TOP - BOTTOM))
        };
        let mut out =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} over {}\">", self.y, self.x);
        let (floor, end) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for tick in x.ticks() {
            let (across, _) = at(&(tick, y.low));
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{across:.1} {TOP}V{floor}\"/><text class=\"tick\" x=\"{across:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                floor + 19.0,
                short(tick)
            );
        }
        for tick in y.ticks() {
            let (_, down) = at(&(x.low, tick));
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {down:.1}H{end}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                down + 4.0,
                short(tick)
            );
        }
        for series in &self.series {
            let points = |points: &[(f64, f64)], backwards: bool| {
                let kept: Vec<String> = thin(points).map(at).map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
                if backwards { kept.into_iter().rev().collect::<Vec<_>>().join("L") } else { kept.join("L") }
            };
            let class = series.class;
            let _ = match &series.shape {
                _ if series.points.is_empty() => Ok(()),
                Shape::Line => write!(out, "<path class=\"line {class}\" d=\"M{}\"/>", points(&series.points, false)),
                Shape::Band(other) => {
                    let (there, back) = (points(&series.points, false), points(other, true));
                    write!(out, "<path class=\"band {class}\" d=\"M{there}L{back}Z\"/>")
                }
                Shape::Dots => thin(&series.points).map(at).try_for_each(|(x, y)| {
                    write!(out, "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\"/>")
                }),
            };
        }
        let _ = write!(
            out,
            "<text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text><text class=\"label\" x=\"4\" y=\"16\">{}</text></svg>",
            (LEFT + end) / 2.0,
            HEIGHT - 6.0,
            self.x,
            self.y
        );
        out + &self.legend()
    }

    fn legend(&self) -> String {
        let named = self.series.iter().filter(|s| !s.name.is_empty());
        let keys: Vec<String> =
            named.map(|s| format!("<span><i class=\"key {}\"></i>{}</span>", s.class, s.name)).collect();
        if keys.is_empty() { String::new() } else { format!("<p class=\"legend\">{}</p>", keys.join(" ")) }
    }
}

fn thin(points: &[(f64, f64)]) -> impl Iterator<Item = &(f64, f64)> {
    let step = points.len().div_ceil(POINTS_MAX).max(1);
    let last = points.len().saturating_sub(1);
    points.iter().enumerate().filter(move |(i, _)| i % step == 0 || *i == last).map(|(_, p)| p)
}

/// A number as a tick says it.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{}M", round(value / 1e6)),
        v if v >= 1e4 => format!("{}k", round(value / 1e3)),
        _ => round(value),
    }
}

fn round(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = |low, high, log| Axis { low, high, log }.ticks();
        assert_eq!(axis(0.0, 10.0, false), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(axis(3.0, 60.0, true), [5.0, 10.0, 20.0, 50.0]);
        let narrow: Vec<String> = axis(7.9, 8.3, true).into_iter().map(short).collect();
        assert_eq!(narrow, ["7.9", "8", "8.1", "8.2", "8.3"], "no power of ten is in it");
        assert_eq!([0.0, 0.25, 1500.0, 25_000.0, 3e6].map(short), ["0", "0.25", "1500", "25k", "3M"]);
    }

    #[test]
    fn any_data_gives_a_picture_without_nonsense() {
        for points in
            [vec![], vec![(0.0, 0.0)], vec![(5.0, 7.0), (5.0, 7.0)], (0..9000).map(|i| (f64::from(i), 1.0)).collect()]
        {
            for log_x in [false, true] {
                let dots = Series { name: "n".into(), class: 'a', shape: Shape::Dots, points: points.clone() };
                let band = Series {
                    name: String::new(),
                    class: 'b',
                    shape: Shape::Band(points.clone()),
                    points: points.clone(),
                };
                let svg = Plot { x: "x", y: "y", log_x, series: vec![dots, band] }.svg();
                assert!(svg.starts_with("<svg") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                assert!(svg.matches("<circle").count() <= POINTS_MAX + 1);
            }
        }
    }
}
