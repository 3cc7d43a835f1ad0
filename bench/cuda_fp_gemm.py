"""Weight-only FP6, FP4 and int4 layers on a GPU against torch's fp16 or bf16 and humming: weights cold.

Every result of ours is checked before it is timed, against float64 sums of the very codes that it was given.
"""

import argparse
import itertools
from dataclasses import asdict, dataclass

import lowbit.ops
import torch
from lowbit import minifloat
from torch import Tensor

from . import cuda_ceiling, report
from .cuda_linear import shapes_of
from .cuda_peers import Call, Humming, TorchLinear, bind_checked, contenders
from .cuda_timing import copies_for, interleave_graphs
from .record import Record
from .timing import geometric_mean

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 512, 1024)  # dense where the kernel and the fallback meet
VARIANTS = (("e3m2", 0), ("e2m3", 0), ("e2m3", 32), ("e2m1", 0), ("e2m1", 32), ("int4", 128))
BASE = "torch"


@dataclass
class Problem:
    """Operands of one (N, K) in one type of activations."""

    n: int
    k: int
    dtype: torch.dtype
    device: str

    def __post_init__(self) -> None:
        self.generator = torch.Generator(self.device).manual_seed(self.n + self.k)
        shape = {"device": self.device, "generator": self.generator}
        self.w_scale = torch.rand(self.n, **shape) * 1e-3 + 1e-4
        self.plain = (torch.randn(self.n, self.k, **shape) * 0.05).to(self.dtype)


class Ours:
    """fp_linear with random codes of a format; groups of 32 have E8M0 scales, of 128 fp16 ones."""

    kind = "ours"

    def __init__(self, p: Problem, format: str, group: int):
        self.name = f"lowbit {format}" + (f" g{group}" if group else "")
        self.p, self.format, self.group = p, format, group
        self.codes_as = "e2m1" if format == "int4" else format
        bits = minifloat.find_format(self.codes_as).bits
        shape = {"device": p.device, "generator": p.generator}
        self.codes = torch.randint(0, 1 << bits, (p.n, p.k), dtype=torch.uint8, **shape)
        packed = minifloat.pack_codes(self.codes, self.codes_as)
        tiles = lowbit.ops.prepack_fp_weight(packed, format, p.k)
        self.scale: Tensor | None = None
        self.scale_tiles: Tensor | None = None
        if group:
            exponents = torch.randint(-2, 3, (p.n, -(-p.k // group)), **shape)
            self.scale = (exponents + 127).to(torch.uint8) if group == 32 else 2.0 ** exponents.half()
            self.scale_tiles = lowbit.ops.prepack_fp_group_scale(self.scale)
        of_scales = self.scale_tiles.nbytes if self.scale_tiles is not None else 0
        self.weight_bytes = tiles.numel() + of_scales + 4 * p.n
        self.tiles = [tiles] + [tiles.clone() for _ in range(copies_for(tiles.numel(), p.device) - 1)]

    def bind(self, x: Tensor) -> list[Call]:
        op, p = torch.ops.lowbit.fp_linear.default, self.p
        return [lambda t=t: op(x, t, self.format, p.w_scale, self.scale_tiles) for t in self.tiles]

    def weight64(self) -> Tensor:
        """The exact weight without the channels' scales."""
        if self.format == "int4":
            w = self.codes.double() - 8
        else:
            w = minifloat.decode(self.codes, self.format).double()
        if self.scale is None:
            return w
        value = minifloat.decode_e8m0(self.scale) if self.group == 32 else self.scale
        return w * value.double().repeat_interleave(self.group, 1)[:, : self.p.k]

    def check(self, x: Tensor, y: Tensor) -> None:
        """First, middle and last rows, within the bound of K roundings in fp32 and one of y's type."""
        rows = sorted({0, len(x) // 2, len(x) - 1})
        w = self.weight64() * self.p.w_scale.double()[:, None]
        want, size = x[rows].double() @ w.T, x[rows].double().abs() @ w.T.abs()
        unit = torch.finfo(y.dtype).eps / 2
        excess = (y[rows].double() - want).abs() - 2 * (
            unit * want.abs() + (x.shape[1] + 40) * 2.0**-24 * size
        )
        if not bool((excess <= 0).all()):
            shape = f"{tuple(x.shape)} x {self.p.n}"
            raise AssertionError(f"{self.name} at {shape}: past its bound by up to {excess.max().item()}")


def _contenders(p: Problem, options: argparse.Namespace) -> list:
    makers = [lambda: TorchLinear(BASE, p.plain, p.device)]
    if not options.no_peers:
        makers.append(lambda: Humming("humming float6e3m2", {"dtype": "float6e3m2"}, p.plain, p.device))
    makers += [lambda v=v: Ours(p, *v) for v in VARIANTS]
    return contenders(makers, options.only, options.record.attempt)


def _point(p: Problem, m: int, found: list, options: argparse.Namespace) -> dict:
    x = torch.randn(m, p.k, device=p.device, generator=p.generator).to(p.dtype)
    attempt = options.record.attempt
    calls = bind_checked(found, x, attempt)
    times = interleave_graphs(calls, options.rounds, options.slice, p.device, attempt)
    point: dict = {"m": m, "n": p.n, "k": p.k, "dtype": str(p.dtype).removeprefix("torch."), "times": {}}
    for c in found:
        if c.name not in times:
            continue
        t = times[c.name]
        point["times"][c.name] = asdict(t) | {"of_torch": times[BASE].median / t.median}
        if c.kind == "ours":
            rate = c.weight_bytes / t.median
            share = rate / cuda_ceiling.copy_bandwidth(p.device)
            point["times"][c.name] |= {"weight_gb_per_s": rate * 1e-9, "share_of_copy": share}
    return point


def _print(point: dict) -> None:
    print(f"\n{point['n']} x {point['k']}, M = {point['m']}, {point['dtype']}")
    rows = []
    for name, t in point["times"].items():
        ours = "weight_gb_per_s" in t
        rows.append(
            [
                name,
                f"{t['median'] * 1e6:.1f}",
                f"{100 * (t['high'] - t['low']) / t['median']:.0f} %",
                f"{t['weight_gb_per_s']:.0f}" if ours else "",
                f"{100 * t['share_of_copy']:.0f} %" if ours else "",
                f"{t['of_torch']:.2f}",
            ]
        )
    report.print_table(["", "us", "spread", "weight GB/s", "of copy", "x torch"], rows)


def run(options: argparse.Namespace, device: str = "cuda") -> dict:
    """Every shape and number of rows, in fp16 and bf16."""
    ceilings = cuda_ceiling.measure(device)
    print(", ".join(f"{name} {value:.0f}" for name, value in ceilings.items()))
    record: Record = options.record
    points = record.points
    for (n, k), dtype in itertools.product(shapes_of(options.shapes), (torch.float16, torch.bfloat16)):
        with record.attempt(f"{n} x {k} in {dtype}"):
            p = Problem(n, k, dtype, device)
            found = _contenders(p, options)
            for m in options.rows:
                with record.attempt(f"M = {m}"):
                    record.add(_point(p, m, found, options))
                    _print(points[-1])
        p = found = None  # before the next ones are made
    summary: dict = {}
    for name in {n: None for point in points for n in point["times"] if n.startswith("lowbit")}:
        per_m = {
            m: [q["times"][name]["of_torch"] for q in points if q["m"] == m and name in q["times"]]
            for m in options.rows
        }
        summary[name] = {
            m: {"geometric_mean": geometric_mean(r), "worst": min(r)} for m, r in per_m.items() if r
        }
    return {"ceilings": ceilings, "summary": summary, "points": points}
