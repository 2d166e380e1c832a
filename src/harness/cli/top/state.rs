//! What is shown of each run, taken from the store and from what its log has gained since.

use crate::run::status_now;
use crate::store::{Run, Status, Store};
use anyhow::Result;
use fathom_spec::record::{EventKind, RunId, RunPaths, read_events};
use std::collections::BTreeMap;

/// Losses that are kept of each run.
const LOSSES: usize = 240;

/// What the screen shows.
#[derive(Debug, Default)]
pub struct State {
    /// Whether runs that are over are shown too.
    pub all: bool,
    sweep: Option<String>,
    /// Those that run first, then by when they began.
    pub rows: Vec<Row>,
    /// How many runs there are that stand so.
    pub counts: BTreeMap<&'static str, usize>,
    /// Rows that are scrolled past.
    pub skipped: usize,
    /// By run: bytes of the log that were read, and what it said.
    read: BTreeMap<RunId, (u64, Live)>,
}

/// A run on the screen.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub run_id: String,
    pub label: String,
    pub status: Status,
    pub step: u64,
    /// The steps that are planned; `None` where the configuration does not say.
    pub steps: Option<u64>,
    pub tokens_per_second: Option<f64>,
    pub loss: Option<f64>,
    /// The last losses, oldest first.
    pub losses: Vec<f64>,
    pub peak_allocated: Option<u64>,
    pub seconds: f64,
    /// Seconds until it is done.
    pub remaining: Option<f64>,
    pub device: String,
    /// Since its last event.
    pub silent_seconds: f64,
}

/// What a run's log said last.
#[derive(Debug, Clone, Default)]
struct Live {
    step: u64,
    losses: Vec<f64>,
    loss: Option<f64>,
    tokens_per_second: Option<f64>,
    step_seconds: Option<f64>,
    peak_allocated: Option<u64>,
    /// At work before the attempt that is under way.
    earlier_seconds: f64,
    seconds: f64,
    time: f64,
}

impl State {
    pub fn new(all: bool, sweep: Option<String>) -> State {
        State { all, sweep, ..State::default() }
    }

    /// Takes in what there is at the time `now`.
    ///
    /// # Errors
    ///
    /// When the store or a log can't be read.
    pub fn look(&mut self, store: &Store, now: f64) -> Result<()> {
        let runs = match &self.sweep {
            Some(sweep) => store.runs_of_sweep(sweep)?,
            None => store.runs()?,
        };
        self.rows.clear();
        self.counts.clear();
        for run in runs {
            let paths = RunPaths::in_results(store.results(), &run.run_id);
            let status = status_now(store.results(), &run.run_id, run.status);
            *self.counts.entry(status.name()).or_default() += 1;
            if status == Status::Running || (self.all && run.started_at.is_some()) {
                let live = self.live(&run, &paths)?;
                let row = row(store, &run, status, live, now)?;
                self.rows.push(row);
            }
        }
        // Stable: runs that stand alike keep the order of their points.
        self.rows.sort_by_key(|row| row.status != Status::Running);
        self.skipped = self.skipped.min(self.rows.len().saturating_sub(1));
        Ok(())
    }

    /// Moves the list.
    pub fn scroll(&mut self, rows: isize) {
        let last = self.rows.len().saturating_sub(1);
        self.skipped = self.skipped.saturating_add_signed(rows).min(last);
    }

    /// What a run's log says now; only what is new is read.
    fn live(&mut self, run: &Run, paths: &RunPaths) -> Result<&Live> {
        let (offset, live) = self.read.entry(run.run_id.clone()).or_default();
        let log = paths.events();
        let length = std::fs::metadata(&log).map_or(0, |file| file.len());
        if length < *offset {
            (*offset, *live) = Default::default();
        }
        if length > *offset {
            let (events, end) = read_events(&log, *offset)?;
            *offset = end;
            for event in events {
                live.time = event.time;
                match event.kind {
                    EventKind::Started { .. } => live.earlier_seconds = live.seconds,
                    EventKind::Step {
                        step,
                        loss,
                        tokens_per_second,
                        step_seconds,
                        peak_allocated,
                        ..
                    } => {
                        live.step = step;
                        live.loss = Some(loss);
                        live.losses.push(loss);
                        live.tokens_per_second = Some(tokens_per_second);
                        // The mean of the last few, by weight.
                        let before = live.step_seconds.unwrap_or(step_seconds);
                        live.step_seconds = Some(before + 0.2 * (step_seconds - before));
                        live.peak_allocated = live.peak_allocated.max(Some(peak_allocated));
                    }
                    _ => {}
                }
                live.seconds = live.earlier_seconds + event.elapsed_seconds;
            }
            let surplus = live.losses.len().saturating_sub(LOSSES);
            live.losses.drain(..surplus);
        }
        Ok(live)
    }
}

fn row(store: &Store, run: &Run, status: Status, live: &Live, now: f64) -> Result<Row> {
    let point = store.points_of_run(&run.run_id)?.into_iter().next();
    let label = match point {
        Some((_, point)) => format!("{} seed {}", point.label, point.seed),
        None => String::new(),
    };
    // A store without the runs' folders still has how they ended.
    let from_log = live.step > 0;
    let losses = match from_log {
        true => live.losses.clone(),
        false => {
            let losses = store.metric(&run.run_id, "loss")?;
            let first = losses.len().saturating_sub(LOSSES);
            losses[first..].iter().map(|(_, loss)| *loss).collect()
        }
    };
    let step = live.step.max(run.step);
    let steps = planned_steps(&run.config);
    let remaining = match (status, steps, live.step_seconds) {
        (Status::Running, Some(steps), Some(each)) => {
            Some(steps.saturating_sub(step) as f64 * each)
        }
        _ => None,
    };
    let last = |key: &str| -> Result<Option<f64>> {
        Ok(store.last_metrics(&run.run_id)?.get(key).map(|(_, value)| *value))
    };
    Ok(Row {
        run_id: run.run_id.0.clone(),
        label,
        status,
        step,
        steps,
        tokens_per_second: match live.tokens_per_second {
            Some(speed) => Some(speed),
            None => last("tokens_per_second")?,
        },
        loss: live.loss.or(run.last_loss),
        losses,
        peak_allocated: live.peak_allocated.max(run.peak_allocated),
        seconds: if from_log { live.seconds } else { run.seconds },
        remaining,
        device: run.device.clone().unwrap_or_default(),
        silent_seconds: if live.time > 0.0 { (now - live.time).max(0.0) } else { 0.0 },
    })
}

/// The optimizer steps of a configuration.
fn planned_steps(config: &serde_json::Value) -> Option<u64> {
    use fathom_spec::config::{RunConfig, written::Written};
    let written = Written::from_json("config", config);
    // One of another version may not be understood: then it is only not known when the run will be done.
    RunConfig::from_written(&written).ok().map(|config| config.planned_steps())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::lock;
    use crate::store::{RunRecord, SavedIdentity};
    use fathom_spec::config::written::Written;
    use fathom_spec::config::{Digests, RunConfig, RunIdentity};
    use fathom_spec::record::EventLog;

    fn step(step: u64, loss: f64) -> EventKind {
        EventKind::Step {
            step,
            tokens: step * 64,
            loss,
            learning_rate: 1e-5,
            grad_norm: 1.0,
            step_seconds: 2.0,
            tokens_per_second: 32.0,
            peak_allocated: 1 << 30,
            peak_reserved: 2 << 30,
        }
    }

    /// A run whose log the store has not read yet, as when its supervisor is behind.
    #[test]
    fn a_run_at_work_is_as_its_log_says() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        let text = "model: {path: tiny}\ndata: {corpus: texts}\ntrain: {sequence_length: 64, total_tokens: 640, learning_rate: 1e-5}\n";
        let config = RunConfig::from_written(&Written::parse("run.yaml", text).unwrap()).unwrap();
        let identity = SavedIdentity {
            identity: RunIdentity { run_hash: "a".repeat(64), group_hash: "b".repeat(64) },
            digests: Digests { model: "m".into(), tokenizer: "t".into(), data: "d".into() },
            model_files: Vec::new(),
            created_at: 1.0,
        };
        let run_id = identity.run_id();
        store.upsert_run(&RunRecord { identity: &identity, config: &config }).unwrap();
        store.set_status(&run_id, Status::Running, None).unwrap();
        let paths = RunPaths::in_results(dir.path(), &run_id);
        let held = lock(&paths).unwrap().unwrap();
        let mut log = EventLog::open(&paths.events()).unwrap();
        log.write(step(1, 3.0)).unwrap();
        let mut state = State::new(false, None);
        state.look(&store, 0.0).unwrap();
        let row = &state.rows[0];
        assert_eq!((row.step, row.loss, row.losses.len()), (1, Some(3.0), 1));
        log.write(step(2, 2.5)).unwrap();
        state.look(&store, 0.0).unwrap();
        let row = &state.rows[0];
        assert_eq!((row.step, row.steps, row.loss), (2, Some(config.planned_steps()), Some(2.5)));
        assert_eq!(row.losses, [3.0, 2.5]);
        assert_eq!(row.remaining, Some((config.planned_steps() - 2) as f64 * 2.0));
        assert_eq!(state.counts, BTreeMap::from([("running", 1)]));
        // Its process is gone, and nobody has said so yet.
        drop(held);
        state.look(&store, 0.0).unwrap();
        assert_eq!(state.rows, []);
        assert_eq!(state.counts, BTreeMap::from([("lost", 1)]));
    }
}
