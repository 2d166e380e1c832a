//! The JSON Schema of sweep files takes what the reader takes, and refuses what an editor is to underline.

use super::plan;
use fathom::sweep::plan::schema::{key_paths, schema};
use fathom_spec::config::RunConfig;
use fathom_spec::config::written::Written;
use serde_json::{Value, json};
use std::path::Path;

/// The first place where `value` is not as `schema` says; nothing when it is. Knows the words that the schema uses, and no other.
fn mistake(value: &Value, schema: &Value, root: &Value, at: &str) -> Option<String> {
    let Value::Object(words) = schema else {
        assert!(schema.is_boolean(), "{at}: {schema}");
        return (schema == false).then(|| format!("{at}: {value} is not expected here"));
    };
    let below = |value: &Value, schema: &Value, key: &str| {
        mistake(value, schema, root, &format!("{at}/{key}"))
    };
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|x| x.fract() == 0.0),
        _ => panic!("{name}"),
    };
    let entries = || value.as_object().into_iter().flatten();
    let items = || value.as_array().into_iter().flatten();
    let count = |word: &Value| word.as_u64().unwrap() as usize;
    for (word, argument) in words {
        let found = match word.as_str() {
            "title" | "description" | "default" | "format" | "$schema" | "$defs" => None,
            "$ref" => {
                let name = argument.as_str().unwrap().strip_prefix('#').unwrap();
                let target = root.pointer(name).unwrap_or_else(|| panic!("{name} is not there"));
                mistake(value, target, root, at)
            }
            "type" => {
                let names = argument.as_array().cloned().unwrap_or(vec![argument.clone()]);
                let fits = names.iter().any(|name| is(name.as_str().unwrap()));
                (!fits).then(|| format!("{at}: {value} is not of type {argument}"))
            }
            "enum" => (!argument.as_array().unwrap().contains(value))
                .then(|| format!("{at}: {value} is none of {argument}")),
            "const" => (argument != value).then(|| format!("{at}: {value} is not {argument}")),
            "minimum" => value
                .as_f64()
                .filter(|x| *x < argument.as_f64().unwrap())
                .map(|x| format!("{at}: {x} is too small")),
            "exclusiveMinimum" => value
                .as_f64()
                .filter(|x| *x <= argument.as_f64().unwrap())
                .map(|x| format!("{at}: {x} is too small")),
            "minItems" => value
                .as_array()
                .filter(|list| list.len() < count(argument))
                .map(|_| format!("{at}: too few items")),
            "minProperties" => value
                .as_object()
                .filter(|map| map.len() < count(argument))
                .map(|_| format!("{at}: too few keys")),
            "maxItems" => value
                .as_array()
                .filter(|list| list.len() > count(argument))
                .map(|_| format!("{at}: too many items")),
            "items" => {
                items().enumerate().find_map(|(n, item)| below(item, argument, &n.to_string()))
            }
            "required" => value.as_object().and_then(|map| {
                let missing = argument
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|key| !map.contains_key(key.as_str().unwrap()));
                missing.map(|key| format!("{at}: the key {key} is missing"))
            }),
            "properties" => {
                entries().find_map(|(key, value)| below(value, argument.get(key)?, key))
            }
            "patternProperties" => entries().find_map(|(key, value)| {
                let patterns = argument.as_object().unwrap().iter();
                let mut matching = patterns
                    .filter(|(pattern, _)| regex::Regex::new(pattern).unwrap().is_match(key));
                matching.find_map(|(_, schema)| below(value, schema, key))
            }),
            "additionalProperties" => entries().find_map(|(key, value)| {
                let named = words.get("properties").is_some_and(|p| p.get(key).is_some());
                let patterns =
                    words.get("patternProperties").and_then(Value::as_object).into_iter().flatten();
                let matched =
                    patterns.into_iter().any(|(p, _)| regex::Regex::new(p).unwrap().is_match(key));
                if named || matched { None } else { below(value, argument, key) }
            }),
            "anyOf" | "oneOf" => {
                let mistakes: Vec<String> = argument
                    .as_array()
                    .unwrap()
                    .iter()
                    .map_while(|schema| mistake(value, schema, root, at))
                    .collect();
                let all_wrong = mistakes.len() == argument.as_array().unwrap().len();
                all_wrong
                    .then(|| format!("{at}: none of the alternatives: {}", mistakes.join(" | ")))
            }
            _ => panic!("{at}: the schema says `{word}`, which this test does not know"),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

fn of(text: &str, schema: &Value) -> Option<String> {
    mistake(&Written::parse("s.yaml", text).unwrap().to_json(), schema, schema, "")
}

#[test]
fn every_experiment_is_as_the_schema_says() {
    let schema = schema();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    let files = std::fs::read_dir(folder).unwrap().flatten().map(|f| f.path());
    let files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    assert!(files.len() >= 12);
    for file in files {
        let found = of(&std::fs::read_to_string(&file).unwrap(), &schema);
        assert_eq!(found, None, "{}", file.display());
    }
}

/// Editors read the one beside the files, as the line at the head of each says.
#[test]
fn the_schema_beside_the_experiments_is_todays() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../experiments");
    let text = std::fs::read_to_string(folder.join("sweep.schema.json")).unwrap();
    let command = assert_cmd::cargo::cargo_bin!("fathom");
    let output = std::process::Command::new(command).args(["sweep", "schema"]).output().unwrap();
    assert!(
        text == String::from_utf8(output.stdout).unwrap(),
        "expected experiments/sweep.schema.json as `fathom sweep schema` prints it, found another\n  help: cargo run --release \
         --bin fathom sweep schema > experiments/sweep.schema.json"
    );
    assert!(text.len() < 120_000, "{}", text.len());
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            let line = "# yaml-language-server: $schema=sweep.schema.json\n";
            assert!(text.starts_with(line), "{}", entry.path().display());
        }
    }
}

/// Everything that the language has, as the reader takes it.
const ALL: &str = "
name: all
set: { train.total_tokens: 4M, train: { micro_batch_size: 1 }, eval.context_lengths: [8], data.splits.validation: [a.txt] }
random: { count: 3, seed: 1 }
axes:
  train.learning_rate: { log: [1e-5, 1e-3] }
  train.max_steps: { int: [10, 40], multiple_of: 10 }
  train.optimizer.type: { values: [adamw, sgd] }
  train.optimizer.momentum: { lin: [0.5, 0.9], count: 3, when: { train.optimizer.type: sgd } }
  rope:
    when: { train.optimizer.type: [adamw, sgd] }
    variants: { plain: {}, wide: { model.rope_parameters: { rope_type: default, rope_theta: 500000 } } }
  size: { small: { train.sequence_length: 8 }, large: { train.sequence_length: 16 } }
exclude: [{ size: small, rope: wide }]
include: [{ train.learning_rate: 0.5, train.max_grad_norm: null }]
when: [{ if: { size: [large] }, set: { train.loss_tile_tokens: 64 } }]
derive: { train.schedule.warmup_tokens: train.total_tokens / 20 }
constraints: [train.learning_rate < 1]
seeds: 2
priority: [{ rope: [wide, plain] }, -train.seed]
budget: { hours: 8, tokens: 200M, runs: 40 }
retry: { out_of_memory: { set: [{ train.micro_batch_size: 2 }], times: 1 } }
eval: { last_stride: 4 }
report: { title: All of it }
";

#[test]
fn the_whole_language_is_as_the_schema_says() {
    assert!(!plan(ALL).unwrap().points.is_empty());
    assert_eq!(of(&format!("base: base.yaml\n{ALL}"), &schema()), None);
    let halving =
        "base: base.yaml\nsearch: { halving: { metric: loss, rungs: [100K, 400000], keep: 1/3 } }";
    assert_eq!(of(halving, &schema()), None);
    assert!(of(&halving.replace("rungs", "rung"), &schema()).is_some());
    let more = "base: { project: p, config: c.yaml }\nset: { seq_len: 9 }\naxes: { seq_len: [1], a.b: { log: [1, 2], count: 3 } }";
    assert!(of(more, &schema()).unwrap().contains("/axes/a.b"));
    let more = "base: { project: p }\naxes: { seq_len: [1, 2], train.seed: [3] }\nzip: [[seq_len, train.seed]]\nconstraints: \"true\"\n\
                search: { bisect: { parameter: seq_len, low: 1K, high: 4K, also: [2K] } }\nseeds: [4]";
    assert_eq!(of(more, &schema()), None);
}

#[test]
fn the_schema_refuses_what_the_reader_refuses() {
    let cases = [
        ("axis: {}", "/axis"),
        ("set: { train.learning_rat: 1 }", "/set/train.learning_rat"),
        ("set: { train.learning_rate: fast }", "/set/train.learning_rate"),
        ("axes: { train.micro_batch_size: [1, two] }", "/axes/train.micro_batch_size"),
        ("axes: { train.micro_batch_size: 2 }", "/axes/train.micro_batch_size"),
        ("axes: { train.optimizer.type: [adam] }", "/axes/train.optimizer.type"),
        ("axes: { rope: { yarn: { model.rope_parameters: { rope_typ: yarn } } } }", "/axes/rope"),
        ("axes: { train.learning_rate: { log: [1], count: 3 } }", "/axes/train.learning_rate"),
        ("random: { seed: 3 }", "/random"),
        ("seeds: 0", "/seeds"),
        ("search: { bisect: { parameter: train.max_steps, low: 1 } }", "/search/bisect"),
        ("eval: { context_length: [8] }", "/eval/context_length"),
        ("when: [{ if: { a: 1 } }]", "/when/0"),
    ];
    for (text, place) in cases {
        let found = of(text, &schema()).unwrap_or_default();
        assert!(found.contains(place), "{text}\nexpected: {place}\nfound:    {found}");
        assert!(plan(text).is_err(), "{text}");
    }
}

/// A key that is added to the configuration is in the schema by itself.
#[test]
fn the_schema_has_every_key_path() {
    let known: Vec<String> = key_paths().into_iter().map(|(path, _)| path).collect();
    let config = Written::parse("c.yaml", super::BASE).unwrap();
    for (key, _) in RunConfig::from_written(&config).unwrap().flatten() {
        assert!(known.contains(&key), "{key} is not among the paths of the schema");
    }
    assert!(known.len() > 90, "{}", known.len());
    let described = schema();
    let learning_rate = &described["$defs"]["key.train.schedule.warmup_tokens"];
    assert_eq!(learning_rate["description"], json!("Linear rise from 0."));
}
