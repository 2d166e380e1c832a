//! The JSON Schema of sweep files, for editors: made from the types of [`RunConfig`], so that it knows every key path, its type and
//! what its documentation says.
//!
//! It refuses no file that [`super::Plan::read`] takes. What it can't say (names of axes in `zip`, options of a project, values
//! that contradict one another) is left to `fathom sweep check`.

use super::KEYS;
use super::axes::MOST_DIGITS;
use crate::sweep::schedule;
use fathom_spec::config::RunConfig;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::sync::LazyLock;

/// The whole schema.
pub fn schema() -> Value {
    let config =
        SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<RunConfig>();
    let mut config = config.to_value();
    // What a sweep writes is part of a configuration: nothing of it has to be there.
    drop_required(&mut config);
    let definitions = match config["$defs"].take() {
        Value::Object(definitions) => definitions,
        _ => Map::new(),
    };
    let mut keys = Vec::new();
    paths("", &config, &definitions, &mut keys);
    let mut all = definitions;
    for (path, schema) in &keys {
        all.insert(definition(path), schema.clone());
    }
    all.insert("settings".into(), settings(&keys));
    all.insert("axes".into(), axes(&keys));
    all.insert("axis".into(), axis());
    all.insert("condition".into(), mapping(&keys, &|_| json!(true), &json!(true)));
    all.insert("range".into(), range());
    let of_eval = config.pointer("/properties/eval").cloned().unwrap_or(json!(true));
    let known = KEYS.iter().chain(&schedule::KEYS);
    let properties = known.map(|key| (key.to_string(), top_level(key, &of_eval)));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A sweep file of fathom",
        "type": "object",
        "additionalProperties": false,
        "properties": properties.collect::<Map<String, Value>>(),
        "$defs": all,
    })
}

/// The whole schema as text: a line for each definition, which is short enough to be read and compared.
///
/// # Errors
///
/// Never, as far as plain data can be written as JSON.
pub fn text() -> Result<String, serde_json::Error> {
    let lines = |map: &Map<String, Value>, indent: &str| {
        let line = |(key, value): (&String, &Value)| {
            Ok(format!("{indent}{}: {}", json!(key), serde_json::to_string(value)?))
        };
        Ok::<_, serde_json::Error>(map.iter().map(line).collect::<Result<Vec<_>, _>>()?.join(",\n"))
    };
    let mut whole = schema();
    let definitions = whole["$defs"].take();
    let mut whole = whole.as_object().cloned().unwrap_or_default();
    whole.remove("$defs");
    let definitions = lines(definitions.as_object().unwrap_or(&Map::new()), "    ")?;
    Ok(format!("{{\n{},\n  \"$defs\": {{\n{definitions}\n  }}\n}}\n", lines(&whole, "  ")?))
}

/// Every key path with its schema: sections, keys, and (with `*`) the keys of maps.
pub fn key_paths() -> Vec<(String, Value)> {
    let (_, keys) = definitions_and_keys();
    keys
}

fn definitions_and_keys() -> (Map<String, Value>, Vec<(String, Value)>) {
    let config =
        SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<RunConfig>();
    let config = config.to_value();
    let definitions = config["$defs"].as_object().cloned().unwrap_or_default();
    let mut keys = Vec::new();
    paths("", &config, &definitions, &mut keys);
    (definitions, keys)
}

/// Whether a key path takes whole numbers and no others.
pub fn takes_whole(key: &str) -> bool {
    static WHOLE: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let (definitions, keys) = definitions_and_keys();
        let whole = keys.into_iter().filter(|(_, schema)| is_whole(schema, &definitions));
        whole.map(|(key, _)| key).collect()
    });
    WHOLE.contains(key)
}

fn is_whole(schema: &Value, definitions: &Map<String, Value>) -> bool {
    if let Some(name) = schema.get("$ref").and_then(|name| name.as_str()?.strip_prefix("#/$defs/"))
    {
        return definitions.get(name).is_some_and(|schema| is_whole(schema, definitions));
    }
    if let Some(any) = schema.get("anyOf").and_then(Value::as_array) {
        return any.iter().any(|schema| is_whole(schema, definitions));
    }
    match &schema["type"] {
        Value::Array(types) => types.contains(&json!("integer")),
        one => one == "integer",
    }
}

fn top_level(key: &str, of_eval: &Value) -> Value {
    let list = |items: Value| json!({ "type": "array", "items": items });
    let with = |description: &str, schema: Value| {
        let mut schema = schema;
        schema["description"] = description.into();
        schema
    };
    let names = list(json!({ "type": "string" }));
    let whole = json!({ "type": "integer", "minimum": 0 });
    match key {
        "name" => with(
            "What the sweep is called in the store and in reports; the file's name when not given",
            json!({ "type": "string" }),
        ),
        "base" => with(
            "The configuration that all points start from: a file, or a project",
            json!({ "anyOf": [
            { "type": "string" },
            { "type": "object", "required": ["project"], "additionalProperties": false,
              "properties": { "project": { "type": "string" }, "config": { "type": "string" } } },
        ] }),
        ),
        "set" => with("Settings of every point", reference("settings")),
        "axes" => with(
            "What is varied: a key path or a name, with values, a range or named variants",
            reference("axes"),
        ),
        "random" => with(
            "Draw points from the axes instead of taking all combinations",
            json!({
                "type": "object", "required": ["count"], "additionalProperties": false,
                "properties": { "count": { "type": "integer", "minimum": 1 }, "seed": whole },
            }),
        ),
        "zip" => {
            with("Axes that advance together", json!({ "anyOf": [names, list(names.clone())] }))
        }
        "include" => with("Points beside the grid", list(reference("settings"))),
        "exclude" => with("Points of the grid to leave out", list(reference("condition"))),
        "when" => with(
            "Settings of the points whose axes have given values",
            list(json!({
                "type": "object", "required": ["if", "set"], "additionalProperties": false,
                "properties": { "if": reference("condition"), "set": reference("settings") },
            })),
        ),
        "derive" => with(
            "Keys as expressions of others: `train.total_tokens / 20`",
            json!({
                "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] },
            }),
        ),
        "constraints" => with(
            "Expressions that a point has to satisfy",
            json!({ "anyOf": [
            { "type": "string" }, list(json!({ "type": ["string", "boolean", "number"] })),
        ] }),
        ),
        "seeds" => with(
            "A number of seeds, or a list of them",
            json!({ "anyOf": [
            { "type": "integer", "minimum": 1 }, { "type": "array", "minItems": 1, "items": whole },
        ] }),
        ),
        "search" => with(
            "A search by runs that follow from one another",
            json!({ "type": "object", "additionalProperties": false, "properties": {
            "halving": { "type": "object", "additionalProperties": false, "required": ["rungs"], "properties": {
                "metric": { "type": "string" },
                "rungs": { "type": "array", "minItems": 1, "items": reference("Tokens") },
                "keep": { "type": ["string", "number"] },
            } },
            "bisect": { "type": "object", "additionalProperties": false, "required": ["parameter", "low", "high"],
                "properties": {
                    "parameter": { "type": "string" },
                    "low": reference("Tokens"), "high": reference("Tokens"), "resolution": reference("Tokens"),
                    "multiple_of": reference("Tokens"), "probe_layers": reference("Tokens"),
                    "also": list(reference("Tokens")),
                } } } }),
        ),
        "priority" => with(
            "Which points come first: an axis or key (`-` before it: the lowest first), or the order of an axis's values",
            json!({ "anyOf": [
            { "type": "string" }, { "type": "object" }, list(json!({ "type": ["string", "object"] })),
        ] }),
        ),
        "budget" => with(
            "What the runs may take together; nothing is begun that would exceed it",
            json!({ "type": "object", "additionalProperties": false, "properties": {
            "seconds": { "type": "number" }, "hours": { "type": "number" }, "tokens": reference("Tokens"),
            "runs": { "type": "integer", "minimum": 1 },
        } }),
        ),
        "retry" => with(
            "What is tried in place of a point that ran out of memory",
            json!({ "type": "object", "additionalProperties": false, "properties": {
            "out_of_memory": { "type": "object", "additionalProperties": false, "required": ["set"], "properties": {
                "set": { "anyOf": [reference("settings"), list(reference("settings"))] },
                "times": { "type": "integer", "minimum": 1 },
            } } } }),
        ),
        "eval" => with("Settings of `eval`", of_eval.clone()),
        "report" => with(
            "What the report says",
            json!({ "type": "object", "properties": {
            "title": { "type": "string" },
            "baseline": { "type": ["string", "number", "boolean"] },
            "method": { "enum": ["prefix", "last_stride"] },
            "context_length": { "type": "integer", "minimum": 1 },
        } }),
        ),
        _ => json!(true),
    }
}

/// A mapping of key paths, of whole sections, and of options of a project (names without a dot).
fn settings(keys: &[(String, Value)]) -> Value {
    mapping(keys, &|reference| reference, &json!(true))
}

fn axes(keys: &[(String, Value)]) -> Value {
    mapping(keys, &axis_of, &reference("axis"))
}

/// What may stand at an axis: the values are told by [`axis_of`].
fn axis() -> Value {
    let values = json!({ "type": "array", "minItems": 1 });
    let variants = json!({ "type": "object", "minProperties": 1, "additionalProperties": reference("settings") });
    let defined = |key: &str, what: &Value| {
        json!({
            "type": "object", "required": [key], "additionalProperties": false,
            "properties": { (key): what, "when": reference("condition") },
        })
    };
    json!({ "anyOf": [
        values, reference("range"), defined("values", &values), defined("variants", &variants), variants,
    ] })
}

/// An axis whose values are `value`, in a list of its own or under `values`.
fn axis_of(value: Value) -> Value {
    let properties = json!({ "values": { "items": value } });
    json!({ "$ref": "#/$defs/axis", "items": value, "properties": properties })
}

fn range() -> Value {
    let ends = json!({ "type": "array", "items": { "type": ["number", "string"] }, "minItems": 2, "maxItems": 2 });
    let spaced = json!({
        "count": { "type": "integer", "minimum": 2 },
        "digits": { "type": "integer", "minimum": 1, "maximum": MOST_DIGITS },
    });
    let of = |key: &str, mut properties: Value, what: &str| {
        properties[key] = ends.clone();
        properties["multiple_of"] = json!({ "type": "number", "exclusiveMinimum": 0 });
        properties["when"] = reference("condition");
        json!({ "type": "object", "required": [key], "additionalProperties": false, "description": what,
                "properties": properties })
    };
    json!({ "anyOf": [
        of("log", spaced.clone(), "Evenly by ratio, both ends included"),
        of("lin", spaced, "Evenly by difference, both ends included"),
        of("int", json!({}), "Whole numbers, both ends included"),
    ] })
}

/// A mapping whose values are those of their key paths, changed by `of`; `other` is for names without a dot that are no section.
fn mapping(keys: &[(String, Value)], of: &dyn Fn(Value) -> Value, other: &Value) -> Value {
    let mut properties = Map::new();
    let mut patterns = Map::new();
    for (path, _) in keys {
        let schema = of(reference(&definition(path)));
        match path.strip_suffix(".*") {
            Some(map) => {
                patterns.insert(format!("^{}\\..+$", map.replace('.', "\\.")), schema);
            }
            // An axis or option may be called as a section is.
            None if path.contains('.') => {
                properties.insert(path.clone(), schema);
            }
            None => {}
        }
    }
    patterns.insert("^[^.]+$".into(), other.clone());
    json!({
        "type": "object", "additionalProperties": false,
        "properties": properties, "patternProperties": patterns,
    })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

/// A star is no part of a name that editors resolve.
fn definition(path: &str) -> String {
    format!("key.{}", path.replace('*', "any"))
}

fn drop_required(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.contains_key("properties") {
                map.remove("required");
            }
            map.values_mut().for_each(drop_required);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_required),
        _ => {}
    }
}

fn paths(
    prefix: &str,
    schema: &Value,
    definitions: &Map<String, Value>,
    found: &mut Vec<(String, Value)>,
) {
    let child =
        |key: &str| if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") };
    for object in objects(schema, definitions) {
        for (key, value) in object["properties"].as_object().into_iter().flatten() {
            found.push((child(key), value.clone()));
            paths(&child(key), value, definitions, found);
        }
        if let Some(value) = object.get("additionalProperties").filter(|value| value.is_object()) {
            found.push((child("*"), value.clone()));
        }
    }
}

/// The mappings that a schema is, through references and alternatives.
fn objects<'a>(schema: &'a Value, definitions: &'a Map<String, Value>) -> Vec<&'a Value> {
    if let Some(name) = schema.get("$ref").and_then(|name| name.as_str()?.strip_prefix("#/$defs/"))
    {
        return definitions.get(name).map_or(Vec::new(), |schema| objects(schema, definitions));
    }
    if let Some(any) = schema.get("anyOf").and_then(Value::as_array) {
        return any.iter().flat_map(|schema| objects(schema, definitions)).collect();
    }
    let is_mapping =
        ["properties", "additionalProperties"].iter().any(|key| schema.get(key).is_some());
    if is_mapping { vec![schema] } else { Vec::new() }
}
