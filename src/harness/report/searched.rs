//! The answer of a search: the largest value of its parameter at which a run still finishes, in each of its cases.

use super::answer::{count, list, reason, whole};
use super::markdown::{bold, capital, in_code, text};
use super::summary::{Ceiling, Summary, plain};
use serde_json::Value;

/// The paragraphs: what each search found, whether it has come to its end, and how sure it is.
pub fn answer(summary: &Summary, parameter: &str) -> Vec<String> {
    let (_, ceilings) = summary.ceilings(parameter);
    if ceilings.is_empty() {
        return vec!["**There is no answer yet:** the search has made no run.".into()];
    }
    let bisect = &summary.comparison.spec["search"]["bisect"];
    let mut paragraphs: Vec<String> =
        ceilings.iter().map(|ceiling| ceiling_sentence(ceiling, parameter, bisect)).collect();
    let open: Vec<String> = ceilings
        .iter()
        .filter(|ceiling| !is_found(ceiling, bisect))
        .map(|ceiling| text(&ceiling.name))
        .collect();
    if !open.is_empty() {
        let of = if ceilings.len() > 1 { format!(" of {}", list(&open)) } else { String::new() };
        paragraphs.push(format!(
            "**The search{of} is not finished:** its bracket is still wider than its resolution, or what probes found is not \
             confirmed. The same command goes on."
        ));
    }
    let resolution = &bisect["resolution"];
    let is_bracket = |ceiling: &Ceiling| {
        ceiling.largest.is_some() && ceiling.smallest_not.is_some() && is_found(ceiling, bisect)
    };
    if ceilings.iter().any(is_bracket) && !resolution.is_null() {
        let which = match ceilings.iter().all(is_bracket) {
            true => "The uncertainty".to_string(),
            false => {
                let found = ceilings.iter().filter(|ceiling| is_bracket(ceiling));
                let names: Vec<String> = found.map(|ceiling| bold(&ceiling.name)).collect();
                format!("The uncertainty of {}", list(&names))
            }
        };
        paragraphs.push(format!(
            "{which} is the search's bracket (its resolution is {}), not an interval over seeds: each value was tried with {}.",
            text(&plain(resolution)),
            count(summary.labels.iter().map(|label| label.points.len()).max().unwrap_or(0), "seed")
        ));
    }
    paragraphs
}

/// Whether a search has come to its end: the bracket as narrow as was asked for, and confirmed where probes found it.
fn is_found(ceiling: &Ceiling, bisect: &Value) -> bool {
    let of = |key: &str| tokens(&bisect[key]);
    let (Some(low), Some(high)) = (of("low"), of("high")) else { return true };
    let resolution = of("resolution").unwrap_or((low / 8.0).floor());
    let resolution = resolution.max(of("multiple_of").unwrap_or(1.0));
    let refused = ceiling.smallest_not.as_ref().map(|(value, _)| *value);
    match (ceiling.largest, refused) {
        (None, refused) => refused.is_some_and(|refused| refused <= low),
        (Some(largest), refused) => {
            let ends = refused.map_or(largest >= high, |refused| refused - largest <= resolution);
            ends && (ceiling.probes == 0 || ceiling.is_confirmed)
        }
    }
}

/// A number of the sweep file, which may be written with a suffix: `8192`, `8K`.
fn tokens(value: &Value) -> Option<f64> {
    let text = || value.as_str()?.parse::<fathom_spec::units::Tokens>().ok();
    value.as_f64().or_else(|| text().map(|tokens| tokens.0 as f64))
}

fn ceiling_sentence(ceiling: &Ceiling, parameter: &str, bisect: &Value) -> String {
    let named = |sentence: String| match ceiling.name.as_str() {
        "" => capital(&sentence),
        name => format!("{}: {sentence}", bold(name)),
    };
    let key = in_code(parameter);
    let above = match &ceiling.smallest_not {
        Some((value, point)) => {
            format!("at {} it did not ({})", whole(*value), reason(point))
        }
        None => "no larger value failed".to_string(),
    };
    let mut sentence = named(match ceiling.largest {
        Some(largest) => format!(
            "the largest {key} at which the run still finished is **{}**; {above}.",
            whole(largest)
        ),
        None => format!("no value of {key} finished; {above}."),
    });
    if let (Some(low), Some((high, _))) = (ceiling.largest, &ceiling.smallest_not) {
        sentence.push_str(&format!(
            " The ceiling lies in [{}, {}), found with {}.",
            whole(low),
            whole(*high),
            count(ceiling.points.len(), "run")
        ));
    }
    if let (Some(largest), None) = (ceiling.largest, &ceiling.smallest_not) {
        let end = match tokens(&bisect["high"]) {
            Some(high) if largest >= high => ", the search's own upper end",
            _ => "",
        };
        sentence.push_str(&format!(" The ceiling is at least {}{end}.", whole(largest)));
    }
    if ceiling.probes > 0 {
        let probes = format!("{} of the runs worked only some layers of the model", ceiling.probes);
        sentence.push_str(&match (ceiling.largest, ceiling.is_confirmed) {
            (Some(_), true) => format!(" It is confirmed by a whole step; {probes}."),
            (Some(_), false) => format!(" **No whole step has confirmed it yet**: {probes}."),
            (None, _) => format!(" {}.", probes),
        });
    }
    if !ceiling.exceptions.is_empty() {
        let values: Vec<String> = ceiling.exceptions.iter().map(|&value| whole(value)).collect();
        sentence.push_str(&format!(
            " The outcome is not monotone: smaller values failed as well ({}).",
            values.join(", ")
        ));
    }
    sentence
}

/// What each search found, in one line.
pub fn headline(summary: &Summary, parameter: &str) -> String {
    let (_, ceilings) = summary.ceilings(parameter);
    let found = ceilings.iter().map(|ceiling| {
        let largest = ceiling.largest.map_or("none finished".into(), whole);
        let above = match &ceiling.smallest_not {
            Some((value, _)) => format!(" (not {})", whole(*value)),
            None => String::new(),
        };
        let name = match ceiling.name.as_str() {
            "" => String::new(),
            name => format!("{}: ", text(name)),
        };
        let doubt = match ceiling.probes > 0 && !ceiling.is_confirmed {
            true => ", not yet confirmed by a whole step",
            false => "",
        };
        format!("{name}**{largest}**{above}{doubt}")
    });
    let found = found.collect::<Vec<_>>().join("; ");
    match found.as_str() {
        "" => "no run yet".to_string(),
        found => format!("largest {} that finished: {found}", in_code(parameter)),
    }
}
