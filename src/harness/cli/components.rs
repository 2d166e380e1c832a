//! `fathom components`: what a template may name, and what fathom makes of it.

use super::exit;
use super::table::print;
use anyhow::{Result, bail};
use clap::Args;
use fathom_spec::components::{self, Argument, Component, Others, Treatment, catalog};
use std::fmt::Write as _;

/// Columns that a line of prose takes at most.
const WIDTH: usize = 100;

#[derive(Args)]
pub struct ComponentsArgs {
    /// Document one, by its short name or by a path that stands for it
    name: Option<String>,
}

/// Lists all components, or documents one.
///
/// # Errors
///
/// When there is no component of the name.
pub fn run(args: &ComponentsArgs) -> Result<u8> {
    let text = match &args.name {
        None => list(),
        Some(name) => match components::find(name) {
            Some(component) => document(component),
            None => {
                let near: Vec<String> =
                    components::near(name).iter().map(|name| format!("`{name}`")).collect();
                let help = match near.is_empty() {
                    true => "`fathom components` lists all of them".to_string(),
                    false => format!("did you mean {}?", near.join(" or ")),
                };
                bail!("expected a component, found `{name}`\n  help: {help}")
            }
        },
    };
    print(&text)?;
    Ok(exit::OK)
}

/// Every component under its role, with the first sentence of its documentation.
fn list() -> String {
    let mut all: Vec<&Component> = catalog::all().collect();
    // Stable: within a role they stay in the catalog's order.
    all.sort_by_key(|component| component.role);
    let width = all.iter().map(|component| component.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut role = None;
    for component in all {
        if role.replace(component.role) != Some(component.role) {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}{}", component.role.name());
        }
        let first = component.summary.split(": ").next().unwrap_or_default();
        let first = first.split(". ").next().unwrap_or_default().trim_end_matches('.');
        let not_here = match component.treatment {
            Treatment::Refused(_) => " (not in this engine)",
            _ => "",
        };
        let _ = writeln!(text, "    {:<width$}  {first}{not_here}", component.name);
    }
    text
}

/// One component in full.
fn document(component: &Component) -> String {
    let mut text = format!("{}\n\n", component.name);
    text += &wrapped(component.summary, "");
    match component.treatment {
        Treatment::Obeyed => {}
        Treatment::Reported(instead) => text += &wrapped(&format!("Here {instead}."), ""),
        Treatment::Refused(way_out) => {
            text += &wrapped(&format!("This engine does not have it: {way_out}."), "");
        }
    }
    if !component.paths.is_empty() {
        let _ = writeln!(text, "\nAlso written {}", component.paths.join(", "));
    }
    if !component.arguments.is_empty() {
        text += "\nArguments\n";
        component.arguments.iter().for_each(|argument| text += &describe(argument));
    }
    match component.others {
        Others::None => {}
        Others::Keywords(meaning) => {
            let _ = writeln!(text, "\nOther keywords: {meaning}");
        }
        Others::Any(meaning) => {
            let _ = writeln!(text, "\nArguments: {meaning}");
        }
    }
    text
}

fn describe(argument: &Argument) -> String {
    let default = match argument.default {
        Some(default) => format!(" = {default}"),
        None => " (to be given)".to_string(),
    };
    let mut text = format!("  {}: {}{default}\n", argument.name, argument.kind.name());
    let meaning = match argument.treatment {
        Treatment::Obeyed => argument.meaning.to_string(),
        Treatment::Reported(instead) => format!("{}. Reported: {instead}", argument.meaning),
        Treatment::Refused(way_out) => format!("{}. Refused: {way_out}", argument.meaning),
    };
    text += &wrapped(&meaning, "      ");
    text
}

/// Text in lines of at most [`WIDTH`] columns.
fn wrapped(text: &str, indent: &str) -> String {
    let mut out = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty()
            && indent.len() + line.chars().count() + 1 + word.chars().count() > WIDTH
        {
            let _ = writeln!(out, "{indent}{line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(out, "{indent}{line}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_is_in_the_list_and_can_be_documented() {
        let list = list();
        for component in catalog::all() {
            assert!(list.contains(&format!("    {}", component.name)), "{}", component.name);
            let document = document(component);
            assert!(document.starts_with(component.name));
            for argument in component.arguments {
                assert!(document.contains(&format!("  {}: ", argument.name)), "{document}");
            }
            assert!(document.lines().all(|l| l.starts_with("Also") || l.chars().count() <= WIDTH));
        }
    }

    #[test]
    fn a_component_is_documented_whole() {
        let wsd = document(components::find("forgather.ml.optim:WSDScheduler").unwrap());
        assert!(
            wsd.contains("decay_start_step: int = -1\n      the step that the decay begins at"),
            "{wsd}"
        );
        // Wherever the lines break.
        let sgd = document(components::find("SGD").unwrap());
        let words = sgd.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("Refused: leave it at its default: it is another"), "{sgd}");
    }
}
