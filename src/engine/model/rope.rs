//! Rotary position embedding: the inverse frequencies of every `rope_type`, and the rotation.
//!
//! `T` position, `H` head dim; `i` counts the `H/2` frequencies. Formulas in float64, checked against transformers 5.23
//! (`modeling_rope_utils.py`), whose float32 they match to 1e-6.

use fathom_spec::config::{ModelConfig, RopeParameters, RopeType};
use std::f64::consts::PI;
use tch::{Device, Kind, Tensor};

/// Positions below this have float32 angles.
const FLOAT32_POSITIONS: i64 = 131_072;

/// A RoPE, ready to make tables of any length.
#[derive(Debug, Clone)]
pub struct Rope {
    pub parameters: RopeParameters,
    head_dim: usize,
    theta: f64,
    /// The window before scaling, `L`; for `dynamic` the window `M` past which the base grows.
    original: f64,
    /// The window after scaling: `longrope` without a `factor` takes the ratio of the two.
    max_position: f64,
}

/// Inverse frequencies (radians a position, `H/2` of them) and the factor that multiplies cos and sin.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    pub inv_freq: Vec<f64>,
    pub attention_scaling: f64,
}

impl Rope {
    /// The RoPE of a model: `config.rope_parameters` over its `head_dim`, with `max_position_embeddings` as the window
    /// where the parameters name none.
    pub fn new(config: &ModelConfig) -> Rope {
        let parameters = config.rope_parameters.clone();
        let original = parameters.original_max_position_embeddings;
        Rope {
            head_dim: config.head_dim(),
            theta: parameters.rope_theta.unwrap_or(10_000.0),
            original: original.unwrap_or(config.max_position_embeddings) as f64,
            max_position: config.max_position_embeddings as f64,
            parameters,
        }
    }

    /// The frequencies for a sequence of `length` tokens. Only `dynamic` and `longrope` depend on it.
    pub fn frequencies(&self, length: usize) -> Frequencies {
        let p = &self.parameters;
        let factor = p.factor.unwrap_or(1.0);
        let plain = self.inverse_powers(self.theta);
        let unscaled = |inv_freq| Frequencies { inv_freq, attention_scaling: 1.0 };
        match p.rope_type {
            // Su et al. (2021), section 3.4.2: inv_i = b^(-2i/d).
            RopeType::Default => unscaled(plain),
            // Chen et al. (2023), position interpolation: inv_i / s.
            RopeType::Linear => unscaled(plain.iter().map(|inv| inv / factor).collect()),
            // NTK-aware scaling by length: b' = b ((s T / M) - (s - 1))^(d / (d - 2)), T = max(length, M).
            RopeType::Dynamic => {
                let (d, m) = (self.head_dim as f64, self.original);
                let t = (length as f64).max(m);
                let base = self.theta * (factor * t / m - (factor - 1.0)).powf(d / (d - 2.0));
                unscaled(self.inverse_powers(base))
            }
            RopeType::Yarn => self.yarn(&plain, factor),
            RopeType::Longrope => self.longrope(&plain, length),
            RopeType::Llama3 => unscaled(self.llama3(&plain, factor)),
        }
    }

    /// `base^(-2i/d)` for every `i`.
    fn inverse_powers(&self, base: f64) -> Vec<f64> {
        let d = self.head_dim as f64;
        (0..self.head_dim / 2).map(|i| base.powf(-2.0 * i as f64 / d)).collect()
    }

    /// Peng et al. (2023), YaRN, section 3.2: dimensions that turn more than `beta_fast` times within the original window
    /// keep their frequency, those that turn less than `beta_slow` times are interpolated, a linear ramp in between.
    fn yarn(&self, plain: &[f64], factor: f64) -> Frequencies {
        let p = &self.parameters;
        let d = self.head_dim as f64;
        // The dimension whose frequency turns `r` times within the original window.
        let dimension =
            |r: f64| d * (self.original / (r * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) =
            (dimension(p.beta_fast.unwrap_or(32.0)), dimension(p.beta_slow.unwrap_or(1.0)));
        if p.truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        if low == high {
            high += 0.001;
        }
        let inv_freq = plain.iter().enumerate().map(|(i, inv)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            inv / factor * ramp + inv * (1.0 - ramp)
        });
        let g = |scale: f64, m: f64| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
        let attention_scaling = match (p.attention_factor, p.mscale, p.mscale_all_dim) {
            (Some(given), ..) => given,
            (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                g(factor, mscale) / g(factor, all)
            }
            _ => g(factor, 1.0),
        };
        Frequencies { inv_freq: inv_freq.collect(), attention_scaling }
    }

    /// Ding et al. (2024), LongRoPE: one factor a frequency, another set past the original window.
    fn longrope(&self, plain: &[f64], length: usize) -> Frequencies {
        let p = &self.parameters;
        let factors = if length as f64 > self.original { &p.long_factor } else { &p.short_factor };
        let factors = factors.as_deref().unwrap_or_default();
        assert_eq!(
            factors.len(),
            plain.len(),
            "one longrope factor for each of the head_dim / 2 frequencies"
        );
        let scale = p.factor.unwrap_or(self.max_position / self.original);
        let attention_scaling = p.attention_factor.unwrap_or(if scale <= 1.0 {
            1.0
        } else {
            (1.0 + scale.ln() / self.original.ln()).sqrt()
        });
        let inv_freq = plain.iter().zip(factors).map(|(inv, factor)| inv / factor).collect();
        Frequencies { inv_freq, attention_scaling }
    }

    /// Llama 3.1: wavelengths longer than `L / low_freq_factor` are interpolated, shorter than `L / high_freq_factor` kept,
    /// and smoothly between.
    fn llama3(&self, plain: &[f64], factor: f64) -> Vec<f64> {
        let p = &self.parameters;
        let (low, high) = (p.low_freq_factor.unwrap_or(1.0), p.high_freq_factor.unwrap_or(4.0));
        let scaled = |inv: &f64| {
            let wavelength = 2.0 * PI / inv;
            if wavelength > self.original / low {
                inv / factor
            } else if wavelength < self.original / high {
                *inv
            } else {
                let smooth = (self.original / wavelength - low) / (high - low);
                (1.0 - smooth) * inv / factor + smooth * inv
            }
        };
        plain.iter().map(scaled).collect()
    }

    /// cos and sin for documents of the given lengths, one after another, each from position 0.
    ///
    /// Up to position 131,072 angles are products of float32 numbers, as in transformers and as pre-trained models knew
    /// them; past it they are float64, because in float32 they are off by up to 0.03 rad at position 512K.
    ///
    /// # Shapes
    ///
    /// Two tensors `[T, H/2]`, float32, on `device`; `T` is the sum of the lengths. Both halves of a head share them.
    pub fn tables(&self, lengths: &[usize], device: Device) -> (Tensor, Tensor) {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if !self.parameters.rope_type.depends_on_length() {
            let (cos, sin) = self.table(longest, device);
            if let [_] = lengths {
                return (cos, sin);
            }
            let pick = |table: &Tensor| {
                let parts: Vec<_> = lengths.iter().map(|&n| table.narrow(0, 0, n as i64)).collect();
                Tensor::cat(&parts, 0)
            };
            return (pick(&cos), pick(&sin));
        }
        let parts: Vec<_> = lengths.iter().map(|&n| self.table(n, device)).collect();
        let (cos, sin): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        (Tensor::cat(&cos, 0), Tensor::cat(&sin, 0))
    }

    fn table(&self, length: usize, device: Device) -> (Tensor, Tensor) {
        let Frequencies { inv_freq, attention_scaling } = self.frequencies(length);
        let inv_freq = Tensor::from_slice(&inv_freq).to_device(device);
        let angles = |from: i64, to: i64, kind: Kind| {
            let positions = Tensor::arange_start(from, to, (kind, device));
            positions.outer(&inv_freq.to_kind(kind)) // [to - from, H/2]
        };
        let (length, exact_from) = (length as i64, FLOAT32_POSITIONS.min(length as i64));
        let near = angles(0, exact_from, Kind::Float);
        let far = angles(exact_from, length, Kind::Double);
        let table = |f: fn(&Tensor) -> Tensor| {
            Tensor::cat(&[f(&near), f(&far).to_kind(Kind::Float)], 0) * attention_scaling
        };
        (table(Tensor::cos), table(Tensor::sin))
    }

    /// A short name for the frequencies in use at `length`: blake3 of their float64 bits, 16 hexadecimal digits.
    pub fn digest(&self, length: usize) -> String {
        let Frequencies { inv_freq, attention_scaling } = self.frequencies(length);
        let mut hasher = blake3::Hasher::new();
        for x in inv_freq.iter().chain([&attention_scaling]) {
            hasher.update(&x.to_le_bytes());
        }
        hasher.finalize().to_hex()[..16].to_string()
    }
}

/// Rotates the pairs `(i, i + H/2)` of every head by the angles of its position.
///
/// Su et al. (2021), in the half-split layout of GPT-NeoX and Hugging Face. The rotation is done in float32 and rounded once.
///
/// # Shapes
///
/// - `x`: `[T, N, H]`, any float dtype
/// - `cos`, `sin`: `[T, H/2]`, float32
/// - returns: `[T, N, H]`, the dtype of `x`
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let (cos, sin) = (cos.unsqueeze(1), sin.unsqueeze(1)); // [T, 1, H/2]
    let halves = x.chunk(2, -1);
    let [first, second] = &halves[..] else { unreachable!("two chunks were asked for") };
    let rotated = Tensor::cat(&[first * &cos - second * &sin, second * &cos + first * &sin], -1);
    rotated.to_kind(x.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(head_dim: usize, window: usize, parameters: RopeParameters) -> Rope {
        let config = ModelConfig::from_hf_json(
            "test",
            r#"{"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}"#,
        )
        .unwrap();
        let head_dim = Some(head_dim);
        Rope::new(&ModelConfig {
            head_dim,
            max_position_embeddings: window,
            rope_parameters: parameters,
            ..config
        })
    }

    fn close(found: f64, expected: f64, relative: f64) {
        assert!((found / expected - 1.0).abs() < relative, "expected {expected}, found {found}");
    }

    /// Golden values computed in float64 from the published formulas, d = 128.
    #[test]
    fn yarn_llama3_and_dynamic_match_their_goldens() {
        let yarn = rope(
            128,
            4096,
            RopeParameters {
                rope_type: RopeType::Yarn,
                rope_theta: Some(1e4),
                factor: Some(8.0),
                ..Default::default()
            },
        )
        .frequencies(1);
        for (i, inv) in
            [(21, 4.705791950e-2), (32, 5.961538462e-3), (45, 2.443152662e-4), (63, 1.443477481e-5)]
        {
            close(yarn.inv_freq[i], inv, 1e-9);
        }
        close(yarn.attention_scaling, 1.207944, 1e-6);

        let llama3 = rope(
            128,
            8192,
            RopeParameters {
                rope_type: RopeType::Llama3,
                rope_theta: Some(5e5),
                factor: Some(8.0),
                low_freq_factor: Some(1.0),
                high_freq_factor: Some(4.0),
                original_max_position_embeddings: Some(8192),
                ..Default::default()
            },
        );
        let (plain, scaled) = (llama3.inverse_powers(5e5), llama3.frequencies(1).inv_freq);
        for (i, ratio) in
            [(28, 1.0), (29, 1.2075), (30, 1.5534), (32, 2.6945), (36, 8.0), (63, 8.0)]
        {
            close(plain[i] / scaled[i], ratio, 1e-4);
        }

        let dynamic = RopeParameters {
            rope_type: RopeType::Dynamic,
            rope_theta: Some(1e4),
            factor: Some(2.0),
            ..Default::default()
        };
        let dynamic = rope(128, 4096, dynamic).frequencies(16_384).inv_freq;
        // inv_1 = b'^(-2/128)
        close(dynamic[1].powf(-64.0), 72195.8601, 1e-8);
    }

    #[test]
    fn tables_begin_anew_with_each_document() {
        let rope = rope(4, 16, RopeParameters { rope_theta: Some(100.0), ..Default::default() });
        let (cos, _) = rope.tables(&[2, 3], Device::Cpu);
        let (whole, _) = rope.tables(&[3], Device::Cpu);
        assert_eq!(cos.narrow(0, 0, 2), whole.narrow(0, 0, 2));
        assert_eq!(cos.narrow(0, 2, 3), whole);
    }

    #[test]
    fn a_rotation_keeps_lengths_and_depends_on_distance_only() {
        let rope = rope(6, 16, RopeParameters { rope_theta: Some(100.0), ..Default::default() });
        let (cos, sin) = rope.tables(&[9], Device::Cpu);
        let one = Tensor::randn([1, 2, 6], (Kind::Float, Device::Cpu));
        let (q, k) = (one.expand([9, 2, 6], false), one.flip([2]).expand([9, 2, 6], false));
        let (q, k) = (rotate(&q, &cos, &sin), rotate(&k, &cos, &sin));
        let dot = |t: i64, s: i64| f64::try_from((q.get(t) * k.get(s)).sum(Kind::Float)).unwrap();
        assert!((dot(5, 2) - dot(8, 5)).abs() < 1e-4);
        let norm = |x: &Tensor| f64::try_from(x.norm()).unwrap();
        assert!((norm(&q.get(7)) - norm(&one)).abs() < 1e-4);
    }
}
