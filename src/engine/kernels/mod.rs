//! Fused elementwise passes for bfloat16 on CUDA: one kernel where LibTorch takes several, each with its own trip to memory.
//!
//! Every one stands beside the same arithmetic in LibTorch's operations, which serves on the CPU, for other dtypes, and
//! wherever the kernels can't be had. So each function gives `None` (or `false`) for tensors that its kernel does not take, and
//! has then done nothing. The kernels are in `kernels.cu`; [`state`] says whether they serve.
//!
//! `T` position, `D` hidden, `F` intermediate, `V` vocabulary, `N` query heads, `K` key-value heads, `H` head dim.

use crate::torch::{Argument, Grid, Kernels};
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// Set to `off` in the shell it rules the kernels out: for comparison, and to look for a fault.
const VARIABLE: &str = "FATHOM_KERNELS";

/// Elements that a thread takes at once; rows are multiples of it.
const EIGHT: i64 = 8;
/// Threads of a block, where nothing else is said.
const THREADS: u32 = 256;
/// Rows and columns of a gradient that a block of Adafactor's kernels takes.
const TILE: (i64, i64) = (32, 1024);
/// Blocks of the norm's backward: each holds a gradient of the weight.
const NORM_BLOCKS: i64 = 528;

const NAMES: [&str; 13] = [
    "rms_norm_backward_1",
    "rms_norm_backward_2",
    "rms_norm_backward_4",
    "rotate",
    "unrotate",
    "swiglu",
    "swiglu_backward",
    "cross_entropy",
    "square_of_update",
    "sums_of_squares_bfloat16",
    "sums_of_squares_float32",
    "apply_update_bfloat16",
    "apply_update_float32",
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
        _ => Kernels::compile(include_str!("kernels.cu"), &NAMES, device),
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

/// A matrix's second moments as factors of rows and columns, for [`Fused::adafactor_step`].
#[derive(Debug)]
pub struct Factors<'a> {
    pub rows: &'a Tensor,    // [R], float32
    pub columns: &'a Tensor, // [C], float32
    /// The update is the gradient over the root of `rows * columns`, at least this; `None`: it is their product itself.
    pub least: Option<f64>,
}

/// Sums of squares of a gradient and of its weight.
#[derive(Debug)]
pub struct SumsOfSquares {
    pub by_row: Tensor,    // [R], float32
    pub by_column: Tensor, // [C], float32
    pub of_weight: Tensor, // [], float32
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

    /// The sums that Adafactor's second moments and its relative step are of, in one pass.
    ///
    /// # Shapes
    ///
    /// `gradient`: `[R, C]`, float32; `weight`: `[R, C]`, bfloat16 or float32; both contiguous.
    pub fn sums_of_squares(&self, gradient: &Tensor, weight: &Tensor) -> Option<SumsOfSquares> {
        let (name, (rows, columns), grid) = self.of_matrix("sums_of_squares", gradient, weight)?;
        let (x, y) = (i64::from(grid.blocks.0), i64::from(grid.blocks.1));
        let empty = |size: &[i64]| Tensor::empty(size, (Kind::Float, self.device));
        let (by_row, by_column, of_weight) =
            (empty(&[x, rows]), empty(&[y, columns]), empty(&[x * y]));
        let mut arguments: Vec<Argument> =
            [gradient, weight, &by_row, &by_column, &of_weight].map(Argument::of).into();
        arguments.extend([Argument::Int(rows as i32), Argument::Int(columns as i32)]);
        // SAFETY: the kernel's own arguments; `of_matrix` checked the matrices.
        unsafe { self.launch(&name, grid, &arguments) };
        let summed = |x: Tensor| x.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        Some(SumsOfSquares {
            by_row: summed(by_row),
            by_column: summed(by_column),
            of_weight: summed(of_weight),
        })
    }

    /// The root mean square of Adafactor's update of a matrix, a float32 scalar.
    ///
    /// # Shapes
    ///
    /// `gradient`: `[R, C]`, float32, of which [`Fused::sums_of_squares`] were taken.
    pub fn rms_of_update(&self, gradient: &Tensor, factors: &Factors) -> Tensor {
        let (rows, columns) = gradient.size2().expect("the gradient is [R, C]");
        let grid = tiles(rows, columns);
        let sums = Tensor::empty(
            [i64::from(grid.blocks.0) * i64::from(grid.blocks.1)],
            (Kind::Float, self.device),
        );
        let arguments = [
            Argument::of(gradient),
            Argument::of(factors.rows),
            Argument::of(factors.columns),
            factors.least(),
            Argument::of(&sums),
            Argument::Int(rows as i32),
            Argument::Int(columns as i32),
        ];
        // SAFETY: the kernel's own arguments, of a gradient that `of_matrix` checked.
        unsafe { self.launch("square_of_update", grid, &arguments) };
        (sums.sum(Kind::Float) / (rows * columns) as f64).sqrt_()
    }

    /// `weight = keep * weight + scale * update`, rounded once: at random from `seed`, or to the nearest without.
    ///
    /// # Shapes
    ///
    /// - `weight`: `[R, C]`, bfloat16 or float32; `gradient`: `[R, C]`, float32; both contiguous
    /// - `scale`: a float32 scalar on the device
    pub fn adafactor_step(
        &self,
        weight: &Tensor,
        gradient: &Tensor,
        factors: &Factors,
        scale: &Tensor,
        keep: f64,
        seed: Option<u64>,
    ) {
        let (name, (rows, columns), grid) =
            self.of_matrix("apply_update", gradient, weight).expect("its sums were taken");
        let arguments = [
            Argument::of(weight),
            Argument::of(gradient),
            Argument::of(factors.rows),
            Argument::of(factors.columns),
            factors.least(),
            Argument::of(scale),
            Argument::Float(keep as f32),
            Argument::Seed(seed.unwrap_or(0)),
            Argument::Int(i32::from(seed.is_some())),
            Argument::Int(rows as i32),
            Argument::Int(columns as i32),
        ];
        // SAFETY: the kernel's own arguments; `of_matrix` checked the matrices.
        unsafe { self.launch(&name, grid, &arguments) };
    }

    /// The kernel `name` for a weight of this dtype, the matrix's size, and its tiles.
    fn of_matrix(
        &self,
        name: &str,
        gradient: &Tensor,
        weight: &Tensor,
    ) -> Option<(String, (i64, i64), Grid)> {
        let (rows, columns) = gradient.size2().ok()?;
        let kind = match weight.kind() {
            Kind::BFloat16 => "bfloat16",
            Kind::Float => "float32",
            _ => return None,
        };
        let both = [gradient, weight];
        let readable =
            |x: &&Tensor| x.is_contiguous() && (x.data_ptr() as usize).is_multiple_of(16);
        let fits =
            columns % 4 == 0 && both.iter().all(readable) && weight.size() == [rows, columns];
        let grid = tiles(rows, columns);
        let launchable = grid.blocks.1 <= u32::from(u16::MAX);
        (fits && launchable).then(|| (format!("{name}_{kind}"), (rows, columns), grid))
    }
}

impl Factors<'_> {
    /// As the kernels take it: below 0 for a plain product.
    fn least(&self) -> Argument {
        Argument::Float(self.least.map_or(-1.0, |least| least as f32))
    }
}

/// Blocks over the tiles of a matrix.
fn tiles(rows: i64, columns: i64) -> Grid {
    let count = |size: i64, tile: i64| ((size + tile - 1) / tile) as u32;
    Grid { blocks: (count(columns, TILE.1), count(rows, TILE.0)), threads: THREADS }
}

/// Whether `cos` and `sin` are tables that the kernels read: `[T, H/2]`, float32.
fn tables(cos: &Tensor, sin: &Tensor, t: i64, h: i64) -> bool {
    [cos, sin].iter().all(|table| {
        table.kind() == Kind::Float && table.is_contiguous() && table.size() == [t, h / 2]
    })
}
