//! `fathom trefs`: the templates that a configuration is made of, and which brought which.

use super::context::Context;
use super::exit;
use super::table::print;
use anyhow::Result;
use clap::{Args, ValueEnum};
use fathom_spec::template::{Source, Use};
use std::fmt::Write;

#[derive(Args)]
pub struct TrefsArgs {
    #[arg(long, value_enum, default_value = "tree")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// An outline
    Tree,
    /// Their paths, one a line
    Files,
    /// A graph for Graphviz
    Dot,
    /// A drawing
    Svg,
}

/// Prints the templates that took part in rendering a configuration.
///
/// # Errors
///
/// As [`Context::load`].
pub fn run(args: &TrefsArgs, context: &Context) -> Result<u8> {
    let sources = context.load()?.rendered.sources;
    print(&match args.format {
        Format::Tree => tree(&sources),
        Format::Files => files(&sources),
        Format::Dot => dot(&sources),
        Format::Svg => svg(&sources),
    })?;
    Ok(exit::OK)
}

/// Depth first, each with its depth.
fn walk(sources: &[Source]) -> Vec<(usize, &Source)> {
    let mut order = Vec::new();
    let roots = sources.iter().filter(|source| source.parent.is_none());
    let mut open: Vec<(usize, &Source)> = roots.map(|root| (0, root)).collect();
    open.reverse();
    while let Some((depth, source)) = open.pop() {
        order.push((depth, source));
        let children = sources
            .iter()
            .rev()
            .filter(|child| child.parent.as_ref().is_some_and(|(name, _)| *name == source.name));
        open.extend(children.map(|child| (depth + 1, child)));
    }
    order
}

fn verb(how: Use) -> &'static str {
    match how {
        Use::Extends => "extends",
        Use::Include => "includes",
        Use::Import => "imports",
    }
}

fn tree(sources: &[Source]) -> String {
    let mut text = String::new();
    for (depth, source) in walk(sources) {
        let how =
            source.parent.as_ref().map(|(_, how)| format!("{} ", verb(*how))).unwrap_or_default();
        let _ = writeln!(
            text,
            "{}{how}{} : {}",
            "    ".repeat(depth),
            source.name,
            source.path.display()
        );
    }
    text
}

/// Each file once: sub-templates lie in the file of another.
fn files(sources: &[Source]) -> String {
    let mut paths: Vec<String> = Vec::new();
    for source in sources {
        let path = source.path.display().to_string();
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths.iter().map(|path| format!("{path}\n")).collect()
}

fn dot(sources: &[Source]) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = String::from("digraph templates {\n    rankdir=LR;\n    node [shape=box];\n");
    for source in sources {
        let _ = writeln!(text, "    {};", quoted(&source.name));
    }
    for source in sources {
        if let Some((parent, how)) = &source.parent {
            let style = if *how == Use::Extends { "solid" } else { "dashed" };
            let _ = writeln!(
                text,
                "    {} -> {} [label={}, style={style}];",
                quoted(parent),
                quoted(&source.name),
                quoted(verb(*how))
            );
        }
    }
    text + "}\n"
}

/// The outline, drawn: a line goes from each template to those it brought, dashed where it does not extend them.
fn svg(sources: &[Source]) -> String {
    const ROW: usize = 28;
    const INDENT: usize = 36;
    const MARGIN: usize = 16;
    // A generous width for a character at 13 pixels.
    const CHARACTER: usize = 8;
    let rows = walk(sources);
    let place = |row: usize, depth: usize| (MARGIN + depth * INDENT, MARGIN + row * ROW);
    let widest = rows
        .iter()
        .map(|(depth, source)| depth * INDENT + label(source).chars().count() * CHARACTER);
    let width = 2 * MARGIN + 16 + widest.max().unwrap_or(0);
    let height = 2 * MARGIN + rows.len() * ROW;
    let title = rows.first().map_or("", |(_, source)| source.name.as_str());
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <title>Templates of {}</title>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n",
        escaped(title)
    );
    for (row, (depth, source)) in rows.iter().enumerate() {
        let (x, y) = place(row, *depth);
        if let Some((parent, how)) = &source.parent {
            let above =
                rows[..row].iter().rposition(|(_, other)| other.name == *parent).unwrap_or(0);
            let (parent_x, parent_y) = place(above, depth.saturating_sub(1));
            let dash = if *how == Use::Extends { "" } else { " stroke-dasharray=\"4 3\"" };
            let _ = writeln!(
                text,
                "<path d=\"M{} {} V{} H{x}\" fill=\"none\" stroke=\"#6b7280\"{dash}/>",
                parent_x + 10,
                parent_y + 22,
                y + 11,
            );
        }
        let label = label(source);
        let box_width = label.chars().count() * CHARACTER + 16;
        let _ = writeln!(
            text,
            "<g><title>{}</title><rect x=\"{x}\" y=\"{y}\" width=\"{box_width}\" height=\"22\" rx=\"4\" \
             fill=\"#eef2ff\" stroke=\"#4f46e5\"/><text x=\"{}\" y=\"{}\" fill=\"#111827\">{}</text></g>",
            escaped(&source.path.display().to_string()),
            x + 8,
            y + 15,
            escaped(&label)
        );
    }
    text + "</svg>\n"
}

fn label(source: &Source) -> String {
    match &source.parent {
        Some((_, Use::Include)) => format!("{} (included)", source.name),
        Some((_, Use::Import)) => format!("{} (imported)", source.name),
        _ => source.name.clone(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
