//! Successive halving, asynchronous (ASHA; Li et al. 2020, <https://arxiv.org/abs/1810.05934>): many points are begun, few
//! are brought to their end.
//!
//! ```yaml
//! search:
//!   halving: { metric: eval_loss.validation, rungs: [100K, 400K, 1600K], keep: 1/3 }
//! ```
//!
//! A point's run is stopped at the first rung and goes on from its checkpoint when it is among the best `keep` of what has
//! reached the rung by then. Nothing is done twice, and a run that stopped at a rung is the same run, by the same hash, as one
//! that went to its end: its schedule is that of the whole length. The end (`train.total_tokens`) is the last rung, written or not.
//!
//! A run is stopped by the worker itself, after the first step that reaches the tokens in the environment variable
//! `FATHOM_STOP_AT_TOKENS`. A command file written from outside would reach a quick run some steps late, and where a run stands
//! would depend on the machine; a setting of the configuration would make another run of it.

use super::plan::{Plan, Point, known};
use crate::store::STEP_SCALARS;
use anyhow::{Context, Result, bail};
use fathom_spec::config::nearest;
use fathom_spec::config::written::{Node, Origin, Written};
use fathom_spec::units::Tokens;
use std::collections::BTreeSet;

/// The search as written.
#[derive(Debug, Clone, PartialEq)]
pub struct Halving {
    /// A scalar of the runs of which less is better, as the store names it: its last value at the rung.
    pub metric: String,
    /// Tokens, rising.
    pub rungs: Vec<u64>,
    /// The share that goes on.
    pub keep: f64,
    /// Where the rungs stand, each.
    origins: Vec<Origin>,
    /// Where the metric stands, or the search that has the default.
    metric_origin: Origin,
}

impl Halving {
    /// Reads `search.halving`, if that is the search.
    ///
    /// # Errors
    ///
    /// For a mistake in it, with file, line and key path.
    pub fn read(tree: &Written) -> Result<Option<Halving>> {
        const PLACE: &str = "search.halving";
        let (Some(search), Some(written)) = (tree.get("search"), tree.get(PLACE)) else {
            return Ok(None);
        };
        if search.get("bisect").is_some() {
            bail!("{}: search: expected `bisect` or `halving`, found both", search.origin);
        }
        for entry in search.entries("search")? {
            known(entry, &["bisect", "halving"], "search")?;
        }
        for entry in written.entries(PLACE)? {
            known(entry, &["metric", "rungs", "keep"], PLACE)?;
        }
        let value = |key: &str| {
            written.get(key).with_context(|| {
                format!("{}: {PLACE}: expected the key `{key}`, found none", written.origin)
            })
        };
        let metric_origin = written.get("metric").unwrap_or(written).origin.clone();
        let metric = match written.get("metric") {
            Some(metric) => metric.text("search.halving.metric")?.to_string(),
            None => "eval_loss.validation".to_string(),
        };
        let list = value("rungs")?;
        let rungs: Vec<u64> =
            list.items("search.halving.rungs")?.iter().map(rung).collect::<Result<_>>()?;
        if rungs.is_empty() || !rungs.is_sorted_by(|a, b| a < b) {
            let found: Vec<String> = rungs.iter().map(|rung| Tokens(*rung).to_string()).collect();
            let found = if found.is_empty() { "none".to_string() } else { found.join(", ") };
            bail!(
                "{}: {PLACE}.rungs: expected numbers of tokens that rise, found {found}",
                list.origin
            );
        }
        let items = list.items("search.halving.rungs")?;
        let origins = items.iter().map(|item| item.origin.clone()).collect();
        let keep = match written.get("keep") {
            Some(keep) => share(keep)?,
            None => 1.0 / 3.0,
        };
        Ok(Some(Halving { metric, rungs, keep, origins, metric_origin }))
    }

    /// # Errors
    ///
    /// When a point has no rung before its end, or writes no checkpoint that it could go on from; when a rung lies past the end
    /// of all points, or two are reached by one step; when a point does not log the metric.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        let longest = plan.points.iter().map(|point| point.config.train.total_tokens).max();
        for (at, (rung, origin)) in self.rungs.iter().zip(&self.origins).enumerate() {
            if at > 0 && longest.is_some_and(|longest| *rung > longest.0) {
                bail!(
                    "{origin}: search.halving.rungs: expected rungs up to the end of the points ({}), found {}\n  help: the end is \
                     the last rung, written or not; train.total_tokens sets it",
                    longest.unwrap_or_default(),
                    Tokens(*rung)
                );
            }
            let steps = |point: &Point| {
                let step = point.config.tokens_per_step();
                let before = at.checked_sub(1).map_or(0, |before| self.rungs[before]);
                (at > 0 && before.div_ceil(step) == rung.div_ceil(step)).then_some((before, step))
            };
            if let Some((before, step)) = plan.points.iter().find_map(steps) {
                bail!(
                    "{origin}: search.halving.rungs: expected rungs a step apart or more ({step} tokens), found {} and {}",
                    Tokens(before),
                    Tokens(*rung)
                );
            }
        }
        for point in &plan.points {
            let train = &point.config.train;
            let (first, total) = (self.rungs[0], train.total_tokens);
            if first >= total.0 {
                bail!(
                    "{}: search.halving.rungs: expected a rung before the end of every point, found {} and `{}`, which ends at \
                     {total}",
                    self.origins[0],
                    Tokens(first),
                    point.label
                );
            }
            if !train.save_checkpoints || point.config.run.probe_layers.is_some() {
                bail!(
                    "{}: search.halving: expected points that write checkpoints, found `{}`, which does not\n  help: a run goes \
                     on from a rung by its checkpoint; leave train.save_checkpoints and run.probe_layers as they are",
                    plan.file,
                    point.label
                );
            }
        }
        plan.points.iter().try_for_each(|point| self.check_metric(point))
    }

    fn check_metric(&self, point: &Point) -> Result<()> {
        let (config, metric) = (&point.config, self.metric.as_str());
        let of_split = config.evaluates().then(|| format!("eval_loss.{}", config.eval.split));
        let known = || STEP_SCALARS.into_iter().chain(of_split.as_deref());
        if known().any(|scalar| scalar == metric) {
            return Ok(());
        }
        let near = nearest(metric, known()).map(|near| format!("did you mean `{near}`? "));
        let none = match of_split {
            Some(_) => "",
            None => {
                "; `eval_loss.SPLIT` where the evaluated split has text (data.splits, eval.split)"
            }
        };
        bail!(
            "{}: search.halving.metric: expected a scalar that every run logs, found `{metric}`, which `{}` does not\n  help: \
             {}known here: {}{none}",
            self.metric_origin,
            point.label,
            near.unwrap_or_default(),
            known().collect::<Vec<_>>().join(", ")
        )
    }

    /// Where a run of `total` tokens is stopped on its way; the last is its end.
    pub fn rungs_of(&self, total: u64) -> Vec<u64> {
        self.rungs.iter().copied().filter(|rung| *rung < total).chain([total]).collect()
    }
}

fn rung(value: &Written) -> Result<u64> {
    let number = match &value.node {
        Node::Int(n) => u64::try_from(*n).ok(),
        Node::String(text) => text.parse::<Tokens>().ok().map(|tokens| tokens.0),
        _ => None,
    };
    number.filter(|n| *n > 0).with_context(|| {
        format!(
            "{}: search.halving.rungs: expected a number of tokens, found {}",
            value.origin,
            value.describe()
        )
    })
}

/// `1/3` or `0.25`.
fn share(value: &Written) -> Result<f64> {
    let share = match &value.node {
        Node::Float(x) => Some(*x),
        Node::String(text) => text
            .split_once('/')
            .and_then(|(a, b)| Some(a.trim().parse::<f64>().ok()? / b.trim().parse::<f64>().ok()?)),
        _ => None,
    };
    share.filter(|share| *share > 0.0 && *share < 1.0).with_context(|| {
        format!(
            "{}: search.halving.keep: expected a share between 0 and 1 (`1/3`), found {}",
            value.origin,
            value.describe()
        )
    })
}

/// Who has reached which rung, and who may go on. It asks for runs and is told how they stand; it never starts one.
#[derive(Debug, Clone)]
pub struct Ladder {
    keep: f64,
    rungs: Vec<Rung>,
    /// The rung that each point is on its way to.
    heading: Vec<Option<usize>>,
}

#[derive(Debug, Clone, Default)]
struct Rung {
    /// The metric and the point, of all that have been here.
    reached: Vec<(f64, usize)>,
    promoted: BTreeSet<usize>,
}

impl Ladder {
    /// All points are on their way to the first of `rungs`; the last rung is the end.
    pub fn new(points: usize, rungs: usize, keep: f64) -> Ladder {
        Ladder { keep, rungs: vec![Rung::default(); rungs], heading: vec![Some(0); points] }
    }

    /// The rung that a point is on its way to; `None` while it waits on one, has come to its end, or is out.
    pub fn heading(&self, point: usize) -> Option<usize> {
        self.heading[point]
    }

    /// A point has come to the rung that it was on its way to. What is no number is the worst there is.
    pub fn reached(&mut self, point: usize, value: f64) {
        let Some(rung) = self.heading[point].take() else { return };
        let value = if value.is_nan() { f64::INFINITY } else { value };
        self.rungs[rung].reached.push((value, point));
    }

    /// A point was seen to have gone past the rung that it came to.
    pub fn went_on(&mut self, point: usize, rung: usize) {
        self.rungs[rung].promoted.insert(point);
        self.heading[point] = Some(rung + 1);
    }

    /// How many have reached a rung, and which of them a point is, the best being 1.
    pub fn standing(&self, point: usize, rung: usize) -> (usize, usize) {
        let reached = &self.rungs[rung].reached;
        let before = reached.iter().position(|(_, other)| *other == point);
        (reached.len(), before.map_or(reached.len(), |before| before + 1))
    }

    /// A point will not come to its rung.
    pub fn gone(&mut self, point: usize) {
        self.heading[point] = None;
    }

    /// The next point that may go on, with the rung that it is then on its way to: from the highest rung that has one. Where
    /// nobody is on the way to a rung any more, its best goes on however few there are: a sweep has a run that ends.
    pub fn promote(&mut self) -> Option<(usize, usize)> {
        let upper = self.rungs.len() - 1;
        let promoted = (0..upper).rev().find_map(|at| {
            let places = self.rungs[at].reached.len() as f64 * self.keep + 1e-9;
            Some((self.rungs[at].best(places as usize)?, at))
        });
        let (point, at) = promoted.or_else(|| {
            (0..upper).find_map(|at| {
                let awaited = self.heading.iter().flatten().any(|heading| *heading <= at);
                (!awaited).then(|| Some((self.rungs[at].best(1)?, at)))?
            })
        })?;
        self.went_on(point, at);
        Some((point, at + 1))
    }
}

impl Rung {
    /// The best of the first `places` that has not gone on.
    fn best(&mut self, places: usize) -> Option<usize> {
        self.reached.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let places = self.reached.iter().take(places).filter(|(value, _)| value.is_finite());
        places.map(|(_, point)| *point).find(|point| !self.promoted.contains(point))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs all that the ladder asks for, `jobs` at a time, the one to end next chosen by `order`; returns rungs climbed.
    fn climb(values: &[f64], rungs: usize, keep: f64, jobs: usize, order: &[usize]) -> Vec<usize> {
        let mut ladder = Ladder::new(values.len(), rungs, keep);
        let mut waiting: Vec<usize> = (0..values.len()).rev().collect();
        let mut running: Vec<usize> = Vec::new();
        let mut climbed = vec![0; values.len()];
        for turn in 0.. {
            while running.len() < jobs.max(1) {
                let Some(point) = waiting.pop() else { break };
                running.push(point);
            }
            if running.is_empty() {
                return climbed;
            }
            assert!(turn < values.len() * rungs, "more work than the grid");
            let point = running.remove(order[turn % order.len()] % running.len());
            let to = ladder.heading(point).unwrap();
            assert_eq!(to, climbed[point], "a rung is climbed twice or passed over");
            climbed[point] += 1;
            // A better point is better at every rung, and each rung lowers the loss.
            ladder.reached(point, values[point] - to as f64);
            while let Some((next, rung)) = ladder.promote() {
                let below = &ladder.rungs[rung - 1];
                let value = |p: usize| below.reached.iter().find(|(_, q)| *q == p).unwrap().0;
                for (other, q) in &below.reached {
                    assert!(
                        below.promoted.contains(q) || *other >= value(next),
                        "{next} is promoted over the better {q}"
                    );
                }
                waiting.push(next);
            }
        }
        unreachable!()
    }

    #[test]
    fn nine_points_end_as_three_and_one() {
        let values: Vec<f64> = (0..9).map(f64::from).collect();
        assert_eq!(climb(&values, 3, 1.0 / 3.0, 9, &[0]), [3, 2, 2, 1, 1, 1, 1, 1, 1]);
        // Two are too few for a third of them, and one goes on all the same.
        assert_eq!(climb(&[2.0, 1.0], 3, 1.0 / 3.0, 1, &[0]), [1, 3]);
        assert_eq!(climb(&[f64::INFINITY, f64::NAN], 3, 0.5, 1, &[0]), [1, 1]);
    }

    proptest! {
        /// In whatever order the runs come in: it ends, does no more than the grid, never lets a worse one pass a better
        /// one, and brings the best of all that it saw to some end.
        #[test]
        fn the_ladder_is_climbed_by_the_best(
            values in proptest::collection::vec(0.0f64..10.0, 1..40), rungs in 2usize..5, eta in 2u32..5, jobs in 1usize..6,
            order in proptest::collection::vec(0usize..8, 1..20),
        ) {
            let climbed = climb(&values, rungs, 1.0 / f64::from(eta), jobs, &order);
            prop_assert!(climbed.iter().all(|rungs| *rungs >= 1), "every point is tried");
            prop_assert!(climbed.contains(&rungs), "one comes to its end");
            let best = (0..values.len()).min_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap();
            prop_assert_eq!(climbed[best], rungs, "the best is never left behind");
        }
    }
}
