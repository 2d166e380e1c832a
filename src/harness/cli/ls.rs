//! `fathom ls`: projects and their configurations, with what each says of itself.

use super::context::{Context, warn};
use super::exit;
use super::table::print;
use anyhow::{Result, bail};
use clap::Args;
use fathom_spec::project::{Project, config_meta, projects_below};
use serde_json::Map;
use std::path::PathBuf;

#[derive(Args)]
pub struct LsArgs {
    /// List all projects below
    #[arg(short = 'r', long)]
    recursive: bool,
    /// Say why a configuration can't be read, and what was noticed about the others
    #[arg(long)]
    debug: bool,
    /// Folders of projects; the current one if none is given
    projects: Vec<PathBuf>,
}

/// Lists projects. The exit code says whether every configuration could be read.
///
/// # Errors
///
/// When there is no project, or the only one can't be opened.
pub fn run(args: &LsArgs, context: &Context) -> Result<u8> {
    let mut folders = args.projects.clone();
    if folders.is_empty() {
        folders.push(context.globals.dir().to_path_buf());
    }
    if args.recursive {
        let below: Result<Vec<_>> = folders.iter().map(|folder| projects_below(folder)).collect();
        let below = below?.concat();
        if below.is_empty() {
            bail!("{}: expected projects below, found none", folders[0].display());
        }
        folders = below;
    }
    let mut broken = false;
    for folder in &folders {
        match Project::open(folder) {
            Ok(project) => broken |= list(&project, args.debug)?,
            Err(error) if folders.len() == 1 => return Err(error),
            Err(error) => {
                broken = true;
                print(&format!("{} : PARSE ERROR\n", folder.display()))?;
                print(&reason(&error, "    "))?;
            }
        }
    }
    Ok(if broken { exit::ERROR } else { exit::OK })
}

/// Prints a project's configurations; the default one stands in brackets. Returns whether one is broken.
fn list(project: &Project, debug: bool) -> Result<bool> {
    print(&line(&project.name, &project.description))?;
    let mut configs = project.configs()?;
    let default = project.default_config.clone().or_else(|| configs.first().cloned());
    // One that is named but not there belongs to what is broken.
    if let Some(default) = default.iter().find(|default| !configs.contains(default)) {
        configs.push(default.clone());
        configs.sort();
    }
    let mut broken = false;
    for config in configs {
        let shown =
            if default.as_ref() == Some(&config) { format!("[{config}]") } else { config.clone() };
        print(&format!("    {shown:<30} "))?;
        match described(project, &config, debug) {
            Ok((name, description)) => print(&line(&name, &description))?,
            Err(error) => {
                broken = true;
                let help = if debug { "" } else { " (`fathom ls --debug` says why)" };
                print(&format!("PARSE ERROR : the configuration can't be read{help}\n"))?;
                if debug {
                    print(&reason(&error, "        "))?;
                }
            }
        }
    }
    Ok(broken)
}

/// The name and description that a configuration gives itself.
fn described(project: &Project, config: &str, debug: bool) -> Result<(String, String)> {
    let rendered = project.render(config, &Map::new())?;
    let meta = config_meta(&rendered.graph()?);
    if debug {
        warn(&rendered);
    }
    let text = |key: &str| meta.get(key).and_then(|value| value.as_str()).map(str::to_string);
    let name = text("config_name").unwrap_or_else(|| config.to_string());
    Ok((name, text("config_description").unwrap_or_default()))
}

fn line(name: &str, description: &str) -> String {
    format!("{name} : {}", description.trim()).trim_end().to_string() + "\n"
}

fn reason(error: &anyhow::Error, indent: &str) -> String {
    format!("{error:#}").lines().map(|line| format!("{indent}{line}\n")).collect()
}
