//! `./x site`: the documentation as a site, by mdBook, which `./x` installs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::build;

/// Builds it; every link of a page inside the site leads to a file of it.
pub fn run() -> Result<()> {
    let site = build::root().join("target/site");
    let mut command = Command::new("mdbook");
    command.arg("build").arg(build::root().join("docs"));
    ensure!(command.status().context("starting mdbook; ./x site installs it")?.success(), "mdbook failed");
    let mut broken = Vec::new();
    let pages = pages(&site)?;
    for page in &pages {
        let html = std::fs::read_to_string(page)?;
        let folder = page.parent().unwrap_or(&site);
        for target in targets(&html) {
            if !folder.join(target).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    ensure!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
    println!("{} pages: {}", pages.len(), site.join("index.html").display());
    Ok(())
}

fn pages(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut pages = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            pages.extend(self::pages(&path)?);
        } else if path.extension().is_some_and(|ext| ext == "html") {
            pages.push(path);
        }
    }
    Ok(pages)
}

/// What a page's links and pictures name inside the site, without places within a page.
fn targets(html: &str) -> impl Iterator<Item = &str> {
    let after = |name: &'static str| html.split(name).skip(1).filter_map(|rest| rest.split('"').next());
    let targets = after(" href=\"").chain(after(" src=\""));
    let targets = targets.map(|target| target.split(['#', '?']).next().unwrap_or_default());
    targets.filter(|target| !target.is_empty() && !target.contains(':') && !target.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_inside_the_site_are_found() {
        let html = r##"<a href="a.html#x">a</a><a href="https://b/">b</a><a href="#c">c</a><img src="d.svg"><a href="/">e</a>"##;
        assert_eq!(targets(html).collect::<Vec<_>>(), ["a.html", "d.svg"]);
    }
}
