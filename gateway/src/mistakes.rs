//! What is wrong with a configuration, and in which line of its file.

use std::collections::HashSet;
use std::fmt;

use admission::{BANDS, ENGINES_MAX, TENANTS_MAX};
use toml::de::{DeTable, DeValue};

use crate::config::Config;

/// Something wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Keys and, in lists, positions from the top of the file to the value at fault.
    at: Vec<String>,
    /// What is wrong, and what would be right.
    what: String,
}

impl Mistake {
    /// With the value at `at`; the numbers in it are positions in lists.
    pub fn new(at: &[&dyn fmt::Display], what: impl Into<String>) -> Self {
        Self { at: at.iter().map(ToString::to_string).collect(), what: what.into() }
    }

    /// With its line in the file's text.
    pub fn in_file(&self, text: &str) -> anyhow::Error {
        match line(text, &self.at) {
            Some(line) => anyhow::anyhow!("line {line}: {}", self.what),
            None => anyhow::anyhow!("{}", self.what),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Mistake {}

/// What is wrong with a configuration that its format allows.
///
/// # Errors
/// The first mistake.
pub fn find(config: &Config) -> Result<(), Mistake> {
    let wrong = |at: &[&dyn std::fmt::Display], what: String| Err(Mistake::new(at, what));
    if config.engines.is_empty() {
        return wrong(&[], "no engine: add one as [[engines]] with its `address`".to_owned());
    }
    if config.engines.len() > ENGINES_MAX {
        return wrong(&[&"engines", &ENGINES_MAX], format!("more than {ENGINES_MAX} engines"));
    }
    if config.tenants.len() >= TENANTS_MAX {
        return wrong(&[&"tenants", &TENANTS_MAX], format!("{} tenants; below {TENANTS_MAX}", config.tenants.len()));
    }
    let mut names = HashSet::new();
    for (i, engine) in config.engines.iter().enumerate() {
        if !names.insert(&engine.name) {
            let what = format!("two engines are called `{}`; give each a `name`", engine.name);
            return wrong(&[&"engines", &i, &"name"], what);
        }
    }
    for (name, tier) in &config.tiers {
        if tier.weight == 0 {
            return wrong(&[&"tiers", name, &"weight"], format!("tier `{name}`: weight is 0; the least is 1"));
        }
        if tier.band >= BANDS {
            let what = format!("tier `{name}`: band {}; bands are 0 to {}", tier.band, BANDS - 1);
            return wrong(&[&"tiers", name, &"band"], what);
        }
    }
    tenants(config)?;
    for (i, hash) in config.console.operator_key_sha256.iter().enumerate() {
        if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            let what = "want the 64 hexadecimal digits of a key's SHA-256; `gateway key` prints them".to_owned();
            return wrong(&[&"console", &"operator_key_sha256", &i], what);
        }
    }
    for (i, daemon) in config.console.daemons.iter().enumerate() {
        let port =
            daemon.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
        if port.is_none() || daemon.contains(['/', '@']) {
            return wrong(&[&"console", &"daemons", &i], format!("`{daemon}`: want host:port of a daemon's admin API"));
        }
    }
    if let Some(telemetry) = &config.telemetry {
        if !telemetry.endpoint.starts_with("http://") {
            let what = format!("`{}`: want http://host:port of a collector nearby", telemetry.endpoint);
            return wrong(&[&"telemetry", &"endpoint"], what);
        }
        if !(0.0..=1.0).contains(&telemetry.sampled_part) || telemetry.metrics_every_ms == 0 {
            return wrong(&[&"telemetry"], "sampled_part is 0 to 1, metrics_every_ms above 0".to_owned());
        }
    }
    let wild = |p: &String| !p.starts_with('/') && *p != "*";
    if let Some(i) = config.pass_through.iter().position(wild) {
        let what =
            format!("pass_through `{}`: a path begins with `/`; `*` alone is every path", config.pass_through[i]);
        return wrong(&[&"pass_through", &i], what);
    }
    Ok(())
}

fn tenants(config: &Config) -> Result<(), Mistake> {
    let (mut names, mut keys) = (HashSet::new(), HashSet::new());
    for (i, tenant) in config.tenants.iter().enumerate() {
        let name = &tenant.name;
        let wrong = |member: &str, what: String| Err(Mistake::new(&[&"tenants", &i, &member], what));
        if !names.insert(name) {
            return wrong("name", format!("two tenants are called `{name}`"));
        }
        if name.len() > wire::TENANT_BYTES_MAX {
            return wrong("name", format!("tenant `{name}`: above {} bytes of name", wire::TENANT_BYTES_MAX));
        }
        if let Some(tier) = tenant.tier.as_ref().filter(|t| !config.tiers.contains_key(*t)) {
            return wrong("tier", format!("tenant `{name}`: there is no tier `{tier}`"));
        }
        for (k, key) in tenant.key_sha256.iter().enumerate() {
            let wrong = |what: String| Err(Mistake::new(&[&"tenants", &i, &"key_sha256", &k], what));
            if key.len() != 64 || !key.bytes().all(|b| b.is_ascii_hexdigit()) {
                return wrong(format!("tenant `{name}`: `{key}` is no SHA-256; print one with `gateway key`"));
            }
            if !keys.insert(key.to_ascii_lowercase()) {
                return wrong(format!("tenant `{name}`: a key is used twice"));
            }
        }
    }
    Ok(())
}

/// Line of the value at `path`, or of what comes nearest to it on the way there.
fn line(text: &str, path: &[String]) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = Some(document.get_ref());
    let mut list: Option<&[toml::Spanned<DeValue<'_>>]> = None;
    let mut start = None;
    for step in path {
        let next = match (table, list) {
            (Some(table), _) => table.get(step.as_str()),
            (None, Some(list)) => step.parse().ok().and_then(|i: usize| list.get(i)),
            (None, None) => None,
        };
        let Some(next) = next else { break };
        start = Some(next.span().start);
        table = if let DeValue::Table(inner) = next.get_ref() { Some(inner) } else { None };
        list = if let DeValue::Array(inner) = next.get_ref() { Some(&inner[..]) } else { None };
    }
    Some(1 + text.get(..start?)?.matches('\n').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_is_that_of_the_value() {
        let text = "a = 1\n[[b]]\nc = 2\n\n[[b]]\nc = 3\nd = [\n  \"x\",\n  \"y\",\n]\n[t.\"u.v\"]\nw = 4\n";
        for (path, want) in [
            (&["a"][..], Some(1)),
            (&["b", "0", "c"], Some(3)),
            (&["b", "1", "c"], Some(6)),
            (&["b", "1", "d", "1"], Some(9)),
            (&["b", "1", "missing"], Some(5)),
            (&["t", "u.v", "w"], Some(12)),
            (&["nothing"], None),
        ] {
            let path: Vec<String> = path.iter().map(ToString::to_string).collect();
            assert_eq!(line(text, &path), want, "{path:?}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let engine = "[[engines]]\naddress = \"a:1\"\n";
        for (text, words) in [
            (String::new(), &["[[engines]]"][..]),
            (format!("{engine}prefil_tokens = 3\n"), &["line 3", "prefil_tokens"]),
            (format!("{engine}kind = \"vlm\"\n"), &["line 3", "vlm", "vllm"]),
            (format!("{engine}{engine}"), &["line 3", "a:1", "name"]),
            (format!("{engine}[queue]\nrequests = \"many\"\n"), &["line 4", "requests"]),
            (format!("{engine}[tiers.x]\nband = 9\n"), &["line 4", "band 9", "0 to 3"]),
            (format!("{engine}[[tenants]]\nname = \"t\"\ntier = \"none\"\n"), &["line 5", "tenant `t`", "none"]),
            (format!("{engine}[[tenants]]\nname = \"t\"\nkey_sha256 = [\"sk-secret\"]\n"), &["line 5", "gateway key"]),
            (format!("pass_through = [\"v1\"]\n{engine}"), &["line 1", "pass_through", "v1"]),
        ] {
            let error = format!("{:#}", Config::parse(&text).unwrap_err());
            for word in words {
                assert!(error.contains(word), "no `{word}` in: {error}");
            }
        }
    }
}
