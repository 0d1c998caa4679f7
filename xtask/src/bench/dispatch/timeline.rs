//! `--trace FILE`: what `phase` does in one of the cases, as a timeline.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context, Result};
use explain::about::SessionName;
use explain::{About, Timeline, chrome};
use sched::Nanos;
use sched::dispatch::{Record, RecordLimits};
use sched::policy::PolicyName;

use super::contender::Contender;
use super::workload::Case;

/// The end of the run is kept: some 400,000 operators.
const RECORD_BYTES_MAX: usize = 32 << 20;
/// Largest file.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Writes the first case at ω = 0.5, or the first of all.
pub fn write(cases: &[Case], path: &Path) -> Result<()> {
    let case = cases.iter().find(|c| c.omega == 0.5).or(cases.first()).context("--trace: no case is run")?;
    let mut setup = Contender::Policy(PolicyName::Phase).setup(case);
    setup.record = Some(RecordLimits { bytes_max: RECORD_BYTES_MAX, span: Nanos::MAX });
    let run = sim::run(&setup, &case.requests);
    let about = About {
        device: format!("emulated {}, virtual time, omega={}", setup.profile.name, case.omega),
        sessions: (1..=setup.engines.len() as u64)
            .map(|session| SessionName { session, pid: 0, process: "modelled engine".to_owned() })
            .collect(),
    };
    let recording = run.recordings.first().context("the simulation has no device")?;
    let timeline = Timeline::of(&Record::from_bytes(recording.to_bytes(&about.to_json()))?)?;
    let mut out = BufWriter::new(File::create(path).with_context(|| format!("writing {}", path.display()))?);
    chrome::write(&timeline, &mut out, FILE_BYTES_MAX)?;
    out.flush().with_context(|| format!("writing {}", path.display()))?;
    println!(
        "timeline of {}, {}, \u{3c9} = {}, phase: {} ({} operators, {} hold-backs, {} requests; opens in ui.perfetto.dev)",
        case.workload,
        case.load,
        case.omega,
        path.display(),
        timeline.operators.len(),
        timeline.holds.len(),
        timeline.requests.len(),
    );
    Ok(())
}
