//! From a sweep file to points: every one resolved to a complete `RunConfig` before the first run starts.

use super::base::Base;
use super::halving::Halving;
use super::schedule::{self, FALLBACK, Schedule};
use anyhow::{Context, Result, anyhow, bail};
use fathom_spec::config::written::{Entry, Node, Written};
use fathom_spec::config::{RunConfig, nearest};
use serde_json::{Map, Value, json};
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
    /// What all points share.
    base: Base,
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

/// A named way to set some keys.
#[derive(Debug, Clone)]
struct Choice {
    axis: String,
    /// A variant's label, or the value itself.
    shown: Value,
    settings: Vec<(String, Written)>,
}

const KEYS: [&str; 11] = [
    "name", "base", "set", "axes", "zip", "include", "exclude", "seeds", "search", "eval", "report",
];

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
        let file = path.display().to_string();
        let tree = Written::parse(&file, &text)?;
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
        let axes = axes(&tree)?;
        let halving = Halving::read(&tree)?;
        let search = tree.get("search").filter(|_| halving.is_none());
        let search = search.map(bisect).transpose()?;
        let schedule = Schedule::read(&tree)?;
        let choices = combine(&tree, axes)?;
        refuse_beside_search(&tree, search.as_ref(), &choices)?;
        let swept = choices.iter().flatten().flat_map(|c| c.settings.iter().map(|(key, _)| key));
        refuse_override(&file, overrides, swept.chain(search.iter().map(|s| &s.parameter)))?;
        let points: Vec<Point> =
            choices.iter().map(|choices| resolve(&base, choices)).collect::<Result<_>>()?;
        refuse_duplicates(&file, &points)?;
        if let Some(report) = tree.get("report") {
            check_report(report, &points)?;
        }
        let mut spec = tree.to_json();
        if !overrides.is_empty() {
            let settings = overrides.iter().map(|(key, value)| (key.clone(), value.to_json()));
            spec[COMMAND_LINE] = Value::Object(settings.collect());
        }
        let question = question(&text);
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
            base,
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
        resolve(&self.base, &choices)
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
        resolve(&self.base, &choices)
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
    let lines: Vec<&str> =
        lines.take_while(|line| !line.starts_with("fathom ")).filter(|l| !l.is_empty()).collect();
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

/// Every axis with its choices, the seeds last.
fn axes(tree: &Written) -> Result<Vec<Vec<Choice>>> {
    let mut axes = Vec::new();
    if let Some(written) = tree.get("axes") {
        for entry in written.entries("axes")? {
            let choices = axis(entry)?;
            if choices.is_empty() {
                bail!(
                    "{}: axes.{}: expected at least one value, found none",
                    entry.key_origin,
                    entry.key
                );
            }
            axes.push(choices);
        }
    }
    if let Some(seeds) = tree.get("seeds") {
        if axes.iter().any(|choices| choices[0].axis == SEED) {
            bail!("{}: seeds: expected `seeds` or the axis `{SEED}`, found both", seeds.origin);
        }
        axes.push(seed_axis(seeds)?);
    }
    Ok(axes)
}

fn seed_axis(seeds: &Written) -> Result<Vec<Choice>> {
    let values: Vec<Written> = match &seeds.node {
        Node::Int(count) if *count > 0 => (0..*count)
            .map(|seed| Written { node: Node::Int(seed), origin: seeds.origin.clone() })
            .collect(),
        Node::List(items) if !items.is_empty() => items.clone(),
        _ => bail!(
            "{}: seeds: expected a number of seeds or a list of them, found {}",
            seeds.origin,
            seeds.describe()
        ),
    };
    Ok(values.into_iter().map(|value| key_choice(SEED, value)).collect())
}

fn axis(entry: &Entry) -> Result<Vec<Choice>> {
    let (key, value) = (&entry.key, &entry.value);
    match &value.node {
        Node::List(items) => Ok(items.iter().map(|item| key_choice(key, item.clone())).collect()),
        Node::Map(entries) if entries.iter().any(|e| e.key == "log" || e.key == "lin") => {
            range(key, value)
        }
        Node::Map(entries) => entries
            .iter()
            .map(|variant| {
                let settings = variant.value.entries(&format!("axes.{key}.{}", variant.key))?;
                let settings = settings.iter().map(|s| (s.key.clone(), s.value.clone())).collect();
                Ok(Choice { axis: key.clone(), shown: variant.key.clone().into(), settings })
            })
            .collect(),
        _ => bail!(
            "{}: axes.{key}: expected a list of values, a range (`log`, `lin`) or named variants, found {}",
            value.origin,
            value.describe()
        ),
    }
}

fn key_choice(key: &str, value: Written) -> Choice {
    Choice {
        axis: key.to_string(),
        shown: value.to_json(),
        settings: vec![(key.to_string(), value)],
    }
}

/// `{log: [1e-5, 1e-3], count: 5}`: both ends included, evenly spaced by ratio (`log`) or by difference (`lin`).
fn range(key: &str, value: &Written) -> Result<Vec<Choice>> {
    let place = format!("axes.{key}");
    for entry in value.entries(&place)? {
        known(entry, &["log", "lin", "count"], &place)?;
    }
    let (log, ends) = match (value.get("log"), value.get("lin")) {
        (Some(ends), None) => (true, ends),
        (None, Some(ends)) => (false, ends),
        _ => bail!("{}: {place}: expected `log` or `lin`, found both", value.origin),
    };
    let number = |w: &Written| match w.node {
        Node::Int(n) => Ok(n as f64),
        Node::Float(x) => Ok(x),
        _ => Err(anyhow!("{}: {place}: expected a number, found {}", w.origin, w.describe())),
    };
    let ends = ends.items(&place)?.iter().map(number).collect::<Result<Vec<f64>>>()?;
    let [low, high] = ends[..] else {
        bail!("{}: {place}: expected two ends, found {}", value.origin, ends.len())
    };
    let count = match value.get("count").map(|c| &c.node) {
        Some(Node::Int(count)) if *count >= 2 => *count as usize,
        _ => bail!("{}: {place}.count: expected a whole number, 2 or more", value.origin),
    };
    if log && (low <= 0.0 || high <= 0.0) {
        bail!("{}: {place}: expected ends above 0 for `log`, found {low} and {high}", value.origin);
    }
    let at = |i: usize| {
        let t = i as f64 / (count - 1) as f64;
        let x = if log {
            (low.ln() * (1.0 - t) + high.ln() * t).exp()
        } else {
            low * (1.0 - t) + high * t
        };
        // Three significant digits: what a person would have written.
        format!("{x:.2e}").parse::<f64>().expect("a printed number is a number")
    };
    let whole = low.fract() == 0.0 && high.fract() == 0.0 && !log;
    Ok((0..count)
        .map(|i| {
            let node = if whole && at(i).fract() == 0.0 {
                Node::Int(at(i) as i64)
            } else {
                Node::Float(at(i))
            };
            key_choice(key, Written { node, origin: value.origin.clone() })
        })
        .collect())
}

/// All combinations: axes multiply, zipped ones advance together, `exclude` takes away, `include` adds.
fn combine(tree: &Written, axes: Vec<Vec<Choice>>) -> Result<Vec<Vec<Choice>>> {
    let names: Vec<String> = axes.iter().map(|choices| choices[0].axis.clone()).collect();
    let all: Vec<Choice> = axes.iter().flatten().cloned().collect();
    let seeds: Vec<Choice> = all.iter().filter(|c| c.axis == SEED).cloned().collect();
    let mut groups = zipped(tree, axes)?;
    // The seed varies fastest.
    if let Some(at) = groups.iter().position(|group| group[0].iter().any(|c| c.axis == SEED)) {
        let seeds = groups.remove(at);
        groups.push(seeds);
    }
    let mut combinations: Vec<Vec<Choice>> = vec![Vec::new()];
    for group in groups {
        combinations = combinations
            .iter()
            .flat_map(|before| {
                group.iter().map(|choices| [before.clone(), choices.clone()].concat())
            })
            .collect();
    }
    if let Some(exclude) = tree.get("exclude") {
        for pattern in exclude.items("exclude")? {
            let entries = pattern.entries("exclude")?;
            for entry in entries {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                known(entry, &names, "exclude")?;
            }
            let before = combinations.len();
            combinations.retain(|choices| !entries.iter().all(|e| chosen(choices, e)));
            if combinations.len() == before {
                bail!(
                    "{}: exclude: expected a pattern that some point matches, found none that does",
                    pattern.origin
                );
            }
        }
    }
    if let Some(include) = tree.get("include") {
        for extra in include.items("include")? {
            let entries = extra.entries("include")?;
            let choices: Vec<Choice> =
                entries.iter().map(|entry| included(entry, &all)).collect::<Result<_>>()?;
            if seeds.is_empty() || choices.iter().any(|c| c.axis == SEED) {
                combinations.push(choices);
            } else {
                combinations.extend(
                    seeds.iter().map(|seed| [choices.clone(), vec![seed.clone()]].concat()),
                );
            }
        }
    }
    Ok(combinations)
}

/// What an entry of `include` chooses: a named variant of an axis by its label, else a value of a key path.
fn included(entry: &Entry, all: &[Choice]) -> Result<Choice> {
    let shown = entry.value.to_json();
    let axis: Vec<&Choice> = all.iter().filter(|c| c.axis == entry.key).collect();
    if let Some(choice) = axis.iter().find(|c| c.shown == shown) {
        return Ok((*choice).clone());
    }
    // An axis of named variants sets other keys than its own name.
    let named = axis.iter().any(|c| !c.settings.iter().any(|(key, _)| *key == entry.key));
    if !named {
        return Ok(key_choice(&entry.key, entry.value.clone()));
    }
    let labels: Vec<String> = axis.iter().map(|c| plain(&c.shown)).collect();
    let near = nearest(&plain(&shown), labels.iter().map(String::as_str));
    let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    bail!(
        "{}: include: expected a label of the axis `{}`, found {}\n  help: {near}its labels: {}",
        entry.value.origin,
        entry.key,
        entry.value.describe(),
        labels.join(", ")
    )
}

fn chosen(choices: &[Choice], entry: &Entry) -> bool {
    choices.iter().any(|c| c.axis == entry.key && c.shown == entry.value.to_json())
}

/// The axes as groups; a zipped group's choices are those of its axes side by side.
fn zipped(tree: &Written, mut axes: Vec<Vec<Choice>>) -> Result<Vec<Vec<Vec<Choice>>>> {
    let mut groups = Vec::new();
    let Some(zip) = tree.get("zip") else {
        return Ok(axes
            .into_iter()
            .map(|axis| axis.into_iter().map(|c| vec![c]).collect())
            .collect());
    };
    let items = zip.items("zip")?;
    // One group may be written without the outer list.
    let lists: Vec<&Written> = if items.iter().all(|item| matches!(item.node, Node::List(_))) {
        items.iter().collect()
    } else {
        vec![zip]
    };
    for list in lists {
        let mut members: Vec<Vec<Choice>> = Vec::new();
        for name in list.items("zip")? {
            let text = name.text("zip")?;
            let at = axes.iter().position(|axis| axis[0].axis == text).ok_or_else(|| {
                let near = nearest(text, axes.iter().map(|axis| axis[0].axis.as_str()));
                let help =
                    near.map(|n| format!("\n  help: did you mean `{n}`?")).unwrap_or_default();
                anyhow!("{}: zip: expected the name of an axis, found `{text}`{help}", name.origin)
            })?;
            members.push(axes.remove(at));
        }
        let count = members.first().map_or(0, Vec::len);
        if let Some(other) = members.iter().find(|member| member.len() != count) {
            bail!(
                "{}: zip: expected axes of one length, found {count} values of `{}` and {} of `{}`",
                list.origin,
                members[0][0].axis,
                other.len(),
                other[0].axis
            );
        }
        groups.push((0..count).map(|i| members.iter().map(|m| m[i].clone()).collect()).collect());
    }
    groups.extend(axes.into_iter().map(|axis| axis.into_iter().map(|c| vec![c]).collect()));
    Ok(groups)
}

fn resolve(base: &Base, choices: &[Choice]) -> Result<Point> {
    let settings = choices.iter().flat_map(|choice| {
        choice.settings.iter().map(|(key, value)| (choice.axis.as_str(), key.as_str(), value))
    });
    let config = RunConfig::from_written(&base.with(settings)?)?;
    let label: Vec<String> = choices
        .iter()
        .filter(|choice| choice.axis != SEED)
        .map(|choice| format!("{}={}", short(&choice.axis), plain(&choice.shown)))
        .collect();
    let label = if label.is_empty() { "base".to_string() } else { label.join(" ") };
    let mut settings: Map<String, Value> =
        choices.iter().map(|choice| (choice.axis.clone(), choice.shown.clone())).collect();
    settings.insert(SEED.to_string(), json!(config.train.seed));
    Ok(Point { label, seed: config.train.seed, settings, config })
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

fn refuse_duplicates(file: &str, points: &[Point]) -> Result<()> {
    for (index, point) in points.iter().enumerate() {
        if let Some(twin) = points[..index].iter().find(|other| other.config == point.config) {
            bail!(
                "{file}: expected points that differ, found two that are the same run: `{}` and `{}`, seed {}",
                twin.label,
                point.label,
                point.seed
            );
        }
    }
    Ok(())
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
