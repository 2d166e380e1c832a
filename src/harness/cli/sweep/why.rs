//! `fathom sweep why`: what makes a point another run than all that are finished.

use super::{Places, Settings, seeds, template_folders};
use crate::cli::table::{Cell, Format, Table, print};
use crate::cli::{course, exit};
use crate::run::read_store;
use crate::store::{Run, Store};
use crate::sweep::Identities;
use crate::sweep::drive::{Identified, identify};
use crate::sweep::plan::Plan;
use crate::sweep::why::{Difference, Finished, Why};
use anyhow::{Result, bail};
use clap::Args;
use fathom_spec::config::nearest;
use serde_json::Value;
use std::path::PathBuf;

#[derive(Args)]
pub struct WhyArgs {
    /// The sweep file
    file: PathBuf,
    /// A point: its label, its number in `fathom sweep plan`, or its run [default: every point without a result]
    point: Option<String>,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    settings: Settings,
}

/// Carries out `fathom sweep why`.
///
/// # Errors
///
/// For mistakes in the sweep file, a point that it does not have, and when the store can't be read.
pub fn run(args: &WhyArgs) -> Result<u8> {
    let mut plan = Plan::read(&args.file, &template_folders(), &args.settings.parse()?)?;
    let store = Store::path(&args.places.results).is_file();
    let store = store.then(|| read_store(&args.places.results)).transpose()?;
    let mut identities = Identities::default();
    seeds::add(&mut plan, None, store.as_ref(), &mut identities)?;
    let points = identify(&plan.foreseen()?, &mut identities)?;
    let asked = match &args.point {
        Some(text) => named(&points, text, &plan)?,
        None => (0..points.len()).collect(),
    };
    let finished = store.as_ref().map(Finished::of).transpose()?.unwrap_or_default();
    let mut text = String::new();
    let mut done = 0;
    let mut with_fallbacks = Vec::new();
    for at in asked {
        with_fallbacks.push(points[at].clone());
        let fallbacks = course::fallbacks(&plan, at, store.as_ref(), &mut identities)?;
        // One that is the run of another point is that point's.
        let is_own =
            |fallback: &Identified| !points.iter().any(|point| point.run_id() == fallback.run_id());
        with_fallbacks.extend(fallbacks.into_iter().map(|(point, _)| point).filter(is_own));
    }
    for point in &with_fallbacks {
        let run = store.as_ref().map(|store| store.run(&point.run_id())).transpose()?.flatten();
        let why = finished.why(point, run);
        if args.point.is_none() && matches!(why, Why::Done(_)) {
            done += 1;
            continue;
        }
        text +=
            &format!("{}, seed {}: run {}: ", point.point.label, point.point.seed, point.run_id());
        text += &told(&why, store.as_ref())?;
    }
    if args.point.is_none() {
        let fallbacks = match with_fallbacks.len() - points.len() {
            0 => String::new(),
            1 => " and a fallback".to_string(),
            n => format!(" and {n} fallbacks"),
        };
        text += &format!("{} points{fallbacks}, {done} done\n", points.len());
    }
    print(&text)?;
    Ok(exit::OK)
}

/// The places of the points that a label (of any seed), a position or a run names.
fn named(points: &[Identified], text: &str, plan: &Plan) -> Result<Vec<usize>> {
    let all = || points.iter().enumerate();
    let by_label: Vec<usize> =
        all().filter(|(_, p)| p.point.label == text).map(|(at, _)| at).collect();
    if !by_label.is_empty() {
        return Ok(by_label);
    }
    if let Some(at) = text.parse::<usize>().ok().filter(|at| *at < points.len()) {
        return Ok(vec![at]);
    }
    let of_run = |p: &Identified| text.len() >= 4 && p.run_id().0.starts_with(text);
    if let Some((at, _)) = all().find(|(_, p)| of_run(p)) {
        return Ok(vec![at]);
    }
    let near = nearest(text, points.iter().map(|p| p.point.label.as_str()));
    let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
    bail!(
        "{}: expected a point (a label, a number from 0 to {}, or a run), found `{text}`\n  help: {near}`fathom sweep plan {}` \
         lists them",
        plan.file,
        points.len() - 1,
        plan.file
    )
}

fn told(why: &Why, store: Option<&Store>) -> Result<String> {
    match why {
        Why::Done(run) => Ok(format!("done: {}, nothing has to be run\n", run.status)),
        Why::Begun(run) => {
            let detail =
                run.status_detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default();
            Ok(format!(
                "{}{detail}, without a result: it goes on from its last checkpoint, or begins anew\n",
                run.status
            ))
        }
        Why::New(None) => Ok("nothing in the store is finished: every point is new\n".into()),
        Why::New(Some((run, differences))) => {
            let mut text = format!(
                "not in the store; the nearest finished run is {}{}\n",
                run.run_id,
                of_sweeps(store, run)?
            );
            let mut table = Table::new(&["key", "this point", "nearest run"]);
            for Difference { key, here, there } in differences {
                table.rows.push(vec![key.clone().into(), cell(here), cell(there)]);
            }
            text += &table.render(Format::Table);
            Ok(text)
        }
    }
}

fn of_sweeps(store: Option<&Store>, run: &Run) -> Result<String> {
    let Some(store) = store else { return Ok(String::new()) };
    let points = store.points_of_run(&run.run_id)?;
    let first = points.first();
    let shown = |(sweep, point): &(String, crate::store::PointRecord)| {
        format!(" ({sweep}: {}, seed {})", point.label, point.seed)
    };
    Ok(first.map(shown).unwrap_or_default())
}

/// Digests are known by their beginnings.
fn cell(value: &Value) -> Cell {
    match value {
        Value::String(text) if text.len() == 64 => format!("{}…", &text[..12]).into(),
        Value::String(text) => text.clone().into(),
        other => other.to_string().into(),
    }
}
