//! Quantities and how people write them: one parse and one print for each.
//!
//! `24GiB`, `4M` tokens, `512K`: bytes take binary units (`KiB MiB GiB TiB`, and decimal `KB MB GB TB`), counts take
//! decimal ones (`K M B`, powers of a thousand). Plain numbers are accepted everywhere.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// A number of bytes. Written `24GiB`, `512MiB`, `1GB` or a plain integer; printed with a binary unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

/// A number of tokens. Written `4M`, `512K`, `1.5M` or a plain integer; the units are powers of a thousand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tokens(pub u64);

const BYTE_UNITS: [(&str, u64); 10] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
    ("", 1),
];

const COUNT_UNITS: [(&str, u64); 4] =
    [("K", 1_000), ("M", 1_000_000), ("B", 1_000_000_000), ("", 1)];

impl Bytes {
    pub const fn gib(n: u64) -> Bytes {
        Bytes(n << 30)
    }

    /// The quantity in GiB (2^30 bytes).
    pub fn as_gib(self) -> f64 {
        self.0 as f64 / (1u64 << 30) as f64
    }
}

/// Splits `text` into its number and its unit and multiplies; the product must be a whole non-negative number.
fn parse_quantity(text: &str, units: &[(&str, u64)], what: &str) -> Result<u64, String> {
    let text = text.trim();
    let expected = || {
        let units: Vec<_> = units.iter().map(|(u, _)| *u).filter(|u| !u.is_empty()).collect();
        format!(
            "expected {what}: a number with one of the units {} or none, found `{text}`",
            units.join(", ")
        )
    };
    let digits = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    // `1e6` is a number, not a quantity of the unit `e6`.
    if let Ok(number) = text.replace('_', "").parse::<f64>() {
        return whole(number).ok_or_else(expected);
    }
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.trim().replace('_', "").parse().map_err(|_| expected())?;
    let unit = unit.trim();
    let factor = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .map(|(_, factor)| *factor)
        .ok_or_else(expected)?;
    whole(number * factor as f64).ok_or_else(expected)
}

fn whole(number: f64) -> Option<u64> {
    let rounded = number.round();
    let close = (number - rounded).abs() < 1e-6 * number.abs().max(1.0);
    (rounded >= 0.0 && rounded < 2f64.powi(63) && close).then_some(rounded as u64)
}

impl FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Bytes, String> {
        parse_quantity(text, &BYTE_UNITS, "a number of bytes").map(Bytes)
    }
}

impl FromStr for Tokens {
    type Err = String;
    fn from_str(text: &str) -> Result<Tokens, String> {
        parse_quantity(text, &COUNT_UNITS, "a number of tokens").map(Tokens)
    }
}

impl Bytes {
    /// With so many digits after the point: `1.50 GiB`, `12 B`.
    pub fn with_digits(self, digits: usize) -> String {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.iter().find(|(_, shift)| self.0 >= 1 << shift) {
            Some((unit, shift)) => {
                format!("{:.digits$} {unit}", self.0 as f64 / (1u64 << shift) as f64)
            }
            None => format!("{} B", self.0),
        }
    }
}

impl fmt::Display for Bytes {
    /// `1.5 GiB`, `300.0 MiB`, `12 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_digits(1))
    }
}

impl fmt::Display for Tokens {
    /// `4M`, `1.5M`, `512K`, `731`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scaled = |unit: u64| {
            let text = format!("{:.2}", self.0 as f64 / unit as f64);
            text.trim_end_matches('0').trim_end_matches('.').to_string()
        };
        match self.0 {
            n if n >= 1_000_000_000 => write!(f, "{}B", scaled(1_000_000_000)),
            n if n >= 1_000_000 => write!(f, "{}M", scaled(1_000_000)),
            n if n >= 10_000 => write!(f, "{}K", scaled(1_000)),
            n => write!(f, "{n}"),
        }
    }
}

macro_rules! quantity_serde {
    ($type:ident, $what:literal) => {
        // Saved as a plain integer: the complete configuration is canonical.
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_u64(self.0)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                struct V;
                impl Visitor<'_> for V {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_u64<E: de::Error>(self, n: u64) -> Result<$type, E> {
                        Ok($type(n))
                    }
                    fn visit_i64<E: de::Error>(self, n: i64) -> Result<$type, E> {
                        u64::try_from(n)
                            .map($type)
                            .map_err(|_| E::invalid_value(de::Unexpected::Signed(n), &self))
                    }
                    fn visit_f64<E: de::Error>(self, n: f64) -> Result<$type, E> {
                        whole(n)
                            .map($type)
                            .ok_or_else(|| E::invalid_value(de::Unexpected::Float(n), &self))
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(V)
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": ["integer", "string"], "minimum": 0, "description": $what })
            }
        }
    };
}
quantity_serde!(Bytes, "a number of bytes such as `24GiB`");
quantity_serde!(Tokens, "a number of tokens such as `4M`");

/// Prints a duration for people: `9.3 ms`, `4.2 s`, `3 min 07 s`, `2 h 05 min`.
pub fn format_seconds(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds > 0.0 && seconds < 0.1 => format!("{:.1} ms", seconds * 1e3),
        _ if seconds < 10.0 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// Prints a number with four significant digits, as tables and labels want it: `12.35`, `0.0001234`, `1.2e-6`.
pub fn format_number(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return format!("{x}");
    }
    let magnitude = x.abs().log10().floor() as i32;
    if !(-4..7).contains(&magnitude) {
        let text = format!("{x:.3e}");
        let (mantissa, exponent) = text.split_once('e').expect("scientific notation has an e");
        let mantissa = if mantissa.contains('.') {
            mantissa.trim_end_matches('0').trim_end_matches('.')
        } else {
            mantissa
        };
        return format!("{mantissa}e{exponent}");
    }
    let decimals = (3 - magnitude).max(0) as usize;
    let text = format!("{x:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_people_write_them() {
        let bytes = |s: &str| s.parse::<Bytes>().map(|b| b.0);
        assert_eq!(bytes("24GiB"), Ok(24 << 30));
        assert_eq!(bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(bytes("4GB"), Ok(4_000_000_000));
        assert_eq!(bytes("4096"), Ok(4096));
        let tokens = |s: &str| s.parse::<Tokens>().map(|t| t.0);
        assert_eq!(tokens("4M"), Ok(4_000_000));
        assert_eq!(tokens("1e6"), Ok(1_000_000));
        assert_eq!(tokens("512K"), Ok(512_000));
        assert_eq!(tokens("1.2M"), Ok(1_200_000));
        for wrong in ["4X", "-1", "", "M", "1.5", "nan"] {
            let error = tokens(wrong).unwrap_err();
            assert!(error.contains(&format!("found `{wrong}`")), "{wrong}: {error}");
        }
    }

    #[test]
    fn quantities_print_short() {
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(Bytes(12).to_string(), "12 B");
        assert_eq!(Tokens(1_500_000).to_string(), "1.5M");
        assert_eq!(Tokens(8192).to_string(), "8192");
        assert_eq!(format_seconds(187.0), "3 min 07 s");
        assert_eq!(format_number(12.3456), "12.35");
        assert_eq!(format_number(1.0), "1");
        assert_eq!(format_number(2e-5), "2e-5");
        assert_eq!(format_number(123456.0), "123456");
    }

    proptest::proptest! {
        #[test]
        fn whole_numbers_survive(n in 0u64..1 << 50) {
            proptest::prop_assert_eq!(n.to_string().parse::<Tokens>().unwrap().0, n);
            proptest::prop_assert_eq!(n.to_string().parse::<Bytes>().unwrap().0, n);
        }
    }
}
