//! The layered engine against the plain one: the same losses and the same gradients, however the step is carried out.

#[path = "support/close.rs"]
mod close;
#[path = "support/worker.rs"]
mod worker;

use close::check_close;
use fathom_engine::model::{Model, Setup};
use fathom_engine::train::execute::{Engine, Executor, Outcome};
use fathom_engine::train::layered::Layered;
use fathom_engine::train::layered::gradients::Held;
use fathom_engine::train::optimizer::Optimizer;
use fathom_engine::train::step::{Plan, Stream, forward_backward};
use fathom_spec::config::written::Written;
use fathom_spec::config::{
    Attention, Dtype, GradClipping, ModelConfig, Recompute, RunConfig, TrainSection,
};
use fathom_spec::plan::Settings;
use fathom_spec::record::{EventKind, RunPaths};
use tch::{Device, Kind, Tensor};

/// A tiny model; sizes all differ, so that a swapped axis fails.
#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    key_value_heads: usize,
    intermediate_size: usize,
    layers: usize,
    window: Option<usize>,
    tied: bool,
}

const SHAPE: Shape = Shape {
    heads: 6,
    key_value_heads: 3,
    intermediate_size: 28,
    layers: 3,
    window: None,
    tied: false,
};

const WHOLE: Settings = Settings {
    attention_head_groups: 1,
    mlp_tile_tokens: 1024,
    loss_tile_tokens: 2048,
    row_tile_tokens: 8192,
    activation_offloading: false,
    attention_offloading: false,
    checkpoint_every_layers: 1,
    recompute: Recompute::Layer,
    recompute_num_layers: None,
    optimizer_in_backward: false,
    step_elements: 1 << 26,
    weight_streaming: false,
    stochastic_rounding: false,
    grad_clipping: GradClipping::Global,
};

/// Everything uneven, everything in parts.
const UNEVEN: Settings =
    Settings { mlp_tile_tokens: 7, loss_tile_tokens: 5, row_tile_tokens: 6, ..WHOLE };

fn config(shape: Shape) -> ModelConfig {
    let json = serde_json::json!({
        "model_type": "mistral", "vocab_size": 23, "hidden_size": 20, "head_dim": 8,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads, "sliding_window": shape.window,
        "tie_word_embeddings": shape.tied, "initializer_range": 0.3, "max_position_embeddings": 64,
        // A scale on cos and sin, so that the rotation is not its own transpose.
        "rope_parameters": { "rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0, "original_max_position_embeddings": 16 },
    });
    ModelConfig::from_hf_json("tiny", &json.to_string()).unwrap()
}

fn model(shape: Shape, kind: Kind, attention: Attention) -> Model {
    let (device, dtype) = (Device::Cpu, Dtype::Float32);
    let setup = Setup { device, dtype, weights_dtype: dtype, attention };
    let mut model = Model::random(config(shape), 5, setup, None);
    let exact = |weight: &Tensor| weight.to_kind(kind);
    model.embed_tokens = exact(&model.embed_tokens);
    model.layers = model.layers.iter().map(|layer| layer.map(exact)).collect();
    // Norms that are not all ones.
    let ones = exact(&model.norm);
    model.norm = &ones + (Tensor::arange(20, (kind, device)) * 0.7).sin() * 0.3;
    model.lm_head = model.lm_head.as_ref().map(exact);
    model.dtype = kind;
    model
}

fn stream(lengths: &[usize]) -> Stream {
    let ids: Vec<i64> =
        (0..lengths.iter().sum::<usize>() as i64).map(|i| (i * i * 7 + i) % 23).collect();
    let mut labels = Vec::new();
    let mut start = 0;
    for &length in lengths {
        labels.extend_from_slice(&ids[start + 1..start + length]);
        labels.push(-100);
        start += length;
    }
    Stream {
        input_ids: Tensor::from_slice(&ids),
        labels: Tensor::from_slice(&labels),
        lengths: lengths.to_vec(),
    }
}

/// The sum of NLL and every gradient of the plain path.
fn plain(model: &Model, stream: &Stream, scale: f64) -> (f64, Vec<Tensor>) {
    model.set_requires_grad(true);
    let plan = Plan { loss_tile_tokens: 2048, activation_checkpointing: false };
    let nll = forward_backward(model, stream, scale, plan);
    let take = |weight: &Tensor| {
        let gradient = weight.grad().copy();
        drop(weight.grad().zero_());
        gradient
    };
    let gradients = model.parameters().into_iter().map(|(_, weight)| take(weight)).collect();
    model.set_requires_grad(false);
    (nll.double_value(&[]), gradients)
}

/// The same of the layered engine.
fn layered(
    model: &Model,
    attention: Attention,
    stream: &Stream,
    scale: f64,
    plan: Settings,
) -> (f64, Vec<Tensor>) {
    let mut held = Held::default();
    let mut engine = Layered::new(model, attention, plan);
    let nll = engine.forward_backward(stream, scale, &mut held, &mut |_| {});
    (nll.double_value(&[]), taken(held, model))
}

fn taken(held: Held, model: &Model) -> Vec<Tensor> {
    let mut all: Vec<_> = held.sublayers.into_iter().flatten().collect();
    all.sort_by_key(|taken| taken.index);
    let indices: Vec<usize> = all.iter().map(|taken| taken.index).collect();
    assert_eq!(indices, (0..model.parameters().len()).collect::<Vec<_>>(), "each weight has one");
    all.into_iter().map(|taken| taken.gradient).collect()
}

/// Losses and every gradient of both paths in float64.
#[track_caller]
fn check(shape: Shape, lengths: &[usize], attention: Attention, plan: Settings) {
    let model = model(shape, Kind::Double, attention);
    let stream = stream(lengths);
    let (expected_nll, expected) = plain(&model, &stream, 0.25);
    let (nll, found) = layered(&model, attention, &stream, 0.25, plan);
    assert!((nll / expected_nll - 1.0).abs() < 1e-9, "{nll}, expected {expected_nll}");
    for (((name, _), found), expected) in model.parameters().iter().zip(&found).zip(&expected) {
        check_close(&format!("{name}, {lengths:?}, {plan:?}"), found, expected, 1e-9);
    }
}

/// One document, several of one length, and several of several.
const STREAMS: [&[usize]; 3] = [&[37], &[9, 9, 9], &[13, 1, 20, 3]];

#[test]
fn uneven_tiles_and_every_number_of_head_groups_equal_the_plain_path() {
    for (heads, key_value_heads) in [(6, 3), (4, 4), (4, 1)] {
        let shape = Shape { heads, key_value_heads, ..SHAPE };
        for groups in 1..=key_value_heads {
            let plan = Settings { attention_head_groups: groups, ..UNEVEN };
            for lengths in STREAMS {
                check(shape, lengths, Attention::Sdpa, plan);
            }
        }
    }
}

#[test]
fn one_tile_equals_the_plain_path() {
    check(SHAPE, &[37], Attention::Sdpa, WHOLE);
}

#[test]
fn tied_embeddings_equal_the_plain_path() {
    for lengths in STREAMS {
        check(Shape { tied: true, ..SHAPE }, lengths, Attention::Sdpa, UNEVEN);
    }
}

#[test]
fn sliding_windows_equal_the_plain_path() {
    let plan = Settings { attention_head_groups: 2, ..UNEVEN };
    for window in [2, 4, 12, 200] {
        let shape = Shape { window: Some(window), ..SHAPE };
        for lengths in STREAMS {
            check(shape, lengths, Attention::Sdpa, plan);
        }
        // Longer than a tile of queries.
        check(shape, &[300, 11], Attention::Sdpa, plan);
    }
}

#[test]
fn eager_attention_equals_the_plain_path() {
    let plan = Settings { attention_head_groups: 3, ..UNEVEN };
    for window in [None, Some(4)] {
        for lengths in STREAMS {
            check(Shape { window, ..SHAPE }, lengths, Attention::Eager, plan);
        }
    }
}

/// What evaluation reads, in tiles and in place, is what the plain forward gives.
#[test]
fn evaluations_forward_equals_the_plain_one() {
    for window in [None, Some(4)] {
        let shape = Shape { window, ..SHAPE };
        let model = model(shape, Kind::Double, Attention::Sdpa);
        for lengths in STREAMS {
            let ids = stream(lengths).input_ids;
            let expected = model.hidden(&ids, lengths);
            for tile in [1, 7, 4096] {
                let found = model.hidden_in_tiles(&ids, lengths, tile);
                check_close(&format!("{lengths:?}, tiles of {tile}"), &found, &expected, 1e-12);
            }
        }
    }
}

fn bits(x: &Tensor) -> Vec<u8> {
    let x = x.contiguous();
    let mut bytes = vec![0; x.numel() * x.kind().elt_size_in_bytes()];
    x.copy_data_u8(&mut bytes, x.numel());
    bytes
}

/// bfloat16 on the layered engine against float32 on the plain one, with the same weights.
#[test]
fn bfloat16_gradients_are_near_float32() {
    let mut half = model(SHAPE, Kind::BFloat16, Attention::Sdpa);
    half.layers = half.layers.iter().map(|layer| layer.map(|weight| weight * 0.5)).collect();
    let mut exact = model(SHAPE, Kind::Float, Attention::Sdpa);
    let float = |weight: &Tensor| weight.to_kind(Kind::Float);
    exact.embed_tokens = float(&half.embed_tokens);
    exact.layers = half.layers.iter().map(|layer| layer.map(float)).collect();
    exact.norm = float(&half.norm);
    exact.lm_head = half.lm_head.as_ref().map(float);
    for lengths in STREAMS {
        let stream = stream(lengths);
        let (expected_nll, expected) = plain(&exact, &stream, 0.25);
        for groups in 1..=3 {
            let settings = Settings { attention_head_groups: groups, ..UNEVEN };
            let (nll, found) = layered(&half, Attention::Sdpa, &stream, 0.25, settings);
            assert!((nll / expected_nll - 1.0).abs() < 1e-2, "{nll}, expected {expected_nll}");
            for (((name, _), found), expected) in
                half.parameters().iter().zip(&found).zip(&expected)
            {
                assert_eq!(found.kind(), Kind::Float, "{name}");
                let off = f64::try_from((found - expected).norm() / expected.norm()).unwrap();
                assert!(off < 2e-2, "{name}, {lengths:?}, {groups} groups: off by {off:.1e}");
            }
        }
    }
}

/// The same loss and gradients, bit for bit, however inputs and weights are kept.
#[track_caller]
fn check_same_bits(shape: Shape, lengths: &[usize], one: Settings, other: Settings) {
    for kind in [Kind::Float, Kind::BFloat16] {
        let model = model(shape, kind, Attention::Sdpa);
        let stream = stream(lengths);
        let (one_nll, expected) = layered(&model, Attention::Sdpa, &stream, 0.25, one);
        let (other_nll, found) = layered(&model, Attention::Sdpa, &stream, 0.25, other);
        assert_eq!(one_nll, other_nll);
        for (((name, _), found), expected) in model.parameters().iter().zip(&found).zip(&expected) {
            assert_eq!(bits(found), bits(expected), "{name}, {kind:?}, {other:?}");
        }
    }
}

#[test]
fn offloading_gives_the_same_bits() {
    for every in 1..=4 {
        for row_tile_tokens in [6, 12, 8192] {
            let kept = Settings { checkpoint_every_layers: every, row_tile_tokens, ..UNEVEN };
            for attention_head_groups in [1, 2, 3] {
                let kept = Settings { attention_head_groups, ..kept };
                let inputs = Settings { activation_offloading: true, ..kept };
                check_same_bits(SHAPE, &[13, 1, 20, 3], kept, inputs);
                let outputs = Settings { attention_offloading: true, ..inputs };
                check_same_bits(SHAPE, &[13, 1, 20, 3], kept, outputs);
            }
        }
    }
}

#[test]
fn streaming_gives_the_same_bits() {
    for tied in [false, true] {
        for every in 1..=3 {
            let shape = Shape { tied, layers: 5, ..SHAPE };
            let resident = Settings { checkpoint_every_layers: every, ..UNEVEN };
            let streamed = Settings { weight_streaming: true, ..resident };
            check_same_bits(shape, &[13, 1, 20, 3], resident, streamed);
        }
    }
}

/// What was kept since the forward is what would be made again.
#[test]
fn every_extent_of_recompute_gives_the_same_bits() {
    for attention_head_groups in [1, 2, 3] {
        for row_tile_tokens in [6, 8192] {
            let again = Settings { attention_head_groups, row_tile_tokens, ..UNEVEN };
            let in_all = Recompute::ALL.map(|recompute| (recompute, None));
            let in_some = [1, 2, 9].map(|layers| (Recompute::Mlp, Some(layers)));
            for (recompute, recompute_num_layers) in in_all.into_iter().chain(in_some) {
                let kept = Settings { recompute, recompute_num_layers, ..again };
                check_same_bits(SHAPE, &[13, 1, 20, 3], again, kept);
                let offloaded = Settings { activation_offloading: true, ..kept };
                check_same_bits(SHAPE, &[13, 1, 20, 3], again, offloaded);
                let streamed = Settings { weight_streaming: true, ..offloaded };
                check_same_bits(SHAPE, &[13, 1, 20, 3], again, streamed);
            }
        }
    }
}

#[test]
fn thinned_checkpoints_give_the_same_bits() {
    for activation_offloading in [false, true] {
        for every in [2, 3, 4, 9] {
            let all = Settings { activation_offloading, ..UNEVEN };
            let thinned = Settings { checkpoint_every_layers: every, ..all };
            check_same_bits(Shape { layers: 5, ..SHAPE }, &[13, 1, 20, 3], all, thinned);
        }
    }
}

/// One engine over several steps: what it keeps from step to step (tiles, buffers, slots) does not leak into the next.
#[test]
fn an_engine_serves_streams_of_any_length_in_turn() {
    let model = model(Shape { layers: 5, ..SHAPE }, Kind::Float, Attention::Sdpa);
    let settings = Settings {
        attention_head_groups: 2,
        activation_offloading: true,
        attention_offloading: true,
        checkpoint_every_layers: 3,
        weight_streaming: true,
        ..UNEVEN
    };
    let kept = Settings {
        attention_offloading: false,
        checkpoint_every_layers: 1,
        recompute: Recompute::Mlp,
        ..settings
    };
    check_in_turn(&model, settings);
    check_in_turn(&model, kept);
}

/// Steps of several lengths on one engine give what each gives alone.
#[track_caller]
fn check_in_turn(model: &Model, settings: Settings) {
    let mut engine = Layered::new(model, Attention::Sdpa, settings);
    for lengths in [&[37][..], &[9, 9, 9], &[61], &[5], &[37]] {
        let stream = stream(lengths);
        let mut held = Held::default();
        let nll = engine.forward_backward(&stream, 0.25, &mut held, &mut |_| {});
        let in_two = Settings { attention_head_groups: 2, ..UNEVEN };
        let (expected_nll, expected) = layered(model, Attention::Sdpa, &stream, 0.25, in_two);
        assert_eq!(nll.double_value(&[]), expected_nll, "{lengths:?}");
        for (found, expected) in taken(held, model).iter().zip(&expected) {
            assert_eq!(bits(found), bits(expected), "{lengths:?}");
        }
    }
    assert_eq!(engine.kernels(), ["flash_cpu"]);
}

/// A probe works the first layers alone; the others get no gradient.
#[test]
fn a_probe_works_only_its_layers() {
    let model = model(Shape { layers: 5, ..SHAPE }, Kind::Float, Attention::Sdpa);
    let mut engine = Layered::new(&model, Attention::Sdpa, UNEVEN);
    engine.probe(2);
    let mut held = Held::default();
    let nll = engine.forward_backward(&stream(&[37]), 0.25, &mut held, &mut |_| {});
    assert!(nll.double_value(&[]).is_finite());
    let mut indices: Vec<usize> = held.iter().map(|taken| taken.index).collect();
    indices.sort_unstable();
    let expected: Vec<usize> = (0..=18).chain([46, 47]).collect();
    assert_eq!(indices, expected, "embedding, two layers of nine weights, norm and head");
}

const OPTIMIZERS: [&str; 6] = [
    "{type: adamw, weight_decay: 0.1}",
    "{type: adamw, weight_decay: 0.1, state_dtype: int8}",
    "{type: adafactor}",
    "{type: adafactor_sum, weight_decay: 0.1}",
    "{type: sgd, momentum: 0.9}",
    "{type: sgd}",
];

/// The training section of a run on the layered engine, with these lines.
fn train_section(lines: &[&str]) -> TrainSection {
    let mut text =
        "model: {path: m}\ndata: {corpus: c}\ntrain:\n  sequence_length: 8\n  total_tokens: 80\n  \
                    learning_rate: 1\n  engine: layered\n"
            .to_string();
    for line in lines {
        text += &format!("  {line}\n");
    }
    RunConfig::from_written(&Written::parse("run.yaml", &text).unwrap()).unwrap().train
}

/// Three steps by the configuration's optimizer; what came of each, and the weights.
fn three_steps(
    shape: Shape,
    kind: Kind,
    settings: Settings,
    config: &TrainSection,
) -> (Vec<Outcome>, Vec<Tensor>) {
    let model = model(shape, kind, Attention::Sdpa);
    let mut optimizer = Optimizer::new(&config.optimizer, &model.parameters());
    if config.stochastic_rounding() {
        optimizer.round_stochastically(3);
    }
    let engine = Layered::new(&model, Attention::Sdpa, settings);
    let mut executor = Executor::new(Engine::Layered(Box::new(engine)), &model, config);
    let outcomes = STREAMS.map(|lengths| {
        let mut streams = std::iter::once(stream(lengths));
        let tokens = lengths.iter().sum::<usize>() - lengths.len();
        executor.step(&mut streams, tokens, &mut optimizer, 0.01, &mut |_| {}).unwrap()
    });
    let weights = model.parameters().into_iter().map(|(_, weight)| weight.copy()).collect();
    (outcomes.to_vec(), weights)
}

/// Stepped inside the backward or after it, with the norm of each sublayer bounded or nothing, resident or streamed: the same
/// bits.
#[test]
fn optimizer_in_backward_equals_after() {
    for optimizer in OPTIMIZERS {
        for clipping in ["max_grad_norm: null", "max_grad_norm: 0.1\n  grad_clipping: per_sublayer"]
        {
            for (kind, dtype, tied) in
                [(Kind::Float, "float32", true), (Kind::BFloat16, "bfloat16", false)]
            {
                let optimizer = format!("optimizer: {optimizer}");
                let dtype = format!("weights_dtype: {dtype}");
                let with =
                    |in_backward: &str| train_section(&[&optimizer, clipping, &dtype, in_backward]);
                let (inside, after) =
                    (with("optimizer_in_backward: true"), with("optimizer_in_backward: false"));
                // The MLP's weights are large enough for 8-bit state.
                let shape = Shape { tied, intermediate_size: 220, ..SHAPE };
                let (expected_outcomes, expected) = three_steps(shape, kind, UNEVEN, &after);
                for weight_streaming in [false, true] {
                    let settings = Settings { weight_streaming, ..UNEVEN };
                    let (outcomes, found) = three_steps(shape, kind, settings, &inside);
                    let losses =
                        |all: &[Outcome]| all.iter().map(|one| one.loss).collect::<Vec<_>>();
                    assert_eq!(losses(&outcomes), losses(&expected_outcomes), "{optimizer}");
                    for (outcome, expected) in outcomes.iter().zip(&expected_outcomes) {
                        let off = (outcome.grad_norm / expected.grad_norm - 1.0).abs();
                        assert!(off < 1e-5, "{optimizer}, {clipping}: norm off by {off:.1e}");
                    }
                    for (found, expected) in found.iter().zip(&expected) {
                        assert_eq!(
                            bits(found),
                            bits(expected),
                            "{optimizer}, {clipping}, {kind:?}"
                        );
                    }
                }
            }
        }
    }
}

/// Two passes clip by the norm of all gradients, as holding all of them does.
#[test]
fn clipping_in_two_passes_equals_clipping_at_once() {
    for every in [1, 2] {
        for optimizer in ["{type: sgd}", "{type: adamw}"] {
            let optimizer = format!("optimizer: {optimizer}");
            let settings =
                Settings { checkpoint_every_layers: every, activation_offloading: true, ..UNEVEN };
            let once = train_section(&[&optimizer, "max_grad_norm: 0.1"]);
            let twice = train_section(&[
                &optimizer,
                "max_grad_norm: 0.1",
                "grad_clipping: global_two_pass",
            ]);
            assert!(!once.optimizer_in_backward() && twice.optimizer_in_backward());
            let (expected_outcomes, expected) = three_steps(SHAPE, Kind::Float, settings, &once);
            let (outcomes, found) = three_steps(SHAPE, Kind::Float, settings, &twice);
            for (outcome, expected) in outcomes.iter().zip(&expected_outcomes) {
                assert!(expected.grad_norm > 0.1, "there is something to clip");
                assert!((outcome.grad_norm / expected.grad_norm - 1.0).abs() < 1e-5);
                assert!((outcome.loss / expected.loss - 1.0).abs() < 1e-5);
            }
            for (found, expected) in found.iter().zip(&expected) {
                check_close(&optimizer, found, expected, 1e-4);
            }
        }
    }
}

/// A mean of many roundings of one number is the number: 0.3 of the way from 1 to the next bfloat16, and below -1.
#[test]
fn stochastic_rounding_is_unbiased() {
    let config = train_section(&["optimizer: {type: sgd}"]).optimizer;
    let count = 1i64 << 18;
    for (start, step) in [(1.0, 0.3 / 128.0), (-1.0, -0.3 / 128.0), (1.0, -0.2 / 256.0)] {
        let weight = Tensor::full([count], start, (Kind::BFloat16, Device::Cpu));
        let named = [("w".to_string(), &weight)];
        let mut optimizer = Optimizer::new(&config, &named);
        optimizer.round_stochastically(11);
        optimizer.begin_step();
        // One step of -learning_rate * gradient.
        let gradient = Tensor::full([count], -1.0, (Kind::Float, Device::Cpu));
        optimizer.step_parameter(0, &weight, &gradient, step);
        let values = weight.to_kind(Kind::Double);
        let moved = f64::try_from(values.mean(Kind::Double)).unwrap() - start;
        // The mean of 2^18 choices between two neighbours: five standard errors.
        let spacing = 1.0 / 128.0;
        let bound = 5.0 * 0.5 * spacing / (count as f64).sqrt();
        assert!((moved - step).abs() < bound, "{moved} for {step}");
        let distinct =
            values.unique_consecutive(false, false, None).0.unique_dim(0, true, false, false);
        assert_eq!(distinct.0.numel(), 2, "nothing but the two neighbours");
    }
}

/// `1 - 1e-6` is 1 in bfloat16; rounded at random, weights move by what they should on average.
#[test]
fn a_small_learning_rate_moves_bfloat16_weights() {
    let config = train_section(&["optimizer: {type: adamw}"]).optimizer;
    let step = |stochastic: bool| {
        let weight = Tensor::ones([512, 512], (Kind::BFloat16, Device::Cpu));
        let named = [("w".to_string(), &weight)];
        let mut optimizer = Optimizer::new(&config, &named);
        if stochastic {
            optimizer.round_stochastically(7);
        }
        let gradient = Tensor::ones([512, 512], (Kind::Float, Device::Cpu));
        for _ in 0..100 {
            optimizer.begin_step();
            optimizer.step_parameter(0, &weight, &gradient, 1e-6);
        }
        1.0 - f64::try_from(weight.to_kind(Kind::Double).mean(Kind::Double)).unwrap()
    };
    assert_eq!(step(false), 0.0, "to the nearest nothing moves");
    let moved = step(true);
    assert!((moved / 1e-4 - 1.0).abs() < 0.05, "{moved} after 100 steps of 1e-6");
}

/// The same draw for the same seed, weight and step, another for any other.
#[test]
fn rounding_depends_on_seed_weight_and_step_alone() {
    let config = train_section(&["optimizer: {type: sgd}"]).optimizer;
    let rounded = |seed: u64, order: [usize; 2]| {
        let weights = [0, 1].map(|_| Tensor::ones([4096], (Kind::BFloat16, Device::Cpu)));
        let named = [("a".to_string(), &weights[0]), ("b".to_string(), &weights[1])];
        let mut optimizer = Optimizer::new(&config, &named);
        optimizer.round_stochastically(seed);
        optimizer.begin_step();
        let gradient = Tensor::ones([4096], (Kind::Float, Device::Cpu));
        for index in order {
            optimizer.step_parameter(index, &weights[index], &gradient, 1e-3);
        }
        weights.map(|weight| bits(&weight))
    };
    let [a, b] = rounded(1, [0, 1]);
    assert_eq!(rounded(1, [1, 0]), [a.clone(), b.clone()]);
    assert_ne!(a, b);
    assert_ne!(rounded(2, [0, 1])[0], a);
}

/// A matrix in many blocks of rows is stepped as in one.
#[test]
fn steps_in_blocks_equal_steps_at_once() {
    for optimizer in OPTIMIZERS {
        let config = train_section(&[&format!("optimizer: {optimizer}")]).optimizer;
        let stepped = |elements: Option<i64>| {
            let weight =
                (Tensor::arange(70 * 61, (Kind::Float, Device::Cpu)) * 0.9).sin().view([70, 61]);
            let named = [("w".to_string(), &weight)];
            let mut optimizer = Optimizer::new(&config, &named);
            elements.into_iter().for_each(|elements| optimizer.step_in_blocks(elements));
            for t in 1..4 {
                optimizer.begin_step();
                let gradient = (&weight * f64::from(t) * 3.1).cos();
                optimizer.step_parameter(0, &weight, &gradient, 0.01);
            }
            weight
        };
        for elements in [1, 122, 700, 4200] {
            check_close(optimizer, &stepped(Some(elements)), &stepped(None), 1e-6);
        }
    }
}

const LAYERED: [(&str, &str); 3] = [
    ("train.engine", "layered"),
    ("train.grad_clipping", "per_sublayer"),
    ("train.mlp_tile_tokens", "20"),
];

fn weights(paths: &RunPaths) -> Vec<u8> {
    let (_, folder) = paths.latest_checkpoint().expect("a finished run has a checkpoint");
    std::fs::read(folder.join("model.safetensors")).unwrap()
}

/// A run on the layered engine learns what one on the plain engine does.
#[test]
fn a_run_has_the_losses_of_the_plain_engine() {
    let dir = tempfile::tempdir().unwrap();
    for (name, optimizer) in [("adamw", "{type: adamw}"), ("adafactor", "{type: adafactor}")] {
        for accumulate in ["1", "2"] {
            let common = [
                ("train.optimizer", optimizer),
                ("train.total_tokens", "1280"),
                ("train.gradient_accumulation_steps", accumulate),
            ];
            let losses = |engine: &str| {
                let mut settings = common.to_vec();
                settings.push(("train.engine", engine));
                let config = worker::config(dir.path(), &settings);
                let outcome =
                    worker::run(dir.path(), &format!("{name}-{engine}-{accumulate}"), &config);
                outcome.assert_finished();
                outcome.losses()
            };
            let (plain, layered) = (losses("plain"), losses("layered"));
            assert_eq!(plain.len(), layered.len());
            for ((step, plain), (_, layered)) in plain.iter().zip(&layered) {
                let off = (layered / plain - 1.0).abs();
                assert!(off < 1e-4, "{name}, step {step}: {layered}, plain {plain}");
            }
        }
    }
}

/// Stopped and started again, a run goes on as if nothing had been, rounding included.
#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    for (name, extra) in [
        ("adamw", &[("train.optimizer", "{type: adamw, weight_decay: 0.1}")][..]),
        (
            "adafactor-half",
            &[
                ("train.optimizer", "{type: adafactor}"),
                ("model.dtype", "bfloat16"),
                ("train.weights_dtype", "bfloat16"),
            ],
        ),
        (
            "adamw-int8-streamed",
            &[
                ("train.optimizer", "{type: adamw, state_dtype: int8}"),
                ("train.weight_streaming", "true"),
            ],
        ),
        (
            "sgd-streamed",
            &[
                ("train.optimizer", "{type: sgd, momentum: 0.9}"),
                ("train.weight_streaming", "true"),
                ("train.activation_offloading", "true"),
                ("train.attention_offloading", "true"),
            ],
        ),
    ] {
        let with = |steps: &'static str| {
            let mut settings = LAYERED.to_vec();
            settings.extend([("train.total_tokens", "1024"), ("train.max_steps", steps)]);
            settings.extend(extra);
            worker::config(dir.path(), &settings)
        };
        let whole = worker::run(dir.path(), &format!("{name}-whole"), &with("7"));
        whole.assert_finished();
        worker::run(dir.path(), &format!("{name}-resumed"), &with("3")).assert_finished();
        let resumed = worker::run(dir.path(), &format!("{name}-resumed"), &with("7"));
        resumed.assert_finished();
        assert_eq!(resumed.losses(), whole.losses(), "{name}");
        assert_eq!(weights(&resumed.paths), weights(&whole.paths), "{name}");
    }
}

/// What is chosen is recorded, and so are the phases and the kernels.
#[test]
fn choices_phases_and_kernels_are_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = LAYERED.to_vec();
    settings.push(("train.recompute", "layer"));
    let outcome = worker::run(dir.path(), "run", &worker::config(dir.path(), &settings));
    outcome.assert_finished();
    let facts = outcome.facts();
    for (key, value) in [
        ("train.recompute", serde_json::json!("layer")),
        ("train.kernels", "LibTorch's: the device is not CUDA".into()),
        ("train.engine", serde_json::json!("layered")),
        ("train.attention_head_groups", 1.into()),
        ("train.mlp_tile_tokens", 20.into()),
        ("train.activation_offloading", false.into()),
        ("train.checkpoint_every_layers", 1.into()),
        ("train.optimizer_in_backward", true.into()),
        ("train.weight_streaming", false.into()),
        ("train.stochastic_rounding", false.into()),
        ("train.grad_clipping", "per_sublayer".into()),
        ("train.attention_kernels", serde_json::json!(["flash_cpu"])),
    ] {
        assert_eq!(facts[key], value, "{key}");
    }
    assert!(facts["plan"]["peak_allocated"].as_u64().unwrap() > 0);
    let phases: Vec<&str> = outcome
        .events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Memory { phase, .. } => Some(phase.as_str()),
            _ => None,
        })
        .collect();
    for phase in ["forward", "loss", "recompute", "mlp_backward", "attention_backward", "optimizer"]
    {
        assert!(phases.contains(&phase), "{phase} in {phases:?}");
    }
}

/// What plainly can't be held is refused before anything is loaded, and is out of memory all the same.
#[test]
fn a_run_that_cannot_be_held_is_refused_before_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [
        ("train.engine", "layered"),
        ("train.max_grad_norm", "null"),
        ("model.config.max_position_embeddings", "67108864"),
        ("data.corpus", "random"),
        ("train.sequence_length", "67108864"),
        ("train.total_tokens", "67108864"),
        ("run.memory_cap", "4GiB"),
        ("eval.context_lengths", "[]"),
    ];
    let outcome = worker::run(dir.path(), "large", &worker::config(dir.path(), &settings));
    let EventKind::OutOfMemory { step, phase, asked, total, message, .. } = outcome.ending() else {
        panic!("{:?}", outcome.ending());
    };
    assert_eq!((*step, phase.as_str(), *total), (0, "plan", Some(4 << 30)));
    assert!(asked.unwrap() > 4 << 30);
    assert!(message.contains("help: train."), "{message}");
}
