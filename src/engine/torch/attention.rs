//! Fused causal attention with the log-sum-exp that its backward needs, kernel by kernel.
//!
//! Dao et al. (2022), <https://arxiv.org/abs/2205.14135>: the scores never exist whole. `B` documents of one length, `T`
//! position, `N` query heads, `K` key-value heads, `H` head dim.

use super::{checked, fathom_attention_backward, fathom_attention_forward};
use anyhow::Result;
use tch::Tensor;

/// A kernel of LibTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fused {
    /// The CPU's, float64 included. Reads a mask of scores. Wants as many key-value heads as query heads.
    FlashCpu,
    /// cuDNN's, for half precision: the fastest on Hopper, but it prepares anew for every length of document.
    Cudnn,
    /// FlashAttention 2, for half precision; documents by offsets and sliding windows are its own.
    Flash,
    /// The memory-efficient kernel of xformers: float32 as well. Wants as many key-value heads as query heads.
    Efficient,
}

/// Which positions see which, beyond causality.
#[derive(Debug, Default)]
pub struct Extent<'a> {
    /// Where the documents of the stream begin and end: `[documents + 1]`, int32. [`Fused::Flash`] only, with `B` = 1.
    pub offsets: Option<&'a Tensor>,
    /// Tokens of the longest document.
    pub longest: i64,
    /// Positions that a query sees, itself included. [`Fused::Flash`] only.
    pub window: Option<i64>,
    /// In place of causality, what is added to the scores: `[queries, keys]`, the dtype of `q`. [`Fused::FlashCpu`] only.
    pub scores: Option<&'a Tensor>,
}

/// What the backward needs besides the inputs and the output: the log-sum-exp, and two tensors that only the kernel reads.
#[derive(Debug)]
pub struct Kept(Vec<Tensor>);

impl Fused {
    pub fn name(self) -> &'static str {
        match self {
            Fused::FlashCpu => "flash_cpu",
            Fused::Cudnn => "cudnn",
            Fused::Flash => "flash",
            Fused::Efficient => "efficient",
        }
    }

    /// Whether key and value heads may be fewer than query heads.
    pub fn groups_heads(self) -> bool {
        matches!(self, Fused::Cudnn | Fused::Flash)
    }

    /// Whether [`Extent::offsets`] and [`Extent::window`] are the kernel's own.
    pub fn takes_documents(self) -> bool {
        self == Fused::Flash
    }

    fn number(self) -> i32 {
        match self {
            Fused::Cudnn => 0,
            Fused::Flash => 1,
            Fused::Efficient => 2,
            Fused::FlashCpu => unreachable!("the CPU's kernel is called through tch"),
        }
    }

    /// Attention and what [`Fused::backward`] needs.
    ///
    /// # Shapes
    ///
    /// - `q`: `[B, T, N, H]`; `k`, `v`: `[B, T, K, H]`, or `S` positions in place of `T` with [`Extent::scores`]; one dtype
    /// - returns: `[B, T, N, H]`
    ///
    /// # Errors
    ///
    /// When the kernel does not take such tensors or this device has none; also when memory runs out.
    pub fn forward(
        self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        extent: &Extent,
    ) -> Result<(Tensor, Kept)> {
        if self == Fused::FlashCpu {
            let (q, k, v) = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2));
            let causal = extent.scores.is_none();
            let (o, lse) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(
                &q,
                &k,
                &v,
                0.0,
                causal,
                extent.scores,
                None,
            )?;
            return Ok((o.transpose(1, 2), Kept(vec![lse])));
        }
        let offsets = extent.offsets.map_or(std::ptr::null(), Tensor::as_ptr);
        let mut out = [std::ptr::null_mut(); 4];
        // SAFETY: all pointers are to live tensors; on success the shim hands over four tensors of its own.
        let [o, kept @ ..] = unsafe {
            checked(fathom_attention_forward(
                self.number(),
                q.as_ptr(),
                k.as_ptr(),
                v.as_ptr(),
                offsets,
                extent.longest,
                extent.window.unwrap_or(0),
                out.as_mut_ptr(),
            ))?;
            out.map(|tensor| Tensor::from_ptr(tensor))
        };
        Ok((o, Kept(kept.into())))
    }

    /// The backward of [`Fused::forward`].
    ///
    /// # Shapes
    ///
    /// - `d_o`, `o`: `[B, T, N, H]`; `q`, `k`, `v` as in the forward
    /// - returns: `dq` `[B, T, N, H]`, `dk` and `dv` `[B, T, K, H]`
    ///
    /// # Errors
    ///
    /// As [`Fused::forward`].
    #[expect(clippy::too_many_arguments, reason = "the tensors of one formula")]
    pub fn backward(
        self,
        d_o: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        o: &Tensor,
        kept: &Kept,
        extent: &Extent,
    ) -> Result<[Tensor; 3]> {
        if self == Fused::FlashCpu {
            let [d_o, q, k, v, o] = [d_o, q, k, v, o].map(|x| x.transpose(1, 2));
            let causal = extent.scores.is_none();
            let (dq, dk, dv) =
                Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu_backward(
                    &d_o,
                    &q,
                    &k,
                    &v,
                    &o,
                    &kept.0[0],
                    0.0,
                    causal,
                    extent.scores,
                    None,
                )?;
            return Ok([dq, dk, dv].map(|x| x.transpose(1, 2)));
        }
        let offsets = extent.offsets.map_or(std::ptr::null(), Tensor::as_ptr);
        let kept: Vec<_> = kept.0.iter().map(Tensor::as_ptr).collect();
        let mut out = [std::ptr::null_mut(); 3];
        // SAFETY: all pointers are to live tensors; on success the shim hands over three tensors of its own.
        unsafe {
            checked(fathom_attention_backward(
                self.number(),
                d_o.as_ptr(),
                q.as_ptr(),
                k.as_ptr(),
                v.as_ptr(),
                o.as_ptr(),
                kept.as_ptr().cast(),
                offsets,
                extent.longest,
                extent.window.unwrap_or(0),
                out.as_mut_ptr(),
            ))?;
            Ok(out.map(|tensor| Tensor::from_ptr(tensor)))
        }
    }
}
