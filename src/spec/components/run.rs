//! A training project's target `main` as the written form of a `RunConfig`, each value with the template line it came from.

use super::dataset::{Blocks, Resolver, Target, entry, tokenizer_path};
use super::values::{Scope, from_json, to_json, to_written};
use super::{Bound, Note, bind, bind_to, check, of};
use crate::config::RunConfig;
use crate::config::written::{Node as WrittenNode, Origin, Written};
use crate::template::graph::{Graph, Located, Value};
use anyhow::{Result, bail};
use serde_json::{Map, Value as Json};
use std::path::PathBuf;

/// The target that a training project's run is.
pub const MAIN: &str = "main";
/// The top-level key whose mapping is laid over what the components say: key paths of a `RunConfig`.
pub const OVER: &str = "run_config";

/// A run as a project describes it.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// Read it with [`RunConfig::from_written`]; errors then point into the templates.
    pub written: Written,
    /// What is not done as it was written, and numbers that do harm: one line each.
    pub notes: Vec<Note>,
    /// What the run is called.
    pub name: Option<String>,
    /// The finished model is to be copied here.
    pub output_dir: Option<PathBuf>,
}

/// Resolves the run that a graph describes, with values for its variables.
///
/// # Errors
///
/// When the graph describes none, a component or argument is not known or can't be obeyed, or two of them contradict each
/// other: with the place in the templates and the way out.
pub fn resolve(graph: &Graph, vars: &Map<String, Json>) -> Result<Resolved> {
    let mut notes = check::graph(graph)?;
    let scope = Scope::from_json("the command line", vars);
    let main = entry(graph, MAIN)?;
    let Value::Node(script) = &main.value else {
        bail!(
            "{}: {MAIN}: expected a training run, found {}\n  help: extend projects/lm_training_project.yaml or \
             projects/finetune_v2.yaml",
            main.origin,
            main.value.describe()
        );
    };
    if of(script)?.name != "TrainingScript" {
        bail!("{}: {MAIN}: expected a TrainingScript, found `{}`", main.origin, script.target);
    }
    let script = bind(script)?;
    let trainer = script.needed(&scope, "trainer")?;
    let trainer = node_of(&trainer, "Trainer")?;
    let args = trainer.needed(&scope, "args")?;
    let Value::Dict(entries) = &args.value else { bail!("{}: not a mapping", args.origin) };
    let args = bind_to(&super::catalog::TRAINING_ARGUMENTS, &args.origin, &[], entries)?;
    let mut run = Run {
        written: Written {
            node: WrittenNode::Map(Vec::new()),
            origin: Origin { file: graph.origin.file.clone(), line: 0, column: 0 },
        },
        scope: &scope,
        notes: &mut notes,
    };
    run.model(&trainer)?;
    run.data(&trainer)?;
    run.length(&args)?;
    run.steps(&args)?;
    run.optimizer(&trainer)?;
    run.dtypes(&trainer, &args)?;
    run.schedule(&trainer)?;
    run.evaluation(&args)?;
    run.checkpoints(&args)?;
    let mut written = run.written;
    if let Some(over) = graph.get(OVER) {
        written = to_written(&scope.plain(over)?)?.over(written);
    }
    let name = args.text(&scope, "run_name")?;
    let output_dir = args.text(&scope, "output_dir")?.map(PathBuf::from);
    Ok(Resolved { written, notes, name, output_dir })
}

/// The node in a value, with its arguments by name.
fn node_of<'a>(value: &'a Located, what: &str) -> Result<Bound<'a>> {
    match &value.value {
        Value::Node(node) => bind(node),
        other => bail!("{}: expected a {what}, found {}", value.origin, other.describe()),
    }
}

/// A run on its way to its written form.
struct Run<'a> {
    written: Written,
    scope: &'a Scope,
    notes: &'a mut Vec<Note>,
}

impl Run<'_> {
    fn set(&mut self, key: &str, value: &Located) -> Result<()> {
        self.written.set(key, to_written(value)?)
    }

    /// A value that no template wrote, at the place of what it follows from.
    fn set_plain(&mut self, key: &str, value: impl Into<Json>, origin: &Origin) -> Result<()> {
        self.set(key, &from_json(&value.into(), origin))
    }

    /// Copies an argument, or its default, under a key.
    fn copy(&mut self, bound: &Bound, argument: &str, key: &str) -> Result<()> {
        let value = bound.or_default(self.scope, argument)?;
        self.set(key, &value)
    }

    fn note(&mut self, origin: &Origin, message: impl Into<String>) {
        self.notes.push(Note { origin: origin.clone(), message: message.into() });
    }

    /// A number that was set before.
    fn number(&self, key: &str) -> u64 {
        match self.written.get(key).map(|value| &value.node) {
            Some(WrittenNode::Int(n)) => u64::try_from(*n).unwrap_or(0),
            _ => 0,
        }
    }

    fn model(&mut self, trainer: &Bound) -> Result<()> {
        let model = trainer.needed(self.scope, "model_init")?;
        let model = node_of(&model, "model")?;
        match model.component.name {
            "AutoModelForCausalLM.from_pretrained" => {
                let name = "pretrained_model_name_or_path";
                let Some(path) = model.value(self.scope, name)? else {
                    bail!(
                        "{}: expected a model to train, found none\n  help: name one with -M (--model-id-or-path), in a sweep \
                         with `set: {{ model_id_or_path: … }}`",
                        model.origin_of(name)
                    );
                };
                self.set("model.path", &path)?;
            }
            "AutoModelForCausalLM.from_config" => self.copy(&model, "config", "model.config")?,
            other => bail!("{}: expected a model, found `{other}`", model.origin),
        }
        for key in ["max_position_embeddings", "rope_parameters"] {
            if let Some(value) = model.value(self.scope, key)? {
                self.set(&format!("model.{key}"), &value)?;
            }
        }
        self.attention(&model)?;
        self.tokenizer(trainer)
    }

    fn attention(&mut self, model: &Bound) -> Result<()> {
        let attention = model.or_default(self.scope, "attn_implementation")?;
        let Value::String(name) = &attention.value else { return Ok(()) };
        match name.as_str() {
            "sdpa" | "eager" => self.set("model.attention", &attention),
            "flex_attention" | "flash_attention_2" | "flash_attention_3" => {
                self.note(
                    &attention.origin,
                    format!(
                        "attn_implementation `{name}`: sdpa computes the same, without scores in full and document by document"
                    ),
                );
                self.set_plain("model.attention", "sdpa", &attention.origin)
            }
            _ => bail!(
                "{}: attn_implementation: expected sdpa, flex_attention or eager, found `{name}`",
                attention.origin
            ),
        }
    }

    /// The tokenizer's path, unless it is the model's.
    fn tokenizer(&mut self, trainer: &Bound) -> Result<()> {
        let class = trainer.value(self.scope, "processing_class")?;
        let Some(value) = class.or(trainer.value(self.scope, "tokenizer")?) else { return Ok(()) };
        let Some(path) = tokenizer_path(self.scope, &value)? else { return Ok(()) };
        let of_model = self.written.get("model.path").map(Written::to_json);
        match of_model == Some(to_json(&path.value)) {
            true => Ok(()),
            false => self.set("tokenizer.path", &path),
        }
    }

    fn data(&mut self, trainer: &Bound) -> Result<()> {
        let mut resolver = Resolver::new(self.notes);
        let train = trainer.needed(self.scope, "train_dataset")?;
        let train = blocks(&mut resolver, &train, self.scope)?;
        let eval = trainer.value(self.scope, "eval_dataset")?;
        let eval = eval.map(|eval| blocks(&mut resolver, &eval, self.scope)).transpose()?;
        self.same_length(trainer, &train)?;
        self.set("train.sequence_length", &train.max_length)?;

        let mut data = train.written.clone();
        if train.split != "train" {
            rename_split(&mut data, &train.split)?;
        }
        if let Some(eval) = &eval {
            same_data(&train, eval)?;
            let name = match eval.split.as_str() {
                // What is measured on it needs a name of its own.
                "train" => {
                    if let Some(patterns) = eval.written.get("splits.train").cloned() {
                        data.set("splits.validation", patterns)?;
                    }
                    "validation"
                }
                split => split,
            };
            if let Some(range) = eval.written.get(&format!("select.{}", eval.split)).cloned() {
                data.set(&format!("select.{name}"), range)?;
            }
            self.set_plain("eval.split", name, &eval.origin)?;
        }
        self.written.set("data", data)
    }

    /// Blocks are as long as the trainer was told, or one of the two would be lost on the way.
    fn same_length(&self, trainer: &Bound, train: &Blocks) -> Result<()> {
        let Some(collator) = trainer.value(self.scope, "data_collator")? else { return Ok(()) };
        let collator = node_of(&collator, "collator")?;
        let Some(length) = collator.value(self.scope, "max_length")? else { return Ok(()) };
        if to_json(&length.value) == to_json(&train.max_length.value) {
            return Ok(());
        }
        bail!(
            "{}: max_length: expected blocks of the training sequence length, which is {} ({}), found {}\n  help: the dataset \
             project has to read the variable `preprocess_args`: `fn_kwargs: !var {{ name: \"preprocess_args\", default: null \
             }}`",
            train.max_length.origin,
            length.value.describe(),
            length.origin,
            train.max_length.value.describe()
        )
    }

    /// How long the run is: a number of steps.
    fn length(&mut self, args: &Bound) -> Result<()> {
        let steps = args.or_default(self.scope, "max_steps")?;
        let epochs = args.float(self.scope, "num_train_epochs")?.unwrap_or(-1.0);
        let Value::Int(count @ 1..) = steps.value else {
            bail!(
                "{}: max_steps: expected 1 or more, found {}\n  help: a run is bounded by its steps: `max_steps: {{{{ \
                 max_steps | toyaml(ns.total_steps) }}}}` takes those of the token budget",
                args.origin_of("max_steps"),
                steps.value.describe()
            );
        };
        if epochs >= 0.0 {
            self.note(
                args.origin_of("num_train_epochs"),
                format!(
                    "num_train_epochs `{epochs}`: the run does not end with a pass over the data but after {count} steps \
                     (max_steps), over as many passes as they take; -1 says so"
                ),
            );
        }
        self.set("train.max_steps", &steps)
    }

    fn steps(&mut self, args: &Bound) -> Result<()> {
        self.copy(args, "per_device_train_batch_size", "train.micro_batch_size")?;
        self.copy(args, "gradient_accumulation_steps", "train.gradient_accumulation_steps")?;
        self.copy(args, "max_grad_norm", "train.max_grad_norm")?;
        self.memory(args)?;
        let seed = args.or_default(self.scope, "seed")?;
        match seed.value {
            Value::Int(0..) => self.set("train.seed", &seed)?,
            _ => {
                bail!("{}: seed: expected 0 or more, found {}", seed.origin, seed.value.describe())
            }
        }
        Ok(())
    }

    /// What takes memory off a step. Two of the three ways are the layered engine's, which recomputes layers by itself: the
    /// third, gradient_checkpointing, is for the plain engine alone.
    fn memory(&mut self, args: &Bound) -> Result<()> {
        let (fuse, offload) = ("fuse_optim_with_backward", "enable_activation_offloading");
        let forwards = self.number("train.gradient_accumulation_steps");
        let mut fused = args.bool(self.scope, fuse)?;
        if fused && forwards > 1 {
            self.note(
                args.origin_of(fuse),
                format!(
                    "fuse_optim_with_backward `true`: gradients of {forwards} forwards (gradient_accumulation_steps) are kept \
                     and summed, and weights are stepped after the last"
                ),
            );
            fused = false;
        }
        let offloaded = args.bool(self.scope, offload)?;
        if !fused && !offloaded {
            return self.copy(args, "gradient_checkpointing", "train.activation_checkpointing");
        }
        for (chosen, argument, key) in [
            (fused, fuse, "train.optimizer_in_backward"),
            (offloaded, offload, "train.activation_offloading"),
        ] {
            if chosen {
                let origin = args.origin_of(argument);
                self.set_plain("train.engine", "layered", origin)?;
                self.set_plain(key, true, origin)?;
            }
        }
        Ok(())
    }

    fn optimizer(&mut self, trainer: &Bound) -> Result<()> {
        let optimizer = trainer.needed(self.scope, "optimizer_factory")?;
        let optimizer = node_of(&optimizer, "optimizer")?;
        self.copy(&optimizer, "lr", "train.learning_rate")?;
        let (kind, arguments): (&str, &[(&str, &str)]) = match optimizer.component.name {
            "AdamW" | "AdamW4bit" | "AdamW8bit" => ("adamw", &[("betas", "betas"), ("eps", "eps")]),
            "Adafactor" => (
                "adafactor_sum",
                &[("decay_rate", "beta2_decay"), ("clip_threshold", "clip_threshold")],
            ),
            "TorchAdafactor" => {
                ("adafactor", &[("beta2_decay", "beta2_decay"), ("d", "clip_threshold")])
            }
            "SGD" => ("sgd", &[("momentum", "momentum")]),
            other => bail!("{}: expected an optimizer, found `{other}`", optimizer.origin),
        };
        self.set_plain("train.optimizer.type", kind, optimizer.origin)?;
        if optimizer.component.name == "AdamW8bit" {
            self.set_plain("train.optimizer.state_dtype", "int8", optimizer.origin)?;
        }
        self.copy(&optimizer, "weight_decay", "train.optimizer.weight_decay")?;
        for (argument, key) in arguments {
            self.copy(&optimizer, argument, &format!("train.optimizer.{key}"))?;
        }
        match optimizer.component.name {
            "Adafactor" => self.pair(&optimizer, "eps", &["train.optimizer.eps"]),
            "TorchAdafactor" => {
                let keys = ["train.optimizer.eps", "train.optimizer.relative_step_floor"];
                self.pair(&optimizer, "eps", &keys)
            }
            _ => Ok(()),
        }
    }

    /// Copies the items of a pair under their keys.
    fn pair(&mut self, bound: &Bound, argument: &str, keys: &[&str]) -> Result<()> {
        let value = bound.or_default(self.scope, argument)?;
        let items = match &value.value {
            Value::List(items) if items.len() == 2 => items,
            other => bail!(
                "{}: {}.{argument}: expected two numbers, found {}",
                value.origin,
                bound.component.name,
                other.describe()
            ),
        };
        for (key, item) in keys.iter().zip(items) {
            let item = match &item.value {
                Value::String(text) if text.parse::<f64>().is_ok() => {
                    from_json(&Json::from(text.parse::<f64>().unwrap_or(0.0)), &item.origin)
                }
                _ => item.clone(),
            };
            self.set(key, &item)?;
        }
        Ok(())
    }

    /// What weights are kept in, and what the model computes in.
    ///
    /// Weights that are made in bfloat16 stay so where the optimizer rounds them at random: a small step then counts on
    /// average. Rounded to the nearest, it would be lost, so that without it they are kept in float32.
    fn dtypes(&mut self, trainer: &Bound, args: &Bound) -> Result<()> {
        let model = trainer.needed(self.scope, "model_init")?;
        let weights = node_of(&model, "model")?.or_default(self.scope, "torch_dtype")?;
        let half = match to_json(&weights.value).as_str() {
            Some("float32" | "torch.float32") => false,
            Some("bfloat16" | "torch.bfloat16") => true,
            _ => bail!(
                "{}: torch_dtype: expected bfloat16 or float32, found {}",
                weights.origin,
                weights.value.describe()
            ),
        };
        let mixed = args.or_default(self.scope, "mixed_precision")?;
        let mut computed = match to_json(&mixed.value).as_str() {
            Some("bf16") => "bfloat16",
            Some("no" | "fp32") if args.bool(self.scope, "bf16")? => "bfloat16",
            Some("no" | "fp32") => "float32",
            _ => bail!(
                "{}: mixed_precision: expected bf16 or no, found {}",
                mixed.origin,
                mixed.value.describe()
            ),
        };
        let rounding = self.rounds_at_random(trainer)?;
        match (half, rounding) {
            (true, Some(origin)) => {
                self.set_plain("train.weights_dtype", "bfloat16", &weights.origin)?;
                self.set_plain("train.stochastic_rounding", true, &origin)?;
                // What such weights are multiplied with is of their type, with mixed precision or without.
                computed = "bfloat16";
            }
            (true, None) => {
                self.note(
                    &weights.origin,
                    "torch_dtype `bfloat16`: weights are kept in float32, so that no small step is lost; the optimizer's \
                     stochastic rounding, or `run_config: {train: {weights_dtype: bfloat16}}`, halves their memory",
                );
                self.set_plain("train.weights_dtype", "float32", &weights.origin)?;
            }
            (false, _) => self.set_plain("train.weights_dtype", "float32", &weights.origin)?,
        }
        self.set_plain("model.dtype", computed, &mixed.origin)
    }

    /// Where the optimizer was told to round bfloat16 weights at random, if it was. Its libraries have two names for it.
    fn rounds_at_random(&self, trainer: &Bound) -> Result<Option<Origin>> {
        let optimizer = trainer.needed(self.scope, "optimizer_factory")?;
        let optimizer = node_of(&optimizer, "optimizer")?;
        for name in ["bf16_stochastic_round", "stochastic_rounding"] {
            if optimizer.component.argument(name).is_some() && optimizer.bool(self.scope, name)? {
                return Ok(Some(optimizer.origin_of(name).clone()));
            }
        }
        Ok(None)
    }

    fn schedule(&mut self, trainer: &Bound) -> Result<()> {
        let Some(schedule) = trainer.value(self.scope, "lr_scheduler_factory")? else {
            return self.set_plain("train.schedule.type", "constant", trainer.origin);
        };
        let schedule = node_of(&schedule, "schedule")?;
        let origin = schedule.origin;
        match schedule.component.name {
            "WSDScheduler" => self.wsd(&schedule),
            "CosineLRScheduler" => {
                let (warmup, total) = ("warmup_steps", "total_steps");
                self.cosine(&schedule, warmup, total)?;
                self.min_ratio(&schedule)
            }
            "get_cosine_schedule_with_warmup" => {
                let (warmup, total) = ("num_warmup_steps", "num_training_steps");
                self.cosine(&schedule, warmup, total)?;
                self.set_plain("train.schedule.min_learning_rate_ratio", 0.0, origin)
            }
            "get_constant_schedule_with_warmup" => {
                self.set_plain("train.schedule.type", "constant", origin)?;
                self.copy(&schedule, "num_warmup_steps", "train.schedule.warmup_steps")
            }
            "get_constant_schedule" => self.set_plain("train.schedule.type", "constant", origin),
            other => bail!("{origin}: expected a schedule, found `{other}`"),
        }
    }

    fn wsd(&mut self, schedule: &Bound) -> Result<()> {
        let start = schedule.int(self.scope, "decay_start_step")?.unwrap_or(-1);
        self.copy(schedule, "warmup_steps", "train.schedule.warmup_steps")?;
        let start_now = schedule.bool(self.scope, "start_decay")?;
        if start_now && start < 0 {
            bail!(
                "{}: start_decay: expected a schedule with a decay, found decay_start_step `-1`\n  help: a run that was begun \
                 with --annealing-tokens above 0 can begin its decay early",
                schedule.origin_of("start_decay")
            );
        }
        if start_now {
            self.set_plain("run.start_annealing", true, schedule.origin_of("start_decay"))?;
        }
        if start < 0 {
            return self.set_plain("train.schedule.type", "constant", schedule.origin);
        }
        self.set_plain("train.schedule.type", "wsd", schedule.origin)?;
        self.copy(schedule, "decay_steps", "train.schedule.decay_steps")?;
        self.copy(schedule, "decay_start_step", "train.schedule.decay_start_step")?;
        self.min_ratio(schedule)?;
        self.warn_of_decay(schedule, start as u64);
        Ok(())
    }

    /// Numbers that let a run be nothing but decay, or end before its decay does.
    fn warn_of_decay(&mut self, schedule: &Bound, start: u64) {
        let (steps, decay) =
            (self.number("train.max_steps"), self.number("train.schedule.decay_steps"));
        let warmup = self.number("train.schedule.warmup_steps");
        let origin = schedule.origin_of("decay_steps");
        let percent = |done: u64| 100 * done / decay.max(1);
        let message = if start >= steps {
            format!("the run ends after {steps} steps, before its decay begins ({start})")
        } else if start <= warmup && decay + start >= steps {
            let but = if warmup > 0 { " but its warm-up" } else { "" };
            format!(
                "the decay of the learning rate ({decay} steps from step {start}) covers the whole run of {steps} steps{but}, \
                 which ends {}% of the way down; fewer --annealing-tokens than --total-tokens leave a stable phase",
                percent(steps - start)
            )
        } else if start + decay > steps {
            format!(
                "the end of the run ({steps} steps) cuts the decay off {}% of the way down",
                percent(steps - start)
            )
        } else {
            return;
        };
        self.note(origin, message);
    }

    fn cosine(&mut self, schedule: &Bound, warmup: &str, total: &str) -> Result<()> {
        self.set_plain("train.schedule.type", "cosine", schedule.origin)?;
        self.copy(schedule, warmup, "train.schedule.warmup_steps")?;
        let total = schedule.needed(self.scope, total)?;
        let (Value::Int(end), rise) = (&total.value, self.number("train.schedule.warmup_steps"))
        else {
            bail!("{}: total_steps: not a number", total.origin)
        };
        let down = u64::try_from(*end).unwrap_or(0).saturating_sub(rise).max(1);
        self.set_plain("train.schedule.decay_steps", down, &total.origin)
    }

    /// The lowest rate as a share of the highest.
    fn min_ratio(&mut self, schedule: &Bound) -> Result<()> {
        let min = schedule.float(self.scope, "min_lr")?.unwrap_or(0.0);
        let base = match self.written.get("train.learning_rate").map(|value| &value.node) {
            Some(WrittenNode::Float(x)) => *x,
            Some(WrittenNode::Int(n)) => *n as f64,
            _ => 0.0,
        };
        let ratio = if base > 0.0 { min / base } else { 1.0 };
        // 4.87e-6 / 4.87e-5 is 0.1, whatever the last bit says.
        let ratio = format!("{ratio:.12}").parse().unwrap_or(ratio);
        let origin = schedule.origin_of("min_lr").clone();
        self.set_plain("train.schedule.min_learning_rate_ratio", ratio, &origin)
    }

    fn evaluation(&mut self, args: &Bound) -> Result<()> {
        let strategy = args.or_default(self.scope, "eval_strategy")?;
        match to_json(&strategy.value).as_str() {
            Some("no") => return self.set_plain("eval.every_steps", 0, &strategy.origin),
            Some("steps") => {}
            _ => bail!(
                "{}: eval_strategy: expected steps or no, found {}",
                strategy.origin,
                strategy.value.describe()
            ),
        }
        self.copy(args, "eval_steps", "eval.every_steps")
    }

    fn checkpoints(&mut self, args: &Bound) -> Result<()> {
        let strategy = args.or_default(self.scope, "save_strategy")?;
        let save = match to_json(&strategy.value).as_str() {
            Some("no") => false,
            Some("steps") => true,
            _ => bail!(
                "{}: save_strategy: expected steps or no, found {}",
                strategy.origin,
                strategy.value.describe()
            ),
        };
        self.set_plain("train.save_checkpoints", save, &strategy.origin)?;
        if !save {
            return Ok(());
        }
        self.copy(args, "save_steps", "train.checkpoint_every_steps")?;
        self.copy(args, "save_total_limit", "train.keep_checkpoints")?;
        let (every, steps) =
            (self.number("train.checkpoint_every_steps"), self.number("train.max_steps"));
        if every >= steps {
            self.note(
                args.origin_of("save_steps"),
                format!(
                    "save_steps `{every}`: the run has {steps} steps, so that only the last has a checkpoint; a smaller \
                     --step-cadence gives more"
                ),
            );
        }
        Ok(())
    }
}

/// The blocks that a value stands for.
fn blocks(resolver: &mut Resolver, value: &Located, scope: &Scope) -> Result<Blocks> {
    match resolver.value(value, scope)? {
        Target::Blocks(blocks) => Ok(*blocks),
        Target::Split(_, split) => bail!(
            "{}: expected blocks, found the documents of the split `{split}`\n  help: take `{split}_dataset`, which is \
             tokenized",
            value.origin
        ),
        _ => bail!("{}: expected blocks, found {}", value.origin, value.value.describe()),
    }
}

/// The split that is trained on is called `train` in a run.
fn rename_split(data: &mut Written, from: &str) -> Result<()> {
    for section in ["splits", "select"] {
        if let Some(value) = data.get(&format!("{section}.{from}")).cloned() {
            data.set(&format!("{section}.train"), value)?;
        }
    }
    Ok(())
}

/// A run has one way to make blocks: of what is trained on, and of what is measured.
fn same_data(train: &Blocks, eval: &Blocks) -> Result<()> {
    let plain = |blocks: &Blocks| {
        let mut json = serde_json::to_value(&blocks.data).expect("a section is plain data");
        json["select"] = Json::Null;
        json["sequence_length"] = to_json(&blocks.max_length.value);
        json
    };
    let (train_data, eval_data) = (plain(train), plain(eval));
    let differs = |(key, value): &(&String, &Json)| train_data[key.as_str()] != **value;
    let Json::Object(map) = &eval_data else { return Ok(()) };
    match map.iter().find(differs) {
        Some((key, value)) => bail!(
            "{}: expected eval_dataset to be made as train_dataset is ({}), found another {key}: `{value}` instead of `{}`",
            eval.origin,
            train.origin,
            train_data[key.as_str()]
        ),
        None => Ok(()),
    }
}

/// The complete configuration, with `settings` (key paths) laid over it.
///
/// # Errors
///
/// As [`RunConfig::from_written`].
pub fn complete(resolved: &Resolved, settings: &[(String, Written)]) -> Result<RunConfig> {
    let mut written = resolved.written.clone();
    for (key, value) in settings {
        written.set(key, value.clone())?;
    }
    RunConfig::from_written(&written)
}
