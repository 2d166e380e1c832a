//! Tokens that were computed once, kept in files that are named by what they were made of.
//!
//! An entry holds the tokens of some documents, in order. Its name is a hash of the documents' digests, the tokenizer's
//! digest and the versions of this format and of fathom, so an entry is never stale: another text or tokenizer is another
//! entry. Packing is not kept. It takes milliseconds, and so a sweep over block lengths finds the same tokens each time.
//!
//! Entries are written whole under another name and then renamed: any number of processes may read and write one folder.
//! An entry that is not as it was written (its checksum tells) counts as absent and is written anew. Nothing is ever
//! removed; a folder may be deleted at any time.

use crate::corpus::Document;
use crate::tokenizer::Tokenizer;
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What an entry begins with. The last two digits count the format's versions; one more also changes every name.
const MAGIC: &[u8; 16] = b"fathom tokens 01";
const HASH_BYTES: usize = 32;

/// A folder of entries, or none.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// The tokens of some documents, and where they came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenized {
    /// Of each document, without BOS and EOS.
    pub tokens: Vec<Vec<u32>>,
    /// Whether they were in the cache.
    pub was_cached: bool,
    /// Why they could not be kept, where they could not: for people.
    pub note: Option<String>,
}

impl Cache {
    /// A cache in `folder`, which is made when the first entry is written.
    pub fn at(folder: impl Into<PathBuf>) -> Cache {
        Cache { folder: Some(folder.into()) }
    }

    /// Keeps nothing.
    pub fn none() -> Cache {
        Cache { folder: None }
    }

    /// The user's own: `$FATHOM_CACHE` (empty for none), else `$XDG_CACHE_HOME/fathom`, else `~/.cache/fathom`; `variable`
    /// looks up the environment.
    pub fn of_user(variable: impl Fn(&str) -> Option<OsString>) -> Cache {
        if let Some(folder) = variable("FATHOM_CACHE") {
            return if folder.is_empty() { Cache::none() } else { Cache::at(folder) };
        }
        let set = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        Cache { folder: base.map(|base| base.join("fathom")) }
    }

    /// The tokens of `documents`: from the cache, or computed and kept there. That they can't be kept is no error.
    ///
    /// # Errors
    ///
    /// When the tokenizer fails.
    pub fn tokenize(&self, documents: &[Document], tokenizer: &Tokenizer) -> Result<Tokenized> {
        let entry = match &self.folder {
            Some(folder) => Some(Entry::of(folder, documents, tokenizer)?),
            None => None,
        };
        if let Some(tokens) = entry.as_ref().and_then(|entry| entry.read(documents.len())) {
            return Ok(Tokenized { tokens, was_cached: true, note: None });
        }
        let texts: Vec<&str> = documents.iter().map(|d| d.text.as_str()).collect();
        let tokens = tokenizer.encode_batch(&texts)?;
        let written = entry.map_or(Ok(()), |entry| entry.write(&tokens));
        let note = written.err().map(|error| format!("tokens are not cached: {error:#}"));
        Ok(Tokenized { tokens, was_cached: false, note })
    }
}

/// One file of a cache.
struct Entry<'a> {
    folder: &'a Path,
    key: blake3::Hash,
}

impl<'a> Entry<'a> {
    fn of(folder: &'a Path, documents: &[Document], tokenizer: &Tokenizer) -> Result<Entry<'a>> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(MAGIC);
        // A later version may encode differently. The digest tells tokenizers apart, but not this one's setting.
        hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
        hasher.update(&[u8::from(tokenizer.splits_special_tokens())]);
        hasher.update(tokenizer.digest()?.as_bytes());
        for document in documents {
            hasher.update(document.digest.as_bytes());
        }
        Ok(Entry { folder, key: hasher.finalize() })
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{}.tokens", self.key.to_hex()))
    }

    /// The tokens, if the entry is there and whole.
    ///
    /// The file: `MAGIC`, the key, how many documents, the length of each, all tokens, and the hash of everything before;
    /// numbers are little-endian, lengths of 8 bytes and tokens of 4.
    fn read(&self, num_documents: usize) -> Option<Vec<Vec<u32>>> {
        let bytes = fs::read(self.path()).ok()?;
        let (body, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH_BYTES)?)?;
        if blake3::hash(body).as_bytes() != hash {
            return None;
        }
        let body = body.strip_prefix(MAGIC)?.strip_prefix(self.key.as_bytes())?;
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("of 8 bytes"));
        let (count, rest) = body.split_at_checked(8)?;
        if number(count) != num_documents as u64 {
            return None;
        }
        let (lengths, mut rest) = rest.split_at_checked(num_documents.checked_mul(8)?)?;
        let mut documents = Vec::with_capacity(num_documents);
        for length in lengths.chunks_exact(8).map(number) {
            let (tokens, after) = rest.split_at_checked((length as usize).checked_mul(4)?)?;
            let token = |b: &[u8]| u32::from_le_bytes(b.try_into().expect("of 4 bytes"));
            documents.push(tokens.chunks_exact(4).map(token).collect());
            rest = after;
        }
        rest.is_empty().then_some(documents)
    }

    fn write(&self, documents: &[Vec<u32>]) -> Result<()> {
        let num_tokens: usize = documents.iter().map(Vec::len).sum();
        let mut bytes = Vec::with_capacity(8 * documents.len() + 4 * num_tokens + 128);
        bytes.extend(MAGIC);
        bytes.extend(self.key.as_bytes());
        bytes.extend((documents.len() as u64).to_le_bytes());
        bytes.extend(documents.iter().flat_map(|tokens| (tokens.len() as u64).to_le_bytes()));
        bytes.extend(documents.iter().flatten().flat_map(|token| token.to_le_bytes()));
        let hash = blake3::hash(&bytes);
        bytes.extend(hash.as_bytes());

        let folder = self.folder.display();
        fs::create_dir_all(self.folder).with_context(|| format!("{folder}: cannot be made"))?;
        // No two writers use one name, in this process or another.
        static WRITTEN: AtomicU64 = AtomicU64::new(0);
        let part = self.folder.join(format!(
            ".{}.{}.{}.part",
            self.key.to_hex(),
            std::process::id(),
            WRITTEN.fetch_add(1, Ordering::Relaxed)
        ));
        let write = || -> std::io::Result<()> {
            fs::File::create_new(&part)?.write_all(&bytes)?;
            fs::rename(&part, self.path())
        };
        write().with_context(|| format!("{folder}: cannot be written")).inspect_err(|_| {
            let _ = fs::remove_file(&part);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents() -> Vec<Document> {
        [("a", "tide"), ("b", ""), ("c", "bell salt")]
            .map(|(name, text)| Document::new(name, text))
            .into()
    }

    fn tokenize(cache: &Cache, documents: &[Document]) -> Tokenized {
        cache.tokenize(documents, &Tokenizer::bytes()).unwrap()
    }

    /// The names in a folder.
    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn what_was_computed_once_is_read_the_next_time() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("made"));
        let first = tokenize(&cache, &documents());
        assert_eq!((first.was_cached, first.note.clone()), (false, None));
        assert_eq!(first.tokens[0], [116, 105, 100, 101]);
        let second = tokenize(&cache, &documents());
        assert_eq!(second, Tokenized { was_cached: true, ..first.clone() });
        // Names of documents are not part of it; what they say and their order is.
        let renamed: Vec<_> =
            documents().into_iter().map(|d| Document { name: "x".into(), ..d }).collect();
        assert!(tokenize(&cache, &renamed).was_cached);
        let mut other = documents();
        other.swap(0, 2);
        let other = tokenize(&cache, &other);
        assert!(!other.was_cached);
        assert_eq!(other.tokens[2], first.tokens[0]);
        assert!(!tokenize(&Cache::none(), &documents()).was_cached);
    }

    #[test]
    fn another_tokenizer_is_another_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        tokenize(&cache, &documents());
        Tokenizer::bytes().save(folder.path()).unwrap();
        let config = r#"{"bos_token": "<|eos|>", "eos_token": "<|eos|>"}"#;
        fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let open = || Tokenizer::open(folder.path()).unwrap();
        assert!(!cache.tokenize(&documents(), &open()).unwrap().was_cached);
        assert!(cache.tokenize(&documents(), &open()).unwrap().was_cached);
        let split = config.replace('}', r#", "split_special_tokens": true}"#);
        fs::write(folder.path().join("tokenizer_config.json"), split).unwrap();
        assert!(!cache.tokenize(&documents(), &open()).unwrap().was_cached);
    }

    #[test]
    fn a_broken_entry_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let whole = tokenize(&cache, &documents());
        let path = folder.path().join(&names(folder.path())[0]);
        let bytes = fs::read(&path).unwrap();
        let with_byte = |at: usize| {
            let mut broken = bytes.clone();
            broken[at] ^= 1;
            broken
        };
        let last = bytes.len() - 1;
        let mut broken: Vec<Vec<u8>> = (0..bytes.len()).map(with_byte).collect();
        broken.extend([bytes[..last].to_vec(), bytes[..20].to_vec(), Vec::new()]);
        // A hash that fits does not help where the rest does not.
        let mut foreign = with_byte(MAGIC.len());
        let hash = blake3::hash(&foreign[..bytes.len() - HASH_BYTES]);
        foreign.splice(bytes.len() - HASH_BYTES.., *hash.as_bytes());
        broken.push(foreign);
        for broken in broken {
            fs::write(&path, broken).unwrap();
            let again = tokenize(&cache, &documents());
            assert_eq!(again, Tokenized { was_cached: false, ..whole.clone() });
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(names(folder.path()).len(), 1);
    }

    #[test]
    fn writers_at_once_leave_one_whole_entry() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let whole = tokenize(&Cache::none(), &documents());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        assert_eq!(tokenize(&cache, &documents()).tokens, whole.tokens);
                        let _ = fs::remove_file(
                            Entry::of(folder.path(), &documents(), &Tokenizer::bytes())
                                .unwrap()
                                .path(),
                        );
                    }
                });
            }
        });
        assert!(!tokenize(&cache, &documents()).was_cached);
        assert_eq!(names(folder.path()).len(), 1);
    }

    #[test]
    fn a_folder_that_can_not_be_written_is_said_and_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let tokenized = tokenize(&Cache::at(&file), &documents());
        assert_eq!(tokenized.tokens.len(), 3);
        let note = tokenized.note.unwrap();
        assert!(note.starts_with("tokens are not cached: "), "{note}");
    }

    #[test]
    fn the_users_folder_is_where_the_environment_says() {
        let check = |set: &[(&str, &str)], expected: Option<&str>| {
            let variable = |name: &str| {
                set.iter().find(|(known, _)| *known == name).map(|(_, v)| OsString::from(v))
            };
            assert_eq!(Cache::of_user(variable).folder, expected.map(PathBuf::from));
        };
        let home = ("HOME", "/home/ann");
        check(&[home], Some("/home/ann/.cache/fathom"));
        check(&[home, ("XDG_CACHE_HOME", "/tmp/c")], Some("/tmp/c/fathom"));
        check(&[home, ("FATHOM_CACHE", "/d")], Some("/d"));
        check(&[home, ("FATHOM_CACHE", "")], None);
        check(&[], None);
    }
}
