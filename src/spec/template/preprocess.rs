//! From the shorthand of a template file to what the template engine reads: sub-templates are split off, line statements
//! become tags, comments go, and bracket headers become blocks.
//!
//! ```text
//! -- set x = 1        {% set x = 1 %}
//! << if x             {%- if x %}
//! >> if x             {% if x -%}
//! == x                {{ x }}
//! => x                {{ x|trim('\n') }}
//! ## a comment        {#  a comment #}, or nothing
//! [name]              {% block name %} … {{'\n'}}{% endblock name +%}
//! [name!]             {% filter trim %}{% block name %} … {{'\n'}}{% endblock name +%}{% endfilter %}
//! ```

use super::syntax;
use crate::config::written::BYTE_ORDER_MARK;
use regex::Regex;
use std::sync::LazyLock;

/// One template of a file: the file's own, or one that a separator line names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub name: Option<String>,
    pub text: String,
    /// The line of the file that the text begins on, from 1.
    pub first_line: usize,
}

/// A template as the engine reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Translated {
    pub text: String,
    /// For each line of `text`, the line of the file that it was made from.
    pub lines: Vec<usize>,
    /// What the translation noticed: a line of the file and what is to be said.
    pub notes: Vec<(usize, String)>,
}

static SEPARATOR: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\n#\s*-{3,}\s*([\w./]+)\s*-{3,}\n").expect("a constant"));
static HEADER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^(\s*)\[(\w+)(!*)\]\s*$").expect("a constant"));

/// Splits a file at its `# --- name ---` lines. A separator takes the newlines around it along.
pub(super) fn split(text: &str) -> Vec<Part> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let part = |name: Option<&str>, from: usize, to: usize| Part {
        name: name.map(str::to_string),
        text: text[from..to].to_string(),
        first_line: 1 + text[..from].matches('\n').count(),
    };
    let mut parts = Vec::new();
    let mut name = None;
    let mut from = 0;
    for found in SEPARATOR.captures_iter(&text) {
        let whole = found.get(0).expect("group 0 is the match");
        parts.push(part(name, from, whole.start()));
        name = found.get(1).map(|m| m.as_str());
        from = whole.end();
    }
    parts.push(part(name, from, text.len()));
    parts
}

/// Translates one template. With `keep_comments` a comment line stays as an engine's comment, so that lines keep their numbers.
pub(super) fn translate(part: &Part, keep_comments: bool) -> Translated {
    let mut blocks = Blocks { notes: lists(part), ..Blocks::default() };
    let mut open = String::new();
    for (index, line) in part.text.split('\n').enumerate() {
        let source = part.first_line + index;
        if let Some(comment) = line.trim_start().strip_prefix("##") {
            if comment.contains("#}") {
                let note = "expected a comment without `#}`, found one; it ends where the line ends all the same";
                blocks.notes.push((source, note.into()));
            }
            if keep_comments && open.is_empty() {
                // The engine would end the comment early.
                blocks.line(format!("{{# {} #}}", comment.replace("#}", "# }")), source);
            } else if keep_comments {
                blocks.line(String::new(), source);
            }
            continue;
        }
        let (line, note) = cut_comment(line);
        blocks.notes.extend(note.map(|note| (source, note)));
        match statement(line) {
            Some(statement) => blocks.line(statement, source),
            None => {
                follow(&mut open, line);
                blocks.text(line, source);
            }
        }
    }
    blocks.finish()
}

/// Keeps the lines from the first one with a tag that is not closed yet: a comment has no place among them.
fn follow(open: &mut String, line: &str) {
    if open.is_empty() && !line.contains('{') {
        return;
    }
    open.push_str(line);
    open.push('\n');
    let last = syntax::segments(open).pop();
    if last.is_none_or(|segment| segment.kind == syntax::Kind::Text) {
        open.clear();
    }
}

/// Notes the headers that look like lists of one: an indented `[a]` after a line that ends with a colon, with nothing below.
fn lists(part: &Part) -> Vec<(usize, String)> {
    let is_comment = |line: &str| line.trim_start().starts_with("##");
    let lines: Vec<(usize, &str)> = part
        .text
        .split('\n')
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty() && !is_comment(line))
        .collect();
    let indent = |line: &str| line.chars().take_while(|c| c.is_whitespace()).count();
    let is_list = |index: usize| {
        let (before, (_, header)) = (lines[index - 1].1, lines[index]);
        let after = lines.get(index + 1).map(|(_, line)| line);
        let has_content =
            after.is_some_and(|line| indent(line) >= indent(header) && !HEADER.is_match(line));
        let waits = before.trim_end().ends_with(':') && indent(before) < indent(header);
        HEADER.is_match(header) && waits && !has_content
    };
    (1..lines.len())
        .filter(|index| is_list(*index))
        .map(|index| {
            let (line, header) = lines[index];
            let header = header.trim();
            let note = format!("expected a block header, found `{header}`, which looks like a list: a list of one is written `- {}`", header.trim_matches(['[', ']']));
            (part.first_line + line, note)
        })
        .collect()
}

/// Cuts from the last ` ##` on: one space before it goes with it, and nothing knows of quotes; but a note says so.
fn cut_comment(line: &str) -> (&str, Option<String>) {
    let at = line
        .char_indices()
        .filter(|(at, c)| c.is_whitespace() && line[at + c.len_utf8()..].starts_with("##"))
        .map(|(at, _)| at)
        .next_back();
    let Some(at) = at else { return (line, None) };
    let (kept, cut) = line.split_at(at);
    let note = open_quote(kept).filter(|quote| cut.contains(*quote)).map(|_| {
        format!(
            "expected a comment after ` ##`, found it inside a quoted string, cut to `{}`",
            kept.trim()
        )
    });
    (kept, note)
}

/// The quote that is open at the end of `text`, read as YAML or an expression would.
fn open_quote(text: &str) -> Option<char> {
    let mut open: Option<char> = None;
    let mut before = ' ';
    let mut escaped = false;
    for c in text.chars() {
        match open {
            Some(_) if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(quote) if c == quote => open = None,
            Some(_) => {}
            // An apostrophe inside a word opens nothing.
            None if (c == '"' || c == '\'') && !before.is_alphanumeric() => open = Some(c),
            None => {}
        }
        before = c;
    }
    open
}

/// A line statement as a tag. The indentation goes.
fn statement(line: &str) -> Option<String> {
    let line = line.trim_start();
    let sigil = line.get(..2)?;
    let after = &line[2..];
    let space = after.chars().next().filter(|c| c.is_whitespace())?;
    let rest = &after[space.len_utf8()..];
    Some(match sigil {
        "--" => format!("{{% {rest} %}}"),
        "<<" => format!("{{%- {rest} %}}"),
        ">>" => format!("{{% {rest} -%}}"),
        "==" => format!("{{{{ {rest} }}}}"),
        "=>" => format!("{{{{ {rest}|trim('\\n')}}}}"),
        _ => return None,
    })
}

/// Turns bracket headers into blocks while lines come in.
#[derive(Default)]
struct Blocks {
    lines: Vec<String>,
    sources: Vec<usize>,
    /// Name, indentation of the header, and whether it is trimmed.
    open: Vec<(String, usize, bool)>,
    notes: Vec<(usize, String)>,
}

impl Blocks {
    fn line(&mut self, line: String, source: usize) {
        self.lines.push(line);
        self.sources.push(source);
    }

    fn text(&mut self, line: &str, source: usize) {
        let may_be_header = line.trim_start().starts_with('[');
        let Some(header) = may_be_header.then(|| HEADER.captures(line)).flatten() else {
            return self.line(line.to_string(), source);
        };
        let indent = header[1].chars().count();
        let name = header[2].to_string();
        let trimmed = !header[3].is_empty();
        while self.open.last().is_some_and(|(_, opened, _)| *opened >= indent) {
            self.close();
        }
        let filter = if trimmed { "{% filter trim %}" } else { "" };
        self.line(format!("{filter}{{% block {name} %}}"), source);
        self.open.push((name, indent, trimmed));
    }

    /// Closes the innermost block at the end of the last line. A block ends its last line, however it is written.
    fn close(&mut self) {
        let (Some((name, _, trimmed)), Some(last)) = (self.open.pop(), self.lines.last_mut())
        else {
            return;
        };
        if !last.is_empty() {
            last.push_str(r"{{'\n'}}");
        }
        last.push_str(&format!("{{% endblock {name} +%}}"));
        if trimmed {
            last.push_str("{% endfilter %}");
        }
    }

    fn finish(mut self) -> Translated {
        while !self.open.is_empty() {
            self.close();
        }
        Translated { text: self.lines.join("\n"), lines: self.sources, notes: self.notes }
    }
}
