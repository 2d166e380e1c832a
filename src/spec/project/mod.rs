//! Workspaces and projects: where templates are looked for, which configurations a project has, and how one is rendered.
//!
//! ```text
//! my_workspace/
//!     forgather_workspace/            marks the workspace; the tutorial's users know it by this name
//!         base_directories.yaml       folders that all projects share: `-- set ns.forgather_dir = …`
//!         meta_defaults.yaml          the search path that all projects start from
//!     my_project/
//!         meta.yaml                   marks the project: name, description, default configuration
//!         templates/
//!             project.yaml            what its configurations have in common
//!             configs/                one file a configuration
//!                 default.yaml
//! ```
//!
//! `ns.forgather_dir` is the installation's folder (named as the tutorial names it): the one that has `templatelib/`.
//!
//! A project's `meta.yaml` is a template too. It is looked for, with what it extends, in the project's folder, in
//! `forgather_workspace/` and in the user's own templates (`~/.config/forgather/templates`), and renders to these keys:
//!
//! | key | means | if absent |
//! |---|---|---|
//! | `name`, `description` | what `ls` prints | the folder's name, nothing |
//! | `searchdir` | folders of templates, in order; relative to the project's folder | `templates` |
//! | `config_prefix` | the folder of configurations, below any of `searchdir` | `configs` |
//! | `default_config` | the configuration that is meant when none is named | the first by name |
//!
//! Every template sees `project_dir`, `workspace_root`, `hostname`, `uname` and `versions`; the values of [`dynamic`]
//! arguments are plain variables beside them.

pub mod create;
pub mod dynamic;

use crate::config::nearest;
use crate::template::graph::{Graph, Located, Value};
use crate::template::{Rendered, Templates, is_template};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// The folder that marks a workspace and holds what its projects share.
pub const WORKSPACE_FOLDER: &str = "forgather_workspace";
/// The file that marks a project.
pub const META_FILE: &str = "meta.yaml";
/// Folder of a project's own templates.
pub const TEMPLATES_FOLDER: &str = "templates";
const DEFAULT_PREFIX: &str = "configs";

/// A folder of projects with what they share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    pub root: PathBuf,
}

/// A project: a folder with `meta.yaml`, inside a workspace.
#[derive(Debug, Clone)]
pub struct Project {
    pub dir: PathBuf,
    pub workspace: Workspace,
    pub name: String,
    pub description: String,
    pub config_prefix: String,
    pub default_config: Option<String>,
    /// Looked through in order; absolute.
    pub search: Vec<PathBuf>,
}

impl Workspace {
    /// The workspace that `dir` lies in: the nearest folder upward with `forgather_workspace/`.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn containing(dir: &Path) -> Result<Workspace> {
        let dir = absolute(dir)?;
        let root = dir.ancestors().find(|folder| folder.join(WORKSPACE_FOLDER).is_dir());
        let root = root.ok_or_else(|| {
            anyhow!(
                "{}: expected a folder inside a workspace (one with `{WORKSPACE_FOLDER}/`), found no workspace around it\n  \
                 help: make one with `fathom ws create`, or name a project with -p DIR",
                dir.display()
            )
        })?;
        Ok(Workspace { root: root.to_path_buf() })
    }

    /// Where the workspace's own templates are.
    pub fn folder(&self) -> PathBuf {
        self.root.join(WORKSPACE_FOLDER)
    }
}

impl Project {
    /// The project that `dir` lies in: the nearest folder upward with `meta.yaml`.
    ///
    /// # Errors
    ///
    /// When there is none, it is in no workspace, or its `meta.yaml` can't be rendered or has a key that is not known.
    pub fn open(dir: &Path) -> Result<Project> {
        let from = absolute(dir)?;
        let dir = from.ancestors().find(|folder| folder.join(META_FILE).is_file());
        let dir = dir.ok_or_else(|| {
            anyhow!(
                "{}: expected a project (a folder with `{META_FILE}`) here or upward, found none\n  \
                 help: name one with -p DIR, list those below with `fathom ls -r`, or make one with `fathom project create`",
                from.display()
            )
        })?;
        let workspace = Workspace::containing(dir)?;
        let search = [dir.to_path_buf(), workspace.folder()].into_iter().chain(user_templates());
        let globals = globals(dir, &workspace);
        let templates = Templates { search: search.collect(), globals, keep_comments: false };
        let meta = templates.render(META_FILE, &Map::new()).and_then(|meta| meta.graph());
        let meta = meta.with_context(|| format!("{}", dir.join(META_FILE).display()))?;
        Project::from_meta(dir.to_path_buf(), workspace, &meta)
    }

    fn from_meta(dir: PathBuf, workspace: Workspace, meta: &Graph) -> Result<Project> {
        let folder_name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut project = Project {
            name: folder_name,
            description: String::new(),
            config_prefix: DEFAULT_PREFIX.into(),
            default_config: None,
            search: vec![dir.join(TEMPLATES_FOLDER)],
            dir,
            workspace,
        };
        for (key, value) in &meta.entries {
            if matches!(value.value, Value::Null) {
                continue;
            }
            match key.as_str() {
                "name" => project.name = text(key, value)?,
                "description" => project.description = text(key, value)?,
                "config_prefix" => project.config_prefix = text(key, value)?,
                "default_config" => project.default_config = Some(text(key, value)?),
                "searchdir" => project.search = folders(key, value, &project.dir)?,
                "system_path" => bail!(
                    "{}: system_path: expected nothing: no Python code is loaded, found a value\n  help: leave the key out",
                    value.origin
                ),
                _ => {
                    bail!("{}: expected a known key, found `{key}`{}", value.origin, known_key(key))
                }
            }
        }
        Ok(project)
    }

    /// The search path and the values that every template of the project sees.
    pub fn templates(&self) -> Templates {
        let globals = globals(&self.dir, &self.workspace);
        Templates { search: self.search.clone(), globals, keep_comments: false }
    }

    /// The names of its configurations, sorted: all templates below the prefix, in any folder of the search path.
    ///
    /// # Errors
    ///
    /// When a folder can't be read.
    pub fn configs(&self) -> Result<Vec<String>> {
        let mut names = BTreeSet::new();
        for folder in &self.search {
            let folder = folder.join(&self.config_prefix);
            names.extend(templates_below(&folder)?);
        }
        Ok(names.into_iter().collect())
    }

    /// The configuration that is meant by `name`, or the default one.
    ///
    /// # Errors
    ///
    /// When the project has no such configuration, or none at all.
    pub fn config_name(&self, name: Option<&str>) -> Result<String> {
        let configs = self.configs()?;
        let wanted = name.or(self.default_config.as_deref());
        let Some(wanted) = wanted else {
            return configs.into_iter().next().ok_or_else(|| {
                anyhow!(
                    "project `{}`: expected a configuration in {}/{TEMPLATES_FOLDER}/{}, found none\n  \
                     help: make one with `fathom project new-config default.yaml`",
                    self.name,
                    self.dir.display(),
                    self.config_prefix
                )
            });
        };
        if configs.iter().any(|config| config == wanted) {
            return Ok(wanted.to_string());
        }
        let what = if name.is_some() { "a configuration" } else { "default_config to be one" };
        let near = nearest(wanted, configs.iter().map(String::as_str));
        let help = near.map(|near| format!("\n  help: did you mean `{near}`?"));
        bail!(
            "project `{}`: expected {what} of {}, found `{wanted}`{}",
            self.name,
            if configs.is_empty() { "none".to_string() } else { configs.join(", ") },
            help.unwrap_or_default()
        )
    }

    /// A configuration as templates name it: `configs/default.yaml`.
    pub fn template_name(&self, config: &str) -> String {
        match self.config_prefix.as_str() {
            "" => config.to_string(),
            prefix => format!("{}/{config}", prefix.trim_end_matches('/')),
        }
    }

    /// Renders a configuration with the values of its dynamic arguments.
    ///
    /// # Errors
    ///
    /// As [`Templates::render`].
    pub fn render(&self, config: &str, vars: &Map<String, Json>) -> Result<Rendered> {
        self.templates().render(&self.template_name(config), vars)
    }
}

/// What a configuration says of itself under `meta`: `config_name`, `config_description`, `config_class`, …; scalars only.
pub fn config_meta(graph: &Graph) -> Map<String, Json> {
    let entries = match graph.get("meta").map(|meta| &meta.value) {
        Some(Value::Dict(entries)) => entries.as_slice(),
        Some(Value::Node(node)) => node.kwargs.as_slice(),
        _ => &[],
    };
    entries.iter().filter_map(|(key, value)| Some((key.clone(), scalar(&value.value)?))).collect()
}

/// The projects below `dir`, sorted by path. Hidden folders and links are not entered.
///
/// # Errors
///
/// When a folder can't be read.
pub fn projects_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![absolute(dir)?];
    while let Some(folder) = open.pop() {
        if folder.join(META_FILE).is_file() {
            found.push(folder.clone());
        }
        for entry in read_dir(&folder)? {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if !hidden && entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The names of the templates below `folder`, relative to it; none if it is not there.
///
/// # Errors
///
/// When a folder can't be read.
pub fn templates_below(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut open: Vec<PathBuf> =
        folder.is_dir().then(|| folder.to_path_buf()).into_iter().collect();
    while let Some(dir) = open.pop() {
        for entry in read_dir(&dir)? {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if is_template(&path) {
                let name = path.strip_prefix(folder).unwrap_or(&path);
                names.push(name.to_string_lossy().into_owned());
            }
        }
    }
    names.sort();
    Ok(names)
}

/// The user's own folder of settings, which templates know as `forgather_config_dir()`.
pub fn user_config_dir() -> PathBuf {
    let dirs = directories::BaseDirs::new();
    dirs.map_or_else(|| "/".into(), |dirs| dirs.config_dir().join("forgather"))
}

/// Folder of the templates that a user shares between all workspaces, if there is one.
pub fn user_templates() -> Option<PathBuf> {
    let folder = user_config_dir().join(TEMPLATES_FOLDER);
    folder.is_dir().then_some(folder)
}

/// The values that every template of a project sees.
fn globals(dir: &Path, workspace: &Workspace) -> Map<String, Json> {
    let kernel = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
        text.trim().to_string()
    };
    let hostname = kernel("hostname");
    let values = json!({
        "project_dir": dir.to_string_lossy(),
        "workspace_root": workspace.root.to_string_lossy(),
        "hostname": hostname,
        "uname": {
            "sysname": kernel("ostype"),
            "nodename": hostname,
            "release": kernel("osrelease"),
            "version": kernel("version"),
            "machine": std::env::consts::ARCH,
        },
        // Templates print these; what does not take part in a run says so.
        "versions": {
            "fathom": env!("CARGO_PKG_VERSION"),
            "python": "none",
            "torch": "LibTorch",
            "transformers": "none",
            "accelerate": "none",
        },
    });
    let Json::Object(values) = values else { unreachable!("an object was just written") };
    values
}

fn text(key: &str, value: &Located) -> Result<String> {
    match scalar(&value.value) {
        Some(Json::String(text)) => Ok(text),
        Some(other) => Ok(other.to_string()),
        None => bail!("{}: {key}: expected text, found {}", value.origin, describe(&value.value)),
    }
}

/// A list of folders, or one; relative to `dir`.
fn folders(key: &str, value: &Located, dir: &Path) -> Result<Vec<PathBuf>> {
    let items = match &value.value {
        Value::List(items) | Value::Tuple(items) => items.as_slice(),
        _ => std::slice::from_ref(value),
    };
    items.iter().map(|item| Ok(normalized(&dir.join(text(key, item)?)))).collect()
}

fn known_key(key: &str) -> String {
    let known = ["name", "description", "searchdir", "config_prefix", "default_config"];
    match nearest(key, known) {
        Some(near) => format!("\n  help: did you mean `{near}`?"),
        None => format!("\n  help: known are {}", known.join(", ")),
    }
}

pub(crate) fn scalar(value: &Value) -> Option<Json> {
    Some(match value {
        Value::Null => Json::Null,
        Value::Bool(b) => Json::from(*b),
        Value::Int(n) => Json::from(*n),
        Value::Float(x) => Json::from(*x),
        Value::String(text) => Json::from(text.as_str()),
        _ => return None,
    })
}

/// A value for an error's *found*.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Int(n) => format!("`{n}`"),
        Value::Float(x) => format!("`{x}`"),
        Value::String(text) => format!("`{text}`"),
        Value::List(_) | Value::Tuple(_) => "a list".into(),
        Value::Dict(_) => "a mapping".into(),
        Value::Node(node) => format!("a node (`{}`)", node.target),
        Value::Var(var) => format!("a variable (`{}`)", var.name),
    }
}

/// The folder as the file system knows it.
fn absolute(dir: &Path) -> Result<PathBuf> {
    dir.canonicalize().with_context(|| format!("{}: expected a folder, found none", dir.display()))
}

/// Takes `.` and `..` out of an absolute path, by text alone.
pub(crate) fn normalized(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// The entries of a folder, sorted by name.
fn read_dir(folder: &Path) -> Result<Vec<std::fs::DirEntry>> {
    let entries = std::fs::read_dir(folder)
        .and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>())
        .with_context(|| format!("{}: the folder can't be read", folder.display()));
    let mut entries = entries?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    Ok(entries)
}
