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

use super::plan::{Plan, Point, known};
use anyhow::{Context, Result, bail};
use fathom_spec::config::written::{Node, Written};
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
    pub fallbacks: Vec<Fallback>,
}

/// What makes one point come before another.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// The value of an axis or key: the highest first, or the lowest.
    Value { key: String, lowest_first: bool },
    /// The values or labels of an axis, the first first; what is not listed comes last.
    Order { axis: String, values: Vec<Value> },
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
        Ok(Schedule { priority, budget, fallbacks })
    }

    /// What the schedule says of a plan's points has to make sense for each of them.
    ///
    /// # Errors
    ///
    /// When a priority names no axis or key, or a fallback can't be resolved or changes nothing.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        for rule in &self.priority {
            let (Rule::Value { key, .. } | Rule::Order { axis: key, .. }) = rule;
            if !plan.points.iter().any(|point| value_of(point, key).is_some()) {
                bail!(
                    "{}: priority: expected an axis or a key of the configuration that has a value, found `{key}`",
                    plan.file
                );
            }
        }
        for at in 0..plan.points.len() {
            for step in 0..self.fallbacks.len() {
                let fallback = plan.fallback(at, step)?;
                if fallback.config == plan.points[at].config {
                    bail!(
                        "{}: retry.out_of_memory.set: expected settings that change every point, found that `{}` has them \
                         already",
                        plan.file,
                        plan.points[at].label
                    );
                }
            }
        }
        Ok(())
    }

    /// What a point is compared by: lower comes first.
    pub fn rank(&self, point: &Point) -> Vec<f64> {
        let rank = |rule: &Rule| match rule {
            Rule::Value { key, lowest_first } => {
                let value = value_of(point, key).and_then(|value| value.as_f64());
                value.map_or(f64::INFINITY, |x| if *lowest_first { x } else { -x })
            }
            Rule::Order { axis, values } => {
                let own = value_of(point, axis);
                let at = own.and_then(|own| values.iter().position(|value| same(value, &own)));
                at.unwrap_or(values.len()) as f64
            }
        };
        self.priority.iter().map(rank).collect()
    }
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b)
}

/// The value that a point has on an axis, or of a key of its configuration.
fn value_of(point: &Point, key: &str) -> Option<Value> {
    if let Some(value) = point.settings.get(key) {
        return Some(value.clone());
    }
    let flat = point.config.flatten();
    flat.into_iter().find(|(k, value)| k == key && !value.is_null()).map(|(_, value)| value)
}

fn priority(written: &Written) -> Result<Vec<Rule>> {
    let rule = |item: &Written| -> Result<Vec<Rule>> {
        match &item.node {
            Node::String(text) => {
                let (key, lowest_first) = match text.strip_prefix('-') {
                    Some(key) => (key, true),
                    None => (text.as_str(), false),
                };
                Ok(vec![Rule::Value { key: key.trim().to_string(), lowest_first }])
            }
            Node::Map(entries) => entries
                .iter()
                .map(|entry| {
                    let values = entry.value.items(&format!("priority.{}", entry.key))?;
                    let values = values.iter().map(Written::to_json).collect();
                    Ok(Rule::Order { axis: entry.key.clone(), values })
                })
                .collect(),
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

fn budget(written: &Written) -> Result<Budget> {
    for entry in written.entries("budget")? {
        known(entry, &["seconds", "hours", "tokens", "runs"], "budget")?;
    }
    let number = |key: &str| -> Result<Option<f64>> {
        let Some(value) = written.get(key) else { return Ok(None) };
        let number = match &value.node {
            Node::Int(n) => Some(*n as f64),
            Node::Float(x) => Some(*x),
            Node::String(text) => text.parse::<Tokens>().ok().map(|tokens| tokens.0 as f64),
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
    let whole = |key: &str| Ok::<_, anyhow::Error>(number(key)?.map(|x| x as u64));
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
        if entries.is_empty() {
            bail!("{}: {PLACE}.set: expected at least one key, found none", map.origin);
        }
        let settings = entries.iter().map(|e| (e.key.clone(), e.value.clone())).collect();
        Ok(Fallback { settings })
    };
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
