//! Adafactor's step of one weight: four kernels for a matrix, one for a vector, and no temporary of the weight's size.
//!
//! `R` rows, `C` columns.

use super::{Fused, THREADS};
use crate::torch::{Argument, Grid};
use tch::{Kind, Tensor};

/// Rows and columns that a block takes.
const TILE: (i64, i64) = (32, 1024);
/// Columns and rows of which a block moves the second moments on.
const MOMENTS_AT_ONCE: (i64, i64) = (32, THREADS as i64);
/// Threads of the one block that steps a vector, and elements above which one block is too few.
const VECTOR_THREADS: u32 = 1024;
const LARGEST_VECTOR: usize = 1 << 16;
/// Numbers that are known of a whole matrix.
const FACTORS: i64 = 3;

/// What a step goes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdafactorStep {
    pub rule: AdafactorRule,
    /// Of the new squares in the second moments, up to 1.
    pub share: f64,
    pub eps: f64,
    /// The root mean square of the update, at most.
    pub clip_threshold: f64,
    /// What is left of the weight before the update: one, less the decay.
    pub keep: f64,
    /// Seeds the rounding of bfloat16; `None` rounds to the nearest.
    pub seed: Option<u64>,
}

/// How second moments are made, and how long a step is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AdafactorRule {
    /// `torch.optim.Adafactor`: means of squares, and a step relative to the weight's root mean square, at least `floor`.
    Means { relative_step: f64, floor: f64 },
    /// Sums of squares with `eps` added to each, and a step of the learning rate itself.
    Sums { learning_rate: f64 },
}

impl AdafactorRule {
    /// The step's size and the floor, as the kernels take them: below 0 for sums.
    fn arguments(self) -> (f64, f64) {
        match self {
            AdafactorRule::Means { relative_step, floor } => (relative_step, floor.max(0.0)),
            AdafactorRule::Sums { learning_rate } => (learning_rate, -1.0),
        }
    }
}

impl Fused {
    /// Steps a matrix and its second moments.
    ///
    /// # Shapes
    ///
    /// - `weight`: `[R, C]`, bfloat16 or float32; `gradient`: `[R, C]`, float32
    /// - `row_moments`: `R` numbers, `column_moments`: `C`; float32
    /// - all contiguous
    pub fn adafactor_matrix(
        &self,
        weight: &Tensor,
        gradient: &Tensor,
        row_moments: &Tensor,
        column_moments: &Tensor,
        step: &AdafactorStep,
    ) -> bool {
        let (Some(kind), Ok((rows, columns))) = (name_of(weight), gradient.size2()) else {
            return false;
        };
        let across = |size: i64, tile: i64| (size + tile - 1) / tile;
        let (x, y) = (across(columns, TILE.1), across(rows, TILE.0));
        let fits = columns % 4 == 0
            && rows * columns > 0
            && y <= i64::from(u16::MAX)
            && weight.size() == [rows, columns]
            && [weight, gradient, row_moments, column_moments].into_iter().all(readable)
            && (row_moments.numel() as i64, column_moments.numel() as i64) == (rows, columns);
        if !fits {
            return false;
        }
        let of_rows = across(rows, MOMENTS_AT_ONCE.1);
        let moments = Grid {
            blocks: ((across(columns, MOMENTS_AT_ONCE.0) + of_rows) as u32, 1),
            threads: THREADS,
        };
        let tiles = Grid { blocks: (x as u32, y as u32), threads: THREADS };

        // One allocation for what the kernels tell each other; each part begins at a multiple of 16 bytes.
        let sizes = [x * rows, y * columns, x * y, of_rows, x * y, FACTORS];
        let mut length = 0;
        let places = sizes.map(|size| {
            let place = length;
            length += (size + 3) / 4 * 4;
            place as usize
        });
        let workspace = Tensor::empty([length], (Kind::Float, self.device));
        let [by_row, by_column, of_weight, of_moments, of_update, factors] = places
            .map(|place| Argument::Pointer(workspace.data_ptr().wrapping_byte_add(4 * place)));

        let [weight, gradient, row_moments, column_moments] =
            [weight, gradient, row_moments, column_moments].map(Argument::of);
        let (size, floor) = step.rule.arguments();
        let [share, eps, floor, size, clip, keep] =
            [step.share, step.eps, floor, size, step.clip_threshold, step.keep]
                .map(|value| Argument::Float(value as f32));
        let [rows, columns, x, y] = [rows, columns, x, y].map(|value| Argument::Int(value as i32));
        let [seed, stochastic] = rounding(step);
        let sums = [gradient, weight, by_row, by_column, of_weight, rows, columns];
        let moved = [
            row_moments,
            column_moments,
            by_row,
            by_column,
            of_weight,
            of_moments,
            factors,
            share,
            eps,
            floor,
            size,
            rows,
            columns,
            x,
            y,
        ];
        let scaled = [
            gradient,
            row_moments,
            column_moments,
            factors,
            of_update,
            eps,
            floor,
            clip,
            rows,
            columns,
        ];
        let applied = [
            weight,
            gradient,
            row_moments,
            column_moments,
            factors,
            eps,
            floor,
            keep,
            seed,
            stochastic,
            rows,
            columns,
        ];
        // SAFETY: the kernels' own arguments; sizes, dtypes and alignment were checked above, and the workspace has room for
        // every part.
        unsafe {
            self.launch(&format!("adafactor_sums_{kind}"), tiles, &sums);
            self.launch("adafactor_moments", moments, &moved);
            self.launch("adafactor_scale", tiles, &scaled);
            self.launch(&format!("adafactor_apply_{kind}"), tiles, &applied);
        }
        true
    }

    /// Steps a vector and its second moments.
    ///
    /// # Shapes
    ///
    /// `weight`: `[C]`, bfloat16 or float32; `gradient`, `moments`: `[C]`, float32; all contiguous.
    pub fn adafactor_vector(
        &self,
        weight: &Tensor,
        gradient: &Tensor,
        moments: &Tensor,
        step: &AdafactorStep,
    ) -> bool {
        let Some(kind) = name_of(weight) else { return false };
        let count = weight.numel();
        let fits = weight.dim() == 1
            && (1..=LARGEST_VECTOR).contains(&count)
            && [weight, gradient, moments].into_iter().all(|x| readable(x) && x.numel() == count);
        if !fits {
            return false;
        }
        let (size, floor) = step.rule.arguments();
        let mut arguments: Vec<Argument> = [weight, gradient, moments].map(Argument::of).into();
        arguments.extend(
            [step.share, step.eps, floor, size, step.clip_threshold, step.keep]
                .map(|value| Argument::Float(value as f32)),
        );
        arguments.extend(rounding(step));
        arguments.push(Argument::Int(count as i32));
        let grid = Grid { blocks: (1, 1), threads: VECTOR_THREADS };
        // SAFETY: the kernel's own arguments; sizes and dtypes were checked above.
        unsafe { self.launch(&format!("adafactor_vector_{kind}"), grid, &arguments) };
        true
    }
}

/// What kernels for a weight of this dtype are called.
fn name_of(weight: &Tensor) -> Option<&'static str> {
    match weight.kind() {
        Kind::BFloat16 => Some("bfloat16"),
        Kind::Float => Some("float32"),
        _ => None,
    }
}

/// Whether a tensor can be read four elements at a time: it begins at a multiple of 16 bytes.
fn readable(x: &Tensor) -> bool {
    x.is_contiguous() && (x.data_ptr() as usize).is_multiple_of(16)
}

/// Seed, and whether it is used.
fn rounding(step: &AdafactorStep) -> [Argument; 2] {
    [Argument::Seed(step.seed.unwrap_or(0)), Argument::Int(i32::from(step.seed.is_some()))]
}
