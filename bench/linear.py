"""Quantised linear layers against the peers: x in fp32 (bf16 for the bf16 peers), its quantisation included.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import lowbit.ops
import numpy as np
import torch
from torch import Tensor

from tests.oracle import codec, compare
from tests.oracle import ops as oracle
from tests.oracle.cases import BENCH_ROWS, MODEL_LAYERS

from . import ceiling, report
from .peers import Unavailable, all_peers
from .timing import Timing, geometric_mean, interleave


@dataclass(frozen=True)
class Variant:
    """One of our layers."""

    weight_bits: int
    activation_bits: int
    group: int | None = None

    @property
    def name(self) -> str:
        return f"lowbit W{self.weight_bits}A{self.activation_bits}" + (
            f" g{self.group}" if self.group else ""
        )


VARIANTS = (Variant(4, 8), Variant(4, 4), Variant(4, 8, 128), Variant(4, 4, 128), Variant(8, 8))


class Ours:
    """dynamic_linear with a round-to-nearest weight: per channel, or two-level with integer group scales."""

    def __init__(self, variant: Variant, weight: Tensor):
        self.variant, self.name = variant, variant.name
        self.codes, self.groups, self.scale = _quantize(weight, variant)
        self.group_tiles = None
        if variant.weight_bits == 8:
            self.tiles = lowbit.ops.prepack_int8_weight(torch.from_numpy(self.codes.astype(np.int8)))
        else:
            self.tiles = lowbit.ops.prepack_int4_weight(torch.from_numpy(codec.pack_nibbles(self.codes)))
            if self.groups is not None:
                self.group_tiles = lowbit.ops.prepack_group_scale(torch.from_numpy(self.groups))
        self.w_scale = torch.from_numpy(self.scale)

    @property
    def weight_bytes(self) -> int:
        return (
            self.tiles.numel()
            + (0 if self.group_tiles is None else self.group_tiles.numel())
            + 4 * len(self.scale)
        )

    def bind(self, x: Tensor) -> Callable[[], Tensor]:
        op, tiles, w_scale, groups, bits = (
            torch.ops.lowbit.dynamic_linear.default,
            self.tiles,
            self.w_scale,
            self.group_tiles,
            self.variant.activation_bits,
        )
        return lambda: op(x, tiles, w_scale, groups, None, bits)

    def check(self, x: Tensor, y: Tensor) -> None:
        """The first, middle and last row, bit for bit, against the oracle."""
        rows = sorted({0, len(x) // 2, len(x) - 1})
        w = oracle.integer_weight(self.codes, self.groups, self.variant.group)
        want = oracle.dynamic_linear_exact(x[rows].numpy(), w, self.scale, bits=self.variant.activation_bits)
        compare.exact(y[rows], want)


def _quantize(weight: Tensor, variant: Variant) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    w, top = weight.double().numpy(), 2 ** (variant.weight_bits - 1) - 1
    n, k = w.shape
    if variant.group is None:
        scale = (np.abs(w).max(1) / top).astype(np.float32)
        return np.clip(np.rint(w / scale[:, None]), -top, top).astype(np.int64), None, scale
    count = -(-k // variant.group)
    padded = np.pad(w, ((0, 0), (0, count * variant.group - k))).reshape(n, count, variant.group)
    step = np.abs(padded).max(2) / top
    scale = (step.max(1) / 16).astype(np.float32)
    groups = np.clip(np.ceil(step / scale[:, None]), 1, 16).astype(np.uint8)
    codes = np.rint(padded / (groups * scale[:, None].astype(np.float64))[:, :, None])
    return np.clip(codes, -top, top).reshape(n, -1)[:, :k].astype(np.int64), groups, scale


def _check_peer(peer: object, x: Tensor, y: Tensor, want: Tensor) -> None:
    error = ((y.double() - want).norm() / want.norm()).item()
    assert error <= peer.error_bound, (
        f"{peer.name}: relative error {error:.3f}, expected at most {peer.error_bound}"
    )


def _measure(n: int, k: int, options: argparse.Namespace) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n, k, generator=generator)
    ours = [
        Ours(v, weight) for v in VARIANTS if options.only is None or options.only.lower() in v.name.lower()
    ]
    peers = []
    for peer in () if options.no_peers else all_peers():
        try:
            peer.prepare(weight)
            peers.append(peer)
        except Unavailable as reason:
            print(f"skipped {peer.name}: {reason}")
    points = []
    for m in options.rows:
        x = torch.randn(m, k, generator=generator)
        want, calls = x.double() @ weight.double().T, {}
        for layer in ours:
            calls[layer.name] = layer.bind(x)
            layer.check(x, calls[layer.name]())
        for peer in peers:
            calls[peer.name] = peer.bind(x)
            _check_peer(peer, x, calls[peer.name](), want)
        times = interleave(calls, options.rounds, options.slice)
        points.append(_point(m, n, k, ours, [p.name for p in peers], times))
        _print_point(points[-1])
    return points


def _point(m: int, n: int, k: int, ours: list[Ours], peers: list[str], times: dict[str, Timing]) -> dict:
    best = min(peers, key=lambda name: times[name].median, default=None)
    point = {
        "m": m,
        "n": n,
        "k": k,
        "best_peer": best,
        "ours": {},
        "peers": {p: times[p].to_dict() for p in peers},
    }
    for layer in ours:
        t = times[layer.name]
        floor = ceiling.linear_floor(m, n, k, layer.weight_bytes)
        point["ours"][layer.name] = t.to_dict() | {
            "tops": 2 * m * n * k / t.median * 1e-12,
            "weight_gb_per_s": layer.weight_bytes / t.median * 1e-9,
            "share_of_ceiling": floor / t.median,
            "ratio": {p: t.speedup(times[p]) for p in peers},
            # of the fast ends of both distributions: what is left of it when other processes disturb the
            # machine
            "ratio_low": min((times[p].low for p in peers), default=0) / t.low,
        }
    return point


def _print_point(point: dict) -> None:
    print(f"\n{point['n']} x {point['k']}, M = {point['m']}")
    rows = []
    for name, t in point["ours"].items():
        best = point["best_peer"]
        rows.append(
            [
                name,
                f"{t['median'] * 1e3:.3f}",
                f"{100 * (t['high'] - t['low']) / t['median']:.0f} %",
                f"{t['tops']:.3f}",
                f"{t['weight_gb_per_s']:.1f}",
                f"{100 * t['share_of_ceiling']:.0f} %",
                *((f"{t['ratio'][best]:.2f}", f"{t['ratio_low']:.2f}") if best else ("-", "-")),
            ]
        )
    for name, t in point["peers"].items():
        mark = " *" if name == point["best_peer"] else ""
        rows.append(
            [
                name + mark,
                f"{t['median'] * 1e3:.3f}",
                f"{100 * (t['high'] - t['low']) / t['median']:.0f} %",
                f"{2 * point['m'] * point['n'] * point['k'] / t['median'] * 1e-12:.3f}",
                "",
                "",
                "",
                "",
            ]
        )
    report.print_table(
        ["", "ms", "spread", "TOPS", "GB/s", "of ceiling", "best peer / ours", "10th pct."], rows
    )


def _summary(points: list[dict]) -> dict[str, dict]:
    """Per variant: the geometric mean of best peer / ours over all points, per layer shape, and the worst
    point.
    """
    summary = {}
    for name in points[0]["ours"] if points and points[0]["best_peer"] else ():
        ratios = [(p["ours"][name]["ratio"][p["best_peer"]], p) for p in points]
        worst, at = min(ratios, key=lambda r: r[0])
        shapes = {(p["n"], p["k"]) for p in points}
        summary[name] = {
            "geometric_mean": geometric_mean([r for r, _ in ratios]),
            "worst": worst,
            "geometric_mean_low": geometric_mean([p["ours"][name]["ratio_low"] for p in points]),
            "worst_low": min(p["ours"][name]["ratio_low"] for p in points),
            "worst_at": f"{at['n']} x {at['k']}, M = {at['m']} ({at['best_peer']})",
            "per_shape": {
                f"{n} x {k}": geometric_mean([r for r, p in ratios if (p["n"], p["k"]) == (n, k)])
                for n, k in sorted(shapes)
            },
        }
    return summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shapes",
        default="square,SmolLM2-135M",
        help=f"models ({', '.join(MODEL_LAYERS)}) or NxK, "
        "comma-separated; 'all' for every model (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        type=lambda s: [int(v) for v in s.split(",")],
        default=list(BENCH_ROWS),
        help="values of M, comma-separated (default: 1,8,32,128,512)",
    )
    parser.add_argument("--only", help="time only our variants whose name contains this")
    parser.add_argument("--no-peers", action="store_true", help="time only our own variants")


def shapes_of(text: str) -> list[tuple[int, int]]:
    """Layers (N, K) named by models or as NxK, without repeats."""
    found: list[tuple[int, int]] = []
    for word in MODEL_LAYERS if text == "all" else text.split(","):
        if word in MODEL_LAYERS:
            found += MODEL_LAYERS[word]
        else:
            try:
                n, k = (int(v) for v in word.split("x"))
            except ValueError:
                raise SystemExit(
                    f"--shapes: expected NxK or one of {', '.join(MODEL_LAYERS)}, got '{word}'"
                ) from None
            found.append((n, k))
    return list(dict.fromkeys(found))


def run(options: argparse.Namespace) -> dict:
    points = [p for n, k in shapes_of(options.shapes) for p in _measure(n, k, options)]
    summary = _summary(points)
    if summary:
        print("\nbest peer's time / ours (above 1: ours is faster)")
        report.print_table(
            ["", "geometric mean", "worst", "worst at", "10th pct.: mean", "worst"],
            [
                [
                    name,
                    f"{s['geometric_mean']:.2f}",
                    f"{s['worst']:.2f}",
                    s["worst_at"],
                    f"{s['geometric_mean_low']:.2f}",
                    f"{s['worst_low']:.2f}",
                ]
                for name, s in summary.items()
            ],
        )
    return {"ceiling": {"int8_tops": ceiling.int8_rate() * 1e-12}, "summary": summary, "points": points}
