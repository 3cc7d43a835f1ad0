"""Weight-only layers in 4 and 6 bits against torch in bf16 and fp32: x in bf16, weights out of cache."""

import argparse
from collections.abc import Callable

import lowbit.ops
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracle import compare, minifloat
from tests.oracle.cases import BENCH_ROWS

from . import report
from .linear import shapes_of
from .timing import Timing, geometric_mean, interleave

# (format, group): e8m0 scales at 32, fp16 at 64 and 128
VARIANTS = (
    ("e3m2", None), ("e2m3", None), ("e2m3", 32), ("e2m1", None), ("e2m1", 32), ("int4", 128),
)  # fmt: skip


class Layer:
    """One of our layers, with random codes and scales."""

    def __init__(self, fmt: str, group: int | None, n: int, k: int):
        self.name = f"lowbit {fmt}" + (f" g{group}" if group else "")
        self.case = minifloat.Case(1, n, k, fmt, group, "bfloat16")
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 1 << minifloat.BITS[fmt], (n, k), dtype=np.uint8)
        packed = lowbit.minifloat.pack_codes(torch.from_numpy(codes), "e2m1" if fmt == "int4" else fmt)
        self.codes, self.packed_bytes = codes, packed.numel()
        self.tiles = lowbit.ops.prepack_fp_weight(packed, fmt, k)
        self.w_scale = torch.from_numpy(rng.uniform(1e-3, 0.1, n).astype(np.float32))
        self.scale, self.scale_tiles = None, None
        if group:
            shape = (n, -(-k // group))
            self.scale = (
                rng.integers(120, 130, shape).astype(np.uint8)
                if group == 32
                else rng.uniform(0.1, 1, shape).astype(np.float16)
            )
            self.scale_tiles = lowbit.ops.prepack_fp_group_scale(torch.from_numpy(self.scale))
            self.packed_bytes += self.scale.nbytes

    def bind(self, x: Tensor) -> Callable[[], Tensor]:
        op, fmt = torch.ops.lowbit.fp_linear.default, self.case.format
        return lambda: op(x, self.tiles, fmt, self.w_scale, self.scale_tiles, None)

    def check(self, x: Tensor, y: Tensor) -> None:
        """First and last row, 64 channels, within the derived bound."""
        rows, channels = sorted({0, len(x) - 1}), slice(0, 64)
        d = minifloat.Data(
            x[rows].float().numpy(), self.codes[channels], self.w_scale[channels].numpy(),
            None if self.scale is None else self.scale[channels], None,
        )  # fmt: skip
        want, magnitude = minifloat.expected(self.case, d)
        compare.bounded(y[rows][:, channels], want, magnitude, self.case.k + 8, "bfloat16")


def _measure(n: int, k: int, options: argparse.Namespace) -> list[dict]:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0))
    half, points = weight.bfloat16(), []
    layers = [Layer(*v, n, k) for v in VARIANTS]
    if options.only:
        layers = [layer for layer in layers if options.only.lower() in layer.name]
    for m in options.rows:
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).bfloat16()
        wide = x.float()
        calls: dict[str, Callable[[], Tensor]] = {}
        if not options.no_peers:
            calls["torch bf16"] = lambda x=x: F.linear(x, half)
            calls["torch fp32"] = lambda wide=wide: F.linear(wide, weight)
        for layer in layers:
            calls[layer.name] = layer.bind(x)
            layer.check(x, calls[layer.name]())
        points.append(_point(m, n, k, layers, interleave(calls, options.rounds, options.slice)))
        _print_point(points[-1])
    return points


def _point(m: int, n: int, k: int, layers: list[Layer], times: dict[str, Timing]) -> dict:
    peers = [name for name in ("torch bf16", "torch fp32") if name in times]
    ours = {
        layer.name: times[layer.name].to_dict()
        | {
            "weight_gb_per_s": layer.packed_bytes / times[layer.name].median * 1e-9,
            "gmac_per_s": m * n * k / times[layer.name].median * 1e-9,
            "ratio": {p: times[layer.name].speedup(times[p]) for p in peers},
        }
        for layer in layers
    }
    return {"m": m, "n": n, "k": k, "ours": ours, "peers": {p: times[p].to_dict() for p in peers}}


def _print_point(point: dict) -> None:
    print(f"\n{point['n']} x {point['k']}, M = {point['m']}")
    rows = [[name, f"{t['median'] * 1e3:.3f}", "", "", "", ""] for name, t in point["peers"].items()]
    rows += [
        [
            name, f"{t['median'] * 1e3:.3f}", f"{t['weight_gb_per_s']:.1f}", f"{t['gmac_per_s']:.0f}",
            *(f"{r:.2f}" for r in t["ratio"].values()),
        ]
        for name, t in point["ours"].items()
    ]  # fmt: skip
    report.print_table(["", "ms", "GB/s", "GMAC/s", "bf16 / ours", "fp32 / ours"], rows)


def _summary(points: list[dict]) -> dict[str, dict]:
    """Per variant and M: bf16's time / ours, geometric mean over the shapes, and the worst shape."""
    summary: dict[str, dict] = {}
    for name in points[0]["ours"] if points[0]["peers"] else ():
        for m in sorted({p["m"] for p in points}):
            ratios = [p["ours"][name]["ratio"]["torch bf16"] for p in points if p["m"] == m]
            found = {"geometric_mean": geometric_mean(ratios), "worst": min(ratios)}
            summary.setdefault(name, {})[f"M = {m}"] = found
    return summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", default="square,Llama-3-8B", help="as of `bench linear`")
    parser.add_argument(
        "--rows", type=lambda s: [int(v) for v in s.split(",")], default=list(BENCH_ROWS),
        help="values of M, comma-separated (default: 1,8,32,128,512)",
    )  # fmt: skip
    parser.add_argument("--only", help="time only our variants whose name contains this")
    parser.add_argument("--no-peers", action="store_true", help="time only our own variants")


def run(options: argparse.Namespace) -> dict:
    points = [p for n, k in shapes_of(options.shapes) for p in _measure(n, k, options)]
    summary = _summary(points)
    if not summary:
        return {"summary": summary, "points": points}
    print("\ntorch bf16's time / ours: geometric mean (worst)")
    columns = list(next(iter(summary.values())))
    report.print_table(
        ["", *columns],
        [
            [name, *(f"{s[c]['geometric_mean']:.2f} ({s[c]['worst']:.2f})" for c in columns)]
            for name, s in summary.items()
        ],
    )
    return {"summary": summary, "points": points}
