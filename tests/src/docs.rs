//! The commands of the documentation, as they stand there, run.
//!
//! Each fenced block of every page says what it is: data (`text`, `toml`, …), or commands (`sh`), which a *leg* runs (`sh torch`).
//! Commands without a leg run in every test run; the other legs want minutes or gigabytes, and `./x test --docs LEG` runs them;
//! those of leg `docker` are `./x test --stack`'s. A block that says neither fails the tests, so what is not run is known.
//!
//! A page is one session of a shell in a directory of its own, in which the repository's folders lie: lines run in order, one that
//! ends in `&` runs on behind the others, and if it is one of our programs the next line waits for its `ready`. Addresses and
//! sockets are others than the page's, so that pages run side by side. `<!-- after: PAGE -->` in a page first starts what runs
//! behind in another. A block of data whose first line is `# NAME`, a file's name, is that file.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use stack::{Ended, Program, run_script};

/// Languages of blocks that are no commands.
const DATA: [&str; 8] = ["text", "toml", "yaml", "json", "python", "promql", "c", "http"];
/// Who runs blocks of commands, and in how much time a line must be through. The first is the tests'.
pub const LEGS: [Leg; 8] = [
    Leg { name: "", what: "every test run", seconds_max: 180 },
    Leg { name: "live", what: "every test run: the command runs until it is stopped", seconds_max: LIVE_SECONDS },
    Leg { name: "tasks", what: "./x test --docs tasks: the project's own tasks", seconds_max: 3600 },
    Leg { name: "ci", what: "continuous integration, which runs nothing else", seconds_max: 0 },
    Leg { name: "minutes", what: "./x test --docs minutes: measurements", seconds_max: 900 },
    Leg { name: "torch", what: "./x test --docs torch: installs PyTorch", seconds_max: 1800 },
    Leg { name: "vllm", what: "./x test --docs vllm: installs vLLM", seconds_max: 3600 },
    Leg { name: "docker", what: "./x test --stack: images and containers", seconds_max: 3600 },
];
/// How long a command is watched that ends only when it is stopped.
const LIVE_SECONDS: u64 = 5;
/// Ports of the pages; each is another when they run.
pub const PORTS: [&str; 6] = ["8000", "8001", "8080", "8081", "9090", "9100"];
/// What begins the command line of a program of ours that says `ready`.
const SERVERS: [&str; 4] = ["release/vnpu-daemon", "release/engine", "release/gateway", "loadgen mock"];

/// Who runs a block of commands.
#[derive(Clone, Copy, Debug)]
pub struct Leg {
    /// As the block says it.
    pub name: &'static str,
    /// When that is.
    pub what: &'static str,
    /// Bound on a line's time.
    pub seconds_max: u64,
}

/// A fenced block.
#[derive(Clone, Debug)]
pub struct Block {
    /// Page, from the top of the source tree.
    pub page: String,
    /// Its first line's number.
    pub line: usize,
    /// What stands behind the fence.
    pub info: String,
    /// The lines.
    pub text: String,
}

impl Block {
    /// Who runs it; `None` if it is data.
    ///
    /// # Errors
    /// If it says neither.
    pub fn leg(&self) -> Result<Option<Leg>> {
        let (language, leg) = self.info.split_once(' ').unwrap_or((&self.info, ""));
        if DATA.contains(&language) {
            return Ok(None);
        }
        let Self { page, line, info, .. } = self;
        let legs = || LEGS.map(|leg| format!("`sh {}`: {}", leg.name, leg.what)).join("; ");
        ensure!(
            language == "sh",
            "{page}:{line}: ```{info}: say `text`, another kind of data, or who runs it: {}",
            legs()
        );
        let leg = LEGS.into_iter().find(|known| known.name == leg);
        Ok(Some(leg.with_context(|| format!("{page}:{line}: ```{info}: there is {}", legs()))?))
    }

    /// Its command lines, continued lines joined, without comments, each with its line's number.
    pub fn commands(&self) -> Vec<(usize, String)> {
        /// What makes a line go on.
        #[derive(PartialEq)]
        enum Open {
            No,
            Backslash,
            Quote,
        }
        let (mut commands, mut open) = (Vec::<(usize, String)>::new(), Open::No);
        for (at, line) in self.text.lines().enumerate() {
            if open == Open::No && (line.trim().is_empty() || line.trim_start().starts_with('#')) {
                continue;
            }
            let text = line.strip_suffix('\\').unwrap_or(line);
            match (commands.last_mut(), &open) {
                (Some((_, command)), Open::Backslash) => command.push_str(text.trim_start()),
                (Some((_, command)), Open::Quote) => command.extend(["\n", text]),
                _ => commands.push((self.line + 1 + at, text.to_owned())),
            }
            let quotes = commands.last().map_or(0, |(_, command)| command.matches('\'').count());
            open = match (quotes % 2, text.len() < line.len()) {
                (1, _) => Open::Quote,
                (_, true) => Open::Backslash,
                _ => Open::No,
            };
        }
        commands
    }
}

/// The pages that users read: the first one, everything below `docs/`, and the dashboards'.
///
/// # Errors
/// If one cannot be read.
pub fn pages() -> Result<Vec<String>> {
    let root = stack::source_root()?;
    let mut pages = ["README.md", "dashboards/README.md"].map(str::to_owned).to_vec();
    let mut folders = vec!["docs/".to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let name = format!("{folder}{}", entry.file_name().to_string_lossy());
            if name.ends_with(".md") {
                pages.push(name);
            } else if entry.file_type()?.is_dir() {
                folders.push(name + "/");
            }
        }
    }
    pages.sort();
    Ok(pages)
}

/// The fenced blocks of a page's text.
///
/// # Errors
/// If one has no end.
pub fn blocks(page: &str, text: &str) -> Result<Vec<Block>> {
    let (mut blocks, mut open) = (Vec::new(), None::<Block>);
    for (number, line) in text.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(info)) => {
                let (info, text) = (info.trim().to_owned(), String::new());
                open = Some(Block { page: page.to_owned(), line: number + 1, info, text });
            }
            (Some(_), Some("")) => blocks.extend(open.take()),
            (Some(block), _) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    ensure!(open.is_none(), "{page}: the last block has no end");
    Ok(blocks)
}

/// A page's text and blocks.
///
/// # Errors
/// If it cannot be read.
pub fn read(page: &str) -> Result<(String, Vec<Block>)> {
    let text = std::fs::read_to_string(stack::source_root()?.join(page)).with_context(|| page.to_owned())?;
    let blocks = blocks(page, &text)?;
    Ok((text, blocks))
}

/// Runs the commands of a page that belong to one of `legs`; how many there were.
///
/// # Errors
/// The first command that fails, where it stands, and what it printed.
pub fn run_page(page: &str, legs: &[&str], say: &mut dyn FnMut(&str)) -> Result<usize> {
    run_page_in(page, legs, &Surroundings::default(), say)
}

/// What is around a page's commands, where a shell in a directory of its own will not do.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// They run at the top of the source tree, as in a user's clone.
    pub in_the_tree: bool,
    /// Variables, as a user would have set them.
    pub variables: BTreeMap<&'static str, String>,
    /// What programs are called here, by what the page calls them.
    pub names: BTreeMap<&'static str, String>,
    /// Ports in the place of the page's, beside those that are found.
    pub ports: BTreeMap<&'static str, u16>,
}

/// The same, in these surroundings.
///
/// # Errors
/// As there.
pub fn run_page_in(page: &str, legs: &[&str], around: &Surroundings, say: &mut dyn FnMut(&str)) -> Result<usize> {
    let (text, blocks) = read(page)?;
    let mut wanted = Vec::new();
    for block in &blocks {
        if let Some(leg) = block.leg()?.filter(|leg| legs.contains(&leg.name)) {
            wanted.extend(block.commands().into_iter().map(|(line, command)| (leg, line, command)));
        }
    }
    if wanted.is_empty() {
        return Ok(0);
    }
    let mut shell = Shell::new(around.clone())?;
    if let Some(before) = text.lines().find_map(|line| line.strip_prefix("<!-- after: ")?.strip_suffix(" -->")) {
        for block in
            read(before)?.1.iter().filter(|block| block.leg().is_ok_and(|leg| leg.is_some_and(|l| l.name.is_empty())))
        {
            for (line, command) in block.commands().into_iter().filter(|(_, command)| command.ends_with('&')) {
                shell.run(&command, LEGS[0]).with_context(|| format!("{before}:{line}: {command}"))?;
            }
        }
    }
    for block in &blocks {
        shell.write(block)?;
    }
    let count = wanted.len();
    for (leg, line, command) in wanted {
        say(&format!("{page}:{line}: {command}"));
        shell.run(&command, leg).with_context(|| format!("{page}:{line}: {command}"))?;
    }
    Ok(count)
}

/// A directory to run in, and what runs behind. Programs end before the directory goes.
struct Shell {
    behind: Vec<Program>,
    ports: BTreeMap<&'static str, u16>,
    around: Surroundings,
    dir: tempfile::TempDir,
}

impl Shell {
    fn new(around: Surroundings) -> Result<Self> {
        let (dir, root) = (stack::scratch()?, stack::source_root()?);
        for entry in std::fs::read_dir(&root)? {
            let entry = entry?;
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            // A task runs where its sources are.
            if entry.file_type()?.is_dir() && !hidden {
                std::os::unix::fs::symlink(entry.path(), dir.path().join(entry.file_name()))?;
            }
        }
        let task = format!(
            "#!/bin/sh\n[ \"$1\" = torch-env ] && set -- \"$1\" \"$PWD/$2\"\nexec {}/x \"$@\"\n",
            root.display()
        );
        let path = dir.path().join("x");
        std::fs::write(&path, task)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        // Held together, so that no two are the same; free when the programs take them.
        let listeners: Vec<TcpListener> =
            PORTS.iter().map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
        let mut ports = BTreeMap::new();
        for (port, listener) in PORTS.into_iter().zip(&listeners) {
            ports.insert(port, listener.local_addr()?.port());
        }
        ports.extend(&around.ports);
        Ok(Self { behind: Vec::new(), ports, around, dir })
    }

    /// The command with this shell's ports and sockets.
    fn here(&self, command: &str) -> String {
        let mut out = String::new();
        let mut rest = command;
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let len = rest[start..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - start);
            let (number, after) = (&rest[start..start + len], &rest[start + len..]);
            // An address's port, or that of a flag: not a count that looks like one.
            let before = &rest[..start];
            let is_port = before.ends_with(':') || before.ends_with("port ");
            out.push_str(before);
            match self.ports.get(number).filter(|_| is_port) {
                Some(port) => out.push_str(&port.to_string()),
                None => out.push_str(number),
            }
            rest = after;
        }
        out.push_str(rest);
        for (name, here) in &self.around.names {
            out = out.replace(name, here);
        }
        out.replace("/tmp/", &format!("{}/", self.dir.path().display()))
    }

    /// Makes a file of a block that is one.
    fn write(&self, block: &Block) -> Result<()> {
        let name = block.text.lines().next().and_then(|line| line.strip_prefix("# "));
        match name.filter(|name| {
            block.leg().is_ok_and(|leg| leg.is_none()) && name.contains('.') && !name.contains([' ', '/'])
        }) {
            Some(name) => Ok(std::fs::write(self.dir.path().join(name), &block.text)?),
            None => Ok(()),
        }
    }

    fn command(&self, program: &str) -> Result<Command> {
        let programs = stack::program_path("vnpu-daemon")?;
        let mut path = programs.parent().map(Path::as_os_str).unwrap_or_default().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new(program);
        let dir = if self.around.in_the_tree { stack::source_root()? } else { self.dir.path().to_owned() };
        command.current_dir(dir).env("PATH", path).envs(&self.around.variables);
        Ok(command)
    }

    fn run(&mut self, command: &str, leg: Leg) -> Result<()> {
        let line = self.here(command);
        if leg.name == "ci" {
            bail!("continuous integration runs this, and nothing else does");
        }
        if let Some(behind) = line.strip_suffix('&') {
            let mut shell = self.command("sh")?;
            let server = SERVERS.iter().any(|server| behind.contains(server));
            let script = if server { format!("exec {behind}") } else { format!("echo ready; exec {behind}") };
            shell.args(["-c", &script]);
            self.behind.push(Program::start("a command that runs behind", shell)?);
            return Ok(());
        }
        let mut shell = self.command("sh")?;
        shell.args(["-ec", &line]);
        let mut said = String::new();
        let ended = run_script(shell, Duration::from_secs(leg.seconds_max), |line| {
            said.push_str(line);
            said.push('\n');
        })?;
        match ended {
            Ended::Late if leg.name == "live" => {
                ensure!(!said.is_empty(), "it said nothing in {LIVE_SECONDS} s");
                Ok(())
            }
            Ended::Late => bail!("not through in {} s\n{said}", leg.seconds_max),
            Ended::Exit(status) if leg.name == "live" => bail!("it ended by itself: {status}\n{said}"),
            Ended::Exit(status) if status.success() => Ok(()),
            // Its verdict that this machine was too slow for the load.
            Ended::Exit(status) if status.code() == Some(3) && command.contains("loadgen") => Ok(()),
            Ended::Exit(status) => bail!("{status}\n{said}"),
        }
    }
}

/// Where a link of a page leads: files of the source tree, from its top.
///
/// # Errors
/// If the page cannot be read.
pub fn links(page: &str) -> Result<Vec<(usize, PathBuf)>> {
    let (text, _) = read(page)?;
    let folder = Path::new(page).parent().unwrap_or(Path::new(""));
    let (mut found, mut fenced) = (Vec::new(), false);
    for (number, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        let mut rest = if fenced { "" } else { line };
        while let Some((_, after)) = rest.split_once("](") {
            let (target, after) = after.split_once(')').unwrap_or((after, ""));
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                found.push((number + 1, folder.join(target)));
            }
            rest = after;
        }
    }
    Ok(found)
}
