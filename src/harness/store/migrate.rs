//! Versions of the schema: forward only, with a copy of the database beside it before anything is changed.
//!
//! A version is a script. A database that a reader may not change, and that is of an earlier version, is carried forward in
//! a private copy.

use super::Store;
use anyhow::{Context, Result, bail};
use rusqlite::backup::Backup;
use rusqlite::{Connection, TransactionBehavior};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `fath` in ASCII, in the header of every database of ours (`PRAGMA application_id`).
const APPLICATION_ID: i32 = 0x6661_7468;

/// What brings a database from version N (`PRAGMA user_version`) to N + 1. Only ever appended to.
const MIGRATIONS: [&str; 5] = [
    include_str!("schema.sql"),
    include_str!("migrations/2.sql"),
    include_str!("migrations/3.sql"),
    include_str!("migrations/4.sql"),
    include_str!("migrations/5.sql"),
];

/// The version that this program writes.
pub(super) const VERSION: usize = MIGRATIONS.len();

/// The version of a database that is ours, or 0 of one that is empty.
pub(super) fn check_ours(connection: &Connection, path: &Path) -> Result<usize> {
    let path = path.display();
    // One statement, so that all three are of one moment.
    let (application, version, tables): (i32, i64, i64) = connection.query_row(
        "SELECT (SELECT application_id FROM pragma_application_id), (SELECT user_version FROM pragma_user_version),
                (SELECT count(*) FROM sqlite_schema)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    if application != APPLICATION_ID && (application, version, tables) != (0, 0, 0) {
        bail!(
            "{path}: expected a database of fathom, found another program's\n  help: --results names another results folder"
        );
    }
    match usize::try_from(version) {
        Ok(version) if version <= VERSION => Ok(version),
        _ => bail!(
            "{path}: expected a store of version {VERSION} or less, found version {version}\n  help: a newer fathom wrote it; use that one, or name another folder with --results"
        ),
    }
}

/// Brings a database up to date, and says of which version it was. One that holds something is copied first, to
/// `fathom.db.v1.backup` and so on.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<usize> {
    let found = version(connection)?;
    if found == VERSION {
        return Ok(found);
    }
    if found > 0 {
        keep_backup(connection, path, found)?;
    }
    apply(connection)?;
    Ok(found)
}

/// An earlier version's database, carried forward in a private copy that nobody else sees.
pub(super) fn carried_forward(connection: &Connection) -> Result<Connection> {
    // Without a name: SQLite keeps it in memory, and in a nameless temporary file where it is large.
    let mut copy = Connection::open("")?;
    copy_all(connection, &mut copy)?;
    apply(&mut copy)?;
    Ok(copy)
}

/// Copies a database page by page, as it stands at one moment, over what `to` has.
pub(super) fn copy_all(from: &Connection, to: &mut Connection) -> Result<()> {
    Backup::new(from, to)?.run_to_completion(i32::MAX, Duration::from_millis(10), None)?;
    Ok(())
}

/// What the schema of a database of this version lacks, or has otherwise, in words: columns of tables, and the text of
/// views and indexes but for its layout and comments.
pub(super) fn differences(connection: &Connection) -> Result<Vec<String>> {
    let mut new = Connection::open_in_memory()?;
    apply(&mut new)?;
    let found = objects(connection)?;
    let mut said = Vec::new();
    for (name, expected) in objects(&new)? {
        match found.get(&name) {
            None => said.push(format!("expected the {} {name}, found none", expected.kind)),
            Some(found) if *found != expected => {
                said.push(format!(
                    "expected the {} {name} as this version makes it, found another",
                    expected.kind
                ));
            }
            Some(_) => {}
        }
    }
    Ok(said)
}

/// One table, view or index.
#[derive(PartialEq)]
struct Object {
    kind: String,
    /// Of a table.
    columns: Option<String>,
    /// Of a view or an index.
    text: Option<String>,
}

fn objects(connection: &Connection) -> Result<BTreeMap<String, Object>> {
    let mut statement = connection.prepare(
        "SELECT name, type, sql, CASE type WHEN 'table' THEN (SELECT group_concat(name) FROM pragma_table_info(s.name)) END
         FROM sqlite_schema s WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'",
    )?;
    let objects = statement.query_map([], |row| {
        let (name, kind, sql): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let columns: Option<String> = row.get(3)?;
        let text = columns.is_none().then(|| without_layout(&sql));
        Ok((name, Object { kind, columns, text }))
    })?;
    Ok(objects.collect::<rusqlite::Result<_>>()?)
}

fn without_layout(sql: &str) -> String {
    let lines = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

fn version(connection: &Connection) -> rusqlite::Result<usize> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn apply(connection: &mut Connection) -> Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Again, now that nobody else writes: another process may just have done it.
    for (number, migration) in MIGRATIONS.iter().enumerate().skip(version(&transaction)?) {
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", number as i64 + 1)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.commit()?;
    Ok(())
}

/// Where a database of version `found` is copied to before it is changed.
fn backup_path(path: &Path, found: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".v{found}.backup"));
    PathBuf::from(name)
}

fn keep_backup(connection: &Connection, path: &Path, found: usize) -> Result<()> {
    let backup = backup_path(path, found);
    let part = backup.with_extension(format!("{}.part", std::process::id()));
    let copied = (|| -> Result<()> {
        let _ = std::fs::remove_file(&part);
        connection.execute("VACUUM INTO ?1", [part.to_string_lossy()])?;
        // Another process may have brought it up to date meanwhile, with a backup of its own.
        let copy = Connection::open(&part)?;
        if version(&copy)? == found {
            drop(copy);
            std::fs::rename(&part, &backup)?;
        }
        Ok(())
    })();
    let _ = std::fs::remove_file(&part);
    copied.with_context(|| {
        format!(
            "{}: expected to keep a copy of the store before it is brought from version {found} to {VERSION}, and could not write it",
            backup.display()
        )
    })
}

impl Store {
    /// Every table and view of the schema with its kind (`table` or `view`) and the comment that stands above it.
    pub fn schema() -> Vec<(&'static str, &'static str, String)> {
        let mut found: Vec<(&str, &str, String)> = Vec::new();
        for entry in MIGRATIONS.into_iter().flat_map(described) {
            // A later version may put another in its place.
            match found.iter_mut().find(|known| known.0 == entry.0) {
                Some(known) => *known = entry,
                None => found.push(entry),
            }
        }
        found
    }
}

/// The `CREATE TABLE` and `CREATE VIEW` statements of a script: name, kind, and the comment lines just above as one text.
fn described(script: &'static str) -> Vec<(&'static str, &'static str, String)> {
    let mut found = Vec::new();
    let mut comment = Vec::new();
    for line in script.lines() {
        if let Some(text) = line.strip_prefix("-- ") {
            comment.push(text);
            continue;
        }
        let mut words = line.split_whitespace();
        if words.next() == Some("CREATE") {
            let (kind, name) = (words.next(), words.next());
            let kind = [("TABLE", "table"), ("VIEW", "view")]
                .into_iter()
                .find_map(|(word, shown)| (kind == Some(word)).then_some(shown));
            if let (Some(kind), Some(name)) = (kind, name) {
                found.push((name, kind, comment.join(" ")));
            }
        }
        comment.clear();
    }
    found
}
