//! From a sweep file to points: every one resolved to a complete `RunConfig` before the first run starts.
//!
//! `axes` reads what is varied, `combine` makes the grid or the random draws of it, `rules` are what follows of a point's values
//! (conditional settings, derived values, constraints), `points` resolves them. [`schema`] tells editors all of it, [`wandb`]
//! brings the sweep files of Weights & Biases.

mod axes;
mod combine;
mod points;
mod rules;
pub mod schema;
pub mod wandb;

use super::base::Base;
use super::halving::Halving;
use super::schedule::{self, FALLBACK, Schedule};
use anyhow::{Context, Result, bail};
use axes::{Choice, Random, key_choice};
use combine::Groups;
use fathom_spec::config::written::{Entry, Node, Written};
use fathom_spec::config::{RunConfig, nearest};
use points::{Made, refuse_duplicates, resolve};
use rules::Rules;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Where the stored sweep has what `--set` laid over its file.
pub const COMMAND_LINE: &str = "command_line";

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
    /// What makes each point; the probes of a case set their value beside it.
    choices: Vec<Vec<Choice>>,
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

/// A search for the largest value of one parameter with which a run still finishes.
#[derive(Debug, Clone, PartialEq)]
pub struct Bisect {
    pub parameter: String,
    pub low: u64,
    pub high: u64,
    /// The search ends when the bracket is at most this wide.
    pub resolution: u64,
    /// Every probe is a multiple of this.
    pub multiple_of: u64,
    /// Probes work only so many layers of the model, whose memory is that of all of them in a fraction of the time.
    pub probe_layers: Option<u64>,
    /// Values that are tried first, rising, until one does not finish: the table of the report.
    pub also: Vec<u64>,
}

/// The key that a probe sets.
pub const PROBE_LAYERS: &str = "run.probe_layers";

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
        let name = match tree.get("name") {
            Some(name) => name.text("name")?.to_string(),
            None => path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned()),
        };
        if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
            bail!("{file}: name: expected a name that can be a folder's, found `{name}`");
        }
        let base = Base::read(&tree, search_path, overrides)?;
        let random = tree.get("random").map(Random::read).transpose()?;
        let groups = Groups::read(&tree, axes::read(&tree, random.is_some())?)?;
        let rules = Rules::read(&tree)?;
        let halving = Halving::read(&tree)?;
        let schedule = Schedule::read(&tree)?;
        let search = tree.get("search").filter(|_| halving.is_none());
        let search = search.map(bisect).transpose()?;
        rules.refuse_beside_search(search.as_ref())?;
        rules.conditions().try_for_each(|condition| groups.check(condition, "when.if"))?;
        let grid = if random.is_none() { groups.grid()? } else { Vec::new() };
        let mut made = Made {
            file: &file,
            base: &base,
            rules: &rules,
            points: Vec::new(),
            choices: Vec::new(),
            left_out: 0,
        };
        for choices in grid {
            made.add(choices)?;
        }
        if let Some(random) = &random {
            made.draw(&groups, random)?;
        }
        for choices in groups.included()? {
            made.add(choices)?;
        }
        let Made { points, choices, left_out, .. } = made;
        if points.is_empty() && left_out == 0 {
            bail!("{file}: exclude: expected a point that is not left out, found none");
        }
        if points.is_empty() {
            bail!(
                "{file}: constraints: expected a point that satisfies them, found none of {left_out} that does"
            );
        }
        refuse_beside_search(&tree, search.as_ref(), &choices)?;
        let swept = choices.iter().flatten().flat_map(|c| c.settings.iter().map(|(key, _)| key));
        let swept = swept.chain(rules.keys()).chain(search.iter().map(|s| &s.parameter));
        refuse_override(&file, overrides, swept)?;
        refuse_duplicates(&file, &points)?;
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
            choices,
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
        let set =
            |key: &str, value: u64| key_choice(key, Written::from_json("search", &value.into()));
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
            self.probe(case, search, search.low, true)?;
            self.probe(case, search, search.high, true)?;
        }
        Ok(())
    }
}

/// A search tries each value once and sets it itself: what would set it too, or ask for seeds, is refused.
fn refuse_beside_search(
    tree: &Written,
    search: Option<&Bisect>,
    choices: &[Vec<Choice>],
) -> Result<()> {
    let (Some(written), Some(search)) = (tree.get("search"), search) else { return Ok(()) };
    let origin = &written.origin;
    let seed = format!("a search tries each value once; set its seed under `set` (`{SEED}`)");
    if let Some(seeds) = tree.get("seeds") {
        let line = seeds.origin.line;
        bail!(
            "{origin}: search: expected a sweep without `seeds`, found one at line {line}\n  help: {seed}"
        );
    }
    for choice in choices.iter().flatten() {
        if choice.axis == SEED {
            bail!(
                "{origin}: search: expected a sweep without the axis `{SEED}`, found one\n  help: {seed}"
            );
        }
        let own = [&search.parameter, PROBE_LAYERS];
        if let Some((key, value)) = choice.settings.iter().find(|(k, _)| own.contains(&k.as_str()))
        {
            bail!(
                "{}: axes.{}: expected keys that the search does not set itself, found `{key}`",
                value.origin,
                choice.axis
            );
        }
    }
    Ok(())
}

/// The opening comment, its lines joined, up to a line that names a command.
fn question(text: &str) -> Option<String> {
    let lines = text.lines().map_while(|line| line.strip_prefix('#')).map(str::trim);
    // An editor's line is no part of it.
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("yaml-language-server"));
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with("fathom ")).collect();
    (!lines.is_empty()).then(|| lines.join(" "))
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

/// What the report is told has to be of this sweep.
fn check_report(report: &Written, points: &[Point]) -> Result<()> {
    for entry in report.entries("report")? {
        known(entry, &["title", "baseline", "method", "context_length"], "report")?;
    }
    if let Some(title) = report.get("title") {
        title.text("report.title")?;
    }
    if let Some(length) = report.get("context_length")
        && !matches!(length.node, Node::Int(n) if n > 0)
    {
        bail!(
            "{}: report.context_length: expected a whole number, 1 or more, found {}",
            length.origin,
            length.describe()
        );
    }
    if let Some(method) = report.get("method")
        && !["prefix", "last_stride"].contains(&method.text("report.method")?)
    {
        bail!(
            "{}: report.method: expected `prefix` or `last_stride`, found {}",
            method.origin,
            method.describe()
        );
    }
    let Some(baseline) = report.get("baseline") else { return Ok(()) };
    let (json, name) = (baseline.to_json(), plain(&baseline.to_json()));
    let same =
        |value: &Value| plain(value) == name || json.is_number() && value.as_f64() == json.as_f64();
    let is = |point: &Point| {
        point.label == name || point.settings.iter().any(|(key, value)| key != SEED && same(value))
    };
    if points.iter().any(is) {
        return Ok(());
    }
    let of = |point: &Point| -> Vec<String> {
        point
            .settings
            .iter()
            .filter(|(key, _)| *key != SEED)
            .map(|(_, value)| plain(value))
            .collect()
    };
    let names: std::collections::BTreeSet<String> = points.iter().flat_map(of).collect();
    let near = nearest(&name, names.iter().map(String::as_str));
    let help = near.map(|near| format!("\n  help: did you mean `{near}`?")).unwrap_or_default();
    bail!("{}: report.baseline: expected a point's label, found `{name}`{help}", baseline.origin)
}

/// Whether two values are one: `1` and `1.0` are.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.is_number() && b.is_number() && a.as_f64() == b.as_f64()
}

/// The last part of a key path.
fn short(axis: &str) -> &str {
    axis.rsplit('.').next().unwrap_or(axis)
}

/// A value as a label shows it: `1e-5`, `yarn4`.
fn plain(value: &Value) -> String {
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

fn bisect(search: &Written) -> Result<Bisect> {
    for entry in search.entries("search")? {
        known(entry, &["bisect", "halving"], "search")?;
    }
    let Some(written) = search.get("bisect") else {
        bail!("{}: search: expected `bisect`, found none", search.origin);
    };
    for entry in written.entries("search.bisect")? {
        let keys =
            ["parameter", "low", "high", "resolution", "multiple_of", "probe_layers", "also"];
        known(entry, &keys, "search.bisect")?;
    }
    let value = |key: &str| {
        let value = written.get(key);
        value.with_context(|| {
            format!("{}: search.bisect: expected the key `{key}`, found none", written.origin)
        })
    };
    let whole = |key: &str| whole(value(key)?, &format!("search.bisect.{key}"));
    let optional =
        |key: &str, default: u64| if written.get(key).is_some() { whole(key) } else { Ok(default) };
    let (low, high) = (whole("low")?, whole("high")?);
    let multiple_of = optional("multiple_of", 1)?;
    let resolution = optional("resolution", (low / 8).max(multiple_of))?.max(multiple_of);
    if low >= high {
        bail!("{}: search.bisect: expected low below high, found {low} and {high}", written.origin);
    }
    if low % multiple_of != 0 || high % multiple_of != 0 {
        bail!(
            "{}: search.bisect: expected low and high as multiples of {multiple_of}",
            written.origin
        );
    }
    let parameter = value("parameter")?.text("search.bisect.parameter")?.to_string();
    let probe_layers = written.get("probe_layers").map(|_| whole("probe_layers")).transpose()?;
    let also = written.get("also").map_or(Ok(Vec::new()), |list| also(list, multiple_of))?;
    Ok(Bisect { parameter, low, high, resolution, multiple_of, probe_layers, also })
}

/// The values to try first, rising.
fn also(list: &Written, multiple_of: u64) -> Result<Vec<u64>> {
    const PLACE: &str = "search.bisect.also";
    let mut values = Vec::new();
    for item in list.items(PLACE)? {
        let value = whole(item, PLACE)?;
        if value % multiple_of != 0 {
            bail!("{}: {PLACE}: expected multiples of {multiple_of}, found {value}", item.origin);
        }
        if values.contains(&value) {
            bail!("{}: {PLACE}: expected each value once, found {value} again", item.origin);
        }
        values.push(value);
    }
    values.sort_unstable();
    Ok(values)
}

fn whole(value: &Written, place: &str) -> Result<u64> {
    let number = match &value.node {
        Node::Int(n) => u64::try_from(*n).ok().filter(|n| *n > 0),
        Node::String(text) => text.parse::<fathom_spec::units::Tokens>().ok().map(|t| t.0),
        _ => None,
    };
    number.with_context(|| {
        format!(
            "{}: {place}: expected a whole number, 1 or more, found {}",
            value.origin,
            value.describe()
        )
    })
}
