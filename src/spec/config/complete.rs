//! What types can't say of a configuration: checks, and values that depend on other keys. An error names its key.

use super::{
    Optimizer, OptimizerType, RunConfig, Schedule, ScheduleType, Weights, data, default_split,
    nearest,
};
use crate::units::Tokens;

/// The most tokens of one optimizer step, which are all in memory at once: 8 bytes each.
const MAX_STEP_TOKENS: usize = 1 << 30;

/// The most threads that a run may ask for: no machine has more cores, and each costs memory and a place in the kernel's table.
const MAX_THREADS: usize = 1024;

impl RunConfig {
    /// Checks what types can't say, and fills in what depends on other keys. An error names its key.
    pub(super) fn complete(&mut self) -> Result<(), (&'static str, String)> {
        let at_least_one = [
            ("train.sequence_length", self.train.sequence_length),
            ("train.micro_batch_size", self.train.micro_batch_size),
            ("train.gradient_accumulation_steps", self.train.gradient_accumulation_steps),
            ("train.loss_tile_tokens", self.train.loss_tile_tokens),
            ("train.keep_checkpoints", self.train.keep_checkpoints),
            ("eval.max_windows", self.eval.max_windows),
            ("train.max_steps", self.train.max_steps.map_or(1, |steps| steps as usize)),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err((key, "expected 1 or more, found `0`".into()));
        }
        let step = [
            self.train.sequence_length,
            self.train.micro_batch_size,
            self.train.gradient_accumulation_steps,
        ];
        if step
            .iter()
            .try_fold(1, |tokens: usize, n| tokens.checked_mul(*n))
            .is_none_or(|n| n > MAX_STEP_TOKENS)
        {
            let [length, batch, accumulated] = step;
            return Err((
                "train",
                format!(
                    "expected at most {MAX_STEP_TOKENS} tokens in a step, found sequence_length {length} times micro_batch_size {batch} \
                 times gradient_accumulation_steps {accumulated}"
                ),
            ));
        }
        if self.train.sequence_length < 2 {
            let message = "expected 2 or more (a prediction needs a token to see), found `1`";
            return Err(("train.sequence_length", message.into()));
        }
        if !(self.train.learning_rate.is_finite() && self.train.learning_rate >= 0.0) {
            let found = self.train.learning_rate;
            return Err(("train.learning_rate", format!("expected 0 or more, found `{found}`")));
        }
        self.data.complete(self.train.sequence_length)?;
        if self.train.max_grad_norm.is_some_and(|norm| !(norm > 0.0 && norm.is_finite())) {
            return Err(("train.max_grad_norm", "expected more than 0, or `null`".into()));
        }
        let ratio = self.train.max_loss_ratio;
        if !(ratio > 1.0 && ratio.is_finite()) {
            let message = format!("expected a number, more than 1, found `{ratio}`");
            return Err(("train.max_loss_ratio", message));
        }
        if let Some(found) = self.run.threads.filter(|count| !(1..=MAX_THREADS).contains(count)) {
            return Err(("run.threads", format!("expected 1 to {MAX_THREADS}, found `{found}`")));
        }
        match (&self.model.path, &self.model.config) {
            (None, None) => {
                let message = "expected `path` (a folder or a .gguf file) or `config` (a shape), found neither";
                return Err(("model", message.into()));
            }
            (Some(_), Some(_)) => {
                return Err(("model", "expected `path` or `config`, found both".into()));
            }
            (None, Some(config)) => {
                config.check().map_err(|message| ("model.config", message))?;
                // Without a file of weights there is only one way to have some.
                self.model.weights = Weights::Random;
                if self.tokenizer.path.is_none() {
                    let message =
                        "expected a tokenizer (a path, or `bytes`) for a model without a folder";
                    return Err(("tokenizer", message.into()));
                }
            }
            (Some(_), None) => {}
        }
        if let Some(rope) = &self.model.rope_parameters {
            rope.check().map_err(|message| ("model.rope_parameters", message))?;
        }
        if self.train.total_tokens.0 == 0 {
            let Some(steps) = self.train.max_steps else {
                let message = "expected the key `total_tokens` or `max_steps`, found neither";
                return Err(("train", message.into()));
            };
            self.train.total_tokens = Tokens(steps.saturating_mul(self.tokens_per_step()));
        }
        let planned = self.planned_steps();
        self.train
            .schedule
            .complete(self.train.total_tokens, planned)
            .map_err(|m| ("train.schedule", m))?;
        self.train.optimizer.complete().map_err(|m| ("train.optimizer", m))?;
        self.check_engine()?;
        self.eval.context_lengths.sort_unstable();
        self.eval.context_lengths.dedup();
        if self.eval.context_lengths.first().is_some_and(|&length| length < 2) {
            return Err(("eval.context_lengths", "expected lengths of 2 or more".into()));
        }
        self.check_split()
    }

    /// Refuses a split that is evaluated, or was named, and is not there. The default may be without documents.
    fn check_split(&self) -> Result<(), (&'static str, String)> {
        let split = &self.eval.split;
        let known = || self.data.splits.keys().map(String::as_str).chain([data::TRAIN]);
        let is_named = *split != default_split();
        if known().any(|name| name == split) || !(is_named || self.evaluates()) {
            return Ok(());
        }
        let near = nearest(split, known()).map(|near| format!("did you mean `{near}`? "));
        let mut names: Vec<&str> = known().collect();
        names.sort_unstable();
        names.dedup();
        let message = format!(
            "expected a split of data.splits, found `{split}`\n  help: {}known here: {}",
            near.unwrap_or_default(),
            names.join(", ")
        );
        Err(("eval.split", message))
    }
}

impl Schedule {
    fn complete(&mut self, total: Tokens, planned_steps: u64) -> Result<(), String> {
        use ScheduleType::{Constant, Cosine, Wsd};
        let foreign = [
            ("min_learning_rate_ratio", self.min_learning_rate_ratio.is_some(), &[Cosine, Wsd][..]),
            ("decay_tokens", self.decay_tokens.is_some(), &[Wsd][..]),
            ("decay_steps", self.decay_steps.is_some(), &[Cosine, Wsd][..]),
            ("decay_start_step", self.decay_start_step.is_some(), &[Wsd][..]),
        ];
        for (option, given, kinds) in foreign {
            if given && !kinds.contains(&self.kind) {
                let kinds = if kinds.len() == 1 { "`wsd`" } else { "`cosine` and `wsd`" };
                return Err(format!("`{option}` belongs to {kinds}"));
            }
        }
        if self.kind != Constant {
            let ratio = *self.min_learning_rate_ratio.get_or_insert(0.1);
            let least = if self.kind == Wsd { f64::MIN_POSITIVE } else { 0.0 };
            if !(least..=1.0).contains(&ratio) {
                return Err(format!(
                    "min_learning_rate_ratio: expected more than 0, at most 1, found `{ratio}`"
                ));
            }
        }
        match self.in_steps() {
            true => self.complete_in_steps(planned_steps),
            false => self.complete_in_tokens(total),
        }
    }

    fn complete_in_tokens(&mut self, total: Tokens) -> Result<(), String> {
        if self.warmup_tokens.0 > total.0 {
            return Err(format!(
                "expected warmup_tokens ({}) to fit into total_tokens ({total})",
                self.warmup_tokens
            ));
        }
        if self.kind == ScheduleType::Wsd {
            let decay = self.decay_tokens.get_or_insert(Tokens(total.0 / 10)).0;
            if self.warmup_tokens.0.saturating_add(decay) > total.0 {
                return Err(format!(
                    "expected warmup_tokens ({}) and decay_tokens ({}) to fit into total_tokens ({total})",
                    self.warmup_tokens,
                    Tokens(decay)
                ));
            }
        }
        Ok(())
    }

    fn complete_in_steps(&mut self, planned_steps: u64) -> Result<(), String> {
        let tokens = [
            ("warmup_tokens", self.warmup_tokens.0 > 0),
            ("decay_tokens", self.decay_tokens.is_some()),
        ];
        if let Some((option, _)) = tokens.iter().find(|(_, given)| *given) {
            return Err(format!(
                "expected lengths in tokens or in steps, found both (`{option}` is in tokens)"
            ));
        }
        let warmup = *self.warmup_steps.get_or_insert(0);
        match self.kind {
            ScheduleType::Constant => return Ok(()),
            ScheduleType::Cosine => {
                self.decay_steps.get_or_insert(planned_steps.saturating_sub(warmup).max(1));
            }
            ScheduleType::Wsd => {
                let decay = *self.decay_steps.get_or_insert((planned_steps / 10).max(1));
                let ends_with_run = planned_steps.saturating_sub(decay).max(warmup);
                let start = *self.decay_start_step.get_or_insert(ends_with_run);
                if start < warmup {
                    return Err(format!(
                        "expected decay_start_step of at least warmup_steps ({warmup}), found `{start}`"
                    ));
                }
            }
        }
        match self.decay_steps {
            Some(0) => Err("decay_steps: expected 1 or more, found `0`".into()),
            _ => Ok(()),
        }
    }
}

impl Optimizer {
    fn complete(&mut self) -> Result<(), String> {
        use OptimizerType::{Adafactor, AdafactorSum, Adamw, Sgd};
        let kind = self.kind;
        let factored = matches!(kind, Adafactor | AdafactorSum);
        let foreign = [
            ("betas", self.betas.is_some() && kind != Adamw),
            ("eps", self.eps.is_some() && kind == Sgd),
            ("beta2_decay", self.beta2_decay.is_some() && !factored),
            ("clip_threshold", self.clip_threshold.is_some() && !factored),
            ("relative_step_floor", self.relative_step_floor.is_some() && kind != Adafactor),
            ("momentum", self.momentum.is_some() && kind != Sgd),
            ("state_dtype", self.state_dtype.is_some() && kind != Adamw),
        ];
        if let Some((option, _)) = foreign.iter().find(|(_, given)| *given) {
            let name = serde_json::to_value(kind).map_or(String::new(), |v| v.to_string());
            return Err(format!("`{option}` is not an option of {}", name.replace('"', "`")));
        }
        match kind {
            Adamw => {
                self.betas.get_or_insert([0.9, 0.999]);
                self.eps.get_or_insert(1e-8);
            }
            Adafactor | AdafactorSum => {
                if kind == Adafactor {
                    self.eps.get_or_insert(f64::from(f32::EPSILON));
                    self.relative_step_floor.get_or_insert(1e-3);
                }
                self.eps.get_or_insert(1e-30);
                self.beta2_decay.get_or_insert(-0.8);
                self.clip_threshold.get_or_insert(1.0);
            }
            Sgd => {
                self.momentum.get_or_insert(0.0);
            }
        }
        let betas = self.betas.unwrap_or_default();
        if betas.iter().any(|b| !(0.0..1.0).contains(b)) {
            return Err(format!("betas: expected numbers from 0 to below 1, found {betas:?}"));
        }
        // Written so that NaN is none of them.
        let decay = self.beta2_decay.unwrap_or(-1.0);
        let clip = self.clip_threshold.unwrap_or(1.0);
        let momentum = self.momentum.unwrap_or(0.0);
        let eps = self.eps.unwrap_or(0.0);
        let floor = self.relative_step_floor.unwrap_or(0.0);
        for (name, value, holds, expected) in [
            ("weight_decay", self.weight_decay, self.weight_decay >= 0.0, "0 or more"),
            ("eps", eps, eps >= 0.0, "0 or more"),
            ("relative_step_floor", floor, floor >= 0.0, "0 or more"),
            ("beta2_decay", decay, decay < 0.0, "a number below 0"),
            ("clip_threshold", clip, clip > 0.0, "a number above 0"),
            ("momentum", momentum, (0.0..1.0).contains(&momentum), "a number from 0 to below 1"),
        ] {
            if !holds || value.is_infinite() {
                return Err(format!("{name}: expected {expected}, found `{value}`"));
            }
        }
        Ok(())
    }
}
