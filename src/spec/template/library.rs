//! Where templates come from: files of the search path, and the sub-templates of files that were loaded.

use super::concat;
use super::marks::Marks;
use super::preprocess::{self, Part, Translated};
use super::{Source, Use};
use crate::config::written::Origin;
use minijinja::{Error, ErrorKind};
use regex::Regex;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

/// The templates of one rendering, filled as they are asked for.
pub(super) struct Library {
    search: Vec<PathBuf>,
    keep_comments: bool,
    /// A template that has a file of its own choosing, whatever the search path says.
    pinned: Option<(String, PathBuf)>,
    /// Makes marks, in a rendering that is to tell where captured text comes from.
    pub marks: Option<Marks>,
    /// Sub-templates by name, with the file that holds them.
    parts: HashMap<String, (Part, PathBuf)>,
    pub loaded: Vec<Loaded>,
    /// Who asked for a template, in the order of asking: asker, asked for.
    asked: Vec<(String, String)>,
}

/// A template that was loaded and translated.
pub(super) struct Loaded {
    pub name: String,
    pub path: PathBuf,
    file: Arc<str>,
    pub translated: Translated,
    /// What the engine reads: the translated text, but for what it prints differently.
    pub engine_text: String,
    tags: Vec<Tag>,
}

impl Loaded {
    /// Where a line of the translated text comes from.
    pub fn origin(&self, line: usize, column: usize) -> Origin {
        let lines = &self.translated.lines;
        let at = line.clamp(1, lines.len().max(1)) - 1;
        Origin { file: self.file.clone(), line: lines.get(at).copied().unwrap_or(0), column }
    }

    /// Where a line of the file is.
    pub fn file_line(&self, line: usize) -> Origin {
        Origin { file: self.file.clone(), line, column: 0 }
    }
}

impl Library {
    pub fn new(
        search: &[PathBuf],
        keep_comments: bool,
        pinned: Option<(String, PathBuf)>,
        marks: Option<Marks>,
    ) -> Library {
        Library {
            search: search.to_vec(),
            keep_comments,
            pinned,
            marks,
            parts: HashMap::new(),
            loaded: Vec::new(),
            asked: Vec::new(),
        }
    }

    /// Loads and translates a template; nothing when no file and no sub-template has the name.
    pub fn load(&mut self, name: &str) -> Result<Option<String>, Error> {
        if let Some((part, path)) = self.parts.get(name).cloned() {
            return Ok(Some(self.add(name, &part, path)));
        }
        let Some(path) = self.find(name) else { return Ok(None) };
        let text = fs::read_to_string(&path).map_err(|e| {
            let message = format!("{}: expected a template that can be read: {e}", path.display());
            Error::new(ErrorKind::InvalidOperation, message)
        })?;
        let mut parts = preprocess::split(&text).into_iter();
        let Some(own) = parts.next() else { return Ok(None) };
        for part in parts {
            let name = part.name.clone().unwrap_or_default();
            self.parts.insert(name, (part, path.clone()));
        }
        Ok(Some(self.add(name, &own, path)))
    }

    fn add(&mut self, name: &str, part: &Part, path: PathBuf) -> String {
        let translated = preprocess::translate(part, self.keep_comments);
        let engine_text = concat::rewrite(&translated.text).into_owned();
        let text = match &mut self.marks {
            Some(marks) => marks.mark(name, &engine_text),
            None => engine_text.clone(),
        };
        let file = path.display().to_string().into();
        let tags = Tag::all(&translated.text);
        let name = name.to_string();
        self.loaded.push(Loaded { name, path, file, translated, engine_text, tags });
        text
    }

    fn find(&self, name: &str) -> Option<PathBuf> {
        match &self.pinned {
            Some((pinned, path)) if pinned == name => Some(path.clone()),
            _ => find(&self.search, name),
        }
    }

    /// Notes that the template `asker` wants the template `name`.
    pub fn asked(&mut self, name: &str, asker: &str) {
        let pair = (asker.to_string(), name.to_string());
        if !self.asked.contains(&pair) {
            self.asked.push(pair);
        }
    }

    /// The loaded template of a name.
    pub fn get(&self, name: &str) -> Option<&Loaded> {
        self.loaded.iter().find(|loaded| loaded.name == name)
    }

    /// Everything that was loaded, with who asked for it first.
    pub fn sources(&self) -> Vec<Source> {
        let parent = |name: &str| {
            let (asker, _) = self.asked.iter().find(|(_, asked)| asked == name)?;
            Some((asker.clone(), self.how(asker, name)))
        };
        let source = |loaded: &Loaded| Source {
            name: loaded.name.clone(),
            path: loaded.path.clone(),
            parent: parent(&loaded.name),
            translated: loaded.translated.text.clone(),
        };
        self.loaded.iter().map(source).collect()
    }

    /// The template that `name` extends, if it was asked for.
    pub fn extends(&self, name: &str) -> Option<&str> {
        let asked = self.asked.iter().filter(|(asker, _)| asker == name);
        asked.map(|(_, asked)| asked.as_str()).find(|asked| self.how(name, asked) == Use::Extends)
    }

    /// How `asker` uses `name`: by the tag that says its name, else by one that leaves the name to a variable. Of the names
    /// that no tag says, the first asked for is the one that is extended.
    fn how(&self, asker: &str, name: &str) -> Use {
        let tags = self.get(asker).map_or(&[][..], |loaded| &loaded.tags);
        let said = |name: &str| tags.iter().find(|tag| tag.says(name)).map(|tag| tag.usage);
        if let Some(usage) = said(name) {
            return usage;
        }
        let asked =
            self.asked.iter().filter(|(by, _)| by == asker).map(|(_, asked)| asked.as_str());
        let is_first = asked.into_iter().find(|asked| said(asked).is_none()) == Some(name);
        let mut variable = tags.iter().filter(|tag| !tag.is_literal()).map(|tag| tag.usage);
        let extends = variable.clone().any(|usage| usage == Use::Extends);
        match extends && is_first {
            true => Use::Extends,
            false => variable.find(|usage| *usage != Use::Extends).unwrap_or(Use::Include),
        }
    }
}

/// A tag that asks for a template.
struct Tag {
    usage: Use,
    argument: String,
}

impl Tag {
    fn all(text: &str) -> Vec<Tag> {
        static TAG: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"\{%[-+]?\s*(extends|include|import|from)\b\s*(.*?)[-+]?%\}")
                .expect("a constant")
        });
        let usage = |word: &str| match word {
            "extends" => Use::Extends,
            "include" => Use::Include,
            _ => Use::Import,
        };
        let tags = TAG.captures_iter(text);
        tags.map(|tag| Tag { usage: usage(&tag[1]), argument: tag[2].to_string() }).collect()
    }

    fn is_literal(&self) -> bool {
        self.argument.starts_with(['\'', '"'])
    }

    fn says(&self, name: &str) -> bool {
        ['\'', '"'].iter().any(|quote| self.argument.contains(&format!("{quote}{name}{quote}")))
    }
}

/// The first file of that name on the search path. Names are relative and stay below their folder.
pub(super) fn find(search: &[PathBuf], name: &str) -> Option<PathBuf> {
    let inside = !name.is_empty()
        && Path::new(name).is_relative()
        && name.split('/').all(|part| part != "..");
    let candidates = search.iter().map(|folder| folder.join(name));
    inside.then(|| candidates.into_iter().find(|path| path.is_file())).flatten()
}
