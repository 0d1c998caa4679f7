//! What an operator of the daemon sees: one consistent picture, taken between two turns of the loop.

use std::collections::BTreeMap;

use sched::dispatch::{HoldReason, SIZES, size_from};
use sched::{Nanos, Phase, PolicyConfig};
use serde::Serialize;

use crate::core::Core;
use crate::latency::ServedSnapshot;
use crate::occupancy::OccupancySnapshot;
use crate::recording::RecordingSnapshot;
use crate::tenant::PhaseCount;
use crate::tenants::TenantSnapshot;

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// The device.
    pub device: DeviceSnapshot,
    /// Its memory.
    pub memory: MemorySnapshot,
    /// The policy in force.
    pub policy: PolicyConfig,
    /// Since the loop started, nanoseconds.
    pub uptime_ns: Nanos,
    /// Operators and copies on the device.
    pub in_flight: usize,
    /// Items queued in the dispatcher.
    pub queued: usize,
    /// Calls of clients that have no answer yet.
    pub calls_waiting: usize,
    /// Most items queued at once so far.
    pub queued_max: usize,
    /// Sessions so far, past ones included.
    pub sessions_total: u64,
    /// Sessions that were ended because they broke the protocol.
    pub violations_total: u64,
    /// Errors given to applications so far.
    pub faults_total: u64,
    /// Phase hints taken in so far.
    pub hints_total: u64,
    /// Lines for hints so far that were none: malformed, too long, of another version.
    pub hints_refused_total: u64,
    /// Calls of clients answered so far: synchronous round trips.
    pub round_trips_total: u64,
    /// Work by phase, all sessions, past ones included.
    pub phases: Vec<PhaseSnapshot>,
    /// Hold-backs by reason.
    pub holds: Vec<HoldSnapshot>,
    /// Streams whose next operator is held back now.
    pub held_now: Vec<HeldSnapshot>,
    /// How busy the device was.
    pub occupancy: OccupancySnapshot,
    /// Requests, as hints tell of them: all sessions, past ones included.
    pub requests: ServedSnapshot,
    /// Steps, hints, overload.
    pub scheduling: SchedulingSnapshot,
    /// How well the time of operators that ran alone was predicted, by phase and size.
    pub predictions: Vec<PredictionSnapshot>,
    /// What the loop did.
    pub turns: LoopCounters,
    /// The record of decisions being kept.
    pub recording: Option<RecordingSnapshot>,
    /// Tenants, what they may have and what they used.
    pub tenants: Vec<TenantSnapshot>,
    /// Sessions attached now.
    pub sessions: Vec<SessionSnapshot>,
}

/// The device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceSnapshot {
    /// SoC name that applications see.
    pub soc_name: String,
    /// What to write beside a measurement.
    pub label: String,
    /// Whether completions follow a model of the device.
    pub paced: bool,
}

/// Device memory.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemorySnapshot {
    /// Allocated by sessions, bytes.
    pub used_bytes: u64,
    /// Not allocated, bytes.
    pub free_bytes: u64,
    /// All there is, bytes.
    pub total_bytes: u64,
}

/// Work of one phase.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseSnapshot {
    /// Phase.
    pub phase: Phase,
    /// Operators queued behind the policy.
    pub queued: usize,
    /// Operators with the device.
    pub in_flight: usize,
    /// Operators and copies completed.
    pub completed: u64,
    /// Their predicted time alone, summed, nanoseconds.
    pub predicted_ns: u64,
    /// Their time on the device, summed, nanoseconds.
    pub measured_ns: u64,
    /// Time that ready operators were held back, summed; 0 in a session's own figures.
    pub held_ns: u64,
}

/// Hold-backs for one reason.
#[derive(Clone, Debug, Serialize)]
pub struct HoldSnapshot {
    /// Reason.
    pub reason: &'static str,
    /// Operators held back.
    pub count: u64,
    /// For how long, summed, nanoseconds.
    pub total_ns: u64,
    /// Longest one, nanoseconds.
    pub longest_ns: u64,
    /// Ended by the age bound.
    pub expired: u64,
}

/// A stream whose next operator is held back.
#[derive(Clone, Debug, Serialize)]
pub struct HeldSnapshot {
    /// Session.
    pub session: u64,
    /// Stream.
    pub stream: u32,
    /// The operator's phase.
    pub phase: Phase,
    /// Why.
    pub reason: &'static str,
    /// For how long so far, nanoseconds.
    pub held_ns: Nanos,
}

/// What the policy counted.
#[derive(Clone, Debug, Serialize)]
pub struct SchedulingSnapshot {
    /// Decode steps completed.
    pub decode_steps: u64,
    /// Of them, after they were due.
    pub decode_steps_late: u64,
    /// Turns given to an overdue prefill while decode was due too.
    pub overloaded_turns: u64,
    /// Times that prefill and decode became overloaded and shared by a fixed ratio.
    pub overloads: u64,
    /// For how long, summed when an overload ends, nanoseconds.
    pub overloaded_ns: u64,
    /// Learnt rate of prefill beside decode, in thousandths of its rate alone; 0 where nothing is learnt.
    pub corun_rate_prefill_permille: u32,
    /// Learnt rate of decode beside prefill.
    pub corun_rate_decode_permille: u32,
    /// Times that prefill and decode began to run side by side on purpose.
    pub coruns: u64,
    /// Requests forgotten because the gateway had not mentioned them for a lease.
    pub hints_expired: u64,
    /// Requests forgotten because a session had too many.
    pub hints_dropped: u64,
    /// Requests that hints keep alive now.
    pub requests: usize,
}

/// Predictions of operators of one phase and size.
#[derive(Clone, Debug, Serialize)]
pub struct PredictionSnapshot {
    /// Phase.
    pub phase: Phase,
    /// Least predicted time of this size, nanoseconds; the next size begins at twice that.
    pub size_from_ns: u64,
    /// Operators that had the device for themselves.
    pub samples: u64,
    /// What they took, nanoseconds.
    pub measured_ns: u64,
    /// By how much the cost model was off, summed without sign, nanoseconds.
    pub error_ns: u64,
    /// By how much it was off after correction by what was learnt, nanoseconds.
    pub corrected_error_ns: u64,
    /// Mean absolute error of the cost model, relative to the measured time.
    pub mean_relative_error: f64,
    /// The same after correction.
    pub corrected_mean_relative_error: f64,
    /// Operators too far off to learn from in full.
    pub out_of_range: u64,
}

/// What the loop did.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct LoopCounters {
    /// Rounds over the rings.
    pub turns: u64,
    /// Records taken in.
    pub records: u64,
    /// Times asleep.
    pub sleeps: u64,
}

/// One session.
#[derive(Clone, Debug, Serialize)]
pub struct SessionSnapshot {
    /// Number.
    pub session: u64,
    /// Whose it is.
    pub tenant: String,
    /// The client's process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// What it calls itself.
    pub process: String,
    /// Device memory held, bytes.
    pub memory_bytes: u64,
    /// Of it, freed by the client and still in use by queued work.
    pub memory_freeing_bytes: u64,
    /// Most held at once.
    pub memory_peak_bytes: u64,
    /// Live allocations and physical handles.
    pub allocations: usize,
    /// Streams, the default stream included.
    pub streams: usize,
    /// Events.
    pub events: usize,
    /// Items queued, running or waited for.
    pub items: usize,
    /// Of them, on the device.
    pub in_flight: usize,
    /// Its ring is not read until some of its work is done.
    pub back_pressure: bool,
    /// Errors so far.
    pub faults: u64,
    /// Calls answered so far: synchronous round trips.
    pub round_trips: u64,
    /// Requests, as hints tell of them.
    pub requests: ServedSnapshot,
    /// Work by phase.
    pub phases: Vec<PhaseSnapshot>,
}

/// Operators queued and with the device, by phase.
type Load = [(usize, usize); 4];

fn phases(counts: &[PhaseCount; 4], held: [Nanos; 4], load: Load) -> Vec<PhaseSnapshot> {
    let row = |phase: Phase| {
        let PhaseCount { completed, predicted_ns, measured_ns } = counts[phase.index()];
        let ((queued, in_flight), held_ns) = (load[phase.index()], held[phase.index()]);
        PhaseSnapshot { phase, queued, in_flight, completed, predicted_ns, measured_ns, held_ns }
    };
    Phase::ALL.into_iter().map(row).collect()
}

impl Core {
    /// A picture of everything; `turns` and `violations_total` are the loop's own figures.
    pub fn snapshot(&self, turns: LoopCounters, violations_total: u64) -> Snapshot {
        let (info, memory, stats) = (self.device.info(), self.device.memory(), self.dispatcher.stats());
        let hold = |reason: HoldReason| {
            let h = stats.holds[reason.index()];
            HoldSnapshot {
                reason: reason.name(),
                count: h.count,
                total_ns: h.total_ns,
                longest_ns: h.longest_ns,
                expired: h.expired,
            }
        };
        let prediction = |(phase, size): (Phase, usize)| {
            let p = stats.predictions[phase.index()][size];
            let (mean_relative_error, corrected_mean_relative_error) = p.mean_relative_errors();
            let shown = PredictionSnapshot {
                phase,
                size_from_ns: size_from(size),
                samples: p.samples,
                measured_ns: p.measured_ns,
                error_ns: p.error_ns,
                corrected_error_ns: p.corrected_error_ns,
                mean_relative_error,
                corrected_mean_relative_error,
                out_of_range: p.out_of_range,
            };
            (p.samples > 0).then_some(shown)
        };
        let (mut all, mut loads) = (Load::default(), BTreeMap::<u64, Load>::new());
        for (stream, op, in_flight) in self.dispatcher.operators() {
            for load in [&mut all, loads.entry(stream.session).or_default()] {
                let (queued, flying) = &mut load[op.phase.index()];
                *(if in_flight { flying } else { queued }) += 1;
            }
        }
        let held = self.dispatcher.ready().filter_map(|ready| {
            let (reason, since, _) = ready.held?;
            let (session, stream, held_ns) =
                (ready.stream.session, ready.stream.stream, self.time.saturating_sub(since));
            Some(HeldSnapshot { session, stream, phase: ready.op.phase, reason: reason.name(), held_ns })
        });
        let lease = sched::nanos(self.dispatcher.policy().lease_ms * 1e-3);
        let mut served = self.served_past.clone();
        self.tenants.values().for_each(|(tenant, _)| served.merge(&tenant.served));
        let sizes = Phase::ALL.into_iter().flat_map(|phase| (0..SIZES).map(move |size| (phase, size)));
        let sessions = self.tenants.iter().map(|(&session, (tenant, port))| SessionSnapshot {
            session,
            tenant: self.accounts.get(tenant.account).map_or_else(String::new, |a| a.name.clone()),
            pid: tenant.peer.pid,
            uid: tenant.peer.uid,
            process: tenant.peer.process_name.clone(),
            memory_bytes: tenant.space.held_bytes(),
            memory_freeing_bytes: tenant.space.unmapped_bytes(),
            memory_peak_bytes: tenant.space.peak_bytes(),
            allocations: tenant.space.blocks(),
            streams: tenant.streams.len(),
            events: tenant.events.len(),
            items: tenant.items,
            in_flight: tenant.in_flight,
            back_pressure: !self.has_room(session),
            faults: tenant.faults,
            round_trips: port.replies(),
            requests: tenant.served.snapshot(self.time, lease, [&tenant.served]),
            phases: phases(&tenant.phases, [0; 4], loads.get(&session).copied().unwrap_or_default()),
        });
        Snapshot {
            device: DeviceSnapshot { soc_name: info.soc_name.clone(), label: info.label.clone(), paced: info.paced },
            memory: MemorySnapshot {
                used_bytes: memory.total - memory.free,
                free_bytes: memory.free,
                total_bytes: memory.total,
            },
            policy: *self.dispatcher.policy(),
            uptime_ns: self.time,
            in_flight: self.in_flight,
            queued: self.dispatcher.queued(),
            calls_waiting: self.calls_waiting(),
            queued_max: stats.queued_max,
            sessions_total: self.sessions_total,
            violations_total,
            faults_total: self.faults_total,
            hints_total: self.hints_total,
            hints_refused_total: self.hints_refused_total,
            round_trips_total: self.replies_past + self.tenants.values().map(|(_, port)| port.replies()).sum::<u64>(),
            phases: phases(&self.phases, stats.held_ns, all),
            held_now: held.collect(),
            occupancy: self.occupancy.snapshot(self.time),
            requests: served.snapshot(self.time, lease, self.tenants.values().map(|(tenant, _)| &tenant.served)),
            holds: HoldReason::ALL.into_iter().map(hold).collect(),
            scheduling: SchedulingSnapshot {
                decode_steps: stats.decode_steps,
                decode_steps_late: stats.decode_steps_late,
                overloaded_turns: stats.overloaded_turns,
                overloads: stats.overloads,
                overloaded_ns: stats.overloaded_ns,
                corun_rate_prefill_permille: stats.corun_rates_permille[0],
                corun_rate_decode_permille: stats.corun_rates_permille[1],
                coruns: stats.coruns,
                hints_expired: self.hints_expired,
                hints_dropped: self.hints_dropped,
                requests: self.tenants.values().map(|(t, _)| t.requests.iter().len()).sum(),
            },
            predictions: sizes.filter_map(prediction).collect(),
            turns,
            recording: self.recording(),
            tenants: self.tenant_snapshots(),
            sessions: sessions.collect(),
        }
    }
}
