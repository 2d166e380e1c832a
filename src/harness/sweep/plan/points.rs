//! Points as they are made of choices: resolved, held to the constraints, told apart.

use super::axes::{Choice, Random};
use super::combine::{Draw, Groups};
use super::lost::{refuse_axes_at_odds, what_runs};
use super::rules::Rules;
use super::{MOST_POINTS, Point, SEED, plain, short};
use crate::sweep::base::Base;
use anyhow::{Result, bail};
use fathom_spec::config::RunConfig;
use fathom_spec::config::written::Written;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The points that come of a sweep's choices, as they are made.
pub(super) struct Made<'a> {
    pub file: &'a str,
    pub base: &'a Base,
    pub rules: &'a Rules,
    pub points: Vec<Point>,
    pub choices: Vec<Vec<Choice>>,
    /// How many each constraint leaves out of those that satisfy the ones before it.
    pub left_out: Vec<usize>,
}

impl<'a> Made<'a> {
    pub(super) fn new(file: &'a str, base: &'a Base, rules: &'a Rules) -> Made<'a> {
        let (points, choices, left_out) = (Vec::new(), Vec::new(), vec![0; rules.constraints()]);
        Made { file, base, rules, points, choices, left_out }
    }

    pub(super) fn add(&mut self, choices: Vec<Choice>) -> Result<()> {
        if self.points.len() == MOST_POINTS {
            bail!("{}: expected at most {MOST_POINTS} points, found more", self.file);
        }
        refuse_axes_at_odds(&choices)?;
        let point = resolve(self.base, self.rules, &choices)?;
        match self.rules.broken_by(&point, &choices)? {
            None => {
                self.points.push(point);
                self.choices.push(choices);
            }
            Some(constraint) => self.left_out[constraint] += 1,
        }
        Ok(())
    }

    /// Takes away the drawn point, if there is one, that is the same run as one that `include` is about to add.
    pub(super) fn drop_draw(&mut self, choices: &[Choice]) -> Result<()> {
        let run = what_runs(&resolve(self.base, self.rules, choices)?.config);
        if let Some(at) = self.points.iter().position(|point| what_runs(&point.config) == run) {
            self.points.remove(at);
            self.choices.remove(at);
        }
        Ok(())
    }

    /// Refuses a sweep without a point.
    pub(super) fn refuse_none(&self, tree: &Written) -> Result<()> {
        if !self.points.is_empty() {
            return Ok(());
        }
        let left_out: usize = self.left_out.iter().sum();
        let key = if left_out == 0 { "exclude" } else { "constraints" };
        let place = tree.get(key).map_or(self.file.to_string(), |key| key.origin.to_string());
        if left_out == 0 {
            bail!(
                "{place}: exclude: expected a point that is not left out, found none\n  help: `exclude` takes away what it names; \
                 the whole grid is too much"
            );
        }
        bail!(
            "{place}: constraints: expected a point that satisfies them, found none of {left_out} that does\n  help: {}",
            self.rules.told(&self.left_out)
        )
    }

    /// Draws until there are as many points as are asked for. Draw `n` is the same however many are asked for, so a larger
    /// `count` adds to the points that were there.
    pub(super) fn draw(&mut self, groups: &Groups, random: &Random) -> Result<()> {
        let mut seen = BTreeSet::new();
        let mut kept = 0;
        let most = 20 * random.count as u64 + 1000;
        for index in 0..most {
            if kept == random.count {
                return Ok(());
            }
            let Draw::Made(choices) = groups.draw(random.seed, index) else { continue };
            let of_draw = groups.with_seeds(&choices);
            let Some(first) = of_draw.first() else { continue };
            let first = resolve(self.base, self.rules, first)?;
            if !seen.insert(first.config.to_json().to_string()) {
                continue;
            }
            let before = self.points.len();
            for choices in of_draw {
                self.add(choices)?;
            }
            kept += usize::from(self.points.len() > before);
        }
        if kept < random.count {
            bail!(
                "{}: random.count: expected {} points that differ, found {kept} in {most} draws ({} left out by the \
                 constraints)\n  help: lower `count`, or give the axes more values",
                random.origin,
                random.count,
                self.left_out.iter().sum::<usize>()
            );
        }
        Ok(())
    }
}

/// The point of some choices.
pub(super) fn resolve(base: &Base, rules: &Rules, choices: &[Choice]) -> Result<Point> {
    let config = RunConfig::from_written(&rules.written(base, choices)?)?;
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
