//! Sizes of what lies in the private format FRACTAL_NZ (`acl_abi::nz`): clients allocate by them.

use std::ffi::c_void;

use acl_abi::{nz, values as acl};

use super::tensor::{hand_out, objects, tensor};
use crate::abi::Out;
use crate::entry::status;
use crate::error::{ACLNN_PARAM_INVALID, Failure};
use crate::objects::{aclnn, data_type};

/// Storage sizes, in memory that the caller releases, and format of what `aclnnNpuFormatCast` makes of a tensor: the tensor's own
/// for ND, blocks of 16 rows and 32 bytes for FRACTAL_NZ, where `additionalDtype` says how many elements are 32 bytes. Where the
/// tensor's own type is another, the device uses the beginning of such a storage.
#[unsafe(no_mangle)]
pub extern "C" fn aclnnNpuFormatCastCalculateSizeAndFormat(
    srcTensor: *const c_void,
    dstFormat: i32,
    additionalDtype: i32,
    dstShape: Out<*mut i64>,
    dstShapeSize: Out<u64>,
    actualFormat: Out<i32>,
) -> i32 {
    status("aclnnNpuFormatCastCalculateSizeAndFormat", || {
        actualFormat.check("actualFormat").map_err(aclnn)?;
        let desc = tensor(srcTensor, |t| t.desc)?;
        let sizes = match dstFormat {
            acl::ACL_FORMAT_ND => Some(desc.dims().to_vec()),
            acl::ACL_FORMAT_FRACTAL_NZ => nz::storage_dims(data_type("additionalDtype", additionalDtype)?, desc.dims()),
            _ => None,
        };
        let sizes = sizes.ok_or_else(|| {
            let dims = desc.dims().len();
            let text =
                format!("parameter dstFormat: {dstFormat} of a tensor with {dims} dimensions (ND 2, FRACTAL_NZ 29)");
            Failure::new(ACLNN_PARAM_INVALID, text)
        })?;
        actualFormat.set("actualFormat", dstFormat)?;
        hand_out(&sizes, dstShape, dstShapeSize, ["dstShape", "dstShapeSize"])
    })
}

/// Elements, not bytes, that matrices of these sizes (2 to 6 dimensions, `[…, N, K]`) take after `aclnnTransMatmulWeight`: rows
/// padded to 16, columns to 32 bytes of `dataType`.
#[unsafe(no_mangle)]
pub extern "C" fn aclnnCalculateMatmulWeightSizeV2(
    tensorShape: *const c_void,
    dataType: i32,
    weightTensorSize: Out<u64>,
) -> i32 {
    status("aclnnCalculateMatmulWeightSizeV2", || {
        weightTensorSize.check("weightTensorSize").map_err(aclnn)?;
        let dims = objects().int_arrays.with(tensorShape, "tensorShape", |sizes| sizes.clone())?;
        let dtype = data_type("dataType", dataType)?;
        let elements = match dims.as_slice() {
            [lead @ .., rows, columns] if lead.len() <= 4 && dims.iter().all(|&d| d > 0) => {
                let matrix = nz::elements(dtype, *rows, *columns);
                lead.iter().try_fold(1, |n: i64, d| n.checked_mul(*d)).zip(matrix).and_then(|(n, m)| n.checked_mul(m))
            }
            _ => None,
        };
        let text = || format!("parameter tensorShape: {dims:?}, want 2 to 6 sizes above 0");
        let elements = elements.ok_or_else(|| Failure::new(ACLNN_PARAM_INVALID, text()))?;
        weightTensorSize.set("weightTensorSize", elements as u64)
    })
}
