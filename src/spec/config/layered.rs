//! How the step is carried out: which engine, and what the settings of the layered one need of each other.
//!
//! None of these keys has a value in the complete form when it was not written: what is chosen for it depends on the
//! device, and is a fact of the run. So a configuration that does not name them keeps its hash.

use super::{Dtype, RunConfig, TrainSection};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What drives the forward and backward. When it is not written it is decided with the run's device, in `spec::plan`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Ordinary autograd over the whole model.
    #[default]
    Plain,
    /// Layer by layer, by hand: only the layers' inputs outlive the forward, and a weight can be stepped as soon as its
    /// gradient is there.
    Layered,
}

/// Over which gradients the norm is taken that `train.max_grad_norm` bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GradClipping {
    /// All of them, which have to be there together: a float32 gradient of every weight.
    #[default]
    Global,
    /// All of them, without keeping them: one backward takes the norm, a second one steps. Three quarters more arithmetic.
    GlobalTwoPass,
    /// Those of one sublayer (attention, MLP, embedding, head), each clipped by itself as it comes: free, and another rule.
    PerSublayer,
}

impl GradClipping {
    pub fn name(self) -> &'static str {
        match self {
            GradClipping::Global => "global",
            GradClipping::GlobalTwoPass => "global_two_pass",
            GradClipping::PerSublayer => "per_sublayer",
        }
    }
}

/// What of a layer's forward is done again in its backward; what is not was kept since the forward, beside the layer's input.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// All of it.
    #[default]
    Layer,
    /// All but the attention: the heads' outputs are kept, as large as the input.
    Projections,
    /// The MLP: queries, keys and values are kept too, three times as large where no heads are shared.
    Mlp,
    /// Norms and the output projection: the MLP's two projections are kept too, on the device even where the rest is not.
    Norms,
}

impl Recompute {
    pub const ALL: [Recompute; 4] =
        [Recompute::Layer, Recompute::Projections, Recompute::Mlp, Recompute::Norms];

    pub fn name(self) -> &'static str {
        match self {
            Recompute::Layer => "layer",
            Recompute::Projections => "projections",
            Recompute::Mlp => "mlp",
            Recompute::Norms => "norms",
        }
    }

    /// Whether the heads' outputs are kept.
    pub fn keeps_outputs(self) -> bool {
        self >= Recompute::Projections
    }

    /// Whether queries, keys and values are kept.
    pub fn keeps_heads(self) -> bool {
        self >= Recompute::Mlp
    }
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Engine::Plain => "plain",
            Engine::Layered => "layered",
        }
    }
}

impl TrainSection {
    /// The engine that is written, or that a written setting is of; else the plain one. A run has it written: `spec::plan` says
    /// which.
    pub fn engine(&self) -> Engine {
        self.engine.unwrap_or(match self.of_layered() {
            Some(_) => Engine::Layered,
            None => Engine::Plain,
        })
    }

    /// A setting that is written and that only the layered engine has.
    fn of_layered(&self) -> Option<&'static str> {
        let written = [
            ("train.attention_head_groups", self.attention_head_groups.is_some()),
            ("train.mlp_tile_tokens", self.mlp_tile_tokens.is_some()),
            ("train.checkpoint_every_layers", self.checkpoint_every_layers.is_some()),
            ("train.recompute_num_layers", self.recompute_num_layers.is_some()),
            ("train.activation_offloading", self.activation_offloading == Some(true)),
            ("train.attention_offloading", self.attention_offloading == Some(true)),
            ("train.optimizer_in_backward", self.optimizer_in_backward == Some(true)),
            ("train.weight_streaming", self.weight_streaming == Some(true)),
            ("train.recompute", self.recompute.is_some()),
            ("train.grad_clipping", self.grad_clipping() != GradClipping::Global),
        ];
        written.iter().find(|(_, written)| *written).map(|(key, _)| *key)
    }

    /// How gradients are clipped, where `max_grad_norm` bounds them.
    pub fn grad_clipping(&self) -> GradClipping {
        self.grad_clipping.unwrap_or_default()
    }

    /// Whether weights are stepped inside the backward. When it is not written: where nothing needs all gradients at once.
    pub fn optimizer_in_backward(&self) -> bool {
        self.optimizer_in_backward.unwrap_or_else(|| {
            let needs_all =
                self.max_grad_norm.is_some() && self.grad_clipping() == GradClipping::Global;
            self.engine() == Engine::Layered && self.gradient_accumulation_steps == 1 && !needs_all
        })
    }

    /// Whether bfloat16 weights are rounded up or down at random. When it is not written: on the layered engine.
    pub fn stochastic_rounding(&self) -> bool {
        let half = self.weights_dtype == Dtype::Bfloat16;
        self.stochastic_rounding.unwrap_or(half && self.engine() == Engine::Layered)
    }
}

impl RunConfig {
    /// Checks what the settings of the engines need of each other. An error names its key.
    pub(super) fn check_engine(&self) -> Result<(), (&'static str, String)> {
        let train = &self.train;
        let sizes = [
            ("train.attention_head_groups", train.attention_head_groups),
            ("train.mlp_tile_tokens", train.mlp_tile_tokens),
            ("train.checkpoint_every_layers", train.checkpoint_every_layers),
            ("train.recompute_num_layers", train.recompute_num_layers),
            ("run.probe_layers", self.run.probe_layers),
        ];
        if let Some((key, _)) = sizes.iter().find(|(_, size)| *size == Some(0)) {
            return Err((key, "expected 1 or more, found `0`".into()));
        }
        if train.stochastic_rounding == Some(true) && train.weights_dtype != Dtype::Bfloat16 {
            let message = "expected `train.weights_dtype: bfloat16` for it, found `float32`\n  help: set \
                           train.stochastic_rounding: null";
            return Err(("train.stochastic_rounding", message.into()));
        }
        match train.engine() {
            Engine::Plain => self.check_plain(),
            Engine::Layered => self.check_layered(),
        }
    }

    fn check_plain(&self) -> Result<(), (&'static str, String)> {
        let probe = self.run.probe_layers.map(|_| "run.probe_layers");
        match self.train.of_layered().or(probe) {
            Some(key) => {
                Err((key, "expected `train.engine: layered` for it, found `plain`".into()))
            }
            None => Ok(()),
        }
    }

    fn check_layered(&self) -> Result<(), (&'static str, String)> {
        let train = &self.train;
        if train.activation_checkpointing {
            let chosen = match (train.engine, train.of_layered()) {
                (None, Some(key)) => format!("`{key}`, which chooses `layered`"),
                _ => "`layered`".into(),
            };
            let message = format!(
                "expected `train.engine: plain` for it, found {chosen}, which recomputes every layer anyway"
            );
            return Err(("train.activation_checkpointing", message));
        }
        if train.recompute_num_layers.is_some() && train.recompute != Some(Recompute::Mlp) {
            let found = train.recompute.map_or("none", Recompute::name);
            let message = format!(
                "expected `train.recompute: mlp` for it, of which it says in how many layers, found `{found}`"
            );
            return Err(("train.recompute_num_layers", message));
        }
        let in_backward = train.optimizer_in_backward();
        if in_backward && train.gradient_accumulation_steps > 1 {
            let message = "expected `train.gradient_accumulation_steps: 1` for it: a weight is stepped once a step";
            return Err(("train.optimizer_in_backward", message.into()));
        }
        let clips = train.max_grad_norm.is_some();
        let twice = clips && train.grad_clipping() == GradClipping::GlobalTwoPass;
        if let Some(recompute) = train.recompute.filter(|recompute| recompute.keeps_outputs()) {
            let thinned = train.checkpoint_every_layers.is_some_and(|every| every > 1);
            let found = match () {
                () if thinned => "`train.checkpoint_every_layers` above 1",
                () if twice => "`train.grad_clipping: global_two_pass`",
                () if train.attention_offloading == Some(true) => {
                    "`train.attention_offloading: true`"
                }
                () => "",
            };
            if !found.is_empty() {
                let message = format!(
                    "expected `layer` (or another setting than the one found), found `{}` with {found}",
                    recompute.name()
                );
                return Err(("train.recompute", message));
            }
        }
        match train.grad_clipping() {
            GradClipping::Global if clips && in_backward => Err((
                "train.optimizer_in_backward",
                "expected no clipping that needs all gradients at once, found `train.grad_clipping: global`\n  help: set \
                 train.grad_clipping: per_sublayer (free) or global_two_pass, or train.max_grad_norm: null"
                    .into(),
            )),
            GradClipping::GlobalTwoPass if clips && !in_backward => Err((
                "train.grad_clipping",
                "expected `train.optimizer_in_backward: true` for two passes\n  help: set train.grad_clipping: global"
                    .into(),
            )),
            _ if self.run.probe_layers.is_some() && !in_backward => Err((
                "run.probe_layers",
                "expected `train.optimizer_in_backward: true` for it: gradients that are kept would be those of its layers alone"
                    .into(),
            )),
            _ if train.weight_streaming == Some(true) && !in_backward => Err((
                "train.weight_streaming",
                "expected `train.optimizer_in_backward: true` for it: gradients of all weights would not leave the device\n  \
                 help: set train.grad_clipping: per_sublayer or global_two_pass, or train.max_grad_norm: null, with \
                 train.gradient_accumulation_steps: 1"
                    .into(),
            )),
            _ => Ok(()),
        }
    }
}
