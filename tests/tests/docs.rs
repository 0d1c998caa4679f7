//! The documentation: every command runs, every link leads somewhere, every page is in the book.

use std::collections::BTreeSet;

use system_tests::docs::{LEGS, blocks, links, pages, read, run_page};

#[test]
fn every_block_is_data_or_commands_that_somebody_runs() {
    let mut wrong = Vec::new();
    for page in pages().unwrap() {
        for block in read(&page).unwrap().1 {
            match block.leg() {
                Ok(Some(_)) => assert!(!block.commands().is_empty(), "{page}:{}: no command", block.line),
                Ok(None) => {}
                Err(error) => wrong.push(error.to_string()),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn commands_of_every_page_run() {
    let mut commands = 0;
    for page in pages().unwrap() {
        commands +=
            run_page(&page, &["", "live"], &mut |command| println!("{command}")).unwrap_or_else(|e| panic!("{e:#}"));
    }
    assert!(commands >= 20, "{commands} commands");
}

/// What only continuous integration runs is what it runs.
#[test]
fn continuous_integration_runs_what_pages_leave_to_it() {
    let run = std::fs::read_to_string(stack::source_root().unwrap().join(".ci/run")).unwrap();
    for page in pages().unwrap() {
        for block in read(&page).unwrap().1 {
            if block.leg().unwrap().is_some_and(|leg| leg.name == "ci") {
                for (line, command) in block.commands() {
                    assert!(run.lines().any(|l| l.ends_with(&format!("exec {command}"))), "{page}:{line}: {command}");
                }
            }
        }
    }
}

/// What no test run and no change's integration runs is run by night.
#[test]
fn every_other_leg_that_pages_use_is_run_by_night() {
    let nightly = std::fs::read_to_string(stack::source_root().unwrap().join(".ci/nightly")).unwrap();
    let parts: BTreeSet<&str> = nightly.lines().filter_map(|line| line.strip_prefix("part ")).collect();
    let mut used = BTreeSet::new();
    for page in pages().unwrap() {
        used.extend(read(&page).unwrap().1.iter().filter_map(|block| Some(block.leg().unwrap()?.name)));
    }
    for leg in used.into_iter().filter(|leg| !["", "live", "ci"].contains(leg)) {
        let part = if leg == "docker" { "./x test --stack".to_owned() } else { format!("./x test --docs {leg}") };
        assert!(parts.contains(part.as_str()), "no part of .ci/nightly is `{part}`: {parts:?}");
    }
}

#[test]
fn links_lead_to_files() {
    let root = stack::source_root().unwrap();
    let mut broken = Vec::new();
    for page in pages().unwrap() {
        for (line, target) in links(&page).unwrap() {
            if !root.join(&target).exists() {
                broken.push(format!("{page}:{line}: {}", target.display()));
            }
        }
    }
    assert!(broken.is_empty(), "no such file:\n{}", broken.join("\n"));
}

#[test]
fn every_page_below_docs_is_in_the_book() {
    let listed: BTreeSet<String> =
        links("docs/SUMMARY.md").unwrap().into_iter().map(|(_, page)| page.display().to_string()).collect();
    let there: BTreeSet<String> =
        pages().unwrap().into_iter().filter(|p| p.starts_with("docs/") && p != "docs/SUMMARY.md").collect();
    assert_eq!(listed, there);
}

#[test]
fn blocks_are_read_as_they_stand() {
    let text = "a\n```sh torch\none \\\n  two\n# no\nthree 'x\ny' &\n```\n```\nnothing\n```\n```text\n```\n";
    let found = blocks("p.md", text).unwrap();
    assert_eq!(found[0].leg().unwrap().map(|leg| leg.name), Some("torch"));
    let commands: Vec<_> =
        found[0].commands().into_iter().map(|(line, command)| format!("{line}: {command}")).collect();
    assert_eq!(commands, ["3: one two", "6: three 'x\ny' &"]);
    assert!(found[1].leg().unwrap_err().to_string().contains("p.md:9"));
    assert!(found[2].leg().unwrap().is_none());
    assert!(blocks("p.md", "```sh\n").is_err());
    assert!(LEGS.iter().all(|leg| leg.what.len() > 4));
}
