//! Points with more seeds than their file gives them. What the file says of seeds holds for these too: an `exclude` that names a
//! seed, and the constraints.

use super::axes::{Choice, Condition, key_choice};
use super::lost::replaces;
use super::points::resolve;
use super::{COMMAND_LINE, MOST_POINTS, Plan, Point, SEED, TOP_UP_SEEDS};
use anyhow::{Result, bail};
use fathom_spec::config::written::Written;
use serde_json::Value;
use std::collections::HashMap;

/// How many seeds are tried in vain for a point: no seed may satisfy the constraints.
const MOST_REFUSED: usize = 1000;

impl Plan {
    /// Brings every point to `count` seeds. A point's further seeds are those that other points of the sweep have (so that
    /// they can be compared in pairs), then those that `known` says are done, then the lowest that are free. The answer is how
    /// many points have fewer, as `exclude` and the constraints leave no more.
    ///
    /// # Errors
    ///
    /// When the sweep is a search, or a rule sets the seed; as [`Plan::read`] for the new points; and what `known` says.
    pub fn top_up_seeds(
        &mut self,
        count: usize,
        mut known: impl FnMut(&Point) -> Result<Vec<u64>>,
    ) -> Result<usize> {
        if self.search.is_some() {
            bail!(
                "--top-up-seeds: expected a sweep without a search, found one\n  help: a search tries each value once"
            );
        }
        if count > MOST_POINTS {
            bail!("--top-up-seeds: expected at most {MOST_POINTS}, found {count}");
        }
        let points = self.points.iter().zip(&self.choices);
        let mut set = points.filter_map(|(point, own)| Some((point, self.sets_seed(own)?)));
        if let Some((point, rule)) = set.next() {
            bail!(
                "--top-up-seeds: expected points that may have more than one seed, found `{}`, whose seed `{rule}` sets\n  help: \
                 take the rule away, or leave --top-up-seeds out",
                point.label
            );
        }
        let mut of_sweep: Vec<u64> = self.points.iter().map(|point| point.seed).collect();
        of_sweep.sort_unstable();
        of_sweep.dedup();
        let short = self.add_seeds(count, |point| {
            Ok(of_sweep.iter().copied().chain(known(point)?).chain(0..))
        })?;
        self.spec[COMMAND_LINE][TOP_UP_SEEDS] = count.into();
        Ok(short)
    }

    /// Adds the seeds that `further` names of each point, which an earlier [`Plan::top_up_seeds`] to `count` brought.
    ///
    /// # Errors
    ///
    /// As [`Plan::top_up_seeds`].
    pub fn keep_seeds(
        &mut self,
        count: u64,
        mut further: impl FnMut(&Point) -> Result<Vec<u64>>,
    ) -> Result<()> {
        let before = self.points.len();
        let mut kept = self.clone();
        kept.add_seeds(usize::MAX, |point| Ok(further(point)?.into_iter()))?;
        if kept.points.len() > before {
            kept.spec[COMMAND_LINE][TOP_UP_SEEDS] = count.into();
            *self = kept;
        }
        Ok(())
    }

    /// Brings each point to `most` seeds of those that `candidates` names, as far as they are allowed; the answer is how many
    /// points have fewer then.
    fn add_seeds<I: Iterator<Item = u64>>(
        &mut self,
        most: usize,
        mut candidates: impl FnMut(&Point) -> Result<I>,
    ) -> Result<usize> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for (at, point) in self.points.iter().enumerate() {
            let mut without_seed = point.settings.clone();
            without_seed.shift_remove(SEED);
            let of_group = Value::Object(without_seed).to_string();
            let place = *places.entry(of_group).or_insert(groups.len());
            if place == groups.len() {
                groups.push(Vec::new());
            }
            groups[place].push(at);
        }
        let (mut points, mut choices) = (Vec::new(), Vec::new());
        let mut short = 0;
        for group in groups {
            let mut seeds: Vec<u64> = group.iter().map(|&at| self.points[at].seed).collect();
            points.extend(group.iter().map(|&at| self.points[at].clone()));
            choices.extend(group.iter().map(|&at| self.choices[at].clone()));
            let own = self.choices[group[0]].iter().filter(|choice| choice.axis != SEED);
            let own: Vec<Choice> = own.cloned().collect();
            if self.sets_seed(&own).is_some() {
                continue;
            }
            let mut refused = 0;
            for seed in candidates(&self.points[group[0]])? {
                if seeds.len() >= most || refused == MOST_REFUSED {
                    break;
                }
                if seeds.contains(&seed) {
                    continue;
                }
                let Some((point, with)) = self.with_seed(&own, seed)? else {
                    refused += 1;
                    continue;
                };
                seeds.push(seed);
                points.push(point);
                choices.push(with);
            }
            short += usize::from(seeds.len() < most);
        }
        (self.points, self.choices) = (points, choices);
        Ok(short)
    }

    /// A point with another seed, if it may have that one. An `exclude` without a seed has been asked before: a point that it
    /// matches is there by `include`.
    fn with_seed(&self, own: &[Choice], seed: u64) -> Result<Option<(Point, Vec<Choice>)>> {
        let value = Written::from_json("--top-up-seeds", &seed.into());
        let choices = [own, &[key_choice(SEED, value)]].concat();
        let of_seed = |pattern: &&Vec<Condition>| pattern.iter().any(|one| one.axis == SEED);
        let mut patterns = self.exclude.iter().filter(of_seed);
        if patterns.any(|pattern| pattern.iter().all(|one| one.holds(&choices))) {
            return Ok(None);
        }
        let point = resolve(&self.base, &self.rules, &choices)?;
        let is_broken = self.rules.broken_by(&point, &choices)?.is_some();
        Ok((!is_broken).then_some((point, choices)))
    }

    /// The rule that sets the seed of a point.
    fn sets_seed(&self, choices: &[Choice]) -> Option<String> {
        let mut set = self.rules.set_at(choices, true).into_iter();
        set.find(|(_, key)| replaces(key, SEED)).map(|(rule, _)| rule)
    }
}
