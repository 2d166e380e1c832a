//! `fathom export`: runs in the formats of other programs, and as tables.

use super::folder::check_folder;
use super::runs::chosen;
use super::sql::{self, SqlFormat};
use crate::export::curves::Curves;
use crate::export::{folder_name, mlflow, safe, tensorboard};
use crate::run::{read_store, write_whole};
use crate::store::{Run, Store};
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Write runs as TensorBoard, MLflow or tables of numbers read them.
#[derive(Debug, Args)]
#[command(after_help = "\
  fathom export tensorboard --sweep rope_variants --output out    then: tensorboard --logdir out
  fathom export mlflow --sweep rope_variants --output mlruns      then: MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri mlruns
  fathom export parquet --sweep rope_variants --output out        runs, params, metrics, perplexity, position_nll")]
pub struct ExportArgs {
    /// The format
    #[arg(value_enum)]
    pub format: ExportFormat,
    /// The runs' ids, or how they begin
    #[arg(required_unless_present_any = ["sweep", "all"])]
    pub runs: Vec<String>,
    /// The runs of this sweep
    #[arg(long)]
    pub sweep: Option<String>,
    /// Every run of the store
    #[arg(long, conflicts_with_all = ["runs", "sweep"])]
    pub all: bool,
    /// The folder to write to
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,
    /// The folder that fathom.db is in
    #[arg(long, value_name = "DIR", default_value_os_t = crate::cli::context::default_results())]
    pub results: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Event files: scalars, samples and the configuration, a folder a run
    Tensorboard,
    /// MLflow's file store: an experiment a sweep
    Mlflow,
    /// A table of each kind of number, as CSV
    Csv,
    /// The same as Parquet
    Parquet,
}

/// Carries out `fathom export`.
///
/// # Errors
///
/// When there is no such run or sweep, or the folder can't be written.
pub fn run(args: ExportArgs) -> Result<()> {
    check_folder("--output", &args.output)?;
    let store = read_store(&args.results)?;
    let runs = match args.all {
        true => store.runs()?,
        false => chosen(&store, &args.runs, args.sweep.as_deref())?,
    };
    ensure!(!runs.is_empty(), "export: expected runs, found none that has begun");
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("{}: the folder can't be made", args.output.display()))?;
    match args.format {
        ExportFormat::Tensorboard => {
            for run in &runs {
                let curves = Curves::of_run(&store, run)?;
                write_events(&args.output, &curves, None, 0)?;
            }
        }
        ExportFormat::Mlflow => {
            // One at a time: a run's scalars may be many.
            for run in &runs {
                mlflow::write(&args.output, &[Curves::of_run(&store, run)?])?;
            }
        }
        ExportFormat::Csv => tables(&store, &runs, SqlFormat::Csv, &args.output)?,
        ExportFormat::Parquet => tables(&store, &runs, SqlFormat::Parquet, &args.output)?,
    }
    say!("{}: {}", args.output.display(), count(runs.len()));
    Ok(())
}

/// `1 run`, `2 runs`.
pub fn count(runs: usize) -> String {
    if runs == 1 { "1 run".into() } else { format!("{runs} runs") }
}

/// Writes a run's events into its folder below `folder`, and says where.
///
/// # Errors
///
/// When the file can't be written.
pub fn write_events(
    folder: &Path,
    curves: &Curves,
    after: Option<u64>,
    part: u32,
) -> Result<PathBuf> {
    let inner = match &curves.point {
        Some((sweep, ..)) => folder.join(safe(sweep)).join(folder_name(curves)),
        None => folder.join(folder_name(curves)),
    };
    std::fs::create_dir_all(&inner)
        .with_context(|| format!("{}: the folder can't be made", inner.display()))?;
    let path = inner.join(tensorboard::file_name(curves, part));
    let bytes = tensorboard::encode(curves, after);
    std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// What each table is made by; `{runs}` stands for the ids.
const TABLES: [(&str, &str); 5] = [
    (
        "runs",
        "SELECT r.*, l.tags, l.note FROM v_runs r JOIN v_labels l USING (run_id)
         WHERE run_id IN ({runs}) ORDER BY sweep, position, run_id",
    ),
    ("params", "SELECT * FROM v_params WHERE run_id IN ({runs}) ORDER BY run_id, key"),
    ("metrics", "SELECT * FROM v_metrics WHERE run_id IN ({runs}) ORDER BY run_id, key, step"),
    (
        "perplexity",
        "SELECT r.run_id, x.step, x.split, x.method, x.context_length, x.windows, x.tokens, x.nll, x.perplexity,
                x.nll_low, x.nll_high
         FROM perplexity x JOIN runs r ON r.id = x.run WHERE r.run_id IN ({runs})
         ORDER BY r.run_id, x.step, x.split, x.method, x.context_length",
    ),
    (
        "position_nll",
        "SELECT r.run_id, x.step, x.split, x.start, x.\"end\", x.tokens, x.nll
         FROM position_nll x JOIN runs r ON r.id = x.run WHERE r.run_id IN ({runs})
         ORDER BY r.run_id, x.step, x.split, x.start",
    ),
];

fn tables(store: &Store, runs: &[Run], format: SqlFormat, folder: &Path) -> Result<()> {
    // Ids are hexadecimal digits: they need no quoting.
    let ids: Vec<String> = runs.iter().map(|run| format!("'{}'", run.run_id)).collect();
    for (name, query) in TABLES {
        let table = sql::answer(store, &query.replace("{runs}", &ids.join(",")))?;
        let ending = if format == SqlFormat::Csv { "csv" } else { "parquet" };
        write_whole(&folder.join(format!("{name}.{ending}")), &sql::encode(&table, format)?)?;
    }
    Ok(())
}
