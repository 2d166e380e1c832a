//! `fathom runs ls|show|diff`.

use super::sql::query;
use super::sweep::Places;
use super::table::{Format, Table};
use crate::store::Store;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use fathom_spec::config::nearest;
use rusqlite::Connection;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

#[derive(Args)]
pub struct RunsArgs {
    #[command(subcommand)]
    command: RunsCommand,
}

#[derive(Subcommand)]
enum RunsCommand {
    /// List runs, newest first
    Ls {
        /// Only the runs of this sweep
        #[arg(long)]
        sweep: Option<String>,
        /// Only runs that stand so: finished, failed, ...
        #[arg(long)]
        status: Option<String>,
        #[arg(long, default_value = "table")]
        format: Format,
        #[command(flatten)]
        places: Places,
    },
    /// Show one run: configuration, facts, last metrics, perplexity
    Show {
        /// Its id, or the beginning of it
        run: String,
        #[command(flatten)]
        places: Places,
    },
    /// Show what two runs differ in
    Diff {
        a: String,
        b: String,
        #[arg(long, default_value = "table")]
        format: Format,
        #[command(flatten)]
        places: Places,
    },
}

/// Carries out `fathom runs …`.
///
/// # Errors
///
/// When there is no store or no such run.
pub fn run(args: RunsArgs) -> Result<()> {
    let text = match args.command {
        RunsCommand::Ls { sweep, status, format, places } => {
            let store = Store::open_read_only(&places.results)?;
            list(store.connection(), sweep.as_deref(), status.as_deref())?.render(format)
        }
        RunsCommand::Show { run, places } => {
            let store = Store::open_read_only(&places.results)?;
            let id = find(store.connection(), &run)?;
            show(store.connection(), &id)?
        }
        RunsCommand::Diff { a, b, format, places } => {
            let store = Store::open_read_only(&places.results)?;
            let (a, b) = (find(store.connection(), &a)?, find(store.connection(), &b)?);
            diff(store.connection(), &a, &b)?.render(format)
        }
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Text in single quotes, for a query of ours.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn list(c: &Connection, sweep: Option<&str>, status: Option<&str>) -> Result<Table> {
    let only = |column: &str, value: Option<&str>| {
        value.map_or("1".to_string(), |value| format!("{column} = {}", quoted(value)))
    };
    query(
        c,
        &format!(
            "SELECT run_id AS run, coalesce(sweep, '') AS sweep, coalesce(label, '') AS point, seed, status, step, tokens,
             last_loss AS loss, round(seconds, 1) AS seconds, device FROM v_runs
             WHERE {} AND {} ORDER BY coalesce(started_at, 0) DESC, run_id",
            only("sweep", sweep),
            only("status", status)
        ),
    )
}

/// The one run whose id begins with `prefix`.
fn find(c: &Connection, prefix: &str) -> Result<String> {
    let mut statement = c.prepare("SELECT run_id FROM runs ORDER BY run_id")?;
    let ids: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let found: Vec<&String> = ids.iter().filter(|id| id.starts_with(prefix)).collect();
    match &found[..] {
        [id] => Ok(id.to_string()),
        [] => {
            let near = nearest(prefix, ids.iter().map(String::as_str));
            let help = near.map_or("`fathom runs ls` lists them".to_string(), |near| {
                format!("did you mean `{near}`?")
            });
            bail!(
                "run {prefix}: expected the id of a run or its beginning, found none of {}\n  help: {help}",
                ids.len()
            )
        }
        several => {
            let list: Vec<&str> = several.iter().map(|id| id.as_str()).collect();
            bail!(
                "run {prefix}: expected the beginning of one id, found that of {}: {}",
                list.len(),
                list.join(", ")
            )
        }
    }
}

/// The values of a two-column query by name.
fn pairs(c: &Connection, sql: &str, id: &str) -> Result<BTreeMap<String, String>> {
    let mut statement = c.prepare(sql)?;
    let rows = statement.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn params(c: &Connection, id: &str) -> Result<BTreeMap<String, String>> {
    pairs(c, "SELECT key, value FROM v_params WHERE run_id = ?1", id)
}

fn facts(c: &Connection, id: &str) -> Result<BTreeMap<String, String>> {
    pairs(
        c,
        "SELECT f.name, f.value FROM facts f JOIN runs r ON r.id = f.run WHERE r.run_id = ?1",
        id,
    )
}

fn last_metrics(c: &Connection, id: &str) -> Result<BTreeMap<String, String>> {
    let sql =
        "SELECT key, coalesce(CAST(value AS TEXT), 'NaN') FROM v_last_metrics WHERE run_id = ?1";
    let all = pairs(c, sql, id)?;
    let short = |text: String| text.parse().map_or(text, fathom_spec::units::format_number);
    Ok(all.into_iter().map(|(key, value)| (key, short(value))).collect())
}

fn show(c: &Connection, id: &str) -> Result<String> {
    let (status, detail, folder, attempt, seconds, device): (String, Option<String>, String, i64, f64, Option<String>) = c
        .query_row(
            "SELECT status, status_detail, folder, attempt, seconds, device_name FROM runs WHERE run_id = ?1",
            [id],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?)),
        )
        .context("the run was just found")?;
    let detail = detail.map(|d| format!(": {d}")).unwrap_or_default();
    let mut text = format!(
        "run {id}: {status}{detail}\n{folder}, attempt {attempt}, {}, {}\n",
        fathom_spec::units::format_seconds(seconds),
        device.unwrap_or_else(|| "not started".into())
    );
    let mut section = |title: &str, table: Table| {
        if !table.is_empty() {
            text += &format!("\n{title}\n{}", table.render(Format::Table));
        }
    };
    let named = |columns: [&str; 2], values: BTreeMap<String, String>| {
        let mut table = Table::new(&columns);
        for (key, value) in values {
            table.row(&[&key, &value]);
        }
        table
    };
    let configured = params(c, id)?.into_iter().filter(|(_, value)| value != "null").collect();
    section("configuration", named(["key", "value"], configured));
    section("facts: what the run met", named(["fact", "value"], facts(c, id)?));
    section("last metrics", named(["metric", "value"], last_metrics(c, id)?));
    let of_run = quoted(id);
    let perplexity = query(
        c,
        &format!(
            "SELECT x.method, x.context_length, x.windows, x.nll, x.perplexity FROM perplexity x JOIN runs r ON r.id = x.run
             WHERE r.run_id = {of_run} AND x.step = (SELECT max(step) FROM perplexity WHERE run = r.id)
             ORDER BY x.method, x.context_length"
        ),
    )?;
    section("perplexity by context length", perplexity);
    let log = query(
        c,
        &format!(
            "SELECT e.kind, coalesce(json_extract(e.body, '$.message'), json_extract(e.body, '$.reason'),
             json_extract(e.body, '$.error'), '') AS said FROM events_meta e JOIN runs r ON r.id = e.run
             WHERE r.run_id = {of_run} ORDER BY e.seq"
        ),
    )?;
    section("attempts, warnings, endings", log);
    let files = query(
        c,
        &format!(
            "SELECT a.kind, a.step, a.path, a.bytes FROM artifacts a JOIN runs r ON r.id = a.run
             WHERE r.run_id = {of_run} ORDER BY a.seq"
        ),
    )?;
    section("files", files);
    Ok(text)
}

fn diff(c: &Connection, a: &str, b: &str) -> Result<Table> {
    let mut table = Table::new(&["what", "key", a, b]);
    let parts: [(&str, fn(&Connection, &str) -> Result<BTreeMap<String, String>>); 3] =
        [("configuration", params), ("fact", facts), ("last metric", last_metrics)];
    for (what, read) in parts {
        let (of_a, of_b) = (read(c, a)?, read(c, b)?);
        let keys: BTreeSet<&String> = of_a.keys().chain(of_b.keys()).collect();
        for key in keys {
            let (x, y) = (of_a.get(key), of_b.get(key));
            if x != y {
                let shown = |v: Option<&String>| v.map_or(Value::Null, |v| v.as_str().into());
                table.values(vec![what.into(), key.as_str().into(), shown(x), shown(y)]);
            }
        }
    }
    Ok(table)
}
