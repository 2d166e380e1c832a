//! Values as Python prints them: what users of the language expect of `True`, `5e-05` and `['a', 1]`.

use minijinja::value::{Value, ValueKind};

/// `str(value)`.
pub(super) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_string(),
        None => repr(value),
    }
}

/// `repr(value)`.
pub(super) fn repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => "Undefined".into(),
        ValueKind::None => "None".into(),
        ValueKind::Number => number(value),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => sequence(value),
        ValueKind::Map => mapping(value),
        _ => value.to_string(),
    }
}

/// `repr` of a float: the shortest digits that read back as the same number, with an exponent below 1e-4 and from 1e16.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    let shortest = format!("{x:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// The float that a value is; nothing for integers.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    is_float.then(|| f64::try_from(value.clone()).ok()).flatten()
}

fn number(value: &Value) -> String {
    as_float(value).map_or_else(|| value.to_string(), float)
}

/// `repr` of a string: in single quotes, unless it holds them and no double ones.
pub(super) fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if !is_printable(c) => out.push_str(&match c as u32 {
                code @ ..=0xff => format!("\\x{code:02x}"),
                code => format!("\\u{code:04x}"),
            }),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// Whether Python shows a character as it is, of those that are likely to be met.
fn is_printable(c: char) -> bool {
    let hidden =
        matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !(hidden || c.is_control() || (c.is_whitespace() && c != ' '))
}

fn sequence(value: &Value) -> String {
    let items: Vec<String> =
        value.try_iter().map(|items| items.map(|item| repr(&item)).collect()).unwrap_or_default();
    match (value.is_tuple(), items.len()) {
        (true, 1) => format!("({},)", items[0]),
        (true, _) => format!("({})", items.join(", ")),
        (false, _) => format!("[{}]", items.join(", ")),
    }
}

fn mapping(value: &Value) -> String {
    let keys: Vec<Value> = value.try_iter().map(Iterator::collect).unwrap_or_default();
    let entries: Vec<String> = keys
        .iter()
        .map(|key| {
            let item = value.get_item(key).unwrap_or_default();
            format!("{}: {}", repr(key), repr(&item))
        })
        .collect();
    format!("{{{}}}", entries.join(", "))
}
