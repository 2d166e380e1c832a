//! Seeds beyond those of the sweep file: what `--top-up-seeds` asks for, and what it brought an earlier time.

use crate::store::{Run, Store};
use crate::sweep::Identities;
use crate::sweep::drive::identify;
use crate::sweep::plan::{COMMAND_LINE, Plan, TOP_UP_SEEDS};
use anyhow::Result;
use std::collections::HashSet;

/// Brings every point to `asked` seeds, of those that the store has finished first; where nothing is asked for, keeps the
/// further seeds of an earlier time that have their results, and says so.
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
    let Some(count) = asked else { return keep(plan, store, identities) };
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
    Ok(())
}

fn keep(plan: &mut Plan, store: Option<&Store>, identities: &mut Identities) -> Result<()> {
    let Some(store) = store.filter(|_| plan.search.is_none()) else { return Ok(()) };
    let Some(sweep) = store.sweep(&plan.name)? else { return Ok(()) };
    let Some(count) = sweep.spec[COMMAND_LINE][TOP_UP_SEEDS].as_u64() else { return Ok(()) };
    let runs = store.runs_of_sweep(&plan.name)?;
    let own: HashSet<String> = identify(&plan.points, identities)?
        .into_iter()
        .map(|point| point.identity.identity.run_hash)
        .collect();
    let beyond: Vec<&Run> = runs.iter().filter(|run| !own.contains(&run.run_hash)).collect();
    let (mut kept, mut open) = (0, 0);
    plan.keep_seeds(count, |point| {
        let point = identify(std::slice::from_ref(point), identities)?.remove(0);
        let group = &point.identity.identity.group_hash;
        let of_group = beyond.iter().filter(|run| run.group_hash == *group);
        let (done, left): (Vec<&Run>, Vec<&Run>) = of_group.partition(|run| run.status.is_result());
        kept += done.len();
        open += left.len();
        Ok(done.iter().map(|run| run.seed).collect())
    })?;
    let option = "--top-up-seeds";
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
