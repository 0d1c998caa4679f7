//! Behaviour of the whole device: time, order, memory, and what reaches the caller when.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use acl_abi::{Arg, DataType, OpCall, Scalar, TensorDesc, ops};
use sched::{Demand, OpClass, corun};

use super::*;
use crate::command::HostBytes;
use crate::spec::DeviceSpec;

/// A doorbell that counts, and can be waited for.
#[derive(Default)]
pub struct Bell {
    rings: Mutex<u64>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rings.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    fn count(&self) -> u64 {
        *self.rings.lock().unwrap()
    }

    /// Waits until the bell has rung more than `seen` times.
    #[track_caller]
    fn wait(&self, seen: u64) {
        let limit = Duration::from_secs(30);
        let rings = self.rings.lock().unwrap();
        let (rings, _) = self.changed.wait_timeout_while(rings, limit, |rings| *rings <= seen).unwrap();
        assert!(*rings > seen, "the doorbell stayed silent");
    }
}

pub fn device(spec: &str) -> (Emulated, Arc<Bell>) {
    let bell = Arc::new(Bell::default());
    let its = bell.clone();
    let config = spec.parse::<DeviceSpec>().unwrap().emulated(Arc::new(move || its.ring()));
    (Emulated::new(config).unwrap(), bell)
}

/// A command that timing devices ignore.
fn nothing() -> Box<Command> {
    Box::new(Command::Op(OpCall::new(ops::aclnnAdd)))
}

fn profile() -> Profile {
    Profile::by_soc_name("Ascend910B3").unwrap()
}

/// Limited by the cube, 60 % of bandwidth free.
const PREFILL: Work = Work { cube_flops: 2e11, vector_flops: 0.0, hbm_bytes: 3e8, class: OpClass::Matmul };
/// Limited by bandwidth.
const DECODE: Work = Work { cube_flops: 2e9, vector_flops: 0.0, hbm_bytes: 6e8, class: OpClass::Matmul };

/// Token and time of every completion up to `until`.
fn ends(device: &mut Emulated, until: Nanos) -> Vec<(u64, Nanos)> {
    let mut out = Vec::new();
    device.advance(until, &mut out);
    out.iter().map(|c| (c.token, c.at)).collect()
}

#[test]
fn an_operator_alone_takes_the_cost_models_time() {
    for spec in ["Ascend910B3:timing:paced:omega=0", "Ascend910B3:timing:paced:omega=1"] {
        for work in [PREFILL, DECODE, Work::default(), Work::host_copy(1 << 20), Work::device_copy(1 << 20)] {
            let (mut device, _) = device(spec);
            let solo = profile().solo(&work);
            device.submit(1_000, 0, 7, Phase::Prefill, work, nothing());
            assert_eq!(device.next_completion(), Some(1_000 + solo));
            assert_eq!(ends(&mut device, 999 + solo), []);
            assert_eq!(ends(&mut device, 1_000 + solo), [(7, 1_000 + solo)]);
            assert_eq!((device.next_completion(), ends(&mut device, Nanos::MAX)), (None, vec![]));
        }
    }
}

/// Two operators that start together: while both run each goes at its co-run rate, the rest alone.
#[test]
fn co_running_operators_end_when_the_contention_model_says() {
    for omega in [0.0, 0.5, 1.0] {
        let (mut device, _) =
            device(&format!("Ascend910B3:timing:paced:omega={omega}:kappa_prefill=0.05:kappa_decode=0.2"));
        let (p, d) = (profile().demand(&PREFILL), profile().demand(&DECODE));
        let (solo_p, solo_d) = (profile().solo(&PREFILL) as f64, profile().solo(&DECODE) as f64);
        // By hand: bandwidth is the only resource that both want more of than there is, if at all.
        let usage = |demand: &Demand| [demand.cube / demand.solo_s, demand.hbm / demand.solo_s];
        let (up, ud) = (usage(&p), usage(&d));
        let fluid = f64::min(1.0, f64::min(1.0 / (up[0] + ud[0]), 1.0 / (up[1] + ud[1])));
        assert!(fluid < 1.0, "the case is meant to contend");
        let blended = (1.0 - omega) / 2.0 + omega * fluid;
        let (rate_p, rate_d) = (blended / (1.0 + omega * 0.05), blended / (1.0 + omega * 0.2));
        let (first, second) = (f64::min(solo_p / rate_p, solo_d / rate_d), f64::max(solo_p / rate_p, solo_d / rate_d));
        let (left, last_rate) = if solo_p / rate_p > solo_d / rate_d { (solo_p, rate_p) } else { (solo_d, rate_d) };
        let want_last = first + (left - last_rate * first);
        assert!(second > first);

        device.submit(0, 0, 1, Phase::Prefill, PREFILL, nothing());
        device.submit(0, 1, 2, Phase::Decode, DECODE, nothing());
        let got = ends(&mut device, Nanos::MAX);
        assert!((got[0].1 as f64 - first).abs() <= 1.0, "ω={omega}: {got:?}, want {first}");
        assert!((got[1].1 as f64 - want_last).abs() <= 2.0, "ω={omega}: {got:?}, want {want_last}");
        // What runs at ω = 0 takes as long as one after the other.
        if omega == 0.0 {
            assert!((got[1].1 as f64 - (solo_p + solo_d)).abs() <= 2.0);
        } else {
            assert!((got[1].1 as f64) < solo_p + solo_d);
        }
        let rates = corun::rates(
            &[(p, Phase::Prefill), (d, Phase::Decode)],
            &CoRun { omega, kappa_prefill: 0.05, kappa_decode: 0.2 },
        );
        assert!((rates[0] - rate_p).abs() < 1e-9 && (rates[1] - rate_d).abs() < 1e-9, "{rates:?}");
    }
}

#[test]
fn an_operator_that_joins_later_slows_only_what_is_left() {
    let (mut device, _) = device("Ascend910B3:timing:paced:omega=0");
    let solo = profile().solo(&PREFILL);
    device.submit(0, 0, 1, Phase::Prefill, PREFILL, nothing());
    device.submit(solo / 2, 1, 2, Phase::Prefill, PREFILL, nothing());
    let got = ends(&mut device, Nanos::MAX);
    // Half is done alone, the other half at half speed; then the second has half left.
    let want = [(1, solo / 2 + solo), (2, 2 * solo)];
    for (got, want) in got.iter().zip(want) {
        assert!(got.0 == want.0 && got.1.abs_diff(want.1) <= 2, "{got:?} instead of {want:?}");
    }
}

#[test]
fn a_stream_runs_its_operators_one_after_another() {
    let (mut device, _) = device("Ascend910B3:timing:paced:omega=1");
    let (a, b) = (profile().solo(&PREFILL), profile().solo(&DECODE));
    device.submit(10, 5, 1, Phase::Prefill, PREFILL, nothing());
    device.submit(10, 5, 2, Phase::Decode, DECODE, nothing());
    device.submit(20, 5, 3, Phase::Prefill, PREFILL, nothing());
    // Submitted long after the stream ran dry: starts at once.
    let late = 10 * (a + b);
    device.submit(late, 5, 4, Phase::Decode, DECODE, nothing());
    assert_eq!(ends(&mut device, Nanos::MAX), [(1, 10 + a), (2, 10 + a + b), (3, 10 + 2 * a + b), (4, late + b)]);
}

#[test]
fn a_transfer_neither_slows_nor_is_slowed() {
    let (mut device, _) = device("Ascend910B3:timing:paced:omega=0");
    let copy = Work::host_copy(1 << 20);
    device.submit(0, 0, 1, Phase::Prefill, PREFILL, nothing());
    device.submit(0, 1, 2, Phase::Unknown, copy, nothing());
    let mut got = ends(&mut device, Nanos::MAX);
    got.sort_unstable();
    assert_eq!(got, [(1, profile().solo(&PREFILL)), (2, profile().solo(&copy))]);
}

/// A run of random submissions gives the same completions however rarely and late it is asked about.
#[test]
fn asking_late_does_not_stretch_time() {
    let script: Vec<(Nanos, u32, Work)> = (0..300u64)
        .map(|i| {
            let work = match i % 4 {
                0 => PREFILL,
                1 => Work { hbm_bytes: 1e6 * (i % 17) as f64, ..DECODE },
                2 => Work::host_copy(i * 4096),
                _ => Work { vector_flops: 1e8, hbm_bytes: 1e7, ..Work::default() },
            };
            (i * i * 3_000, (i * 7 % 5) as u32, work)
        })
        .collect();
    let run = |ask: &dyn Fn(usize, Nanos) -> Option<Nanos>| -> Vec<(u64, Nanos)> {
        let (mut device, _) = device("Ascend910B3:timing:paced:omega=0.5");
        let mut all = Vec::new();
        for (i, &(at, stream, work)) in script.iter().enumerate() {
            if let Some(until) = ask(i, at) {
                all.extend(ends(&mut device, until));
            }
            device.submit(at, stream, i as u64, [Phase::Prefill, Phase::Decode][i % 2], work, nothing());
        }
        all.extend(ends(&mut device, Nanos::MAX));
        assert!(all.is_sorted_by_key(|c| c.1));
        all.sort_unstable();
        all
    };
    let never = run(&|_, _| None);
    assert_eq!(never.len(), 300);
    assert_eq!(run(&|_, at| Some(at)), never, "asked before every submission");
    assert_eq!(run(&|i, at| (i % 10 == 9).then_some(at / 2)), never, "asked rarely and about the past");
    assert_eq!(run(&|i, at| (i % 3 == 0).then_some(at.saturating_sub(1))), never);
}

#[test]
fn timing_without_pace_completes_at_submission_and_keeps_order() {
    let (mut device, _) = device("Ascend910B3:timing:unpaced");
    device.submit(5, 0, 1, Phase::Prefill, PREFILL, nothing());
    device.submit(6, 1, 2, Phase::Decode, DECODE, nothing());
    device.submit(6, 0, 3, Phase::Decode, DECODE, nothing());
    assert_eq!(device.next_completion(), Some(5));
    assert_eq!(ends(&mut device, 5), [(1, 5)]);
    assert_eq!(ends(&mut device, 100), [(2, 6), (3, 6)]);
    assert_eq!(device.next_completion(), None);
}

#[test]
fn timing_reads_zeros_and_holds_any_model() {
    let (mut device, _) = device("Ascend910B3:timing");
    assert_eq!(device.info().hbm_bytes, 64 << 30);
    let addr = device.alloc(60 << 30).unwrap();
    let far = PhysAddr(addr.0 + (59 << 30));
    let data = HostBytes::owned(vec![7; 100]);
    device.submit(0, 0, 1, Phase::Unknown, Work::default(), Box::new(Command::CopyIn { dst: far, source: data }));
    let room = HostBytes::owned(vec![9; 100]);
    device.submit(0, 0, 2, Phase::Unknown, Work::default(), Box::new(Command::CopyOut { dst: room, src: far }));
    let beyond = Command::Fill { addr: PhysAddr(addr.0 + (64 << 30)), len: 1, value: 0 };
    device.submit(0, 0, 3, Phase::Unknown, Work::default(), Box::new(beyond));
    let mut out = Vec::new();
    device.advance(0, &mut out);
    let Command::CopyOut { dst, .. } = &*out[1].cmd else { panic!("{:?}", out[1].cmd) };
    assert_eq!(dst.as_owned(), Some(&[0; 100][..]));
    assert!(out[2].result.as_ref().unwrap_err().text.starts_with("memset: 1 bytes at physical address"));
}

#[test]
fn allocation_failures_carry_the_numbers() {
    let (mut device, _) = device("Ascend910B4:timing:hbm=1");
    assert_eq!(device.memory(), Memory { free: 1 << 30, total: 1 << 30 });
    let half = device.alloc(512 << 20).unwrap();
    assert_eq!(half.0 % 512, 0);
    let error = device.alloc((512 << 20) + 1).unwrap_err();
    let want =
        DeviceError::OutOfMemory { wanted: (512 << 20) + 512, free: 512 << 20, largest: 512 << 20, total: 1 << 30 };
    assert_eq!(error, want);
    device.free(half);
    assert_eq!(device.memory().free, 1 << 30);
    assert!(device.alloc(1 << 30).is_ok());
}

#[test]
#[should_panic(expected = "not the start of an allocation")]
fn freeing_what_is_not_allocated_is_a_bug() {
    let (mut device, _) = device("Ascend910B4:timing");
    let addr = device.alloc(1024).unwrap();
    device.free(PhysAddr(addr.0 + 512));
}

#[test]
fn an_unknown_soc_is_refused_with_the_known_ones() {
    let config = "Ascend310".parse::<DeviceSpec>().unwrap().emulated(Arc::new(|| {}));
    let error = Emulated::new(config).err().unwrap().to_string();
    assert!(error.contains("Ascend310") && error.contains("Ascend910B3"), "{error}");
    let (device, _) = device("910B3:timing:paced:omega=0.5");
    assert_eq!(device.info().soc_name, "Ascend910B3");
    assert_eq!(device.info().label, "emulated Ascend910B3, timing, paced, ω=0.5");
}

fn add_call(a: TensorDesc, b: TensorDesc, out: TensorDesc) -> Box<Command> {
    let mut call = OpCall::new(ops::aclnnAdd);
    call.push_tensor(Some(a)).push_tensor(Some(b));
    call.push(Arg::Scalar(Scalar { dtype: DataType::F32, bits: u64::from(1f32.to_bits()) })).push_tensor(Some(out));
    Box::new(Command::Op(call))
}

fn bytes(values: &[f32]) -> HostBytes {
    HostBytes::owned(values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Advances until `count` completions are there, woken by the doorbell.
pub fn collect(device: &mut Emulated, bell: &Bell, until: Nanos, count: usize) -> Vec<Completion> {
    let mut out = Vec::new();
    while out.len() < count {
        let seen = bell.count();
        device.advance(until, &mut out);
        if out.len() < count {
            bell.wait(seen);
        }
    }
    out
}

#[test]
fn functional_work_flows_through_the_worker_and_back() {
    for spec in ["Ascend910B3:functional:hbm=0.1", "Ascend910B3:functional:paced:hbm=0.1"] {
        let (mut device, bell) = device(spec);
        let addr = device.alloc(4096).unwrap();
        let at = |offset: u64| TensorDesc::contiguous(addr.0 + offset, DataType::F32, &[2]);
        let host = Work::host_copy(8);
        let command = |device: &mut Emulated, token, work, cmd| device.submit(0, 0, token, Phase::Unknown, work, cmd);
        command(&mut device, 1, host, Box::new(Command::CopyIn { dst: addr, source: bytes(&[1.0, 2.0]) }));
        command(
            &mut device,
            2,
            Work::device_copy(8),
            Box::new(Command::CopyDevice { dst: PhysAddr(addr.0 + 8), src: addr, len: 8 }),
        );
        command(&mut device, 3, Work::default(), add_call(at(0), at(8), at(16)));
        command(
            &mut device,
            4,
            Work::fill(4),
            Box::new(Command::Fill { addr: PhysAddr(addr.0 + 20), len: 4, value: 0 }),
        );
        command(&mut device, 5, Work::default(), add_call(at(0), at(1 << 20), TensorDesc { offset: 1 << 50, ..at(0) }));
        command(
            &mut device,
            6,
            host,
            Box::new(Command::CopyOut { dst: bytes(&[9.0, 9.0]), src: PhysAddr(addr.0 + 16) }),
        );
        let out = collect(&mut device, &bell, 1_000_000, 6);
        let tokens: Vec<_> = out.iter().map(|c| (c.token, c.result.is_ok())).collect();
        assert_eq!(tokens, [(1, true), (2, true), (3, true), (4, true), (5, false), (6, true)]);
        assert!(out[4].result.as_ref().unwrap_err().text.starts_with("aclnnAdd: out: "));
        let Command::CopyOut { dst, .. } = &*out[5].cmd else { panic!("{:?}", out[5].cmd) };
        assert_eq!(dst.as_owned(), bytes(&[2.0, 0.0]).as_owned());
        assert!(out.is_sorted_by_key(|c| c.at));
        assert_eq!(device.next_completion(), None);
    }
}

#[test]
fn a_paced_functional_completion_waits_for_both_clock_and_result() {
    let (mut device, bell) = device("Ascend910B3:functional:paced:hbm=0.1");
    let addr = device.alloc(64 << 20).unwrap();
    let fill = || Box::new(Command::Fill { addr, len: 64 << 20, value: 3 });
    let solo = profile().solo(&PREFILL);
    device.submit(0, 0, 1, Phase::Prefill, PREFILL, fill());
    device.submit(0, 0, 2, Phase::Prefill, PREFILL, fill());
    assert_eq!(device.next_completion(), Some(solo));
    // The result may be there, the time is not.
    std::thread::sleep(Duration::from_millis(1));
    assert_eq!(ends(&mut device, solo - 1), []);
    // The time is there: the first is reported now, or when its result comes, which rings.
    let out = collect(&mut device, &bell, solo, 1);
    assert_eq!((out[0].token, out[0].at), (1, solo));
    let out = collect(&mut device, &bell, 10 * solo, 1);
    assert_eq!(out[0].token, 2);
    assert!([2 * solo, 10 * solo].contains(&out[0].at), "modelled if computed by then, else when asked: {}", out[0].at);
}

#[test]
fn freed_memory_never_shows_its_old_contents() {
    let (mut device, bell) = device("Ascend910B3:functional:hbm=0.01");
    for size in [512u64, 4096 + 512, 1 << 20] {
        let secret = device.alloc(size).unwrap();
        device.submit(
            0,
            0,
            1,
            Phase::Unknown,
            Work::default(),
            Box::new(Command::Fill { addr: secret, len: size, value: 0x55 }),
        );
        device.free(secret);
        let reused = device.alloc(size).unwrap();
        assert_eq!(reused, secret, "best fit gives the same range");
        let dst = HostBytes::owned(vec![1; size as usize]);
        device.submit(0, 1, 2, Phase::Unknown, Work::default(), Box::new(Command::CopyOut { dst, src: reused }));
        let out = collect(&mut device, &bell, 0, 2);
        let Command::CopyOut { dst, .. } = &*out[1].cmd else { panic!("{:?}", out[1].cmd) };
        assert!(dst.as_owned().unwrap().iter().all(|&b| b == 0), "{size} bytes");
        device.free(reused);
    }
}

#[test]
fn a_long_queue_does_not_wake_the_caller_for_every_operator() {
    let (mut device, bell) = device("Ascend910B3:functional:hbm=0.1");
    let addr = device.alloc(4096).unwrap();
    let count = 20_000u64;
    let mut done = 0;
    let mut out = Vec::new();
    for token in 0..count {
        device.submit(0, 0, token, Phase::Unknown, Work::default(), Box::new(Command::Fill { addr, len: 8, value: 1 }));
    }
    while done < count {
        let seen = bell.count();
        device.advance(0, &mut out);
        for completion in out.drain(..) {
            assert_eq!(completion.token, done, "in order");
            done += 1;
        }
        if done < count {
            bell.wait(seen);
        }
    }
    assert!(bell.count() < count / 20, "{} rings", bell.count());
}

#[test]
fn commands_in_flight_do_not_survive_the_device() {
    static DROPPED: AtomicU64 = AtomicU64::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (mut device, _) = device("Ascend910B3:functional:hbm=0.1");
    let addr = device.alloc(4096).unwrap();
    let memory = Box::leak(Box::new([5u8; 64]));
    for _ in 0..10 {
        // SAFETY: the memory lives for the rest of the process and nothing else uses it.
        let source = unsafe { HostBytes::shared(memory.as_mut_ptr(), 64, Arc::new(Counted)) };
        device.submit(0, 0, 0, Phase::Unknown, Work::default(), Box::new(Command::CopyIn { dst: addr, source }));
    }
    drop(device);
    assert_eq!(DROPPED.load(Ordering::SeqCst), 10);
}
