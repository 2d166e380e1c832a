//! The options that a configuration declares, as options of the commands that render it.

use super::context::Globals;
use anyhow::{Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use fathom_spec::project::dynamic::{self, Action, ArgType, DynamicArg};
use fathom_spec::template::Rendered;
use fathom_spec::template::graph::Graph;
use serde_json::{Map, Value as Json};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Commands that render a configuration and so take the options it declares.
pub const RENDERING: &[&str] =
    &["pp", "targets", "trefs", "graph", "construct", "dataset", "train"];

/// What a configuration declares.
pub struct Declared {
    pub config: String,
    pub args: Vec<DynamicArg>,
}

/// A configuration with what it renders to and builds.
pub struct Rendering {
    config: String,
    rendered: Rendered,
    graph: Graph,
}

impl Rendering {
    /// The names of what it can build.
    pub fn targets(&self) -> Vec<String> {
        self.graph.entries.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// Renders the configuration that `globals` mean, without any of its options.
///
/// # Errors
///
/// When there is no project or configuration, or it can't be rendered.
pub fn render(globals: &Globals) -> Result<Rendering> {
    let (project, config) = globals.project()?;
    let rendered = project.render(&config, &Map::new())?;
    let graph = rendered.graph()?;
    Ok(Rendering { config, rendered, graph })
}

/// The options that a configuration declares.
///
/// # Errors
///
/// When a declaration is not one.
pub fn declared(rendering: &Rendering) -> Result<Declared> {
    let args = dynamic::declared(&rendering.rendered, &rendering.graph)?;
    Ok(Declared { config: rendering.config.clone(), args })
}

/// Gives the command called `name` the declared options. Where one has a name that the command has already, its other
/// names remain; for `dataset` one that has none left keeps its default.
///
/// # Errors
///
/// When a declared option has no name of its own left.
pub fn extend(command: Command, name: &str, declared: &Declared) -> Result<Command> {
    let taken = command.find_subcommand(name).map(names).unwrap_or_default();
    let heading = format!("Options of {}", declared.config);
    let args = declared.args.iter();
    let args: Vec<Arg> = args
        .filter_map(|arg| option(arg, name, &taken).transpose())
        .map(|arg| Ok(arg?.help_heading(heading.clone())))
        .collect::<Result<_>>()?;
    Ok(command.mut_subcommand(name, |command| command.args(args)))
}

/// The values of declared options by variable, and those that were typed: the option and its variable.
pub fn values(
    matches: &ArgMatches,
    declared: &Declared,
) -> (Map<String, Json>, Vec<(String, String)>) {
    let mut vars = Map::new();
    let mut given = Vec::new();
    for arg in &declared.args {
        // One that has no name here is not known.
        let flag = || matches.try_get_one::<bool>(&id(arg)).ok().flatten().copied();
        let typed = match arg.action {
            Action::Store => matches.try_get_one::<Json>(&id(arg)).ok().flatten().cloned(),
            Action::StoreTrue => flag().filter(|is_set| *is_set).map(Json::from),
            Action::StoreFalse => flag().filter(|is_set| !*is_set).map(Json::from),
        };
        if typed.is_some() {
            given.push((arg.names().pop().unwrap_or_default(), arg.variable.clone()));
        }
        if let Some(value) = typed.or_else(|| arg.absent()) {
            vars.insert(arg.variable.clone(), value);
        }
    }
    (vars, given)
}

/// Never that of one of the command's own.
fn id(arg: &DynamicArg) -> String {
    format!("dynamic {}", arg.variable)
}

/// The names of a command's own options, with their dashes.
fn names(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().flat_map(|arg| {
        let long = arg.get_long_and_visible_aliases().unwrap_or_default();
        let short = arg.get_short_and_visible_aliases().unwrap_or_default();
        let long = long.into_iter().map(|name| format!("--{name}"));
        long.chain(short.into_iter().map(|name| format!("-{name}"))).collect::<Vec<_>>()
    });
    own.chain(["-h".to_string(), "--help".to_string()]).collect()
}

fn option(declared: &DynamicArg, command: &str, taken: &BTreeSet<String>) -> Result<Option<Arg>> {
    let free = |name: &String| !taken.contains(name);
    let long: Vec<String> =
        declared.long.iter().filter(|name| free(&format!("--{name}"))).cloned().collect();
    let short: Vec<char> =
        declared.short.iter().filter(|name| free(&format!("-{name}"))).copied().collect();
    let (first_long, first_short) = (long.first().cloned(), short.first().copied());
    if first_long.is_none() && first_short.is_none() {
        // It shows what a run is fed; what else the run is configured by keeps its defaults.
        if command == "dataset" {
            return Ok(None);
        }
        bail!(
            "{}: dynamic_args: expected a name of its own, found {}, which `fathom {command}` has already",
            declared.origin,
            declared.names().join(" and ")
        );
    }
    let mut arg =
        Arg::new(id(declared)).help(help(declared, command, taken)).overrides_with(id(declared));
    if let Some(name) = first_long {
        arg = arg.long(name).visible_aliases(long.into_iter().skip(1));
    }
    if let Some(name) = first_short {
        arg = arg.short(name).visible_short_aliases(short.into_iter().skip(1));
    }
    Ok(Some(match declared.action {
        Action::StoreTrue => arg.action(ArgAction::SetTrue),
        Action::StoreFalse => arg.action(ArgAction::SetFalse),
        Action::Store => {
            let value_name =
                declared.metavar.clone().unwrap_or_else(|| declared.kind.name().to_string());
            let reader = declared.clone();
            arg.value_name(value_name)
                .allow_negative_numbers(matches!(declared.kind, ArgType::Int | ArgType::Float))
                .value_parser(move |text: &str| {
                    let cwd = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
                    reader.parse(text, &cwd)
                })
        }
    }))
}

/// What it is for, what may be given, and what holds otherwise.
fn help(declared: &DynamicArg, command: &str, taken: &BTreeSet<String>) -> String {
    let mut parts = vec![declared.help.trim().to_string()];
    if declared.metavar.is_some() {
        parts.push(format!("[type: {}]", declared.kind.name()));
    }
    if !declared.choices.is_empty() {
        let choices = declared.choices.iter();
        let choices: Vec<String> =
            choices.map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_string)).collect();
        parts.push(format!("[choices: {}]", choices.join(", ")));
    }
    parts.extend(declared.default.as_ref().map(|default| format!("[default: {default}]")));
    for name in declared.names().iter().filter(|name| taken.contains(*name)) {
        parts.push(format!("[{name} is an option of `{command}` itself]"));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}
