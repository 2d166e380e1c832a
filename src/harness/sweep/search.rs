//! Bisection: the largest value of one parameter with which a run still finishes.

use super::plan::Bisect;

/// How far a search has come. It asks for probes and is told how they ended; it never starts anything itself.
#[derive(Debug, Clone)]
pub struct Search {
    bisect: Bisect,
    /// The largest value that finished.
    pub finished: Option<u64>,
    /// The smallest value that did not.
    pub refused: Option<u64>,
    /// Whether probes work only some layers, as the search was asked to. What they find is confirmed by one whole run.
    partial: bool,
    confirmed: Option<u64>,
    /// How far below the smallest value that did not finish the next whole run is, after one that its probe had promised.
    step_down: Option<u64>,
    /// How many of `also` are tried or, above one that did not finish, given up.
    also_done: usize,
}

/// A value to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    pub value: u64,
    /// Whether all layers of the model are to be worked.
    pub whole: bool,
}

impl Search {
    pub fn new(bisect: &Bisect) -> Search {
        Search {
            bisect: bisect.clone(),
            finished: None,
            refused: None,
            partial: bisect.probe_layers.is_some(),
            confirmed: None,
            step_down: None,
            also_done: 0,
        }
    }

    /// What to try next; `None` when the edge is known to the resolution, and confirmed by a whole run.
    pub fn next(&self) -> Option<Probe> {
        match self.next_value() {
            Some(value) => Some(Probe { value, whole: !self.partial }),
            None if self.partial && self.confirmed != self.finished => {
                self.finished.map(|value| Probe { value, whole: true })
            }
            None => None,
        }
    }

    /// First the values of `also`; then `low`, which has to finish, and `high`; then the middle of the bracket. It is the
    /// geometric middle while the bracket spans more than a factor of two: ceilings are guessed by orders of magnitude.
    fn next_value(&self) -> Option<u64> {
        if let Some(&value) = self.bisect.also.get(self.also_done) {
            return Some(value);
        }
        let Bisect { low, high, resolution, multiple_of, .. } = self.bisect;
        let Some(finished) = self.finished else {
            return match (self.refused, self.step_down) {
                (Some(refused), _) if refused <= low => None,
                (Some(refused), Some(step)) => {
                    Some((refused.saturating_sub(step) / multiple_of * multiple_of).max(low))
                }
                _ => Some(low),
            };
        };
        if finished >= high {
            return None;
        }
        let Some(refused) = self.refused else { return Some(high) };
        if refused - finished <= resolution {
            return None;
        }
        let middle = match refused / finished >= 2 {
            true => ((finished as f64) * (refused as f64)).sqrt() as u64,
            false => finished + (refused - finished) / 2,
        };
        let middle = middle / multiple_of * multiple_of;
        let middle = middle.max(finished + multiple_of);
        (middle < refused).then_some(middle)
    }

    /// Takes the outcome of a probe. Where a whole run does not finish although its probe did, the search goes on with whole
    /// runs: down from there in steps that double, as the edge is near, then between.
    pub fn record(&mut self, Probe { value, whole }: Probe, finished: bool) {
        if self.also_done < self.bisect.also.len() {
            self.also_done = if finished { self.also_done + 1 } else { self.bisect.also.len() };
            // What lies outside of the search is for the table alone.
            if !(self.bisect.low..=self.bisect.high).contains(&value) {
                return;
            }
        }
        match (self.partial && whole, finished) {
            (true, true) => self.confirmed = Some(value),
            (true, false) => {
                self.partial = false;
                self.finished = None;
                self.refused = Some(value);
                self.step_down = Some(self.bisect.resolution);
            }
            (false, true) => {
                self.finished = Some(self.finished.map_or(value, |best| best.max(value)));
            }
            (false, false) => {
                self.refused = Some(self.refused.map_or(value, |least| least.min(value)));
                self.step_down = self.step_down.map(|step| 2 * step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Searches with an edge for probes and one for whole runs; checks every step, returns the search and its runs.
    fn search(bisect: &Bisect, probe_edge: u64, whole_edge: u64) -> (Search, Vec<Probe>) {
        let mut search = Search::new(bisect);
        let mut probes = Vec::new();
        while let Some(probe) = search.next() {
            let Probe { value, .. } = probe;
            let within =
                value % bisect.multiple_of == 0 && (bisect.low..=bisect.high).contains(&value);
            assert!(within || bisect.also.contains(&value));
            assert!(!probes.contains(&probe), "{value} is tried twice");
            search.record(probe, value <= if probe.whole { whole_edge } else { probe_edge });
            probes.push(probe);
            assert!(probes.len() < 80);
        }
        (search, probes)
    }

    fn check(search: &Search, bisect: &Bisect, edge: u64) {
        let Bisect { low, high, resolution, multiple_of, .. } = *bisect;
        match (search.finished, search.refused) {
            (None, refused) => assert!(edge < low && refused == Some(low)),
            (Some(best), None) => assert!(best == high && edge >= high),
            (Some(best), Some(refused)) => {
                assert!(best <= edge && edge < refused);
                assert!(refused - best <= resolution.max(2 * multiple_of));
            }
        }
    }

    fn bisect(low: u64, high: u64, resolution: u64, multiple_of: u64) -> Bisect {
        let (parameter, also) = ("p".into(), Vec::new());
        Bisect { parameter, low, high, resolution, multiple_of, probe_layers: None, also }
    }

    /// Whole runs are long: few are made where the probes were nearly right.
    #[test]
    fn a_promise_that_is_not_kept_is_followed_down_from_there() {
        let bisect = Bisect { probe_layers: Some(2), ..bisect(1024, 524_288, 4096, 1024) };
        let (found, probes) = search(&bisect, 300_000, 285_000);
        let whole: Vec<u64> = probes.iter().filter(|p| p.whole).map(|p| p.value).collect();
        assert_eq!(whole, [297_984, 293_888, 285_696, 269_312, 277_504, 281_600]);
        check(&found, &bisect, 285_000);
    }

    proptest! {
        /// Whatever the edge, the search finds it within its resolution, in few probes.
        #[test]
        fn the_edge_of_any_monotone_outcome_is_found(
            low in 1u64..200, span in 1u64..5000, multiple_of in 1u64..16, resolution in 1u64..64, edge in 0u64..400_000,
            also in proptest::collection::btree_set(1u64..6000, 0..8),
        ) {
            let (low, high) = (low * multiple_of, (low + span) * multiple_of);
            let alone = bisect(low, high, resolution.max(multiple_of), multiple_of);
            check(&search(&alone, 0, edge).0, &alone, edge);

            // What is tried beforehand rises to the first that does not finish, and does not move what is found.
            let also: Vec<u64> = also.into_iter().map(|value| value * multiple_of).collect();
            let bisect = Bisect { also: also.clone(), ..alone };
            let (found, probes) = search(&bisect, 0, edge);
            check(&found, &bisect, edge);
            let tried = also.len().min(also.iter().filter(|value| **value <= edge).count() + 1);
            let values: Vec<u64> = probes.iter().map(|probe| probe.value).collect();
            prop_assert_eq!(&values[..tried], &also[..tried]);
            let refused = also.iter().find(|v| **v > edge && (low..=high).contains(*v));
            prop_assert!(refused.is_none_or(|refused| values.iter().all(|value| value <= refused || *value == low)));

            // Probes that tell the truth leave one whole run.
            let probing = Bisect { probe_layers: Some(2), ..bisect };
            let (found, probes) = search(&probing, edge, edge);
            check(&found, &probing, edge);
            let whole = probes.iter().filter(|probe| probe.whole).count();
            prop_assert_eq!(whole, usize::from(found.finished.is_some()));
        }

        /// Probes that promise too much do not move the ceiling.
        #[test]
        fn what_probes_find_is_confirmed(
            low in 1u64..200, span in 1u64..5000, edge in 0u64..6000, more in 0u64..6000,
            also in proptest::collection::btree_set(1u64..6000, 0..8),
        ) {
            let also = also.into_iter().collect();
            let bisect = Bisect { probe_layers: Some(2), also, ..bisect(low, low + span, 4, 1) };
            let (found, _) = search(&bisect, edge + more, edge);
            if let Some(best) = found.finished {
                prop_assert!(best <= edge);
                prop_assert!(best == low + span || found.refused.is_some_and(|refused| refused - best <= 4));
            } else {
                prop_assert!(edge < low);
            }
        }
    }
}
