//! The rows of one store held against those of another, run by run: what a store has against what the runs' folders make.
//!
//! Rows of a table are compared by a digest of all of them together, whatever their order: that they differ is what there is to
//! know, since all of them are made anew.

use super::rebuild::FROM_FOLDERS;
use super::{Status, Store};
use anyhow::Result;
use rusqlite::types::ValueRef;
use serde_json::Value;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Rows of one table: how many, and the sum of their digests.
type Digest = (u64, u64);

/// What a store says of one run.
#[derive(Default)]
pub(super) struct Rows {
    /// By table; of a table in which it has no row there is nothing.
    tables: BTreeMap<&'static str, Digest>,
    /// The columns of its row in `runs`.
    columns: BTreeMap<String, Value>,
    params: BTreeMap<String, String>,
}

/// Columns of `runs` that say something else in every store, or are compared in another way.
const NOT_COMPARED: [&str; 5] = ["id", "config", "digests", "status", "status_detail"];

impl Rows {
    /// What differs, in words; `self` is what the folder makes. `has_verdicts` says whether the folder keeps verdicts: without
    /// them an earlier version's stand in the database alone.
    pub fn differences(&self, found: &Rows, has_verdicts: bool) -> Vec<String> {
        let mut said = Vec::new();
        for table in FROM_FOLDERS.into_iter().filter(|table| has_verdicts || *table != "verdicts") {
            let of = |rows: &Rows| rows.tables.get(table).copied().unwrap_or_default();
            let ((made, made_of), (there, there_of)) = (of(self), of(found));
            if made != there {
                said.push(format!("its log makes {made} rows of {table}, found {there}"));
            } else if made_of != there_of {
                said.push(format!("its log makes other rows of {table} than are there"));
            }
        }
        let mut columns = self.other_columns(found);
        if self.other_status(found, has_verdicts) {
            columns.push("status");
        }
        for key in ["config", "digests"] {
            if !agree(&parsed(&self.columns[key]), &parsed(&found.columns[key])) {
                columns.push(key);
            }
        }
        if !columns.is_empty() {
            said.push(format!("its folder makes another {}", columns.join(", ")));
        }
        let is_other = |(key, value): (&String, &String)| {
            found.params.get(key).is_some_and(|there| there != value)
        };
        let params = self.params.iter().filter(|param| is_other(*param)).count();
        if params > 0 {
            said.push(format!("its folder makes other values of {params} parameters"));
        }
        said
    }

    fn other_columns<'a>(&'a self, found: &Rows) -> Vec<&'a str> {
        let columns = self.columns.iter().filter(|(name, value)| {
            !NOT_COMPARED.contains(&name.as_str()) && found.columns.get(*name) != Some(value)
        });
        columns.map(|(name, _)| name.as_str()).collect()
    }

    /// A run that a worker has just been given is `running` in its store alone; and an earlier version's verdicts are.
    fn other_status(&self, found: &Rows, has_verdicts: bool) -> bool {
        let status = |rows: &Rows| rows.columns["status"].as_str().and_then(|s| s.parse().ok());
        let (made, there): (Option<Status>, Option<Status>) = (status(self), status(found));
        let open = [Some(Status::Planned), Some(Status::Running), Some(Status::Lost)];
        made != there && there != Some(Status::Running) && (has_verdicts || !open.contains(&made))
    }
}

/// Keys that only one of them has came or went with a version.
fn agree(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.iter().all(|(key, value)| b.get(key).is_none_or(|other| agree(value, other)))
        }
        _ => a == b,
    }
}

fn parsed(column: &Value) -> Value {
    column.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

impl Store {
    /// What the store says of every run.
    pub(super) fn rows_by_run(&self) -> Result<BTreeMap<String, Rows>> {
        let mut runs: BTreeMap<String, Rows> = BTreeMap::new();
        let mut statement = self.connection.prepare("SELECT * FROM runs")?;
        let names: Vec<String> = statement.column_names().map(String::from).collect();
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            let of = |at: usize| row.get_ref(at).map(json);
            let columns = names.iter().enumerate().map(|(at, name)| Ok((name.clone(), of(at)?)));
            let columns: BTreeMap<String, Value> = columns.collect::<rusqlite::Result<_>>()?;
            let run_id = columns["run_id"].as_str().unwrap_or_default().to_string();
            runs.entry(run_id).or_default().columns = columns;
        }
        let params = "SELECT r.run_id, p.key, p.value FROM params p JOIN runs r ON r.id = p.run";
        for (run_id, key, value) in
            self.rows(params, [], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)))?
        {
            runs.entry(run_id).or_default().params.insert(key, value);
        }
        for table in FROM_FOLDERS.into_iter().filter(|table| !["runs", "params"].contains(table)) {
            self.digest(table, &mut runs)?;
        }
        Ok(runs)
    }

    fn digest(&self, table: &'static str, runs: &mut BTreeMap<String, Rows>) -> Result<()> {
        let columns: Vec<String> = self.rows(
            "SELECT name FROM pragma_table_info(?1) WHERE name != 'run' ORDER BY name",
            [table],
            |row| Ok(row.get(0)?),
        )?;
        let columns: Vec<String> = columns
            .into_iter()
            .filter_map(|name| match (table, name.as_str()) {
                // Keys have other numbers in another store.
                ("metrics" | "metric_summaries", "key") => {
                    Some("(SELECT key FROM metric_keys WHERE id = x.key)".into())
                }
                // What a verdict says of an attempt that said nothing itself is compared as the verdict that it is.
                ("attempts", "status" | "status_detail") => {
                    Some(format!("CASE WHEN x.ended_at IS NOT NULL THEN x.{name} END"))
                }
                // A store of version 1 did not keep it.
                ("attempts", "step") => None,
                _ => Some(format!("x.{name}")),
            })
            .collect();
        let sql = format!(
            "SELECT r.run_id, {} FROM {table} x JOIN runs r ON r.id = x.run ORDER BY x.run",
            columns.join(", ")
        );
        let mut statement = self.connection.prepare(&sql)?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            let run_id = row.get_ref(0)?.as_str()?;
            let mut hasher = DefaultHasher::new();
            for at in 1..=columns.len() {
                hash(row.get_ref(at)?, &mut hasher);
            }
            if !runs.contains_key(run_id) {
                runs.insert(run_id.to_string(), Rows::default());
            }
            let rows = runs.get_mut(run_id).expect("it was just put there");
            let (count, sum) = rows.tables.entry(table).or_default();
            (*count, *sum) = (*count + 1, sum.wrapping_add(hasher.finish()));
        }
        Ok(())
    }
}

fn hash(value: ValueRef, hasher: &mut DefaultHasher) {
    match value {
        ValueRef::Null => 0u8.hash(hasher),
        ValueRef::Integer(n) => (1u8, n).hash(hasher),
        ValueRef::Real(x) => (2u8, x.to_bits()).hash(hasher),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => (3u8, bytes).hash(hasher),
    }
}

fn json(value: ValueRef) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(n) => n.into(),
        // JSON has no infinity.
        ValueRef::Real(x) => Value::from(x.to_bits()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            String::from_utf8_lossy(bytes).into_owned().into()
        }
    }
}
