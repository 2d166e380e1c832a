//! Optimizers, learning-rate schedules and losses.

use crate::components::Kind::{Any, Bool, Float, Int, List, Text};
use crate::components::{Argument, Component, Others, Role, optional, required};

const fn lr(default: &'static str) -> Argument {
    optional("lr", Float, default, "the learning rate that the schedule starts from")
}

const fn decay(default: &'static str) -> Argument {
    optional("weight_decay", Float, default, "decoupled weight decay, of every weight")
}

const LEAVE_OUT: &str = "leave it at its default: it is another algorithm";
const FASTER: &str = "there is one implementation; it computes the same";
const ROUNDS: &str = "keep weights of torch_dtype bfloat16 in it, rounded up or down at random; False keeps them in float32";

const BETAS: Argument =
    optional("betas", List, "[0.9, 0.999]", "decays of the first and second moment");
const EPS: Argument = optional("eps", Float, "1e-8", "added to the root of the second moment");

const ADAMW: &[Argument] = &[
    optional("params", Any, "null", "the weights: the trainer gives them"),
    lr("1e-3"),
    BETAS,
    EPS,
    decay("1e-2"),
    optional("amsgrad", Bool, "False", "use the largest second moment so far").refused(LEAVE_OUT),
    optional("maximize", Bool, "False", "climb instead of descend").refused(LEAVE_OUT),
    optional("foreach", Any, "null", "many weights in one kernel").reported(FASTER),
    optional("fused", Any, "null", "one kernel for a step").reported(FASTER),
    optional("capturable", Bool, "False", "can be part of a CUDA graph").reported(FASTER),
    optional("differentiable", Bool, "False", "can be differentiated through").refused(LEAVE_OUT),
    optional("torch_compile", Bool, "False", "compile the step").reported(FASTER),
    optional("bf16_stochastic_round", Bool, "False", ROUNDS),
];

/// Of the variant whose state takes 4 bits.
const ADAMW_4BIT: &[Argument] = &[
    optional("params", Any, "null", "the weights: the trainer gives them"),
    lr("1e-3"),
    BETAS,
    EPS,
    decay("1e-2"),
    optional("amsgrad", Bool, "False", "use the largest second moment so far").refused(LEAVE_OUT),
    optional("block_size", Int, "null", "numbers that share a scale").reported(STATE_IN_FULL),
    optional("bf16_stochastic_round", Bool, "False", ROUNDS),
    optional("stochastic_rounding", Bool, "False", ROUNDS),
];

/// Of both libraries' variants whose state takes 8 bits. torchao's leaves that of weights whose elements are no multiple of
/// 256 as it is; here, as in bitsandbytes, the last block is short.
const ADAMW_8BIT: &[Argument] = &[
    optional("params", Any, "null", "the weights: the trainer gives them"),
    lr("1e-3"),
    BETAS,
    EPS,
    decay("1e-2"),
    optional("amsgrad", Bool, "False", "use the largest second moment so far").refused(LEAVE_OUT),
    optional("block_size", Int, "256", "numbers that share a scale").refused("leave it at 256"),
    optional("min_8bit_size", Int, "4096", "weights with fewer elements have state in float32")
        .refused("leave it at 4096"),
    optional("is_paged", Bool, "False", "let the driver page the state out to host memory")
        .reported("set train.weight_streaming: true on the layered engine to keep it there"),
    optional("bf16_stochastic_round", Bool, "False", ROUNDS),
    optional("stochastic_rounding", Bool, "False", ROUNDS),
];

const STATE_IN_FULL: &str = "its state is kept in float32, 8 bytes a weight";

pub const COMPONENTS: &[Component] = &[
    Component::new(
        "AdamW",
        &["torch.optim:AdamW", "torch:optim.AdamW", "forgather.ml.optim.adamw:AdamW", "forgather.ml.optim:AdamW"],
        Role::Optimizer,
        "Adam with decoupled weight decay; state in float32.",
        ADAMW,
    ),
    Component::new(
        "AdamW4bit",
        &["torchao.optim:AdamW4bit"],
        Role::Optimizer,
        "AdamW whose state takes 4 bits a number.",
        ADAMW_4BIT,
    )
    .reported(STATE_IN_FULL),
    Component::new(
        "AdamW8bit",
        &["torchao.optim:AdamW8bit", "bitsandbytes.optim:AdamW8bit"],
        Role::Optimizer,
        "AdamW whose state takes 8 bits a number, of weights with 4096 elements or more. In a RunConfig: `adamw` with \
         `state_dtype: int8`.",
        ADAMW_8BIT,
    ),
    Component::new(
        "Adafactor",
        &["forgather.ml.optim.adafactor:Adafactor", "forgather.ml.optim:Adafactor"],
        Role::Optimizer,
        "Adafactor as the tutorial has it: second moments of a matrix as row and column sums, an absolute step size. In a \
         RunConfig: `adafactor_sum`.",
        &[
            optional("params", Any, "null", "the weights: the trainer gives them"),
            lr("1e-3"),
            optional("decay_rate", Float, "-0.8", "the exponent of the second moment's decay"),
            optional("clip_threshold", Float, "1.0", "updates are scaled down to this root mean square"),
            optional("betas", List, "[0.9, 0.999]", "the first is not used; the second is the most that the second moment's \
                     decay grows to")
                .refused("leave it at [0.9, 0.999]"),
            optional("eps", List, "[1e-30, 1e-3]", "the first is added to squared gradients, the second belongs to \
                     relative_step"),
            decay("0.01"),
            optional("relative_step", Bool, "False", "a step size relative to the weights' own scale")
                .refused("use torch.optim:Adafactor, whose steps are relative"),
            optional("torch_compile", Bool, "True", "compile the step").reported(FASTER),
            optional("bf16_stochastic_round", Bool, "True", ROUNDS),
        ],
    ),
    Component::new(
        "TorchAdafactor",
        &["torch.optim:Adafactor", "torch:optim.Adafactor"],
        Role::Optimizer,
        "Adafactor as torch.optim has it: row and column means, steps relative to the weights' own scale. In a RunConfig: \
         `adafactor`.",
        &[
            optional("params", Any, "null", "the weights: the trainer gives them"),
            lr("1e-2"),
            optional("beta2_decay", Float, "-0.8", "the exponent of the second moment's decay"),
            optional("eps", List, "[null, 1e-3]", "the least second moment, and the least scale of the weights"),
            optional("d", Float, "1.0", "updates are scaled down to this root mean square"),
            decay("0.0"),
            optional("foreach", Any, "null", "many weights in one kernel").reported(FASTER),
            optional("maximize", Bool, "False", "climb instead of descend").refused(LEAVE_OUT),
        ],
    ),
    Component::new(
        "SGD",
        &["torch.optim:SGD", "torch:optim.SGD", "forgather.ml.optim.sgd:SGD", "forgather.ml.optim:SGD"],
        Role::Optimizer,
        "Stochastic gradient descent.",
        &[
            optional("params", Any, "null", "the weights: the trainer gives them"),
            lr("1e-3"),
            optional("momentum", Float, "0", "the decay of the running sum of gradients"),
            optional("dampening", Float, "0", "how much of the new gradient is left out of it").refused(LEAVE_OUT),
            decay("0"),
            optional("nesterov", Bool, "False", "Nesterov's momentum").refused(LEAVE_OUT),
            optional("maximize", Bool, "False", "climb instead of descend").refused(LEAVE_OUT),
            optional("foreach", Any, "null", "many weights in one kernel").reported(FASTER),
            optional("fused", Any, "null", "one kernel for a step").reported(FASTER),
        ],
    ),
    Component::new(
        "WSDScheduler",
        &["forgather.ml.optim:WSDScheduler", "forgather.ml.optim.wsd_scheduler:WSDScheduler"],
        Role::Schedule,
        "Warm-up, stable, decay: a linear rise, then a constant rate, then down to min_lr with `1 / (t / min_lr + (1 - t) / \
         lr)`. The end of the run may cut the decay off.",
        &[
            optional("optimizer", Any, "null", "the optimizer: the trainer gives it"),
            optional("warmup_steps", Int, "0", "steps of the rise; the first has rate 0"),
            optional("decay_steps", Int, "0", "steps of the decay"),
            optional("min_lr", Float, "0.0", "the rate that the decay ends at; above 0"),
            optional("decay_start_step", Int, "-1", "the step that the decay begins at; -1: it never does"),
            optional("start_decay", Bool, "False", "begin the decay at the step that a run is resumed at"),
        ],
    ),
    Component::new(
        "CosineLRScheduler",
        &[
            "forgather.ml.optim:CosineLRScheduler",
            "forgather.ml.optim.cosine_lr_scheduler:CosineLRScheduler",
        ],
        Role::Schedule,
        "A linear rise, then half a cosine down to min_lr. The end of the run may cut it off.",
        &[
            optional("optimizer", Any, "null", "the optimizer: the trainer gives it"),
            optional("warmup_steps", Int, "0", "steps of the rise; the first has rate 0"),
            required("total_steps", Int, "the step that min_lr is reached at"),
            optional("min_lr", Float, "0.0", "the last rate"),
        ],
    ),
    Component::new(
        "get_cosine_schedule_with_warmup",
        &["transformers:get_cosine_schedule_with_warmup"],
        Role::Schedule,
        "A linear rise, then half a cosine down to 0.",
        &[
            optional("optimizer", Any, "null", "the optimizer: the trainer gives it"),
            required("num_warmup_steps", Int, "steps of the rise; the first has rate 0"),
            required("num_training_steps", Int, "the step that 0 is reached at"),
            optional("num_cycles", Float, "0.5", "waves").refused("leave it at 0.5: once down"),
        ],
    ),
    Component::new(
        "get_constant_schedule_with_warmup",
        &["transformers:get_constant_schedule_with_warmup"],
        Role::Schedule,
        "A linear rise, then a constant rate.",
        &[
            optional("optimizer", Any, "null", "the optimizer: the trainer gives it"),
            required("num_warmup_steps", Int, "steps of the rise; the first has rate 0"),
        ],
    ),
    Component::new(
        "get_constant_schedule",
        &["transformers:get_constant_schedule"],
        Role::Schedule,
        "A constant rate.",
        &[optional("optimizer", Any, "null", "the optimizer: the trainer gives it")],
    ),
    Component::new(
        "InfiniteLRScheduler",
        &[
            "forgather.ml.optim:InfiniteLRScheduler",
            "forgather.ml.optim.infinite_lr_scheduler:InfiniteLRScheduler",
        ],
        Role::Schedule,
        "Warm-up, cosine down to a rate that is held, and an exponential decay from a checkpoint on.",
        &[],
    )
    .others(Others::Any("its settings"))
    .refused("use WSDScheduler: it holds a rate, and decays when it is told to"),
    Component::new(
        "LinearCrossEntropyLoss",
        &["forgather.ml.loss:LinearCrossEntropyLoss"],
        Role::Loss,
        "The head and the cross-entropy in one, a tile of positions at a time: the logits of a whole sequence never exist. \
         Every run has it.",
        &[
            optional("impl", Text, "auto", "the kernel").reported(TILED),
            optional("chunk_size", Int, "4096", "vocabulary entries in one piece").reported(TILED),
        ],
    ),
    Component::new(
        "CausalLoss",
        &["forgather.ml.loss:CausalLoss"],
        Role::Loss,
        "Cross-entropy of the next token, from whole logits.",
        &[],
    )
    .reported("the loss has the same value, and its logits exist a tile of positions at a time"),
];

const TILED: &str = "the loss is computed in tiles of `train.loss_tile_tokens` positions, exactly";
