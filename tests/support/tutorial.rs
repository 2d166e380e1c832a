//! The tutorial's workspace as its user makes it: our own commands' functions, then the printed files, byte for byte.

// Each test program uses its part of this.
#![allow(dead_code)]

use fathom_spec::project::create::{NewProject, NewWorkspace, create_project, create_workspace};
use std::path::{Path, PathBuf};

/// The checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Makes `DIR/hp_lovecraft_workspace` with its two projects, and beside it a small corpus and prompts; returns it.
pub fn workspace(dir: &Path) -> PathBuf {
    workspace_on(dir, &["base", "finetune"])
}

/// The same on other libraries.
pub fn workspace_on(dir: &Path, libraries: &[&str]) -> PathBuf {
    let new = NewWorkspace {
        name: "H.P. Lovecraft Workspace".into(),
        description: "H.P. Lovecraft tutorial workspace".into(),
        forgather_dir: root(),
        libraries: libraries.iter().map(|name| name.to_string()).collect(),
        search_path: Vec::new(),
        folder: None,
    };
    let workspace = create_workspace(dir, &new).unwrap();
    project(
        &workspace,
        "Lovecraft Dataset",
        "The complete works of H.P. Lovecraft",
        "lovecraft.yaml",
    );
    let description = "Finetune a model on the complete works of H.P. Lovecraft";
    project(&workspace, "Finetune Lovecraft", description, "default.yaml");
    copy_folder(&root().join("tests/data/tutorial_workspace"), &workspace);
    corpus(&dir.join("hp_lovecraft"));
    workspace
}

fn project(workspace: &Path, name: &str, description: &str, default_config: &str) {
    let new = NewProject {
        name: name.into(),
        description: description.into(),
        config_prefix: "configs".into(),
        default_config: default_config.into(),
        folder: None,
        copy_from: None,
    };
    create_project(workspace, &new).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Made-up texts under the names that the tutorial's dataset project asks for.
pub fn corpus(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let text = |n: usize, salt: usize| -> String {
        let words = ["tide ", "bell ", "salt ", "lamp ", "deep. "];
        (0..n).map(|i| words[(i * i + salt * i + i / 3) % 5]).collect()
    };
    let names = ["the_call_of_cthulhu", "at_the_mountains_of_madness", "dagon", "polaris"];
    for (salt, name) in names.into_iter().enumerate() {
        std::fs::write(folder.join(format!("{name}.txt")), text(90 + 70 * salt, salt)).unwrap();
    }
}
