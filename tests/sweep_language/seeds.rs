//! Seeds of points: those of random draws.

use super::{error, labels, plan};
use std::collections::HashSet;

const RATE: &str = "train.learning_rate: { log: [1e-4, 1e-1] }";

/// The seeds of the points, in their order.
fn seeds(file: &str) -> Vec<u64> {
    plan(file).unwrap().points.iter().map(|point| point.seed).collect()
}

#[test]
fn a_seed_of_a_range_is_drawn() {
    let file =
        format!("random: {{ count: 8 }}\naxes: {{ {RATE}, train.seed: {{ int: [1, 1000] }} }}");
    let found = seeds(&file);
    let different: HashSet<u64> = found.iter().copied().collect();
    assert!(found.len() == 8 && different.len() > 1, "{found:?}");
    assert!(found.iter().all(|seed| (1..=1000).contains(seed)), "{found:?}");
    // The other axes are drawn as they are without it.
    let without = labels(&format!("random: {{ count: 8 }}\naxes: {{ {RATE} }}"));
    let rates = |labels: Vec<String>| -> Vec<String> {
        labels.iter().map(|label| label.split(',').next().unwrap().to_string()).collect()
    };
    assert_eq!(rates(labels(&file)), rates(without));
    let mut alone = seeds("random: { count: 3 }\naxes: { train.seed: { int: [4, 6] } }");
    alone.sort_unstable();
    assert_eq!(alone, [4, 5, 6]);
}

#[test]
fn a_seed_with_a_condition_is_drawn_where_it_holds() {
    let file = format!(
        "random: {{ count: 12 }}\naxes: {{ arm: {{ a: {{}}, b: {{ train.max_grad_norm: 0.5 }} }}, {RATE},
         train.seed: {{ values: [1, 2, 3], when: {{ arm: b }} }} }}"
    );
    let found = plan(&file).unwrap().points;
    assert_eq!(found.len(), 12);
    let of = |arm: &str| -> HashSet<u64> {
        found.iter().filter(|point| point.settings["arm"] == arm).map(|point| point.seed).collect()
    };
    assert_eq!(of("a"), HashSet::from([0]));
    assert!(of("b").len() > 1 && of("b").is_subset(&HashSet::from([1, 2, 3])), "{:?}", of("b"));
}

#[test]
fn zipped_seeds_are_drawn_with_what_they_go_with() {
    let file = "random: { count: 3 }\nzip: [[train.learning_rate, train.seed]]\n\
                axes: { train.learning_rate: [0.1, 0.2, 0.3], train.seed: [7, 8, 9] }";
    let mut found = labels(file);
    found.sort();
    assert_eq!(found, ["learning_rate=0.1, 7", "learning_rate=0.2, 8", "learning_rate=0.3, 9"]);
}

#[test]
fn draws_are_made_with_the_seeds_that_are_not_excluded() {
    let head = format!(
        "random: {{ count: 4 }}\nseeds: 3\naxes: {{ {RATE}, train.micro_batch_size: [1, 2] }}\n"
    );
    assert_eq!(seeds(&head), [0, 1, 2].repeat(4));
    let all = labels(&head);
    let left = labels(&format!("{head}exclude: [{{ train.seed: 1 }}]"));
    let expected: Vec<String> = all.into_iter().filter(|label| !label.ends_with(", 1")).collect();
    assert_eq!(left, expected);
    let error = error(&format!("{head}exclude: [{{ train.seed: [0, 1, 2] }}]"));
    assert!(error.contains("random.count: expected 4 points that differ, found 0"), "{error}");
}
