"""What this machine can do, measured here and now: the denominators of "share of the ceiling"."""

import functools

import torch

from .peers import TorchDynamicInt8, Unavailable
from .timing import interleave


@functools.cache
def copy_bandwidth(megabytes: float) -> float:
    """Bytes per second (read and written) of dst.copy_(src), both together `megabytes` large."""
    count = max(1024, int(megabytes * 1e6 / 8))
    source, target = torch.ones(count), torch.zeros(count)
    timing = interleave({"copy": lambda: target.copy_(source)}, rounds=5, slice_seconds=0.02)["copy"]
    return 8 * count / timing.low


@functools.cache
def int8_rate() -> float:
    """Integer operations per second of the fastest library int8 GEMM found, at 1024 x 2048 x 2048."""
    m, n = 1024, 2048
    calls = {}
    weight, x = torch.randn(n, n), torch.randn(m, n)
    a, b = torch.ones(m, n, dtype=torch.int8), torch.ones(n, n, dtype=torch.int8).T
    calls["_int_mm"] = lambda: torch._int_mm(a, b)
    for engine in ("onednn", "fbgemm"):
        peer = TorchDynamicInt8(engine)
        try:
            peer.prepare(weight)
        except Unavailable:
            continue
        calls[engine] = peer.bind(x)
    times = interleave(calls, rounds=5, slice_seconds=0.05)
    return 2 * m * n * n / min(t.low for t in times.values())


def linear_floor(m: int, n: int, k: int, weight_bytes: int) -> float:
    """Seconds that an m x n x k layer must take by the measured rates: arithmetic or reading the weight, the
    larger.
    """
    nearest = 2.0 ** round(torch.tensor(max(weight_bytes, 1 << 20) / 1e6).log2().item())
    return max(2 * m * n * k / int8_rate(), weight_bytes / copy_bandwidth(nearest))
