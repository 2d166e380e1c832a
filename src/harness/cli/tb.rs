//! `fathom tb`: runs in TensorBoard, those at work included.

use super::exit;
use super::export::{count, write_events};
use super::runs::chosen;
use crate::export::curves::Curves;
use crate::run::read_store;
use crate::store::{Run, Store};
use anyhow::{Context, Result, bail};
use clap::Args;
use fathom_spec::record::{RunId, RunPaths};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Open runs in TensorBoard.
#[derive(Debug, Args)]
#[command(after_help = "\
Runs are exported to the results' cache; those at work are added to while TensorBoard is open.
  fathom tb --sweep rope_variants
  fathom tb --output-dir models/my_model -- --bind_all --port 6007")]
pub struct TbArgs {
    /// The runs' ids, or how they begin; without any, all of the store
    pub runs: Vec<String>,
    /// The runs of this sweep
    #[arg(long)]
    pub sweep: Option<String>,
    /// The run that wrote this folder's model (`fathom train --output-dir`)
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Export and say where, without starting TensorBoard
    #[arg(long)]
    pub no_start: bool,
    /// The folder that fathom.db is in
    #[arg(long, value_name = "DIR", default_value_os_t = crate::cli::context::default_results())]
    pub results: PathBuf,
    /// Options of TensorBoard
    #[arg(last = true)]
    pub options: Vec<OsString>,
}

/// How often what runs at work have logged is added.
const REFRESH: Duration = Duration::from_secs(10);

/// Carries out `fathom tb`; the exit code is TensorBoard's.
///
/// # Errors
///
/// When there is no such run or sweep, TensorBoard is not installed, or the cache can't be written.
pub fn run(args: TbArgs) -> Result<u8> {
    let store = read_store(&args.results)?;
    let mut names = args.runs.clone();
    if let Some(folder) = &args.output_dir {
        names.push(origin(folder)?);
    }
    let runs = match names.is_empty() && args.sweep.is_none() {
        true => store.runs()?,
        false => chosen(&store, &names, args.sweep.as_deref())?,
    };
    let cache = RunPaths::in_results(&args.results, &RunId("any".into())).cache();
    let folder = cache.join("tensorboard");
    // What an earlier call exported is not for this one.
    let _ = std::fs::remove_dir_all(&folder);
    let mut written = BTreeMap::new();
    for run in &runs {
        refresh(&store, run, &folder, &mut written)?;
    }
    say!("{}: {}", folder.display(), count(runs.len()));
    if args.no_start {
        return Ok(exit::OK);
    }
    let mut command = Command::new("tensorboard");
    command.arg("--logdir").arg(&folder).args(&args.options);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
            "tensorboard: expected the program to be installed, found none on PATH\n  help: `pip install tensorboard`, then `tensorboard --logdir {}`",
            folder.display()
        ),
        Err(error) => return Err(error).context("tensorboard can't be started"),
    };
    let mut refreshed = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(exit::ERROR));
        }
        std::thread::sleep(Duration::from_millis(200));
        if refreshed.elapsed() >= REFRESH {
            for run in &runs {
                if let Some(now) = store.run(&run.run_id)? {
                    refresh(&store, &now, &folder, &mut written)?;
                }
            }
            refreshed = Instant::now();
        }
    }
}

/// How far a run was written.
struct Written {
    step: u64,
    last_seq: i64,
    /// The number of the next file.
    part: u32,
}

/// Writes what a run has logged since it was last written: another file of events, which TensorBoard reads after those before.
fn refresh(
    store: &Store,
    run: &Run,
    folder: &Path,
    written: &mut BTreeMap<RunId, Written>,
) -> Result<()> {
    let before = written.get(&run.run_id);
    if before.is_some_and(|before| before.last_seq == run.last_seq) {
        return Ok(());
    }
    // The last step once more: an evaluation after it is of that step too.
    let after = before.map(|before| before.step.saturating_sub(1));
    let part = before.map_or(0, |before| before.part);
    write_events(folder, &Curves::of_run(store, run)?, after, part)?;
    let now = Written { step: run.step, last_seq: run.last_seq, part: part + 1 };
    written.insert(run.run_id.clone(), now);
    Ok(())
}

/// The run that an exported model says it came from.
pub(super) fn origin(folder: &Path) -> Result<String> {
    let path = folder.join(super::train::ORIGIN_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| {
        format!("--output-dir: {}: expected the origin of an exported model", path.display())
    })?;
    let origin: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    match origin["run"].as_str() {
        Some(run) => Ok(run.to_string()),
        None => bail!("{}: expected the key `run`, found {origin}", path.display()),
    }
}
