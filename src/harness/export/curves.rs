//! What a run logged: its scalars by step, with the time of each step.

use crate::store::{Labels, Run, Step, Store};
use anyhow::{Context, Result};
use fathom_spec::config::RunConfig;
use fathom_spec::record::{Event, EventKind, RunPaths, read_events};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A run as other programs see one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curves {
    pub run_id: String,
    /// 64 hexadecimal digits; empty where only the log was read.
    pub run_hash: String,
    /// The first sweep that has it as a point, with the point's label and seed.
    pub point: Option<(String, String, u64)>,
    /// As the store spells it; `running` where only the log was read and has no ending.
    pub status: String,
    /// Seconds since 1970-01-01 UTC, as all times here.
    pub started_at: f64,
    pub ended_at: Option<f64>,
    /// At work, over all attempts.
    pub seconds: f64,
    pub labels: Labels,
    /// The complete configuration by key path.
    pub params: BTreeMap<String, Value>,
    /// By key: `(step, value)`, steps rising.
    pub scalars: BTreeMap<String, Vec<(u64, f64)>>,
    /// When each step was done.
    pub times: BTreeMap<u64, f64>,
    /// Step, prompt and text.
    pub samples: Vec<(u64, String, String)>,
}

impl Curves {
    /// Reads a run of the store; the times of its steps from its log, or, where that is gone, from what its steps took.
    ///
    /// # Errors
    ///
    /// When the store can't be read.
    pub fn of_run(store: &Store, run: &Run) -> Result<Curves> {
        let point = store.points_of_run(&run.run_id)?.into_iter().next();
        let mut curves = Curves {
            run_id: run.run_id.0.clone(),
            run_hash: run.run_hash.clone(),
            point: point.map(|(sweep, point)| (sweep, point.label, point.seed)),
            status: run.status.name().into(),
            started_at: run.started_at.unwrap_or(run.created_at),
            ended_at: run.ended_at,
            seconds: run.seconds,
            labels: store.labels()?.remove(&run.run_id).unwrap_or_default(),
            params: store.params(&run.run_id)?,
            ..Curves::default()
        };
        for key in store.metric_keys(&run.run_id)? {
            let values = store.metric(&run.run_id, &key)?;
            curves.scalars.insert(key, values);
        }
        for row in store.perplexity_by_step(&run.run_id)? {
            let key =
                format!("perplexity.{}.{}.{}", row.split, row.method.name(), row.context_length);
            curves.scalars.entry(key).or_default().push((row.step, row.perplexity));
        }
        let samples = store.samples(&run.run_id)?;
        curves.samples = samples.into_iter().map(|s| (s.step, s.prompt, s.text)).collect();
        let log = RunPaths::in_results(store.results(), &run.run_id).events();
        if log.exists() {
            let (events, _) = read_events(&log, 0)?;
            events.iter().for_each(|event| curves.time(event));
        } else {
            let mut now = curves.started_at;
            for (step, seconds) in curves.scalars.get("step_seconds").into_iter().flatten() {
                now += if seconds.is_finite() { *seconds } else { 0.0 };
                curves.times.insert(*step, now);
            }
        }
        Ok(curves)
    }

    /// Reads a run's folder alone, be it at work or not: `events.jsonl`, and `config.yaml` where it is there.
    ///
    /// # Errors
    ///
    /// When there is no log in it, or one that is damaged.
    pub fn of_folder(folder: &Path) -> Result<Curves> {
        let paths = RunPaths::new(folder);
        let (events, _) = read_events(&paths.events(), 0)?;
        let whole = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
        let mut curves = Curves {
            run_id: whole.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            status: "running".into(),
            labels: Labels::read(&paths)?,
            ..Curves::default()
        };
        if paths.config().exists() {
            let config = RunConfig::read(&paths.config()).context("the run's configuration")?;
            curves.params = config.flatten().into_iter().collect();
        }
        let (mut earlier, mut began) = (0.0, None);
        // A resumed run does steps again: the last attempt's stand.
        let mut scalars: BTreeMap<String, BTreeMap<u64, f64>> = BTreeMap::new();
        for event in &events {
            if let EventKind::Started { .. } = event.kind {
                earlier = curves.seconds;
                began.get_or_insert(event.time);
                curves.ended_at = None;
                curves.status = "running".into();
            } else {
                curves.seconds = earlier + event.elapsed_seconds;
            }
            if let Some(ending) = event.kind.ending() {
                curves.status = ending.into();
                curves.ended_at = Some(event.time);
            }
            curves.time(event);
            for (key, step, value) in numbers(event) {
                scalars.entry(key).or_default().insert(step, value);
            }
            if let EventKind::Sample { step, prompt, text } = &event.kind {
                curves.samples.push((*step, prompt.clone(), text.clone()));
            }
        }
        curves.started_at = began.or(events.first().map(|event| event.time)).unwrap_or(0.0);
        curves.scalars =
            scalars.into_iter().map(|(key, steps)| (key, steps.into_iter().collect())).collect();
        Ok(curves)
    }

    /// `rope=yarn2, seed 0`, or the id.
    pub fn name(&self) -> String {
        match &self.point {
            Some((_, label, seed)) => format!("{label}, seed {seed}"),
            None => self.run_id.clone(),
        }
    }

    /// When `step` was done: as its event says, or as the nearest before it that is known.
    pub fn time_of(&self, step: u64) -> f64 {
        let before = self.times.range(..=step).next_back();
        before.map_or(self.started_at, |(_, time)| *time)
    }

    fn time(&mut self, event: &Event) {
        if let EventKind::Step { step, .. } = event.kind {
            self.times.insert(step, event.time);
        }
    }
}

/// The numbers of an event, under the names that the store gives them.
fn numbers(event: &Event) -> Vec<(String, u64, f64)> {
    if let Some(step) = Step::of(event) {
        return step.scalars().map(|(key, value)| (key.to_string(), step.step, value)).to_vec();
    }
    match &event.kind {
        EventKind::Eval { step, split, loss, .. } => {
            vec![(format!("eval_loss.{split}"), *step, *loss)]
        }
        EventKind::Perplexity { step, split, method, context_length, perplexity, .. } => {
            let key = format!("perplexity.{split}.{}.{context_length}", method.name());
            vec![(key, *step, *perplexity)]
        }
        _ => Vec::new(),
    }
}
