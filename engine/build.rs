//! Generates the typed table of the operators this engine calls from the signatures in `acl-abi`.
//!
//! Floats travel in other registers than integers, so each operator's first phase needs its exact C type; generating it
//! from the one table keeps caller and callee in agreement.

use std::fmt::Write as _;
use std::{env, fs, path::Path};

use acl_abi::{OpId, codegen};

/// Every operator that the engine calls.
const OPERATORS: &[&str] = &[
    "aclnnAddRmsNorm",
    "aclnnAddmm",
    "aclnnArgMax",
    "aclnnEmbedding",
    "aclnnFusedInferAttentionScoreV3",
    "aclnnIndexSelect",
    "aclnnMatmul",
    "aclnnRmsNorm",
    "aclnnRotaryPositionEmbedding",
    "aclnnScatterPaKvCache",
    "aclnnSwiGlu",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let mut fields = String::new();
    let mut loads = String::new();
    for name in OPERATORS {
        let id = OpId::by_name(name).unwrap_or_else(|| panic!("{name} is not in the signature table"));
        let first = codegen::first_phase_type(id.signature());
        writeln!(fields, "    /// `{name}`.\n    pub {name}: Operator<{first}>,").unwrap();
        writeln!(
            loads,
            "            {name}: Operator::load(library, \"{name}\", c\"{name}GetWorkspaceSize\", c\"{name}\")?,"
        )
        .unwrap();
    }
    let text = format!(
        "/// The operators this engine calls, resolved.\n\
         #[allow(non_snake_case, clippy::type_complexity)]\n\
         pub(super) struct Operators {{\n{fields}}}\n\n\
         #[allow(non_snake_case)]
         impl Operators {{\n    \
             /// Resolves every operator.\n    \
             pub(super) fn load(library: &super::library::Lib) -> Result<Self, super::library::LoadError> {{\n        \
                 Ok(Self {{\n{loads}        }})\n    }}\n}}\n"
    );
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("operators.rs"), text).expect("OUT_DIR is writable");
}
