//! The template language, from files to text and graph.

use fathom_spec::template::graph::Graph;
use fathom_spec::template::{Error, Host, Rendered, Stage, Templates, Use};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

/// A machine whose user lives where the reference was made.
fn host() -> Host {
    Host {
        home: "/home/user".into(),
        working_directory: "/here".into(),
        environment: BTreeMap::new(),
        now: "2026-03-01T12:30:05.250000+02:00".parse().unwrap(),
        peak_hardware_flops: Some(165.2e12),
    }
}

/// A case of the reference: a folder with its input, context, expected text and expected graph.
struct Case {
    folder: PathBuf,
    context: Json,
}

impl Case {
    fn read(name: &str) -> Case {
        let folder = data("template_cases").join(name);
        let context = std::fs::read_to_string(folder.join("context.json")).unwrap();
        Case { folder, context: serde_json::from_str(&context).unwrap() }
    }

    fn render(&self) -> anyhow::Result<Rendered> {
        let object = |key: &str| self.context[key].as_object().cloned().unwrap_or_default();
        let search = self.context["searchpath"].as_array().unwrap();
        Templates {
            search: search.iter().map(|dir| self.folder.join(dir.as_str().unwrap())).collect(),
            globals: object("globals"),
            keep_comments: self.context["preserve_line_numbers"].as_bool().unwrap(),
        }
        .render_on(&host(), self.context["main"].as_str().unwrap(), &object("vars"))
    }

    fn check(&self) {
        let expected = std::fs::read_to_string(self.folder.join("expected.json")).unwrap();
        let expected: Json = serde_json::from_str(&expected).unwrap();
        let rendered = self.render();
        if let Ok(rendered) = &rendered {
            let text = std::fs::read_to_string(self.folder.join("expected.txt")).unwrap();
            assert_eq!(rendered.text, text, "{}", self.folder.display());
        }
        match (rendered.and_then(|rendered| rendered.graph()), expected.get("config")) {
            (Ok(graph), Some(config)) => {
                assert_eq!(pretty(&graph.to_json()), pretty(config), "{}", self.folder.display());
            }
            (Ok(_), None) => panic!("{}: an error should have come", self.folder.display()),
            (Err(error), Some(_)) => panic!("{}: {error:#}", self.folder.display()),
            (Err(error), None) => {
                let stage = error.downcast_ref::<Error>().unwrap().stage;
                assert_eq!(json!(stage.to_string()), expected["error"]["stage"]);
            }
        }
    }
}

fn pretty(value: &Json) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

#[test]
fn row_11_template_cases_match() {
    let mut count = 0;
    for entry in std::fs::read_dir(data("template_cases")).unwrap() {
        Case::read(entry.unwrap().file_name().to_str().unwrap()).check();
        count += 1;
    }
    assert_eq!(count, 14);
}

#[test]
fn row_03_path_globals_equal_case_14() {
    Case::read("14_globals").check();
}

#[test]
fn row_03_path_globals_are_those_of_the_given_machine() {
    let mut host = host();
    host.environment.insert("XDG_CACHE_HOME".into(), "/fast/cache".into());
    host.environment.insert("XDG_CONFIG_DIRS".into(), "/site/a:/site/b".into());
    host.environment.insert("EDITOR".into(), "vi".into());
    let cases = [
        ("isotime()", "2026-03-01T12:30:05"),
        ("utcisotime()", "2026-03-01T10:30:05+00:00"),
        ("filetime()", "2026-03-01T12-30-05"),
        ("utcfiletime()", "2026-03-01T10-30-05"),
        ("now()", "2026-03-01 12:30:05.250000"),
        ("utcnow()", "2026-03-01 10:30:05.250000+00:00"),
        ("now().strftime('%d.%m.%Y') ~ now().year", "01.03.20262026"),
        ("now().isoformat()", "2026-03-01T12:30:05.250000"),
        ("get_peak_hardware_flops() / 1e12", "165.2"),
        ("getcwd()", "/here"),
        ("abspath('x/../y')", "/here/y"),
        ("relpath('/a', '/a/b/c')", "../.."),
        ("user_home_dir()", "/home/user"),
        ("forgather_config_dir()", "/home/user/.config/forgather"),
        ("user_data_dir('app')", "/home/user/.local/share/app"),
        ("user_cache_dir('app', 'author')", "/fast/cache/app"),
        ("user_config_dir()", "/home/user/.config"),
        ("site_data_dir()", "/usr/local/share"),
        ("site_config_dir('app')", "/site/a/app"),
        ("getenv('EDITOR')", "vi"),
        ("getenv('NOT_THERE')", "None"),
        ("getenv('NOT_THERE', default='x')", "x"),
        ("project_dir ~ ' ' ~ versions.python", "/w/p 3.11"),
    ];
    let globals = json!({ "project_dir": "/w/p", "versions": { "python": "3.11" } });
    for (expression, expected) in cases {
        let files = Files::new(&[("main", &format!("{{{{ {expression} }}}}"))]);
        let templates =
            Templates { globals: globals.as_object().cloned().unwrap(), ..files.templates() };
        let text = templates.render_on(&host, "main", &Map::new()).unwrap().text;
        assert_eq!(text, expected, "{expression}");
    }
}

/// Template files in a folder of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Files {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Files(folder)
    }

    fn templates(&self) -> Templates {
        Templates { search: vec![self.0.path().to_path_buf()], ..Templates::default() }
    }

    fn render(&self, vars: Json) -> Result<Rendered, String> {
        let vars = vars.as_object().cloned().unwrap();
        let rendered = self.templates().render_on(&host(), "main", &vars);
        rendered.map_err(|e| self.relative(&format!("{e:#}")))
    }

    /// A text without the folder's own path.
    fn relative(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }

    /// The rendered lines, each with its origin.
    fn traced(&self) -> Vec<(String, String)> {
        let rendered = self.render(json!({})).unwrap();
        let lines = rendered.text.lines().zip(&rendered.origins);
        lines.map(|(line, origin)| (line.to_string(), self.relative(&origin.to_string()))).collect()
    }

    fn lints(&self) -> Vec<String> {
        let rendered = self.render(json!({})).unwrap();
        let lints = rendered.lints.iter();
        lints.map(|lint| self.relative(&format!("{}: {}", lint.origin, lint.message))).collect()
    }
}

/// The text of one template.
fn text(template: &str, vars: Json) -> Result<String, String> {
    Files::new(&[("main", template)]).render(vars).map(|rendered| rendered.text)
}

/// The graph of a text that is YAML alone.
fn graph(yaml: &str) -> Result<Graph, String> {
    let files = Files::new(&[("main", yaml)]);
    let rendered = files.render(json!({}))?;
    rendered.graph().map_err(|e| files.relative(&format!("{e:#}")))
}

#[test]
fn line_statements_trim_as_their_sign_says() {
    let cases = [
        ("a: 1\n  << set x = 1\nb: 2\n", "a: 1b: 2"),
        ("a: 1\n>> set x = 1\n\n  b: 2\n", "a: 1\nb: 2"),
        ("=> '\\n x \\n'\nb: 2", " x \nb: 2"),
        ("  == 'x'  \nb: 2", "x\nb: 2"),
        ("--x\n==x\n---\n", "--x\n==x\n---"),
        ("a: {<<: *a}\n<<: *b ## c", "a: {<<: *a}\n<<: *b"),
        ("a\r\n-- set x = 1\r\nb\rc\n\n", "a\nb\nc\n"),
        ("\u{feff}-- set x = 1\na: {{ x }}\n", "a: 1"),
    ];
    for (template, expected) in cases {
        assert_eq!(text(template, json!({})).as_deref(), Ok(expected), "{template:?}");
    }
    assert!(text("a: |\n  -- not code\n", json!({})).is_err(), "also inside of block scalars");
}

#[test]
fn comments_go_from_the_last_sign_on() {
    let template = "a: 1  ## x\nb: ## one ## two\n  ## whole\nc: 4##no\nd: {{ 1 }} ###\n";
    let expected = "a: 1 \nb: ## one\nc: 4##no\nd: 1";
    assert_eq!(text(template, json!({})).as_deref(), Ok(expected));
    let files = Files::new(&[("main", template)]);
    let kept = Templates { keep_comments: true, ..files.templates() };
    let kept = kept.render_on(&host(), "main", &Map::new()).unwrap();
    assert_eq!(kept.text, expected);
    assert_eq!(kept.sources[0].translated.lines().nth(2), Some("{#  whole #}"));
}

#[test]
fn comments_are_kept_where_the_engine_allows_them() {
    let template = "## ends #} early\na: {{ [1,\n## it's inside\n2] }}\n{# x\n## y\n#}b: 2\n";
    let files = Files::new(&[("main", template)]);
    for keep_comments in [false, true] {
        let templates = Templates { keep_comments, ..files.templates() };
        let text = templates.render_on(&host(), "main", &Map::new()).unwrap().text;
        assert_eq!(text, "a: [1, 2]\nb: 2", "{keep_comments}");
    }
}

#[test]
fn trimmed_blocks_leave_their_line_break_to_the_next() {
    let cases = [
        ("[a!]\n\nx: 1\n\n[b]\ny: 2\n", "x: 1y: 2\n"),
        ("[a!]\nx: 1\n\n[b]\n\ny: 2\n", "x: 1\ny: 2\n"),
    ];
    for (template, expected) in cases {
        assert_eq!(text(template, json!({})).as_deref(), Ok(expected), "{template:?}");
    }
}

#[test]
fn a_block_is_overridden_wherever_it_stands() {
    let files = Files::new(&[
        (
            "base",
            "-- set ns = namespace(v=1)\n[a]\na: {{ ns.v }}\n    [b]\nb: 1\n[c]\nc: {{ ns.v }}\n",
        ),
        ("mid", "-- extends 'base'\n[b]\n    == super()\nb2: mid\n"),
        (
            "main",
            "-- set parent = 'mid'\n-- extends parent\n[c]\n-- set ns.v = 5\n-- include 'inc'\n    == super()\n[b]\n== super()\nb3: {{ ns.v }}\n",
        ),
        ("inc", "-- set ns.v = ns.v + 1\n"),
    ]);
    let rendered = files.render(json!({})).unwrap();
    assert_eq!(rendered.text, "a: 1\nb: 1\n\nb2: mid\n\nb3: 1\n\n\nc: 6\n\n");
    assert_eq!(rendered.lints, []);
}

#[test]
fn a_later_set_wins_over_an_earlier_one() {
    let files = Files::new(&[
        (
            "base",
            "-- set ns = namespace()\n[meta]\n-- set ns.seq_len = seq_len | default(512)\n[main]\nn: {{ ns.seq_len }}\n",
        ),
        (
            "main",
            "-- extends 'base'\n[meta]\n== super()\n-- set ns.seq_len = seq_len | default(4096)\n",
        ),
    ]);
    assert!(files.render(json!({})).unwrap().text.contains("n: 4096"));
    assert!(files.render(json!({ "seq_len": 8192 })).unwrap().text.contains("n: 8192"));
}

#[test]
fn every_line_knows_its_template_line() {
    let files = Files::new(&[
        ("base", "## a comment\nx: 1\n[a]\na: base\n\n[b!]\nb: 1\nb2: 2\n\n[c]\n== who\n"),
        (
            "main",
            "-- extends 'base'\n-- set who = 'w: 1'\n[a]\n=> super()\n\na2: {{ 3 }}\n-- include 'part'\n\n# --- part ---\nsub: 1\n-- from 'm/acro' import two\n== two()\n",
        ),
        ("m/acro", "-- macro two()\none: 1\ntwo: 2\n-- endmacro\n"),
    ]);
    let expected = [
        ("x: 1", "base:2"),
        ("a: base", "base:4"),
        ("", "main:5"),
        ("a2: 3", "main:6"),
        ("sub: 1", "main:10"),
        ("one: 1", "m/acro:2"),
        ("two: 2", "m/acro:3"),
        ("b: 1", "base:7"),
        ("b2: 2w: 1", "base:8"),
    ];
    let traced = files.traced();
    let traced: Vec<(&str, &str)> = traced
        .iter()
        .map(|(line, origin)| (line.as_str(), origin.as_str()))
        .filter(|(line, origin)| !line.is_empty() || *origin == "main:5")
        .collect();
    assert_eq!(traced, expected);
}

#[test]
fn errors_of_the_graph_point_into_templates() {
    let base = "[a]\na: 1\n[b]\nb: &b !singleton:x:y@n\n    k: 1\n";
    let cases = [
        (
            "[a]\n== super()\nc: *nope\n",
            "main:4: expected YAML, found an error: while parsing node, found unknown anchor\n  help: the rendered line is `c: *nope`",
        ),
        (
            "[a]\na: 1\n\nb: !singletn:x:y\n",
            "main:5: expected a tag of the language, found `!singletn:x:y`\n  help: did you mean `!singleton`?",
        ),
        (
            "[a]\na: 2026-01-01\n",
            "main:3: expected a value that a graph can hold, found the date `2026-01-01`\n  help: quote it: `'2026-01-01'`",
        ),
        (
            "[a]\na: !call:q@n\n",
            "base:4: expected a name that no other node has, found `@n`\n  help: `@n` stands at main:3 already",
        ),
        (
            "[b]\n=> super()\n\nz: !list {}\n",
            "main:5: expected a list after `!list`, found a mapping of 0 keys",
        ),
        ("[a]\n- 1\n", "base:4: expected YAML, found an error:"),
    ];
    for (child, expected) in cases {
        let main = format!("-- extends 'base'\n{child}");
        let files = Files::new(&[("base", base), ("main", &main)]);
        let error = files.render(json!({})).unwrap().graph().unwrap_err();
        assert_eq!(error.downcast_ref::<Error>().unwrap().stage, Stage::Yaml);
        let message = files.relative(&format!("{error:#}"));
        assert!(message.starts_with(expected), "{message}\n  expected {expected}");
    }
}

#[test]
fn errors_of_rendering_point_into_templates() {
    let cases = [
        (
            "x: {{ mising }}",
            "main:1: expected a defined value: `mising` is undefined\n  help: did you mean `missing`?",
        ),
        (
            "-- set ns = namespace()\n-- set ns.total_steps = 3\n== ns.total_step",
            "main:3: expected a defined value: `ns.total_step` is undefined\n  help: did you mean `ns.total_steps`?",
        ),
        (
            "## c\n## d\n== joinpath('a', project_dir)",
            "main:3: expected a defined value: `project_dir` is undefined",
        ),
        ("{{ missing.x.y }}", "main:1: expected a defined value: `missing.x` is undefined"),
        ("-- if nope\n-- endif", "main:1: expected a defined value: `nope` is undefined"),
        (
            "== nope + 1",
            "main:1: tried to use + operator on unsupported types undefined and number (`nope` is undefined)",
        ),
        ("== 'a' ~ nope", "main:1: expected a defined value: `nope` is undefined"),
        ("== nope | toyaml", "main:1: expected a defined value: `nope` is undefined"),
        (
            "a: 1\n== raise('seq_len must be even, found ' ~ 3)",
            "main:2: seq_len must be even, found 3",
        ),
        ("a: 1\n-- set _ = assert(1 > 2, 'one is not more')", "main:2: one is not more"),
        ("a: 1\n-- if x\nb: 2", "main:3: unexpected end of input"),
        (
            "-- extends 'nope.yaml'",
            "main:1: expected a template, found no `nope.yaml`\n  help: looked in ",
        ),
        (
            "\n-- include 'part.yml'",
            "main:2: expected a template, found no `part.yml`\n  help: did you mean `part.yaml`? looked in ",
        ),
        (
            "-- include 'part.yaml'",
            "part.yaml:2: expected a defined value: `undefined_here` is undefined",
        ),
        (
            "== joinpth('a')",
            "main:1: expected a function, found `joinpth`, which is unknown\n  help: did you mean `joinpath`?",
        ),
        (
            "== 1 | toyml",
            "main:1: expected a filter, found `toyml`, which is unknown\n  help: did you mean `toyaml`?",
        ),
        ("[a]\n[a]\n", "main:2: block 'a' defined twice"),
        ("-- extends '../main'", "main:1: expected a template, found no `../main`"),
        ("-- extends 'main'", "main:1: cycle in template inheritance"),
    ];
    for (main, expected) in cases {
        let part = "a: 1\nb: {{ undefined_here }}\n";
        let files = Files::new(&[("main", main), ("part.yaml", part)]);
        let message = files.render(json!({ "missing": {} })).unwrap_err();
        assert!(message.starts_with(expected), "{message}\n  expected {expected}");
    }
    let files = Files::new(&[("main", "{{ x }}")]);
    let error = files.templates().render_on(&host(), "main", &Map::new()).unwrap_err();
    assert_eq!(error.downcast_ref::<Error>().unwrap().stage, Stage::Preprocess);
}

#[test]
fn an_error_inside_a_parent_points_there() {
    let files = Files::new(&[
        ("base", "[a]\na: 1\n\nb: {{ gone }}\n"),
        ("mid", "-- extends 'base'\n"),
        ("main", "-- extends 'mid'\n[a]\n\n== super()\n"),
    ]);
    let message = files.render(json!({})).unwrap_err();
    let expected = "base:4: expected a defined value: `gone` is undefined";
    assert!(message.starts_with(expected), "{message}");
}

#[test]
fn a_block_inside_itself_is_an_error() {
    let message = text("[a]\n{{ self.a() }}\n", json!({})).unwrap_err();
    assert!(message.contains("recursion limit"), "{message}");
}

#[test]
fn expressions_answer_as_python_does() {
    let cases = [
        (
            "(7000000 // 3891, -7 // 2, 7 % -3, -7.5 % 2, 20000.0 // 15564)",
            "(1799, -4, -2, 0.5, 1.0)",
        ),
        (
            "(10 / 2, 2 ** -1, 1e16, 1e15, 5e-5, 0.0001, -0.0)",
            "(5.0, 0.5, 1e+16, 1000000000000000.0, 5e-05, 0.0001, -0.0)",
        ),
        ("(3.99 | int, -3.99 | int, '3.7' | int, 'x' | int, 'x' | int(7))", "(3, -3, 3, 0, 7)"),
        ("[True, none, 1.0, 'it\\'s', 5e-05]", "[True, None, 1.0, \"it's\", 5e-05]"),
        ("{'a': {'b': 1e-7}}", "{'a': {'b': 1e-07}}"),
        ("('a', splitext('/a/b.py'))", "('a', ('/a/b', '.py'))"),
        ("'lr' ~ 5e-5 ~ True ~ [1e-5]", "lr5e-05True[1e-05]"),
        ("[5e-5, 2] | join('|')", "5e-05|2"),
        ("5e-5 | string | length", "5"),
        (
            "'{:#^12} {} {!r} {:.1%} {x:05d}'.format(' a ', 5e-5, 'q', 0.256, x=42)",
            "#### a ##### 5e-05 'q' 25.6% 00042",
        ),
        ("({'a': 1}.items() | list, {'a': 1}.get('b', 2))", "([('a', 1)], 2)"),
        ("'a/b.c'.rsplit('/', 1)[1].removesuffix('.c')", "b"),
        ("([1, 5, 3] | max, [] | length, 2 in [1, 2], 'x' in 'axb')", "(5, 0, True, True)"),
        ("(none or 'd') if x is not defined else x", "d"),
        ("'' if x is defined", ""),
        ("(repr('q'), repr([1e-5]))", "(\"'q'\", '[1e-05]')"),
        ("{'b': 1, 'a': [True, none]} | tojson", "{\"a\": [true, null], \"b\": 1}"),
        ("'' | default('d', boolean=true) ~ (u | default(none))", "dNone"),
        ("'<a>' | e ~ ('b c' | urlencode)", "&lt;a&gt;b%20c"),
    ];
    for (expression, expected) in cases {
        let found = text(&format!("{{{{ {expression} }}}}"), json!({}));
        assert_eq!(found.as_deref(), Ok(expected), "{expression}");
    }
}

#[test]
fn toyaml_quotes_what_would_be_read_as_something_else() {
    let cases = [
        (json!(true), "True"),
        (json!([true, 1, 1.0, null]), "[true, 1, 1.0, null]"),
        (json!(1e-5), "1.0e-05"),
        (json!(1e20), "1.0e+20"),
        (json!(0.5), "0.5"),
        (json!("*.txt"), "'*.txt'"),
        (json!("a: b"), "'a: b'"),
        (json!("a:b"), "a:b"),
        (json!(["a:b", "a{b", "x"]), "['a:b', 'a{b', x]"),
        (json!("it's"), "it's"),
        (json!("'q'"), "'''q'''"),
        (json!(""), "''"),
        (json!("yes"), "'yes'"),
        (json!("1e-5"), "1e-5"),
        (json!("12:30"), "'12:30'"),
        (json!("2026-01-01"), "'2026-01-01'"),
        (json!("- x"), "'- x'"),
        (json!(" x"), "' x'"),
        (json!("a\tb\nc"), "\"a\\tb\\nc\""),
        (json!({ "z": {}, "a": [], "é": "é" }), "{a: [], z: {}, é: é}"),
    ];
    for (value, expected) in cases {
        let found = text("{{ v | toyaml }}", json!({ "v": value }));
        assert_eq!(found.as_deref(), Ok(expected), "{value}");
        let back = graph(&format!("v: {expected}")).unwrap();
        assert_eq!(back.to_json(), json!({ "v": value }), "{value} does not read back");
    }
    let defaults = text("{{ u | toyaml(none) }} {{ u | toyaml('d') }}", json!({}));
    assert_eq!(defaults.as_deref(), Ok("null d"));
}

#[test]
fn sub_templates_are_known_once_their_file_is_loaded() {
    let part = "# ---- shared/part.yaml ----\nfrom: part\n";
    let files = Files::new(&[
        ("main", "-- include 'shared/part.yaml'\n-- include 'holder'\n-- include 'shared/other'\n"),
        ("holder", &format!("held: 1\n\n{part}\n#--- shared/other ---\nother: 1\n")),
        ("shared/part.yaml", "from: file\n"),
    ]);
    assert_eq!(files.render(json!({})).unwrap().text, "from: fileheld: 1other: 1");
    let files = Files::new(&[
        ("main", &format!("-- include 'shared/part.yaml'\n\n{part}")),
        ("shared/part.yaml", "from: file\n"),
    ]);
    let rendered = files.render(json!({})).unwrap();
    assert_eq!(rendered.text, "from: part");
    assert_eq!(files.relative(&rendered.origins[0].to_string()), "main:4");
    assert_eq!(rendered.sources[1].path, files.0.path().join("main"));
}

#[test]
fn the_first_folder_of_the_search_path_wins() {
    let files = Files::new(&[("a/x", "a: 1"), ("b/x", "b: 1"), ("b/main", "-- include 'x'\n")]);
    let folder = |name: &str| files.0.path().join(name);
    let templates = Templates {
        search: vec![folder("not-there"), folder("a"), folder("b")],
        ..Templates::default()
    };
    assert_eq!(templates.render_on(&host(), "main", &Map::new()).unwrap().text, "a: 1");
    assert_eq!(templates.find("x"), Some(folder("a/x")));
    assert_eq!(templates.find("../a/x"), None);
    let by_path = templates.render_file(&host(), &folder("b/main"), &Map::new()).unwrap();
    assert_eq!(by_path.text, "a: 1");
}

#[test]
fn sources_say_who_asked_and_how() {
    let files = Files::new(&[
        (
            "main",
            "-- set parent = 'mid'\n-- extends parent\n[a]\n-- set part = 'inc'\n-- include part\n",
        ),
        ("mid", "-- extends 'base'\n"),
        ("base", "[a]\n-- from 'mac' import m\n== m()\n"),
        ("inc", "-- import 'mac' as mac\n== mac.m()\n"),
        ("mac", "-- macro m()\nx: 1\n-- endmacro\n"),
    ]);
    let sources = files.render(json!({})).unwrap().sources;
    let found: Vec<(&str, Option<(&str, Use)>)> = sources
        .iter()
        .map(|s| (s.name.as_str(), s.parent.as_ref().map(|(name, how)| (name.as_str(), *how))))
        .collect();
    let expected = [
        ("main", None),
        ("mid", Some(("main", Use::Extends))),
        ("base", Some(("mid", Use::Extends))),
        ("inc", Some(("main", Use::Include))),
        ("mac", Some(("inc", Use::Import))),
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_would_vanish_is_said() {
    let base = "[datasets]\nx: 1\n    [dataset_dict]\ny: 1\n";
    let cases: [(&str, &[&str]); 9] = [
        (
            "[datset_dict]\nz: 1\n",
            &[
                "main:2: expected a block that an ancestor has, found `[datset_dict]`, which is dropped (did you mean `[dataset_dict]`?)",
            ],
        ),
        ("[dataset_dict]\nz: 1\n    [new_inner]\nw: 1\n", &[]),
        (
            "# a comment\n\nlost: 1\n[datasets]\n",
            &["main:4: expected text inside of a block, found `lost: 1` outside, which is dropped"],
        ),
        (
            "[dataset_dict!]\nz: 1\n",
            &[
                "main:2: expected `[dataset_dict!]` where the block stands first, found it in a template that extends: nothing is trimmed",
            ],
        ),
        (
            "[datasets]\na: \"x ## y\"\n",
            &[
                "main:3: expected a comment after ` ##`, found it inside a quoted string, cut to `a: \"x`",
            ],
        ),
        ("[datasets]\na: \"x\" ## it's \"y\"\nb: don't ## y'\n", &[]),
        (
            "[datasets]\nfiles:\n    [dataset_dict]\nb: 1\n",
            &[
                "main:4: expected a block header, found `[dataset_dict]`, which looks like a list: a list of one is written `- dataset_dict`",
            ],
        ),
        ("[datasets]\nfiles:\n    [dataset_dict]\n    b: 1\n", &[]),
        (
            "[datasets]\n## ends #} here\n",
            &[
                "main:3: expected a comment without `#}`, found one; it ends where the line ends all the same",
            ],
        ),
    ];
    for (child, expected) in cases {
        let main = format!("-- extends 'base'\n{child}");
        let files = Files::new(&[("base", base), ("main", &main)]);
        assert_eq!(files.lints(), expected, "{child}");
    }
}

#[test]
fn variables_that_nothing_reads_are_known() {
    let files = Files::new(&[
        ("base", "[a]\na: {{ lr | default(1) }}\n[b]\nb: {{ beta | default(2) }}\n"),
        ("main", "-- extends 'base'\n[b]\n-- if warmup is defined\nb: 3\n-- endif\n"),
    ]);
    let vars = json!({ "lr": 2, "beta": 3, "warmup": 4, "seqlen": 5 });
    let rendered = files.render(vars.clone()).unwrap();
    assert_eq!(rendered.unread(vars.as_object().unwrap()), ["beta", "seqlen"]);
}

#[test]
fn graphs_of_yaml_are_as_written() {
    let cases = [
        (
            "a: {<<: [&a {x: 1}, {x: 2, z: 3}], z: 4}\nb: {y: 5, <<: *a}",
            json!({ "a": { "x": 1, "z": 4 }, "b": { "x": 1, "y": 5 } }),
        ),
        (
            ".a: &a !call:x:y\n.b: 1\nc: *a\nd: [*a]",
            json!({ "c": { "$node": "singleton", "target": "x:y", "id": "#0" }, "d": [{ "$ref": "#0" }] }),
        ),
        (
            "a: !partial:f:g\n    arg10: c\n    arg2: b\n    k: !list [!factory:h ]\n",
            json!({ "a": { "$node": "partial", "target": "f:g", "id": "#0", "args": ["b", "c"],
                "kwargs": { "k": { "$node": "singleton", "target": "named_list", "id": "#1",
                    "args": [[{ "$node": "factory", "target": "h", "id": "#2" }]] } } } }),
        ),
        (
            "a: !call:f {args: [1], kwargs: {b: 2}}\nb: !call:g {args: [1], kwargs: {}, c: 1}",
            json!({ "a": { "$node": "singleton", "target": "f", "id": "#0", "args": [1], "kwargs": { "b": 2 } },
                "b": { "$node": "singleton", "target": "g", "id": "#1", "kwargs": { "args": [1], "kwargs": {}, "c": 1 } } }),
        ),
        (
            "a: !dlist {null: ~, x: null, y: 1}\nb: !tuple\nc: !dict",
            json!({ "a": { "$node": "singleton", "target": "named_list", "id": "#0", "args": [[1]] },
                "b": { "$node": "singleton", "target": "named_tuple", "id": "#1" },
                "c": { "$node": "singleton", "target": "named_dict", "id": "#2" } }),
        ),
        ("a: 1\nb: !!str 5\na: 2\nc: |\n  x", json!({ "a": 2, "b": "5", "c": "x" })),
        (
            "a: !var {name: n, default: {x: 1}}",
            json!({ "a": { "$node": "var", "name": "n", "default": { "x": 1 } } }),
        ),
        ("a: {1: x, null: y, no: z}", json!({ "a": { "1": "x", "null": "y", "false": "z" } })),
        ("# nothing", json!({})),
    ];
    for (yaml, expected) in cases {
        assert_eq!(pretty(&graph(yaml).unwrap().to_json()), pretty(&expected), "{yaml}");
    }
}

#[test]
fn what_no_graph_can_hold_is_refused() {
    let cases = [
        ("a: !call:f {args: *x}\nx: &x 1", "main:1: expected YAML, found an error"),
        ("a: !call:f {args: 1}", "main:1: expected `args` to be a list, found `1`"),
        ("a: !singleton", "main:1: expected what to build after the tag, found `!singleton` alone"),
        (
            "a: &a !call:f {b: *a}",
            "main:1: expected an alias of a finished node, found a node inside itself",
        ),
        ("a: !dict {1: 2}", "main:1: expected a word as a name, found `1`"),
        ("yes: 2", "main:1: expected a word as a name, found `yes`"),
        ("a: {b: &x [1], <<: *x}", "main:1: expected a mapping to merge, found `1`"),
        (
            "a: !var {default: 1}",
            "main:1: expected `{ name, default }` after `!var`, found a mapping of 1 keys",
        ),
        ("- 1", "main:1: expected a mapping at the top, found a list of 1"),
        ("a: !!set {b}", "main:1: expected a value that a graph can hold, found the tag `!!set`"),
        (
            "a: 99999999999999999999",
            "main:1: expected a value that a graph can hold, found the integer beyond 64 bits",
        ),
        ("---\na: 1\n---\nb: 1", "main:3: expected one document, found a second"),
        (".a: !nope\nb: 1", "main:1: expected a tag of the language, found `!nope`"),
    ];
    for (yaml, expected) in cases {
        let message = graph(yaml).map(|graph| graph.to_json()).unwrap_err();
        assert!(message.starts_with(expected), "{message}\n  expected {expected}");
    }
}

#[test]
fn a_string_that_is_a_number_is_read_as_one_and_said_once() {
    let graph = graph(
        "lr: 1e-5\nsteps: 5e3\nwhole: 2.0\nword: 1e-5x\nflag: yes\nitems: !dlist {a: 1}\nnode: !dict {b: 2}",
    )
    .unwrap();
    let get = |key: &str| graph.get(key).unwrap();
    let mut notes = Vec::new();
    assert_eq!(get("lr").as_f64("lr", &mut notes).unwrap(), 1e-5);
    assert_eq!(get("lr").as_f64("lr", &mut notes).unwrap(), 1e-5);
    assert_eq!(get("steps").as_i64("steps", &mut notes).unwrap(), 5000);
    assert_eq!(get("whole").as_i64("whole", &mut notes).unwrap(), 2);
    let said: Vec<&str> = notes.iter().map(|note| note.message.as_str()).collect();
    let expected = [
        "lr: `1e-5` is a string in YAML 1.1, read as the number it means",
        "steps: `5e3` is a string in YAML 1.1, read as the number it means",
    ];
    assert_eq!(said, expected);
    let error = get("word").as_f64("optimizer.lr", &mut notes).unwrap_err().to_string();
    assert!(error.ends_with("main:4: optimizer.lr: expected a number, found `1e-5x`"), "{error}");
    assert!(get("lr").as_i64("lr", &mut notes).is_err());
    assert!(get("flag").as_bool("flag").unwrap());
    assert_eq!(get("items").as_list("items").unwrap().len(), 1);
    assert_eq!(get("node").as_dict("node").unwrap()[0].0, "b");
    assert_eq!(get("word").as_str("word").unwrap(), "1e-5x");
}

#[test]
fn values_stand_where_their_tag_does() {
    let graph = graph("é: &a !call:x\n    k: 1\nb: !list\nc:\nd: !tuple:@t\n    - x\n").unwrap();
    let lines: Vec<usize> = graph.entries.iter().map(|(_, value)| value.origin.line).collect();
    assert_eq!(lines, [1, 3, 4, 5]);
    let inner = graph.entries[0].1.as_node("é").unwrap().kwarg("k").unwrap().origin.line;
    assert_eq!(inner, 2);
}

#[test]
fn aliases_are_one_node() {
    let graph = graph("a: &a !call:x\nb: {c: [*a]}").unwrap();
    let first = graph.get("a").unwrap().as_node("a").unwrap();
    let list = &graph.get("b").unwrap().as_dict("b").unwrap()[0].1;
    let second = list.as_list("b.c").unwrap()[0].as_node("b.c[0]").unwrap();
    assert!(std::sync::Arc::ptr_eq(first, second));
}

/// A project of the tutorial on stand-ins of the templates that it extends.
fn tutorial(project: &str, config: &str, vars: Json) -> Rendered {
    let workspace = data("tutorial_workspace");
    let project = workspace.join(project);
    let globals = json!({ "project_dir": project, "workspace_root": workspace });
    let templates = Templates {
        search: vec![project.join("templates"), data("template_parents")],
        globals: globals.as_object().cloned().unwrap(),
        keep_comments: false,
    };
    templates.render_on(&host(), &format!("configs/{config}"), vars.as_object().unwrap()).unwrap()
}

#[test]
fn the_tutorials_dataset_renders_as_printed() {
    let vars = json!({ "max_length": 512 });
    let rendered = tutorial("lovecraft_dataset", "lovecraft-packed.yaml", vars);
    assert_eq!(rendered.lints, []);
    let graph = rendered.graph().unwrap();
    let keys: Vec<&str> = graph.entries.iter().map(|(key, _)| key.as_str()).collect();
    let expected = [
        "tokenizer",
        "dataset_dict",
        "train_dataset_split",
        "validation_dataset_split",
        "train_dataset",
        "eval_dataset",
        "test_dataset",
        "dynamic_args",
    ];
    assert_eq!(keys, expected);
    let train = graph.get("train_dataset").unwrap().as_node("train").unwrap();
    assert_eq!(train.id, "train_dataset");
    assert_eq!(train.target, "forgather.ml.datasets:preprocess_dataset");
    let map = train.kwarg("map_fn").unwrap().as_node("map_fn").unwrap();
    let mut notes = Vec::new();
    let length = map.kwarg("max_length").unwrap().as_i64("max_length", &mut notes);
    assert_eq!(length.unwrap(), 512);
    let strategy = map.kwarg("packing_strategy").unwrap();
    assert_eq!(strategy.as_str("strategy").unwrap(), "best_fit");
    let from = strategy.origin.to_string();
    assert!(from.ends_with("configs/lovecraft-packed.yaml:13"), "{from}");
    let from = train.kwarg("desc").unwrap().origin.to_string();
    assert!(from.ends_with("configs/lovecraft.yaml:36"), "{from}");
    let batch = train.kwarg("map_kwargs").unwrap().as_dict("map_kwargs").unwrap();
    assert_eq!(batch[0].1.as_i64("batch_size", &mut notes).unwrap(), 1000);
    let arguments = graph.get("dynamic_args").unwrap().as_list("dynamic_args").unwrap();
    assert_eq!(arguments.len(), 4);
}

#[test]
fn the_tutorials_finetunes_resolve_their_numbers() {
    let cases = [
        ("default.yaml", json!({}), "4.8732", 1799, 4096),
        ("16k.yaml", json!({}), "9.7465", 449, 16384),
        ("adamw4bit.yaml", json!({ "seq_len": 32768 }), "0.000137", 224, 32768),
    ];
    for (config, vars, rate, steps, length) in cases {
        let rendered = tutorial("finetune_lovecraft", config, vars);
        assert_eq!(rendered.lints, [], "{config}");
        let graph = rendered.graph().unwrap();
        let arguments = graph.get("trainer_args").unwrap().as_node("trainer_args").unwrap();
        let mut notes = Vec::new();
        let mut argument =
            |name: &str| arguments.kwarg(name).unwrap().as_i64(name, &mut notes).unwrap();
        assert_eq!((argument("max_steps"), argument("seq_len")), (steps, length), "{config}");
        let printed = format!("# ns.global_lr: {rate}");
        assert!(rendered.text.contains(&printed), "{}", rendered.text);
    }
}

proptest::proptest! {
    #[test]
    fn a_text_without_signs_stays_as_it_is(lines in "([a-z ]{0,6}\n){1,12}[a-z]{1,3}") {
        let files = Files::new(&[("main", &lines)]);
        let rendered = files.render(json!({})).unwrap();
        proptest::prop_assert_eq!(&rendered.text, &lines);
        let found: Vec<usize> = rendered.origins.iter().map(|origin| origin.line).collect();
        let expected: Vec<usize> = (1..=lines.lines().count()).collect();
        proptest::prop_assert_eq!(found, expected);
    }

    #[test]
    fn what_toyaml_writes_reads_back(text in ".{0,12}", nested in proptest::bool::ANY) {
        let value = if nested { json!([text, { "k": text }]) } else { json!(text) };
        let written = toyaml(&value);
        let read = graph(&format!("{{% raw %}}v: {written}{{% endraw %}}")).unwrap();
        proptest::prop_assert_eq!(read.to_json(), json!({ "v": value }), "{}", written);
    }
}

/// What the filter makes of a value.
fn toyaml(value: &Json) -> String {
    text("{{ v | toyaml }}", json!({ "v": value })).unwrap()
}

/// A chain of templates: `count` files of blocks that print, set, loop and call their parents.
fn chain(count: usize, blocks: usize) -> Files {
    let mut base = String::from("-- set ns = namespace(n=0)\n");
    for block in 0..blocks {
        base.push_str(&format!("[block_{block}]\nkey_{block}: {{{{ ns.n }}}}\n\n"));
    }
    let mut files = vec![("base".to_string(), base)];
    for level in 1..=count {
        let mut text = format!("-- extends '{}'\n", files[level - 1].0);
        for block in 0..blocks {
            text.push_str(&format!(
                "[block_{block}]\n    == super()\n    ## a comment\n    -- set ns.n = ns.n + 1\n\
                 key_{block}_{level}: !singleton:a.b:C@n_{block}_{level}\n    x: {{{{ ns.n | toyaml }}}} ## more\n"
            ));
        }
        let name = if level == count { "main".to_string() } else { format!("level_{level}") };
        files.push((name, text));
    }
    let files: Vec<(&str, &str)> =
        files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    Files::new(&files)
}

#[test]
fn ten_files_of_a_thousand_lines_render_at_once() {
    let files = chain(9, 18);
    // Captured text makes the second rendering, which tells its origin, necessary.
    let last = files.0.path().join("base");
    let captured = format!("{}[last!]\nz: 1\ny: 2\n", std::fs::read_to_string(&last).unwrap());
    std::fs::write(&last, captured).unwrap();
    let sources = files.render(json!({})).unwrap().sources;
    let lines: usize = sources.iter().map(|source| source.translated.lines().count()).sum();
    assert!(lines > 800, "{lines}");
    let times = (0..5).map(|_| {
        let start = std::time::Instant::now();
        files.render(json!({})).unwrap().graph().unwrap();
        start.elapsed()
    });
    let best = times.min().unwrap();
    // Without optimization the time says nothing.
    assert!(cfg!(debug_assertions) || best.as_millis() < 20, "{best:?}");
}
