//! `fathom -i`: a shell in which commands need no `fathom` before them, and remember the project and the configuration.
//!
//! Every command runs as a process of its own, with the same arguments as from any other shell: what it prints is the same,
//! and Ctrl-C ends it and not the shell.

use super::context::{Context, Globals};
use super::edit::read_line;
use super::{command, dynamic, exit};
use anyhow::{Context as _, Result, anyhow};
use fathom_spec::project::{Project, templates_below};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::{CompletionType, Editor, Helper, Highlighter, Hinter, Validator};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Commands of the shell itself, with what they do.
const OWN: [(&str, &str, &str); 10] = [
    ("cd", "DIR", "Go to another folder"),
    ("pwd", "", "Print the folder"),
    ("configs", "", "List the configurations of the project"),
    ("config", "[CONFIG]", "Take another configuration; `-` is the default one"),
    ("commands", "", "List all commands"),
    ("help", "[COMMAND]", "Say how a command is called"),
    ("debug", "[on|off]", "Have pp and ls print more"),
    ("quit", "", "Leave; so do exit, EOF and Ctrl-D"),
    ("exit", "", "Leave"),
    ("EOF", "", "Leave"),
];

/// Commands whose output may be longer than a screen, and that ask nothing of a terminal.
const PAGED: [&str; 14] = [
    "pp",
    "ls",
    "targets",
    "trefs",
    "graph",
    "construct",
    "dataset",
    "components",
    "project",
    "template",
    "runs",
    "sql",
    "commands",
    "help",
];

/// What the shell remembers.
struct Shell {
    config: Option<String>,
    debug: bool,
    /// Whether there is somebody at a terminal who reads and types.
    terminal: bool,
}

/// What a line led to.
enum After {
    Next(u8),
    Leave,
}

/// Reads and carries out commands until the input ends. With a terminal there are a prompt, a history and completion;
/// without one the exit code is that of the last command that failed.
///
/// # Errors
///
/// When the folder can't be entered or the input can't be read.
pub fn run(context: &Context) -> Result<u8> {
    if let Some(dir) = &context.globals.project_dir {
        enter(dir)?;
    }
    let config = context.globals.config_template.clone();
    let terminal = std::io::stdin().is_terminal();
    let mut shell = Shell { config, debug: false, terminal };
    if terminal {
        shell.converse()?;
        return Ok(exit::OK);
    }
    let mut code = exit::OK;
    while let Some(line) = read_line()? {
        match shell.carry_out(&line) {
            After::Next(exit::OK) => {}
            After::Next(failed) => code = failed,
            After::Leave => break,
        }
    }
    Ok(code)
}

impl Shell {
    fn converse(&mut self) -> Result<()> {
        // The command that runs is interrupted, not the shell that waits for it.
        let ignored = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGINT, ignored)?;
        let config = rustyline::Config::builder().completion_type(CompletionType::List).build();
        let mut editor: Editor<Completion, _> = Editor::with_config(config)?;
        let place = Globals::default();
        editor.set_helper(Some(Completion { place, files: FilenameCompleter::new() }));
        let history = history_file();
        if let Some(history) = &history {
            // There is none the first time.
            let _ = editor.load_history(history);
        }
        println!("`help` lists the commands; they are those of `fathom`, without that word.");
        loop {
            if let Some(helper) = editor.helper_mut() {
                helper.place.config_template = self.config.clone();
            }
            match editor.readline(&self.prompt()) {
                Ok(line) => {
                    if !line.trim().is_empty() {
                        editor.add_history_entry(line.as_str())?;
                    }
                    if let (Some(history), false) = (&history, line.trim().is_empty()) {
                        // Appended at once, so that two shells share it. A history that can't be kept is no reason to stop.
                        let _ = editor.append_history(history);
                    }
                    if let After::Leave = self.carry_out(&line) {
                        return Ok(());
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error).context("the terminal can't be read"),
            }
        }
    }

    fn prompt(&self) -> String {
        match Project::open(Path::new(".")) {
            Ok(project) => {
                let folder =
                    project.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let config = project.config_name(self.config.as_deref());
                format!("fathom:{folder} [{}]> ", config.unwrap_or_else(|_| "none".into()))
            }
            Err(_) => {
                let cwd = std::env::current_dir().unwrap_or_default();
                format!(
                    "fathom:{} (no project)> ",
                    cwd.file_name().unwrap_or_default().to_string_lossy()
                )
            }
        }
    }

    /// Carries out a line. What goes wrong is printed.
    fn carry_out(&mut self, line: &str) -> After {
        let outcome = match shell_words::split(line) {
            Ok(words) => self.words(words),
            Err(_) => Err(anyhow!("expected quotes in pairs, found `{}`", line.trim())),
        };
        outcome.unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            After::Next(exit::ERROR)
        })
    }

    fn words(&mut self, mut words: Vec<String>) -> Result<After> {
        if words.first().is_some_and(|word| word == "fathom" || word == "forgather") {
            words.remove(0);
        }
        let Some(name) = words.first().cloned() else { return Ok(After::Next(exit::OK)) };
        let argument = words.get(1).map(String::as_str);
        match (name.as_str(), argument) {
            (comment, _) if comment.starts_with('#') => {}
            ("quit" | "exit" | "EOF", _) => return Ok(After::Leave),
            ("cd", dir) => enter(&dir.map_or_else(home, expanded))?,
            ("pwd", _) => println!("{}", std::env::current_dir()?.display()),
            ("configs", _) => return self.call(&["ls".to_string()]),
            ("config", None) => println!("{}", self.current_config()?),
            ("config", Some("-")) => self.config = None,
            ("config", Some(config)) => {
                self.config = Some(Project::open(Path::new("."))?.config_name(Some(config))?);
            }
            ("debug", None | Some("on" | "off")) => {
                self.debug = argument.map_or(!self.debug, |argument| argument == "on");
                println!("debug is {}", if self.debug { "on" } else { "off" });
            }
            ("commands", _) | ("help", None) => print!("{}", overview()),
            ("help", Some(of)) => return self.call(&[of.to_string(), "--help".to_string()]),
            _ => return self.call(&words),
        }
        Ok(After::Next(exit::OK))
    }

    fn current_config(&self) -> Result<String> {
        Project::open(Path::new("."))?.config_name(self.config.as_deref())
    }

    /// Calls this program with `words`, through a pager if somebody reads along.
    fn call(&self, words: &[String]) -> Result<After> {
        let mut call = Command::new(std::env::current_exe()?);
        let name = words[0].as_str();
        if let Some(config) = self.config.as_deref().filter(|_| !name.starts_with('-')) {
            call.args(["-t", config]);
        }
        call.args(words);
        if self.debug && matches!(name, "pp" | "ls") {
            call.arg("--debug");
        }
        let long = PAGED.contains(&name) || words.iter().any(|word| word == "--help");
        let paged = self.terminal && long && std::io::stdout().is_terminal();
        let mut pager = if paged { pager() } else { None };
        if let Some(input) = pager.as_mut().and_then(|pager| pager.stdin.take()) {
            call.stdout(input);
        }
        let status = call.status().context("the command can't be started");
        // The pager's input ends when nobody can write to it any more.
        drop(call);
        if let Some(mut pager) = pager {
            pager.wait()?;
        }
        let code = status?.code().and_then(|code| u8::try_from(code).ok());
        Ok(After::Next(code.unwrap_or(exit::INTERRUPTED)))
    }
}

/// $PAGER, else less, which leaves at once what fits on the screen; nothing where neither is there.
fn pager() -> Option<Child> {
    let chosen = std::env::var("PAGER").ok().filter(|text| !text.trim().is_empty());
    let mut pager = match chosen {
        Some(chosen) => {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(chosen);
            shell
        }
        None => {
            let mut less = Command::new("less");
            less.arg("-FRX");
            less
        }
    };
    pager.stdin(Stdio::piped()).spawn().ok()
}

fn enter(dir: &Path) -> Result<()> {
    std::env::set_current_dir(dir)
        .with_context(|| format!("{}: expected a folder, found none", dir.display()))
}

fn home() -> PathBuf {
    directories::BaseDirs::new().map_or_else(|| "/".into(), |dirs| dirs.home_dir().to_path_buf())
}

/// A path as it was typed, with `~` for the home folder.
fn expanded(path: &str) -> PathBuf {
    match path.strip_prefix('~') {
        Some("") => home(),
        Some(rest) if rest.starts_with('/') => home().join(rest.trim_start_matches('/')),
        _ => path.into(),
    }
}

/// Where the history is kept, in the user's data folder.
fn history_file() -> Option<PathBuf> {
    let folder = directories::BaseDirs::new()?.data_dir().join("fathom");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

/// All commands, a line each.
fn overview() -> String {
    let own = OWN.iter().map(|(name, takes, about)| (format!("{name} {takes}"), about.to_string()));
    let command = command();
    let others = command.get_subcommands().map(|command| {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        (command.get_name().to_string(), about)
    });
    own.chain(others).map(|(name, about)| format!("  {name:<18} {about}\n")).collect()
}

/// Completes commands, their options, configurations, targets, templates and paths.
#[derive(Helper, Hinter, Highlighter, Validator)]
struct Completion {
    /// The folder and configuration that the shell is at.
    place: Globals,
    files: FilenameCompleter,
}

impl Completer for Completion {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        position: usize,
        context: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..position];
        let start = typed.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let words: Vec<&str> = typed[..start].split_whitespace().collect();
        let begun = &typed[start..];
        let mut names = candidates(&self.place, &words, begun);
        names.retain(|name| name.starts_with(begun));
        if names.is_empty() {
            return self.files.complete(line, position, context);
        }
        names.sort();
        names.dedup();
        // The only one is complete: the next word may follow.
        let end = if names.len() == 1 { " " } else { "" };
        let pair = |name: String| Pair { replacement: format!("{name}{end}"), display: name };
        Ok((start, names.into_iter().map(pair).collect()))
    }
}

/// What may follow `words`; none where it is a path.
fn candidates(place: &Globals, words: &[&str], begun: &str) -> Vec<String> {
    let command = command();
    let names = |command: &clap::Command| -> Vec<String> {
        command.get_subcommands().map(|command| command.get_name().to_string()).collect()
    };
    let (Some(first), last) = (words.first(), words.last()) else {
        let own = OWN.iter().map(|(name, ..)| name.to_string());
        return names(&command).into_iter().chain(own).collect();
    };
    let project = || Project::open(place.dir()).ok();
    match (*first, last) {
        ("config", _) | (_, Some(&"-t" | &"--config-template")) => {
            project().and_then(|project| project.configs().ok()).unwrap_or_default()
        }
        ("help", _) => names(&command),
        (_, Some(&"--target")) => {
            dynamic::render(place).map(|rendering| rendering.targets()).unwrap_or_default()
        }
        (name, _) if begun.starts_with('-') => options(place, &command, name),
        ("edit", _) => project().map(|project| templates(&project)).unwrap_or_default(),
        (name, _) if words.len() == 1 => {
            command.find_subcommand(name).map(names).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// The options of a command, those that the configuration declares with them.
fn options(place: &Globals, command: &clap::Command, name: &str) -> Vec<String> {
    let own = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
    let own = own.filter_map(|arg| arg.get_long()).map(|long| format!("--{long}"));
    let mut options: Vec<String> = own.chain(["--help".to_string()]).collect();
    if dynamic::RENDERING.contains(&name)
        && let Ok(declared) =
            dynamic::render(place).and_then(|rendering| dynamic::declared(&rendering))
    {
        options.extend(declared.args.iter().flat_map(|arg| arg.names()));
    }
    options
}

/// The templates of a project, as `edit` takes them.
fn templates(project: &Project) -> Vec<String> {
    let folders = project.search.iter();
    folders.filter_map(|folder| templates_below(folder).ok()).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fathom_spec::project::create::{self, NewProject, NewWorkspace};
    use std::fs;

    #[test]
    fn what_may_follow_is_known() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("templatelib")).unwrap();
        let workspace = NewWorkspace {
            name: "ws".into(),
            description: String::new(),
            forgather_dir: folder.path().into(),
            libraries: Vec::new(),
            search_path: Vec::new(),
            folder: None,
        };
        let workspace = create::create_workspace(folder.path(), &workspace).unwrap();
        let project = NewProject {
            name: "probe".into(),
            description: String::new(),
            config_prefix: "configs".into(),
            default_config: "default.yaml".into(),
            folder: None,
            copy_from: None,
        };
        let dir = create::create_project(&workspace, &project).unwrap();
        let second = "x: {{ size | default(1) }}\ndynamic_args: !dlist\n    a: { names: [ -s, --size ], type: int }\n";
        fs::write(dir.join("templates/configs/second.yaml"), second).unwrap();
        let place = Globals {
            project_dir: Some(dir),
            config_template: Some("second.yaml".into()),
            interactive: false,
        };
        let follow = |words: &[&str], begun: &str| candidates(&place, words, begun);
        let first = follow(&[], "");
        assert!(
            ["pp", "cd", "quit"].iter().all(|name| first.contains(&name.to_string())),
            "{first:?}"
        );
        assert_eq!(follow(&["config"], ""), ["default.yaml", "second.yaml"]);
        assert_eq!(follow(&["-t"], "se"), ["default.yaml", "second.yaml"]);
        assert_eq!(follow(&["construct", "--target"], ""), ["x", "dynamic_args"]);
        assert_eq!(follow(&["project"], "n"), ["create", "show", "new-config"]);
        let options = follow(&["pp"], "--");
        assert!(
            ["--debug", "--size", "-s", "--help"]
                .iter()
                .all(|name| options.contains(&name.to_string())),
            "{options:?}"
        );
        assert!(follow(&["edit"], "").contains(&"configs/second.yaml".to_string()));
        assert!(follow(&["cd"], "").is_empty(), "paths are completed by the file system");
    }
}
