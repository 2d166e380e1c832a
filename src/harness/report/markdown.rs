//! How a page writes names, numbers and text of the store: in markdown that shows them as they are.

use super::statistics::Interval;
use fathom_spec::units::{Bytes, format_number};
use std::path::Path;

/// `last stride`, `prefix`.
pub fn method_name(method: &str) -> &str {
    match method {
        "last_stride" => "last stride",
        other => other,
    }
}

/// What a table calls the loss of a metric.
pub fn name_of_loss(key: &str) -> String {
    match key.strip_prefix("eval_loss.") {
        Some(split) => format!("final loss on {split}"),
        None => "final training loss".to_string(),
    }
}

/// `13.42 ± 0.11`; both ends where the interval is far from symmetrical; the number alone without one.
pub fn plus_minus(value: f64, interval: Option<Interval>) -> String {
    let Some(interval) = interval.filter(|_| value.is_finite()) else {
        return format_number(value);
    };
    let half = interval.half_width();
    let skew = (interval.high - value) - (value - interval.low);
    if half == 0.0 {
        return format!("{} ± 0", format_number(value));
    }
    if skew.abs() > 0.2 * half {
        let (low, high) = (format_short(interval.low), format_short(interval.high));
        return format!("{} ({low} to {high})", format_number(value));
    }
    format!("{} ± {}", as_sure_as(value, half), as_sure_as(half, half))
}

/// Three significant digits.
fn format_short(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return format_number(x);
    }
    let unit = 10f64.powi(x.abs().log10().floor() as i32 - 2);
    format_number((x / unit).round() * unit)
}

/// A number with as many decimals as its uncertainty gives meaning to: two significant digits of `half_width`.
pub fn as_sure_as(x: f64, half_width: f64) -> String {
    if half_width == 0.0 || !half_width.is_finite() || !x.is_finite() {
        return format_number(x);
    }
    let decimals = (1 - half_width.log10().floor() as i32).clamp(0, 6) as usize;
    format!("{x:.decimals$}")
}

/// Text of the store as markdown shows it literally.
pub fn text(raw: &str) -> String {
    let mut escaped = String::with_capacity(raw.len());
    let mut before = None;
    let mut chars = raw.chars().peekable();
    let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    while let Some(c) = chars.next() {
        let after = chars.peek().copied();
        match c {
            // Within a word it is no emphasis.
            '_' if !in_word(before) || !in_word(after) => escaped.push_str("\\_"),
            // Begins an entity.
            '&' if after == Some('#') || in_word(after) => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '*' | '`' | '[' | ']' | '\\' | '~' | '$' => escaped.extend(['\\', c]),
            '\n' | '\r' => escaped.push(' '),
            c => escaped.push(c),
        }
        before = Some(c);
    }
    escaped
}

/// A code span; a backtick in it would end it.
pub fn in_code(raw: &str) -> String {
    format!("`{}`", raw.replace('`', "'").replace(['\n', '\r'], " "))
}

pub fn bold(raw: &str) -> String {
    format!("**{}**", text(raw))
}

/// Replaces absolute paths by their last part: where a file lies is no business of a report.
pub fn without_paths(raw: &str) -> String {
    let ends = |c: char| c.is_whitespace() || "\"'`,;:()[]{}".contains(c);
    raw.split_inclusive(ends)
        .map(|word| {
            let bare = word.trim_end_matches(ends);
            let name = Path::new(bare).file_name().and_then(|name| name.to_str());
            match name {
                Some(name) if bare.starts_with('/') => format!("{name}{}", &word[bare.len()..]),
                _ => word.to_string(),
            }
        })
        .collect()
}

pub fn bytes(n: i64) -> String {
    Bytes(n.max(0) as u64).to_string()
}

pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_the_digits_that_mean_something() {
        let about = |mean: f64, half: f64| Interval { mean, low: mean - half, high: mean + half };
        assert_eq!(plus_minus(13.4217, Some(about(13.4217, 0.1123))), "13.42 ± 0.11");
        assert_eq!(plus_minus(2.61234, Some(about(2.61234, 0.000_412))), "2.61234 ± 0.00041");
        assert_eq!(plus_minus(1234.5, Some(about(1234.5, 120.0))), "1234 ± 120");
        assert_eq!(plus_minus(13.4217, None), "13.42");
        assert_eq!(plus_minus(f64::NAN, None), "NaN");
        let skewed = Interval { mean: 10.0, low: 2.512, high: 39.81 };
        assert_eq!(plus_minus(10.0, Some(skewed)), "10 (2.51 to 39.8)");
    }

    #[test]
    fn paths_lose_their_folders() {
        assert_eq!(
            without_paths("can't read `/home/someone/data/a.txt`: no such file (/tmp/x, b/c.txt)"),
            "can't read `a.txt`: no such file (x, b/c.txt)"
        );
        assert_eq!(without_paths("1e-5 / 3"), "1e-5 / 3");
        assert_eq!(without_paths("/data/books"), "books");
    }

    #[test]
    fn markdown_shows_text_literally() {
        assert_eq!(text("a*b <c> [d]"), "a\\*b &lt;c&gt; \\[d\\]");
        assert_eq!(text("_a_b_ ~~c~~ $d$"), "\\_a_b\\_ \\~\\~c\\~\\~ \\$d\\$");
        assert_eq!(text("&lt; & &#38; e&"), "&amp;lt; & &amp;#38; e&");
        assert_eq!(in_code("a`b"), "`a'b`");
        assert_eq!(capital("perplexity"), "Perplexity");
    }
}
