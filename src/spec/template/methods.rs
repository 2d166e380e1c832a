//! Methods of Python's values that templates call, above all `str.format`.

use super::python;
use minijinja::formatting::{self, FormatStyle};
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;
use regex::Regex;
use std::sync::LazyLock;

/// Calls a method that the engine does not know.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let found = match (value.as_str(), value.kind()) {
        (Some(text), _) => of_string(text, name, args)?,
        (None, ValueKind::Seq) if name == "index" => Some(index_of(value, args)?),
        _ => None,
    };
    match found {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn of_string(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let width = || from_args::<(usize, Option<String>)>(args);
    Ok(Some(match name {
        "format" => Value::from(format(text, args)?),
        "join" => {
            let (items,): (Value,) = from_args(args)?;
            let items: Vec<String> = items.try_iter()?.map(|item| python::text(&item)).collect();
            Value::from(items.join(text))
        }
        "center" => width().map(|(width, fill)| pad(text, width, fill, Side::Both))?,
        "ljust" => width().map(|(width, fill)| pad(text, width, fill, Side::Right))?,
        "rjust" => width().map(|(width, fill)| pad(text, width, fill, Side::Left))?,
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            let zeros = width.saturating_sub(text.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(zeros)))
        }
        "swapcase" => {
            let () = from_args(args)?;
            let swapped = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().to_string(),
                false => c.to_uppercase().to_string(),
            };
            Value::from(text.chars().map(swapped).collect::<String>())
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "index" => {
            let (what,): (&str,) = from_args(args)?;
            let at = text.find(what).ok_or_else(|| missing(what))?;
            Value::from(text[..at].chars().count())
        }
        "rsplit" => rsplit(text, args)?,
        "partition" => {
            let (by,): (&str,) = from_args(args)?;
            match text.split_once(by) {
                Some((before, after)) => tuple([before, by, after]),
                None => tuple([text, "", ""]),
            }
        }
        "rpartition" => {
            let (by,): (&str,) = from_args(args)?;
            match text.rsplit_once(by) {
                Some((before, after)) => tuple([before, by, after]),
                None => tuple(["", "", text]),
            }
        }
        _ => return Ok(None),
    }))
}

fn tuple(parts: [&str; 3]) -> Value {
    Value::from(Tuple::from(parts.map(Value::from)))
}

fn missing(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("expected to find `{what}`, found none"))
}

fn index_of(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (what,): (Value,) = from_args(args)?;
    let at = list.try_iter()?.position(|item| item == what);
    at.map(Value::from).ok_or_else(|| missing(&python::repr(&what)))
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (by, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX - 1);
    let mut parts: Vec<&str> = match by {
        Some(by) => text.rsplitn(most + 1, by).collect(),
        None => {
            let mut rest = text.trim_end();
            let mut parts = Vec::new();
            while parts.len() < most && !rest.is_empty() {
                let at = rest
                    .rfind(char::is_whitespace)
                    .map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
                parts.push(&rest[at..]);
                rest = rest[..at].trim_end();
            }
            parts.extend((!rest.is_empty()).then_some(rest));
            parts
        }
    };
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
    Both,
}

/// Fills a text up to a width. What can't be halved goes as Python puts it: left for even texts.
pub(super) fn pad(text: &str, width: usize, fill: Option<String>, side: Side) -> Value {
    let missing = width.saturating_sub(text.chars().count());
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        Side::Both => missing / 2 + (missing & width & 1),
    };
    let fill = fill.unwrap_or_else(|| " ".into());
    Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left)))
}

/// `str.format`.
fn format(text: &str, args: &[Value]) -> Result<String, Error> {
    let (positional, named): (Rest<Value>, Kwargs) = from_args(args)?;
    let mut fields = Fields { positional: positional.to_vec(), named, next: 0 };
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..at + 1];
        if rest[at + 1..].starts_with(brace) {
            out.push_str(brace);
            rest = &rest[at + 2..];
            continue;
        }
        let Some(end) = rest[at..].find('}').filter(|_| brace == "{") else {
            let message = format!("expected a format with closed braces, found `{text}`");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        };
        out.push_str(&fields.field(&rest[at + 1..at + end])?);
        rest = &rest[at + end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

struct Fields {
    positional: Vec<Value>,
    named: Kwargs,
    next: usize,
}

impl Fields {
    /// A replacement field: `name!conversion:spec`.
    fn field(&mut self, field: &str) -> Result<String, Error> {
        let (head, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = head.split_once('!').unwrap_or((head, ""));
        let value = self.value(name)?;
        let value = match conversion {
            "" => value,
            "r" | "a" => Value::from(python::repr(&value)),
            _ => Value::from(python::text(&value)),
        };
        written(&value, spec)
    }

    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (head, path) = name.split_at(end);
        let head = match head {
            "" => {
                self.next += 1;
                (self.next - 1).to_string()
            }
            head => head.to_string(),
        };
        let mut value = match head.parse::<usize>() {
            Ok(index) => self.positional.get(index).cloned(),
            Err(_) => self.named.get::<Option<Value>>(&head)?,
        }
        .ok_or_else(|| {
            Error::new(
                ErrorKind::MissingArgument,
                format!("expected a value for `{{{name}}}`, found none"),
            )
        })?;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let key = step.trim_end_matches(']');
            value = match key.parse::<usize>() {
                Ok(index) => value.get_item(&Value::from(index))?,
                Err(_) => value.get_item(&Value::from(key))?,
            };
        }
        Ok(value)
    }
}

/// A value by a format specification.
fn written(value: &Value, spec: &str) -> Result<String, Error> {
    static WIDTH_ONLY: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^(?:.?[<>^])?\d+$").expect("a constant"));
    let by_engine = |value: Value, spec: &str| {
        formatting::format(FormatStyle::StrFormat, &format!("{{0:{spec}}}"), &[value])
    };
    if spec.is_empty() {
        return Ok(python::text(value));
    }
    if let Some(precision) = spec.strip_suffix('%') {
        let percent = f64::try_from(value.clone())? * 100.0;
        return Ok(format!("{}%", by_engine(Value::from(percent), &format!("{precision}f"))?));
    }
    if python::as_float(value).is_some() && WIDTH_ONLY.is_match(spec) {
        let aligned =
            if spec.contains(['<', '>', '^']) { spec.to_string() } else { format!(">{spec}") };
        return by_engine(Value::from(python::text(value)), &aligned);
    }
    by_engine(value.clone(), spec)
}
