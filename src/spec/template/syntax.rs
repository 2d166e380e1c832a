//! What of a translated template is text, and what is an expression, a tag or a comment.

use std::ops::Range;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// `{{ … }}`, by what stands inside.
    Expression,
    /// `{% … %}`, by what stands inside.
    Tag,
    Comment,
    /// What stands between `{% raw %}` and `{% endraw %}`.
    Raw,
}

/// A stretch of a template. The delimiters of expressions, tags and comments lie between two segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub kind: Kind,
    pub range: Range<usize>,
}

/// Cuts a template into segments. What is not closed runs to the end: the engine will say so.
pub(super) fn segments(text: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let Some(open) = find_opening(text, at) else { break };
        push(&mut segments, Kind::Text, at..open);
        let inside = open + 2;
        let kind = match text.as_bytes()[open + 1] {
            b'{' => Kind::Expression,
            b'%' => Kind::Tag,
            _ => Kind::Comment,
        };
        let end = match kind {
            Kind::Comment => text[inside..].find("#}").map(|end| inside + end),
            Kind::Tag => closing(text, inside, "%}"),
            _ => closing(text, inside, "}}"),
        };
        let Some(end) = end else {
            push(&mut segments, kind, inside..text.len());
            return segments;
        };
        push(&mut segments, kind, inside..end);
        at = end + 2;
        if kind == Kind::Tag && trimmed(text, inside..end) == "raw" {
            let end = end_of_raw(text, at);
            push(&mut segments, Kind::Raw, at..end);
            at = end;
        }
    }
    push(&mut segments, Kind::Text, at..text.len());
    segments
}

/// What a tag or an expression says, without the signs that trim the text around it.
pub(super) fn inner(text: &str, range: Range<usize>) -> Range<usize> {
    let (mut start, mut end) = (range.start, range.end);
    let bytes = text.as_bytes();
    if start < end && matches!(bytes[start], b'-' | b'+') {
        start += 1;
    }
    if start < end && matches!(bytes[end - 1], b'-' | b'+') {
        end -= 1;
    }
    start..end
}

/// As [`inner`], as text without the space around it.
pub(super) fn trimmed(text: &str, range: Range<usize>) -> &str {
    text[inner(text, range)].trim()
}

fn push(segments: &mut Vec<Segment>, kind: Kind, range: Range<usize>) {
    if !range.is_empty() || kind != Kind::Text {
        segments.push(Segment { kind, range });
    }
}

fn find_opening(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    (from..bytes.len().saturating_sub(1))
        .find(|&at| bytes[at] == b'{' && matches!(bytes[at + 1], b'{' | b'%' | b'#'))
}

/// Where the delimiter stands that closes what was opened: outside of strings and brackets.
fn closing(text: &str, from: usize, delimiter: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    let mut at = from;
    while at < bytes.len() {
        if depth == 0 && text[at..].starts_with(delimiter) {
            return Some(at);
        }
        match bytes[at] {
            quote @ (b'"' | b'\'') => at = end_of_string(bytes, at, quote),
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        while at < bytes.len() && !text.is_char_boundary(at) {
            at += 1;
        }
    }
    None
}

/// The closing quote of the string that begins at `start`.
pub(super) fn end_of_string(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at.min(bytes.len().saturating_sub(1))
}

fn end_of_raw(text: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(open) = text[at..].find("{%") {
        let open = at + open;
        let inside = open + 2;
        let close = text[inside..].find("%}").map_or(text.len(), |close| inside + close);
        if trimmed(text, inside..close) == "endraw" {
            return open;
        }
        at = inside;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::{Kind, segments};

    #[test]
    fn strings_and_brackets_hide_delimiters() {
        let text =
            r#"a{{ {"k": {"x": "}}"}} }}b{% if "%}" -%} c{# }} #}{% raw %}{{ x }}{% endraw %}d"#;
        let found: Vec<(Kind, &str)> =
            segments(text).into_iter().map(|s| (s.kind, &text[s.range.clone()])).collect();
        assert_eq!(
            found,
            [
                (Kind::Text, "a"),
                (Kind::Expression, r#" {"k": {"x": "}}"}} "#),
                (Kind::Text, "b"),
                (Kind::Tag, r#" if "%}" -"#),
                (Kind::Text, " c"),
                (Kind::Comment, " }} "),
                (Kind::Tag, " raw "),
                (Kind::Raw, "{{ x }}"),
                (Kind::Tag, " endraw "),
                (Kind::Text, "d"),
            ]
        );
    }
}
