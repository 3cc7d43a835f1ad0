"""The Walsh-Hadamard transform against a memory copy of the same size, which is the least it could cost."""

import argparse

import torch

from tests.oracle import compare
from tests.oracle import hadamard as oracle

from . import report
from .timing import geometric_mean, interleave

SIZES = (64, 128, 256, 512, 576, 1024, 1536, 2048, 4096, 8192, 11008, 14336)


def _torch_butterflies(x: torch.Tensor, two: int) -> torch.Tensor:
    """What plain torch would do for a power of two: one pass over memory per butterfly stage."""
    y, stride = x.view(-1, two), 1
    while stride < two:
        v = y.view(-1, two // (2 * stride), 2, stride)
        y = torch.stack((v[:, :, 0] + v[:, :, 1], v[:, :, 0] - v[:, :, 1]), 2).view(-1, two)
        stride *= 2
    return y.view_as(x)


def _measure(n: int, dtype: torch.dtype, options: argparse.Namespace) -> dict:
    size = torch.tensor([], dtype=dtype).element_size()
    rows = max(1, int(options.megabytes * 1e6) // (n * size))
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(0)).to(dtype)
    target, scale = torch.empty_like(x), n**-0.5
    op, in_place = torch.ops.lowbit.hadamard.default, torch.ops.lowbit.hadamard_.default
    few = x[:2].float().numpy()
    want = oracle.transform_fp32(few, scale).astype(compare.to_numpy(x[:2]).dtype)
    compare.exact(op(x[:2], scale), want)
    first = x[:2].clone()
    in_place(first, scale)
    compare.exact(first, want)
    calls = {
        "copy": lambda: target.copy_(x),
        "lowbit in place": lambda: in_place(target, scale),
        "clone": lambda: x.clone(),
        "lowbit": lambda: op(x, scale),
    }
    if n & (n - 1) == 0 and options.torch:
        calls["torch butterflies"] = lambda: _torch_butterflies(x, n)
    times = interleave(calls, options.rounds, options.slice)
    moved = 2 * x.numel() * size
    return {
        "n": n,
        "rows": rows,
        "dtype": str(dtype).removeprefix("torch."),
        "megabytes": moved / 2e6,
        "times": {name: t.to_dict() | {"gb_per_s": moved / t.median * 1e-9} for name, t in times.items()},
        "of_copy": times["lowbit in place"].speedup(times["copy"]),
        "of_clone": times["lowbit"].speedup(times["clone"]),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sizes",
        type=lambda s: [int(v) for v in s.split(",")],
        default=list(SIZES),
        help="transform lengths, comma-separated",
    )
    parser.add_argument(
        "--megabytes", type=float, default=128, help="size of the tensor (default: out of cache)"
    )
    parser.add_argument("--dtypes", default="float32,bfloat16", help="comma-separated")
    parser.add_argument("--torch", action="store_true", help="also time butterflies written in torch (slow)")


def run(options: argparse.Namespace) -> dict:
    points = []
    for dtype in options.dtypes.split(","):
        points += [_measure(n, getattr(torch, dtype), options) for n in options.sizes]
    rows = []
    for p in points:
        t = p["times"]
        rows.append(
            [
                f"{p['dtype']} {p['n']}",
                f"{t['copy']['gb_per_s']:.1f}",
                f"{t['lowbit in place']['median'] * 1e3:.2f}",
                f"{t['lowbit in place']['gb_per_s']:.1f}",
                f"{p['of_copy']:.2f}",
                f"{t['lowbit']['gb_per_s']:.1f}",
                f"{p['of_clone']:.2f}",
                *(
                    [f"{t['torch butterflies']['median'] / t['lowbit']['median']:.1f}"]
                    if "torch butterflies" in t
                    else ["-"]
                ),
            ]
        )
    report.print_table(
        [
            "",
            "copy GB/s",
            "in place ms",
            "in place GB/s",
            "of copy",
            "new tensor GB/s",
            "of clone",
            "x torch",
        ],
        rows,
    )
    mean = geometric_mean([p["of_copy"] for p in points])
    worst = min(points, key=lambda p: p["of_copy"])
    print(
        f"\nin place, share of a copy's bandwidth: geometric mean {mean:.2f}, worst {worst['of_copy']:.2f} "
        f"({worst['dtype']} {worst['n']})"
    )
    return {"summary": {"geometric_mean": mean, "worst": worst["of_copy"]}, "points": points}
