//! The data path allocates nothing once its buffers have grown.

use acl_abi::{DataType, OpCall, TensorDesc, ops};
use session::{DeviceFacts, Doorbell, Layout, local};
use std::alloc::{GlobalAlloc, Layout as Size, System};
use std::cell::Cell;
use wire::{Record, Reply};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator; the counter is a plain thread-local cell.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, size: Size) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, size: Size) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(ptr, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(f: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

#[test]
fn posts_drains_and_replies_do_not_allocate() {
    let facts = DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 1 << 30, device_index: 0, epoch: 1 };
    let (client, mut server) = local(Layout::default(), Doorbell::new().unwrap(), facts).unwrap();
    let mut call = OpCall::new(ops::aclnnMatmul);
    let t = TensorDesc::contiguous(0x1000, DataType::BF16, &[16, 3584]);
    for param in call.op.signature().params {
        match param.kind {
            acl_abi::Kind::I8 => call.push(acl_abi::Arg::Int(1)),
            _ => call.push_tensor(Some(t)),
        };
    }
    let mut body = Vec::new();
    wire::op::encode_op(&call, &mut body).unwrap();
    let mut round = || {
        let mut ops = 0;
        for stream in 0..1000 {
            client.post(&Record::Op { stream }, Some(&call)).unwrap();
            client.post_op(stream, &body).unwrap();
            client.post(&Record::EventRecord { event: 1, stream }, None).unwrap();
            server
                .drain(10, &mut |replier, record, scratch| {
                    if matches!(record, Record::Op { .. }) {
                        ops += scratch.tensors.len();
                    }
                    replier.reply(wire::ReplyTo { slot: 0, seq: 1 }, &Reply::value(1));
                })
                .unwrap();
        }
        assert_eq!(ops, 2000 * call.tensors.len());
    };
    assert!(allocations(&mut round) > 0, "the first round grows the buffers");
    assert_eq!(allocations(&mut round), 0);
}
