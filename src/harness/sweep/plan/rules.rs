//! What follows of a point's values: settings that apply only where an axis has a value (`when`), keys computed from others
//! (`derive`), and what has to hold of a point for it to be run (`constraints`).
//!
//! Expressions are minijinja's. They see the point's complete configuration by its key paths, the axes without a dot by their
//! names, and all axes as `axes["train.learning_rate"]`; a name that is not there is an error, and so is an order between values
//! that have none (`compare`). What is derived is read as it is derived, in whatever order the file has it.

use super::axes::{Choice, Condition, conditions};
use super::compare::{self, Mismatch};
use super::derive::{Derive, in_order};
use super::lost::{keys_of, replaces};
use super::{Bisect, Point, known};
use crate::sweep::base::Base;
use anyhow::{Result, anyhow, bail};
use fathom_spec::config::written::{Node, Origin, Written};
use fathom_spec::config::{RunConfig, nearest};
use fathom_spec::template::from_json;
use fathom_spec::units::{Bytes, Tokens};
use minijinja::value::ValueKind;
use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Map, Value};
use std::sync::LazyLock;

/// The rules of a sweep, in the order of its file.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    when: Vec<When>,
    /// Each after what it reads.
    derive: Derive,
    constraints: Vec<Expression>,
}

/// `{if: {rope: yarn4}, set: {train.learning_rate: 1e-4}}`.
#[derive(Debug, Clone)]
struct When {
    conditions: Vec<Condition>,
    set: Vec<(String, Written)>,
}

#[derive(Debug, Clone)]
pub(super) struct Expression {
    text: String,
    /// `derive.train.schedule.warmup_tokens`.
    pub place: String,
    pub origin: Origin,
}

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    compare::add_filter(&mut environment);
    environment
});

impl Rules {
    pub(super) fn read(tree: &Written) -> Result<Rules> {
        let mut rules = Rules::default();
        if let Some(list) = tree.get("when") {
            for rule in list.items("when")? {
                rules.when.push(When::read(rule)?);
            }
        }
        if let Some(derive) = tree.get("derive") {
            for entry in derive.entries("derive")? {
                let place = format!("derive.{}", entry.key);
                rules.derive.push((entry.key.clone(), Expression::read(&entry.value, place)?));
            }
            rules.derive = in_order(rules.derive)?;
        }
        if let Some(written) = tree.get("constraints") {
            let list = match &written.node {
                Node::String(_) => std::slice::from_ref(written),
                _ => written.items("constraints")?,
            };
            let constraints = list.iter().enumerate();
            let place = |at: usize| format!("constraints[{at}]");
            rules.constraints = constraints
                .map(|(at, text)| Expression::read(text, place(at)))
                .collect::<Result<_>>()?;
        }
        Ok(rules)
    }

    /// The keys that the rules set.
    pub(super) fn keys(&self) -> impl Iterator<Item = &String> {
        let conditional = self.when.iter().flat_map(|when| when.set.iter().map(|(key, _)| key));
        conditional.chain(self.derive.iter().map(|(key, _)| key))
    }

    /// What conditional settings depend on.
    pub(super) fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.when.iter().flat_map(|when| &when.conditions)
    }

    /// How many constraints there are.
    pub(super) fn constraints(&self) -> usize {
        self.constraints.len()
    }

    /// How many points each constraint leaves out, in words.
    pub(super) fn told(&self, left_out: &[usize]) -> String {
        let one = |(constraint, count): (&Expression, &usize)| {
            format!("`{}` leaves out {count}", constraint.text)
        };
        let told: Vec<String> = self.constraints.iter().zip(left_out).map(one).collect();
        told.join(", then ")
    }

    /// What the rules set at a point, each with the rule's name; what hangs on a condition only if `conditional`.
    pub(super) fn set_at(&self, choices: &[Choice], conditional: bool) -> Vec<(String, String)> {
        let holds = |when: &&When| {
            conditional && when.conditions.iter().all(|condition| condition.holds(choices))
        };
        let set = self.when.iter().filter(holds).flat_map(|when| &when.set);
        let set = set.flat_map(|(key, value)| keys_of(key, value));
        let set = set.map(|(key, _)| ("when.set".to_string(), key));
        let derived =
            self.derive.iter().map(|(key, expression)| (expression.place.clone(), key.clone()));
        set.chain(derived).collect()
    }

    /// Refuses conditional settings that no point would have.
    pub(super) fn refuse_conditions_in_vain<'c, I: Iterator<Item = &'c Vec<Choice>>>(
        &self,
        points: impl Fn() -> I,
    ) -> Result<()> {
        for When { conditions, .. } in &self.when {
            if !points().any(|choices| conditions.iter().all(|c| c.holds(choices))) {
                bail!(
                    "{}: when.if: expected a condition that holds at some point, found one that never does\n  help: all that it \
                     names has to be there at one point, and not be excluded",
                    conditions[0].origin
                );
            }
        }
        Ok(())
    }

    /// A search goes on by what comes of its values: none can be left out, or be set otherwise.
    pub(super) fn refuse_beside_search(&self, search: Option<&Bisect>) -> Result<()> {
        let Some(Bisect { parameter, .. }) = search else { return Ok(()) };
        let names = |expression: &Expression| expression.names().contains(parameter);
        if let Some(Expression { origin, place, .. }) = self.constraints.iter().find(|e| names(e)) {
            bail!(
                "{origin}: {place}: expected a constraint on other keys than the one that is searched, found `{parameter}`\n  \
                 help: `low` and `high` bound the search"
            );
        }
        let conditional = self.when.iter().flat_map(|when| &when.set);
        let conditional = conditional.map(|(key, value)| (key, &value.origin));
        let derived = self.derive.iter().map(|(key, expression)| (key, &expression.origin));
        if let Some((_, origin)) = conditional.chain(derived).find(|(key, _)| *key == parameter) {
            bail!(
                "{origin}: {parameter}: expected keys that the search does not set itself, found the one that is searched"
            );
        }
        Ok(())
    }

    /// The written configuration of a point: the base, its choices, what is set where they are chosen, what is derived.
    pub(super) fn written(&self, base: &Base, choices: &[Choice]) -> Result<Written> {
        let mut settings: Vec<(&str, &str, Written)> = choices
            .iter()
            .flat_map(|choice| {
                let set = choice.settings.iter();
                set.map(|(key, value)| (choice.axis.as_str(), key.as_str(), value.clone()))
            })
            .collect();
        for when in &self.when {
            if !when.conditions.iter().all(|condition| condition.holds(choices)) {
                continue;
            }
            for (key, value) in &when.set {
                refuse_set_twice(&settings, key, value, "when")?;
                settings.push(("when", key, value.clone()));
            }
        }
        let given = settings.len();
        for (key, expression) in &self.derive {
            let value = Written { node: Node::Null, origin: expression.origin.clone() };
            refuse_set_twice(&settings, key, &value, "derive")?;
            let written = laid(base, &settings)?;
            let value = expression.value(&context(&written, choices))?;
            settings.push(("derive", key, expression.written(&value)));
        }
        // The configuration completes itself: a key that an expression reads may follow from one that was derived after it.
        for _ in 0..=self.derive.len() {
            let written = laid(base, &settings)?;
            if self.derive.is_empty() {
                return Ok(written);
            }
            // Where values do not go together yet, each is derived from all the others.
            let is_whole = RunConfig::from_written(&written).is_ok();
            let whole = context(&written, choices);
            let mut now = Vec::new();
            for (at, (_, expression)) in self.derive.iter().enumerate() {
                let value = if is_whole {
                    expression.value(&whole)
                } else {
                    let mut others = settings.clone();
                    others.remove(given + at);
                    expression.value(&context(&laid(base, &others)?, choices))
                };
                match value {
                    Ok(value) => now.push(expression.written(&value)),
                    // What is wrong with the configuration is said of the configuration.
                    Err(_) if !is_whole => return Ok(written),
                    Err(error) => return Err(error),
                }
            }
            let mut is_settled = true;
            for ((.., before), now) in settings[given..].iter_mut().zip(now) {
                is_settled &= now.to_json() == before.to_json();
                *before = now;
            }
            if is_settled {
                return Ok(written);
            }
        }
        let (_, Expression { place, origin, .. }) = &self.derive[0];
        bail!(
            "{origin}: {place}: expected derived values that agree with the configuration that comes of them, found some that \
             change it each time\n  help: what they read follows from what they set; name keys that do not"
        )
    }

    /// The first constraint that a point does not satisfy, by its place.
    pub(super) fn broken_by(&self, point: &Point, choices: &[Choice]) -> Result<Option<usize>> {
        if self.constraints.is_empty() {
            return Ok(None);
        }
        let context = with_axes(point.config.to_json(), choices);
        for (at, constraint) in self.constraints.iter().enumerate() {
            match constraint.value(&context)? {
                Value::Bool(true) => {}
                Value::Bool(false) => return Ok(Some(at)),
                other => bail!(
                    "{}: {}: expected an expression that is true or false, found `{}`, which is {other}",
                    constraint.origin,
                    constraint.place,
                    constraint.text
                ),
            }
        }
        Ok(None)
    }
}

fn laid(base: &Base, settings: &[(&str, &str, Written)]) -> Result<Written> {
    base.with(settings.iter().map(|(axis, key, value)| (*axis, *key, value)))
}

/// A point's label says what its axes set: nothing else may set it otherwise.
fn refuse_set_twice(
    settings: &[(&str, &str, Written)],
    key: &str,
    value: &Written,
    rule: &str,
) -> Result<()> {
    for (key, _) in keys_of(key, value) {
        let is_replaced = |(_, set, value): &&(&str, &str, Written)| {
            keys_of(set, value).iter().any(|(set, _)| replaces(&key, set))
        };
        if let Some((by, ..)) = settings.iter().find(is_replaced) {
            bail!(
                "{}: {rule}.{key}: expected a key that nothing else sets, found one that `{by}` sets at the same point",
                value.origin
            );
        }
    }
    Ok(())
}

/// What expressions see while some keys are still to be derived: the complete configuration, where there is one by now.
fn context(written: &Written, choices: &[Choice]) -> Value {
    let config = match RunConfig::from_written(written) {
        Ok(config) => config.to_json(),
        Err(_) => without_units(written.to_json()),
    };
    with_axes(config, choices)
}

fn with_axes(mut config: Value, choices: &[Choice]) -> Value {
    let axes: Map<String, Value> =
        choices.iter().map(|choice| (choice.axis.clone(), choice.shown.clone())).collect();
    if let Value::Object(config) = &mut config {
        for (name, value) in axes.iter().filter(|(name, _)| !name.contains('.')) {
            config.entry(name.clone()).or_insert_with(|| value.clone());
        }
        config.insert("axes".into(), axes.into());
    }
    config
}

/// `4M` and `24GiB` as the numbers that they are.
fn without_units(value: Value) -> Value {
    match value {
        Value::String(text) if text.starts_with(|c: char| c.is_ascii_digit()) => {
            let tokens = text.parse::<Tokens>().map(|tokens| tokens.0);
            let number = tokens.or_else(|_| text.parse::<Bytes>().map(|bytes| bytes.0));
            number.map_or(Value::String(text), Value::from)
        }
        Value::Object(map) => map.into_iter().map(|(key, v)| (key, without_units(v))).collect(),
        other => other,
    }
}

impl When {
    fn read(rule: &Written) -> Result<When> {
        for entry in rule.entries("when")? {
            known(entry, &["if", "set"], "when")?;
        }
        let part = |key: &str| {
            let missing = || anyhow!("{}: when: expected the key `{key}`, found none", rule.origin);
            rule.get(key).ok_or_else(missing)
        };
        let set = part("set")?.entries("when.set")?;
        if set.is_empty() {
            bail!("{}: when.set: expected at least one key, found none", rule.origin);
        }
        let set = set.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
        Ok(When { conditions: conditions(part("if")?, "when.if")?, set })
    }
}

impl Expression {
    fn read(written: &Written, place: String) -> Result<Expression> {
        let text = match &written.node {
            Node::String(text) => text.clone(),
            Node::Int(_) | Node::Float(_) | Node::Bool(_) => written.to_json().to_string(),
            _ => bail!(
                "{}: {place}: expected an expression such as `train.total_tokens / 20`, found {}",
                written.origin,
                written.describe()
            ),
        };
        let expression = Expression { text, place, origin: written.origin.clone() };
        expression.compiled(expression.text.clone())?;
        Ok(expression)
    }

    fn compiled(&self, text: String) -> Result<minijinja::Expression<'static, 'static>> {
        ENVIRONMENT.compile_expression_owned(text).map_err(|error| self.wrong(&error))
    }

    fn wrong(&self, error: &minijinja::Error) -> anyhow::Error {
        let source = std::error::Error::source(error);
        if let Some(mismatch) = source.and_then(|source| source.downcast_ref::<Mismatch>()) {
            return anyhow!("{}: {}: {mismatch}", self.origin, self.place);
        }
        let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
        anyhow!(
            "{}: {}: expected an expression, found `{}`: {what}",
            self.origin,
            self.place,
            self.text
        )
    }

    /// A value of it, as if it stood in its place.
    fn written(&self, value: &Value) -> Written {
        Written { origin: self.origin.clone(), ..Written::from_json("", value) }
    }

    /// The key paths that it reads.
    pub(super) fn names(&self) -> Vec<String> {
        let compiled = self.compiled(self.text.clone());
        let names = compiled.map(|compiled| compiled.undeclared_variables(true));
        let mut names: Vec<String> = names.unwrap_or_default().into_iter().collect();
        names.sort();
        names
    }

    fn value(&self, context: &Value) -> Result<Value> {
        let value = self.compiled(compare::checked(&self.text))?.eval(from_json(context));
        let value = value.map_err(|error| match self.unknown_name(context) {
            Some(unknown) => unknown,
            None => self.wrong(&error),
        })?;
        if value.is_undefined() {
            return Err(self.unknown_name(context).unwrap_or_else(|| {
                anyhow!(
                    "{}: {}: expected a value, found none by `{}`",
                    self.origin,
                    self.place,
                    self.text
                )
            }));
        }
        plain_value(&value).ok_or_else(|| {
            anyhow!(
                "{}: {}: expected a number, a word, true or false, or a list of these, found {value} by `{}`",
                self.origin,
                self.place,
                self.text
            )
        })
    }

    /// The error for the first name that is not there.
    fn unknown_name(&self, context: &Value) -> Option<anyhow::Error> {
        let pointer = |name: &str| format!("/{}", name.replace('.', "/"));
        let unknown =
            self.names().into_iter().find(|name| context.pointer(&pointer(name)).is_none());
        let unknown = unknown?;
        let mut paths = Vec::new();
        key_paths("", context, &mut paths);
        let near = nearest(&unknown, paths.iter().map(String::as_str));
        let near = near.map(|near| format!("\n  help: did you mean `{near}`?")).unwrap_or_default();
        Some(anyhow!(
            "{}: {}: expected names of the point's configuration, found `{unknown}`{near}",
            self.origin,
            self.place
        ))
    }
}

/// A value as JSON. A division gives a fraction even where nothing is left over; a key of whole numbers takes none.
fn plain_value(value: &minijinja::Value) -> Option<Value> {
    match value.kind() {
        ValueKind::None => Some(Value::Null),
        ValueKind::Bool => Some(value.is_true().into()),
        ValueKind::String => value.as_str().map(Value::from),
        ValueKind::Number if value.is_integer() => {
            i64::try_from(value.clone()).ok().map(Value::from)
        }
        ValueKind::Number => match f64::try_from(value.clone()).ok()? {
            x if x.fract() == 0.0 && x.abs() < 9e15 => Some((x as i64).into()),
            x => serde_json::Number::from_f64(x).map(Value::Number),
        },
        ValueKind::Seq => value.try_iter().ok()?.map(|item| plain_value(&item)).collect(),
        _ => None,
    }
}

fn key_paths(prefix: &str, value: &Value, paths: &mut Vec<String>) {
    let Value::Object(map) = value else { return };
    for (key, value) in map {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        key_paths(&path, value, paths);
        paths.push(path);
    }
}
