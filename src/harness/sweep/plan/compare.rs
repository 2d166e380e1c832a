//! `<`, `<=`, `>` and `>=` in expressions, between numbers or between words.
//!
//! Minijinja orders any two values: nothing before numbers, numbers before words. `train.max_steps <= 5` would hold where there
//! is no `max_steps`, and `train.micro_batch_size <= '2'` always. So each of these comparisons is made a call of the filter
//! [`FILTER`], which looks at what it is given, when it is given it: `train.max_steps is none or train.max_steps <= 5` stays right.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Value};
use std::fmt;
use std::ops::Range;

const FILTER: &str = "compared";

/// The operators of comparisons, the longer before those that they begin with, and whether they ask which of two is less.
const OPERATORS: [(&str, bool); 6] =
    [("<=", true), (">=", true), ("==", false), ("!=", false), ("<", true), (">", true)];

/// What binds looser than a comparison.
const SEPARATORS: [&str; 5] = ["and", "or", "not", "if", "else"];

/// What can't be compared, in words.
#[derive(Debug)]
pub(super) struct Mismatch(String);

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

/// Makes the filter known.
pub(super) fn add_filter(environment: &mut Environment<'_>) {
    environment.add_filter(FILTER, compared);
}

fn compared(a: Value, by: &str, b: Value, a_text: &str, b_text: &str) -> Result<bool, Error> {
    if a.is_undefined() || b.is_undefined() {
        return Err(ErrorKind::UndefinedError.into());
    }
    let kind = |value: &Value| match value.kind() {
        // As in Python, true is 1.
        ValueKind::Bool => ValueKind::Number,
        kind => kind,
    };
    let is_ordered = [ValueKind::Number, ValueKind::String, ValueKind::Seq].contains(&kind(&a));
    if !is_ordered || kind(&a) != kind(&b) {
        let help = match (a.is_none(), b.is_none()) {
            (true, _) => format!("`{a_text} is none or …` says what holds where there is none"),
            (_, true) => format!("`{b_text} is none or …` says what holds where there is none"),
            _ => "what stands in quotes is a word".to_string(),
        };
        let (a, b) = (shown(&a, a_text), shown(&b, b_text));
        let said = format!(
            "expected two numbers or two words beside `{by}`, found {a} and {b}\n  help: {help}"
        );
        return Err(Error::new(ErrorKind::InvalidOperation, "").with_source(Mismatch(said)));
    }
    Ok(match by {
        "<" => a < b,
        "<=" => a <= b,
        ">" => a > b,
        _ => a >= b,
    })
}

/// An operand with its value, where it does not say that itself.
fn shown(value: &Value, text: &str) -> String {
    let value = if value.is_none() { "null".to_string() } else { value.to_string() };
    match text.trim_matches(['\'', '"']) == value {
        true => format!("`{text}`"),
        false => format!("`{text}` ({value})"),
    }
}

/// The expression with its comparisons as calls of the filter.
pub(super) fn checked(expression: &str) -> String {
    let (mut made, mut part) = (String::new(), Part::default());
    let mut at = 0;
    while at < expression.len() {
        let token = token(expression, at);
        let text = &expression[token.clone()];
        at = token.end;
        // A name behind a dot is no word of the language.
        let is_word = !part.operand.ends_with('.');
        let operator = OPERATORS.iter().find(|(operator, _)| *operator == text);
        if text.starts_with(['(', '[', '{']) && text.len() > 1 {
            let inner = checked(&text[1..text.len() - 1]);
            part.push(text, &format!("{}{inner}{}", &text[..1], &text[text.len() - 1..]));
        } else if let Some((operator, orders)) = operator {
            part.compare(operator, *orders);
        } else if text == "in" && is_word {
            part.compare(text, false);
        } else if [",", ":", "="].contains(&text) || SEPARATORS.contains(&text) && is_word {
            made += &std::mem::take(&mut part).written();
            made += text;
        } else {
            part.push(text, text);
        }
    }
    made + &part.written()
}

/// What stands between two separators: operands, with comparisons between them.
#[derive(Default)]
struct Part {
    /// All of it so far.
    whole: String,
    /// The operand that is being read: as it is written, and with the comparisons in its brackets checked.
    operand: String,
    made: String,
    /// Operands, each with the operator behind it and whether that one orders.
    before: Vec<(String, String, &'static str, bool)>,
}

impl Part {
    fn push(&mut self, text: &str, made: &str) {
        self.operand += text;
        self.made += made;
        self.whole += made;
    }

    fn compare(&mut self, operator: &str, orders: bool) {
        self.whole += operator;
        let operator = OPERATORS.iter().find(|(known, _)| *known == operator);
        let operator = operator.map_or("in", |(operator, _)| *operator);
        let (text, made) = (std::mem::take(&mut self.operand), std::mem::take(&mut self.made));
        self.before.push((text, made, operator, orders));
    }

    /// `a < b < c` is `a < b and b < c`.
    fn written(self) -> String {
        let Part { whole, operand, made, before } = self;
        let is_missing = |text: &String| text.trim().is_empty();
        if !before.iter().any(|(.., orders)| *orders)
            || is_missing(&operand)
            || before.iter().any(|(text, ..)| is_missing(text))
        {
            return whole;
        }
        let rights = before.iter().skip(1).map(|(text, made, ..)| (text, made));
        let rights = rights.chain([(&operand, &made)]);
        let pairs = before.iter().zip(rights).map(|((text, made, operator, orders), right)| {
            let (right_text, right) = (right.0.trim(), right.1.trim());
            let left = made.trim();
            match orders {
                true => {
                    let quoted = |text: &str| serde_json::Value::from(text).to_string();
                    let (text, right_text) = (quoted(text.trim()), quoted(right_text));
                    format!("(({left})|{FILTER}(\"{operator}\", ({right}), {text}, {right_text}))")
                }
                false => format!("(({left}) {operator} ({right}))"),
            }
        });
        format!(" ({}) ", pairs.collect::<Vec<_>>().join(" and "))
    }
}

/// The token that begins at `at`: a word or number, a string, brackets with all that is in them, an operator, or one character.
fn token(text: &str, at: usize) -> Range<usize> {
    let rest = &text[at..];
    let first = rest.chars().next().expect("there is something left");
    let length = match first {
        '\'' | '"' => string(rest),
        '(' | '[' | '{' => brackets(rest),
        c if is_of_name(c) => rest.find(|c| !is_of_name(c)).unwrap_or(rest.len()),
        _ => {
            let operator = OPERATORS.iter().find(|(operator, _)| rest.starts_with(operator));
            operator.map_or(first.len_utf8(), |(operator, _)| operator.len())
        }
    };
    at..at + length
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn string(text: &str) -> usize {
    let quote = text.chars().next();
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if Some(c) == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

fn brackets(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while let Some(c) = text[at..].chars().next() {
        match c {
            '\'' | '"' => {
                at += string(&text[at..]);
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        at += c.len_utf8();
        if depth == 0 {
            return at;
        }
    }
    // Never closed: no expression, and nothing to look into.
    1
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(expression: &str) -> Result<String, String> {
        let mut environment = Environment::new();
        add_filter(&mut environment);
        let text = checked(expression);
        let compiled = environment.compile_expression(&text).map_err(|e| format!("{text}: {e}"))?;
        let context = json!({
            "a": { "n": 3, "none": null, "word": "x", "in": 2, "list": [1, 2] }, "yes": true,
        });
        let value = compiled.eval(fathom_spec::template::from_json(&context));
        value.map(|value| value.to_string().to_lowercase()).map_err(|error| {
            std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string)
        })
    }

    #[test]
    fn comparisons_of_numbers_are_what_they_were() {
        for (expression, expected) in [
            ("a.n < 4", "true"),
            ("a.n<=2+1 and not a.n>3", "true"),
            ("-a.n < 0 and a.n * (2 - 1) >= 3", "true"),
            ("1 < a.n < 3", "false"),
            ("1 < a.n <= 3 == 3", "true"),
            ("a.none is none or a.none < 5", "true"),
            ("a.none is not none and a.none < 5", "false"),
            ("'small' if a.n < 5 else 'large'", "small"),
            ("[a.n < 4, (a.n < 2) or a.in < 3, a.list|length < 3]", "[true, true, true]"),
            ("{'k': a.n < 4}['k']", "true"),
            ("a.n in a.list or a.n not in [3]", "false"),
            ("'a < b' ~ \"c > 'd'\" ~ 'it\\'s < 1'", "a < bc > 'd'it's < 1"),
            ("a.word < 'y' and 'w' < a.word", "true"),
            ("(a.n == 3) == (a.n != 4)", "true"),
            ("a.list[1 if a.n > 2 else 0]", "2"),
            ("yes <= 1", "true"),
            ("a.none == none and a.n != 'x'", "true"),
        ] {
            assert_eq!(value(expression), Ok(expected.to_string()), "{expression}");
        }
    }

    #[test]
    fn what_has_no_order_is_named() {
        for (expression, found) in [
            ("a.none <= 5", "beside `<=`, found `a.none` (null) and `5`"),
            ("a.n <= '2'", "beside `<=`, found `a.n` (3) and `'2'`"),
            (
                "yes and 1 < (a.n + 1) < a.word",
                "beside `<`, found `(a.n + 1)` (4) and `a.word` (x)",
            ),
            ("[2 > a.list]", "beside `>`, found `2` and `a.list` ([1, 2])"),
        ] {
            let error = value(expression).unwrap_err();
            assert!(error.contains(found), "{expression}\nexpected: {found}\nfound:    {error}");
        }
    }
}
