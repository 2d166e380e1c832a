//! Scalars on their way into the store: gathered by key, written in the order that the table has, and summarized in the same
//! transaction.
//!
//! A step beyond the last of its key only moves the summary on. One that is written again may have been the smallest or the
//! largest, so that its key is summarized from the table.

use anyhow::Result;
use rusqlite::{CachedStatement, Connection, params};
use std::collections::HashMap;

/// Rows that one statement writes: what each costs beside its row is shared by so many.
const ROWS: usize = 64;

/// The summary of every key of a run (?1), from its rows.
const SUMMARIZE: &str = "INSERT INTO metric_summaries
    SELECT g.run, g.key, l.value, g.last_step,
           g.min, (SELECT min(step) FROM metrics WHERE run = g.run AND key = g.key AND value = g.min),
           g.max, (SELECT min(step) FROM metrics WHERE run = g.run AND key = g.key AND value = g.max),
           g.count, g.nan_count
    FROM (SELECT run, key, max(step) AS last_step, min(value) AS min, max(value) AS max, count(*) AS count,
                 count(*) - count(value) AS nan_count
          FROM metrics WHERE run = ?1 AND (?2 IS NULL OR key = ?2) GROUP BY run, key) g
    JOIN metrics l ON l.run = g.run AND l.key = g.key AND l.step = g.last_step";

/// The scalars of one run.
pub(super) struct Metrics<'c> {
    connection: &'c Connection,
    run: i64,
    columns: Vec<Column>,
    by_key: HashMap<String, usize>,
}

/// A scalar: what is to be written of it, and its summary with what has been written.
struct Column {
    id: i64,
    waiting: Vec<(u64, f64)>,
    summary: Summary,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// The table has this summary.
    Saved,
    /// The summary in memory is newer.
    Newer,
    /// Rows were written again: only the table knows.
    Unknown,
}

#[derive(Clone, Copy, Default)]
struct Summary {
    last: f64,
    last_step: u64,
    min: Option<(f64, u64)>,
    max: Option<(f64, u64)>,
    count: u64,
    nan_count: u64,
}

impl Summary {
    fn add(&mut self, step: u64, value: f64) {
        (self.last, self.last_step) = (value, step);
        self.count += 1;
        if value.is_nan() {
            self.nan_count += 1;
            return;
        }
        if self.min.is_none_or(|(min, _)| value < min) {
            self.min = Some((value, step));
        }
        if self.max.is_none_or(|(max, _)| value > max) {
            self.max = Some((value, step));
        }
    }
}

impl<'c> Metrics<'c> {
    pub fn new(connection: &'c Connection, run: i64) -> Result<Metrics<'c>> {
        let mut metrics = Metrics { connection, run, columns: Vec::new(), by_key: HashMap::new() };
        metrics.load()?;
        Ok(metrics)
    }

    /// Takes in one value. It is in the table after the next [`Metrics::flush`].
    pub fn add(&mut self, key: &str, step: u64, value: f64) -> Result<()> {
        let column = self.column(key)?;
        self.add_to(column, step, value);
        Ok(())
    }

    pub fn add_to(&mut self, column: usize, step: u64, value: f64) {
        self.columns[column].waiting.push((step, value));
    }

    /// The column of a key, which is made known where it is new.
    pub fn column(&mut self, key: &str) -> Result<usize> {
        if let Some(column) = self.by_key.get(key) {
            return Ok(*column);
        }
        self.connection
            .prepare_cached("INSERT INTO metric_keys (key) VALUES (?1)")?
            .execute([key])?;
        let id = self.connection.last_insert_rowid();
        Ok(self.insert(key.to_string(), id))
    }

    fn insert(&mut self, key: String, id: i64) -> usize {
        let column = self.columns.len();
        let (waiting, summary) = (Vec::new(), Summary::default());
        self.columns.push(Column { id, waiting, summary, state: State::Saved });
        self.by_key.insert(key, column);
        column
    }

    /// The summaries as the table has them.
    fn load(&mut self) -> Result<()> {
        let mut statement = self.connection.prepare_cached(
            "SELECT k.key, k.id, s.last, s.last_step, s.min, s.min_step, s.max, s.max_step, s.count, s.nan_count
             FROM metric_keys k LEFT JOIN metric_summaries s ON s.run = ?1 AND s.key = k.id",
        )?;
        let mut rows = statement.query([self.run])?;
        while let Some(row) = rows.next()? {
            let key: String = row.get(0)?;
            let column = match self.by_key.get(&key) {
                Some(column) => *column,
                None => self.insert(key, row.get(1)?),
            };
            let extreme = |at: usize| -> rusqlite::Result<Option<(f64, u64)>> {
                Ok(row.get::<_, Option<f64>>(at)?.zip(row.get::<_, Option<u64>>(at + 1)?))
            };
            self.columns[column].state = State::Saved;
            self.columns[column].summary = match row.get::<_, Option<u64>>(8)? {
                None => Summary::default(),
                Some(count) => Summary {
                    last: row.get::<_, Option<f64>>(2)?.unwrap_or(f64::NAN),
                    last_step: row.get(3)?,
                    min: extreme(4)?,
                    max: extreme(6)?,
                    count,
                    nan_count: row.get(9)?,
                },
            };
        }
        Ok(())
    }

    /// Writes what waits.
    pub fn flush(&mut self) -> Result<()> {
        let mut waiting: Vec<&mut Column> =
            self.columns.iter_mut().filter(|column| !column.waiting.is_empty()).collect();
        waiting.sort_by_key(|column| column.id);
        for column in waiting {
            column.flush(self.connection, self.run)?;
        }
        Ok(())
    }

    /// Writes what waits, and the summaries.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        for column in &self.columns {
            match column.state {
                State::Saved => {}
                State::Newer => column.save(self.connection, self.run)?,
                State::Unknown => {
                    let of = params![self.run, column.id];
                    let forget = "DELETE FROM metric_summaries WHERE run = ?1 AND key = ?2";
                    self.connection.prepare_cached(forget)?.execute(of)?;
                    self.connection.prepare_cached(SUMMARIZE)?.execute(of)?;
                }
            }
        }
        Ok(())
    }

    /// After rows were removed behind our back: all summaries from the table.
    pub fn summarize_anew(&mut self) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM metric_summaries WHERE run = ?1")?
            .execute([self.run])?;
        self.connection.prepare_cached(SUMMARIZE)?.execute(params![self.run, None::<i64>])?;
        self.load()
    }
}

impl Column {
    fn flush(&mut self, connection: &Connection, run: i64) -> Result<()> {
        let rows = &mut self.waiting;
        if !rows.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            // Of a step that is there twice, the later value stands: the sort keeps their order.
            rows.sort_by_key(|(step, _)| *step);
            rows.dedup_by(|later, kept| {
                let same = later.0 == kept.0;
                if same {
                    kept.1 = later.1;
                }
                same
            });
        }
        let appends = self.summary.count == 0 || rows[0].0 > self.summary.last_step;
        if appends && self.state != State::Unknown {
            append(connection, run, self.id, rows)?;
            rows.iter().for_each(|(step, value)| self.summary.add(*step, *value));
            self.state = State::Newer;
        } else {
            let mut write = connection.prepare_cached(
                "INSERT INTO metrics (run, key, step, value) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET value = excluded.value",
            )?;
            for (step, value) in rows.iter() {
                // SQLite stores a NaN as NULL by itself.
                write.execute(params![run, self.id, step, value])?;
            }
            self.state = State::Unknown;
        }
        rows.clear();
        Ok(())
    }

    fn save(&self, connection: &Connection, run: i64) -> Result<()> {
        let Summary { last, last_step, min, max, count, nan_count } = self.summary;
        connection
            .prepare_cached(
                "INSERT INTO metric_summaries VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT DO UPDATE SET last = excluded.last, last_step = excluded.last_step, min = excluded.min,
                   min_step = excluded.min_step, max = excluded.max, max_step = excluded.max_step,
                   count = excluded.count, nan_count = excluded.nan_count",
            )?
            .execute(params![
                run,
                self.id,
                last,
                last_step,
                min.map(|m| m.0),
                min.map(|m| m.1),
                max.map(|m| m.0),
                max.map(|m| m.1),
                count,
                nan_count
            ])?;
        Ok(())
    }
}

/// Writes rows that the table has none of yet.
fn append(connection: &Connection, run: i64, key: i64, rows: &[(u64, f64)]) -> Result<()> {
    let mut chunks = rows.chunks_exact(ROWS);
    if rows.len() >= ROWS {
        let mut many = connection.prepare_cached(&insert_of(ROWS))?;
        for chunk in &mut chunks {
            insert(&mut many, run, key, chunk)?;
        }
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let mut one = connection.prepare_cached(&insert_of(1))?;
        for row in rest.chunks(1) {
            insert(&mut one, run, key, row)?;
        }
    }
    Ok(())
}

fn insert(into: &mut CachedStatement, run: i64, key: i64, rows: &[(u64, f64)]) -> Result<()> {
    into.raw_bind_parameter(1, run)?;
    into.raw_bind_parameter(2, key)?;
    for (i, (step, value)) in rows.iter().enumerate() {
        into.raw_bind_parameter(2 * i + 3, step)?;
        into.raw_bind_parameter(2 * i + 4, value)?;
    }
    into.raw_execute()?;
    Ok(())
}

fn insert_of(rows: usize) -> String {
    let places: Vec<_> =
        (0..rows).map(|i| format!("(?1, ?2, ?{}, ?{})", 2 * i + 3, 2 * i + 4)).collect();
    format!("INSERT INTO metrics (run, key, step, value) VALUES {}", places.join(", "))
}
