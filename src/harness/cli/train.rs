//! `fathom train`: one run, of a configuration of the project or of a file, by the same machinery as a sweep's.

use super::construct::say;
use super::context::{Context, Loaded, RESULTS};
use super::exit;
use super::folder::check_folder;
use super::progress::Progress;
use super::sweep::{
    Settings, exit_code, print_summary, repeatable, template_folders, watch_interrupts,
};
use super::table::print;
use crate::run::{find_worker, see_locks, write_whole};
use crate::store::{Status, Store};
use crate::sweep::drive::{Driver, Identified, identify, last_checkpoint};
use crate::sweep::plan::Point;
use crate::sweep::{Fits, Identities};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use fathom_data::corpus::Corpus;
use fathom_data::samples;
use fathom_spec::components::run as training;
use fathom_spec::config::written::{self, Written};
use fathom_spec::config::{RANDOM_CORPUS, RunConfig};
use fathom_spec::project::dynamic;
use fathom_spec::record::RunPaths;
use fathom_spec::template::graph::Graph;
use serde_json::{Map, Value as Json, json};
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct TrainArgs {
    /// A configuration file, in place of a configuration of the project
    file: Option<PathBuf>,
    /// The folder of the store and the runs [default: `results` in the workspace; with FILE, here]
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// The device: a number of a GPU, or `cpu`
    #[arg(short = 'd', long, value_name = "DEVICE")]
    devices: Option<String>,
    /// Print the whole configuration of the run, and leave it at that
    #[arg(long)]
    dry_run: bool,
    /// Run it again if it ended so: out_of_memory, diverged
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = repeatable)]
    again: Vec<Status>,
    /// Copy the last checkpoint to this folder when the run has finished
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
}

/// What is to be run.
struct Job {
    label: String,
    written: Written,
    results: PathBuf,
    export: Option<PathBuf>,
}

/// The file of an exported model that says which run it came from.
pub(super) const ORIGIN_FILE: &str = "fathom-run.json";

/// Carries out `fathom train`.
///
/// # Errors
///
/// For mistakes in the configuration, and when a file can't be written.
pub fn run(args: &TrainArgs, context: &Context) -> Result<u8> {
    let job = match &args.file {
        Some(file) => of_file(file, args, context)?,
        None => of_project(args, context)?,
    };
    let mut written = job.written;
    for (key, value) in args.settings.parse()? {
        written.set(&key, value)?;
    }
    if let Some(devices) = &args.devices {
        written.set("run.device", Written::from_json("-d", &device(devices)?.into()))?;
    }
    let config = RunConfig::from_written(&written)?;
    check_model(&config, &written)?;
    let mut fits = Fits::default();
    fits.check(&config)
        .map_err(|(key, message)| anyhow!("{}{key}: {message}", place(&written, key)))?;
    if args.dry_run {
        print(&format!("# {}: {} steps\n{}", job.label, config.planned_steps(), config.to_yaml()))?;
        return Ok(exit::OK);
    }
    if let Some(target) = job.export.as_ref().filter(|_| !config.train.save_checkpoints) {
        bail!(
            "{}: expected a run that writes checkpoints, found train.save_checkpoints `false`\n  help: leave out \
             --save-strategy no, or the folder of the finished model",
            target.display()
        );
    }
    if let Some(target) = &job.export {
        check_export(target)?;
    }
    say_recall(&config)?;
    let (label, seed) = (job.label, config.train.seed);
    let point = Point { label, seed, settings: Map::new(), config };
    let point = identify(&[point], &mut Identities::after(fits))?.remove(0);
    let worker = find_worker()?;
    see_locks(&job.results, |what| tell!("{what}"))?;
    let mut store = Store::open(&job.results)?;
    let progress = Progress::new(point.point.label.len());
    let mut driver = Driver {
        results: &job.results,
        worker,
        jobs: 1,
        shares: None,
        seconds: None,
        slurm: None,
        again: args.again.clone(),
        store: &mut store,
        watcher: &progress,
        interrupts: watch_interrupts()?,
    };
    let summary = driver.single(point.clone())?;
    print_summary(&summary);
    let run_id = point.run_id();
    let paths = RunPaths::in_results(&job.results, &run_id);
    say!("run: {}", paths.folder.display());
    let finished = store.status(&run_id)? == Some(Status::Finished);
    match &job.export {
        Some(target) if finished => {
            export(&paths, &point, target)?;
            say!("model: {}", target.display());
        }
        Some(target) if exit_code(&summary) == exit::OK => {
            bail!("{}: nothing was exported: the run did not finish", target.display())
        }
        _ => {}
    }
    Ok(exit_code(&summary))
}

fn of_file(file: &Path, args: &TrainArgs, context: &Context) -> Result<Job> {
    let project = &context.globals;
    if project.config_template.is_some() || project.project_dir.is_some() {
        bail!(
            "expected a configuration file or a project (-t, -p), found both\n  help: leave out `{}`",
            file.display()
        );
    }
    if let Some((option, _)) = context.given.first() {
        bail!(
            "{option}: expected a configuration of the project, which has this option, found the file `{}`\n  \
             help: leave the file out, or set key paths with --set",
            file.display()
        );
    }
    let label = file.file_stem().map_or("run".into(), |s| s.to_string_lossy().into_owned());
    let written = written::load(file, &template_folders())?;
    let results = args.results.clone().unwrap_or_else(|| RESULTS.into());
    Ok(Job { label, written, results, export: args.export.clone() })
}

fn of_project(args: &TrainArgs, context: &Context) -> Result<Job> {
    let loaded = context.load()?;
    let graph = loaded.rendered.graph()?;
    let resolved = training::resolve(&graph, &Map::new())?;
    say(&resolved.notes);
    say_idle(&loaded, &graph, context)?;
    let stem = Path::new(&loaded.config).file_stem().unwrap_or_default().to_string_lossy();
    let root = &loaded.project.workspace.root;
    Ok(Job {
        label: resolved.name.unwrap_or_else(|| stem.into_owned()),
        written: resolved.written,
        results: args.results.clone().unwrap_or_else(|| root.join(RESULTS)),
        export: args.export.clone().or(resolved.output_dir),
    })
}

/// Says of each option that was given whether the configuration is the same without it: a template may read an option and then
/// let something else win over it.
fn say_idle(loaded: &Loaded, graph: &Graph, context: &Context) -> Result<()> {
    for (option, variable) in &context.given {
        let mut vars = context.vars.clone();
        let value = vars.remove(variable);
        // An option without which nothing renders has its use.
        let Ok(rendered) = loaded.project.render(&loaded.config, &vars) else { continue };
        let without = rendered.graph()?;
        if targets(&without) != targets(graph) {
            continue;
        }
        let declared = dynamic::declared(&rendered, &without)?;
        let is_default = declared.iter().filter(|arg| arg.variable == *variable).any(|arg| {
            let default = arg.default.as_deref().map(|text| arg.parse(text, Path::new("/")));
            default.and_then(Result::ok) == value
        });
        if !is_default {
            tell!(
                "note: {option}: the run is the same without it; a template sets something else in its place"
            );
        }
    }
    Ok(())
}

/// What a configuration builds, without the options that it declares.
fn targets(graph: &Graph) -> Json {
    let mut json = graph.to_json();
    if let Some(map) = json.as_object_mut() {
        map.shift_remove("dynamic_args");
    }
    json
}

/// `-d 1` as a name of a device.
fn device(text: &str) -> Result<String> {
    if text.contains(',') {
        bail!(
            "-d: expected one device, found `{text}`\n  help: a run trains on one; several runs of a sweep go on at a time \
             with `fathom sweep run --jobs N`"
        );
    }
    Ok(match text.parse::<usize>() {
        Ok(index) => format!("cuda:{index}"),
        Err(_) => text.to_string(),
    })
}

/// Refuses a model that is not there, before anything is started.
fn check_model(config: &RunConfig, written: &Written) -> Result<()> {
    let Some(path) = config.model.path.as_ref().filter(|path| !Path::new(path).exists()) else {
        return Ok(());
    };
    bail!(
        "{}model.path: expected a model's folder or a .gguf file, found nothing at `{path}`\n  \
         help: nothing is fetched; download the model first",
        place(written, "model.path")
    )
}

/// Where a key is written, to stand before it in an error; nothing of one that is not.
fn place(written: &Written, key: &str) -> String {
    written.get(key).map_or(String::new(), |value| format!("{}: ", value.origin))
}

/// Says of each held-out document that it is trained on as well.
fn say_recall(config: &RunConfig) -> Result<()> {
    if config.data.corpus == RANDOM_CORPUS {
        return Ok(());
    }
    let both = samples::overlap(&Corpus::open(&config.data.corpus)?, &config.data)?;
    if !both.is_empty() {
        tell!(
            "note: data.splits: {} also trained on: what is measured there is recall",
            match &both[..] {
                [one] => format!("{one} is"),
                many => format!("{} are", many.join(", ")),
            }
        );
    }
    Ok(())
}

/// Refuses a place for a model that is not one of fathom's own, or where no folder can be.
fn check_export(target: &Path) -> Result<()> {
    if !target.exists() || target.is_file() {
        return check_folder("the finished model's folder:", target);
    }
    if !target.join(ORIGIN_FILE).exists() {
        bail!(
            "{}: expected a folder that fathom exported, or none, found another\n  help: name another folder, or move this one away",
            target.display()
        );
    }
    Ok(())
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
    check_export(target)?;
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
