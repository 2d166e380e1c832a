//! Seeds beyond those of the sweep file: what `--top-up-seeds` asks for, and what it brought an earlier time.
//!
//! The stored sweep names the runs that were brought, also while an edit or `--set` makes other points of it: they are there
//! again with the points that they belong to.

use crate::run::status_now;
use crate::store::{Run, Status, Store};
use crate::sweep::Identities;
use crate::sweep::drive::{asked as asked_to_rest, identify, is_driven};
use crate::sweep::halving::Halving;
use crate::sweep::plan::{COMMAND_LINE, FURTHER_SEEDS, Plan, TOP_UP_SEEDS};
use anyhow::Result;
use fathom_spec::record::RunId;
use serde_json::json;
use std::collections::HashSet;

/// Brings every point to `asked` seeds, of those that the store has finished first; where nothing is asked for, keeps the
/// further seeds of an earlier time that have come to their ends or are at work, and says so.
///
/// # Errors
///
/// As [`Plan::top_up_seeds`]; when a point can't be identified, or the store can't be read.
pub fn add(
    plan: &mut Plan,
    asked: Option<usize>,
    store: Option<&Store>,
    identities: &mut Identities,
) -> Result<()> {
    match (asked, store) {
        (Some(count), _) => top_up(plan, count, store, identities),
        (None, Some(store)) if plan.search.is_none() => keep(plan, store, identities),
        (None, _) => Ok(()),
    }
}

fn top_up(
    plan: &mut Plan,
    count: usize,
    store: Option<&Store>,
    identities: &mut Identities,
) -> Result<()> {
    let of_file = plan.points.clone();
    let runs = store.map(Store::runs).transpose()?.unwrap_or_default();
    let short = plan.top_up_seeds(count, |point| {
        let point = identify(std::slice::from_ref(point), identities)?.remove(0);
        let group = &point.identity.identity.group_hash;
        let of_group = |run: &&Run| run.group_hash == *group && run.status.is_result();
        Ok(runs.iter().filter(of_group).map(|run| run.seed).collect())
    })?;
    if short > 0 {
        tell!(
            "note: {short} points have fewer than {count} seeds: `exclude` and `constraints` in {} leave no more",
            plan.file
        );
    }
    let Some(store) = store else { return Ok(()) };
    let own: HashSet<RunId> =
        identify(&of_file, identities)?.iter().map(|point| point.run_id()).collect();
    let points = identify(&plan.points, identities)?;
    let groups: HashSet<&str> =
        points.iter().map(|point| point.identity.identity.group_hash.as_str()).collect();
    // What was brought to other points is theirs still.
    let others = Further::of(plan, &own, store)?.map_or(Vec::new(), |earlier| earlier.runs);
    let others = others.iter().filter(|run| !groups.contains(run.group_hash.as_str()));
    let brought = points.iter().map(|point| point.run_id()).filter(|run| !own.contains(run));
    let brought: Vec<RunId> = others.map(|run| run.run_id.clone()).chain(brought).collect();
    remember(plan, count as u64, &brought);
    Ok(())
}

fn keep(plan: &mut Plan, store: &Store, identities: &mut Identities) -> Result<()> {
    let own: HashSet<RunId> =
        identify(&plan.points, identities)?.iter().map(|point| point.run_id()).collect();
    let Some(Further { count, runs }) = Further::of(plan, &own, store)? else { return Ok(()) };
    let stay = Stay::of(plan, store)?;
    let own_points = plan.points.len();
    let mut open = 0;
    plan.keep_seeds(count, |point| {
        let tokens = point.config.train.total_tokens.0;
        let point = identify(std::slice::from_ref(point), identities)?.remove(0);
        let group = &point.identity.identity.group_hash;
        let further = runs.iter().filter(|run| run.group_hash == *group);
        let further = further.filter(|run| !own.contains(&run.run_id));
        let (stay, left): (Vec<&Run>, Vec<&Run>) = further.partition(|run| stay.has(run, tokens));
        open += left.len();
        Ok(stay.iter().map(|run| run.seed).collect())
    })?;
    remember(plan, count, &runs.iter().map(|run| run.run_id.clone()).collect::<Vec<_>>());
    let option = "--top-up-seeds";
    let kept = plan.points.len() - own_points;
    if kept > 0 {
        tell!(
            "note: {kept} points with further seeds, of an earlier {option} {count}, are kept\n  help: `seeds: {count}` in {} \
             makes them its own, {option} {count} brings new points to as many, {option} 1 leaves them out",
            plan.file
        );
    }
    if open > 0 {
        tell!(
            "note: {open} points with further seeds, of an earlier {option} {count}, have no result and are left out\n  help: \
             {option} {count} goes on with them"
        );
    }
    Ok(())
}

/// What `--top-up-seeds` brought to a sweep, by what the store says of it.
struct Further {
    /// How many seeds were asked for the last time.
    count: u64,
    /// Those of points that the sweep does not have now too.
    runs: Vec<Run>,
}

impl Further {
    fn of(plan: &Plan, own: &HashSet<RunId>, store: &Store) -> Result<Option<Further>> {
        let Some(sweep) = store.sweep(&plan.name)? else { return Ok(None) };
        let known = &sweep.spec[FURTHER_SEEDS];
        if let (Some(count), Some(ids)) = (known[TOP_UP_SEEDS].as_u64(), known[RUNS].as_array()) {
            let ids = ids.iter().filter_map(|id| id.as_str());
            let runs =
                ids.map(|id| store.run(&RunId(id.to_string()))).filter_map(Result::transpose);
            return Ok(Some(Further { count, runs: runs.collect::<Result<_>>()? }));
        }
        // Earlier versions did not name them: they are what the file does not have.
        let Some(count) = sweep.spec[COMMAND_LINE][TOP_UP_SEEDS].as_u64() else { return Ok(None) };
        let mut runs = store.runs_of_sweep(&plan.name)?;
        runs.retain(|run| !own.contains(&run.run_id));
        Ok(Some(Further { count, runs }))
    }
}

/// What [`FURTHER_SEEDS`] has beside [`TOP_UP_SEEDS`].
const RUNS: &str = "runs";

fn remember(plan: &mut Plan, count: u64, brought: &[RunId]) {
    let ids: Vec<&str> = brought.iter().map(|run| run.0.as_str()).collect();
    plan.spec[FURTHER_SEEDS] = json!({ TOP_UP_SEEDS: count, RUNS: ids });
}

/// Which further seeds stay in the sweep: those that nobody has to begin for it.
struct Stay<'a> {
    store: &'a Store,
    halving: Option<Halving>,
    /// The sweep's points as somebody drives it now.
    driven: HashSet<RunId>,
}

impl Stay<'_> {
    fn of<'a>(plan: &Plan, store: &'a Store) -> Result<Stay<'a>> {
        let mut stay = Stay { store, halving: plan.halving.clone(), driven: HashSet::new() };
        let runs = store.runs_of_sweep(&plan.name)?;
        // Whoever lets it rest goes on with all of it; and of a harness that was killed the workers may come to their ends.
        let results = store.results();
        let is_at_work = || runs.iter().any(|run| stay.status(run) == Status::Running);
        if asked_to_rest(results, &plan.name).is_some()
            || is_driven(results, &plan.name)
            || is_at_work()
        {
            stay.driven.extend(runs.into_iter().map(|run| run.run_id));
        }
        Ok(stay)
    }

    /// `tokens` is how long the run is.
    fn has(&self, run: &Run, tokens: u64) -> bool {
        match self.status(run) {
            Status::Running => true,
            Status::Stopped if self.is_at_rung(run, tokens) => true,
            Status::Planned | Status::Stopped => self.driven.contains(&run.run_id),
            status => status.is_result(),
        }
    }

    fn status(&self, run: &Run) -> Status {
        status_now(self.store.results(), &run.run_id, run.status)
    }

    /// Whether a run has come to its end where only the best go on.
    fn is_at_rung(&self, run: &Run, tokens: u64) -> bool {
        let rungs = self.halving.iter().flat_map(|halving| halving.rungs_of(tokens));
        rungs.min().is_some_and(|first| run.tokens >= first)
    }
}
