//! The engine's errors in our words: the place in the template file, what was expected, what is near.

use super::error::{Error, Stage};
use super::filters;
use super::functions::Raised;
use super::library::Library;
use super::near;
use crate::config::written::Origin;
use minijinja::{Environment, ErrorKind};
use regex::Regex;
use std::collections::BTreeSet;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// What is known when an error is told.
pub(super) struct Known<'a> {
    pub library: &'a Library,
    pub search: &'a [PathBuf],
    /// The names of the variables given.
    pub given: Vec<&'a str>,
}

/// Tells an error of the engine: the innermost one, at its place in the template file.
pub(super) fn error(error: &minijinja::Error, env: &Environment<'_>, known: &Known<'_>) -> Error {
    let error = innermost(error);
    let raised = error.source().and_then(|source| source.downcast_ref::<Raised>());
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    let (message, help) = match error.kind() {
        _ if raised.is_some() => (raised.map(ToString::to_string).unwrap_or_default(), None),
        ErrorKind::TemplateNotFound => not_found(&detail, known),
        ErrorKind::UnknownFilter => {
            let name = detail.split(' ').nth(1).unwrap_or_default();
            let near = near::to(name, filters::NAMES).map(|near| format!("did you mean `{near}`?"));
            (format!("expected a filter, found `{name}`, which is unknown"), near)
        }
        ErrorKind::UnknownFunction => {
            let name = detail.split(' ').next().unwrap_or_default().to_string();
            let message = format!("expected a function, found `{name}`, which is unknown");
            (message, variable_near(&name, env, known))
        }
        _ => match undefined(&detail) {
            Some(name) => {
                let message = match error.kind() {
                    ErrorKind::UndefinedError => format!("expected a defined value: {detail}"),
                    _ => detail.clone(),
                };
                (message, variable_near(name, env, known))
            }
            None => (detail.clone(), None),
        },
    };
    Error { stage: Stage::Preprocess, origin: place(error, known.library), message, help }
}

/// The error that all others are about: the last in the chain that knows a line.
fn innermost(error: &minijinja::Error) -> &minijinja::Error {
    let mut found = error;
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(inner) = source.downcast_ref::<minijinja::Error>()
            && inner.line().is_some()
        {
            found = inner;
        }
        next = source.source();
    }
    found
}

fn place(error: &minijinja::Error, library: &Library) -> Option<Origin> {
    let (name, line) = (error.name()?, error.line()?);
    library.get(name).map(|template| template.origin(line, 0))
}

/// The expression that an error calls undefined.
fn undefined(detail: &str) -> Option<&str> {
    let (before, _) = detail.split_once("` is undefined")?;
    before.rsplit('`').next()
}

/// The known name that an undefined one may have meant.
fn variable_near(name: &str, env: &Environment<'_>, known: &Known<'_>) -> Option<String> {
    static SET: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{%[-+]?\s*(?:set|macro)\s+([\w.]+)").expect("a constant"));
    let globals = env.globals().map(|(name, _)| name.to_string());
    let given = known.given.iter().map(ToString::to_string);
    let loaded = known.library.loaded.iter();
    let set = loaded.flat_map(|loaded| SET.captures_iter(&loaded.translated.text));
    let set = set.map(|found| found[1].to_string());
    let names: BTreeSet<String> = globals.chain(given).chain(set).collect();
    // A name within a namespace is like others within it.
    let scope = |name: &str| name.rsplit_once('.').map(|(scope, _)| scope.to_string());
    let alike = names.iter().filter(|known| scope(known) == scope(name)).map(String::as_str);
    near::to(name, alike).map(|near| format!("did you mean `{near}`?"))
}

fn not_found(detail: &str, known: &Known<'_>) -> (String, Option<String>) {
    let name = detail.split(['"', '\'']).nth(1).unwrap_or(detail);
    let looked: Vec<String> =
        known.search.iter().map(|folder| folder.display().to_string()).collect();
    let mut names = Vec::new();
    for folder in known.search {
        list(folder, folder, &mut names);
    }
    let looked = match looked.is_empty() {
        true => "the search path is empty".to_string(),
        false => format!("looked in {}", looked.join(", ")),
    };
    let help = match near::to(name, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`? {looked}"),
        None => looked,
    };
    (format!("expected a template, found no `{name}`"), Some(help))
}

/// How many files are looked at for a name that is near.
const MANY: usize = 2000;

fn list(root: &Path, folder: &Path, names: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if names.len() >= MANY {
            return;
        }
        if path.is_dir() && !path.is_symlink() {
            list(root, &path, names);
        } else if let Ok(name) = path.strip_prefix(root)
            && super::is_template(&path)
        {
            names.push(name.display().to_string());
        }
    }
}
