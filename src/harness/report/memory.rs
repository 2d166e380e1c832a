//! Memory and time in a report: the peaks of a search by value and case, those of the phases of a step, and what was
//! predicted beside what was measured.

use super::answer::whole;
use super::input::{Point, Run};
use super::markdown::{bold, bytes, in_code, text};
use super::statistics::mean;
use super::summary::{Ceiling, Measure, Summary, plain};
use super::tables::{pivot, rows_to_markdown, to_markdown};
use anyhow::Result;
use fathom_spec::units::{format_number, format_seconds};
use serde_json::Value;
use std::collections::BTreeSet;

/// The phases of a step in their order; others follow by name.
const PHASES: [&str; 9] = [
    "load",
    "forward",
    "loss",
    "recompute",
    "mlp_backward",
    "attention_backward",
    "embedding_backward",
    "forward_backward",
    "optimizer",
];

/// The peaks of a search: a row a value, a column a case.
///
/// # Errors
///
/// As all tables here: when the data frame can't be made.
pub fn by_value(ceilings: &[Ceiling], parameter: &str) -> Result<String> {
    let mut values: Vec<f64> =
        ceilings.iter().flat_map(|ceiling| &ceiling.points).map(|(value, _)| *value).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    let cells: Vec<(String, String, String)> = values
        .iter()
        .flat_map(|&value| {
            ceilings.iter().map(move |ceiling| {
                let cell = peak_or_outcome(ceiling, value);
                (whole(value), text(ceiling.name_or("peak memory")), cell)
            })
        })
        .collect();
    let key = in_code(parameter);
    Ok(format!(
        "### Peak memory by {key}\n\nBold: the largest value that finished. A dash was not tried{}.\n\n{}",
        match ceilings.iter().any(|ceiling| ceiling.probes > 0) {
            true => "; a probe works only some layers of the model, with the memory of all",
            false => "",
        },
        to_markdown(&pivot(&key, &cells)?)?
    ))
}

fn peak_or_outcome(ceiling: &Ceiling, value: f64) -> String {
    let tried = || ceiling.points.iter().filter(|(v, _)| *v == value).map(|(_, point)| *point);
    // What all layers have shown counts before a probe, and both before a run that came to nothing.
    let rank = |point: &&Point| (point.has_result(), point.probe_layers().is_none());
    let Some(point) = tried().max_by_key(rank) else { return "–".into() };
    let peak = point.finished().and_then(|run| run.peak_allocated);
    let shown = peak.map_or_else(|| point.outcome(), bytes);
    let probe = if point.probe_layers().is_some() { " (probe)" } else { "" };
    let is_largest = ceiling.largest == Some(value) && peak.is_some();
    if is_largest { format!("**{shown}**{probe}") } else { format!("{shown}{probe}") }
}

/// The peak of each phase of the largest run of each case that worked all layers, with what was predicted, and the settings
/// that the layered engine had in it. Empty where no such run has finished.
///
/// # Errors
///
/// See [`by_value`].
pub fn by_phase(ceilings: &[Ceiling]) -> Result<String> {
    let largest: Vec<(String, &Run)> = ceilings
        .iter()
        .filter_map(|ceiling| {
            let value = ceiling.largest?;
            let mut points = ceiling.points.iter().filter(|(v, _)| *v == value);
            let run =
                points.find_map(|(_, p)| p.finished().filter(|_| p.probe_layers().is_none()))?;
            let at = match ceiling.name.as_str() {
                "" => whole(value),
                name => format!("{} at {}", text(name), whole(value)),
            };
            Some((at, run))
        })
        .filter(|(_, run)| !run.memory.is_empty())
        .collect();
    let mut names: Vec<&str> = PHASES.to_vec();
    let known: BTreeSet<&str> =
        largest.iter().flat_map(|(_, run)| run.memory.keys().map(String::as_str)).collect();
    names.extend(known.iter().filter(|name| !PHASES.contains(name)));
    let mut cells = Vec::new();
    let mut timed = false;
    for phase in names.iter().filter(|phase| known.contains(*phase)) {
        for (at, run) in &largest {
            let shown = |peak: Option<i64>| peak.map_or("–".to_string(), bytes);
            cells.push((phase.to_string(), at.clone(), shown(run.memory.get(*phase).copied())));
            if let Some(plan) = run.plan() {
                let predicted = plan["phases"][*phase].as_i64();
                cells.push((phase.to_string(), format!("{at}, predicted"), shown(predicted)));
            }
            if let Some(seconds) = run.facts.get("phase_seconds") {
                let seconds = seconds[*phase].as_f64().map_or("–".to_string(), format_seconds);
                cells.push((phase.to_string(), format!("{at}, time"), seconds));
                timed = true;
            }
        }
    }
    if cells.is_empty() {
        return Ok(String::new());
    }
    let time = if timed { " Time is the device's, in the last step." } else { "" };
    let mut section = format!(
        "### Peak memory by phase\n\nOf the largest run that finished, with all layers at work.{time}\n\n{}",
        to_markdown(&pivot("phase", &cells)?)?
    );
    let settings: Vec<(String, String, String)> = largest
        .iter()
        .flat_map(|(at, run)| {
            let settings = run.plan().and_then(|plan| plan["settings"].as_object());
            let settings = settings.into_iter().flatten();
            settings.map(|(key, value)| (in_code(key), at.clone(), text(&plain(value))))
        })
        .collect();
    if !settings.is_empty() {
        section.push_str(&format!(
            "\nThe layered engine's settings in them, as written or else chosen by the prediction:\n\n{}",
            to_markdown(&pivot("setting", &settings)?)?
        ));
    }
    Ok(section)
}

/// Peak memory and time of each label, against the baseline's.
///
/// # Errors
///
/// See [`by_value`].
pub fn by_label(summary: &Summary) -> Result<String> {
    let best = summary.best(&Measure::PeakMemory);
    let rows: Vec<Vec<String>> = (0..summary.labels.len())
        .map(|label| {
            let Costs { peak, step, peak_change, step_change } = Costs::of(summary, label);
            let shown = peak.map_or("–".into(), |peak| bytes(peak as i64));
            let runs = || summary.labels[label].finished().map(|(_, run)| run);
            let rates: Vec<f64> = runs().filter_map(Run::tokens_per_second).collect();
            vec![
                text(&summary.labels[label].name),
                if best == Some(label) { format!("**{shown}**") } else { shown },
                peak_change.map_or("–".into(), percent),
                step.map_or("–".into(), format_seconds),
                step_change.map_or("–".into(), percent),
                mean(&rates).map_or("–".into(), |rate| format!("{rate:.0}")),
                runs().count().to_string(),
            ]
        })
        .collect();
    let heads = [
        summary.column.as_str(),
        "peak memory",
        "against the baseline",
        "step",
        "step against the baseline",
        "tokens/s",
        "seeds",
    ];
    let baseline = summary.labels.get(summary.baseline).map_or("none", |label| &label.name);
    let head = format!(
        "Peak memory and time of a step; the tokens are random, so losses are left out. Bold: the lowest. Ordered as planned; \
         baseline: {}.{}\n\n",
        bold(baseline),
        match summary
            .labels
            .iter()
            .flat_map(|label| label.finished())
            .any(|(_, run)| run.is_probe())
        {
            true =>
                " A probe works only some layers of the model, with the memory of all: its step is not that of the model.",
            false => "",
        }
    );
    Ok(head + &rows_to_markdown(&heads, &rows)?)
}

/// What a label takes: the highest peak of its finished runs in bytes, the mean of their median steps in seconds, and both
/// against the baseline.
pub struct Costs {
    pub peak: Option<f64>,
    pub step: Option<f64>,
    pub peak_change: Option<f64>,
    pub step_change: Option<f64>,
}

impl Costs {
    pub fn of(summary: &Summary, label: usize) -> Costs {
        let runs = |label: usize| summary.labels[label].finished().map(|(_, run)| run);
        let peak = |label| runs(label).filter_map(|run| run.peak_allocated).max().map(|x| x as f64);
        let step = |label| mean(&runs(label).filter_map(Run::step_seconds).collect::<Vec<_>>());
        let change = |of: &dyn Fn(usize) -> Option<f64>| {
            let compared = label != summary.baseline;
            Some(of(label)? / of(summary.baseline)? - 1.0).filter(|_| compared)
        };
        Costs {
            peak: peak(label),
            step: step(label),
            peak_change: change(&peak),
            step_change: change(&step),
        }
    }
}

/// What the layered engine predicted of each finished run, beside what was measured. Empty where no run has a prediction.
///
/// # Errors
///
/// See [`by_value`].
pub fn predicted(summary: &Summary) -> Result<String> {
    // The cells that name a run, and the run.
    let mut runs: Vec<(Vec<String>, &Point)> = Vec::new();
    let heads = match &summary.measure {
        Measure::Ceiling { parameter } => {
            let (column, ceilings) = summary.ceilings(parameter);
            let grouped = ceilings.len() > 1;
            for ceiling in &ceilings {
                for (value, point) in &ceiling.points {
                    let probe = if point.probe_layers().is_some() { " (probe)" } else { "" };
                    let value = format!("{}{probe}", whole(*value));
                    let name = grouped.then(|| text(&ceiling.name));
                    runs.push((name.into_iter().chain([value]).collect(), point));
                }
            }
            grouped.then_some(column).into_iter().chain([in_code(parameter)]).collect::<Vec<_>>()
        }
        _ => {
            for label in &summary.labels {
                for &point in &label.points {
                    let probe = if point.probe_layers().is_some() { " (probe)" } else { "" };
                    let name = format!("{}{probe}", text(&label.name));
                    runs.push((vec![name, point.seed.to_string()], point));
                }
            }
            vec![summary.column.clone(), "seed".to_string()]
        }
    };
    let mut errors: Vec<f64> = Vec::new();
    let mut on_cpu = false;
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (mut row, point) in runs {
        let Some((run, plan)) = point.finished().and_then(|run| Some((run, run.plan()?))) else {
            continue;
        };
        on_cpu |= run.device.as_deref() == Some("cpu");
        let peaks = run.peak_allocated.map(|x| x as f64).zip(plan["peak_allocated"].as_f64());
        errors.extend(peaks.map(|(measured, predicted)| predicted / measured - 1.0));
        row.extend(compared(peaks, &|x| bytes(x as i64)));
        let step = run.step_seconds();
        row.extend(compared(step.zip(plan["seconds_per_step"].as_f64()), &format_seconds));
        let rate = step.zip(plan["hardware_flops"].as_f64()).map(|(step, flops)| flops / step);
        row.push(rate.map_or("–".into(), |rate| teraflops(rate / 1e12)));
        rows.push(row);
    }
    if rows.is_empty() {
        return Ok(String::new());
    }
    let mut heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    heads.extend(["measured peak", "predicted peak", "peak error"]);
    heads.extend(["measured step", "predicted step", "step error", "hardware TFLOP/s"]);
    let (low, high) = errors
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)));
    let range = match errors.is_empty() {
        true => String::new(),
        false => format!(
            " The prediction of the peak was off by {} to {} of what was measured.",
            percent(low),
            percent(high)
        ),
    };
    let resident = match on_cpu {
        true => {
            " On the CPU the measured peak is that of the whole process, the predicted one that of its tensors."
        }
        false => "",
    };
    Ok(format!(
        "### Predicted beside measured\n\nBefore a run starts the layered engine predicts its peak memory and the time of a step; \
         an error is predicted less measured, in percent of what was measured.{range}{resident} **Hardware TFLOP/s** is what the step \
         computes, over its measured time: the products with the dense weights and causal attention in the forward, in every \
         recomputation and in the backward (`8 P_d T + 9 L (N H) T^2` where each layer is recomputed once).\n\n{}",
        rows_to_markdown(&heads, &rows)?
    ))
}

/// Measured, predicted, and by how much the prediction is off.
fn compared(pair: Option<(f64, f64)>, shown: &dyn Fn(f64) -> String) -> [String; 3] {
    match pair {
        Some((measured, predicted)) => {
            [shown(measured), shown(predicted), percent(predicted / measured - 1.0)]
        }
        None => ["–"; 3].map(String::from),
    }
}

/// `+3.4 %` of 0.034.
pub fn percent(share: f64) -> String {
    format!("{:+.1} %", share * 100.0)
}

fn teraflops(x: f64) -> String {
    if x >= 1.0 { format!("{x:.1}") } else { format_number(x) }
}

impl Run {
    /// What the layered engine predicted before the run started.
    pub fn plan(&self) -> Option<&Value> {
        self.facts.get("plan").filter(|plan| plan["settings"].is_object())
    }

    /// The median over steps.
    pub fn step_seconds(&self) -> Option<f64> {
        self.median("step_seconds").filter(|_| !self.is_probe())
    }
}

impl Point {
    /// What became of the run, in two or three words.
    fn outcome(&self) -> String {
        match self.is_refused_by_prediction() {
            true => "out of memory (predicted)".into(),
            false => self.status().replace('_', " "),
        }
    }
}
