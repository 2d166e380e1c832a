//! From a sweep file to points: every one resolved to a complete `RunConfig` before the first run starts.
//!
//! `axes` reads what is varied, `combine` makes the grid or the random draws of it, `rules` are what follows of a point's values
//! (conditional settings, derived values in the order of `derive`, constraints, whose values `compare` orders), `points` resolves them, `seeds` brings them to
//! more seeds, `lost` refuses what none of them would have; `bisect` and `report` read what is searched and reported. [`schema`]
//! tells editors all of it, [`wandb`] brings the sweep files of Weights & Biases.

mod axes;
mod bisect;
mod combine;
mod compare;
mod derive;
mod lost;
mod points;
mod report;
mod rules;
pub mod schema;
mod seeds;
pub mod wandb;

use super::base::Base;
use super::halving::Halving;
use super::schedule::{self, FALLBACK, Schedule};
use anyhow::{Context, Result, bail};
use axes::{Choice, Condition, Random, key_choice};
pub use bisect::{Bisect, PROBE_LAYERS};
use bisect::{bisect, refuse_beside_search, whole};
use combine::Groups;
use fathom_spec::config::written::{BYTE_ORDER_MARK, Entry, Node, Origin, Written};
use fathom_spec::config::{RunConfig, nearest};
use points::{Made, resolve};
use report::check_report;
use rules::Rules;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Where the stored sweep has what `--set` laid over its file.
pub const COMMAND_LINE: &str = "command_line";

/// What [`COMMAND_LINE`] has of `--top-up-seeds`.
pub const TOP_UP_SEEDS: &str = "top_up_seeds";

/// Where the stored sweep has the further seeds that were brought to its points: what was asked for, and the runs.
pub const FURTHER_SEEDS: &str = "further_seeds";

/// The key path of the seed: it is told apart from the other axes.
pub const SEED: &str = "train.seed";

/// A sweep file, read and resolved.
#[derive(Debug, Clone)]
pub struct Plan {
    pub name: String,
    /// The file, as it was named.
    pub file: String,
    /// The comment that opens the file.
    pub question: Option<String>,
    /// The whole file as JSON, for the store.
    pub spec: Value,
    /// Its runs; with a search its cases, each with all but the value that is searched.
    pub points: Vec<Point>,
    /// Made once in each case.
    pub search: Option<Bisect>,
    /// Points are stopped on their way, and only the best go on.
    pub halving: Option<Halving>,
    /// Which runs come first, what they may cost, what is tried where memory runs out.
    pub schedule: Schedule,
    /// What a project's templates make of the points otherwise than they were written, one line each.
    pub notes: Vec<String>,
    /// Points of the grid, or draws, that do not satisfy the constraints.
    pub left_out: usize,
    /// What all points share.
    base: Base,
    /// What follows of a point's values.
    rules: Rules,
    /// What is no point of the grid.
    exclude: Vec<Vec<Condition>>,
    /// What makes each point; the probes of a case set their value beside it.
    choices: Vec<Vec<Choice>>,
    /// Where the search stands, if there is one.
    search_origin: Origin,
}

/// One run of a sweep.
#[derive(Debug, Clone)]
pub struct Point {
    /// What tells it from the others, seed left out: `rope=yarn4 learning_rate=1e-5`.
    pub label: String,
    pub seed: u64,
    /// Axis -> label or value, seed included.
    pub settings: Map<String, Value>,
    pub config: RunConfig,
}

/// The keys of a sweep file.
const KEYS: [&str; 15] = [
    "name",
    "base",
    "set",
    "axes",
    "random",
    "zip",
    "include",
    "exclude",
    "when",
    "derive",
    "constraints",
    "seeds",
    "search",
    "eval",
    "report",
];

/// The most points that a sweep may have: beyond, a mistake is likelier than a plan.
const MOST_POINTS: usize = 10_000;

/// The longest name of a sweep in bytes: those of its files are longer, and may have 255.
const LONGEST_NAME: usize = 200;

impl Plan {
    /// Reads a sweep file. `search_path` is where base configurations are looked for, after the sweep file's own folder;
    /// `overrides` are assignments of the command line, laid over everything but the axes.
    ///
    /// # Errors
    ///
    /// For any mistake in the file, its base, or any point that comes of them: with file, line and key path.
    pub fn read(
        path: &Path,
        search_path: &[PathBuf],
        overrides: &[(String, Written)],
    ) -> Result<Plan> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("{}: expected a sweep file that can be read", path.display())
        })?;
        Plan::parse(path, &text, search_path, overrides)
    }

    /// As [`Plan::read`], for a text that would stand at `path`.
    ///
    /// # Errors
    ///
    /// As [`Plan::read`].
    pub fn parse(
        path: &Path,
        text: &str,
        search_path: &[PathBuf],
        overrides: &[(String, Written)],
    ) -> Result<Plan> {
        let file = path.display().to_string();
        let tree = Written::parse(&file, text)?;
        if matches!(&tree.node, Node::Null)
            || matches!(&tree.node, Node::Map(entries) if entries.is_empty())
        {
            bail!(
                "{file}: expected a sweep file, found nothing in it\n  help: `base: FILE` names the configuration that its points share, \
                 `axes` what is varied"
            );
        }
        for entry in tree.entries("the sweep file")? {
            known(entry, &[&KEYS[..], &schedule::KEYS].concat(), "the sweep file")?;
        }
        refuse_empty(&tree)?;
        refuse_no_numbers(&tree, "")?;
        let name = match tree.get("name") {
            Some(name) => name.text("name")?.to_string(),
            None => path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned()),
        };
        let is_bad = |c: char| c.is_control() || ['/', '\\'].contains(&c);
        if name.is_empty() || name.contains(is_bad) || name.starts_with('.') {
            let place = tree.get("name").map_or(file, |name| name.origin.to_string());
            bail!("{place}: name: expected a name that can be a folder's, found `{name}`");
        }
        if name.len() > LONGEST_NAME {
            let place = tree.get("name").map_or(file, |name| name.origin.to_string());
            bail!(
                "{place}: name: expected at most {LONGEST_NAME} bytes, as files are called by it, found {}",
                name.len()
            );
        }
        let base = Base::read(&tree, search_path, overrides)?;
        let random = tree.get("random").map(Random::read).transpose()?;
        let groups = Groups::read(&tree, axes::read(&tree, random.is_some(), &base)?)?;
        let rules = Rules::read(&tree)?;
        lost::refuse_set_twice(&tree)?;
        let halving = Halving::read(&tree)?;
        let schedule = Schedule::read(&tree)?;
        let search = tree.get("search").filter(|_| halving.is_none());
        let search = search.map(bisect).transpose()?;
        rules.refuse_beside_search(search.as_ref())?;
        let grid = if random.is_none() { groups.grid()? } else { Vec::new() };
        let included = groups.included()?;
        rules
            .conditions()
            .try_for_each(|condition| groups.check(condition, "when.if", &included))?;
        if random.is_none() {
            rules.refuse_conditions_in_vain(|| grid.iter().chain(&included))?;
        }
        let mut made = Made::new(&file, &base, &rules);
        for choices in grid {
            made.add(choices)?;
        }
        if let Some(random) = &random {
            made.draw(&groups, random)?;
        }
        for choices in included {
            if random.is_some() {
                made.drop_draw(&choices)?;
            }
            made.add(choices)?;
        }
        made.refuse_none(&tree)?;
        let Made { points, choices, left_out, .. } = made;
        let left_out: usize = left_out.iter().sum();
        refuse_beside_search(&tree, search.as_ref(), &choices)?;
        lost::refuse_set_in_vain(&tree, &groups, &rules, search.as_ref(), &choices)?;
        let swept = choices.iter().flatten().flat_map(|c| c.settings.iter().map(|(key, _)| key));
        let swept = swept.chain(rules.keys()).chain(search.iter().map(|s| &s.parameter));
        refuse_override(&file, overrides, swept)?;
        lost::refuse_duplicates(&tree, &points, &choices)?;
        if let Some(report) = tree.get("report") {
            check_report(report, &points)?;
        }
        let mut spec = tree.to_json();
        if !overrides.is_empty() {
            let settings = overrides.iter().map(|(key, value)| (key.clone(), value.to_json()));
            spec[COMMAND_LINE] = Value::Object(settings.collect());
        }
        let question = question(text);
        let notes = Vec::new();
        let mut plan = Plan {
            name,
            file,
            question,
            spec,
            points,
            search,
            halving,
            schedule,
            notes,
            left_out,
            base,
            rules,
            exclude: groups.exclude,
            choices,
            search_origin: bisect::origin(&tree),
        };
        plan.check_search()?;
        plan.schedule.check(&plan)?;
        plan.halving.as_ref().map_or(Ok(()), |halving| halving.check(&plan))?;
        plan.notes = plan.base.notes();
        Ok(plan)
    }

    /// The probe of a case (by its place among the points) that tries `value`, with all layers worked if `whole`.
    ///
    /// # Errors
    ///
    /// When the configuration refuses the value.
    pub fn probe(&self, case: usize, search: &Bisect, value: u64, whole: bool) -> Result<Point> {
        let origin = &self.search_origin;
        let set = |key: &str, value: u64| {
            let node = Node::Int(value.try_into().unwrap_or(i64::MAX));
            key_choice(key, Written { node, origin: origin.clone() })
        };
        let mut choices = self.choices[case].clone();
        choices.push(set(&search.parameter, value));
        choices.extend(search.probe_layers.filter(|_| !whole).map(|n| set(PROBE_LAYERS, n)));
        resolve(&self.base, &self.rules, &choices)
    }

    /// What stands in for a point (by its place among the points) whose run ran out of memory: its `step`-th fallback.
    ///
    /// # Errors
    ///
    /// When the configuration refuses its settings.
    pub fn fallback(&self, case: usize, step: usize) -> Result<Point> {
        let fallback = &self.schedule.fallbacks[step];
        let mut choices = self.choices[case].clone();
        choices.push(Choice {
            axis: FALLBACK.to_string(),
            shown: fallback.shown().into(),
            settings: fallback.settings.clone(),
        });
        resolve(&self.base, &self.rules, &choices)
    }

    /// The points that can be named before anything has run: all of them; of a search, those of its cases that try `also`,
    /// `low` and `high`.
    ///
    /// # Errors
    ///
    /// As [`Plan::probe`].
    pub fn foreseen(&self) -> Result<Vec<Point>> {
        let Some(search) = &self.search else { return Ok(self.points.clone()) };
        let mut values = [&search.also[..], &[search.low, search.high]].concat();
        values.sort_unstable();
        values.dedup();
        let cases = 0..self.points.len();
        cases
            .flat_map(|case| {
                values.iter().map(move |&value| self.probe(case, search, value, false))
            })
            .collect()
    }

    fn check_search(&self) -> Result<()> {
        let Some(search) = &self.search else { return Ok(()) };
        self.foreseen()?;
        for case in 0..self.points.len() {
            let low = self.probe(case, search, search.low, true)?;
            let high = self.probe(case, search, search.high, true)?;
            if lost::what_runs(&low.config) == lost::what_runs(&high.config) {
                bail!(
                    "{}: search.bisect.parameter: expected a key that makes another run, found `{}`, with which {} and {} are the \
                     same run",
                    self.search_origin,
                    search.parameter,
                    search.low,
                    search.high
                );
            }
        }
        Ok(())
    }
}

/// The opening comment, its lines joined, up to a line that names a command.
fn question(text: &str) -> Option<String> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let lines = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
    // An editor's line is no part of it.
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("yaml-language-server"));
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with("fathom ")).collect();
    (!lines.is_empty()).then(|| lines.join(" "))
}

/// An empty list or mapping says nothing; most often something is missing from it.
fn refuse_empty(tree: &Written) -> Result<()> {
    for entry in tree.entries("the sweep file")? {
        let is_empty = match &entry.value.node {
            Node::List(items) => items.is_empty(),
            Node::Map(entries) => entries.is_empty(),
            _ => false,
        };
        // Settings may all be taken away by hand, one after the other; nothing hangs on them.
        if is_empty && !["set", "eval", "report", "seeds", "search"].contains(&entry.key.as_str()) {
            bail!(
                "{}: {}: expected something in it, found nothing\n  help: take the line away where nothing is meant",
                entry.key_origin,
                entry.key
            );
        }
    }
    Ok(())
}

/// `.nan` and `.inf` are no values of a configuration, which is kept as JSON.
fn refuse_no_numbers(written: &Written, place: &str) -> Result<()> {
    match &written.node {
        Node::Float(x) if !x.is_finite() => {
            let help =
                if x.is_nan() { "" } else { "\n  help: `null` is written where there is no bound" };
            bail!(
                "{}: {place}: expected a finite number, found {}{help}",
                written.origin,
                written.describe()
            )
        }
        Node::List(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(at, item)| refuse_no_numbers(item, &format!("{place}[{at}]"))),
        Node::Map(entries) => entries.iter().try_for_each(|entry| {
            let dot = if place.is_empty() { "" } else { "." };
            refuse_no_numbers(&entry.value, &format!("{place}{dot}{}", entry.key))
        }),
        _ => Ok(()),
    }
}

/// Refuses a key that is none of `keys`.
pub(super) fn known(entry: &Entry, keys: &[&str], place: &str) -> Result<()> {
    if keys.contains(&entry.key.as_str()) {
        return Ok(());
    }
    let near = nearest(&entry.key, keys.iter().copied());
    let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    let list: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
    bail!(
        "{}: {place}: expected a known key, found `{}`\n  help: {near}known here: {}",
        entry.key_origin,
        entry.key,
        list.join(", ")
    )
}

/// What the command line sets would be lost where the sweep itself sets it.
fn refuse_override<'a>(
    file: &str,
    overrides: &[(String, Written)],
    mut swept: impl Iterator<Item = &'a String>,
) -> Result<()> {
    let within = |a: &str, b: &str| a == b || a.strip_prefix(b).is_some_and(|r| r.starts_with('.'));
    let clash = swept.find_map(|key| {
        let (clash, _) = overrides.iter().find(|(set, _)| within(set, key) || within(key, set))?;
        Some((clash, key))
    });
    match clash {
        Some((set, key)) => bail!(
            "--set {set}: expected a key that the sweep does not vary, found one that its points set (`{key}`)\n  \
             help: change it in {file}"
        ),
        None => Ok(()),
    }
}

/// Whether two values are one: `1` and `1.0` are.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    // Of two whole numbers a float would lose the last digits.
    let are_whole = a.as_i64().is_some() && b.as_i64().is_some();
    a == b || !are_whole && a.is_number() && b.is_number() && a.as_f64() == b.as_f64()
}

/// The last part of a key path.
fn short(axis: &str) -> &str {
    axis.rsplit('.').next().unwrap_or(axis)
}

/// A value as a label shows it: `1e-5`, `yarn4`.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(n) if n.is_f64() => {
            let x = n.as_f64().unwrap_or(f64::NAN);
            if x != 0.0 && (x.abs() < 1e-2 || x.abs() >= 1e6) {
                format!("{x:e}")
            } else {
                format!("{x}")
            }
        }
        other => other.to_string(),
    }
}
