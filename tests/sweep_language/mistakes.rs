//! What a sweep file says and no point would have is refused: one error each, with file and line, what was expected, what was
//! found, and the way out.

use super::{error, labels, plan, values};

/// Each file is wrong in one thing, and says so.
#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (file, expected) in cases {
        let error = match plan(file) {
            Err(error) => format!("{error:#}"),
            Ok(plan) => {
                panic!("{file}\nexpected: {expected}\nfound:    {} points", plan.points.len())
            }
        };
        assert!(error.contains(expected), "{file}\nexpected: {expected}\nfound:    {error}");
    }
}

#[test]
fn a_setting_that_no_point_keeps_is_refused() {
    check(&[
        (
            "set: { train.learning_rate: 1 }\naxes: { train.learning_rate: [1, 2] }",
            "s.yaml:2: set.train.learning_rate: expected a key that some point leaves as it is set here, found one that every point \
             sets otherwise (`axes.train.learning_rate`)\n  help: take one of the two away",
        ),
        (
            "axes: { train.learning_rate: [1, 2] }\nset: { train: { learning_rate: 1 } }",
            "s.yaml:3: set.train.learning_rate: expected a key that some point",
        ),
        (
            "set: { train.optimizer.beta1: 0.5 }\naxes: { o: { a: { train.optimizer: { type: sgd } }, b: { train.optimizer: { type: adamw } } } }",
            "set.train.optimizer.beta1: expected a key that some point",
        ),
        ("seeds: 2\nset: { train.seed: 3 }", "s.yaml:3: set.train.seed: expected a key"),
        (
            "eval: { context_lengths: [16] }\naxes: { eval.context_lengths: [[16], [32]] }",
            "s.yaml:2: eval.context_lengths: expected a key that some point",
        ),
        (
            "set: { eval.context_lengths: [16] }\neval: { context_lengths: [32] }",
            "s.yaml:3: eval.context_lengths: expected each key once, found `eval.context_lengths` again, which \
             `set.eval.context_lengths` sets",
        ),
        (
            "set: { train.max_grad_norm: 2 }\nderive: { train.max_grad_norm: 1 + 1 }",
            "otherwise (`derive.train.max_grad_norm`)",
        ),
        (
            "set: { train.sequence_length: 9 }\nsearch: { bisect: { parameter: train.sequence_length, low: 8, high: 16 } }",
            "otherwise (`search.bisect`)",
        ),
        (
            "set: { train.max_grad_norm: 2 }\nrandom: { count: 2 }\naxes: { train.max_grad_norm: { lin: [1, 2] } }",
            "otherwise (`axes.train.max_grad_norm`)",
        ),
    ]);
    // A default for the points that leave it, with and without draws.
    let some = "set: { train.learning_rate: 3 }\naxes: { a: { plain: {}, fast: { train.learning_rate: 1 } } }\n";
    assert_eq!(values(some, "train.learning_rate"), [3.0, 1.0]);
    for seed in 0..6 {
        assert!(plan(&format!("{some}random: {{ count: 1, seed: {seed} }}\n")).is_ok());
    }
    let some = "set: { train: { max_grad_norm: 3, micro_batch_size: 1 } }\naxes: { train.micro_batch_size: [1, 2] }\n\
                when: [{ if: { train.micro_batch_size: 1 }, set: { train.max_grad_norm: 1 } }]";
    check(&[(some, "set.train.micro_batch_size")]);
    let some = some.replace(", micro_batch_size: 1 }", " }");
    assert_eq!(values(&some, "train.max_grad_norm"), [1.0, 3.0]);
}

#[test]
fn axes_that_replace_one_another_are_refused() {
    check(&[
        (
            "axes:\n  a: { x: { train.learning_rate: 1 } }\n  train.learning_rate: [1, 2]",
            "s.yaml:4: axes.train.learning_rate: expected a key that no other axis sets at the same point, found \
             `train.learning_rate`, which replaces `train.learning_rate` of `a`\n  help:",
        ),
        (
            "axes: { train.optimizer.weight_decay: [0, 0.1], o: { x: { train.optimizer: { type: sgd } } } }",
            "axes.o: expected a key that no other axis sets at the same point, found `train.optimizer`, which replaces \
             `train.optimizer.weight_decay`",
        ),
        ("axes: { a: { x: { train.seed: 1 } } }\nseeds: 2", "found `train.seed`, which replaces"),
    ]);
    // The finer key after the coarser one is laid over it.
    let finer = "axes: { o: { x: { train.optimizer: { type: adamw } } }, train.optimizer.weight_decay: [0, 0.1] }";
    assert_eq!(values(finer, "train.optimizer.weight_decay"), [0.0, 0.1]);
    // Two axes that never meet may set one key.
    let apart = "
axes:
  a: { x: {}, y: { train.learning_rate: 1 } }
  train.learning_rate: { values: [2, 3], when: { a: x } }
";
    assert_eq!(values(apart, "train.learning_rate"), [2.0, 3.0, 1.0]);
}

#[test]
fn derived_values_in_a_cycle_are_refused() {
    check(&[
        (
            "derive:\n  train.max_grad_norm: train.learning_rate * 2\n  train.learning_rate: train.max_grad_norm / 4",
            "s.yaml:3: derive.train.max_grad_norm: expected values that can be derived one after another, found a cycle: \
             `train.max_grad_norm` reads `train.learning_rate` reads `train.max_grad_norm`\n  help: give one of them its value under \
             `set`",
        ),
        (
            "derive:\n  train.optimizer.eps: train.learning_rate\n  train.learning_rate: train.max_grad_norm / 4\n  \
             train.max_grad_norm: 2 * train.learning_rate",
            "s.yaml:4: derive.train.learning_rate: expected values that can be derived one after another, found a cycle: \
             `train.learning_rate` reads `train.max_grad_norm` reads `train.learning_rate`",
        ),
        (
            "derive: { train.max_grad_norm: train.max_grad_norm * 2 }",
            "s.yaml:2: derive.train.max_grad_norm: expected a value derived from other keys, found one derived from itself \
             (`train.max_grad_norm`)",
        ),
    ]);
}

#[test]
fn a_priority_that_orders_nothing_is_refused() {
    let sizes = "\naxes: { size: { a: {}, b: { train.micro_batch_size: 2 } }, train.max_grad_norm: [1, 2] }";
    let cases = [
        (
            "priority: [{ train.max_grad_norm: [1, 4] }]",
            "s.yaml:2: priority.train.max_grad_norm: expected values that points have, found `4`\n  help: there are 1, 2",
        ),
        ("priority: [{ size: [b, c] }]", "found `c`\n  help: there are a, b"),
        (
            "priority: [{ size: [] }]",
            "s.yaml:2: priority.size: expected values in their order, found none",
        ),
        (
            "priority: [{ size: [a, a] }]",
            "priority.size: expected each value once, found `a` again",
        ),
        (
            "priority: size",
            "s.yaml:2: priority: expected numbers to compare, found that `size` has a, b\n  help: write their order: `{ size: [a, b] }`",
        ),
        (
            "priority: -train.max_grad_nor",
            "s.yaml:2: priority: expected an axis or a key of the configuration that has a value, found `train.max_grad_nor`\n  \
             help: did you mean `train.max_grad_norm`?",
        ),
    ];
    let files: Vec<String> = cases.iter().map(|(line, _)| format!("{line}{sizes}")).collect();
    let cases: Vec<(&str, &str)> =
        files.iter().zip(&cases).map(|(file, (_, expected))| (file.as_str(), *expected)).collect();
    check(&cases);
    // A value that no draw has come upon is one all the same.
    for seed in 0..6 {
        let drawn =
            format!("priority: [{{ size: [b, a] }}]{sizes}\nrandom: {{ count: 1, seed: {seed} }}");
        plan(&drawn).unwrap();
    }
}

#[test]
fn values_that_are_there_twice_and_points_that_are_one_run_are_refused() {
    check(&[
        (
            "axes:\n  train.learning_rate:\n    - 1\n    - 1.0",
            "s.yaml:5: axes.train.learning_rate: expected values that differ, found `1` twice",
        ),
        (
            "seeds: [0, 1, 0]",
            "s.yaml:2: axes.train.seed: expected values that differ, found `0` twice",
        ),
        (
            "axes: { a: { x: { train.micro_batch_size: 2 }, y: { train.micro_batch_size: 2 } } }",
            "s.yaml:2: expected points that differ, found two that are the same run: `a=x` and `a=y`, seed 0\n  help: what `a` sets \
             there is so without it, or the same for both",
        ),
        (
            "axes: { train.micro_batch_size: [1, 2] }\ninclude: [{ train.micro_batch_size: 2 }]",
            "help: the second is made by `include`, and the grid has it already",
        ),
        (
            "axes: { run.threads: [1, 2] }",
            "same run: `threads=1` and `threads=2`, seed 0\n  help: run.device, run.threads and the like do not make another run",
        ),
        (
            "search: { bisect: { parameter: run.threads, low: 8, high: 16 } }",
            "s.yaml:2: search.bisect.parameter: expected a key that makes another run, found `run.threads`",
        ),
    ]);
    // Of axes that go together, the pairs have to differ.
    let zipped = "axes: { train.max_grad_norm: [1, 1, 2], train.micro_batch_size: [1, 2, LAST] }\nzip: [train.max_grad_norm, train.micro_batch_size]";
    assert_eq!(labels(&zipped.replace("LAST", "2")).len(), 3);
    let twice = zipped.replace("[1, 1, 2]", "[1, 1, 1]").replace("LAST", "2");
    assert!(error(&twice).contains("expected values that differ, found `1, 2` twice"));
}

#[test]
fn conditions_that_never_hold_are_refused() {
    let axes = "axes: { a: { x: {}, y: { train.max_grad_norm: 3 } }, b: { variants: { p: { train.micro_batch_size: 2 } }, when: { a: x } }";
    check(&[
        (
            &format!(
                "{axes}, train.loss_tile_tokens: {{ values: [8], when: {{ a: y, b: p }} }} }}"
            ),
            "s.yaml:2: axes.train.loss_tile_tokens.when: expected conditions that hold at some point, found some that never do together",
        ),
        (
            &format!(
                "{axes} }}\nwhen: [{{ if: {{ a: y, b: p }}, set: {{ train.learning_rate: 1 }} }}]"
            ),
            "s.yaml:3: when.if: expected a condition that holds at some point, found one that never does",
        ),
        (
            "axes: { a: { x: {} } }\nwhen: [{ if: {}, set: { train.learning_rate: 1 } }]",
            "s.yaml:3: when.if: expected at least one axis with a value, found none",
        ),
        (
            "axes: { a: { x: {} } }\nwhen: [{ if: { a: [] }, set: { train.learning_rate: 1 } }]",
            "s.yaml:3: when.if: expected values of `a`, found an empty list",
        ),
        (
            "axes: { a: { x: {} } }\nwhen: [{ if: { a: x }, set: {} }]",
            "when.set: expected at least one key",
        ),
        (
            "axes: { a: { x: {}, y: { train.max_grad_norm: 3 } } }\nexclude: [{ a: z }]",
            "s.yaml:3: exclude: expected a value of the axis `a`, found `z`\n  help: its values: x, y",
        ),
        (
            "axes: { train.micro_batch_size: [1, 2], train.max_grad_norm: [1, 2] }\nzip: [train.micro_batch_size, train.max_grad_norm]\n\
             exclude: [{ train.micro_batch_size: 1, train.max_grad_norm: 2 }]",
            "s.yaml:4: exclude: expected a pattern that some point matches, found none that does",
        ),
        ("axes: { a: { x: {} } }\nexclude: [{}]", "s.yaml:3: exclude: expected at least one axis"),
        (
            "axes: { train.micro_batch_size: [1, 2] }\nexclude: [{ train.micro_batch_size: [1, 2] }]",
            "s.yaml:3: exclude: expected a point that is not left out, found none\n  help:",
        ),
        (
            "axes: { train.micro_batch_size: [1, 2] }\nconstraints:\n- train.micro_batch_size < 2\n- train.micro_batch_size > 1",
            "s.yaml:4: constraints: expected a point that satisfies them, found none of 2 that does\n  help: \
             `train.micro_batch_size < 2` leaves out 1, then `train.micro_batch_size > 1` leaves out 1",
        ),
    ]);
    // A list in a pattern is any of its values, as in a condition; or the value itself, where an axis has lists.
    let some = "axes: { train.micro_batch_size: [1, 2, 3] }\nexclude: [{ train.micro_batch_size: [1, 3] }]";
    assert_eq!(values(some, "train.micro_batch_size"), [2]);
    let lists =
        "axes: { eval.context_lengths: [[8], [8, 16]] }\nexclude: [{ eval.context_lengths: [8] }]";
    assert_eq!(values(lists, "eval.context_lengths"), [serde_json::json!([8, 16])]);
}

#[test]
fn ranges_and_searches_that_have_nothing_between_their_ends_are_refused() {
    check(&[
        (
            "axes: { train.learning_rate: { lin: [1, 0.1], count: 3 } }",
            "s.yaml:2: axes.train.learning_rate: expected the lower end before the higher one, found 1 and 0.1",
        ),
        (
            "axes: { train.learning_rate: { log: [1, 1], count: 3 } }",
            "expected the lower end before",
        ),
        (
            "axes: { train.learning_rate: { log: [0, 1], count: 3 } }",
            "expected ends above 0 for `log`, found 0 and 1",
        ),
        (
            "axes: { train.micro_batch_size: { lin: [1, 3], count: 9, multiple_of: 1 } }",
            "axes.train.micro_batch_size.count: expected so many values that differ, found 3 of 9\n  help: lower `count`",
        ),
        (
            "axes: { train.learning_rate: { lgo: [1, 8], count: 3 } }",
            "axes.train.learning_rate.lgo: expected the settings of a named variant, found a list of 2\n  help: did you mean `log`?",
        ),
        (
            "search: { bisect: { parameter: train.sequence_length, low: 16, high: 8 } }",
            "s.yaml:2: search.bisect: expected low below high, found 16 and 8",
        ),
        (
            "search: { bisect: { parameter: train.sequence_length, low: 8, high: 16, resolution: 0 } }",
            "search.bisect.resolution: expected a whole number, 1 or more, found `0`",
        ),
        (
            "search: { bisect: { parameter: train.sequence_length, low: 8, high: 16, resolution: 100 } }",
            "search.bisect.resolution: expected less than lies between low and high (8), found 100",
        ),
        (
            "search: { bisect: { parameter: train.sequence_length, low: 8, high: 64, resolution: 2, multiple_of: 8 } }",
            "search.bisect.resolution: expected 8 or more, as every probe is a multiple of that, found 2",
        ),
        (
            "search: { bisect: { parameter: train.sequence_length, low: 8, high: 16, multiple_of: 3 } }",
            "search.bisect.low: expected a multiple of 3, found 8\n  help: the nearest are 6 and 9",
        ),
        (
            "search: { bisect: { parameter: train.sequence_lengt, low: 8, high: 16 } }",
            "s.yaml:2: train: expected a known key, found `sequence_lengt`\n  help: did you mean `sequence_length`?",
        ),
        ("search: {}", "s.yaml:2: search: expected `bisect` or `halving`, found none"),
        (
            "search: { halving: { rungs: [100, 4K] } }",
            "s.yaml:2: search.halving.rungs: expected rungs up to the end of the points (1280), found 4000\n  help: the end is the \
             last rung, written or not",
        ),
        (
            "search: { halving: { rungs: [10, 20] } }",
            "search.halving.rungs: expected rungs a step apart or more (32 tokens), found 10 and 20",
        ),
    ]);
    plan("search: { halving: { metric: loss, rungs: [100, 1280] } }").unwrap();
    let lin = "axes: { train.learning_rate: { lin: [1.0001, 1.0005], count: 3 } }";
    assert_eq!(values(lin, "train.learning_rate"), [1.0001, 1.0003, 1.0005]);
}

/// What every run would fail of, or not obey.
#[test]
fn what_no_run_could_do_is_refused() {
    check(&[
        (
            "set: { eval.split: valid }",
            "s.yaml:2: eval.split: expected a split of data.splits, found `valid`\n  help: known here: train",
        ),
        (
            "eval: { split: validatoin }\nset: { data: { corpus: texts, splits: { validation: [a] } } }",
            "s.yaml:2: eval.split: expected a split of data.splits, found `validatoin`\n  help: did you mean `validation`?",
        ),
        (
            "search: { halving: { metric: los, rungs: [100] } }",
            "s.yaml:2: search.halving.metric: expected a scalar that every run logs, found `los`, which `base` does not\n  help: did \
             you mean `loss`? known here: loss, learning_rate, grad_norm, step_seconds, tokens_per_second, tokens, \
             peak_allocated, peak_reserved; `eval_loss.SPLIT` where the evaluated split has text (data.splits, eval.split)",
        ),
        (
            "axes: { train.learning_rate: [1, 2] }\nsearch: { halving: { rungs: [100] } }",
            "s.yaml:3: search.halving.metric: expected a scalar that every run logs, found `eval_loss.validation`, which \
             `learning_rate=1` does not",
        ),
        (
            "set: { data: { corpus: texts, splits: { test: [a] } }, eval.split: test }\nsearch: { halving: { rungs: [100] } }",
            "found `eval_loss.validation`, which `base` does not\n  help: known here: loss, learning_rate, grad_norm, step_seconds, \
             tokens_per_second, tokens, peak_allocated, peak_reserved, eval_loss.test",
        ),
        ("axes: { train.max_steps: [0, 1] }", "train.max_steps: expected 1 or more, found `0`"),
        (
            "axes: { train.learning_rate: [.nan, .inf] }",
            "s.yaml:2: axes.train.learning_rate[0]: expected a finite number, found `NaN`",
        ),
        (
            "axes:\n  a:\n    b: { train.max_grad_norm: -.inf }",
            "s.yaml:4: axes.a.b.train.max_grad_norm: expected a finite number, found `-inf`\n  help: `null` is written where there is no \
             bound",
        ),
        (
            &format!("name: {}", "n".repeat(201)),
            "s.yaml:2: name: expected at most 200 bytes, as files are called by it, found 201",
        ),
    ]);
    let splits = "set: { data: { corpus: texts, splits: { validation: [a] } } }\n";
    plan(&format!("{splits}search: {{ halving: {{ rungs: [100] }} }}")).unwrap();
    plan(&format!("name: {}", "n".repeat(200))).unwrap();
}

/// Where there is no order between two values, a comparison has no answer.
#[test]
fn comparisons_of_what_has_no_order_are_refused() {
    check(&[
        (
            "constraints: train.max_steps <= 5",
            "s.yaml:2: constraints[0]: expected two numbers or two words beside `<=`, found `train.max_steps` (null) and \
             `5`\n  help: `train.max_steps is none or …` says what holds where there is none",
        ),
        (
            "axes: { train.micro_batch_size: [1, 2] }\nconstraints: [train.micro_batch_size <= '2']",
            "s.yaml:3: constraints[0]: expected two numbers or two words beside `<=`, found `train.micro_batch_size` (1) and \
             `'2'`\n  help: what stands in quotes is a word",
        ),
        (
            "derive: { train.micro_batch_size: \"2 if train.optimizer.type > 1 else 1\" }",
            "s.yaml:2: derive.train.micro_batch_size: expected two numbers or two words beside `>`, found `train.optimizer.type`",
        ),
        (
            "constraints: train.max_stps <= 5",
            "constraints[0]: expected names of the point's configuration, found `train.max_stps`",
        ),
    ]);
    let guarded = "axes: { train.max_steps: [null, 3, 9] }\nconstraints: train.max_steps is none or train.max_steps <= 5";
    assert_eq!(values(guarded, "train.max_steps"), [serde_json::json!(null), 3.into()]);
}

#[test]
fn what_is_empty_or_can_not_be_obeyed_is_refused() {
    for key in ["axes", "derive", "budget", "retry", "priority"] {
        check(&[(
            &format!("{key}: {{}}"),
            &format!(
                "s.yaml:2: {key}: expected something in it, found nothing\n  help: take the line away"
            ),
        )]);
    }
    for key in ["zip", "include", "exclude", "when", "constraints"] {
        check(&[(&format!("{key}: []"), &format!("s.yaml:2: {key}: expected something in it"))]);
    }
    let two = "axes: { train.micro_batch_size: [1, 2], train.max_grad_norm: [1, 2] }\n";
    check(&[
        ("seeds: 0", "s.yaml:2: seeds: expected a number of seeds or a list of them, found `0`"),
        ("name: ../x", "s.yaml:2: name: expected a name that can be a folder's, found `../x`"),
        (
            &format!("{two}zip: [train.micro_batch_size]"),
            "s.yaml:3: zip: expected two axes or more, which go together, found `train.micro_batch_size` alone",
        ),
        (
            &format!("{two}zip: [train.micro_batch_size, train.micro_batch_size]"),
            "s.yaml:3: zip: expected each axis once, found `train.micro_batch_size` again",
        ),
        (
            &format!("{two}zip: [[train.micro_batch_size, train.max_grad_norm], train.seed]"),
            "s.yaml:3: zip: expected names of axes, or lists of them, found both",
        ),
        ("budget: { runs: 1.5 }", "s.yaml:2: budget.runs: expected a whole number, found `1.5`"),
        (
            "budget: { seconds: 1K }",
            "s.yaml:2: budget.seconds: expected a number above 0, found `1K`",
        ),
        (
            "budget: { tokens: 1K }",
            "s.yaml:2: budget.tokens: expected what one run takes at least (1280), found 1000",
        ),
        (
            "retry: { out_of_memory: { set: [] } }",
            "retry.out_of_memory.set: expected at least one mapping",
        ),
        (
            "axes: { train.micro_batch_size: [2] }\nretry:\n  out_of_memory: { set: [{ train.micro_batch_size: 1 }, { train.micro_batch_size: 1 }] }",
            "s.yaml:4: retry.out_of_memory.set: expected settings that change every point, found that `micro_batch_size=2` was tried with \
             them before",
        ),
        (
            "axes: { fallback: { a: {} } }\nretry: { out_of_memory: { set: { train.micro_batch_size: 2 } } }",
            "expected no axis called `fallback` beside `retry`",
        ),
        (
            "eval: { context_lengths: [8, 16] }\nreport: { context_length: 7 }",
            "s.yaml:3: report.context_length: expected a length that is evaluated, found `7`\n  help: eval.context_lengths has 8, 16",
        ),
    ]);
}
