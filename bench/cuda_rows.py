"""The ops on rows on a GPU: the Hadamard transform against a copy, the fused op against its two passes."""

import argparse
from dataclasses import asdict

import torch
from torch import Tensor

from tests.oracle import codec, compare
from tests.oracle import hadamard as had
from tests.oracle import ops as oracle

from . import cuda_ceiling, report
from .cuda_timing import available, copies_for, interleave_graphs
from .timing import geometric_mean

SIZES = (64, 128, 256, 512, 576, 1024, 2048, 4096, 5120, 8192, 11008, 14336, 16384, 28672, 32768)
SHAPES = ((1, 4096), (16, 4096), (256, 4096), (4096, 4096), (4096, 14336))


def _fast_hadamard() -> object | None:
    try:
        from fast_hadamard_transform import hadamard_transform
    except Exception:
        return None
    return hadamard_transform


def _inputs(rows: int, n: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    x = torch.randn(rows, n, generator=torch.Generator(device).manual_seed(n), device=device).to(dtype)
    return [x] + [x.clone() for _ in range(min(8, copies_for(x.numel() * x.element_size(), device)) - 1)]


def _hadamard_point(n: int, dtype: torch.dtype, options: argparse.Namespace, device: str) -> dict:
    size = torch.tensor([], dtype=dtype).element_size()
    megabytes = options.megabytes if device == "cuda" else 0.1
    rows = max(1, int(megabytes * 1e6) // (n * size))
    inputs, scale, ops = _inputs(rows, n, dtype, device), n**-0.5, torch.ops.lowbit
    x = inputs[0]
    few = x[:2].float().cpu().numpy()
    want = had.transform_fp32(few, scale)
    if n & (n - 1) == 0:
        compare.exact(ops.hadamard(x, scale)[:2], want.astype(compare.to_numpy(x[:2]).dtype))
    target = torch.empty_like(x)
    calls = {
        "copy": [lambda i=i: target.copy_(i) for i in inputs],
        "hadamard": [lambda i=i: ops.hadamard(i, scale) for i in inputs],
        "hadamard + int4": [lambda i=i: ops.hadamard_quantize(i, 4) for i in inputs],
        "two passes": [lambda i=i: ops.quantize_int4(ops.hadamard(i, scale)) for i in inputs],
    }
    peer = _fast_hadamard()
    if peer and n & (n - 1) == 0:
        calls["fast-hadamard-transform"] = [lambda i=i: peer(i, scale) for i in inputs]
    attempt = options.record.attempt
    times = interleave_graphs(available(calls, attempt), options.rounds, options.slice, device, attempt)
    moved = 2 * x.numel() * size
    return {
        "n": n,
        "rows": rows,
        "dtype": str(dtype).removeprefix("torch."),
        "times": {name: asdict(t) | {"gb_per_s": moved / t.median * 1e-9} for name, t in times.items()},
        "of_copy": times["copy"].median / times["hadamard"].median,
        "fused_gain": times["two passes"].median / times["hadamard + int4"].median,
    }


def run_hadamard(options: argparse.Namespace, device: str = "cuda") -> dict:
    record, rows = options.record, []
    points = record.points
    for dtype in options.dtypes.split(","):
        for n in options.sizes:
            with record.attempt(f"{dtype} {n}"):
                record.add(_hadamard_point(n, getattr(torch, dtype), options, device))
    for p in points:
        t = p["times"]
        peer = t.get("fast-hadamard-transform")
        rows.append(
            [
                f"{p['dtype']} {p['n']}",
                *(f"{t[name]['median'] * 1e6:.1f}" for name in ("copy", "hadamard", "hadamard + int4")),
                f"{t['hadamard']['gb_per_s']:.0f}",
                f"{p['of_copy']:.2f}",
                f"{p['fused_gain']:.2f}",
                f"{peer['median'] / t['hadamard']['median']:.2f}" if peer else "-",
            ]
        )
    header = [
        "",
        "copy us",
        "hadamard us",
        "with int4 us",
        "GB/s",
        "of copy",
        "fused gain",
        "x fast-hadamard",
    ]
    report.print_table(header, rows)
    return {"ceilings": {"copy_gb_per_s": cuda_ceiling.copy_bandwidth(device) * 1e-9},
            "summary": {"of_copy": geometric_mean([p["of_copy"] for p in points]),
                        "fused_gain": geometric_mean([p["fused_gain"] for p in points])},
            "points": points}  # fmt: skip


def _torch_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round().clamp(-128, 127).to(torch.int8), scale


def _check_quantize(x: Tensor) -> None:
    few = compare.to_numpy(x[:2])
    for bits, op in ((4, torch.ops.lowbit.quantize_int4), (8, torch.ops.lowbit.quantize_int8)):
        codes, scale = oracle.quantize_exact(few, bits)
        q, got = op(x)
        compare.exact(q[:2], codec.pack_nibbles(codes) if bits == 4 else codes.astype("int8"))
        compare.exact(got[:2], scale)


def _quantize_point(rows: int, k: int, dtype: str, options: argparse.Namespace, device: str) -> dict:
    inputs, ops = _inputs(rows, k, getattr(torch, dtype), device), torch.ops.lowbit
    _check_quantize(inputs[0])
    calls = {
        "quantize_int4": [lambda i=i: ops.quantize_int4(i) for i in inputs],
        "quantize_int8": [lambda i=i: ops.quantize_int8(i) for i in inputs],
        "hadamard_quantize 4": [lambda i=i: ops.hadamard_quantize(i, 4) for i in inputs],
        "torch int8": [lambda i=i: _torch_int8(i) for i in inputs],
        "torch amax (a read)": [lambda i=i: i.amax(-1) for i in inputs],
    }
    if k % 128 == 0:
        heads = [i.view(rows, k // 128, 128) for i in inputs]
        calls["kv4_quantize"] = [lambda i=i: ops.kv4_quantize(i) for i in heads]
    attempt = options.record.attempt
    times = interleave_graphs(available(calls, attempt), options.rounds, options.slice, device, attempt)
    read = inputs[0].numel() * inputs[0].element_size()
    found = {name: asdict(t) | {"gb_per_s": read / t.median * 1e-9} for name, t in times.items()}
    print(f"\n{dtype} {rows} x {k}")
    table = [
        [name, f"{t['median'] * 1e6:.1f}", f"{t['gb_per_s']:.0f}",
         f"{times['torch int8'].median / t['median']:.1f}"]
        for name, t in found.items()
    ]  # fmt: skip
    report.print_table(["", "us", "GB/s read", "x torch int8"], table)
    return {"rows": rows, "k": k, "dtype": dtype, "times": found}


def run_quantize(options: argparse.Namespace, device: str = "cuda") -> dict:
    record = options.record
    for dtype in options.dtypes.split(","):
        for rows, k in SHAPES if device == "cuda" else SHAPES[:1]:
            with record.attempt(f"{dtype} {rows} x {k}"):
                record.add(_quantize_point(rows, k, dtype, options, device))
    copy = cuda_ceiling.copy_bandwidth(device) * 1e-9
    return {"ceilings": {"copy_gb_per_s": copy}, "points": record.points}
