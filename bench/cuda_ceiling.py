"""What this card can do, measured here and now: copy bandwidth, torch's rates of int8 and fp16 products."""

import functools

import torch

from .cuda_timing import interleave_graphs


@functools.cache
def copy_bandwidth(device: str = "cuda", gigabytes: float = 1.0) -> float:
    """Bytes per second, read and written, of dst.copy_(src) far larger than the cache."""
    count = int((gigabytes if device == "cuda" else 0.002) * 1e9 / 2)
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    time = interleave_graphs({"copy": [lambda: target.copy_(source)]}, 5, 0.003, device)["copy"]
    return 2 * count / time.median


def _rate(call: object, size: int, device: str) -> float:
    time = interleave_graphs({"product": [call]}, 5, 0.01, device)["product"]
    return 2 * size**3 / time.median


@functools.cache
def fp16_rate(device: str = "cuda") -> float:
    """Operations per second of torch.matmul on fp16, 8192 cubed, random values (zeros run faster)."""
    size = 8192 if device == "cuda" else 64
    a, b = (torch.randn(size, size, device=device).half() for _ in range(2))
    return _rate(lambda: a @ b.T, size, device)


@functools.cache
def int8_rate(device: str = "cuda") -> float:
    """Operations per second of torch._int_mm, 8192 cubed."""
    size = 8192 if device == "cuda" else 64
    a, b = (torch.randint(-128, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
    return _rate(lambda: torch._int_mm(a, b.T), size, device)


def measure(device: str = "cuda") -> dict[str, float]:
    """All of them, in the units of the tables."""
    return {
        "copy_gb_per_s": copy_bandwidth(device) * 1e-9,
        "int8_tops": int8_rate(device) * 1e-12,
        "fp16_tflops": fp16_rate(device) * 1e-12,
    }
