//! `fathom ws` and `fathom project`: what is here, and new workspaces, projects and configurations.

use super::context::Context;
use super::exit;
use super::sweep::installation;
use super::table::print;
use anyhow::{Result, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use fathom_spec::project::create::{self, NewProject, NewWorkspace, TemplateKind};
use fathom_spec::project::{Project, Workspace};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct WsArgs {
    #[command(subcommand)]
    command: Option<WsCommand>,
}

#[derive(Subcommand)]
enum WsCommand {
    /// Make a workspace: a folder whose projects share a search path of templates
    Create(CreateWorkspaceArgs),
}

#[derive(Args)]
struct CreateWorkspaceArgs {
    /// Its title; the folder is called after it
    #[arg(long)]
    name: String,
    #[arg(long)]
    description: String,
    /// The installation's folder, which has templatelib/ (named as the tutorial names it); this program's own if not given
    #[arg(long, visible_alias = "fathom-dir", value_name = "DIR")]
    forgather_dir: Option<PathBuf>,
    /// A library of templatelib/ that projects build on; may be repeated, the first is looked through first
    #[arg(short = 'l', long = "lib", value_name = "LIB")]
    libraries: Vec<String>,
    /// Another folder of templates, looked through before the libraries; may be repeated
    #[arg(long, value_name = "DIR")]
    search_path: Vec<PathBuf>,
    /// The workspace's folder, if not called after its name
    dir: Option<PathBuf>,
}

#[derive(Args)]
pub struct ProjectArgs {
    #[command(subcommand)]
    command: Option<ProjectCommand>,
}

#[derive(Subcommand)]
enum ProjectCommand {
    /// Make a project in this workspace
    Create(CreateProjectArgs),
    /// Print what the project is and where it looks for templates
    Show,
    /// Make a configuration or another template of the project
    #[command(visible_alias = "new_config")]
    NewConfig(NewConfigArgs),
}

#[derive(Args)]
struct CreateProjectArgs {
    /// Its title; the folder is called after it
    #[arg(long)]
    name: String,
    #[arg(long)]
    description: String,
    /// The folder of configurations, below templates/
    #[arg(long, default_value = "configs", value_name = "FOLDER")]
    config_prefix: String,
    /// The configuration that is meant when none is named
    #[arg(long, default_value = "default.yaml", value_name = "CONFIG")]
    default_config: String,
    /// The project's folder, if not called after its name
    #[arg(long, value_name = "FOLDER")]
    project_dir_name: Option<String>,
    /// What the default configuration is to be a copy of
    copy_from: Option<PathBuf>,
}

#[derive(Args)]
struct NewConfigArgs {
    /// Its file name
    name: String,
    /// What it is to be a copy of: a file, or a template by its name
    copy_from: Option<PathBuf>,
    /// Where it belongs
    #[arg(long = "type", value_name = "TYPE", default_value = "config")]
    kind: Kind,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// templates/configs/ of the project
    Config,
    /// templates/ of the project
    Project,
    /// forgather_workspace/
    Ws,
}

/// Carries out `fathom ws …`.
///
/// # Errors
///
/// When there is no workspace, or one can't be made.
pub fn run_ws(args: WsArgs, context: &Context) -> Result<u8> {
    let Some(WsCommand::Create(args)) = args.command else {
        let workspace = Workspace::containing(context.globals.dir())?;
        print(&format!("Workspace Directory: {}\n", workspace.root.display()))?;
        return Ok(exit::OK);
    };
    let forgather_dir = args.forgather_dir.or_else(installation).ok_or_else(|| {
        anyhow!(
            "--forgather-dir: expected the folder that has templatelib/, found none beside this program\n  \
             help: name it with --forgather-dir DIR"
        )
    })?;
    let new = NewWorkspace {
        name: args.name,
        description: args.description,
        forgather_dir,
        libraries: args.libraries,
        search_path: args.search_path,
        folder: args.dir,
    };
    let root = create::create_workspace(context.globals.dir(), &new)?;
    print(&format!("workspace: {}\n", root.display()))?;
    Ok(exit::OK)
}

/// Carries out `fathom project …`.
///
/// # Errors
///
/// When there is no project, or something can't be made.
pub fn run_project(args: ProjectArgs, context: &Context) -> Result<u8> {
    let dir = context.globals.dir();
    let text = match args.command {
        None => format!("Project Directory: {}\n", Project::open(dir)?.dir.display()),
        Some(ProjectCommand::Show) => show(&Project::open(dir)?)?,
        Some(ProjectCommand::Create(args)) => {
            let new = NewProject {
                name: args.name,
                description: args.description,
                config_prefix: args.config_prefix,
                default_config: args.default_config,
                folder: args.project_dir_name,
                copy_from: args.copy_from.map(from_here).transpose()?,
            };
            let mut text = format!("project: {}\n", create::create_project(dir, &new)?.display());
            if let Some(given) = &new.copy_from {
                let source = create::copied_from(dir, given)?;
                text += &format!("{}: a copy of {}\n", new.default_config, source.display());
            }
            text
        }
        Some(ProjectCommand::NewConfig(args)) => {
            let kind = match args.kind {
                Kind::Config => TemplateKind::Config,
                Kind::Project => TemplateKind::Project,
                Kind::Ws => TemplateKind::Workspace,
            };
            let project = Project::open(dir)?;
            let cwd = std::env::current_dir()?;
            let source = args.copy_from.as_deref();
            let path = create::create_template(&cwd, &project, kind, &args.name, source)?;
            format!("template: {}\n", path.display())
        }
    };
    print(&text)?;
    Ok(exit::OK)
}

/// A path of the command line starts where the command was called.
fn from_here(path: PathBuf) -> Result<PathBuf> {
    Ok(std::env::current_dir()?.join(path))
}

fn show(project: &Project) -> Result<String> {
    let line = |name: &str, value: &str| format!("{name:<16} {value}\n");
    let path = |path: &Path| path.display().to_string();
    let configs = project.configs()?;
    let mut text = line("name", &project.name);
    text += &line("description", &project.description);
    text += &line("folder", &path(&project.dir));
    text += &line("workspace", &path(&project.workspace.root));
    text += &line("config prefix", &project.config_prefix);
    text += &line("default config", &project.config_name(None).unwrap_or_else(|_| "none".into()));
    text += &line("configs", &configs.join(", "));
    for (index, folder) in project.search.iter().enumerate() {
        let name = if index == 0 { "search path" } else { "" };
        let missing = if folder.is_dir() { "" } else { " (not there)" };
        text += &line(name, &format!("{}{missing}", folder.display()));
    }
    Ok(text)
}
