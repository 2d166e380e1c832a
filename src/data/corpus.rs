//! Reads a corpus: a folder, a glob or an archive of text files, one document a file, in splits.

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::read::MultiGzDecoder;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The split whose documents are trained on. Where it is not given, it is every document that no other split names.
pub const TRAIN: &str = "train";

/// Split name -> file name patterns.
///
/// A pattern (`*`, `?`, `[ab]`) matches a document when it matches the whole relative name, the file name, or the file name
/// without its extension: `the_tomb`, `the_tomb.txt` and `stories/the_*` all name `stories/the_tomb.txt`.
pub type Splits = BTreeMap<String, Vec<String>>;

/// One text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Path relative to the corpus, with `/`.
    pub name: String,
    pub text: String,
    /// blake3 of the text's UTF-8 bytes, in hex.
    pub digest: String,
}

impl Document {
    pub fn new(name: &str, text: &str) -> Document {
        let digest = blake3::hash(text.as_bytes()).to_hex().to_string();
        Document { name: name.to_string(), text: text.to_string(), digest }
    }
}

/// All documents of one place, sorted by name.
#[derive(Debug, Clone)]
pub struct Corpus {
    pub documents: Vec<Document>,
    /// What was skipped or changed while reading, one sentence each, for people.
    pub notes: Vec<String>,
}

impl Corpus {
    /// Reads every text file (`*.txt`, `*.md`, but not `README*`) of `spec`:
    ///
    /// - a folder, with the folders in it;
    /// - an archive: `.tgz`, `.tar.gz` or `.tar`; a folder that holds everything in it is not part of the names, so that an
    ///   archive and the folder it unpacks to are the same corpus;
    /// - a single file of any name;
    /// - a glob such as `texts/**/*.txt`: the files it matches, of any name.
    ///
    /// A byte order mark is removed. Hidden files, macOS resource files (`._x`) and empty files are skipped with a note.
    /// Everything is held in memory.
    ///
    /// # Errors
    ///
    /// When nothing is there, when no text file is found, or when a file is not UTF-8.
    pub fn open(spec: &str) -> Result<Corpus> {
        let mut notes = Vec::new();
        let path = Path::new(spec);
        let files = if path.is_dir() {
            let mut found = Vec::new();
            list_folder(path, &mut found)?;
            read_files(path, &found, is_text, &mut notes)?
        } else if path.is_file() && is_archive(spec) {
            read_archive(path, &mut notes)?
        } else if path.is_file() {
            read_files(path.parent().unwrap_or(path), &[path.to_path_buf()], |_| true, &mut notes)?
        } else if spec.contains(['*', '?', '[']) {
            let found = glob::glob(spec)
                .with_context(|| format!("corpus {spec}: expected a folder, an archive or a glob"))?
                .filter(|p| p.as_ref().map_or(true, |p| p.is_file()))
                .collect::<Result<Vec<_>, _>>()
                .with_context(|| format!("corpus {spec}: cannot be listed"))?;
            read_files(&glob_root(spec), &found, |_| true, &mut notes)?
        } else {
            bail!(
                "corpus {spec}: expected a folder, a .tgz, .tar.gz or .tar archive, a text file or a glob, found nothing \
                 there\n  help: relative paths count from {}",
                std::env::current_dir().unwrap_or_default().display()
            );
        };

        let mut documents = Vec::new();
        for (name, bytes) in files {
            let text = decode(&bytes).with_context(|| format!("corpus {spec}: {name}"))?;
            if text.trim().is_empty() {
                notes.push(format!("{name} is empty and was skipped"));
                continue;
            }
            documents.push(Document::new(&name, &text));
        }
        if documents.is_empty() {
            let found = match notes.first() {
                None => format!("none{}", hint(path)),
                Some(note) => format!("none with text: {note}"),
            };
            bail!(
                "corpus {spec}: expected text files (*.txt, *.md but not README*), found {found}"
            );
        }
        Ok(Corpus { documents, notes })
    }

    /// blake3 over every document's name and digest, in hex: two corpora with equal digests hold the same texts.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for document in &self.documents {
            hasher.update(document.name.as_bytes());
            hasher.update(b"\0");
            hasher.update(document.digest.as_bytes());
            hasher.update(b"\n");
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The documents of split `name`, in the order of the corpus.
    ///
    /// # Errors
    ///
    /// When there is no such split, when one of its patterns matches nothing (of any split, where `train` is what the others
    /// leave), or when nothing is left for `train`.
    pub fn split(&self, splits: &Splits, name: &str) -> Result<Vec<&Document>> {
        let chosen = match splits.get(name) {
            Some(patterns) => self.matching(name, patterns)?,
            None if name == TRAIN => {
                let mut left: BTreeSet<usize> = (0..self.documents.len()).collect();
                for (name, patterns) in splits {
                    self.matching(name, patterns)?.iter().for_each(|i| {
                        left.remove(i);
                    });
                }
                ensure!(
                    !left.is_empty(),
                    "splits.{TRAIN}: expected documents that are in no other split, found none of {}\n  help: give \
                     splits.{TRAIN} its own patterns, or hold out fewer documents",
                    self.documents.len()
                );
                left
            }
            None => {
                let mut known: BTreeSet<&str> = splits.keys().map(String::as_str).collect();
                known.insert(TRAIN);
                let known: Vec<_> = known.into_iter().collect();
                bail!("splits: expected one of {}, found `{name}`", known.join(", "));
            }
        };
        Ok(chosen.into_iter().map(|i| &self.documents[i]).collect())
    }

    /// Indices of the documents that any of `patterns` matches; each must match one.
    fn matching(&self, split: &str, patterns: &[String]) -> Result<BTreeSet<usize>> {
        let mut chosen = BTreeSet::new();
        for (i, pattern) in patterns.iter().enumerate() {
            let glob = glob::Pattern::new(pattern).with_context(|| {
                format!("splits.{split}[{i}]: expected a pattern, found `{pattern}`")
            })?;
            let mut matched = self
                .documents
                .iter()
                .enumerate()
                .filter(|(_, d)| names_of(&d.name).iter().any(|name| glob.matches(name)))
                .map(|(i, _)| i)
                .peekable();
            if matched.peek().is_none() {
                bail!(
                    "splits.{split}[{i}]: expected a pattern that matches a document, found `{pattern}`\n  help: the nearest \
                     names are {}",
                    self.nearest(pattern).join(", ")
                );
            }
            chosen.extend(matched);
        }
        Ok(chosen)
    }

    /// The three document names most like `pattern`.
    fn nearest(&self, pattern: &str) -> Vec<&str> {
        let likeness = |d: &Document| {
            let best = names_of(&d.name).map(|name| strsim::jaro_winkler(name, pattern));
            best.into_iter().fold(0.0, f64::max)
        };
        let mut names: Vec<_> =
            self.documents.iter().map(|d| (likeness(d), d.name.as_str())).collect();
        names.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        names.into_iter().take(3).map(|(_, name)| name).collect()
    }
}

/// The whole name, the file name, and the file name without its extension.
fn names_of(name: &str) -> [&str; 3] {
    let file = name.rsplit('/').next().unwrap_or(name);
    [name, file, file.rsplit_once('.').map_or(file, |(stem, _)| stem)]
}

fn is_archive(name: &str) -> bool {
    let name = name.to_lowercase();
    [".tgz", ".tar.gz", ".tar"].iter().any(|end| name.ends_with(end))
}

fn is_text(name: &str) -> bool {
    let file = names_of(name)[1].to_lowercase();
    (file.ends_with(".txt") || file.ends_with(".md")) && !file.starts_with("readme")
}

/// Hidden itself, or in a hidden folder; `._x` is how macOS stores the attributes of `x`.
fn is_hidden(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.')) || name.starts_with("__MACOSX/")
}

/// All files below `folder`. Linked folders are not followed, linked files are.
fn list_folder(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let context = || format!("corpus folder {}: cannot be listed", folder.display());
    for entry in fs::read_dir(folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        let path = entry.path();
        if entry.file_type().with_context(context)?.is_dir() {
            list_folder(&path, found)?;
        } else if path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// The contents of those of `paths` that are not hidden and that `wanted` accepts, by name relative to `root`.
fn read_files(
    root: &Path,
    paths: &[PathBuf],
    wanted: fn(&str) -> bool,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for path in paths {
        let relative = path.strip_prefix(root).unwrap_or(path);
        let parts: Vec<_> = relative.iter().map(|p| p.to_string_lossy()).collect();
        let name = parts.join("/");
        if !wanted(&name) {
            continue;
        }
        if is_hidden(&name) {
            notes.push(format!("{name} is hidden and was skipped"));
            continue;
        }
        let bytes = fs::read(path)
            .with_context(|| format!("{}: expected a readable file", path.display()))?;
        files.insert(name, bytes);
    }
    Ok(files)
}

fn read_archive(path: &Path, notes: &mut Vec<String>) -> Result<BTreeMap<String, Vec<u8>>> {
    let context = || format!("{}: expected a tar archive, gzipped or not", path.display());
    let bytes = fs::read(path).with_context(context)?;
    let reader: Box<dyn Read> = match bytes.starts_with(&[0x1f, 0x8b]) {
        true => Box::new(MultiGzDecoder::new(&bytes[..])),
        false => Box::new(&bytes[..]),
    };
    let mut archive = tar::Archive::new(reader);
    let mut files = BTreeMap::new();
    for entry in archive.entries().with_context(context)? {
        let mut entry = entry.with_context(context)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./").to_string();
        if !entry.header().entry_type().is_file() || !is_text(&name) {
            continue;
        }
        if is_hidden(&name) {
            notes.push(format!("{name} is hidden and was skipped"));
            continue;
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text).with_context(context)?;
        if files.insert(name.clone(), text).is_some() {
            notes.push(format!("{name} is in the archive more than once; the last one counts"));
        }
    }
    // What follows the last entry has gzip's checksum: text that is damaged is not trained on.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).with_context(context)?;
    Ok(without_common_folder(files))
}

/// Removes the folders that every name begins with.
fn without_common_folder(mut files: BTreeMap<String, Vec<u8>>) -> BTreeMap<String, Vec<u8>> {
    loop {
        let Some((folder, _)) = files.keys().next().and_then(|name| name.split_once('/')) else {
            return files;
        };
        let folder = format!("{folder}/");
        if !files.keys().all(|name| name.starts_with(&folder)) {
            return files;
        }
        files = files
            .into_iter()
            .map(|(name, bytes)| (name[folder.len()..].to_string(), bytes))
            .collect();
    }
}

/// The folders of a glob before its first special character: what document names are relative to.
fn glob_root(spec: &str) -> PathBuf {
    let fixed = &spec[..spec.find(['*', '?', '[']).unwrap_or(spec.len())];
    PathBuf::from(&fixed[..fixed.rfind('/').map_or(0, |i| i + 1)])
}

fn decode(bytes: &[u8]) -> Result<String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        anyhow!(
            "expected UTF-8, found the byte 0x{:02x} at offset {at}\n  help: convert the file first, for example with \
             `iconv -f WINDOWS-1252 -t UTF-8`",
            bytes[at]
        )
    })?;
    Ok(text.to_string())
}

/// Where no text is found, the usual reason.
fn hint(path: &Path) -> String {
    let mut found = Vec::new();
    if path.is_dir() && list_folder(path, &mut found).is_ok() {
        let archive = found.iter().find(|p| is_archive(&p.to_string_lossy()));
        if let Some(archive) = archive {
            return format!("\n  help: name the archive itself: {}", archive.display());
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn open(path: &Path) -> Result<Corpus> {
        Corpus::open(path.to_str().unwrap())
    }

    fn names(documents: &[Document]) -> Vec<&str> {
        documents.iter().map(|d| d.name.as_str()).collect()
    }

    fn splits(given: &[(&str, &[&str])]) -> Splits {
        let patterns = |p: &&[&str]| p.iter().map(|p| p.to_string()).collect();
        given.iter().map(|(name, p)| (name.to_string(), patterns(p))).collect()
    }

    #[test]
    fn a_folder_its_archive_and_a_glob_are_the_same_corpus() {
        let files: [(&str, &[u8]); 8] = [
            ("sea/the_gull.txt", b"\xef\xbb\xbfA gull."),
            ("a_lamp.md", "A lämp.".as_bytes()),
            ("README.md", b"about"),
            ("._a_lamp.md", b"\x00\x05\x16"),
            (".hidden/x.txt", b"x"),
            ("blank.txt", b" \n"),
            ("picture.png", b"\xff"),
            ("the_fog.txt", b"Fog."),
        ];
        let folder = folder(&files);
        let corpus = open(folder.path()).unwrap();
        assert_eq!(names(&corpus.documents), ["a_lamp.md", "sea/the_gull.txt", "the_fog.txt"]);
        assert_eq!(corpus.documents[1].text, "A gull.");
        let mut notes = corpus.notes.clone();
        notes.sort();
        assert_eq!(
            notes,
            [
                "._a_lamp.md is hidden and was skipped",
                ".hidden/x.txt is hidden and was skipped",
                "blank.txt is empty and was skipped",
            ]
        );

        let archives = tempfile::tempdir().unwrap();
        for name in ["c.tar", "c.tgz"] {
            let mut archive = tar::Builder::new(Vec::new());
            archive.append_dir_all("top/inner", folder.path()).unwrap();
            let mut bytes = archive.into_inner().unwrap();
            if name.ends_with("gz") {
                let mut gz = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                std::io::Write::write_all(&mut gz, &bytes).unwrap();
                bytes = gz.finish().unwrap();
            }
            let path = archives.path().join(name);
            fs::write(&path, bytes).unwrap();
            let archived = open(&path).unwrap();
            assert_eq!(archived.documents, corpus.documents);
            assert_eq!(archived.digest(), corpus.digest());
        }

        let glob = open(&folder.path().join("**/the_*.txt")).unwrap();
        assert_eq!(names(&glob.documents), ["sea/the_gull.txt", "the_fog.txt"]);
        assert_ne!(glob.digest(), corpus.digest());
        let one = open(&folder.path().join("the_fog.txt")).unwrap();
        assert_eq!(names(&one.documents), ["the_fog.txt"]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let check = |corpus: Result<Corpus>, expected: &str| {
            let error = format!("{:#}", corpus.unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        let latin = folder(&[("caf\u{e9}.txt", b"caf\xe9")]);
        check(open(latin.path()), "caf\u{e9}.txt: expected UTF-8, found the byte 0xe9 at offset 3");
        let blank = folder(&[("a.txt", b" \n")]);
        check(open(blank.path()), "found none with text: a.txt is empty and was skipped");
        let archived = folder(&[("texts.tgz", b"")]);
        check(open(archived.path()), "found none\n  help: name the archive itself:");
        check(open(&archived.path().join("texts.tgz")), "texts.tgz: expected");
        check(Corpus::open("no/such/place"), "corpus no/such/place: expected a folder, a .tgz");
        check(Corpus::open("no/such/*.txt"), "expected text files");
    }

    /// A `.tgz` that was made of several, and one that was damaged on the way.
    #[test]
    fn an_archive_is_read_to_its_end() {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, text) in [("a.txt", "the gull"), ("b.txt", "the fog")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, name, text.as_bytes()).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let gzip = |bytes: &[u8]| {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
            std::io::Write::write_all(&mut encoder, bytes).unwrap();
            encoder.finish().unwrap()
        };
        let whole = [gzip(&tar[..700]), gzip(&tar[700..])].concat();
        let mut damaged = gzip(&tar);
        let at = damaged.windows(8).position(|bytes| bytes == b"the gull").unwrap();
        damaged[at] = b'T';
        let cut = &gzip(&tar)[..gzip(&tar).len() - 6];
        let files = folder(&[("whole.tgz", &whole), ("damaged.tgz", &damaged), ("cut.tgz", cut)]);
        assert_eq!(open(&files.path().join("whole.tgz")).unwrap().documents.len(), 2);
        for file in ["damaged.tgz", "cut.tgz"] {
            let error = format!("{:#}", open(&files.path().join(file)).unwrap_err());
            assert!(error.contains(": expected a tar archive, gzipped or not: "), "{error}");
        }
    }

    #[test]
    fn splits_take_patterns_and_train_takes_the_rest() {
        let folder =
            folder(&[("the_gull.txt", b"1"), ("the_fog.txt", b"2"), ("sea/the_deep.txt", b"3")]);
        let corpus = open(folder.path()).unwrap();
        let check = |given: &[(&str, &[&str])], name: &str, expected: &[&str]| {
            let given = splits(given);
            let found = corpus.split(&given, name).unwrap();
            assert_eq!(found.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), expected);
        };
        check(&[], "train", &["sea/the_deep.txt", "the_fog.txt", "the_gull.txt"]);
        check(&[("test", &["the_fog"])], "train", &["sea/the_deep.txt", "the_gull.txt"]);
        check(&[("test", &["the_fog"])], "test", &["the_fog.txt"]);
        check(&[("test", &["sea/*", "the_g*.txt"])], "test", &["sea/the_deep.txt", "the_gull.txt"]);
        check(&[("test", &["the_fog"]), ("train", &["*"])], "test", &["the_fog.txt"]);

        let error = |given: &[(&str, &[&str])], name: &str| {
            corpus.split(&splits(given), name).unwrap_err().to_string()
        };
        assert_eq!(
            error(&[("test", &["the_frog"])], "test"),
            "splits.test[0]: expected a pattern that matches a document, found `the_frog`\n  help: the nearest names are \
             the_fog.txt, the_gull.txt, sea/the_deep.txt"
        );
        assert!(error(&[("test", &["the_frog"])], "train").starts_with("splits.test[0]"));
        let message = "splits: expected one of test, train, found `validation`";
        assert_eq!(error(&[("test", &["the_fog"])], "validation"), message);
        assert!(error(&[("test", &["*"])], "train").contains("found none of 3"));
    }
}
