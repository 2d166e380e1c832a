//! Folders that a command is to write to, looked at before its work is begun.

use anyhow::{Result, bail};
use std::path::Path;

/// Refuses a place where no folder can be made or written to: a file, or one below a file or a folder that can't be written.
///
/// # Errors
///
/// For such a place; `option` names it.
pub fn check_folder(option: &str, folder: &Path) -> Result<()> {
    // What is there of it.
    let absolute = std::path::absolute(folder)?;
    let Some(there) = absolute.ancestors().find(|path| path.symlink_metadata().is_ok()) else {
        return Ok(());
    };
    let place = folder.display();
    if !there.is_dir() {
        let found = if there.exists() { "a file" } else { "a link to nothing" };
        let at = if there == absolute { String::new() } else { format!(" at {}", there.display()) };
        bail!(
            "{option} {place}: expected a folder, found {found}{at}\n  help: name another folder"
        );
    }
    if nix::unistd::access(there, nix::unistd::AccessFlags::W_OK).is_err() {
        bail!(
            "{option} {place}: expected a folder that can be written to, found that {} can't\n  help: name another folder, or have \
             its owner let you write",
            there.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_folder_is_told_before_any_work() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
        for fine in ["", "new", "new/below"] {
            check_folder("--out", &path(fine)).unwrap();
        }
        let error = |name: &str| check_folder("--out", &path(name)).unwrap_err().to_string();
        assert!(
            error("file")
                .ends_with("file: expected a folder, found a file\n  help: name another folder")
        );
        let below = error("file/below");
        assert!(below.contains("found a file at ") && below.contains("/file\n"), "{below}");
        assert!(error("link").contains("found a link to nothing\n"));
    }
}
