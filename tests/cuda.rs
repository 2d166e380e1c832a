//! What only a CUDA device can show: fused kernels against plain arithmetic, copies beside the arithmetic, bfloat16 gradients.
//!
//! `cargo test --release --workspace --test cuda -- --ignored --test-threads=1` on a machine that has one.

use fathom_engine::kernels::adafactor::{AdafactorRule, AdafactorStep};
use fathom_engine::kernels::{self, Fused};
use fathom_engine::model::{Model, Setup, block};
use fathom_engine::torch::open_device;
use fathom_engine::train::layered::Layered;
use fathom_engine::train::layered::gradients::Held;
use fathom_engine::train::optimizer::Optimizer;
use fathom_engine::train::step::{Plan, Stream, forward_backward};
use fathom_spec::config::written::Written;
use fathom_spec::config::{
    self, Attention, Dtype, GradClipping, ModelConfig, Recompute, RunConfig,
};
use fathom_spec::plan::Settings;
use tch::{Device, Kind, Tensor, no_grad};

const SETTINGS: Settings = Settings {
    attention_head_groups: 1,
    mlp_tile_tokens: 96,
    loss_tile_tokens: 80,
    row_tile_tokens: 128,
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

fn cuda() -> Device {
    open_device(config::Device::Cuda(0), None).expect("these tests are for a CUDA device")
}

fn random(size: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(size, (Kind::Float, cuda())).to_kind(kind)
}

fn fused() -> Fused {
    let x = Tensor::zeros([1], (Kind::BFloat16, cuda()));
    kernels::of(&x).unwrap_or_else(|| panic!("no kernels: {}", kernels::state(cuda())))
}

fn off(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let [found, expected] =
        [found, expected].map(|x| x.to_device(Device::Cpu).to_kind(Kind::Double));
    f64::try_from((found - &expected).norm() / expected.norm()).unwrap()
}

#[track_caller]
fn check(what: &str, found: &Tensor, expected: &Tensor, bound: f64) {
    let off = off(found, expected);
    assert!(off < bound, "{what}: off by {off:.1e} of its norm, allowed {bound:.0e}");
}

/// The bfloat16 numbers of `x`, exactly, in float64 on the CPU.
fn exact(x: &Tensor) -> Tensor {
    x.to_device(Device::Cpu).to_kind(Kind::Double)
}

/// Half a bfloat16's spacing, and little more.
const ROUNDED: f64 = 3e-3;

#[test]
#[ignore = "needs a CUDA device"]
fn the_norms_backward() {
    for (t, d) in [(1, 64), (700, 576), (1500, 4096), (33, 8192)] {
        let [dx, dy, x] = [0; 3].map(|_| random(&[t, d], Kind::BFloat16));
        let weight = random(&[d], Kind::BFloat16);
        let d_weight = random(&[d], Kind::Float);

        let (x64, weight64) =
            (exact(&x).set_requires_grad(true), exact(&weight).set_requires_grad(true));
        let y = block::rms_norm(&x64, &weight64, 1e-5);
        (y * exact(&dy)).sum(Kind::Double).backward();
        let expected_dx = exact(&dx) + x64.grad();
        let expected_d_weight = exact(&d_weight) + weight64.grad();

        assert!(fused().rms_norm_backward(&dx, &d_weight, &dy, &x, &weight, 1e-5));
        check("dx", &dx, &expected_dx, ROUNDED);
        check("d_weight", &d_weight, &expected_d_weight, 1e-5);
    }
    let odd = random(&[3, 12], Kind::BFloat16);
    let weight = random(&[12], Kind::BFloat16);
    let d_weight = random(&[12], Kind::Float);
    assert!(
        !fused().rms_norm_backward(&odd, &d_weight, &odd, &odd, &weight, 1e-5),
        "12 is not eights"
    );
}

#[test]
#[ignore = "needs a CUDA device"]
fn rotations_and_their_backward() {
    let (t, n, k, h) = (333, 6, 2, 64);
    let angles = Tensor::randn([t, h / 2], (Kind::Float, cuda()));
    let (cos, sin) = (angles.cos() * 1.2, angles.sin() * 1.2);
    let rotated = |x: &Tensor, sign: f64| {
        let (cos, sin) = (exact(&cos).unsqueeze(1), exact(&sin).unsqueeze(1) * sign);
        let halves = exact(x).chunk(2, -1);
        let [a, b] = &halves[..] else { unreachable!() };
        Tensor::cat(&[a * &cos - b * &sin, b * &cos + a * &sin], -1)
    };

    let all = random(&[t, n + 2 * k, h], Kind::BFloat16);
    let before = all.copy();
    assert!(fused().rotate_(&all, n + k, &cos, &sin));
    check("turned", &all.narrow(1, 0, n + k), &rotated(&before.narrow(1, 0, n + k), 1.0), ROUNDED);
    let values = [&all, &before].map(|x| x.narrow(1, n + k, k));
    assert!(values[0].equal(&values[1]), "values are not turned");

    // Laid out as attention kernels may give them: by head, and within a larger row.
    let dq = random(&[n, t, h], Kind::BFloat16).transpose(0, 1);
    let dk = random(&[t, 2 * k, h], Kind::BFloat16).narrow(1, 1, k);
    let dv = random(&[t, k, h], Kind::BFloat16);
    let found = fused().unrotate([&dq, &dk, &dv], &cos, &sin).unwrap();
    let expected = Tensor::cat(&[rotated(&dq, -1.0), rotated(&dk, -1.0), exact(&dv)], 1);
    check("turned back", &found, &expected.view([t, -1]), ROUNDED);
}

#[test]
#[ignore = "needs a CUDA device"]
fn swiglu_and_its_backward() {
    let [gate, up, d] = [0; 3].map(|_| random(&[123, 88], Kind::BFloat16) * 2.0);
    let forward = gate.copy();
    assert!(fused().swiglu_(&forward, &up));
    let gate64 = exact(&gate).set_requires_grad(true);
    let up64 = exact(&up).set_requires_grad(true);
    let y = gate64.silu() * &up64;
    (&y * exact(&d)).sum(Kind::Double).backward();
    check("forward", &forward, &y, ROUNDED);
    assert!(fused().swiglu_backward_(&gate, &up, &d));
    check("product", &d, &y, ROUNDED);
    check("d_gate", &gate, &gate64.grad(), ROUNDED);
    check("d_up", &up, &up64.grad(), ROUNDED);
}

#[test]
#[ignore = "needs a CUDA device"]
fn cross_entropy_and_its_gradient() {
    let (t, v) = (77, 32_000);
    let logits = random(&[t, v], Kind::BFloat16) * 3.0;
    let labels = (Tensor::arange(t, (Kind::Int64, cuda())) * 397).remainder(v);
    let _ = labels.narrow(0, 5, 3).fill_(-100);
    let logits64 = exact(&logits).set_requires_grad(true);
    let expected = logits64.cross_entropy_loss(
        &labels.to_device(Device::Cpu),
        None::<&Tensor>,
        tch::Reduction::None,
        -100,
        0.0,
    );
    (expected.sum(Kind::Double) * 0.125).backward();
    let nll = fused().cross_entropy_(&logits, &labels, 0.125).unwrap();
    check("nll", &nll, &expected, 1e-5);
    check("d_logits", &logits, &logits64.grad(), ROUNDED);
}

fn optimizer_section(line: &str) -> config::Optimizer {
    let text = format!(
        "model: {{path: m}}\ndata: {{corpus: c}}\ntrain:\n  sequence_length: 8\n  total_tokens: 80\n  learning_rate: 1\n  optimizer: {line}\n"
    );
    RunConfig::from_written(&Written::parse("run.yaml", &text).unwrap()).unwrap().train.optimizer
}

/// Whether the kernels take a step of such a weight.
fn served(weight: &Tensor, gradient: &Tensor) -> bool {
    let step = AdafactorStep {
        rule: AdafactorRule::Means { relative_step: 0.1, floor: 1e-3 },
        share: 1.0,
        eps: 1e-8,
        clip_threshold: 1.0,
        keep: 1.0,
        seed: None,
    };
    let (weight, zeros) = (weight.copy(), |size: i64| Tensor::zeros([size], (Kind::Float, cuda())));
    let squares = match weight.size()[..] {
        [rows, columns] => {
            fused().adafactor_matrix(&weight, gradient, &zeros(rows), &zeros(columns), &step)
        }
        _ => fused().adafactor_vector(&weight, gradient, &zeros(weight.numel() as i64), &step),
    };
    let Some(squares) = squares else { return false };
    check("squares", &squares, &exact(gradient).square().sum(Kind::Double), 1e-6);
    true
}

/// Three steps by the kernels on CUDA and by LibTorch's operations on the CPU: a matrix of many tiles, uneven ones and vectors.
#[test]
#[ignore = "needs a CUDA device"]
fn adafactors_steps() {
    for line in ["{type: adafactor, weight_decay: 0.1}", "{type: adafactor_sum, weight_decay: 0.1}"]
    {
        let section = optimizer_section(line);
        for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, ROUNDED)] {
            for size in [&[100, 2052][..], &[65, 36], &[3000, 1028], &[1501], &[3]] {
                let start = random(size, kind);
                let gradients = [0; 3].map(|_| random(size, Kind::Float));
                assert!(served(&start, &gradients[0]), "{line}, {kind:?}, {size:?}: by kernels");
                let stepped = |device: Device| {
                    let weight = start.copy().to_device(device);
                    let named = [("w".to_string(), &weight)];
                    let mut optimizer = Optimizer::new(&section, &named);
                    for gradient in &gradients {
                        optimizer.begin_step();
                        optimizer.step_parameter(0, &weight, &gradient.to_device(device), 0.05);
                    }
                    let state = optimizer.state();
                    (weight.copy(), state.into_iter().map(|(_, x)| x.copy()).collect::<Vec<_>>())
                };
                let (weight, state) = stepped(cuda());
                let (expected_weight, expected_state) = stepped(Device::Cpu);
                check(line, &weight, &expected_weight, bound);
                // A few numbers' steps may nearly cancel.
                assert!(off(&weight, &start) > 1e-3, "{line}, {size:?}: the weight moved");
                for (found, expected) in state.iter().zip(&expected_state) {
                    check(line, found, expected, 1e-5);
                }
            }
        }
    }
}

/// Three steps with 8-bit state on CUDA and on the CPU: the same weights, and the same codes but for a few numbers that lie
/// between two. Brought from host memory, weights and state are the same bits as on the device.
#[test]
#[ignore = "needs a CUDA device"]
fn adamws_steps_in_8_bits() {
    let section = optimizer_section("{type: adamw, weight_decay: 0.1, state_dtype: int8}");
    for size in [[100, 2052], [65, 67]] {
        let start = random(&size, Kind::Float);
        let gradients = [0; 3].map(|_| random(&size, Kind::Float));
        let stepped = |kept_on: Device, device: Device| {
            let kept = start.copy().to_device(kept_on);
            let named = [("w".to_string(), &kept)];
            let mut optimizer = Optimizer::on_device(&section, &named, device);
            optimizer.step_in_blocks(1 << 12);
            let weight = kept.to_device(device);
            for gradient in &gradients {
                optimizer.begin_step();
                optimizer.step_parameter(0, &weight, &gradient.to_device(device), 0.05);
            }
            let state = optimizer.state().into_iter().map(|(name, x)| {
                if name != "step.w" {
                    assert_eq!(x.device(), kept_on, "{name}");
                }
                (name, x.to_device(Device::Cpu))
            });
            (weight.to_device(Device::Cpu), state.collect::<Vec<_>>())
        };
        let (weight, state) = stepped(cuda(), cuda());
        let (expected_weight, expected_state) = stepped(Device::Cpu, Device::Cpu);
        check("weight", &weight, &expected_weight, 1e-4);
        assert!(off(&weight, &start) > 0.01, "the weight moved");
        for ((name, found), (_, expected)) in state.iter().zip(&expected_state) {
            match found.kind() {
                Kind::Uint8 => {
                    let apart = (found.to_kind(Kind::Int) - expected.to_kind(Kind::Int)).abs();
                    let differing = apart.count_nonzero(None).int64_value(&[]);
                    assert!(apart.max().int64_value(&[]) <= 1, "{name}");
                    assert!(differing * 1000 <= apart.numel() as i64, "{name}: {differing} differ");
                }
                // LibTorch's kernel takes `1 - beta2` of a `beta2` in float32: for 0.999 that is 1.3e-5 less.
                _ => check(name, found, expected, 2e-5),
            }
        }
        let (streamed_weight, streamed_state) = stepped(Device::Cpu, cuda());
        assert!(streamed_weight.equal(&weight));
        for ((name, found), (_, expected)) in streamed_state.iter().zip(&state) {
            assert!(found.equal(expected), "{name}");
        }
    }
}

/// The mean over many weights of a rounded step is the step, and its size does not depend on where a weight stands.
#[test]
#[ignore = "needs a CUDA device"]
fn the_kernels_stochastic_rounding_is_unbiased() {
    let (rows, columns) = (512i64, 2048i64);
    let count = (rows * columns) as f64;
    for step in [0.3 / 128.0, 1e-6, -0.2 / 256.0] {
        let weight = Tensor::ones([rows, columns], (Kind::BFloat16, cuda()));
        let gradient = Tensor::ones([rows, columns], (Kind::Float, cuda()));
        let moments = [rows, columns].map(|size| Tensor::zeros([size], (Kind::Float, cuda())));
        // An update of ones.
        let by = AdafactorStep {
            rule: AdafactorRule::Sums { learning_rate: -step },
            share: 1.0,
            eps: 0.0,
            clip_threshold: 1.0,
            keep: 1.0,
            seed: Some(11),
        };
        let [of_rows, of_columns] = &moments;
        assert!(fused().adafactor_matrix(&weight, &gradient, of_rows, of_columns, &by).is_some());
        let moved = exact(&weight) - 1.0;
        let mean = f64::try_from(moved.mean(Kind::Double)).unwrap();
        let spacing: f64 = if step > 0.0 { 1.0 / 128.0 } else { 1.0 / 256.0 };
        let share = (step.abs() / spacing).fract();
        let bound = 5.0 * spacing * (share * (1.0 - share) / count).sqrt() + 1e-9;
        assert!((mean - step).abs() < bound, "{mean} for {step}");
        // Rows and columns are as good as the whole.
        let by_row = moved.mean_dim([1i64].as_slice(), false, Kind::Double);
        let spread = f64::try_from(by_row.std(true)).unwrap();
        let expected = spacing * (share * (1.0 - share) / columns as f64).sqrt();
        assert!((spread / expected - 1.0).abs() < 0.2, "{spread}, expected {expected}");
    }
}

#[derive(Clone, Copy)]
struct Shape {
    heads: usize,
    key_value_heads: usize,
    layers: usize,
    window: Option<usize>,
    tied: bool,
}

fn config(shape: Shape) -> ModelConfig {
    let json = serde_json::json!({
        "model_type": "mistral", "vocab_size": 264, "hidden_size": 256, "intermediate_size": 328, "head_dim": 64,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads, "sliding_window": shape.window,
        "tie_word_embeddings": shape.tied, "initializer_range": 0.05, "max_position_embeddings": 4096,
        "rope_parameters": { "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64 },
    });
    ModelConfig::from_hf_json("small", &json.to_string()).unwrap()
}

const SHAPE: Shape = Shape { heads: 8, key_value_heads: 4, layers: 3, window: None, tied: false };

fn model(shape: Shape, device: Device, dtype: Dtype, attention: Attention) -> Model {
    Model::random(
        config(shape),
        5,
        Setup { device, dtype, weights_dtype: Dtype::Bfloat16, attention },
        None,
    )
}

fn stream(lengths: &[usize], device: Device) -> Stream {
    let t = lengths.iter().sum::<usize>() as i64;
    let ids: Vec<i64> = (0..t).map(|i| (i * i * 7 + i) % 263).collect();
    let mut labels = Vec::new();
    let mut start = 0;
    for &length in lengths {
        labels.extend_from_slice(&ids[start + 1..start + length]);
        labels.push(-100);
        start += length;
    }
    let on = |ids: &[i64]| Tensor::from_slice(ids).to_device(device);
    Stream { input_ids: on(&ids), labels: on(&labels), lengths: lengths.to_vec() }
}

/// The loss, every gradient in the order of the parameters, and the attention kernels that served.
fn layered(
    model: &Model,
    attention: Attention,
    lengths: &[usize],
    settings: Settings,
) -> (f64, Vec<Tensor>, Vec<&'static str>) {
    let mut engine = Layered::new(model, attention, settings);
    let mut held = Held::default();
    let stream = stream(lengths, model.device);
    let nll = engine.forward_backward(&stream, 0.25, &mut held, &mut |_| {});
    let mut all: Vec<_> = held.sublayers.into_iter().flatten().collect();
    all.sort_by_key(|taken| taken.index);
    let gradients = all.into_iter().map(|taken| taken.gradient).collect();
    (nll.double_value(&[]), gradients, engine.kernels())
}

/// One engine over streams of several lengths, with inputs, outputs, queries, keys and values in host memory, gives each time
/// what a new one gives with everything on the device.
#[test]
#[ignore = "needs a CUDA device"]
fn an_engine_serves_streams_of_any_length_in_turn() {
    let model = model(Shape { layers: 6, ..SHAPE }, cuda(), Dtype::Bfloat16, Attention::Eager);
    for groups in [1, 2] {
        let fresh = Settings { attention_head_groups: groups, ..SETTINGS };
        let settings = Settings { activation_offloading: true, recompute: Recompute::Mlp, ..fresh };
        let mut engine = Layered::new(&model, Attention::Eager, settings);
        for lengths in [&[1500][..], &[700, 33], &[64, 64], &[1500], &[1500]] {
            let mut held = Held::default();
            let stream = stream(lengths, cuda());
            let nll = engine.forward_backward(&stream, 0.25, &mut held, &mut |_| {});
            let (expected_nll, expected, _) = layered(&model, Attention::Eager, lengths, fresh);
            assert_eq!(nll.double_value(&[]), expected_nll, "{lengths:?}");
            let mut all: Vec<_> = held.sublayers.into_iter().flatten().collect();
            all.sort_by_key(|taken| taken.index);
            for (found, expected) in all.iter().zip(&expected) {
                assert!(found.gradient.equal(expected), "{lengths:?}, weight {}", found.index);
            }
        }
    }
}

/// bfloat16 on CUDA, in tiles and groups of heads, against float32 by autograd on the CPU, with the same weights.
#[test]
#[ignore = "needs a CUDA device"]
fn gradients_equal_the_plain_path() {
    let all = Shape { key_value_heads: 8, ..SHAPE };
    let one_length = [&[300][..], &[64, 64, 64]];
    let several = [&[200, 1, 60, 39][..]];
    let cases = [
        (SHAPE, &one_length[..], "cudnn"),
        (all, &one_length, "cudnn"),
        (SHAPE, &several, "flash"),
        (Shape { tied: true, ..SHAPE }, &several, "flash"),
        (Shape { window: Some(48), ..SHAPE }, &one_length, "flash"),
    ];
    for (shape, streams, kernel) in cases {
        let half = model(shape, cuda(), Dtype::Bfloat16, Attention::Sdpa);
        let plain = model(shape, Device::Cpu, Dtype::Float32, Attention::Sdpa);
        plain.set_requires_grad(true);
        for lengths in streams {
            let plan = Plan { loss_tile_tokens: 2048, activation_checkpointing: false };
            let expected_nll = forward_backward(&plain, &stream(lengths, Device::Cpu), 0.25, plan);
            let expected_nll = expected_nll.double_value(&[]);
            for (groups, recompute) in [
                (1, Recompute::Layer),
                (2, Recompute::Layer),
                (shape.key_value_heads, Recompute::Layer),
                (1, Recompute::Norms),
                (2, Recompute::Mlp),
            ] {
                let settings = Settings { attention_head_groups: groups, recompute, ..SETTINGS };
                let (nll, found, kernels) = layered(&half, Attention::Sdpa, lengths, settings);
                assert_eq!(
                    kernels,
                    [kernel],
                    "{lengths:?}, {groups} groups, window {:?}",
                    shape.window
                );
                assert!((nll / expected_nll - 1.0).abs() < 2e-3, "{nll}, expected {expected_nll}");
                for ((name, weight), found) in plain.parameters().iter().zip(&found) {
                    let what = format!("{name}, {lengths:?}, {groups} groups");
                    check(&what, found, &weight.grad(), 2e-2);
                }
            }
            no_grad(|| {
                plain.parameters().iter().for_each(|(_, weight)| drop(weight.grad().zero_()))
            });
        }
    }
}

/// Inputs, outputs and weights in host memory, inputs thinned: the same bits as with everything on the device, many layers
/// and tiles long, so that a copy that does not wait for what it needs shows.
#[test]
#[ignore = "needs a CUDA device"]
fn copies_beside_the_arithmetic_give_the_same_bits() {
    let shape = Shape { layers: 12, ..SHAPE };
    // The scores in full: the fused kernels add up in no fixed order.
    let attention = Attention::Eager;
    let resident = model(shape, cuda(), Dtype::Bfloat16, attention);
    let mut streamed = model(shape, Device::Cpu, Dtype::Bfloat16, attention);
    streamed.stream_to(cuda());
    let kept_again = Settings { attention_head_groups: 2, ..SETTINGS };
    let (expected_nll, expected, _) = layered(&resident, attention, &[1500], kept_again);
    let inputs = Settings { activation_offloading: true, ..kept_again };
    let everything = Settings { attention_offloading: true, checkpoint_every_layers: 3, ..inputs };
    let weights = Settings { weight_streaming: true, ..kept_again };
    let kept = |recompute: Recompute| Settings { recompute, ..inputs };
    let on_device = Settings { recompute: Recompute::Norms, ..kept_again };
    let in_some = Settings { recompute_num_layers: Some(5), ..kept(Recompute::Mlp) };
    let cases = [
        (&resident, kept(Recompute::Projections)),
        (&resident, kept(Recompute::Mlp)),
        (&resident, on_device),
        (&resident, kept(Recompute::Norms)),
        (&resident, in_some),
        (&streamed, Settings { weight_streaming: true, ..kept(Recompute::Mlp) }),
        (&resident, inputs),
        (&resident, Settings { attention_offloading: true, ..inputs }),
        (&resident, Settings { checkpoint_every_layers: 2, ..inputs }),
        (&resident, everything),
        (&streamed, weights),
        (&streamed, Settings { weight_streaming: true, ..everything }),
    ];
    for _ in 0..3 {
        for (model, settings) in cases {
            let (nll, found, _) = layered(model, attention, &[1500], settings);
            assert_eq!(nll, expected_nll, "{settings:?}");
            for ((name, _), (found, expected)) in
                model.parameters().iter().zip(found.iter().zip(&expected))
            {
                assert!(found.equal(expected), "{name}, {settings:?}");
            }
        }
    }
}
