//! Path arithmetic on text, by the rules of Python's `os.path` on Unix. Nothing here looks at the disk.

/// Joins parts: an absolute part replaces what stands before it.
pub(super) fn join(parts: &[String]) -> String {
    let mut path = String::new();
    for (index, part) in parts.iter().enumerate() {
        if index == 0 || part.starts_with('/') {
            path.clone_from(part);
        } else {
            if !path.is_empty() && !path.ends_with('/') {
                path.push('/');
            }
            path.push_str(part);
        }
    }
    path
}

/// Takes `.`, `..` and doubled slashes out.
pub(super) fn normalize(path: &str) -> String {
    // POSIX gives two leading slashes, and only two, a meaning of their own.
    let root = match path.len() - path.trim_start_matches('/').len() {
        0 => "",
        2 => "//",
        _ => "/",
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if !root.is_empty() && parts.is_empty() => {}
            part => parts.push(part),
        }
    }
    match format!("{root}{}", parts.join("/")) {
        empty if empty.is_empty() => ".".into(),
        path => path,
    }
}

/// The normal form of a path seen from `working_directory`.
pub(super) fn absolute(path: &str, working_directory: &str) -> String {
    normalize(&join(&[working_directory.to_string(), path.to_string()]))
}

/// The way from `start` to `path`.
pub(super) fn relative(path: &str, start: &str, working_directory: &str) -> String {
    let path = absolute(path, working_directory);
    let start = absolute(start, working_directory);
    let parts = |path: &str| -> Vec<String> {
        path.split('/').filter(|part| !part.is_empty()).map(str::to_string).collect()
    };
    let (path, start) = (parts(&path), parts(&start));
    let shared = path.iter().zip(&start).take_while(|(a, b)| a == b).count();
    let up = std::iter::repeat_n("..".to_string(), start.len() - shared);
    let way: Vec<String> = up.chain(path[shared..].iter().cloned()).collect();
    if way.is_empty() { ".".into() } else { way.join("/") }
}

/// What stands before the last slash; slashes alone stay.
pub(super) fn folder(path: &str) -> &str {
    let head = &path[..path.rfind('/').map_or(0, |at| at + 1)];
    match head.trim_end_matches('/') {
        "" => head,
        trimmed => trimmed,
    }
}

/// What stands after the last slash.
pub(super) fn name(path: &str) -> &str {
    &path[path.rfind('/').map_or(0, |at| at + 1)..]
}

/// A path without its extension, and the extension. Dots that a name begins with belong to the name.
pub(super) fn split_extension(path: &str) -> (&str, &str) {
    let name = name(path);
    let leading = name.len() - name.trim_start_matches('.').len();
    match name.rfind('.') {
        Some(dot) if dot >= leading && dot > 0 => path.split_at(path.len() - name.len() + dot),
        _ => (path, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::{absolute, folder, join, name, normalize, relative, split_extension};

    #[test]
    fn paths_follow_posix() {
        let owned = |parts: &[&str]| parts.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        assert_eq!(join(&owned(&["a", "", "b", ""])), "a/b/");
        assert_eq!(join(&owned(&["a", "/b", "c"])), "/b/c");
        assert_eq!(normalize("//a/../../b"), "//b");
        assert_eq!(normalize("../a/../../b"), "../../b");
        assert_eq!(normalize("///a/."), "/a");
        assert_eq!(normalize(""), ".");
        assert_eq!(absolute("../x", "/home/user"), "/home/x");
        assert_eq!(relative("/a/b/c", "/a", "/"), "b/c");
        assert_eq!(relative("a", "b/c", "/w"), "../../a");
        assert_eq!(relative("/a", "/a", "/"), ".");
        assert_eq!(folder("/"), "/");
        assert_eq!(folder("/a/b"), "/a");
        assert_eq!(folder("a"), "");
        assert_eq!(name("/a/"), "");
        assert_eq!(split_extension("/a.b/.bashrc"), ("/a.b/.bashrc", ""));
        assert_eq!(split_extension("/a/x.tar.gz"), ("/a/x.tar", ".gz"));
        assert_eq!(split_extension("..x.y"), ("..x", ".y"));
    }
}
