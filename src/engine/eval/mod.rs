//! Evaluation: mean loss on a split, and perplexity by context length.

pub mod perplexity;

use crate::model::Model;
use anyhow::Result;
use fathom_data::dataset::Dataset;
use tch::{Kind, Tensor, no_grad};

/// Positions whose MLP activations exist at one time.
const MLP_TILE_TOKENS: i64 = 4096;

/// Mean NLL (nats per token, token-weighted) over blocks spread evenly over the split, and the predictions it is over.
///
/// Whole blocks are taken until they hold `loss_tokens` predictions, so the number may exceed it by a block. `is_cut_short` is
/// asked before each of them; `None` when it was.
///
/// # Errors
///
/// When a number can't be read back from the device.
pub fn split_loss(
    model: &Model,
    split: &Dataset,
    loss_tokens: u64,
    tile_tokens: usize,
    is_cut_short: &mut dyn FnMut() -> bool,
) -> Result<Option<(f64, u64)>> {
    let per_block = (split.report.tokens_packed / split.blocks.len()).max(1);
    let wanted = (loss_tokens as usize).div_ceil(per_block).clamp(1, split.blocks.len());
    let (mut sum, mut tokens) = (0.0, 0);
    for i in 0..wanted {
        if is_cut_short() {
            return Ok(None);
        }
        let block = &split.blocks[i * split.blocks.len() / wanted];
        let ids: Vec<i64> = block.tokens.iter().map(|&id| i64::from(id)).collect();
        let lengths: Vec<usize> = block.segments.iter().map(|segment| segment.length).collect();
        let nll = document_nll(model, &ids, &lengths, tile_tokens)?;
        sum += nll.iter().flatten().sum::<f64>();
        tokens += nll.iter().map(|document| document.len() as u64).sum::<u64>();
        if tokens >= loss_tokens {
            break;
        }
    }
    Ok(Some((sum / tokens.max(1) as f64, tokens)))
}

/// The NLL of every prediction of every document in a stream: `lengths[d] - 1` numbers for document `d`, in nats.
///
/// One forward over the whole stream, logits a tile at a time.
///
/// # Errors
///
/// When the numbers can't be read back from the device.
pub fn document_nll(
    model: &Model,
    ids: &[i64],
    lengths: &[usize],
    tile_tokens: usize,
) -> Result<Vec<Vec<f64>>> {
    let input_ids = Tensor::from_slice(ids).to_device(model.device);
    let nll = no_grad(|| {
        let hidden = model.hidden_in_tiles(&input_ids, lengths, MLP_TILE_TOKENS);
        // The label of a position is the next token; the last of each document has none that counts.
        let labels = input_ids.roll([-1], [0]);
        model.nll(&hidden, &labels, tile_tokens).to_kind(Kind::Double)
    });
    let nll = Vec::<f64>::try_from(&nll)?;
    let mut documents = Vec::with_capacity(lengths.len());
    let mut start = 0;
    for &length in lengths {
        documents.push(nll[start..start + length - 1].to_vec());
        start += length;
    }
    Ok(documents)
}
