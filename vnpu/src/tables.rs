//! What is supported: operators from the signature table, functions from the library itself.
//!
//! The library carries the list it was generated from in a section of its own, so that `vnpu functions` tells of the
//! library that will be used, whatever release it is.

use std::fmt::Write as _;
use std::path::Path;

use acl_abi::SIGNATURES;
use anyhow::Context as _;
use object::{Object as _, ObjectSection as _};
use serde_json::{Map, Value};

/// Section of the library that holds the list: name, state, users, tests; tab-separated lines.
const SECTION: &str = ".vnpu.coverage";

/// Rows to print.
pub struct Table {
    columns: &'static [&'static str],
    rows: Vec<Row>,
}

struct Row {
    name: String,
    supported: bool,
    /// The remaining columns.
    cells: Vec<Value>,
}

/// Every operator that has a signature.
pub fn operators() -> Table {
    let row = |s: &acl_abi::Signature| Row {
        name: s.name.to_owned(),
        supported: s.emulated,
        cells: vec![Value::Bool(s.torch)],
    };
    Table { columns: &["operator", "supported", "torch_npu"], rows: SIGNATURES.iter().map(row).collect() }
}

/// Every C function, as the library at `path` was built.
///
/// # Errors
/// If that is no library of ours.
pub fn functions(path: &Path) -> anyhow::Result<Table> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let text = section(&bytes).with_context(|| format!("{} is not the interposer library", path.display()))?;
    Ok(Table {
        columns: &["function", "supported", "state", "used by", "tested by"],
        rows: text.lines().map(function).collect(),
    })
}

fn section(library: &[u8]) -> anyhow::Result<String> {
    let file = object::File::parse(library)?;
    let section = file.section_by_name(SECTION).with_context(|| format!("no section {SECTION}"))?;
    Ok(String::from_utf8(section.data()?.to_vec())?)
}

fn function(line: &str) -> Row {
    let mut fields = line.split('\t');
    let mut next = || fields.next().unwrap_or_default();
    let (name, state) = (next().to_owned(), next());
    let mut list = || Value::Array(next().split(' ').filter(|u| !u.is_empty()).map(Value::from).collect());
    let (users, tests) = (list(), list());
    Row { name, supported: state == "supported", cells: vec![state.into(), users, tests] }
}

impl Table {
    /// The table as text or as a JSON array of objects.
    pub fn render(&self, json: bool, supported_only: bool) -> String {
        let rows = self.rows.iter().filter(|r| r.supported || !supported_only);
        if json { self.json(rows) } else { self.text(rows) }
    }

    fn json<'a>(&self, rows: impl Iterator<Item = &'a Row>) -> String {
        let object = |row: &Row| {
            let cells =
                [Value::from(row.name.as_str()), Value::Bool(row.supported)].into_iter().chain(row.cells.clone());
            let names = self.columns.iter().map(|c| c.replace(' ', "_"));
            Value::Object(names.zip(cells).collect::<Map<_, _>>())
        };
        let mut text = serde_json::to_string_pretty(&Value::Array(rows.map(object).collect())).unwrap_or_default();
        text.push('\n');
        text
    }

    fn text<'a>(&self, rows: impl Iterator<Item = &'a Row>) -> String {
        let lines: Vec<Vec<String>> = rows
            .map(|r| {
                let own = [r.name.clone(), cell(&Value::Bool(r.supported))];
                own.into_iter().chain(r.cells.iter().map(cell)).collect()
            })
            .collect();
        let head: Vec<String> = self.columns.iter().map(|c| (*c).to_owned()).collect();
        let widths: Vec<usize> = (0..head.len())
            .map(|i| lines.iter().chain([&head]).map(|l| l[i].chars().count()).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for line in std::iter::once(&head).chain(&lines) {
            let mut text = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(text, "{cell:<width$}  ");
            }
            let _ = writeln!(out, "{}", text.trim_end());
        }
        let supported = self.rows.iter().filter(|r| r.supported).count();
        let _ = writeln!(out, "\n{supported} of {} supported", self.rows.len());
        out
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_come_from_the_signature_table() {
        let table = operators();
        assert_eq!(table.rows.len(), SIGNATURES.len());
        let parsed: Value = serde_json::from_str(&table.render(true, true)).unwrap();
        let names: Vec<&str> = parsed.as_array().unwrap().iter().filter_map(|r| r["operator"].as_str()).collect();
        assert!(names.contains(&"aclnnMatmul") && !names.contains(&"aclnnMatmulAllReduce"), "{names:?}");
        let text = table.render(false, false);
        assert!(text.starts_with("operator") && text.contains("supported\n"), "{text}");
    }

    #[test]
    fn function_lines_become_rows() {
        let row = function("aclrtMalloc\tsupported\ttorch_npu:link llama.cpp:link\tmemory::a memory::b");
        assert_eq!((row.name.as_str(), row.supported), ("aclrtMalloc", true));
        assert_eq!(cell(&row.cells[1]), "torch_npu:link llama.cpp:link");
        assert_eq!(cell(&row.cells[2]), "memory::a memory::b");
        let row = function("aclmdlLoadFromFile\trefused\t\t");
        assert_eq!((row.supported, cell(&row.cells[1]).as_str()), (false, ""));
    }

    #[test]
    fn other_files_are_no_library() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.so");
        std::fs::write(&path, "not ELF").unwrap();
        let error = format!("{:#}", functions(&path).err().unwrap());
        assert!(error.contains("is not the interposer library"), "{error}");
    }
}
