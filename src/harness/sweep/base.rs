//! What all points of a sweep share: a configuration file, or a configuration of a project.
//!
//! ```yaml
//! base: mine.yaml                                       # a file; axes and `set` are key paths
//! base: { project: ../finetune, config: 16k.yaml }      # a project, from the sweep file's folder
//! set:  { model_id_or_path: ../models/m, eval.last_stride: 64 }
//! axes: { seq_len: [8192, 16384], train.max_grad_norm: [1, null] }
//! ```
//!
//! Over a project, a name without a dot is one of the configuration's own options (`seq_len`, also written `--seq-len`), and the
//! templates are rendered anew with it; a key path is laid over what comes of them. Relative paths among the values start at
//! the folder fathom is run in, as those of key paths do.

use super::plan::{known, schema};
use anyhow::{Context, Result, anyhow, bail};
use fathom_spec::components::run;
use fathom_spec::config::nearest;
use fathom_spec::config::written::{Node, Written, load_from};
use fathom_spec::project::Project;
use fathom_spec::project::dynamic::{self, Action, ArgType, DynamicArg};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What all points share.
#[derive(Debug, Clone)]
pub enum Base {
    File(Written),
    Project(Box<OfProject>),
}

/// A configuration of a project, with the values that all points give its options.
#[derive(Debug, Clone)]
pub struct OfProject {
    project: Project,
    config: String,
    declared: Vec<DynamicArg>,
    assigned: Assigned,
    /// What came of the templates, by their variables as JSON: points often differ in key paths alone.
    resolved: RefCell<BTreeMap<String, run::Resolved>>,
}

#[derive(Debug, Clone, Default)]
struct Assigned {
    /// Values of options.
    vars: Map<String, Value>,
    /// Key paths, in the order in which they are laid over what comes of the templates.
    settings: Vec<(String, Written)>,
}

impl Base {
    /// The base that a sweep file names, with `set`, `eval` and the command line's assignments on it.
    ///
    /// # Errors
    ///
    /// When there is no such file or project, or an assignment is to an option that the project does not declare.
    pub fn read(
        tree: &Written,
        search_path: &[PathBuf],
        overrides: &[(String, Written)],
    ) -> Result<Base> {
        let mut base = match tree.get("base") {
            Some(base) if matches!(base.node, Node::Map(_)) => {
                Base::Project(Box::new(OfProject::open(base)?))
            }
            Some(name) => Base::File(load_from(name.text("base")?, &name.origin, search_path)?),
            None => {
                Base::File(Written { node: Node::Map(Vec::new()), origin: tree.origin.clone() })
            }
        };
        if let Some(set) = tree.get("set") {
            for entry in set.entries("set")? {
                let place = format!("{}: set.{}", entry.key_origin, entry.key);
                base.assign(&entry.key, &entry.value, &place)?;
            }
        }
        if let Some(eval) = tree.get("eval") {
            for entry in eval.entries("eval")? {
                base.assign(&format!("eval.{}", entry.key), &entry.value, "eval")?;
            }
        }
        for (key, value) in overrides {
            base.assign(key, value, &format!("--set {key}"))?;
        }
        Ok(base)
    }

    /// The written configuration with the settings of a point on it: axis, key or option, value.
    ///
    /// # Errors
    ///
    /// When an option is not declared, a value is not of its type, or the templates refuse it.
    pub fn with<'a>(
        &self,
        settings: impl Iterator<Item = (&'a str, &'a str, &'a Written)>,
    ) -> Result<Written> {
        match self {
            Base::File(base) => {
                let mut written = base.clone();
                for (axis, key, value) in settings {
                    assign(&mut written, key, value).with_context(|| format!("axes.{axis}"))?;
                }
                Ok(written)
            }
            Base::Project(base) => {
                let mut assigned = base.assigned.clone();
                for (axis, key, value) in settings {
                    let place = format!("{}: axes.{axis}", value.origin);
                    base.assign(&mut assigned, key, value, &place)?;
                }
                base.written(&assigned)
            }
        }
    }

    /// Whether a key path, or an option of the project, takes whole numbers only.
    pub fn takes_whole(&self, key: &str) -> bool {
        match self {
            Base::Project(base) if !key.contains('.') => {
                let name = variable(key);
                let mut options = base.declared.iter();
                options.any(|option| option.variable == name && option.kind == ArgType::Int)
            }
            _ => schema::takes_whole(key),
        }
    }

    /// What the templates of all points so far make otherwise than it was written.
    pub fn notes(&self) -> Vec<String> {
        let Base::Project(base) = self else { return Vec::new() };
        let resolved = base.resolved.borrow();
        let mut notes: Vec<String> = Vec::new();
        for note in resolved.values().flat_map(|resolved| &resolved.notes) {
            let note = note.to_string();
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        notes
    }

    fn assign(&mut self, key: &str, value: &Written, place: &str) -> Result<()> {
        match self {
            Base::File(written) => assign(written, key, value),
            Base::Project(base) => {
                let mut assigned = std::mem::take(&mut base.assigned);
                base.assign(&mut assigned, key, value, place)?;
                base.assigned = assigned;
                Ok(())
            }
        }
    }
}

impl OfProject {
    fn open(base: &Written) -> Result<OfProject> {
        for entry in base.entries("base")? {
            known(entry, &["project", "config"], "base")?;
        }
        let Some(project) = base.get("project") else {
            bail!("{}: base: expected the key `project` (a folder), found none", base.origin);
        };
        let folder = Path::new(&*base.origin.file).parent().unwrap_or(Path::new("")).to_path_buf();
        let place = |error: anyhow::Error| anyhow!("{}: base: {error:#}", project.origin);
        let opened = Project::open(&folder.join(project.text("base.project")?)).map_err(place)?;
        let config = base.get("config").map(|config| config.text("base.config")).transpose()?;
        let config = opened.config_name(config).map_err(place)?;
        let rendered = opened.render(&config, &Map::new())?;
        let declared = dynamic::declared(&rendered, &rendered.graph()?)?;
        let vars = declared.iter();
        let vars = vars.filter_map(|arg| Some((arg.variable.clone(), arg.absent()?))).collect();
        let assigned = Assigned { vars, settings: Vec::new() };
        let resolved = RefCell::default();
        Ok(OfProject { project: opened, config, declared, assigned, resolved })
    }

    fn assign(
        &self,
        assigned: &mut Assigned,
        key: &str,
        value: &Written,
        place: &str,
    ) -> Result<()> {
        // `train: {…}` is a section; every other name without a dot is an option.
        if key.contains('.') || matches!(value.node, Node::Map(_)) {
            assigned.settings.push((key.to_string(), value.clone()));
            return Ok(());
        }
        let name = variable(key);
        let Some(option) = self.declared.iter().find(|arg| arg.variable == name) else {
            let names = || self.declared.iter().map(|arg| arg.variable.as_str());
            let near = nearest(&name, names());
            let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
            let known: Vec<&str> = names().collect();
            bail!(
                "{place}: expected a key path or an option of `{}`, found `{key}`\n  help: {near}its options: {}",
                self.config,
                known.join(", ")
            );
        };
        match read(option, value) {
            Ok(read) => {
                match read {
                    Value::Null => assigned.vars.remove(&name),
                    read => assigned.vars.insert(name, read),
                };
                Ok(())
            }
            Err(message) => bail!("{place}: {message}"),
        }
    }

    fn written(&self, assigned: &Assigned) -> Result<Written> {
        let key = Value::Object(assigned.vars.clone()).to_string();
        let known = self.resolved.borrow().get(&key).map(|resolved| resolved.written.clone());
        let mut written = match known {
            Some(written) => written,
            None => {
                let resolved = self.resolve(&assigned.vars)?;
                let written = resolved.written.clone();
                self.resolved.borrow_mut().insert(key, resolved);
                written
            }
        };
        for (key, value) in &assigned.settings {
            assign(&mut written, key, value)?;
        }
        Ok(written)
    }

    fn resolve(&self, vars: &Map<String, Value>) -> Result<run::Resolved> {
        let rendered = self.project.render(&self.config, vars)?;
        for option in &self.declared {
            let given = vars.get(&option.variable);
            let given = given.is_some() && given != option.absent().as_ref();
            if given && !rendered.read.contains(&option.variable) {
                bail!(
                    "{}: expected an option that `{}` reads, found `{}`, which none of its templates reads",
                    option.origin,
                    self.config,
                    option.variable
                );
            }
        }
        run::resolve(&rendered.graph()?, &Map::new())
    }
}

/// An option's variable, however the option is written: `seq_len`, `--seq-len`.
fn variable(option: &str) -> String {
    option.trim_start_matches('-').replace('-', "_")
}

/// The value of an option as its declared type; `null` takes the option away.
fn read(option: &DynamicArg, value: &Written) -> Result<Value, String> {
    let expected = |what: &str| format!("expected {what}, found {}", value.describe());
    let here = std::path::absolute(".").map_err(|error| error.to_string())?;
    match (&value.node, option.action) {
        (Node::Null, _) => Ok(option.absent().unwrap_or(Value::Null)),
        (Node::Bool(b), Action::StoreTrue | Action::StoreFalse) => Ok(Value::from(*b)),
        (_, Action::StoreTrue | Action::StoreFalse) => Err(expected("true or false")),
        (Node::List(_) | Node::Map(_), _) => Err(expected("one value")),
        (Node::String(text), _) => option.parse(text, &here),
        _ => option.parse(&value.to_json().to_string(), &here),
    }
}

/// Sets a key path. A whole section (`train: {…}`) is set key by key, so that the others in it stay.
fn assign(written: &mut Written, key: &str, value: &Written) -> Result<()> {
    match &value.node {
        Node::Map(entries) if !key.contains('.') => entries.iter().try_for_each(|entry| {
            written.set(&format!("{key}.{}", entry.key), entry.value.clone())
        }),
        _ => written.set(key, value.clone()),
    }
}
