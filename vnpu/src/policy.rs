//! `vnpu policy`: shows and changes a daemon's dispatch policy through its admin API.
//!
//! Nothing about policies is known here: the daemon names them, checks parameters and says what is wrong. Only the address
//! is ours.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::admin::Admin;

/// Show or change the dispatch policy of a running daemon.
#[derive(Debug, Args)]
pub struct Policy {
    /// Address of the daemon's admin API, as its `--admin` says.
    #[arg(long, value_name = "HOST:PORT", env = "VNPU_ADMIN", default_value = "127.0.0.1:9400")]
    admin: SocketAddr,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the policy in force and its parameters.
    Show {
        /// As JSON, as `set` takes it.
        #[arg(long)]
        json: bool,
    },
    /// Change it while work is running.
    Set {
        /// `<name>[:<parameter>=<value>]…` as in `phase:tpot_ms=40:omega=0.5`, or JSON. What is left out has its default.
        policy: String,
    },
}

impl Policy {
    /// Asks the daemon; what to print.
    ///
    /// # Errors
    /// No daemon, or its refusal in its own words.
    pub fn run(self) -> Result<String> {
        let admin = Admin::new(self.admin, Duration::ZERO);
        let (body, json) = match self.command.unwrap_or(Command::Show { json: false }) {
            Command::Show { json } => (admin.get("/v1/policy")?, json),
            Command::Set { policy } => (admin.put("/v1/policy", "text/plain", &policy)?, false),
        };
        Ok(if json { format!("{body:#}\n") } else { table(&body) })
    }
}

/// The name, then a parameter a line; parameters within parameters by their own names, as `set` takes them.
fn table(policy: &Value) -> String {
    let mut text = format!("{}\n", policy["name"].as_str().unwrap_or("?"));
    let mut lines = |object: &Value| {
        for (name, value) in object.as_object().into_iter().flatten().filter(|(name, _)| *name != "name") {
            if !value.is_object() {
                text += &format!("  {name}={}\n", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            }
        }
    };
    lines(policy);
    for inner in policy.as_object().into_iter().flatten().map(|(_, value)| value).filter(|v| v.is_object()) {
        lines(inner);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_shown_as_set_takes_them() {
        let policy = serde_json::json!({
            "name": "priority", "tpot_ms": 50.5, "share_in_idle": true, "first": "none", "corun": { "omega": 0.5 },
        });
        assert_eq!(table(&policy), "priority\n  tpot_ms=50.5\n  share_in_idle=true\n  first=none\n  omega=0.5\n");
    }
}
