"""Per-token quantisation, alone and behind a Hadamard transform, against the same mathematics in torch and a
read.
"""

import argparse

import numpy as np
import torch

from tests.oracle import codec, compare
from tests.oracle import hadamard as had
from tests.oracle import ops as oracle

from . import report
from .timing import interleave

SHAPES = ((1, 4096), (32, 4096), (512, 4096), (512, 576), (512, 1536), (8192, 4096))


def _torch_int8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().clamp(-128, 127).to(torch.int8), scale


def _calls(x: torch.Tensor) -> dict:
    ops = torch.ops.lowbit
    return {
        "quantize_int4": lambda: ops.quantize_int4(x),
        "quantize_int8": lambda: ops.quantize_int8(x),
        "hadamard_quantize 4": lambda: ops.hadamard_quantize(x, 4),
        "hadamard_quantize 8": lambda: ops.hadamard_quantize(x, 8),
        "torch int8": lambda: _torch_int8(x),
        "torch amax (a read)": lambda: x.amax(-1),
    }


def _check(x: torch.Tensor, calls: dict) -> None:
    few = compare.to_numpy(x[:2])
    rotated = had.transform_fp32(few.astype(np.float32), x.shape[1] ** -0.5)
    for bits in (4, 8):
        for name, values in ((f"quantize_int{bits}", few), (f"hadamard_quantize {bits}", rotated)):
            codes, scale = oracle.quantize_exact(values, bits)
            q, got_scale = calls[name]()
            compare.exact(q[:2], codec.pack_nibbles(codes) if bits == 4 else codes.astype(np.int8))
            compare.exact(got_scale[:2], scale)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtypes", default="float32,bfloat16", help="comma-separated")


def run(options: argparse.Namespace) -> dict:
    points = []
    for dtype in options.dtypes.split(","):
        for rows, k in SHAPES:
            x = torch.randn(rows, k, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
            calls = _calls(x)
            _check(x, calls)
            times = interleave(calls, options.rounds, options.slice)
            read = x.numel() * x.element_size()
            points.append(
                {
                    "rows": rows,
                    "k": k,
                    "dtype": dtype,
                    "times": {
                        name: t.to_dict() | {"gb_per_s": read / t.median * 1e-9} for name, t in times.items()
                    },
                }
            )
            print(f"\n{dtype} {rows} x {k}")
            report.print_table(
                ["", "ms", "spread", "GB/s read", "x torch int8"],
                [
                    [
                        name,
                        f"{t.median * 1e3:.4f}",
                        f"{100 * t.spread:.0f} %",
                        f"{read / t.median * 1e-9:.1f}",
                        f"{times['torch int8'].median / t.median:.1f}",
                    ]
                    for name, t in times.items()
                ],
            )
    return {"points": points}
