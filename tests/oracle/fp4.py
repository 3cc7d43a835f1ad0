"""FP4: the values of all codes written out by hand, rounding by search, exact integer products."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import cases, codec, ops

F32 = np.float32
# the eight magnitudes of each format, in the order of their codes; bit 3 of a code is the sign
MAGNITUDES = {
    "e2m1": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
    "e1m2": (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    "e3m0": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
}
# the smallest multiplier that makes integers of them
STEPS = {"e2m1": 2, "e1m2": 4, "e3m0": 4, "int8": 1}
# half way between magnitude i and i + 1: whether the larger is taken. Ties go to the even significand: with a
# mantissa that is the even code; without one, 1.5 * 2^j is one and a half steps of 2^j, and two is even.
TIE_UP = {
    "e2m1": (False, True, False, True, False, True, False),
    "e1m2": (False, True, False, True, False, True, False),
    "e3m0": (False, True, True, True, True, True, True),
}
FORMATS = tuple(MAGNITUDES)
SMALLEST_SCALE = F32(2.0**-126)


def values(codes: np.ndarray, fmt: str) -> np.ndarray:
    """float64 values of codes 0..15."""
    codes = np.asarray(codes, dtype=np.int64)
    magnitude = np.array(MAGNITUDES[fmt])[codes % 8]
    return np.where(codes >= 8, -magnitude, magnitude)


def integers(codes: np.ndarray, fmt: str) -> np.ndarray:
    """int64 values times STEPS; int8 codes as they are."""
    if fmt == "int8":
        return np.asarray(codes, dtype=np.int64)
    exact = values(codes, fmt) * STEPS[fmt]
    assert (exact == np.rint(exact)).all() and np.abs(exact).max(initial=0) <= 127
    return exact.astype(np.int64)


def encode(y: np.ndarray, fmt: str) -> np.ndarray:
    """int64 codes of finite numbers: the nearest magnitude, found by comparing with all midpoints."""
    table = np.array(MAGNITUDES[fmt])
    middle = (table[:-1] + table[1:]) / 2
    a = np.abs(np.asarray(y, dtype=np.float64))[..., None]
    code = ((a > middle) | ((a == middle) & np.array(TIE_UP[fmt]))).sum(-1)
    return code + 8 * np.signbit(y)


def pack(codes: np.ndarray) -> np.ndarray:
    """Codes [..., K] -> uint8 [..., ceil(K/2)], low nibble first, pad nibble 0."""
    codes = np.asarray(codes, dtype=np.int64)
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.int64)], -1)
    return (codes[..., 0::2] + 16 * codes[..., 1::2]).astype(np.uint8)


def quantize_exact(
    x: np.ndarray,
    fmt: str,
    scale: float | None = None,
    exponent: np.ndarray | None = None,
    clip: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """x [..., K] -> (codes int64 [..., K], scale fp32 [...])."""
    codes = np.zeros(x.shape, dtype=np.int64)
    out = np.ones(x.shape[:-1], dtype=F32)
    top = F32(MAGNITUDES[fmt][-1])
    for row in np.ndindex(*x.shape[:-1]):
        with np.errstate(over="ignore", under="ignore"):
            v = x[row].astype(F32)
            if exponent is not None:
                v = np.ldexp(v, exponent.astype(np.int64))
            if not np.isfinite(v).all():
                out[row] = np.nan
                continue
            step = F32(np.abs(v).max(initial=0) * F32(clip)) / top if scale is None else F32(scale)
            if step < SMALLEST_SCALE:
                continue  # zero row, or too small for 1 / step: scale 1, codes 0
            out[row] = step
            codes[row] = encode(v * (F32(1) / step), fmt)
    return codes, out


def linear_exact(x, x_fmt, x_scale, w, w_fmt, w_scale, bias, out_dtype) -> np.ndarray:
    """Codes x [..., K] and w [N, K] -> [..., N], by DESIGN's contract."""
    steps = F32(STEPS[x_fmt] * STEPS[w_fmt])
    scale = w_scale.astype(F32) / steps  # a power of two
    return ops.linear_exact(integers(x, x_fmt), x_scale, integers(w, w_fmt), scale, bias, out_dtype)


@dataclass(frozen=True)
class Case:
    """One call of fp4_linear."""

    m: int
    n: int
    k: int
    x_format: str = "e2m1"
    w_format: str = "e2m1"
    bias: bool = False
    x_scale: bool = True
    out_dtype: str = "float32"
    storage: str = "plain"
    kind: str = "random"  # or "extreme": largest codes whose products all have one sign
    batch: tuple[int, ...] = ()

    def __str__(self) -> str:
        text = f"{self.m}x{self.n}x{self.k}-a{self.x_format}-w{self.w_format}" + "-bias" * self.bias
        return f"{text}{'' if self.x_scale else '-static'}-{self.out_dtype}-{self.storage}-{self.kind}"


@dataclass
class Data:
    x: np.ndarray  # codes [..., M, K]
    x_scale: np.ndarray | None
    w: np.ndarray  # codes [N, K]
    w_scale: np.ndarray
    bias: np.ndarray | None

    def expected(self, case: Case) -> np.ndarray:
        x, w = (self.x, case.x_format, self.x_scale), (self.w, case.w_format, self.w_scale)
        return linear_exact(*x, *w, self.bias, case.out_dtype)


def data(case: Case, seed: int = 0) -> Data:
    """Inputs drawn for `case`, always the same for the same case and seed."""
    rng = np.random.default_rng((seed, case.m, case.n, case.k, len(str(case))))
    shape = (*case.batch, case.m, case.k)
    low, high = (-128, 128) if case.x_format == "int8" else (0, 16)
    x, w = rng.integers(low, high, shape), rng.integers(0, 16, (case.n, case.k))
    if case.kind == "extreme":
        sign = rng.integers(0, 2, case.k)  # even rows agree with the weight in every sign, odd rows disagree
        flip = (sign + np.arange(case.m)[:, None]) % 2
        x = np.broadcast_to(np.where(flip, -128, 127) if case.x_format == "int8" else 7 + 8 * flip, shape)
        w = np.broadcast_to(7 + 8 * sign, w.shape)
    return Data(
        x=x,
        x_scale=rng.uniform(1e-3, 0.1, shape[:-1]).astype(F32) if case.x_scale else None,
        w=w,
        w_scale=rng.uniform(1e-3, 0.1, case.n).astype(F32),
        bias=rng.standard_normal(case.n).astype(F32) if case.bias else None,
    )


def linear_cases() -> Iterator[Case]:
    """Every edge of rows, depth and channels, with flags that cycle; then the largest sums of all formats."""
    pairs = list(itertools.product((*FORMATS, "int8"), FORMATS))
    flags = zip(
        itertools.cycle(pairs[::5] + pairs[1::5] + pairs[2::5] + pairs[3::5] + pairs[4::5]),
        itertools.cycle((False, True, False, True, True)),
        itertools.cycle((True, True, False, True, True, True, True)),
        itertools.cycle(("float32", "bfloat16", "float32", "float16", "float32", "float32", "float32")),
        itertools.cycle((*cases.STORAGES, "plain", *cases.STORAGES, "plain", "plain", "strided", "plain")),
        strict=False,
    )
    shapes = [(m, n, k) for m in cases.ROWS for n, k in ((33, 65), (16, 128))]
    shapes += [(m, 17, k) for k in cases.DEPTHS for m in (1, 5)]
    shapes += [(m, n, 40) for n in cases.CHANNELS for m in (1, 4, 9)]
    shapes += [(3, 0, 16), (0, 0, 16), (2, 5, 0), (0, 4, 0), (130, 70, 66), (65, 130, 96)]
    for (m, n, k), ((x, w), bias, x_scale, out, storage) in zip(shapes, flags, strict=False):
        yield Case(m, n, k, x, w, bias, x_scale, out, storage)
    for x, w in pairs:
        yield Case(5, 18, 4096, x, w, kind="extreme")
        yield Case(2, 16, 4100 if x == "int8" else 4104, x, w, x_scale=False, kind="extreme")
        yield Case(2, 18, 100, x, w, batch=(2, 3))


def weight_tiles(codes: np.ndarray) -> np.ndarray:
    """The CPU tiles of codes [N, K]; they hold the nibbles as they are."""
    return codec.write_int4_tiles(np.asarray(codes, dtype=np.int64) - 8)
