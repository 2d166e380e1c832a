//! Which lines stand behind text that was captured before it was printed: the insides of `[name!]`, `=> super()`, macros.
//!
//! The engine says where printed text comes from, but captured text it calls the work of the expression that prints it.
//! So the template is rendered once more, with an invisible mark, one character of Unicode's private planes, before the
//! first visible character of every line. Marks never touch white space, so nothing that trims can tell the difference;
//! if something else does (a length was taken), the marks are not believed.

use super::library::Library;
use super::origins::Pieces;
use super::python;
use super::syntax::{self, Kind};
use minijinja::value::Value;
use minijinja::{OutputSpan, OutputSpanKind};
use std::ops::Range;

/// The filter that marks what an expression prints.
pub(super) const AT: &str = "__at";

/// The private planes hold this many characters each.
const PLANE: u32 = 0xfffe;
const PLANES: [u32; 2] = [0xf0000, 0x100000];

/// The places that marks stand for.
#[derive(Default)]
pub(super) struct Marks {
    /// Template, line and column of its text.
    places: Vec<(String, usize, usize)>,
}

/// A text without its marks, and where they were: the byte that each stands before.
pub(super) struct Unmarked {
    pub text: String,
    marks: Vec<(usize, usize)>,
}

impl Marks {
    /// Puts marks into a template.
    pub fn mark(&mut self, template: &str, text: &str) -> String {
        let mut out = String::with_capacity(text.len() * 2);
        let mut at = Position { line: 1, column: 1 };
        let mut from = 0;
        for segment in syntax::segments(text) {
            let Range { start, end } = segment.range;
            at.pass(&text[from..start]);
            out.push_str(&text[from..start]);
            match segment.kind {
                Kind::Text | Kind::Raw => self.mark_text(template, &text[start..end], at, &mut out),
                Kind::Expression => self.mark_expression(template, text, start..end, at, &mut out),
                Kind::Tag | Kind::Comment => out.push_str(&text[start..end]),
            }
            at.pass(&text[start..end]);
            from = end;
        }
        out.push_str(&text[from..]);
        out
    }

    fn mark_text(&mut self, template: &str, text: &str, mut at: Position, out: &mut String) {
        let mut is_marked = false;
        for c in text.chars() {
            if c == '\n' {
                is_marked = false;
            } else if !is_marked && !c.is_whitespace() {
                out.extend(self.new_mark(template, at));
                is_marked = true;
            }
            out.push(c);
            at.pass_char(c);
        }
    }

    fn mark_expression(
        &mut self,
        template: &str,
        text: &str,
        range: Range<usize>,
        at: Position,
        out: &mut String,
    ) {
        let inner = syntax::inner(text, range.clone());
        let mark =
            if text[inner.clone()].trim().is_empty() { None } else { self.new_mark(template, at) };
        let Some(mark) = mark else { return out.push_str(&text[range]) };
        out.push_str(&text[range.start..inner.start]);
        out.push_str(&format!(" ({})|{AT}('{mark}') ", &text[inner.clone()]));
        out.push_str(&text[inner.end..range.end]);
    }

    fn new_mark(&mut self, template: &str, at: Position) -> Option<char> {
        let index = u32::try_from(self.places.len()).ok()?;
        let plane = PLANES.get((index / PLANE) as usize)?;
        self.places.push((template.to_string(), at.line, at.column));
        char::from_u32(plane + index % PLANE)
    }

    /// Takes the marks out of a rendered text.
    pub fn unmark(&self, marked: &str) -> Unmarked {
        let mut unmarked =
            Unmarked { text: String::with_capacity(marked.len()), marks: Vec::new() };
        for c in marked.chars() {
            match index(c).filter(|index| *index < self.places.len()) {
                Some(index) => unmarked.marks.push((unmarked.text.len(), index)),
                None => unmarked.text.push(c),
            }
        }
        unmarked
    }

    /// Cuts a text into pieces by its marks.
    fn pieces(&self, unmarked: &Unmarked, library: &Library) -> Pieces {
        let mut pieces: Pieces = vec![Vec::new()];
        let mut marks = unmarked.marks.iter().peekable();
        let mut column = 0;
        for (at, c) in unmarked.text.char_indices() {
            while let Some((_, index)) = marks.next_if(|(before, _)| *before == at) {
                let (template, line, source_column) = &self.places[*index];
                if let (Some(loaded), Some(line_pieces)) =
                    (library.get(template), pieces.last_mut())
                {
                    line_pieces.push((column, loaded.origin(*line, *source_column)));
                }
            }
            column += 1;
            if c == '\n' {
                pieces.push(Vec::new());
                column = 0;
            }
        }
        pieces
    }
}

fn index(c: char) -> Option<usize> {
    let code = c as u32;
    let plane = PLANES.iter().position(|plane| (*plane..plane + PLANE).contains(&code))?;
    Some((code - PLANES[plane] + plane as u32 * PLANE) as usize)
}

/// The text of a value, with a mark before its first visible character unless it has one.
pub(super) fn marked(value: &Value, mark: &str) -> Value {
    if value.is_undefined() {
        return value.clone();
    }
    let text = python::text(value);
    match text.char_indices().find(|(_, c)| !c.is_whitespace()) {
        Some((at, c)) if index(c).is_none() => {
            Value::from(format!("{}{mark}{}", &text[..at], &text[at..]))
        }
        _ => Value::from(text),
    }
}

/// Whether a span is text that was captured before it was printed, or may be.
pub(super) fn is_captured(text: &str, span: &OutputSpan, library: &Library) -> bool {
    if span.kind() == OutputSpanKind::Raw {
        return false;
    }
    let printed = text.get(span.output_range()).unwrap_or_default();
    let template = library.get(span.name()).map_or("", |loaded| loaded.engine_text.as_str());
    let range = span.source_range();
    let expression = template.get(range.clone()).unwrap_or_default();
    let before = template.get(..range.start).unwrap_or_default();
    let is_in_tag = !before.trim_end_matches(['-', '+']).trim_end().ends_with("{{");
    is_in_tag || expression.contains("super") || printed.trim_end_matches('\n').contains('\n')
}

/// Replaces the pieces of the lines with captured text by those that the marks tell.
pub(super) fn refine(
    pieces: &mut Pieces,
    text: &str,
    spans: &[OutputSpan],
    (marks, unmarked): (&Marks, &Unmarked),
    library: &Library,
) {
    let told = marks.pieces(unmarked, library);
    for span in spans.iter().filter(|span| is_captured(text, span, library)) {
        let range = span.output_range();
        let first = text[..range.start].matches('\n').count();
        let lines = text[range].trim_end_matches('\n').matches('\n').count() + 1;
        for line in first..first + lines {
            if let (Some(old), Some(new)) = (pieces.get_mut(line), told.get(line)) {
                old.clone_from(new);
            }
        }
    }
}

/// A place in a template's text, from 1.
#[derive(Clone, Copy)]
struct Position {
    line: usize,
    column: usize,
}

impl Position {
    fn pass(&mut self, text: &str) {
        text.chars().for_each(|c| self.pass_char(c));
    }

    fn pass_char(&mut self, c: char) {
        if c == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Marks;

    #[test]
    fn marks_stand_before_what_is_seen_and_come_off() {
        let text = "a: 1\n   \n  b {{- x -}}\n{% if y %}\n{{ '' }} c";
        let mut marks = Marks::default();
        let marked = marks.mark("t", text);
        let places: Vec<(usize, usize)> = marks.places.iter().map(|(_, l, c)| (*l, *c)).collect();
        assert_eq!(places, [(1, 1), (3, 3), (3, 7), (5, 3), (5, 10)]);
        let plain = marks.unmark(&marked).text;
        let wrapped = text.replace(" x ", " ( x )|__at('') ").replace(" '' ", " ( '' )|__at('') ");
        assert_eq!(plain, wrapped);
    }
}
