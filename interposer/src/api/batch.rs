//! Copies of many pieces in one call: matrices by rows, and lists. Each piece is a copy like any other; the first that fails
//! ends the call, and pieces before it are done or queued.

use acl_abi::values as acl;

use crate::abi::{In, Opaque, Out};
use crate::copy::copy;
use crate::entry::status;
use crate::error::Failure;
use crate::process::process;
use crate::stream::Stream;

/// Most pieces of one call.
const PIECES_MAX: usize = 1 << 20;

/// Where and how wide the rows of a matrix are.
struct Rows {
    at: Opaque,
    pitch: usize,
}

fn rows(to: Rows, from: Rows, width: usize, height: usize, kind: i32, stream: Option<&Stream>) -> Result<(), Failure> {
    for (parameter, pitch) in [("dpitch", to.pitch), ("spitch", from.pitch)] {
        if width > pitch {
            return Err(Failure::invalid(format!("parameter {parameter}: {pitch} bytes for rows of {width}")));
        }
    }
    let last = height.saturating_sub(1);
    let reach = |pitch: usize| pitch.checked_mul(last).and_then(|bytes| bytes.checked_add(width));
    if height > PIECES_MAX || reach(to.pitch).is_none() || reach(from.pitch).is_none() {
        return Err(Failure::invalid(format!(
            "parameter height: {height} rows; at most {PIECES_MAX} are copied at once"
        )));
    }
    let process = process();
    if width == to.pitch && width == from.pitch {
        return copy(process, (to.at, width * height), (from.at, width * height), kind, stream);
    }
    for row in 0..height {
        let dst = to.at.wrapping_byte_add(row * to.pitch);
        copy(process, (dst, width), (from.at.wrapping_byte_add(row * from.pitch), width), kind, stream)?;
    }
    Ok(())
}

/// Copies rows and waits.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemcpy2d(
    dst: *mut u8,
    dpitch: usize,
    src: *const u8,
    spitch: usize,
    width: usize,
    height: usize,
    kind: i32,
) -> i32 {
    status("aclrtMemcpy2d", || {
        let (to, from) = (Rows { at: dst.cast(), pitch: dpitch }, Rows { at: src.cast_mut().cast(), pitch: spitch });
        rows(to, from, width, height, kind, None)
    })
}

/// Copies rows in stream order.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemcpy2dAsync(
    dst: *mut u8,
    dpitch: usize,
    src: *const u8,
    spitch: usize,
    width: usize,
    height: usize,
    kind: i32,
    stream: Opaque,
) -> i32 {
    status("aclrtMemcpy2dAsync", || {
        let stream = process().stream(stream)?;
        let (to, from) = (Rows { at: dst.cast(), pitch: dpitch }, Rows { at: src.cast_mut().cast(), pitch: spitch });
        rows(to, from, width, height, kind, Some(&stream))
    })
}

/// `aclrtMemcpyBatchAttr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemcpyBatchAttr {
    dst: [u32; 2],
    src: [u32; 2],
    reserve: [u8; 16],
}

/// The lists of a batch, as the caller lends them.
struct Batch {
    dsts: In<Opaque>,
    dest_maxs: In<usize>,
    srcs: In<Opaque>,
    sizes: In<usize>,
    count: usize,
    attrs: In<MemcpyBatchAttr>,
    indexes: In<usize>,
    attr_count: usize,
}

impl Batch {
    fn run(&self, failed: &mut usize, stream: Option<&Stream>) -> Result<(), Failure> {
        let process = process();
        let count = self.count;
        if count == 0 || count > PIECES_MAX {
            return Err(Failure::invalid(format!("parameter numBatches: {count}, want 1 to {PIECES_MAX}")));
        }
        if self.attr_count > count {
            return Err(Failure::invalid(format!("parameter numAttrs: {} for {count} copies", self.attr_count)));
        }
        let (mut dsts, mut rooms, mut srcs, mut sizes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        self.dsts.append_to("dsts", count, &mut dsts)?;
        self.dest_maxs.append_to("destMaxs", count, &mut rooms)?;
        self.srcs.append_to("srcs", count, &mut srcs)?;
        self.sizes.append_to("sizes", count, &mut sizes)?;
        let (mut attrs, mut indexes) = (Vec::new(), Vec::new());
        self.attrs.append_to("attrs", self.attr_count, &mut attrs)?;
        self.indexes.append_to("attrsIndexes", self.attr_count, &mut indexes)?;
        if indexes.first().is_some_and(|&first| first != 0) || !indexes.is_sorted_by(|a, b| a < b) {
            return Err(Failure::invalid("parameter attrsIndexes: they must start at 0 and rise"));
        }
        let is_device = |location: [u32; 2]| location[1] as i32 == acl::ACL_MEM_LOCATION_TYPE_DEVICE;
        for i in 0..count {
            *failed = i;
            if let Some(k) = indexes.partition_point(|&from| from <= i).checked_sub(1) {
                for (parameter, address, location) in [("dsts", dsts[i], attrs[k].dst), ("srcs", srcs[i], attrs[k].src)]
                {
                    if is_device(location) != process.link_of(address.addr() as u64).is_some() {
                        let text = format!("{parameter}[{i}] is {address:p}, which is not where attrs[{k}] says it is");
                        return Err(Failure::invalid(format!("parameter {text}")));
                    }
                }
            }
            copy(process, (dsts[i], rooms[i]), (srcs[i], sizes[i]), acl::ACL_MEMCPY_DEFAULT, stream)?;
        }
        Ok(())
    }

    /// [`Batch::run`]; tells the caller which copy failed, `SIZE_MAX` for none in particular.
    fn run_telling(&self, fail_index: Out<usize>, stream: Option<&Stream>) -> Result<(), Failure> {
        let mut failed = usize::MAX;
        let result = self.run(&mut failed, stream);
        if result.is_err() {
            fail_index.set_if_wanted(failed);
        }
        result
    }
}

/// Copies a list and waits.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemcpyBatch(
    dsts: In<Opaque>,
    destMaxs: In<usize>,
    srcs: In<Opaque>,
    sizes: In<usize>,
    numBatches: usize,
    attrs: In<MemcpyBatchAttr>,
    attrsIndexes: In<usize>,
    numAttrs: usize,
    failIndex: Out<usize>,
) -> i32 {
    status("aclrtMemcpyBatch", || {
        let (count, indexes, attr_count) = (numBatches, attrsIndexes, numAttrs);
        Batch { dsts, dest_maxs: destMaxs, srcs, sizes, count, attrs, indexes, attr_count }.run_telling(failIndex, None)
    })
}

/// Copies a list in stream order.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtMemcpyBatchAsync(
    dsts: In<Opaque>,
    destMaxs: In<usize>,
    srcs: In<Opaque>,
    sizes: In<usize>,
    numBatches: usize,
    attrs: In<MemcpyBatchAttr>,
    attrsIndexes: In<usize>,
    numAttrs: usize,
    failIndex: Out<usize>,
    stream: Opaque,
) -> i32 {
    status("aclrtMemcpyBatchAsync", || {
        let stream = process().stream(stream)?;
        let (count, indexes, attr_count) = (numBatches, attrsIndexes, numAttrs);
        let batch = Batch { dsts, dest_maxs: destMaxs, srcs, sizes, count, attrs, indexes, attr_count };
        batch.run_telling(failIndex, Some(&stream))
    })
}
