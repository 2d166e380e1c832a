//! `fathom template`: one template on its own, rendered as text or read into a graph.

use super::{context, exit};
use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand};
use fathom_spec::template::{self, Host, Rendered, Templates};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum TemplateCommand {
    /// Render a template and what it extends and includes
    Render(RenderArgs),
}

/// Render a template and what it extends and includes.
#[derive(Args)]
#[command(after_help = "\
Prints the text, and on standard error what the template lets vanish. With --graph, prints the node graph:
  {\"config\": {...}}, or {\"error\": {\"stage\": \"preprocess\" or \"yaml\", \"message\": ...}} and exit code 1.")]
pub struct RenderArgs {
    /// The template: a name on the search path, or a path
    file: String,
    /// A folder of the search path; the first that has a name wins
    #[arg(long, value_name = "DIR")]
    search: Vec<PathBuf>,
    /// Variables of the template, as a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}", hide_default_value = true)]
    vars: String,
    /// Values that every template sees (project_dir, versions, ...), as a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}", hide_default_value = true)]
    globals: String,
    /// Leave lines of `##` comments in the translated templates instead of deleting them
    #[arg(long)]
    keep_comments: bool,
    /// Print the node graph as JSON instead of the text
    #[arg(long)]
    graph: bool,
}

/// Carries out `fathom template`.
///
/// # Errors
///
/// When the template can't be rendered or, with `--graph`, read: with the template line that is to blame.
pub fn run(command: TemplateCommand) -> Result<u8> {
    let TemplateCommand::Render(args) = command;
    let vars = object("--vars", &args.vars)?;
    let rendered = render(&args, &vars);
    let output = match (&rendered, args.graph) {
        (Ok(rendered), false) => Ok(rendered.text.clone()),
        (Ok(rendered), true) => {
            rendered.graph().map(|graph| pretty(&json!({ "config": graph.to_json() })))
        }
        (Err(_), _) => Ok(String::new()),
    };
    let rendered = rendered.and_then(|rendered| Ok((rendered, output?)));
    match rendered {
        Ok((rendered, output)) => {
            std::io::stdout().write_all(output.as_bytes())?;
            warn(&rendered, &vars);
            Ok(exit::OK)
        }
        Err(error) => {
            if args.graph
                && let Some(told) = error.downcast_ref::<template::Error>()
            {
                let message = format!("{error:#}");
                let told = json!({ "stage": told.stage.to_string(), "message": message });
                std::io::stdout().write_all(pretty(&json!({ "error": told })).as_bytes())?;
            }
            Err(error)
        }
    }
}

fn render(args: &RenderArgs, vars: &Map<String, Value>) -> Result<Rendered> {
    let mut templates = Templates {
        search: args.search.clone(),
        globals: object("--globals", &args.globals)?,
        keep_comments: args.keep_comments,
    };
    let host = Host::of_process();
    let path = PathBuf::from(&args.file);
    if templates.find(&args.file).is_none() && path.is_file() {
        templates.search.extend(path.parent().map(PathBuf::from));
        return templates.render_file(&host, &path, vars);
    }
    templates.render_on(&host, &args.file, vars)
}

fn object(option: &str, text: &str) -> Result<Map<String, Value>> {
    let value: Value = serde_json::from_str(text)
        .with_context(|| format!("{option}: expected a JSON object, found `{text}`"))?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(anyhow!("{option}: expected a JSON object, found `{other}`")),
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// Says on standard error what has no effect.
fn warn(rendered: &Rendered, vars: &Map<String, Value>) {
    context::warn(rendered);
    for name in rendered.unread(vars) {
        tell!("warning: --vars: {name}: expected a variable that a template reads, found none");
    }
}
