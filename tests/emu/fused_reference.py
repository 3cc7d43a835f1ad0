"""What the fused row kernels must give, rounding by rounding; numpy's float32 operations round once."""

import ml_dtypes  # noqa: F401 - registers bfloat16
import numpy as np

from tests.oracle import ops as oracle

F32 = np.float32


def tree_sum(v: np.ndarray) -> np.ndarray:
    """Over the last axis, neighbours first, zeros up to a power of two."""
    n = max(1, 1 << (v.shape[-1] - 1).bit_length()) if v.shape[-1] else 1
    out = np.zeros((*v.shape[:-1], n), F32)
    out[..., : v.shape[-1]] = v
    while out.shape[-1] > 1:
        out = out[..., 0::2] + out[..., 1::2]
    return out[..., 0]


def exp(t: np.ndarray) -> np.ndarray:
    """The polynomial of the numeric contract."""
    t = np.clip(t, F32(-87), F32(88))
    n = np.rint(t * F32(1.44269504))
    r = (t - n * F32(0.693359375)) - n * F32(-2.12194440e-4)
    p = F32(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + F32(c)
    p = (p * (r * r) + r) + F32(1)
    return (p.view(np.int32) + (n.astype(np.int32) << 23)).view(F32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    return F32(1) / (F32(1) + exp(-x))


def gated(gate: np.ndarray, up: np.ndarray, activation: str) -> np.ndarray:
    """activation(gate) * up in float32."""
    g, u = gate.astype(F32), up.astype(F32)
    if activation == "silu":
        return g * sigmoid(g) * u
    return g * sigmoid(F32(1.59576912) * (g + F32(0.044715) * (g * g * g))) * u


def norm(s: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """(s as float32, 1 / rms of each row [rows, 1])."""
    s = s.astype(F32)
    mean = tree_sum(s * s) / F32(s.shape[-1])
    return s, (F32(1) / np.sqrt(mean + F32(eps)))[..., None]


def codes(v: np.ndarray, bits: int, clip: float | None) -> tuple[np.ndarray, np.ndarray | None]:
    """(codes, scale); clip None: those of v itself, no scale."""
    if clip is not None:
        return oracle.quantize_exact(v, bits, clip)
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    return np.rint(np.clip(v, low, high)).astype(np.int64), None
