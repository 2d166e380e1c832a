//! The template language: a file and what it builds on -> YAML text, each line knowing its origin -> a node graph.
//!
//! ```text
//! file -> split into sub-templates -> line statements, comments, bracket blocks -> minijinja -> YAML text -> graph
//! ```
//!
//! 1. `preprocess` splits a file and translates its shorthand, line by line.
//! 2. `environment` is the engine: strict, printing like Python (`python`, `methods`, `filters`), with the functions
//!    of `functions`. It loads from a `library`, which remembers what was loaded and who asked for it.
//! 3. `origins` says where each piece of the text came from, with the help of `marks` where text was captured.
//! 4. `tree` reads the text as YAML, `read` builds the [`graph`] from it by the rules of YAML 1.1 (`scalar`).
//! 5. What goes wrong is told by `report` and `error`, what would vanish by `lints`.

mod concat;
mod environment;
mod error;
mod filters;
mod functions;
pub mod graph;
mod host;
mod library;
mod lints;
mod marks;
mod methods;
mod near;
mod origins;
mod paths;
mod preprocess;
mod python;
mod read;
mod report;
mod scalar;
mod syntax;
mod to_yaml;
mod tree;

pub use environment::from_json;
pub use error::{Error, Stage};
pub use host::Host;

use crate::config::written::Origin;
use anyhow::Result;
use environment::lock;
use graph::Graph;
use library::Library;
use marks::Marks;
use minijinja::value::{Enumerator, Object, Value};
use report::Known;
use serde_json::{Map, Value as Json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A search path of templates, with the values that every template sees.
#[derive(Debug, Clone, Default)]
pub struct Templates {
    /// Looked through in order; the first that has a file of the name wins. Folders that are not there are passed over.
    pub search: Vec<PathBuf>,
    /// Environment variables of the language: `project_dir`, `workspace_root`, `hostname`, `uname`, `versions`, …
    pub globals: Map<String, Json>,
    /// Leaves `##` comments as empty lines of the templates (`pp --debug`) instead of deleting them.
    pub keep_comments: bool,
}

/// What a template became.
#[derive(Debug, Clone)]
pub struct Rendered {
    pub text: String,
    /// For each line of `text`, the template file and line that it came from.
    pub origins: Vec<Origin>,
    /// What would have vanished silently, each one line with its place.
    pub lints: Vec<Lint>,
    /// Every template that was loaded, in the order of loading.
    pub sources: Vec<Source>,
    /// Names of the variables given that some template read.
    pub read: BTreeSet<String>,
    /// For each line of `text`, where its pieces begin (in characters) and came from.
    pieces: Vec<Vec<(usize, Origin)>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lint {
    pub origin: Origin,
    pub message: String,
}

/// A template that took part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// As templates name it: `projects/finetune_v2.yaml`.
    pub name: String,
    /// Where it was found; for a sub-template, the file that holds it.
    pub path: PathBuf,
    /// Who asked for it first, by name, and how; nothing for the template that was rendered.
    pub parent: Option<(String, Use)>,
    /// After the preprocessor: what `pp --debug` shows.
    pub translated: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Extends,
    Include,
    Import,
}

impl Templates {
    /// Renders the template `name` with `vars`, on this machine at this moment.
    ///
    /// # Errors
    ///
    /// When a template is missing or broken, a variable is undefined or the template itself raises: with the file and line
    /// of the template that it stands in. The root is an [`Error`].
    pub fn render(&self, name: &str, vars: &Map<String, Json>) -> Result<Rendered> {
        self.render_on(&Host::of_process(), name, vars)
    }

    /// As [`Templates::render`], with the machine and the moment given.
    ///
    /// # Errors
    ///
    /// As [`Templates::render`].
    pub fn render_on(&self, host: &Host, name: &str, vars: &Map<String, Json>) -> Result<Rendered> {
        self.render_with(host, name, None, vars)
    }

    /// As [`Templates::render_on`], for a file that need not be on the search path. It is called by its path; what it
    /// extends and includes is looked for on the search path.
    ///
    /// # Errors
    ///
    /// As [`Templates::render`].
    pub fn render_file(
        &self,
        host: &Host,
        file: &Path,
        vars: &Map<String, Json>,
    ) -> Result<Rendered> {
        let name = file.display().to_string();
        self.render_with(host, &name, Some(file.to_path_buf()), vars)
    }

    fn render_with(
        &self,
        host: &Host,
        name: &str,
        file: Option<PathBuf>,
        vars: &Map<String, Json>,
    ) -> Result<Rendered> {
        let pinned = file.map(|file| (name.to_string(), file));
        let given = Arc::new(Given { vars: vars.clone(), read: Mutex::new(BTreeSet::new()) });
        let run = |marks: Option<Marks>| {
            let library = Library::new(&self.search, self.keep_comments, pinned.clone(), marks);
            let library = Arc::new(Mutex::new(library));
            let env = environment::new(host, &self.globals, &library);
            let rendered = environment::with_deep_stack(|| {
                env.get_template(name)?.render_with_spans(Value::from_dyn_object(given.clone()))
            });
            (library, env, rendered)
        };
        let (library, env, rendered) = run(None);
        let library = lock(&library);
        let (text, spans) = rendered.map_err(|error| {
            let given = vars.keys().map(String::as_str).collect();
            report::error(&error, &env, &Known { library: &library, search: &self.search, given })
        })?;
        let mut pieces = origins::pieces(&text, &spans, &library);
        if spans.iter().any(|span| marks::is_captured(&text, span, &library)) {
            let (marked, _, again) = run(Some(Marks::default()));
            if let (Ok((again, _)), Some(marks)) = (again, &lock(&marked).marks) {
                let unmarked = marks.unmark(&again);
                if unmarked.text == text {
                    marks::refine(&mut pieces, &text, &spans, (marks, &unmarked), &library);
                }
            }
        }
        let read = given.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Rendered {
            origins: origins::of_lines(&text, &pieces),
            lints: lints::all(&library),
            sources: library.sources(),
            read,
            pieces,
            text,
        })
    }

    /// The templates that rendering `name` loads, translated, as far as it gets: a mistake stands in one of them.
    pub fn sources(&self, name: &str, vars: &Map<String, Json>) -> Vec<Source> {
        let library = Library::new(&self.search, self.keep_comments, None, None);
        let library = Arc::new(Mutex::new(library));
        let given = Arc::new(Given { vars: vars.clone(), read: Mutex::new(BTreeSet::new()) });
        let env = environment::new(&Host::of_process(), &self.globals, &library);
        // Whether it renders is not asked here.
        let _ = environment::with_deep_stack(|| {
            env.get_template(name)?.render_with_spans(Value::from_dyn_object(given.clone()))
        });
        lock(&library).sources()
    }

    /// The file that a template name stands for.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        library::find(&self.search, name)
    }
}

impl Rendered {
    /// Reads the text as YAML 1.1 into a node graph.
    ///
    /// # Errors
    ///
    /// When the text is not YAML or a tag can't be: with the file and line of the template that it came from. The root is
    /// an [`Error`].
    pub fn graph(&self) -> Result<Graph> {
        Ok(read::graph(self)?)
    }

    /// The variables of `vars` that no template read: nothing that they say has any effect.
    pub fn unread<'a>(&self, vars: &'a Map<String, Json>) -> Vec<&'a str> {
        vars.keys().map(String::as_str).filter(|name| !self.read.contains(*name)).collect()
    }

    /// Where a place of the text came from: a line from 1 and a column from 0, in characters.
    pub fn origin(&self, line: usize, column: usize) -> Origin {
        origins::find(&self.pieces, line, column)
    }
}

/// The variables given, which remember what was asked for.
#[derive(Debug)]
struct Given {
    vars: Map<String, Json>,
    read: Mutex<BTreeSet<String>>,
}

impl Object for Given {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        let value = self.vars.get(key)?;
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_string());
        Some(environment::from_json(value))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.vars.keys().map(|key| Value::from(key.as_str())).collect())
    }
}

/// Whether a file is a template, by its name.
pub fn is_template(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "jinja")
}
