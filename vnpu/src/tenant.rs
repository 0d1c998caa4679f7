//! `vnpu tenant`, `vnpu usage`: who may use how much of a device, and who used how much, through the daemon's admin API.
//!
//! Nothing about tenants is decided here: the daemon checks names and figures and says what is wrong.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::admin::Admin;

/// Longest table of usage that is taken: some years by the hour.
const CSV_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, Args)]
struct Where {
    /// Address of the daemon's admin API, as its `--admin` says.
    #[arg(long, value_name = "HOST:PORT", env = "VNPU_ADMIN", default_value = "127.0.0.1:9400", global = true)]
    admin: SocketAddr,
}

impl Where {
    fn admin(&self) -> Admin {
        Admin::new(self.admin, Duration::ZERO)
    }
}

/// Show or change what tenants may have of a running daemon's device.
#[derive(Debug, Args)]
pub struct Tenant {
    #[command(flatten)]
    place: Where,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print every tenant: what it may have, holds and used.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a tenant, or change it while its work runs. What is not named stays as it is.
    Set {
        /// Name.
        name: String,
        #[command(flatten)]
        may: May,
    },
    /// Remove a tenant that has no processes.
    Remove {
        /// Name.
        name: String,
    },
}

#[derive(Debug, Args)]
struct May {
    /// Device memory that no other tenant can take: bytes, or `16GiB`.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory_guarantee: Option<u64>,
    /// Most device memory of all its processes: bytes, `16GiB`, or `none`.
    #[arg(long, value_name = "SIZE", value_parser = limit)]
    memory_limit: Option<Limit>,
    /// Part of the device relative to other tenants that want it.
    #[arg(long)]
    weight: Option<u32>,
    /// A tenant with a larger one goes first.
    #[arg(long)]
    priority: Option<u8>,
    /// Most operators on the device; 0 for no bound.
    #[arg(long)]
    window: Option<u32>,
}

/// A limit of memory, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limit(Option<u64>);

fn size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        unit => bail!("{unit:?} is no unit: B, KiB, MiB or GiB"),
    };
    let bytes = digits.parse::<u64>()?.checked_shl(shift).filter(|bytes| bytes >> shift == digits.parse().unwrap_or(0));
    bytes.ok_or_else(|| anyhow::anyhow!("{text} is more than there can be"))
}

fn limit(text: &str) -> Result<Limit> {
    Ok(Limit(if text == "none" { None } else { Some(size(text)?) }))
}

impl May {
    /// What the tenant may have, changed.
    fn change(&self, config: &mut Map<String, Value>) {
        let changes = [
            ("memory_guarantee_bytes", self.memory_guarantee.map(Value::from)),
            ("memory_limit_bytes", self.memory_limit.map(|Limit(bytes)| json!(bytes))),
            ("weight", self.weight.map(Value::from)),
            ("priority", self.priority.map(Value::from)),
            ("window", self.window.map(Value::from)),
        ];
        for (field, value) in changes {
            if let Some(value) = value {
                config.insert(field.to_owned(), value);
            }
        }
    }
}

impl Tenant {
    /// Asks the daemon; what to print.
    ///
    /// # Errors
    /// No daemon, or its refusal in its own words.
    pub fn run(self) -> Result<String> {
        let admin = self.place.admin();
        match self.command.unwrap_or(Command::List { json: false }) {
            Command::List { json } => {
                let tenants = admin.get("/v1/tenants")?;
                Ok(if json { format!("{tenants:#}\n") } else { table(&tenants) })
            }
            Command::Set { name, may } => {
                let tenants = admin.get("/v1/tenants")?;
                let mut all = tenants.as_array().into_iter().flatten();
                let found = all.find(|t| t["tenant"] == name.as_str()).map(|t| &t["config"]);
                let mut config = found.and_then(Value::as_object).cloned().unwrap_or_default();
                may.change(&mut config);
                let path = format!("/v1/tenants/{}", encoded(&name));
                let tenant = admin.put(&path, "application/json", &Value::Object(config).to_string())?;
                Ok(table(&json!([tenant])))
            }
            Command::Remove { name } => {
                admin.delete(&format!("/v1/tenants/{}", encoded(&name)))?;
                Ok(String::new())
            }
        }
    }
}

/// A name as a part of a path: the daemon says what is no name.
fn encoded(name: &str) -> String {
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-') || (b == b'.' && name != "." && name != "..");
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn gib(bytes: &Value) -> String {
    bytes.as_u64().map_or_else(|| "-".to_owned(), |bytes| format!("{:.2}", bytes as f64 / f64::from(1 << 30)))
}

fn table(tenants: &Value) -> String {
    let mut rows = vec![
        ["TENANT", "WEIGHT", "PRIORITY", "WINDOW", "GUARANTEED GiB", "LIMIT GiB", "HELD GiB", "PROCESSES", "DEVICE s"]
            .map(str::to_owned),
    ];
    for t in tenants.as_array().into_iter().flatten() {
        let config = &t["config"];
        rows.push([
            t["tenant"].as_str().unwrap_or("?").to_owned(),
            config["weight"].to_string(),
            config["priority"].to_string(),
            config["window"].as_u64().filter(|&n| n > 0).map_or_else(|| "-".to_owned(), |n| n.to_string()),
            gib(&config["memory_guarantee_bytes"]),
            gib(&config["memory_limit_bytes"]),
            gib(&t["memory_bytes"]),
            t["sessions"].to_string(),
            format!("{:.3}", t["device_s"].as_f64().unwrap_or(0.0)),
        ]);
    }
    aligned(&rows)
}

/// Columns side by side, the first one to the left, figures to the right.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cell = |(column, cell): (usize, &String)| match column {
            0 => format!("{cell:<width$}", width = widths[0]),
            _ => format!("{cell:>width$}", width = widths[column]),
        };
        let cells: Vec<String> = row.iter().enumerate().map(cell).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Print what tenants used of a running daemon's device, over all the time that its ledger knows.
#[derive(Debug, Args)]
pub struct Usage {
    #[command(flatten)]
    place: Where,
    /// As a table for a spreadsheet.
    #[arg(long)]
    csv: bool,
    /// As JSON.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// A row an hour; with `--csv`.
    #[arg(long, requires = "csv")]
    by_hour: bool,
}

impl Usage {
    /// Asks the daemon; what to print.
    ///
    /// # Errors
    /// No daemon, or its refusal in its own words.
    pub fn run(self) -> Result<String> {
        let admin = self.place.admin();
        if self.csv {
            let path = if self.by_hour { "/v1/usage.csv?by=hour" } else { "/v1/usage.csv" };
            return Ok(String::from_utf8_lossy(&admin.bytes(path, CSV_BYTES_MAX)?).into_owned());
        }
        let usage = admin.get("/v1/usage")?;
        Ok(if self.json { format!("{usage:#}\n") } else { books(&usage) })
    }
}

fn books(usage: &Value) -> String {
    let header = [
        "TENANT",
        "DEVICE s",
        "SHARE",
        "PREFILL s",
        "DECODE s",
        "OTHER s",
        "GiB·h",
        "IN GiB",
        "OUT GiB",
        "PROMPT",
        "OUTPUT",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    let busy = usage["busy_ns"].as_f64().unwrap_or(0.0);
    let seconds = |ns: f64| format!("{:.3}", ns * 1e-9);
    for (name, t) in usage["tenants"].as_object().into_iter().flatten() {
        let by = &t["device_by_phase_and_class_ns"];
        let of = |phase: &str| {
            by[phase].as_object().into_iter().flatten().filter_map(|(_, ns)| ns.as_f64()).fold(0.0, |sum, ns| sum + ns)
        };
        let device = t["device_ns"].as_f64().unwrap_or(0.0);
        let gib_h = t["memory_byte_seconds"].as_f64().unwrap_or(0.0) / f64::from(1 << 30) / 3600.0;
        rows.push([
            name.clone(),
            seconds(device),
            format!("{:.1} %", 100.0 * device / busy.max(1.0)),
            seconds(of("prefill")),
            seconds(of("decode")),
            seconds(of("mixed") + of("unknown")),
            format!("{gib_h:.3}"),
            gib(&t["bytes_in"]),
            gib(&t["bytes_out"]),
            t["prompt_tokens"].to_string(),
            t["output_tokens"].to_string(),
        ]);
    }
    format!("{}the device was busy for {} s\n", aligned(&rows), seconds(busy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_limits_may_be_none() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("4096B", 4096), ("2KiB", 2048), ("16GiB", 16 << 30)] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for wrong in ["", "GiB", "16GB", "1.5GiB", "-1", "99999999999GiB", "18446744073709551616"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(limit("none").unwrap(), Limit(None));
        assert_eq!(limit("1MiB").unwrap(), Limit(Some(1 << 20)));
    }

    #[test]
    fn only_what_is_named_changes() {
        let none = May { memory_guarantee: None, memory_limit: None, weight: None, priority: None, window: None };
        let mut config = json!({ "weight": 2, "priority": 1, "memory_limit_bytes": 5 }).as_object().unwrap().clone();
        none.change(&mut config);
        assert_eq!(Value::Object(config.clone()), json!({ "weight": 2, "priority": 1, "memory_limit_bytes": 5 }));
        May { weight: Some(7), memory_limit: Some(Limit(None)), ..none }.change(&mut config);
        assert_eq!(Value::Object(config), json!({ "weight": 7, "priority": 1, "memory_limit_bytes": null }));
    }

    #[test]
    fn names_in_paths_stay_names() {
        assert_eq!(encoded("team-a_1.x"), "team-a_1.x");
        assert_eq!(encoded("../a b?"), "..%2Fa%20b%3F");
        assert_eq!(encoded(".."), "%2E%2E");
    }

    #[test]
    fn tables_line_up() {
        let usage = json!({ "busy_ns": 2e9, "tenants": { "a": { "device_ns": 5e8, "prompt_tokens": 3, "output_tokens": 4,
            "memory_byte_seconds": 0, "bytes_in": 0, "bytes_out": 0,
            "device_by_phase_and_class_ns": { "prefill": { "cube": 4e8 }, "decode": { "vector": 1e8 } } } } });
        let text = books(&usage);
        assert!(text.contains("a          0.500  25.0 %      0.400     0.100    0.000"), "{text}");
        assert!(text.ends_with("the device was busy for 2.000 s\n"), "{text}");
    }
}
