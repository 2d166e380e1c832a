//! Adafactor's step of one weight: four kernels for a matrix, one for a vector, and no temporary of the weight's size.
//!
//! `R` rows, `C` columns.

use super::{Fused, THREADS};
use crate::torch::{Argument, Grid};
use tch::{Kind, Tensor};

/// Columns that a block takes; and rows, of a matrix with fewer tiles than keep a device busy, and of others.
const TILE_COLUMNS: i64 = 1024;
const TILE_ROWS: [i64; 2] = [8, 32];
const TILES_THAT_KEEP_BUSY: i64 = 256;
/// Columns and rows of which a block moves the second moments on.
const MOMENTS_AT_ONCE: (i64, i64) = (32, THREADS as i64);
/// Threads of the one block that steps a vector, and elements above which one block is too few.
const VECTOR_THREADS: u32 = 1024;
const LARGEST_VECTOR: usize = 1 << 16;
/// Numbers that are known of a whole matrix; the last is the sum of squares of the gradient.
const FACTORS: i64 = 4;

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
    /// Steps a matrix and its second moments. Returns the sum of squares of the gradient, a float32 scalar.
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
    ) -> Option<Tensor> {
        let (kind, (rows, columns)) = (name_of(weight)?, gradient.size2().ok()?);
        let across = |size: i64, tile: i64| (size + tile - 1) / tile;
        let x = across(columns, TILE_COLUMNS);
        let [few, many] = TILE_ROWS;
        let tile_rows = if x * across(rows, many) < TILES_THAT_KEEP_BUSY { few } else { many };
        let y = across(rows, tile_rows);
        let fits = columns % 4 == 0
            && rows * columns > 0
            && y <= i64::from(u16::MAX)
            && weight.size() == [rows, columns]
            && [weight, gradient, row_moments, column_moments].into_iter().all(readable)
            && (row_moments.numel() as i64, column_moments.numel() as i64) == (rows, columns);
        if !fits {
            return None;
        }
        let of_rows = across(rows, MOMENTS_AT_ONCE.1);
        let of_moments = Grid {
            blocks: ((across(columns, MOMENTS_AT_ONCE.0) + of_rows) as u32, 1),
            threads: THREADS,
        };
        let of_tiles = Grid { blocks: (x as u32, y as u32), threads: THREADS };

        // One allocation for what the kernels tell each other; each part begins at a multiple of 16 bytes.
        let sizes = [x * rows, y * columns, x * y, 2 * of_rows, x * y, FACTORS];
        let mut length = 0;
        let places = sizes.map(|size| {
            let place = length;
            length += (size + 3) / 4 * 4;
            place as usize
        });
        let workspace = Tensor::empty([length], (Kind::Float, self.device));
        let [by_row, by_column, of_weight, in_moments, in_update, factors] = places
            .map(|place| Argument::Pointer(workspace.data_ptr().wrapping_byte_add(4 * place)));

        let [weight, gradient, row_moments, column_moments] =
            [weight, gradient, row_moments, column_moments].map(Argument::of);
        let (size, floor) = step.rule.arguments();
        let [share, eps, floor, size, clip, keep] =
            [step.share, step.eps, floor, size, step.clip_threshold, step.keep]
                .map(|value| Argument::Float(value as f32));
        let [rows, columns, x, y, tile_rows] =
            [rows, columns, x, y, tile_rows].map(|value| Argument::Int(value as i32));
        let moments = [row_moments, column_moments];
        let sums_of_squares = [by_row, by_column, of_weight];
        let in_tiles = [rows, columns, tile_rows];
        let [summed, moved, scaled, applied] = [
            [&[gradient, weight], &sums_of_squares[..], &in_tiles].concat(),
            [
                &moments,
                &sums_of_squares[..],
                &[in_moments, factors, share, eps, floor, size],
                &[rows, columns, x, y],
            ]
            .concat(),
            [&[gradient], &moments[..], &[factors, in_update, eps, floor, clip], &in_tiles]
                .concat(),
            [
                &[weight, gradient],
                &moments[..],
                &[factors, eps, floor, keep],
                &rounding(step),
                &in_tiles,
            ]
            .concat(),
        ];
        // SAFETY: the kernels' own arguments; sizes, dtypes and alignment were checked above, and the workspace has room for
        // every part.
        unsafe {
            self.launch(&format!("adafactor_sums_{kind}"), of_tiles, &summed);
            self.launch("adafactor_moments", of_moments, &moved);
            self.launch("adafactor_scale", of_tiles, &scaled);
            self.launch(&format!("adafactor_apply_{kind}"), of_tiles, &applied);
        }
        Some(workspace.get(length - 1))
    }

    /// Steps a vector and its second moments. Returns the sum of squares of the gradient, a float32 scalar.
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
    ) -> Option<Tensor> {
        let kind = name_of(weight)?;
        let count = weight.numel();
        let fits = weight.dim() == 1
            && (1..=LARGEST_VECTOR).contains(&count)
            && [weight, gradient, moments].into_iter().all(|x| readable(x) && x.numel() == count);
        if !fits {
            return None;
        }
        let squares = Tensor::empty([0i64; 0], (Kind::Float, self.device));
        let (size, floor) = step.rule.arguments();
        let mut arguments: Vec<Argument> =
            [weight, gradient, moments, &squares].map(Argument::of).into();
        arguments.extend(
            [step.share, step.eps, floor, size, step.clip_threshold, step.keep]
                .map(|value| Argument::Float(value as f32)),
        );
        arguments.extend(rounding(step));
        arguments.push(Argument::Int(count as i32));
        let grid = Grid { blocks: (1, 1), threads: VECTOR_THREADS };
        // SAFETY: the kernel's own arguments; sizes and dtypes were checked above.
        unsafe { self.launch(&format!("adafactor_vector_{kind}"), grid, &arguments) };
        Some(squares)
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
