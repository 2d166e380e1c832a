//! A run as a whole: the script, its trainer and the trainer's arguments, the model and the tokenizer, callbacks.

use crate::components::Kind::{Any, Bool, Float, Int, List, Mapping, Path, Text};
use crate::components::{Argument, Component, Kind, Others, Role, optional, required};

const TRAINER: &[Argument] = &[
    required(
        "args",
        Kind::ArgumentsOf(&TRAINING_ARGUMENTS),
        "the trainer's arguments: see TrainingArguments",
    ),
    required("model_init", Kind::Component, "the model"),
    optional("processing_class", Any, "null", "the tokenizer; null: the model's own"),
    optional("tokenizer", Any, "null", "another name of processing_class"),
    optional("data_collator", Any, "null", "makes batches of blocks"),
    required("train_dataset", Any, "the blocks that are trained on"),
    optional("eval_dataset", Any, "null", "the blocks that the loss is measured on meanwhile"),
    optional("callbacks", List, "[]", "what happens beside the steps"),
    required("optimizer_factory", Kind::Component, "a `!partial` of an optimizer"),
    optional(
        "lr_scheduler_factory",
        Any,
        "null",
        "a `!partial` of a schedule; null: a constant rate",
    ),
    optional("fused_loss_factory", Any, "null", "the loss with the head in it"),
    optional("compute_loss_func", Any, "null", "the loss of logits"),
    optional("optimizer_groups", Any, "null", "weights by name with options of their own")
        .refused("leave it out: all weights have one set of options"),
    optional("distributed_env", Any, "null", "the processes that take part").reported(ONE_DEVICE),
    optional("enable_dataset_checkpoint", Any, "null", "whether the position in the data is kept")
        .reported("a resumed run goes on with the very next block"),
];

const ONE_DEVICE: &str = "one process trains on one device";
const WAY_TO_ONE_DEVICE: &str = "use trainer_type `basic`: a run trains on one device. Several runs of a sweep can \
                                 go on at a time (`fathom sweep run --jobs N`)";
const IN_MEMORY: &str = "blocks are held in memory: nothing is loaded while training";
const AT_STEPS: &str = "`steps` or `no`";
const BY_ITSELF: &str = "a run goes on from its last checkpoint by itself";
const COMPILED: &str = "LibTorch runs the model as it is";
const WHOLE_RUN: &str =
    "the checkpoint of a run is whole: weights, optimizer, position in the data";

/// The mapping `trainer_args`.
pub const TRAINING_ARGUMENTS: Component = Component::new(
    "TrainingArguments",
    &[
        "forgather.ml.trainer:TrainingArguments",
        "forgather.ml.trainer.trainer_types:TrainingArguments",
        "transformers:TrainingArguments",
    ],
    Role::Run,
    "How to train: the mapping `trainer_args`.",
    &[
        optional("run_name", Text, "null", "what the run is called in lists and reports"),
        optional(
            "output_dir",
            Path,
            "null",
            "the finished model is copied here; null: it stays in the run's folder",
        ),
        optional("logging_dir", Path, "null", "where logs go")
            .reported("the run's folder holds its log"),
        optional("overwrite_output_dir", Bool, "False", "whether output_dir may be there already")
            .reported("a folder that fathom exported to is replaced, no other"),
        optional("seed", Int, "42", "seeds the order of the data and random initialisation"),
        optional("per_device_train_batch_size", Int, "8", "blocks in one forward"),
        optional(
            "per_device_eval_batch_size",
            Int,
            "null",
            "blocks in one forward of an evaluation",
        )
        .reported("blocks are evaluated one by one"),
        optional("gradient_accumulation_steps", Int, "1", "forwards in one optimizer step"),
        optional(
            "num_train_epochs",
            Float,
            "-1",
            "passes over the data; -1: as many as the steps take",
        ),
        optional("max_steps", Int, "-1", "optimizer steps"),
        optional("max_grad_norm", Float, "null", "clips the global L2 norm of the gradients"),
        optional(
            "mixed_precision",
            Text,
            "no",
            "the type that the model computes in: bf16, or no for float32",
        ),
        optional("bf16", Bool, "False", "the same as mixed_precision: bf16"),
        optional("fp16", Bool, "False", "compute in float16").refused("use mixed_precision: bf16"),
        optional("default_dtype", Text, "null", "the type that weights are made in")
            .reported("the model's torch_dtype says it"),
        optional("logging_strategy", Text, "steps", "when to log").reported(EVERY_STEP),
        optional("logging_steps", Int, "1", "steps between two lines of the log")
            .reported(EVERY_STEP),
        optional("logging_first_step", Bool, "True", "whether the first step is logged")
            .reported(EVERY_STEP),
        optional("eval_strategy", Text, "no", AT_STEPS),
        optional("eval_steps", Int, "500", "steps between two evaluations"),
        optional("max_eval_steps", Int, "-1", "batches of an evaluation").reported(
            "an evaluation is over `eval.loss_tokens` predictions, spread over the split",
        ),
        optional("eval_on_save", Bool, "False", "evaluate before each checkpoint")
            .reported("evaluations come by eval_steps, and at the end"),
        optional("save_strategy", Text, "steps", AT_STEPS),
        optional(
            "save_steps",
            Int,
            "500",
            "steps between two checkpoints; the last step always has one",
        ),
        optional("save_total_limit", Int, "2", "checkpoints to keep"),
        optional(
            "preserve_best_model",
            Bool,
            "False",
            "keep the checkpoint of the best evaluation",
        )
        .reported("the last checkpoints are kept"),
        optional("best_model_metric", Text, "loss", "what best means")
            .reported("the last checkpoints are kept"),
        optional("best_model_greater_is_better", Any, "null", "what best means")
            .reported("the last checkpoints are kept"),
        optional("preserve_n_best", Int, "1", "how many of the best to keep")
            .reported("the last checkpoints are kept"),
        optional("save_safetensors", Bool, "True", "the format of weights")
            .refused("leave it at True"),
        optional("save_optimizer_state", Bool, "True", "part of a checkpoint").reported(WHOLE_RUN),
        optional("save_scheduler_state", Bool, "True", "part of a checkpoint").reported(WHOLE_RUN),
        optional("save_dataset_state", Bool, "True", "part of a checkpoint").reported(WHOLE_RUN),
        optional("save_rng_state", Bool, "True", "part of a checkpoint").reported(WHOLE_RUN),
        optional("resume_from_checkpoint", Any, "True", "whether to go on from a checkpoint")
            .reported(BY_ITSELF),
        optional("restore_optimizer_state", Bool, "True", "part of going on").reported(BY_ITSELF),
        optional("restore_scheduler_state", Bool, "True", "part of going on").reported(BY_ITSELF),
        optional("restore_dataset_state", Bool, "True", "part of going on").reported(BY_ITSELF),
        optional("restore_rng_state", Bool, "True", "part of going on").reported(BY_ITSELF),
        optional(
            "gradient_checkpointing",
            Bool,
            "False",
            "recompute each layer in the backward; the layered engine does so by itself",
        ),
        optional("gradient_checkpointing_kwargs", Any, "null", "how to")
            .reported("there is one way"),
        optional(
            "fuse_optim_with_backward",
            Bool,
            "False",
            "step each weight within the backward, on the layered engine: without max_grad_norm, in steps of one forward",
        ),
        optional(
            "enable_activation_offloading",
            Bool,
            "False",
            "keep the layers' inputs in host memory until the backward, on the layered engine",
        ),
        optional("torch_compile", Bool, "False", "compile the model").reported(COMPILED),
        optional("torch_compile_backend", Text, "inductor", "how to compile").reported(COMPILED),
        optional("torch_compile_mode", Text, "null", "how to compile").reported(COMPILED),
        optional("torch_compile_dynamic", Bool, "True", "how to compile").reported(COMPILED),
        optional("torch_compile_full_graph", Bool, "False", "how to compile").reported(COMPILED),
        optional("construct_model_on", Text, "default", "the device that weights are made on")
            .reported("weights are read straight to the device"),
        optional(
            "float32_matmul_precision",
            Text,
            "null",
            "whether float32 products may be rounded",
        )
        .reported("float32 products are exact"),
        optional("sdpa_backend", Any, "null", "the attention kernel")
            .reported("LibTorch chooses, and the run records it"),
        optional("gc_threshold", Any, "null", "when memory is given back")
            .reported("memory is kept for the next step"),
        optional("speed_metrics_start_step", Int, "1", "the first step that speed is taken over")
            .reported("each step has its own speed"),
        optional("dataloader_num_workers", Int, "0", "processes that load data")
            .reported(IN_MEMORY),
        optional("dataloader_prefetch_factor", Any, "null", "batches that are loaded ahead")
            .reported(IN_MEMORY),
        optional("dataloader_persistent_workers", Bool, "False", "keep the processes")
            .reported(IN_MEMORY),
        optional("dataloader_pin_memory", Bool, "True", "copy faster").reported(IN_MEMORY),
        optional("dataloader_drop_last", Bool, "True", "leave out an incomplete last batch")
            .reported("the last batch of an epoch is filled from the next one"),
        optional("dispatch_batches", Any, "null", "who loads the data").reported(ONE_DEVICE),
        optional("split_batches", Any, "null", "who loads the data").reported(ONE_DEVICE),
        optional("set_dataset_epoch", Bool, "True", "tell the data which epoch it is")
            .reported("each epoch has an order of its own"),
    ],
);

const EVERY_STEP: &str = "every step is recorded";

const FROM_PRETRAINED: &[Argument] = &[
    optional(
        "pretrained_model_name_or_path",
        Path,
        "null",
        "the model: a folder or a .gguf file (-M)",
    ),
    optional(
        "torch_dtype",
        Text,
        "float32",
        "the type that weights are kept in: float32, or bfloat16 with an optimizer that rounds at random",
    ),
    optional(
        "attn_implementation",
        Text,
        "sdpa",
        "how attention is computed: sdpa or eager; another is taken as sdpa",
    ),
    optional(
        "max_position_embeddings",
        Int,
        "null",
        "lifts the model's and the tokenizer's limit on the sequence length",
    ),
    optional(
        "rope_parameters",
        Mapping,
        "null",
        "another RoPE, with the keys of `model.rope_parameters`",
    ),
    optional("trust_remote_code", Bool, "False", "run the model's own code")
        .reported("no model's code is run"),
    optional("low_cpu_mem_usage", Bool, "True", "load without a second copy")
        .reported("files are mapped, not copied"),
    optional("device_map", Any, "null", "which device gets what").reported(ONE_DEVICE),
    optional("use_cache", Any, "null", "a cache for generation")
        .reported("training has no use for one"),
];

const FROM_CONFIG: &[Argument] = &[
    required("config", Mapping, "the shape, with the keys of a config.json"),
    optional(
        "torch_dtype",
        Text,
        "float32",
        "the type that weights are kept in: float32, or bfloat16 with an optimizer that rounds at random",
    ),
    optional(
        "attn_implementation",
        Text,
        "sdpa",
        "how attention is computed: sdpa or eager; another is taken as sdpa",
    ),
    optional("max_position_embeddings", Int, "null", "replaces the shape's"),
    optional("rope_parameters", Mapping, "null", "replaces the shape's"),
];

/// Its settings mean nothing here.
const fn callback(
    name: &'static str,
    paths: &'static [&'static str],
    summary: &'static str,
) -> Component {
    Component::new(name, paths, Role::Callback, summary, &[]).others(Others::Any("its settings"))
}

pub const COMPONENTS: &[Component] = &[
    Component::new(
        "TrainingScript",
        &["forgather.ml.training_script:TrainingScript"],
        Role::Run,
        "A training run: the target `main`.",
        &[
            optional("meta", Mapping, "null", "what the configuration says of itself"),
            required("trainer", Kind::Component, "the trainer"),
            optional("do_train", Bool, "True", "train").refused("leave it at True"),
            optional("do_save", Bool, "False", "save the model when training has ended")
                .reported("the last checkpoint is the model; `output_dir` gets a copy"),
            optional("do_eval", Bool, "False", "evaluate when training has ended")
                .reported("the loss is measured at the end whenever there is an eval_dataset"),
            optional("do_test", Bool, "False", "evaluate another dataset")
                .refused("leave it out; `fathom eval perplexity` measures any text"),
        ],
    ),
    Component::new(
        "Trainer",
        &["forgather.ml.trainer:Trainer", "forgather.ml.trainer.trainer:Trainer"],
        Role::Run,
        "Trains on one device.",
        TRAINER,
    ),
    Component::new(
        "AccelTrainer",
        &[
            "forgather.ml.trainer.accelerate:AccelTrainer",
            "forgather.ml.trainer.accelerate.accel_trainer:AccelTrainer",
        ],
        Role::Run,
        "Trains on several devices by way of another library.",
        TRAINER,
    )
    .refused(WAY_TO_ONE_DEVICE),
    Component::new(
        "DDPTrainer",
        &["forgather.ml.trainer.ddp:DDPTrainer", "forgather.ml.trainer.ddp.ddp_trainer:DDPTrainer"],
        Role::Run,
        "Trains a copy of the model on each of several devices.",
        TRAINER,
    )
    .refused(WAY_TO_ONE_DEVICE),
    Component::new(
        "FSDP2Trainer",
        &[
            "forgather.ml.trainer.fsdp2:FSDP2Trainer",
            "forgather.ml.trainer.fsdp2.fsdp2_trainer:FSDP2Trainer",
        ],
        Role::Run,
        "Trains with weights, gradients and optimizer state spread over devices.",
        TRAINER,
    )
    .refused(WAY_TO_ONE_DEVICE),
    Component::new(
        "PipelineTrainer",
        &[
            "forgather.ml.trainer.pipeline:PipelineTrainer",
            "forgather.ml.trainer.pipeline.pipeline_trainer:PipelineTrainer",
        ],
        Role::Run,
        "Trains with the layers spread over devices.",
        TRAINER,
    )
    .refused(WAY_TO_ONE_DEVICE),
    TRAINING_ARGUMENTS,
    Component::new(
        "AutoModelForCausalLM.from_pretrained",
        &[
            "transformers:AutoModelForCausalLM.from_pretrained",
            "forgather.ml.construct:from_pretrained_model",
            "from_pretrained_model",
        ],
        Role::Model,
        "A pre-trained model of the Llama or Mistral family, read from a Hugging Face folder, a checkpoint of fathom or a \
         .gguf file. No code of the model's folder is run.",
        FROM_PRETRAINED,
    ),
    Component::new(
        "AutoModelForCausalLM.from_config",
        &["transformers:AutoModelForCausalLM.from_config"],
        Role::Model,
        "A model of the Llama or Mistral family with random weights.",
        FROM_CONFIG,
    ),
    Component::new(
        "AutoTokenizer.from_pretrained",
        &[
            "transformers:AutoTokenizer.from_pretrained",
            "transformers:PreTrainedTokenizerFast.from_pretrained",
        ],
        Role::Model,
        "The tokenizer of a model's folder, a tokenizer.json or a .gguf file.",
        &[
            optional(
                "pretrained_model_name_or_path",
                Path,
                "null",
                "where it is; null: the model's own",
            ),
            optional("use_fast", Bool, "True", "the fast implementation")
                .reported("there is one, and it is fast"),
            optional("trust_remote_code", Bool, "False", "run the tokenizer's own code")
                .reported("no tokenizer's code is run"),
            optional("model_max_length", Int, "null", "the longest sequence")
                .refused("lift the limit with the model's max_position_embeddings"),
            optional("padding_side", Text, "right", "where padding goes")
                .reported("nothing is padded"),
        ],
    ),
    Component::new(
        "ByteTokenizer",
        &[],
        Role::Model,
        "256 bytes, BOS and EOS: for small models that are trained from nothing.",
        &[],
    ),
    callback(
        "JsonLogger",
        &["forgather.ml.trainer.callbacks:JsonLogger"],
        "Writes metrics as JSON: every run has `events.jsonl`, one JSON object a line.",
    ),
    callback(
        "ProgressCallback",
        &["forgather.ml.trainer.callbacks:ProgressCallback"],
        "Shows progress: `fathom train` does.",
    ),
    callback(
        "InfoCallback",
        &["forgather.ml.trainer.callbacks:InfoCallback"],
        "Tells what is trained: the run's folder holds `config.yaml`, and its log the facts.",
    ),
    callback(
        "PeakMemory",
        &["forgather.ml.trainer.callbacks:PeakMemory"],
        "Records peak memory: every step does.",
    ),
    callback(
        "TrainerControlCallback",
        &[
            "forgather.ml.trainer.callbacks:TrainerControlCallback",
            "forgather.ml.trainer.callbacks:ControlCallback",
        ],
        "Lets a run be saved and stopped from outside: every run acts on the command files of its `control/` folder.",
    ),
    callback(
        "TBLogger",
        &["forgather.ml.trainer.callbacks:TBLogger"],
        "Writes metrics for TensorBoard.",
    )
    .reported("metrics go into the run's log and into the store"),
    callback(
        "DivergenceDetector",
        &[
            "forgather.ml.trainer.callbacks:DivergenceDetector",
            "forgather.ml.trainer.callbacks:DualTimeScaleDivergenceDetector",
        ],
        "Ends a run whose loss leaves all bounds.",
    )
    .reported("every run ends as diverged by `train.max_loss_ratio`"),
    callback(
        "TextgenCallback",
        &["forgather.ml.trainer.callbacks:TextgenCallback"],
        "Continues prompts while training.",
    )
    .reported("no samples are taken while training"),
];
