//! The written form: a YAML file as a tree in which every value remembers the file and line it came from.
//!
//! YAML is read by the 1.2 core schema, so `1e-5` is a number and `no` is a word. Aliases are expanded. Files build on one
//! another by `extends: other.yaml`: mappings are merged key by key, everything else is replaced.

use anyhow::{Context, Result, anyhow, bail};
use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a value stands: file (as it was named), line and column, both from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub file: Arc<str>,
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Written {
    pub node: Node,
    pub origin: Origin,
}

#[derive(Debug, Clone)]
pub enum Node {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    List(Vec<Written>),
    /// In the order of the file; keys are unique.
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub key: String,
    pub key_origin: Origin,
    pub value: Written,
}

impl Written {
    /// Reads a file. Relative names in errors are shown as `path` was given.
    ///
    /// # Errors
    ///
    /// When it can't be read, is not YAML, or has a key twice: with file and line.
    pub fn read(path: &Path) -> Result<Written> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("{}: expected a configuration file that can be read", path.display())
        })?;
        Written::parse(&path.display().to_string(), &text)
    }

    /// Reads YAML text; `name` stands for the file in errors. An empty text is an empty mapping, and a byte order mark before it
    /// is no part of it.
    ///
    /// # Errors
    ///
    /// As [`Written::read`].
    pub fn parse(name: &str, text: &str) -> Result<Written> {
        let mut builder =
            Builder { file: name.into(), anchors: HashMap::new(), depth: 0, values: 0 };
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        let mut events = Parser::new_from_str(text).map(|event| {
            event.map_err(|e| {
                anyhow!(
                    "{name}:{}:{}: not YAML: {}",
                    e.marker().line(),
                    e.marker().col() + 1,
                    e.info()
                )
            })
        });
        let mut root = None;
        while let Some(event) = events.next() {
            match event? {
                (Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd, _) => {}
                (Event::StreamEnd, _) => break,
                (_, span) if root.is_some() => {
                    bail!("{name}:{}: expected one document, found a second", span.start.line())
                }
                (event, span) => root = Some(builder.value(event, span, &mut events)?),
            }
        }
        let origin = Origin { file: builder.file, line: 0, column: 0 };
        Ok(match root {
            Some(Written { node: Node::Null, .. }) | None => {
                Written { node: Node::Map(Vec::new()), origin }
            }
            Some(root) => root,
        })
    }

    /// A value that stands in no file: `source` says where it comes from (`--set`, `axes.rope`).
    pub fn from_json(source: &str, value: &serde_json::Value) -> Written {
        use serde_json::Value;
        let origin = Origin { file: source.into(), line: 0, column: 0 };
        let node = match value {
            Value::Null => Node::Null,
            Value::Bool(b) => Node::Bool(*b),
            Value::Number(n) => match n.as_i64() {
                Some(n) => Node::Int(n),
                None => Node::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(s) => Node::String(s.clone()),
            Value::Array(items) => {
                Node::List(items.iter().map(|item| Written::from_json(source, item)).collect())
            }
            Value::Object(map) => Node::Map(
                map.iter()
                    .map(|(key, value)| Entry {
                        key: key.clone(),
                        key_origin: origin.clone(),
                        value: Written::from_json(source, value),
                    })
                    .collect(),
            ),
        };
        Written { node, origin }
    }

    /// The plain value, without origins.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.node {
            Node::Null => Value::Null,
            Node::Bool(b) => Value::Bool(*b),
            Node::Int(n) => Value::from(*n),
            Node::Float(x) => serde_json::Number::from_f64(*x).map_or(Value::Null, Value::Number),
            Node::String(s) => Value::String(s.clone()),
            Node::List(items) => Value::Array(items.iter().map(Written::to_json).collect()),
            Node::Map(entries) => {
                Value::Object(entries.iter().map(|e| (e.key.clone(), e.value.to_json())).collect())
            }
        }
    }

    /// The value at a key path (`train.optimizer.type`), if it is there.
    pub fn get(&self, path: &str) -> Option<&Written> {
        path.split('.').try_fold(self, |at, key| {
            let Node::Map(entries) = &at.node else { return None };
            entries.iter().find(|e| e.key == key).map(|e| &e.value)
        })
    }

    /// How many values there are in all, this one and lists and mappings included.
    fn count(&self) -> usize {
        1 + match &self.node {
            Node::List(items) => items.iter().map(Written::count).sum(),
            Node::Map(entries) => entries.iter().map(|entry| entry.value.count()).sum(),
            _ => 0,
        }
    }

    /// Takes a top-level key out of a mapping.
    pub fn take(&mut self, key: &str) -> Option<Written> {
        let Node::Map(entries) = &mut self.node else { return None };
        let at = entries.iter().position(|e| e.key == key)?;
        Some(entries.remove(at).value)
    }

    /// The entries of a mapping.
    ///
    /// # Errors
    ///
    /// When this is not a mapping; `what` names it in the message.
    pub fn entries(&self, what: &str) -> Result<&[Entry]> {
        match &self.node {
            Node::Map(entries) => Ok(entries),
            _ => bail!("{}: {what}: expected a mapping, found {}", self.origin, self.describe()),
        }
    }

    /// The items of a list.
    ///
    /// # Errors
    ///
    /// When this is not a list; `what` names it in the message.
    pub fn items(&self, what: &str) -> Result<&[Written]> {
        match &self.node {
            Node::List(items) => Ok(items),
            _ => bail!("{}: {what}: expected a list, found {}", self.origin, self.describe()),
        }
    }

    /// The text of a string.
    ///
    /// # Errors
    ///
    /// When this is not a string; `what` names it in the message.
    pub fn text(&self, what: &str) -> Result<&str> {
        match &self.node {
            Node::String(text) => Ok(text),
            _ => bail!("{}: {what}: expected a word, found {}", self.origin, self.describe()),
        }
    }

    /// What an error shows of a value: scalars as they are, in backticks.
    pub fn describe(&self) -> String {
        match &self.node {
            Node::Null => "nothing".into(),
            Node::Bool(b) => format!("`{b}`"),
            Node::Int(n) => format!("`{n}`"),
            Node::Float(x) => format!("`{x}`"),
            Node::String(s) => format!("`{s}`"),
            Node::List(items) => format!("a list of {}", items.len()),
            Node::Map(entries) => format!("a mapping of {} keys", entries.len()),
        }
    }

    /// Puts `value` at a key path, whatever was there; missing mappings on the way are made.
    ///
    /// # Errors
    ///
    /// When the path leads through something that is not a mapping.
    pub fn set(&mut self, path: &str, value: Written) -> Result<()> {
        self.set_below(path, value, path)
    }

    fn set_below(&mut self, path: &str, value: Written, whole: &str) -> Result<()> {
        let (key, rest) = match path.split_once('.') {
            Some((key, rest)) => (key, Some(rest)),
            None => (path, None),
        };
        if matches!(self.node, Node::Null) {
            self.node = Node::Map(Vec::new());
        }
        let found = self.describe();
        let Node::Map(entries) = &mut self.node else {
            bail!("{}: {whole}: expected a mapping on the way, found {found}", value.origin);
        };
        let at = match entries.iter().position(|e| e.key == key) {
            Some(at) => at,
            None => {
                let empty = Written { node: Node::Null, origin: value.origin.clone() };
                let key_origin = value.origin.clone();
                entries.push(Entry { key: key.to_string(), key_origin, value: empty });
                entries.len() - 1
            }
        };
        match rest {
            Some(rest) => entries[at].value.set_below(rest, value, whole),
            None => {
                entries[at].key_origin = value.origin.clone();
                entries[at].value = value;
                Ok(())
            }
        }
    }

    /// This value laid over `base`: mappings merge key by key, everything else replaces.
    ///
    /// A mapping that names its own kind (`type`, `rope_type`) replaces the base's: the options of one optimizer are not
    /// those of another.
    pub fn over(self, base: Written) -> Written {
        let names_kind =
            |entries: &[Entry]| entries.iter().any(|e| e.key == "type" || e.key == "rope_type");
        match (self.node, base.node) {
            (Node::Map(mine), Node::Map(mut theirs)) if !names_kind(&mine) => {
                for entry in mine {
                    match theirs.iter_mut().find(|e| e.key == entry.key) {
                        Some(old) => {
                            let below = std::mem::replace(&mut old.value, entry.value.clone());
                            old.value = entry.value.over(below);
                            old.key_origin = entry.key_origin;
                        }
                        None => theirs.push(entry),
                    }
                }
                Written { node: Node::Map(theirs), origin: self.origin }
            }
            (node, _) => Written { node, origin: self.origin },
        }
    }
}

/// Reads `name` and everything that it `extends`, and merges them.
///
/// A name is looked for beside the file that mentions it, then in each folder of `search` (the project's and
/// fathom's own `templatelib/`).
///
/// # Errors
///
/// When a file is missing (the places that were looked in are named), can't be read, or extends itself.
pub fn load(name: &Path, search: &[PathBuf]) -> Result<Written> {
    load_chain(name, None, search, &mut Vec::new())
}

/// As [`load`], for a name that stands at `mentioned`.
///
/// # Errors
///
/// As [`load`].
pub fn load_from(name: &str, mentioned: &Origin, search: &[PathBuf]) -> Result<Written> {
    load_chain(Path::new(name), Some(mentioned), search, &mut Vec::new())
}

fn load_chain(
    name: &Path,
    mentioned: Option<&Origin>,
    search: &[PathBuf],
    chain: &mut Vec<PathBuf>,
) -> Result<Written> {
    let beside = mentioned.and_then(|o| Path::new(&*o.file).parent()).map(|p| p.join(name));
    let candidates: Vec<PathBuf> = beside
        .into_iter()
        .chain(mentioned.is_none().then(|| name.to_path_buf()))
        .chain(search.iter().map(|folder| folder.join(name)))
        .collect();
    let Some(path) = candidates.iter().find(|p| p.is_file()) else {
        let place = mentioned.map(|o| format!("{o}: ")).unwrap_or_default();
        let looked: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
        bail!(
            "{place}expected a configuration file, found no `{}`\n  help: looked for {}",
            name.display(),
            looked.join(", ")
        );
    };
    if chain.contains(path) {
        bail!("{}: extends itself", path.display());
    }
    chain.push(path.clone());
    let mut written = Written::read(path)?;
    written.entries("the file")?;
    let Some(extends) = written.take("extends") else { return Ok(written) };
    let bases = match &extends.node {
        Node::List(items) => items.clone(),
        _ => vec![extends.clone()],
    };
    let mut base: Option<Written> = None;
    for item in &bases {
        let name = item.text("extends")?;
        let next = load_chain(Path::new(name), Some(&item.origin), search, chain)?;
        base = Some(match base {
            Some(base) => next.over(base),
            None => next,
        });
    }
    chain.pop();
    Ok(match base {
        Some(base) => written.over(base),
        None => written,
    })
}

/// What some editors begin a file of UTF-8 with.
pub const BYTE_ORDER_MARK: char = '\u{feff}';

/// How deep lists and mappings may stand in one another, and how many values a file may have, aliases expanded: far above what
/// people write, and far below what would exhaust the stack or memory.
const MOST_DEPTH: usize = 100;
const MOST_VALUES: usize = 1_000_000;

/// Turns parser events into values.
struct Builder {
    file: Arc<str>,
    anchors: HashMap<usize, Written>,
    depth: usize,
    values: usize,
}

impl Builder {
    fn value<'a>(
        &mut self,
        event: Event<'a>,
        span: Span,
        events: &mut impl Iterator<Item = Result<(Event<'a>, Span)>>,
    ) -> Result<Written> {
        let origin = self.origin(span);
        self.grow(1, &origin)?;
        if self.depth >= MOST_DEPTH {
            bail!("{origin}: expected at most {MOST_DEPTH} lists and mappings in one another");
        }
        self.depth += 1;
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                if let Some(tag) = tag.filter(|t| !t.is_yaml_core_schema()) {
                    bail!("{origin}: expected a plain value, found the tag `{tag}`");
                }
                let node = scalar(&text, style);
                let is_whole = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
                if matches!(node, Node::Float(_)) && is_whole(text.trim_start_matches(['+', '-'])) {
                    bail!("{origin}: expected whole numbers up to {}, found `{text}`", i64::MAX);
                }
                (node, anchor)
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    let unclosed = || anyhow!("{origin}: a list is not closed");
                    match events.next().ok_or_else(unclosed)?? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.value(event, span, events)?),
                    }
                }
                (Node::List(items), anchor)
            }
            Event::MappingStart(anchor, _) => (Node::Map(self.mapping(&origin, events)?), anchor),
            Event::Alias(anchor) => {
                let unknown = || anyhow!("{origin}: unknown alias");
                let value = self.anchors.get(&anchor).cloned().ok_or_else(unknown)?;
                self.grow(value.count(), &origin)?;
                self.depth -= 1;
                return Ok(value);
            }
            _ => bail!("{origin}: expected a value"),
        };
        self.depth -= 1;
        let value = Written { node, origin };
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn mapping<'a>(
        &mut self,
        origin: &Origin,
        events: &mut impl Iterator<Item = Result<(Event<'a>, Span)>>,
    ) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        let unclosed = || anyhow!("{origin}: a mapping is not closed");
        loop {
            let (key, key_span) = events.next().ok_or_else(unclosed)??;
            let key_origin = self.origin(key_span);
            let key = match key {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.to_string(),
                _ => bail!("{key_origin}: expected a word as a key"),
            };
            let (event, span) = events.next().ok_or_else(unclosed)??;
            let value = self.value(event, span, events)?;
            if key == "<<" {
                merged.extend(value.entries("<<")?.to_vec());
                continue;
            }
            if let Some(first) = entries.iter().find(|e| e.key == key) {
                bail!(
                    "{key_origin}: `{key}` stands here a second time, first at line {}",
                    first.key_origin.line
                );
            }
            entries.push(Entry { key, key_origin, value });
        }
        // A merge key brings only what the mapping does not say itself.
        for entry in merged {
            if !entries.iter().any(|e| e.key == entry.key) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    fn grow(&mut self, values: usize, origin: &Origin) -> Result<()> {
        self.values += values;
        if self.values > MOST_VALUES {
            bail!("{origin}: expected at most {MOST_VALUES} values in a file, aliases expanded");
        }
        Ok(())
    }

    fn origin(&self, span: Span) -> Origin {
        Origin { file: self.file.clone(), line: span.start.line(), column: span.start.col() + 1 }
    }
}

/// A plain scalar by YAML's 1.2 core schema; a quoted one is a string. `1_000_000` is a number too.
fn scalar(text: &str, style: ScalarStyle) -> Node {
    if style != ScalarStyle::Plain {
        return Node::String(text.to_string());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Node::Null,
        "true" | "True" | "TRUE" => return Node::Bool(true),
        "false" | "False" | "FALSE" => return Node::Bool(false),
        ".inf" | "+.inf" => return Node::Float(f64::INFINITY),
        "-.inf" => return Node::Float(f64::NEG_INFINITY),
        ".nan" => return Node::Float(f64::NAN),
        _ => {}
    }
    let begins_like_a_number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    if begins_like_a_number {
        let digits = text.replace('_', "");
        if let Some(hex) = digits.strip_prefix("0x")
            && let Ok(n) = i64::from_str_radix(hex, 16)
        {
            return Node::Int(n);
        }
        if let Ok(n) = digits.parse::<i64>() {
            return Node::Int(n);
        }
        if let Ok(x) = digits.parse::<f64>() {
            return Node::Float(x);
        }
    }
    Node::String(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Written {
        Written::parse("t.yaml", text).unwrap()
    }

    fn error(text: &str) -> String {
        format!("{:#}", Written::parse("t.yaml", text).unwrap_err())
    }

    #[test]
    fn scalars_follow_the_core_schema() {
        let json = parse("[1e-5, 1_000, 0x10, no, '1', ~, true, 1.5, 4M, -3, 1.e3]").to_json();
        let expected =
            serde_json::json!([1e-5, 1000, 16, "no", "1", null, true, 1.5, "4M", -3, 1000.0]);
        assert_eq!(json, expected);
    }

    #[test]
    fn values_know_their_lines() {
        let tree = parse("a: 1\nb:\n  c: [x,\n    y]\n");
        let c = tree.get("b.c").unwrap();
        assert_eq!(c.origin.to_string(), "t.yaml:3");
        assert_eq!(c.items("c").unwrap()[1].origin.to_string(), "t.yaml:4");
    }

    #[test]
    fn broken_files_say_where() {
        assert_eq!(
            error("a: 1\na: 2\n"),
            "t.yaml:2: `a` stands here a second time, first at line 1"
        );
        assert!(error("a: [1\nb: 2").starts_with("t.yaml:2:"), "{}", error("a: [1\nb: 2"));
        assert!(error("a: !x 1").contains("found the tag `!x`"), "{}", error("a: !x 1"));
        // Rounded to what a float can hold, it would be another number.
        assert_eq!(
            error("a: 9223372036854775807\nb: 18446744073709551615"),
            "t.yaml:2: expected whole numbers up to 9223372036854775807, found `18446744073709551615`"
        );
        assert_eq!(parse("a: 1e30").to_json(), serde_json::json!({"a": 1e30}));
    }

    #[test]
    fn a_byte_order_mark_is_passed_over() {
        let tree = parse("\u{feff}a: 1\n");
        assert_eq!(tree.to_json(), serde_json::json!({"a": 1}));
        assert_eq!(tree.get("a").unwrap().origin.to_string(), "t.yaml:1");
        assert!(parse("\u{feff}").entries("it").unwrap().is_empty());
    }

    /// Neither exhausts the stack or memory.
    #[test]
    fn files_that_nest_or_grow_without_end_are_refused() {
        let deep = error(&format!("{}1{}", "[".repeat(150), "]".repeat(150)));
        assert_eq!(deep, "t.yaml:1: expected at most 100 lists and mappings in one another");
        for opening in ["[", "{a: ", "- ", "? "] {
            let deep = error(&opening.repeat(100_000));
            assert!(deep.starts_with("t.yaml:1:"), "{deep}");
        }
        let doubled = (1..40).map(|n| format!("a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1));
        let bomb = format!("a0: &a0 [1]\n{}", doubled.collect::<String>());
        let large = error(&bomb);
        assert!(
            large.ends_with("expected at most 1000000 values in a file, aliases expanded"),
            "{large}"
        );
    }

    #[test]
    fn mappings_merge_and_kinds_replace() {
        let base = parse("train: {lr: 1, optimizer: {type: adamw, eps: 1}, n: 2}");
        let over = parse("train: {lr: 3, optimizer: {type: sgd}}").over(base);
        assert_eq!(
            over.to_json(),
            serde_json::json!({"train": {"lr": 3, "optimizer": {"type": "sgd"}, "n": 2}})
        );
    }

    #[test]
    fn merge_keys_and_aliases_expand() {
        let tree = parse("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n");
        let expected = serde_json::json!({
            "a": {"x": 1, "y": 2}, "b": {"y": 3, "x": 1}, "c": {"x": 1, "y": 2}
        });
        assert_eq!(tree.to_json(), expected);
    }

    #[test]
    fn set_makes_what_is_missing() {
        let mut tree = parse("a: {b: 1}");
        tree.set("a.c.d", Written::from_json("--set", &serde_json::json!(5))).unwrap();
        assert_eq!(tree.to_json(), serde_json::json!({"a": {"b": 1, "c": {"d": 5}}}));
        let wrong = tree.set("a.b.x", Written::from_json("--set", &serde_json::json!(5)));
        let wrong = wrong.unwrap_err().to_string();
        assert_eq!(wrong, "--set: a.b.x: expected a mapping on the way, found `1`");
    }

    #[test]
    fn files_extend_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("base.yaml", "a: 1\nb: {c: 2}\n");
        write("child.yaml", "extends: base.yaml\nb: {d: 3}\n");
        let tree = load(&dir.path().join("child.yaml"), &[]).unwrap();
        assert_eq!(tree.to_json(), serde_json::json!({"a": 1, "b": {"c": 2, "d": 3}}));
        assert!(tree.get("a").unwrap().origin.file.ends_with("base.yaml"));

        write("self.yaml", "extends: self.yaml\n");
        let error = load(&dir.path().join("self.yaml"), &[]).unwrap_err().to_string();
        assert!(error.ends_with("extends itself"), "{error}");
        write("lost.yaml", "extends: nowhere.yaml\n");
        let error = load(&dir.path().join("lost.yaml"), &[]).unwrap_err().to_string();
        assert!(error.contains("lost.yaml:1: expected a configuration file"), "{error}");
    }
}
