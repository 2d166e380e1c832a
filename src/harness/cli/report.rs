//! `fathom report`: writes the report of a sweep.

use crate::report::{input::Comparison, write_report};
use anyhow::{Result, bail};
use std::path::PathBuf;

/// Write the report of a sweep: a page of markdown with its tables, figures and numbers.
#[derive(Debug, Clone, clap::Args)]
pub struct ReportArgs {
    /// Name of the sweep, as in its file
    pub sweep: String,
    /// Folder of the store and the runs
    #[arg(long, value_name = "DIR", default_value = "results")]
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
/// As [`write_report`], and for points that have not run to an end, unless `--allow-partial` is given.
pub fn run(args: ReportArgs) -> Result<()> {
    if !args.allow_partial {
        let points = Comparison::read(&args.results, &args.sweep)?.points;
        let open = points.iter().filter(|point| point.is_open()).count();
        if open > 0 {
            bail!(
                "sweep `{}`: expected every point to have run to an end, found {open} of {} that have not\n  \
                 help: finish the sweep, or give --allow-partial for a report that says so",
                args.sweep,
                points.len()
            );
        }
    }
    println!("{}", write_report(&args.results, &args.sweep, &args.out)?.display());
    Ok(())
}
