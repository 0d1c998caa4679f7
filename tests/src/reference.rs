//! The reference pages under `docs/reference/`, made from the API descriptions under `openapi/`.
//!
//! `cargo xtask reference` writes them; a test holds them against the descriptions.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// Descriptions that have a page.
const APIS: [&str; 2] = ["gateway", "daemon"];

/// Each page's place and text.
///
/// # Errors
/// If a description cannot be read.
pub fn pages() -> Result<Vec<(PathBuf, String)>> {
    let root = stack::source_root()?;
    let page = |name: &str| {
        let file = root.join(format!("openapi/{name}.yaml"));
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let api: Value = serde_yaml_ng::from_str(&text).with_context(|| file.display().to_string())?;
        Ok((root.join(format!("docs/reference/{name}.md")), self::page(name, &api)))
    };
    APIS.into_iter().map(page).collect()
}

fn page(name: &str, api: &Value) -> String {
    let mut out = format!("<!-- made from openapi/{name}.yaml by `cargo xtask reference` -->\n");
    let info = &api["info"];
    let _ = write!(
        out,
        "# API of {}\n\n{}\n\n{}\n",
        text(&info["title"]),
        text(&info["summary"]),
        text(&info["description"])
    );
    for (path, methods) in &members(&api["paths"]) {
        for (method, operation) in &members(methods) {
            let _ = write!(out, "\n## {} {path}\n\n{}\n", method.to_uppercase(), text(&operation["summary"]));
            paragraph(&mut out, &operation["description"]);
            inputs(&mut out, operation);
            answers(&mut out, &operation["responses"], api);
        }
    }
    out.push_str("\n# Objects\n");
    for (name, schema) in &members(&api["components"]["schemas"]) {
        let _ = write!(out, "\n## {name}\n");
        paragraph(&mut out, &schema["description"]);
        fields(&mut out, schema);
    }
    out
}

/// Parameters and body of a request.
fn inputs(out: &mut String, operation: &Value) {
    let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    let bodies = members(&operation["requestBody"]["content"]);
    if parameters.is_empty() && bodies.is_empty() {
        return;
    }
    out.push_str("\n| takes | type | |\n|---|---|---|\n");
    for parameter in parameters {
        let (name, place, schema) = (text(&parameter["name"]), text(&parameter["in"]), &parameter["schema"]);
        let _ =
            writeln!(out, "| `{name}` ({place}) | {} | {} |", kind(schema), cell(&parameter["description"], schema));
    }
    for (media, body) in &bodies {
        let _ =
            writeln!(out, "| body, `{media}` | {} | {} |", kind(&body["schema"]), cell(&Value::Null, &body["schema"]));
    }
    for body in bodies.values() {
        fields(out, &body["schema"]);
    }
}

fn answers(out: &mut String, responses: &Value, api: &Value) {
    out.push_str("\n| answers | | body |\n|---|---|---|\n");
    for (status, response) in &members(responses) {
        let named = response["$ref"].as_str().and_then(|r| api.pointer(r.trim_start_matches('#')));
        let response = named.unwrap_or(response);
        let bodies = members(&response["content"]);
        let bodies: Vec<String> =
            bodies.iter().map(|(media, body)| format!("`{media}`: {}", kind(&body["schema"]))).collect();
        let _ = writeln!(out, "| {status} | {} | {} |", line(&response["description"]), bodies.join("; "));
    }
}

/// The members of an object, those of parts of it and of objects inside it included.
fn fields(out: &mut String, schema: &Value) {
    let mut rows = Vec::new();
    collect(schema, "", &mut rows);
    if !rows.is_empty() {
        out.push_str("\n| member | type | |\n|---|---|---|\n");
        rows.iter().for_each(|row| out.push_str(row));
    }
}

fn collect(schema: &Value, before: &str, rows: &mut Vec<String>) {
    for part in schema["allOf"].as_array().into_iter().flatten() {
        match part["$ref"].as_str() {
            Some(_) => rows.push(format!("| … | {} | all of its members |\n", kind(part))),
            None => collect(part, before, rows),
        }
    }
    for (name, member) in &members(&schema["properties"]) {
        rows.push(format!("| `{before}{name}` | {} | {} |\n", kind(member), cell(&Value::Null, member)));
        collect(member, &format!("{before}{name}."), rows);
        collect(&member["items"], &format!("{before}{name}[]."), rows);
    }
}

/// What a value is, in a word or two.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    let options = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
    if let Some(options) = options {
        return options.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    let one = |kind: &Value| match kind.as_str() {
        Some("array") if schema["items"].is_object() => format!("list of {}", self::kind(&schema["items"])),
        Some(kind) => kind.to_owned(),
        None => String::new(),
    };
    match &schema["type"] {
        Value::Array(kinds) => kinds.iter().map(one).collect::<Vec<_>>().join(" or "),
        Value::Null if schema["enum"].is_array() => "string".to_owned(),
        Value::Null if schema["allOf"].is_array() => "object".to_owned(),
        kind => one(kind),
    }
}

/// A description with the values that are possible.
fn cell(description: &Value, schema: &Value) -> String {
    let description = if description.is_null() { &schema["description"] } else { description };
    let mut parts: Vec<String> = Some(line(description)).into_iter().filter(|d| !d.is_empty()).collect();
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values.iter().map(|v| format!("`{}`", text(v))).collect();
        parts.push(format!("One of {}.", values.join(", ")));
    }
    match (&schema["minimum"], &schema["maximum"]) {
        (Value::Null, Value::Null) => {}
        (least, Value::Null) => parts.push(format!("At least {least}.")),
        (Value::Null, most) => parts.push(format!("At most {most}.")),
        (least, most) => parts.push(format!("{least} to {most}.")),
    }
    if !schema["default"].is_null() {
        parts.push(format!("Default {}.", text(&schema["default"])));
    }
    parts.join(" ")
}

fn paragraph(out: &mut String, description: &Value) {
    if !description.is_null() {
        let _ = write!(out, "\n{}\n", text(description));
    }
}

fn members(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

/// As one line of a table.
fn line(value: &Value) -> String {
    text(value).split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.trim_end().to_owned(),
        other => other.to_string(),
    }
}
