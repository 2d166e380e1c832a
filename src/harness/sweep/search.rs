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
}

impl Search {
    pub fn new(bisect: &Bisect) -> Search {
        Search { bisect: bisect.clone(), finished: None, refused: None }
    }

    /// The value to try next; `None` when the edge is known to the resolution.
    ///
    /// First `low`, which has to finish, then `high`; then the middle of the bracket. It is the geometric middle while the
    /// bracket spans more than a factor of two: ceilings are guessed by orders of magnitude.
    pub fn next(&self) -> Option<u64> {
        let Bisect { low, high, resolution, multiple_of, .. } = self.bisect;
        let Some(finished) = self.finished else {
            return self.refused.is_none().then_some(low);
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

    /// Takes the outcome of a probe.
    pub fn record(&mut self, value: u64, finished: bool) {
        if finished {
            self.finished = Some(self.finished.map_or(value, |best| best.max(value)));
        } else {
            self.refused = Some(self.refused.map_or(value, |least| least.min(value)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the edge, the search finds it within its resolution, in few probes.
        #[test]
        fn the_edge_of_any_monotone_outcome_is_found(
            low in 1u64..200, span in 1u64..5000, multiple_of in 1u64..16, resolution in 1u64..64, edge in 0u64..400_000,
        ) {
            let (low, high) = (low * multiple_of, (low + span) * multiple_of);
            let resolution = resolution.max(multiple_of);
            let bisect = Bisect { parameter: "p".into(), low, high, resolution, multiple_of };
            let mut search = Search::new(&bisect);
            let mut probes = 0;
            while let Some(value) = search.next() {
                prop_assert!(value % multiple_of == 0 && (low..=high).contains(&value));
                search.record(value, value <= edge);
                probes += 1;
                prop_assert!(probes < 40);
            }
            match (search.finished, search.refused) {
                (None, refused) => prop_assert!(edge < low && refused == Some(low)),
                (Some(best), None) => prop_assert!(best == high && edge >= high),
                (Some(best), Some(refused)) => {
                    prop_assert!(best <= edge && edge < refused);
                    prop_assert!(refused - best <= resolution.max(2 * multiple_of));
                }
            }
        }
    }
}
