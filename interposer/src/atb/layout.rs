//! Layout of ATB's C++ structures, as torch_npu's plugin is compiled against them (x86-64 and aarch64 agree).

use std::ffi::c_void;
use std::mem::MaybeUninit;

use acl_abi::{DataType, TensorDesc};

use crate::error::Failure;

/// Most dimensions of an ATB tensor.
const DIMS_MAX: usize = 8;
/// Entries that a vector holds without the heap: 64 and one more that the library never uses.
const VECTOR_ENTRIES: usize = 65;
/// `aclDataType` of a result whose type is the tensor's own.
pub const TYPE_UNDEFINED: i32 = -1;

/// A shape.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Dims {
    sizes: [i64; DIMS_MAX],
    count: u64,
}

/// A tensor: contiguous, on the device or on the host.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    dtype: i32,
    format: i32,
    shape: Dims,
    device: *mut c_void,
    host: *const i32,
    bytes: u64,
}

impl Tensor {
    /// Sizes.
    ///
    /// # Errors
    /// For more dimensions than ATB has.
    pub fn dims(&self) -> Result<&[i64], Failure> {
        let count = usize::try_from(self.shape.count).ok();
        count
            .and_then(|n| self.shape.sizes.get(..n))
            .ok_or_else(|| Failure::invalid("a tensor of more than 8 dimensions"))
    }

    /// Element type.
    ///
    /// # Errors
    /// For a type that no tensor of ours can have.
    pub fn dtype(&self) -> Result<DataType, Failure> {
        DataType::from_abi(self.dtype).ok_or_else(|| Failure::unsupported(format!("aclDataType {}", self.dtype)))
    }

    /// Bytes of its elements; 0 for what is no tensor.
    pub fn bytes(&self) -> u64 {
        let desc = self.dims().and_then(|dims| Ok(TensorDesc::contiguous(0, self.dtype()?, dims)));
        desc.map_or(0, |d| d.bytes())
    }

    /// The tensor as an aclnn operator takes it.
    ///
    /// # Errors
    /// Unless it is on the device and in plain format.
    pub fn desc(&self, name: &str) -> Result<TensorDesc, Failure> {
        if self.device.is_null() && self.bytes() > 0 {
            return Err(Failure::invalid(format!("{name}: not on the device")));
        }
        if self.format != acl_abi::values::ACL_FORMAT_ND {
            return Err(Failure::unsupported(format!("{name}: format {}, only ND (2)", self.format)));
        }
        let about = |f: Failure| Failure::new(f.code, format!("{name}: {}", f.text));
        let (dtype, dims) = (self.dtype().map_err(about)?, self.dims().map_err(about)?);
        Ok(TensorDesc::contiguous(self.device.addr() as u64, dtype, dims))
    }

    /// The values of an `int32` tensor on the host.
    ///
    /// # Errors
    /// Unless it is one.
    pub fn host_ints(&self, name: &str) -> Result<Vec<i64>, Failure> {
        let &[count] = self.dims()? else {
            return Err(Failure::invalid(format!("{name}: want one dimension")));
        };
        if self.host.is_null() || self.dtype()? != DataType::I32 {
            return Err(Failure::invalid(format!("{name}: want int32 values on the host")));
        }
        let values = crate::abi::In::from(self.host);
        let mut out = Vec::new();
        values.append_to(name, usize::try_from(count).unwrap_or(0), &mut out)?;
        Ok(out.into_iter().map(i64::from).collect())
    }
}

/// ATB's vector with a fixed capacity.
#[repr(C)]
pub struct Vector<T> {
    capacity: usize,
    len: usize,
    /// Only the first `len` are written.
    storage: MaybeUninit<[T; VECTOR_ENTRIES]>,
    heap: *const T,
}

impl<T: Copy> Vector<T> {
    /// Its entries.
    ///
    /// # Errors
    /// For a length that the vector cannot have.
    pub fn entries(&self) -> Result<&[T], Failure> {
        if self.heap.is_null() && self.len >= VECTOR_ENTRIES {
            return Err(Failure::invalid(format!("a vector of {} entries", self.len)));
        }
        let first = if self.heap.is_null() { self.storage.as_ptr().cast::<T>() } else { self.heap };
        // SAFETY: by the C++ class, its first `len` entries are written, on the heap if there is one and in place otherwise.
        Ok(unsafe { std::slice::from_raw_parts(first, self.len) })
    }
}

/// What an operation works on.
#[repr(C)]
pub struct VariantPack {
    /// Read.
    pub inputs: Vector<Tensor>,
    /// Written; some are inputs too.
    pub outputs: Vector<Tensor>,
}

/// A matrix product.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LinearParam {
    /// The left matrix is handed over transposed.
    pub transpose_a: u8,
    /// The right one is.
    pub transpose_b: u8,
    /// A bias follows.
    pub has_bias: u8,
    /// Type of the result, for quantised operands.
    pub out_type: i32,
    /// The product is added to what is in the result.
    pub accumulate: u8,
    reserved: [u8; 23],
}

/// An element-wise operation.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ElewiseParam {
    /// Which.
    pub kind: i32,
    quantisation: [u32; 8],
    /// Factor of a multiplication by a scalar.
    pub factor: f32,
    factor_reserved: [u8; 12],
    /// Type of the result of a cast.
    pub out_type: i32,
    reserved: [u8; 8],
}

/// Normalisation by the root mean square.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RmsNormParam {
    /// Which of the three below holds.
    pub layer: i32,
    /// Alone.
    pub norm: NormParam,
    /// After an addition.
    pub before: ResidualNormParam,
    /// Before an addition.
    pub after: ResidualNormParam,
    reserved: [u8; 8],
}

/// Parameters of a normalisation alone.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NormParam {
    /// Quantisation of the result.
    pub quantisation: i32,
    /// Added below the root.
    pub epsilon: f32,
    layer_norm_epsilon: f64,
    /// The reciprocal root is a result too.
    pub rstd: u8,
    /// How intermediate values are kept.
    pub precision: i32,
    /// Whose formula.
    pub model: i32,
    /// Quantisation with a scale of each row.
    pub dynamic_quantisation: i32,
    reserved: [u8; 32],
}

/// Parameters of a normalisation with an addition.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ResidualNormParam {
    /// Quantisation of the result.
    pub quantisation: i32,
    /// Added below the root.
    pub epsilon: f32,
    /// A bias is added first.
    pub has_bias: u8,
    reserved: [u8; 23],
}

/// Writes keys and values into a paged cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ReshapeAndCacheParam {
    /// Compression of the heads.
    pub compression: i32,
    /// Which caches, in which format.
    pub caches: i32,
    reserved: [u8; 16],
}

/// Rotary position embedding.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RopeParam {
    /// 2: halves turn against each other; the head size: neighbours do.
    pub coefficient: i32,
    /// Layout of the tables.
    pub table_format: i32,
    reserved: [u8; 8],
}

/// Attention over keys and values that lie side by side.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SelfAttentionParam {
    /// Quantisation of the operands.
    pub quantisation: i32,
    /// Type of the result, for quantised operands.
    pub out_type: i32,
    /// Query heads.
    pub heads: i32,
    /// Key and value heads; 0 for as many.
    pub kv_heads: i32,
    /// Factor of the queries.
    pub query_scale: f32,
    /// Factor of the products.
    pub scale: f32,
    /// Sequences can be left out.
    pub batch_status: u8,
    /// The mask is a triangle.
    pub triangle: u32,
    /// Which attention.
    pub calculation: i32,
    /// Precision of intermediate values; ours are in single precision.
    pub kernel: i32,
    /// Products are limited.
    pub clamp: i32,
    clamp_limits: [f32; 2],
    /// Kind of mask.
    pub mask: i32,
    /// Which caches are used.
    pub caches: i32,
    /// How products are scaled.
    pub scale_kind: i32,
    /// Order of dimensions.
    pub layout: i32,
    /// Head size of the values, for latent attention.
    pub value_head: u32,
    /// Layout of the cache.
    pub cache_kind: i8,
    /// Length of a window, or 0.
    pub window: u32,
    reserved: [u8; 64],
}

/// Attention of one token each over a paged cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PagedAttentionParam {
    /// Query heads.
    pub heads: i32,
    /// Factor of the products.
    pub scale: f32,
    /// Key and value heads; 0 for as many.
    pub kv_heads: i32,
    /// Kind of mask.
    pub mask: i32,
    /// Sequences can be left out.
    pub batch_status: u8,
    /// Quantisation of the operands.
    pub quantisation: i32,
    /// Type of the result, for quantised operands.
    pub out_type: i32,
    /// An offset belongs to the quantisation.
    pub quantisation_offset: u8,
    /// Compression of the heads.
    pub compression: i32,
    /// Several tokens a sequence.
    pub calculation: i32,
    /// How products are scaled.
    pub scale_kind: i32,
    /// Order of dimensions.
    pub layout: i32,
    /// Head size of the values, for latent attention.
    pub value_head: u32,
    reserved: [u8; 68],
}

// Sizes as the C++ compiler gives them to the plugin's structures.
const _: () = assert!(size_of::<Tensor>() == 104);
const _: () = assert!(size_of::<VariantPack>() == 2 * (16 + 65 * 104 + 8));
const _: () = assert!(size_of::<LinearParam>() == 32);
const _: () = assert!(size_of::<ElewiseParam>() == 64);
const _: () = assert!(size_of::<RmsNormParam>() == 144);
const _: () = assert!(size_of::<ReshapeAndCacheParam>() == 24);
const _: () = assert!(size_of::<RopeParam>() == 16);
const _: () = assert!(size_of::<SelfAttentionParam>() == 144);
const _: () = assert!(size_of::<PagedAttentionParam>() == 120);
