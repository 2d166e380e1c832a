//! What can still be read of a damaged database, taken over into a new one.
//!
//! The rows of each run are looked up by the run's number, so that a damaged page costs the rows that are on it and no others.

use super::Store;
use super::rebuild::{FROM_FOLDERS, each};
use anyhow::Result;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use std::collections::BTreeMap;

/// Takes over the rows of `runs`, so that their numbers are taken; gives the reasons of those that can't be read.
pub(super) fn runs(
    old: &Connection,
    store: &mut Store,
    ids: &BTreeMap<String, i64>,
) -> Result<BTreeMap<String, String>> {
    store.in_transaction(|new| {
        let mut unread = BTreeMap::new();
        for (name, id) in ids {
            let copied = copy(old, new, "runs", &format!("WHERE id = {id}"), |_, value| value);
            let reason = match copied {
                Copied { rows: 1.., .. } => continue,
                Copied { error: Some(error), .. } => error,
                _ => "its row is not what a run's row is".into(),
            };
            unread.insert(name.clone(), reason);
        }
        Ok(unread)
    })
}

/// Takes over all other rows of the runs in `stay`, by name and number; `lost` says what of them can't be read.
pub(super) fn rows_of_runs(
    old: &Connection,
    store: &mut Store,
    stay: &[(&str, i64)],
    lost: &mut Vec<String>,
) -> Result<()> {
    if stay.is_empty() {
        return Ok(());
    }
    let there = tables(old, lost);
    let mut names = BTreeMap::new();
    each(old, "metric_keys", "SELECT id, key FROM metric_keys", lost, |row| {
        names.insert(row.get::<_, i64>(0)?, row.get::<_, String>(1)?);
        Ok(())
    });
    store.in_transaction(|new| {
        // Keys have other numbers there.
        let mut keys = BTreeMap::new();
        for (id, name) in &names {
            new.execute("INSERT OR IGNORE INTO metric_keys (key) VALUES (?1)", [name])?;
            let sql = "SELECT id FROM metric_keys WHERE key = ?1";
            keys.insert(*id, new.query_row(sql, [name], |row| row.get::<_, i64>(0))?);
        }
        for table in FROM_FOLDERS.into_iter().filter(|table| *table != "runs") {
            if !there.iter().any(|name| name == table) {
                continue;
            }
            let has_key = matches!(table, "metrics" | "metric_summaries");
            let translate = |column: &str, value: Value| match value {
                Value::Integer(id) if has_key && column == "key" => {
                    keys.get(&id).map_or(Value::Null, |key| Value::Integer(*key))
                }
                value => value,
            };
            let (mut of, mut refused) = (Vec::new(), 0);
            for (name, id) in stay {
                let copied = copy(old, new, table, &format!("WHERE run = {id}"), translate);
                refused += copied.refused;
                // Summaries are made again of the rows that they sum up.
                let error = copied.error.filter(|_| table != "metric_summaries");
                of.extend(error.map(|error| (*name, error)));
            }
            if let [(first, error), ..] = &of[..] {
                lost.push(format!(
                    "{table} of {} can't be read whole, and no folder has them: {error}",
                    counted(of.len(), first)
                ));
            }
            if refused > 0 {
                lost.push(format!("{refused} rows of {table} are not what they were"));
            }
        }
        fill_in(new)
    })
}

/// `1 run, a1`, or `7 runs, a1 first`.
pub(super) fn counted(count: usize, first: &str) -> String {
    match count {
        1 => format!("1 run, {first},"),
        _ => format!("{count} runs, {first} first,"),
    }
}

/// What a version 1 does not have, or what could not be read, and other rows say: as the script of version 2 makes it.
fn fill_in(new: &Connection) -> Result<()> {
    let script = include_str!("migrations/2.sql");
    for table in ["metric_summaries", "attempts"] {
        let begin = format!("INSERT INTO {table}\n");
        let at = script.find(&begin).expect("version 2 fills its tables");
        let statement = script[at..].split(';').next().expect("a statement");
        new.execute(&statement.replacen("INSERT", "INSERT OR IGNORE", 1), [])?;
    }
    Ok(())
}

fn tables(connection: &Connection, lost: &mut Vec<String>) -> Vec<String> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid";
    let mut names = Vec::new();
    each(connection, "the schema", sql, lost, |row| {
        names.push(row.get(0)?);
        Ok(())
    });
    names
}

/// Takes over the tables that no folder has: sweeps with their points first. Where sweeps are kept beside the runs, what can't
/// be read of them here is no loss.
pub(super) fn others(
    old: &Connection,
    store: &mut Store,
    sweeps_are_kept: bool,
    lost: &mut Vec<String>,
) -> Result<()> {
    let mut order = vec!["sweeps".to_string(), "points".to_string()];
    for name in tables(&store.connection, lost) {
        if !order.contains(&name) && name != "metric_keys" && !FROM_FOLDERS.contains(&&*name) {
            order.push(name);
        }
    }
    store.in_transaction(|new| {
        // They are named by number there.
        new.execute_batch("DELETE FROM points; DELETE FROM sweeps")?;
        for table in &order {
            let copied = copy(old, new, table, "", |_, value| value);
            if sweeps_are_kept && ["sweeps", "points"].contains(&table.as_str()) {
                continue;
            }
            lost.extend(copied.error.map(|error| format!("{table} can't be read whole: {error}")));
            if copied.refused > 0 {
                let refused = copied.refused;
                lost.push(format!("{refused} rows of {table} name what is not there any more"));
            }
        }
        Ok(())
    })
}

/// What came of copying rows.
#[derive(Default)]
struct Copied {
    rows: usize,
    /// Rows that the new database does not take.
    refused: usize,
    /// Why rows after the last were not read.
    error: Option<String>,
}

/// Copies the rows that a query finds, each value as `translate` has it, as far as they can be read.
fn copy(
    old: &Connection,
    new: &Connection,
    table: &str,
    condition: &str,
    translate: impl Fn(&str, Value) -> Value,
) -> Copied {
    let mut copied = Copied::default();
    let mut all = || -> rusqlite::Result<()> {
        let mut statement = old.prepare_cached(&format!("SELECT * FROM {table} {condition}"))?;
        let names: Vec<String> = statement.column_names().map(ToString::to_string).collect();
        let places = vec!["?"; names.len()].join(", ");
        let columns = names.iter().map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ");
        let insert = format!("INSERT INTO {table} ({columns}) VALUES ({places})");
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let values: Vec<Value> = names
                .iter()
                .enumerate()
                .map(|(i, name)| Ok(translate(name, row.get(i)?)))
                .collect::<rusqlite::Result<_>>()?;
            let inserted = new
                .prepare_cached(&insert)
                .and_then(|mut insert| insert.execute(params_from_iter(values)));
            match inserted {
                Ok(_) => copied.rows += 1,
                Err(_) => copied.refused += 1,
            }
        }
        Ok(())
    };
    let read = all();
    copied.error = read.err().map(|error| error.to_string());
    copied
}
