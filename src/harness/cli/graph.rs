//! `fathom graph` and `fathom targets`: what a configuration builds.

use super::context::Context;
use super::exit;
use super::table::print;
use anyhow::Result;
use clap::{Args, ValueEnum};
use fathom_spec::template::graph::{Graph, Kind, Located, Node, Value};
use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::Arc;

#[derive(Args)]
pub struct GraphArgs {
    #[arg(long, value_enum, default_value = "tree")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// One JSON object: nodes as {"$node": …}, repeats as {"$ref": id}
    Json,
    /// Tags and anchors, with nothing left to render
    Yaml,
    /// An outline
    Tree,
}

/// Prints the node graph of a configuration.
///
/// # Errors
///
/// As [`Context::load`], and when the text is no graph.
pub fn run(args: &GraphArgs, context: &Context) -> Result<u8> {
    let graph = context.load()?.rendered.graph()?;
    print(&match args.format {
        Format::Json => format!("{:#}\n", graph.to_json()),
        Format::Yaml => yaml(&graph),
        Format::Tree => tree(&graph),
    })?;
    Ok(exit::OK)
}

/// Prints the names of what can be built, one a line.
///
/// # Errors
///
/// As [`run`].
pub fn targets(context: &Context) -> Result<u8> {
    let graph = context.load()?.rendered.graph()?;
    print(&graph.entries.iter().map(|(name, _)| format!("{name}\n")).collect::<String>())?;
    Ok(exit::OK)
}

/// The graph as an outline: a node stands in full where it is met first.
fn tree(graph: &Graph) -> String {
    let mut outline = Outline::default();
    for (key, value) in &graph.entries {
        outline.entry(0, key, value);
    }
    outline.text
}

#[derive(Default)]
struct Outline {
    text: String,
    seen: HashSet<*const Node>,
}

impl Outline {
    fn entry(&mut self, depth: usize, key: &str, value: &Located) {
        let indent = "  ".repeat(depth);
        let (shown, children) = match &value.value {
            Value::Node(node) if !self.seen.insert(Arc::as_ptr(node)) => {
                (format!("-> {}", node.id), Vec::new())
            }
            Value::Node(node) => {
                let args =
                    node.args.iter().enumerate().map(|(index, arg)| (format!("[{index}]"), arg));
                let kwargs = node.kwargs.iter().map(|(key, value)| (key.clone(), value));
                (
                    format!("{} {} ({})", kind(node.kind), node.target, node.id),
                    args.chain(kwargs).collect(),
                )
            }
            Value::Var(var) => match &var.default {
                Some(default) if nested(&default.value) => {
                    (format!("${}, or", var.name), vec![("default".to_string(), default)])
                }
                Some(default) => {
                    (format!("${}, or {}", var.name, flow(&default.value)), Vec::new())
                }
                None => (format!("${}", var.name), Vec::new()),
            },
            Value::List(items) | Value::Tuple(items) if nested(&value.value) => {
                let items = items.iter().enumerate();
                (String::new(), items.map(|(index, item)| (format!("[{index}]"), item)).collect())
            }
            Value::Dict(entries) if nested(&value.value) => {
                (String::new(), entries.iter().map(|(key, value)| (key.clone(), value)).collect())
            }
            plain => (flow(plain), Vec::new()),
        };
        let _ = writeln!(self.text, "{}", format!("{indent}{key}: {shown}").trim_end());
        for (key, child) in children {
            self.entry(depth + 1, &key, child);
        }
    }
}

/// Whether a value is best shown over several lines: it holds a node or variable, or is long.
fn nested(value: &Value) -> bool {
    let node = |value: &Value| {
        matches!(
            value,
            Value::Node(_) | Value::Var(_) | Value::List(_) | Value::Tuple(_) | Value::Dict(_)
        )
    };
    match value {
        Value::Node(_) | Value::Var(_) => true,
        Value::List(items) | Value::Tuple(items) => items.iter().any(|item| node(&item.value)),
        Value::Dict(entries) => !entries.is_empty(),
        _ => false,
    }
}

/// A plain value on one line, as JSON, which is YAML too.
fn flow(value: &Value) -> String {
    match value {
        Value::List(items) | Value::Tuple(items) => {
            let items: Vec<String> = items.iter().map(|item| flow(&item.value)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Dict(entries) => {
            let entries = entries
                .iter()
                .map(|(key, value)| format!("{}: {}", scalar_key(key), flow(&value.value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Float(x) => float(*x),
        Value::String(text) => Json::from(text.as_str()).to_string(),
        Value::Node(node) => node.id.clone(),
        Value::Var(var) => format!("${}", var.name),
    }
}

/// With a point, so that YAML 1.1 reads a number again.
fn float(x: f64) -> String {
    let text = match x {
        x if x.is_nan() => ".nan".into(),
        x if x.is_infinite() => if x > 0.0 { ".inf" } else { "-.inf" }.into(),
        x => format!("{x:?}"),
    };
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let point = if mantissa.contains('.') { "" } else { ".0" };
            let sign = if exponent.starts_with('-') { "" } else { "+" };
            format!("{mantissa}{point}e{sign}{exponent}")
        }
        None => text,
    }
}

/// A key needs quotes where YAML would read more than a word.
fn scalar_key(key: &str) -> String {
    let mut chars = key.chars();
    let word = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    // Words that YAML 1.1 reads as something else.
    let other = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    match word && !other.contains(&key.to_lowercase().as_str()) {
        true => key.to_string(),
        false => Json::from(key).to_string(),
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Singleton => "singleton",
        Kind::Factory => "factory",
        Kind::Partial => "partial",
        Kind::Meta => "meta",
    }
}

/// The graph as YAML that reads back as the same graph: a node that is met again is an alias.
fn yaml(graph: &Graph) -> String {
    let mut emitter = Emitter::default();
    for (_, value) in &graph.entries {
        emitter.count(&value.value);
    }
    for (key, value) in &graph.entries {
        emitter.entry(0, &scalar_key(key), &value.value);
    }
    emitter.text
}

#[derive(Default)]
struct Emitter {
    text: String,
    /// How often each node is met.
    uses: HashMap<*const Node, usize>,
    /// The anchors of the nodes that were written.
    anchors: HashMap<*const Node, String>,
}

impl Emitter {
    fn count(&mut self, value: &Value) {
        match value {
            Value::Node(node) => {
                let uses = self.uses.entry(Arc::as_ptr(node)).or_default();
                *uses += 1;
                if *uses == 1 {
                    node.args.iter().for_each(|arg| self.count(&arg.value));
                    node.kwargs.iter().for_each(|(_, arg)| self.count(&arg.value));
                }
            }
            Value::Var(var) => var.default.iter().for_each(|default| self.count(&default.value)),
            Value::List(items) | Value::Tuple(items) => {
                items.iter().for_each(|item| self.count(&item.value));
            }
            Value::Dict(entries) => entries.iter().for_each(|(_, value)| self.count(&value.value)),
            _ => {}
        }
    }

    /// `prefix` is a key, or `-` for an item of a list.
    fn entry(&mut self, depth: usize, prefix: &str, value: &Value) {
        let indent = "    ".repeat(depth);
        let colon = if prefix == "-" { "" } else { ":" };
        let _ = write!(self.text, "{indent}{prefix}{colon}");
        match value {
            Value::Node(node) => self.node(depth, node),
            Value::Var(var) => {
                let _ = writeln!(self.text, " !var");
                self.entry(depth + 1, "name", &Value::String(var.name.clone()));
                if let Some(default) = &var.default {
                    self.entry(depth + 1, "default", &default.value);
                }
            }
            Value::List(items) | Value::Tuple(items) if nested(value) => {
                self.text.push('\n');
                items.iter().for_each(|item| self.entry(depth + 1, "-", &item.value));
            }
            Value::Dict(entries) if nested(value) => {
                self.text.push('\n');
                self.entries(depth + 1, entries);
            }
            plain => {
                let _ = writeln!(self.text, " {}", flow(plain));
            }
        }
    }

    fn entries(&mut self, depth: usize, entries: &[(String, Located)]) {
        for (key, value) in entries {
            self.entry(depth, &scalar_key(key), &value.value);
        }
    }

    fn node(&mut self, depth: usize, node: &Arc<Node>) {
        let pointer = Arc::as_ptr(node);
        if let Some(anchor) = self.anchors.get(&pointer) {
            let _ = writeln!(self.text, " *{anchor}");
            return;
        }
        if self.uses.get(&pointer).is_some_and(|uses| *uses > 1) {
            // Without the `#` of a node that has no name of its own.
            let anchor = node.id.replace('#', "node_");
            let _ = write!(self.text, " &{anchor}");
            self.anchors.insert(pointer, anchor);
        }
        let named = if node.id.starts_with('#') { String::new() } else { format!("@{}", node.id) };
        let list = builtin(&node.target);
        let tag = match list {
            Some(tag) if named.is_empty() => format!("!{tag}"),
            Some(tag) => format!("!{tag}:{named}"),
            None => format!("!{}:{}{named}", kind(node.kind), node.target),
        };
        let _ = write!(self.text, " {tag}");
        match (node.args.as_slice(), node.kwargs.as_slice()) {
            ([], []) => self.text.push('\n'),
            ([Located { value: Value::List(items) | Value::Tuple(items), .. }], [])
                if list.is_some() =>
            {
                if items.is_empty() {
                    self.text.push_str(" []\n");
                } else {
                    self.text.push('\n');
                    items.iter().for_each(|item| self.entry(depth + 1, "-", &item.value));
                }
            }
            (args, []) => {
                self.text.push('\n');
                args.iter().for_each(|arg| self.entry(depth + 1, "-", &arg.value));
            }
            (args, kwargs) => {
                self.text.push('\n');
                for (index, arg) in args.iter().enumerate() {
                    self.entry(depth + 1, &format!("arg{index}"), &arg.value);
                }
                self.entries(depth + 1, kwargs);
            }
        }
    }
}

/// The short tag of a node that builds a list, tuple or mapping.
fn builtin(target: &str) -> Option<&'static str> {
    match target {
        "named_list" => Some("list"),
        "named_tuple" => Some("tuple"),
        "named_dict" => Some("dict"),
        _ => None,
    }
}
