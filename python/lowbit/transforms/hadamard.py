"""Hadamard transforms for the offline work: orthonormal, any float dtype, computed in the dtype of x."""

import functools

from torch import Tensor

from ..reference.transform import hadamard_matrix, split_order


@functools.lru_cache(None)
def largest_block(n: int) -> int:
    """The largest divisor of n for which a Hadamard matrix is constructed; n itself where there is one."""
    for b in sorted((d for d in range(1, n + 1) if n % d == 0), reverse=True):
        try:
            split_order(b)
            return b
        except ValueError:
            continue
    raise ValueError(f"largest_block: expected a positive size, got {n}")


def hadamard(x: Tensor, block: int | None = None, transpose: bool = False) -> Tensor:
    """x [..., n] -> (H x) / sqrt(b) over each block of b (None: b = n), in x.dtype (fp64 stays fp64).

    The matrix is that of `lowbit.reference.hadamard`: H_K x H_{2^m}; transpose gives the inverse.
    """
    n = block or x.shape[-1]
    if n == 0:
        return x.clone()
    k, two = split_order(n)
    y = x.reshape(-1, two)
    for part in _factors(two):  # H_{2^m} as a product of small dense factors
        y = y.view(-1, two // part, part).transpose(1, 2)
        y = (hadamard_matrix(part).to(y) @ y).reshape(-1, two)
    if k > 1:
        h = hadamard_matrix(k).to(y)
        y = (h.T if transpose else h) @ y.view(-1, k, two)
    return (y.reshape(x.shape) * n**-0.5).to(x.dtype)


def _factors(two: int) -> list[int]:
    m, factors = two.bit_length() - 1, []
    while m > 0:
        step = min(m, 6)
        factors.append(1 << step)
        m -= step
    return factors
