"""Hadamard transforms (H_K x H_{2^m}) and the construction of H_K.

Orders: Sylvester doubling, Paley I and II over GF(p^k), Williamson from the seeds that a search found
(order 4n for n = 23, 29, 39, 43). No tables are copied; every matrix is checked by H H^T = K I in the tests.
"""

import functools
import math

import torch
from torch import Tensor

from .quantize import quantize_int4, quantize_int8

# symmetric +-1 sequences x_j = x_{n-j} of length n, x_0 = +1; bit j <= n/2 set means x_j = -1
_WILLIAMSON = {
    23: (0xE88, 0x538, 0x5DC, 0x192),
    29: (0x7614, 0x3794, 0x305A, 0xE24),
    39: (0x4D6FC, 0xC62FA, 0x2BCDC, 0x5F724),
    43: (0x1BDE14, 0xBA530, 0x354C6, 0x2CD01C),
}


def _prime_power(q: int) -> tuple[int, int] | None:
    for p in range(2, math.isqrt(q) + 1):
        if q % p == 0:
            k = 0
            while q % p == 0:
                q, k = q // p, k + 1
            return (p, k) if q == 1 else None
    return (q, 1) if q > 1 else None


def _residue_matrix(q: int) -> Tensor:
    """chi(a_i - a_j) over GF(q), elements numbered by their base-p digits."""
    p, k = _prime_power(q)
    digits = [[(e // p**i) % p for i in range(k)] for e in range(q)]
    index = {tuple(d): e for e, d in enumerate(digits)}

    def multiply(a, b, mod):  # polynomials over GF(p) modulo x^k + mod
        prod = [0] * (2 * k - 1)
        for i, u in enumerate(a):
            for j, v in enumerate(b):
                prod[i + j] = (prod[i + j] + u * v) % p
        for i in range(2 * k - 2, k - 1, -1):
            for j in range(k):
                prod[i - k + j] = (prod[i - k + j] - prod[i] * mod[j]) % p
        return prod[:k]

    for mod in (
        digits
    ):  # the first monic polynomial modulo which squaring is two to one has no zero divisors' squares
        squares = {tuple(multiply(d, d, mod)) for d in digits[1:]}
        if len(squares) == (q - 1) // 2 and (0,) * k not in squares and _is_field(digits, mod, multiply, k):
            break
    chi = [0] + [1 if tuple(d) in squares else -1 for d in digits[1:]]
    diff = [[index[tuple((x - y) % p for x, y in zip(a, b, strict=True))] for b in digits] for a in digits]
    return torch.tensor(chi)[torch.tensor(diff)]


def _is_field(digits, mod, multiply, k) -> bool:
    return all(any(multiply(a, b, mod)) for a in digits[1:] for b in digits[1:]) if k > 1 else True


def _paley1(k: int) -> Tensor | None:
    q = k - 1
    if q % 4 != 3 or _prime_power(q) is None:
        return None
    s = torch.zeros(k, k, dtype=torch.int64)
    s[0, 1:], s[1:, 0], s[1:, 1:] = 1, -1, _residue_matrix(q)
    return s + torch.eye(k, dtype=torch.int64)


def _paley2(k: int) -> Tensor | None:
    q = k // 2 - 1
    if k % 4 or q % 4 != 1 or _prime_power(q) is None:
        return None
    c = torch.zeros(q + 1, q + 1, dtype=torch.int64)
    c[0, 1:], c[1:, 0], c[1:, 1:] = 1, 1, _residue_matrix(q)
    on, off = torch.tensor([[1, 1], [1, -1]]), torch.tensor([[1, -1], [-1, -1]])
    return torch.kron(c, on) + torch.kron(torch.eye(q + 1, dtype=torch.int64), off)


def _williamson(k: int) -> Tensor | None:
    n = k // 4
    if k % 4 or n not in _WILLIAMSON:
        return None
    index = (torch.arange(n)[None, :] - torch.arange(n)[:, None]) % n
    a, b, c, d = (
        torch.tensor([-1 if s >> min(j, n - j) & 1 else 1 for j in range(n)])[index] for s in _WILLIAMSON[n]
    )
    rows = [[a, b, c, d], [-b, a, -d, c], [-c, d, a, -b], [-d, -c, b, a]]
    return torch.cat([torch.cat(r, 1) for r in rows])


@functools.lru_cache(None)
def hadamard_matrix(k: int) -> Tensor:
    """int8 [k, k] with H H^T = k I. Powers of two: Sylvester. Else Paley I, Paley II, Williamson, doubling.

    Raises ValueError where this construction knows no matrix of that order.
    """
    with torch.device(
        "cpu"
    ):  # kept for the life of the process: a model built on meta must not leave it empty
        return _construct(k)


def _construct(k: int) -> Tensor:
    if k == 1:
        return torch.ones(1, 1, dtype=torch.int8)
    if k & (k - 1):
        for build in (_paley1, _paley2, _williamson):
            if (h := build(k)) is not None:
                return h.to(torch.int8)
    if k < 1 or k % 2 or (k > 2 and k % 4):
        raise ValueError(
            f"hadamard_matrix: k = {k} has no Hadamard matrix (expected 1, 2 or a multiple of 4)"
        )
    half = hadamard_matrix(k // 2)
    return torch.kron(torch.tensor([[1, 1], [1, -1]], dtype=torch.int8), half)


@functools.lru_cache(None)
def split_order(n: int) -> tuple[int, int]:
    """n = K * 2^m with the smallest K that has a constructed Hadamard matrix (1 for powers of two)."""
    odd = n & -n  # largest power of two in n
    k, two = n // odd, odd
    if k == 1:
        return 1, n
    while two > 1:
        k, two = 2 * k, two // 2
        try:
            hadamard_matrix(k)
            return k, two
        except ValueError:
            continue
    raise ValueError(f"hadamard: size {n} has no constructed Hadamard matrix; use a block that divides it")


def _add_by_fours(h: Tensor, v: Tensor, acc: Tensor | None = None) -> Tensor:
    """acc + h @ v, h signs: four inputs at a time, in order, so that every backend sums alike."""
    terms = [h[:, i, None] * v[:, None, i] for i in range(v.shape[1])]  # [rows, outputs, columns] each, exact
    acc = torch.zeros_like(terms[0]) if acc is None else acc
    for i in range(0, len(terms), 4):
        acc = acc + ((terms[i] + terms[i + 1]) + (terms[i + 2] + terms[i + 3]))
    return acc


def mix_williamson(v: Tensor) -> Tensor:
    """H v of a Williamson matrix, [rows, 4 n, columns], with n + 7 additions per element.

    H has at ((r, i), (c, i + d mod n)) the 4 x 4 array W_d. Of the four signs that make W_d, d > 0, three are
    equal (Williamson, Duke Math. J. 11, 1944), which makes it W_1 times a permutation with signs, S_d:
    H v at i is W_1 z + W_0 v[i], z the sum of S_d v[i + d] over d = 1 .. n - 1, in order.
    """
    rows, n, columns = v.shape[0], v.shape[1] // 4, v.shape[2]
    w = hadamard_matrix(4 * n).to(v).view(4, n, 4, n)[:, 0].permute(2, 0, 1)  # [d, r, c]
    v = v.view(rows, 4, n, columns)
    z = torch.zeros_like(v)
    for d in range(1, n):
        unit = (w[1].T @ w[d]) / 4
        source = unit.abs().argmax(1)  # of each output
        sign = unit.gather(1, source[:, None])
        z = z + sign[:, :, None] * v[:, source].roll(-d, 2)
    z, v = (t.transpose(1, 2).flatten(0, 1) for t in (z, v))  # [rows n, 4, columns]
    y = _add_by_fours(w[0], v, _add_by_fours(w[1], z))
    return y.view(rows, n, 4, columns).transpose(1, 2).reshape(rows, 4 * n, columns)


def hadamard(x: Tensor, scale: float = 1.0, block: int | None = None, transpose: bool = False) -> Tensor:
    """y = scale * (H_K x H_{2^m}) x over the last dimension, or over each `block` of it."""
    n = block or x.shape[-1]
    if n == 0:
        return x.clone()
    k, two = split_order(n)
    y = x.float().reshape(-1, two)
    stride = 1
    while stride < two:  # fp32 butterflies, stride 1, 2, 4, ...
        v = y.view(-1, two // (2 * stride), 2, stride)
        y = torch.stack((v[:, :, 0] + v[:, :, 1], v[:, :, 0] - v[:, :, 1]), 2).view(-1, two)
        stride *= 2
    if k > 1:
        v = y.view(-1, k, two)
        h = hadamard_matrix(k).to(y)
        y = mix_williamson(v) if k == 172 and not transpose else _add_by_fours(h.T if transpose else h, v)
    return (y.reshape(x.shape) * torch.tensor(scale, dtype=torch.float32)).to(x.dtype)


def hadamard_quantize(
    x: Tensor, bits: int, clip: float = 1.0, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """quantize(hadamard(x, 1/sqrt(n))) with no rounding of the fp32 intermediate."""
    n = block or x.shape[-1]
    y = hadamard(x.float(), n**-0.5, block)
    return quantize_int4(y, clip) if bits == 4 else quantize_int8(y, clip)
