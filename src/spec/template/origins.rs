//! Which template line each piece of the rendered text came from.

use super::library::Library;
use crate::config::written::Origin;
use minijinja::{OutputSpan, OutputSpanKind};

/// For each line of the text, its pieces: the character that one begins at, and its origin.
pub(super) type Pieces = Vec<Vec<(usize, Origin)>>;

/// Cuts the text into pieces by what the engine says it wrote.
pub(super) fn pieces(text: &str, spans: &[OutputSpan], library: &Library) -> Pieces {
    let mut cutter = Cutter { pieces: vec![Vec::new()], column: 0 };
    for span in spans {
        let Some(template) = library.get(span.name()) else { continue };
        let verbatim = span.kind() == OutputSpanKind::Raw;
        let source = span.source_range().start.min(template.engine_text.len());
        let mut column = column_of(&template.engine_text, source);
        for (index, part) in text[span.output_range()].split('\n').enumerate() {
            if index > 0 {
                cutter.pieces.push(Vec::new());
                cutter.column = 0;
                column = if verbatim { 1 } else { column };
            }
            let line = span.line() + if verbatim { index } else { 0 };
            cutter.piece(part, template.origin(line, column));
        }
    }
    cutter.pieces
}

fn column_of(text: &str, at: usize) -> usize {
    let before = &text[..at];
    before[before.rfind('\n').map_or(0, |newline| newline + 1)..].chars().count() + 1
}

struct Cutter {
    pieces: Pieces,
    column: usize,
}

impl Cutter {
    /// Adds a piece to the last line. An empty one only says where an empty line came from.
    fn piece(&mut self, part: &str, origin: Origin) {
        let Some(line) = self.pieces.last_mut() else { return };
        if !part.is_empty() || line.is_empty() {
            line.push((self.column, origin));
        }
        self.column += part.chars().count();
    }
}

/// For each line of the text, the origin of what it says first.
pub(super) fn of_lines(text: &str, pieces: &Pieces) -> Vec<Origin> {
    let indent = |line: &str| line.chars().take_while(|c| c.is_whitespace()).count();
    text.lines().enumerate().map(|(index, line)| find(pieces, index + 1, indent(line))).collect()
}

/// The origin of a place: a line from 1 and a column from 0. What stands nowhere belongs to what stands before it.
pub(super) fn find(pieces: &Pieces, line: usize, column: usize) -> Origin {
    let here = pieces.get(line.saturating_sub(1));
    let piece = here.and_then(|pieces| {
        pieces.iter().rev().find(|(from, _)| *from <= column).or_else(|| pieces.first())
    });
    let before = || pieces[..pieces.len().min(line)].iter().rev().find_map(|pieces| pieces.last());
    match piece.or_else(before) {
        Some((_, origin)) => origin.clone(),
        None => Origin { file: "".into(), line: 0, column: 0 },
    }
}
