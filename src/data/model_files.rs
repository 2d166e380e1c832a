//! The files that a model is read from: which they are, what they hold, and whether they were touched.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What tells without reading that a file is as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    pub name: String,
    pub bytes: u64,
    pub inode: u64,
    /// When its contents and when anything of it changed last, in nanoseconds since 1970-01-01 UTC.
    pub modified: i64,
    pub changed: i64,
}

/// blake3 over the names and contents of a model's weights and configuration, or of its one file.
///
/// # Errors
///
/// When there is no model at `path`, or it can't be read.
pub fn digest(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for file in files(path)? {
        // A single file is known by its content alone.
        if path.is_dir() {
            hasher.update(name_of(&file).as_bytes());
        }
        let contents = File::open(&file)
            .with_context(|| format!("{}: expected a model that can be read", file.display()))?;
        let mut of_file = blake3::Hasher::new();
        of_file.update_reader(contents).with_context(|| file.display().to_string())?;
        hasher.update(of_file.finalize().as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The stamps of the files that [`digest`] reads, in its order.
///
/// # Errors
///
/// As [`digest`].
pub fn stamps(path: &Path) -> Result<Vec<FileStamp>> {
    let stamp = |file: PathBuf| {
        let metadata = file.metadata().with_context(|| file.display().to_string())?;
        let at =
            |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Ok(FileStamp {
            name: name_of(&file),
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified: at(metadata.mtime(), metadata.mtime_nsec()),
            changed: at(metadata.ctime(), metadata.ctime_nsec()),
        })
    };
    files(path)?.into_iter().map(stamp).collect()
}

/// The files of the model at `path`, by name.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    ensure!(
        path.exists(),
        "{}: expected a model folder or a .gguf file, found nothing there\n  help: relative paths start at {}; `make demo` \
         and `make smollm2` make the models that the repository's own files name",
        path.display(),
        std::env::current_dir().unwrap_or_default().display()
    );
    let mut files: Vec<PathBuf> = if path.is_dir() {
        let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
        entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?
    } else {
        vec![path.to_path_buf()]
    };
    // What a checkpoint holds beside the model (optimizer, trainer) is not the model.
    files.retain(|file| {
        let name = name_of(file);
        let weights = ["safetensors", "bin", "gguf"].iter().any(|e| name.ends_with(e));
        (weights && name != "optimizer.safetensors")
            || name == "config.json"
            || name.ends_with(".index.json")
    });
    files.sort();
    ensure!(
        !files.is_empty(),
        "{}: expected a model folder or a .gguf file, found no weights",
        path.display()
    );
    Ok(files)
}

fn name_of(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_model_is_known_by_its_weights_and_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let error = digest(dir.path()).unwrap_err().to_string();
        assert!(error.ends_with("found no weights"), "{error}");
        write("model.safetensors", "weights");
        write("config.json", "{}");
        let (before, stamped) = (digest(dir.path()).unwrap(), stamps(dir.path()).unwrap());
        let names: Vec<&str> = stamped.iter().map(|stamp| stamp.name.as_str()).collect();
        assert_eq!((names, stamped[1].bytes), (vec!["config.json", "model.safetensors"], 7));

        // What is beside the model is not the model.
        write("optimizer.safetensors", "moments");
        write("README.md", "words");
        assert_eq!((digest(dir.path()).unwrap(), stamps(dir.path()).unwrap()), (before, stamped));

        let (before, stamped) = (digest(dir.path()).unwrap(), stamps(dir.path()).unwrap());
        write("model.safetensors", "heavier weights");
        assert!(digest(dir.path()).unwrap() != before && stamps(dir.path()).unwrap() != stamped);

        // As large and as old as it was.
        let stamped = stamps(dir.path()).unwrap();
        let path = dir.path().join("model.safetensors");
        let modified = path.metadata().unwrap().modified().unwrap();
        write("other", "lighter weights");
        let other = File::options().write(true).open(dir.path().join("other")).unwrap();
        other.set_modified(modified).unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        let found = stamps(dir.path()).unwrap();
        let of = |stamps: &[FileStamp]| (stamps[1].bytes, stamps[1].modified);
        assert!(of(&found) == of(&stamped) && found != stamped);
    }
}
