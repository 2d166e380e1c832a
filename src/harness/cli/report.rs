//! `fathom report`: writes the report of a sweep, or of all.

use super::folder::check_folder;
use crate::report::input::{Comparison, names, sweeps};
use crate::report::{write, write_all_of};
use crate::run::read_apart;
use crate::store::Store;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// Write the report of a sweep: a page of markdown with its tables, figures and numbers.
#[derive(Debug, Clone, clap::Args)]
pub struct ReportArgs {
    /// Name of the sweep, as in its file
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub sweep: Option<String>,
    /// Write the report of every sweep of the store, finished or not, and DIR/index.md that lists them
    #[arg(long, conflicts_with = "allow_partial")]
    pub all: bool,
    /// Folder of the store and the runs
    #[arg(long, value_name = "DIR", default_value_os_t = crate::cli::context::default_results())]
    pub results: PathBuf,
    /// Folder for reports; this one goes to DIR/SWEEP
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub out: PathBuf,
    /// Write the report although some points have not run to an end yet
    #[arg(long)]
    pub allow_partial: bool,
}

/// Writes the report and prints where its page is.
///
/// # Errors
///
/// As [`crate::report::write_report`], when `--out` can't be a folder, and for points that have not run to an end, unless `--allow-partial` is given.
pub fn run(args: ReportArgs) -> Result<()> {
    check_folder("--out", &args.out)?;
    // A report is of how the runs stand now; where that can't be written, of a copy of the store.
    let apart = match Store::path(&args.results).is_file() {
        true => read_apart(&args.results)?,
        false => None,
    };
    let read = |sweep: &str| match &apart {
        Some(copy) => Comparison::read_from(copy.connection(), sweep),
        None => Comparison::read(&args.results, sweep),
    };
    if args.all {
        let sweeps = match &apart {
            Some(copy) => names(copy.connection())?,
            None => sweeps(&args.results)?,
        };
        say!("{}", write_all_of(sweeps, read, &args.out)?.display());
        return Ok(());
    }
    let sweep = args.sweep.context("sweep: expected its name, or --all, found neither")?;
    let comparison = read(&sweep)?;
    let points = &comparison.points;
    let open = points.iter().filter(|point| point.is_open()).count();
    if open > 0 && !args.allow_partial {
        bail!(
            "sweep `{}`: expected every point to have run to an end, found {open} of {} that have not\n  \
             help: finish the sweep, or give --allow-partial for a report that says so",
            sweep,
            points.len()
        );
    }
    say!("{}", write(&comparison, &args.out)?.display());
    Ok(())
}
