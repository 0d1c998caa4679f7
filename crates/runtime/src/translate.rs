//! Virtual operands in, physical operands out: the only way by which an address of a client reaches the device.
//!
//! Every tensor of a call is checked, whatever the operator does with it: the bytes between the first and the last element
//! that its sizes and strides can reach must lie inside one live allocation of the calling session. What fails names the
//! operator and the parameter; nothing has been pinned or submitted then.
//!
//! **Invariant:** after `Ok`, every non-empty tensor of the call carries a physical address, every empty one address 0,
//! and each block they lie in is pinned once for every entry of `pins`.

use acl_abi::{Arg, OpCall, values as acl};

use crate::fault::Fault;
use crate::memory::{AddressSpace, BlockId, Released};

/// Rewrites the tensor addresses of `call` from virtual to physical and pins the blocks they lie in.
///
/// # Errors
/// A view that is malformed, not aligned to its element type, or not inside one live allocation. `pins` is empty then.
pub fn translate(call: &mut OpCall, space: &mut AddressSpace, pins: &mut Vec<BlockId>) -> Result<(), Fault> {
    pins.clear();
    for index in 0..call.tensors.len() {
        let tensor = &call.tensors[index];
        let refused = match tensor.byte_span() {
            Err(()) => (acl::ACL_ERROR_RT_PARAM_INVALID, "its sizes, strides and offset describe no range".to_owned()),
            Ok(None) => {
                call.tensors[index].addr = 0;
                continue;
            }
            Ok(Some((first, end))) => {
                let addr = tensor.addr;
                // Physical blocks are aligned at least as strictly as virtual ones, so checking here is enough.
                let align = u64::from(tensor.dtype.bits().div_ceil(8)).min(8);
                match space.resolve(addr, end) {
                    _ if !addr.is_multiple_of(align) => (
                        acl::ACL_ERROR_RT_ADDR_UNALIGNED,
                        format!("address {addr:#x} is not a multiple of {align} bytes, as {:?} needs", tensor.dtype),
                    ),
                    Ok(found) => {
                        debug_assert!(first < end);
                        call.tensors[index].addr = found.physical.0;
                        pins.push(found.block);
                        continue;
                    }
                    Err(e) => (acl::ACL_ERROR_RT_PARAM_INVALID, e.to_string()),
                }
            }
        };
        pins.clear();
        let parameter = parameter_of(call, index);
        return Err(Fault::new(refused.0, format!("{}: parameter `{parameter}`: {}", call.op.name(), refused.1)));
    }
    for block in pins.iter_mut() {
        *block = space.pin(*block);
    }
    Ok(())
}

/// One operand of a copy or a fill: `[addr, addr + len)`, `len` > 0. Pins the block.
///
/// # Errors
/// Not inside one live allocation.
pub fn operand(
    what: &str,
    parameter: &str,
    addr: u64,
    len: u64,
    space: &mut AddressSpace,
    pins: &mut Vec<BlockId>,
) -> Result<u64, Fault> {
    let found = space.resolve(addr, len).map_err(|e| Fault::param(format!("{what}: parameter `{parameter}`: {e}")))?;
    pins.push(space.pin(found.block));
    Ok(found.physical.0)
}

/// Undoes the pins of one item.
pub fn unpin(space: &mut AddressSpace, pins: &mut Vec<BlockId>, mut release: impl FnMut(Released)) {
    for block in pins.drain(..) {
        space.unpin(block, &mut release);
    }
}

/// Name of the parameter that holds tensor `index`; `name[i]` inside a list.
fn parameter_of(call: &OpCall, index: usize) -> String {
    for (arg, param) in call.args.iter().zip(call.op.signature().params) {
        match *arg {
            Arg::Tensor(i) if usize::from(i) == index => return param.name.to_owned(),
            Arg::TensorList { start, len } => {
                let start = usize::from(start);
                if (start..start + usize::from(len)).contains(&index) {
                    return format!("{}[{}]", param.name, index - start);
                }
            }
            _ => {}
        }
    }
    format!("#{index}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use acl_abi::{DataType, TensorDesc, ops};
    use device::PhysAddr;

    fn space() -> (AddressSpace, u64) {
        let mut space = AddressSpace::new(1 << 40, 1 << 30);
        let start = space.find_gap(1024).unwrap();
        space.map(start, 1024, PhysAddr(0x8000));
        (space, start)
    }

    fn tensor(addr: u64, dims: &[i64]) -> TensorDesc {
        TensorDesc::contiguous(addr, DataType::F32, dims)
    }

    fn cat(list: &[TensorDesc], out: TensorDesc) -> OpCall {
        let mut call = OpCall::new(ops::aclnnCat);
        call.push_tensor_list(list).push(Arg::Int(0)).push_tensor(Some(out));
        call
    }

    #[test]
    fn operands_become_physical_and_hold_their_block() {
        let (mut space, base) = space();
        let mut call =
            cat(&[tensor(base, &[8]), tensor(base + 64, &[0]), tensor(base + 32, &[4])], tensor(base + 512, &[12]));
        let mut pins = Vec::new();
        translate(&mut call, &mut space, &mut pins).unwrap();
        let physical: Vec<u64> = call.tensors.iter().map(|t| t.addr).collect();
        assert_eq!(physical, [0x8000, 0, 0x8020, 0x8200]);
        assert_eq!(space.unmap(base), Ok(None), "still pinned");
        let mut released = 0;
        unpin(&mut space, &mut pins, |r| {
            assert_eq!(r, Released::Block(PhysAddr(0x8000)));
            released += 1;
        });
        assert_eq!(released, 1);
    }

    #[test]
    fn what_is_refused_names_operator_and_parameter_and_pins_nothing() {
        let (mut space, base) = space();
        let good = tensor(base, &[8]);
        let below = TensorDesc { offset: -1, ..good };
        let strided = TensorDesc { strides: [100, 0, 0, 0, 0, 0, 0, 0], ..good };
        let table = [
            (cat(&[good, tensor(base, &[257])], good), "aclnnCat: parameter `tensors[1]`: 1028 bytes at", 107_000),
            (cat(&[good], tensor(base + 1000, &[7])), "aclnnCat: parameter `out`: 28 bytes at", 107_000),
            (cat(&[good], tensor(0xdead_0000, &[1])), "is in no live allocation", 107_000),
            (cat(&[below], good), "`tensors[0]`: its sizes, strides and offset describe no range", 107_000),
            (cat(&[strided], good), "run 1780 bytes past the end of the 1024-byte allocation", 107_000),
            (cat(&[tensor(base + 2, &[1])], good), "is not a multiple of 4 bytes, as F32 needs", 107_008),
        ];
        for (mut call, want, status) in table {
            let mut pins = Vec::new();
            let fault = translate(&mut call, &mut space, &mut pins).unwrap_err();
            assert!(fault.text.contains(want), "{} / {want}", fault.text);
            assert_eq!(fault.status, status, "{want}");
            assert!(pins.is_empty());
        }
        assert!(space.unmap(base).unwrap().is_some(), "nothing stayed pinned");
    }
}
