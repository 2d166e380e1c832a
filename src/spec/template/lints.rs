//! What the language lets vanish without a word, said in one line each.

use super::library::{Library, Loaded};
use super::syntax::{self, Kind};
use super::{Lint, near};
use std::collections::BTreeSet;

/// The lints of all loaded templates, in the order of loading.
pub(super) fn all(library: &Library) -> Vec<Lint> {
    library.loaded.iter().flat_map(|loaded| of_template(library, loaded)).collect()
}

fn of_template(library: &Library, loaded: &Loaded) -> Vec<Lint> {
    let notes = loaded.translated.notes.iter();
    let mut lints: Vec<Lint> = notes
        .map(|(line, message)| Lint { origin: loaded.file_line(*line), message: message.clone() })
        .collect();
    if library.extends(&loaded.name).is_some() {
        lints.extend(vanished(library, loaded));
    }
    lints.sort_by_key(|lint| lint.origin.line);
    lints
}

/// What a template that extends another says outside of the blocks that its ancestors have.
fn vanished(library: &Library, loaded: &Loaded) -> Vec<Lint> {
    let known = ancestor_blocks(library, &loaded.name);
    let outline = Outline::read(&loaded.translated.text);
    let lint = |line: usize, message: String| Lint { origin: loaded.origin(line, 0), message };
    let mut lints = Vec::new();
    for block in outline.blocks.iter().filter(|block| block.depth == 0) {
        let called = format!("self.{}", block.name);
        if !known.contains(&block.name) {
            if !loaded.translated.text.contains(&called) {
                let help = near::to(&block.name, known.iter().map(String::as_str));
                let help =
                    help.map(|near| format!(" (did you mean `[{near}]`?)")).unwrap_or_default();
                let message = format!(
                    "expected a block that an ancestor has, found `[{}]`, which is dropped{help}",
                    block.name
                );
                lints.push(lint(block.line, message));
            }
        } else if block.is_trimmed {
            let message = format!(
                "expected `[{0}!]` where the block stands first, found it in a template that extends: nothing is trimmed",
                block.name
            );
            lints.push(lint(block.line, message));
        }
    }
    for (line, text) in outline.loose {
        lints.push(lint(
            line,
            format!("expected text inside of a block, found `{text}` outside, which is dropped"),
        ));
    }
    lints
}

fn ancestor_blocks(library: &Library, name: &str) -> BTreeSet<String> {
    let mut blocks = BTreeSet::new();
    let mut passed = BTreeSet::new();
    let mut at = name;
    while let Some(parent) = library.extends(at) {
        if !passed.insert(parent) {
            break;
        }
        if let Some(loaded) = library.get(parent) {
            blocks.extend(
                Outline::read(&loaded.translated.text).blocks.into_iter().map(|block| block.name),
            );
        }
        at = parent;
    }
    blocks
}

/// The blocks of a template, and the text after its `extends` that stands in none.
#[derive(Default)]
struct Outline {
    blocks: Vec<Block>,
    /// Line and text.
    loose: Vec<(usize, String)>,
}

struct Block {
    name: String,
    line: usize,
    /// In how many blocks of the same template it lies.
    depth: usize,
    is_trimmed: bool,
}

impl Outline {
    fn read(text: &str) -> Outline {
        let mut outline = Outline::default();
        let mut depth = 0usize;
        let mut captures = 0usize;
        let mut extends = false;
        let mut line = 1;
        let mut from = 0;
        let mut before = "";
        for segment in syntax::segments(text) {
            line += text[from..segment.range.start].matches('\n').count();
            from = segment.range.start;
            let said = syntax::trimmed(text, segment.range.clone());
            match segment.kind {
                Kind::Tag => {
                    let mut words = said.split_whitespace();
                    match words.next().unwrap_or_default() {
                        "block" => {
                            let name = words.next().unwrap_or_default().to_string();
                            let is_trimmed = before == "filter trim";
                            outline.blocks.push(Block { name, line, depth, is_trimmed });
                            depth += 1;
                        }
                        "endblock" => depth = depth.saturating_sub(1),
                        "extends" => extends = true,
                        // Macros and captured text are not lost.
                        "macro" | "call" => captures += 1,
                        "set" if !said.contains('=') => captures += 1,
                        "endmacro" | "endcall" | "endset" => captures = captures.saturating_sub(1),
                        _ => {}
                    }
                    before = said;
                }
                Kind::Text | Kind::Raw if extends && depth == 0 && captures == 0 => {
                    let stretch = &text[segment.range.clone()];
                    for (index, part) in stretch.split('\n').enumerate() {
                        let part = part.trim();
                        if !part.is_empty() && !part.starts_with('#') {
                            outline.loose.push((line + index, part.to_string()));
                        }
                    }
                }
                _ => {}
            }
        }
        outline
    }
}
