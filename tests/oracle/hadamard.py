"""Hadamard matrices and transforms by another route than the library's.

Powers of two: H[i, j] = (-1)^popcount(i & j). Paley: quadratic characters from discrete logarithms to a
generator (a is a square iff its logarithm is even) in GF(p)[x] modulo the first irreducible monic polynomial,
elements and polynomials in the order of their base-p digits. Williamson: four symmetric circulants placed by
the quaternion product table.
"""

import functools
import itertools

import numpy as np

# signs of x_0 .. x_{n//2} of the symmetric Williamson sequences a, b, c, d
WILLIAMSON_SIGNS = {
    23: ("+++-+++-+---", "+++---++-+-+", "++---+---+-+", "+-++-++--+++"),
    29: ("++-+-++++--+---", "++-+-++----+--+", "+-+--+-+++++--+", "++-++-+++---+++"),
    39: ("++------+--+-+--++-+", "+-+-----+-+++--+++--", "++---+--++----+-+-++", "++-++-++---+-----+-+"),
    43: (
        "++-+-++++----+----+--+",
        "++++--++-+-++-+---+-++",
        "+--+++--++-+-+-+--++++",
        "++---+++++++-+--++--+-",
    ),
}


def is_prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k, or None."""
    for p in range(2, q + 1):
        if q % p == 0:  # p is the smallest prime factor
            k = next(k for k in itertools.count(1) if p**k >= q)
            return (p, k) if p**k == q else None
    return None


class Field:
    """GF(p^k); the element numbered e is the polynomial whose coefficients are the base-p digits of e."""

    def __init__(self, p: int, k: int):
        self.p, self.k, self.order = p, k, p**k
        self.modulus = (
            next(m for m in map(self._digits, range(self.order)) if self._irreducible(m)) if k > 1 else (0,)
        )

    def _digits(self, e: int) -> tuple[int, ...]:
        return tuple(e // self.p**i % self.p for i in range(self.k))

    def _irreducible(self, low: tuple[int, ...]) -> bool:
        """x^k + low has no root (that decides degrees 2 and 3, the only ones needed)."""
        assert self.k <= 3
        return all((a**self.k + sum(c * a**i for i, c in enumerate(low))) % self.p for a in range(self.p))

    def times_x(self, e: int) -> int:
        d = self._digits(e)
        top = d[-1]
        shifted = (0, *d[:-1])
        return sum(
            (s - top * m) % self.p * self.p**i
            for i, (s, m) in enumerate(zip(shifted, self.modulus, strict=True))
        )

    def add(self, a: int, b: int, sign: int = 1) -> int:
        return sum(
            (x + sign * y) % self.p * self.p**i
            for i, (x, y) in enumerate(zip(self._digits(a), self._digits(b), strict=True))
        )

    def multiply(self, a: int, b: int) -> int:
        if self.k == 1:
            return a * b % self.p
        total, power = 0, a
        for digit in self._digits(b):  # Horner without the polynomials: sum digit * (a x^i)
            for _ in range(digit):
                total = self.add(total, power)
            power = self.times_x(power)
        return total

    def character(self) -> np.ndarray:
        """chi[e]: 0 for zero, else +1 where the discrete logarithm is even, -1 where odd."""
        for g in range(2 if self.order > 2 else 1, self.order):
            chi, e = np.zeros(self.order, dtype=np.int64), 1
            for log in range(self.order - 1):
                if chi[e]:
                    break
                chi[e] = 1 - 2 * (log % 2)
                e = self.multiply(e, g)
            if np.count_nonzero(chi) == self.order - 1:
                return chi
        raise AssertionError(f"GF({self.order}) without a generator")


@functools.cache
def jacobsthal(q: int) -> np.ndarray:
    """Q[a, b] = chi(a - b)."""
    p, k = is_prime_power(q)
    field = Field(p, k)
    chi = field.character()
    return np.array([[chi[field.add(a, b, -1)] for b in range(q)] for a in range(q)])


def paley_one(k: int) -> np.ndarray | None:
    q = k - 1
    if q % 4 != 3 or not is_prime_power(q):
        return None
    h = np.ones((k, k), dtype=np.int64)
    h[1:, 0] = -1
    h[1:, 1:] = jacobsthal(q) + np.eye(q, dtype=np.int64)
    return h


def paley_two(k: int) -> np.ndarray | None:
    q = k // 2 - 1
    if k % 4 or q % 4 != 1 or not is_prime_power(q):
        return None
    h = np.empty((k, k), dtype=np.int64)
    conference = np.zeros((q + 1, q + 1), dtype=np.int64)
    conference[0, 1:] = conference[1:, 0] = 1
    conference[1:, 1:] = jacobsthal(q)
    for i, j in itertools.product(range(q + 1), repeat=2):
        block = [[1, -1], [-1, -1]] if i == j else conference[i, j] * np.array([[1, 1], [1, -1]])
        h[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = block
    return h


def williamson(k: int) -> np.ndarray | None:
    n = k // 4
    if k % 4 or n not in WILLIAMSON_SIGNS:
        return None
    circulants = []
    for signs in WILLIAMSON_SIGNS[n]:
        first = [1 if signs[min(j, n - j)] == "+" else -1 for j in range(n)]
        circulants.append(np.array([np.roll(first, i) for i in range(n)]))
    # row u, column u * v of the quaternion group {1, i, j, k} holds sign(u * v) times the matrix of v
    product = (
        {(0, v): (1, v) for v in range(4)}
        | {(u, 0): (1, u) for u in range(4)}
        | {
            (1, 1): (-1, 0),
            (2, 2): (-1, 0),
            (3, 3): (-1, 0),
            (1, 2): (1, 3),
            (2, 1): (-1, 3),
            (2, 3): (1, 1),
            (3, 2): (-1, 1),
            (3, 1): (1, 2),
            (1, 3): (-1, 2),
        }
    )
    h = np.zeros((k, k), dtype=np.int64)
    for (u, v), (sign, w) in product.items():
        h[u * n : (u + 1) * n, w * n : (w + 1) * n] = sign * circulants[v]
    return h


def sylvester(n: int) -> np.ndarray:
    i = np.arange(n)
    parity = np.bitwise_count(i[:, None] & i[None, :]) % 2
    return 1 - 2 * parity.astype(np.int64)


@functools.cache
def matrix(k: int) -> np.ndarray | None:
    """The library's H_k as int64, or None where it has none (k a power of two, or 4 * odd)."""
    if k & (k - 1) == 0:
        return sylvester(k)
    return next((h for build in (paley_one, paley_two, williamson) if (h := build(k)) is not None), None)


@functools.cache
def factor(n: int) -> tuple[int, int]:
    """n = K * 2^m with the smallest K that has a matrix."""
    if n & (n - 1) == 0:
        return 1, n
    two = n & -n
    for exponent in range(2, two.bit_length()):
        k = n // two << exponent
        if matrix(k) is not None:
            return k, n // k
    raise ValueError(f"no Hadamard matrix for {n}")


def transform(
    x: np.ndarray, scale: float = 1.0, block: int | None = None, transpose: bool = False
) -> np.ndarray:
    """float64: scale * (H_K x H_2^m) over the last axis, or over each block of it."""
    n = block or x.shape[-1]
    k, two = factor(n)
    h = matrix(k).T if transpose else matrix(k)
    v = x.astype(np.float64).reshape(-1, k, two)
    return (scale * (h @ v @ sylvester(two))).reshape(x.shape)


def mix_quaternions(v: np.ndarray) -> np.ndarray:
    """Williamson's order of additions, v [rows, 4 n, columns]: places i + 1, i + 2, ... go to z of place i as
    the signed permutations that make their arrays out of that of d = 1; then that array times z; then the
    array of d = 0 times place i.
    """
    rows, k, columns = v.shape
    n = k // 4
    h = matrix(k)
    array = [h[np.ix_(range(0, k, n), [c * n + d for c in range(4)])].astype(np.float32) for d in range(n)]
    x = v.reshape(rows, 4, n, columns)
    out = np.empty_like(x)

    def product(start, w, t):  # one output: by pairs
        a, b, c, d = (w[j] * t[:, j] for j in range(4))
        return start + ((a + b) + (c + d))

    for i in range(n):
        z = np.zeros((rows, 4, columns), dtype=np.float32)
        for d in range(1, n):
            for output, dots in enumerate(array[1].T @ array[d]):
                (source,) = np.flatnonzero(dots)  # the one column of W_d that is +- this column of W_1
                z[:, output] += np.sign(dots[source]) * x[:, source, (i + d) % n]
        for r in range(4):
            out[:, r, i] = product(product(np.float32(0), array[1][r], z), array[0][r], x[:, :, i])
    return out


def transform_fp32(
    x: np.ndarray, scale: float = 1.0, block: int | None = None, transpose: bool = False
) -> np.ndarray:
    """The contract's fp32 order: butterflies of stride 1, 2, 4, ..., the K-factor summed by fours in order
    (K = 172: by quaternions), one multiply.
    """
    n = block or x.shape[-1]
    k, two = factor(n)
    y = x.astype(np.float32).reshape(-1, n).copy()
    stride = 1
    while stride < two:
        low = np.flatnonzero((np.arange(n) // stride) % 2 == 0)
        a, b = y[:, low], y[:, low + stride]
        y[:, low], y[:, low + stride] = a + b, a - b
        stride *= 2
    if k == 172 and not transpose:
        y = mix_quaternions(y.reshape(-1, k, two))
    elif k > 1:
        h = matrix(k).T if transpose else matrix(k)
        v, out = y.reshape(-1, k, two), np.empty((y.shape[0], k, two), dtype=np.float32)
        for row in range(k):
            total = np.zeros_like(v[:, 0])
            for i in range(0, k, 4):
                w, x1, x2, x3 = (np.float32(h[row, i + j]) * v[:, i + j] for j in range(4))
                total = total + ((w + x1) + (x2 + x3))
            out[:, row] = total
        y = out
    return (y.reshape(x.shape) * np.float32(scale)).astype(np.float32)


def magnitude(x: np.ndarray, scale: float = 1.0, block: int | None = None) -> np.ndarray:
    """sum |h| |x| |scale| per output: every entry of H is +-1."""
    n = block or x.shape[-1]
    v = np.abs(x.astype(np.float64)).reshape(-1, n).sum(-1, keepdims=True) * abs(scale)
    return np.broadcast_to(v, (v.shape[0], n)).reshape(x.shape)
