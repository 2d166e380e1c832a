//! MLflow's file store: a folder an experiment, in it a folder a run, in that a file for each metric, parameter and tag.
//!
//! As `mlflow/store/tracking/file_store.py` reads it (seen with MLflow 3.17, which wants `MLFLOW_ALLOW_FILE_STORE=true` for it, and
//! has `mlflow migrate-filestore` to bring such a folder into a database). A sweep is an experiment; runs of no sweep are in one named `fathom`.

use super::curves::Curves;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Writes runs into a tracking folder, beside what is there; a run that is there already is written anew.
///
/// # Errors
///
/// When a file can't be written.
pub fn write(tracking: &Path, runs: &[Curves]) -> Result<()> {
    fs::create_dir_all(tracking).with_context(|| tracking.display().to_string())?;
    let tracking = fs::canonicalize(tracking)?;
    for curves in runs {
        let name = curves.point.as_ref().map_or("fathom", |(sweep, ..)| sweep);
        let experiment_id = experiment_id(name);
        let experiment = tracking.join(&experiment_id);
        let started = milliseconds(curves.started_at);
        let meta = json!({
            "artifact_location": uri(&experiment),
            "creation_time": started,
            "experiment_id": experiment_id,
            "last_update_time": milliseconds(curves.ended_at.unwrap_or(curves.started_at)),
            "lifecycle_stage": "active",
            "name": name,
        });
        if !experiment.join("meta.yaml").exists() {
            put(&experiment.join("meta.yaml"), &serde_yaml::to_string(&meta)?)?;
        }
        write_run(&experiment, &experiment_id, curves)?;
    }
    Ok(())
}

fn write_run(experiment: &Path, experiment_id: &str, curves: &Curves) -> Result<()> {
    let uuid = run_uuid(curves);
    let folder = experiment.join(&uuid);
    let _ = fs::remove_dir_all(&folder);
    for inner in ["artifacts", "metrics", "params", "tags"] {
        let inner = folder.join(inner);
        fs::create_dir_all(&inner).with_context(|| inner.display().to_string())?;
    }
    let meta = json!({
        "artifact_uri": uri(&folder.join("artifacts")),
        "end_time": curves.ended_at.map(milliseconds),
        "entry_point_name": "",
        "experiment_id": experiment_id,
        "lifecycle_stage": "active",
        "run_id": uuid,
        "run_name": curves.name(),
        "run_uuid": uuid,
        "source_name": "",
        "source_type": 4, // LOCAL
        "source_version": "",
        "start_time": milliseconds(curves.started_at),
        "status": status(&curves.status),
        "tags": [],
        "user_id": "fathom",
    });
    put(&folder.join("meta.yaml"), &serde_yaml::to_string(&meta)?)?;
    for (key, values) in &curves.scalars {
        let line = |&(step, value): &(u64, f64)| {
            format!("{} {value} {step}\n", milliseconds(curves.time_of(step)))
        };
        put(&folder.join("metrics").join(key), &values.iter().map(line).collect::<String>())?;
    }
    for (key, value) in &curves.params {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        put(&folder.join("params").join(key), &text)?;
    }
    let mut tags = vec![
        ("mlflow.runName".to_string(), curves.name()),
        ("fathom.run".into(), curves.run_id.clone()),
        ("fathom.status".into(), curves.status.clone()),
    ];
    if let Some((sweep, label, seed)) = &curves.point {
        tags.push(("fathom.sweep".into(), sweep.clone()));
        tags.push(("fathom.label".into(), label.clone()));
        tags.push(("fathom.seed".into(), seed.to_string()));
    }
    tags.extend(curves.labels.tags.iter().map(|tag| (format!("fathom.tag.{tag}"), "true".into())));
    tags.extend(curves.labels.note.iter().map(|n| ("mlflow.note.content".into(), n.clone())));
    for (key, value) in tags {
        put(&folder.join("tags").join(key.replace('/', "_")), &value)?;
    }
    Ok(())
}

/// 18 digits, as MLflow draws them; the same for the same name.
fn experiment_id(name: &str) -> String {
    let hash = blake3::hash(name.as_bytes());
    let first = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"));
    format!("{}", 100_000_000_000_000_000 + first % 900_000_000_000_000_000)
}

/// 32 hexadecimal digits.
pub fn run_uuid(curves: &Curves) -> String {
    curves.run_hash.chars().take(32).collect()
}

/// As `mlflow.entities.RunStatus` counts them.
fn status(name: &str) -> u8 {
    match name {
        "running" | "running elsewhere" | "silent" => 1,
        "planned" => 2,
        "finished" => 3,
        "stopped" | "killed" | "lost" | "dead" => 5,
        _ => 4,
    }
}

fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1000.0).round() as i64
}

fn uri(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn put(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().expect("a file is in a folder");
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, text))
        .with_context(|| format!("{}: can't be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_run_is_a_folder_of_small_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut curves = Curves {
            run_id: "0123456789ab".into(),
            run_hash: "0123456789abcdef".repeat(4),
            point: Some(("rope".into(), "rope=plain".into(), 2)),
            status: "out_of_memory".into(),
            started_at: 1_767_225_600.25,
            ended_at: Some(1_767_225_610.0),
            params: BTreeMap::from([("model.path".into(), "tiny".into())]),
            scalars: BTreeMap::from([("loss".into(), vec![(1, 3.25), (2, f64::NAN)])]),
            times: BTreeMap::from([(1, 1_767_225_601.5), (2, 1_767_225_603.0)]),
            ..Curves::default()
        };
        curves.labels.tags.insert("good".into());
        write(dir.path(), std::slice::from_ref(&curves)).unwrap();
        // Again, with what has come since: written anew, not beside.
        curves.scalars.get_mut("loss").unwrap().push((3, 1.5));
        write(dir.path(), &[curves]).unwrap();
        let experiment = dir.path().join(experiment_id("rope"));
        let run = experiment.join("0123456789abcdef0123456789abcdef");
        let read = |path: &str| fs::read_to_string(run.join(path)).unwrap();
        assert_eq!(
            read("metrics/loss"),
            "1767225601500 3.25 1\n1767225603000 NaN 2\n1767225603000 1.5 3\n"
        );
        assert_eq!(read("params/model.path"), "tiny");
        assert_eq!(read("tags/fathom.label"), "rope=plain");
        assert_eq!(read("tags/fathom.tag.good"), "true");
        let meta: Value = serde_yaml::from_str(&read("meta.yaml")).unwrap();
        assert_eq!(
            (&meta["status"], &meta["start_time"]),
            (&4.into(), &1_767_225_600_250u64.into())
        );
        assert_eq!(meta["run_name"], "rope=plain, seed 2");
        let meta = fs::read_to_string(experiment.join("meta.yaml")).unwrap();
        let meta: Value = serde_yaml::from_str(&meta).unwrap();
        assert_eq!(
            (&meta["name"], meta["experiment_id"].as_str().unwrap().len()),
            (&"rope".into(), 18)
        );
    }
}
