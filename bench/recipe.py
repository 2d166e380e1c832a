"""An independent peer to measure fathom against: full-parameter fine-tuning of a 7B on one card in plain PyTorch.

No part of the product, and nothing of it is used here. This is the known recipe as a PyTorch user would write it who cares
about speed and memory alike: bfloat16 weights and optimizer, each layer recomputed in the backward, its input waiting in
pinned host memory (a side stream carries it; it is fetched ahead, during the attention's backward of the layer above),
Adafactor stepped inside the backward with each gradient dropped at once, PyTorch's own fused attention, and a linear cross
entropy in chunks that never holds all logits. Weights and tokens are random; nothing is read or downloaded.

    python recipe.py --shape llama2_7b --tokens 4096,53248 --memory-cap-gib 24 --json out.jsonl
    python recipe.py --layers transformers     # the same around the decoder layers of the transformers library
    python recipe.py --check --device cpu      # loss, gradients and a step against a straightforward model, in float32

Beside the time it reports TFLOP/s by two conventions, with P the parameters without the embedding table, L layers, D the
heads' total width and T tokens: hardware 8 P T + 9 L D T^2 (what is computed, the recomputation included) and model
6 P T + 6 L D T^2 (what training needs, attention counted as causal).
"""

import os

if "PYTORCH_ALLOC_CONF" not in os.environ:  # the variable's newer name
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import argparse
import contextlib
import copy
import functools
import gc
import json
import statistics
import time
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import checkpoint

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    rope_theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head_dim(self):
        return self.hidden // self.heads


SHAPES = {
    "llama2_7b": Shape(32000, 4096, 11008, 32, 32, 32),
    "mistral_7b": Shape(32000, 4096, 14336, 32, 32, 8),
    "tiny": Shape(331, 64, 160, 3, 4, 2),
}


# The model.


def rope_table(shape, tokens, device, dtype):
    frequencies = shape.rope_theta ** -(torch.arange(0, shape.head_dim, 2, device=device).float() / shape.head_dim)
    angles = torch.outer(torch.arange(tokens, device=device).float(), frequencies).repeat(1, 2)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape, linear, kv = shape, functools.partial(nn.Linear, bias=False), shape.kv_heads * shape.head_dim
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.eps)
        self.q, self.k, self.v = linear(shape.hidden, shape.hidden), linear(shape.hidden, kv), linear(shape.hidden, kv)
        self.o = linear(shape.hidden, shape.hidden)

    def forward(self, x, cos, sin):
        y = self.norm(x)
        q, k, v = (f(y).unflatten(-1, (-1, self.shape.head_dim)) for f in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.shape.kv_heads != self.shape.heads)
        return x + self.o(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.eps)
        self.gate = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x):
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.attention, self.mlp = Attention(shape), Mlp(shape)

    def forward(self, x, rope, before_attention_backward):
        x = self.attention(x, *rope)
        if x.requires_grad:
            x.register_hook(before_attention_backward)
        return self.mlp(x)


class TransformersLayer(nn.Module):
    """The decoder layer that most fine-tunes run: transformers' own, with its attention by PyTorch's fused operation."""

    def __init__(self, shape):
        from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer

        super().__init__()
        config = LlamaConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            rms_norm_eps=shape.eps,
            attn_implementation="sdpa",
        )
        self.layer = LlamaDecoderLayer(config, layer_idx=0)

    @property
    def attention(self):
        a = self.layer.self_attn
        return SimpleNamespace(norm=self.layer.input_layernorm, q=a.q_proj, k=a.k_proj, v=a.v_proj, o=a.o_proj)

    @property
    def mlp(self):
        m = self.layer.mlp
        return SimpleNamespace(
            norm=self.layer.post_attention_layernorm, gate=m.gate_proj, up=m.up_proj, down=m.down_proj
        )

    def forward(self, x, rope, before_attention_backward):
        def watch(norm, inputs):
            if inputs[0].requires_grad:
                inputs[0].register_hook(before_attention_backward)

        watched = self.layer.post_attention_layernorm.register_forward_pre_hook(watch)
        try:
            return self.layer(x, position_embeddings=tuple(table.transpose(0, 1) for table in rope))
        finally:
            watched.remove()


LAYERS = {"own": Layer, "transformers": TransformersLayer}


class ChunkedLinearCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of hidden @ weight.T; the gradients are made in the forward, chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, chunk):
        loss = torch.zeros((), device=hidden.device)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for x, dx, y in zip(hidden.split(chunk), d_hidden.split(chunk), targets[:, None].split(chunk)):
            p = F.log_softmax(x @ weight.t(), -1, dtype=torch.float32)
            loss -= p.gather(1, y).sum()
            p.exp_().scatter_add_(1, y, p.new_full(y.shape, -1.0)).div_(len(targets))
            p = p.to(weight.dtype)
            torch.mm(p, weight, out=dx)
            d_weight.addmm_(p.t(), x)
        ctx.gradients = d_hidden, d_weight
        return loss / len(targets)

    @staticmethod
    def backward(ctx, scale):
        d_hidden, d_weight = ctx.gradients
        del ctx.gradients
        return d_hidden.mul_(scale), d_weight.mul_(scale), None, None


class Llama(nn.Module):
    def __init__(self, shape, layer):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.eps)
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, rope, offload, chunk):
        x = self.embedding(tokens[None, :-1])
        for i, layer in enumerate(self.layers):
            run = functools.partial(layer, rope=rope, before_attention_backward=functools.partial(offload.fetch, i - 1))
            # A checkpoint saves its tensor arguments and nothing else, so these hooks see the layer's input only.
            with offload.hooks():
                x = checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
        return ChunkedLinearCrossEntropy.apply(self.norm(x)[0], self.head.weight, tokens[1:], chunk)


def build(shape, device, dtype, layers):
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Llama(shape, LAYERS[layers])
    finally:
        torch.set_default_dtype(torch.float32)


# The recipe.


class Offload:
    """Keeps the layers' inputs in pinned host memory between forward and backward, the last layer's (needed next) aside.

    Device memory is always allocated on the main stream, and that stream waits for a copy before its memory is let go, so
    the allocator needs neither a second pool nor `record_stream`.
    """

    def __init__(self, layers, elements, device, dtype, enabled=True):
        self.layers, self.elements, self.dtype, self.enabled = layers, elements, dtype, enabled
        self.cuda = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if self.cuda else None
        self.device, self.host = device, {}
        self.start()

    def start(self):
        self.count, self.sending, self.offloaded, self.fetched = 0, None, set(), {}

    def hooks(self):
        return saved_tensors_hooks(self.pack, self.unpack) if self.enabled else contextlib.nullcontext()

    def copy(self, to, source):
        """Copies on the side stream, after all that the main stream was given so far; returns what to wait for."""
        if not self.cuda:
            return to.copy_(source) is None
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            to.copy_(source, non_blocking=True)
            return self.stream.record_event()

    def wait(self, event):
        if event:
            torch.cuda.current_stream().wait_event(event)

    def pack(self, x):
        if not x.numel():  # the checkpoint's own placeholder
            return x
        i, x = self.count, x.detach()
        self.count += 1
        if self.sending:  # the input of the layer below has long arrived
            self.wait(self.sending[1])
            self.sending = None
        if i == self.layers - 1:
            self.fetched[i] = x, None
        else:
            if i not in self.host:
                self.host[i] = torch.empty(self.elements, dtype=self.dtype, pin_memory=self.cuda)
            self.sending = x, self.copy(self.host[i][: x.numel()].view(x.shape), x)
            self.offloaded.add(i)
        return i, x.shape

    def fetch(self, i, gradient):
        """Starts layer i's input on its way back. Called where the MLP's tensors are free again: it costs no peak."""
        if i in self.offloaded:
            self.offloaded.remove(i)
            x = torch.empty(gradient.shape, dtype=self.dtype, device=self.device)
            self.fetched[i] = x, self.copy(x, self.host[i][: x.numel()].view(x.shape))

    def unpack(self, packed):
        if isinstance(packed, torch.Tensor):
            return packed
        x, event = self.fetched.pop(packed[0])
        self.wait(event)
        return x


def step_in_backward(model, learning_rate):
    for parameter in model.parameters():

        def hook(parameter, optimizer=torch.optim.Adafactor([parameter], lr=learning_rate, foreach=False)):
            optimizer.step()
            parameter.grad = None

        parameter.register_post_accumulate_grad_hook(hook)


def choose_attention(name, shape, device, dtype):
    """Leaves the choice to PyTorch or leaves it one backend; returns the one that is taken."""
    if name != "auto":
        torch.backends.cuda.enable_flash_sdp(name == "flash")
        torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_math_sdp(False)
    q, kv = (
        torch.zeros(1, 256, heads, shape.head_dim, device=device, dtype=dtype, requires_grad=True).transpose(1, 2)
        for heads in (shape.heads, shape.kv_heads)
    )
    choice = torch._fused_sdp_choice(q, kv, kv, is_causal=True, enable_gqa=shape.kv_heads != shape.heads)
    return SDPBackend(choice).name.lower()


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error):
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "alloc_failed" in text


def measure(model, offload, tokens, options):
    shape, device, dtype = model.shape, offload.device, offload.dtype
    rope = rope_table(shape, tokens, device, dtype)
    seconds = []
    for step in range(options.warmup + options.steps):
        if step == options.warmup and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        batch = torch.randint(shape.vocab, (tokens + 1,), device=device)
        offload.start()
        synchronize(device)
        start = time.perf_counter()
        loss = model(batch, rope, offload, options.chunk)
        loss.backward()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    seconds = seconds[options.warmup :]
    median = statistics.median(seconds)
    dense = sum(p.numel() for p in model.parameters()) - model.embedding.weight.numel()
    square = shape.layers * shape.heads * shape.head_dim * tokens**2
    result = {
        "out_of_memory": False,
        "seconds_per_step": median,
        "seconds": seconds,
        "tokens_per_second": tokens / median,
        "hardware_tflops": (8 * dense * tokens + 9 * square) / median / 1e12,
        "model_tflops": (6 * dense * tokens + 6 * square) / median / 1e12,
        "loss": loss.item(),
    }
    if device.type == "cuda":
        result["peak_allocated_gib"] = torch.cuda.max_memory_allocated(device) / GIB
        result["peak_reserved_gib"] = torch.cuda.max_memory_reserved(device) / GIB
    return result


def try_measure(model, offload, tokens, options):
    try:
        return measure(model, offload, tokens, options)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {"out_of_memory": True, "error": str(error).splitlines()[0][:200]}


def free(model, offload):
    offload.start()
    for parameter in model.parameters():
        parameter.grad = None
    gc.collect()
    if offload.cuda:
        torch.cuda.synchronize(offload.device)
        torch.cuda.empty_cache()


def readable(result):
    head = f"{result['shape']} {result['tokens']} tokens ({result['layers']} layers, {result['attention']}): "
    if result["out_of_memory"]:
        return head + "out of memory"
    memory = ""
    if "peak_allocated_gib" in result:
        memory = f", peak {result['peak_allocated_gib']:.2f} GiB allocated, {result['peak_reserved_gib']:.2f} reserved"
    return (
        head
        + f"{result['seconds_per_step']:.3f} s/step ({' '.join(f'{s:.3f}' for s in result['seconds'])}), "
        + f"{result['tokens_per_second']:.0f} tokens/s{memory}, "
        + f"{result['hardware_tflops']:.1f} hardware TFLOP/s, {result['model_tflops']:.1f} model TFLOP/s"
    )


# The check.


def straightforward_loss(model, tokens):
    """The same function of the same weights, written out: no recomputation, no fused operation, all logits at once."""
    shape = model.shape

    def norm(x, weight):
        return x * (x.square().mean(-1, keepdim=True) + shape.eps).rsqrt() * weight

    length = len(tokens) - 1
    position = torch.arange(length, device=tokens.device)
    index = torch.arange(shape.head_dim // 2, device=tokens.device)
    angle = position[:, None] * (1 / shape.rope_theta ** (2 * index / shape.head_dim))
    turn = torch.polar(torch.ones_like(angle), angle)

    def heads(x):
        return x.view(length, -1, shape.head_dim).transpose(0, 1)

    def rope(x):
        half = shape.head_dim // 2
        z = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * turn
        return torch.cat((z.real, z.imag), -1)

    x = model.embedding.weight[tokens[:-1]]
    for layer in model.layers:
        a, m = layer.attention, layer.mlp
        y = norm(x, a.norm.weight)
        q, k, v = rope(heads(y @ a.q.weight.T)), rope(heads(y @ a.k.weight.T)), heads(y @ a.v.weight.T)
        k, v = (t.repeat_interleave(shape.heads // shape.kv_heads, 0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / shape.head_dim**0.5
        scores = scores.masked_fill(position[None, :] > position[:, None], float("-inf"))
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, -1) @ a.o.weight.T
        y = norm(x, m.norm.weight)
        gate = y @ m.gate.weight.T
        x = x + (gate * gate.sigmoid() * (y @ m.up.weight.T)) @ m.down.weight.T
    return F.cross_entropy(norm(x, model.norm.weight) @ model.head.weight.T, tokens[1:])


def check(device, compiled, layers):
    """Loss, every gradient and one optimizer step against the straightforward model, in float32."""

    def error(a, b):
        return ((a - b).norm() / b.norm()).item()

    torch.manual_seed(1)
    tokens, chunk, bound, worst = 301, 128, 1e-5, {}
    for shape in (SHAPES["tiny"], Shape(331, 64, 160, 3, 4, 4)):
        model = build(shape, device, torch.float32, layers)
        for p in model.parameters():  # not near a symmetric point: larger weights, norms that differ
            p.data.mul_(4) if p.dim() > 1 else p.data.uniform_(0.5, 1.5)
        plain = copy.deepcopy(model)
        if compiled:
            compile_layers(model)
        batch = torch.randint(shape.vocab, (tokens + 1,), device=device)
        rope = rope_table(shape, tokens, device, torch.float32)
        expected = straightforward_loss(plain, batch)
        expected.backward()
        for enabled in (False, True):
            offload = Offload(shape.layers, 2 * tokens * shape.hidden, device, torch.float32, enabled)
            for _ in range(2):  # twice: buffers are used again
                offload.start()
                model.zero_grad()
                loss = model(batch, rope, offload, chunk)
                loss.backward()
                assert not enabled or offload.count == shape.layers and not offload.offloaded and not offload.fetched
                errors = {"loss": error(loss, expected)}
                for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
                    errors[name] = error(p.grad, q.grad)
                for name, e in errors.items():
                    assert e < bound, f"{name}: relative error {e:.2e}, offload {enabled}"
                    kind = "loss" if name == "loss" else "gradient"
                    worst[kind] = max(worst.get(kind, 0), e)
        model.zero_grad()
        step_in_backward(model, 1e-2)
        torch.optim.Adafactor(plain.parameters(), lr=1e-2, foreach=False).step()
        offload.start()
        model(batch, rope, offload, chunk).backward()
        for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert p.grad is None and (e := error(p, q)) < bound, f"{name} after a step"
            worst["step"] = max(worst.get("step", 0), e)
    print("check passed; worst relative error: " + ", ".join(f"{kind} {e:.1e}" for kind, e in worst.items()))


def compile_layers(model):
    for layer in model.layers:
        layer.attention.compile(dynamic=False)
        layer.mlp.compile(dynamic=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama2_7b")
    parser.add_argument("--tokens", default="4096", help="lengths, with commas between them")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each length")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--layers", choices=LAYERS, default="own", help="whose decoder layers")
    parser.add_argument("--attention", choices=["auto", "flash", "cudnn"], default="auto")
    parser.add_argument("--chunk", type=int, default=2048, help="tokens of logits at a time")
    parser.add_argument("--no-offload", action="store_true", help="leave the layers' inputs on the device")
    parser.add_argument("--compile", action="store_true", help="torch.compile the layers' two halves")
    parser.add_argument("--memory-cap-gib", type=float, help="of the caching allocator")
    parser.add_argument("--json", help="write the JSON lines to this file, too")
    parser.add_argument("--check", action="store_true", help="compare with a straightforward model, then stop")
    options = parser.parse_args()
    if options.compile and options.layers != "own":
        parser.error("--compile: expected --layers own for it")
    device = torch.device(options.device)
    if options.check:
        return check(device, options.compile, options.layers)

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    if options.memory_cap_gib and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory_cap_gib * GIB / total))
    shape, dtype = SHAPES[options.shape], getattr(torch, options.dtype)
    lengths = [int(length) for length in options.tokens.split(",")]
    attention = choose_attention(options.attention, shape, device, dtype)
    model = build(shape, device, dtype, options.layers)
    if options.compile:
        compile_layers(model)
    step_in_backward(model, 1e-3)
    offload = Offload(shape.layers, max(lengths) * shape.hidden, device, dtype, not options.no_offload)
    described = {
        "shape": options.shape,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": options.dtype,
        "layers": options.layers,
        "attention": attention,
        "offload": not options.no_offload,
        "compile": options.compile,
        "memory_cap_gib": options.memory_cap_gib,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }
    with open(options.json, "w") if options.json else contextlib.nullcontext() as file:
        for tokens in lengths:
            result = described | {"tokens": tokens} | try_measure(model, offload, tokens, options)
            free(model, offload)
            line = json.dumps(result)
            print(line, readable(result), sep="\n", flush=True)
            if file:
                print(line, file=file, flush=True)


if __name__ == "__main__":
    main()
