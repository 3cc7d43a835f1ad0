"""Expected values of the fused row ops, rounding by rounding in numpy float32.

Every function gives the fp32 values of a row before they are quantised; `codes` and `ops.quantize_exact` make
the codes. Functions ending in 64 give the real-number answer.
"""

import math

import numpy as np

from . import codec
from . import hadamard as had
from . import ops as oracle

F32 = np.float32
LIMITS = {4: (-8, 7), 8: (-127, 127)}


def tree_sum(v: np.ndarray) -> np.float32:
    """v fp32 [n]: the balanced binary tree over v and the zeros that fill it up, left part + right part."""

    def part(begin: int, size: int) -> np.float32:
        if begin >= v.size:
            return F32(0)
        if size == 1:
            return v[begin]
        return part(begin, size // 2) + part(begin + size // 2, size // 2)

    size = 1
    while size < v.size:
        size *= 2
    return part(0, size)


def exp32(x: np.ndarray) -> np.ndarray:
    """The contract's exponential: range reduction by ln 2 in two parts, Horner, exponent bits."""
    t = np.minimum(np.maximum(x, F32(-87)), F32(88))
    n = np.rint(t * F32(1.44269504))
    r = (t - n * F32(0.693359375)) - n * F32(-2.12194440e-4)
    p = np.zeros_like(r)
    for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1):
        p = (p + F32(c)) * r
    p = (p + F32(5.0000001201e-1)) * (r * r) + r + F32(1)
    return np.ldexp(p, n.astype(np.int32))


def silu(g: np.ndarray) -> np.ndarray:
    """fp32, the contract's roundings."""
    return g * (F32(1) / (F32(1) + exp32(-g)))


def gelu_tanh(g: np.ndarray) -> np.ndarray:
    """g sigmoid(1.5957.. (g + 0.044715 g^3))."""
    z = F32(1.59576912) * (g + F32(0.044715) * (g * g * g))
    return g * (F32(1) / (F32(1) + exp32(-z)))


def activation64(g: np.ndarray, name: str) -> np.ndarray:
    """The textbook definitions."""
    g = g.astype(np.float64)
    if name == "silu":
        return g / (1 + np.exp(-g))
    return 0.5 * g * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))


def scaled(
    v: np.ndarray,
    index: np.ndarray | None = None,
    inverse_step: np.ndarray | None = None,
    shift: np.ndarray | None = None,
) -> np.ndarray:
    """Picked, times the inverse step, minus the shift."""
    if index is not None:
        v = np.take(v, index, axis=-1)
    if inverse_step is not None:
        v = v * inverse_step
    return v if shift is None else v - shift


def rotated(v: np.ndarray, block: int | None) -> np.ndarray:
    """Orthonormal Hadamard over blocks of the row; 0: all of it, None: nothing."""
    if block is None:
        return v
    n = block or v.shape[-1]
    return had.transform_fp32(v, n**-0.5, n)


def added(x: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """x + residual in x's dtype."""
    return (x.astype(F32) + residual.astype(F32)).astype(x.dtype)


def normalised(
    s: np.ndarray, weight: np.ndarray, eps: float, index: np.ndarray | None = None, gain_offset: float = 0.0
) -> np.ndarray:
    """(s[index] / rms(s)) * (weight + gain_offset)."""
    s = s.astype(F32)
    out = np.empty((*s.shape[:-1], weight.size), dtype=F32)
    for row in np.ndindex(*s.shape[:-1]):
        mean = tree_sum(s[row] * s[row]) / F32(s.shape[-1])
        inverse = F32(1) / np.sqrt(mean + F32(eps))
        out[row] = (scaled(s[row], index) * inverse) * (weight + F32(gain_offset))
    return out


def gated(gate_up: np.ndarray, activation: str, block: int | None = None) -> np.ndarray:
    """activation(gate) * up, rotated."""
    half = gate_up.shape[-1] // 2
    g, u = gate_up[..., :half].astype(F32), gate_up[..., half:].astype(F32)
    return rotated((silu(g) if activation == "silu" else gelu_tanh(g)) * u, block)


def static_codes(v: np.ndarray, bits: int) -> np.ndarray:
    """Rounded and clamped; NaN is the lowest code."""
    low, high = LIMITS[bits]
    return np.where(np.isnan(v), low, np.clip(np.rint(v), low, high)).astype(np.int64)


def stored(codes: np.ndarray, bits: int) -> np.ndarray:
    """As the ops return them."""
    return codec.pack_nibbles(codes) if bits == 4 else codes.astype(np.int8)


def coded(v: np.ndarray, bits: int, static: bool, clip: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """(codes as stored, scale or nothing)."""
    if static:
        return stored(static_codes(v, bits), bits), np.empty(0, dtype=F32)
    codes, scale = oracle.quantize_exact(v, bits, clip)
    return stored(codes, bits), scale
