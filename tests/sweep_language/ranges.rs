//! Ranges with a count: exact values, whole ones where the key takes whole numbers, and rounded only where a file says so; and seeds
//! to their last digit.

use super::{error, labels, plan, values};
use serde_json::json;

/// The values of an axis that is a range.
fn of(key: &str, range: &str) -> Vec<serde_json::Value> {
    values(&format!("axes: {{ {key}: {{ {range} }} }}"), key)
}

#[test]
fn evenly_spaced_values_are_exact() {
    assert_eq!(
        of("train.sequence_length", "lin: [1024, 2048], count: 5"),
        [1024, 1280, 1536, 1792, 2048]
    );
    assert_eq!(
        of("train.total_tokens", "log: [4096, 65536], count: 5"),
        [4096, 8192, 16384, 32768, 65536]
    );
    assert_eq!(of("train.sequence_length", "lin: [4096, 8K], count: 3"), [4096, 6048, 8000]);
    // No noise of the arithmetic, and both ends as they are written.
    assert_eq!(
        of("train.optimizer.weight_decay", "lin: [0, 0.3], count: 4"),
        [json!(0.0), json!(0.1), json!(0.2), json!(0.3)]
    );
    assert_eq!(of("train.max_grad_norm", "log: [1, 8], count: 4"), [1.0, 2.0, 4.0, 8.0]);
    assert_eq!(
        of("train.learning_rate", "lin: [0.1234567890123456, 0.2], count: 2"),
        [0.1234567890123456, 0.2]
    );
    assert_eq!(
        labels("axes: { train.learning_rate: { lin: [0.001, 0.0012], count: 4 } }"),
        [
            "learning_rate=1e-3, 0",
            "learning_rate=1.066666666667e-3, 0",
            "learning_rate=1.133333333333e-3, 0",
            "learning_rate=1.2e-3, 0"
        ]
    );
}

#[test]
fn digits_round_what_lies_between_the_ends() {
    assert_eq!(
        of("train.learning_rate", "log: [1e-5, 1e-3], count: 5, digits: 3"),
        [1e-5, 3.16e-5, 1e-4, 3.16e-4, 1e-3]
    );
    assert_eq!(
        of("train.sequence_length", "lin: [1024, 2048], count: 5, digits: 3"),
        [1024, 1280, 1540, 1790, 2048]
    );
    for (range, expected) in [
        (
            "lin: [1, 2], count: 3, digits: 0",
            "digits: expected a whole number from 1 to 17, found `0`",
        ),
        (
            "lin: [1, 2], count: 10001",
            "count: expected a whole number from 2 to 10000, found `10001`",
        ),
        (
            "lin: [1, 2], count: 3, digits: 3, multiple_of: 1",
            "digits: expected it beside `count` and without `multiple_of`, found it otherwise",
        ),
        (
            "values: [1, 2], digits: 3",
            "digits: expected it beside `log`, `lin` or `int`, found it beside `values`",
        ),
        (
            "lin: [100, 101], count: 9, digits: 3",
            "count: expected so many values that differ, found 2 of 9\n  help: lower `count`, or have more `digits`",
        ),
    ] {
        let error = error(&format!("axes: {{ train.learning_rate: {{ {range} }} }}"));
        let expected = format!("s.yaml:2: axes.train.learning_rate.{expected}");
        assert!(error.contains(&expected), "{range}\nexpected: {expected}\nfound:    {error}");
    }
}

#[test]
fn a_key_of_whole_numbers_gets_whole_numbers() {
    assert_eq!(of("train.micro_batch_size", "log: [1, 8], count: 4"), [1, 2, 4, 8]);
    assert_eq!(of("train.micro_batch_size", "lin: [1, 8], count: 4"), [1, 3, 6, 8]);
    assert_eq!(of("train.checkpoint_every_steps", "log: [1, 100], count: 3"), [1, 10, 100]);
    for (range, expected) in [
        (
            "log: [1, 8], count: 9",
            ".count: expected so many values that differ, found 7 of 9\n  help: lower `count`; this key takes whole numbers, and \
             `int` is all of them",
        ),
        (
            "lin: [0.5, 8], count: 2",
            ": expected whole ends, as the key takes whole numbers, found 0.5 and 8\n  help: `multiple_of: 1` takes those between",
        ),
    ] {
        let error = error(&format!("axes: {{ train.micro_batch_size: {{ {range} }} }}"));
        let expected = format!("s.yaml:2: axes.train.micro_batch_size{expected}");
        assert!(error.contains(&expected), "{range}\nexpected: {expected}\nfound:    {error}");
    }
    for range in ["log: [1, 8]", "lin: [1, 8]", "log: [1, 8], multiple_of: 1"] {
        let file =
            format!("random: {{ count: 5 }}\naxes: {{ train.micro_batch_size: {{ {range} }} }}");
        for value in values(&file, "train.micro_batch_size") {
            assert!((1..=8).contains(&value.as_u64().unwrap()), "{range}: {value}");
        }
    }
}

#[test]
fn seeds_are_told_apart_to_their_last_digit() {
    let seeds = |file: &str| -> Vec<u64> {
        plan(file).unwrap().points.iter().map(|point| point.seed).collect()
    };
    let large = [9_007_199_254_740_992, 9_007_199_254_740_993, i64::MAX as u64];
    assert_eq!(seeds(&format!("seeds: {large:?}")), large);
    assert!(error("seeds: [3, 3]").contains("found `3` twice"), "{}", error("seeds: [3, 3]"));
    let beyond = error("seeds: [18446744073709551615]");
    let expected =
        "s.yaml:2: expected whole numbers up to 9223372036854775807, found `18446744073709551615`";
    assert!(beyond.contains(expected), "{beyond}");
}
