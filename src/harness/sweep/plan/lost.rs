//! What a sweep file says and no point would have: a setting that another one replaces, and points that are one run.

use super::axes::Choice;
use super::bisect::Bisect;
use super::combine::Groups;
use super::rules::Rules;
use super::{Point, plain};
use anyhow::{Result, bail};
use fathom_spec::config::written::{Entry, Node, Origin, Written};
use fathom_spec::config::{Digests, RunConfig};
use std::collections::HashMap;

/// The keys that a setting sets: a whole section (`train: {…}`) is set key by key, everything else as one.
pub(super) fn keys_of<'w>(key: &str, value: &'w Written) -> Vec<(String, &'w Origin)> {
    match &value.node {
        Node::Map(entries) if !key.contains('.') => {
            let key_of = |entry: &'w Entry| (format!("{key}.{}", entry.key), &entry.key_origin);
            entries.iter().map(key_of).collect()
        }
        // An option of a project may be written as on the command line.
        _ if !key.contains('.') => {
            vec![(key.trim_start_matches('-').replace('-', "_"), &value.origin)]
        }
        _ => vec![(key.to_string(), &value.origin)],
    }
}

/// Whether setting `key` leaves nothing of what `earlier` was set to.
pub(super) fn replaces(key: &str, earlier: &str) -> bool {
    earlier.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// A setting of all points: `set.train.learning_rate`, its key, where it stands.
type OfAll<'w> = (String, String, &'w Origin);

/// What `set` and `eval` set, in the order in which they are laid over the base.
fn of_all_points(tree: &Written) -> Result<Vec<OfAll<'_>>> {
    let mut found = Vec::new();
    for (section, prefix) in [("set", ""), ("eval", "eval.")] {
        let Some(written) = tree.get(section) else { continue };
        for entry in written.entries(section)? {
            let keys = keys_of(&format!("{prefix}{}", entry.key), &entry.value);
            found.extend(keys.into_iter().map(|(key, origin)| {
                (format!("{section}.{}", key.trim_start_matches(prefix)), key, origin)
            }));
        }
    }
    Ok(found)
}

/// Refuses a setting of all points that a later one of them replaces.
pub(super) fn refuse_set_twice(tree: &Written) -> Result<()> {
    let settings = of_all_points(tree)?;
    for (at, (place, key, origin)) in settings.iter().enumerate() {
        if let Some((other, ..)) = settings[..at].iter().find(|(_, set, _)| replaces(key, set)) {
            bail!(
                "{origin}: {place}: expected each key once, found `{key}` again, which `{other}` sets\n  help: keep one of them"
            );
        }
    }
    Ok(())
}

/// Refuses a setting of all points that no point keeps, as each of them sets the key otherwise.
pub(super) fn refuse_set_in_vain(
    tree: &Written,
    groups: &Groups,
    rules: &Rules,
    search: Option<&Bisect>,
    points: &[Vec<Choice>],
) -> Result<()> {
    let settings = of_all_points(tree)?;
    if settings.is_empty() {
        return Ok(());
    }
    let is_random = tree.get("random").is_some();
    let searched = search.map(|search| ("search.bisect".to_string(), search.parameter.clone()));
    let by_point: Vec<Vec<(String, String)>> = points
        .iter()
        .map(|choices| {
            // Other draws might leave the key alone, but for an axis of its own that is always there.
            let counts = |axis: &str, key: &str| !is_random || axis == key && groups.always(axis);
            let chosen = choices.iter().flat_map(|choice| {
                let keys = choice.settings.iter().flat_map(|(key, value)| keys_of(key, value));
                let keys = keys.filter(|(key, _)| counts(&choice.axis, key));
                keys.map(|(key, _)| (format!("axes.{}", choice.axis), key))
            });
            chosen.chain(rules.set_at(choices, !is_random)).chain(searched.clone()).collect()
        })
        .collect();
    for (place, key, origin) in settings {
        let by = |keys: &Vec<(String, String)>| {
            keys.iter().find(|(_, set)| replaces(set, &key)).map(|(by, _)| by.clone())
        };
        let others: Option<Vec<String>> = by_point.iter().map(by).collect();
        if let Some(other) = others.and_then(|others| others.into_iter().next()) {
            bail!(
                "{origin}: {place}: expected a key that some point leaves as it is set here, found one that every point sets \
                 otherwise (`{other}`)\n  help: take one of the two away"
            );
        }
    }
    Ok(())
}

/// A point's label says what its axes set: none of them may replace what another one sets.
pub(super) fn refuse_axes_at_odds(choices: &[Choice]) -> Result<()> {
    let mut before: Vec<(&str, String)> = Vec::new();
    for choice in choices {
        let own: Vec<(String, &Origin)> =
            choice.settings.iter().flat_map(|(key, value)| keys_of(key, value)).collect();
        for (key, origin) in &own {
            if let Some((other, set)) = before.iter().find(|(_, set)| replaces(key, set)) {
                bail!(
                    "{origin}: axes.{}: expected a key that no other axis sets at the same point, found `{key}`, which replaces \
                     `{set}` of `{other}`\n  help: where finer keys are meant, the axis that has them stands last; `exclude` \
                     takes away points",
                    choice.axis
                );
            }
        }
        before.extend(own.into_iter().map(|(key, _)| (choice.axis.as_str(), key)));
    }
    Ok(())
}

/// Refuses two points that are one run.
pub(super) fn refuse_duplicates(
    tree: &Written,
    points: &[Point],
    choices: &[Vec<Choice>],
) -> Result<()> {
    let mut known: HashMap<String, usize> = HashMap::new();
    for (at, point) in points.iter().enumerate() {
        let Some(twin) = known.insert(what_runs(&point.config), at) else { continue };
        let mut differ = choices[at].iter().chain(&choices[twin]).filter(|choice| {
            let has = |choices: &[Choice]| {
                choices.iter().any(|c| c.axis == choice.axis && c.shown == choice.shown)
            };
            !(has(&choices[at]) && has(&choices[twin]))
        });
        let first = differ.next();
        let named = first.or(choices[at].first());
        let written = |choice: &Choice| Some(choice.settings.first()?.1.origin.to_string());
        let place = differ.chain(first).chain(named).find_map(written);
        let help = match first {
            None => "the second is made by `include`, and the grid has it already".to_string(),
            Some(_) if point.config.to_json() != points[twin].config.to_json() => {
                "run.device, run.threads and the like do not make another run".to_string()
            }
            Some(choice) => format!(
                "what `{}` sets there is so without it, or the same for both",
                plain(&choice.axis.clone().into())
            ),
        };
        bail!(
            "{}: expected points that differ, found two that are the same run: `{}` and `{}`, seed {}\n  help: {help}",
            place.unwrap_or_else(|| tree.get("axes").unwrap_or(tree).origin.to_string()),
            points[twin].label,
            point.label,
            point.seed
        );
    }
    Ok(())
}

/// What two points that are one run have in common, as far as the files that they name are left unread.
pub(super) fn what_runs(config: &RunConfig) -> String {
    let json = config.to_json();
    let path = |pointer: &str| json.pointer(pointer).map(ToString::to_string).unwrap_or_default();
    let digests = Digests {
        model: path("/model/path"),
        tokenizer: path("/tokenizer/path"),
        data: path("/data/corpus"),
    };
    serde_json::to_string(&config.identity_parts(&digests)).expect("plain data is JSON")
}
