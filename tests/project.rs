//! Workspaces, projects and their configurations, as a user meets them on the command line.

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const CREATE_WORKSPACE: [&str; 12] = [
    "ws",
    "create",
    "--name",
    "H.P. Lovecraft Workspace",
    "--description",
    "H.P. Lovecraft tutorial workspace",
    "--forgather-dir",
    "../../../",
    "-l",
    "base",
    "-l",
    "finetune",
];

/// An installation with a small library, and the tutorial's folder below it.
struct Place {
    // The folder goes with it.
    _folder: tempfile::TempDir,
    root: PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let place = Place { _folder: folder, root };
        place.write("templatelib/base/described.yaml", DESCRIBED);
        place.write("templatelib/finetune/projects/options.yaml", OPTIONS);
        fs::create_dir_all(place.tutorial()).unwrap();
        place
    }

    /// With the tutorial's workspace.
    fn workspace() -> Place {
        let place = Place::new();
        said(place.fathom(&place.tutorial(), &CREATE_WORKSPACE));
        place
    }

    /// With a workspace and an empty project in it.
    fn project() -> Place {
        let place = Place::workspace();
        let create =
            ["project", "create", "--name", "Probe", "--description", "A project to try things in"];
        said(place.fathom(&place.ws(), &create));
        place
    }

    fn tutorial(&self) -> PathBuf {
        self.root.join("examples/tutorials/hp_lovecraft_project")
    }

    fn ws(&self) -> PathBuf {
        self.tutorial().join("hp_lovecraft_workspace")
    }

    fn probe(&self) -> PathBuf {
        self.ws().join("probe")
    }

    fn write(&self, path: impl AsRef<Path>, text: &str) -> PathBuf {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    /// Writes a configuration of the project.
    fn config(&self, name: &str, text: &str) -> PathBuf {
        self.write(self.probe().join("templates/configs").join(name), text)
    }

    /// A call that sees nothing of the user who runs the tests.
    fn command(&self, dir: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("fathom"));
        command.current_dir(dir).args(arguments).stdin(Stdio::null());
        for name in ["VSCODE_IPC_HOOK_CLI", "VISUAL", "EDITOR", "PAGER"] {
            command.env_remove(name);
        }
        for (name, folder) in
            [("HOME", "home"), ("XDG_CONFIG_HOME", "config"), ("XDG_DATA_HOME", "data")]
        {
            command.env(name, self.root.join(folder));
        }
        command
    }

    fn fathom(&self, dir: &Path, arguments: &[&str]) -> Output {
        self.command(dir, arguments).output().unwrap()
    }

    /// A call with `input` typed into it.
    fn typed(&self, mut command: Command, input: &str) -> Output {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }
}

/// A configuration that says what it is, and prints the folders that it sees.
const DESCRIBED: &str = r#"
-- set ns = namespace()
-- include "base_directories.yaml"
[metadata]
    -- set ns.config_name = "Described"
    -- set ns.config_description = "A configuration of the test's library"
[header]
# models: {{ ns.models_dir | default("unset") }}
# installation: {{ ns.forgather_dir }}
[main_body]
meta: !dict:@meta
    config_name: {{ ns.config_name | toyaml }}
    config_description: {{ ns.config_description | toyaml }}
    config_class: "type.test"
[dynamic_args]
dynamic_args: !dlist
    null: ~
"#;

/// Options of every type.
const OPTIONS: &str = r#"
-- extends 'described.yaml'
[metadata]
    == super()
    -- set ns.max_length = max_length | default(4096)
[main_body]
    == super()
main: !dict
    max_length: {{ ns.max_length }}
    lr: {{ lr | toyaml(5.0e-5) }}
    shuffle: {{ shuffle | toyaml(False) }}
    compile: {{ compile | toyaml(True) }}
    packing: {{ packing | toyaml("greedy") }}
    model: {{ M | toyaml("none") }}
    data: {{ data_dir | toyaml("none") }}
[dynamic_args]
    == super()
    max_length:
        names: [ "-L", "--max-length" ]
        type: int
        help: "Maximum tokens per output block"
    lr:
        names: "--lr"
        type: float
        help: "Learning rate"
    shuffle:
        names: "--shuffle"
        action: store_true
        help: "Shuffle blocks"
    compile:
        names: "--compile"
        type: bool
        help: "Compile the model"
    packing:
        names: "--packing"
        choices: [ greedy, best_fit ]
        default: {{ packing | toyaml("greedy") }}
        help: "How blocks are packed"
    model:
        names: "-M"
        help: "The model"
    data:
        names: "--data-dir"
        type: path
        help: "Where texts are"
    nothing:
        names: "--nothing"
        help: "Declared, and read by no template"
"#;

#[track_caller]
fn said(output: Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn refused(output: Output) -> String {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "succeeded: {}", String::from_utf8_lossy(&output.stdout));
    assert!(message.starts_with("error: ") && !message.contains("panicked"), "{message}");
    message
}

/// Everything below a folder, with the contents of files.
fn everything(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            if path.is_dir() {
                found.push((name, String::new()));
                open.push(path);
            } else {
                found.push((name, fs::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// YAML as plain values, without its tags.
fn yaml(text: &str) -> Value {
    use serde_yaml::Value as Yaml;
    fn plain(value: Yaml) -> Value {
        match value {
            Yaml::Tagged(tagged) => plain(tagged.value),
            Yaml::Sequence(items) => items.into_iter().map(plain).collect(),
            Yaml::Mapping(map) => map
                .into_iter()
                .map(|(key, value)| (key.as_str().unwrap_or("null").to_string(), plain(value)))
                .collect(),
            scalar => serde_json::to_value(scalar).unwrap(),
        }
    }
    plain(serde_yaml::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

#[test]
fn row_01_ws_create_makes_the_workspace_and_refuses_to_make_it_twice() {
    let place = Place::new();
    said(place.fathom(&place.tutorial(), &CREATE_WORKSPACE));
    let folder = place.ws().join("forgather_workspace");
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["README.md", "base_directories.yaml", "meta_defaults.yaml"]);
    // Relative to the workspace, so that both can be moved.
    let directories = fs::read_to_string(folder.join("base_directories.yaml")).unwrap();
    assert!(directories.contains(r#"joinpath(workspace_root, "../../../..")"#), "{directories}");
    let before = everything(&place.tutorial());
    let message = refused(place.fathom(&place.tutorial(), &CREATE_WORKSPACE));
    assert!(message.contains("hp_lovecraft_workspace: expected a new folder"), "{message}");
    assert_eq!(everything(&place.tutorial()), before);
    assert_eq!(
        said(place.fathom(&folder, &["ws"])),
        format!("Workspace Directory: {}\n", place.ws().display())
    );
}

#[test]
fn row_01_ws_create_orders_the_search_path_and_takes_other_folders() {
    let place = Place::new();
    let extra = place.root.join("more templates");
    fs::create_dir(&extra).unwrap();
    let dir = place.root.display().to_string();
    let create = [
        "ws",
        "create",
        "--name",
        "Braces {{ x }} ## and \"quotes\"",
        "--description",
        "",
        "--fathom-dir",
        &dir,
        "-l",
        "finetune",
        "-l",
        "base",
        "--search-path",
        "more templates",
        "elsewhere",
    ];
    said(place.fathom(&place.root, &create));
    let ws = place.root.join("elsewhere");
    let create = [
        "project",
        "create",
        "--name",
        "It's {{ odd }}",
        "--description",
        "50 % ## of \"it\" {% if",
    ];
    said(place.fathom(&ws, &[&create[..], &["--project-dir-name", "odd"]].concat()));
    let project = fathom_spec::project::Project::open(&ws.join("odd")).unwrap();
    assert_eq!(project.name, "It's {{ odd }}");
    assert_eq!(project.description, "50 % ## of \"it\" {% if");
    let library = place.root.join("templatelib");
    assert_eq!(
        project.search,
        [
            ws.join("odd/templates"),
            extra,
            ws.join("forgather_workspace"),
            library.join("finetune"),
            library.join("base")
        ]
    );
}

#[test]
fn row_01_a_mistaken_ws_create_leaves_nothing() {
    let place = Place::new();
    let before = everything(&place.root);
    let start = ["ws", "create", "--name", "Ws", "--description", "d", "--forgather-dir"];
    for (rest, expected) in [
        (
            &["nowhere"][..],
            "--forgather-dir: expected the installation's folder (one with `templatelib/`), found `nowhere`\n  help: ",
        ),
        (&[".", "-l", "bsae"], "-l: expected a library of"),
        (&[".", "-l", "bsae"], "(base, finetune), found `bsae`\n  help: did you mean `base`?"),
        (&[".", "-l", "../examples"], "-l: expected a relative name without `..`"),
        (&[".", "--search-path", "nowhere"], "/nowhere: expected a folder, found none"),
    ] {
        let message = refused(place.fathom(&place.root, &[&start[..], rest].concat()));
        assert!(message.contains(expected), "{rest:?}: {message}");
    }
    let slash = ["ws", "create", "--name", "a/b", "--description", "d", "--forgather-dir", "."];
    assert!(
        refused(place.fathom(&place.root, &slash))
            .contains("expected a name that a folder can have")
    );
    assert_eq!(everything(&place.root), before);
}

#[test]
fn row_02_base_directories_of_the_workspace_reach_every_configuration() {
    let place = Place::project();
    place.config("default.yaml", "-- extends 'described.yaml'\n");
    let shown = said(place.fathom(&place.probe(), &["pp"]));
    assert!(shown.contains("# models: unset\n"), "{shown}");
    assert!(shown.contains(&format!("# installation: {}\n", place.root.display())), "{shown}");
    let path = place.ws().join("forgather_workspace/base_directories.yaml");
    let text = fs::read_to_string(&path).unwrap()
        + "-- set ns.models_dir = joinpath(workspace_root, \"models\")\n";
    fs::write(&path, text).unwrap();
    let shown = said(place.fathom(&place.probe(), &["pp"]));
    assert!(shown.contains(&format!("# models: {}/models\n", place.ws().display())), "{shown}");
}

#[test]
fn row_04_pp_prints_a_header_and_valid_yaml() {
    let place = Place::project();
    place.config(
        "default.yaml",
        "meta:\n    config_name: \"Plain\"\n    config_description: \"Of no library\"\nmain: 5\n",
    );
    let shown = said(place.fathom(&place.ws(), &["-p", "probe", "pp"]));
    let comments: Vec<&str> = shown.lines().take_while(|line| line.starts_with("# ")).collect();
    assert_eq!(comments[0], "# Plain : Of no library");
    let time = comments[1].strip_prefix("# Time: ").unwrap();
    assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok(), "{time}");
    assert_eq!(
        comments[2..],
        [
            format!("# Project: {}", place.probe().display()),
            "# Configuration: configs/default.yaml".to_string(),
            format!("# Working directory: {}", place.ws().display()),
            format!("# User configuration: {}/config/forgather", place.root.display()),
            "# Dynamic arguments received: {}".to_string(),
        ]
    );
    assert_eq!(yaml(&shown)["main"], 5);
    // What the templates print themselves is not printed twice; blank lines that they leave at the top are not shown.
    let text = "-- set title = 'Own'\n\n\n# == {{ title }} ==\n# Project: {{ project_dir }}\n# Time: {{ isotime() }}\nmeta: { config_name: Own }\n";
    place.config("own.yaml", text);
    let own = said(place.fathom(&place.probe(), &["-t", "own.yaml", "pp"]));
    let names: Vec<&str> = own.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(
        names,
        [
            "# Configuration",
            "# Working directory",
            "# User configuration",
            "# Dynamic arguments received",
            "# == Own ==",
            "# Project",
            "# Time",
            "meta"
        ]
    );
    let file = place.root.join("out.yaml");
    let text = said(place.fathom(&place.probe(), &["pp", "-o", file.to_str().unwrap()]));
    assert_eq!(text, "");
    assert!(fs::read_to_string(file).unwrap().ends_with("main: 5\n"));
}

#[test]
fn row_05_project_create_copies_its_default_configuration() {
    let place = Place::workspace();
    let source = "-- extends 'described.yaml'\r\n## bytes are kept: é\n";
    place.write("datasets/local_dataset/templatelib/configs/sliding_window.yaml", source);
    let create = [
        "project",
        "create",
        "--name",
        "Lovecraft Dataset",
        "--description",
        "The complete works of H.P. Lovecraft",
        "--default-config",
        "lovecraft.yaml",
        "../../../../datasets/local_dataset/templatelib/configs/sliding_window.yaml",
    ];
    said(place.fathom(&place.ws(), &create));
    let dir = place.ws().join("lovecraft_dataset");
    assert_eq!(fs::read_to_string(dir.join("templates/configs/lovecraft.yaml")).unwrap(), source);
    let meta = fs::read_to_string(dir.join("meta.yaml")).unwrap();
    assert!(meta.contains("default_config: \"lovecraft.yaml\""), "{meta}");
    assert!(dir.join("README.md").is_file());
    let shown = said(place.fathom(&dir, &["project", "show"]));
    assert!(shown.contains("default config   lovecraft.yaml"), "{shown}");
    assert!(shown.contains(&format!("{}/templatelib/finetune", place.root.display())), "{shown}");
    let before = everything(&place.root);
    assert!(refused(place.fathom(&place.ws(), &create)).contains("expected a new folder"));
    let missing =
        ["project", "create", "--name", "Other", "--description", "d", "no_such_file.yaml"];
    let message = refused(place.fathom(&place.ws(), &missing));
    assert!(message.contains("no_such_file.yaml: expected a template to copy"), "{message}");
    let outside = refused(place.fathom(&place.root, &missing[..6]));
    assert!(
        outside.contains("found no workspace around it\n  help: make one with `fathom ws create`"),
        "{outside}"
    );
    assert_eq!(everything(&place.root), before);
}

#[test]
fn row_06_an_empty_project_lists() {
    let place = Place::project();
    let listed = said(place.fathom(&place.probe(), &["ls", "--debug"]));
    assert_eq!(
        listed,
        "Probe : A project to try things in\n    [default.yaml]                 Default : A project to try things in\n"
    );
    assert_eq!(
        said(place.fathom(&place.probe().join("templates"), &["project"])),
        format!("Project Directory: {}\n", place.probe().display())
    );
}

#[test]
fn row_07_new_config_makes_templates_and_never_overwrites_one() {
    let place = Place::project();
    let probe = place.probe();
    said(
        place.fathom(
            &probe,
            &["project", "new_config", "copy.yaml", "templates/configs/default.yaml"],
        ),
    );
    let read = |path: &str| fs::read_to_string(probe.join(path)).unwrap();
    assert_eq!(read("templates/configs/copy.yaml"), read("templates/configs/default.yaml"));
    said(place.fathom(&probe, &["project", "new-config", "--type", "project", "project.yaml"]));
    said(place.fathom(&probe, &["project", "new-config", "deep/er.yaml", "described.yaml"]));
    said(place.fathom(&probe, &["project", "new-config", "shared.yaml", "--type", "ws"]));
    assert!(probe.join("templates/project.yaml").is_file());
    assert!(probe.join("templates/configs/deep/er.yaml").is_file());
    assert!(place.ws().join("forgather_workspace/shared.yaml").is_file());
    let listed = said(place.fathom(&probe, &["ls"]));
    assert!(listed.contains("    deep/er.yaml                   Described : "), "{listed}");
    let before = everything(&place.root);
    for (arguments, expected) in [
        (&["copy.yaml"][..], "copy.yaml: expected a new file, found one there already"),
        (&["project.yaml", "--type", "project"], "project.yaml: expected a new file"),
        (&["../up.yaml"], "expected a relative name without `..`, found `../up.yaml`"),
        (
            &["noextension"],
            "expected the name of a template (.yaml, .yml or .jinja), found `noextension`",
        ),
        (&["a/b/new.yaml", "missing.yaml"], "missing.yaml: expected a template to copy"),
    ] {
        let message =
            refused(place.fathom(&probe, &[&["project", "new-config"][..], arguments].concat()));
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
    assert_eq!(everything(&place.root), before);
}

#[test]
fn row_08_the_shell_does_what_the_commands_do() {
    let place = Place::project();
    place.config("second.yaml", "-- extends 'projects/options.yaml'\n");
    let probe = place.probe();
    let untimed = |text: &str| -> String {
        text.lines()
            .filter(|line| !line.starts_with("# Time: "))
            .map(|line| format!("{line}\n"))
            .collect()
    };
    let alone =
        ["pp", "ls", "targets"].map(|command| said(place.fathom(&probe, &[command]))).concat();
    let shell =
        said(place.typed(
            place.command(&probe, &["-i"]),
            "pp\nls\nfathom targets\n\n# nothing\nquit\nls\n",
        ));
    assert_eq!(untimed(&shell), untimed(&alone));
    // A configuration is remembered, quotes hold words together, and the folder changes.
    let input = "config second.yaml\nconfig\ntargets\nconfig -\nconfig\ncd \"..\"\npwd\n";
    let shell = said(place.typed(place.command(&place.ws(), &["-p", "probe", "-i"]), input));
    assert_eq!(
        shell,
        format!("second.yaml\nmeta\nmain\ndynamic_args\ndefault.yaml\n{}\n", place.ws().display())
    );
    let output = place.typed(place.command(&probe, &["-i"]), "pp --max-lenght 4\npwd\n");
    assert_eq!(output.status.code(), Some(2), "the code of what failed");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{}\n", probe.display()));
    let message = refused(place.typed(place.command(&probe, &["-i"]), "config scond.yaml\n"));
    assert!(message.contains("did you mean `second.yaml`?"), "{message}");
    let help = said(place.typed(place.command(&probe, &["-i"]), "commands\nEOF\n"));
    for (name, ..) in [("cd",), ("debug",), ("edit",), ("pp",), ("sweep",)] {
        assert!(
            help.lines().any(|line| line.split_whitespace().next() == Some(name)),
            "{name}: {help}"
        );
    }
}

#[test]
fn row_09_edit_opens_templates_in_the_users_editor() {
    let place = Place::project();
    let probe = place.probe();
    let text = place.config("default.yaml", "meta: { config_name: x }\n");
    place.write(probe.join("templates/project.yaml"), "the project's\n");
    let cat = |arguments: &[&str]| {
        let mut command = place.command(&probe, arguments);
        command.env("EDITOR", "cat --");
        command
    };
    assert_eq!(said(cat(&["edit", "project.yaml"]).output().unwrap()), "the project's\n");
    assert_eq!(
        said(cat(&["edit", "default.yaml"]).output().unwrap()),
        fs::read_to_string(text).unwrap()
    );
    let menu = said(place.typed(cat(&["edit"]), "1-2\n"));
    assert!(
        menu.starts_with(
            "Configurations\n    1  default.yaml\nTemplates of the project\n    2  project.yaml\n"
        ),
        "{menu}"
    );
    assert!(menu.ends_with("Which (1,3,5-7)? meta: { config_name: x }\nthe project's\n"), "{menu}");
    let menu = said(place.typed(cat(&["-i"]), "edit\n2\npwd\nquit\n"));
    assert!(menu.ends_with(&format!("the project's\n{}\n", probe.display())), "{menu}");
    // What is not there is made only if wanted.
    let new = probe.join("templates/new.yaml");
    said(place.typed(cat(&["edit", "new.yaml"]), "n\n"));
    assert!(!new.exists());
    said(place.typed(cat(&["edit", "new.yaml"]), "y\n"));
    assert_eq!(fs::read_to_string(new).unwrap(), "");
    // VS Code comes first where a terminal knows one.
    let code = place.write("bin/code", "#!/bin/sh\necho code \"$@\"\n");
    fs::set_permissions(&code, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", place.root.join("bin").display(), std::env::var("PATH").unwrap());
    let mut command = cat(&["edit", "project.yaml"]);
    command.env("VSCODE_IPC_HOOK_CLI", "/tmp/socket").env("PATH", path);
    assert_eq!(
        said(command.output().unwrap()),
        format!("code {}/templates/project.yaml\n", probe.display())
    );
    let mut command = place.command(&probe, &["edit", "project.yaml"]);
    let message = refused(command.env("VISUAL", "no-such-editor").output().unwrap());
    assert!(message.contains("`no-such-editor` can't be started"), "{message}");
}

#[test]
fn row_12_debug_shows_translated_templates_and_where_a_mistake_is() {
    let place = Place::project();
    let broken = place.config(
        "broken.yaml",
        "-- extends 'described.yaml'\n\n[main_body]\n    == super()\nx: {{ undefined_thing }}\n",
    );
    place.config("not_yaml.yaml", "a: [1, 2\nb: }\n");
    let probe = place.probe();
    let output = place.fathom(&probe, &["ls"]);
    assert_eq!(output.status.code(), Some(1));
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(listed.contains("    broken.yaml                    PARSE ERROR : "), "{listed}");
    assert!(listed.contains("    [default.yaml]                 Default : "), "{listed}");
    let debug =
        String::from_utf8_lossy(&place.fathom(&probe, &["ls", "--debug"]).stdout).into_owned();
    assert!(debug.contains(&format!("        {}:5: ", broken.display())), "{debug}");
    assert!(debug.contains("undefined_thing") && debug.contains("not_yaml.yaml:"), "{debug}");

    let output = place.fathom(&probe, &["-t", "broken.yaml", "pp", "--debug"]);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        shown.contains(&format!(
            "# ===== configs/broken.yaml : {} =====\n#    1  {{% extends 'described.yaml' %}}\n",
            broken.display()
        )),
        "{shown}"
    );
    assert!(shown.contains("#    3  {% block main_body %}\n#    4  {{ super() }}\n"), "{shown}");
    assert!(shown.contains("# ===== described.yaml : "), "{shown}");
    let message = refused(output);
    assert!(message.starts_with(&format!("error: {}:5: ", broken.display())), "{message}");
    // Without a mistake the text follows, and what was dumped is comments to YAML.
    let shown = said(place.fathom(&probe, &["pp", "--debug"]));
    assert_eq!(yaml(&shown)["main"], "Main Output");
    let message = refused(place.fathom(&probe, &["-t", "not_yaml.yaml", "pp"]));
    assert!(message.contains("not_yaml.yaml:"), "{message}");
}

#[test]
fn row_19_ls_puts_the_default_in_brackets() {
    let place = Place::workspace();
    let create = [
        "project",
        "create",
        "--name",
        "Lovecraft Dataset",
        "--description",
        "The complete works of H.P. Lovecraft",
        "--default-config",
        "lovecraft.yaml",
    ];
    said(place.fathom(&place.ws(), &create));
    let dir = place.ws().join("lovecraft_dataset");
    let config = |name: &str, title: &str, description: &str| {
        let text = format!(
            "meta: !dict:@meta\n    config_name: {title}\n    config_description: {description}\n"
        );
        place.write(dir.join("templates/configs").join(name), &text);
    };
    config("lovecraft.yaml", "Lovecraft", "The complete works of H.P. Lovecraft");
    config("lovecraft-packed.yaml", "Lovecraft Packed", "Densely-packed Lovecraft blocks");
    let expected = "\
Lovecraft Dataset : The complete works of H.P. Lovecraft
    lovecraft-packed.yaml          Lovecraft Packed : Densely-packed Lovecraft blocks
    [lovecraft.yaml]               Lovecraft : The complete works of H.P. Lovecraft
";
    assert_eq!(said(place.fathom(&dir, &["ls"])), expected);
    assert_eq!(said(place.fathom(&place.ws(), &["ls", "lovecraft_dataset"])), expected);
    said(
        place.fathom(&place.ws(), &["project", "create", "--name", "Another", "--description", ""]),
    );
    let all = said(place.fathom(&place.root, &["ls", "-r"]));
    assert_eq!(all, format!("Another :\n    [default.yaml]                 Default :\n{expected}"));
    let message = refused(place.fathom(&place.ws(), &["ls"]));
    assert!(
        message.contains("expected a project") && message.contains("`fathom ls -r`"),
        "{message}"
    );
}

#[test]
fn options_that_a_template_declares_are_options_of_the_command() {
    let place = Place::project();
    place.config("default.yaml", "-- extends 'projects/options.yaml'\n");
    let probe = place.probe();
    let help = said(place.fathom(&probe, &["pp", "--help"]));
    for line in [
        "Options of default.yaml:",
        "-L, --max-length <int>",
        "Maximum tokens per output block [default: 4096]",
        "--lr <float>",
        "Learning rate [default: 5.0e-5]",
        "--shuffle",
        "Shuffle blocks",
        "--compile <bool>",
        "Compile the model [default: True]",
        "--packing <str>",
        "How blocks are packed [choices: greedy, best_fit] [default: greedy]",
        "-M <str>",
        "--data-dir <path>",
    ] {
        assert!(help.contains(line), "{line}: {help}");
    }
    let main = |arguments: &[&str]| {
        yaml(&said(place.fathom(&probe, &[&["pp"][..], arguments].concat())))["main"].clone()
    };
    assert_eq!(
        main(&[]),
        json!({"max_length": 4096, "lr": 5e-5, "shuffle": false, "compile": true, "packing": "greedy", "model": "none", "data": "none"})
    );
    let data = probe.join("texts").display().to_string();
    assert_eq!(
        main(&[
            "-L",
            "64",
            "--lr=1e-3",
            "--shuffle",
            "--compile",
            "no",
            "--packing",
            "best_fit",
            "-M",
            "m",
            "--data-dir",
            "./texts"
        ]),
        json!({"max_length": 64, "lr": 0.001, "shuffle": true, "compile": false, "packing": "best_fit", "model": "m", "data": data})
    );
    assert_eq!(main(&["--max-length", "-1", "--max-length", "7"])["max_length"], 7);
    assert_eq!(
        main(&["--data-dir", "~/t"])["data"],
        place.root.join("home/t").display().to_string()
    );
    let shown = said(place.fathom(&probe, &["pp", "--max-length", "64"]));
    assert!(
        shown.contains("# Dynamic arguments received: {\"max_length\":64,\"shuffle\":false}\n"),
        "{shown}"
    );
    for (arguments, expected) in [
        (&["--max-lenght", "4"][..], "'--max-length'"),
        (&["--max-length", "4.5"], "expected a whole number, found `4.5`"),
        (
            &["--packing", "best-fit"],
            "expected one of greedy, best_fit, found `best-fit`; did you mean `best_fit`?",
        ),
        (
            &["--nothing", "5"],
            "--nothing: expected an option that `default.yaml` reads, found that none of its templates reads `nothing`",
        ),
        (&["-t", "x.yaml"], "`-t` stands before the command"),
    ] {
        let message = refused(place.fathom(&probe, &[&["pp"][..], arguments].concat()));
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

#[test]
fn a_broken_declaration_says_where_it_stands() {
    let place = Place::project();
    let probe = place.probe();
    for (declaration, line, expected) in [
        ("names: [ max-length ]", 4, "expected `-x` or `--long-name`, found `max-length`"),
        (
            "names: \"--x\"\n        type: integer",
            5,
            "expected one of int, str, float, bool, path, found `integer`",
        ),
        ("names: \"--x\"\n        typ: int", 5, "found `typ`\n  help: did you mean `type`?"),
        (
            "names: \"--x\"\n        action: append",
            5,
            "expected one of store, store_true, store_false, found `append`",
        ),
        ("help: \"no name\"", 4, "expected `names`, found none"),
        (
            "names: \"--x\"\n        type: int\n        choices: [ 1, two ]",
            4,
            "expected a whole number, found `two`",
        ),
        (
            "names: \"--x\"\n    b:\n        names: [ \"--y\", \"--x\" ]",
            6,
            "expected a name of its own, found `--x`",
        ),
        (
            "names: [ \"-o\", \"--output\" ]",
            4,
            "found -o and --output, which `fathom pp` has already",
        ),
    ] {
        let text = format!("main: 1\ndynamic_args: !dlist\n    a:\n        {declaration}\n");
        let path = place.config("default.yaml", &text);
        for arguments in [&["pp", "--x", "1"][..], &["graph"]] {
            if expected.contains("fathom pp") && arguments[0] != "pp" {
                continue;
            }
            let message = refused(place.fathom(&probe, arguments));
            assert!(
                message.starts_with(&format!("error: {}:{line}", path.display()))
                    && message.contains(expected),
                "{declaration}: {message}"
            );
        }
    }
    // A name that is left is enough, and the help says which is not.
    place.config("default.yaml", "main: {{ out | default(1) }}\ndynamic_args: !dlist\n    a:\n        names: [ \"-o\", \"--out\" ]\n");
    let help = said(place.fathom(&probe, &["pp", "--help"]));
    assert!(help.contains("[-o is an option of `pp` itself]"), "{help}");
    assert_eq!(yaml(&said(place.fathom(&probe, &["pp", "--out", "5"])))["main"], 5);
}

#[test]
fn mistakes_in_a_project_say_the_way_out() {
    let place = Place::project();
    let probe = place.probe();
    let meta = fs::read_to_string(probe.join("meta.yaml")).unwrap();
    let message = refused(place.fathom(&probe, &["-t", "defualt.yaml", "pp"]));
    assert!(message.contains("expected a configuration of default.yaml, found `defualt.yaml`\n  help: did you mean `default.yaml`?"), "{message}");
    for (more, expected) in [
        ("nmae: \"x\"\n", "expected a known key, found `nmae`\n  help: did you mean `name`?"),
        ("system_path: \"src\"\n", "system_path: expected nothing: no Python code is loaded"),
        ("name: [ 1 ]\n", "name: expected text, found a list"),
    ] {
        fs::write(probe.join("meta.yaml"), meta.clone() + more).unwrap();
        let message = refused(place.fathom(&probe, &["ls"]));
        assert!(message.contains("meta.yaml:8: ") && message.contains(expected), "{message}");
    }
    fs::write(probe.join("meta.yaml"), meta.replace("default.yaml", "gone.yaml")).unwrap();
    let output = place.fathom(&probe, &["ls"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stdout)
            .contains("    [gone.yaml]                    PARSE ERROR")
    );
    let message = refused(place.fathom(&place.root, &["pp"]));
    assert!(
        message
            .contains("expected a project (a folder with `meta.yaml`) here or upward, found none"),
        "{message}"
    );
}

#[test]
fn templates_and_graph_are_shown_in_every_format() {
    let place = Place::project();
    let probe = place.probe();
    let text = "-- extends 'described.yaml'\n[main_body]\n    == super()\nshared: &s !singleton:a:b@name\n    - 1\n\
                a: !partial:c:d\n    arg0: *s\n    lr: 1.0e-5\n    list: [ 1, \"yes\", *s ]\n    v: !var { name: x, default: null }\n\
                \"yes\": { b: {}, \"on\": \"it's\" }\nl: !list []\n";
    let config = place.config("default.yaml", text);
    assert_eq!(said(place.fathom(&probe, &["targets"])), "meta\nshared\na\nyes\nl\ndynamic_args\n");
    let tree = said(place.fathom(&probe, &["trefs"]));
    let expected = [
        format!("configs/default.yaml : {}", config.display()),
        format!(
            "    extends described.yaml : {}/templatelib/base/described.yaml",
            place.root.display()
        ),
        format!(
            "        includes base_directories.yaml : {}/forgather_workspace/base_directories.yaml",
            place.ws().display()
        ),
    ];
    assert_eq!(tree.lines().collect::<Vec<_>>(), expected);
    let files = said(place.fathom(&probe, &["trefs", "--format", "files"]));
    assert!(
        files.lines().count() == 3 && files.lines().all(|line| Path::new(line).is_file()),
        "{files}"
    );
    let dot = said(place.fathom(&probe, &["trefs", "--format", "dot"]));
    assert!(
        dot.contains(
            "\"configs/default.yaml\" -> \"described.yaml\" [label=\"extends\", style=solid];"
        ),
        "{dot}"
    );
    let svg = said(place.fathom(&probe, &["trefs", "--format", "svg"]));
    assert!(
        svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.matches("<text").count() == 3,
        "{svg}"
    );
    assert!(svg.contains("stroke-dasharray"), "{svg}");

    let graph = |format: &str| said(place.fathom(&probe, &["graph", "--format", format]));
    let json: Value = serde_json::from_str(&graph("json")).unwrap();
    assert_eq!(json["shared"]["id"], "name");
    // The YAML reads back as the same graph.
    let path = place.write("graph.yaml", &graph("yaml"));
    let again =
        said(place.fathom(&place.root, &["template", "render", path.to_str().unwrap(), "--graph"]));
    let again: Value = serde_json::from_str(&again).unwrap();
    assert_eq!(again["config"], json, "{}", graph("yaml"));
    let tree = graph("tree");
    assert!(tree.contains("shared: singleton a:b (name)\n  [0]: 1\n"), "{tree}");
    assert!(tree.contains("\n  [0]: -> name\n  lr: 1.0e-5\n"), "{tree}");
}

/// The patterns of a grammar, with the names they stand under.
fn patterns(value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value) {
                    ("match" | "begin" | "end", Value::String(pattern)) => {
                        found.push((key.clone(), pattern.clone()));
                    }
                    _ => patterns(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| patterns(item, found)),
        _ => {}
    }
}

fn syntax(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/syntax");
    fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Lines of a template, and what of the grammar is to see each.
const SAMPLES: [(&str, &str); 12] = [
    ("    -- set ns.x = 1", "line_statement"),
    ("<< if x", "line_statement"),
    (">> endif", "line_statement"),
    ("    == super()", "line_print"),
    ("=> body", "line_print"),
    ("  ## a comment", "comment"),
    ("x: 1  ## a comment", "trailing_comment"),
    ("[optimizer]", "block"),
    ("    [optimizer!]", "block"),
    ("x: {{ ns.x | toyaml }}", "print"),
    ("x: !singleton:datasets:load_dataset@name", "tag"),
    ("# --- inc/part.yaml ---", "separator"),
];

#[test]
fn row_62_the_grammar_of_vs_code_sees_the_language() {
    for file in ["package.json", "language-configuration.json"] {
        let _: Value = serde_json::from_str(&syntax(&format!("vscode/{file}"))).unwrap();
    }
    let package: Value = serde_json::from_str(&syntax("vscode/package.json")).unwrap();
    let grammar = package["contributes"]["grammars"][0]["path"].as_str().unwrap();
    let grammar: Value = serde_json::from_str(&syntax(&format!("vscode/{grammar}"))).unwrap();
    assert_eq!(grammar["scopeName"], package["contributes"]["grammars"][0]["scopeName"]);
    let mut all = Vec::new();
    patterns(&grammar, &mut all);
    assert!(all.len() > 20);
    for (_, pattern) in &all {
        regex::Regex::new(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
    }
    let sees = |name: &str, line: &str| {
        let mut own = Vec::new();
        patterns(&grammar["repository"][name], &mut own);
        own.iter().any(|(key, pattern)| {
            key != "end" && regex::Regex::new(pattern).unwrap().is_match(line)
        })
    };
    for (line, name) in SAMPLES {
        assert!(sees(name, line), "{name}: {line}");
        // A line is of one kind; what may stand inside a line is found by the others too.
        for other in ["line_statement", "line_print", "block", "separator", "tag"] {
            assert_eq!(sees(other, line), other == name, "{other}: {line}");
        }
    }
    for plain in
        ["<<: *common", "--- # a document", "x: [optimizer]", "a: 4##x", "- == x", "x: !custom"]
    {
        for name in ["line_statement", "line_print", "block", "comment", "separator", "tag"] {
            assert!(!sees(name, plain), "{name}: {plain}");
        }
    }
}

#[test]
fn row_62_the_syntax_of_vim_sees_the_language() {
    let text = syntax("vim/syntax/fathom_template.vim");
    assert!(syntax("vim/ftdetect/fathom_template.vim").contains("filetype=fathom_template"));
    // Vim's very magic patterns, as this crate writes them.
    let groups: Vec<(&str, regex::Regex)> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("syntax match ")?.split_once(" /\\v")?;
            let pattern = rest[..rest.rfind('/')?]
                .replace("\\<", "«")
                .replace("\\>", "»")
                .replace("\\=", "=");
            let pattern = pattern
                .replace(['<', '>'], "\\b")
                .replace('«', "<")
                .replace('»', ">")
                .replace("\\/", "/");
            Some((name, regex::Regex::new(&pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"))))
        })
        .collect();
    let vim_name = |name: &str| match name {
        "line_statement" => "fathomStatement",
        "line_print" => "fathomPrint",
        "comment" => "fathomComment",
        "trailing_comment" => "fathomTrailing",
        "block" => "fathomBlock",
        "tag" => "fathomTag",
        "separator" => "fathomSeparator",
        _ => "",
    };
    for (line, name) in SAMPLES.iter().filter(|(_, name)| *name != "print") {
        let sees = |group: &str| {
            groups.iter().any(|(name, pattern)| *name == group && pattern.is_match(line))
        };
        assert!(sees(vim_name(name)), "{name}: {line}");
        for other in ["line_statement", "line_print", "block", "separator", "tag"] {
            assert_eq!(sees(vim_name(other)), other == *name, "{other}: {line}");
        }
    }
    assert!(text.contains("start=/{{[-+]\\?/ end=/[-+]\\?}}/"));
}
