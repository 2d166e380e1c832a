//! Filters and tests of Jinja2 that the engine lacks or answers differently, and `toyaml`.

use super::methods::{self, Side};
use super::{concat, functions, marks, python, to_yaml};
use minijinja::filters as engine;
use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::filters as contrib;

/// The filters that a misspelt name is compared with.
pub(super) const NAMES: [&str; 57] = [
    "abs",
    "attr",
    "batch",
    "bool",
    "capitalize",
    "center",
    "chain",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "split",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "toyaml",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "wordwrap",
    "zip",
];

/// Adds them all.
pub(super) fn add(env: &mut Environment<'static>) {
    env.add_filter("toyaml", toyaml);
    env.add_filter(concat::TEXT, |value: Value| match value.is_undefined() {
        // The join itself complains.
        true => value,
        false => Value::from(python::text(&value)),
    });
    env.add_filter(marks::AT, |value: Value, mark: &str| marks::marked(&value, mark));
    env.add_filter("string", |value: Value| defined_text(&value));
    for (name, filter) in [
        ("trim", Value::from_function(engine::trim)),
        ("upper", Value::from_function(engine::upper)),
        ("lower", Value::from_function(engine::lower)),
        ("title", Value::from_function(engine::title)),
        ("capitalize", Value::from_function(engine::capitalize)),
        ("replace", Value::from_function(engine::replace)),
        ("indent", Value::from_function(engine::indent)),
    ] {
        env.add_filter(name, of_text(filter));
    }
    env.add_filter("default", default);
    env.add_filter("d", default);
    env.add_filter("join", join);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("pprint", |value: Value| python::repr(&value));
    env.add_filter("tojson", |value: Value| {
        functions::defined(&value)?;
        json(&value).ok_or_else(|| not_plain(&value))
    });
    env.add_filter("center", |value: Value, width: Option<usize>| {
        Ok::<_, Error>(methods::pad(&defined_text(&value)?, width.unwrap_or(80), None, Side::Both))
    });
    env.add_filter("wordcount", |value: Value| {
        let text = defined_text(&value)?;
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        Ok::<_, Error>(words.filter(|word| !word.is_empty()).count())
    });
    env.add_filter("wordwrap", wordwrap);
    env.add_filter("truncate", truncate);
    env.add_filter("urlencode", urlencode);
    env.add_filter("filesizeformat", contrib::filesizeformat);
    env.add_filter("striptags", contrib::striptags);
    env.add_filter("forceescape", engine::escape);
    env.add_test("callable", |value: Value| {
        value.kind() == ValueKind::Plain && value.as_object().is_some()
    });
}

/// A filter of strings that sees floats as Python prints them.
fn of_text(
    filter: Value,
) -> impl Fn(&mut State, Rest<ValueOrKwargs>) -> Result<Value, Error> + Send + Sync + 'static {
    move |state, args| {
        let mut args = args.into_values();
        if let Some(float) = args.first().and_then(python::as_float) {
            args[0] = Value::from(python::float(float));
        }
        filter.call(state, &args)
    }
}

fn toyaml(value: Value, default: Rest<Value>) -> Result<String, Error> {
    let value = match default.first() {
        Some(default) if value.is_undefined() => default.clone(),
        _ => value,
    };
    functions::defined(&value)?;
    to_yaml::to_yaml(&value).ok_or_else(|| not_plain(&value))
}

fn not_plain(value: &Value) -> Error {
    let found = python::repr(value);
    Error::new(ErrorKind::InvalidOperation, format!("expected a plain value, found `{found}`"))
}

fn defined_text(value: &Value) -> Result<String, Error> {
    functions::defined(value)?;
    Ok(python::text(value))
}

fn join(
    state: &mut State,
    items: Value,
    by: Option<Value>,
    attribute: Option<&str>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    functions::defined(&items)?;
    let by = match by {
        Some(by) => Some(by),
        None => kwargs.get::<Option<Value>>("d")?,
    };
    let named = kwargs.get::<Option<&str>>("attribute")?;
    kwargs.assert_all_used()?;
    let items = match attribute.or(named) {
        Some(attribute) => {
            let attribute = Kwargs::from_iter([("attribute", Value::from(attribute))]);
            state.apply_filter("map", &[items, Value::from(attribute)])?
        }
        None => items,
    };
    let items: Result<Vec<String>, Error> =
        items.try_iter()?.map(|item| defined_text(&item)).collect();
    Ok(items?.join(&by.map_or_else(String::new, |by| python::text(&by))))
}

/// As Jinja2 does it, the default answers for whatever is no number.
fn int(
    state: &State,
    value: Value,
    default: Option<Value>,
    base: Option<u32>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    functions::defined(&value)?;
    let default = default.or(kwargs.get::<Option<Value>>("default")?).unwrap_or(Value::from(0));
    let base = base.or(kwargs.get::<Option<u32>>("base")?);
    kwargs.assert_all_used()?;
    Ok(engine::int(state, &value, None, base, kwargs).unwrap_or(default))
}

fn float(
    state: &State,
    value: Value,
    default: Option<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    functions::defined(&value)?;
    let default = default.or(kwargs.get::<Option<Value>>("default")?).unwrap_or(Value::from(0.0));
    kwargs.assert_all_used()?;
    Ok(engine::float(state, &value, None, kwargs).unwrap_or(default))
}

/// JSON with the spaces that Python puts.
fn json(value: &Value) -> Option<String> {
    let key = |key: &Value| Some(serde_json::Value::from(python::text(key)).to_string());
    to_yaml::in_brackets(value, &single_json, &json, &key)
}

fn single_json(value: &Value) -> Option<String> {
    Some(match value.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Bool => value.is_true().to_string(),
        ValueKind::Number => python::text(value),
        ValueKind::String => serde_json::Value::from(value.as_str()?).to_string(),
        _ => return None,
    })
}

/// Breaks lines at spaces, and words that are longer than a line.
fn wordwrap(value: Value, width: Option<usize>) -> Result<String, Error> {
    let width = width.unwrap_or(79).max(1);
    let text = defined_text(&value)?;
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let mut current = String::new();
        for word in line.split_whitespace() {
            let mut word: Vec<char> = word.chars().collect();
            let fits = current.chars().count() + 1 + word.len() <= width;
            if !current.is_empty() && !fits {
                lines.push(std::mem::take(&mut current));
            }
            while word.len() > width {
                lines.push(word.drain(..width).collect());
            }
            if !current.is_empty() {
                current.push(' ');
            }
            current.extend(word);
        }
        lines.push(current);
    }
    Ok(lines.join("\n"))
}

fn default(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let args = args.into_values();
    let (positional, kwargs): (Rest<Value>, Kwargs) = from_args(&args)?;
    if positional.len() > 2 {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let also_false = positional.get(1).map(Value::is_true);
    let named = kwargs.get::<Option<Value>>("default_value")?;
    let also_false = also_false.or(kwargs.get::<Option<bool>>("boolean")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    if value.is_undefined() || (also_false && !value.is_true()) {
        let other = positional.first().cloned().or(named);
        return Ok(other.unwrap_or_else(|| Value::from("")));
    }
    Ok(value)
}

fn truncate(value: Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    type Given = (Option<usize>, Option<bool>, Option<String>, Option<usize>, Kwargs);
    let args = args.into_values();
    let (length, kill_words, end, leeway, kwargs): Given = from_args(&args)?;
    let text = defined_text(&value)?;
    let length = length.or(kwargs.get::<Option<usize>>("length")?).unwrap_or(255);
    let kill_words = kill_words.or(kwargs.get::<Option<bool>>("killwords")?).unwrap_or(false);
    let end = end.or(kwargs.get::<Option<String>>("end")?).unwrap_or_else(|| "...".into());
    let leeway = leeway.or(kwargs.get::<Option<usize>>("leeway")?).unwrap_or(5);
    kwargs.assert_all_used()?;
    if text.chars().count() <= length + leeway {
        return Ok(text);
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let kept = match kept.rfind(' ') {
        Some(space) if !kill_words => &kept[..space],
        _ => &kept,
    };
    Ok(format!("{kept}{end}"))
}

fn urlencode(value: Value) -> Result<String, Error> {
    let encoded = |text: &str, safe: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => (b as char).to_string(),
                b if safe.as_bytes().contains(&b) => (b as char).to_string(),
                b => format!("%{b:02X}"),
            })
            .collect()
    };
    if value.kind() != ValueKind::Map {
        return Ok(encoded(&defined_text(&value)?, "/"));
    }
    let plus = |value: &Value| encoded(&python::text(value), "").replace("%20", "+");
    let pairs: Result<Vec<String>, Error> = value
        .try_iter()?
        .map(|key| Ok(format!("{}={}", plus(&key), plus(&value.get_item(&key)?))))
        .collect();
    Ok(pairs?.join("&"))
}
