"""The 4- and 6-bit floats written out value by value, and weight-only layers in float64 from them.

Shares no code with the library: tables by hand (OCP Microscaling Formats v1.0, section 5.3; e1m2 and e3m0
from LLM-FP4, arXiv 2310.16836), nearest value by search, packed bytes by bit arithmetic on whole rows.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import compare

# values of the codes without sign, in the order of the codes
POSITIVE = {
    "e3m2": [
        0, 0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.625, 0.75, 0.875, 1, 1.25, 1.5, 1.75,
        2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28,
    ],
    "e2m3": [
        0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875,
        2, 2.25, 2.5, 2.75, 3, 3.25, 3.5, 3.75, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5,
    ],
    "e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
    "e1m2": [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75],
    "e3m0": [0, 0.25, 0.5, 1, 2, 4, 8, 16],
}  # fmt: skip
TABLES = {name: np.array([*v, *(-np.array(v, np.float64))]) for name, v in POSITIVE.items()}
TABLES["int4"] = np.arange(16.0) - 8  # offset-8
BITS = {name: 6 if len(table) == 64 else 4 for name, table in TABLES.items()}
FLOATS = tuple(POSITIVE)
FORMATS = tuple(TABLES)


def nearest(x: np.ndarray, name: str, ties_away: bool = False) -> np.ndarray:
    """uint8 codes of the nearest values; a tie goes to the even code, or to the larger magnitude.

    e3m0 has no mantissa: its significand is 1 below a binade's end and 2 at it, so there a tie goes up.
    """
    values = np.array(POSITIVE[name])
    a = np.minimum(np.abs(np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=1e9, neginf=-1e9)), values[-1])
    distance = np.abs(a[..., None] - values)
    low = distance.argmin(-1)
    high = len(values) - 1 - distance[..., ::-1].argmin(-1)
    up = ties_away | (low % 2 == 1)
    if name == "e3m0":
        up = up | (low > 0)
    code = np.where((low != high) & up, high, low)
    return (code + np.where(np.signbit(x) & ~np.isnan(x), len(values), 0)).astype(np.uint8)


def pack(codes: np.ndarray, name: str) -> np.ndarray:
    """uint8 [N, K] -> checkpoint bytes: each row is one little-endian number of K codes."""
    bits, k = BITS[name], codes.shape[1]
    size = -(-k // 2) if bits == 4 else 3 * -(-k // 4)
    rows = [sum(int(c) << (bits * i) for i, c in enumerate(row)).to_bytes(size, "little") for row in codes]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(codes), size).copy()


def read_tiles(tiles: np.ndarray, name: str, n: int, k: int) -> np.ndarray:
    """uint8 [NT, KT, bytes] -> codes int64 [n, k], by the picture in csrc/layout/fp_tile.h."""
    words = np.ascontiguousarray(tiles).view("<u2").astype(np.int64)
    words = words.reshape(*tiles.shape[:2], tiles.shape[2] // 32, 16)
    out = np.zeros((n, k), np.int64)
    for row, col in itertools.product(range(n), range(k)):
        w = words[row // 16, col // 8, :, row % 16]
        step = col % 8
        if BITS[name] == 4:
            out[row, col] = w[step // 4] // 16 ** (3 - step % 4) % 16
        elif step < 6:
            out[row, col] = (w[step // 2] // (16 if step % 2 else 1024)) % 64
        else:
            upper, lower = (w[0] % 16, w[1] % 16 // 4) if step == 6 else (w[2] % 16, w[1] % 4)
            out[row, col] = 4 * upper + lower
    return (out + 8) % 16 if name == "int4" else out  # the kernels read int4 in two's complement


@dataclass(frozen=True)
class Case:
    """One call of fp_linear."""

    m: int
    n: int
    k: int
    format: str
    group: int | None = None
    dtype: str = "float32"
    bias: bool = False
    storage: str = "plain"
    values: str = "random"  # or "integers": all sums are exact in fp32
    batch: tuple[int, ...] = ()

    def __str__(self) -> str:
        flags = [f"{self.m}x{self.n}x{self.k}", self.format]
        flags += [f"g{self.group}"] if self.group else []
        flags += ["bias"] if self.bias else []
        return "-".join([*flags, self.dtype, self.storage, self.values])


@dataclass
class Data:
    """Numpy inputs of a `Case`. x fp32 [..., M, K] that its dtype holds exactly."""

    x: np.ndarray
    codes: np.ndarray  # uint8 [N, K]
    w_scale: np.ndarray  # fp32 [N]
    group_scale: np.ndarray | None  # uint8 e8m0 or fp16 [N, G]
    bias: np.ndarray | None

    def weight64(self, case: Case) -> np.ndarray:
        """float64 [N, K] without w_scale."""
        w = TABLES[case.format][self.codes]
        if self.group_scale is None:
            return w
        s = self.group_scale
        value = np.exp2(s.astype(np.float64) - 127) if s.dtype == np.uint8 else s.astype(np.float64)
        return w * value[:, np.arange(case.k) // case.group]


def data(case: Case, seed: int = 0) -> Data:
    """Inputs drawn for `case`, always the same."""
    rng = np.random.default_rng((seed, case.m, case.n, case.k, len(str(case))))
    whole = case.values == "integers"
    shape = (*case.batch, case.m, case.k)
    x = rng.integers(-3, 4, shape) if whole else rng.standard_normal(shape) * rng.choice([0.01, 1, 30])
    kind = {"float32": np.float32, "float16": np.float16}.get(case.dtype)
    kind = kind or compare.ml_dtypes.bfloat16
    codes = rng.integers(0, 1 << BITS[case.format], (case.n, case.k)).astype(np.uint8)
    scale, groups = None, (case.n, -(-case.k // (case.group or 1)))
    if case.group == 32 and case.format != "int4":
        scale = rng.integers(126, 129, groups) if whole else rng.integers(110, 135, groups)
        scale = scale.astype(np.uint8)
    elif case.group:
        scale = rng.choice([0.5, 1.0, 2.0], groups) if whole else rng.uniform(0.01, 1.5, groups)
        scale = scale.astype(np.float16)
    w_scale = rng.choice([0.25, 1.0, 4.0], case.n) if whole else rng.uniform(1e-3, 0.1, case.n)
    bias = rng.integers(-8, 9, case.n) if whole else rng.standard_normal(case.n)
    return Data(
        x.astype(kind).astype(np.float32), codes, w_scale.astype(np.float32), scale,
        bias.astype(np.float32) if case.bias else None,
    )  # fmt: skip


def expected(case: Case, d: Data) -> tuple[np.ndarray, np.ndarray]:
    """(float64 result, sum of magnitudes) [..., N]."""
    w = d.weight64(case) * d.w_scale.astype(np.float64)[:, None]
    y, magnitude = d.x.astype(np.float64) @ w.T, np.abs(d.x.astype(np.float64)) @ np.abs(w).T
    if d.bias is not None:
        y, magnitude = y + d.bias, magnitude + np.abs(d.bias)
    return y, magnitude


def cases() -> Iterator[Case]:
    """Row counts, depths and channel counts around every edge, with flags in coprime cycles."""
    flags = zip(
        itertools.cycle(FORMATS),
        itertools.cycle((None, 32, None, 64, 128)),
        itertools.cycle(("float32", "bfloat16", "float32", "float16", "float32", "float32", "bfloat16")),
        itertools.cycle((False, True, True)),
        itertools.cycle(("plain", "strided", "transposed", "offset")),
        itertools.cycle(("random", "integers", "random", "random", "integers")),
        strict=False,
    )
    rows = (0, 1, 2, 3, 4, 5, 7, 8, 9, 17, 33)
    depths = (1, 2, 3, 5, 7, 8, 9, 31, 32, 33, 63, 64, 127, 129, 257)
    shapes = [(m, n, k) for m in rows for n, k in ((33, 65), (64, 128), (15, 40))]
    shapes += [(m, 17, k) for k in depths for m in (1, 5)]
    shapes += [(m, n, 40) for n in (1, 2, 15, 16, 17, 31, 32, 33, 61, 65) for m in (1, 2, 6)]
    shapes += [(3, 0, 16), (0, 0, 16), (2, 5, 0), (0, 4, 0), (130, 70, 600), (97, 130, 1040), (9, 64, 1536)]
    for (m, n, k), (fmt, group, dtype, bias, storage, values) in zip(shapes, flags, strict=False):
        yield Case(m, n, k, fmt, group, dtype, bias, storage, values)
    for fmt, group in itertools.product(FORMATS, (None, 32, 64, 128)):
        yield Case(6, 48, 320, fmt, group, "float32", True, "plain", "integers")
        yield Case(5, 40, 200, fmt, group, "bfloat16", False, batch=(2,))
