"""Quantised linear layers on a GPU against torch fp16, _int_mm, CUTLASS and humming: weights cold, x and y in
fp16.

`gemm`: the product alone, from given codes. `layer`: the activation's quantisation included.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass

import lowbit.ops
import torch
from torch import Tensor

from . import cuda_ceiling, report
from .cuda_cutlass import KINDS, Cutlass
from .cuda_peers import Call, Humming, Peer, TorchLinear, Unavailable, bind_checked, contenders
from .cuda_timing import copies_for, interleave_graphs
from .record import Record
from .timing import geometric_mean

LAYERS = {
    "square": ((8192, 8192),),
    "Llama-3-8B": ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)),
    "Llama-3-70B": ((1024, 8192), (28672, 8192), (8192, 28672)),
}
ROWS = (1, 16, 64, 256, 1024, 4096)
BASE = "torch fp16"


@dataclass
class Problem:
    """Operands of one (N, K), with copies of each weight."""

    n: int
    k: int
    device: str

    def __post_init__(self) -> None:
        generator = torch.Generator(self.device).manual_seed(self.n + self.k)
        shape = {"device": self.device, "generator": generator}
        self.packed = torch.randint(0, 256, (self.n, self.k // 2), dtype=torch.uint8, **shape)
        self.int8 = torch.randint(-127, 128, (self.n, self.k), dtype=torch.int8, **shape)
        self.w_scale = torch.rand(self.n, **shape) * 1e-3 + 1e-4
        self.groups = torch.randint(1, 17, (self.n, -(-self.k // 128)), dtype=torch.uint8, **shape)
        self.half = (torch.randn(self.n, self.k, **shape) * 0.05).half()

    def codes(self) -> Tensor:
        """int4 weight codes [N, K]."""
        return torch.stack((self.packed & 15, self.packed >> 4), -1).flatten(1).to(torch.int8) - 8

    def expected(
        self, x: Tensor, weight_bits: int, activation_bits: int, group: bool = False
    ) -> tuple[list[int], Tensor]:
        """First, middle and last rows of y: exact sums in float64, then the contract's roundings."""
        rows = sorted({0, len(x) // 2, len(x) - 1})
        ops = torch.ops.lowbit
        q, x_scale = (ops.quantize_int4 if activation_bits == 4 else ops.quantize_int8)(x[rows])
        if activation_bits == 4:
            q = (torch.stack((q & 15, q >> 4), -1).flatten(1)[:, : self.k]).to(torch.int8) - 8
        w = (self.codes() if weight_bits == 4 else self.int8).double()
        if group:
            w = w * self.groups.repeat_interleave(128, 1)[:, : self.k]
        return rows, ((q.double() @ w.T).float() * self.w_scale * x_scale[:, None]).half()


class IntMm(Peer):
    """torch._int_mm from int8 codes to int32 sums: no scales, no fp16 result."""

    name = "torch _int_mm"

    def __init__(self, p: Problem):
        self.weights = [p.int8.clone() for _ in range(copies_for(p.int8.numel(), p.device))]

    def bind(self, x: Tensor) -> list[Call]:
        if len(x) <= 16:
            raise Unavailable("_int_mm wants more than 16 rows")
        q, _ = torch.ops.lowbit.quantize_int8(x)
        return [lambda w=w: torch._int_mm(q, w.T) for w in self.weights]


class Ours:
    """int4_linear or int8_linear (gemm), or dynamic_linear (layer)."""

    def __init__(self, p: Problem, weight_bits: int, activation_bits: int, group: bool, gemm: bool):
        self.bits, self.weight_bits, self.gemm, self.p = activation_bits, weight_bits, gemm, p
        what = f"W{weight_bits}A{activation_bits}" + (" g128" if group else "")
        self.name, self.kind = f"lowbit {what} {'gemm' if gemm else 'layer'}", "ours"
        pack = lowbit.ops.prepack_int4_weight if weight_bits == 4 else lowbit.ops.prepack_int8_weight
        tiles = pack(p.packed if weight_bits == 4 else p.int8)
        self.groups = lowbit.ops.prepack_group_scale(p.groups) if group else None
        self.weight_bytes = tiles.numel() + (self.groups.numel() if group else 0) + 4 * p.n
        self.tiles = [tiles] + [tiles.clone() for _ in range(copies_for(tiles.numel(), p.device) - 1)]

    def bind(self, x: Tensor) -> list[Call]:
        scale, groups, ops = self.p.w_scale, self.groups, torch.ops.lowbit
        if not self.gemm:
            op = ops.dynamic_linear.default
            return [lambda t=t: op(x, t, scale, groups, None, self.bits) for t in self.tiles]
        q, x_scale = (ops.quantize_int4 if self.bits == 4 else ops.quantize_int8)(x)
        if self.weight_bits == 8:
            op = ops.int8_linear.default
            return [lambda t=t: op(q, x_scale, t, scale, None, torch.float16) for t in self.tiles]
        op = ops.int4_linear.default
        return [lambda t=t: op(q, x_scale, t, scale, groups, None, torch.float16) for t in self.tiles]

    def check(self, x: Tensor, y: Tensor) -> None:
        """Bit for bit."""
        rows, want = self.p.expected(x, self.weight_bits, self.bits, self.groups is not None)
        if not torch.equal(y[rows], want):
            error = (y[rows].double() - want.double()).abs().max().item()
            raise AssertionError(f"{self.name} at {tuple(x.shape)} x {self.p.n}: off by up to {error}")


VARIANTS = (  # weight bits, activation bits, groups of 128, gemm alone
    (4, 8, False, True), (4, 8, False, False), (4, 4, False, True), (4, 4, False, False), (4, 8, True, False),
    (8, 8, False, True),
)  # fmt: skip


def _contenders(p: Problem, options: argparse.Namespace) -> list:
    makers: list[Callable[[], object]] = [lambda: TorchLinear(BASE, p.half, p.device)]
    if not options.no_peers:
        int4 = {"dtype": "uint4", "group_size": 0}
        makers += [lambda: IntMm(p), lambda: Humming("humming w4a16", int4, p.half, p.device)]
        makers += [lambda k=k: Cutlass(k, p) for k in KINDS]
    makers += [lambda v=v: Ours(p, *v) for v in VARIANTS]
    return contenders(makers, options.only, options.record.attempt)


def _point(p: Problem, m: int, found: list, options: argparse.Namespace) -> dict:
    x = torch.randn(m, p.k, device=p.device, generator=torch.Generator(p.device).manual_seed(m)).half()
    attempt = options.record.attempt
    calls = bind_checked(found, x, attempt)
    times = interleave_graphs(calls, options.rounds, options.slice, p.device, attempt)
    point: dict = {"m": m, "n": p.n, "k": p.k, "times": {}}
    for c in found:
        if c.name not in times:
            continue
        t = times[c.name]
        point["times"][c.name] = asdict(t) | {
            "tops": 2 * m * p.n * p.k / t.median * 1e-12,
            "of_fp16": times[BASE].median / t.median,
        }
        if c.kind == "ours":
            floor = max(2 * m * p.n * p.k / cuda_ceiling.int8_rate(p.device),
                        c.weight_bytes / cuda_ceiling.copy_bandwidth(p.device))  # fmt: skip
            point["times"][c.name] |= {
                "weight_gb_per_s": c.weight_bytes / t.median * 1e-9,
                "share_of_ceiling": floor / t.median,
            }
    return point


def _print(point: dict) -> None:
    print(f"\n{point['n']} x {point['k']}, M = {point['m']}")
    rows = [
        [
            name,
            f"{t['median'] * 1e6:.1f}",
            f"{100 * (t['high'] - t['low']) / t['median']:.0f} %",
            f"{t['tops']:.1f}",
            f"{t['weight_gb_per_s']:.0f}" if "weight_gb_per_s" in t else "",
            f"{100 * t['share_of_ceiling']:.0f} %" if "share_of_ceiling" in t else "",
            f"{t['of_fp16']:.2f}",
        ]
        for name, t in point["times"].items()
    ]
    report.print_table(["", "us", "spread", "TOPS", "weight GB/s", "of ceiling", "x fp16"], rows)


def shapes_of(text: str) -> list[tuple[int, int]]:
    """Layers (N, K) named by models or as NxK, without repeats."""
    found: list[tuple[int, int]] = []
    for word in LAYERS if text == "all" else text.split(","):
        found += LAYERS[word] if word in LAYERS else [tuple(int(v) for v in word.split("x"))]
    return list(dict.fromkeys(found))


def run(options: argparse.Namespace, device: str = "cuda") -> dict:
    ceilings = cuda_ceiling.measure(device)
    print(", ".join(f"{name} {value:.0f}" for name, value in ceilings.items()))
    record: Record = options.record
    points = record.points
    for n, k in shapes_of(options.shapes):
        with record.attempt(f"{n} x {k}"):
            p = Problem(n, k, device)
            found = _contenders(p, options)
            for m in options.rows:
                with record.attempt(f"M = {m}"):
                    record.add(_point(p, m, found, options))
                    _print(points[-1])
        p = found = None  # before the next ones are made
    summary: dict = {}
    for name in {n: None for point in points for n in point["times"] if n.startswith("lowbit")}:
        per_m = {
            m: [q["times"][name]["of_fp16"] for q in points if q["m"] == m and name in q["times"]]
            for m in options.rows
        }
        summary[name] = {
            m: {"geometric_mean": geometric_mean(r), "worst": min(r)} for m, r in per_m.items() if r
        }
    print("\ntorch fp16's time / ours: geometric mean over the shapes (worst shape)")
    table = [
        [
            name,
            *(f"{s[m]['geometric_mean']:.2f} ({s[m]['worst']:.2f})" if m in s else "" for m in options.rows),
        ]
        for name, s in summary.items()
    ]
    report.print_table(["", *(f"M = {m}" for m in options.rows)], table)
    return {"ceilings": ceilings, "summary": summary, "points": points}
