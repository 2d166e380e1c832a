//! `fathom train`: one run of a base configuration, by the same machinery as a sweep's.

use super::exit;
use super::progress::Progress;
use super::sweep::{
    Places, Settings, code, print_summary, repeatable, template_folders, watch_interrupts,
};
use crate::run::{find_worker, write_whole};
use crate::store::{Status, Store};
use crate::sweep::Identities;
use crate::sweep::drive::{Driver, Identified, identify, last_checkpoint};
use crate::sweep::plan::Point;
use anyhow::{Context, Result, bail};
use clap::Args;
use fathom_spec::config::RunConfig;
use fathom_spec::config::written;
use fathom_spec::record::RunPaths;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct TrainArgs {
    /// The configuration
    file: PathBuf,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    settings: Settings,
    /// Run it again if it ended so: out_of_memory, diverged
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = repeatable)]
    again: Vec<Status>,
    /// Copy the last checkpoint to this folder when the run has finished
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
}

/// The file of an exported model that says which run it came from.
const ORIGIN_FILE: &str = "fathom-run.json";

/// Carries out `fathom train`.
///
/// # Errors
///
/// For mistakes in the configuration, and when a file can't be written.
pub fn run(args: TrainArgs) -> Result<u8> {
    let mut tree = written::load(&args.file, &template_folders())?;
    for (key, value) in args.settings.parse()? {
        tree.set(&key, value)?;
    }
    let config = RunConfig::from_written(&tree)?;
    let label = args.file.file_stem().map_or("run".into(), |s| s.to_string_lossy().into_owned());
    let point = Point { label, seed: config.train.seed, settings: serde_json::Map::new(), config };
    let point = identify(&[point], &mut Identities::default())?.remove(0);
    let worker = find_worker()?;
    let mut store = Store::open(&args.places.results)?;
    let progress = Progress::new(point.point.label.len());
    let mut driver = Driver {
        results: &args.places.results,
        worker,
        jobs: 1,
        again: args.again,
        store: &mut store,
        watcher: &progress,
        interrupts: watch_interrupts()?,
    };
    let summary = driver.single(point.clone())?;
    print_summary(&summary);
    let run_id = point.run_id();
    let paths = RunPaths::in_results(&args.places.results, &run_id);
    println!("run: {}", paths.folder.display());
    let finished = store.status(&run_id)? == Some(Status::Finished);
    match &args.export {
        Some(target) if finished => {
            export(&paths, &point, target)?;
            println!("model: {}", target.display());
        }
        Some(target) if code(&summary) == exit::OK => {
            bail!("{}: nothing was exported: the run did not finish", target.display())
        }
        _ => {}
    }
    Ok(code(&summary))
}

/// Copies the last checkpoint's model to `target`, whole or not at all; one that is there already is left.
fn export(paths: &RunPaths, point: &Identified, target: &Path) -> Result<()> {
    let run_id = point.run_id().0;
    let checkpoint = last_checkpoint(paths)?;
    let name = checkpoint.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let origin = json!({ "run": run_id, "checkpoint": name });
    let there = fs::read(target.join(ORIGIN_FILE)).ok();
    if there.and_then(|bytes| serde_json::from_slice(&bytes).ok()) == Some(origin.clone()) {
        return Ok(());
    }
    if target.exists() && !target.join(ORIGIN_FILE).exists() {
        bail!(
            "{}: expected a folder that fathom exported, or none, found another",
            target.display()
        );
    }
    let part = target.with_extension("part");
    let copy = || -> Result<()> {
        let _ = fs::remove_dir_all(&part);
        fs::create_dir_all(&part)?;
        for entry in fs::read_dir(&checkpoint)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // What only a resume needs stays with the run.
            if name != "optimizer.safetensors" && name != "trainer.json" {
                fs::copy(entry.path(), part.join(&name))?;
            }
        }
        write_whole(&part.join(ORIGIN_FILE), &serde_json::to_vec_pretty(&origin)?)?;
        let _ = fs::remove_dir_all(target);
        fs::rename(&part, target)?;
        Ok(())
    };
    let copied = copy();
    if copied.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    copied.with_context(|| format!("{}: the model can't be exported", target.display()))
}
