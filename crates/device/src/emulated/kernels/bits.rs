//! Elements as they lie in memory, whatever they mean: what moves without being computed with.

use acl_abi::DataType;

use super::INTERMEDIATE_MAX;
use super::Machine;
use super::fault::{Outcome, ensure};
use super::lane::with_elem;
use super::nest::Nest;
use super::view::View;

/// Every element of `view` in row-major order, its bits in the low end.
pub fn load(machine: &Machine, view: &View, out: &mut Vec<u64>) -> Outcome {
    let count = view.elements();
    ensure!(
        count <= INTERMEDIATE_MAX,
        "{count} intermediate values are needed, at most {INTERMEDIATE_MAX} are supported"
    );
    out.clear();
    out.reserve(count);
    let nest = Nest::new(view.dims(), [view])?;
    with_elem!(view.dtype, E => {
        let memory: &[E] = machine.hbm.elements();
        nest.rows(|[row]| out.extend((0..row.len).map(|i| widen(memory[row.at(i)]))));
    }, else => {});
    Ok(())
}

/// Stores what [`load`] gave for a view of the same type and size.
pub fn store(machine: &mut Machine, view: &View, values: &[u64]) -> Outcome {
    ensure!(values.len() == view.elements(), "{} values for shape {:?}", values.len(), view.dims());
    let nest = Nest::new(view.dims(), [view])?;
    let mut next = values.iter();
    with_elem!(view.dtype, E => {
        let memory: &mut [E] = machine.hbm.elements_mut();
        nest.rows(|[row]| {
            for (i, &value) in next.by_ref().take(row.len).enumerate() {
                memory[row.at(i)] = shorten(value);
            }
        });
    }, else => {});
    Ok(())
}

fn widen<E: bytemuck::Pod>(value: E) -> u64 {
    let mut bits = [0u8; 8];
    bits[..size_of::<E>()].copy_from_slice(bytemuck::bytes_of(&value));
    u64::from_le_bytes(bits)
}

fn shorten<E: bytemuck::Pod>(value: u64) -> E {
    bytemuck::pod_read_unaligned(&value.to_le_bytes()[..size_of::<E>()])
}

/// Stores values at these places of memory, which must be elements of `dtype` inside it; the shorter list decides.
pub fn store_at(machine: &mut Machine, dtype: DataType, places: &[usize], values: &[u64]) {
    with_elem!(dtype, E => {
        let memory: &mut [E] = machine.hbm.elements_mut();
        for (&at, &value) in places.iter().zip(values) {
            memory[at] = shorten(value);
        }
    }, else => {});
}
