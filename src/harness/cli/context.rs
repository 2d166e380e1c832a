//! Where a command works: the options before its name, the project that they name, and a configuration of it rendered with
//! the values of its own options.

use anyhow::{Result, bail};
use clap::{Args, Parser};
use fathom_spec::project::{META_FILE, Project, Workspace};
use fathom_spec::template::Rendered;
use serde_json::{Map, Value as Json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What stands before the command's name.
#[derive(Args, Clone, Debug, Default)]
pub struct Globals {
    /// Work in this project, or in the one that this folder lies in
    #[arg(short = 'p', long, value_name = "DIR")]
    pub project_dir: Option<PathBuf>,
    /// A configuration of the project, if not its default one
    #[arg(short = 't', long, value_name = "CONFIG")]
    pub config_template: Option<String>,
    /// Open a shell in which commands need no `fathom` before them
    #[arg(short = 'i', long)]
    pub interactive: bool,
}

impl Globals {
    /// Whether a project is meant, however it stands with it.
    pub fn is_in_project(&self) -> bool {
        std::path::absolute(self.dir())
            .is_ok_and(|dir| dir.ancestors().any(|dir| dir.join(META_FILE).is_file()))
    }

    /// The folder that the project is looked for from.
    pub fn dir(&self) -> &Path {
        self.project_dir.as_deref().unwrap_or(Path::new("."))
    }

    /// # Errors
    ///
    /// When there is no project, or no configuration of the name.
    pub fn project(&self) -> Result<(Project, String)> {
        let project = Project::open(self.dir())?;
        let config = project.config_name(self.config_template.as_deref())?;
        Ok((project, config))
    }
}

/// Where results are, in the workspace of a project or in the folder fathom is run in.
pub const RESULTS: &str = "results";

/// The results that are meant where none are named: those here, or else those of the workspace around, where `fathom train` puts
/// the runs of its projects.
pub fn default_results() -> PathBuf {
    let here = PathBuf::from(RESULTS);
    let around = || {
        let root = Workspace::containing(Path::new(".")).ok()?.root;
        let below = std::env::current_dir().ok()?;
        let up = below.strip_prefix(&root).ok()?.components().map(|_| "..");
        let results = up.collect::<PathBuf>().join(RESULTS);
        results.is_dir().then_some(results)
    };
    if here.is_dir() { here } else { around().unwrap_or(here) }
}

/// The options of [`Globals`] and the values of the configuration's own options.
#[derive(Debug, Default)]
pub struct Context {
    pub globals: Globals,
    /// Template variables by name.
    pub vars: Map<String, Json>,
    /// Those that were really typed: the option and its variable.
    pub given: Vec<(String, String)>,
}

/// A configuration of a project, rendered.
pub struct Loaded {
    pub project: Project,
    pub config: String,
    pub rendered: Rendered,
}

impl Context {
    /// Renders the configuration, and prints what was noticed about it.
    ///
    /// # Errors
    ///
    /// When there is no project or configuration, it can't be rendered, or an option was given that nothing in it reads.
    pub fn load(&self) -> Result<Loaded> {
        let (project, config) = self.globals.project()?;
        let rendered = project.render(&config, &self.vars)?;
        warn(&rendered);
        for (option, variable) in &self.given {
            if !rendered.read.contains(variable) {
                bail!(
                    "{option}: expected an option that `{config}` reads, found that none of its templates reads `{variable}`\n  \
                     help: use {{{{ {variable} }}}} in the template, or leave the option out"
                );
            }
        }
        Ok(Loaded { project, config, rendered })
    }
}

/// Prints what a template's writer may want to know.
pub fn warn(rendered: &Rendered) {
    for lint in &rendered.lints {
        tell!("warning: {}: {}", lint.origin, lint.message);
    }
}

/// The options before the command's name, and that name, from a command line that may still hold mistakes.
pub fn before(arguments: &[OsString]) -> (Globals, Option<String>) {
    #[derive(Parser)]
    #[command(disable_help_flag = true)]
    struct Before {
        #[command(flatten)]
        globals: Globals,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<OsString>,
    }
    match Before::try_parse_from(arguments) {
        Ok(before) => {
            let name = before.rest.first().map(|name| name.to_string_lossy().into_owned());
            (before.globals, name)
        }
        Err(_) => (Globals::default(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> (Globals, Option<String>) {
        let words: Vec<OsString> = line.split(' ').map(Into::into).collect();
        before(&words)
    }

    #[test]
    fn options_before_the_command_are_told_from_those_after() {
        let (globals, name) = split("fathom -p dir -t a.yaml pp -t 5 --help -p 7");
        assert_eq!(globals.project_dir.as_deref(), Some(Path::new("dir")));
        assert_eq!(globals.config_template.as_deref(), Some("a.yaml"));
        assert_eq!(name.as_deref(), Some("pp"));
        let (globals, name) = split("fathom graph --max-length 5");
        assert_eq!((globals.config_template, name.as_deref()), (None, Some("graph")));
        assert_eq!(split("fathom -t").1, None);
        assert_eq!(split("fathom --help").1.as_deref(), Some("--help"));
    }
}
