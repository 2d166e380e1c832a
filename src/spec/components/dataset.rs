//! A dataset project's targets: documents in named splits, one split, or a split's blocks.

use super::catalog::BLOCK_TOKENIZE_FN;
use super::values::{Scope, from_json, to_json, to_written};
use super::{Bound, Note, bind, bind_to, check, of};
use crate::config::written::{Node as WrittenNode, Origin, Written};
use crate::config::{DataSection, from_written, nearest};
use crate::project::Project;
use crate::template::graph::{Graph, Kind as NodeKind, Located, Node, Value};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value as Json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The variable through which a training project says how blocks are to be.
pub const PREPROCESS_ARGS: &str = "preprocess_args";
/// The variable through which the user of a dataset says with what it is tokenized.
pub const TOKENIZER: &str = "tokenizer";

/// What a target is.
#[derive(Debug, Clone)]
pub enum Target {
    /// What `load_dataset` makes.
    Splits(Documents),
    /// One split of it.
    Split(Documents, String),
    /// What `preprocess_dataset` makes.
    Blocks(Box<Blocks>),
    /// Any other component, and what it is given.
    Component(Arc<Node>),
    /// Anything else.
    Plain(Json),
}

/// Text files in named splits.
#[derive(Debug, Clone)]
pub struct Documents {
    /// A folder, or an archive of one.
    pub data_dir: Located,
    /// Split -> file name patterns, in the order of the text; empty when every file is of the split `train`.
    pub splits: Vec<(String, Located)>,
    /// `document`, `paragraph` or `line`.
    pub sample_by: Located,
    pub origin: Origin,
}

/// Documents of a split, tokenized and cut into blocks.
#[derive(Debug, Clone)]
pub struct Blocks {
    pub documents: Documents,
    pub split: String,
    /// The most tokens in a block, and where that was said.
    pub max_length: Located,
    /// The tokenizer's path, or the word `bytes`, where one is named.
    pub tokenizer: Option<Located>,
    /// The section `data` of a run on these blocks, in its written form.
    pub written: Written,
    /// The same, complete and typed.
    pub data: DataSection,
    pub origin: Origin,
}

/// Resolves a target of a dataset project, with values for its variables.
///
/// # Errors
///
/// When there is no such target, or it is not one of a dataset: with its place in the templates.
pub fn resolve(
    graph: &Graph,
    target: &str,
    vars: &Map<String, Json>,
) -> Result<(Target, Vec<Note>)> {
    let mut notes = check::graph(graph)?;
    let scope = Scope::from_json("the command line", vars);
    let target = Resolver::new(&mut notes).target(graph, target, &scope)?;
    Ok((target, notes))
}

/// The value of a target.
///
/// # Errors
///
/// When there is none of the name: with the nearest one.
pub fn entry<'a>(graph: &'a Graph, target: &str) -> Result<&'a Located> {
    graph.get(target).ok_or_else(|| {
        let names = || graph.entries.iter().map(|(name, _)| name.as_str());
        let near = nearest(target, names());
        let help = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
        let known: Vec<&str> = names().collect();
        anyhow!(
            "{}: expected a target, found none named `{target}`\n  help: {help}known here: {}",
            graph.origin.file,
            known.join(", ")
        )
    })
}

/// Resolves values of a graph and of the projects that it takes targets from.
pub(super) struct Resolver<'a> {
    notes: &'a mut Vec<Note>,
    /// The projects that were opened, by the node that asked for each.
    projects: Vec<(*const Node, Arc<Other>)>,
}

/// Another project, rendered, and the values of its variables.
struct Other {
    graph: Graph,
    scope: Scope,
}

impl Resolver<'_> {
    pub fn new(notes: &mut Vec<Note>) -> Resolver<'_> {
        Resolver { notes, projects: Vec::new() }
    }

    pub fn target(&mut self, graph: &Graph, name: &str, scope: &Scope) -> Result<Target> {
        self.value(entry(graph, name)?, scope)
    }

    pub fn value(&mut self, value: &Located, scope: &Scope) -> Result<Target> {
        let value = scope.plain(value)?;
        let Value::Node(node) = &value.value else {
            return Ok(Target::Plain(to_json(&value.value)));
        };
        match of(node)?.name {
            "load_dataset" => load_dataset(node, scope),
            "preprocess_dataset" => Ok(Target::Blocks(Box::new(self.blocks(node, scope)?))),
            "getitem" => self.item(node, scope),
            _ => Ok(Target::Component(node.clone())),
        }
    }

    fn item(&mut self, node: &Node, scope: &Scope) -> Result<Target> {
        let bound = bind(node)?;
        let container = bound.needed(scope, "container")?;
        let key = bound.needed(scope, "key")?;
        let name = match &key.value {
            Value::String(name) => name.clone(),
            other => to_json(other).to_string(),
        };
        if let Value::Node(project) = &container.value
            && of(project)?.name == "from_project"
        {
            let other = self.open(project, scope)?;
            return self.target(&other.graph, &name, &other.scope);
        }
        match self.value(&container, scope)? {
            Target::Splits(documents) => {
                documents.check_split(&name, &key.origin)?;
                Ok(Target::Split(documents, name))
            }
            Target::Plain(Json::Object(map)) if map.contains_key(&name) => {
                Ok(Target::Plain(map[&name].clone()))
            }
            Target::Plain(Json::Array(items)) => {
                let item = name.parse::<usize>().ok().and_then(|index| items.get(index));
                let missing = || {
                    anyhow!(
                        "{}: getitem: expected one of {} items, found `{name}`",
                        key.origin,
                        items.len()
                    )
                };
                Ok(Target::Plain(item.ok_or_else(missing)?.clone()))
            }
            _ => bail!("{}: getitem: expected something that has `{name}`", key.origin),
        }
    }

    /// The project of a `from_project`, rendered once however many targets are taken of it.
    fn open(&mut self, node: &Arc<Node>, scope: &Scope) -> Result<Arc<Other>> {
        let key = Arc::as_ptr(node);
        if let Some((_, other)) = self.projects.iter().find(|(asked, _)| *asked == key) {
            return Ok(other.clone());
        }
        let bound = bind(node)?;
        let folder = bound.needed(scope, "project_dir")?;
        let project = Project::open(Path::new(&text(&folder)))
            .with_context(|| format!("{}: from_project.project_dir", folder.origin))?;
        let config = bound.value(scope, "config_template")?;
        let name =
            project.config_name(config.as_ref().map(text).as_deref()).with_context(|| {
                format!("{}: from_project.config_template", bound.origin_of("config_template"))
            })?;
        let vars = bound.or_default(scope, "pp_kwargs")?;
        let Json::Object(vars) = to_json(&vars.value) else { unreachable!("it is a mapping") };
        let rendered = project.render(&name, &vars)?;
        if let Some((unread, _)) = vars.iter().find(|(name, _)| !rendered.read.contains(*name)) {
            bail!(
                "{}: from_project.pp_kwargs: expected variables that `{name}` reads, found `{unread}`, which none of its templates reads",
                bound.origin_of("pp_kwargs")
            );
        }
        let lints = rendered.lints.iter();
        self.notes
            .extend(lints.map(|l| Note { origin: l.origin.clone(), message: l.message.clone() }));
        let graph = rendered.graph()?;
        self.notes.extend(check::graph(&graph)?);
        let read = variables(&graph);
        let mut given = Vec::new();
        for (name, value) in &bound.others {
            if !read.contains(*name) {
                let message = format!("nothing in project `{}` reads `{name}`", project.name);
                self.notes.push(Note { origin: value.origin.clone(), message });
            }
            given.push((name.to_string(), scope.plain(value)?));
        }
        let other = Arc::new(Other { graph, scope: Scope::new(given) });
        self.projects.push((key, other.clone()));
        Ok(other)
    }

    fn blocks(&mut self, node: &Node, scope: &Scope) -> Result<Blocks> {
        let bound = bind(node)?;
        let dataset = bound.needed(scope, "dataset")?;
        let (documents, split) = match self.value(&dataset, scope)? {
            Target::Split(documents, split) => (documents, split),
            Target::Splits(_) => bail!(
                "{}: preprocess_dataset: expected one split, found all of them\n  help: take one with `!call:getitem [ *dataset_dict, \"train\" ]`",
                node.origin
            ),
            _ => bail!(
                "{}: preprocess_dataset: expected a split of load_dataset, found {}",
                dataset.origin,
                dataset.value.describe()
            ),
        };
        let function = self.map_function(&bound, scope)?;
        let mut data = Written { node: WrittenNode::Map(Vec::new()), origin: node.origin.clone() };
        documents.write(&mut data)?;
        function.write(&mut data)?;
        if let Some(range) = bound.value(scope, "select_range")? {
            data.set(&format!("select.{split}"), to_written(&range)?)?;
        }
        if let Some(Located { value: Value::Dict(entries), .. }) =
            bound.value(scope, "map_kwargs")?
            && let Some((_, size)) = entries.iter().find(|(name, _)| name == "batch_size")
        {
            data.set("pack_batch_documents", to_written(size)?)?;
        }
        let max_length = function.or_default("max_length")?;
        let section = section(&data, &max_length)?;
        Ok(Blocks {
            documents,
            split,
            max_length,
            tokenizer: tokenizer(&bound, scope)?,
            written: data,
            data: section,
            origin: node.origin.clone(),
        })
    }

    /// The map function with what wins over its own arguments.
    fn map_function(&mut self, bound: &Bound, scope: &Scope) -> Result<MapFunction> {
        let function = bound.needed(scope, "map_fn")?;
        let Value::Node(node) = &function.value else { bail!("{}: not a node", function.origin) };
        let component = of(node)?;
        if component.name != BLOCK_TOKENIZE_FN.name {
            bail!(
                "{}: preprocess_dataset.map_fn: expected `{}`, found `{}`",
                function.origin,
                BLOCK_TOKENIZE_FN.name,
                component.name
            );
        }
        if node.kind != NodeKind::Partial {
            bail!(
                "{}: preprocess_dataset.map_fn: expected `!partial:{}`, found `!{}`",
                function.origin,
                node.target,
                node.kind.name()
            );
        }
        let mut arguments: Vec<(String, Located)> = Vec::new();
        for (argument, value) in bind(node)?.given {
            arguments.push((argument.name.to_string(), scope.plain(value)?));
        }
        let winning = bound.value(scope, "fn_kwargs")?;
        if let Some(Located { value: Value::Dict(entries), origin }) = &winning {
            let bound = bind_to(&BLOCK_TOKENIZE_FN, origin, &[], entries)
                .with_context(|| format!("the arguments that `{PREPROCESS_ARGS}` gives"))?;
            self.notes.extend(check::arguments(&bound)?);
            for (name, value) in entries.iter().filter(|(_, v)| !matches!(v.value, Value::Null)) {
                arguments.retain(|(own, _)| own != name);
                arguments.push((name.clone(), value.clone()));
            }
        } else if let Some(other) = winning {
            bail!(
                "{}: preprocess_dataset.fn_kwargs: expected a mapping, found {}",
                other.origin,
                other.value.describe()
            );
        }
        Ok(MapFunction { arguments, origin: node.origin.clone() })
    }
}

fn tokenizer(bound: &Bound, scope: &Scope) -> Result<Option<Located>> {
    match bound.get("tokenizer").map(|value| scope.lookup(value)).transpose()?.flatten() {
        Some(given) => tokenizer_path(scope, &given),
        // Whoever only looks at documents gives none.
        None => Ok(None),
    }
}

fn text(value: &Located) -> String {
    match &value.value {
        Value::String(text) => text.clone(),
        other => to_json(other).to_string(),
    }
}

/// The names of the variables that a graph reads.
fn variables(graph: &Graph) -> BTreeSet<String> {
    fn collect(value: &Located, names: &mut BTreeSet<String>) {
        match &value.value {
            Value::List(items) | Value::Tuple(items) => {
                items.iter().for_each(|item| collect(item, names));
            }
            Value::Dict(entries) => entries.iter().for_each(|(_, value)| collect(value, names)),
            Value::Node(node) => {
                node.args.iter().for_each(|value| collect(value, names));
                node.kwargs.iter().for_each(|(_, value)| collect(value, names));
            }
            Value::Var(var) => {
                names.insert(var.name.clone());
                var.default.iter().for_each(|default| collect(default, names));
            }
            _ => {}
        }
    }
    let mut names = BTreeSet::new();
    graph.entries.iter().for_each(|(_, value)| collect(value, &mut names));
    names
}

fn load_dataset(node: &Node, scope: &Scope) -> Result<Target> {
    let bound = bind(node)?;
    let format = bound.needed(scope, "path")?;
    if !matches!(&format.value, Value::String(name) if name == "text") {
        bail!(
            "{}: load_dataset: expected `text`, found {}\n  help: put text files into a folder and name it in data_dir",
            format.origin,
            format.value.describe()
        );
    }
    let documents = Documents {
        data_dir: data_dir(&bound, scope)?,
        splits: data_files(&bound, scope)?,
        sample_by: bound.or_default(scope, "sample_by")?,
        origin: node.origin.clone(),
    };
    match bound.value(scope, "split")? {
        Some(Located { value: Value::String(split), origin }) => {
            documents.check_split(&split, &origin)?;
            Ok(Target::Split(documents, split))
        }
        _ => Ok(Target::Splits(documents)),
    }
}

/// The folder, its `..` taken out so that errors and lists show where it is.
fn data_dir(bound: &Bound, scope: &Scope) -> Result<Located> {
    let Some(given) = bound.value(scope, "data_dir")? else {
        bail!(
            "{}: load_dataset: expected `data_dir`, the folder of the text files, found none",
            bound.origin
        );
    };
    let Value::String(path) = &given.value else { return Ok(given) };
    let path = crate::project::normalized(Path::new(path));
    Ok(Located { value: Value::String(path.display().to_string()), origin: given.origin })
}

fn data_files(bound: &Bound, scope: &Scope) -> Result<Vec<(String, Located)>> {
    let Some(files) = bound.value(scope, "data_files")? else { return Ok(Vec::new()) };
    let entries = match files.value {
        Value::Dict(entries) => entries,
        _ => vec![("train".to_string(), files)],
    };
    let patterns = |(split, value): (String, Located)| -> Result<(String, Located)> {
        let Located { value, origin } = value;
        let items = match value {
            Value::List(items) => items,
            single => vec![Located { value: single, origin: origin.clone() }],
        };
        for item in &items {
            pattern(&split, item)?;
        }
        Ok((split, Located { value: Value::List(items), origin }))
    };
    entries.into_iter().map(patterns).collect()
}

/// The path of a tokenizer, or the word `bytes`.
pub(super) fn tokenizer_path(scope: &Scope, value: &Located) -> Result<Option<Located>> {
    match &value.value {
        Value::Null => Ok(None),
        Value::String(_) => Ok(Some(value.clone())),
        Value::Node(node) => match of(node)?.name {
            "AutoTokenizer.from_pretrained" => {
                bind(node)?.value(scope, "pretrained_model_name_or_path")
            }
            "ByteTokenizer" => {
                let value = Value::String("bytes".into());
                Ok(Some(Located { value, origin: node.origin.clone() }))
            }
            other => bail!("{}: expected a tokenizer, found `{other}`", node.origin),
        },
        other => bail!("{}: expected a tokenizer, found {}", value.origin, other.describe()),
    }
}

/// File name patterns are relative to the corpus.
fn pattern(split: &str, value: &Located) -> Result<()> {
    let place = format!("{}: load_dataset.data_files.{split}", value.origin);
    let Value::String(text) = &value.value else {
        bail!("{place}: expected a file name pattern, found {}", value.value.describe());
    };
    if Path::new(text).is_absolute() || text.contains("://") || text.split('/').any(|p| p == "..") {
        bail!(
            "{place}: expected a pattern of files in data_dir, found `{text}`\n  help: name their folder in data_dir"
        );
    }
    Ok(())
}

/// The typed section, checked for blocks of so many tokens.
fn section(written: &Written, max_length: &Located) -> Result<DataSection> {
    let mut section: DataSection = from_written(written, "data")?;
    let Value::Int(length) = max_length.value else { bail!("{}: max_length", max_length.origin) };
    let Ok(length @ 2..) = usize::try_from(length) else {
        bail!(
            "{}: block_tokenize_fn.max_length: expected 2 or more, found `{length}`",
            max_length.origin
        );
    };
    section.complete(length).map_err(|(key, message)| {
        let below = key.strip_prefix("data.").unwrap_or(key);
        let origin = written.get(below).map_or(&written.origin, |value| &value.origin);
        anyhow!("{origin}: {key}: {message}")
    })?;
    Ok(section)
}

impl Documents {
    /// The folder as a path.
    pub fn folder(&self) -> PathBuf {
        match &self.data_dir.value {
            Value::String(path) => PathBuf::from(path),
            _ => PathBuf::new(),
        }
    }

    /// The names of the splits, in the order of the text.
    pub fn names(&self) -> Vec<&str> {
        match self.splits.is_empty() {
            true => vec!["train"],
            false => self.splits.iter().map(|(name, _)| name.as_str()).collect(),
        }
    }

    /// The section `data` of these documents, with everything else at its default.
    ///
    /// # Errors
    ///
    /// When `sample_by` is not known.
    pub fn section(&self) -> Result<DataSection> {
        let mut written =
            Written { node: WrittenNode::Map(Vec::new()), origin: self.origin.clone() };
        self.write(&mut written)?;
        Ok(from_written(&written, "data")?)
    }

    fn write(&self, data: &mut Written) -> Result<()> {
        data.set("corpus", to_written(&self.data_dir)?)?;
        for (split, patterns) in &self.splits {
            data.set(&format!("splits.{split}"), to_written(patterns)?)?;
        }
        data.set("sample_by", to_written(&self.sample_by)?)
    }

    fn check_split(&self, name: &str, origin: &Origin) -> Result<()> {
        let names = self.names();
        if names.contains(&name) {
            return Ok(());
        }
        let near = nearest(name, names.iter().copied());
        let near = near.map(|near| format!("\n  help: did you mean `{near}`?")).unwrap_or_default();
        bail!("{origin}: expected one of the splits {}, found `{name}`{near}", names.join(", "))
    }
}

/// A map function's arguments, those that win already in place.
struct MapFunction {
    arguments: Vec<(String, Located)>,
    origin: Origin,
}

impl MapFunction {
    fn bound(&self) -> Result<Bound<'_>> {
        bind_to(&BLOCK_TOKENIZE_FN, &self.origin, &[], &self.arguments)
    }

    fn or_default(&self, name: &str) -> Result<Located> {
        self.bound()?.or_default(&Scope::default(), name)
    }

    /// Its arguments as keys of the section `data`.
    fn write(&self, data: &mut Written) -> Result<()> {
        data.set("packing", to_written(&self.packing()?)?)?;
        for (argument, key) in [
            ("min_len", "min_length"),
            ("max_len", "max_document_tokens"),
            ("stride", "stride"),
            ("overflow", "overflow"),
            ("truncate_at", "truncate_at"),
            ("shuffle_output", "shuffle_blocks"),
            ("add_bos", "add_bos"),
            ("add_eos", "add_eos"),
        ] {
            data.set(key, to_written(&self.or_default(argument)?)?)?;
        }
        let shuffles = self.or_default("shuffle_output")?;
        if matches!(shuffles.value, Value::Bool(true)) {
            data.set("shuffle_seed", to_written(&self.or_default("seed")?)?)?;
        }
        // A document that goes on begins again with BOS, as users of this function know it.
        let continuation = from_json(&Json::from("restarted"), &self.origin);
        data.set("continuation", to_written(&continuation)?)
    }

    fn packing(&self) -> Result<Located> {
        let packed = self.or_default("packed")?;
        if !matches!(packed.value, Value::Bool(true)) {
            return Ok(from_json(&Json::from("unpacked"), &packed.origin));
        }
        let strategy = self.or_default("packing_strategy")?;
        let known = ["greedy", "best_fit", "first_fit"];
        match &strategy.value {
            Value::String(name) if known.contains(&name.as_str()) => Ok(strategy),
            other => {
                let near = match other {
                    Value::String(name) => nearest(name, known),
                    _ => None,
                };
                let help =
                    near.map(|n| format!("\n  help: did you mean `{n}`?")).unwrap_or_default();
                bail!(
                    "{}: block_tokenize_fn.packing_strategy: expected one of {}, found {}{help}",
                    strategy.origin,
                    known.join(", "),
                    other.describe()
                )
            }
        }
    }
}
