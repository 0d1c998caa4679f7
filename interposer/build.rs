//! Writes the parts of the C ABI that come from tables: both phases of every operator the device computes, a refusal for every
//! other function that a client needs in order to load, and the list of what is covered (which `vnpu functions` reads out of
//! the built library).
//!
//! What is written by hand is found by scanning `src/api/`, and its parameters are checked against the table: a function that
//! the table does not know, or whose parameter count or float placement differs, fails the build.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use acl_abi::codegen::first_phase_params;
use acl_abi::function::{Binding, FUNCTIONS};
use acl_abi::{Kind, SIGNATURES, Signature};

/// Tests that the coverage table names for a function, at most.
const TESTS_MAX: usize = 3;

/// One C function, from either table.
struct Function {
    name: String,
    torch: Binding,
    result: String,
    params: String,
}

fn rows(path: &str) -> Vec<Vec<String>> {
    println!("cargo:rerun-if-changed={path}");
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    lines.map(|l| l.split('\t').map(str::to_owned).collect()).collect()
}

fn functions() -> Vec<Function> {
    let table = FUNCTIONS.iter().map(|f| Function {
        name: f.name.to_owned(),
        torch: f.torch,
        result: f.result.to_owned(),
        params: f.params.to_owned(),
    });
    let more = rows("data/more_functions.tsv").into_iter().map(|row| {
        let [name, _, binding, result, params] = &row[..] else {
            panic!("data/more_functions.tsv: 5 columns: {row:?}")
        };
        let torch = match binding.as_str() {
            "link" => Binding::Link,
            "dlsym" => Binding::Dlsym,
            "-" => Binding::Unused,
            other => panic!("data/more_functions.tsv: unknown binding `{other}`"),
        };
        Function { name: name.clone(), torch, result: result.clone(), params: params.clone() }
    });
    table.chain(more).collect()
}

/// Client → how it binds the function, for every function of `data/clients.tsv`.
fn clients() -> BTreeMap<String, Vec<(String, String)>> {
    let mut out: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for row in rows("data/clients.tsv") {
        let [function, client, how] = &row[..] else { panic!("data/clients.tsv: want 3 columns in {row:?}") };
        assert!(how == "link" || how == "dlsym", "data/clients.tsv: unknown binding `{how}`");
        out.entry(function.clone()).or_default().push((client.clone(), how.clone()));
    }
    out
}

/// The exported functions of one source file, with their parameter types.
fn exported(text: &str) -> Vec<(String, Vec<String>)> {
    let mut out = Vec::new();
    for part in text.split("pub extern \"C\" fn ").skip(1) {
        let open = part.find('(').expect("a function has parameters");
        let close = part.find(')').expect("a parameter list ends");
        let types = part[open + 1..close].split(',').filter_map(|p| p.split_once(':'));
        out.push((part[..open].to_owned(), types.map(|(_, t)| t.trim().to_owned()).collect()));
    }
    out
}

/// A function in `src/api/`.
struct ByHand {
    /// Its parameter types.
    types: Vec<String>,
    /// It only says what is not supported.
    refuses: bool,
}

fn by_hand() -> BTreeMap<String, ByHand> {
    println!("cargo:rerun-if-changed=src/api");
    let mut out = BTreeMap::new();
    let mut files: Vec<PathBuf> =
        fs::read_dir("src/api").expect("src/api exists").map(|e| e.expect("readable").path()).collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).expect("sources are readable");
        let refuses = file.ends_with("refusals.rs");
        for (name, types) in exported(&text) {
            assert!(out.insert(name.clone(), ByHand { types, refuses }).is_none(), "{name} is exported twice");
        }
    }
    out
}

/// Panics unless the hand-written parameters fit the C list: their number, and which of them are floats.
fn check_parameters(function: &Function, types: &[String]) {
    let c_params = function.params.trim();
    let c_types: Vec<&str> = match c_params {
        "" | "void" => Vec::new(),
        list => list.split(',').map(str::trim).filter(|p| *p != "...").collect(),
    };
    assert_eq!(c_types.len(), types.len(), "{}: the table has ({c_params}), src/api has {types:?}", function.name);
    for (c, rust) in c_types.iter().zip(types) {
        let by_value_float = |t: &str| !t.contains('*') && (t.starts_with("float") || t.starts_with("double"));
        let float = by_value_float(c);
        assert_eq!(float, rust == "f32" || rust == "f64", "{}: `{c}` against `{rust}`", function.name);
        let pointer = c.contains('*') || c.contains('[');
        let rust_pointer = rust.contains('*')
            || rust.starts_with("Out<")
            || rust.starts_with("In<")
            || rust == "Text"
            || rust == "Opaque";
        assert!(!pointer || rust_pointer, "{}: `{c}` is a pointer, `{rust}` is not", function.name);
    }
}

/// Rust return type and value of a refusal, by C return type. `None`: no return value.
fn refusal(result: &str) -> Option<(&'static str, &'static str)> {
    let result = result.trim();
    match result {
        "void" => None,
        "aclError" | "aclnnStatus" | "rtError_t" => Some(("i32", "crate::stub::NOT_SUPPORTED")),
        "HcclResult" => Some(("i32", "acl_abi::values::HCCL_E_NOT_SUPPORT")),
        // -1 is the undefined member of each of these enumerations, and the failure of an int32_t function.
        "aclDataType" | "aclFormat" | "acltdtTensorType" | "int32_t" => Some(("i32", "-1")),
        "bool" => Some(("bool", "false")),
        "size_t" => Some(("usize", "0")),
        "uint32_t" => Some(("u32", "0")),
        "uint64_t" => Some(("u64", "0")),
        "int64_t" => Some(("i64", "-1")),
        "float" => Some(("f32", "f32::NAN")),
        "aclFloat16" => Some(("u16", "0x7e00")),
        _ if result.ends_with('*') || matches!(result, "aclrtBinary" | "aclrtAllocatorDesc") => {
            Some(("*mut ::core::ffi::c_void", "::core::ptr::null_mut()"))
        }
        other => panic!("no refusal for return type `{other}`"),
    }
}

/// Function → tests that name it, from the sources of this crate's tests: `file::test`, or `common` for what the tests'
/// common functions call.
fn tested(functions: &[Function]) -> BTreeMap<String, Vec<String>> {
    println!("cargo:rerun-if-changed=tests");
    let known: BTreeSet<&str> = functions.iter().map(|f| f.name.as_str()).collect();
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut note = |text: &str, what: &str| {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| known.contains(w));
        for word in words {
            let tests = out.entry(word.to_owned()).or_default();
            if !tests.iter().any(|t| t == what) {
                tests.push(what.to_owned());
            }
        }
    };
    let common = fs::read_to_string("tests/common/mod.rs").expect("tests have common functions");
    let helpers = common.split_once("impl Acl {").map_or("", |(_, rest)| rest);
    for call in helpers.split("(self.").skip(1) {
        note(call.split(')').next().unwrap_or(""), "common");
    }
    let mut files: Vec<PathBuf> =
        fs::read_dir("tests").expect("tests exist").map(|e| e.expect("readable").path()).collect();
    files.sort();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "rs")) {
        let text = fs::read_to_string(file).expect("sources are readable");
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let mut parts = text.split("#[test]\n");
        // What stands before the first test is used by several of them.
        note(parts.next().unwrap_or(""), &stem);
        for part in parts {
            let name = part.split_once("fn ").and_then(|(_, rest)| rest.split_once('(')).map_or("", |(name, _)| name);
            note(part, &format!("{stem}::{name}"));
        }
    }
    out
}

/// Writes the refusals, the names for the counters, and the coverage table.
fn stubs() -> (String, String) {
    let (functions, clients, by_hand) = (functions(), clients(), by_hand());
    for name in by_hand.keys().chain(clients.keys()) {
        assert!(functions.iter().any(|f| &f.name == name), "{name} is in no function table");
    }
    let tested = tested(&functions);
    let (mut code, mut names, mut coverage) = (String::new(), String::new(), String::new());
    let mut count = 0;
    for function in &functions {
        let name = &function.name;
        let others = clients.get(name).map_or(&[][..], Vec::as_slice);
        // torch_npu only prints a notice when a function it looked up answers "not supported", and goes on as if it had
        // worked; without the symbol it raises an error that names the function. So what is only looked up stays absent.
        let linked = function.torch != Binding::Dlsym || others.iter().any(|(_, how)| how == "link");
        let state = match by_hand.get(name) {
            Some(ByHand { types, refuses }) => {
                check_parameters(function, types);
                if *refuses {
                    writeln!(names, "    \"{name}\",").unwrap();
                    count += 1;
                }
                if *refuses { "refused" } else { "supported" }
            }
            None if !linked => "absent",
            None => {
                let (arrow, value) = match refusal(&function.result) {
                    Some((ty, value)) => (format!(" -> {ty}"), value),
                    None => (String::new(), ""),
                };
                writeln!(
                    code,
                    "/// `{result} {name}({params})`: refused.\n#[unsafe(no_mangle)]\npub extern \"C\" fn {name}(){arrow} {{\n    \
                     crate::stub::refuse({count});\n    {value}\n}}",
                    result = function.result.trim(),
                    params = function.params.trim(),
                )
                .unwrap();
                writeln!(names, "    \"{name}\",").unwrap();
                count += 1;
                "refused"
            }
        };
        let torch = match function.torch {
            Binding::Link => Some("torch_npu:link".to_owned()),
            Binding::Dlsym => Some("torch_npu:dlsym".to_owned()),
            Binding::Unused => None,
        };
        let users = torch.into_iter().chain(others.iter().map(|(client, how)| format!("{client}:{how}")));
        let users = users.collect::<Vec<_>>().join(" ");
        let tests = tested.get(name).map_or(&[][..], Vec::as_slice);
        // A few are enough to find the others.
        let tests = tests.iter().take(TESTS_MAX).map(String::as_str).collect::<Vec<_>>().join(" ");
        writeln!(coverage, "{name}\t{state}\t{users}\t{tests}").unwrap();
    }
    let code = format!(
        "/// Refused functions, in the order of their counters.\npub static REFUSED: [&str; {count}] = [\n{names}];\n\n{code}"
    );
    (code, coverage)
}

/// How phase one hands parameter `i` to the capture.
fn capture(signature: &Signature, i: usize) -> String {
    match signature.params[i].kind {
        Kind::Tensor => format!("c.tensor(a{i})?;"),
        Kind::TensorOut => format!("c.tensor_out(a{i})?;"),
        Kind::TensorList => format!("c.tensor_list(a{i})?;"),
        Kind::TensorListOut => format!("c.tensor_list(a{i})?;"),
        Kind::Scalar => format!("c.scalar(a{i})?;"),
        Kind::ScalarList => format!("c.scalar_list(a{i})?;"),
        Kind::IntArray => format!("c.int_array(a{i})?;"),
        Kind::BoolArray => format!("c.bool_array(a{i})?;"),
        Kind::FloatArray => format!("c.float_array(a{i})?;"),
        Kind::Str => format!("c.text(a{i})?;"),
        Kind::DType => format!("c.push(Arg::DType(a{i}));"),
        Kind::Bool => format!("c.push(Arg::Bool(a{i}.get()));"),
        Kind::I8 | Kind::I32 => format!("c.push(Arg::Int(i64::from(a{i})));"),
        Kind::I64 => format!("c.push(Arg::Int(a{i}));"),
        Kind::U64 => format!("c.push(Arg::UInt(a{i}));"),
        Kind::F32 => format!("c.push(Arg::Float(f64::from(a{i})));"),
        Kind::F64 => format!("c.push(Arg::Float(a{i}));"),
    }
}

/// Operators whose largest workspace clients ask for before they capture one.
const MAX_WORKSPACE: [&str; 2] = ["aclnnFusedInferAttentionScoreV3", "aclnnFusedInferAttentionScoreV4"];

/// Both phases of every emulated operator.
fn operators() -> String {
    let mut code = String::new();
    for signature in SIGNATURES.iter().filter(|s| s.emulated) {
        let name = signature.name;
        // A C caller's pointer reaches the funnel as `Out`, which checks it for null before it writes.
        let params = first_phase_params(signature)
            .replace("workspace_size: *mut u64", "workspace_size: Out<u64>")
            .replace("executor: *mut *mut ::core::ffi::c_void", "executor: Out<*mut ::core::ffi::c_void>")
            .replace("*const ::core::ffi::c_char", "Text")
            // A byte, because a caller may leave anything in it, and a Rust `bool` may hold only 0 and 1.
            .replace(": bool", ": Flag");
        let body: String = (0..signature.params.len()).map(|i| capture(signature, i) + " ").collect();
        writeln!(
            code,
            "/// Phase one of `{name}`: records the arguments.\n#[unsafe(no_mangle)]\npub extern \"C\" fn {name}GetWorkspaceSize({params}) -> i32 {{\n    \
             first_phase(ops::{name}, \"{name}GetWorkspaceSize\", workspace_size, executor, |c| {{ {body}Ok(()) }})\n}}\n\
             /// Phase two of `{name}`: posts the call to `stream`.\n#[unsafe(no_mangle)]\npub extern \"C\" fn {name}(_workspace: *mut ::core::ffi::c_void, _workspace_size: u64, \
             executor: *mut ::core::ffi::c_void, stream: *mut ::core::ffi::c_void) -> i32 {{\n    \
             second_phase(ops::{name}, \"{name}\", executor, stream)\n}}",
        )
        .unwrap();
        if MAX_WORKSPACE.contains(&name) {
            writeln!(
                code,
                "/// As phase one of `{name}`; the largest workspace is none too.\n#[unsafe(no_mangle)]\n\
                 pub extern \"C\" fn {name}GetMaxWorkspaceSize({params}) -> i32 {{\n    \
                 first_phase(ops::{name}, \"{name}GetMaxWorkspaceSize\", workspace_size, executor, |c| {{ {body}Ok(()) }})\n}}",
            )
            .unwrap();
        }
    }
    code
}

fn main() {
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let write = |name: &str, text: String| fs::write(Path::new(&out).join(name), text).expect("OUT_DIR is writable");
    write("operators.rs", operators());
    let (stubs, coverage) = stubs();
    write("stubs.rs", stubs);
    write("coverage.tsv", coverage);
    // Threads of ours run code of this library until the process ends: it must never be unmapped.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
}
