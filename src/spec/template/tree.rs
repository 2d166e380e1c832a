//! Rendered text -> a tree of YAML nodes, each with its tag and its origin.

use super::Rendered;
use super::error::Error;
use crate::config::written::Origin;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};
use std::borrow::Cow;
use std::collections::HashMap;

pub(super) type NodeId = usize;

/// The handle of the tags that YAML itself defines.
pub(super) const CORE: &str = "tag:yaml.org,2002:";

/// A node of the YAML text. Children are indices into the tree, so that aliases share them.
pub(super) struct Yaml {
    pub content: Content,
    /// In full: `!singleton:torch.nn:Linear`, `tag:yaml.org,2002:float`.
    pub tag: Option<String>,
    pub origin: Origin,
}

pub(super) enum Content {
    /// Text, and whether it stands without quotes.
    Scalar(String, bool),
    Sequence(Vec<NodeId>),
    Mapping(Vec<(NodeId, NodeId)>),
}

pub(super) struct Tree {
    pub nodes: Vec<Yaml>,
    pub root: Option<NodeId>,
}

/// Reads parser events into a tree.
struct Reader<'a> {
    rendered: &'a Rendered,
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    nodes: Vec<Yaml>,
    anchors: HashMap<usize, NodeId>,
    /// Where the event before the last one ended, and where the last one did.
    before: Marker,
    after: Marker,
    /// The byte that each line begins at.
    line_starts: Vec<usize>,
    /// Of the text, in characters.
    length: usize,
    /// Whether the last line has no line break.
    is_unended: bool,
}

impl Tree {
    /// Reads the text of a rendering.
    pub fn read(rendered: &Rendered) -> Result<Tree, Error> {
        let mut reader = Reader {
            rendered,
            events: Parser::new_from_str(&rendered.text),
            nodes: Vec::new(),
            anchors: HashMap::new(),
            before: Marker::default(),
            after: Marker::default(),
            line_starts: std::iter::once(0)
                .chain(rendered.text.match_indices('\n').map(|(at, _)| at + 1))
                .collect(),
            length: rendered.text.chars().count(),
            is_unended: !rendered.text.ends_with('\n'),
        };
        let mut root = None;
        loop {
            match reader.next()? {
                (Event::StreamEnd, _) => break,
                (Event::DocumentStart(_), _) if root.is_none() => {}
                (Event::StreamStart | Event::DocumentEnd, _) => {}
                (_, span) if root.is_some() => {
                    return Err(Error::yaml(
                        &reader.at(span),
                        "expected one document, found a second",
                    ));
                }
                (event, span) => root = Some(reader.node(event, span)?),
            }
        }
        Ok(Tree { nodes: reader.nodes, root })
    }
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Error> {
        self.before = self.after;
        match self.events.next() {
            Some(Ok((event, span))) => {
                self.after = span.end;
                Ok((event, span))
            }
            Some(Err(error)) => {
                let origin = self.origin(*error.marker());
                let message = format!("expected YAML, found an error: {}", error.info());
                let line = self.rendered.text.lines().nth(error.marker().line().saturating_sub(1));
                let error = Error::yaml(&origin, message);
                Err(match line.map(str::trim).filter(|line| !line.is_empty()) {
                    Some(line) => error.help(format!("the rendered line is `{line}`")),
                    None => error,
                })
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn origin(&self, marker: Marker) -> Origin {
        self.rendered.origin(marker.line(), marker.col())
    }

    fn at(&self, span: Span) -> Origin {
        self.origin(span.start)
    }

    /// Where a node begins: at its tag, where it has one. The parser only tells where its content does, and puts content
    /// that is not there before the next that is.
    fn beginning(&self, span: Span, tag: Option<&Tag>) -> Origin {
        let (from, to) = (self.byte(self.before), self.byte(span.start));
        let between = self.rendered.text.get(from..to).unwrap_or_default();
        let tag = tag.map(|tag| match tag.handle.as_str() {
            CORE => format!("!!{}", tag.suffix),
            handle => format!("{handle}{}", tag.suffix),
        });
        match tag.and_then(|tag| between.rfind(&tag)) {
            Some(at) => {
                let line = self.line_starts.partition_point(|start| *start <= from + at);
                let column =
                    self.rendered.text[self.line_starts[line - 1]..from + at].chars().count();
                self.rendered.origin(line, column)
            }
            None if span.start.index() == span.end.index() && self.before.line() > 0 => {
                self.origin(self.before)
            }
            None => self.at(span),
        }
    }

    /// The byte that a place stands at.
    fn byte(&self, place: Marker) -> usize {
        let start = self.line_starts.get(place.line().saturating_sub(1)).copied().unwrap_or(0);
        let line = &self.rendered.text[start..];
        start + line.char_indices().nth(place.col()).map_or(line.len(), |(at, _)| at)
    }

    /// Reads the node that begins with `event`.
    fn node(&mut self, event: Event<'a>, span: Span) -> Result<NodeId, Error> {
        let origin = match &event {
            Event::Scalar(_, _, _, tag) => self.beginning(span, tag.as_deref()),
            Event::SequenceStart(_, Some(tag)) | Event::MappingStart(_, Some(tag)) => {
                self.beginning(span, Some(tag))
            }
            _ => self.at(span),
        };
        let (content, anchor, tag) = match event {
            Event::Alias(anchor) => {
                return self.anchors.get(&anchor).copied().ok_or_else(|| {
                    Error::yaml(
                        &origin,
                        "expected an alias of an anchor above, found an unknown one",
                    )
                });
            }
            Event::Scalar(text, style, anchor, tag) => {
                // The parser writes `~` for a value that is not there.
                let absent = text == "~" && span.start.index() == span.end.index();
                let mut text = if absent { String::new() } else { text.into_owned() };
                let is_block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                // The parser ends a block with the line break that the end of the text lacks.
                if is_block && span.end.index() >= self.length && self.is_unended {
                    text.truncate(text.strip_suffix('\n').unwrap_or(&text).len());
                }
                (Content::Scalar(text, style == ScalarStyle::Plain), anchor, tag)
            }
            Event::SequenceStart(anchor, tag) => (Content::Sequence(Vec::new()), anchor, tag),
            Event::MappingStart(anchor, tag) => (Content::Mapping(Vec::new()), anchor, tag),
            _ => return Err(Error::yaml(&origin, "expected a value")),
        };
        let id = self.nodes.len();
        self.nodes.push(Yaml { content, tag: tag.map(full_tag), origin });
        if anchor > 0 {
            self.anchors.insert(anchor, id);
        }
        match &self.nodes[id].content {
            Content::Scalar(..) => {}
            Content::Sequence(_) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd | Event::StreamEnd, _) => break,
                        (event, span) => items.push(self.node(event, span)?),
                    }
                }
                self.nodes[id].content = Content::Sequence(items);
            }
            Content::Mapping(_) => {
                let mut pairs = Vec::new();
                loop {
                    match self.next()? {
                        (Event::MappingEnd | Event::StreamEnd, _) => break,
                        (event, span) => {
                            let key = self.node(event, span)?;
                            let (event, span) = self.next()?;
                            pairs.push((key, self.node(event, span)?));
                        }
                    }
                }
                self.nodes[id].content = Content::Mapping(pairs);
            }
        }
        Ok(id)
    }
}

fn full_tag(tag: Cow<'_, Tag>) -> String {
    format!("{}{}", tag.handle, tag.suffix)
}
