//! `fathom edit`: a template in the user's editor, picked by name or from a menu.

use super::context::Context;
use super::exit;
use super::table::print;
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use fathom_spec::project::create::write_new;
use fathom_spec::project::{META_FILE, Project, TEMPLATES_FOLDER, templates_below};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args)]
pub struct EditArgs {
    /// A file, or a template by its name; a menu of the project's templates if absent
    file: Option<PathBuf>,
}

/// Opens a template in an editor: VS Code if this terminal knows one (VSCODE_IPC_HOOK_CLI), else $VISUAL, $EDITOR or vi.
///
/// # Errors
///
/// When there is no project to pick from, or the editor can't be started or fails.
pub fn run(args: &EditArgs, context: &Context) -> Result<u8> {
    let files = match &args.file {
        Some(file) if file.is_file() => vec![file.clone()],
        Some(file) => named(&Project::open(context.globals.dir())?, file)?.into_iter().collect(),
        None => pick(&Project::open(context.globals.dir())?)?,
    };
    if !files.is_empty() {
        open(&files)?;
    }
    Ok(exit::OK)
}

/// Opens a text that is in no file of its own.
///
/// # Errors
///
/// When it can't be written, or the editor can't be started or fails.
pub fn open_text(name: &str, text: &str) -> Result<()> {
    let name = name.replace('/', "-");
    let path = std::env::temp_dir().join(format!("fathom-{}-{name}", std::process::id()));
    std::fs::write(&path, text)
        .with_context(|| format!("{}: the file can't be written", path.display()))?;
    // It stays: an editor with a window of its own reads it after this returns.
    open(&[path])
}

/// A line of standard input without its end; `None` at the end of input. It takes not one byte more, so that what follows
/// is there for whoever reads next.
///
/// # Errors
///
/// When standard input can't be read.
pub fn read_line() -> Result<Option<String>> {
    // SAFETY: the descriptor of standard input, which is left open.
    let mut input = ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(0) });
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match input.read(&mut byte) {
            Ok(0) if line.is_empty() => return Ok(None),
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("standard input can't be read"),
        }
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end_matches('\r').to_string()))
}

/// Prints a question, at once although its line does not end, and reads the answer.
fn ask(question: &str) -> Result<Option<String>> {
    print(question)?;
    std::io::stdout().flush()?;
    read_line()
}

fn open(files: &[PathBuf]) -> Result<()> {
    let (program, arguments) = editor()?;
    let status = Command::new(&program).args(arguments).args(files).status();
    let shown = program.to_string_lossy();
    let status = status.with_context(|| {
        format!("the editor `{shown}` can't be started\n  help: set EDITOR to one that can")
    })?;
    match status.success() {
        true => Ok(()),
        false => bail!("the editor `{shown}`: expected it to end well, found {status}"),
    }
}

/// The editor and its first arguments.
fn editor() -> Result<(OsString, Vec<String>)> {
    if std::env::var_os("VSCODE_IPC_HOOK_CLI").is_some_and(|hook| !hook.is_empty()) {
        return Ok((vs_code(), Vec::new()));
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.trim().is_empty());
    let chosen = ["VISUAL", "EDITOR"].into_iter().find_map(|name| Some((name, variable(name)?)));
    let Some((name, chosen)) = chosen else { return Ok(("vi".into(), Vec::new())) };
    let mut words = shell_words::split(&chosen)
        .with_context(|| format!("{name}: expected a command, found `{chosen}`"))?;
    Ok((words.remove(0).into(), words))
}

/// VS Code's `code`: from the PATH, or the one that its server brought, which a terminal outside VS Code does not have there.
fn vs_code() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).any(|folder| folder.join("code").is_file());
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let servers = [
        (".vscode-server/cli/servers", "server/bin/remote-cli/code"),
        (".vscode-server/bin", "bin/remote-cli/code"),
    ];
    let brought = servers.iter().flat_map(|(folder, below)| {
        let entries = std::fs::read_dir(home.join(folder)).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path().join(below))
            .filter(|code| code.is_file())
            .collect::<Vec<_>>()
    });
    let newest = brought.max_by_key(|code| code.metadata().and_then(|m| m.modified()).ok());
    match newest {
        Some(code) if !on_path => code.into(),
        _ => "code".into(),
    }
}

/// The template that a name means; one that is not there yet is made if the user wants it.
fn named(project: &Project, name: &Path) -> Result<Option<PathBuf>> {
    let in_configs = Path::new(&project.config_prefix).join(name);
    let places =
        std::iter::once(project.dir.as_path()).chain(project.search.iter().map(PathBuf::as_path));
    let found = places
        .flat_map(|place| [place.join(name), place.join(&in_configs)])
        .find(|path| path.is_file());
    if found.is_some() {
        return Ok(found);
    }
    if name.is_relative() && name.components().any(|part| part.as_os_str() == "..") {
        bail!("{}: expected a template of the project, found no such file", name.display());
    }
    let new = project.dir.join(TEMPLATES_FOLDER).join(name);
    let answer = ask(&format!("{} is not there. Make it? [y/N] ", new.display()))?;
    let answer = answer.unwrap_or_default();
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        print("nothing was made\n")?;
        return Ok(None);
    }
    write_new(&new, b"")?;
    Ok(Some(new))
}

/// Prints a numbered menu of the templates and reads which to open.
fn pick(project: &Project) -> Result<Vec<PathBuf>> {
    let menu = menu(project)?;
    let mut files: Vec<PathBuf> = Vec::new();
    for (heading, folder, names) in &menu {
        print(&format!("{heading}\n"))?;
        for name in names {
            files.push(folder.join(name));
            print(&format!("  {:>3}  {name}\n", files.len()))?;
        }
    }
    let Some(line) = ask("Which (1,3,5-7)? ")? else { return Ok(Vec::new()) };
    let chosen = selection(&line, files.len())?;
    Ok(chosen.into_iter().map(|number| files[number - 1].clone()).collect())
}

/// Headings with the templates under them: the project's own, nearest first, then those that it builds on.
fn menu(project: &Project) -> Result<Vec<(String, PathBuf, Vec<String>)>> {
    let prefix = Path::new(&project.config_prefix);
    let mut menu = Vec::new();
    let own = project.dir.join(TEMPLATES_FOLDER);
    let configs = own.join(prefix);
    menu.push(("Configurations".to_string(), configs.clone(), templates_below(&configs)?));
    let mut templates = templates_below(&own)?;
    templates.retain(|name| !Path::new(name).starts_with(prefix) || prefix.as_os_str().is_empty());
    if !prefix.as_os_str().is_empty() {
        menu.push(("Templates of the project".to_string(), own.clone(), templates));
    }
    menu.push(("Project".to_string(), project.dir.clone(), vec![META_FILE.to_string()]));
    for folder in project.search.iter().filter(|folder| **folder != own) {
        let heading = match *folder == project.workspace.folder() {
            true => "Workspace".to_string(),
            false => format!("{}", folder.display()),
        };
        menu.push((heading, folder.clone(), templates_below(folder)?));
    }
    menu.retain(|(_, _, names)| !names.is_empty());
    Ok(menu)
}

/// Reads `1,3,5-7`: numbers from 1 to `count`, in the order given.
fn selection(text: &str, count: usize) -> Result<Vec<usize>> {
    let number = |text: &str| {
        let number = text.trim().parse::<usize>().ok().filter(|n| (1..=count).contains(n));
        number.ok_or_else(|| anyhow!("expected numbers from 1 to {count}, found `{}`", text.trim()))
    };
    let mut chosen = Vec::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        match part.split_once('-') {
            Some((from, to)) => chosen.extend(number(from)?..=number(to)?),
            None => chosen.push(number(part)?),
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_are_numbers_and_ranges() {
        assert_eq!(selection("1,3,5-7", 9).unwrap(), [1, 3, 5, 6, 7]);
        assert_eq!(selection(" 2 ", 2).unwrap(), [2]);
        assert!(selection("", 2).unwrap().is_empty());
        for (text, found) in [("0", "`0`"), ("3", "`3`"), ("1-x", "`x`"), ("a", "`a`")] {
            let error = format!("{}", selection(text, 2).unwrap_err());
            assert!(error.ends_with(found), "{error}");
        }
    }
}
