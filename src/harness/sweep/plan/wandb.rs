//! A sweep file of Weights & Biases as one of fathom: what it varies and how, and by name what can't be carried over.
//!
//! The format is that of <https://docs.wandb.ai/guides/sweeps/define-sweep-configuration>.

use super::schema::key_paths;
use super::{SEED, plain, whole};
use anyhow::{Result, bail};
use fathom_spec::config::nearest;
use fathom_spec::config::written::{Entry, Node, Written};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// A sweep file of fathom, and what a reader has to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// YAML, with the notes as comments.
    pub text: String,
    /// What was not carried over, and what has to be filled in: one line each.
    pub notes: Vec<String>,
}

/// How many points are drawn when the file does not say.
const DRAWS: u64 = 20;

/// Names that are common in other programs, and the keys that they mean here.
const ALIASES: [(&str, &str); 13] = [
    ("lr", "train.learning_rate"),
    ("base_lr", "train.learning_rate"),
    ("batch_size", "train.micro_batch_size"),
    ("per_device_train_batch_size", "train.micro_batch_size"),
    ("grad_accum", "train.gradient_accumulation_steps"),
    ("seq_len", "train.sequence_length"),
    ("max_seq_length", "train.sequence_length"),
    ("block_size", "train.sequence_length"),
    ("optimizer", "train.optimizer.type"),
    ("optim", "train.optimizer.type"),
    ("grad_clip", "train.max_grad_norm"),
    ("lr_scheduler_type", "train.schedule.type"),
    ("scheduler", "train.schedule.type"),
];

/// Reads a sweep file of Weights & Biases.
///
/// # Errors
///
/// When it is not one: with file, line and key path.
pub fn import(file: &str, text: &str) -> Result<Imported> {
    let tree = Written::parse(file, text)?;
    let Some(parameters) = tree.get("parameters") else {
        bail!(
            "{file}: expected a sweep file of Weights & Biases, found no key `parameters`\n  help: `fathom sweep check` reads \
             fathom's own"
        );
    };
    let mut import = Import::default();
    let method = match tree.get("method") {
        Some(method) => method.text("method")?,
        None => bail!("{file}: expected the key `method`, found none"),
    };
    import.random = match method {
        "grid" => false,
        "random" => true,
        "bayes" => {
            import.note("method: bayes is not carried over: its distributions are drawn from at random; `search: { halving: { metric, rungs, keep } }` spends the budget on the best");
            true
        }
        _ => bail!(
            "{}: method: expected `grid`, `random` or `bayes`, found `{method}`",
            tree.get("method").map_or(file.to_string(), |m| m.origin.to_string())
        ),
    };
    import.parameters("", parameters)?;
    let cap = tree.get("run_cap").map(|cap| whole(cap, "run_cap")).transpose()?;
    for entry in tree.entries("the sweep file")? {
        import.top_level(entry);
    }
    let count = import.draws(cap);
    import.note("base: name the configuration that the parameters change");
    let name = tree.get("name").and_then(|name| name.text("name").ok());
    let name: String = name
        .unwrap_or("imported")
        .trim_start_matches('.')
        .chars()
        .map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' })
        .collect();
    let mut sweep = Map::new();
    sweep.insert("name".into(), if name.is_empty() { "imported".into() } else { name.into() });
    sweep.insert("base".into(), "base.yaml".into());
    if !import.set.is_empty() {
        sweep.insert("set".into(), import.set.into());
    }
    if import.random {
        sweep.insert("random".into(), json!({ "count": count, "seed": 0 }));
    }
    if !import.axes.is_empty() {
        sweep.insert("axes".into(), import.axes.into());
    }
    let about = tree.get("description").and_then(|text| text.text("description").ok());
    let about = about.unwrap_or("Which of these is best?").replace('\n', " ");
    let mut text = format!("# {about}\n# fathom sweep run FILE\n");
    for note in &import.notes {
        text += &format!("# note: {}\n", note.replace('\n', " "));
    }
    text += &serde_yaml::to_string(&Value::Object(sweep))?;
    Ok(Imported { text, notes: import.notes })
}

#[derive(Default)]
struct Import {
    notes: Vec<String>,
    axes: Map<String, Value>,
    set: Map<String, Value>,
    /// Key path -> the parameter that it was made of.
    names: HashMap<String, String>,
    random: bool,
}

impl Import {
    fn note(&mut self, note: &str) {
        self.notes.push(note.to_string());
    }

    /// How many draws make as many runs as are allowed: listed seeds are made for each draw.
    fn draws(&mut self, cap: Option<u64>) -> u64 {
        let seeds =
            self.axes.get(SEED).and_then(Value::as_array).map_or(1, |seeds| seeds.len() as u64);
        match cap {
            Some(cap) if !self.random => {
                self.note(&format!(
                    "run_cap is not carried over: a grid is made whole; `budget: {{ runs: {cap} }}` begins no more of it"
                ));
                cap
            }
            None if !self.random => DRAWS,
            None => {
                self.note(&format!(
                    "run_cap is not given, and random draws need an end: random.count is {DRAWS}"
                ));
                DRAWS
            }
            Some(cap) if seeds > 1 => {
                let count = (cap / seeds).max(1);
                self.note(&format!(
                    "run_cap: {cap} is random.count: {count}, as each draw is made with all {seeds} values of {SEED}"
                ));
                count
            }
            Some(cap) => cap,
        }
    }

    /// Whether a parameter may have its key. Of two that mean one, that which varies it stays, else the first.
    fn takes(&mut self, name: &str, key: &str, is_varied: bool) -> bool {
        let Some(other) = self.names.get(key).cloned() else {
            self.names.insert(key.to_string(), name.to_string());
            return true;
        };
        let takes = is_varied && self.set.shift_remove(key).is_some();
        let (left, kept) = if takes { (other.as_str(), name) } else { (name, other.as_str()) };
        self.note(&format!("{left} is not carried over: {kept} sets {key} too"));
        if takes {
            self.names.insert(key.to_string(), name.to_string());
        }
        takes
    }

    fn top_level(&mut self, entry: &Entry) {
        let key = &entry.key;
        match key.as_str() {
            "method" | "parameters" | "name" | "description" | "run_cap" => {}
            "metric" => {
                let metric = entry.value.get("name").map_or(String::new(), |name| plain(&name.to_json()));
                self.note(&format!(
                    "metric: `{metric}` is not carried over: reports compare points by loss and perplexity, and `fathom sql` by any metric"
                ));
            }
            "early_terminate" => self.note(
                "early_terminate is not carried over: `train.max_loss_ratio` ends a run that diverges, and `search: { halving: { metric, rungs, keep } }` stops what is behind",
            ),
            "program" | "command" | "project" | "entity" => self.note(&format!(
                "{key} is not carried over: fathom runs its own worker, or the program that FATHOM_ENGINE names, and keeps results in --results DIR"
            )),
            _ => self.note(&format!("{key} is not carried over: fathom has nothing like it")),
        }
    }

    fn parameters(&mut self, prefix: &str, written: &Written) -> Result<()> {
        for entry in written.entries("parameters")? {
            let name = if prefix.is_empty() {
                entry.key.clone()
            } else {
                format!("{prefix}.{}", entry.key)
            };
            let definition = &entry.value;
            if let Some(nested) = definition.get("parameters") {
                self.parameters(&name, nested)?;
                continue;
            }
            let key = self.key(&name);
            self.parameter(&name, &key, definition)?;
        }
        Ok(())
    }

    /// The key path that a parameter's name means, or the name itself.
    fn key(&mut self, name: &str) -> String {
        let known: Vec<String> = key_paths().into_iter().map(|(path, _)| path).collect();
        if known.iter().any(|path| path == name) {
            return name.to_string();
        }
        let last = name.rsplit('.').next().unwrap_or(name);
        let alias =
            ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, key)| key.to_string());
        // As it is written below `train` or another section, else by its last part.
        let ending = |end: &str| -> Vec<&String> {
            known.iter().filter(|path| path.ends_with(&format!(".{end}"))).collect()
        };
        let whole = ending(name);
        let ends = if whole.is_empty() { ending(last) } else { whole };
        let training: Vec<&&String> =
            ends.iter().filter(|path| path.starts_with("train.")).collect();
        let found = alias.or_else(|| match (&ends[..], &training[..]) {
            ([only], _) => Some((*only).clone()),
            (_, [only]) => Some((**only).clone()),
            _ => None,
        });
        if let Some(key) = found {
            self.note(&format!("{name} is taken for {key}"));
            return key;
        }
        let near = nearest(name, known.iter().map(String::as_str));
        let near = near.map_or(String::new(), |near| format!(", perhaps {near}"));
        self.note(&format!(
            "{name} is no key of fathom: put the one that is meant in its place{near}"
        ));
        name.to_string()
    }

    fn parameter(&mut self, name: &str, key: &str, definition: &Written) -> Result<()> {
        let place = format!("parameters.{name}");
        definition.entries(&place)?;
        let json = |key: &str| definition.get(key).map(Written::to_json);
        if let Some(value) = json("value") {
            if self.takes(name, key, false) {
                self.set.insert(key.into(), value);
            }
            return Ok(());
        }
        if let Some(values) = definition.get("values") {
            values.items(&format!("{place}.values"))?;
            if definition.get("probabilities").is_some() {
                self.note(&format!(
                    "{name}: probabilities are not carried over: each value is as likely as another"
                ));
            }
            if self.takes(name, key, true) {
                self.axes.insert(key.into(), values.to_json());
            }
            return Ok(());
        }
        let ends = (definition.get("min"), definition.get("max"));
        let whole_ends = matches!(
            ends,
            (Some(Written { node: Node::Int(_), .. }), Some(Written { node: Node::Int(_), .. }))
        );
        let distribution = match definition.get("distribution") {
            Some(distribution) => distribution.text(&format!("{place}.distribution"))?,
            None if whole_ends => "int_uniform",
            None => "uniform",
        };
        let (Some(low), Some(high)) = ends else {
            self.note(&format!(
                "{name}: `{distribution}` is not carried over: fathom draws between two ends; write {{ lin: [low, high] }} or {{ log: [low, high] }}"
            ));
            return Ok(());
        };
        let numbers = [low, high].map(|end| end.to_json().as_f64());
        let [Some(low), Some(high)] = numbers else {
            bail!(
                "{}: {place}: expected numbers as `min` and `max`, found {} and {}",
                definition.origin,
                low.describe(),
                high.describe()
            );
        };
        let step = json("q").unwrap_or(json!(1));
        let exponents =
            [low.exp(), high.exp()].map(|x| format!("{x:.3e}").parse::<f64>().unwrap_or(x));
        let number =
            |x: f64| if x.fract() == 0.0 && x.abs() < 9e15 { json!(x as i64) } else { json!(x) };
        let ends = json!([number(low), number(high)]);
        let axis = match distribution {
            "int_uniform" => json!({ "int": ends }),
            "uniform" => json!({ "lin": ends }),
            "q_uniform" => json!({ "lin": ends, "multiple_of": step }),
            "log_uniform_values" => json!({ "log": ends }),
            "q_log_uniform_values" => json!({ "log": ends, "multiple_of": step }),
            "log_uniform" => json!({ "log": exponents }),
            "q_log_uniform" => json!({ "log": exponents, "multiple_of": step }),
            _ => {
                self.note(&format!(
                    "{name}: `{distribution}` is not carried over: fathom draws evenly (`lin`, `int`) or evenly by ratio (`log`)"
                ));
                return Ok(());
            }
        };
        if !self.random && distribution != "int_uniform" {
            self.note(&format!("{name}: a grid needs values: give {key} a `count`"));
        }
        if self.takes(name, key, true) {
            self.axes.insert(key.into(), axis);
        }
        Ok(())
    }
}
