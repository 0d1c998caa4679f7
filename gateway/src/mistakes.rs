//! What is wrong with a configuration, and in which line of its file.

use std::fmt;

use toml::de::{DeTable, DeValue};

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
}
