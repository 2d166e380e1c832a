//! Seeds of points: those that are asked for beyond the file, and those of random draws.

use super::{error, labels, plan};
use std::collections::HashSet;

/// What `--top-up-seeds` makes of a file: its points, and how many of them have fewer seeds.
fn topped_up(file: &str, count: usize) -> (Vec<String>, usize) {
    let mut plan = plan(file).unwrap();
    let short = plan.top_up_seeds(count, |_| Ok(Vec::new())).unwrap();
    let points = plan.points.into_iter().map(|point| format!("{}, {}", point.label, point.seed));
    (points.collect(), short)
}

#[test]
fn the_rules_of_a_file_hold_for_further_seeds() {
    let axes = "axes: { train.learning_rate: [1e-3, 1e-2] }\n";
    let file = format!("{axes}seeds: 3\nexclude: [{{ train.learning_rate: 1e-2, train.seed: 1 }}]");
    let (points, short) = topped_up(&file, 3);
    assert_eq!(
        points,
        [
            "learning_rate=1e-3, 0",
            "learning_rate=1e-3, 1",
            "learning_rate=1e-3, 2",
            "learning_rate=0.01, 0",
            "learning_rate=0.01, 2",
            "learning_rate=0.01, 3",
        ]
    );
    assert_eq!(short, 0);
    let (points, short) = topped_up(&format!("{axes}constraints: train.seed < 2"), 3);
    assert_eq!(
        points,
        [
            "learning_rate=1e-3, 0",
            "learning_rate=1e-3, 1",
            "learning_rate=0.01, 0",
            "learning_rate=0.01, 1",
        ]
    );
    assert_eq!(short, 2);
    let constraint = "constraints: \"train.seed % 2 == 0 or train.learning_rate < 0.01\"";
    let (points, _) = topped_up(&format!("{axes}{constraint}"), 3);
    assert_eq!(
        points[3..],
        ["learning_rate=0.01, 0", "learning_rate=0.01, 2", "learning_rate=0.01, 4"]
    );
    // What is brought an earlier time is asked again.
    let mut plan = plan(&format!("{axes}constraints: train.seed < 2")).unwrap();
    plan.keep_seeds(3, |_| Ok(vec![1, 2])).unwrap();
    assert_eq!(plan.points.iter().map(|point| point.seed).collect::<Vec<_>>(), [0, 1, 0, 1]);
    // A point that is there by `include` is there with more seeds too.
    let file = format!(
        "{axes}exclude: [{{ train.learning_rate: 1e-2 }}]\ninclude: [{{ train.learning_rate: 1e-2 }}]"
    );
    assert_eq!(topped_up(&file, 2).0.len(), 4);
}

#[test]
fn a_seed_that_a_rule_sets_has_none_beside_it() {
    let mut plan =
        plan("axes: { train.learning_rate: [0.1] }\nderive: { train.seed: \"7\" }").unwrap();
    let error = plan.top_up_seeds(2, |_| Ok(Vec::new())).unwrap_err().to_string();
    assert_eq!(
        error,
        "--top-up-seeds: expected points that may have more than one seed, found `learning_rate=0.1`, whose seed \
         `derive.train.seed` sets\n  help: take the rule away, or leave --top-up-seeds out"
    );
    plan.keep_seeds(2, |_| Ok(vec![1])).unwrap();
    assert_eq!(plan.points.len(), 1);
}

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
