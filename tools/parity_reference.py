#!/usr/bin/env python3
"""Computes with transformers what `fathom eval tokens --json` prints, to check one against the other.

    tools/parity_reference.py MODEL --text story.txt --max-tokens 4096 --write-ids ids.txt >reference.json
    fathom eval tokens MODEL --ids-file ids.txt --json >fathom.json
    tools/parity_reference.py MODEL --ids-file ids.txt --against fathom.json

The output is one JSON object: `nll` (nats, one for each token but the first), their mean `loss`, and
of the rotary embedding, as it was used for this length, `inv_freq` (radians a position) and
`attention_scaling` (multiplies cos and sin).

Needs torch and transformers from PyPI, and gguf for a .gguf file.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

# Positions whose logits exist at one time: 2048 of them for 49152 words are 384 MiB in float32.
TILE_TOKENS = 2048


def main():
    args = parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Here, so that --help and a mistake in the arguments do not wait for them.
    try:
        import torch
        import transformers
    except ImportError as error:
        help = "pip install torch transformers gguf"
        fail(f"expected torch and transformers, found no `{error.name}`", help)
    transformers.logging.set_verbosity_error()

    ids = read_ids(args, transformers)
    if args.write_ids:
        args.write_ids.write_text(",".join(map(str, ids)) + "\n")
    with torch.inference_mode():
        found = reference(args, ids, torch, transformers)
    if args.against:
        compare(found, json.loads(args.against.read_text()), args.against)
    else:
        print(json.dumps(found))


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a Hugging Face folder or a .gguf file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--ids", help="token ids, separated by commas")
    source.add_argument(
        "--ids-file", type=Path, metavar="FILE",
        help="token ids, separated by commas or white space, or a JSON list",
    )
    source.add_argument(
        "--text", type=Path, metavar="FILE",
        help="a text, tokenized by the model's tokenizer without special tokens",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="only the first N tokens")
    parser.add_argument(
        "--write-ids", type=Path, metavar="FILE",
        help="write the token ids, for `fathom eval tokens --ids-file`",
    )
    parser.add_argument(
        "--rope", type=json.loads, metavar="JSON",
        help="replaces rope_parameters, for example '{\"rope_type\": \"yarn\", \"factor\": 4}'; "
        "rope_theta stays the model's unless it is given",
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32",
        help="what to compute in (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--attention", choices=["sdpa", "eager"], default="sdpa", help="default: %(default)s"
    )
    parser.add_argument(
        "--against", type=Path, metavar="FILE",
        help="print how far this JSON of `fathom eval tokens` is off, in place of the reference",
    )
    args = parser.parse_args()
    for path in filter(None, [args.model, args.ids_file, args.text, args.against]):
        if not path.exists():
            fail(f"{path}: expected a file or folder, found none")
    return args


def fail(message, help=None):
    print(f"error: {message}", file=sys.stderr)
    if help:
        print(f"  help: {help}", file=sys.stderr)
    sys.exit(1)


def location(model):
    """What `from_pretrained` wants to hear: a folder, and for a .gguf file its name in it."""
    return (model.parent, {"gguf_file": model.name}) if model.suffix == ".gguf" else (model, {})


def read_ids(args, transformers):
    if args.text:
        folder, options = location(args.model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        ids = tokenizer.encode(args.text.read_text(encoding="utf-8"), add_special_tokens=False)
    else:
        text = args.ids if args.ids is not None else args.ids_file.read_text()
        words = [word for word in re.split(r"[,\s\[\]]+", text) if word]
        wrong = next((word for word in words if not word.isdecimal()), None)
        if wrong is not None:
            fail(f"{args.ids_file or '--ids'}: expected token ids, found `{wrong}`")
        ids = list(map(int, words))
    ids = ids[: args.max_tokens]
    if len(ids) < 2:
        fail(f"expected 2 token ids or more (a prediction needs a token to see), found {len(ids)}")
    return ids


def reference(args, ids, torch, transformers):
    folder, options = location(args.model)
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    if args.rope:
        rope = {"rope_theta": config.rope_parameters.get("rope_theta", 10_000.0), **args.rope}
        if rope.get("rope_type") == "yarn":
            rope.setdefault("original_max_position_embeddings", config.max_position_embeddings)
        config.rope_parameters = rope
    outside = next((i for i in ids if i >= config.vocab_size), None)
    if outside is not None:
        fail(f"expected ids from 0 to {config.vocab_size - 1}, found `{outside}`")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=getattr(torch, args.dtype),
        attn_implementation=args.attention,
        **options,
    )
    model = model.to(args.device).eval()

    tokens = torch.tensor([ids], device=args.device)
    hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0]
    head, nll = model.get_output_embeddings(), []
    for start in range(0, len(ids) - 1, TILE_TOKENS):
        labels = tokens[0, 1 + start : 1 + start + TILE_TOKENS]
        logits = head(hidden[start : start + len(labels)]).float()
        nll += torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
    # After the forward: `dynamic` and `longrope` choose their frequencies by the length they meet.
    rotary = model.base_model.rotary_emb
    return {
        "nll": nll,
        "loss": sum(nll) / len(nll),
        "inv_freq": rotary.inv_freq.tolist(),
        "attention_scaling": float(rotary.attention_scaling),
    }


def compare(reference, other, path):
    for key in ("nll", "inv_freq"):
        if len(other[key]) != len(reference[key]):
            fail(f"{path}: {key}: expected {len(reference[key])} numbers, found {len(other[key])}")
    nll = [abs(x - y) for x, y in zip(other["nll"], reference["nll"])]
    inv_freq = [abs(x / y - 1) for x, y in zip(other["inv_freq"], reference["inv_freq"])]
    scaling = abs(other["attention_scaling"] / reference["attention_scaling"] - 1)
    print(f"nll                largest difference {max(nll):.3g} nats, at token {1 + nll.index(max(nll))}")
    print(f"loss               {other['loss']:.7f}, expected {reference['loss']:.7f}")
    print(f"inv_freq           largest relative difference {max(inv_freq):.3g}")
    print(f"attention_scaling  relative difference {scaling:.3g}")


if __name__ == "__main__":
    main()
