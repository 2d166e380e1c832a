//! A tree of YAML nodes -> the graph: what plain words mean in YAML 1.1, merge keys, and what each tag stands for.
//!
//! The graph is built top down, so that ids count the nodes in the order in which they are met.

use super::Rendered;
use super::error::Error;
use super::graph::{Graph, Kind, Located, Node, Value, Var};
use super::near;
use super::scalar::{self, Scalar};
use super::tree::{CORE, Content, NodeId, Tree, Yaml};
use crate::config::written::Origin;
use regex::Regex;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

/// Reads the text of a rendering into a graph.
pub(super) fn graph(rendered: &Rendered) -> Result<Graph, Error> {
    let tree = Tree::read(rendered)?;
    let Some(root) = tree.root else {
        return Ok(Graph { entries: Vec::new(), origin: rendered.origin(1, 0) });
    };
    let mut builder = Builder {
        tree: &tree,
        built: HashMap::new(),
        open: HashSet::new(),
        names: HashMap::new(),
        beaten: Vec::new(),
        count: 0,
    };
    builder.root(root)
}

/// Builds graph values from the tree.
struct Builder<'a> {
    tree: &'a Tree,
    built: HashMap<NodeId, Located>,
    /// Nodes whose children are being built: meeting one again means that it holds itself.
    open: HashSet<NodeId>,
    /// Where each `@name` was given.
    names: HashMap<String, Origin>,
    /// Values of keys that stood again, which must be right all the same.
    beaten: Vec<NodeId>,
    /// How many nodes were met.
    count: usize,
}

impl Builder<'_> {
    fn yaml(&self, id: NodeId) -> &Yaml {
        &self.tree.nodes[id]
    }

    fn root(&mut self, root: NodeId) -> Result<Graph, Error> {
        let origin = self.yaml(root).origin.clone();
        let Content::Mapping(_) = self.yaml(root).content else {
            let found = self.describe(root);
            return Err(Error::yaml(
                &origin,
                format!("expected a mapping at the top, found {found}"),
            ));
        };
        self.check_names(root)?;
        let pairs = self.pairs(root)?;
        let is_kept = |(key, _): &&(String, NodeId)| !key.starts_with('.');
        let mut entries = Vec::new();
        for (key, value) in pairs.iter().filter(is_kept) {
            entries.push((key.clone(), self.value(*value)?));
        }
        // What is dropped must be right all the same.
        for (_, value) in pairs.iter().filter(|pair| !is_kept(pair)) {
            self.value(*value)?;
        }
        let names = self.names.clone();
        while let Some(beaten) = self.beaten.pop() {
            self.names.clear();
            self.value(beaten)?;
        }
        self.names = names;
        Ok(Graph { entries, origin })
    }

    fn value(&mut self, id: NodeId) -> Result<Located, Error> {
        if let Some(built) = self.built.get(&id) {
            return Ok(built.clone());
        }
        let yaml = &self.tree.nodes[id];
        let origin = yaml.origin.clone();
        if !self.open.insert(id) {
            return Err(Error::yaml(
                &origin,
                "expected an alias of a finished node, found a node inside itself",
            ));
        }
        let value = match &yaml.tag {
            Some(tag) => self.tagged(id, &tag.clone(), &origin)?,
            None => self.plain(id)?,
        };
        self.open.remove(&id);
        let located = Located { value, origin };
        self.built.insert(id, located.clone());
        Ok(located)
    }

    fn plain(&mut self, id: NodeId) -> Result<Value, Error> {
        match &self.tree.nodes[id].content {
            Content::Scalar(text, true) => self.resolved(id, text),
            Content::Scalar(text, false) => Ok(Value::String(text.clone())),
            Content::Sequence(items) => Ok(Value::List(self.values(items)?)),
            Content::Mapping(_) => Ok(Value::Dict(self.entries(id)?)),
        }
    }

    fn values(&mut self, items: &[NodeId]) -> Result<Vec<Located>, Error> {
        items.iter().map(|item| self.value(*item)).collect()
    }

    /// The entries of a mapping whose keys name arguments, so that they must be words.
    fn named_entries(&mut self, id: NodeId) -> Result<Vec<(String, Located)>, Error> {
        self.check_names(id)?;
        self.entries(id)
    }

    fn check_names(&self, id: NodeId) -> Result<(), Error> {
        for (key, _) in self.flattened(id, &mut HashSet::new())? {
            let yaml = self.yaml(key);
            if let Content::Scalar(text, true) = &yaml.content
                && yaml.tag.is_none()
                && !matches!(scalar::resolve(text), Scalar::String)
            {
                let message = format!("expected a word as a name, found `{text}`");
                return Err(
                    Error::yaml(&yaml.origin, message).help(format!("quote it: `'{text}'`"))
                );
            }
        }
        Ok(())
    }

    fn entries(&mut self, id: NodeId) -> Result<Vec<(String, Located)>, Error> {
        let pairs = self.pairs(id)?;
        pairs.into_iter().map(|(key, value)| Ok((key, self.value(value)?))).collect()
    }

    fn resolved(&self, id: NodeId, text: &str) -> Result<Value, Error> {
        let refused = |what: &str| {
            let found =
                format!("expected a value that a graph can hold, found the {what} `{text}`");
            Err(Error::yaml(&self.yaml(id).origin, found).help(format!("quote it: `'{text}'`")))
        };
        Ok(match scalar::resolve(text) {
            Scalar::Null => Value::Null,
            Scalar::Bool(b) => Value::Bool(b),
            Scalar::Int(n) => Value::Int(n),
            Scalar::Float(x) => Value::Float(x),
            Scalar::String => Value::String(text.to_string()),
            Scalar::Timestamp => return refused("date"),
            Scalar::TooLarge => return refused("integer beyond 64 bits"),
        })
    }

    /// The pairs of a mapping, merge keys resolved, the last of equal keys kept at the place of the first.
    fn pairs(&mut self, id: NodeId) -> Result<Vec<(String, NodeId)>, Error> {
        let mut pairs: Vec<(String, NodeId)> = Vec::new();
        for (key, value) in self.flattened(id, &mut HashSet::new())? {
            let key = self.key(key)?;
            match pairs.iter_mut().find(|(known, _)| *known == key) {
                Some((_, old)) => self.beaten.push(std::mem::replace(old, value)),
                None => pairs.push((key, value)),
            }
        }
        Ok(pairs)
    }

    /// The pairs of a mapping: those that it merges first, so that its own win.
    fn flattened(
        &self,
        id: NodeId,
        merging: &mut HashSet<NodeId>,
    ) -> Result<Vec<(NodeId, NodeId)>, Error> {
        let yaml = self.yaml(id);
        let Content::Mapping(pairs) = &yaml.content else {
            let found = self.describe(id);
            return Err(Error::yaml(
                &yaml.origin,
                format!("expected a mapping to merge, found {found}"),
            ));
        };
        if !merging.insert(id) {
            return Err(Error::yaml(
                &yaml.origin,
                "expected a mapping to merge, found one that merges itself",
            ));
        }
        let mut merged = Vec::new();
        let mut own = Vec::new();
        for (key, value) in pairs {
            if !self.is_merge(*key) {
                own.push((*key, *value));
                continue;
            }
            match &self.yaml(*value).content {
                // The first of several wins.
                Content::Sequence(items) => {
                    for item in items.iter().rev() {
                        merged.extend(self.flattened(*item, merging)?);
                    }
                }
                _ => merged.extend(self.flattened(*value, merging)?),
            }
        }
        merging.remove(&id);
        merged.extend(own);
        Ok(merged)
    }

    fn is_merge(&self, key: NodeId) -> bool {
        let yaml = self.yaml(key);
        yaml.tag.is_none() && matches!(&yaml.content, Content::Scalar(text, true) if text == "<<")
    }

    /// A key as text: what is no string is written as JSON writes it.
    fn key(&self, id: NodeId) -> Result<String, Error> {
        let yaml = self.yaml(id);
        let Content::Scalar(text, plain) = &yaml.content else {
            let found = self.describe(id);
            return Err(Error::yaml(
                &yaml.origin,
                format!("expected a word as a key, found {found}"),
            ));
        };
        if !plain || yaml.tag.is_some() {
            return Ok(text.clone());
        }
        Ok(match self.resolved(id, text)? {
            Value::Null => "null".into(),
            Value::Bool(b) => b.to_string(),
            Value::Int(n) => n.to_string(),
            _ => text.clone(),
        })
    }

    fn tagged(&mut self, id: NodeId, tag: &str, origin: &Origin) -> Result<Value, Error> {
        if let Some(core) = tag.strip_prefix(CORE) {
            return self.core(id, core, origin);
        }
        let word = tag.trim_start_matches('!');
        let (kind, rest) = word.split_at(word.find([':', '@']).unwrap_or(word.len()));
        let rest = rest.strip_prefix(':').unwrap_or(rest);
        let (target, name) = match rest.split_once('@') {
            Some((target, name)) => (target, Some(name).filter(|name| !name.is_empty())),
            None => (rest, None),
        };
        let call = |kind: Kind| {
            if target.is_empty() {
                let message = format!("expected what to build after the tag, found `{tag}` alone");
                return Err(Error::yaml(origin, message).help("as in `!singleton:name`"));
            }
            Ok(Called { kind, target: target.to_string() })
        };
        let builtin = |target: &str| Called { kind: Kind::Singleton, target: target.to_string() };
        match kind {
            "" => match &self.yaml(id).content {
                Content::Scalar(text, _) => Ok(Value::String(text.clone())),
                _ => self.plain(id),
            },
            "singleton" | "call" => self.node(id, call(Kind::Singleton)?, name, Arguments::Any),
            "factory" => self.node(id, call(Kind::Factory)?, name, Arguments::Any),
            "partial" | "lambda" => self.node(id, call(Kind::Partial)?, name, Arguments::Any),
            "meta" => self.node(id, call(Kind::Meta)?, name, Arguments::Any),
            "list" => self.node(id, builtin("named_list"), name, Arguments::Items),
            "tuple" => self.node(id, builtin("named_tuple"), name, Arguments::Items),
            "dict" => self.node(id, builtin("named_dict"), name, Arguments::Keys),
            "dlist" => self.node(id, builtin("named_list"), name, Arguments::Values),
            "var" => self.var(id, origin),
            _ => Err(self.unknown_tag(tag, kind, origin)),
        }
    }

    fn unknown_tag(&self, tag: &str, kind: &str, origin: &Origin) -> Error {
        const KINDS: [&str; 11] = [
            "singleton",
            "call",
            "factory",
            "partial",
            "lambda",
            "meta",
            "var",
            "list",
            "tuple",
            "dict",
            "dlist",
        ];
        let error = Error::yaml(origin, format!("expected a tag of the language, found `{tag}`"));
        match near::to(kind, KINDS) {
            Some(near) => error.help(format!("did you mean `!{near}`?")),
            None => error
                .help(format!("tags are {}", KINDS.map(|kind| format!("`!{kind}`")).join(", "))),
        }
    }

    /// The tags that YAML itself defines, `!!float` and its kin.
    fn core(&mut self, id: NodeId, core: &str, origin: &Origin) -> Result<Value, Error> {
        let Content::Scalar(text, _) = &self.tree.nodes[id].content else {
            return match core {
                "seq" | "map" => self.plain(id),
                _ => Err(Error::yaml(
                    origin,
                    format!("expected a value that a graph can hold, found the tag `!!{core}`"),
                )),
            };
        };
        let wrong =
            || Error::yaml(origin, format!("expected a value for `!!{core}`, found `{text}`"));
        match core {
            "str" => Ok(Value::String(text.clone())),
            "null" => Ok(Value::Null),
            "int" => scalar::int(text).map(Value::Int).ok_or_else(wrong),
            "float" => scalar::float(text).map(Value::Float).ok_or_else(wrong),
            "bool" => match scalar::resolve(text) {
                Scalar::Bool(b) => Ok(Value::Bool(b)),
                _ => Err(wrong()),
            },
            _ => Err(Error::yaml(
                origin,
                format!("expected a value that a graph can hold, found the tag `!!{core}`"),
            )),
        }
    }

    fn node(
        &mut self,
        id: NodeId,
        called: Called,
        name: Option<&str>,
        takes: Arguments,
    ) -> Result<Value, Error> {
        let origin = self.yaml(id).origin.clone();
        if let Some(name) = name
            && let Some(before) = self.names.insert(name.to_string(), origin.clone())
        {
            let message = format!("expected a name that no other node has, found `@{name}`");
            return Err(
                Error::yaml(&origin, message).help(format!("`@{name}` stands at {before} already"))
            );
        }
        let number = format!("#{}", self.count);
        self.count += 1;
        let (args, kwargs) = match takes {
            Arguments::Any => self.arguments(id)?,
            Arguments::Items => (self.list_argument(id, &called.target)?, Vec::new()),
            Arguments::Values => (self.values_argument(id)?, Vec::new()),
            Arguments::Keys => (Vec::new(), self.dict_arguments(id)?),
        };
        let id = name.map_or(number, str::to_string);
        let node = Node { kind: called.kind, target: called.target, id, args, kwargs, origin };
        Ok(Value::Node(Arc::new(node)))
    }

    /// Positional and keyword arguments, by the shape of what stands after the tag.
    fn arguments(&mut self, id: NodeId) -> Result<Given, Error> {
        let yaml = &self.tree.nodes[id];
        match &yaml.content {
            Content::Scalar(text, _) if text.is_empty() => Ok((Vec::new(), Vec::new())),
            Content::Scalar(text, _) => {
                let value = Value::String(text.clone());
                Ok((vec![Located { value, origin: yaml.origin.clone() }], Vec::new()))
            }
            Content::Sequence(items) => Ok((self.values(items)?, Vec::new())),
            Content::Mapping(_) => {
                let mut entries = self.named_entries(id)?;
                entries.retain(|(key, _)| key != "submodule_searchpath");
                split_arguments(entries)
            }
        }
    }

    fn list_argument(&mut self, id: NodeId, target: &str) -> Result<Vec<Located>, Error> {
        let yaml = &self.tree.nodes[id];
        let origin = yaml.origin.clone();
        match &yaml.content {
            Content::Sequence(items) => {
                let value = Value::List(self.values(items)?);
                Ok(vec![Located { value, origin }])
            }
            Content::Scalar(text, _) if text.is_empty() => Ok(Vec::new()),
            _ => Err(self.wrong_shape(
                id,
                if target == "named_tuple" { "!tuple" } else { "!list" },
                "a list",
            )),
        }
    }

    /// The values of a `!dlist`, in the order of its keys, without those that are null.
    fn values_argument(&mut self, id: NodeId) -> Result<Vec<Located>, Error> {
        let yaml = &self.tree.nodes[id];
        let origin = yaml.origin.clone();
        match &yaml.content {
            Content::Mapping(_) => {
                let entries = self.entries(id)?;
                let values = entries.into_iter().map(|(_, value)| value);
                let kept = values.filter(|value| !matches!(value.value, Value::Null)).collect();
                Ok(vec![Located { value: Value::List(kept), origin }])
            }
            Content::Scalar(text, _) if text.is_empty() => Ok(Vec::new()),
            _ => Err(self.wrong_shape(id, "!dlist", "a mapping")),
        }
    }

    fn dict_arguments(&mut self, id: NodeId) -> Result<Vec<(String, Located)>, Error> {
        match &self.tree.nodes[id].content {
            Content::Mapping(_) => self.named_entries(id),
            Content::Scalar(text, _) if text.is_empty() => Ok(Vec::new()),
            _ => Err(self.wrong_shape(id, "!dict", "a mapping")),
        }
    }

    fn wrong_shape(&self, id: NodeId, tag: &str, expected: &str) -> Error {
        let found = self.describe(id);
        Error::yaml(
            &self.yaml(id).origin,
            format!("expected {expected} after `{tag}`, found {found}"),
        )
    }

    fn var(&mut self, id: NodeId, origin: &Origin) -> Result<Value, Error> {
        let (name, default) = match &self.tree.nodes[id].content {
            Content::Scalar(text, _) => (text.clone(), None),
            Content::Sequence(items) => {
                let mut values = self.values(items)?.into_iter();
                match (values.next().map(|name| name.value), values.next(), values.next()) {
                    (Some(Value::String(name)), default, None) => (name, default),
                    _ => return Err(self.wrong_shape(id, "!var", "`[name, default]`")),
                }
            }
            Content::Mapping(_) => {
                let mut entries = self.entries(id)?;
                let mut take = |key: &str| {
                    let at = entries.iter().position(|(known, _)| known == key)?;
                    Some(entries.remove(at).1)
                };
                let (name, default) = (take("name"), take("default"));
                match (name.map(|name| name.value), entries.is_empty()) {
                    (Some(Value::String(name)), true) => (name, default),
                    _ => return Err(self.wrong_shape(id, "!var", "`{ name, default }`")),
                }
            }
        };
        if name.is_empty() {
            return Err(Error::yaml(origin, "expected a name after `!var`, found none"));
        }
        Ok(Value::Var(Arc::new(Var { name, default, origin: origin.clone() })))
    }

    fn describe(&self, id: NodeId) -> String {
        match &self.yaml(id).content {
            Content::Scalar(text, _) if text.is_empty() => "nothing".into(),
            Content::Scalar(text, _) => format!("`{text}`"),
            Content::Sequence(items) => format!("a list of {}", items.len()),
            Content::Mapping(pairs) => format!("a mapping of {} keys", pairs.len()),
        }
    }
}

/// Positional and keyword arguments.
type Given = (Vec<Located>, Vec<(String, Located)>);

/// What a tag calls.
struct Called {
    kind: Kind,
    target: String,
}

/// How what stands after a tag becomes arguments.
enum Arguments {
    Any,
    Items,
    Values,
    Keys,
}

/// Splits a mapping: `args` and `kwargs` alone give the arguments themselves, else keys `arg0`, `arg1`, … are positional.
fn split_arguments(entries: Vec<(String, Located)>) -> Result<Given, Error> {
    static POSITIONAL: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^arg(\d+)$").expect("a constant"));
    let is_given = |key: &str| {
        entries.iter().any(|(known, value)| known == key && !matches!(value.value, Value::Null))
    };
    let (args, kwargs) = (is_given("args"), is_given("kwargs"));
    if args as usize + kwargs as usize == entries.len() && !entries.is_empty() {
        let mut result = (Vec::new(), Vec::new());
        for (key, value) in entries {
            match (key.as_str(), value.value) {
                ("args", Value::List(items) | Value::Tuple(items)) => result.0 = items,
                ("kwargs", Value::Dict(entries)) => result.1 = entries,
                ("args", other) => {
                    let message =
                        format!("expected `args` to be a list, found {}", other.describe());
                    return Err(Error::yaml(&value.origin, message));
                }
                (_, other) => {
                    let message =
                        format!("expected `kwargs` to be a mapping, found {}", other.describe());
                    return Err(Error::yaml(&value.origin, message));
                }
            }
        }
        return Ok(result);
    }
    let index = |key: &str| POSITIONAL.captures(key).and_then(|found| found[1].parse::<u64>().ok());
    let (positional, named): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|(key, _)| index(key).is_some());
    let mut positional = positional;
    positional.sort_by_key(|(key, _)| index(key));
    Ok((positional.into_iter().map(|(_, value)| value).collect(), named))
}
