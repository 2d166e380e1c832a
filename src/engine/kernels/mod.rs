//! Fused elementwise passes for bfloat16 on CUDA: one kernel where LibTorch takes several, each with its own trip to memory.
//!
//! Every one stands beside the same arithmetic in LibTorch's operations, which serves on the CPU, for other dtypes, and
//! wherever the kernels can't be had. So each function gives `None` (or `false`) for tensors that its kernel does not take, and
//! has then done nothing. The kernels are in `kernels.cu` and `adafactor.cu`; [`state`] says whether they serve.
//!
//! `T` position, `D` hidden, `F` intermediate, `V` vocabulary, `N` query heads, `K` key-value heads, `H` head dim.

pub mod adafactor;

use crate::torch::{Argument, Grid, Kernels};
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// Set to `off` in the shell it rules the kernels out: for comparison, and to look for a fault.
const VARIABLE: &str = "FATHOM_KERNELS";

/// The kernels of this module and of [`adafactor`].
const SOURCE: &str = concat!(include_str!("kernels.cu"), include_str!("adafactor.cu"));

/// Elements that a thread takes at once; rows are multiples of it.
const EIGHT: i64 = 8;
/// Threads of a block, where nothing else is said.
const THREADS: u32 = 256;
/// Blocks of the norm's backward: each holds a gradient of the weight.
const NORM_BLOCKS: i64 = 528;

const NAMES: [&str; 16] = [
    "rms_norm_backward_1",
    "rms_norm_backward_2",
    "rms_norm_backward_4",
    "rotate",
    "unrotate",
    "swiglu",
    "swiglu_backward",
    "cross_entropy",
    "adafactor_moments",
    "adafactor_scale",
    "adafactor_sums_bfloat16",
    "adafactor_sums_float32",
    "adafactor_apply_bfloat16",
    "adafactor_apply_float32",
    "adafactor_vector_bfloat16",
    "adafactor_vector_float32",
];

/// The kernels on a device that has them.
#[derive(Debug, Clone, Copy)]
pub struct Fused {
    kernels: &'static Kernels,
    device: Device,
}

/// The kernels for `device`, compiled once a process. The error says in one line why there are none.
fn load(device: Device) -> Result<Fused, &'static str> {
    static LOADED: OnceLock<Result<Kernels, String>> = OnceLock::new();
    if !device.is_cuda() {
        return Err("the device is not CUDA");
    }
    let loaded = LOADED.get_or_init(|| match std::env::var(VARIABLE) {
        Ok(value) if value == "off" => Err(format!("{VARIABLE}=off")),
        _ => Kernels::compile(SOURCE, &NAMES, device),
    });
    match loaded {
        Ok(kernels) => Ok(Fused { kernels, device }),
        Err(reason) => Err(reason),
    }
}

/// `fused`, or why LibTorch's own operations serve in their place.
pub fn state(device: Device) -> String {
    match load(device) {
        Ok(_) => "fused".into(),
        Err(reason) => format!("LibTorch's: {reason}"),
    }
}

/// The kernels for the activations `x`.
pub fn of(x: &Tensor) -> Option<Fused> {
    if x.kind() == Kind::BFloat16 { load(x.device()).ok() } else { None }
}

/// The kernels for a float32 gradient.
pub fn of_gradient(gradient: &Tensor) -> Option<Fused> {
    if gradient.kind() == Kind::Float { load(gradient.device()).ok() } else { None }
}

/// Whether rows of `x` can be read eight elements at a time.
fn in_eights(x: &Tensor) -> bool {
    let columns = x.size().last().copied().unwrap_or(1);
    x.is_contiguous() && columns % EIGHT == 0 && (x.data_ptr() as usize).is_multiple_of(16)
}

/// One thread for each of `count` things.
fn threads_for(count: i64) -> Grid {
    Grid { blocks: ((count as u64).div_ceil(u64::from(THREADS)) as u32, 1), threads: THREADS }
}

impl Fused {
    /// # Safety
    ///
    /// As [`Kernels::launch`].
    unsafe fn launch(&self, name: &str, grid: Grid, arguments: &[Argument]) {
        // SAFETY: the caller's promise.
        unsafe { self.kernels.launch(name, grid, arguments, self.device) };
    }

    /// The backward of the root mean square norm: adds the gradient of `x` to `dx` and that of the weight to `d_weight`.
    ///
    /// # Shapes
    ///
    /// - `dx`, `dy`, `x`: `[T, D]`; `weight`: `[D]`; bfloat16
    /// - `d_weight`: `[D]`, float32
    pub fn rms_norm_backward(
        &self,
        dx: &Tensor,
        d_weight: &Tensor,
        dy: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        eps: f64,
    ) -> bool {
        let (t, d) = x.size2().expect("x is [T, D]");
        let name = match d / EIGHT {
            ..=256 => "rms_norm_backward_1",
            257..=512 => "rms_norm_backward_2",
            513..=1024 => "rms_norm_backward_4",
            _ => return false,
        };
        let bfloat16 = [dx, dy, x, weight].iter().all(|x| x.kind() == Kind::BFloat16);
        if !bfloat16 || ![dx, dy, x, weight].into_iter().all(in_eights) {
            return false;
        }
        let blocks = NORM_BLOCKS.min(t);
        let by_block = Tensor::empty([blocks, d], (Kind::Float, self.device));
        let [dx, by_block_at, dy, x, weight] = [dx, &by_block, dy, x, weight].map(Argument::of);
        let arguments = [
            dx,
            by_block_at,
            dy,
            x,
            weight,
            Argument::Long(t),
            Argument::Int(d as i32),
            Argument::Float(eps as f32),
        ];
        let grid = Grid { blocks: (blocks as u32, 1), threads: THREADS };
        // SAFETY: the kernel's own arguments; sizes and dtypes were checked above.
        unsafe { self.launch(name, grid, &arguments) };
        let sum = by_block.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        let _ = d_weight.shallow_clone().g_add_(&sum);
        true
    }

    /// Rotates the first `heads` heads of every position in place.
    ///
    /// # Shapes
    ///
    /// - `x`: `[T, all heads, H]`, bfloat16, contiguous
    /// - `cos`, `sin`: `[T, H/2]`, float32
    pub fn rotate_(&self, x: &Tensor, heads: i64, cos: &Tensor, sin: &Tensor) -> bool {
        let (t, all, h) = x.size3().expect("x is [T, heads, H]");
        if h % 4 != 0 || !in_eights(x) || !tables(cos, sin, t, h) {
            return false;
        }
        let arguments = [
            Argument::of(x),
            Argument::of(cos),
            Argument::of(sin),
            Argument::Long(t),
            Argument::Int(heads as i32),
            Argument::Int((h / 2) as i32),
            Argument::Long(all * h),
        ];
        // SAFETY: the kernel's own arguments; sizes and dtypes were checked above.
        unsafe { self.launch("rotate", threads_for(t * heads * h / 4), &arguments) };
        true
    }

    /// The gradients of queries and keys turned back, and of values, side by side.
    ///
    /// # Shapes
    ///
    /// - `dq`: `[T, N, H]`; `dk`, `dv`: `[T, K, H]`; bfloat16, only `H` has to be contiguous
    /// - `cos`, `sin`: `[T, H/2]`, float32
    /// - returns: `[T, (N + 2 K) H]`
    pub fn unrotate(&self, parts: [&Tensor; 3], cos: &Tensor, sin: &Tensor) -> Option<Tensor> {
        let (t, n, h) = parts[0].size3().expect("dq is [T, N, H]");
        let (_, k, _) = parts[1].size3().expect("dk is [T, K, H]");
        let readable = |x: &Tensor| {
            let strides = x.stride();
            x.kind() == Kind::BFloat16
                && strides[2] == 1
                && strides[..2].iter().all(|stride| stride % 2 == 0)
                && (x.data_ptr() as usize).is_multiple_of(4)
        };
        if h % 4 != 0 || !parts.into_iter().all(readable) || !tables(cos, sin, t, h) {
            return None;
        }
        let heads = n + 2 * k;
        let to = Tensor::empty([t, heads * h], (Kind::BFloat16, self.device));
        let mut arguments = vec![Argument::of(&to)];
        arguments.extend(parts.map(Argument::of));
        arguments.extend([
            Argument::of(cos),
            Argument::of(sin),
            Argument::Long(t),
            Argument::Int(n as i32),
            Argument::Int(k as i32),
            Argument::Int((h / 2) as i32),
        ]);
        for part in parts {
            arguments.extend(part.stride()[..2].iter().map(|stride| Argument::Long(*stride)));
        }
        // SAFETY: the kernel's own arguments; strides, sizes and dtypes were checked above.
        unsafe { self.launch("unrotate", threads_for(t * heads * h / 4), &arguments) };
        Some(to)
    }

    /// `gate` becomes `silu(gate) * up`.
    ///
    /// # Shapes
    ///
    /// `gate`, `up`: `[T, F]`, bfloat16, contiguous.
    pub fn swiglu_(&self, gate: &Tensor, up: &Tensor) -> bool {
        if ![gate, up].into_iter().all(in_eights) {
            return false;
        }
        let eights = gate.numel() as i64 / EIGHT;
        let arguments = [Argument::of(gate), Argument::of(up), Argument::Long(eights)];
        // SAFETY: the kernel's own arguments; both tensors have as many elements.
        unsafe { self.launch("swiglu", threads_for(eights), &arguments) };
        true
    }

    /// The backward of `y = silu(gate) * up`: `gate` and `up` become their gradients, and `d`, the gradient of `y`, becomes `y`.
    ///
    /// # Shapes
    ///
    /// `gate`, `up`, `d`: `[T, F]`, bfloat16, contiguous.
    pub fn swiglu_backward_(&self, gate: &Tensor, up: &Tensor, d: &Tensor) -> bool {
        if ![gate, up, d].into_iter().all(in_eights) {
            return false;
        }
        let eights = gate.numel() as i64 / EIGHT;
        let [gate, up, d] = [gate, up, d].map(Argument::of);
        // SAFETY: the kernel's own arguments; the three tensors have as many elements.
        unsafe {
            self.launch(
                "swiglu_backward",
                threads_for(eights),
                &[gate, up, d, Argument::Long(eights)],
            );
        }
        true
    }

    /// `logits` become the gradient of `scale` times the sum of NLL; returns the NLL, 0 where the label is negative.
    ///
    /// # Shapes
    ///
    /// - `logits`: `[T, V]`, bfloat16, contiguous; `labels`: `[T]`, int64
    /// - returns: `[T]`, float32
    pub fn cross_entropy_(&self, logits: &Tensor, labels: &Tensor, scale: f64) -> Option<Tensor> {
        let (t, v) = logits.size2().expect("logits are [T, V]");
        if !in_eights(logits) || !labels.is_contiguous() {
            return None;
        }
        let nll = Tensor::empty([t], (Kind::Float, self.device));
        let [logits, labels, to] = [logits, labels, &nll].map(Argument::of);
        let arguments =
            [logits, labels, to, Argument::Int(v as i32), Argument::Float(scale as f32)];
        // SAFETY: the kernel's own arguments; labels are below V, as the tokenizer makes them.
        unsafe {
            self.launch("cross_entropy", Grid { blocks: (t as u32, 1), threads: 1024 }, &arguments);
        }
        Some(nll)
    }
}

/// Whether `cos` and `sin` are tables that the kernels read: `[T, H/2]`, float32.
fn tables(cos: &Tensor, sin: &Tensor, t: i64, h: i64) -> bool {
    [cos, sin].iter().all(|table| {
        table.kind() == Kind::Float && table.is_contiguous() && table.size() == [t, h / 2]
    })
}
