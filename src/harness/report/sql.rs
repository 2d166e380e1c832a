//! The queries that give the numbers of each figure: what its fold shows, for `fathom sql`.
//!
//! A query reads the store alone and gives the rows of the figure's CSV. The quantiles of Student's t, which SQL has none of,
//! stand in it as a table.

use super::pareto::WORTH;
use super::statistics::t_quantile;
use super::summary::{Measure, Summary, TRAINING_LOSS};
use std::collections::BTreeSet;

/// The points of the sweep with their runs; a point whose run does not exist yet is left out.
fn points(summary: &Summary) -> String {
    format!(
        "FROM sweeps s JOIN points p ON p.sweep_id = s.id JOIN runs r ON r.run_id = p.run_id\n  WHERE s.name = {}",
        quoted(&summary.comparison.sweep)
    )
}

/// Where the label of a point first comes in the plan.
const PLACE: &str =
    "(SELECT min(position) FROM points q WHERE q.sweep_id = s.id AND q.label = p.label) AS place";

/// The mean over rows as a report has it: none where one of them is no number, which SQL's own leaves out.
fn mean_of(column: &str) -> String {
    format!("CASE WHEN count({column}) = count(*) THEN avg({column}) END")
}

/// The rows that the measure of the run `r` is taken from, the last first; `None` where it is a column of the run itself.
fn rows(summary: &Summary, measure: &Measure) -> Option<String> {
    match measure {
        Measure::Perplexity { method, context_length } => Some(format!(
            "FROM perplexity x WHERE x.run = r.id AND x.step = (SELECT max(step) FROM perplexity WHERE run = r.id)\n     \
             AND x.split = {} AND x.method = {} AND x.context_length = {context_length}",
            quoted(&summary.split),
            quoted(method)
        )),
        Measure::Loss { key } => Some(format!(
            "FROM metrics m JOIN metric_keys k ON k.id = m.key\n     WHERE m.run = r.id AND k.key = {} ORDER BY m.step DESC",
            quoted(key)
        )),
        Measure::PeakMemory | Measure::Ceiling { .. } => None,
    }
}

/// The measure of the run `r`: in nats, or bytes.
fn value(summary: &Summary, measure: &Measure) -> String {
    let Some(rows) = rows(summary, measure) else { return "r.peak_allocated".to_string() };
    match measure {
        Measure::Perplexity { .. } => format!("(SELECT x.nll {rows})"),
        Measure::Loss { key } if key == TRAINING_LOSS => {
            format!("(SELECT {} FROM (SELECT m.value {rows} LIMIT 10))", mean_of("value"))
        }
        _ => format!("(SELECT m.value {rows} LIMIT 1)"),
    }
}

/// How a measure is shown: a perplexity is exp of its mean NLL.
fn shown(measure: &Measure, mean: &str) -> String {
    match measure {
        Measure::Perplexity { .. } => format!("exp({mean})"),
        _ => mean.to_string(),
    }
}

/// See [`super::figures`].
pub fn perplexity(summary: &Summary, method: &str) -> String {
    let counts: BTreeSet<usize> =
        summary.labels.iter().map(|label| label.finished().count()).filter(|n| *n > 1).collect();
    let largest = counts.last().copied().unwrap_or(2);
    // A label may lack some of its seeds at some length.
    let quantiles: Vec<String> =
        (1..largest).map(|freedom| format!("({freedom}, {})", t_quantile(freedom))).collect();
    format!(
        "WITH t (freedom, quantile) AS (VALUES {quantiles}),
one AS (
  SELECT p.label, x.context_length, x.nll, avg(x.nll) OVER (PARTITION BY p.label, x.context_length) AS mean,
    {PLACE}
  {points} AND r.status = 'finished'
    AND x.step = (SELECT max(step) FROM perplexity WHERE run = r.id) AND x.split = {split} AND x.method = {method}
),
means AS (
  SELECT place, label, context_length, count(*) AS seeds, {mean} AS nll,
    CASE WHEN count(nll) = count(*) AND max(abs(nll)) < 9e999 THEN sqrt(sum((nll - mean) * (nll - mean)) / (count(*) - 1) / count(*)) END
      AS standard_error
  FROM one GROUP BY label, context_length
)
SELECT label, context_length, seeds, nll, nll - quantile * standard_error AS nll_low, nll + quantile * standard_error AS nll_high,
  exp(nll) AS perplexity, exp(nll - quantile * standard_error) AS perplexity_low,
  exp(nll + quantile * standard_error) AS perplexity_high
FROM means LEFT JOIN t ON freedom = seeds - 1 ORDER BY place, context_length",
        quantiles = quantiles.join(", "),
        mean = mean_of("nll"),
        points = points(summary).replace("\n  WHERE", " JOIN perplexity x ON x.run = r.id\n  WHERE"),
        split = quoted(&summary.split),
        method = quoted(method),
    )
}

/// See [`super::figures`].
pub fn loss(summary: &Summary) -> String {
    format!(
        "SELECT p.label, p.seed, m.step, m.value AS loss\n{}\nORDER BY p.position, m.step",
        points(summary).replace(
            "\n  WHERE",
            &format!(
                "\n  JOIN metrics m ON m.run = r.id AND m.key = (SELECT id FROM metric_keys WHERE key = {})\nWHERE",
                quoted(TRAINING_LOSS)
            )
        )
    )
}

/// See [`super::figures`].
pub fn position_nll(summary: &Summary) -> String {
    format!(
        "WITH one AS (
  SELECT p.label, x.start, x.\"end\", x.tokens, x.nll, {PLACE},
    CAST(2 * ln(max(x.start, 1) * max(x.\"end\" - 1, x.start, 1)) / ln(2) + 1e-9 AS INTEGER) AS bin
  {points} AND r.status = 'finished'
    AND x.step = (SELECT max(step) FROM position_nll WHERE run = r.id) AND x.split = {split} AND x.tokens > 0
)
SELECT label, min(start) AS start, max(\"end\") AS \"end\", sum(tokens) AS tokens,
  CASE WHEN count(nll) = count(*) THEN sum(nll * tokens) / sum(tokens) END AS nll
FROM one GROUP BY place, label, bin ORDER BY place, bin",
        points = points(summary).replace("\n  WHERE", " JOIN position_nll x ON x.run = r.id\n  WHERE"),
        split = quoted(&summary.split),
    )
}

/// See [`super::figures`]; `column` is what the CSV calls the axis.
pub fn by_number(
    summary: &Summary,
    measure: &Measure,
    axis: &str,
    column: &str,
    named: &[(String, f64)],
) -> String {
    let setting = format!("json_extract(p.settings, {})", json_path(axis));
    // The number that a named value of the axis sets.
    let x = match named {
        [] => setting,
        named => {
            let cases = named.iter().map(|(name, x)| format!(" WHEN {} THEN {x}", quoted(name)));
            format!("CASE {setting}{} END", cases.collect::<String>())
        }
    };
    format!(
        "SELECT p.label, {x} AS {column}, p.seed, coalesce(r.status, 'planned') AS status,
  CASE WHEN r.status = 'finished' THEN {shown} END AS value
{points} ORDER BY p.position",
        column = identifier(column),
        shown = shown(measure, &value(summary, measure)),
        points = points(summary).replace("JOIN runs", "LEFT JOIN runs").replace("\n  ", "\n"),
    )
}

/// See [`super::figures`]; `column` is what the CSV calls the searched parameter.
pub fn memory(summary: &Summary, parameter: &str, column: &str, has_probes: bool) -> String {
    let number = |key: &str| {
        format!(
            "coalesce(json_extract(p.settings, {}), (SELECT number FROM params WHERE run = r.id AND key = {}))",
            json_path(key),
            quoted(key)
        )
    };
    let layers = match has_probes {
        true => format!(", {} AS probe_layers", number("run.probe_layers")),
        false => String::new(),
    };
    format!(
        "WITH one AS (
  SELECT p.position, p.label, {value} AS {column}, p.seed, coalesce(r.status, 'planned') AS status, r.peak_allocated AS peak, r.asked_bytes AS asked,
    (SELECT json_extract(body, '$.total') - r.free_bytes FROM events_meta
     WHERE run = r.id AND kind = 'out_of_memory' ORDER BY seq DESC LIMIT 1) AS held{layers}
  {points}
)
SELECT label, {column}, seed, status, nullif(coalesce(max(peak, held), peak, held), 0) / 1073741824.0 AS peak_allocated_gib,
  asked / 1073741824.0 AS asked_gib{layer_column}
FROM one WHERE {column} IS NOT NULL ORDER BY position",
        value = number(parameter),
        column = identifier(column),
        points = points(summary).replace("JOIN runs", "LEFT JOIN runs"),
        layer_column = if has_probes { ", probe_layers" } else { "" },
    )
}

/// See [`super::memory_by_time`].
pub fn memory_by_time(summary: &Summary) -> String {
    format!(
        "WITH finished AS (
  SELECT p.position, p.label, r.id AS run, r.peak_allocated AS peak
  {points} AND r.status = 'finished'
),
steps AS (
  SELECT m.run, m.value, row_number() OVER (PARTITION BY m.run ORDER BY m.step) AS nth, count(*) OVER (PARTITION BY m.run) AS steps
  FROM finished f JOIN metrics m ON m.run = f.run AND m.key = (SELECT id FROM metric_keys WHERE key = 'step_seconds')
),
warm AS (
  SELECT run, value, row_number() OVER (PARTITION BY run ORDER BY value) AS place, count(*) OVER (PARTITION BY run) AS n
  FROM steps WHERE (nth > 1 OR steps = 1) AND value IS NOT NULL
),
medians AS (SELECT run, avg(value) AS seconds FROM warm WHERE place IN ((n + 1) / 2, (n + 2) / 2) GROUP BY run)
SELECT label, count(*) AS seeds, avg(seconds) AS step_seconds, max(peak) / 1073741824.0 AS peak_allocated_gib
FROM finished f LEFT JOIN medians m ON m.run = f.run
GROUP BY label HAVING avg(seconds) IS NOT NULL AND max(peak) IS NOT NULL ORDER BY min(position)",
        points = points(summary),
    )
}

/// See [`super::pareto`]; `cost` is over the finished runs `r` of a label, `names` are the columns of quality and cost.
pub fn pareto(summary: &Summary, measure: &Measure, cost: &str, names: (&str, &str)) -> String {
    format!(
        "WITH one AS (
  SELECT p.label, {value} AS loss, {is_there} AS is_there,
    r.peak_allocated, r.seconds, {PLACE}
  {points} AND r.status = 'finished'
),
labels AS (
  -- A label with a loss that is no number is left out.
  SELECT place, label, sum(is_there) AS seeds, avg(loss) AS loss, {cost} AS cost FROM one r GROUP BY label
  HAVING count(loss) > 0 AND count(loss) = sum(is_there) AND max(abs(loss)) < 9e999
),
front (place, loss, cost) AS (
  SELECT * FROM (SELECT place, loss, cost FROM labels WHERE cost > 0 ORDER BY loss, cost LIMIT 1)
  UNION ALL
  SELECT l.place, l.loss, l.cost FROM front f JOIN labels l
  ON l.place = (SELECT place FROM labels o WHERE o.cost * {WORTH} < f.cost ORDER BY o.loss, o.cost LIMIT 1)
)
SELECT label, seeds, {shown} AS {quality}, cost AS {name},
  EXISTS (SELECT 1 FROM front f WHERE f.loss = l.loss AND f.cost = l.cost) AS on_front
FROM labels l WHERE cost > 0 ORDER BY place",
        value = value(summary, measure),
        is_there = match rows(summary, measure) {
            Some(rows) => format!("EXISTS (SELECT 1 {rows})"),
            None => "r.peak_allocated IS NOT NULL".to_string(),
        },
        points = points(summary),
        shown = shown(measure, "loss"),
        quality = identifier(names.0),
        name = identifier(names.1),
    )
}

/// A text of SQL.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A name of SQL.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The path of a setting whose key has dots in it.
fn json_path(key: &str) -> String {
    quoted(&format!("$.\"{}\"", key.replace('"', "\\\"")))
}
