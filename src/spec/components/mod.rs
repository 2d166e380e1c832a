//! Components: what a node of a graph may name, by a short name or by the path that the tutorial uses, and what fathom makes
//! of it.
//!
//! ```text
//! graph -> check: every node is a known component with known arguments
//!       -> dataset::resolve: a target of a dataset project, as documents or as blocks
//!       -> run::resolve: a training project, as the written form of a `RunConfig`
//! ```
//!
//! Nothing is built from Python code: a component is an entry of the [`catalog`], which documents it, and the two resolvers
//! are the one place where its arguments get their meaning. No argument is dropped silently: it is obeyed, reported as
//! changed, or refused.

pub mod catalog;
pub mod check;
pub mod dataset;
pub mod run;
pub mod values;

use crate::config::nearest;
use crate::config::written::Origin;
use crate::template::graph::{Located, Node};
use anyhow::{Result, bail};
use std::fmt;

/// Something that a node may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    /// `WSDScheduler`.
    pub name: &'static str,
    /// What the tutorial and its kin call it: `forgather.ml.optim:WSDScheduler`.
    pub paths: &'static [&'static str],
    pub role: Role,
    /// What it is, and what fathom does for it.
    pub summary: &'static str,
    pub treatment: Treatment,
    /// In the order in which positional arguments are given.
    pub arguments: &'static [Argument],
    pub others: Others,
}

/// What a component is for. Components are listed by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Run,
    Model,
    Data,
    Optimizer,
    Schedule,
    Loss,
    Callback,
    Value,
}

/// What fathom does with an argument, or with a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// It does what it says.
    Obeyed,
    /// It is not done, and the run says what holds instead. An argument left at its default has nothing to say.
    Reported(&'static str),
    /// It is an error, with the way out. An argument may be left at its default.
    Refused(&'static str),
}

/// An argument of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argument {
    pub name: &'static str,
    pub kind: Kind,
    /// As YAML writes it; nothing where the argument has to be given.
    pub default: Option<&'static str>,
    pub meaning: &'static str,
    pub treatment: Treatment,
}

/// What an argument's value has to be. `null` stands for the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Bool,
    Int,
    Float,
    Text,
    Path,
    List,
    Mapping,
    /// A mapping whose keys are the arguments of a component.
    ArgumentsOf(&'static Component),
    /// A node.
    Component,
    Any,
}

/// Arguments beyond the named ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    None,
    /// Any keywords, which mean this.
    Keywords(&'static str),
    /// Any keywords and positional arguments, which mean this.
    Any(&'static str),
}

/// Something that the writer of a template should know, with its place: a setting that was changed, numbers that do harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub origin: Origin,
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.origin, self.message)
    }
}

/// An argument with a default, obeyed.
pub(crate) const fn optional(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    meaning: &'static str,
) -> Argument {
    Argument { name, kind, default: Some(default), meaning, treatment: Treatment::Obeyed }
}

/// An argument that has to be given, obeyed.
pub(crate) const fn required(name: &'static str, kind: Kind, meaning: &'static str) -> Argument {
    Argument { name, kind, default: None, meaning, treatment: Treatment::Obeyed }
}

impl Argument {
    pub(crate) const fn reported(self, instead: &'static str) -> Argument {
        Argument { treatment: Treatment::Reported(instead), ..self }
    }

    pub(crate) const fn refused(self, way_out: &'static str) -> Argument {
        Argument { treatment: Treatment::Refused(way_out), ..self }
    }
}

impl Component {
    pub(crate) const fn new(
        name: &'static str,
        paths: &'static [&'static str],
        role: Role,
        summary: &'static str,
        arguments: &'static [Argument],
    ) -> Component {
        let (treatment, others) = (Treatment::Obeyed, Others::None);
        Component { name, paths, role, summary, treatment, arguments, others }
    }

    pub(crate) const fn reported(self, instead: &'static str) -> Component {
        Component { treatment: Treatment::Reported(instead), ..self }
    }

    pub(crate) const fn refused(self, way_out: &'static str) -> Component {
        Component { treatment: Treatment::Refused(way_out), ..self }
    }

    pub(crate) const fn others(self, others: Others) -> Component {
        Component { others, ..self }
    }

    /// The argument of a name.
    pub fn argument(&self, name: &str) -> Option<&'static Argument> {
        self.arguments.iter().find(|argument| argument.name == name)
    }
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Run => "runs",
            Role::Model => "models and tokenizers",
            Role::Data => "data",
            Role::Optimizer => "optimizers",
            Role::Schedule => "learning-rate schedules",
            Role::Loss => "losses",
            Role::Callback => "callbacks",
            Role::Value => "values",
        }
    }
}

impl Kind {
    /// For a list of arguments: `int`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Bool => "bool",
            Kind::Int => "int",
            Kind::Float => "float",
            Kind::Text => "str",
            Kind::Path => "path",
            Kind::List => "list",
            Kind::Mapping | Kind::ArgumentsOf(_) => "mapping",
            Kind::Component => "component",
            Kind::Any => "any",
        }
    }

    /// For an error: `a whole number`.
    pub fn expected(self) -> &'static str {
        match self {
            Kind::Bool => "`True` or `False`",
            Kind::Int => "a whole number",
            Kind::Float => "a number",
            Kind::Text => "text",
            Kind::Path => "a path",
            Kind::List => "a list",
            Kind::Mapping | Kind::ArgumentsOf(_) => "a mapping",
            Kind::Component => "a component",
            Kind::Any => "a value",
        }
    }
}

/// The component that a name or path stands for.
pub fn find(target: &str) -> Option<&'static Component> {
    catalog::all().find(|component| component.name == target || component.paths.contains(&target))
}

/// The names and paths nearest to `target`, best first, three at most.
pub fn near(target: &str) -> Vec<&'static str> {
    // `forgather.ml.optim:WSDSchedular` is near `WSDScheduler` by its last part alone.
    let last = target.rsplit([':', '.']).next().unwrap_or(target);
    let mut found: Vec<&'static str> = Vec::new();
    let mut known: Vec<&'static Component> = catalog::all().collect();
    while found.len() < 3 {
        let by_path = nearest(target, known.iter().flat_map(|c| c.paths.iter().copied()));
        let by_name = nearest(last, known.iter().map(|c| c.name));
        let Some(best) = by_path.or(by_name) else { break };
        known.retain(|c| c.name != best && !c.paths.contains(&best));
        found.push(best);
    }
    found
}

/// The component that a node names.
///
/// # Errors
///
/// When there is none: with the nearest names.
pub fn of(node: &Node) -> Result<&'static Component> {
    if let Some(component) = find(&node.target) {
        return Ok(component);
    }
    let (origin, target) = (&node.origin, &node.target);
    if target.starts_with("./") || target.ends_with(".py") || target.contains(".py:") {
        bail!(
            "{origin}: expected a component of fathom, found Python code, `{target}`\n  \
             help: no Python is run; `fathom components` lists what there is"
        );
    }
    let near: Vec<String> = near(target).iter().map(|name| format!("`{name}`")).collect();
    let near = match near.is_empty() {
        true => String::new(),
        false => format!("did you mean {}? ", near.join(" or ")),
    };
    bail!(
        "{origin}: expected a component, found `{target}`\n  help: {near}`fathom components` lists all of them"
    )
}

/// A node with its component: what each of its arguments was given.
#[derive(Debug, Clone)]
pub struct Bound<'a> {
    pub component: &'static Component,
    pub origin: &'a Origin,
    /// In the order in which they were given.
    pub given: Vec<(&'static Argument, &'a Located)>,
    /// Keywords beyond the named arguments, where the component takes any.
    pub others: Vec<(&'a str, &'a Located)>,
}

/// Gives each argument of a node its name.
///
/// # Errors
///
/// When the component is not known, an argument is not one of it, given twice, or missing.
pub fn bind(node: &Node) -> Result<Bound<'_>> {
    let component = of(node)?;
    bind_to(component, &node.origin, &node.args, &node.kwargs)
}

/// The same for arguments that stand without a node: the mapping `trainer_args`, the variable `preprocess_args`.
///
/// # Errors
///
/// As [`bind`].
pub fn bind_to<'a>(
    component: &'static Component,
    origin: &'a Origin,
    args: &'a [Located],
    kwargs: &'a [(String, Located)],
) -> Result<Bound<'a>> {
    let mut bound = Bound { component, origin, given: Vec::new(), others: Vec::new() };
    if matches!(component.others, Others::Any(_)) {
        bound.others = kwargs.iter().map(|(name, value)| (name.as_str(), value)).collect();
        return Ok(bound);
    }
    for (index, value) in args.iter().enumerate() {
        let Some(argument) = component.arguments.get(index) else {
            bail!(
                "{}: {}: expected at most {} positional arguments, found {}",
                value.origin,
                component.name,
                component.arguments.len(),
                args.len()
            );
        };
        bound.given.push((argument, value));
    }
    for (name, value) in kwargs {
        match component.argument(name) {
            Some(argument) if bound.get(argument.name).is_some() => {
                bail!("{}: {}.{name}: expected one value, found two", value.origin, component.name)
            }
            Some(argument) => bound.given.push((argument, value)),
            None if matches!(component.others, Others::Keywords(_)) => {
                bound.others.push((name, value));
            }
            None => bail!("{}", unknown_argument(component, name, &value.origin)),
        }
    }
    Ok(bound)
}

/// What to say of an argument that a component does not have.
fn unknown_argument(component: &Component, name: &str, origin: &Origin) -> String {
    let known = component.arguments.iter().map(|argument| argument.name);
    let near = nearest(name, known);
    let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    format!(
        "{origin}: {}: expected one of its arguments, found `{name}`\n  help: {near}`fathom components {}` lists them",
        component.name, component.name
    )
}

impl<'a> Bound<'a> {
    /// What an argument was given.
    pub fn get(&self, name: &str) -> Option<&'a Located> {
        debug_assert!(
            self.component.argument(name).is_some(),
            "{} has no {name}",
            self.component.name
        );
        self.given.iter().find(|(argument, _)| argument.name == name).map(|(_, value)| *value)
    }

    /// Where an argument stands: its value's place, or the node's.
    pub fn origin_of(&self, name: &str) -> &'a Origin {
        self.get(name).map_or(self.origin, |value| &value.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_component_is_documented() {
        for component in catalog::all() {
            let name = component.name;
            assert!(component.summary.ends_with('.'), "{name}: {:?}", component.summary);
            for argument in component.arguments {
                let path = format!("{name}.{}", argument.name);
                assert!(argument.meaning.len() > 4, "{path}");
                assert!(!argument.meaning.ends_with('.'), "{path}: {:?}", argument.meaning);
                match argument.treatment {
                    Treatment::Obeyed => {}
                    Treatment::Reported(text) | Treatment::Refused(text) => {
                        assert!(text.len() > 5 && !text.ends_with('.'), "{path}: {text:?}");
                        assert!(argument.default.is_some(), "{path} can't be left at its default");
                    }
                }
            }
            let names: BTreeSet<_> = component.arguments.iter().map(|a| a.name).collect();
            assert_eq!(names.len(), component.arguments.len(), "{name} has an argument twice");
        }
    }

    #[test]
    fn no_name_means_two_components() {
        let mut seen = BTreeSet::new();
        for component in catalog::all() {
            for name in component.paths.iter().chain([&component.name]) {
                assert!(seen.insert(*name), "{name}");
            }
        }
    }

    #[test]
    fn the_tutorials_paths_are_known() {
        for (path, name) in [
            ("forgather.ml.optim:WSDScheduler", "WSDScheduler"),
            ("datasets:load_dataset", "load_dataset"),
            ("forgather.ml.datasets:block_tokenize_fn", "block_tokenize_fn"),
            ("forgather.ml.datasets:preprocess_dataset", "preprocess_dataset"),
            ("forgather:from_project", "from_project"),
            ("torchao.optim:AdamW4bit", "AdamW4bit"),
            ("torch.optim:AdamW", "AdamW"),
            ("torch:optim.AdamW", "AdamW"),
            ("forgather.ml.optim.adafactor:Adafactor", "Adafactor"),
            ("getitem", "getitem"),
        ] {
            assert_eq!(find(path).map(|component| component.name), Some(name), "{path}");
        }
    }

    #[test]
    fn a_miss_names_what_is_near() {
        assert_eq!(near("WSDSchedular").first(), Some(&"WSDScheduler"));
        assert_eq!(near("forgather.ml.optim:WSDSchedular")[0], "forgather.ml.optim:WSDScheduler");
        assert_eq!(near("my.own.module:WSDSchedular")[0], "WSDScheduler");
        assert!(near("quite_another_thing").is_empty());
    }
}
