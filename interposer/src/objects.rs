//! The host-side objects of aclnn: tensors, scalars, arrays and lists of them.
//!
//! They describe arguments and own no device memory. Clients destroy them on another thread after phase two, so phase
//! one copies everything out ([`crate::executor`]); nothing refers to them afterwards.

use std::ffi::c_void;

use acl_abi::values::ACL_FORMAT_FRACTAL_NZ;
use acl_abi::{DataType, MAX_DIMS, Scalar, TensorDesc, nz};

use crate::abi::In;
use crate::error::{ACLNN_PARAM_INVALID, ACLNN_PARAM_NULL, Failure};
use crate::executor::Executor;
use crate::handle::{Kind, Table};

/// Most entries of one array: bounds what a wrong count can make us read and keep. The wire takes fewer in one operator.
pub const ARRAY_ENTRIES_MAX: u64 = 1 << 20;

/// A tensor view with the storage shape it was made with.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The view.
    pub desc: TensorDesc,
    /// Shape of the storage; its entries past `storage_ndim` are 0.
    pub storage_dims: [i64; MAX_DIMS],
    /// Dimensions of the storage.
    pub storage_ndim: u8,
}

impl Default for Tensor {
    fn default() -> Self {
        Self { desc: TensorDesc::contiguous(0, DataType::F32, &[]), storage_dims: [0; MAX_DIMS], storage_ndim: 0 }
    }
}

impl Tensor {
    /// Shape of the storage.
    pub fn storage_dims(&self) -> &[i64] {
        &self.storage_dims[..usize::from(self.storage_ndim)]
    }

    /// Tags a plain tensor of whole matrices as FRACTAL_NZ, with the storage shape that belongs to it; the tensor as it is then.
    ///
    /// # Errors
    /// Has that format already, is no matrix, or is part of one.
    pub fn make_private(&mut self) -> Result<TensorDesc, Failure> {
        let desc = TensorDesc { format: ACL_FORMAT_FRACTAL_NZ, ..self.desc };
        let private = nz::matrices(&desc).ok().flatten();
        let Some(private) = private.filter(|_| self.desc.format != ACL_FORMAT_FRACTAL_NZ) else {
            let (dims, strides) = (self.desc.dims(), self.desc.strides());
            let text = format!(
                "parameter mmWeightRef: sizes {dims:?}, strides {strides:?}, format {}; want whole matrices in ND",
                self.desc.format
            );
            return Err(Failure::new(ACLNN_PARAM_INVALID, text));
        };
        let mut sizes = self.desc.dims;
        let ndim = usize::from(self.desc.ndim);
        sizes[ndim - 2] = self.desc.dims[private.rows];
        sizes[ndim - 1] = self.desc.dims[private.columns];
        if let Some(sizes) = nz::storage_dims(desc.dtype, &sizes[..ndim]).filter(|sizes| sizes.len() <= MAX_DIMS) {
            self.storage_dims = [0; MAX_DIMS];
            self.storage_dims[..sizes.len()].copy_from_slice(&sizes);
            self.storage_ndim = sizes.len() as u8;
        }
        self.desc = desc;
        Ok(desc)
    }

    /// Gives one dimension of the view the size that an operator found, never more than the caller made room for. A
    /// contiguous view stays contiguous: that is how the operator wrote it.
    pub fn shrink(&mut self, axis: usize, extent: u64) {
        let contiguous = self.desc.is_contiguous();
        let Some(size) = self.desc.dims.get_mut(axis).filter(|_| axis < usize::from(self.desc.ndim)) else { return };
        *size = i64::try_from(extent).unwrap_or(i64::MAX).min(*size);
        if contiguous {
            self.desc.strides = TensorDesc::contiguous(0, self.desc.dtype, self.desc.dims()).strides;
        }
    }
}

/// The parameters of `aclCreateTensor` and `aclInitTensor`.
pub struct TensorArgs {
    /// Sizes.
    pub dims: In<i64>,
    /// Number of sizes and strides.
    pub ndim: u64,
    /// `aclDataType`.
    pub dtype: i32,
    /// Strides in elements; null for row-major.
    pub strides: In<i64>,
    /// First element of the view.
    pub offset: i64,
    /// `aclFormat`.
    pub format: i32,
    /// Shape of the storage; null for the view's.
    pub storage_dims: In<i64>,
    /// Number of storage sizes.
    pub storage_ndim: u64,
    /// Storage base.
    pub data: *mut c_void,
}

impl TensorArgs {
    /// Fills `tensor`.
    ///
    /// # Errors
    /// Names the parameter that is wrong.
    pub fn read(self, tensor: &mut Tensor) -> Result<(), Failure> {
        let ndim = rank("viewDims", self.ndim)?;
        let dtype = data_type("dataType", self.dtype)?;
        let mut dims = [0; MAX_DIMS];
        self.dims.fill("viewDims", &mut dims[..ndim]).map_err(aclnn)?;
        if let Some(dim) = dims.iter().find(|&&d| d < 0) {
            return Err(Failure::new(ACLNN_PARAM_INVALID, format!("parameter viewDims: a size of {dim}")));
        }
        let mut desc = TensorDesc::contiguous(self.data.addr() as u64, dtype, &dims[..ndim]);
        if !self.strides.is_null() {
            self.strides.fill("stride", &mut desc.strides[..ndim]).map_err(aclnn)?;
        }
        desc.offset = self.offset;
        desc.format = self.format;
        let (mut storage_dims, mut storage_ndim) = (dims, ndim);
        if !self.storage_dims.is_null() {
            storage_ndim = rank("storageDims", self.storage_ndim)?;
            storage_dims = [0; MAX_DIMS];
            self.storage_dims.fill("storageDims", &mut storage_dims[..storage_ndim]).map_err(aclnn)?;
        }
        *tensor = Tensor { desc, storage_dims, storage_ndim: storage_ndim as u8 };
        Ok(())
    }
}

fn rank(parameter: &str, count: u64) -> Result<usize, Failure> {
    match usize::try_from(count) {
        Ok(n) if n <= MAX_DIMS => Ok(n),
        _ => {
            let text = format!("parameter {parameter}: {count} dimensions, at most {MAX_DIMS} are supported");
            Err(Failure::new(ACLNN_PARAM_INVALID, text))
        }
    }
}

/// The element type with ABI value `value`.
///
/// # Errors
/// For a type that no tensor of ours can have.
pub fn data_type(parameter: &str, value: i32) -> Result<DataType, Failure> {
    let text = || format!("parameter {parameter}: aclDataType {value} is not supported");
    DataType::from_abi(value).ok_or_else(|| Failure::new(ACLNN_PARAM_INVALID, text()))
}

/// A pointer check's failure with aclnn's code.
pub fn aclnn(failure: Failure) -> Failure {
    Failure { code: ACLNN_PARAM_NULL, ..failure }
}

/// Checks the number of entries of an array.
///
/// # Errors
/// Above [`ARRAY_ENTRIES_MAX`].
pub fn entries(count: u64) -> Result<usize, Failure> {
    if count > ARRAY_ENTRIES_MAX {
        let text = format!("parameter size: {count} entries, at most {ARRAY_ENTRIES_MAX} are supported");
        return Err(Failure::new(ACLNN_PARAM_INVALID, text));
    }
    Ok(count as usize)
}

/// A scalar; the default stands for a slot that holds none yet.
#[derive(Clone, Copy, Debug)]
pub struct ScalarObject(pub Scalar);

impl Default for ScalarObject {
    fn default() -> Self {
        Self(Scalar { dtype: DataType::I64, bits: 0 })
    }
}

/// A handle kept inside a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element(pub usize);

impl Element {
    /// The handle.
    pub fn handle(self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0)
    }
}

/// The objects of one process.
pub struct Objects {
    /// `aclTensor`.
    pub tensors: Table<Tensor>,
    /// `aclTensorList`: handles of tensors, which the list owns.
    pub tensor_lists: Table<Vec<Element>>,
    /// `aclScalar`.
    pub scalars: Table<ScalarObject>,
    /// `aclScalarList`: handles of scalars, which the list owns.
    pub scalar_lists: Table<Vec<Element>>,
    /// `aclIntArray`.
    pub int_arrays: Table<Vec<i64>>,
    /// `aclBoolArray`, one byte an entry.
    pub bool_arrays: Table<Vec<u8>>,
    /// `aclFloatArray`.
    pub float_arrays: Table<Vec<f32>>,
    /// `aclOpExecutor`.
    pub executors: Table<Executor>,
}

impl Objects {
    /// Empty tables.
    pub fn new(seed: u32) -> Self {
        Self {
            tensors: Table::new(Kind::Tensor, seed),
            tensor_lists: Table::new(Kind::TensorList, seed),
            scalars: Table::new(Kind::Scalar, seed),
            scalar_lists: Table::new(Kind::ScalarList, seed),
            int_arrays: Table::new(Kind::IntArray, seed),
            bool_arrays: Table::new(Kind::BoolArray, seed),
            float_arrays: Table::new(Kind::FloatArray, seed),
            executors: Table::new(Kind::Executor, seed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_found_size_replaces_one_dimension_and_never_grows_it() {
        let tensor = |desc| Tensor { desc, ..Tensor::default() };
        let dims = [4, 6];
        let mut rows = tensor(TensorDesc::contiguous(0, DataType::I64, &dims));
        rows.shrink(0, 3);
        assert_eq!((rows.desc.dims(), rows.desc.strides()), (&[3, 6][..], &[6, 1][..]));
        let mut columns = tensor(TensorDesc::contiguous(0, DataType::I64, &dims));
        columns.shrink(1, 2);
        assert_eq!((columns.desc.dims(), columns.desc.strides()), (&[4, 2][..], &[2, 1][..]));
        columns.shrink(1, 9);
        columns.shrink(2, 0);
        assert_eq!(columns.desc.dims(), [4, 2]);
        let mut strided = TensorDesc::contiguous(0, DataType::I64, &dims);
        strided.strides[0] = 10;
        let mut strided = tensor(strided);
        strided.shrink(1, 0);
        assert_eq!((strided.desc.dims(), strided.desc.strides()), (&[4, 0][..], &[10, 1][..]));
    }
}
