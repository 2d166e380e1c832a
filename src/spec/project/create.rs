//! New workspaces, projects and configurations. Each is written beside its place and moved there whole, so that a failure
//! leaves nothing behind.

use super::{
    META_FILE, Project, TEMPLATES_FOLDER, WORKSPACE_FOLDER, Workspace, absolute, normalized,
};
use crate::config::nearest;
use crate::template::{Templates, is_template};
use anyhow::{Context, Result, anyhow, bail};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// What `fathom ws create` is told.
#[derive(Debug, Clone)]
pub struct NewWorkspace {
    pub name: String,
    pub description: String,
    /// The installation's folder: it has `templatelib/`.
    pub forgather_dir: PathBuf,
    /// Folders of `templatelib/` that projects build on, in the order they are looked through.
    pub libraries: Vec<String>,
    /// More folders of templates, looked through before the libraries.
    pub search_path: Vec<PathBuf>,
    /// The workspace's folder; from the name if not given.
    pub folder: Option<PathBuf>,
}

/// What `fathom project create` is told.
#[derive(Debug, Clone)]
pub struct NewProject {
    pub name: String,
    pub description: String,
    pub config_prefix: String,
    pub default_config: String,
    /// The project's folder; from the name if not given.
    pub folder: Option<String>,
    /// What the default configuration is a copy of; a stub is written otherwise.
    pub copy_from: Option<PathBuf>,
}

/// Where a new template belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateKind {
    /// `templates/<prefix>/`
    Config,
    /// `templates/`
    Project,
    /// `forgather_workspace/`
    Workspace,
}

/// Makes a workspace below `cwd` and returns its folder.
///
/// # Errors
///
/// When the folder is there already, the installation has no `templatelib/` or lacks a library, or it can't be written.
pub fn create_workspace(cwd: &Path, new: &NewWorkspace) -> Result<PathBuf> {
    let cwd = absolute(cwd)?;
    let folder = match &new.folder {
        Some(folder) => folder.clone(),
        None => folder_name(&new.name.replace('.', ""), "the workspace's folder as last argument")?
            .into(),
    };
    let root = normalized(&cwd.join(folder));
    check_libraries(&cwd, new)?;
    let installation = anchored(&cwd, &root, &new.forgather_dir, "--forgather-dir")?;
    let search_path = new.search_path.iter();
    let search_path: Vec<String> = search_path
        .map(|path| anchored(&cwd, &root, path, "--search-path"))
        .collect::<Result<_>>()?;
    write_folder(&root, &|part| {
        let folder = part.join(WORKSPACE_FOLDER);
        fs::create_dir(&folder)?;
        fs::write(folder.join("README.md"), readme(&new.name, &new.description))?;
        fs::write(folder.join("base_directories.yaml"), base_directories(&installation))?;
        fs::write(folder.join("meta_defaults.yaml"), meta_defaults(&search_path, &new.libraries))?;
        Ok(())
    })?;
    Ok(root)
}

/// Makes a project below `cwd` and returns its folder.
///
/// # Errors
///
/// When `cwd` is in no workspace, the folder is there already, or a file can't be read or written.
pub fn create_project(cwd: &Path, new: &NewProject) -> Result<PathBuf> {
    let cwd = absolute(cwd)?;
    let workspace = Workspace::containing(&cwd)?;
    let folder = match &new.folder {
        Some(folder) => folder.clone(),
        None => folder_name(&new.name, "--project-dir-name")?,
    };
    let root = normalized(&cwd.join(folder));
    if !root.starts_with(&workspace.root) {
        bail!(
            "{}: expected a folder inside the workspace {}, found one outside",
            root.display(),
            workspace.root.display()
        );
    }
    let prefix = relative_name(&new.config_prefix, "--config-prefix")?;
    let config = Path::new(template_name(&new.default_config, "--default-config")?);
    let contents = match &new.copy_from {
        Some(source) => read_template(&cwd, &copied_from(&cwd, source)?, &[])?,
        None => stub(&new.default_config, &new.description).into_bytes(),
    };
    write_folder(&root, &|part| {
        fs::write(part.join("README.md"), readme(&new.name, &new.description))?;
        fs::write(part.join(META_FILE), meta(new))?;
        let path = part.join(TEMPLATES_FOLDER).join(prefix).join(config);
        fs::create_dir_all(path.parent().unwrap_or(part))?;
        fs::write(path, &contents)?;
        Ok(())
    })?;
    Ok(root)
}

/// Makes a template of a project, as a copy or a stub, and returns its path. `copy_from` is a file below `cwd`, or the name
/// of a template on the project's search path.
///
/// # Errors
///
/// When it is there already, its name is not that of a template, or a file can't be read or written.
pub fn create_template(
    cwd: &Path,
    project: &Project,
    kind: TemplateKind,
    name: &str,
    copy_from: Option<&Path>,
) -> Result<PathBuf> {
    let name = template_name(name, "name")?;
    let path = match kind {
        TemplateKind::Config => {
            project.dir.join(TEMPLATES_FOLDER).join(&project.config_prefix).join(name)
        }
        TemplateKind::Project => project.dir.join(TEMPLATES_FOLDER).join(name),
        TemplateKind::Workspace => project.workspace.folder().join(name),
    };
    let contents = match copy_from {
        Some(source) => read_template(cwd, source, &project.search)?,
        None => stub(name, &project.description).into_bytes(),
    };
    write_new(&path, &contents)?;
    Ok(path)
}

/// Writes a file that is not there yet, with the folders it needs.
///
/// # Errors
///
/// When it is there already, or can't be written.
pub fn write_new(path: &Path, contents: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let missing = folder.ancestors().take_while(|folder| !folder.exists()).last();
    let missing = missing.map(Path::to_path_buf);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = folder.join(format!(".{name}.part-{}", std::process::id()));
    let write = || -> Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(&part, contents)?;
        // A link, unlike a rename, does not replace what another process put there meanwhile.
        fs::hard_link(&part, path).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                anyhow!("expected a new file, found one there already")
            }
            _ => e.into(),
        })
    };
    let written = write();
    let _ = fs::remove_file(&part);
    if let (Err(_), Some(folder)) = (&written, missing) {
        let _ = fs::remove_dir_all(folder);
    }
    written.with_context(|| format!("{}", path.display()))
}

/// Fills a folder beside `root` and moves it there, or leaves nothing.
fn write_folder(root: &Path, fill: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    if root.symlink_metadata().is_ok() {
        bail!(
            "{}: expected a new folder, found one there already\n  help: give another name, or remove it first",
            root.display()
        );
    }
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let part = root.with_file_name(format!(".{name}.part-{}", std::process::id()));
    let write = || -> Result<()> {
        fs::create_dir(&part)?;
        fill(&part)?;
        Ok(fs::rename(&part, root)?)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    written.with_context(|| format!("{}: the folder can't be made", root.display()))
}

/// A folder's name from a title: `Finetune Lovecraft` -> `finetune_lovecraft`.
fn folder_name(title: &str, instead: &str) -> Result<String> {
    let name = title.trim().to_lowercase().replace(' ', "_");
    let fits = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
    if !fits {
        bail!(
            "--name: expected a name that a folder can have, found `{title}`\n  help: give {instead}"
        );
    }
    Ok(name)
}

fn check_libraries(cwd: &Path, new: &NewWorkspace) -> Result<()> {
    let folder = cwd.join(&new.forgather_dir).join("templatelib");
    if !folder.is_dir() {
        bail!(
            "--forgather-dir: expected the installation's folder (one with `templatelib/`), found `{}`\n  \
             help: give the folder of your checkout of fathom, from here or absolute",
            new.forgather_dir.display()
        );
    }
    for library in &new.libraries {
        if !folder.join(relative_name(library, "-l")?).is_dir() {
            let known = super::read_dir(&folder)?.into_iter().filter(|entry| entry.path().is_dir());
            let known: Vec<String> =
                known.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            let near = nearest(library, known.iter().map(String::as_str));
            let near = near.map(|near| format!("\n  help: did you mean `{near}`?"));
            bail!(
                "-l: expected a library of {} ({}), found `{library}`{}",
                normalized(&folder).display(),
                known.join(", "),
                near.unwrap_or_default()
            );
        }
    }
    Ok(())
}

/// An expression of the template language for a folder: a relative one is re-based from `cwd` to the workspace, so that
/// workspace and target can move together.
fn anchored(cwd: &Path, root: &Path, path: &Path, option: &str) -> Result<String> {
    let target = absolute(&cwd.join(path)).with_context(|| option.to_string())?;
    if path.is_absolute() {
        return Ok(quoted(&target.to_string_lossy()));
    }
    let relative = quoted(&relative_path(root, &target).to_string_lossy());
    Ok(format!("normpath(joinpath(workspace_root, {relative}))"))
}

/// The way from one folder to another, both absolute.
fn relative_path(from: &Path, to: &Path) -> PathBuf {
    let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    let path: PathBuf = up.chain(to.components().skip(shared)).collect();
    if path.as_os_str().is_empty() { ".".into() } else { path }
}

/// A relative name without `..`.
fn relative_name<'a>(name: &'a str, option: &str) -> Result<&'a str> {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if !Path::new(name).components().all(plain) {
        bail!("{option}: expected a relative name without `..`, found `{name}`");
    }
    Ok(name)
}

fn template_name<'a>(name: &'a str, option: &str) -> Result<&'a str> {
    if !is_template(Path::new(relative_name(name, option)?)) {
        bail!(
            "{option}: expected the name of a template (.yaml, .yml or .jinja), found `{name}`\n  help: `{name}.yaml`?"
        );
    }
    Ok(name)
}

/// The file that `copy_from` means: itself or, where it is not there, the example of that name beside the workspace's libraries.
/// The tutorial names one from where its own checkout has it, `../../../datasets/x.yaml`, and may be followed anywhere.
///
/// # Errors
///
/// When `cwd` is in no workspace.
pub fn copied_from(cwd: &Path, source: &Path) -> Result<PathBuf> {
    let file = cwd.join(source);
    if file.is_file() {
        return Ok(file);
    }
    let after_dots = source.components().rev().take_while(|part| *part != Component::ParentDir);
    let name: PathBuf = after_dots.collect::<Vec<_>>().into_iter().rev().collect();
    let examples = libraries(&Workspace::containing(cwd)?).into_iter().filter_map(|library| {
        Some(library.parent()?.join("examples").join(&name)).filter(|example| example.is_file())
    });
    Ok(examples.into_iter().next().unwrap_or(file))
}

/// The folders that the workspace's projects start their search path from; none where they can't be known.
fn libraries(workspace: &Workspace) -> Vec<PathBuf> {
    let globals = super::globals(&workspace.root, workspace);
    let templates = Templates { search: vec![workspace.folder()], globals, keep_comments: false };
    let rendered = templates.render("meta_defaults.yaml", &serde_json::Map::new());
    let graph = rendered.and_then(|rendered| rendered.graph()).ok();
    let search = graph.as_ref().and_then(|graph| graph.get("searchdir"));
    let folders = search.and_then(|list| super::folders("searchdir", list, &workspace.root).ok());
    folders.unwrap_or_default()
}

fn read_template(cwd: &Path, source: &Path, search: &[PathBuf]) -> Result<Vec<u8>> {
    let places = std::iter::once(cwd).chain(search.iter().map(PathBuf::as_path));
    let path = places.map(|place| place.join(source)).find(|path| path.is_file());
    let path = path.ok_or_else(|| {
        anyhow!("{}: expected a template to copy, found no such file", source.display())
    })?;
    fs::read(&path).with_context(|| format!("{}: can't be read", path.display()))
}

fn readme(name: &str, description: &str) -> String {
    format!("# {name}\n\n{description}\n")
}

fn base_directories(installation: &str) -> String {
    format!(
        "\
## Folders that all projects of this workspace share; each of their templates sees them.
## Start every path from a known place (workspace_root, project_dir, user_home_dir(), …), so that it means the same
## folder wherever a command is called from.

## The installation's folder, which has templatelib/.
-- set ns.forgather_dir = {installation}

## What a library's base would set by itself may be set here first:
## -- set ns.models_dir = joinpath(user_home_dir(), \"models\")
"
    )
}

fn meta_defaults(search_path: &[String], libraries: &[String]) -> String {
    let mut text = String::from(
        "\
## Where the projects of this workspace look for templates, first to last. A project's meta.yaml extends this file and
## fills the block `configs`.
-- set ns = namespace()
-- include \"base_directories.yaml\"
searchdir:
[searchdir_project]
    - {{ joinpath(project_dir, \"templates\") | toyaml }}
[searchdir_common]
",
    );
    for path in search_path {
        text += &format!("    - {{{{ {path} | toyaml }}}}\n");
    }
    text += &format!(
        "    - {{{{ joinpath(workspace_root, {}) | toyaml }}}}\n",
        quoted(WORKSPACE_FOLDER)
    );
    for library in libraries {
        let library = quoted(library);
        text += &format!(
            "    - {{{{ joinpath(ns.forgather_dir, \"templatelib\", {library}) | toyaml }}}}\n"
        );
    }
    text + "[configs]\n"
}

fn meta(new: &NewProject) -> String {
    format!(
        "\
-- extends \"meta_defaults.yaml\"

[configs]
name: {}
description: {}
config_prefix: {}
default_config: {}
",
        quoted(&new.name),
        quoted(&new.description),
        quoted(&new.config_prefix),
        quoted(&new.default_config)
    )
}

/// A configuration that says what it is and makes nothing yet.
fn stub(name: &str, description: &str) -> String {
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy();
    let mut words = stem.replace(['-', '_'], " ");
    if let Some(first) = words.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    format!(
        "\
## Replace this by what the configuration is, for example:
## -- extends 'projects/finetune_v2.yaml'
meta:
    config_name: {}
    config_description: {}
main: \"Main Output\"
",
        quoted(&words),
        quoted(description)
    )
}

/// Text as a quoted string, for YAML and for expressions alike, in which the template language sees nothing of its own.
fn quoted(text: &str) -> String {
    let text = serde_json::Value::from(text).to_string();
    let mut out = String::with_capacity(text.len());
    let mut last = ' ';
    for c in text.chars() {
        match (last, c) {
            ('#' | '{', '#') => out += "\\u0023",
            ('{', '{') => out += "\\u007b",
            ('{', '%') => out += "\\u0025",
            _ => out.push(c),
        }
        last = c;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_folders() {
        assert_eq!(folder_name("Finetune Lovecraft", "").unwrap(), "finetune_lovecraft");
        for name in ["", " ", "a/b", "..", ".hidden"] {
            let error = format!("{:#}", folder_name(name, "one by hand").unwrap_err());
            assert!(error.ends_with("help: give one by hand"), "{error}");
        }
    }

    #[test]
    fn paths_lead_from_one_folder_to_another() {
        let relative = |from: &str, to: &str| {
            relative_path(Path::new(from), Path::new(to)).to_string_lossy().into_owned()
        };
        assert_eq!(relative("/a/b/ws", "/a"), "../..");
        assert_eq!(relative("/a/ws", "/b/c"), "../../b/c");
        assert_eq!(relative("/a", "/a/lib"), "lib");
        assert_eq!(relative("/a", "/a"), ".");
    }

    #[test]
    fn quoting_hides_the_template_language() {
        assert_eq!(
            quoted("a \"b\" ## {{ c }} {% d"),
            r##""a \"b\" #\u0023 {\u007b c }} {\u0025 d""##
        );
    }
}
