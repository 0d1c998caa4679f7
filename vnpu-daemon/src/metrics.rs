//! Metrics: the dispatch thread's snapshot as OpenMetrics text. Nothing is counted here.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use runtime::snapshot::{PhaseSnapshot, PredictionSnapshot, SessionSnapshot};
use runtime::usage::Class;
use runtime::{Snapshot, TenantSnapshot, Usage};
use sched::Phase;

/// OpenMetrics text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const NS_PER_S: f64 = 1e9;

#[derive(Debug)]
struct Page(Snapshot);

/// The page of one snapshot.
///
/// # Errors
/// Never for our metrics; the encoder's type says so.
pub fn text(snapshot: Snapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page(snapshot)));
    let mut out = String::new();
    prometheus_client::encoding::text::encode(&mut out, &registry)?;
    Ok(out)
}

/// One family: its samples, each with a set of labels.
fn family<L: EncodeLabelSet, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit, kind): (&str, &str, Option<&Unit>, MetricType),
    samples: impl IntoIterator<Item = (L, M)>,
) -> fmt::Result {
    let mut family: MetricEncoder<'_> = encoder.encode_descriptor(name, help, unit, kind)?;
    for (labels, metric) in samples {
        metric.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        let s = &self.0;
        let e = &mut encoder;
        let device = [
            ("soc", s.device.soc_name.clone()),
            ("label", s.device.label.clone()),
            ("policy", s.policy.name.name().to_owned()),
        ];
        family(e, ("vnpu_device", "The device and its policy; the value is 1.", None, Gauge), [(device, gauge(1))])?;
        let memory =
            [([("state", "used")], gauge(s.memory.used_bytes)), ([("state", "free")], gauge(s.memory.free_bytes))];
        family(e, ("vnpu_memory", "Device memory.", Some(&Unit::Bytes), Gauge), memory)?;

        type Value = fn(&Snapshot) -> u64;
        let gauges: [(&str, &str, Value); 4] = [
            ("vnpu_requests", "Requests that hints keep alive.", |s| s.scheduling.requests as u64),
            ("vnpu_sessions", "Client processes attached.", |s| s.sessions.len() as u64),
            ("vnpu_operators_in_flight", "Operators and copies on the device.", |s| s.in_flight as u64),
            ("vnpu_items_queued", "Items queued behind the policy.", |s| s.queued as u64),
        ];
        for (name, help, value) in gauges {
            family(e, (name, help, None, Gauge), [([("", ""); 0], gauge(value(s)))])?;
        }
        let counters: [(&str, &str, Value); 14] = [
            ("vnpu_sessions_attached", "Client processes so far.", |s| s.sessions_total),
            ("vnpu_violations", "Sessions ended because they broke the protocol.", |s| s.violations_total),
            ("vnpu_faults", "Errors given to applications.", |s| s.faults_total),
            ("vnpu_hints", "Phase hints taken in.", |s| s.hints_total),
            ("vnpu_hints_refused", "Lines for hints that were none: malformed, too long, of another version.", |s| {
                s.hints_refused_total
            }),
            ("vnpu_round_trips", "Calls of clients answered: synchronous round trips.", |s| s.round_trips_total),
            ("vnpu_hints_expired", "Requests forgotten because the gateway had not mentioned them for a lease.", |s| {
                s.scheduling.hints_expired
            }),
            ("vnpu_decode_steps", "Decode steps completed.", |s| s.scheduling.decode_steps),
            ("vnpu_decode_steps_late", "Decode steps completed after they were due.", |s| {
                s.scheduling.decode_steps_late
            }),
            ("vnpu_overloaded_turns", "Turns given to an overdue prefill while decode was due too.", |s| {
                s.scheduling.overloaded_turns
            }),
            ("vnpu_overloads", "Times that prefill and decode became overloaded and shared by a fixed ratio.", |s| {
                s.scheduling.overloads
            }),
            ("vnpu_coruns", "Times that prefill and decode began to run side by side.", |s| s.scheduling.coruns),
            ("vnpu_records", "Records taken from the rings.", |s| s.turns.records),
            ("vnpu_loop_sleeps", "Times that the dispatch thread slept.", |s| s.turns.sleeps),
        ];
        for (name, help, value) in counters {
            family(e, (name, help, None, Counter), [([("", ""); 0], ConstCounter::new(value(s)))])?;
        }

        let by_phase = |value: fn(&PhaseSnapshot) -> u64| {
            s.phases.iter().map(move |p| ([("phase", p.phase.name())], value(p))).collect::<Vec<_>>()
        };
        let completed = by_phase(|p| p.completed).into_iter().map(|(l, v)| (l, ConstCounter::new(v)));
        family(e, ("vnpu_operators_completed", "Operators and copies completed.", None, Counter), completed)?;
        type PhaseTime = (&'static str, &'static str, fn(&PhaseSnapshot) -> u64);
        let times: [PhaseTime; 3] = [
            ("vnpu_operators_predicted", "Predicted time alone of completed operators.", |p| p.predicted_ns),
            ("vnpu_operators_measured", "Time on the device of completed operators.", |p| p.measured_ns),
            ("vnpu_operators_held", "Time that ready operators were held back.", |p| p.held_ns),
        ];
        for (name, help, value) in times {
            let samples = by_phase(value).into_iter().map(|(l, v)| (l, ConstCounter::new(v as f64 / NS_PER_S)));
            family(e, (name, help, Some(&Unit::Seconds), Counter), samples)?;
        }

        let by_size = |p: &PredictionSnapshot| {
            [("phase", p.phase.name().to_owned()), ("size_from_us", (p.size_from_ns / 1000).to_string())]
        };
        let samples = s.predictions.iter().map(|p| (by_size(p), ConstCounter::new(p.samples)));
        let help =
            "Operators that had the device for themselves, by size: predicted microseconds and up to twice that.";
        family(e, ("vnpu_prediction_samples", help, None, Counter), samples)?;
        type Mean = (&'static str, &'static str, fn(&PredictionSnapshot) -> f64);
        let means: [Mean; 2] = [
            ("vnpu_prediction_mean_relative_error", "Mean absolute relative error of the cost model.", |p| {
                p.mean_relative_error
            }),
            ("vnpu_prediction_corrected_mean_relative_error", "The same after correction by what was learnt.", |p| {
                p.corrected_mean_relative_error
            }),
        ];
        for (name, help, value) in means {
            let samples = s.predictions.iter().map(|p| (by_size(p), ConstGauge::new(value(p))));
            family(e, (name, help, None, Gauge), samples)?;
        }
        type Prediction = (&'static str, &'static str, fn(&PredictionSnapshot) -> u64);
        let predictions: [Prediction; 3] = [
            ("vnpu_prediction_measured", "Time of operators that had the device for themselves.", |p| p.measured_ns),
            ("vnpu_prediction_error", "By how much the cost model was off, without sign.", |p| p.error_ns),
            ("vnpu_prediction_corrected_error", "The same after correction by what was learnt.", |p| {
                p.corrected_error_ns
            }),
        ];
        for (name, help, value) in predictions {
            let samples = s.predictions.iter().map(|p| (by_size(p), ConstCounter::new(value(p) as f64 / NS_PER_S)));
            family(e, (name, help, Some(&Unit::Seconds), Counter), samples)?;
        }
        let overloaded = ConstCounter::new(s.scheduling.overloaded_ns as f64 / NS_PER_S);
        let help = "For how long prefill and decode were overloaded.";
        family(e, ("vnpu_overloaded", help, Some(&Unit::Seconds), Counter), [([("", ""); 0], overloaded)])?;
        let rates = [
            ("prefill", s.scheduling.corun_rate_prefill_permille),
            ("decode", s.scheduling.corun_rate_decode_permille),
        ];
        let rates = rates.map(|(phase, permille)| ([("phase", phase)], ConstGauge::new(f64::from(permille) / 1e3)));
        let help = "Learnt rate of each phase beside the other, 1 = as alone; 0: not learnt.";
        family(e, ("vnpu_corun_rate", help, None, Gauge), rates)?;

        let holds = s.holds.iter().map(|h| ([("reason", h.reason)], ConstCounter::new(h.count)));
        family(e, ("vnpu_holds", "Ready operators held back.", None, Counter), holds)?;
        let held = s.holds.iter().map(|h| ([("reason", h.reason)], ConstCounter::new(h.total_ns as f64 / NS_PER_S)));
        family(e, ("vnpu_holds_time", "For how long, summed.", Some(&Unit::Seconds), Counter), held)?;
        let expired = s.holds.iter().map(|h| ([("reason", h.reason)], ConstCounter::new(h.expired)));
        family(e, ("vnpu_holds_expired", "Hold-backs ended by the age bound.", None, Counter), expired)?;

        type PerSession = (&'static str, &'static str, Option<&'static Unit>, fn(&SessionSnapshot) -> u64);
        let per_session: [PerSession; 5] = [
            ("vnpu_session_memory", "Device memory held.", Some(&Unit::Bytes), |s| s.memory_bytes),
            ("vnpu_session_streams", "Streams.", None, |s| s.streams as u64),
            ("vnpu_session_events", "Events.", None, |s| s.events as u64),
            ("vnpu_session_items", "Items queued, running or waited for.", None, |s| s.items as u64),
            ("vnpu_session_back_pressure", "1 while its ring is not read.", None, |s| u64::from(s.back_pressure)),
        ];
        for (name, help, unit, value) in per_session {
            let samples = s.sessions.iter().map(|session| {
                let labels = [("session", session.session.to_string()), ("process", session.process.clone())];
                (labels, gauge(value(session)))
            });
            family(e, (name, help, unit, Gauge), samples)?;
        }
        tenants(e, s)
    }
}

/// What tenants may have and what they used since the daemon started.
fn tenants(e: &mut DescriptorEncoder<'_>, s: &Snapshot) -> fmt::Result {
    use MetricType::{Counter, Gauge};
    let busy = [([("", ""); 0], ConstCounter::new(s.occupancy.busy_ns as f64 / NS_PER_S))];
    let help = "Time in which the device held anything: the sum of its tenants' device times.";
    family(e, ("vnpu_device_busy", help, Some(&Unit::Seconds), Counter), busy)?;

    type PerTenant = (&'static str, &'static str, Option<&'static Unit>, fn(&TenantSnapshot) -> Option<u64>);
    let gauges: [PerTenant; 8] = [
        ("vnpu_tenant_memory", "Device memory held.", Some(&Unit::Bytes), |t| Some(t.memory_bytes)),
        ("vnpu_tenant_memory_limit", "Most device memory, where there is a limit.", Some(&Unit::Bytes), |t| {
            t.config.memory_limit_bytes
        }),
        ("vnpu_tenant_memory_guarantee", "Device memory that no other tenant can take.", Some(&Unit::Bytes), |t| {
            Some(t.config.memory_guarantee_bytes)
        }),
        ("vnpu_tenant_weight", "Part of the device relative to other tenants.", None, |t| Some(t.config.weight.into())),
        ("vnpu_tenant_priority", "A tenant with a larger one goes first.", None, |t| Some(t.config.priority.into())),
        ("vnpu_tenant_window", "Most operators on the device; 0 for no bound.", None, |t| Some(t.config.window.into())),
        ("vnpu_tenant_sessions", "Client processes attached.", None, |t| Some(t.sessions as u64)),
        ("vnpu_tenant_operators_in_flight", "Operators and copies on the device.", None, |t| Some(t.in_flight as u64)),
    ];
    for (name, help, unit, value) in gauges {
        let sample = |t: &TenantSnapshot| Some(([("tenant", t.tenant.clone())], gauge(value(t)?)));
        family(e, (name, help, unit, Gauge), s.tenants.iter().filter_map(sample))?;
    }
    let parts = s.tenants.iter().flat_map(|t| {
        let cells = Phase::ALL.into_iter().flat_map(|phase| Class::ALL.map(|class| (phase, class)));
        cells.filter_map(|(phase, class)| {
            let ns = t.usage.device_ns[phase.index()][class as usize];
            let labels = [("tenant", t.tenant.clone()), ("phase", phase.name().into()), ("class", class.name().into())];
            (ns > 0).then(|| (labels, ConstCounter::new(ns as f64 / NS_PER_S)))
        })
    });
    let help = "Device time used; what ran side by side is divided, so that the sum is the device's busy time.";
    family(e, ("vnpu_tenant_device", help, Some(&Unit::Seconds), Counter), parts)?;
    type Counted =
        (&'static str, &'static str, Option<&'static Unit>, [(&'static str, fn(&Usage) -> u64); 2], &'static str);
    let pairs: [Counted; 2] = [
        (
            "vnpu_tenant_copied",
            "Copied between host and device.",
            Some(&Unit::Bytes),
            [("in", |u| u.bytes_in), ("out", |u| u.bytes_out)],
            "direction",
        ),
        (
            "vnpu_tenant_tokens",
            "Tokens, as hints tell.",
            None,
            [("prompt", |u| u.prompt_tokens), ("output", |u| u.output_tokens)],
            "kind",
        ),
    ];
    for (name, help, unit, values, label) in pairs {
        let samples = s.tenants.iter().flat_map(|t| {
            let labels = |what: &str| [("tenant", t.tenant.clone()), (label, what.to_owned())];
            values.map(|(what, value)| (labels(what), ConstCounter::new(value(&t.usage))))
        });
        family(e, (name, help, unit, Counter), samples)?;
    }
    type Single = (&'static str, &'static str, Option<&'static Unit>, fn(&Usage) -> u64);
    let singles: [Single; 3] = [
        ("vnpu_tenant_operators", "Operators and copies completed.", None, |u| u.operators),
        ("vnpu_tenant_memory_byte_seconds", "Device memory held times time.", None, |u| u.memory_byte_seconds),
        (
            "vnpu_tenant_hbm",
            "Read from and written to device memory, as the cost model counts.",
            Some(&Unit::Bytes),
            |u| u.hbm_bytes,
        ),
    ];
    for (name, help, unit, value) in singles {
        let sample = |t: &TenantSnapshot| ([("tenant", t.tenant.clone())], ConstCounter::new(value(&t.usage)));
        family(e, (name, help, unit, Counter), s.tenants.iter().map(sample))?;
    }
    Ok(())
}
