//! `a ~ b` joins what Python would print. The engine has its own print of floats, so each operand is first made text.
//!
//! `"lr" ~ 2 * x` becomes `("lr")|__text ~ (2 * x)|__text`: on the same lines, in the same order.

use super::syntax::{self, Kind};
use std::borrow::Cow;
use std::ops::Range;

/// The filter that an operand goes through.
pub(super) const TEXT: &str = "__text";

/// Rewrites the joins of a template.
pub(super) fn rewrite(text: &str) -> Cow<'_, str> {
    if !text.contains('~') {
        return Cow::Borrowed(text);
    }
    let mut marks = Vec::new();
    for segment in syntax::segments(text) {
        if matches!(segment.kind, Kind::Expression | Kind::Tag) {
            let range = syntax::inner(text, segment.range);
            let tokens = tokens(text, range);
            for operand in operands(text, &tokens, segment.kind == Kind::Tag) {
                marks.push((operand.start, "(".to_string()));
                marks.push((operand.end, format!(")|{TEXT}")));
            }
        }
    }
    marks.sort_by_key(|(at, _)| *at);
    let mut out = String::with_capacity(text.len() + 16 * marks.len());
    let mut from = 0;
    for (at, mark) in marks {
        out.push_str(&text[from..at]);
        out.push_str(&mark);
        from = at;
    }
    out.push_str(&text[from..]);
    Cow::Owned(out)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Word,
    /// A number or a string.
    Literal,
    Open,
    Close,
    Sign,
}

struct Token {
    what: What,
    range: Range<usize>,
    depth: usize,
}

fn tokens(text: &str, within: Range<usize>) -> Vec<Token> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut depth = 0;
    let mut at = within.start;
    while at < within.end {
        let start = at;
        let c = text[at..].chars().next().unwrap_or(' ');
        at += c.len_utf8();
        let what = match c {
            c if c.is_whitespace() => continue,
            '"' | '\'' => {
                at = syntax::end_of_string(bytes, start, bytes[start]) + 1;
                What::Literal
            }
            c if c.is_ascii_digit() => {
                at = end_of_number(bytes, at);
                What::Literal
            }
            c if c.is_alphabetic() || c == '_' => {
                let word = |c: char| c.is_alphanumeric() || c == '_';
                at += text[at..].find(|c| !word(c)).unwrap_or(text.len() - at);
                What::Word
            }
            '(' | '[' | '{' => What::Open,
            ')' | ']' | '}' => What::Close,
            _ => {
                if ["**", "//", "==", "!=", "<=", ">="]
                    .contains(&text.get(start..start + 2).unwrap_or(""))
                {
                    at = start + 2;
                }
                What::Sign
            }
        };
        if what == What::Close {
            depth = usize::saturating_sub(depth, 1);
        }
        tokens.push(Token { what, range: start..at.min(within.end), depth });
        if what == What::Open {
            depth += 1;
        }
    }
    tokens
}

fn end_of_number(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < bytes.len() {
        let exponent_sign =
            matches!(bytes[at], b'+' | b'-') && matches!(bytes[at - 1], b'e' | b'E');
        if !(bytes[at].is_ascii_alphanumeric() || matches!(bytes[at], b'.' | b'_') || exponent_sign)
        {
            break;
        }
        at += 1;
    }
    at
}

/// The operands of all joins, each once.
fn operands(text: &str, tokens: &[Token], is_tag: bool) -> Vec<Range<usize>> {
    let says = |index: usize| &text[tokens[index].range.clone()];
    let ends = |index: usize| boundary(text, tokens, index, is_tag);
    let mut found: Vec<Range<usize>> = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if token.what != What::Sign || says(index) != "~" {
            continue;
        }
        let outside = |other: usize| {
            let other_token = &tokens[other];
            other_token.depth < token.depth || (other_token.depth == token.depth && ends(other))
        };
        let first = (0..index).rev().find(|&at| outside(at)).map_or(0, |at| at + 1);
        let after = (index + 1..tokens.len()).find(|&at| outside(at)).unwrap_or(tokens.len());
        for side in [first..index, index + 1..after] {
            if !side.is_empty() {
                let range = tokens[side.start].range.start..tokens[side.end - 1].range.end;
                if !found.contains(&range) {
                    found.push(range);
                }
            }
        }
    }
    found
}

/// Whether a token can't be part of an operand that it stands beside.
fn boundary(text: &str, tokens: &[Token], index: usize, is_tag: bool) -> bool {
    let says = |index: usize| &text[tokens[index].range.clone()];
    let before = index.checked_sub(1);
    let after_value = before.is_some_and(|before| match tokens[before].what {
        What::Word => !matches!(says(before), "and" | "or" | "not" | "in" | "is" | "if" | "else"),
        What::Literal | What::Close => true,
        _ => false,
    });
    match (tokens[index].what, says(index)) {
        (What::Sign, "-") => after_value,
        (What::Sign, sign) => {
            matches!(sign, "~" | "+" | "," | ":" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=")
        }
        (What::Word, "not") => before.is_none_or(|before| says(before) != "is"),
        (What::Word, "and" | "or" | "in" | "if" | "else") => true,
        (What::Word, "is") => false,
        // The word that a tag begins with, and those after a value: `ignore missing`, `as name`.
        (What::Word, _) => (is_tag && index == 0) || after_value,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn operands_of_a_join_become_text() {
        let cases = [
            ("{{ a ~ b }}", "{{ (a)|__text ~ (b)|__text }}"),
            ("{{ 2 * x ~ -y + 1 }}", "{{ (2 * x)|__text ~ (-y)|__text + 1 }}"),
            (
                "{{ f(a ~ 'b~', c) ~ d|e('x') }}",
                "{{ (f((a)|__text ~ ('b~')|__text, c))|__text ~ (d|e('x'))|__text }}",
            ),
            ("{% set x = 1e-5 ~ [2] -%}", "{% set x = (1e-5)|__text ~ ([2])|__text -%}"),
            (
                "{% include 'a' ~ b ignore missing %}",
                "{% include ('a')|__text ~ (b)|__text ignore missing %}",
            ),
            (
                "{{ a ~ b if c is not d else e ~ f }}",
                "{{ (a)|__text ~ (b)|__text if c is not d else (e)|__text ~ (f)|__text }}",
            ),
            ("a ~ b", "a ~ b"),
        ];
        for (text, expected) in cases {
            assert_eq!(rewrite(text), expected);
        }
    }
}
