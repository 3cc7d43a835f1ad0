"""A decode step of one attention layer over the paged INT4 cache, and a prompt's attention, against torch's
attention over fp32 and bf16 keys and values.

kv4_attend does more than its peers: RoPE, the keys' Hadamard and appending are in its time. torch gets the
query heads of a kv head as rows of one matrix, which spares it the copies of enable_gqa.
"""

import argparse
import functools

import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.oracle import attention as oracle
from tests.oracle import compare

from . import report
from .timing import Timing, interleave

LAYERS = {"SmolLM2-135M": (9, 3, 64), "Llama-3-8B": (32, 8, 128)}  # query heads, kv heads, head size
LENGTHS = (128, 2048, 8192)
PROMPTS = (512, 2048)
PAGE = 64


def _calls(heads: int, kv_heads: int, d: int, length: int) -> dict:
    ops, g = torch.ops.lowbit, torch.Generator().manual_seed(length)
    pages = -(-length // PAGE)
    caches = [
        torch.zeros(pages, kv_heads, PAGE, last, dtype=dtype)
        for _ in "kv"
        for last, dtype in ((d // 2, torch.uint8), (2, torch.float16))
    ]
    key, value = (torch.randn(length, kv_heads, d, generator=g) for _ in "kv")
    ops.kv4_append(key, value, torch.arange(length), *caches, 0.95, d)
    table = torch.randperm(pages, generator=g, dtype=torch.int32)[None]
    stored = torch.tensor([length - 1], dtype=torch.int32)
    qkv = torch.randn(1, (heads + 2 * kv_heads) * d, generator=g)
    angle = torch.randn(1, d // 2, generator=g).repeat(1, 2)
    rope = (angle.cos(), angle.sin())
    q = torch.randn(1, heads, d, generator=g)
    got = ops.kv4_attention(q, *caches, table, stored + 1, d**-0.5)
    numpy = oracle.Caches(*(c.numpy() for c in caches))
    want, bound = oracle.attention64(q.numpy(), numpy, table.numpy(), stored.numpy() + 1, d**-0.5)
    compare.elementwise(got, want, bound)

    def attend(dtype: torch.dtype):
        x, options = qkv.to(dtype), (None, None, 1e-6, 0.95, d)
        return lambda: ops.kv4_attend(x, *rope, heads, kv_heads, *caches, table, stored, d**-0.5, *options)

    def torch_attention(dtype: torch.dtype):
        k, v = (t.to(dtype).transpose(0, 1).contiguous()[None] for t in (key, value))
        rows = q.to(dtype).view(1, kv_heads, heads // kv_heads, d)
        return lambda: scaled_dot_product_attention(rows, k, v)

    return {
        "kv4_attend fp32": attend(torch.float32),
        "kv4_attend bf16": attend(torch.bfloat16),
        "torch fp32": torch_attention(torch.float32),
        "torch bf16": torch_attention(torch.bfloat16),
    }


def _prompt(heads: int, kv_heads: int, d: int, length: int) -> dict:
    g, calls = torch.Generator().manual_seed(length), {}
    exact = [torch.randn(1, length, h, d, generator=g) for h in (heads, kv_heads, kv_heads)]
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        q, k, v = (x.to(dtype) for x in exact)
        ours = functools.partial(torch.ops.lowbit.causal_attention, q, k, v, d**-0.5)
        heads_first = [x.transpose(1, 2) for x in (q, k, v)]
        theirs = functools.partial(
            scaled_dot_product_attention, *heads_first, is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(ours(), theirs().transpose(1, 2), atol=0.02, rtol=0.02)
        calls |= {f"causal_attention {name}": ours, f"torch {name}": theirs}
    return calls


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", default="all", help=f"comma-separated, of {', '.join(LAYERS)}")


def _report(title: str, times: dict[str, Timing]) -> dict:
    print(f"\n{title}")
    report.print_table(
        ["", "us", "spread", "x torch fp32", "x torch bf16"],
        [
            [call, f"{t.median * 1e6:.1f}", f"{100 * t.spread:.0f} %",
             f"{t.speedup(times['torch fp32']):.2f}", f"{t.speedup(times['torch bf16']):.2f}"]
            for call, t in times.items()
        ],
    )  # fmt: skip
    return {call: t.to_dict() for call, t in times.items()}


def run(options: argparse.Namespace) -> dict:
    points = []
    for name in LAYERS if options.layers == "all" else options.layers.split(","):
        heads, kv_heads, d = LAYERS[name]
        for length in LENGTHS:
            times = interleave(_calls(heads, kv_heads, d, length), options.rounds, options.slice)
            read = length * kv_heads * (d + 8)
            rows = _report(f"{name}, {length} tokens, {read / 2**20:.2f} MiB of cache", times)
            points.append({"layer": name, "length": length, "cache_bytes": read, "times": rows})
        for length in PROMPTS:
            times = interleave(_prompt(heads, kv_heads, d, length), options.rounds, options.slice)
            rows = _report(f"{name}, a prompt of {length} tokens", times)
            points.append({"layer": name, "prompt": length, "times": rows})
    return {"points": points}
