"""The paged INT4 KV cache in numpy: what appending must leave behind, bit for bit, and attention in float64
with a bound on what fp32 may make of it. Its unpacker is its own.
"""

from dataclasses import dataclass

import numpy as np

from . import compare
from . import hadamard as had
from .ops import DTYPES, F32, kv4_quantize_exact

UNIT = compare.UNIT["float32"]
SPLIT = 256  # tokens that are summed in one chain
EXP_ERROR = 4 * UNIT  # of the polynomial, relative; tested


@dataclass
class Caches:
    """key_codes, value_codes uint8 [P, Hkv, page, ceil(D/2)]; key_params, value_params fp16 [..., 2]."""

    key_codes: np.ndarray
    key_params: np.ndarray
    value_codes: np.ndarray
    value_params: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.key_codes, self.key_params, self.value_codes, self.value_params

    def copy(self) -> "Caches":
        return Caches(*(a.copy() for a in self.arrays()))


def poisoned(pages: int, kv_heads: int, page: int, d: int, seed: int = 0) -> Caches:
    """A pool in which every byte is wrong: any code, parameters NaN."""
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, 256, (pages, kv_heads, page, (d + 1) // 2)).astype(np.uint8) for _ in "kv"]
    params = [np.full((pages, kv_heads, page, 2), np.nan, np.float16) for _ in "kv"]
    return Caches(codes[0], params[0], codes[1], params[1])


def _pack(codes: np.ndarray) -> np.ndarray:
    padded = np.zeros((*codes.shape[:-1], codes.shape[-1] + codes.shape[-1] % 2), np.uint8)
    padded[..., : codes.shape[-1]] = codes
    return padded[..., ::2] + 16 * padded[..., 1::2]


def _unpack(packed: np.ndarray, d: int) -> np.ndarray:
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.float64)
    codes[..., ::2], codes[..., 1::2] = packed % 16, packed // 16
    return codes[..., :d]


def append_exact(
    caches: Caches, key: np.ndarray, value: np.ndarray, slots: np.ndarray, clip: float, key_block: int | None
) -> Caches:
    """The pool after key and value [T, Hkv, D] went into their slots."""
    out, page = caches.copy(), caches.key_codes.shape[2]
    key = key.astype(F32)
    if key_block:
        key = had.transform_fp32(key, key_block**-0.5, key_block)
    for x, codes, params in (
        (key, out.key_codes, out.key_params),
        (value, out.value_codes, out.value_params),
    ):
        for t, slot in enumerate(slots):
            if slot >= 0:
                at = (slot // page, slice(None), slot % page)
                q, params[at] = kv4_quantize_exact(x[t], clip)
                codes[at] = _pack(q)
    return out


def _sum(v: np.ndarray) -> np.ndarray:
    """Neighbours first; an odd one stays."""
    while v.shape[-1] > 1:
        rest = v[..., v.shape[-1] // 2 * 2 :]
        v = np.concatenate((v[..., 0 : v.shape[-1] // 2 * 2 : 2] + v[..., 1::2], rest), -1)
    return v


def norm_rope_exact(
    x: np.ndarray, cos: np.ndarray, sin: np.ndarray, weight: np.ndarray | None, eps: float
) -> np.ndarray:
    """x [T, H, D] -> RMSNorm per head, RoPE of the first R; fp32, one rounding to the dtype at the end."""
    v = x.astype(F32)
    if weight is not None:
        mean = _sum(v * v) / F32(v.shape[-1])
        v = (v * (F32(1) / np.sqrt(mean + F32(eps)))) * weight
    out, half = v.copy(), cos.shape[-1] // 2
    for i in range(2 * half):
        other = -v[..., i + half] if i < half else v[..., i - half]
        out[..., i] = v[..., i] * cos[:, None, i] + other * sin[:, None, i]
    return out.astype(x.dtype)


def attention64(
    q: np.ndarray,
    caches: Caches,
    table: np.ndarray,
    lengths: np.ndarray,
    softmax_scale: float,
    any_order: bool = False,
    prefix: tuple[np.ndarray, np.ndarray] | None = None,
    products: tuple[float, float] = (0.0, 0.0),
) -> tuple[np.ndarray, np.ndarray]:
    """q [B, Hq, D] -> the real answer and a bound on the error of an fp32 implementation, both [B, Hq, D].

    A score is scale * sum(q c) + zero * sum(q), an output sum(p scale c) + sum(p zero) over sum(p). Rounding
    errors of a sum grow with the additions that one term passes through: 4 per block of 64 and 4 in the tree
    for scores, a split for values. With any_order, what plain fp32 sums in any order may do. prefix: exact
    keys and values [P, Hkv, D] of tokens before those of every sequence. products: relative errors of those
    with keys and with values.
    """
    d, page, heads = q.shape[-1], caches.key_codes.shape[2], caches.key_codes.shape[1]
    exact = [x.astype(np.float64) for x in prefix or (np.zeros((0, heads, d)),) * 2]
    first = len(exact[0])
    want, bound = np.zeros(q.shape), np.zeros(q.shape)
    for b, length in enumerate(lengths):
        pages = table[b, : -(-length // page)]
        read = [a[pages].swapaxes(0, 1).reshape(heads, -1, a.shape[-1])[:, :length] for a in caches.arrays()]
        for h in range(q.shape[1] if length + first else 0):
            kv = h // (q.shape[1] // heads)
            keys, values = (_unpack(read[i][kv], d) for i in (0, 2))
            (k_scale, k_zero), (v_scale, v_zero) = (read[i][kv].astype(np.float64).T for i in (1, 3))
            x = q[b, h].astype(np.float64) * softmax_scale
            pk, pv = (a[:, kv] for a in exact)
            score = np.concatenate((pk @ x, k_scale * (keys @ x) + k_zero * x.sum()))
            size = abs(k_scale) * (keys @ abs(x)) + abs(k_zero) * abs(x).sum()
            size = np.concatenate((abs(pk) @ abs(x), size))
            terms = d + 8 if any_order else 4 * -(-d // 64) + 4 + 5
            wrong = (compare.gamma(max(terms, d.bit_length() + 5), UNIT) + products[0]) * size
            # relative error of a probability: of its score, of the differences to the largest of the split
            # and of all, of exp twice; and what the clamp of exp leaves of probabilities below e^-87
            below = score.max() - score
            p = np.exp(-below)
            theta = wrong + 2 * UNIT * (below + 2 * wrong.max()) + 2 * EXP_ERROR
            v = np.concatenate((pv, v_scale[:, None] * values + v_zero[:, None]))
            out = (p @ v) / p.sum()
            clamped = np.where(below > 86, np.exp(-86.0), 0.0)
            moved = ((p * theta + clamped)[:, None] * (abs(v) + abs(out))).sum(0) / p.sum()
            splits, all_tokens = max(1, -(-length // SPLIT)), first + length
            terms = all_tokens + 8 if any_order else min(length, SPLIT) + first + 4 + 2 * splits
            size = np.concatenate((abs(pv), abs(v_scale)[:, None] * values + abs(v_zero)[:, None]))
            size = (p @ size) / p.sum()
            below_terms = all_tokens + 8 if any_order else 24 + first + 2 * splits
            want[b, h] = out
            bound[b, h] = (
                moved
                + (compare.gamma(terms, UNIT) + products[1]) * size
                + compare.gamma(below_terms + 2, UNIT) * abs(out)
                + compare.TINY["float32"] * all_tokens
            )
    dtype = str(np.dtype(q.dtype))
    return want, 1.01 * bound + compare.UNIT[dtype] * abs(want) * 1.01 + compare.TINY[dtype]


__all__ = ["DTYPES", "Caches", "append_exact", "attention64", "norm_rope_exact", "poisoned"]
