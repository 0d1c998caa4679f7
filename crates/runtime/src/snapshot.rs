//! What an operator of the daemon sees: one consistent picture, taken between two turns of the loop.

use sched::dispatch::HoldReason;
use sched::{Nanos, Phase, PolicyConfig};
use serde::Serialize;

use crate::core::Core;
use crate::tenant::PhaseCount;

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
    /// Calls of clients answered so far: synchronous round trips.
    pub round_trips_total: u64,
    /// Work by phase, all sessions, past ones included.
    pub phases: Vec<PhaseSnapshot>,
    /// Hold-backs by reason.
    pub holds: Vec<HoldSnapshot>,
    /// Steps, hints, overload.
    pub scheduling: SchedulingSnapshot,
    /// How well the time of operators that ran alone was predicted, by phase. Measured by the policy `phase`.
    pub predictions: Vec<PredictionSnapshot>,
    /// What the loop did.
    pub turns: LoopCounters,
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
    /// Hints forgotten because their lease ran out.
    pub hints_expired: u64,
    /// Requests forgotten because a session had too many.
    pub hints_dropped: u64,
}

/// Predictions of one phase's operators.
#[derive(Clone, Debug, Serialize)]
pub struct PredictionSnapshot {
    /// Phase.
    pub phase: Phase,
    /// Operators that had the device for themselves.
    pub samples: u64,
    /// What they took, nanoseconds.
    pub measured_ns: u64,
    /// By how much the cost model was off, summed without sign, nanoseconds.
    pub error_ns: u64,
    /// By how much it was off after correction by what was learnt, nanoseconds.
    pub corrected_error_ns: u64,
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
    /// Completed work by phase.
    pub phases: Vec<PhaseSnapshot>,
}

fn phases(counts: &[PhaseCount; 4], held: [Nanos; 4]) -> Vec<PhaseSnapshot> {
    let row = |phase: Phase| {
        let PhaseCount { completed, predicted_ns, measured_ns } = counts[phase.index()];
        PhaseSnapshot { phase, completed, predicted_ns, measured_ns, held_ns: held[phase.index()] }
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
        let prediction = |phase: Phase| {
            let p = stats.predictions[phase.index()];
            PredictionSnapshot {
                phase,
                samples: p.samples,
                measured_ns: p.measured_ns,
                error_ns: p.error_ns,
                corrected_error_ns: p.corrected_error_ns,
                out_of_range: p.out_of_range,
            }
        };
        let sessions = self.tenants.iter().map(|(&session, (tenant, port))| SessionSnapshot {
            session,
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
            phases: phases(&tenant.phases, [0; 4]),
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
            round_trips_total: self.replies_past + self.tenants.values().map(|(_, port)| port.replies()).sum::<u64>(),
            phases: phases(&self.phases, stats.held_ns),
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
                hints_expired: stats.hints_expired,
                hints_dropped: stats.hints_dropped,
            },
            predictions: Phase::ALL.into_iter().map(prediction).collect(),
            turns,
            sessions: sessions.collect(),
        }
    }
}
