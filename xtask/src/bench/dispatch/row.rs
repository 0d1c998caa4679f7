//! One measured row, as figures and as a console table.

use std::fmt::Write;

use sim::Report;

use crate::figures::Figures;

/// What one contender made of one case.
#[derive(Clone, Debug)]
pub struct Row {
    /// `a`, `b` or `c`.
    pub experiment: char,
    /// Workload, or the tenant of one.
    pub workload: String,
    /// Load.
    pub load: String,
    /// Overlap.
    pub omega: f64,
    /// Who served.
    pub contender: String,
    /// Its figures.
    pub report: Report,
    /// What no time-sharing schedule exceeds.
    pub ideal_tokens_per_s: f64,
}

/// Lower case, runs of anything but letters and digits as one underscore.
pub fn key(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    words.collect::<Vec<_>>().join("_").to_lowercase()
}

impl Row {
    /// Named values of the row; times in milliseconds unless the name says otherwise.
    pub fn values(&self) -> [(&'static str, f64); 17] {
        let r = &self.report;
        [
            ("ttft_mean_ms", r.ttft_s.mean * 1e3),
            ("ttft_p50_ms", r.ttft_s.p50 * 1e3),
            ("ttft_p99_ms", r.ttft_s.p99 * 1e3),
            ("tpot_slot_mean_ms", r.tpot_slot_s.mean * 1e3),
            ("tpot_slot_p99_ms", r.tpot_slot_s.p99 * 1e3),
            ("tpot_mean_ms", r.tpot_s.mean * 1e3),
            ("tpot_p50_ms", r.tpot_s.p50 * 1e3),
            ("tpot_p99_ms", r.tpot_s.p99 * 1e3),
            ("e2el_mean_ms", r.e2e_s.mean * 1e3),
            ("e2el_p99_ms", r.e2e_s.p99 * 1e3),
            ("stall_max_ms", r.stall_s.max * 1e3),
            ("stall_slot_max_ms", r.stall_slot_s.max * 1e3),
            ("output_tokens_per_s", r.tokens_per_s),
            ("requests_per_s", r.requests_per_s),
            ("goodput_requests_per_s", r.goodput_per_s),
            ("goodput_share", r.goodput_share),
            ("ideal_tokens_per_s", self.ideal_tokens_per_s),
        ]
    }

    /// Sets the row's figures, each under a name that says everything about it.
    pub fn figures(&self, figures: &mut Figures) {
        let (workload, load) = (key(&self.workload), key(&self.load));
        let prefix = format!("{}_{workload}_{load}_omega{}_{}", self.experiment, self.omega, key(&self.contender));
        for (name, value) in self.values() {
            figures.set(format!("{prefix}_{name}"), value);
        }
    }

    /// The case it belongs to.
    pub fn case(&self) -> (char, &str, &str, u64) {
        (self.experiment, &self.workload, &self.load, self.omega.to_bits())
    }
}

/// Columns of the tables: title and value.
pub type Column = (&'static str, fn(&Row) -> f64);
/// What tables show.
pub const COLUMNS: [Column; 12] = [
    ("TTFT mean s", |r| r.report.ttft_s.mean),
    ("p50", |r| r.report.ttft_s.p50),
    ("p99", |r| r.report.ttft_s.p99),
    ("TPOT slot ms", |r| r.report.tpot_slot_s.mean * 1e3),
    ("p99", |r| r.report.tpot_slot_s.p99 * 1e3),
    ("felt TPOT ms", |r| r.report.tpot_s.mean * 1e3),
    ("p99", |r| r.report.tpot_s.p99 * 1e3),
    ("E2E s", |r| r.report.e2e_s.mean),
    ("stall s", |r| r.report.stall_s.max),
    ("tok/s", |r| r.report.tokens_per_s),
    ("good req/s", |r| r.report.goodput_per_s),
    ("good %", |r| r.report.goodput_share * 100.0),
];

/// Stands beside the paper's workloads wherever they are shown.
pub const CAVEAT: &str = "With 4 decode slots a request whose first token is out early is parked until a slot frees. TPOT in the \
    slot leaves that time out, as the paper's tables do; counted from the first token it is far larger, and E2E latency does \
    not improve. A user should choose more decode slots (the rows with 256): these workloads isolate the head-of-line \
    blocking that dynamic dispatch removes.";

/// Every case as a table.
pub fn tables(rows: &[Row]) -> String {
    let mut out = String::new();
    for group in rows.chunk_by(|a, b| a.case() == b.case()) {
        let first = &group[0];
        let _ = writeln!(
            out,
            "\n({}) {}, {}: emulated Ascend910B3, ω = {}; ideal bound {:.1} tok/s",
            first.experiment, first.workload, first.load, first.omega, first.ideal_tokens_per_s
        );
        let _ = write!(out, "{:<18}", "");
        COLUMNS.iter().for_each(|(title, _)| _ = write!(out, " {title:>12}"));
        out.push('\n');
        for row in group {
            let _ = write!(out, "{:<18}", row.contender);
            COLUMNS.iter().for_each(|(_, value)| _ = write!(out, " {:>12.3}", value(row)));
            out.push('\n');
        }
    }
    if rows.iter().any(|r| r.experiment == 'a') {
        let _ = writeln!(out, "\n{CAVEAT}");
    }
    out += "Every figure is of an emulated device in virtual time: what its cost model says, not what silicon does.\n";
    out
}
