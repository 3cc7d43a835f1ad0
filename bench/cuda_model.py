"""Decoder layers or a whole model on a GPU, quantised and fused, against torch in fp16: decode and prefill of
random weights in the shapes of real models.

A decode step is one CUDA graph on both sides, from the token's embedding to the logits; the cache holds
`context` tokens before it. `as called` are the calls that `generate` makes: transformers around the step.
"""

import argparse
import gc
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import lowbit
import torch
from lowbit.cuda_graph import Tickets
from lowbit.integrations.hf.cache import CACHE
from lowbit.integrations.hf.fused import FusedDecoder
from lowbit.integrations.hf.fused_cache import FusedCache
from torch import Tensor, nn

from . import cuda_ceiling, report
from .cuda_profile import kernels, print_kernels
from .cuda_timing import interleave_events, interleave_graphs
from .model import SHAPES, Decode, Prefill, Shape, random_layer, repeat_layer
from .random_layers import random_quantized
from .record import Record
from .timing import Timing

BASE = "torch fp16"
CALLED = "transformers fp16"
DTYPE = torch.float16
LAYERS = 4  # of `layer`: together larger than the cache of a card, so that none finds its weights there
BATCHES = (1, 16, 64)


@dataclass
class TorchDecoder:
    """The unquantised model in as few torch calls as it takes: merged q, k, v and gate, up, no transformers.
    """

    model: nn.Module

    def __post_init__(self) -> None:
        self.weights = []
        for layer in self.model.model.layers:
            a, m = layer.self_attn, layer.mlp
            self.weights.append(
                (
                    layer.input_layernorm.weight,
                    _merge(a.q_proj, a.k_proj, a.v_proj),
                    a.o_proj.weight,
                    layer.post_attention_layernorm.weight,
                    _merge(m.gate_proj, m.up_proj),
                    m.down_proj.weight,
                )
            )
        config = self.model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.eps = config.rms_norm_eps

    def __call__(self, h: Tensor, rope: tuple[Tensor, Tensor], caches: list[tuple[Tensor, Tensor]]) -> Tensor:
        """h [B, T, d] through the layers. caches: keys and values [B, H, context + T, D] of each layer, whose
        last T tokens are written; empty for a prompt without a past.
        """
        f, (b, t, _) = nn.functional, h.shape
        for i, (n1, w_qkv, w_o, n2, w_gate_up, w_down) in enumerate(self.weights):
            qkv = f.linear(f.rms_norm(h, n1.shape, n1, self.eps), w_qkv)
            qkv = qkv.view(b, t, self.heads + 2 * self.kv_heads, -1).transpose(1, 2)
            qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], 1)
            q, k = _rope(qk, *rope).split([self.heads, self.kv_heads], 1)
            if caches:
                keys, values = caches[i]
                keys[:, :, -t:], values[:, :, -t:] = k, v
                k, v = keys, values
            y = f.scaled_dot_product_attention(q, k, v, is_causal=t > 1, enable_gqa=True)
            h = h + f.linear(y.transpose(1, 2).reshape(b, t, -1), w_o)
            gate, up = f.linear(f.rms_norm(h, n2.shape, n2, self.eps), w_gate_up).chunk(2, -1)
            h = h + f.linear(f.silu(gate) * up, w_down)
        norm = self.model.model.norm.weight
        return f.rms_norm(h, norm.shape, norm, self.eps)

    def weight_bytes(self) -> int:
        return sum(t.nbytes for layer in self.weights for t in layer)


def _merge(*linears: nn.Linear) -> Tensor:
    """Their weights under one another; the linears share that memory."""
    merged = torch.cat([linear.weight for linear in linears])
    parts = merged.split([linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight = nn.Parameter(part, requires_grad=False)
    return merged


def _rope(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """x [B, H, T, D]; signed_sin: negative in its lower half."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin)


def _rotary(model: nn.Module, ids: Tensor, past: int) -> tuple[Tensor, Tensor]:
    """cos and sin [1, T, D] of the tokens after `past` others."""
    decoder = model.model
    positions = torch.arange(past, past + ids.shape[1], device=ids.device).unsqueeze(0)
    return decoder.rotary_emb(decoder.embed_tokens(ids[:1]), positions)


class TorchStep:
    """One token for every sequence; the cache is static."""

    def __init__(self, decoder: TorchDecoder, token: Tensor, context: int, whole: bool):
        self.decoder, self.model, self.token, self.whole = decoder, decoder.model, token, whole
        self.rope = _for_torch(_rotary(self.model, token, context))
        head_dim = self.rope[0].shape[-1]
        shape = (len(token), decoder.kv_heads, context + 1, head_dim)
        self.caches = [
            tuple(torch.randn(shape, device=token.device, dtype=DTYPE) for _ in range(2))
            for _ in decoder.weights
        ]
        of_head = self.model.lm_head.weight.nbytes if whole else 0
        self.bytes = decoder.weight_bytes() + of_head + sum(t.nbytes for pair in self.caches for t in pair)

    def __call__(self) -> Tensor:
        h = self.decoder(self.model.model.embed_tokens(self.token), self.rope, self.caches)
        return self.model.lm_head(h) if self.whole else h


class TorchPrompt:
    """All tokens at once."""

    def __init__(self, decoder: TorchDecoder, ids: Tensor, whole: bool):
        self.decoder, self.model, self.ids, self.whole = decoder, decoder.model, ids, whole
        self.rope = _for_torch(_rotary(self.model, ids, 0))

    def __call__(self) -> Tensor:
        h = self.decoder(self.model.model.embed_tokens(self.ids), self.rope, [])
        return self.model.lm_head(h[:, -1:]) if self.whole else h


def _for_torch(rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    cos, sin = (v.unsqueeze(1).to(DTYPE) for v in rotary)  # [1, 1, T, D]
    low, high = sin.chunk(2, -1)
    return cos, torch.cat((-low, high), -1)


class FusedStep:
    """One token for every sequence through the fused layers, as `FusedDecoder.forward` does it, but with
    embedding, norm and head inside, so that one graph is the whole step. Lengths stay: each call writes the
    same token again.
    """

    def __init__(self, model: nn.Module, token: Tensor, context: int, whole: bool):
        self.model, self.token, self.whole = model, token, whole
        self.fused: FusedDecoder = model.model.forward.fused  # see lowbit.fuse
        b = len(token)
        self.cos, self.sin = (
            v.float().expand(b, -1, -1).reshape(b, -1) for v in _rotary(model, token, context)
        )
        self.cache = _filled_cache(self.fused, b, context)
        self.table, self.lengths = self.cache.step()
        self.tickets = Tickets(token.device)
        self.bytes = _fused_bytes(self.fused, model.lm_head if whole else None)
        self.bytes += b * context * self.cache.pages.nbytes() // _slots(self.cache)

    def __call__(self) -> Tensor:
        decoder = self.model.model
        h = decoder.embed_tokens(self.token).flatten(0, 1)  # [B, d]
        with self.tickets.lend():
            h = self.fused._layers(self.cache, h, self.cos, self.sin, self.table, self.lengths)
        h = decoder.norm(h.unsqueeze(1))
        return self.model.lm_head(h) if self.whole else h


def _filled_cache(fused: FusedDecoder, batch: int, context: int) -> FusedCache:
    """`context` tokens of random codes for every sequence."""
    cache = fused.new_cache()
    cache.begin(context, [0] * batch)
    cache.pages._grow(batch * -(-(context + 1) // cache.pages.page))  # at once: growing doubles the pool
    for seq in cache.sequences:
        cache.pages.slots(seq, context)
    for layer in range(cache.pages.layers):
        for pool in cache.pages.caches(layer):
            if pool.dtype == torch.uint8:
                pool.random_(0, 256)
            elif fused.quantized_cache:
                pool[..., 0], pool[..., 1] = 0.2, -1.5  # code * 0.2 - 1.5
            else:
                pool.normal_()
    return cache


def _slots(cache: FusedCache) -> int:
    """Tokens that the pool has room for."""
    return cache.pages.caches(0)[0].shape[0] * cache.pages.page


def _fused_bytes(fused: FusedDecoder, head: nn.Module | None) -> int:
    """Of the weights that a step reads."""
    products = [p for layer in fused.layers for p in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    total = sum(p.nbytes() for p in products)
    if head is not None:
        codes = getattr(head, "_tiles", None)
        total += (head.weight if codes is None else codes).nbytes
    return total


def _check_fused(name: str, model: nn.Module, vocabulary: int, device: str) -> float:
    """How far the fused model is from the same one unfused, a prompt and a step: |difference|_2 / |output|_2.
    """
    ids = torch.randint(vocabulary, (2, 33), generator=torch.Generator().manual_seed(3)).to(device)
    outputs = []
    for prepare in (lowbit.unfuse, lowbit.fuse):
        decoder = prepare(model).model
        cache = getattr(decoder(ids[:, :32], use_cache=True), CACHE)
        outputs.append(decoder(ids[:, 32:], **{CACHE: cache}, use_cache=True).last_hidden_state.float())
    lowbit.unfuse(model)
    away = float((outputs[0] - outputs[1]).norm() / outputs[0].norm())
    if not away < 0.5:  # see model._check
        raise RuntimeError(f"{name}: expected the outputs of the unfused model, got {away:.3g} away")
    return away


def _check_torch(decoder: TorchDecoder, ids: Tensor) -> float:
    """The same of the torch calls and transformers."""
    want = decoder.model.model(ids).last_hidden_state.float()
    got = TorchPrompt(decoder, ids, False)().float()
    away = float((got - want).norm() / want.norm())
    if not away < 0.05:
        raise RuntimeError(f"{BASE}: expected the outputs of transformers, got {away:.3g} away")
    return away


@dataclass
class Contenders:
    """One shape: the torch model and the fused ones."""

    torch: TorchDecoder
    fused: dict[str, nn.Module]
    away: dict[str, float]

    @classmethod
    def make(
        cls, shape: Shape, layers: int, methods: list[str], device: str, record: Record
    ) -> "Contenders":
        with torch.device(device):
            plain = random_layer(shape, shape.vocabulary)
        decoder = TorchDecoder(repeat_layer(plain.to(DTYPE), layers))
        ids = torch.randint(shape.vocabulary, (1, 17), generator=torch.Generator().manual_seed(4)).to(device)
        fused, away = {}, {}
        with record.attempt(BASE):
            away[BASE] = _check_torch(decoder, ids)
        for name, method in {f"lowbit {method} fused": method for method in methods}.items():
            with record.attempt(name):
                model = random_quantized(shape, 1, method, device, DTYPE)
                away[name] = _check_fused(name, model, shape.vocabulary, device)
                fused[name] = lowbit.fuse(repeat_layer(model, layers))
        return cls(decoder, fused, away)


def _steps(c: Contenders, ids: Tensor, options: argparse.Namespace, whole: bool) -> dict:
    """Those whose outputs are finite."""
    token, steps = ids[:, :1], {}
    for name, model in {BASE: c.torch, **c.fused}.items():
        with options.record.attempt(name):
            make = TorchStep if name == BASE else FusedStep
            step = make(model, token, options.context, whole)
            if not bool(torch.isfinite(step()).all()):
                raise RuntimeError(f"{name}: expected finite outputs, got NaN or inf")
            steps[name] = step
    return steps


def _decode(c: Contenders, ids: Tensor, options: argparse.Namespace, whole: bool, device: str) -> dict:
    steps, attempt = _steps(c, ids, options, whole), options.record.attempt
    calls = {n: [s] for n, s in steps.items()}
    times = interleave_graphs(calls, options.rounds, options.slice, device, attempt)
    return {n: _row(t, len(ids), {"bytes": steps[n].bytes}) for n, t in times.items()}


def _called(c: Contenders, ids: Tensor, options: argparse.Namespace, whole: bool, device: str) -> dict:
    calls, attempt = {}, options.record.attempt
    for name, model in {CALLED: c.torch.model, **c.fused}.items():
        with attempt(f"{name} as called"):
            calls[f"{name} as called"] = Decode(model if whole else model.model, ids, options.context)
    times = interleave_events(calls, options.rounds, options.slice, device, attempt)
    return {n: _row(t, len(ids)) for n, t in times.items()}


def _prompts(c: Contenders, ids: Tensor, whole: bool) -> dict:
    calls: dict[str, Callable[[], object]] = {BASE: TorchPrompt(c.torch, ids, whole)}
    models = {CALLED: c.torch.model, **c.fused}
    return calls | {n: Prefill(m if whole else m.model, ids, whole) for n, m in models.items()}


def _prefill(c: Contenders, ids: Tensor, options: argparse.Namespace, whole: bool, device: str) -> dict:
    calls, attempt = _prompts(c, ids, whole), options.record.attempt
    times = interleave_events(calls, options.rounds, options.slice, device, attempt)
    return {n: _row(t, ids.numel()) for n, t in times.items()}


def _row(t: Timing, tokens: int, more: dict | None = None) -> dict:
    return asdict(t) | {"tokens_per_s": tokens / t.median} | (more or {})


def _print(title: str, times: dict[str, dict], layers: int, device: str) -> None:
    """layers: 0 for the time of a whole model, else that of one of them is printed."""
    print(f"\n{title}")
    base, rows = times[BASE]["median"], []
    for name, t in times.items():
        t["of_torch"] = base / t["median"]
        rate = t["bytes"] / t["median"] if "bytes" in t else 0
        spread = f"{100 * (t['high'] - t['low']) / t['median']:.0f} %"
        share = f"{100 * rate / cuda_ceiling.copy_bandwidth(device):.0f} %" if rate else ""
        gigabytes = f"{t['bytes'] * 1e-9:.2f}" if rate else ""
        rows.append(
            [name, f"{t['median'] * 1e3 / (layers or 1):.3f}", spread,
             "" if layers else f"{t['tokens_per_s']:.0f}", gigabytes, share, f"{t['of_torch']:.2f}"]
        )  # fmt: skip
    unit = "ms per layer" if layers else "ms"
    report.print_table(["", unit, "spread", "tokens/s", "GB read", "of copy", f"x {BASE}"], rows)


def _kernels(c: Contenders, ids: Tensor, options: argparse.Namespace, whole: bool, device: str) -> dict:
    """What a step and a prompt consist of."""
    found: dict = {}
    calls = _steps(c, ids[: options.batch[0]], options, whole)
    for phase in ("decode", "prefill"):
        found[phase] = {n: kernels(call, device) for n, call in calls.items()}
        for n, rows in found[phase].items():
            print_kernels(f"{phase}, {n}", rows)
        calls = _prompts(c, ids[:1, : options.prefill], whole)
    return found


def _free(device: str) -> None:
    """Give back what the last contenders held: fused models are in cycles, and the next may be larger."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _measure(name: str, options: argparse.Namespace, device: str, whole: bool, profile: bool) -> dict:
    """Adds the points; returns the kernels where asked for."""
    shape, record = SHAPES[name], options.record
    layers = options.layers or (shape.layers if whole else LAYERS)
    methods = [m.strip() for m in options.methods.split(",") if m.strip()]
    c = Contenders.make(shape, layers, methods, device, record)
    generator, found = torch.Generator().manual_seed(2), {}

    def add(phase: str, batch: int, times: dict[str, dict]) -> None:
        title = f"{name}, {layers} layers, {phase}, batch {batch}"
        _print(title, times, 0 if whole else layers, device)
        record.add(
            {"shape": name, "layers": layers, "phase": phase, "batch": batch, "difference": c.away,
             "times": times}
        )  # fmt: skip

    longest = max(options.prefill, options.context + 1)
    ids = torch.randint(shape.vocabulary, (max(options.batch), longest), generator=generator).to(device)
    for batch in options.batch:
        with record.attempt(f"decode of {batch}"):
            times = _decode(c, ids[:batch], options, whole, device)
            if batch == 1:
                times |= _called(c, ids[:1], options, whole, device)
            add("decode", batch, times)
        _free(device)
    with record.attempt("prefill"):
        add("prefill", 1, _prefill(c, ids[:1, : options.prefill], options, whole, device))
    _free(device)
    if profile:
        with record.attempt("kernels"):
            found = _kernels(c, ids, options, whole, device)
    return found


def run(options: argparse.Namespace, device: str = "cuda", whole: bool = True) -> dict:
    """whole: with embedding and head; else layers alone, whose times are printed per layer."""
    ceilings = {"copy_gb_per_s": cuda_ceiling.copy_bandwidth(device) * 1e-9}
    print(", ".join(f"{name} {value:.0f}" for name, value in ceilings.items()))
    record, found = options.record, {}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="fused decoder")  # one that goes the old way is no result
        for name in options.shape:
            with record.attempt(name):
                found = _measure(name, options, device, whole, profile=name == options.shape[-1])
            _free(device)
    how = {"whole": whole, "prefill": options.prefill, "context": options.context}
    return {**how, "ceilings": ceilings, "points": record.points, "kernels": found}


def run_layer(options: argparse.Namespace, device: str = "cuda") -> dict:
    """As `run`, layers alone."""
    return run(options, device, whole=False)
