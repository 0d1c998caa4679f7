//! Turns the tables under `data/` into Rust constants: every AscendCL value, every operator signature, every C function.

use std::fmt::Write as _;
use std::{env, fs, path::Path};

fn rows(path: &str) -> Vec<Vec<String>> {
    println!("cargo:rerun-if-changed={path}");
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    lines.map(|l| l.split('\t').map(str::to_owned).collect()).collect()
}

/// The first column of a table.
fn rows_of_one(path: &str) -> impl Iterator<Item = String> {
    rows(path).into_iter().filter_map(|mut row| (!row.is_empty()).then(|| row.swap_remove(0)))
}

/// A value of the table as an integer, or `None` for strings and preprocessor text.
fn integer(text: &str) -> Option<i64> {
    let text = text.trim().trim_start_matches('(').trim_end_matches(')').trim_end_matches(['U', 'L', 'u', 'l']);
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |d| (-1, d));
    let magnitude = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) => i64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(sign * magnitude)
}

fn values() -> String {
    let mut out = String::new();
    let mut seen = std::collections::BTreeSet::new();
    for row in rows("data/acl_values.tsv") {
        let [owner, name, value] = &row[..] else { panic!("data/acl_values.tsv: want 3 columns in {row:?}") };
        let Some(value) = integer(value) else { continue };
        if !seen.insert(name.clone()) {
            continue;
        }
        let ty = if i32::try_from(value).is_ok() { "i32" } else { "i64" };
        writeln!(out, "/// `{name}` of `{owner}`.\npub const {name}: {ty} = {value};").unwrap();
    }
    out
}

fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

fn kind(text: &str) -> &'static str {
    match text {
        "tensor" => "Tensor",
        "tensor_out" => "TensorOut",
        "tensor_list" => "TensorList",
        "tensor_list_out" => "TensorListOut",
        "scalar" => "Scalar",
        "scalar_list" => "ScalarList",
        "int_array" => "IntArray",
        "bool_array" => "BoolArray",
        "float_array" => "FloatArray",
        "str" => "Str",
        "dtype" => "DType",
        "bool" => "Bool",
        "i8" => "I8",
        "i32" => "I32",
        "i64" => "I64",
        "u64" => "U64",
        "f32" => "F32",
        "f64" => "F64",
        other => panic!("data/aclnn.tsv: unknown argument kind `{other}`"),
    }
}

fn operators() -> (String, String) {
    let mut table = String::from(
        "/// Every operator signature, sorted by name; [`OpId`] indexes it.\npub static SIGNATURES: &[Signature] = &[\n",
    );
    let mut ids = String::new();
    let mut digest = String::new();
    let rows = rows("data/aclnn.tsv");
    let mut emulated: std::collections::BTreeSet<String> = rows_of_one("data/emulated.txt").collect();
    assert!(rows.windows(2).all(|w| w[0][0] < w[1][0]), "data/aclnn.tsv: rows must be sorted by operator, each once");
    for (index, row) in rows.iter().enumerate() {
        let [name, torch, args] = &row[..] else { panic!("data/aclnn.tsv: want 3 columns in {row:?}") };
        write!(
            table,
            "    Signature {{ name: \"{name}\", torch: {}, emulated: {}, params: &[",
            torch == "1",
            emulated.remove(name)
        )
        .unwrap();
        for arg in args.split(' ') {
            let (arg_name, arg_kind) =
                arg.split_once(':').unwrap_or_else(|| panic!("{name}: `{arg}` is not name:kind"));
            write!(table, "Param {{ name: \"{arg_name}\", kind: Kind::{} }}, ", kind(arg_kind)).unwrap();
        }
        table.push_str("] },\n");
        writeln!(ids, "/// `{name}`.\npub const {name}: OpId = OpId({index});").unwrap();
        writeln!(digest, "{name} {args}").unwrap();
    }
    assert!(emulated.is_empty(), "data/emulated.txt: no such operator in data/aclnn.tsv: {emulated:?}");
    table.push_str("];\n");
    writeln!(
        table,
        "/// Digest (FNV-1a) of names and parameters: two builds that agree on it agree on every [`OpId`]."
    )
    .unwrap();
    writeln!(table, "pub const SIGNATURES_DIGEST: u64 = {:#x};", fnv1a(&digest)).unwrap();
    (table, ids)
}

fn functions() -> String {
    let mut out = String::from(
        "/// Every C function of the AscendCL headers, in table order.\npub static FUNCTIONS: &[Function] = &[\n",
    );
    for row in rows("data/acl.tsv") {
        let [name, header, binding, result, args] = &row[..] else { panic!("data/acl.tsv: want 5 columns in {row:?}") };
        let binding = match binding.as_str() {
            "link" => "Link",
            "dlsym" => "Dlsym",
            "-" => "Unused",
            other => panic!("data/acl.tsv: unknown binding `{other}`"),
        };
        writeln!(
            out,
            "    Function {{ name: {name:?}, header: {header:?}, torch: Binding::{binding}, result: {result:?}, params: {args:?} }},"
        )
        .unwrap();
    }
    out.push_str("];\n");
    out
}

fn main() {
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let write = |name: &str, text: String| fs::write(Path::new(&out).join(name), text).expect("OUT_DIR is writable");
    write("values.rs", values());
    let (table, ids) = operators();
    write("signatures.rs", table);
    write("op_ids.rs", ids);
    write("functions.rs", functions());
}
