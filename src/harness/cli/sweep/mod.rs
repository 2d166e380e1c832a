//! `fathom sweep plan|run`; `language` has what is done to sweep files alone, `why` what makes a point new, `seeds` the seeds beyond
//! those of the file.

mod language;
mod seeds;
mod why;

use super::course::{self, ContinueArgs, CourseArgs, PauseArgs};
use super::exit;
use super::folder::check_folder;
use super::plan::{MachineArgs, Planner};
use super::progress::Progress;
use super::table::{Cell, Format, Table};
use crate::report::write_report;
use crate::run::{find_worker, read_store, see_locks, status_now};
use crate::store::{Status, Store};
use crate::sweep::code::{self, Code};
use crate::sweep::drive::{Driver, Ended, Identified, Summary, identify, refuse_same_run};
use crate::sweep::plan::{Bisect, Plan};
use crate::sweep::search::Search;
use crate::sweep::{Fits, Identities};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use fathom_spec::config::parse_assignment;
use fathom_spec::config::written::Written;
use fathom_spec::plan::{Place, Prediction};
use fathom_spec::record::RunId;
use fathom_spec::units::{Bytes, Tokens};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[derive(Subcommand)]
pub enum SweepCommand {
    /// Show the points of a sweep, what differs, and which are done
    Plan(PlanArgs),
    /// Run what is missing of a sweep, then write its report
    Run(RunArgs),
    /// Let a sweep rest, whoever drives it: its runs write a checkpoint and stop
    Pause(PauseArgs),
    /// Let a paused sweep go on
    Continue(ContinueArgs),
    /// Say what is wrong with sweep files, or how many points they have, without a store or a device
    Check(language::CheckArgs),
    /// Say what makes a point another run than all that are finished
    Why(why::WhyArgs),
    /// Print the JSON Schema of sweep files, for editors
    Schema,
    /// Print a sweep file of Weights & Biases as one of fathom, and what can't be carried over
    Import(language::ImportArgs),
}

/// What is asked of the points beside what their file says.
#[derive(Args)]
struct PointArgs {
    /// Bring every point to N seeds, of those that are finished first; later runs of the sweep keep them
    #[arg(long, value_name = "N", value_parser = course::at_least_one)]
    top_up_seeds: Option<usize>,
    /// Refuse results that other code made than today's
    #[arg(long)]
    strict_code: bool,
}

/// Where everything is.
#[derive(Args, Clone)]
pub struct Places {
    /// The folder of the store and the runs
    #[arg(long, default_value_os_t = crate::cli::context::default_results(), value_name = "DIR")]
    pub results: PathBuf,
}

/// What configures a run from the command line.
#[derive(Args)]
pub struct Settings {
    /// Set a key of the configuration: train.total_tokens=1M
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// # Errors
    ///
    /// When one is not `key.path=value`.
    pub fn parse(&self) -> Result<Vec<(String, Written)>> {
        self.set.iter().map(|text| parse_assignment(text)).collect()
    }
}

#[derive(Args)]
pub struct PlanArgs {
    /// The sweep file
    file: PathBuf,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    points: PointArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Args)]
pub struct RunArgs {
    /// The sweep file
    file: PathBuf,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    course: CourseArgs,
    #[command(flatten)]
    points: PointArgs,
    /// Make results of this kind again: out_of_memory, diverged
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = repeatable)]
    again: Vec<Status>,
    /// The folder that reports are written to
    #[arg(long, default_value = "reports", value_name = "DIR")]
    out: PathBuf,
    /// Leave the report out
    #[arg(long)]
    no_report: bool,
}

/// Where base configurations are looked for besides the mentioning file's own folder: the project's `templatelib/`, then the
/// one that came with this program.
pub fn template_folders() -> Vec<PathBuf> {
    let beside = installation().map(|folder| folder.join("templatelib"));
    std::iter::once(PathBuf::from("templatelib")).chain(beside).collect()
}

/// The folder that this program came with: the nearest one upward that has `templatelib/`.
pub fn installation() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    // target/release/fathom -> the checkout.
    let mut folders = exe.ancestors().skip(1).take(4);
    folders.find(|folder| folder.join("templatelib").is_dir()).map(Path::to_path_buf)
}

/// Carries out `fathom sweep …`.
///
/// # Errors
///
/// For mistakes in the sweep file, and when the store, a run's folder or the report can't be written.
pub fn run(command: SweepCommand) -> Result<u8> {
    match command {
        SweepCommand::Plan(args) => plan(&args),
        SweepCommand::Run(args) => run_sweep(&args),
        SweepCommand::Pause(args) => course::pause(&args),
        SweepCommand::Continue(args) => course::go_on(&args),
        SweepCommand::Check(args) => language::check(&args),
        SweepCommand::Why(args) => why::run(&args),
        SweepCommand::Schema => language::print_schema(),
        SweepCommand::Import(args) => language::import(&args),
    }
}

fn plan(args: &PlanArgs) -> Result<u8> {
    let mut plan = Plan::read(&args.file, &template_folders(), &args.settings.parse()?)?;
    plan.notes.iter().for_each(|note| tell!("note: {note}"));
    let mut fits = Fits::default();
    fits.check_points(&plan.foreseen()?)?;
    let store = Store::path(&args.places.results).is_file();
    let store = store.then(|| read_store(&args.places.results)).transpose()?;
    let mut identities = Identities::after(fits);
    // What can't be identified yet is said below.
    let added = seeds::add(&mut plan, args.points.top_up_seeds, store.as_ref(), &mut identities);
    if args.points.top_up_seeds.is_some() {
        added?;
    }
    let columns = ["#", "point", "seed", "tokens", "run", "status"];
    let predicted = ["memory", "host memory", "FLOP a step", "seconds a step", "first wall"];
    let mut table = Table::new(&[&columns[..], &predicted].concat());
    let mut planner = Planner::new(&args.machine);
    let mut unpredicted = None;
    let mut unknown = None;
    let mut known = Vec::new();
    let points = plan.foreseen()?;
    for (index, point) in points.iter().enumerate() {
        let identified = identify(std::slice::from_ref(point), &mut identities);
        let (run_id, status) = match &identified {
            Ok(points) => {
                known.extend(points.iter().cloned());
                let run_id = points[0].run_id();
                let status =
                    store.as_ref().map(|store| store.status(&run_id)).transpose()?.flatten();
                let now = |said| status_now(&args.places.results, &run_id, said).to_string();
                let status = status.map_or("missing".to_string(), now);
                let fallbacks = course::fallbacks(&plan, index, store.as_ref(), &mut identities)?;
                let told = fallbacks.iter().map(|(point, status)| {
                    let status = status.map_or("missing".to_string(), |status| status.to_string());
                    format!(", its fallback {}: {status}", point.run_id())
                });
                (run_id.0, status + &told.collect::<String>())
            }
            Err(error) => {
                let of_point = || format!("point `{}`", point.label);
                identities.check_splits(&point.config).with_context(of_point)?;
                unknown.get_or_insert_with(|| format!("{error:#}"));
                ("unknown".to_string(), "missing".to_string())
            }
        };
        let tokens = point.config.train.total_tokens;
        let tokens = match args.format.is_for_people() {
            true => Cell::Text(tokens.to_string()),
            false => Cell::Integer(tokens.0 as i64),
        };
        let mut row = vec![
            Cell::Integer(index as i64),
            point.label.clone().into(),
            Cell::Integer(point.seed as i64),
            tokens,
            run_id.into(),
            status.into(),
        ];
        match planner.predict(&point.config) {
            Ok(prediction) => row.extend(predicted_cells(&prediction, args.format)),
            Err(error) => {
                unpredicted.get_or_insert_with(|| format!("{error:#}"));
                row.extend(predicted.map(|_| Cell::Null));
            }
        }
        table.rows.push(row);
    }
    refuse_same_run(&known)?;
    if let Some(store) = &store {
        check_code(store, &named(&known), args.points.strict_code)?;
    }
    print!("{}", table.render(args.format));
    if args.format == Format::Table {
        match &plan.search {
            Some(search) => print_search(&plan, search, &mut planner)?,
            None => {
                course::print(&plan, store.as_ref())?;
                let total: u64 = points.iter().map(|p| p.config.train.total_tokens.0).sum();
                say!("{} points, {} tokens in all", points.len(), Tokens(total));
                if plan.left_out > 0 {
                    say!("{} left out by the constraints", plan.left_out);
                }
            }
        }
    }
    if let Some(why) = unknown {
        tell!("warning: the runs can't be identified yet: {why}");
    }
    if let Some(why) = unpredicted {
        tell!("warning: what the runs will take can't be predicted: {why}");
    }
    Ok(exit::OK)
}

/// What will be searched, and in each case where it will end if what is predicted comes true.
fn print_search(plan: &Plan, bisect: &Bisect, planner: &mut Planner) -> Result<()> {
    let Bisect { parameter, low, high, resolution, probe_layers, also, .. } = bisect;
    let by = probe_layers
        .map_or(String::new(), |n| format!(", by probes of {n} layers and a whole run"));
    say!(
        "search: the largest {parameter} from {low} to {high} that finishes, to within {resolution}{by}"
    );
    if probe_layers.is_some() {
        say!("  (FLOP and seconds above are those of all layers)");
    }
    if !also.is_empty() {
        let also: Vec<String> = also.iter().map(u64::to_string).collect();
        say!("  first {}, up to one that does not finish", also.join(", "));
    }
    for (case, point) in plan.points.iter().enumerate() {
        let mut search = Search::new(bisect);
        let mut probes = 0;
        while let Some(probe) = search.next() {
            let config = plan.probe(case, bisect, probe.value, probe.whole)?.config;
            let Ok(prediction) = planner.predict(&config) else { return Ok(()) };
            search.record(probe, prediction.fits());
            probes += 1;
        }
        let found = search.finished.map_or("none".to_string(), |value| value.to_string());
        let case = if plan.points.len() > 1 { format!("{}: ", point.label) } else { String::new() };
        say!("  {case}{found} by prediction, after {probes} runs");
    }
    Ok(())
}

/// Says, or with `strict` refuses, that results of the points (label, seed, run) were made by other code than the worker's. The
/// worker is asked only where there are results.
fn check_code(store: &Store, points: &[(&str, u64, RunId)], strict: bool) -> Result<()> {
    let mut any = false;
    for (.., run_id) in points {
        any |= store.status(run_id)?.is_some_and(Status::is_result);
    }
    if !any {
        return Ok(());
    }
    let Some(today) = find_worker().ok().and_then(|worker| Code::of_worker(&worker)) else {
        if strict {
            bail!(
                "--strict-code: expected a worker that says what it was built from, found one that does not\n  help: `PROGRAM \
                 version` is to print {{\"code_version\": …, \"git_commit\": …, \"git_dirty\": …, \"git_diff\": …}}"
            );
        }
        return Ok(());
    };
    let others = code::made_by_other(store, points.iter().cloned(), &today)?;
    if strict {
        code::refuse_other(&others, &today)?;
    }
    if let Some(note) = code::note(&others, &today) {
        tell!("note: {note}");
    }
    Ok(())
}

fn named(points: &[Identified]) -> Vec<(&str, u64, RunId)> {
    points.iter().map(|p| (p.point.label.as_str(), p.point.seed, p.run_id())).collect()
}

/// A sweep is known by its name: a second file of the same name takes the place of the first.
fn warn_of_another_file(store: &Store, plan: &Plan) -> Result<()> {
    let known = store.sweeps()?.into_iter().find(|sweep| sweep.name == plan.name);
    if let Some(known) = known.filter(|known| {
        let absolute = |file: &str| std::fs::canonicalize(file).unwrap_or_else(|_| file.into());
        absolute(&known.file) != absolute(&plan.file)
    }) {
        tell!(
            "warning: {}: the sweep `{}` of this store came from {}; its points and its report are replaced\n  help: give \
             one of them another `name:`",
            plan.file,
            plan.name,
            known.file
        );
    }
    Ok(())
}

/// What a point will take, in the order of the plan's columns.
fn predicted_cells(prediction: &Prediction, format: Format) -> [Cell; 5] {
    let bytes = |bytes: Bytes| match format.is_for_people() {
        true => Cell::Text(bytes.to_string()),
        false => Cell::Integer(bytes.0 as i64),
    };
    let wall = match (prediction.wall.place, prediction.fits()) {
        (Place::Device, true) => "memory",
        (Place::Device, false) => "memory: does not fit",
        (Place::Host, true) => "host memory",
        (Place::Host, false) => "host memory: does not fit",
    };
    [
        bytes(prediction.memory.device_peak()),
        bytes(prediction.memory.host),
        Cell::Real(prediction.work.hardware_flops()),
        Cell::Real(prediction.seconds_per_step),
        wall.into(),
    ]
}

fn run_sweep(args: &RunArgs) -> Result<u8> {
    if !args.no_report {
        check_folder("--out", &args.out)?;
    }
    let mut plan = Plan::read(&args.file, &template_folders(), &args.settings.parse()?)?;
    plan.notes.iter().for_each(|note| tell!("note: {note}"));
    let (mut fits, points) = (Fits::default(), plan.foreseen()?);
    fits.check_points(&points)?;
    let worker = find_worker()?;
    see_locks(&args.places.results, |what| tell!("{what}"))?;
    let mut identities = Identities::after(fits);
    // What can't be read is said before anything is made.
    identify(&points, &mut identities)?;
    let mut store = Store::open(&args.places.results)?;
    seeds::add(&mut plan, args.points.top_up_seeds, Some(&store), &mut identities)?;
    // With the seeds beyond those of the file.
    let points = plan.foreseen()?;
    if args.points.strict_code {
        check_code(&store, &named(&identify(&points, &mut identities)?), true)?;
    }
    let progress = Progress::new(points.iter().map(|p| p.label.len()).max().unwrap_or(8));
    let mut driver = Driver {
        results: &args.places.results,
        worker,
        jobs: args.course.jobs(),
        shares: args.course.shares(&args.places.results)?,
        seconds: Some(course::seconds()),
        slurm: args.course.slurm(&args.places.results)?,
        again: args.again.clone(),
        store: &mut store,
        watcher: &progress,
        interrupts: watch_interrupts()?,
    };
    warn_of_another_file(driver.store, &plan)?;
    let summary = driver.sweep(&plan, identities)?;
    print_summary(&summary);
    let points = store.points(&plan.name)?;
    let points: Vec<_> =
        points.iter().map(|p| (p.label.as_str(), p.seed, p.run_id.clone())).collect();
    check_code(&store, &points, false)?;
    if !args.no_report {
        drop(store);
        let report = write_report(&args.places.results, &plan.name, &args.out)?;
        say!("report: {}", report.display());
    }
    Ok(exit_code(&summary))
}

/// A status that `--again` may name.
pub fn repeatable(text: &str) -> Result<Status, String> {
    match text.parse::<Status>()? {
        status @ (Status::OutOfMemory | Status::Diverged) => Ok(status),
        other => Err(format!(
            "expected `out_of_memory` or `diverged`, found `{other}` (a finished run stays; all others are run again anyway)"
        )),
    }
}

/// The exit code that a summary comes to.
pub fn exit_code(summary: &Summary) -> u8 {
    match summary {
        _ if summary.interrupted => exit::INTERRUPTED,
        _ if summary.failures() > 0 => exit::RUNS_FAILED,
        _ => exit::OK,
    }
}

/// Prints how many runs ended how, and every one that has no result.
pub fn print_summary(summary: &Summary) {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for run in &summary.ended {
        let rung = run.at_rung.map(|_| "stopped at their rungs");
        *counts.entry(rung.unwrap_or(run.status.name())).or_default() += 1;
    }
    let mut parts: Vec<String> =
        counts.iter().map(|(status, count)| format!("{count} {status}")).collect();
    if summary.reused > 0 {
        parts.push(format!("{} done before", summary.reused));
    }
    if summary.elsewhere > 0 {
        parts.push(format!("{} done by another process", summary.elsewhere));
    }
    if summary.by_fallback > 0 {
        parts.push(format!("{} of them as a fallback after out_of_memory", summary.by_fallback));
    }
    say!("runs: {}", if parts.is_empty() { "none".to_string() } else { parts.join(", ") });
    for Ended { label, seed, run_id, status, detail, at_rung } in &summary.ended {
        if *status != Status::Finished && at_rung.is_none() {
            let detail = detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default();
            say!("  {label}, seed {seed} ({run_id}): {status}{detail}");
        }
    }
    if summary.ended.iter().any(|run| run.status == Status::OutOfMemory) {
        say!(
            "  (out of memory is a result; --again out_of_memory tries once more, with fewer --jobs)"
        );
    }
    if let Some(budget) = &summary.budget {
        let beside = match summary.beside {
            0 => String::new(),
            beside => format!(" with the {beside} that another process has at work"),
        };
        let left = match summary.left {
            0 => String::new(),
            1 => format!("; a run was not begun, which would take more{beside}"),
            left => format!("; {left} runs were not begun, which would take more{beside}"),
        };
        say!("budget: {budget}{left}");
    }
    if summary.interrupted {
        say!("stopped; the same command goes on from here");
    }
}

/// How soon after one signal another says nothing new: `timeout` sends its own twice, to the process and to its group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// Counts Ctrl-C and SIGTERM; those that follow one another within [`SAME_SIGNAL`] once.
///
/// # Errors
///
/// When the handlers can't be set.
pub fn watch_interrupts() -> Result<Arc<AtomicUsize>> {
    let count = Arc::new(AtomicUsize::new(0));
    // Milliseconds from `begun` to the signal that was counted last, and one; 0 before there is one.
    let (begun, last) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let (count, last) = (count.clone(), last.clone());
        // SAFETY: the handler reads a clock and writes to atomics, which a signal handler may.
        unsafe {
            signal_hook::low_level::register(signal, move || {
                let now = begun.elapsed().as_millis() as u64 + 1;
                let before = last.load(Ordering::Relaxed);
                if before == 0 || now - before > SAME_SIGNAL.as_millis() as u64 {
                    last.store(now, Ordering::Relaxed);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })?;
        }
    }
    Ok(count)
}
