//! What limits a run first, and which setting moves that.

use super::{Machine, STEP_ELEMENTS, Settings, available_host, memory, settings};
use super::{Memory, Phase};
use crate::config::{
    Engine, GradClipping, ModelConfig, OptimizerType, Recompute, RunConfig, StateDtype,
};
use crate::units::Bytes;

/// What limits a run first.
#[derive(Debug, Clone, PartialEq)]
pub struct Wall {
    pub place: Place,
    pub phase: Phase,
    pub needed: Bytes,
    pub available: Bytes,
    /// The setting that moves it furthest, with what goes with it.
    pub moved_by: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Device,
    Host,
}

/// The tighter of device and host memory, and the setting that moves it.
pub(super) fn wall(
    config: &RunConfig,
    model: &ModelConfig,
    settings: Option<&Settings>,
    memory: &Memory,
    machine: &Machine,
) -> Wall {
    let (mut phase, mut needed) = memory.device_peak_phase();
    let (mut place, mut available) = (Place::Device, machine.device_memory);
    if machine.cuda && filled(Place::Host, memory, machine) > filled(place, memory, machine) {
        (place, phase) = (Place::Host, Phase::Forward);
        (needed, available) = (memory.host, available_host(machine));
    }
    let moved_by = match settings {
        Some(settings) => moves(config, model, settings, machine, place),
        None => moves_plain(config, model, memory, machine),
    };
    Wall { place, phase, needed, available, moved_by }
}

/// How full a place is: more than 1 does not fit.
pub(super) fn filled(place: Place, memory: &Memory, machine: &Machine) -> f64 {
    let (needed, available) = match place {
        Place::Device => (memory.device_peak(), machine.device_memory),
        Place::Host => (memory.host, available_host(machine)),
    };
    needed.0 as f64 / available.0.max(1) as f64
}

/// The setting that takes most off `place`, of those that the configuration allows and that do not fill the other one.
fn moves(
    config: &RunConfig,
    model: &ModelConfig,
    settings: &Settings,
    machine: &Machine,
    place: Place,
) -> String {
    let of = |config: &RunConfig, settings: &Settings| {
        memory::predict(config, model, Some(settings), machine.cuda)
    };
    let now = of(config, settings);
    let other = if place == Place::Device { Place::Host } else { Place::Device };
    let most_of_other = filled(other, &now, machine).max(1.0);
    let mut best = (filled(place, &now, machine), String::new());
    let mut consider = |setting: &str, config: &RunConfig, changed: Settings| {
        let then = of(config, &changed);
        // A percent is not worth a setting.
        if filled(place, &then, machine) < 0.99 * best.0
            && filled(other, &then, machine) <= most_of_other
        {
            best = (filled(place, &then, machine), setting.to_string());
        }
    };
    let now = *settings;
    for (setting, changed) in changes(now, config, model, machine.cuda) {
        consider(&setting, config, changed);
    }
    let optimizer = &config.train.optimizer;
    if optimizer.kind == OptimizerType::Adamw && optimizer.state_dtype() == StateDtype::Float32 {
        let mut in_8_bits = config.clone();
        in_8_bits.train.optimizer.state_dtype = Some(StateDtype::Int8);
        consider("train.optimizer.state_dtype: int8", &in_8_bits, now);
    }
    match best.1.is_empty() {
        true => "train.sequence_length: nothing but a shorter one is left".into(),
        false => best.1,
    }
}

/// What takes most off the plain engine's peak, which is the device's.
fn moves_plain(config: &RunConfig, model: &ModelConfig, now: &Memory, machine: &Machine) -> String {
    let changed = |change: &dyn Fn(&mut RunConfig)| {
        let mut changed = config.clone();
        change(&mut changed);
        changed
    };
    let checkpoints = config.train.activation_checkpointing;
    let layered = changed(&|config| {
        config.train.engine = Some(Engine::Layered);
        config.train.activation_checkpointing = false;
    });
    let settings = settings(&layered, model, machine);
    let layer_by_layer = match checkpoints {
        true => "train.engine: layered (in place of train.activation_checkpointing)",
        false => "train.engine: layered",
    };
    let again = changed(&|config| config.train.activation_checkpointing = true);
    let fewer = changed(&|config| {
        config.train.loss_tile_tokens = (config.train.loss_tile_tokens / 4).max(64);
    });
    let of = |config: &RunConfig, settings: Option<&Settings>| {
        memory::predict(config, model, settings, machine.cuda).device_peak()
    };
    let ways = [
        (layer_by_layer, of(&layered, Some(&settings))),
        ("train.activation_checkpointing: true", of(&again, None)),
        ("train.loss_tile_tokens: fewer", of(&fewer, None)),
    ];
    let best = ways.into_iter().min_by_key(|(_, peak)| *peak);
    // A percent is not worth a setting.
    match best.filter(|(_, peak)| (peak.0 as f64) < 0.99 * now.device_peak().0 as f64) {
        Some((way, _)) => way.into(),
        None => "train.sequence_length: nothing but a shorter one is left".into(),
    }
}

/// Single settings that may be changed, each with what it is called.
fn changes(
    now: Settings,
    config: &RunConfig,
    model: &ModelConfig,
    cuda: bool,
) -> Vec<(String, Settings)> {
    let mut all = vec![
        (
            "train.attention_head_groups: more of them, up to the key-value heads".to_string(),
            Settings { attention_head_groups: model.num_key_value_heads(), ..now },
        ),
        (
            "train.mlp_tile_tokens: fewer".into(),
            Settings { mlp_tile_tokens: (now.mlp_tile_tokens / 4).max(256), ..now },
        ),
        (
            "train.loss_tile_tokens: fewer".into(),
            Settings { loss_tile_tokens: (now.loss_tile_tokens / 4).max(64), ..now },
        ),
    ];
    let again = Settings { recompute: Recompute::Layer, recompute_num_layers: None, ..now };
    if now.recompute != Recompute::Layer {
        all.push(("train.recompute: layer".into(), again));
    }
    if now.recompute_num_layers.is_some() {
        let in_all = Settings { recompute_num_layers: None, ..now };
        all.push(("train.recompute_num_layers: all of them".into(), in_all));
    }
    let twice = config.train.max_grad_norm.is_some()
        && config.train.grad_clipping() == GradClipping::GlobalTwoPass;
    if now.recompute == Recompute::Layer && !twice {
        let layers = model.num_hidden_layers;
        let thinner = (1..).map(|power| now.checkpoint_every_layers << power);
        for every in thinner.take_while(|every| *every <= layers) {
            let setting = format!(
                "train.checkpoint_every_layers: {every}, for up to {every_less_one}/{every} of a forward more in all",
                every_less_one = every - 1
            );
            all.push((setting, Settings { checkpoint_every_layers: every, ..now }));
        }
    }
    if cuda {
        all.push((
            "train.activation_offloading: true".into(),
            Settings { activation_offloading: true, ..now },
        ));
        if !now.recompute.keeps_outputs() {
            let setting = "train.attention_offloading: true".into();
            all.push((setting, Settings { attention_offloading: true, ..now }));
        }
        all.push((
            "train.weight_streaming: false".into(),
            Settings { weight_streaming: false, step_elements: STEP_ELEMENTS[0], ..now },
        ));
    }
    // A weight that is stepped in the backward is stepped once a step, with no clipping that needs all gradients first.
    let beside = match config.train.gradient_accumulation_steps {
        _ if now.optimizer_in_backward => "",
        1 if config.train.max_grad_norm.is_some() => {
            " (with train.grad_clipping: per_sublayer or global_two_pass)"
        }
        1 => " (with train.optimizer_in_backward: true)",
        _ => return all,
    };
    let stepped = Settings { optimizer_in_backward: true, ..now };
    if !now.optimizer_in_backward {
        all.push((format!("train.optimizer_in_backward: true{beside}"), stepped));
    }
    if cuda {
        let streamed =
            Settings { weight_streaming: true, step_elements: STEP_ELEMENTS[1], ..stepped };
        all.push((format!("train.weight_streaming: true{beside}"), streamed));
    }
    all
}
