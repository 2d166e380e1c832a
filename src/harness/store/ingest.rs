//! From event logs to rows: every kind of event has one place in the schema.
//!
//! The events are read before the transaction begins and applied inside it; the run's row is held in memory meanwhile and
//! written back with `log_offset` and `last_seq` in the same commit. An event whose `seq` is in the store already is
//! passed over, so reading a stretch of a log twice changes nothing.

use super::{Run, Status, Store};
use anyhow::{Context, Result, anyhow};
use fathom_spec::record::{Event, EventKind, RunId, RunPaths, read_events};
use fathom_spec::units::Bytes;
use rusqlite::{CachedStatement, Connection, OptionalExtension, TransactionBehavior, params};
use std::collections::HashMap;
use std::path::Path;

/// What one look at a log brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ingested {
    /// Events that are new in the store.
    pub events: u64,
    /// How the run stands now.
    pub status: Status,
}

impl Store {
    /// Brings in the whole lines that a run's event log has gained. Cheap when there are none: no lock is taken.
    ///
    /// A log that is shorter than what was read of it is another log (the folder was made anew): the run starts over. Where
    /// the whole folder is gone, what was read of it stays.
    ///
    /// # Errors
    ///
    /// When the store has no such run, the log has a line that is no event, or the database can't be written; what was
    /// there before is untouched then.
    pub fn ingest_run(&mut self, run_id: &RunId) -> Result<Ingested> {
        let paths = RunPaths::in_results(&self.results, run_id);
        let log = paths.events();
        let run = self.known_run(run_id)?;
        let length = std::fs::metadata(&log).map_or(0, |file| file.len());
        if length == run.log_offset || !paths.folder.is_dir() {
            return Ok(Ingested { events: 0, status: run.status });
        }
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let ingested = ingest(&transaction, run_id, &log)?;
        transaction.commit()?;
        Ok(ingested)
    }
}

/// As [`Store::ingest_run`], inside the caller's transaction.
pub(super) fn ingest(connection: &Connection, run_id: &RunId, log: &Path) -> Result<Ingested> {
    let mut run = Run::load(connection, run_id)?
        .ok_or_else(|| anyhow!("run {run_id}: expected a run of the store, found none"))?;
    let length = std::fs::metadata(log).map_or(0, |file| file.len());
    let mut writer = Writer::new(connection, run.id)?;
    if length < run.log_offset {
        writer.forget()?;
        run = run.planned();
    }
    let (events, end) = match length {
        0 => (Vec::new(), run.log_offset),
        _ => read_events(log, run.log_offset)?,
    };
    let mut new = 0;
    for event in &events {
        if (event.seq as i64) <= run.last_seq {
            continue;
        }
        writer
            .apply(event, &mut run)
            .with_context(|| format!("run {run_id}: event {} can't be recorded", event.seq))?;
        run.last_seq = event.seq as i64;
        new += 1;
    }
    run.log_offset = end;
    run.save(connection)?;
    Ok(Ingested { events: new, status: run.status })
}

/// The statements that one run's events need, prepared once.
struct Writer<'c> {
    connection: &'c Connection,
    run: i64,
    keys: HashMap<String, i64>,
    metric: CachedStatement<'c>,
}

impl<'c> Writer<'c> {
    fn new(connection: &'c Connection, run: i64) -> Result<Writer<'c>> {
        let mut statement = connection.prepare_cached("SELECT key, id FROM metric_keys")?;
        let keys = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let metric = connection.prepare_cached(
            "INSERT INTO metrics (run, key, step, value) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET value = excluded.value",
        )?;
        Ok(Writer { connection, run, keys: keys.collect::<Result<_, _>>()?, metric })
    }

    /// Puts one event where it belongs: into its table, and what it says of the run into `run`.
    fn apply(&mut self, event: &Event, run: &mut Run) -> Result<()> {
        if !matches!(event.kind, EventKind::Started { .. }) {
            run.seconds = run.earlier_seconds + event.elapsed_seconds;
        }
        match &event.kind {
            EventKind::Started { .. } => {
                self.started(event, run)?;
                self.meta(event, "started")
            }
            EventKind::Step {
                step,
                tokens,
                loss,
                learning_rate,
                grad_norm,
                step_seconds,
                tokens_per_second,
                peak_allocated,
                peak_reserved,
            } => {
                run.step = *step;
                run.tokens = *tokens;
                run.last_loss = number(*loss);
                run.raise_peaks(*peak_allocated, *peak_reserved);
                for (key, value) in [
                    ("loss", *loss),
                    ("learning_rate", *learning_rate),
                    ("grad_norm", *grad_norm),
                    ("step_seconds", *step_seconds),
                    ("tokens_per_second", *tokens_per_second),
                    ("tokens", *tokens as f64),
                    ("peak_allocated", *peak_allocated as f64),
                    ("peak_reserved", *peak_reserved as f64),
                ] {
                    self.metric(key, *step, value)?;
                }
                Ok(())
            }
            EventKind::Eval { step, split, loss, tokens: _ } => {
                self.metric(&format!("eval_loss.{split}"), *step, *loss)
            }
            EventKind::Perplexity {
                step,
                split,
                method,
                context_length,
                windows,
                tokens,
                nll,
                perplexity,
                nll_low,
                nll_high,
                window_nll,
            } => self.execute(
                "INSERT OR REPLACE INTO perplexity (run, step, split, method, context_length, windows, tokens, nll,
                   perplexity, nll_low, nll_high, window_nll)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                params![
                    self.run,
                    step,
                    split,
                    method.name(),
                    context_length,
                    windows,
                    tokens,
                    nll,
                    perplexity,
                    nll_low,
                    nll_high,
                    super::query::numbers_to_json(window_nll)
                ],
            ),
            EventKind::PositionNll { step, split, start, end, tokens, nll } => self.execute(
                "INSERT OR REPLACE INTO position_nll (run, step, split, start, \"end\", tokens, nll)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![self.run, step, split, start, end, tokens, nll],
            ),
            EventKind::Memory { step, phase, allocated, reserved, peak_allocated, peak_reserved } => {
                run.raise_peaks(*peak_allocated, *peak_reserved);
                self.execute(
                    "INSERT OR REPLACE INTO memory (run, step, phase, allocated, reserved, peak_allocated, peak_reserved)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![self.run, step, phase, allocated, reserved, peak_allocated, peak_reserved],
                )
            }
            EventKind::Sample { step, prompt, text } => self.execute(
                "INSERT OR REPLACE INTO samples (run, seq, step, prompt, text) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![self.run, event.seq, step, prompt, text],
            ),
            EventKind::Fact { name, value } => self.execute(
                "INSERT OR REPLACE INTO facts (run, name, value) VALUES (?1, ?2, ?3)",
                params![self.run, name, value.to_string()],
            ),
            EventKind::Checkpoint { step, path, bytes } => self.execute(
                "INSERT OR REPLACE INTO artifacts (run, seq, kind, step, path, bytes)
                 VALUES (?1, ?2, 'checkpoint', ?3, ?4, ?5)",
                params![self.run, event.seq, step, path, bytes],
            ),
            EventKind::Heartbeat { .. } => Ok(()),
            EventKind::Warning { .. } => self.meta(event, "warning"),
            EventKind::Control { .. } => self.meta(event, "control"),
            EventKind::Finished { step, tokens, .. } => {
                run.step = *step;
                run.tokens = *tokens;
                self.ended(event, run, Status::Finished, None)
            }
            EventKind::Stopped { reason, .. } => {
                self.ended(event, run, Status::Stopped, Some(reason.clone()))
            }
            EventKind::OutOfMemory { step, phase, asked, free, total, message } => {
                run.asked_bytes = *asked;
                run.free_bytes = *free;
                let quantities = [("asked for", asked), ("free", free), ("in all", total)];
                let known: Vec<_> = quantities
                    .iter()
                    .filter_map(|(what, bytes)| bytes.map(|n| format!("{what} {}", Bytes(n))))
                    .collect();
                let what = if known.is_empty() { message.clone() } else { known.join(", ") };
                let detail = format!("{phase} of step {step}: {what}");
                self.ended(event, run, Status::OutOfMemory, Some(detail))
            }
            EventKind::Diverged { step, loss, reason } => {
                let detail = format!("step {step}: loss {loss}: {reason}");
                self.ended(event, run, Status::Diverged, Some(detail))
            }
            EventKind::Failed { error } => {
                self.ended(event, run, Status::Failed, Some(error.clone()))
            }
        }
    }

    /// A new attempt. What an earlier one did beyond the checkpoint that this one resumes from is undone: a tail of steps
    /// that this attempt never reaches must not look like its own.
    fn started(&mut self, event: &Event, run: &mut Run) -> Result<()> {
        let EventKind::Started {
            attempt,
            resumed_from_step,
            pid: _,
            code_version,
            git_commit,
            git_dirty,
            host,
            device,
            device_name,
            driver,
            libtorch,
            threads,
            seed: _,
            environment,
        } = &event.kind
        else {
            unreachable!("only called for the start of an attempt")
        };
        self.cut_after(*resumed_from_step)?;
        run.step = *resumed_from_step;
        run.tokens = self.value_at("tokens", run.step)?.map_or(0, |tokens| tokens as u64);
        run.last_loss = self.value_at("loss", run.step)?;
        run.earlier_seconds = run.seconds;
        run.seconds = run.earlier_seconds + event.elapsed_seconds;
        run.status = Status::Running;
        run.status_detail = None;
        run.attempt = *attempt;
        run.started_at = Some(event.time);
        run.ended_at = None;
        run.asked_bytes = None;
        run.free_bytes = None;
        run.code_version = Some(code_version.clone());
        run.git_commit = git_commit.clone();
        run.git_dirty = *git_dirty;
        run.host = Some(host.clone());
        run.device = Some(device.clone());
        run.device_name = Some(device_name.clone());
        run.driver = driver.clone();
        run.libtorch = Some(libtorch.clone());
        run.threads = Some(*threads as u64);
        run.environment = Some(environment.clone());
        Ok(())
    }

    fn ended(
        &self,
        event: &Event,
        run: &mut Run,
        status: Status,
        detail: Option<String>,
    ) -> Result<()> {
        run.status = status;
        run.status_detail = detail;
        run.ended_at = Some(event.time);
        self.meta(event, status.name())
    }

    fn metric(&mut self, key: &str, step: u64, value: f64) -> Result<()> {
        let id = match self.keys.get(key) {
            Some(id) => *id,
            None => {
                self.connection.execute("INSERT INTO metric_keys (key) VALUES (?1)", [key])?;
                let id = self.connection.last_insert_rowid();
                self.keys.insert(key.to_string(), id);
                id
            }
        };
        // SQLite stores a NaN as NULL by itself.
        self.metric.execute(params![self.run, id, step, value])?;
        Ok(())
    }

    fn value_at(&self, key: &str, step: u64) -> Result<Option<f64>> {
        let sql = "SELECT m.value FROM metrics m JOIN metric_keys k ON k.id = m.key WHERE m.run = ?1 AND k.key = ?2 AND m.step = ?3";
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement
            .query_row(params![self.run, key, step], |row| row.get(0))
            .optional()?
            .flatten())
    }

    fn meta(&self, event: &Event, kind: &str) -> Result<()> {
        self.execute(
            "INSERT OR REPLACE INTO events_meta (run, seq, time, kind, body) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![self.run, event.seq, event.time, kind, serde_json::to_string(event)?],
        )
    }

    /// Removes what belongs to steps after `step`; all of it, facts included, when the run starts afresh.
    fn cut_after(&self, step: u64) -> Result<()> {
        for table in ["metrics", "perplexity", "position_nll", "memory", "samples", "artifacts"] {
            // Step 0 is before the first: a fresh start measures it again.
            let sql = format!("DELETE FROM {table} WHERE run = ?1 AND (step > ?2 OR ?2 = 0)");
            self.execute(&sql, params![self.run, step])?;
        }
        if step == 0 {
            self.execute("DELETE FROM facts WHERE run = ?1", [self.run])?;
        }
        Ok(())
    }

    /// Removes everything that events brought.
    fn forget(&self) -> Result<()> {
        self.cut_after(0)?;
        self.execute("DELETE FROM events_meta WHERE run = ?1", [self.run])
    }

    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<()> {
        self.connection.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }
}

/// `None` for NaN, as the store has it.
fn number(x: f64) -> Option<f64> {
    (!x.is_nan()).then_some(x)
}
