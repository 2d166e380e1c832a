//! Every node of a graph against the catalog: nothing unknown, nothing that can't be obeyed goes by in silence.

use super::values::{Scope, to_json, typed, yaml};
use super::{Argument, Bound, Component, Kind, Note, Treatment, bind, bind_to};
use crate::template::graph::{Graph, Located, Node, Value};
use anyhow::{Result, bail};
use std::collections::HashSet;
use std::sync::Arc;

/// Checks a graph and returns what is not done as it was written.
///
/// # Errors
///
/// For an unknown component or argument, a value of another type, and what is refused: with its place and the way out.
pub fn graph(graph: &Graph) -> Result<Vec<Note>> {
    let mut checker = Checker::default();
    graph.entries.iter().try_for_each(|(_, value)| checker.value(value))?;
    Ok(checker.notes)
}

/// Checks arguments that stand without a node.
///
/// # Errors
///
/// As [`graph`].
pub fn arguments(bound: &Bound) -> Result<Vec<Note>> {
    let mut checker = Checker::default();
    checker.bound(bound)?;
    Ok(checker.notes)
}

#[derive(Default)]
struct Checker {
    notes: Vec<Note>,
    seen: HashSet<*const Node>,
}

impl Checker {
    fn value(&mut self, value: &Located) -> Result<()> {
        match &value.value {
            Value::List(items) | Value::Tuple(items) => {
                items.iter().try_for_each(|item| self.value(item))
            }
            Value::Dict(entries) => entries.iter().try_for_each(|(_, value)| self.value(value)),
            Value::Node(node) => self.node(node),
            Value::Var(var) => var.default.iter().try_for_each(|default| self.value(default)),
            _ => Ok(()),
        }
    }

    fn node(&mut self, node: &Arc<Node>) -> Result<()> {
        if !self.seen.insert(Arc::as_ptr(node)) {
            return Ok(());
        }
        let bound = bind(node)?;
        let component = bound.component;
        match component.treatment {
            Treatment::Obeyed => {}
            Treatment::Reported(instead) => self.note(&node.origin, component, "", instead),
            Treatment::Refused(way_out) => bail!(
                "{}: expected a component that this engine has, found `{}`\n  help: {way_out}",
                node.origin,
                component.name
            ),
        }
        self.bound(&bound)?;
        node.args.iter().try_for_each(|value| self.value(value))?;
        node.kwargs.iter().try_for_each(|(_, value)| self.value(value))
    }

    fn bound(&mut self, bound: &Bound) -> Result<()> {
        for (argument, value) in &bound.given {
            self.argument(bound, argument, value)?;
        }
        let given = |argument: &Argument| bound.get(argument.name).is_some();
        let component = bound.component;
        match component.arguments.iter().find(|a| a.default.is_none() && !given(a)) {
            Some(missing) => bail!(
                "{}: {}: expected the argument `{}` ({}), found none",
                bound.origin,
                component.name,
                missing.name,
                missing.meaning
            ),
            None => Ok(()),
        }
    }

    fn argument(&mut self, bound: &Bound, argument: &Argument, value: &Located) -> Result<()> {
        // A variable has its value only when the graph is resolved; its type is looked at then.
        if matches!(value.value, Value::Var(_)) {
            return Ok(());
        }
        let value = Scope::default().plain(value).unwrap_or_else(|_| value.clone());
        let was_text = matches!(value.value, Value::String(_));
        let value = typed(bound, argument, value)?;
        if was_text && matches!(value.value, Value::Int(_) | Value::Float(_)) {
            let number = to_json(&value.value);
            let message = format!("is text in YAML 1.1, and is read as the number {number}");
            self.note(&value.origin, bound.component, argument.name, &message);
        }
        if let (Kind::ArgumentsOf(component), Value::Dict(entries)) = (argument.kind, &value.value)
        {
            return self.bound(&bind_to(component, &value.origin, &[], entries)?);
        }
        if is_default(argument, &value.value) {
            return Ok(());
        }
        match argument.treatment {
            Treatment::Obeyed => Ok(()),
            Treatment::Reported(instead) => {
                let message = format!("{}: {instead}", value.value.describe());
                self.note(&value.origin, bound.component, argument.name, &message);
                Ok(())
            }
            Treatment::Refused(way_out) => bail!(
                "{}: {}.{}: expected `{}`, found {}\n  help: {way_out}",
                value.origin,
                bound.component.name,
                argument.name,
                argument.default.unwrap_or("null"),
                value.value.describe()
            ),
        }
    }

    fn note(
        &mut self,
        origin: &crate::config::written::Origin,
        component: &Component,
        argument: &str,
        message: &str,
    ) {
        let subject = match argument {
            "" => format!("{}: ", component.name),
            name => format!("{name} "),
        };
        self.notes.push(Note { origin: origin.clone(), message: format!("{subject}{message}") });
    }
}

fn is_default(argument: &Argument, value: &Value) -> bool {
    let default = yaml(argument.default.unwrap_or("null"));
    let value = to_json(value);
    value.is_null() || value == default || value.is_number() && value.as_f64() == default.as_f64()
}
