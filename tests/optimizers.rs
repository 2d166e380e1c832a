//! Optimizers against `torch.optim`, against their formulas in float64, and against themselves across a restart.
//!
//! `tests/data/optimizers.safetensors` holds `w0` `[6, 10]`, `b0` `[7]`, five gradients of each (`grad_w.t`, `grad_b.t`) and
//! what torch 2.11 on the CPU makes of them, `<optimizer>.w.t` and `<optimizer>.b.t` after step `t`:
//!
//! ```python
//! def trajectory(name, make):
//!     w, b = Parameter(f["w0"].clone()), Parameter(f["b0"].clone())
//!     optimizer = make([w, b])
//!     for t in range(5):
//!         w.grad, b.grad = f[f"grad_w.{t}"], f[f"grad_b.{t}"]
//!         optimizer.step()
//!         f[f"{name}.w.{t}"], f[f"{name}.b.{t}"] = w.detach().clone(), b.detach().clone()
//! trajectory("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1))
//! trajectory("adafactor", lambda p: torch.optim.Adafactor(p, lr=0.01))
//! trajectory("sgd", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))
//! ```
//!
//! `tests/data/adamw8bit.safetensors` holds what bitsandbytes 0.50.2 makes of AdamW with 8-bit state, on the CPU and without its
//! native library: the quantizer of its CPU library is a table of 2^16 entries that is off by up to seven codes below 1e-5 of
//! `absmax`, that of its Python operations takes the nearest code, as its CUDA kernels do.
//!
//! ```python
//! f = {"signed": create_dynamic_map(True), "unsigned": create_dynamic_map(False)}
//! i = torch.arange(61 * 70)
//! def numbers(a, b, c): return ((((a * i + b) * i + c) % 2003 - 1001) / 1024).view(61, 70)
//! w = Parameter(numbers(5, 37, 0))
//! optimizer = bitsandbytes.optim.AdamW8bit([w], lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
//! for t in range(5):
//!     w.grad = numbers(31, 17, 791 * t) * numbers(3, 7, 419 * t)
//!     optimizer.step()
//!     f[f"w.{t}"] = w.detach().clone()  # 0 and 4 are kept
//! state = optimizer.state[w]
//! f["exp_avg.w"], f["exp_avg_absmax.w"] = state["state1"], state["absmax1"]
//! f["exp_avg_sq.w"], f["exp_avg_sq_absmax.w"] = state["state2"], state["absmax2"]
//! ```

use fathom_engine::train::optimizer::quantized::{Codebook, Quantized};
use fathom_engine::train::optimizer::{Optimizer, clip_grad_norm};
use fathom_spec::config::{self, RunConfig, written::Written};
use serde_json::json;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

const ALL: [&str; 5] = [
    "{type: adamw, weight_decay: 0.1}",
    "{type: adafactor, weight_decay: 0.1}",
    "{type: adafactor_sum, weight_decay: 0.1}",
    "{type: sgd, momentum: 0.9}",
    "{type: sgd}",
];

/// The options as a run gets them: read from YAML and completed.
fn options(yaml: &str) -> config::Optimizer {
    let text = format!(
        "model: {{path: m}}\ndata: {{corpus: c}}\n\
         train: {{sequence_length: 8, total_tokens: 80, learning_rate: 1, optimizer: {yaml}}}"
    );
    RunConfig::from_written(&Written::parse("run.yaml", &text).unwrap()).unwrap().train.optimizer
}

fn golden() -> HashMap<String, Tensor> {
    read("optimizers.safetensors")
}

fn read(file: &str) -> HashMap<String, Tensor> {
    let path = format!("{}/../../tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

fn floats(x: &Tensor) -> Vec<f64> {
    Vec::try_from(&x.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

fn bits(x: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; x.numel() * x.kind().elt_size_in_bytes()];
    x.copy_data_u8(&mut bytes, x.numel());
    bytes
}

/// Every element within 1e-6 of the expected one, relative to it.
fn check_close(what: &str, found: &Tensor, expected: &[f64]) {
    let found = floats(found);
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!((x - y).abs() <= 1e-6 * y.abs(), "{what}[{i}]: {x}, expected {y}");
    }
}

/// A matrix and a vector under one optimizer.
struct Run {
    optimizer: Optimizer,
    w: Tensor,
    b: Tensor,
}

impl Run {
    fn new(yaml: &str, w: &Tensor, b: &Tensor) -> Run {
        let (w, b) = (w.copy(), b.copy());
        let named = [("w".to_string(), &w), ("b".to_string(), &b)];
        let optimizer = Optimizer::new(&options(yaml), &named);
        Run { optimizer, w, b }
    }

    fn step(&mut self, grad_w: &Tensor, grad_b: &Tensor, learning_rate: f64) {
        self.optimizer.begin_step();
        // As a backward meets them: the last parameter first.
        self.optimizer.step_parameter(1, &self.b, grad_b, learning_rate);
        self.optimizer.step_parameter(0, &self.w, grad_w, learning_rate);
    }
}

#[test]
fn trajectories_equal_torch() {
    let golden = golden();
    let check = |name: &str, yaml: &str| {
        let mut run = Run::new(yaml, &golden["w0"], &golden["b0"]);
        for t in 0..5 {
            run.step(&golden[&format!("grad_w.{t}")], &golden[&format!("grad_b.{t}")], 0.01);
            for (key, found) in [("w", &run.w), ("b", &run.b)] {
                let key = format!("{name}.{key}.{t}");
                check_close(&key, found, &floats(&golden[&key]));
            }
        }
    };
    check("adamw", "{type: adamw, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.1}");
    check("adafactor", "{type: adafactor}");
    check("sgd", "{type: sgd, momentum: 0.9}");
}

/// ```python
/// w, v = Parameter(tensor([[1., -2., 3.], [0.5, 0.25, -4.]])), Parameter(tensor([2., -1.]))
/// optimizer = AdamW([w, v], lr=0.1, weight_decay=0.5)
/// # Adafactor(..., eps=(None, 10.), d=2.0), SGD(..., momentum=0.5), SGD(...)
/// for k in (1., -2.):
///     w.grad, v.grad = k * tensor([[0.5, -1., 0.25], [2., -0.125, 1.]]), k * tensor([-0.5, 0.75])
///     optimizer.step()
/// ```
#[test]
fn weight_decay_and_options_equal_torch() {
    let w = Tensor::from_slice2(&[[1.0f32, -2.0, 3.0], [0.5, 0.25, -4.0]]);
    let v = Tensor::from_slice(&[2.0f32, -1.0]);
    let grad_w = Tensor::from_slice2(&[[0.5f32, -1.0, 0.25], [2.0, -0.125, 1.0]]);
    let grad_v = Tensor::from_slice(&[-0.5f32, 0.75]);
    let check = |yaml: &str, expected_w: [f64; 6], expected_v: [f64; 2]| {
        let mut run = Run::new(yaml, &w, &v);
        for k in [1.0, -2.0] {
            run.step(&(&grad_w * k), &(&grad_v * k), 0.1);
        }
        check_close(yaml, &run.w, &expected_w);
        check_close(yaml, &run.b, &expected_v);
    };
    check(
        "{type: adamw, weight_decay: 0.5}",
        [0.8441104, -1.7466103, 2.6491103, 0.3928604, 0.2840146, -3.6683896],
        [1.8633896, -0.9608896],
    );
    check(
        "{type: adafactor, weight_decay: 0.5, relative_step_floor: 10, clip_threshold: 2}",
        [1.0420288, -2.375849, 2.8470287, 0.736753, 0.1891228, -3.3244972],
        [1.5430008, -0.6405008],
    );
    check(
        "{type: sgd, weight_decay: 0.5, momentum: 0.5}",
        [0.905, -1.81, 2.64625, 0.54875, 0.2125, -3.455],
        [1.7275, -0.83625],
    );
    check(
        "{type: sgd, weight_decay: 0.5}",
        [0.955, -1.91, 2.73375, 0.66125, 0.2125, -3.505],
        [1.7525, -0.82375],
    );
}

/// The formula of the sums variant, one number at a time in float64. A vector is a matrix whose second moment is kept whole.
struct SumsInFloat64 {
    weight: Vec<f64>,
    columns: Option<usize>,
    row: Vec<f64>,
    column: Vec<f64>,
    full: Vec<f64>,
}

impl SumsInFloat64 {
    fn new(weight: &Tensor) -> SumsInFloat64 {
        let columns = (weight.dim() == 2).then(|| weight.size()[1] as usize);
        let weight = floats(weight);
        let width = columns.unwrap_or(1);
        SumsInFloat64 {
            row: vec![0.0; weight.len() / width],
            column: vec![0.0; width],
            full: vec![0.0; weight.len()],
            columns,
            weight,
        }
    }

    fn step(&mut self, t: i32, grad: &[f64], learning_rate: f64, weight_decay: f64, clip: f64) {
        let (eps, beta2) = (1e-30, (1.0 - f64::from(t).powf(-0.8)).min(0.999));
        let squared: Vec<f64> = grad.iter().map(|g| g * g + eps).collect();
        let second_moment: Vec<f64> = match self.columns {
            None => {
                for (v, u) in self.full.iter_mut().zip(&squared) {
                    *v = beta2 * *v + (1.0 - beta2) * u;
                }
                self.full.clone()
            }
            Some(columns) => {
                for (i, row) in self.row.iter_mut().enumerate() {
                    let sum: f64 = squared[i * columns..(i + 1) * columns].iter().sum();
                    *row = beta2 * *row + (1.0 - beta2) * sum;
                }
                for (j, column) in self.column.iter_mut().enumerate() {
                    let sum: f64 = squared.iter().skip(j).step_by(columns).sum();
                    *column = beta2 * *column + (1.0 - beta2) * sum;
                }
                let total: f64 = self.row.iter().sum();
                let at = |i: usize| self.row[i / columns] * self.column[i % columns] / total;
                (0..grad.len()).map(at).collect()
            }
        };
        let update: Vec<f64> = grad.iter().zip(&second_moment).map(|(g, v)| g / v.sqrt()).collect();
        let rms = (update.iter().map(|u| u * u).sum::<f64>() / update.len() as f64).sqrt();
        for (p, u) in self.weight.iter_mut().zip(&update) {
            *p -= learning_rate * weight_decay * *p;
            *p -= learning_rate * u / (rms / clip).max(1.0);
        }
    }
}

#[test]
fn adafactor_sum_equals_its_formula() {
    let golden = golden();
    let check = |yaml: &str, weight_decay: f64, clip: f64| {
        let mut run = Run::new(yaml, &golden["w0"], &golden["b0"]);
        let mut w = SumsInFloat64::new(&golden["w0"]);
        let mut b = SumsInFloat64::new(&golden["b0"]);
        for t in 0..3 {
            let (grad_w, grad_b) =
                (&golden[&format!("grad_w.{t}")], &golden[&format!("grad_b.{t}")]);
            run.step(grad_w, grad_b, 0.01);
            w.step(t + 1, &floats(grad_w), 0.01, weight_decay, clip);
            b.step(t + 1, &floats(grad_b), 0.01, weight_decay, clip);
            check_close(&format!("{yaml} w.{t}"), &run.w, &w.weight);
            check_close(&format!("{yaml} b.{t}"), &run.b, &b.weight);
        }
    };
    check("{type: adafactor_sum}", 0.0, 1.0);
    check("{type: adafactor_sum, weight_decay: 0.1, clip_threshold: 0.5}", 0.1, 0.5);
}

/// A step of a bfloat16 weight is the float32 step, rounded to nearest once; the gradient may be bfloat16 too.
#[test]
fn bfloat16_weights_are_stepped_in_float32() {
    let golden = golden();
    for yaml in ALL {
        let rounded = |key: &str| golden[key].to_kind(Kind::BFloat16);
        let [w, b, grad_w, grad_b] = ["w0", "b0", "grad_w.0", "grad_b.0"].map(rounded);
        let exact = |x: &Tensor| x.to_kind(Kind::Float);
        let mut low = Run::new(yaml, &w, &b);
        let mut full = Run::new(yaml, &exact(&w), &exact(&b));
        low.step(&grad_w, &grad_b, 0.01);
        full.step(&exact(&grad_w), &exact(&grad_b), 0.01);
        assert_eq!(low.w.kind(), Kind::BFloat16);
        assert_eq!(bits(&low.w), bits(&full.w.to_kind(Kind::BFloat16)), "{yaml}");
        assert_eq!(bits(&low.b), bits(&full.b.to_kind(Kind::BFloat16)), "{yaml}");
        assert_ne!(bits(&low.w), bits(&w), "{yaml}");
    }
}

#[test]
fn a_learning_rate_of_zero_leaves_weights_as_they_are() {
    let golden = golden();
    for yaml in ALL {
        let mut run = Run::new(yaml, &golden["w0"], &golden["b0"]);
        run.step(&golden["w0"].zeros_like(), &golden["grad_b.0"], 0.0);
        assert_eq!(bits(&run.w), bits(&golden["w0"]), "{yaml}");
        assert_eq!(bits(&run.b), bits(&golden["b0"]), "{yaml}");
    }
}

#[test]
fn more_dimensions_and_none() {
    for yaml in ALL {
        let w = Tensor::ones([2, 3, 4], (Kind::Float, Device::Cpu));
        let scalar = Tensor::from(2.0f32);
        let mut run = Run::new(yaml, &w, &scalar);
        run.step(&w, &scalar, 0.01);
        // All elements alike take the same step, down.
        let moved = floats(&run.w);
        assert!(moved.iter().all(|&x| (x - moved[0]).abs() < 1e-6 && x < 1.0), "{yaml} {moved:?}");
        assert!(run.b.double_value(&[]) < 2.0, "{yaml}");
    }
}

#[test]
fn resumed_equals_uninterrupted() {
    let golden = golden();
    let dir = tempfile::tempdir().unwrap();
    for yaml in ALL {
        let step = |run: &mut Run, t: usize| {
            let (grad_w, grad_b) =
                (&golden[&format!("grad_w.{t}")], &golden[&format!("grad_b.{t}")]);
            run.step(grad_w, grad_b, 0.01);
        };
        let mut whole = Run::new(yaml, &golden["w0"], &golden["b0"]);
        (0..5).for_each(|t| step(&mut whole, t));

        let mut first = Run::new(yaml, &golden["w0"], &golden["b0"]);
        (0..2).for_each(|t| step(&mut first, t));
        let path = dir.path().join("optimizer.safetensors");
        Tensor::write_safetensors(&first.optimizer.state(), &path).unwrap();
        let mut resumed = Run::new(yaml, &first.w, &first.b);
        resumed.optimizer.load_state(&Tensor::read_safetensors(&path).unwrap()).unwrap();
        (2..5).for_each(|t| step(&mut resumed, t));

        assert_eq!(bits(&resumed.w), bits(&whole.w), "{yaml}");
        assert_eq!(bits(&resumed.b), bits(&whole.b), "{yaml}");
        for ((name, found), (_, expected)) in
            resumed.optimizer.state().iter().zip(whole.optimizer.state())
        {
            assert_eq!(bits(found), bits(&expected), "{yaml} {name}");
        }
    }
}

#[test]
fn state_is_named_and_counted() {
    let golden = golden();
    let check = |yaml: &str, names: &[&str], bytes: u64| {
        let run = Run::new(yaml, &golden["w0"], &golden["b0"]);
        let found: Vec<_> = run.optimizer.state().into_iter().map(|(name, _)| name).collect();
        assert_eq!(found, names, "{yaml}");
        assert_eq!(run.optimizer.state_bytes(), bytes, "{yaml}");
    };
    check(
        ALL[0],
        &["step.w", "exp_avg.w", "exp_avg_sq.w", "step.b", "exp_avg.b", "exp_avg_sq.b"],
        4 * 2 * (60 + 7),
    );
    check(ALL[1], &["step.w", "row_var.w", "col_var.w", "step.b", "variance.b"], 4 * (6 + 10 + 7));
    check(ALL[2], &["step.w", "row_sum.w", "col_sum.w", "step.b", "variance.b"], 4 * (6 + 10 + 7));
    check(ALL[3], &["step.w", "momentum_buffer.w", "step.b", "momentum_buffer.b"], 4 * (60 + 7));
    check(ALL[4], &["step.w", "step.b"], 0);
}

#[test]
fn foreign_state_is_refused() {
    let golden = golden();
    let (w, b) = (&golden["w0"], &golden["b0"]);
    let adamw = || Run::new("{type: adamw}", w, b).optimizer;
    type State = Vec<(String, Tensor)>;
    let error = |change: &dyn Fn(&mut State)| {
        let mut state = adamw().state();
        change(&mut state);
        adamw().load_state(&state).unwrap_err().to_string()
    };
    assert_eq!(
        error(&|state| state.retain(|(name, _)| name != "exp_avg.b")),
        "optimizer state: expected `exp_avg.b`, found none\n  \
         help: the state must be of `adamw` and the same model"
    );
    assert_eq!(
        error(&|state| state.push(("exp_avg.v".into(), b.copy()))),
        "optimizer state: expected no `exp_avg.v`, found it\n  \
         help: the state must be of `adamw` and the same model"
    );
    assert_eq!(
        error(&|state| state[1].1 = b.copy()),
        "optimizer state: exp_avg.w: expected Float [6, 10], found Float [7]"
    );
    assert_eq!(
        error(&|state| state[1].1 = w.to_kind(Kind::BFloat16)),
        "optimizer state: exp_avg.w: expected Float [6, 10], found BFloat16 [6, 10]"
    );
    let adafactor = Run::new("{type: adafactor}", w, b).optimizer.state();
    let refused = adamw().load_state(&adafactor).unwrap_err().to_string();
    assert!(refused.starts_with("optimizer state: expected `exp_avg.w`, found none"), "{refused}");

    // What is refused changes nothing, not even what was right.
    let mut optimizer = adamw();
    let mut state = adamw().state();
    state[1].1 = w.ones_like();
    state.truncate(4);
    optimizer.load_state(&state).unwrap_err();
    assert_eq!(floats(&optimizer.state()[1].1), vec![0.0; 60]);
}

#[test]
#[should_panic(expected = "w: expected one step after `begin_step`, found a second")]
fn a_parameter_is_stepped_once_a_step() {
    let golden = golden();
    let mut run = Run::new("{type: sgd}", &golden["w0"], &golden["b0"]);
    run.step(&golden["grad_w.0"], &golden["grad_b.0"], 0.01);
    run.optimizer.step_parameter(0, &run.w, &golden["grad_w.1"], 0.01);
}

/// Weights that autograd watches are stepped in place, and stay leaves.
#[test]
fn leaves_stay_leaves() {
    for yaml in ALL {
        let w = Tensor::ones([2, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let b = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let named = [("w".to_string(), &w), ("b".to_string(), &b)];
        let mut optimizer = Optimizer::new(&options(yaml), &named);
        (w.matmul(&b)).sum(Kind::Float).backward();
        optimizer.begin_step();
        for (index, (_, weight)) in named.iter().enumerate() {
            optimizer.step_parameter(index, weight, &weight.grad(), 0.01);
        }
        assert!(w.is_leaf() && w.requires_grad() && w.double_value(&[0, 0]) < 1.0, "{yaml}");
        assert!(!optimizer.state().iter().any(|(_, tensor)| tensor.requires_grad()), "{yaml}");
    }
}

#[test]
fn options_are_described_as_used() {
    let w = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
    let check = |yaml: &str, expected: serde_json::Value| {
        let found = Run::new(yaml, &w, &w).optimizer.describe();
        let expected: Vec<_> = expected.as_object().unwrap().clone().into_iter().collect();
        let expected: Vec<_> =
            expected.into_iter().map(|(k, v)| (format!("train.optimizer.{k}"), v)).collect();
        assert_eq!(found, expected, "{yaml}");
    };
    check(
        "{type: adamw, betas: [0.9, 0.95]}",
        json!({
            "type": "adamw", "weight_decay": 0.0, "betas": [0.9, 0.95], "eps": 1e-8,
            "state_dtype": "float32"
        }),
    );
    check(
        "{type: adafactor, weight_decay: 0.1}",
        json!({
            "type": "adafactor", "weight_decay": 0.1, "eps": f64::from(f32::EPSILON),
            "relative_step_floor": 1e-3, "beta2_decay": -0.8, "clip_threshold": 1.0
        }),
    );
    check(
        "{type: adafactor_sum, beta2_decay: -0.5}",
        json!({
            "type": "adafactor_sum", "weight_decay": 0.0, "eps": 1e-30, "beta2_decay": -0.5,
            "clip_threshold": 1.0
        }),
    );
    check("{type: sgd}", json!({"type": "sgd", "weight_decay": 0.0, "momentum": 0.0}));
}

/// Every option that an optimizer describes changes what it does.
#[test]
fn described_options_are_read() {
    let golden = golden();
    // Large enough for 8-bit state.
    let large = |key: &str| golden[key].repeat([10, 10]);
    let after_two_steps = |yaml: &str| {
        let mut run = Run::new(yaml, &large("w0"), &golden["b0"]);
        run.step(&large("grad_w.0"), &golden["grad_b.0"], 0.01);
        run.step(&large("grad_w.1"), &golden["grad_b.1"], 0.01);
        bits(&run.w)
    };
    let check = |kind: &str, changes: &[&str]| {
        let plain = after_two_steps(&format!("{{type: {kind}}}"));
        for change in changes {
            let changed = after_two_steps(&format!("{{type: {kind}, {change}}}"));
            assert_ne!(changed, plain, "{kind}, {change}");
        }
        let options = Run::new(&format!("{{type: {kind}}}"), &golden["w0"], &golden["b0"]);
        assert_eq!(options.optimizer.describe().len(), changes.len() + 1, "{kind}");
    };
    let of_both = ["weight_decay: 0.1", "eps: 1", "beta2_decay: -0.5", "clip_threshold: 0.5"];
    check("adamw", &["weight_decay: 0.1", "betas: [0.8, 0.9]", "eps: 1", "state_dtype: int8"]);
    check("adafactor", &[&of_both[..], &["relative_step_floor: 10"]].concat());
    check("adafactor_sum", &of_both);
    check("sgd", &["weight_decay: 0.1", "momentum: 0.5"]);
}

const INT8: &str = "{type: adamw, weight_decay: 0.1, state_dtype: int8}";

/// `[61, 70]`: sixteen blocks of 256 elements and one of 174.
fn numbers(a: i64, b: i64, c: i64) -> Tensor {
    let i = Tensor::arange(61 * 70, (Kind::Int64, Device::Cpu));
    let mixed: Tensor = ((&i * a + b) * &i + c).remainder(2003) - 1001;
    mixed.to_kind(Kind::Float).view([61, 70]) / 1024.0
}

/// The gradient of step `t`: products, so that many are small beside the largest of their block.
fn gradient(t: i64) -> Tensor {
    numbers(31, 17, 791 * t) * numbers(3, 7, 419 * t)
}

/// The matrix after some steps in 8 bits, beside a vector that takes none.
fn stepped_in_8_bits(steps: std::ops::Range<i64>, w: &Tensor, state: &[(String, Tensor)]) -> Run {
    let b = Tensor::zeros([7], (Kind::Float, Device::Cpu));
    let mut run = Run::new(INT8, w, &b);
    if !state.is_empty() {
        run.optimizer.load_state(state).unwrap();
    }
    steps.for_each(|t| run.step(&gradient(t), &b, 0.01));
    run
}

#[test]
fn codebooks_equal_bitsandbytes() {
    let golden = read("adamw8bit.safetensors");
    for (name, signed) in [("signed", true), ("unsigned", false)] {
        let found = Codebook::new(signed, Device::Cpu);
        assert_eq!(bits(found.values()), bits(&golden[name]), "{name}");
    }
}

/// Five steps of bitsandbytes' `AdamW8bit`: the same weights and the same codes. Its products and sums are rounded in another
/// order, so a number halfway between two codes may fall to either.
#[test]
fn a_trajectory_in_8_bits_equals_bitsandbytes() {
    let golden = read("adamw8bit.safetensors");
    for t in [0, 4] {
        let run = stepped_in_8_bits(0..t + 1, &numbers(5, 37, 0), &[]);
        let off = (&run.w - &golden[&format!("w.{t}")]).abs().max().double_value(&[]);
        assert!(off < 1e-6, "step {t}: off by {off:.1e}");
        let moved = (&run.w - numbers(5, 37, 0)).abs().max().double_value(&[]);
        assert!(moved > 0.009 * (t + 1) as f64, "step {t}: moved by {moved}");
        if t == 4 {
            let state: HashMap<_, _> = run.optimizer.state().into_iter().collect();
            for key in ["exp_avg.w", "exp_avg_sq.w"] {
                let apart = (state[key].to_kind(Kind::Int) - golden[key].to_kind(Kind::Int)).abs();
                let differing = apart.count_nonzero(None).int64_value(&[]);
                assert!(differing <= 2, "{key}: {differing} of 4270 codes differ");
                assert!(apart.max().int64_value(&[]) <= 1, "{key}");
            }
            for key in ["exp_avg_absmax.w", "exp_avg_sq_absmax.w"] {
                check_close(key, &state[key], &floats(&golden[key]));
            }
        }
    }
}

/// No number is farther from what is kept of it than half the way between the codes around it, times the scale of its block.
#[test]
fn quantized_numbers_are_the_nearest() {
    for signed in [true, false] {
        let codebook = Codebook::new(signed, Device::Cpu);
        let values = floats(codebook.values());
        // Magnitudes from 1 down to 1e-8; a block of small ones, one of zeros, and a short one at the end.
        let i = Tensor::arange(1124, (Kind::Float, Device::Cpu));
        let magnitudes = (((&i * 0.37).sin() - 1.0) * 4.0 * std::f64::consts::LN_10).exp();
        let x = magnitudes * (&i * 1.7).cos();
        let x = if signed { x } else { x.abs() };
        let _ = x.narrow(0, 256, 256).g_mul_scalar_(1e-12);
        let _ = x.narrow(0, 512, 256).zero_();
        let mut kept = Quantized {
            codebook: &codebook,
            codes: Tensor::zeros([1124], (Kind::Uint8, Device::Cpu)),
            absmax: Tensor::zeros([5], (Kind::Float, Device::Cpu)),
        };
        kept.quantize(x.copy());
        let (absmax, codes) = (floats(&kept.absmax), floats(&kept.codes));
        for (i, (x, y)) in floats(&x).into_iter().zip(floats(&kept.dequantize())).enumerate() {
            let (scale, code) = (absmax[i / 256], codes[i] as usize);
            let half_way = |other: usize| (values[code] - values[other]).abs() / 2.0 * scale;
            let bound = match x < y {
                // The last of the signed codes is -0.993, and numbers go down to -1.
                true if code == 0 => (1.0 + values[0]) * scale,
                true => half_way(code - 1),
                false => half_way((code + 1).min(255)),
            };
            assert!((x - y).abs() <= bound * (1.0 + 1e-5), "{signed}, {i}: {x} is kept as {y}");
        }
        assert_eq!(absmax[2], 0.0);
    }
}

/// What is not a number is seen in its whole block, and in no other.
#[test]
fn a_moment_that_is_not_a_number_is_seen() {
    let codebook = Codebook::new(true, Device::Cpu);
    let mut kept = Quantized {
        codebook: &codebook,
        codes: Tensor::zeros([512], (Kind::Uint8, Device::Cpu)),
        absmax: Tensor::zeros([2], (Kind::Float, Device::Cpu)),
    };
    let x = Tensor::ones([512], (Kind::Float, Device::Cpu));
    let _ = x.narrow(0, 300, 1).fill_(f64::NAN);
    kept.quantize(x);
    let found = floats(&kept.dequantize());
    assert!(found[..256].iter().all(|&x| x == 1.0) && found[256..].iter().all(|x| x.is_nan()));
}

/// A hundred steps down a noisy quadratic bowl of 5,120 dimensions, with curvatures from 0.1 to 10: both lose 96 % of the loss,
/// and end 3 % of the way apart.
#[test]
fn state_in_8_bits_learns_as_in_float32() {
    let steps = |yaml: &str| {
        let i = Tensor::arange(64 * 80, (Kind::Float, Device::Cpu)).view([64, 80]);
        let curvature = ((&i * 0.71).sin() * std::f64::consts::LN_10).exp();
        let goal = (&i * 0.37).cos();
        let b = Tensor::zeros([7], (Kind::Float, Device::Cpu));
        let mut run = Run::new(yaml, &goal.zeros_like(), &b);
        let loss =
            |w: &Tensor| ((w - &goal).square() * &curvature).mean(Kind::Float).double_value(&[]);
        let first = loss(&run.w);
        for t in 0..100 {
            let noise = (&i * 12.9898 + f64::from(t) * 78.233).sin() * 0.3;
            let grad = (&run.w - &goal) * &curvature + noise;
            run.step(&grad, &b, 0.01);
        }
        (loss(&run.w) / first, run.w)
    };
    let (exact_loss, exact) = steps("{type: adamw}");
    let (loss, found) = steps("{type: adamw, state_dtype: int8}");
    let apart = ((&found - &exact).norm() / exact.norm()).double_value(&[]);
    assert!(exact_loss < 0.04, "{exact_loss} of the first loss is left");
    assert!((loss - exact_loss).abs() < 0.003, "{loss}, in float32 {exact_loss}");
    assert!(apart < 0.05, "{apart} of the way apart");
}

#[test]
fn state_in_8_bits_takes_two_bytes_a_parameter() {
    let run = stepped_in_8_bits(0..0, &numbers(5, 37, 0), &[]);
    let of = |(name, x): (String, Tensor)| format!("{name} {:?} {:?}", x.kind(), x.size());
    let found: Vec<String> = run.optimizer.state().into_iter().map(of).collect();
    let expected = [
        "step.w Int64 []",
        "exp_avg.w Uint8 [61, 70]",
        "exp_avg_absmax.w Float [17]",
        "exp_avg_sq.w Uint8 [61, 70]",
        "exp_avg_sq_absmax.w Float [17]",
        "step.b Int64 []",
        "exp_avg.b Float [7]",
        "exp_avg_sq.b Float [7]",
    ];
    assert_eq!(found, expected);
    assert_eq!(run.optimizer.state_bytes(), 2 * (61 * 70 + 4 * 17) + 2 * 4 * 7);
    // A matrix of whole blocks, and the largest that stays in float32.
    let bytes = |size: [i64; 2]| {
        let w = Tensor::zeros(size, (Kind::Float, Device::Cpu));
        Optimizer::new(&options(INT8), &[("w".to_string(), &w)]).state_bytes() as f64
    };
    assert_eq!(bytes([256, 256]) / 65536.0, 2.03125);
    assert_eq!(bytes([64, 64]) / 4096.0, 2.03125);
    assert_eq!(bytes([45, 91]) / 4095.0, 8.0);
}

#[test]
fn resumed_in_8_bits_equals_uninterrupted() {
    let whole = stepped_in_8_bits(0..5, &numbers(5, 37, 0), &[]);
    let first = stepped_in_8_bits(0..2, &numbers(5, 37, 0), &[]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("optimizer.safetensors");
    Tensor::write_safetensors(&first.optimizer.state(), &path).unwrap();
    let saved = Tensor::read_safetensors(&path).unwrap();
    let resumed = stepped_in_8_bits(2..5, &first.w, &saved);
    assert_eq!(bits(&resumed.w), bits(&whole.w));
    for ((name, found), (_, expected)) in
        resumed.optimizer.state().iter().zip(whole.optimizer.state())
    {
        assert_eq!(bits(found), bits(&expected), "{name}");
    }
    // State of the other kind is not taken for it.
    let mut float32 = Run::new("{type: adamw}", &whole.w, &whole.b).optimizer;
    assert_eq!(
        float32.load_state(&saved).unwrap_err().to_string(),
        "optimizer state: exp_avg.w: expected Float [61, 70], found Uint8 [61, 70]"
    );
}

/// ```python
/// g = [Parameter(zeros(3)), Parameter(zeros(2, 2))]
/// g[0].grad, g[1].grad = tensor([1., -2., 3.]), tensor([[0.5, 4.], [-1.5, 2.]])
/// norm = torch.nn.utils.clip_grad_norm_(g, 1.0)
/// ```
#[test]
fn clipping_equals_torch() {
    let grads = || {
        [
            Tensor::from_slice(&[1.0f32, -2.0, 3.0]),
            Tensor::from_slice2(&[[0.5f32, 4.0], [-1.5, 2.0]]),
        ]
    };
    let norm = Tensor::from(6.041522979736328f64);
    let clipped = grads();
    check_close("norm", &norm, &[clip_grad_norm(&clipped, Some(1.0))]);
    check_close(
        "vector",
        &clipped[0],
        &[0.16552114486694336, -0.3310422897338867, 0.4965634346008301],
    );
    check_close(
        "matrix",
        &clipped[1],
        &[0.08276057243347168, 0.6620845794677734, -0.24828171730041504, 0.3310422897338867],
    );
    for max_norm in [Some(100.0), None] {
        let kept = grads();
        check_close("norm", &norm, &[clip_grad_norm(&kept, max_norm)]);
        for (found, expected) in kept.iter().zip(grads()) {
            assert_eq!(bits(found), bits(&expected));
        }
    }
    assert_eq!(clip_grad_norm(&[], Some(1.0)), 0.0);
}

/// The norm of bfloat16 gradients is a float32 sum: in bfloat16, 4096 ones add up to 256.
#[test]
fn norms_are_taken_in_float32() {
    let grads = [Tensor::ones([4096], (Kind::BFloat16, Device::Cpu))];
    assert_eq!(clip_grad_norm(&grads, None), 64.0);
    assert_eq!(clip_grad_norm(&grads, Some(1.0)), 64.0);
    assert_eq!(grads[0].double_value(&[0]), 1.0 / 64.0);
}

#[test]
fn a_norm_that_is_not_a_number_is_seen() {
    let grads = [Tensor::from_slice(&[1.0f32, f32::NAN]), Tensor::from_slice(&[2.0f32])];
    assert!(clip_grad_norm(&grads, Some(1.0)).is_nan());
    assert!(grads[1].double_value(&[0]).is_nan());
}
