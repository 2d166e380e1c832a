//! Llama and Mistral decoders over a stream of packed documents.
//!
//! A forward takes documents laid back to back in one stream of `T` tokens, without padding and without a mask: attention
//! stays within each document, and positions begin anew with each. Configuration files are read elsewhere; a [`Model`] is
//! made from a [`ModelConfig`] and either a folder's weights or a seed.
//!
//! `T` position, `D` hidden, `V` vocabulary, `L` layers.

pub mod attention;
pub mod block;
pub mod rope;
pub mod weights;

use crate::torch;
use anyhow::Result;
use attention::AttentionKernel;
use block::{Block, Stream, linear, rms_norm};
use fathom_spec::config::{Attention, Dtype, ModelConfig};
use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;
use rope::Rope;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor, no_grad};
use weights::ModelFiles;

/// A decoder with its weights on one device.
#[derive(Debug)]
pub struct Model {
    pub config: ModelConfig,
    pub rope: Rope,
    pub kernel: AttentionKernel,
    /// The dtype of the hidden states.
    pub dtype: Kind,
    pub device: Device,
    pub embed_tokens: Tensor, // [V, D]
    pub layers: Vec<Block>,
    pub norm: Tensor, // [D]
    /// The head; a tied one is `embed_tokens`.
    pub lm_head: Option<Tensor>, // [V, D]
}

/// How a model is to be set up, beside its shape and weights.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub device: Device,
    /// What the forward and backward compute in.
    pub dtype: Dtype,
    /// What the weights are kept in.
    pub weights_dtype: Dtype,
    pub attention: Attention,
}

/// LibTorch's name of a dtype.
pub fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::Float32 => Kind::Float,
        Dtype::Bfloat16 => Kind::BFloat16,
    }
}

/// What sums over many numbers of `kind` are taken in: float32, or float64 for float64.
pub fn at_least_float(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

impl Model {
    /// Reads the weights of `files`. `config` is the files' own, perhaps with another RoPE.
    ///
    /// # Errors
    ///
    /// When a tensor is missing, unexpected or of another shape than `config` says: with file, name and both shapes.
    pub fn load(files: &ModelFiles, config: ModelConfig, setup: Setup) -> Result<Model> {
        files.check()?;
        let table = weights::tensor_table(&config);
        let mut places = Places::new(&config, kind(setup.weights_dtype), setup.device);
        let mut tensors = HashMap::with_capacity(table.len());
        for (name, shape) in &table {
            let tensor = files.checked_tensor(name, shape)?;
            tensors.insert(name.clone(), places.put(name, tensor));
        }
        Ok(Model::from_tensors(tensors, config, setup))
    }

    /// Initialises the weights at random: matrices from a normal distribution with `initializer_range` as its standard
    /// deviation, norms at 1, as transformers does.
    ///
    /// Each tensor has its own stream of the generator, so the weights depend on the seed alone: not on the device, the
    /// number of threads or LibTorch's own generator.
    ///
    /// Weights of layers past the first `drawn_layers` are left at zero: for probes of memory, which do not work them.
    pub fn random(
        config: ModelConfig,
        seed: u64,
        setup: Setup,
        drawn_layers: Option<usize>,
    ) -> Model {
        let kind = kind(setup.weights_dtype);
        let undrawn = |name: &str| {
            let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
            let layer: Option<usize> = layer.and_then(|layer| layer.parse().ok());
            layer.zip(drawn_layers).is_some_and(|(layer, drawn)| layer >= drawn)
        };
        let table = weights::tensor_table(&config);
        let mut places = Places::new(&config, kind, setup.device);
        let tensors = table.into_iter().enumerate().map(|(index, (name, shape))| {
            let on_device = (kind, setup.device);
            let tensor = match shape.len() {
                1 => Tensor::ones(&shape[..], on_device),
                _ if undrawn(&name) => Tensor::zeros(&shape[..], on_device),
                _ => normal(&shape, config.initializer_range as f32, seed, index as u64, kind),
            };
            let placed = places.put(&name, tensor);
            (name, placed)
        });
        Model::from_tensors(tensors.collect(), config, setup)
    }

    fn from_tensors(
        mut tensors: HashMap<String, Tensor>,
        config: ModelConfig,
        setup: Setup,
    ) -> Model {
        let mut take = |name: &str| {
            let name = format!("{name}.weight");
            tensors.remove(&name).unwrap_or_else(|| panic!("`{name}` is in the table of tensors"))
        };
        let layers = (0..config.num_hidden_layers).map(|index| {
            let mut take = |name: &str| take(&format!("model.layers.{index}.{name}"));
            Block {
                input_layernorm: take("input_layernorm"),
                q_proj: take("self_attn.q_proj"),
                k_proj: take("self_attn.k_proj"),
                v_proj: take("self_attn.v_proj"),
                o_proj: take("self_attn.o_proj"),
                post_attention_layernorm: take("post_attention_layernorm"),
                gate_proj: take("mlp.gate_proj"),
                up_proj: take("mlp.up_proj"),
                down_proj: take("mlp.down_proj"),
            }
        });
        let layers = layers.collect();
        Model {
            embed_tokens: take("model.embed_tokens"),
            layers,
            norm: take("model.norm"),
            lm_head: (!config.tie_word_embeddings).then(|| take("lm_head")),
            rope: Rope::new(&config),
            kernel: AttentionKernel::new(setup.attention, config.sliding_window),
            dtype: kind(setup.dtype),
            device: setup.device,
            config,
        }
    }

    /// Moves the weights, which are in host memory, to where `device` can read them, and computes there from now on.
    ///
    /// A forward then brings every weight at its use. (The layered engine brings whole layers ahead of their use.)
    pub fn stream_to(&mut self, device: Device) {
        let pinned = |weight: &Tensor| {
            let host = torch::host_empty_like(weight, device);
            torch::copy(&host, weight);
            host
        };
        self.embed_tokens = pinned(&self.embed_tokens);
        self.layers = self.layers.iter().map(|layer| layer.map(pinned)).collect();
        self.norm = pinned(&self.norm);
        self.lm_head = self.lm_head.as_ref().map(pinned);
        self.device = device;
    }

    /// Every weight once, with its name in the checkpoint, in the order of the forward.
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        let mut all = vec![("model.embed_tokens.weight".to_string(), &self.embed_tokens)];
        for (index, layer) in self.layers.iter().enumerate() {
            all.extend(layer.parameters(index));
        }
        all.push(("model.norm.weight".to_string(), &self.norm));
        all.extend(self.lm_head.iter().map(|head| ("lm_head.weight".to_string(), head)));
        all
    }

    /// Makes every weight a leaf that gradients accumulate into, or not.
    pub fn set_requires_grad(&self, requires_grad: bool) {
        for (_, weight) in self.parameters() {
            let _ = weight.set_requires_grad(requires_grad);
        }
    }

    /// The matrix of the head: `[V, D]`.
    pub fn head(&self) -> &Tensor {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// The embeddings of `input_ids`, in the dtype that is computed in.
    ///
    /// # Shapes
    ///
    /// - `input_ids`: `[T]`, int64
    /// - returns: `[T, D]`
    pub fn embed(&self, input_ids: &Tensor) -> Tensor {
        let table = self.embed_tokens.to_device(self.device);
        Tensor::embedding(&table, input_ids, -1, false, false).to_kind(self.dtype)
    }

    /// Runs `f` with what all layers share for documents of these lengths.
    pub fn with_stream<R>(&self, lengths: &[usize], f: impl FnOnce(&Stream) -> R) -> R {
        let (cos, sin) = self.rope.tables(lengths, self.device);
        f(&Stream {
            lengths,
            cos: &cos,
            sin: &sin,
            kernel: &self.kernel,
            head_dim: self.config.head_dim() as i64,
            rms_norm_eps: self.config.rms_norm_eps,
        })
    }

    /// The hidden states that the head reads: embedding, layers, last norm.
    ///
    /// # Shapes
    ///
    /// - `input_ids`: `[T]`, int64: documents of the given `lengths` back to back
    /// - returns: `[T, D]`
    pub fn hidden(&self, input_ids: &Tensor, lengths: &[usize]) -> Tensor {
        self.with_stream(lengths, |stream| {
            let embedded = self.embed(input_ids);
            let x = self.layers.iter().fold(embedded, |x, layer| layer.forward(&x, stream));
            self.last_norm(&x)
        })
    }

    /// The same where no gradient is asked for, in less memory: nothing outlives its layer, and the MLP is worked in tiles.
    ///
    /// # Shapes
    ///
    /// As [`Model::hidden`].
    pub fn hidden_in_tiles(
        &self,
        input_ids: &Tensor,
        lengths: &[usize],
        tile_tokens: i64,
    ) -> Tensor {
        no_grad(|| {
            self.with_stream(lengths, |stream| {
                let x = self.embed(input_ids);
                self.layers
                    .iter()
                    .for_each(|layer| layer.forward_in_place(&x, stream, tile_tokens));
                self.last_norm(&x)
            })
        })
    }

    /// The norm before the head: `[T, D]` to `[T, D]`.
    pub fn last_norm(&self, x: &Tensor) -> Tensor {
        rms_norm(x, &self.norm, self.config.rms_norm_eps)
    }

    /// Logits of some positions.
    ///
    /// # Shapes
    ///
    /// - `hidden`: `[T, D]`
    /// - returns: `[T, V]`, float32; float64 for a float64 `hidden`
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        linear(hidden, self.head()).to_kind(at_least_float(hidden.kind()))
    }

    /// The negative log-likelihood of `labels` at every position, in nats, a tile of positions at a time.
    ///
    /// # Shapes
    ///
    /// - `hidden`: `[T, D]`; `labels`: `[T]`, int64
    /// - returns: `[T]`, the dtype of [`Model::logits`]
    pub fn nll(&self, hidden: &Tensor, labels: &Tensor, tile_tokens: usize) -> Tensor {
        let (t, _) = hidden.size2().expect("hidden is [T, D]");
        let tile = tile_tokens as i64;
        let tiles: Vec<Tensor> = (0..t)
            .step_by(tile_tokens)
            .map(|from| {
                let count = tile.min(t - from);
                let logits = self.logits(&hidden.narrow(0, from, count));
                let labels = labels.narrow(0, from, count);
                logits.cross_entropy_loss(&labels, None::<&Tensor>, tch::Reduction::None, -100, 0.0)
            })
            .collect();
        Tensor::cat(&tiles, 0)
    }
}

/// Where weights are put: the queries', keys' and values' projections of a layer one below the other, so that the three are one
/// matrix for who multiplies with all of them; every other weight by itself.
struct Places {
    kind: Kind,
    device: Device,
    columns: i64,
    /// Rows of the three.
    rows: [i64; 3],
    /// The layer that the last of the three was of, by its name, with room for all.
    last: Option<(String, Tensor)>, // [N H + 2 K H, D]
}

impl Places {
    fn new(config: &ModelConfig, kind: Kind, device: Device) -> Places {
        let (n, k) = (config.num_attention_heads, config.num_key_value_heads());
        let rows = [n, k, k].map(|heads| (heads * config.head_dim()) as i64);
        Places { kind, device, columns: config.hidden_size as i64, rows, last: None }
    }

    /// The weight `name` with the values of `tensor`, in its place.
    fn put(&mut self, name: &str, tensor: Tensor) -> Tensor {
        let of_three =
            ["q_proj", "k_proj", "v_proj"].iter().enumerate().find_map(|(which, end)| {
                Some((which, name.strip_suffix(&format!("self_attn.{end}.weight"))?))
            });
        let Some((which, layer)) = of_three else {
            return tensor.to_device(self.device).to_kind(self.kind);
        };
        if self.last.as_ref().is_none_or(|(of, _)| of != layer) {
            let size = [self.rows.iter().sum(), self.columns];
            let room = Tensor::empty(size, (self.kind, self.device));
            self.last = Some((layer.to_string(), room));
        }
        let (_, room) = self.last.as_ref().expect("there is room for this layer");
        let mut place = room.narrow(0, self.rows[..which].iter().sum(), self.rows[which]);
        place.copy_(&tensor);
        place
    }
}

/// Normally distributed numbers on the CPU, drawn in float32, in rows on all cores.
pub(crate) fn normal(shape: &[i64], deviation: f32, seed: u64, stream: u64, kind: Kind) -> Tensor {
    match kind {
        Kind::BFloat16 => draw(shape, kind, deviation, seed, stream, bf16::from_f32),
        _ => draw(shape, Kind::Float, deviation, seed, stream, |x| x).to_kind(kind),
    }
}

/// The same, each number passed through `narrow`, to what LibTorch calls `kind`.
fn draw<T: Send>(
    shape: &[i64],
    kind: Kind,
    deviation: f32,
    seed: u64,
    stream: u64,
    narrow: fn(f32) -> T,
) -> Tensor {
    let tensor = Tensor::empty(shape, (kind, Device::Cpu));
    assert_eq!(kind.elt_size_in_bytes(), size_of::<T>());
    let columns = shape.iter().skip(1).product::<i64>() as usize;
    // SAFETY: the tensor is new, contiguous and in host memory; nothing else sees it while it is filled.
    let values =
        unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), tensor.numel()) };
    values.par_chunks_mut(columns).enumerate().for_each(|(row, values)| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // A stream is 2^68 bytes long: tensors and rows are far apart in it.
        rng.set_stream(stream);
        rng.set_word_pos((row as u128) << 32);
        for value in values {
            let x: f32 = rng.sample(StandardNormal);
            *value = narrow(x * deviation);
        }
    });
    tensor
}
