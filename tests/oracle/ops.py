"""Expected values of every op.

`*_exact` follow DESIGN's numeric contract rounding by rounding (numpy float32 operations round once, to
nearest even) and are compared with torch.equal's strictness. Sums are of integers in float64 and therefore
exact. Functions ending in 64 give the real-number answer for the bounded tier.
"""

import ml_dtypes
import numpy as np

from . import hadamard as had

F32 = np.float32
LOWEST = {4: -8, 8: -127}  # int8 activations stay symmetric
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def quantize_exact(x: np.ndarray, bits: int, clip: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """x [..., K] -> (codes int64 [..., K], scale fp32 [...])."""
    top = F32(2 ** (bits - 1) - 1)
    codes = np.zeros(x.shape, dtype=np.int64)
    scale = np.ones(x.shape[:-1], dtype=F32)
    for row in np.ndindex(*x.shape[:-1]):
        v = x[row].astype(F32)
        if not np.isfinite(v).all():
            scale[row] = np.nan
            continue
        step = F32(np.abs(v).max(initial=0) * F32(clip)) / top
        if step < np.finfo(F32).tiny:
            continue  # zero row, or too small for 1 / step: scale 1, codes 0
        scale[row] = step
        codes[row] = np.clip(np.rint(v * (F32(1) / step)), LOWEST[bits], top)
    return codes, scale


def group_size(k: int, groups: int) -> int:
    """The g of 32, 64, 128 for which k has that many groups."""
    return next(g for g in (32, 64, 128) if (k + g - 1) // g == groups)


def integer_weight(q: np.ndarray, group_scale: np.ndarray | None, group: int | None) -> np.ndarray:
    """int64 [N, K]: s1[n, k // g] * q[n, k]."""
    q = q.astype(np.int64)
    return q if group_scale is None else q * group_scale.astype(np.int64)[:, np.arange(q.shape[1]) // group]


def linear_exact(
    x_q: np.ndarray,
    x_scale: np.ndarray | None,
    w: np.ndarray,
    w_scale: np.ndarray,
    bias: np.ndarray | None,
    out_dtype: str,
    residual: np.ndarray | None = None,
    low_rank: np.ndarray | None = None,
    low_rank_up: np.ndarray | None = None,
) -> np.ndarray:
    """x_q int [..., K], w int64 [N, K] -> [..., N]: s32 sum, * w_scale, * x_scale, + bias, + low_rank's
    products, + residual, one rounding each.
    """
    acc = x_q.astype(np.float64) @ w.astype(np.float64).T  # integers below 2^53: exact in any order
    assert np.abs(acc).max(initial=0) < 2**31
    y = acc.astype(F32) * w_scale.reshape(-1).astype(F32)
    if x_scale is not None:
        y = y * x_scale.astype(F32)[..., None]
    if bias is not None:
        y = y + bias.astype(F32)
    for r in range(0 if low_rank is None else low_rank.shape[-1]):
        y = y + low_rank[..., r : r + 1].astype(F32) * low_rank_up[r].astype(F32)
    if residual is not None:
        y = y + residual.astype(F32)
    return y.astype(DTYPES[out_dtype])


def linear64(
    x_q: np.ndarray, x_scale: np.ndarray | None, w: np.ndarray, w_scale: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """float64 answer, and the magnitude sum |a| |w| + |bias| that its rounding errors scale with."""
    factor = w_scale.reshape(-1).astype(np.float64)
    if x_scale is not None:
        factor = factor * x_scale.astype(np.float64)[..., None]
    a, b = x_q.astype(np.float64), w.astype(np.float64)
    y, size = (a @ b.T) * factor, (np.abs(a) @ np.abs(b).T) * np.abs(factor)
    if bias is not None:
        y, size = y + bias.astype(np.float64), size + np.abs(bias.astype(np.float64))
    return y, size


def dynamic_linear_exact(
    x: np.ndarray,
    w: np.ndarray,
    w_scale: np.ndarray,
    bias: np.ndarray | None = None,
    bits: int = 8,
    clip: float = 1.0,
    block: int | None = None,
    shift: np.ndarray | None = None,
) -> np.ndarray:
    """x [..., K] float -> [..., N] in x's dtype."""
    dtype = "bfloat16" if x.dtype == ml_dtypes.bfloat16 else str(x.dtype)
    h = x.astype(F32)
    if shift is not None:
        h = h - shift.astype(F32)
    if block is not None:
        h = had.transform_fp32(h, (block or x.shape[-1]) ** -0.5, block or None)
    codes, scale = quantize_exact(h, bits, clip)
    return linear_exact(codes, scale, w, w_scale, bias, dtype)


def kv4_quantize_exact(x: np.ndarray, clip: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """x [..., D] -> (codes int64 [..., D] in 0..15, params fp16 [..., 2] = scale, zero)."""
    codes = np.zeros(x.shape, dtype=np.int64)
    params = np.empty((*x.shape[:-1], 2), dtype=np.float16)
    for row in np.ndindex(*x.shape[:-1]):
        v = x[row].astype(F32)
        with np.errstate(over="ignore", invalid="ignore"):
            low, high = v.min() * F32(clip), v.max() * F32(clip)
            zero, scale = np.float16(low), np.float16((high - low) / F32(15))
        if not (np.isfinite(v).all() and np.isfinite(zero) and np.isfinite(scale)):
            params[row] = np.nan
            continue
        params[row] = scale, zero
        if scale > 0:
            codes[row] = np.clip(np.rint((v - F32(zero)) * (F32(1) / F32(scale))), 0, 15)
    return codes, params


def kv4_dequantize_exact(codes: np.ndarray, params: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """codes [..., D], params fp16 [..., 2] -> [..., D]: product and sum each rounded to fp32."""
    scale, zero = params[..., 0:1].astype(F32), params[..., 1:2].astype(F32)
    return (codes.astype(F32) * scale + zero).astype(DTYPES[dtype])
