//! Optimizer state in 8 bits a number: block-wise dynamic quantization.
//!
//! Dettmers et al. (2022), <https://arxiv.org/abs/2110.02861>: [`QUANTIZATION_BLOCK`] numbers that follow one another share a
//! scale, their largest magnitude `absmax`, and each is kept as one byte, the index of the codebook's number nearest to
//! `x / absmax`. The codebook is dense around zero: of every decade from 1 down to 1e-6 it has half as many numbers as of the
//! one above, evenly spread. With the scales that is 1 + 4/256 bytes a number.
//!
//! Legend: `E` numbers, `Q` blocks, `E / 256` rounded up.

use tch::{Device, Kind, Tensor};

/// Numbers that share a scale, as in the paper.
pub const QUANTIZATION_BLOCK: i64 = 256;
/// The state of parameters with fewer elements stays in float32: norms above all, as in bitsandbytes (`min_8bit_size`).
pub const LEAST_ELEMENTS: i64 = 4096;

/// How many scales so many numbers have.
pub fn blocks(elements: i64) -> i64 {
    (elements + QUANTIZATION_BLOCK - 1) / QUANTIZATION_BLOCK
}

/// Numbers that 8 bits can stand for.
#[derive(Debug)]
pub struct Codebook {
    /// Ascending.
    values: Tensor, // [256], float32
    /// Halfway between two neighbours.
    bounds: Tensor, // [255], float32
}

/// The codebooks of AdamW's moments, on one device.
#[derive(Debug)]
pub struct Codebooks {
    pub exp_avg: Codebook,
    pub exp_avg_sq: Codebook,
}

/// A moment as it is kept.
pub struct Quantized<'a> {
    pub codebook: &'a Codebook,
    pub codes: Tensor,  // [E], uint8
    pub absmax: Tensor, // [Q], float32
}

impl Codebooks {
    pub fn new(device: Device) -> Codebooks {
        Codebooks { exp_avg: Codebook::new(true, device), exp_avg_sq: Codebook::new(false, device) }
    }
}

impl Codebook {
    /// The dynamic codebook, equal to bitsandbytes' `create_dynamic_map(signed)`: 0, 1, and of the decade below `10^-i` the
    /// middles of `2^(6-i)` equal parts (of twice as many if `signed` is false), with both signs if it is true.
    pub fn new(signed: bool, device: Device) -> Codebook {
        const DECADES: i32 = 7;
        let on_host = (Kind::Float, Device::Cpu);
        let mut values = vec![Tensor::from_slice(&[0.0f32, 1.0])];
        for decade in 0..DECADES {
            let parts = 1 << (decade + i32::from(!signed));
            let ends = Tensor::linspace(0.1, 1.0, parts + 1, on_host);
            let middles = (ends.narrow(0, 0, parts) + ends.narrow(0, 1, parts)) / 2.0;
            let of_decade = middles * 10f64.powi(decade - (DECADES - 1));
            if signed {
                values.push(-&of_decade);
            }
            values.push(of_decade);
        }
        let (values, _) = Tensor::cat(&values, 0).sort(0, false);
        let bounds = (values.narrow(0, 0, 255) + values.narrow(0, 1, 255)) / 2.0;
        Codebook { values: values.to_device(device), bounds: bounds.to_device(device) }
    }

    /// The numbers themselves, by code.
    ///
    /// # Shapes
    ///
    /// Returns `[256]`, float32, ascending.
    pub fn values(&self) -> &Tensor {
        &self.values
    }
}

impl Quantized<'_> {
    /// Some of its numbers, from a first one that begins a block.
    pub fn narrow(&self, from: i64, count: i64) -> Quantized<'_> {
        Quantized {
            codebook: self.codebook,
            codes: self.codes.narrow(0, from, count),
            absmax: self.absmax.narrow(0, from / QUANTIZATION_BLOCK, blocks(count)),
        }
    }

    /// The numbers that the codes stand for. One temporary of int32 beside them.
    ///
    /// # Shapes
    ///
    /// Returns `[E]`, float32.
    pub fn dequantize(&self) -> Tensor {
        let values = self.codebook.values.index_select(0, &self.codes.to_kind(Kind::Int));
        for (mut block, absmax) in self.blocks(&values) {
            block *= absmax;
        }
        values
    }

    /// Takes over `values`: of each the code of the nearest number, the lower one of two. A block with a number that is
    /// not finite is not a number as a whole. One temporary of int32.
    ///
    /// # Shapes
    ///
    /// - `values`: `[E]`, float32
    pub fn quantize(&mut self, values: Tensor) {
        for (mut block, mut absmax) in self.blocks(&values) {
            absmax.copy_(&block.norm_scalaropt_dim_dtype(f64::INFINITY, [1], true, Kind::Float));
            // A block of zeros has codes of zero.
            block /= absmax.clamp_min(f64::from(f32::MIN_POSITIVE));
        }
        self.codes.copy_(&values.bucketize(&self.codebook.bounds, true, false));
    }

    /// Views of `x` `[E]` and of the scales beside it: all whole blocks, and the rest, if there is one.
    ///
    /// # Shapes
    ///
    /// Returns `[q, b]` and `[q, 1]`: `b` numbers of each of `q` blocks.
    fn blocks(&self, x: &Tensor) -> Vec<(Tensor, Tensor)> {
        let elements = x.numel() as i64;
        let (whole, rest) = (elements / QUANTIZATION_BLOCK, elements % QUANTIZATION_BLOCK);
        let parts = [(0, whole, QUANTIZATION_BLOCK), (whole, i64::from(rest > 0), rest)];
        let view = |(first, count, size): (i64, i64, i64)| {
            let block = x.narrow(0, first * QUANTIZATION_BLOCK, count * size).view([count, size]);
            (block, self.absmax.narrow(0, first, count).view([count, 1]))
        };
        parts.into_iter().filter(|(_, count, _)| *count > 0).map(view).collect()
    }
}
