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
    let named = file_names(curves.scalars.keys().map(String::as_str));
    for (name, values) in named.iter().zip(curves.scalars.values()) {
        let line = |&(step, value): &(u64, f64)| {
            format!("{} {value} {step}\n", milliseconds(curves.time_of(step)))
        };
        put(&folder.join("metrics").join(name), &values.iter().map(line).collect::<String>())?;
    }
    let named = file_names(curves.params.keys().map(String::as_str));
    for (name, value) in named.iter().zip(curves.params.values()) {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        put(&folder.join("params").join(name), &text)?;
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
    // Its own text where the name has lost some of it.
    let of_tag = |tag: &String| {
        let key = format!("fathom.tag.{tag}");
        let is_kept = file_names(std::iter::once(key.as_str()))[0] == key;
        (key, if is_kept { "true".into() } else { tag.clone() })
    };
    tags.extend(curves.labels.tags.iter().map(of_tag));
    tags.extend(curves.labels.note.iter().map(|n| ("mlflow.note.content".into(), n.clone())));
    let named = file_names(tags.iter().map(|(key, _)| key.as_str()));
    for (name, (_, value)) in named.iter().zip(&tags) {
        put(&folder.join("tags").join(name), value)?;
    }
    Ok(())
}

/// Names that MLflow takes for keys, which are names of files too: an underscore stands for what it refuses and for what would be
/// a folder. Keys that become one name by that, or are too long, have the beginning of their hash at its end.
fn file_names<'k>(keys: impl Iterator<Item = &'k str>) -> Vec<String> {
    let keys: Vec<&str> = keys.collect();
    let safe = |key: &str| -> String {
        // `mlflow/utils/validation.py`; of letters those beyond ASCII are not the same everywhere.
        let kept = |c: char| c.is_ascii_alphanumeric() || "_-. :".contains(c);
        let name: String = key.chars().map(|c| if kept(c) { c } else { '_' }).collect();
        // A name of dots is a folder's.
        if name.chars().all(|c| c == '.') { format!("_{name}") } else { name }
    };
    let names: Vec<String> = keys.iter().map(|key| safe(key)).collect();
    let is_shared = |name: &String| names.iter().filter(|other| *other == name).count() > 1;
    keys.iter()
        .zip(&names)
        .map(|(key, name)| match name == key || !is_shared(name) {
            true if name.len() <= LONGEST_KEY => name.clone(),
            _ => {
                let hash = blake3::hash(key.as_bytes()).to_hex();
                let kept: String = name.chars().take(LONGEST_KEY - 13).collect();
                format!("{kept}_{}", &hash[..12])
            }
        })
        .collect()
}

/// `MAX_ENTITY_KEY_LENGTH` of MLflow.
const LONGEST_KEY: usize = 250;

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

    /// MLflow refuses a whole experiment for one key that it does not take, and a key is no way out of the folder.
    #[test]
    fn keys_are_names_that_mlflow_takes() {
        let long = "k".repeat(300);
        let keys =
            ["eval_loss.a:b c", "+lr=1e-3", "?lr=1e-3", "../../x", "..", "a/b", "a_b", &long];
        let names = file_names(keys.into_iter());
        let hash = |key: &str| blake3::hash(key.as_bytes()).to_hex()[..12].to_string();
        let expected = [
            "eval_loss.a:b c".to_string(),
            format!("_lr_1e-3_{}", hash("+lr=1e-3")),
            format!("_lr_1e-3_{}", hash("?lr=1e-3")),
            ".._.._x".into(),
            "_..".into(),
            format!("a_b_{}", hash("a/b")),
            "a_b".into(),
            format!("{}_{}", &long[..237], hash(&long)),
        ];
        assert_eq!(names, expected);
        let dir = tempfile::tempdir().unwrap();
        let mut curves = Curves {
            run_hash: "0123456789abcdef".repeat(4),
            scalars: BTreeMap::from([("../../../../out".into(), vec![(1, 2.0)])]),
            ..Curves::default()
        };
        curves.labels.tags.insert("+lr=1e-3".into());
        write(&dir.path().join("mlruns"), &[curves]).unwrap();
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["mlruns"]);
        let run = dir.path().join("mlruns").join(experiment_id("fathom"));
        let run = run.join("0123456789abcdef0123456789abcdef");
        assert_eq!(fs::read_to_string(run.join("tags/fathom.tag._lr_1e-3")).unwrap(), "+lr=1e-3");
        assert!(run.join("metrics/.._.._.._.._out").exists());
    }

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
