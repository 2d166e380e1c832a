//! What a sweep file says of the course of its runs: which come first, what they may cost together, and what is tried where
//! memory runs out.
//!
//! ```yaml
//! priority: [{ rope: [yarn4, plain] }, -train.seed]   # yarn4 before plain before all others; then the lowest seed
//! budget:   { hours: 8, tokens: 200M, runs: 40 }
//! retry:    { out_of_memory: { set: { train.micro_batch_size: 1, train.gradient_accumulation_steps: 8 } } }
//! ```
//!
//! A fallback is a run of its own, with a hash of its own, and a point of the sweep beside the one that it stands in for. It is
//! made after `out_of_memory` and after nothing else: a run that failed has to be looked at. `set` may be a list, whose
//! entries are tried in turn; `times` says how many of them at most.

use super::plan::{Plan, Point, known, plain, same};
use anyhow::{Context, Result, bail};
use fathom_spec::config::nearest;
use fathom_spec::config::written::{Entry, Node, Origin, Written};
use fathom_spec::units::Tokens;
use serde_json::Value;

/// The keys of a sweep file that are read here.
pub(super) const KEYS: [&str; 3] = ["priority", "budget", "retry"];

/// The axis that a fallback's label and settings name.
pub const FALLBACK: &str = "fallback";

/// The course of a sweep's runs, as written.
#[derive(Debug, Clone, Default)]
pub struct Schedule {
    /// Compared one after the other.
    pub priority: Vec<Rule>,
    pub budget: Budget,
    /// Where the budget of tokens stands.
    tokens_origin: Option<Origin>,
    pub fallbacks: Vec<Fallback>,
}

/// What makes one point come before another: a value of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// An axis, or a key of the configuration.
    pub key: String,
    pub order: Order,
    pub origin: Origin,
}

/// What comes first.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    HighestFirst,
    LowestFirst,
    /// These values or labels in their order; what is not listed comes last.
    Listed(Vec<Value>),
}

/// What the runs of a sweep may take together, whenever they were made. `None` is no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Budget {
    /// Of all runs, added up: two that run side by side take two a second.
    pub seconds: Option<f64>,
    pub tokens: Option<u64>,
    /// Runs that have begun.
    pub runs: Option<u64>,
}

/// What is laid over a point whose run ran out of memory.
#[derive(Debug, Clone)]
pub struct Fallback {
    pub settings: Vec<(String, Written)>,
    origin: Origin,
}

impl Fallback {
    /// As a label shows it: `micro_batch_size:1,gradient_accumulation_steps:8`.
    pub fn shown(&self) -> String {
        let one = |(key, value): &(String, Written)| {
            let value = value.to_json();
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            format!("{}:{value}", key.rsplit('.').next().unwrap_or(key))
        };
        self.settings.iter().map(one).collect::<Vec<_>>().join(",")
    }
}

impl Schedule {
    /// # Errors
    ///
    /// For a mistake in one of the keys: with file, line and key path.
    pub fn read(tree: &Written) -> Result<Schedule> {
        let priority = tree.get("priority").map(priority).transpose()?.unwrap_or_default();
        let budget = tree.get("budget").map(budget).transpose()?.unwrap_or_default();
        let fallbacks = tree.get("retry").map(fallbacks).transpose()?.unwrap_or_default();
        if let Some(retry) = tree.get("retry")
            && tree.get("search.bisect").is_some()
        {
            bail!(
                "{}: retry: expected a sweep without `search.bisect`, found one\n  help: there out of memory is the answer \
                 that is searched for",
                retry.origin
            );
        }
        if let Some(axis) = tree.get("axes").and_then(|axes| axes.get(FALLBACK))
            && !fallbacks.is_empty()
        {
            bail!(
                "{}: axes: expected no axis called `{FALLBACK}` beside `retry`, whose points are called so, found one",
                axis.origin
            );
        }
        if let Some(retry) = tree.get("retry")
            && fallbacks.is_empty()
        {
            bail!("{}: retry: expected the key `out_of_memory`, found none", retry.origin);
        }
        let tokens_origin = tree.get("budget.tokens").map(|tokens| tokens.origin.clone());
        Ok(Schedule { priority, budget, tokens_origin, fallbacks })
    }

    /// What the schedule says of a plan's points has to make sense for each of them.
    ///
    /// # Errors
    ///
    /// When a priority names no axis or key, or a fallback can't be resolved or changes nothing.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        self.priority.iter().try_for_each(|rule| rule.check(plan))?;
        for at in 0..plan.points.len() {
            let mut before = vec![plan.points[at].config.clone()];
            for step in 0..self.fallbacks.len() {
                let fallback = plan.fallback(at, step)?;
                let which = match before.iter().position(|config| *config == fallback.config) {
                    None => {
                        before.push(fallback.config);
                        continue;
                    }
                    Some(0) => format!("`{}` has them already", plan.points[at].label),
                    Some(_) => {
                        format!("`{}` was tried with them before", plan.points[at].label)
                    }
                };
                bail!(
                    "{}: retry.out_of_memory.set: expected settings that change every point, found that {which}\n  help: \
                     `axes` may have them as a point of its own, or a point that has them is left without `retry`",
                    self.fallbacks[step].origin
                );
            }
        }
        self.refuse_too_little(plan)
    }

    /// A budget that allows nothing to begin is no budget.
    fn refuse_too_little(&self, plan: &Plan) -> Result<()> {
        let Some((most, origin)) = self.budget.tokens.zip(self.tokens_origin.as_ref()) else {
            return Ok(());
        };
        let first = |point: &Point| {
            let total = point.config.train.total_tokens.0;
            plan.halving.as_ref().map_or(total, |halving| halving.rungs_of(total)[0])
        };
        match plan.points.iter().map(first).min() {
            Some(least) if least > most => bail!(
                "{origin}: budget.tokens: expected what one run takes at least ({}), found {}",
                Tokens(least),
                Tokens(most)
            ),
            _ => Ok(()),
        }
    }

    /// What a point is compared by: lower comes first.
    pub fn rank(&self, point: &Point) -> Vec<f64> {
        let rank = |rule: &Rule| {
            let value = value_of(point, &rule.key);
            let number = || number_of(point, &rule.key);
            match &rule.order {
                Order::LowestFirst => number().unwrap_or(f64::INFINITY),
                Order::HighestFirst => number().map_or(f64::INFINITY, |x| -x),
                Order::Listed(values) => {
                    let is = |own: &Value| values.iter().position(|value| same(value, own));
                    value.as_ref().and_then(is).unwrap_or(values.len()) as f64
                }
            }
        };
        self.priority.iter().map(rank).collect()
    }
}

impl Rule {
    /// It has to be of an axis or key that points have, and of values among theirs.
    fn check(&self, plan: &Plan) -> Result<()> {
        let Rule { key, order, origin } = self;
        let mut known: Vec<Value> = Vec::new();
        for value in plan.points.iter().filter_map(|point| value_of(point, key)) {
            if !known.iter().any(|other| same(other, &value)) {
                known.push(value);
            }
        }
        if known.is_empty() {
            let flat = plan.points.iter().flat_map(|point| point.config.flatten());
            let mut keys: Vec<String> = flat.map(|(key, _)| key).collect();
            keys.extend(plan.points.iter().flat_map(|point| point.settings.keys().cloned()));
            let near = nearest(key, keys.iter().map(String::as_str));
            let near = near.map(|near| format!("\n  help: did you mean `{near}`?"));
            bail!(
                "{origin}: priority: expected an axis or a key of the configuration that has a value, found `{key}`{}",
                near.unwrap_or_default()
            );
        }
        // Not every value has to be drawn, or satisfy the constraints.
        let declared = declared(&plan.spec["axes"][key.as_str()]);
        known.extend(
            declared
                .into_iter()
                .filter(|value| !known.iter().any(|k| same(k, value)))
                .collect::<Vec<_>>(),
        );
        let shown: Vec<String> = known.iter().map(plain).collect();
        match order {
            Order::Listed(values) => {
                let is_known = |value: &Value| known.iter().any(|other| same(other, value));
                match values.iter().find(|value| !is_known(value)) {
                    None => Ok(()),
                    Some(value) => bail!(
                        "{origin}: priority.{key}: expected values that points have, found `{}`\n  help: there are {}",
                        plain(value),
                        shown.join(", ")
                    ),
                }
            }
            _ if plan.points.iter().any(|point| number_of(point, key).is_some()) => Ok(()),
            _ => bail!(
                "{origin}: priority: expected numbers to compare, found that `{key}` has {}\n  help: write their order: \
                 `{{ {key}: [{}] }}`",
                shown.join(", "),
                shown.join(", ")
            ),
        }
    }
}

/// The value that a point has on an axis, or of a key of its configuration.
fn value_of(point: &Point, key: &str) -> Option<Value> {
    if let Some(value) = point.settings.get(key) {
        return Some(value.clone());
    }
    let flat = point.config.flatten();
    flat.into_iter().find(|(k, value)| k == key && !value.is_null()).map(|(_, value)| value)
}

/// The number that a point has on an axis, or else of a key of its configuration: `10K` is one there.
fn number_of(point: &Point, key: &str) -> Option<f64> {
    let written = point.settings.get(key).and_then(Value::as_f64);
    let flat = || point.config.flatten().into_iter().find(|(k, _)| k == key);
    written.or_else(|| flat()?.1.as_f64())
}

/// The values or labels that an axis of a sweep file has.
fn declared(axis: &Value) -> Vec<Value> {
    let labels = |map: &Value| -> Vec<Value> {
        map.as_object().into_iter().flatten().map(|(label, _)| label.clone().into()).collect()
    };
    let items = |list: &Value| list.as_array().cloned().unwrap_or_default();
    match axis {
        Value::Array(values) => values.clone(),
        Value::Object(map) if map.contains_key("values") => items(&axis["values"]),
        Value::Object(map) if map.contains_key("variants") => labels(&axis["variants"]),
        axis => labels(axis),
    }
}

fn priority(written: &Written) -> Result<Vec<Rule>> {
    let rule = |item: &Written| -> Result<Vec<Rule>> {
        match &item.node {
            Node::String(text) => {
                let (key, order) = match text.strip_prefix('-') {
                    Some(key) => (key, Order::LowestFirst),
                    None => (text.as_str(), Order::HighestFirst),
                };
                Ok(vec![Rule { key: key.trim().to_string(), order, origin: item.origin.clone() }])
            }
            Node::Map(entries) => entries.iter().map(listed).collect(),
            _ => bail!(
                "{}: priority: expected a key (`train.seed`, `-train.seed`) or the order of an axis's values, found {}",
                item.origin,
                item.describe()
            ),
        }
    };
    match &written.node {
        Node::List(items) => Ok(items.iter().map(rule).collect::<Result<Vec<_>>>()?.concat()),
        _ => rule(written),
    }
}

/// `rope: [yarn4, plain]`.
fn listed(entry: &Entry) -> Result<Rule> {
    let place = format!("priority.{}", entry.key);
    let mut values: Vec<Value> = Vec::new();
    for item in entry.value.items(&place)? {
        let value = item.to_json();
        if values.iter().any(|other| same(other, &value)) {
            bail!(
                "{}: {place}: expected each value once, found {} again",
                item.origin,
                item.describe()
            );
        }
        values.push(value);
    }
    if values.is_empty() {
        bail!("{}: {place}: expected values in their order, found none", entry.value.origin);
    }
    let (key, origin) = (entry.key.clone(), entry.key_origin.clone());
    Ok(Rule { key, order: Order::Listed(values), origin })
}

fn budget(written: &Written) -> Result<Budget> {
    for entry in written.entries("budget")? {
        known(entry, &["seconds", "hours", "tokens", "runs"], "budget")?;
    }
    let number = |key: &str| -> Result<Option<f64>> {
        let Some(value) = written.get(key) else { return Ok(None) };
        let number = match &value.node {
            Node::Int(n) => Some(*n as f64),
            Node::Float(x) => Some(*x),
            Node::String(text) if key == "tokens" => {
                text.parse::<Tokens>().ok().map(|tokens| tokens.0 as f64)
            }
            _ => None,
        };
        number.filter(|x| x.is_finite() && *x > 0.0).map(Some).with_context(|| {
            format!(
                "{}: budget.{key}: expected a number above 0, found {}",
                value.origin,
                value.describe()
            )
        })
    };
    let (seconds, hours) = (number("seconds")?, number("hours")?);
    if seconds.is_some() && hours.is_some() {
        bail!("{}: budget: expected `seconds` or `hours`, found both", written.origin);
    }
    let whole = |key: &str| match (number(key)?, written.get(key)) {
        (Some(x), Some(found)) if x.fract() != 0.0 => bail!(
            "{}: budget.{key}: expected a whole number, found {}",
            found.origin,
            found.describe()
        ),
        (number, _) => Ok(number.map(|x| x as u64)),
    };
    Ok(Budget {
        seconds: seconds.or(hours.map(|hours| 3600.0 * hours)),
        tokens: whole("tokens")?,
        runs: whole("runs")?,
    })
}

fn fallbacks(retry: &Written) -> Result<Vec<Fallback>> {
    const PLACE: &str = "retry.out_of_memory";
    for entry in retry.entries("retry")? {
        known(entry, &["out_of_memory"], "retry")?;
    }
    let Some(written) = retry.get("out_of_memory") else { return Ok(Vec::new()) };
    for entry in written.entries(PLACE)? {
        known(entry, &["set", "times"], PLACE)?;
    }
    let set = written.get("set").with_context(|| {
        format!("{}: {PLACE}: expected the key `set`, found none", written.origin)
    })?;
    let maps = match &set.node {
        Node::List(items) => &items[..],
        _ => std::slice::from_ref(set),
    };
    let one = |map: &Written| -> Result<Fallback> {
        let entries = map.entries(&format!("{PLACE}.set"))?;
        let origin = map.origin.clone();
        if entries.is_empty() {
            bail!("{}: {PLACE}.set: expected at least one key, found none", map.origin);
        }
        let settings = entries.iter().map(|e| (e.key.clone(), e.value.clone())).collect();
        Ok(Fallback { settings, origin })
    };
    if maps.is_empty() {
        bail!("{}: {PLACE}.set: expected at least one mapping, found an empty list", set.origin);
    }
    let mut fallbacks: Vec<Fallback> = maps.iter().map(one).collect::<Result<_>>()?;
    if let Some(times) = written.get("times") {
        match times.node {
            Node::Int(n) if n >= 1 && n as usize <= fallbacks.len() => {
                fallbacks.truncate(n as usize);
            }
            _ => bail!(
                "{}: {PLACE}.times: expected 1 to {}, the number of fallbacks, found {}\n  help: a list under `set` has \
                 several, which are tried in turn",
                times.origin,
                fallbacks.len(),
                times.describe()
            ),
        }
    }
    Ok(fallbacks)
}
