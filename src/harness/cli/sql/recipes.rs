//! Queries that have names: one file of `recipes/` each.
//!
//! A file opens with a comment: what the query answers, then a line for each parameter, `-- :name = default   what it is`.
//! A default that is a number makes the parameter one; `NULL` stands for a text that may be left out.

use super::super::table::{Cell, Table};
use super::{collect, prepare};
use crate::store::Store;
use anyhow::{Result, bail};
use fathom_spec::config::nearest;
use rusqlite::types::Value;

/// A query with a name.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    pub name: &'static str,
    /// Its file as it is.
    pub text: &'static str,
}

/// What can be set in a recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    pub name: &'static str,
    /// As the file writes it.
    pub default: &'static str,
    pub meaning: &'static str,
}

macro_rules! recipe {
    ($name:literal) => {
        Recipe { name: $name, text: include_str!(concat!("recipes/", $name, ".sql")) }
    };
}

/// All recipes, by name.
pub const RECIPES: &[Recipe] = &[
    recipe!("attempts"),
    recipe!("best_runs"),
    recipe!("block_lengths"),
    recipe!("checkpoints"),
    recipe!("code_versions"),
    recipe!("comparison"),
    recipe!("device_hours"),
    recipe!("effect_of_setting"),
    recipe!("eval_curve"),
    recipe!("facts"),
    recipe!("failures"),
    recipe!("generalization_gap"),
    recipe!("gradient_norms"),
    recipe!("labelled"),
    recipe!("leaderboard"),
    recipe!("learning_rate_schedule"),
    recipe!("loss_at_tokens"),
    recipe!("loss_curve"),
    recipe!("loss_spikes"),
    recipe!("machines"),
    recipe!("memory_by_length"),
    recipe!("memory_by_phase"),
    recipe!("memory_ceiling"),
    recipe!("missing_points"),
    recipe!("nll_by_position"),
    recipe!("out_of_memory"),
    recipe!("perplexity_against_baseline"),
    recipe!("perplexity_past_training"),
    recipe!("quality_against_memory"),
    recipe!("recent_runs"),
    recipe!("runs_with_setting"),
    recipe!("samples"),
    recipe!("seed_spread"),
    recipe!("seeds_of_a_point"),
    recipe!("settings"),
    recipe!("settings_that_differ"),
    recipe!("slowest_runs"),
    recipe!("sweep_status"),
    recipe!("throughput"),
    recipe!("tokens_to_loss"),
    recipe!("warnings"),
];

/// The recipe of a name.
///
/// # Errors
///
/// When there is none.
pub fn find(name: &str) -> Result<Recipe> {
    if let Some(recipe) = RECIPES.iter().find(|recipe| recipe.name == name) {
        return Ok(*recipe);
    }
    let help = match nearest(name, RECIPES.iter().map(|recipe| recipe.name)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`fathom sql --recipes` lists them".into(),
    };
    bail!("--recipe: expected the name of a recipe, found `{name}`\n  help: {help}")
}

/// All recipes with what they answer and what can be set.
pub fn list() -> Table {
    let mut table = Table::new(&["recipe", "answers", "--set"]);
    for recipe in RECIPES {
        let set: Vec<String> =
            recipe.parameters().iter().map(|p| format!("{}={}", p.name, p.default)).collect();
        let set = if set.is_empty() { Cell::Null } else { set.join(" ").into() };
        table.rows.push(vec![recipe.name.into(), recipe.answers().into(), set]);
    }
    table
}

impl Recipe {
    /// The lines of the comment that opens the file.
    fn header(&self) -> impl Iterator<Item = &'static str> {
        self.text.lines().map_while(|line| line.strip_prefix("-- "))
    }

    /// What the query answers.
    pub fn answers(&self) -> String {
        self.header().take_while(|line| !line.starts_with(':')).collect::<Vec<_>>().join(" ")
    }

    /// What can be set, in the file's order.
    pub fn parameters(&self) -> Vec<Parameter> {
        self.header()
            .filter_map(|line| {
                let (name, rest) = line.strip_prefix(':')?.split_once(" = ")?;
                let (default, meaning) = rest.split_once(' ').unwrap_or((rest, ""));
                Some(Parameter { name, default, meaning: meaning.trim() })
            })
            .collect()
    }

    /// The rows, with parameters set as `name=value`.
    ///
    /// # Errors
    ///
    /// When a setting is no `name=value`, is of no parameter of the recipe, or is no number where one is expected.
    pub fn answer(&self, store: &Store, settings: &[String]) -> Result<Table> {
        let parameters = self.parameters();
        let mut values: Vec<Value> = parameters.iter().map(|p| value(p.default)).collect();
        for setting in settings {
            let Some((name, text)) = setting.split_once('=') else {
                bail!("--set: expected `name=value`, found `{setting}`");
            };
            let Some(at) = parameters.iter().position(|p| p.name == name) else {
                let names: Vec<_> = parameters.iter().map(|p| format!("`{}`", p.name)).collect();
                let names =
                    if names.is_empty() { "no parameters".into() } else { names.join(", ") };
                bail!("--set: recipe {} has {names}, found `{name}`", self.name);
            };
            let given = value(text);
            values[at] = match (&values[at], given) {
                // A text stays one, though it reads as a number.
                (Value::Text(_) | Value::Null, _) if text != "NULL" => Value::Text(text.into()),
                (_, given @ (Value::Integer(_) | Value::Real(_))) => given,
                (Value::Text(_) | Value::Null, given) => given,
                _ => bail!("--set: {name}: expected a number, found `{text}`"),
            };
        }
        let mut statement = prepare(store, self.text)?;
        let names: Vec<String> = parameters.iter().map(|p| format!(":{}", p.name)).collect();
        let bound: Vec<(&str, &dyn rusqlite::ToSql)> = names
            .iter()
            .zip(&values)
            .map(|(name, value)| (name.as_str(), value as &dyn rusqlite::ToSql))
            .collect();
        collect(store, &mut statement, &bound[..])
    }
}

/// A number, a text, or nothing: as it reads.
fn value(text: &str) -> Value {
    if text == "NULL" {
        return Value::Null;
    }
    let integer = text.parse().map(Value::Integer).ok();
    let number = || text.parse().map(Value::Real).ok();
    integer.or_else(number).unwrap_or_else(|| Value::Text(text.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::table::Format;
    use std::path::{Path, PathBuf};

    fn published() -> Store {
        let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../results/published");
        Store::open_read_only(&results).unwrap()
    }

    #[test]
    fn every_file_of_the_folder_is_a_recipe_that_says_what_it_answers() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cli/sql/recipes");
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let stem = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
        let mut files: Vec<String> = entries.map(stem).collect();
        files.sort();
        assert_eq!(files, RECIPES.iter().map(|recipe| recipe.name).collect::<Vec<_>>());
        assert!(files.len() >= 25);
        for recipe in RECIPES {
            let answers = recipe.answers();
            assert!(answers.ends_with('.') && answers.len() > 20, "{}: {answers}", recipe.name);
            // The comment and the query name the same parameters.
            let query: String =
                recipe.text.lines().skip_while(|line| line.starts_with("-- ")).collect();
            assert!(query.starts_with("SELECT") || query.starts_with("WITH"), "{}", recipe.name);
            for parameter in recipe.parameters() {
                assert!(!parameter.meaning.is_empty(), "{}: {}", recipe.name, parameter.name);
                assert!(
                    query.contains(&format!(":{}", parameter.name)),
                    "{}: {}",
                    recipe.name,
                    parameter.name
                );
            }
        }
    }

    /// These ask for what the published runs don't have; `tests/tools.rs` makes runs that do.
    const NOT_PUBLISHED: [&str; 5] =
        ["failures", "labelled", "missing_points", "samples", "warnings"];

    #[test]
    fn recipes_answer_from_the_published_store() {
        let store = published();
        let mut seen = String::new();
        for recipe in RECIPES {
            let table =
                recipe.answer(&store, &[]).unwrap_or_else(|e| panic!("{}: {e}", recipe.name));
            assert_eq!(
                table.rows.is_empty(),
                NOT_PUBLISHED.contains(&recipe.name),
                "{}",
                recipe.name
            );
            let rows = table.rows.len();
            seen.push_str(&format!("{} ({rows} rows)\n", recipe.name));
            // Sums of floating point numbers may differ in their last digits from one processor to another.
            let mut first = table;
            first.rows.truncate(2);
            first.rows.iter_mut().flatten().for_each(|cell| {
                if let Cell::Real(x) = cell {
                    *cell = crate::cli::table::rounded(*x).into();
                }
            });
            seen.push_str(&first.render(Format::Csv));
            seen.push('\n');
        }
        insta::assert_snapshot!(seen);
    }

    #[test]
    fn parameters_are_set() {
        let store = published();
        let ask = |name: &str, set: &[&str]| {
            let set: Vec<String> = set.iter().map(ToString::to_string).collect();
            find(name).and_then(|recipe| recipe.answer(&store, &set))
        };
        let rows = ask("best_runs", &["sweep=engines", "limit=2"]).unwrap().rows;
        assert_eq!(rows.len(), 2);
        assert!(rows.iter().all(|row| row[1] == Cell::from("engines")));
        // A text that reads as a number is still a text.
        assert_eq!(ask("best_runs", &["sweep=1e-3"]).unwrap().rows.len(), 0);
        let error = |name: &str, set: &[&str]| ask(name, set).unwrap_err().to_string();
        assert!(error("best_run", &[]).contains("did you mean `best_runs`?"));
        assert_eq!(
            error("best_runs", &["limit=few"]),
            "--set: limit: expected a number, found `few`"
        );
        assert_eq!(
            error("best_runs", &["lim=1"]),
            "--set: recipe best_runs has `sweep`, `limit`, found `lim`"
        );
        assert_eq!(
            error("machines", &["x=1"]),
            "--set: recipe machines has no parameters, found `x`"
        );
        assert_eq!(error("best_runs", &["limit"]), "--set: expected `name=value`, found `limit`");
    }
}
