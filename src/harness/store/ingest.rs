//! From event logs to rows: every kind of event has one place in the schema.
//!
//! A stretch of a log is one transaction; the run's row is held in memory meanwhile and written back with `log_offset` and
//! `last_seq` in the same commit, so that what is read is read once. Events are counted on without a gap: a log that has lost
//! lines is told of.

use super::lines::{self, Line, Step, Stretch};
use super::metrics::Metrics;
use super::verdict::{self, Verdict};
use super::{Run, Status, Store, explain};
use anyhow::{Context, Result, anyhow};
use fathom_spec::record::{Event, EventKind, RunId, RunPaths};
use fathom_spec::units::Bytes;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
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
        self.hold_file()?;
        let paths = RunPaths::in_results(&self.results, run_id);
        let log = paths.events();
        let run = self.known_run(run_id)?;
        // What can't be read of them is named by whoever writes or rebuilds them.
        let verdicts = Verdict::read_all(&paths).unwrap_or_default();
        let none_new = verdicts.len() <= verdict::known(&self.connection, run.id)?.len();
        if length(&log) == run.log_offset && none_new || !paths.folder.is_dir() {
            return Ok(Ingested { events: 0, status: run.status });
        }
        self.in_transaction(|transaction| {
            // Again, now that nobody else writes.
            let run = Run::load(transaction, run_id)?
                .ok_or_else(|| anyhow!("run {run_id}: expected a run of the store, found none"))?;
            let anew = length(&log) < run.log_offset;
            let stretch = lines::read(&log, if anew { 0 } else { run.log_offset })?;
            apply(transaction, run, &stretch, &verdicts, anew)
        })
    }

    /// Does something in a transaction of its own; all of it is there afterwards, or nothing.
    pub(super) fn in_transaction<T>(
        &mut self,
        write: impl FnOnce(&Connection) -> Result<T>,
    ) -> Result<T> {
        let path = Store::path(&self.results);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| explain::opening(&path, error.into()))?;
        let done = write(&transaction).map_err(|error| explain::using(&path, error))?;
        transaction.commit().map_err(|error| explain::using(&path, error.into()))?;
        Ok(done)
    }
}

fn length(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |file| file.len())
}

/// Applies a stretch of a run's log that begins where the store has read up to, or at its beginning where the log is `anew`;
/// and of all `verdicts` on the run those that the store does not have yet, each at its place between the events.
pub(super) fn apply(
    connection: &Connection,
    mut run: Run,
    stretch: &Stretch,
    verdicts: &[Verdict],
    anew: bool,
) -> Result<Ingested> {
    let mut writer = Writer::new(connection, run.id)?;
    if anew {
        writer.forget()?;
        run = run.planned();
    }
    let known = match verdicts {
        [] => 0,
        _ => verdict::known(connection, run.id)?.len(),
    };
    stretch.follows(run.last_seq).with_context(|| format!("run {}", run.run_id))?;
    let mut pending = verdicts.iter().enumerate().skip(known).peekable();
    let mut new = 0;
    for line in &stretch.lines {
        let seq = line.seq();
        while let Some((number, verdict)) = pending.next_if(|(_, v)| v.after_seq < seq as i64) {
            writer.judge(number, verdict, &mut run)?;
        }
        let run_id = run.run_id.clone();
        writer
            .apply(line, &mut run)
            .with_context(|| format!("run {run_id}: event {seq} can't be recorded"))?;
        run.last_seq = seq as i64;
        new += 1;
    }
    for (number, verdict) in pending {
        writer.judge(number, verdict, &mut run)?;
    }
    let run_id = run.run_id.clone();
    run.log_offset = stretch.end;
    writer.finish(&run).with_context(|| format!("run {run_id}: its events can't be recorded"))?;
    Ok(Ingested { events: new, status: run.status })
}

/// Where one run's events go.
pub(super) struct Writer<'c> {
    pub(super) connection: &'c Connection,
    run: i64,
    metrics: Metrics<'c>,
    /// The columns of a step's scalars, in their order; found at the first step.
    step: Option<[usize; 8]>,
}

impl<'c> Writer<'c> {
    fn new(connection: &'c Connection, run: i64) -> Result<Writer<'c>> {
        Ok(Writer { connection, run, metrics: Metrics::new(connection, run)?, step: None })
    }

    /// Writes what has been gathered, and how the run and its attempt stand.
    fn finish(self, run: &Run) -> Result<()> {
        self.leave_attempt(run)?;
        self.metrics.finish()?;
        run.save(self.connection)
    }

    fn apply(&mut self, line: &Line, run: &mut Run) -> Result<()> {
        let begins =
            matches!(line, Line::Other(event) if matches!(event.kind, EventKind::Started { .. }));
        if !begins {
            run.seconds = run.earlier_seconds + line.elapsed_seconds();
            if run.status == Status::Lost {
                self.heard_again(run)?;
            }
        }
        match line {
            Line::Step(step) => self.step(step, run),
            Line::Other(event) => self.event(event, run),
        }
    }

    fn step(&mut self, step: &Step, run: &mut Run) -> Result<()> {
        run.step = step.step;
        run.tokens = step.tokens;
        run.last_loss = number(step.loss);
        run.raise_peaks(step.peak_allocated, step.peak_reserved);
        let scalars = step.scalars();
        let columns = match self.step {
            Some(columns) => columns,
            None => {
                let mut columns = [0; 8];
                for (column, (key, _)) in columns.iter_mut().zip(scalars) {
                    *column = self.metrics.column(key)?;
                }
                *self.step.insert(columns)
            }
        };
        for (column, (_, value)) in columns.into_iter().zip(scalars) {
            self.metrics.add_to(column, step.step, value);
        }
        Ok(())
    }

    /// Puts one event where it belongs: into its table, and what it says of the run into `run`.
    fn event(&mut self, event: &Event, run: &mut Run) -> Result<()> {
        match &event.kind {
            EventKind::Started { .. } => {
                self.started(event, run)?;
                self.meta(event, "started")
            }
            EventKind::Step { .. } => unreachable!("a step is a line of its own kind"),
            EventKind::Eval { step, split, loss, tokens: _ } => {
                self.metrics.add(&format!("eval_loss.{split}"), *step, *loss)
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
            pid,
            code_version,
            git_commit,
            git_dirty,
            host,
            device,
            device_name,
            driver,
            libtorch,
            threads,
            environment,
            ..
        } = &event.kind
        else {
            unreachable!("only called for the start of an attempt")
        };
        self.leave_attempt(run)?;
        // Another has begun: one that never said how it ended, and of which nobody else did, has none.
        self.execute(
            "UPDATE attempts SET status = 'lost' WHERE run = ?1 AND status = 'running'",
            [self.run],
        )?;
        self.metrics.flush()?;
        self.cut_after(*resumed_from_step)?;
        self.metrics.summarize_anew()?;
        self.execute(
            "INSERT OR REPLACE INTO attempts (run, seq, attempt, resumed_from_step, started_at, status, seconds, host, pid,
               code_version, git_commit, git_dirty, device, device_name, driver, libtorch, threads)
             VALUES (?1, ?2, ?3, ?4, ?5, 'running', 0, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
            params![
                self.run,
                event.seq,
                attempt,
                resumed_from_step,
                event.time,
                host,
                pid,
                code_version,
                git_commit,
                git_dirty,
                device,
                device_name,
                driver,
                libtorch,
                threads
            ],
        )?;
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

    /// An attempt that was taken for lost says more: its host was only silent.
    fn heard_again(&self, run: &mut Run) -> Result<()> {
        run.status = Status::Running;
        run.status_detail = None;
        self.execute(
            "UPDATE attempts SET status = 'running', status_detail = NULL
             WHERE run = ?1 AND status = 'lost' AND seq = (SELECT max(seq) FROM attempts WHERE run = ?1)",
            [self.run],
        )
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
        self.execute(
            "UPDATE attempts SET ended_at = ?2, status = ?3, status_detail = ?4
             WHERE run = ?1 AND seq = (SELECT max(seq) FROM attempts WHERE run = ?1)",
            params![self.run, run.ended_at, status.name(), run.status_detail],
        )?;
        self.meta(event, status.name())
    }

    /// Writes how far the last attempt got; it is the one that `run` tells of.
    fn leave_attempt(&self, run: &Run) -> Result<()> {
        self.execute(
            "UPDATE attempts SET seconds = ?2, step = ?3
             WHERE run = ?1 AND seq = (SELECT max(seq) FROM attempts WHERE run = ?1)",
            params![self.run, run.seconds - run.earlier_seconds, run.step],
        )
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
    fn forget(&mut self) -> Result<()> {
        self.cut_after(0)?;
        self.metrics.summarize_anew()?;
        self.execute("DELETE FROM attempts WHERE run = ?1", [self.run])?;
        self.execute("DELETE FROM verdicts WHERE run = ?1", [self.run])?;
        self.execute("DELETE FROM events_meta WHERE run = ?1", [self.run])
    }

    pub(super) fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<()> {
        self.connection.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }
}

/// `None` for NaN, as the store has it.
fn number(x: f64) -> Option<f64> {
    (!x.is_nan()).then_some(x)
}
