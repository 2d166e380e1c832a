//! Turns ggml's stored blocks into float32.
//!
//! Block layouts from `ggml-common.h`, arithmetic from `ggml-quants.c` of ggml. Every product and sum is taken in float32
//! in the same order as there, so the values are the same bits. Legend: `d` scale, `m` minimum, `q` quantized value.

use super::GgmlType;
use anyhow::{Result, ensure};
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements that one task converts: large enough to hide rayon, small enough to spread one tensor over all cores.
const TASK_ELEMENTS: usize = 1 << 16;

/// Writes the `num_elements` values stored in `bytes` to `out`, on all cores.
///
/// # Errors
///
/// When `bytes` is not as long as `num_elements` of `dtype` are, when they are not whole blocks, or when `out` does not
/// have `num_elements` places.
pub fn dequantize(
    dtype: GgmlType,
    bytes: &[u8],
    num_elements: usize,
    out: &mut [f32],
) -> Result<()> {
    let (length, size) = (dtype.block_length(), dtype.block_bytes());
    ensure!(
        num_elements.is_multiple_of(length) && bytes.len() == num_elements / length * size,
        "{}: expected {num_elements} elements in blocks of {length} ({size} bytes each), found {} bytes",
        dtype.name(),
        bytes.len()
    );
    ensure!(
        out.len() == num_elements,
        "expected room for {num_elements} values, found {}",
        out.len()
    );

    let block: fn(&[u8], &mut [f32]) = match dtype {
        GgmlType::F32 => |x, y| y[0] = f32::from_le_bytes([x[0], x[1], x[2], x[3]]),
        GgmlType::F16 => |x, y| y[0] = half_at(x, 0),
        GgmlType::BF16 => |x, y| y[0] = bf16::from_le_bytes([x[0], x[1]]).to_f32(),
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q4_K => q4_k,
        GgmlType::Q5_K => q5_k,
        GgmlType::Q6_K => q6_k,
    };
    let task_blocks = TASK_ELEMENTS / length;
    out.par_chunks_mut(task_blocks * length).zip(bytes.par_chunks(task_blocks * size)).for_each(
        |(out, bytes)| {
            for (y, x) in out.chunks_exact_mut(length).zip(bytes.chunks_exact(size)) {
                block(x, y);
            }
        },
    );
    Ok(())
}

fn half_at(x: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([x[at], x[at + 1]]).to_f32()
}

/// `d: f16`, 16 bytes of nibbles: the low ones are the first half of the block. `y = d (q - 8)`.
fn q4_0(x: &[u8], y: &mut [f32]) {
    let d = half_at(x, 0);
    for (i, &q) in x[2..18].iter().enumerate() {
        y[i] = d * ((q & 15) as i32 - 8) as f32;
        y[i + 16] = d * ((q >> 4) as i32 - 8) as f32;
    }
}

/// `d: f16`, `m: f16`, 16 bytes of nibbles. `y = d q + m`.
fn q4_1(x: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(x, 0), half_at(x, 2));
    for (i, &q) in x[4..20].iter().enumerate() {
        y[i] = d * (q & 15) as f32 + m;
        y[i + 16] = d * (q >> 4) as f32 + m;
    }
}

/// `d: f16`, 32 fifth bits, 16 bytes of nibbles. `y = d (q - 16)`.
fn q5_0(x: &[u8], y: &mut [f32]) {
    let d = half_at(x, 0);
    let high = u32::from_le_bytes([x[2], x[3], x[4], x[5]]);
    for (i, &q) in x[6..22].iter().enumerate() {
        y[i] = d * ((q & 15) as i32 + fifth_bit(high, i) - 16) as f32;
        y[i + 16] = d * ((q >> 4) as i32 + fifth_bit(high, i + 16) - 16) as f32;
    }
}

/// `d: f16`, `m: f16`, 32 fifth bits, 16 bytes of nibbles. `y = d q + m`.
fn q5_1(x: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(x, 0), half_at(x, 2));
    let high = u32::from_le_bytes([x[4], x[5], x[6], x[7]]);
    for (i, &q) in x[8..24].iter().enumerate() {
        y[i] = d * ((q & 15) as i32 + fifth_bit(high, i)) as f32 + m;
        y[i + 16] = d * ((q >> 4) as i32 + fifth_bit(high, i + 16)) as f32 + m;
    }
}

fn fifth_bit(high: u32, i: usize) -> i32 {
    (high >> i & 1) as i32 * 16
}

/// `d: f16`, 32 signed bytes. `y = d q`.
fn q8_0(x: &[u8], y: &mut [f32]) {
    let d = half_at(x, 0);
    for (y, &q) in y.iter_mut().zip(&x[2..34]) {
        *y = d * (q as i8) as f32;
    }
}

/// `d: f16`, `dmin: f16`, 12 bytes of scales and minima, 128 bytes of nibbles. `y = (d scale) q - (dmin min)`.
///
/// Eight sub-blocks of 32, in pairs that share 32 bytes: low nibbles, then high ones.
fn q4_k(x: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(x, 0), half_at(x, 2));
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&x[4..16], j);
        let (scale, min) = (d * scale, dmin * min);
        let shift = j % 2 * 4;
        let q = &x[16 + j / 2 * 32..][..32];
        for (y, &q) in y.iter_mut().zip(q) {
            *y = scale * (q >> shift & 15) as f32 - min;
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before the nibbles: bit `j` of byte `i` belongs to sub-block `j`.
fn q5_k(x: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(x, 0), half_at(x, 2));
    let high = &x[16..48];
    for (j, y) in y.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&x[4..16], j);
        let (scale, min) = (d * scale, dmin * min);
        let shift = j % 2 * 4;
        let q = &x[48 + j / 2 * 32..][..32];
        for ((y, &q), &high) in y.iter_mut().zip(q).zip(high) {
            *y = scale * ((q >> shift & 15) + (high >> j & 1) * 16) as f32 - min;
        }
    }
}

/// The six-bit scale and minimum of sub-block `j`: `get_scale_min_k4` of ggml.
fn scale_and_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (scale as f32, min as f32)
}

/// 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales (one for 16 elements), `d: f16`.
/// `y = (d scale) (q - 32)`.
///
/// Two halves of 128 elements; in each, four runs of 32 take their nibbles from 64 bytes and their bit pairs from 32.
fn q6_k(x: &[u8], y: &mut [f32]) {
    let d = half_at(x, 208);
    for (run, y) in y.chunks_exact_mut(32).enumerate() {
        let (half, quarter) = (run / 4, run % 4);
        let low = &x[half * 64 + quarter % 2 * 32..][..32];
        let high = &x[128 + half * 32..][..32];
        for (i, y) in y.iter_mut().enumerate() {
            let scale = d * (x[192 + run * 2 + i / 16] as i8) as f32;
            let q = low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (quarter * 2) & 3) << 4;
            *y = scale * (q as i32 - 32) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every type against the values that the Python package `gguf` 0.19 gives, bit for bit. Made with:
    ///
    /// ```python
    /// # For each type: its number (u32), the count of bytes (u32), the bytes, the count of values (u32), the values.
    /// import struct, numpy as np, gguf
    /// rng = np.random.default_rng(20)
    /// names = "F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K".split()
    /// scales = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
    ///           "Q6_K": [208], "F16": [0]}
    /// with open("tests/data/data_gguf_goldens.bin", "wb") as f:
    ///     for name in names:
    ///         t = gguf.GGMLQuantizationType[name]
    ///         length, size = gguf.GGML_QUANT_SIZES[t]
    ///         n = 3 if length > 1 else 24
    ///         raw = rng.integers(0, 256, (n, size), dtype=np.uint8)
    ///         for at in scales.get(name, []):  # ordinary halves; the rest is any bit pattern
    ///             raw[:, at:at + 2] = rng.normal(0, 0.1, (n, 1)).astype(np.float16).view(np.uint8)
    ///         if name in ("F32", "BF16"):
    ///             raw = rng.normal(0, 1, (n, 1)).astype(np.float32).view(np.uint8)[:, -size:].copy()
    ///         if length == 1 and name != "BF16":
    ///             raw = raw.reshape(-1).view(np.float32 if name == "F32" else np.float16)
    ///             y = gguf.quants.dequantize(raw, t)
    ///         else:
    ///             y = gguf.quants.dequantize(raw.reshape(-1), t)
    ///         y = np.asarray(y, dtype=np.float32).reshape(-1)
    ///         assert np.isfinite(y).all() and y.size == n * length
    ///         f.write(struct.pack("<II", int(t), raw.nbytes) + raw.tobytes())
    ///         f.write(struct.pack("<I", y.size) + y.astype("<f4").tobytes())
    /// ```
    #[test]
    fn agrees_with_the_reference_implementation_bit_for_bit() {
        let mut goldens: &[u8] = include_bytes!("../../../tests/data/data_gguf_goldens.bin");
        let mut take = |n: usize| {
            let (bytes, rest) = goldens.split_at(n);
            goldens = rest;
            bytes
        };
        for dtype in GgmlType::ALL {
            let mut number = || u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
            assert_eq!(number(), dtype.number() as usize);
            let size = number();
            let bytes = take(size);
            let n = u32::from_le_bytes(take(4).try_into().unwrap()) as usize;
            let expected: Vec<_> =
                take(n * 4).chunks(4).map(|v| u32::from_le_bytes(v.try_into().unwrap())).collect();
            // Repeated until several tasks share the work.
            let times = 2 * TASK_ELEMENTS / n + 1;
            let mut out = vec![f32::NAN; n * times];
            dequantize(dtype, &bytes.repeat(times), n * times, &mut out).unwrap();
            for (i, value) in out.iter().enumerate() {
                assert_eq!(value.to_bits(), expected[i % n], "{} element {i}", dtype.name());
            }
        }
        assert!(goldens.is_empty());
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() {
        let error = dequantize(GgmlType::Q4_0, &[0; 18], 33, &mut [0.0; 33]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Q4_0: expected 33 elements in blocks of 32 (18 bytes each), found 18 bytes"
        );
        let error = dequantize(GgmlType::F32, &[0; 8], 2, &mut [0.0; 3]).unwrap_err();
        assert_eq!(error.to_string(), "expected room for 2 values, found 3");
    }
}
