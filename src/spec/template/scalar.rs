//! What a plain word means in YAML 1.1: `yes` is a boolean, `017` is octal, `12:30` is sexagesimal, and `1e-5` is a string.

use regex::Regex;
use std::sync::LazyLock;

/// The value of a plain scalar.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// A day or a moment, which a graph can't hold.
    Timestamp,
    String,
    /// An integer that does not fit.
    TooLarge,
}

static FLOAT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    )
    .expect("a constant")
});
static INT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"^(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+|[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)$",
    )
    .expect("a constant")
});
static TIMESTAMP: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"^(?:[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}-[0-9][0-9]?-[0-9][0-9]?(?:[Tt]|[ \t]+)[0-9][0-9]?:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?(?:[ \t]*(?:Z|[-+][0-9][0-9]?(?::[0-9]{2})?))?)$",
    )
    .expect("a constant")
});

/// Resolves a plain scalar.
pub(super) fn resolve(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Scalar::Bool(true);
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Scalar::Bool(false);
        }
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.')) {
        return Scalar::String;
    }
    if FLOAT.is_match(text) {
        return float(text).map_or(Scalar::String, Scalar::Float);
    }
    if INT.is_match(text) {
        return int(text).map_or(Scalar::TooLarge, Scalar::Int);
    }
    if TIMESTAMP.is_match(text) { Scalar::Timestamp } else { Scalar::String }
}

/// Whether a plain scalar is a string, and not the merge key either.
pub(super) fn resolves_to_string(text: &str) -> bool {
    text != "<<" && text != "=" && resolve(text) == Scalar::String
}

/// Reads a float as the tag `!!float` does, which also takes what looks like a string: `1e-5`.
pub(super) fn float(text: &str) -> Option<f64> {
    let text = text.replace('_', "").to_lowercase();
    let (sign, digits) = signed(&text);
    let value = match digits {
        ".inf" | "inf" | "infinity" => f64::INFINITY,
        ".nan" | "nan" => f64::NAN,
        _ if digits.contains(':') => {
            digits.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + decimal(part)?))?
        }
        _ => decimal(digits)?,
    };
    Some(sign as f64 * value)
}

/// A decimal number with an optional fraction and exponent; none of the words that Rust knows.
fn decimal(text: &str) -> Option<f64> {
    let is_number = text.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    is_number.then(|| text.parse().ok()).flatten()
}

/// Reads an integer as the tag `!!int` does.
pub(super) fn int(text: &str) -> Option<i64> {
    let text = text.replace('_', "");
    let (sign, digits) = signed(&text);
    let radix = |prefix: &str, radix: u32| {
        digits.strip_prefix(prefix).map(|digits| i128::from_str_radix(digits, radix).ok())
    };
    let value = if digits == "0" {
        Some(0)
    } else if let Some(value) = radix("0b", 2).or_else(|| radix("0x", 16)) {
        value
    } else if digits.starts_with('0') {
        i128::from_str_radix(digits, 8).ok()
    } else if digits.contains(':') {
        digits
            .split(':')
            .try_fold(0i128, |sum, part| sum.checked_mul(60)?.checked_add(part.parse().ok()?))
    } else {
        digits.parse().ok()
    };
    i64::try_from(sign * value?).ok()
}

fn signed(text: &str) -> (i128, &str) {
    match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Scalar, resolve};

    #[test]
    fn a_plain_word_means_what_yaml_1_1_says() {
        let cases = [
            ("1e-5", Scalar::String),
            ("5e-05", Scalar::String),
            ("1.0e-5", Scalar::Float(1e-5)),
            ("1.0e5", Scalar::String),
            ("1.", Scalar::Float(1.0)),
            (".5", Scalar::Float(0.5)),
            ("-.5", Scalar::String),
            ("-.inf", Scalar::Float(f64::NEG_INFINITY)),
            ("0o17", Scalar::String),
            ("017", Scalar::Int(15)),
            ("08", Scalar::String),
            ("-0x1F", Scalar::Int(-31)),
            ("0b101", Scalar::Int(5)),
            ("1_000", Scalar::Int(1000)),
            ("12:30", Scalar::Int(750)),
            ("12:30.5", Scalar::Float(750.5)),
            ("yes", Scalar::Bool(true)),
            ("OFF", Scalar::Bool(false)),
            ("y", Scalar::String),
            ("2026-01-01", Scalar::Timestamp),
            ("2026-1-1 10:00:00", Scalar::Timestamp),
            ("99999999999999999999", Scalar::TooLarge),
            ("-", Scalar::String),
        ];
        for (text, expected) in cases {
            assert_eq!(resolve(text), expected, "{text}");
        }
    }
}
