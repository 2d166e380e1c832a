//! What a sweep shows: its labels, the measure they are judged by, which is best, and what can't be told from it.

use super::difference::{Difference, Pairs};
use super::input::{Comparison, Perplexity, Point, Run};
use super::labels::{Label, common_length, find_labels, labels, labels_by_length};
use super::markdown::in_code;
use super::statistics::{Interval, mean, paired_differences, t_interval};
use fathom_spec::config::RANDOM_CORPUS;
use rayon::prelude::*;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// A sweep, judged.
pub struct Summary<'a> {
    pub comparison: &'a Comparison,
    /// What heads the labels: the names of the axes, or `point`.
    pub column: String,
    /// In the order of the plan.
    pub labels: Vec<Label<'a>>,
    /// Index into `labels`.
    pub baseline: usize,
    /// The evaluation methods that finished runs have, the main one first.
    pub methods: Vec<String>,
    /// The split that perplexity is taken on.
    pub split: String,
    pub measure: Measure,
    /// Whether all runs trained on random tokens and evaluated nothing: their losses say nothing.
    pub is_of_random_tokens: bool,
    /// Whether runs shared a device at the same time, so that their times say how they got in each other's way.
    pub shared_device: bool,
    /// Settings of the sweep file's `report` that could not be followed.
    pub notes: Vec<String>,
}

/// What decides which label is best.
#[derive(Debug, Clone, PartialEq)]
pub enum Measure {
    /// NLL, or perplexity, at one context length: low is good.
    Perplexity { method: String, context_length: i64 },
    /// The last value of a metric that is a loss: low is good.
    Loss { key: String },
    /// Bytes at the highest point, where the tokens are random: low is good.
    PeakMemory,
    /// The largest value of a parameter at which a run still finishes.
    Ceiling { parameter: String },
}

/// A value of each seed, and their mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    pub by_seed: BTreeMap<i64, f64>,
    /// NaN when one of the values is.
    pub mean: f64,
    /// Over seeds; `None` with fewer than two.
    pub interval: Option<Interval>,
}

/// What a search has found in one case: between which values of its parameter the ceiling lies.
pub struct Ceiling<'a> {
    /// The settings beside the parameter; empty where there are none.
    pub name: String,
    pub largest: Option<f64>,
    /// The smallest value above `largest` at which a run did not finish, with one such run.
    pub smallest_not: Option<(f64, &'a Point)>,
    /// Values below `largest` at which a run did not finish all the same.
    pub exceptions: Vec<f64>,
    /// Runs that worked only some layers of the model.
    pub probes: usize,
    /// Whether a run of the whole model finished at `largest`.
    pub is_confirmed: bool,
    pub points: Vec<(f64, &'a Point)>,
}

impl Ceiling<'_> {
    /// The case, or what stands for the only one.
    pub fn name_or<'n>(&'n self, only: &'n str) -> &'n str {
        if self.name.is_empty() { only } else { &self.name }
    }
}

impl Point {
    pub fn status(&self) -> &str {
        self.run.as_ref().map_or("planned", |run| &run.status)
    }

    /// The run, when it did all that it was asked.
    pub fn finished(&self) -> Option<&Run> {
        self.run.as_ref().filter(|run| run.status == "finished")
    }

    /// Whether the run has still to be made, or to end.
    pub fn is_open(&self) -> bool {
        matches!(self.status(), "planned" | "running")
    }

    /// Whether its end says something of its settings: it finished, ran out of memory or diverged.
    pub fn has_result(&self) -> bool {
        matches!(self.status(), "finished" | "out_of_memory" | "diverged")
    }

    /// Whether memory ran out by the arithmetic alone, before anything was allocated.
    pub fn is_refused_by_prediction(&self) -> bool {
        let detail = self.run.as_ref().and_then(|run| run.status_detail.as_deref());
        self.status() == "out_of_memory" && detail.is_some_and(|d| d.starts_with("plan of step 0"))
    }

    /// How many layers of the model this point works, where it does not work all.
    pub fn probe_layers(&self) -> Option<f64> {
        self.number(PROBE_LAYERS)
    }

    /// A number that this point has for a key: of its settings, or of its parameters.
    pub fn number(&self, key: &str) -> Option<f64> {
        let setting = self.settings.get(key).and_then(Value::as_f64);
        setting.or_else(|| self.run.as_ref()?.params.get(key)?.as_f64())
    }
}

impl Run {
    /// The last value of a metric.
    pub fn last(&self, key: &str) -> Option<f64> {
        self.metrics.get(key)?.last().map(|(_, value)| *value)
    }

    /// The loss a report calls final: the last one on the split, otherwise the mean of the last ten training losses.
    pub fn final_loss(&self, key: &str) -> Option<f64> {
        if key != TRAINING_LOSS {
            return self.last(key);
        }
        let losses: Vec<f64> = self.metrics.get(key)?.iter().map(|(_, value)| *value).collect();
        mean(&losses[losses.len().saturating_sub(10)..])
    }

    /// The median over steps of [`Run::median`]; a probe's rate is not that of its model.
    pub fn tokens_per_second(&self) -> Option<f64> {
        self.median("tokens_per_second").filter(|_| !self.is_probe())
    }

    /// Whether only some layers of the model were worked, to see what memory the whole takes.
    pub fn is_probe(&self) -> bool {
        self.params.get(PROBE_LAYERS).is_some_and(|layers| !layers.is_null())
    }

    /// The median of a metric over steps. The first step, which page-locks host memory and lets kernels be chosen, is left out
    /// where there are others.
    pub fn median(&self, key: &str) -> Option<f64> {
        let values = self.metrics.get(key)?;
        let warm = usize::from(values.len() > 1);
        let mut values: Vec<f64> = values[warm..].iter().map(|(_, value)| *value).collect();
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => None,
            n => Some((values[(n - 1) / 2] + values[n / 2]) / 2.0),
        }
    }
}

/// The metric of a step's training loss.
pub const TRAINING_LOSS: &str = "loss";
/// What the metrics of the losses on splits begin with.
pub const EVAL_LOSS: &str = "eval_loss.";

impl<'a> Summary<'a> {
    pub fn new(comparison: &'a Comparison) -> Summary<'a> {
        let (column, labels) = labels(&comparison.points);
        let report = &comparison.spec["report"];
        let mut notes = Vec::new();

        let baseline = match &report["baseline"] {
            Value::Null => 0,
            written => {
                let named = find_labels(&labels, written);
                let name = in_code(&plain(written));
                let keys = named.iter().map(|&label| in_code(labels[label].key()));
                match named.len() {
                    0 => notes.push(format!(
                        "`report.baseline` names {name}, which no point is called; the first point stands in."
                    )),
                    1 => {}
                    _ => notes.push(format!(
                        "`report.baseline` names {name}, which may be {}; the first point stands in.",
                        keys.collect::<Vec<_>>().join(" or ")
                    )),
                }
                named.first().copied().filter(|_| named.len() == 1).unwrap_or(0)
            }
        };
        let finished = || comparison.points.iter().filter_map(Point::finished);
        let splits: BTreeSet<&str> =
            finished().flat_map(|run| &run.perplexity).map(|row| row.split.as_str()).collect();
        let configured = finished().find_map(|run| run.params.get("eval.split")?.as_str());
        let split = match configured.filter(|split| splits.is_empty() || splits.contains(split)) {
            Some(split) => split,
            None => splits.first().copied().unwrap_or("validation"),
        };
        let rows = || finished().flat_map(|run| &run.perplexity).filter(|row| row.split == split);
        // `last_stride` sorts before `prefix`, and is the one to judge by: every prediction sees the whole length.
        let mut methods: Vec<String> =
            rows().map(|row| row.method.clone()).collect::<BTreeSet<_>>().into_iter().collect();
        if let Some(method) = report["method"].as_str() {
            match methods.iter().position(|m| m == method) {
                Some(at) => methods.swap(0, at),
                None if methods.is_empty() => {}
                None => notes.push(format!(
                    "`report.method` asks for {}, which no finished run has; {} stands in.",
                    in_code(method),
                    in_code(&methods[0])
                )),
            }
        }
        let parameter = comparison.spec["search"]["bisect"]["parameter"].as_str();
        let measure = match (parameter, methods.first()) {
            (Some(parameter), _) => Measure::Ceiling { parameter: parameter.to_string() },
            (None, Some(method)) => {
                let by_length = labels_by_length(&labels, split, method);
                let longest = *by_length.keys().next_back().expect("a method has rows");
                let common = common_length(&by_length, baseline);
                let asked = report["context_length"].as_i64();
                let context_length = match asked {
                    Some(asked) if !by_length.contains_key(&asked) => {
                        notes.push(format!(
                            "`report.context_length` asks for {asked}, which no finished run has; {common} stands in."
                        ));
                        common
                    }
                    Some(asked) => asked,
                    None if common < longest => {
                        notes.push(format!(
                            "The longest length, {longest}, was evaluated for {} of the {} labels with a perplexity{}: labels are judged by {common}.",
                            by_length[&longest].len(),
                            by_length.values().flatten().collect::<BTreeSet<_>>().len(),
                            if by_length[&longest].contains(&baseline) { "" } else { ", not for the baseline" }
                        ));
                        common
                    }
                    None => longest,
                };
                Measure::Perplexity { method: method.clone(), context_length }
            }
            (None, None) if is_of_random_tokens(comparison) => Measure::PeakMemory,
            (None, None) => Measure::Loss { key: loss_key(comparison, split) },
        };
        let split = split.to_string();
        let is_of_random_tokens = is_of_random_tokens(comparison);
        Summary {
            comparison,
            column,
            labels,
            baseline,
            methods,
            split,
            measure,
            is_of_random_tokens,
            shared_device: shared_device(&comparison.points),
            notes,
        }
    }

    /// The metric that tables show as final loss.
    pub fn loss_key(&self) -> String {
        loss_key(self.comparison, &self.split)
    }

    /// The context lengths that finished runs have for a method, rising.
    pub fn context_lengths(&self, method: &str) -> Vec<i64> {
        let finished = self.comparison.points.iter().filter_map(Point::finished);
        let rows = finished.flat_map(|run| &run.perplexity);
        let lengths: BTreeSet<i64> = rows
            .filter(|row| row.split == self.split && row.method == method)
            .map(|row| row.context_length)
            .collect();
        lengths.into_iter().collect()
    }

    pub fn perplexity_row<'r>(
        &self,
        run: &'r Run,
        method: &str,
        context_length: i64,
    ) -> Option<&'r Perplexity> {
        run.perplexity.iter().find(|row| {
            row.split == self.split && row.method == method && row.context_length == context_length
        })
    }

    /// The label's value by seed, of finished runs that have it.
    pub fn estimate(&self, label: usize, measure: &Measure) -> Option<Estimate> {
        let by_seed: BTreeMap<i64, f64> = self.labels[label]
            .finished()
            .filter_map(|(seed, run)| Some((seed, self.value(run, measure)?)))
            .collect();
        let values: Vec<f64> = by_seed.values().copied().collect();
        Some(Estimate { mean: mean(&values)?, interval: t_interval(&values), by_seed })
    }

    /// The measure of one run: in nats, or bytes.
    pub fn value(&self, run: &Run, measure: &Measure) -> Option<f64> {
        match measure {
            Measure::Perplexity { method, context_length } => {
                Some(self.perplexity_row(run, method, *context_length)?.nll)
            }
            Measure::Loss { key } => run.final_loss(key),
            Measure::PeakMemory => run.peak_allocated.map(|bytes| bytes as f64),
            Measure::Ceiling { .. } => None,
        }
    }

    /// Whether a label has an interval over seeds.
    pub fn has_intervals(&self, measure: &Measure) -> bool {
        let has = |estimate: Estimate| estimate.interval.is_some();
        (0..self.labels.len()).any(|label| self.estimate(label, measure).is_some_and(has))
    }

    /// The label with the lowest mean; a label with a value that is no number is never it.
    pub fn best(&self, measure: &Measure) -> Option<usize> {
        let means = (0..self.labels.len())
            .filter_map(|label| Some((label, self.estimate(label, measure)?.mean)))
            .filter(|(_, mean)| mean.is_finite());
        means.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(label, _)| label)
    }

    /// `a - b`, paired by seed and, for NLL, by evaluated window.
    ///
    /// The interval is Student's over the seeds that both have; with one such seed it is the bootstrap's over windows.
    /// `None` when they have no seed in common, or a value is no number.
    pub fn difference(&self, a: usize, b: usize, measure: &Measure) -> Option<Difference> {
        self.pairs(a, b, measure).difference()
    }

    /// `a - b` of each seed that both have, and of each evaluated window.
    pub fn pairs(&self, a: usize, b: usize, measure: &Measure) -> Pairs {
        let runs_of_b: BTreeMap<i64, &Run> = self.labels[b].finished().collect();
        let mut pairs = Pairs::default();
        let mut windows: Vec<Vec<f64>> = Vec::new();
        for (seed, run_a) in self.labels[a].finished() {
            let Some(run_b) = runs_of_b.get(&seed) else { continue };
            let (Some(value_a), Some(value_b)) =
                (self.value(run_a, measure), self.value(run_b, measure))
            else {
                continue;
            };
            let of_seed = self.window_differences(run_a, run_b, measure).unwrap_or_default();
            pairs.by_seed.push(mean(&of_seed).unwrap_or(value_a - value_b));
            windows.push(of_seed);
        }
        if let Some(first) = windows.first()
            && windows.iter().all(|of_seed| of_seed.len() == first.len())
        {
            let over_seeds = |window: usize| {
                windows.iter().map(|of_seed| of_seed[window]).sum::<f64>() / windows.len() as f64
            };
            pairs.by_window = (0..first.len()).map(over_seeds).collect();
        }
        pairs
    }

    fn window_differences(&self, a: &Run, b: &Run, measure: &Measure) -> Option<Vec<f64>> {
        let Measure::Perplexity { method, context_length } = measure else { return None };
        let a = self.perplexity_row(a, method, *context_length)?;
        let b = self.perplexity_row(b, method, *context_length)?;
        paired_differences(&a.window_nll, &b.window_nll).filter(|windows| !windows.is_empty())
    }

    /// The labels that an interval can't tell from `best`, itself left out.
    pub fn alike(&self, best: usize, measure: &Measure) -> Vec<usize> {
        (0..self.labels.len())
            .into_par_iter()
            .filter(|&label| label != best)
            .filter(|&label| {
                let pairs = self.pairs(label, best, measure);
                let difference = if pairs.all_agree() { None } else { pairs.difference() };
                difference.is_some_and(|difference| {
                    difference.interval.is_some() && !difference.is_distinguishable()
                })
            })
            .collect()
    }

    /// The labels whose difference from `best` has no interval, so that nothing can be said of how sure it is.
    pub fn without_interval(&self, best: usize, measure: &Measure) -> Vec<usize> {
        (0..self.labels.len())
            .into_par_iter()
            .filter(|&label| label != best)
            .filter(|&label| {
                let pairs = self.pairs(label, best, measure);
                pairs.by_seed.len() == 1
                    && pairs.by_window.len() < 2
                    && pairs.by_seed[0].is_finite()
            })
            .collect()
    }

    /// Whether the two have a seed in common at which both have a number.
    pub fn can_be_compared(&self, a: usize, b: usize, measure: &Measure) -> bool {
        mean(&self.pairs(a, b, measure).by_seed).is_some_and(f64::is_finite)
    }

    /// What a search has found in each of its cases, in the order of the plan; before it what heads their names: the axes
    /// beside the parameter, or `case` where not all points have the same.
    pub fn ceilings(&self, parameter: &str) -> (String, Vec<Ceiling<'a>>) {
        let points = &self.comparison.points;
        let valued = points.iter().filter_map(|point| Some((point.number(parameter)?, point)));
        let own = [parameter, SEED, PROBE_LAYERS];
        let others = |point: &'a Point| {
            point.settings.iter().filter(move |(key, _)| !own.contains(&key.as_str()))
        };
        let axes: BTreeSet<Vec<&String>> =
            valued.clone().map(|(_, point)| others(point).map(|(key, _)| key).collect()).collect();
        let join = |parts: Vec<String>| parts.join(", ");
        let column = match axes.first() {
            Some(keys) if axes.len() == 1 => join(keys.iter().map(|key| key.to_string()).collect()),
            _ => "case".to_string(),
        };
        let mut cases: Vec<(String, Vec<(f64, &'a Point)>)> = Vec::new();
        for (value, point) in valued {
            let name = join(
                others(point)
                    .map(|(key, value)| match axes.len() {
                        1 => plain(value),
                        _ => format!("{key}={}", plain(value)),
                    })
                    .collect(),
            );
            match cases.iter_mut().find(|(known, _)| *known == name) {
                Some((_, points)) => points.push((value, point)),
                None => cases.push((name, vec![(value, point)])),
            }
        }
        (column, cases.into_iter().map(|(name, points)| ceiling(name, points)).collect())
    }

    /// What the tables of parameters and of cost have a row for, and what heads it: the cases of a search that has several,
    /// otherwise the labels.
    pub fn rows(&self) -> (String, Vec<(String, Vec<&'a Point>)>) {
        if let Measure::Ceiling { parameter } = &self.measure {
            let (column, ceilings) = self.ceilings(parameter);
            if ceilings.len() > 1 {
                let points = |ceiling: Ceiling<'a>| {
                    (ceiling.name, ceiling.points.into_iter().map(|(_, point)| point).collect())
                };
                return (column, ceilings.into_iter().map(points).collect());
            }
        }
        let rows = self.labels.iter().map(|label| (label.name.clone(), label.points.clone()));
        (self.column.clone(), rows.collect())
    }

    /// The parameters that differ between the rows, the seed left out: key -> value by row, as text.
    pub fn differing_params(&self) -> Vec<(String, Vec<String>)> {
        let (_, rows) = self.rows();
        let by_cases = rows.len() != self.labels.len();
        let searched = match &self.measure {
            Measure::Ceiling { parameter } if by_cases => vec![parameter.as_str(), PROBE_LAYERS],
            _ => Vec::new(),
        };
        let runs = || self.comparison.points.iter().filter_map(|point| point.run.as_ref());
        let keys: BTreeSet<&String> = runs().flat_map(|run| run.params.keys()).collect();
        let of = |run: &Run, key: &String| run.params.get(key).map_or("–".into(), plain);
        keys.into_iter()
            .filter(|key| *key != SEED && !searched.contains(&key.as_str()))
            .filter(|key| runs().map(|run| of(run, key)).collect::<BTreeSet<_>>().len() > 1)
            .map(|key| {
                let by_row = rows.iter().map(|(_, points)| {
                    let runs = points.iter().filter_map(|point| point.run.as_ref());
                    let values: BTreeSet<String> = runs.map(|run| of(run, key)).collect();
                    values.into_iter().collect::<Vec<_>>().join(", ")
                });
                (key.clone(), by_row.collect())
            })
            .collect()
    }

    /// The length that all labels were trained at, where it is one.
    pub fn training_length(&self) -> Option<f64> {
        let runs = self.comparison.points.iter().filter_map(|point| point.run.as_ref());
        let mut lengths = runs.filter_map(|run| run.params.get("train.sequence_length")?.as_f64());
        let first = lengths.next()?;
        lengths.all(|length| length == first).then_some(first)
    }
}

/// The seed's key, in settings and parameters.
pub const SEED: &str = "train.seed";
/// The key of how many layers a probe works.
const PROBE_LAYERS: &str = "run.probe_layers";

/// A JSON value as people write it: strings without quotes, `10000` for 10000.0, `3e-5` for 0.00003.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => match number.as_f64().unwrap_or(f64::NAN) {
            x if x != 0.0 && (x.abs() < 1e-2 || x.abs() >= 1e15) => format!("{x:e}"),
            x => format!("{x}"),
        },
        value => value.to_string(),
    }
}

/// Whether two runs were under way at the same time on one device.
fn shared_device(points: &[Point]) -> bool {
    let span = |point: &'_ Point| {
        let run = point.run.as_ref()?;
        Some((run.device_identity.clone()?, run.started_at?, run.ended_at?))
    };
    let mut spans: Vec<(String, f64, f64)> = points.iter().filter_map(span).collect();
    spans.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    // Where any overlap, two that follow one another do.
    spans.windows(2).any(|pair| pair[0].0 == pair[1].0 && pair[1].1 < pair[0].2)
}

/// The loss on `split` where a finished run has it, otherwise on the first split, otherwise the training loss.
fn loss_key(comparison: &Comparison, split: &str) -> String {
    let finished = comparison.points.iter().filter_map(Point::finished);
    let keys: BTreeSet<&String> =
        finished.flat_map(|run| run.metrics.keys()).filter(|k| k.starts_with(EVAL_LOSS)).collect();
    let wanted = format!("{EVAL_LOSS}{split}");
    match keys.contains(&wanted) {
        true => wanted,
        false => keys.first().map_or(TRAINING_LOSS.to_string(), |key| key.to_string()),
    }
}

fn is_of_random_tokens(comparison: &Comparison) -> bool {
    let mut runs = comparison.points.iter().filter_map(|point| point.run.as_ref()).peekable();
    let is_random = |run: &Run| {
        let evaluated = run.metrics.keys().any(|key| key.starts_with(EVAL_LOSS));
        run.params.get("data.corpus").is_some_and(|c| c == RANDOM_CORPUS) && !evaluated
    };
    runs.peek().is_some() && runs.all(is_random)
}

fn ceiling(name: String, mut points: Vec<(f64, &Point)>) -> Ceiling<'_> {
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.seed.cmp(&b.1.seed)));
    // A run that failed, was killed, lost, stopped or is not yet made says nothing about its value.
    let failed: Vec<(f64, &Point)> = points
        .iter()
        .filter(|(_, p)| matches!(p.status(), "out_of_memory" | "diverged"))
        .copied()
        .collect();
    let is_failed = |value: f64| failed.iter().any(|(f, _)| *f == value);
    let finished = || points.iter().filter(|(_, point)| point.finished().is_some());
    // What a whole run has shown counts before what probes promise.
    let is_confirmed = finished().any(|(_, point)| point.probe_layers().is_none());
    let counts = |point: &Point| !is_confirmed || point.probe_layers().is_none();
    let largest = finished()
        .filter(|(_, point)| counts(point))
        .map(|(value, _)| *value)
        .rfind(|&value| !is_failed(value));
    let above = |value: f64| largest.is_none_or(|largest| value > largest);
    Ceiling {
        name,
        largest,
        smallest_not: failed.iter().find(|(value, _)| above(*value)).copied(),
        exceptions: failed.iter().map(|(value, _)| *value).filter(|value| !above(*value)).collect(),
        probes: points.iter().filter(|(_, point)| point.probe_layers().is_some()).count(),
        is_confirmed,
        points,
    }
}
