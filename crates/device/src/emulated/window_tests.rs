//! Page-wise memory: handles side by side, seen twice, given back.

use super::tests::{Bell, collect, device};
use super::*;
use crate::command::HostBytes;

const PAGE: u64 = PAGE_BYTES;
const HANDLE: u64 = 4 * PAGE;

fn run(device: &mut Emulated, bell: &Arc<Bell>, command: Command) -> Box<Command> {
    device.submit(0, 0, 7, Phase::Unknown, Work::default(), Box::new(command));
    let mut out = collect(device, bell, 0, 1);
    out[0].result.clone().unwrap();
    out.remove(0).cmd
}

fn fill(device: &mut Emulated, bell: &Arc<Bell>, addr: PhysAddr, len: u64, value: u8) {
    run(device, bell, Command::Fill { addr, len, value });
}

fn read(device: &mut Emulated, bell: &Arc<Bell>, src: PhysAddr, len: u64) -> Vec<u8> {
    let dst = HostBytes::owned(vec![0xee; len as usize]);
    match *run(device, bell, Command::CopyOut { dst, src }) {
        Command::CopyOut { dst, .. } => dst.into_owned().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn at(addr: PhysAddr, bytes: u64) -> PhysAddr {
    addr.checked_add(bytes).unwrap()
}

#[test]
fn handles_side_by_side_are_one_range_and_keep_their_bytes_when_they_move() {
    let (mut device, bell) = device("Ascend910B3:functional:hbm=0.01");
    let window = device.reserve(1 << 40).unwrap();
    // Taken and mapped the other way round, so that neighbours in the window are none in memory.
    let handles: Vec<PhysAddr> = (0..4).map(|_| device.alloc_handle(HANDLE).unwrap()).rev().collect();
    for (i, &handle) in handles.iter().enumerate() {
        device.map(at(window, i as u64 * HANDLE), handle, 0, HANDLE).unwrap();
    }
    assert!(read(&mut device, &bell, window, 4 * HANDLE).iter().all(|&b| b == 0));
    let bytes: Vec<u8> = (0..4 * HANDLE - 2).map(|i| (i % 251) as u8).collect();
    let source = HostBytes::owned(bytes.clone());
    run(&mut device, &bell, Command::CopyIn { dst: at(window, 1), source });
    assert!(read(&mut device, &bell, at(window, 1), bytes.len() as u64) == bytes, "across three boundaries");

    // The second half of handle 1 and the first of handle 2, exchanged, in another window; the first window sees writes.
    let other = device.reserve(HANDLE).unwrap();
    device.map(other, handles[2], 0, HANDLE / 2).unwrap();
    device.map(at(other, HANDLE / 2), handles[1], HANDLE / 2, HANDLE / 2).unwrap();
    let second = read(&mut device, &bell, at(window, 2 * HANDLE), HANDLE / 2);
    assert!(read(&mut device, &bell, other, HANDLE / 2) == second);
    fill(&mut device, &bell, at(other, HANDLE / 2), HANDLE / 2, 9);
    assert!(read(&mut device, &bell, at(window, HANDLE + HANDLE / 2), HANDLE / 2).iter().all(|&b| b == 9));
    fill(&mut device, &bell, at(other, HANDLE / 2), HANDLE / 2, 0);
    assert!(
        read(&mut device, &bell, at(window, HANDLE + HANDLE / 2), HANDLE / 2).iter().all(|&b| b == 0),
        "zeroed too"
    );

    device.unmap(at(window, 2 * HANDLE));
    device.map(at(window, 2 * HANDLE), handles[0], 0, HANDLE).unwrap();
    assert!(read(&mut device, &bell, at(window, 2 * HANDLE + 1), HANDLE - 1) == bytes[..HANDLE as usize - 1]);
}

#[test]
fn a_window_goes_with_its_commands_and_memory_comes_back_as_zeros() {
    let (mut device, bell) = device("Ascend910B3:functional:hbm=0.01");
    let before = device.memory().free;
    for round in 0..20 {
        let (window, handle) = (device.reserve(HANDLE).unwrap(), device.alloc_handle(HANDLE).unwrap());
        assert_eq!(device.memory().free, before - HANDLE, "a window costs nothing, a handle what it is");
        device.map(window, handle, 0, HANDLE).unwrap();
        let fill = Command::Fill { addr: window, len: HANDLE, value: 0x55 };
        device.submit(0, 0, round, Phase::Unknown, Work::default(), Box::new(fill));
        // Not complete, but submitted: all of it may go.
        device.release(window);
        device.free_handle(handle);
        assert_eq!(device.memory().free, before);
        let (next, again) = (device.reserve(HANDLE).unwrap(), device.alloc_handle(HANDLE).unwrap());
        assert_eq!(again, handle, "the same memory");
        device.map(next, again, 0, HANDLE).unwrap();
        let dst = HostBytes::owned(vec![1; HANDLE as usize]);
        device.submit(0, 1, 99, Phase::Unknown, Work::default(), Box::new(Command::CopyOut { dst, src: next }));
        let out = collect(&mut device, &bell, 0, 2);
        assert!(out.iter().all(|c| c.result.is_ok()));
        let Command::CopyOut { dst, .. } = &*out[1].cmd else { panic!("{:?}", out[1].cmd) };
        assert!(dst.as_owned().unwrap().iter().all(|&b| b == 0));
        device.unmap(next);
        device.release(next);
        // Ordinary memory of the same addresses is other memory, and zero as well.
        device.free_handle(again);
        let plain = device.alloc(HANDLE).unwrap();
        assert!(read(&mut device, &bell, plain, HANDLE).iter().all(|&b| b == 0));
        self::fill(&mut device, &bell, plain, HANDLE, 3);
        device.free(plain);
    }
}

#[test]
fn addresses_run_out_late_and_come_back() {
    for spec in ["Ascend910B3:functional:hbm=0.01", "Ascend910B3:timing:hbm=0.01"] {
        let (mut device, _) = device(spec);
        for _ in 0..3 {
            let windows: Vec<PhysAddr> = (0..50).map(|_| device.reserve(72 << 30).unwrap()).collect();
            let error = device.reserve(APERTURE_BYTES).unwrap_err();
            assert!(error.to_string().contains("no device addresses are left"), "{error}");
            for (i, window) in windows.into_iter().enumerate() {
                if i % 2 == 0 {
                    let handle = device.alloc_handle(PAGE).unwrap();
                    device.map(at(window, 1 << 30), handle, 0, PAGE).unwrap();
                    device.release(window);
                    device.free_handle(handle);
                } else {
                    device.release(window);
                }
            }
        }
        assert_eq!(device.memory().free, device.memory().total);
    }
}

#[test]
fn pieces_are_bounded() {
    let (mut device, _) = device("Ascend910B3:timing:hbm=4");
    let (window, handle) = (device.reserve(16 << 30).unwrap(), device.alloc_handle(PAGE).unwrap());
    for i in 0..aperture::PIECES_MAX as u64 {
        device.map(at(window, i * PAGE), handle, 0, PAGE).unwrap();
    }
    let error = device.map(at(window, 15 << 30), handle, 0, PAGE).unwrap_err();
    assert!(error.to_string().contains("16384 pieces are mapped"), "{error}");
    device.unmap(window);
    device.map(at(window, 15 << 30), handle, 0, PAGE).unwrap();
}

#[test]
fn timing_devices_know_windows_too() {
    let (mut device, bell) = device("Ascend910B3:timing:hbm=0.01");
    let (window, handle) = (device.reserve(HANDLE).unwrap(), device.alloc_handle(HANDLE).unwrap());
    device.map(window, handle, 0, HANDLE).unwrap();
    assert!(read(&mut device, &bell, window, HANDLE).iter().all(|&b| b == 0));
}

#[test]
fn what_is_not_mapped_is_an_error_and_never_an_access() {
    for spec in ["Ascend910B3:functional:hbm=0.01", "Ascend910B3:timing:hbm=0.01"] {
        let (mut device, bell) = device(spec);
        let (window, handle) = (device.reserve(4 * HANDLE).unwrap(), device.alloc_handle(HANDLE).unwrap());
        device.map(at(window, HANDLE), handle, 0, HANDLE).unwrap();
        let mut refused = |addr, len| {
            let command = Command::Fill { addr, len, value: 1 };
            device.submit(0, 0, 7, Phase::Unknown, Work::default(), Box::new(command));
            collect(&mut device, &bell, 0, 1)[0].result.clone().err().map(|e| e.text)
        };
        assert_eq!(refused(at(window, HANDLE), HANDLE), None);
        for (from, len) in [(0, 1), (HANDLE - 1, 2), (HANDLE, HANDLE + 1), (2 * HANDLE, 1), (1 << 50, 1)] {
            let text = refused(at(window, from), len).expect("refused");
            assert!(text.contains("outside the device's"), "{text}");
        }
    }
}

#[test]
fn operators_on_holes_are_errors() {
    use acl_abi::{DataType, TensorDesc, ops};
    let (mut device, bell) = device("Ascend910B3:functional:hbm=0.01");
    let (window, handle) = (device.reserve(4 * HANDLE).unwrap(), device.alloc_handle(HANDLE).unwrap());
    device.map(window, handle, 0, HANDLE).unwrap();
    for (offset, dims, works) in [(0, HANDLE as i64 / 4, true), (4, HANDLE as i64 / 4, false), (HANDLE, 1, false)] {
        let tensor = TensorDesc::contiguous(window.0 + offset, DataType::F32, &[dims]);
        let mut call = acl_abi::OpCall::new(ops::aclnnInplaceZero);
        call.push_tensor(Some(tensor));
        device.submit(0, 0, 7, Phase::Unknown, Work::default(), Box::new(Command::Op(call)));
        let result = collect(&mut device, &bell, 0, 1)[0].result.clone();
        assert_eq!(result.is_ok(), works, "{offset} {dims}: {result:?}");
    }
}
