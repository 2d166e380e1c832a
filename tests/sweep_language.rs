//! The language of sweep files: how many points a file comes to and which, what is wrong with one, and that no text whatever
//! makes the reader panic.

#[path = "sweep_language/commands.rs"]
mod commands;
#[path = "sweep_language/mistakes.rs"]
mod mistakes;
#[path = "sweep_language/ranges.rs"]
mod ranges;
#[path = "sweep_language/schema.rs"]
mod schema;
#[path = "sweep_language/seeds.rs"]
mod seeds;
#[path = "sweep_language/wandb.rs"]
mod wandb;

use fathom::sweep::plan::Plan;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::Value;
use std::path::{Path, PathBuf};

const BASE: &str = "\
model:
  config: {vocab_size: 260, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4,
           num_key_value_heads: 2, max_position_embeddings: 100000}
tokenizer: {path: bytes}
data: {corpus: random}
train: {sequence_length: 32, total_tokens: 1280, learning_rate: 0.01}
run: {device: cpu, threads: 1}
";

/// A sweep file on top of the base, in a folder of its own.
fn plan(text: &str) -> anyhow::Result<Plan> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base.yaml"), BASE).unwrap();
    let text = format!("base: base.yaml\n{text}");
    Plan::parse(&dir.path().join("s.yaml"), &text, &[], &[])
}

fn error(text: &str) -> String {
    format!("{:#}", plan(text).unwrap_err())
}

fn labels(text: &str) -> Vec<String> {
    plan(text).unwrap().points.into_iter().map(|p| format!("{}, {}", p.label, p.seed)).collect()
}

/// A key's value at each point.
fn values(text: &str, key: &str) -> Vec<Value> {
    let pointer = format!("/{}", key.replace('.', "/"));
    let points = plan(text).unwrap().points.into_iter();
    points.map(|point| point.config.to_json().pointer(&pointer).unwrap().clone()).collect()
}

#[test]
fn an_axis_with_a_condition_is_there_only_where_it_holds() {
    let file = "
axes:
  train.optimizer.type: [adamw, sgd]
  train.optimizer.momentum: { values: [0, 0.9], when: { train.optimizer.type: sgd } }
  rope:
    when: { train.optimizer.type: [adamw] }
    variants: { plain: {}, wide: { model.rope_parameters: { rope_type: default, rope_theta: 500000 } } }
";
    assert_eq!(
        labels(file),
        [
            "type=adamw rope=plain, 0",
            "type=adamw rope=wide, 0",
            "type=sgd momentum=0, 0",
            "type=sgd momentum=0.9, 0",
        ]
    );
}

#[test]
fn a_setting_with_a_condition_reaches_only_the_points_that_meet_it() {
    let file = "
axes: { train.optimizer.type: [adamw, sgd], train.micro_batch_size: [1, 2] }
when:
  - { if: { train.optimizer.type: sgd, train.micro_batch_size: [2, 4] }, set: { train.learning_rate: 0.5 } }
";
    let error = error(file);
    assert!(
        error.contains("s.yaml:5: when.if: expected a value of the axis `train.micro_batch_size`, found `4`\n  help: its values: 1, 2"),
        "{error}"
    );
    let file = file.replace("[2, 4]", "[2]");
    assert_eq!(values(&file, "train.learning_rate"), [0.01, 0.01, 0.01, 0.5]);
}

/// Each sees those that it reads, the complete configuration and the axes by name.
#[test]
fn derived_values_follow_the_point() {
    let file = "
axes:
  size: { small: { train.micro_batch_size: 2 }, large: { train.micro_batch_size: 8 } }
set: { train.total_tokens: 4M }
derive:
  train.schedule.warmup_tokens: train.total_tokens / 20
  train.learning_rate: 0.1 / train.micro_batch_size
  train.max_grad_norm: \"0.5 if size == 'large' else 2 * train.learning_rate\"
";
    assert_eq!(values(file, "train.schedule.warmup_tokens"), [200_000, 200_000]);
    assert_eq!(values(file, "train.learning_rate"), [0.05, 0.0125]);
    assert_eq!(values(file, "train.max_grad_norm"), [0.1, 0.5]);
    // Also what the configuration can't be complete without.
    let file = "set: { model.path: m, data.corpus: random, train.sequence_length: 32, train.learning_rate: 1 }\n\
                axes: { train.micro_batch_size: [1, 2] }\n\
                derive: { train.total_tokens: \"train.micro_batch_size * train.sequence_length * 10\" }";
    let points = Plan::parse(Path::new("s.yaml"), file, &[], &[]).unwrap().points.into_iter();
    let tokens: Vec<u64> = points.map(|point| point.config.train.total_tokens.0).collect();
    assert_eq!(tokens, [320, 640]);
}

/// Whatever the order of the file: by the keys that expressions read, and by what the configuration makes of them.
#[test]
fn derived_values_follow_one_another() {
    let derive = [
        "train.max_grad_norm: 2 * train.learning_rate",
        "train.learning_rate: train.optimizer.weight_decay / 4",
        "train.optimizer.weight_decay: 0.1 * train.micro_batch_size",
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let lines: Vec<&str> = order.map(|at| derive[at]).to_vec();
        let file = format!(
            "axes: {{ train.micro_batch_size: [1, 2] }}\nderive:\n  {}\n",
            lines.join("\n  ")
        );
        assert_eq!(values(&file, "train.learning_rate"), [0.025, 0.05], "{file}");
        assert_eq!(values(&file, "train.max_grad_norm"), [0.05, 0.1], "{file}");
    }
    // The base says how many steps there are, and the configuration makes tokens of them: also of those that are derived.
    // With the many steps of the second base, the warmup that is derived first does not fit the few that are derived later.
    let file = "
base: base.yaml
axes: { train.micro_batch_size: [1, 2] }
derive:
  train.schedule.warmup_tokens: train.total_tokens / 4
  train.max_steps: 20 * train.micro_batch_size
";
    for steps in [10, 1000] {
        let dir = tempfile::tempdir().unwrap();
        let base = BASE.replace("total_tokens: 1280", &format!("max_steps: {steps}"));
        std::fs::write(dir.path().join("base.yaml"), base).unwrap();
        let points = Plan::parse(&dir.path().join("s.yaml"), file, &[], &[]).unwrap().points;
        let tokens = |point: &fathom::sweep::plan::Point| {
            let train = &point.config.train;
            (train.total_tokens.0, train.schedule.warmup_tokens.0)
        };
        assert_eq!(points.iter().map(tokens).collect::<Vec<_>>(), [(640, 160), (2560, 640)]);
    }
}

#[test]
fn derived_values_follow_a_search_too() {
    let file = "
derive: { train.loss_tile_tokens: train.sequence_length // 4 }
search: { bisect: { parameter: train.sequence_length, low: 64, high: 256, resolution: 64 } }
";
    let points = plan(file).unwrap().foreseen().unwrap();
    let tiles: Vec<usize> = points.iter().map(|p| p.config.train.loss_tile_tokens).collect();
    assert_eq!(tiles, [16, 64]);
}

#[test]
fn constraints_leave_points_out_and_count_them() {
    let file = "
axes: { train.sequence_length: [16, 32, 64], train.micro_batch_size: [1, 2, 4] }
constraints:
  - train.sequence_length * train.micro_batch_size <= 64
  - axes[\"train.sequence_length\"] != 16
";
    let found = plan(file).unwrap();
    assert_eq!(found.left_out, 6);
    let labels: Vec<&str> = found.points.iter().map(|p| p.label.as_str()).collect();
    assert_eq!(
        labels,
        [
            "sequence_length=32 micro_batch_size=1",
            "sequence_length=32 micro_batch_size=2",
            "sequence_length=64 micro_batch_size=1"
        ]
    );
}

/// Whoever copies the README's blocks has a sweep: its base, its file, and each block of further keys beside the axes.
#[test]
fn the_readmes_sweep_files_are_right() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let blocks: Vec<&str> =
        readme.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let with = |text: &str| *blocks.iter().find(|block| block.contains(text)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine.yaml"), with("corpus: texts/")).unwrap();
    let check = |text: &str| {
        let path = dir.path().join("my_sweep.yaml");
        match Plan::parse(&path, text, &[], &[]).and_then(|plan| plan.foreseen()) {
            Ok(points) => points.len(),
            Err(error) => panic!("{text}\n{error:#}"),
        }
    };
    let file = with("name: my_sweep");
    assert_eq!(check(file), 12);
    let (head, axes) = file.split_once("axes:").unwrap();
    let (axes, report) = axes.split_once("seeds: 3\n").unwrap();
    let (lists, search) = with("zip:").split_once("search:").unwrap();
    assert_eq!(check(&format!("{head}axes:{axes}{report}{lists}")), 6);
    assert_eq!(check(&format!("{head}axes:{axes}search:{search}")), 4 * 4);
    assert_eq!(check(&format!("{head}{}", with("random: {"))), 20);
    assert_eq!(check(&format!("{file}{}", with("halving: {"))), 12);
}

#[test]
fn the_line_for_editors_is_no_part_of_the_question() {
    let text = "# yaml-language-server: $schema=sweep.schema.json\n# Which is\n# best?\n# fathom sweep run s.yaml\n";
    let plan = Plan::parse(
        Path::new("s.yaml"),
        &format!(
            "{text}set: {{ model.path: m, data.corpus: random, train.sequence_length: 8, train.total_tokens: 1K, train.learning_rate: 1 }}"
        ),
        &[],
        &[],
    );
    assert_eq!(plan.unwrap().question.as_deref(), Some("Which is best?"));
}

const RANDOM: &str = "
random: { count: COUNT, seed: 3 }
axes:
  train.learning_rate: { log: [1e-5, 1e-3] }
  train.optimizer.weight_decay: { lin: [0, 0.3], multiple_of: 0.05 }
  train.micro_batch_size: { int: [1, 8] }
  train.sequence_length: { log: [16, 512], multiple_of: 16 }
  train.optimizer.type: [adamw, sgd]
  train.optimizer.momentum: { lin: [0.5, 0.99], when: { train.optimizer.type: sgd } }
";

fn random(count: usize) -> String {
    RANDOM.replace("COUNT", &count.to_string())
}

#[test]
fn a_random_sweep_draws_what_its_axes_say() {
    let points = plan(&random(40)).unwrap().points;
    assert_eq!(points.len(), 40);
    let is_multiple = |x: f64, of: f64| (x / of - (x / of).round()).abs() < 1e-9;
    let mut sgd = 0;
    for point in &points {
        let train = &point.config.train;
        assert!((1e-5..=1e-3).contains(&train.learning_rate), "{}", point.label);
        assert!((1..=8).contains(&train.micro_batch_size), "{}", point.label);
        assert!(is_multiple(train.optimizer.weight_decay, 0.05), "{}", point.label);
        assert!(train.sequence_length % 16 == 0 && train.sequence_length <= 512, "{}", point.label);
        let momentum = train.optimizer.momentum;
        let is_sgd = point.settings["train.optimizer.type"] == "sgd";
        assert_eq!(momentum.is_some(), is_sgd, "{}", point.label);
        sgd += usize::from(is_sgd);
    }
    // Half of the ratio below 1e-4, give or take what 40 draws do.
    let low = points.iter().filter(|p| p.config.train.learning_rate < 1e-4).count();
    assert!((10..=30).contains(&low) && (10..=30).contains(&sgd), "{low} {sgd}");
}

/// A narrow range has as many values as a wide one.
#[test]
fn draws_have_enough_digits_for_their_range() {
    let draws = |ends: &str| {
        let file = format!(
            "random: {{ count: 50 }}\naxes: {{ train.optimizer.weight_decay: {{ {ends} }} }}"
        );
        values(&file, "train.optimizer.weight_decay")
    };
    for ends in ["lin: [0.99, 0.9999]", "lin: [0, 1]", "log: [0.9, 0.95]", "lin: [100, 100.001]"] {
        assert_eq!(draws(ends).len(), 50, "{ends}");
    }
    assert!(draws("lin: [0, 1]").iter().all(|x| x.to_string().len() <= 5));
}

/// An edited sweep uses what is finished: more draws add to those before, and another axis leaves the values of the rest.
#[test]
fn draws_do_not_change_when_a_sweep_grows() {
    let few = labels(&random(5));
    assert_eq!(labels(&random(9))[..5], few);
    let narrower = random(5).replace("  train.micro_batch_size: { int: [1, 8] }\n", "");
    assert_eq!(values(&narrower, "train.learning_rate"), values(&random(5), "train.learning_rate"));
    assert_ne!(labels(&random(5).replace("seed: 3", "seed: 4")), few);
}

#[test]
fn a_random_sweep_takes_seeds_exclusions_constraints_and_inclusions() {
    let file = "
random: { count: 6 }
axes: { train.micro_batch_size: { int: [1, 9] }, train.optimizer.type: [adamw, sgd] }
exclude: [{ train.optimizer.type: adamw, train.micro_batch_size: 1 }]
constraints: train.micro_batch_size < 6
include: [{ train.micro_batch_size: 2, train.learning_rate: 0.5 }]
seeds: 2
";
    let found = plan(file).unwrap();
    assert_eq!(found.points.len(), (6 + 1) * 2);
    assert!(found.left_out > 0);
    for point in &found.points {
        assert!(point.config.train.micro_batch_size < 6);
        assert_ne!(point.label, "micro_batch_size=1 type=adamw");
    }
    let seeds: Vec<u64> = found.points.iter().map(|p| p.seed).collect();
    assert_eq!(seeds, [0, 1].repeat(7));
}

/// However many are drawn: one that is a point of `include` gives way to it.
#[test]
fn a_draw_that_is_included_gives_way() {
    for count in 1..=6 {
        let file = format!(
            "random: {{ count: {count} }}\naxes: {{ train.learning_rate: [1e-3, 3e-3, 1e-2], train.micro_batch_size: [1, 2] }}\n\
             include: [{{ train.learning_rate: 1e-3, train.micro_batch_size: 1 }}]\n"
        );
        let found = labels(&file);
        let included = "learning_rate=1e-3 micro_batch_size=1, 0";
        assert_eq!(found.iter().filter(|label| *label == included).count(), 1, "{found:?}");
        assert!(found.len() == count || found.len() == count + 1, "{found:?}");
    }
}

#[test]
fn a_condition_may_be_of_a_value_that_only_include_has() {
    let file = "axes: { train.learning_rate: [1e-3, 1e-2] }\ninclude: [{ train.learning_rate: 3e-2 }]\n\
                when: [{ if: { train.learning_rate: 3e-2 }, set: { train.max_grad_norm: 0.25 } }]\n";
    assert_eq!(values(file, "train.max_grad_norm"), [1.0, 1.0, 0.25]);
}

/// `10K` is more than 5000.
#[test]
fn a_priority_compares_what_values_with_units_mean() {
    let file = "axes: { train.total_tokens: [5000, 10K, 20K] }\npriority: train.total_tokens\n";
    let found = plan(file).unwrap();
    let ranks: Vec<_> = found.points.iter().map(|point| found.schedule.rank(point)).collect();
    assert_eq!(ranks, [[-5000.0], [-10_000.0], [-20_000.0]]);
    assert!(plan(&file.replace("5000, ", "")).is_ok());
}

/// Where, what was expected, what was found, and the way out.
#[test]
fn mistakes_of_the_language_are_named_with_their_place() {
    let cases = [
        (
            "random: { count: 9 }\naxes: { train.micro_batch_size: [1, 2] }",
            "s.yaml:2: random.count: expected 9 points that differ, found 2 in 1180 draws (0 left out by the constraints)\n  help: lower `count`",
        ),
        ("random: { seed: 1 }", "s.yaml:2: random: expected the key `count`, found none"),
        (
            "random: { count: 0 }",
            "random.count: expected a whole number from 1 to 10000, found `0`",
        ),
        (
            "axes: { train.learning_rate: { log: [1e-5, 1e-3] } }",
            "axes.train.learning_rate.count: expected a whole number, 2 or more, found none\n  help: without a count it is a distribution",
        ),
        (
            "axes: { train.learning_rate: { log: [1e-5, 1e-3], lin: [0, 1], count: 3 } }",
            "expected one of `values`, `variants`, `log`, `lin` and `int`, found `log` and `lin`",
        ),
        ("axes: { a: { when: { b: 1 } } }", "found none"),
        (
            "random: { count: 2 }\naxes: { train.learning_rate: { lin: [1, 0] } }",
            "s.yaml:3: axes.train.learning_rate: expected the lower end before the higher one, found 1 and 0",
        ),
        (
            "axes: { train.micro_batch_size: { int: [5, 7], multiple_of: 4 } }",
            "expected some multiples of 4 from 5 to 7, found none",
        ),
        (
            "axes: { train.micro_batch_size: { int: [0.5, 7] } }",
            "expected whole numbers beside `int`, found 0.5 and 7",
        ),
        (
            "axes:\n  train.max_grad_norm: { values: [1, 2], when: { train.micro_batch_sise: 1 } }\n  train.micro_batch_size: [1, 2]",
            "s.yaml:3: axes.train.max_grad_norm.when: expected an axis that stands before, found `train.micro_batch_sise`",
        ),
        (
            "axes: { a: { values: [1] }, train.learning_rate: [1] }\nzip: [a, train.learning_rat]",
            "zip: expected the name of an axis, found `train.learning_rat`\n  help: did you mean `train.learning_rate`?",
        ),
        (
            "axes: { train.seed: [1], a: { values: [1], when: { train.seed: 1 } } }\nzip: [[a, train.seed]]",
            "zip: expected an axis without `when`, found `a`, which is not always there",
        ),
        (
            "axes: { train.learning_rate: [1, 2] }\nderive: { train.learning_rate: \"2\" }",
            "s.yaml:3: derive.train.learning_rate: expected a key that nothing else sets, found one that `train.learning_rate` sets",
        ),
        (
            "derive: { train.max_grad_norm: train.learning_rat * 2 }",
            "s.yaml:2: derive.train.max_grad_norm: expected names of the point's configuration, found `train.learning_rat`\n  help: did you mean `train.learning_rate`?",
        ),
        (
            "derive: { train.max_grad_norm: \"2 *\" }",
            "derive.train.max_grad_norm: expected an expression, found `2 *`",
        ),
        ("derive: { train.max_grad_norm: \"1 / 0\" }", "derive.train.max_grad_norm: expected"),
        (
            "derive: { train.micro_batch_size: \"train.sequence_length / 5\" }",
            "s.yaml:2: train.micro_batch_size: expected a whole number, 0 or more, found `6.4`",
        ),
        ("derive: { train: [1] }", "derive.train: expected an expression such as"),
        (
            "constraints: train.learning_rate + 1",
            "s.yaml:2: constraints[0]: expected an expression that is true or false, found `train.learning_rate + 1`, which is 1.01",
        ),
        (
            "constraints: train.learning_rate > 1",
            "constraints: expected a point that satisfies them, found none of 1 that does",
        ),
        (
            "constraints: train.sequence_length < 9\nsearch: { bisect: { parameter: train.sequence_length, low: 8, high: 16 } }",
            "s.yaml:2: constraints[0]: expected a constraint on other keys than the one that is searched",
        ),
        (
            "derive: { train.sequence_length: \"9\" }\nsearch: { bisect: { parameter: train.sequence_length, low: 8, high: 16 } }",
            "s.yaml:2: train.sequence_length: expected keys that the search does not set itself",
        ),
        ("when: [{ if: { a: 1 } }]", "s.yaml:2: when: expected the key `set`, found none"),
        (
            "axes: { train.seed: { int: [0, 99] }, train.max_steps: { int: [1, 999] } }",
            "s.yaml:2: axes: expected at most 10000 points, found 99900",
        ),
        (
            "axes: { train.seed: { int: [0, 9000000] } }",
            "expected at most 10000 values, found 9000001",
        ),
        (
            "random: { count: 2 }\naxes: { train.learning_rate: { lin: [0, 1], multiple_of: 1e-300 } }",
            "found too many",
        ),
        (
            "random: { count: 6000 }\nseeds: 2\naxes: { train.learning_rate: { lin: [0, 1] }, train.max_grad_norm: { lin: [1, 2] } }",
            "s.yaml: expected at most 10000 points, found more",
        ),
        ("seeds: 99999999999", "seeds: expected a number of seeds or a list of them"),
    ];
    for (file, expected) in cases {
        let error = error(file);
        assert!(error.contains(expected), "{file}\nexpected: {expected}\nfound:    {error}");
    }
}

/// Axes of `[0, 1, ... n]`, by key.
fn axes(sizes: &[usize]) -> String {
    let keys =
        ["eval.last_stride", "train.seed", "eval.every_steps", "train.checkpoint_every_steps"];
    let axis = |(key, &size): (&&str, &usize)| {
        let values: Vec<String> = (0..size).map(|n| n.to_string()).collect();
        format!("  {key}: [{}]\n", values.join(", "))
    };
    format!("axes:\n{}", keys.iter().zip(sizes).map(axis).collect::<String>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_grid_has_the_product_of_its_axes(sizes in prop::collection::vec(1usize..5, 1..5)) {
        let found = plan(&axes(&sizes)).unwrap().points.len();
        prop_assert_eq!(found, sizes.iter().product::<usize>());
    }

    #[test]
    fn zipped_axes_count_once(length in 1usize..5, rest in 1usize..5) {
        let file = format!("{}zip: [eval.last_stride, train.seed]", axes(&[length, length, rest]));
        prop_assert_eq!(plan(&file).unwrap().points.len(), length * rest);
    }

    #[test]
    fn an_exclusion_takes_what_it_names(a in 2usize..6, b in 2usize..6, at in 0usize..2) {
        let file = format!("{}exclude: [{{ eval.last_stride: {at} }}]", axes(&[a, b]));
        prop_assert_eq!(plan(&file).unwrap().points.len(), (a - 1) * b);
    }

    #[test]
    fn constraints_leave_out_what_they_do_not_hold_of(a in 1usize..6, b in 1usize..6, most in 0usize..10) {
        let file = format!("{}constraints: eval.last_stride + train.seed <= {most}", axes(&[a, b]));
        let expected = (0..a).flat_map(|x| (0..b).map(move |y| x + y)).filter(|sum| *sum <= most).count();
        let found = plan(&file).unwrap();
        prop_assert_eq!((found.points.len(), found.left_out), (expected, a * b - expected));
    }

    #[test]
    fn a_condition_multiplies_only_where_it_holds(a in 1usize..6, b in 1usize..6) {
        let values: Vec<String> = (0..b).map(|n| n.to_string()).collect();
        let file = format!(
            "{}  eval.every_steps: {{ values: [{}], when: {{ eval.last_stride: 0 }} }}",
            axes(&[a]),
            values.join(", ")
        );
        prop_assert_eq!(plan(&file).unwrap().points.len(), a - 1 + b);
    }

    #[test]
    fn a_random_sweep_has_as_many_points_as_it_says(count in 1usize..30, seed in 0u32..1000, seeds in 1usize..4) {
        let file = format!(
            "random: {{ count: {count}, seed: {seed} }}\nseeds: {seeds}\n\
             axes: {{ train.learning_rate: {{ lin: [0.1, 0.7] }}, eval.last_stride: {{ int: [-0, 9] }} }}"
        );
        let points = plan(&file).unwrap().points;
        prop_assert_eq!(points.len(), count * seeds);
        for point in points {
            prop_assert!((0.1..=0.7).contains(&point.config.train.learning_rate));
        }
    }
}

/// Whatever is written, the reader answers with a plan or with an error that names the file.
fn answers(text: &str) -> Result<(), TestCaseError> {
    if let Err(error) = Plan::parse(Path::new("fuzz.yaml"), text, &[], &[]) {
        let message = format!("{error:#}");
        prop_assert!(
            message.contains(": expected ") || message.contains("fuzz.yaml"),
            "{}",
            message
        );
    }
    Ok(())
}

/// The sweep files of the repository and of the tests above.
fn seeds() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    let files = std::fs::read_dir(folder).unwrap().flatten().map(|f| f.path());
    let files: Vec<PathBuf> =
        files.filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    let mut texts: Vec<String> =
        files.iter().map(|p| std::fs::read_to_string(p).unwrap()).collect();
    // Without a base to be found, or the reader gets no further.
    for text in &mut texts {
        *text =
            text.lines().filter(|line| !line.starts_with("base:")).collect::<Vec<_>>().join("\n");
        text.push_str("\nset: { model.path: m, data.corpus: random, train.sequence_length: 8, train.total_tokens: 1K, train.learning_rate: 1 }\n");
    }
    texts.push(random(5));
    texts.push(
        "axes: { a: { values: [1, 2], when: { b: 1 } } }\nderive: { c: a * 2 }\nconstraints: [a > 1]\n\
         when: [{ if: { a: 1 }, set: { d: 2 } }]\nzip: [[a, b]]\nsearch: { bisect: { parameter: a, low: 1, high: 2 } }"
            .into(),
    );
    texts
}

const TOKENS: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ": ",
    ",",
    "-",
    "\n",
    "\n  ",
    "#",
    "&a ",
    "*a",
    "!x ",
    "'",
    "\"",
    "|",
    ">",
    "<<",
    "axes",
    "random",
    "when",
    "derive",
    "constraints",
    "zip",
    "include",
    "exclude",
    "search",
    "bisect",
    "seeds",
    "log",
    "lin",
    "int",
    "count",
    "1e999",
    "-1",
    ".nan",
    "9223372036854775807",
    "18446744073709551616",
    "train.seed",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        answers(&text)?;
    }

    #[test]
    fn any_text_of_the_languages_own_words_is_answered(words in prop::collection::vec(prop::sample::select(&TOKENS[..]), 0..60)) {
        answers(&words.concat())?;
    }

    /// A file with some of its characters taken away, doubled, or replaced by words of the language.
    #[test]
    fn any_change_of_a_sweep_file_is_answered(
        text in prop::sample::select(seeds()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0usize..12, prop::sample::select(&TOKENS[..])), 1..8),
    ) {
        let mut chars: Vec<char> = text.chars().collect();
        for (at, length, word) in changes {
            let at = at.index(chars.len() + 1);
            let end = (at + length).min(chars.len());
            chars.splice(at..end, word.chars());
        }
        answers(&chars.into_iter().collect::<String>())?;
    }
}
