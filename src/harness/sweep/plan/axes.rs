//! What a sweep varies: lists, ranges, distributions and named variants, each perhaps only where other axes have given values.

use super::{MOST_POINTS, SEED, known, plain, same};
use crate::sweep::base::Base;
use anyhow::{Result, anyhow, bail};
use fathom_spec::config::nearest;
use fathom_spec::config::written::{Entry, Node, Origin, Written};
use fathom_spec::units::Tokens;
use serde_json::Value;
use std::ops::RangeInclusive;

/// A named way to set some keys.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub axis: String,
    /// A variant's label, or the value itself.
    pub shown: Value,
    pub settings: Vec<(String, Written)>,
}

/// One axis of a sweep.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub name: String,
    pub values: Values,
    /// It is there only where all of these hold.
    pub when: Vec<Condition>,
}

#[derive(Debug, Clone)]
pub(super) enum Values {
    Listed(Vec<Choice>),
    /// Of a random sweep: a value for each draw.
    Drawn(Distribution),
}

/// An axis that has to have one of some values.
#[derive(Debug, Clone)]
pub(super) struct Condition {
    pub axis: String,
    pub values: Vec<Value>,
    /// As it is written.
    list: Value,
    pub origin: Origin,
}

/// `random: {count: 20, seed: 0}`.
#[derive(Debug, Clone)]
pub(super) struct Random {
    pub count: usize,
    pub seed: u64,
    pub origin: Origin,
}

/// Numbers between two ends, which are included.
#[derive(Debug, Clone)]
pub(super) struct Distribution {
    key: String,
    scale: Scale,
    low: f64,
    high: f64,
    multiple_of: Option<f64>,
    /// So many significant digits of evenly spaced values; all of them if not given.
    digits: Option<usize>,
    /// The key takes whole numbers.
    whole: bool,
    origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    /// Evenly by ratio.
    Log,
    /// Evenly by difference.
    Lin,
    /// Whole numbers, each as likely as another.
    Int,
}

/// The most significant digits that tell two numbers apart.
pub(super) const MOST_DIGITS: usize = 17;

/// The keys that make a mapping the definition of an axis, and not its named variants.
const DEFINING: [&str; 6] = ["log", "lin", "int", "values", "variants", "when"];

impl Random {
    pub(super) fn read(written: &Written) -> Result<Random> {
        for entry in written.entries("random")? {
            known(entry, &["count", "seed"], "random")?;
        }
        let Some(count) = whole_number(written, "random", "count", 1..=MOST_POINTS as i64)? else {
            bail!("{}: random: expected the key `count`, found none", written.origin)
        };
        let seed = whole_number(written, "random", "seed", 0..=i64::MAX)?.unwrap_or(0);
        Ok(Random { count: count as usize, seed, origin: written.origin.clone() })
    }
}

/// Every axis, the seeds last.
pub(super) fn read(tree: &Written, random: bool, base: &Base) -> Result<Vec<Axis>> {
    let mut axes = Vec::new();
    if let Some(written) = tree.get("axes") {
        for entry in written.entries("axes")? {
            let axis = axis(entry, random, base)?;
            if matches!(&axis.values, Values::Listed(choices) if choices.is_empty()) {
                bail!(
                    "{}: axes.{}: expected at least one value, found none",
                    entry.key_origin,
                    entry.key
                );
            }
            axes.push(axis);
        }
    }
    if let Some(seeds) = tree.get("seeds") {
        if axes.iter().any(|axis| axis.name == SEED) {
            bail!("{}: seeds: expected `seeds` or the axis `{SEED}`, found both", seeds.origin);
        }
        axes.push(listed(SEED, seed_axis(seeds)?));
    }
    Ok(axes)
}

fn seed_axis(seeds: &Written) -> Result<Vec<Choice>> {
    let values: Vec<Written> = match &seeds.node {
        Node::Int(count) if *count > 0 && *count <= MOST_POINTS as i64 => (0..*count)
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

fn listed(name: &str, choices: Vec<Choice>) -> Axis {
    Axis { name: name.to_string(), values: Values::Listed(choices), when: Vec::new() }
}

pub(super) fn key_choice(key: &str, value: Written) -> Choice {
    Choice {
        axis: key.to_string(),
        shown: value.to_json(),
        settings: vec![(key.to_string(), value)],
    }
}

fn axis(entry: &Entry, random: bool, base: &Base) -> Result<Axis> {
    let (key, value) = (&entry.key, &entry.value);
    match &value.node {
        Node::List(items) => Ok(listed(key, values(key, items))),
        Node::Map(entries) if entries.iter().any(|e| DEFINING.contains(&e.key.as_str())) => {
            defined(key, value, random, base)
        }
        Node::Map(_) => Ok(listed(key, variants(key, value)?)),
        _ => bail!(
            "{}: axes.{key}: expected a list of values, a range (`log`, `lin`, `int`) or named variants, found {}",
            value.origin,
            value.describe()
        ),
    }
}

fn values(key: &str, items: &[Written]) -> Vec<Choice> {
    items.iter().map(|item| key_choice(key, item.clone())).collect()
}

fn variants(key: &str, written: &Written) -> Result<Vec<Choice>> {
    let variant = |variant: &Entry| {
        let place = format!("axes.{key}.{}", variant.key);
        if !matches!(variant.value.node, Node::Map(_)) {
            let near = nearest(&variant.key, DEFINING);
            let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
            bail!(
                "{}: {place}: expected the settings of a named variant, found {}\n  help: {near}an axis has named variants, or is \
                 defined by one of `values`, `variants`, `log`, `lin` and `int`",
                variant.key_origin,
                variant.value.describe()
            );
        }
        let settings = variant.value.entries(&place)?;
        let settings = settings.iter().map(|s| (s.key.clone(), s.value.clone())).collect();
        Ok(Choice { axis: key.to_string(), shown: variant.key.clone().into(), settings })
    };
    written.entries(&format!("axes.{key}"))?.iter().map(variant).collect()
}

/// An axis by the keys of its definition: one of `values`, `variants`, `log`, `lin` and `int`, and when it is there.
fn defined(key: &str, written: &Written, random: bool, base: &Base) -> Result<Axis> {
    let place = format!("axes.{key}");
    let entries = written.entries(&place)?;
    for entry in entries {
        let keys =
            ["values", "variants", "log", "lin", "int", "count", "multiple_of", "digits", "when"];
        known(entry, &keys, &place)?;
    }
    let kinds: Vec<&Entry> =
        entries.iter().filter(|e| DEFINING.contains(&e.key.as_str()) && e.key != "when").collect();
    let [kind] = kinds[..] else {
        let found: Vec<String> = kinds.iter().map(|e| format!("`{}`", e.key)).collect();
        let found = if found.is_empty() { "none".into() } else { found.join(" and ") };
        bail!(
            "{}: {place}: expected one of `values`, `variants`, `log`, `lin` and `int`, found {found}",
            written.origin
        );
    };
    let of_ranges = |key: &str| match written.get(key) {
        Some(value) => bail!(
            "{}: {place}.{key}: expected it beside `log`, `lin` or `int`, found it beside `{}`",
            value.origin,
            kind.key
        ),
        None => Ok(()),
    };
    let values = match kind.key.as_str() {
        "values" => Values::Listed(values(key, kind.value.items(&format!("{place}.values"))?)),
        "variants" => Values::Listed(variants(key, &kind.value)?),
        scale => range(key, written, scale, &kind.value, random, base.takes_whole(key))?,
    };
    if ["values", "variants"].contains(&kind.key.as_str()) {
        of_ranges("count")?;
        of_ranges("multiple_of")?;
        of_ranges("digits")?;
    }
    let when = written.get("when").map(|when| conditions(when, &format!("{place}.when")));
    Ok(Axis { name: key.to_string(), values, when: when.transpose()?.unwrap_or_default() })
}

/// `{rope: yarn4}`, `{rope: [yarn2, yarn4], train.seed: 0}`.
pub(super) fn conditions(written: &Written, place: &str) -> Result<Vec<Condition>> {
    let condition = |entry: &Entry| {
        let values = match &entry.value.node {
            Node::List(items) if items.is_empty() => bail!(
                "{}: {place}: expected values of `{}`, found an empty list",
                entry.value.origin,
                entry.key
            ),
            Node::List(items) => items.iter().map(Written::to_json).collect(),
            _ => vec![entry.value.to_json()],
        };
        // The list itself, where the axis has lists as its values.
        let list = entry.value.to_json();
        Ok(Condition { axis: entry.key.clone(), values, list, origin: entry.key_origin.clone() })
    };
    let conditions: Vec<Condition> =
        written.entries(place)?.iter().map(condition).collect::<Result<_>>()?;
    if conditions.is_empty() {
        bail!("{}: {place}: expected at least one axis with a value, found none", written.origin);
    }
    Ok(conditions)
}

impl Condition {
    pub(super) fn holds(&self, choices: &[Choice]) -> bool {
        choices.iter().any(|choice| choice.axis == self.axis && self.is(choice))
    }

    fn is(&self, choice: &Choice) -> bool {
        self.list == choice.shown || self.values.iter().any(|value| same(value, &choice.shown))
    }

    /// Refuses an axis that is not among `axes`, and a value that it never has (one without choices is drawn).
    pub(super) fn check(&self, axes: &[(&str, Vec<&Choice>)], place: &str) -> Result<()> {
        let Some((_, choices)) = axes.iter().find(|(name, _)| *name == self.axis) else {
            let near = nearest(&self.axis, axes.iter().map(|(name, _)| *name));
            let near = near.map(|near| format!("\n  help: did you mean `{near}`?"));
            bail!(
                "{}: {place}: expected an axis that stands before, found `{}`{}",
                self.origin,
                self.axis,
                near.unwrap_or_default()
            );
        };
        let never = |value: &&Value| {
            !choices.is_empty() && !choices.iter().any(|choice| same(value, &choice.shown))
        };
        let is_whole = choices.iter().any(|choice| self.list == choice.shown);
        if let Some(value) = self.values.iter().find(|value| !is_whole && never(value)) {
            let labels: Vec<String> = choices.iter().map(|choice| plain(&choice.shown)).collect();
            bail!(
                "{}: {place}: expected a value of the axis `{}`, found `{}`\n  help: its values: {}",
                self.origin,
                self.axis,
                plain(value),
                labels.join(", ")
            );
        }
        Ok(())
    }
}

/// `{log: [1e-5, 1e-3], count: 5}`: both ends included, evenly spaced by ratio (`log`) or by difference (`lin`). Without a
/// count, `int` is every whole number, and the others are distributions to draw from. `whole`: the key takes whole numbers.
fn range(
    key: &str,
    written: &Written,
    scale: &str,
    ends: &Written,
    random: bool,
    whole: bool,
) -> Result<Values> {
    let place = format!("axes.{key}");
    let scale = match scale {
        "log" => Scale::Log,
        "lin" => Scale::Lin,
        _ => Scale::Int,
    };
    let ends =
        ends.items(&place)?.iter().map(|w| number(w, &place)).collect::<Result<Vec<f64>>>()?;
    let [low, high] = ends[..] else {
        bail!("{}: {place}: expected two ends, found {}", written.origin, ends.len())
    };
    if low >= high {
        bail!(
            "{}: {place}: expected the lower end before the higher one, found {low} and {high}",
            written.origin
        );
    }
    if scale == Scale::Log && (low <= 0.0 || high <= 0.0) {
        bail!(
            "{}: {place}: expected ends above 0 for `log`, found {low} and {high}",
            written.origin
        );
    }
    let multiple_of = match written.get("multiple_of") {
        Some(value) => Some(number(value, &format!("{place}.multiple_of"))?),
        None => None,
    };
    let digits = whole_number(written, &place, "digits", 1..=MOST_DIGITS as i64)?;
    let digits = digits.map(|digits| digits as usize);
    if digits.is_some() && (written.get("count").is_none() || multiple_of.is_some()) {
        bail!(
            "{}: {place}.digits: expected it beside `count` and without `multiple_of`, found it otherwise",
            written.origin
        );
    }
    let (key, origin) = (key.to_string(), written.origin.clone());
    let range = Distribution { key, scale, low, high, multiple_of, digits, whole, origin };
    match whole_number(written, &place, "count", 2..=MOST_POINTS as i64)? {
        Some(_) if scale == Scale::Int => bail!(
            "{}: {place}.count: expected none beside `int`, which is every whole number\n  help: `multiple_of` makes them fewer",
            range.origin
        ),
        Some(count) => Ok(Values::Listed(range.spaced(count as usize)?)),
        None if random => {
            range.check()?;
            Ok(Values::Drawn(range))
        }
        None if scale == Scale::Int => Ok(Values::Listed(range.every()?)),
        None => bail!(
            "{}: {place}.count: expected a whole number, 2 or more, found none\n  help: without a count it is a distribution, \
             for `random: {{ count: 20 }}` to draw from",
            range.origin
        ),
    }
}

/// The whole number of a key, within `range`; `None` where the key is not there.
fn whole_number(
    written: &Written,
    place: &str,
    key: &str,
    range: RangeInclusive<i64>,
) -> Result<Option<u64>> {
    let Some(found) = written.get(key) else { return Ok(None) };
    match found.node {
        Node::Int(n) if range.contains(&n) => Ok(Some(n as u64)),
        _ => bail!(
            "{}: {place}.{key}: expected a whole number from {} to {}, found {}",
            found.origin,
            range.start(),
            range.end(),
            found.describe()
        ),
    }
}

fn number(written: &Written, place: &str) -> Result<f64> {
    let found = match written.node {
        Node::Int(n) => Some(n as f64),
        Node::Float(x) => Some(x),
        Node::String(ref text) => text.parse::<Tokens>().ok().map(|tokens| tokens.0 as f64),
        _ => None,
    };
    let found = found.filter(|x| x.is_finite());
    let expected =
        || anyhow!("{}: {place}: expected a number, found {}", written.origin, written.describe());
    found.ok_or_else(expected)
}

impl Distribution {
    /// Evenly spaced values, both ends included as they are written.
    fn spaced(&self, count: usize) -> Result<Vec<Choice>> {
        self.check()?;
        let places = (0..count).map(|index| index as f64 / (count - 1) as f64);
        let value = |t: f64| match (t, self.multiple_of) {
            (t, Some(_)) => self.rounded(self.at(t)),
            (0.0, None) => self.low,
            (1.0, None) => self.high,
            (t, None) => {
                let x = self.at(t);
                let x = self.digits.map_or_else(|| without_noise(x), |n| rounded_to(n, x));
                if self.whole { x.round() } else { x }
            }
        };
        let values: Vec<f64> = places.map(value).collect();
        if !values.is_sorted_by(|a, b| a < b) {
            let mut distinct = values;
            distinct.dedup();
            let help = match (self.multiple_of, self.digits) {
                (Some(_), _) => ", or take `multiple_of` smaller",
                (None, Some(_)) => ", or have more `digits`",
                (None, None) if self.whole => {
                    "; this key takes whole numbers, and `int` is all of them"
                }
                (None, None) => "",
            };
            bail!(
                "{}: axes.{}.count: expected so many values that differ, found {} of {count}\n  help: lower `count`{help}",
                self.origin,
                self.key,
                distinct.len()
            );
        }
        let ends_whole = self.low.fract() == 0.0 && self.high.fract() == 0.0;
        let whole = self.whole || self.multiple_of.is_some();
        let whole = whole || ends_whole && self.scale == Scale::Lin;
        Ok(values.into_iter().map(|x| self.choice(x, whole)).collect())
    }

    /// Every whole number, or every multiple.
    fn every(&self) -> Result<Vec<Choice>> {
        self.check()?;
        let count = self.multiples();
        if count > MOST_POINTS as f64 {
            bail!(
                "{}: axes.{}: expected at most {MOST_POINTS} values, found {count}",
                self.origin,
                self.key
            );
        }
        Ok((0..count as u64).map(|n| self.choice(self.multiple(n as f64), true)).collect())
    }

    /// The value at `u`, from 0 up to but without 1.
    pub(super) fn draw(&self, u: f64) -> Choice {
        match (self.scale, self.multiple_of) {
            (Scale::Int, _) => {
                let last = self.multiples() - 1.0;
                self.choice(self.multiple((u * (last + 1.0)).floor().min(last)), true)
            }
            (_, Some(_)) => self.choice(self.rounded(self.at(u)), true),
            (_, None) => {
                let x = without_noise(self.short(self.at(u)).clamp(self.low, self.high));
                self.choice(if self.whole { x.round() } else { x }, self.whole)
            }
        }
    }

    /// As few digits as a person would write, and enough to tell a thousand values of the range apart.
    fn short(&self, x: f64) -> f64 {
        if self.scale == Scale::Log && self.high > 2.0 * self.low {
            return rounded_to(3, x);
        }
        let decimals = 3.0 - (self.high - self.low).log10().floor();
        let decimals = decimals.clamp(0.0, 300.0) as usize;
        format!("{x:.decimals$}").parse().expect("a printed number is a number")
    }

    fn at(&self, t: f64) -> f64 {
        let (low, high) = (self.low, self.high);
        match self.scale {
            Scale::Log => (low.ln() * (1.0 - t) + high.ln() * t).exp(),
            Scale::Lin | Scale::Int => low * (1.0 - t) + high * t,
        }
    }

    /// Refuses what nothing can be drawn from.
    fn check(&self) -> Result<()> {
        let place = format!("{}: axes.{}", self.origin, self.key);
        if self.scale == Scale::Int
            && [self.low, self.high, self.step()].iter().any(|x| x.fract() != 0.0 || x.abs() > 9e15)
        {
            bail!(
                "{place}: expected whole numbers beside `int`, found {} and {}",
                self.low,
                self.high
            );
        }
        let ends = [self.low, self.high];
        if self.whole && self.multiple_of.is_none() && ends.iter().any(|x| x.fract() != 0.0) {
            bail!(
                "{place}: expected whole ends, as the key takes whole numbers, found {} and {}\n  help: `multiple_of: 1` takes \
                 those between",
                self.low,
                self.high
            );
        }
        if self.step() <= 0.0 {
            bail!("{place}.multiple_of: expected more than 0, found {}", self.step());
        }
        if !(1.0..1e16).contains(&self.multiples())
            && (self.scale == Scale::Int || self.multiple_of.is_some())
        {
            bail!(
                "{place}.multiple_of: expected some multiples of {} from {} to {}, found {}",
                self.step(),
                self.low,
                self.high,
                if self.multiples() < 1.0 { "none" } else { "too many" }
            );
        }
        Ok(())
    }

    fn step(&self) -> f64 {
        self.multiple_of.unwrap_or(1.0)
    }

    fn first(&self) -> f64 {
        (self.low / self.step()).ceil()
    }

    fn last(&self) -> f64 {
        (self.high / self.step()).floor()
    }

    /// How many multiples of the step lie between the ends.
    fn multiples(&self) -> f64 {
        self.last() - self.first() + 1.0
    }

    /// The `n`-th of them.
    fn multiple(&self, n: f64) -> f64 {
        (self.first() + n) * self.step()
    }

    fn rounded(&self, x: f64) -> f64 {
        without_noise((x / self.step()).round().clamp(self.first(), self.last()) * self.step())
    }

    fn choice(&self, x: f64, maybe_whole: bool) -> Choice {
        let node = match maybe_whole && x.fract() == 0.0 && x.abs() < 9e15 {
            true => Node::Int(x as i64),
            false => Node::Float(x),
        };
        key_choice(&self.key, Written { node, origin: self.origin.clone() })
    }
}

/// 3 * 0.05 is not 0.15, nor is the third of four values from 1 to 8 by ratio 4, until it is written with fewer digits than it has.
/// As many as a float can tell apart everywhere, less the last two or three; whole numbers stay what they are.
fn without_noise(x: f64) -> f64 {
    if x.fract() == 0.0 { x } else { rounded_to(13, x) }
}

/// So many significant digits: with three, what a person would have written.
fn rounded_to(digits: usize, x: f64) -> f64 {
    format!("{x:.*e}", digits - 1).parse().expect("a printed number is a number")
}
