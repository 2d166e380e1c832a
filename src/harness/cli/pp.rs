//! `fathom pp`: a configuration as it reads once all its templates are put together.

use super::context::{Context, Loaded};
use super::table::print;
use super::{edit, exit};
use crate::run::write_whole;
use anyhow::{Context as _, Result};
use clap::Args;
use fathom_spec::project::{Project, config_meta, user_config_dir};
use serde_json::{Map, Value as Json};
use std::path::PathBuf;

#[derive(Args)]
pub struct PpArgs {
    /// Print every template first, translated and with line numbers
    #[arg(long)]
    debug: bool,
    /// Write to a file instead
    #[arg(short = 'o', long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Open the text in an editor
    #[arg(short = 'e', long)]
    edit: bool,
}

/// Prints the configuration, with the options it was given and where it stands as comments before it.
///
/// # Errors
///
/// As [`Context::load`], when the text is not YAML of the kind that templates build, and when it can't be written.
pub fn run(args: &PpArgs, context: &Context) -> Result<u8> {
    if args.debug {
        let (project, config) = context.globals.project()?;
        print(&translated(&project, &config, &context.vars))?;
    }
    let loaded = context.load()?;
    let text = header(&loaded, &context.vars)? + shown(&loaded.rendered.text) + "\n";
    match &args.output {
        Some(path) => write_whole(path, text.as_bytes())?,
        None if args.edit => edit::open_text(&loaded.config, &text)?,
        None => print(&text)?,
    }
    // What is printed is YAML, or it is said where it is not.
    loaded.rendered.graph()?;
    Ok(exit::OK)
}

/// What the configuration is, when and where it was put together, and the options it was given; without the lines that its
/// templates print themselves.
fn header(loaded: &Loaded, vars: &Map<String, Json>) -> Result<String> {
    let meta = loaded.rendered.graph().map(|graph| config_meta(&graph)).unwrap_or_default();
    let text = |key: &str| meta.get(key).and_then(Json::as_str).unwrap_or("").trim();
    let title = [text("config_name"), text("config_description")];
    let title = title.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" : ");
    let cwd = std::env::current_dir().context("the current folder can't be read")?;
    let project = &loaded.project;
    let mut lines = vec![
        ("Time: ", chrono::Local::now().format("%Y-%m-%dT%H:%M:%S%:z").to_string()),
        ("Project: ", project.dir.display().to_string()),
        ("Configuration: ", project.template_name(&loaded.config)),
        ("Working directory: ", cwd.display().to_string()),
        ("User configuration: ", user_config_dir().display().to_string()),
        ("Dynamic arguments received: ", Json::Object(vars.clone()).to_string()),
    ];
    let comments: Vec<&str> = loaded
        .rendered
        .text
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with('#'))
        .collect();
    lines.retain(|(name, _)| !comments.iter().any(|line| line.starts_with(&format!("# {name}"))));
    let name = text("config_name");
    if name.is_empty() || !comments.iter().any(|line| line.contains(name)) {
        lines.insert(0, ("", if title.is_empty() { loaded.config.clone() } else { title }));
    }
    Ok(comment(&lines))
}

/// The text without the blank lines around it, which its statements left.
fn shown(text: &str) -> &str {
    let blank: usize =
        text.split_inclusive('\n').take_while(|line| line.trim().is_empty()).map(str::len).sum();
    text[blank..].trim_end()
}

/// Lines of a comment. A line break in a value must not end it.
fn comment(lines: &[(&str, String)]) -> String {
    let lines = lines.iter();
    lines.map(|(name, value)| format!("# {name}{}\n", value.replace(['\n', '\r'], " "))).collect()
}

/// Every template that takes part, translated, each line with its number.
fn translated(project: &Project, config: &str, vars: &Map<String, Json>) -> String {
    let mut templates = project.templates();
    templates.keep_comments = true;
    let mut text = String::new();
    for source in templates.sources(&project.template_name(config), vars) {
        text += &format!("# ===== {} : {} =====\n", source.name, source.path.display());
        for (index, line) in source.translated.lines().enumerate() {
            text += format!("# {:>4}  {line}", index + 1).trim_end();
            text.push('\n');
        }
    }
    text
}
