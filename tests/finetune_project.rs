//! The tutorial's two projects, with its printed files: what they resolve to, what is said of their numbers, and how mistakes
//! in them are met.

#[path = "support/tutorial.rs"]
mod tutorial;

use fathom_spec::components::dataset::{self, Target};
use fathom_spec::components::run::{self, Resolved};
use fathom_spec::config::{
    Attention, Dtype, Engine, OptimizerType, Packing, RunConfig, ScheduleType, StateDtype,
};
use fathom_spec::project::Project;
use serde_json::{Map, Value as Json, json};
use std::path::{Path, PathBuf};

/// The tutorial's workspace in a folder of its own.
struct Tutorial {
    _dir: tempfile::TempDir,
    workspace: PathBuf,
}

fn tutorial() -> Tutorial {
    let dir = tempfile::tempdir().unwrap();
    let workspace = tutorial::workspace(dir.path());
    Tutorial { _dir: dir, workspace }
}

fn object(vars: Json) -> Map<String, Json> {
    let Json::Object(map) = vars else { panic!("{vars}") };
    map
}

impl Tutorial {
    fn project(&self, name: &str) -> Project {
        Project::open(&self.workspace.join(name)).unwrap()
    }

    /// The run of a training configuration with values for its options; a model is named.
    fn resolve(&self, config: &str, vars: Json) -> anyhow::Result<Resolved> {
        let mut vars = object(vars);
        vars.entry("model_id_or_path").or_insert(json!("/models/m"));
        let rendered = self.project("finetune_lovecraft").render(config, &vars)?;
        run::resolve(&rendered.graph()?, &Map::new())
    }

    fn run(&self, config: &str, vars: Json) -> RunConfig {
        let resolved = self.resolve(config, vars).unwrap_or_else(|error| panic!("{error:#}"));
        RunConfig::from_written(&resolved.written).unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn notes(&self, config: &str, vars: Json) -> Vec<String> {
        self.resolve(config, vars).unwrap().notes.iter().map(|note| note.message.clone()).collect()
    }

    #[track_caller]
    fn refused(&self, config: &str, vars: Json) -> String {
        let resolved = self.resolve(config, vars);
        let complete = resolved.and_then(|resolved| RunConfig::from_written(&resolved.written));
        let message = format!("{:#}", complete.map(|config| config.to_yaml()).unwrap_err());
        message.replace(&self.workspace.display().to_string(), "WS")
    }

    /// Writes a configuration of the training project.
    fn write(&self, config: &str, text: &str) {
        let path = self.workspace.join("finetune_lovecraft/templates/configs").join(config);
        std::fs::write(path, text).unwrap();
    }

    fn target(
        &self,
        config: &str,
        vars: Json,
        target: &str,
        given: Json,
    ) -> anyhow::Result<Target> {
        let rendered = self.project("lovecraft_dataset").render(config, &object(vars))?;
        Ok(dataset::resolve(&rendered.graph()?, target, &object(given))?.0)
    }

    fn blocks(&self, config: &str, vars: Json, target: &str, given: Json) -> dataset::Blocks {
        match self.target(config, vars, target, given).unwrap_or_else(|error| panic!("{error:#}")) {
            Target::Blocks(blocks) => *blocks,
            other => panic!("{other:?}"),
        }
    }
}

#[track_caller]
fn close(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 1e-4, "{found}, expected {expected}");
}

#[test]
fn row_10_the_dataset_file_as_printed_gives_train_validation_and_test() {
    let t = tutorial();
    let Target::Splits(documents) =
        t.target("lovecraft.yaml", json!({}), "dataset_dict", json!({})).unwrap()
    else {
        panic!()
    };
    assert_eq!(documents.names(), ["train", "validation", "test"]);
    assert!(documents.folder().ends_with("hp_lovecraft"), "{:?}", documents.folder());
    assert!(!documents.folder().display().to_string().contains(".."));
    for (target, split) in [
        ("train_dataset_split", "train"),
        ("validation_dataset_split", "validation"),
        ("test_dataset_split", "test"),
    ] {
        let found = t.target("lovecraft.yaml", json!({}), target, json!({})).unwrap();
        assert!(matches!(&found, Target::Split(_, name) if name == split), "{target}: {found:?}");
    }
    // As it is printed, the test set is made of the validation split.
    for (target, split) in
        [("train_dataset", "train"), ("eval_dataset", "validation"), ("test_dataset", "validation")]
    {
        let blocks = t.blocks("lovecraft.yaml", json!({}), target, json!({}));
        assert_eq!((blocks.split.as_str(), blocks.data.packing), (split, Packing::Unpacked));
    }
}

#[test]
fn row_16_the_parents_sequence_length_wins_over_the_datasets_own() {
    let t = tutorial();
    let max_length = |vars: Json, given: Json| {
        let blocks = t.blocks("lovecraft.yaml", vars, "train_dataset", given);
        fathom_spec::components::values::to_json(&blocks.max_length.value)
    };
    assert_eq!(max_length(json!({}), json!({})), 4096);
    assert_eq!(max_length(json!({"max_length": 64}), json!({})), 64);
    let given = json!({"preprocess_args": {"max_length": 8192}});
    assert_eq!(max_length(json!({}), given.clone()), 8192);
    assert_eq!(max_length(json!({"max_length": 64}), given), 8192);
    // Through the whole chain: option, training project, variable, map function, run.
    assert_eq!(t.run("default.yaml", json!({})).train.sequence_length, 4096);
    assert_eq!(t.run("default.yaml", json!({"seq_len": 8192})).train.sequence_length, 8192);
    let unpacked = json!({"seq_len": 8192, "dataset_config": "lovecraft.yaml"});
    let config = t.run("default.yaml", unpacked);
    assert_eq!((config.train.sequence_length, config.data.packing), (8192, Packing::Unpacked));
    let origin = t.resolve("default.yaml", json!({})).unwrap().written;
    let origin = origin.get("train.sequence_length").unwrap().origin.to_string();
    assert!(origin.contains("projects/lm_training_project.yaml:"), "{origin}");
}

/// What a project has to do to be trained on at the length that was asked for; the old way of losing a flag is an error.
#[test]
fn row_16_a_dataset_that_does_not_hear_its_parent_is_refused() {
    let t = tutorial();
    let path = t.workspace.join("lovecraft_dataset/templates/configs/lovecraft.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let deaf = text
        .replace("fn_kwargs: !var { name: \"preprocess_args\", default: null }", "fn_kwargs: null");
    assert_ne!(text, deaf);
    std::fs::write(&path, deaf).unwrap();
    let message = t.refused("default.yaml", json!({"seq_len": 8192}));
    assert!(
        message.contains(
            "max_length: expected blocks of the training sequence length, which is `8192`"
        ) && message.contains("found `4096`")
            && message
                .contains("help: the dataset project has to read the variable `preprocess_args`"),
        "{message}"
    );
    // A misspelt variable is heard by nobody.
    t.write(
        "misspelt.yaml",
        "-- extends 'configs/default.yaml'\n[datasets_definition]\n.datasets: &datasets !call:forgather:from_project\n    \
         project_dir: {{ ns.dataset_proj }}\n    tokenizer: *tokenizer\n    preproces_args: {max_length: 8192}\n\
         train_dataset: &train_dataset !call:getitem [ *datasets, train_dataset ]\n\
         eval_dataset: &eval_dataset !call:getitem [ *datasets, eval_dataset ]\n\
         [datacollator]\ndata_collator: &data_collator null\n",
    );
    let notes = t.notes("misspelt.yaml", json!({}));
    let expected = "nothing in project `Lovecraft Dataset` reads `preproces_args`";
    assert!(notes.iter().any(|note| note == expected), "{notes:?}");
}

#[test]
fn row_17_the_packed_configuration_is_the_plain_one_packed() {
    let t = tutorial();
    let blocks = t.blocks("lovecraft-packed.yaml", json!({}), "train_dataset", json!({}));
    let data = serde_json::to_value(&blocks.data).unwrap();
    for (key, value) in [
        ("packing", json!("best_fit")),
        ("min_length", json!(64)),
        ("shuffle_blocks", json!(true)),
        ("shuffle_seed", json!(42)),
        ("pack_batch_documents", json!(1000)),
        ("stride", json!(0)),
        ("overflow", json!(true)),
        ("continuation", json!("restarted")),
        (
            "splits",
            json!({"train": ["*.txt"], "validation": ["the_call_of_cthulhu.txt"], "test": ["at_the_mountains_of_madness.txt"]}),
        ),
    ] {
        assert_eq!(data[key], value, "{key}");
    }
    assert_eq!(t.run("default.yaml", json!({})).data, blocks.data);
}

#[test]
fn row_24_every_part_of_the_run_comes_from_the_templates() {
    let t = tutorial();
    let config = t.run("default.yaml", json!({}));
    assert_eq!(config.model.path.as_deref(), Some("/models/m"));
    assert_eq!(config.tokenizer.path, None);
    assert_eq!((config.model.dtype, config.model.attention), (Dtype::Bfloat16, Attention::Sdpa));
    let train = &config.train;
    assert_eq!((train.micro_batch_size, train.gradient_accumulation_steps, train.seed), (1, 1, 42));
    assert_eq!(train.optimizer.kind, OptimizerType::AdafactorSum);
    assert_eq!((train.optimizer.weight_decay, train.optimizer.eps), (0.01, Some(1e-30)));
    assert_eq!(
        (train.optimizer.beta2_decay, train.optimizer.clip_threshold),
        (Some(-0.8), Some(1.0))
    );
    assert_eq!((train.max_grad_norm, train.activation_checkpointing), (None, false));
    // The memory of a step: as the tutorial has it, which is why 7 billion weights fit a card of 24 GB.
    assert_eq!(
        (train.engine, train.optimizer_in_backward, train.activation_offloading),
        (Some(Engine::Layered), Some(true), Some(true))
    );
    assert_eq!(
        (train.weights_dtype, train.stochastic_rounding),
        (Dtype::Bfloat16, Some(true)),
        "Adafactor rounds at random unless it is told not to"
    );
    assert_eq!((train.save_checkpoints, train.keep_checkpoints), (true, 2));
    assert_eq!((config.eval.split.as_str(), config.eval.every_steps), ("validation", 128));
    let resolved =
        t.resolve("default.yaml", json!({"output_dir": "/out", "log_name": "it"})).unwrap();
    assert_eq!(
        (resolved.output_dir.as_deref(), resolved.name.as_deref()),
        (Some(Path::new("/out")), Some("it"))
    );
    let without = t.resolve("16k.yaml", json!({})).unwrap();
    assert_eq!((without.output_dir, without.name.as_deref()), (None, Some("16k")));
}

#[test]
fn row_25_a_token_budget_becomes_steps() {
    let t = tutorial();
    let config = t.run("default.yaml", json!({"total_tokens": 1, "seq_len": 4096}));
    assert_eq!((config.planned_steps(), config.train.max_steps), (257, Some(257)));
    // The budget in tokens never ends the run before its steps do: not even if every block is full.
    assert_eq!(config.train.total_tokens.0, 257 * 4096);
    for (vars, steps) in [
        (json!({}), 1799),
        (json!({"total_tokens": 0.5}), 128),
        (json!({"batch_size": 4}), 449),
        (json!({"gradient_accumulation_steps": 4}), 449),
        (json!({"max_steps": 3}), 3),
    ] {
        assert_eq!(t.run("default.yaml", vars.clone()).planned_steps(), steps, "{vars}");
    }
}

#[test]
fn row_26_the_learning_rate_grows_with_the_square_root_of_the_tokens_a_step() {
    let t = tutorial();
    let rate = |config: &str, vars: Json| t.run(config, vars).train.learning_rate;
    close(rate("default.yaml", json!({})), 4.8733e-5);
    close(rate("16k.yaml", json!({})), 9.7465e-5);
    close(rate("16k.yaml", json!({"seq_len": 32768})), 1.3784e-4);
    close(rate("default.yaml", json!({"lr": 1e-5})), 4.8733e-5 / 5.0);
    close(rate("16k.yaml", json!({"lr_alpha": 0.0})), 5e-5);
    let schedule = t.run("default.yaml", json!({})).train.schedule;
    assert_eq!(schedule.min_learning_rate_ratio, Some(0.1));
}

#[test]
fn row_27_the_schedule_is_the_tutorials_wsd() {
    let t = tutorial();
    let schedule = t.run("default.yaml", json!({})).train.schedule;
    assert_eq!(schedule.kind, ScheduleType::Wsd);
    assert_eq!(schedule.warmup_steps, Some(0));
    assert_eq!((schedule.decay_start_step, schedule.decay_steps), (Some(0), Some(2570)));
    let schedule = t.run("16k.yaml", json!({"warmup_tokens": 1})).train.schedule;
    assert_eq!((schedule.warmup_steps, schedule.decay_start_step), (Some(64), Some(64)));
    assert_eq!(schedule.decay_steps, Some(642));
}

#[test]
fn row_28_the_decay_begins_so_that_it_ends_with_the_run_and_says_where_it_can_not() {
    let t = tutorial();
    let schedule = |vars: Json| t.run("default.yaml", vars).train.schedule;
    let four = schedule(json!({"annealing_tokens": 4}));
    assert_eq!((four.decay_start_step, four.decay_steps), (Some(1799 - 1028), Some(1028)));
    let warm = schedule(json!({"annealing_tokens": 4, "warmup_tokens": 5}));
    assert_eq!((warm.warmup_steps, warm.decay_start_step), (Some(1285), Some(1285)));
    let says = |vars: Json, text: &str| {
        t.notes("default.yaml", vars).iter().any(|note| note.contains(text))
    };
    let whole = "the decay of the learning rate (2570 steps from step 0) covers the whole run of 1799 steps, which ends 70% of \
                 the way down; fewer --annealing-tokens";
    assert!(says(json!({}), whole), "{:?}", t.notes("default.yaml", json!({})));
    assert!(!says(json!({"annealing_tokens": 4}), "decay"));
    assert!(says(
        json!({"annealing_tokens": 4, "warmup_tokens": 5}),
        "covers the whole run of 1799 steps but its warm-up, which ends 50% of the way down"
    ));
    t.write("late.yaml", "-- extends 'configs/default.yaml'\n[globals]\n    == super()\n    -- set ns.decay_start_step = 1285\n");
    let late = t.notes("late.yaml", json!({"annealing_tokens": 4}));
    assert!(
        late.iter()
            .any(|n| n == "the end of the run (1799 steps) cuts the decay off 50% of the way down"),
        "{late:?}"
    );
    assert!(says(
        json!({"annealing_tokens": 4, "max_steps": 9}),
        "the run ends after 9 steps, before its decay begins (771)"
    ));
    // Without a decay the rate stays up.
    t.write("flat.yaml", "-- extends 'projects/finetune_v2.yaml'\n[config_metadata]\n    == super()\n    -- set ns.dataset_proj = joinpath(workspace_root, 'lovecraft_dataset')\n");
    let flat =
        t.run("flat.yaml", json!({"annealing_tokens": 0, "warmup_tokens": 1})).train.schedule;
    assert_eq!((flat.kind, flat.warmup_steps), (ScheduleType::Constant, Some(64)));
}

/// The run that goes on is the run that was begun: to begin its decay early makes no other of it.
#[test]
fn row_57_annealing_begins_where_the_run_is_resumed() {
    let t = tutorial();
    let before = t.run("default.yaml", json!({"annealing_tokens": 4}));
    let after = t.run("default.yaml", json!({"annealing_tokens": 4, "start_annealing": true}));
    assert!(!before.run.start_annealing && after.run.start_annealing);
    let digests = fathom_spec::config::Digests::default();
    assert_eq!(before.identity(&digests), after.identity(&digests));
}

#[test]
fn row_30_cadence_is_scaled_and_never_zero() {
    let t = tutorial();
    let cadence = |config: &str, vars: Json| {
        let mut vars = object(vars);
        vars.insert("model_id_or_path".into(), json!("m"));
        let rendered = t.project("finetune_lovecraft").render(config, &vars).unwrap();
        let args = rendered.graph().unwrap().to_json()["trainer_args"]["kwargs"].clone();
        ["logging_steps", "eval_steps", "save_steps"].map(|key| args[key].as_u64().unwrap())
    };
    assert_eq!(cadence("default.yaml", json!({})), [5, 128, 2570]);
    assert_eq!(cadence("16k.yaml", json!({})), [1, 32, 642]);
    assert_eq!(cadence("16k.yaml", json!({"seq_len": 32768})), [1, 16, 321]);
    assert_eq!(cadence("16k.yaml", json!({"seq_len": 65536})), [1, 8, 160]);
    assert_eq!(cadence("16k.yaml", json!({"seq_len": 1048576})), [1, 1, 10]);
    assert_eq!(cadence("default.yaml", json!({"step_cadence": 1.0})), [257, 6425, 128501]);
    let config = t.run("16k.yaml", json!({}));
    assert_eq!((config.eval.every_steps, config.train.checkpoint_every_steps), (32, 642));
}

#[test]
fn row_35_a_child_of_one_line_has_sixteen_thousand_tokens_a_block() {
    let t = tutorial();
    let config = t.run("16k.yaml", json!({}));
    assert_eq!((config.train.sequence_length, config.planned_steps()), (16384, 449));
    assert_eq!(config.train.schedule.decay_steps, Some(642));
    let text = "-- extends 'project.yaml'\n\n[config_metadata]\n    == super()\n    -- set ns.seq_len = seq_len | default(16384)\n";
    t.write("short.yaml", text);
    assert_eq!(t.run("short.yaml", json!({})).train, config.train);
}

#[test]
fn row_36_a_longer_sequence_needs_no_change_of_the_dataset() {
    let t = tutorial();
    for config in ["default.yaml", "16k.yaml"] {
        let long = t.run(config, json!({"seq_len": 32768}));
        assert_eq!((long.train.sequence_length, long.planned_steps()), (32768, 224));
        assert_eq!(long.data, t.run(config, json!({})).data);
    }
}

#[test]
fn row_56_a_child_swaps_the_optimizer() {
    let t = tutorial();
    let config = t.run("adamw4bit.yaml", json!({}));
    assert_eq!(config.train.optimizer.kind, OptimizerType::Adamw);
    assert_eq!(config.train.optimizer.betas, Some([0.9, 0.999]));
    close(config.train.learning_rate, 4.8733e-5);
    let rounded = (config.train.weights_dtype, config.train.stochastic_rounding);
    assert_eq!(rounded, (Dtype::Bfloat16, Some(true)));
    let notes = t.notes("adamw4bit.yaml", json!({}));
    assert!(
        notes.iter().any(|n| n == "AdamW4bit: its state is kept in float32, 8 bytes a weight"),
        "{notes:?}"
    );
    assert!(
        !notes.iter().any(|n| n.contains("torch_dtype") || n.contains("rounding")),
        "{notes:?}"
    );
    let swap = |text: &str| {
        let head =
            "-- extends 'configs/default.yaml'\n[optimizer]\noptimizer: &optimizer !partial:";
        t.write("swap.yaml", &format!("{head}{text}\n"));
        t.run("swap.yaml", json!({})).train
    };
    let sgd = swap("torch.optim:SGD\n    lr: 1e-2\n    momentum: 0.9");
    assert_eq!(
        (sgd.optimizer.kind, sgd.optimizer.momentum, sgd.learning_rate),
        (OptimizerType::Sgd, Some(0.9), 0.01)
    );
    let torch = swap("torch.optim:Adafactor { lr: 0.01, eps: [ null, 2.0e-3 ], d: 2.0 }").optimizer;
    assert_eq!(
        (torch.kind, torch.relative_step_floor, torch.clip_threshold),
        (OptimizerType::Adafactor, Some(2e-3), Some(2.0))
    );
    // State in 8 bits is kept so, and nothing is reported.
    for name in ["bitsandbytes.optim:AdamW8bit", "torchao.optim:AdamW8bit"] {
        let small = swap(&format!("{name} {{ lr: 0.01, block_size: 256 }}")).optimizer;
        assert_eq!((small.kind, small.state_dtype()), (OptimizerType::Adamw, StateDtype::Int8));
        let notes = t.notes("swap.yaml", json!({}));
        assert!(!notes.iter().any(|n| n.contains("AdamW8bit")), "{notes:?}");
    }
    // A short name, and arguments by position.
    assert_eq!(swap("AdamW { arg0: null, arg1: 0.5 }").learning_rate, 0.5);
}

/// Every setting without a counterpart on this engine is said to be changed, in one line each, at its place.
#[test]
fn settings_that_are_not_obeyed_are_reported() {
    let t = tutorial();
    let head = "-- extends 'configs/default.yaml'\n[optimizer]\n    -- include 'optimizers/";
    t.write("nearest.yaml", &format!("{head}adamw.yaml'\n"));
    let vars = json!({"attn_implementation": "flex_attention", "compile": true});
    let resolved = t.resolve("nearest.yaml", vars).unwrap();
    let notes: Vec<String> = resolved
        .notes
        .iter()
        .map(|note| note.to_string().replace(&t.workspace.display().to_string(), "WS"))
        .collect();
    for (place, message) in [
        (
            "projects/lm_training_project.yaml",
            "torch_compile `true`: LibTorch runs the model as it is",
        ),
        (
            "projects/lm_training_project.yaml",
            "attn_implementation `flex_attention`: sdpa computes the same",
        ),
        ("projects/lm_training_project.yaml", "logging_steps `5`: every step is recorded"),
        (
            "projects/lm_training_project.yaml",
            "num_train_epochs `1`: the run does not end with a pass over the data but after 1799 steps",
        ),
        (
            "projects/lm_training_project.yaml",
            "save_steps `2570`: the run has 1799 steps, so that only the last has a checkpoint",
        ),
        (
            "projects/lm_training_project.yaml",
            "torch_dtype `bfloat16`: weights are kept in float32",
        ),
        ("callbacks/lm_callbacks.yaml", "TextgenCallback: no samples are taken while training"),
    ] {
        assert!(
            notes.iter().any(|note| note.contains(place) && note.contains(message)),
            "{message}: {notes:#?}"
        );
    }
    assert!(notes.iter().all(|note| !note.contains('\n')), "{notes:?}");
    // What is at its default, or obeyed, is not spoken of.
    for on in [false, true] {
        let quiet = json!({"attn_implementation": "sdpa", "fuse_optim_with_backward": on, "activation_offloading": on});
        let notes = t.notes("default.yaml", quiet).join("\n");
        let said = ["fuse_optim", "offloading", "attn", "gradient_checkpointing", "torch_dtype"];
        assert!(!said.iter().any(|name| notes.contains(name)), "{notes}");
    }
}

/// Which engine carries the run out, and what takes memory off a step.
#[test]
fn row_38_the_memory_settings_choose_the_layered_engine() {
    let t = tutorial();
    let train = |vars: Json| t.run("default.yaml", vars).train;
    for (fuse, offload, engine) in [
        (true, true, Some(Engine::Layered)),
        (true, false, Some(Engine::Layered)),
        (false, true, Some(Engine::Layered)),
        (false, false, None),
    ] {
        let vars = json!({"fuse_optim_with_backward": fuse, "activation_offloading": offload});
        let found = train(vars);
        assert_eq!(found.engine, engine, "{fuse} {offload}");
        assert_eq!(found.optimizer_in_backward, fuse.then_some(true), "{fuse} {offload}");
        assert_eq!(found.activation_offloading, offload.then_some(true), "{fuse} {offload}");
        // The layered engine recomputes anyway.
        assert_eq!(found.activation_checkpointing, engine.is_none(), "{fuse} {offload}");
        // What weights are kept in does not depend on it.
        let rounded = (found.weights_dtype, found.stochastic_rounding);
        assert_eq!(rounded, (Dtype::Bfloat16, Some(true)), "{fuse} {offload}");
    }
    // Several forwards a step: the rest holds, and it is said once.
    let resolved = t.resolve("default.yaml", json!({"gradient_accumulation_steps": 4})).unwrap();
    let said: Vec<String> = resolved.notes.iter().map(ToString::to_string).collect();
    let said: Vec<&String> = said.iter().filter(|note| note.contains("fuse_optim")).collect();
    let expected = "templates/project.yaml:60: fuse_optim_with_backward `true`: gradients of 4 forwards \
                    (gradient_accumulation_steps) are kept";
    assert!(said.len() == 1 && said[0].contains(expected), "{said:?}");
    let several = train(json!({"gradient_accumulation_steps": 4}));
    assert_eq!((several.engine, several.optimizer_in_backward), (Some(Engine::Layered), None));
    assert!(!several.optimizer_in_backward() && several.activation_offloading == Some(true));
    let plain = json!({"gradient_accumulation_steps": 4, "activation_offloading": false});
    assert_eq!((train(plain.clone()).engine, train(plain).activation_checkpointing), (None, true));
    // Clipping needs all gradients, unless it is of another kind.
    let clipped = "-- extends 'configs/default.yaml'\n[trainer_args]\n    == super()\n    max_grad_norm: 1.0\n";
    t.write("clipped.yaml", clipped);
    let refused = t.refused("clipped.yaml", json!({}));
    let at = "WS/finetune_lovecraft/templates/project.yaml:60: train.optimizer_in_backward: expected no clipping";
    assert!(
        refused.starts_with(at) && refused.contains("help: set train.grad_clipping"),
        "{refused}"
    );
    let rule = "[auxiliary_outputs]\nrun_config: { train: { grad_clipping: per_sublayer } }\n";
    t.write("clipped.yaml", &format!("{clipped}{rule}"));
    assert!(t.run("clipped.yaml", json!({})).train.optimizer_in_backward());
}

/// Weights that are made in bfloat16 stay so with stochastic rounding, and with nothing else.
#[test]
fn weights_stay_in_bfloat16_where_they_are_rounded_at_random() {
    let t = tutorial();
    let (half, full) = (Dtype::Bfloat16, Dtype::Float32);
    for (optimizer, dtype, expected) in [
        ("forgather.ml.optim:Adafactor { lr: 0.1 }", "bfloat16", (half, Some(true), half)),
        (
            "forgather.ml.optim:Adafactor { lr: 0.1, bf16_stochastic_round: False }",
            "bfloat16",
            (full, None, half),
        ),
        ("AdamW { lr: 0.1, bf16_stochastic_round: True }", "bfloat16", (half, Some(true), half)),
        ("AdamW8bit { lr: 0.1, stochastic_rounding: True }", "bfloat16", (half, Some(true), half)),
        ("AdamW { lr: 0.1 }", "bfloat16", (full, None, half)),
        ("SGD { lr: 0.1 }", "bfloat16", (full, None, half)),
        // There is nothing to round.
        ("forgather.ml.optim:Adafactor { lr: 0.1 }", "float32", (full, None, full)),
        ("AdamW { lr: 0.1, bf16_stochastic_round: True }", "float32", (full, None, full)),
    ] {
        let head =
            "-- extends 'configs/default.yaml'\n[optimizer]\noptimizer: &optimizer !partial:";
        t.write("of.yaml", &format!("{head}{optimizer}\n"));
        let config = t.run("of.yaml", json!({"dtype": dtype}));
        let train = &config.train;
        let found = (train.weights_dtype, train.stochastic_rounding, config.model.dtype);
        assert_eq!(found, expected, "{optimizer} {dtype}");
        let notes = t.notes("of.yaml", json!({"dtype": dtype}));
        let said =
            notes.iter().any(|n| n.contains("torch_dtype `bfloat16`: weights are kept in float32"));
        assert_eq!(said, dtype == "bfloat16" && train.weights_dtype == full, "{notes:?}");
    }
    // Such weights are what is computed with, mixed precision or not.
    t.write("unmixed.yaml", "-- extends 'configs/default.yaml'\n[trainer_args]\n    == super()\n    mixed_precision: \"no\"\n");
    assert_eq!(t.run("unmixed.yaml", json!({})).model.dtype, half);
}

#[test]
fn mistakes_point_into_the_templates() {
    let t = tutorial();
    let config = |text: &str| {
        t.write("wrong.yaml", &format!("-- extends 'configs/default.yaml'\n{text}"));
        t.refused("wrong.yaml", json!({}))
    };
    let wrong = "WS/finetune_lovecraft/templates/configs/wrong.yaml";
    let check = |text: &str, expected: &str| {
        let message = config(text);
        let expected = expected.replace("WRONG", wrong);
        assert!(message.contains(&expected), "expected {expected}, found {message}");
    };
    check(
        "[optimizer]\noptimizer: &optimizer !partial:torch.optim:AdamV { lr: 1.0 }\n",
        "WRONG:3: expected a component, found `torch.optim:AdamV`\n  help: did you mean `torch.optim:AdamW`",
    );
    check(
        "[optimizer]\noptimizer: &optimizer !partial:torch.optim:AdamW { lrr: 1.0 }\n",
        "AdamW: expected one of its arguments, found `lrr`\n  help: did you mean `lr`? `fathom components AdamW` lists them",
    );
    check(
        "[trainer_args]\n    == super()\n    gradient_checkpoint: True\n",
        "WRONG:4: TrainingArguments: expected one of its arguments, found `gradient_checkpoint`\n  help: did you mean `gradient_checkpointing`?",
    );
    check(
        "[trainer_args]\n    == super()\n    eval_steps: often\n",
        "WRONG:4: TrainingArguments.eval_steps: expected a whole number, found `often`",
    );
    check(
        "[trainer_args]\n    == super()\n    fp16: True\n",
        "WRONG:4: TrainingArguments.fp16: expected `False`, found `true`\n  help: use mixed_precision: bf16",
    );
    check(
        "[trainer_args]\n    == super()\n    max_steps: -1\n",
        "WRONG:4: max_steps: expected 1 or more, found `-1`\n  help: a run is bounded by its steps",
    );
    check(
        "[trainer_args]\n    == super()\n    per_device_train_batch_size: 0\n",
        "WRONG:4: train.micro_batch_size: expected 1 or more, found `0`",
    );
    check(
        "[optimizer]\noptimizer: &optimizer !partial:./my_optimizer.py:Mine { lr: 1.0 }\n",
        "WRONG:3: expected a component of fathom, found Python code, `./my_optimizer.py:Mine`\n  help: no Python is run",
    );
    let no_model = t.project("finetune_lovecraft").render("default.yaml", &Map::new()).unwrap();
    let no_model = run::resolve(&no_model.graph().unwrap(), &Map::new()).unwrap_err().to_string();
    assert!(
        no_model.contains("expected a model to train, found none\n  help: name one with -M"),
        "{no_model}"
    );
    let devices = t.refused("default.yaml", json!({"trainer_type": "ddp"}));
    assert!(devices.contains("found `DDPTrainer`\n  help: use trainer_type `basic`"), "{devices}");
    t.write("flat.yaml", "-- extends 'projects/finetune_v2.yaml'\n[config_metadata]\n    == super()\n    -- set ns.dataset_proj = joinpath(workspace_root, 'lovecraft_dataset')\n");
    let flat = json!({"start_annealing": true, "annealing_tokens": 0});
    let annealing = t.refused("flat.yaml", flat);
    assert!(
        annealing
            .contains("start_decay: expected a schedule with a decay, found decay_start_step `-1`"),
        "{annealing}"
    );
    let kind = t.project("lovecraft_dataset").render("lovecraft.yaml", &Map::new()).unwrap();
    let kind = run::resolve(&kind.graph().unwrap(), &Map::new()).unwrap_err().to_string();
    assert!(kind.contains("expected a target, found none named `main`"), "{kind}");
}

/// A number that YAML 1.1 takes for text is the number it means, and it is said.
#[test]
fn numbers_that_are_text_are_read_as_numbers() {
    let t = tutorial();
    t.write("text.yaml", "-- extends 'configs/default.yaml'\n[optimizer]\noptimizer: &optimizer !partial:AdamW { lr: 1e-5 }\n");
    assert_eq!(t.run("text.yaml", json!({})).train.learning_rate, 1e-5);
    let notes = t.notes("text.yaml", json!({}));
    assert!(
        notes.iter().any(|n| n == "lr is text in YAML 1.1, and is read as the number 0.00001"),
        "{notes:?}"
    );
}

/// Key paths of a run that no component has an argument for.
#[test]
fn a_template_may_set_key_paths() {
    let t = tutorial();
    t.write(
        "over.yaml",
        "-- extends 'configs/default.yaml'\n[auxiliary_outputs]\nrun_config:\n    eval: { context_lengths: [ 2048, 4096 ] }\n    \
         train: { weights_dtype: float32, stochastic_rounding: null }\n",
    );
    let config = t.run("over.yaml", json!({}));
    assert_eq!(config.eval.context_lengths, [2048, 4096]);
    assert_eq!((config.train.weights_dtype, config.train.max_steps), (Dtype::Float32, Some(1799)));
    t.write("wrong.yaml", "-- extends 'configs/default.yaml'\n[auxiliary_outputs]\nrun_config:\n    train: { sed: 3 }\n");
    let message = t.refused("wrong.yaml", json!({}));
    assert!(
        message.contains(
            "wrong.yaml:4: train: expected a known key, found `sed`\n  help: did you mean `seed`?"
        ),
        "{message}"
    );
}

#[test]
fn a_dataset_that_can_not_be_is_refused_where_it_was_written() {
    let t = tutorial();
    let path = t.workspace.join("lovecraft_dataset/templates/configs/wrong.yaml");
    let check = |text: &str, target: &str, expected: &str| {
        std::fs::write(&path, format!("-- extends 'configs/lovecraft.yaml'\n{text}")).unwrap();
        let error = t.target("wrong.yaml", json!({}), target, json!({})).unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains(&format!("configs/wrong.yaml:{expected}")), "{message}");
    };
    let function = |arguments: &str| {
        format!(
            "[map_function]\n.define: &map_function !partial:block_tokenize_fn {{ {arguments} }}\n"
        )
    };
    check(
        &function("packed: True, packing_strategy: bestfit"),
        "train_dataset",
        "3: block_tokenize_fn.packing_strategy: expected one of greedy, best_fit, first_fit, found `bestfit`\n  help: did you mean `best_fit`?",
    );
    check(
        &function("max_length: 64, stride: 64"),
        "train_dataset",
        "3: data.stride: expected at most 62",
    );
    check(
        &function("max_length: 1"),
        "train_dataset",
        "3: block_tokenize_fn.max_length: expected 2 or more, found `1`",
    );
    check(
        "[train_dataset_split]\ntrain_dataset_split: &train_dataset_split !call:getitem [ *dataset_dict, \"trian\" ]\n",
        "train_dataset",
        "3: expected one of the splits train, validation, test, found `trian`\n  help: did you mean `train`?",
    );
    check(
        "[dataset_dict]\ndataset_dict: &dataset_dict !singleton:datasets:load_from_disk [ x ]\n",
        "dataset_dict",
        "3: expected a component that this engine has, found `load_from_disk`\n  help: use load_dataset",
    );
    check(
        "[train_dataset]\ntrain_dataset: &train_dataset !singleton:preprocess_dataset\n    <<: &common_dataset_args { tokenizer: *tokenizer, map_fn: *map_function }\n    dataset: *dataset_dict\n",
        "train_dataset",
        "3: preprocess_dataset: expected one split, found all of them",
    );
}

#[test]
fn documents_may_be_selected_and_sampled() {
    let t = tutorial();
    let path = t.workspace.join("lovecraft_dataset/templates/configs/some.yaml");
    let text = "-- extends 'configs/lovecraft.yaml'\n[train_dataset]\n    == super()\n    select_range: \"10%:80%\"\n";
    std::fs::write(&path, text).unwrap();
    let blocks =
        t.blocks("some.yaml", json!({}), "train_dataset", json!({"tokenizer": "/models/t"}));
    assert_eq!(serde_json::to_value(&blocks.data).unwrap()["select"], json!({"train": "10%:80%"}));
    let tokenizer = blocks.tokenizer.map(|t| fathom_spec::components::values::to_json(&t.value));
    assert_eq!(tokenizer, Some(json!("/models/t")));
    let config = t.run("default.yaml", json!({"dataset_config": "some.yaml"}));
    assert_eq!(serde_json::to_value(&config.data).unwrap()["select"], json!({"train": "10%:80%"}));
}
