//! `fathom train`, `construct`, `components` and sweeps in the tutorial's workspace, with a scripted worker in the engine's place.

#[path = "support/tutorial.rs"]
mod tutorial;

use fathom_data::tokenizer::Tokenizer;
use fathom_spec::record::{Event, EventKind, read_events};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The tutorial's workspace, and a model folder beside it.
struct Tutorial {
    dir: tempfile::TempDir,
    workspace: PathBuf,
}

fn tutorial() -> Tutorial {
    let dir = tempfile::tempdir().unwrap();
    let workspace = tutorial::workspace(dir.path());
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let files = tutorial::root().join("tests/data/hf_parity/llama_theta");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(files.join(file), model.join(file)).unwrap();
    }
    // A window like that of the model that the tutorial fine-tunes, and room for every byte; the scripted worker reads no weights.
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = 32768.into();
    config["vocab_size"] = 258.into();
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    Tokenizer::bytes().save(&model).unwrap();
    Tutorial { dir, workspace }
}

/// `target/…/fathom-engine`.
fn engine() -> PathBuf {
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf();
    let path = profile.join("fathom-engine");
    assert!(
        path.is_file(),
        "{}: expected the engine; `cargo build --bins` makes it",
        path.display()
    );
    path
}

/// `target/…/examples/scripted_worker`.
fn scripted() -> PathBuf {
    let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf();
    let path = profile.join("examples/scripted_worker");
    assert!(
        path.is_file(),
        "{}: expected the scripted worker; `cargo build --examples` makes it",
        path.display()
    );
    path
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Tutorial {
    fn call(&self, folder: &Path, arguments: &str) -> Output {
        self.call_with(&scripted(), folder, arguments)
    }

    fn call_with(&self, worker: &Path, folder: &Path, arguments: &str) -> Output {
        Command::new(assert_cmd::cargo::cargo_bin!("fathom"))
            .current_dir(folder)
            .env("FATHOM_ENGINE", worker)
            .args(
                arguments
                    .replace("MODEL", &self.dir.path().join("model").display().to_string())
                    .split_whitespace(),
            )
            .output()
            .unwrap()
    }

    /// Standard output and standard error of a command in the training project.
    #[track_caller]
    fn train(&self, arguments: &str) -> (String, String) {
        self.said("finetune_lovecraft", arguments)
    }

    #[track_caller]
    fn said(&self, project: &str, arguments: &str) -> (String, String) {
        let output = self.call(&self.workspace.join(project), arguments);
        let (out, error) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments}: {out}{error}");
        (out, error)
    }

    #[track_caller]
    fn refused(&self, project: &str, arguments: &str) -> String {
        let output = self.call(&self.workspace.join(project), arguments);
        assert!(!output.status.success(), "{arguments}: {}", text(&output.stdout));
        let error = text(&output.stderr);
        assert!(!error.contains("panicked"), "{error}");
        error
    }

    /// What a run of the training project recorded.
    fn events(&self, out: &str) -> Vec<Event> {
        let folder = out.lines().find_map(|line| line.strip_prefix("run: ")).unwrap();
        let folder = self.workspace.join("finetune_lovecraft").join(folder);
        read_events(&folder.join("events.jsonl"), 0).unwrap().0
    }

    /// The steps that a run recorded.
    fn steps(&self, out: &str) -> Vec<u64> {
        let events = self.events(out);
        let steps = events.iter().filter_map(|event| match event.kind {
            EventKind::Step { step, .. } => Some(step),
            _ => None,
        });
        steps.collect()
    }
}

/// Whatever the project's runs are called by, `fathom train` put them into the workspace.
#[test]
fn what_a_projects_runs_left_is_found_from_the_project() {
    let t = tutorial();
    let (out, _) = t.train("train -d cpu --max-steps 2 -M MODEL");
    let run = t.events(&out);
    assert!(!run.is_empty());
    for arguments in ["runs ls", "logs summary", "control list", "sql", "tb --no-start"] {
        t.train(arguments);
    }
    let (out, _) = t.train("runs ls --format csv");
    assert_eq!(out.lines().count(), 2, "{out}");
    // What has results of its own keeps to them.
    std::fs::create_dir(t.workspace.join("finetune_lovecraft/results")).unwrap();
    let said = t.refused("finetune_lovecraft", "runs ls");
    assert!(said.contains("results/fathom.db: expected a database of runs, found none"), "{said}");
}

/// The project declares `--seed`, and `fathom dataset` has one of its own.
#[test]
fn a_training_projects_data_can_be_looked_at() {
    let t = tutorial();
    let (out, _) = t.train("dataset --help");
    assert!(out.contains("--seed") && !out.contains("Seeds the order of the data"), "{out}");
    let (out, _) = t.train("train --help");
    assert!(out.contains("Seeds the order of the data"), "{out}");
}

/// The tutorial copies this file from where its own checkout has it.
#[test]
fn the_tutorials_example_is_found_wherever_the_workspace_is() {
    let t = tutorial();
    let source = "../../../datasets/local_dataset/templatelib/configs/sliding_window.yaml";
    let output = t.call(
        &t.workspace,
        &format!("project create --name Mine --description d --default-config mine.yaml {source}"),
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let copy = std::fs::read(t.workspace.join("mine/templates/configs/mine.yaml")).unwrap();
    let example =
        tutorial::root().join("templatelib/examples").join(source.trim_start_matches("../"));
    assert_eq!(copy, std::fs::read(example).unwrap());
    let corpus = t.dir.path().join("hp_lovecraft").display().to_string();
    let (out, _) =
        t.said("mine", &format!("construct --target dataset_dict --dataset-path {corpus}"));
    assert!(out.contains("    train            4 rows\n"), "{out}");
}

#[test]
fn row_13_construct_counts_the_rows_of_every_split() {
    let t = tutorial();
    let (out, _) = t.said("lovecraft_dataset", "construct --target dataset_dict");
    let lines: Vec<&str> = out.lines().collect();
    assert!(
        lines[0].starts_with("dataset_dict: files of ") && lines[0].ends_with("/hp_lovecraft"),
        "{out}"
    );
    assert_eq!(
        lines[1..],
        ["    train            4 rows", "    validation       1 row", "    test             1 row"]
    );
    let (out, _) = t.said("lovecraft_dataset", "construct --target validation_dataset_split");
    assert!(out.starts_with("validation_dataset_split: the split `validation`, 1 row, "), "{out}");
    assert!(out.contains(" bytes  the_call_of_cthulhu.txt\n"), "{out}");
    let (out, _) =
        t.said("lovecraft_dataset", "-t/x construct --target meta".replace("-t/x ", "").as_str());
    assert!(
        out.contains("config_name: Lovecraft\n") && out.contains("config_class: type.dataset\n"),
        "{out}"
    );
    let (out, _) = t.said(
        "lovecraft_dataset",
        "-t lovecraft-packed.yaml construct --target train_dataset --max-length 512",
    );
    for line in ["max_length: 512", "  packing: best_fit", "  min_length: 64", "tokenizer: null"] {
        assert!(out.lines().any(|found| found == line), "{line}: {out}");
    }
    let error = t.refused("lovecraft_dataset", "construct --target train_datset");
    assert!(
        error.contains("found none named `train_datset`\n  help: did you mean `train_dataset`?"),
        "{error}"
    );
}

/// The corpus of the tutorial, where it is at hand.
#[test]
fn row_13_the_tutorials_corpus_has_63_rows() {
    let Some(corpus) = std::env::var_os("FATHOM_LOVECRAFT") else { return };
    let t = tutorial();
    let path = t.workspace.join("lovecraft_dataset/templates/configs/lovecraft.yaml");
    let printed = std::fs::read_to_string(&path).unwrap();
    let archive = format!("\"{}\"", Path::new(&corpus).display());
    std::fs::write(
        &path,
        printed.replace("joinpath(project_dir, \"../../hp_lovecraft\")", &archive),
    )
    .unwrap();
    let (out, _) = t.said("lovecraft_dataset", "construct --target dataset_dict");
    assert!(
        out.contains(
            "train           63 rows\n    validation       1 row\n    test             1 row\n"
        ),
        "{out}"
    );
}

/// A model of a few thousand weights, in a configuration of the training project: what the real engine meets.
const TINY: &str = "\
-- extends 'configs/default.yaml'
[tokenizer]
tokenizer: &tokenizer !singleton:ByteTokenizer
[model_definition]
model: &model !partial:AutoModelForCausalLM.from_config
    <<: *model_constructor_args
    config: { vocab_size: 260, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2,
              max_position_embeddings: 1024 }
[auxiliary_outputs]
run_config: { run: { threads: 1 }, eval: { loss_tokens: 64 } }
";

#[test]
fn row_16_the_engine_meets_blocks_of_the_length_that_the_training_project_asks_for() {
    let t = tutorial();
    let configs = t.workspace.join("finetune_lovecraft/templates/configs");
    std::fs::write(configs.join("tiny.yaml"), TINY).unwrap();
    for (dataset, length) in
        [("lovecraft-packed.yaml", 256), ("lovecraft-packed.yaml", 512), ("lovecraft.yaml", 512)]
    {
        let arguments = format!(
            "-t tiny.yaml train --seq-len {length} --dataset-config {dataset} --max-steps 3 --save-strategy no --dtype float32 -d cpu"
        );
        let output = t.call_with(&engine(), &t.workspace.join("finetune_lovecraft"), &arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let out = text(&output.stdout);
        assert_eq!(t.steps(&out), [1, 2, 3]);
        let events = t.events(&out);
        assert_eq!(fact(&events, "train.sequence_length")["max"], length, "{dataset}");
        let folder = out.lines().find_map(|line| line.strip_prefix("run: ")).unwrap();
        assert!(!Path::new(folder).join("checkpoints").exists(), "{folder}");
    }
}

/// The first value that a run recorded of a fact.
#[track_caller]
fn fact<'a>(events: &'a [Event], wanted: &str) -> &'a serde_json::Value {
    let value = events.iter().find_map(|event| match &event.kind {
        EventKind::Fact { name, value } if name == wanted => Some(value),
        _ => None,
    });
    value.unwrap_or_else(|| panic!("{wanted} was not recorded"))
}

/// The tutorial's own settings on the real engine; without the two of the layered engine, the plain one's losses are the same
/// but for what bfloat16 rounds.
#[test]
fn row_38_the_memory_settings_are_met_by_the_engine() {
    let t = tutorial();
    let configs = t.workspace.join("finetune_lovecraft/templates/configs");
    std::fs::write(configs.join("tiny.yaml"), TINY).unwrap();
    let losses = |options: &str, engine: &str| -> Vec<f64> {
        let arguments = format!(
            "-t tiny.yaml train --seq-len 256 --max-steps 3 --save-strategy no -d cpu {options}"
        );
        let output =
            t.call_with(&self::engine(), &t.workspace.join("finetune_lovecraft"), &arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let events = t.events(&text(&output.stdout));
        assert_eq!(*fact(&events, "train.engine"), engine);
        assert_eq!(*fact(&events, "train.weights_dtype"), "bfloat16");
        assert_eq!(*fact(&events, "train.stochastic_rounding"), true);
        if engine == "layered" {
            assert_eq!(*fact(&events, "train.optimizer_in_backward"), true);
            assert_eq!(*fact(&events, "train.activation_offloading"), true);
        }
        let losses = events.iter().filter_map(|event| match event.kind {
            EventKind::Step { loss, .. } => Some(loss),
            _ => None,
        });
        losses.collect()
    };
    let layered = losses("", "layered");
    let plain = losses("--fuse-optim-with-backward false --activation-offloading false", "plain");
    assert_eq!(layered.len(), 3);
    for (a, b) in layered.iter().zip(&plain) {
        assert!((a - b).abs() < 0.02, "{layered:?} {plain:?}");
    }
}

#[test]
fn row_23_a_sequence_that_the_tokenizer_does_not_allow_is_refused() {
    let t = tutorial();
    let path = t.dir.path().join("model/tokenizer_config.json");
    let mut json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    json["model_max_length"] = 2048.into();
    std::fs::write(&path, json.to_string()).unwrap();
    let error = t.refused("finetune_lovecraft", "train -M MODEL --seq-len 4096");
    let expected = "train.sequence_length: expected at most the tokenizer's model_max_length (2048), found `4096`\n  help: set \
                    model.max_position_embeddings: 4096 to lift the limit (in a project: --max-position-embeddings 4096)";
    assert!(error.contains(expected), "{error}");
    assert!(error.contains("projects/lm_training_project.yaml:"), "{error}");
    // What the model does not allow has its place too.
    let error = t.refused(
        "finetune_lovecraft",
        "train -M MODEL --seq-len 2048 --set train.attention_head_groups=99",
    );
    let expected =
        "--set:1: train.attention_head_groups: expected at most the model's key-value heads";
    assert!(error.contains(expected), "{error}");
    t.train("train -M MODEL --seq-len 2048 --dry-run");
    t.train("train -M MODEL --seq-len 4096 --max-position-embeddings 4096 --dry-run");
    assert!(!t.workspace.join("results").exists());
}

#[test]
fn row_25_the_planned_steps_run() {
    let t = tutorial();
    let (out, _) = t.train("train -M MODEL --total-tokens 1 --seq-len 4096");
    assert_eq!(t.steps(&out), (1..=257).collect::<Vec<u64>>());
    assert!(t.workspace.join("results/fathom.db").is_file());
    // The same run is not done twice.
    let (again, _) = t.train("train -M MODEL --total-tokens 1 --seq-len 4096");
    assert!(again.contains("1 done before"), "{again}");
}

#[test]
fn row_31_help_lists_the_options_of_the_configuration() {
    let t = tutorial();
    let (help, _) = t.train("train --help");
    for option in [
        "-M, --model-id-or-path <path>",
        "--total-tokens <float>",
        "--warmup-tokens <float>",
        "--annealing-tokens <float>",
        "--seq-len <int>",
        "--batch-size <int>",
        "--lr <float>",
        "--attn-implementation <str>",
        "--compile <bool>",
        "--max-steps <int>",
        "--save-strategy <str>",
        "--output-dir <path>",
        "--step-cadence <float>",
        "--dataset-config <str>",
        "--start-annealing",
        "--gradient-checkpointing <bool>",
        "--fuse-optim-with-backward <bool>",
        "--activation-offloading <bool>",
        "--trainer-type <str>",
        "--log-name <str>",
    ] {
        assert!(help.contains(option), "{option}: {help}");
    }
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for shown in [
        "[default: 4096]",
        "[default: 7]",
        "[default: 0.00005]",
        "[choices: sdpa, flex_attention, eager]",
    ] {
        assert!(words.contains(shown), "{shown}: {words}");
    }
    // A child's own defaults.
    let (help, _) = t.train("-t 16k.yaml train --help");
    assert!(help.contains("[default: 16384]") && help.contains("[default: 16k]"), "{help}");
}

#[test]
fn a_dry_run_prints_the_whole_configuration_and_starts_nothing() {
    let t = tutorial();
    let (out, notes) = t.train("-t 16k.yaml train -M MODEL --dry-run --seq-len 32768 --set eval.context_lengths=[2048] -d 1");
    assert!(out.starts_with("# 16k: 224 steps\n"), "{out}");
    for line in [
        "  sequence_length: 32768",
        "  max_steps: 224",
        "  device: cuda:1",
        "  - 2048",
        "  attention: sdpa",
    ] {
        assert!(out.lines().any(|found| found == line), "{line}: {out}");
    }
    assert!(
        notes.lines().all(|line| line.starts_with("note: "))
            && notes.contains("covers the whole run"),
        "{notes}"
    );
    assert!(!t.workspace.join("results").exists());
    // What is printed is a configuration file.
    std::fs::write(t.dir.path().join("run.yaml"), &out).unwrap();
    let output = t.call(t.dir.path(), "train run.yaml --dry-run");
    let body = |text: &str| text.lines().skip(1).map(str::to_string).collect::<Vec<_>>();
    assert_eq!(body(&text(&output.stdout)), body(&out), "{}", text(&output.stderr));
}

#[test]
fn results_are_the_workspaces_and_the_model_goes_where_it_is_told() {
    let t = tutorial();
    let (out, notes) =
        t.train("-t 16k.yaml train -M MODEL --max-steps 7 --output-dir ../out --log-name short");
    assert_eq!(t.steps(&out).len(), 7);
    assert!(notes.contains("note: data.splits: the_call_of_cthulhu.txt is also trained on: what is measured there is recall")
        || notes.contains("at_the_mountains_of_madness.txt, the_call_of_cthulhu.txt are also trained on"), "{notes}");
    assert!(t.workspace.join("out/fathom-run.json").is_file());
    let (out, _) = t.said(
        "finetune_lovecraft",
        "-t 16k.yaml train -M MODEL --max-steps 7 --results ../elsewhere",
    );
    assert_eq!(t.steps(&out).len(), 7);
    assert!(t.workspace.join("elsewhere/fathom.db").is_file());
    // A project is found from elsewhere, too.
    let output = t.call(
        t.dir.path(),
        "-p hp_lovecraft_workspace/finetune_lovecraft -t 16k.yaml train -M MODEL --max-steps 7",
    );
    assert!(text(&output.stdout).contains("1 done before"), "{}", text(&output.stderr));
}

/// An option that a template reads, and that something else then wins over, is no option lost in silence.
#[test]
fn an_option_that_comes_to_nothing_is_said_to() {
    let t = tutorial();
    let idle = |arguments: &str| {
        let (_, notes) = t.train(&format!("{arguments} --dry-run"));
        notes.lines().filter(|line| line.contains("the run is the same without it")).count()
    };
    assert_eq!(
        idle(
            "train -M MODEL --weight-decay 0.5 --output-dir o --compile true --eval-prompts-file p"
        ),
        0
    );
    assert_eq!(idle("-t adamw4bit.yaml train -M MODEL --weight-decay 0.5"), 1);
    // What holds anyway may be said.
    assert_eq!(idle("train -M MODEL --attn-implementation sdpa --seq-len 4096"), 0);
}

#[test]
fn what_contradicts_is_refused() {
    let t = tutorial();
    for (arguments, expected) in [
        ("train -M MODEL -d 0,1", "-d: expected one device, found `0,1`"),
        (
            "train -M MODEL -d gpu",
            "run.device: expected `auto`, `cpu`, `cuda` or `cuda:N`, found `gpu`",
        ),
        (
            "train -M nowhere",
            "model.path: expected a model's folder or a .gguf file, found nothing at `",
        ),
        ("train", "expected a model to train, found none\n  help: name one with -M"),
        (
            "train -M MODEL --save-strategy no --output-dir ../o",
            "expected a run that writes checkpoints",
        ),
        ("train -M MODEL --trainer-type fsdp2", "help: use trainer_type `basic`"),
        ("train -M MODEL --trainer-type fdsp2", "did you mean `fsdp2`"),
        ("train -M MODEL --seq-lenght 5", "--seq-lenght"),
        (
            "train ../x.yaml --seq-len 5",
            "--seq-len: expected a configuration of the project, which has this option",
        ),
        (
            "-t 16k.yaml train ../x.yaml",
            "expected a configuration file or a project (-t, -p), found both",
        ),
        ("train -M MODEL --set train.sed=3", "did you mean `seed`?"),
    ] {
        let error = t.refused("finetune_lovecraft", arguments);
        assert!(error.contains(expected), "{arguments}: {error}");
    }
    let error = t.refused("lovecraft_dataset", "train");
    assert!(error.contains("expected a target, found none named `main`"), "{error}");
    assert!(!t.workspace.join("results").exists());
}

#[test]
fn components_are_listed_and_documented() {
    let t = tutorial();
    let (list, _) = t.train("components");
    assert!(
        list.contains("learning-rate schedules\n    WSDScheduler")
            && list.contains("\noptimizers\n"),
        "{list}"
    );
    let (one, _) = t.train("components forgather.ml.datasets:block_tokenize_fn");
    assert!(
        one.starts_with("block_tokenize_fn\n")
            && one.contains("  packing_strategy: str = greedy\n"),
        "{one}"
    );
    let error = t.refused("finetune_lovecraft", "components WSDSchedular");
    assert_eq!(
        error,
        "error: expected a component, found `WSDSchedular`\n  help: did you mean `WSDScheduler`?\n"
    );
}

#[test]
fn a_sweep_may_be_over_a_project() {
    let t = tutorial();
    let sweep = |text: &str, arguments: &str| {
        let head = "base: {project: hp_lovecraft_workspace/finetune_lovecraft, config: 16k.yaml}\n";
        std::fs::write(t.dir.path().join("s.yaml"), format!("{head}{text}")).unwrap();
        let output = t.call(t.dir.path(), arguments);
        (output.status.success(), text_of(&output))
    };
    fn text_of(output: &Output) -> String {
        text(&output.stdout) + &text(&output.stderr)
    }
    let axes = "set: {model_id_or_path: model, max_steps: 6, train.grad_clipping: per_sublayer, train.max_grad_norm: 1, \
                train.stochastic_rounding: null}\n\
                axes: {seq_len: [8192, 16384], train.weights_dtype: [float32, bfloat16]}\nseeds: 2\n";
    let (ok, plan) = sweep(axes, "sweep plan s.yaml");
    assert!(
        ok && plan.contains("8 points") && plan.contains("seq_len=8192 weights_dtype=bfloat16"),
        "{plan}"
    );
    // A note is said once, however many points it holds for.
    assert_eq!(plan.matches("num_train_epochs `1`").count(), 1, "{plan}");
    let (ok, run) = sweep(axes, "sweep run s.yaml --no-report");
    assert!(ok && run.contains("8 finished"), "{run}");
    let output = t.call(t.dir.path(), "runs ls --sweep s --format csv");
    let rows = text(&output.stdout);
    assert_eq!(rows.lines().count(), 9, "{rows}");
    // Each point is the run that `fathom train` would do.
    let (one, _) = t.said("finetune_lovecraft", "-t 16k.yaml train -M MODEL --seq-len 8192 --max-steps 6 --seed 0 --set train.max_grad_norm=1 --set train.grad_clipping=per_sublayer --set train.stochastic_rounding=null --results ../../results");
    assert!(one.contains("1 done before"), "{one}");

    for (text, expected) in [
        (
            "axes: {seqlen: [1, 2]}\n",
            "s.yaml:2: axes.seqlen: expected a key path or an option of `16k.yaml`, found `seqlen`\n  help: did you mean `seq_len`?",
        ),
        (
            "axes: {seq_len: [many]}\n",
            "s.yaml:2: axes.seq_len: expected a whole number, found `many`",
        ),
        (
            "axes: {attn_implementation: [flash]}\n",
            "expected one of sdpa, flex_attention, eager, found `flash`",
        ),
        (
            "set: {model_id_or_path: model}\naxes: {trainer_type: [basic, ddp]}\n",
            "found `DDPTrainer`",
        ),
        ("axes: {lr: [0.1]}\n", "expected a model to train, found none"),
    ] {
        let (ok, message) = sweep(text, "sweep plan s.yaml");
        assert!(!ok && message.contains(expected), "{text}: {message}");
    }
    std::fs::write(t.dir.path().join("s.yaml"), "base: {project: nowhere}\n").unwrap();
    let message = text_of(&t.call(t.dir.path(), "sweep plan s.yaml"));
    assert!(
        message.contains("s.yaml:1: base: nowhere: expected a folder, found none"),
        "{message}"
    );
}
