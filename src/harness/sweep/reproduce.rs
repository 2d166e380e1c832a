//! How two runs of one configuration differ, in numbers.

use crate::store::{Run, Status, Store};
use anyhow::Result;
use fathom_spec::record::RunId;
use std::collections::BTreeMap;

/// How near the numbers of two runs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// Every number has the same bits.
    EqualBits,
    WithinTolerance,
    Different,
}

/// What was compared: one line of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// `loss by step`, `nll (prefix, 128 tokens)`.
    pub what: String,
    /// Numbers that both runs have.
    pub numbers: usize,
    /// Of these, those with the same bits.
    pub equal: usize,
    /// Numbers that only one of them has.
    pub alone: usize,
    pub largest: f64,
    /// Where the largest difference is: a step.
    pub at: Option<u64>,
}

/// The numbers of a run by what they are and where: losses by step, mean NLL by context length.
type Numbers = BTreeMap<String, BTreeMap<u64, f64>>;

impl Compared {
    pub fn nearness(&self, tolerance: f64) -> Nearness {
        match self {
            _ if self.alone > 0 => Nearness::Different,
            _ if self.equal == self.numbers => Nearness::EqualBits,
            // A difference that is no number is no small one.
            _ if self.largest <= tolerance => Nearness::WithinTolerance,
            _ => Nearness::Different,
        }
    }
}

/// Everything comparable of a run: training and evaluation losses by step, and the NLL of every context length, in nats a token.
fn numbers(store: &Store, run_id: &RunId) -> Result<Numbers> {
    let mut numbers = Numbers::new();
    for key in store.metric_keys(run_id)? {
        if key == "loss" || key == "grad_norm" || key.starts_with("eval_loss") {
            let series = store.metric(run_id, &key)?.into_iter().collect();
            numbers.insert(format!("{key} by step"), series);
        }
    }
    for row in store.perplexity_by_step(run_id)? {
        let what = format!("nll ({}, {} tokens)", row.method.name(), row.context_length);
        numbers.entry(what).or_default().insert(row.step, row.nll);
    }
    Ok(numbers)
}

/// Compares two runs, line by line.
///
/// # Errors
///
/// When a store can't be read.
pub fn compare(before: (&Store, &Run), after: (&Store, &Run)) -> Result<Vec<Compared>> {
    let (here, there) = (numbers(before.0, &before.1.run_id)?, numbers(after.0, &after.1.run_id)?);
    let none = BTreeMap::new();
    let mut whats: Vec<&String> = here.keys().chain(there.keys()).collect();
    whats.sort();
    whats.dedup();
    let of = |numbers: &'_ Numbers, what: &str| numbers.get(what).cloned().unwrap_or(none.clone());
    Ok(whats
        .into_iter()
        .map(|what| compare_series(what, &of(&here, what), &of(&there, what)))
        .collect())
}

fn compare_series(what: &str, here: &BTreeMap<u64, f64>, there: &BTreeMap<u64, f64>) -> Compared {
    let alone = here.keys().filter(|at| !there.contains_key(at)).count()
        + there.keys().filter(|at| !here.contains_key(at)).count();
    let mut compared =
        Compared { what: what.to_string(), numbers: 0, equal: 0, alone, largest: 0.0, at: None };
    for (at, a) in here {
        let Some(b) = there.get(at) else { continue };
        compared.numbers += 1;
        let is_same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        compared.equal += usize::from(is_same);
        let difference = if is_same { 0.0 } else { (a - b).abs() };
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        if difference > compared.largest {
            (compared.largest, compared.at) = (difference, Some(*at));
        }
    }
    compared
}

/// How near two runs are in all: how they ended, and every number.
pub fn nearness(before: &Run, after: &Run, compared: &[Compared], tolerance: f64) -> Nearness {
    if before.status != after.status {
        return Nearness::Different;
    }
    let lines = compared.iter().map(|line| line.nearness(tolerance));
    lines.max().unwrap_or(Nearness::EqualBits)
}

/// What is to be said of two runs that ended so, in one line.
pub fn verdict(before: Status, after: Status, compared: &[Compared], tolerance: f64) -> String {
    let numbers: usize = compared.iter().map(|line| line.numbers).sum();
    let alone: usize = compared.iter().map(|line| line.alone).sum();
    let numbers_say = match compared.iter().map(|line| line.nearness(tolerance)).max() {
        _ if numbers + alone == 0 => "no number to compare: neither run logged any".to_string(),
        _ if numbers == 0 => "no number to compare: only one of the runs logged any".to_string(),
        Some(Nearness::Different) => {
            let far = compared.iter().any(|line| line.numbers > 0 && line.largest > tolerance);
            let of_one = match alone {
                1 => "1 number of one run alone".to_string(),
                n => format!("{n} numbers of one run alone"),
            };
            match (far, alone) {
                (true, 0) => format!("different by more than {tolerance}"),
                (true, _) => format!("different by more than {tolerance}; {of_one}"),
                (false, _) => format!("different: {of_one}"),
            }
        }
        Some(Nearness::WithinTolerance) => format!("the same within {tolerance} nats a token"),
        Some(Nearness::EqualBits) | None => "every number has the same bits".to_string(),
    };
    match before == after {
        true => numbers_say,
        false => format!("the ending differs: {before}, then {after}; {numbers_say}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_says_what_was_compared() {
        let of = |here: &[f64], there: &[f64]| {
            let series = |values: &[f64]| (1..).zip(values.iter().copied()).collect();
            vec![compare_series("loss by step", &series(here), &series(there))]
        };
        let (finished, oom) = (Status::Finished, Status::OutOfMemory);
        let check = |before, after, compared: &[Compared], expected: &str| {
            assert_eq!(verdict(before, after, compared, 1e-3), expected);
        };
        check(finished, finished, &of(&[1.0], &[1.0]), "every number has the same bits");
        check(finished, finished, &of(&[1.0], &[1.5]), "different by more than 0.001");
        check(oom, oom, &[], "no number to compare: neither run logged any");
        check(
            oom,
            finished,
            &of(&[], &[1.0]),
            "the ending differs: out_of_memory, then finished; no number to compare: only one of the runs logged any",
        );
        check(
            oom,
            finished,
            &of(&[1.0], &[1.0, 2.0]),
            "the ending differs: out_of_memory, then finished; different: 1 number of one run alone",
        );
    }

    fn check(here: &[f64], there: &[f64], nearness: Nearness, largest: f64, at: Option<u64>) {
        let series = |values: &[f64]| (1..).zip(values.iter().copied()).collect();
        let compared = compare_series("loss by step", &series(here), &series(there));
        let found = (compared.nearness(1e-3), compared.largest, compared.at);
        assert_eq!(found, (nearness, largest, at));
    }

    #[test]
    fn series_are_equal_near_or_different() {
        let (nan, infinity) = (f64::NAN, f64::INFINITY);
        check(&[1.0, nan, infinity], &[1.0, nan, infinity], Nearness::EqualBits, 0.0, None);
        check(
            &[1.0, 2.0],
            &[1.0, 2.0 + 0.0009765625],
            Nearness::WithinTolerance,
            0.0009765625,
            Some(2),
        );
        check(&[1.0, 2.0], &[1.5, 2.0], Nearness::Different, 0.5, Some(1));
        check(&[1.0, nan], &[1.0, 2.0], Nearness::Different, infinity, Some(2));
        check(&[1.0, 2.0], &[1.0], Nearness::Different, 0.0, None);
        check(&[0.0], &[-0.0], Nearness::WithinTolerance, 0.0, None);
    }
}
