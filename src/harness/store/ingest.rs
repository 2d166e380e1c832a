//! Events into tables: every kind has its place, and the position in the log is kept in the same transaction.

use super::Store;
use anyhow::{Context, Result, ensure};
use fathom_spec::record::{Event, EventKind, read_events};
use rusqlite::{Transaction, params};
use std::collections::HashMap;

impl Store {
    /// Takes in what has come to a run's log since the last time, and says how many events that was.
    ///
    /// # Errors
    ///
    /// When the store does not know the run, the log is damaged, or the database refuses; nothing is taken in then.
    pub fn ingest_run(&mut self, run_id: &str) -> Result<usize> {
        let events = self.paths(run_id).events();
        let transaction = self.connection.transaction()?;
        let (run, offset, last_seq): (i64, i64, i64) = transaction
            .query_row(
                "SELECT id, log_offset, last_seq FROM runs WHERE run_id = ?1",
                [run_id],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .with_context(|| format!("run {run_id}: expected a run that the store knows"))?;
        if !events.exists() {
            return Ok(0);
        }
        let length = std::fs::metadata(&events)?.len();
        ensure!(
            length >= offset as u64,
            "{}: expected at least the {offset} bytes that were read before, found {length}",
            events.display()
        );
        let (events, whole) = read_events(&events, offset as u64)?;
        let mut ingest = Ingest { transaction: &transaction, run, keys: HashMap::new() };
        let mut taken = 0;
        let mut last = last_seq;
        for event in events.iter().filter(|event| event.seq as i64 > last_seq) {
            ingest.event(event)?;
            last = last.max(event.seq as i64);
            taken += 1;
        }
        transaction.execute(
            "UPDATE runs SET log_offset = ?2, last_seq = ?3 WHERE id = ?1",
            params![run, whole as i64, last],
        )?;
        transaction.commit()?;
        Ok(taken)
    }
}

struct Ingest<'a> {
    transaction: &'a Transaction<'a>,
    run: i64,
    /// Ids of metric keys.
    keys: HashMap<String, i64>,
}

impl Ingest<'_> {
    fn execute(&self, sql: &str, values: impl rusqlite::Params) -> Result<usize> {
        Ok(self.transaction.prepare_cached(sql)?.execute(values)?)
    }

    fn event(&mut self, event: &Event) -> Result<()> {
        let run = self.run;
        match &event.kind {
            EventKind::Started {
                attempt,
                resumed_from_step,
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
            } => {
                self.execute(
                    "UPDATE runs SET status = 'running', status_detail = NULL, attempt = ?2, started_at = ?3, ended_at = NULL,
                     step = ?4, code_version = ?5, git_commit = ?6, git_dirty = ?7, host = ?8, device = ?9, device_name = ?10,
                     driver = ?11, libtorch = ?12, threads = ?13, environment = ?14, asked_bytes = NULL, free_bytes = NULL
                     WHERE id = ?1",
                    params![
                        run, attempt, event.time, *resumed_from_step as i64, code_version, git_commit, git_dirty, host,
                        device, device_name, driver, libtorch, *threads as i64, serde_json::to_string(environment)?
                    ],
                )?;
                // Steps that the earlier attempt did past its checkpoint will be done again.
                for table in ["metrics", "perplexity", "position_nll", "memory"] {
                    let sql = format!("DELETE FROM {table} WHERE run = ?1 AND step > ?2");
                    self.execute(&sql, params![run, *resumed_from_step as i64])?;
                }
                self.meta(event)?;
            }
            EventKind::Fact { name, value } => {
                self.execute(
                    "INSERT INTO facts (run, name, value) VALUES (?1, ?2, ?3)
                     ON CONFLICT (run, name) DO UPDATE SET value = excluded.value",
                    params![run, name, value.to_string()],
                )?;
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
                self.execute(
                    "UPDATE runs SET step = ?2, tokens = ?3, last_loss = ?4,
                     peak_allocated = max(coalesce(peak_allocated, 0), ?5), peak_reserved = max(coalesce(peak_reserved, 0), ?6)
                     WHERE id = ?1",
                    params![run, *step as i64, *tokens as i64, loss, *peak_allocated as i64, *peak_reserved as i64],
                )?;
            }
            EventKind::Eval { step, split, loss, .. } => {
                self.metric(&format!("eval_loss.{split}"), *step, *loss)?
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
            } => {
                self.execute(
                    "INSERT OR REPLACE INTO perplexity (run, step, split, method, context_length, windows, tokens, nll,
                     perplexity, nll_low, nll_high, window_nll) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                    params![
                        run, *step as i64, split, method.name(), *context_length as i64, *windows as i64, *tokens as i64,
                        nll, perplexity, nll_low, nll_high, serde_json::to_string(window_nll)?
                    ],
                )?;
            }
            EventKind::PositionNll { step, split, start, end, tokens, nll } => {
                self.execute(
                    "INSERT OR REPLACE INTO position_nll (run, step, split, start, \"end\", tokens, nll)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![run, *step as i64, split, *start as i64, *end as i64, *tokens as i64, nll],
                )?;
            }
            EventKind::Memory {
                step,
                phase,
                allocated,
                reserved,
                peak_allocated,
                peak_reserved,
            } => {
                self.execute(
                    "INSERT OR REPLACE INTO memory (run, step, phase, allocated, reserved, peak_allocated, peak_reserved)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![
                        run, *step as i64, phase, *allocated as i64, *reserved as i64, *peak_allocated as i64,
                        *peak_reserved as i64
                    ],
                )?;
                self.execute(
                    "UPDATE runs SET peak_allocated = max(coalesce(peak_allocated, 0), ?2),
                     peak_reserved = max(coalesce(peak_reserved, 0), ?3) WHERE id = ?1",
                    params![run, *peak_allocated as i64, *peak_reserved as i64],
                )?;
            }
            EventKind::Sample { step, prompt, text } => {
                self.execute(
                    "INSERT OR REPLACE INTO samples (run, seq, step, prompt, text) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![run, event.seq as i64, *step as i64, prompt, text],
                )?;
            }
            EventKind::Checkpoint { step, path, bytes } => {
                self.execute(
                    "INSERT OR REPLACE INTO artifacts (run, seq, kind, step, path, bytes)
                     VALUES (?1, ?2, 'checkpoint', ?3, ?4, ?5)",
                    params![run, event.seq as i64, *step as i64, path, *bytes as i64],
                )?;
            }
            EventKind::Heartbeat { .. } => {}
            EventKind::Warning { .. } | EventKind::Control { .. } => self.meta(event)?,
            EventKind::Finished { .. }
            | EventKind::Stopped { .. }
            | EventKind::OutOfMemory { .. }
            | EventKind::Diverged { .. }
            | EventKind::Failed { .. } => self.ending(event)?,
        }
        Ok(())
    }

    fn ending(&self, event: &Event) -> Result<()> {
        let ending = crate::run::of_event(&event.kind).context("an ending")?;
        let (asked, free) = match &event.kind {
            EventKind::OutOfMemory { asked, free, .. } => {
                (asked.map(|n| n as i64), free.map(|n| n as i64))
            }
            _ => (None, None),
        };
        self.execute(
            "UPDATE runs SET status = ?2, status_detail = ?3, ended_at = ?4, seconds = seconds + ?5, asked_bytes = ?6,
             free_bytes = ?7 WHERE id = ?1",
            params![self.run, ending.status, ending.detail, event.time, event.elapsed_seconds, asked, free],
        )?;
        self.meta(event)
    }

    fn metric(&mut self, key: &str, step: u64, value: f64) -> Result<()> {
        let id = match self.keys.get(key) {
            Some(id) => *id,
            None => {
                self.execute(
                    "INSERT INTO metric_keys (key) VALUES (?1) ON CONFLICT (key) DO NOTHING",
                    [key],
                )?;
                let mut statement =
                    self.transaction.prepare_cached("SELECT id FROM metric_keys WHERE key = ?1")?;
                let id = statement.query_row([key], |row| row.get(0))?;
                self.keys.insert(key.to_string(), id);
                id
            }
        };
        // SQLite stores a bound NaN as NULL.
        self.execute(
            "INSERT OR REPLACE INTO metrics (run, key, step, value) VALUES (?1, ?2, ?3, ?4)",
            params![self.run, id, step as i64, value],
        )?;
        Ok(())
    }

    fn meta(&self, event: &Event) -> Result<()> {
        let body = serde_json::to_value(event)?;
        let kind = body["kind"].as_str().unwrap_or_default().to_string();
        self.execute(
            "INSERT OR REPLACE INTO events_meta (run, seq, time, kind, body) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![self.run, event.seq as i64, event.time, kind, body.to_string()],
        )?;
        Ok(())
    }
}
