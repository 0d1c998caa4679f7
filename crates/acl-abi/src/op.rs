//! Operator signatures: the parameters of `aclnn<Op>GetWorkspaceSize`, in C order.

/// Kind of one parameter: decides its C type and how it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `const aclTensor *`; null where optional. Some outputs are declared so too.
    Tensor,
    /// `aclTensor *` that the operator writes.
    TensorOut,
    /// `const aclTensorList *`.
    TensorList,
    /// `aclTensorList *` that the operator writes.
    TensorListOut,
    /// `const aclScalar *`.
    Scalar,
    /// `const aclScalarList *`.
    ScalarList,
    /// `const aclIntArray *`.
    IntArray,
    /// `const aclBoolArray *`.
    BoolArray,
    /// `const aclFloatArray *`.
    FloatArray,
    /// `const char *`, NUL-terminated.
    Str,
    /// `aclDataType`.
    DType,
    /// `bool`.
    Bool,
    /// `int8_t`.
    I8,
    /// `int32_t`.
    I32,
    /// `int64_t`.
    I64,
    /// `uint64_t`.
    U64,
    /// `float`: travels in a vector register.
    F32,
    /// `double`: travels in a vector register.
    F64,
}

/// One parameter of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Name in the C header.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
}

/// One operator: `<name>GetWorkspaceSize(params…, uint64_t *workspaceSize, aclOpExecutor **executor)` and
/// `<name>(void *workspace, uint64_t workspaceSize, aclOpExecutor *executor, aclrtStream stream)`.
#[derive(Clone, Copy, Debug)]
pub struct Signature {
    /// Symbol of the second phase, `aclnn…`.
    pub name: &'static str,
    /// True where torch_npu 2.14 names the operator.
    pub torch: bool,
    /// True where the emulated device computes the operator.
    pub emulated: bool,
    /// Parameters in C order.
    pub params: &'static [Param],
}

impl Signature {
    /// Position of the parameter called `name`.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.params.iter().position(|p| p.name == name)
    }
}

/// Index into [`SIGNATURES`]. Meaningful only between builds that agree on [`SIGNATURES_DIGEST`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u16);

impl OpId {
    /// The operator whose second phase is `name`.
    pub fn by_name(name: &str) -> Option<Self> {
        let index = SIGNATURES.binary_search_by(|s| s.name.cmp(name)).ok()?;
        u16::try_from(index).ok().map(Self)
    }

    /// Checks an index that came from outside.
    pub fn checked(index: u16) -> Option<Self> {
        (usize::from(index) < SIGNATURES.len()).then_some(Self(index))
    }

    /// Signature.
    ///
    /// # Panics
    /// Never for an id made by this crate's constructors or constants.
    pub fn signature(self) -> &'static Signature {
        &SIGNATURES[usize::from(self.0)]
    }

    /// Symbol of the second phase.
    pub fn name(self) -> &'static str {
        self.signature().name
    }
}

include!(concat!(env!("OUT_DIR"), "/signatures.rs"));

/// One [`OpId`] constant an operator, named after its second phase.
#[allow(non_upper_case_globals)]
pub mod ops {
    use super::OpId;
    include!(concat!(env!("OUT_DIR"), "/op_ids.rs"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_agree() {
        for (i, s) in SIGNATURES.iter().enumerate() {
            assert_eq!(OpId::by_name(s.name), Some(OpId(i as u16)), "{}", s.name);
        }
        assert_eq!(ops::aclnnMatmul.name(), "aclnnMatmul");
        assert_eq!(OpId::by_name("aclnnNoSuchOperator"), None);
        assert_eq!(OpId::checked(u16::MAX), None);
    }

    #[test]
    fn floats_keep_their_kind() {
        let s = ops::aclnnFusedInferAttentionScoreV3.signature();
        assert_eq!(s.params[s.position("scaleValue").unwrap()].kind, Kind::F64);
        assert_eq!(s.params.len(), 42);
    }
}
