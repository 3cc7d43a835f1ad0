"""The one generator of cases: tests and benches draw their shapes, values and storage from here.

Shapes sit on and around what a kernel could get wrong: tiles of 16 channels x 8 k, blocks of 32 / 64 / 128 in
k, register tiles of a few rows, odd and prime sizes, empty ones, and the layers of real models.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

# rows: none, one, around 2, 4, 8, 16 and 32 rows per tile
ROWS = (0, 1, 2, 3, 5, 6, 7, 8, 13, 16, 17, 33)
# reductions: a k tile of 8 +-1, group and block edges +-1, odd, prime, and one past two blocks of 128
DEPTHS = (1, 2, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 97, 127, 128, 129, 257, 576)
# (rows, reduction) that do not fit a piece or a block of the CPU's caches: 32 rows, 12 steps of 64, 256 rows
MANY_ROWS = ((7, 1030), (31, 200), (40, 703), (49, 776), (64, 1100), (270, 129), (300, 960))
# channels: tails of the 16-wide tile, a prime, two tiles and one
CHANNELS = (1, 2, 15, 16, 17, 31, 32, 33, 48, 61, 64, 65)
# sizes with a Hadamard matrix: powers of two, then one for every kind of K-factor
POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
# 12, 20 Paley I; 28 over GF(27); 36, 100 Paley II, the latter over GF(49); 52 over GF(25); 92, 116, 156, 172
# Williamson
FACTORED = (
    12,
    20,
    24,
    28,
    36,
    40,
    44,
    48,
    52,
    56,
    60,
    68,
    72,
    76,
    84,
    92,
    96,
    100,
    108,
    116,
    124,
    132,
    140,
    148,
    156,
    164,
    172,
    192,
    344,
    576,
    768,
    1536,
    3072,
)
# (size, block)
BLOCKED = (
    (12, 4),
    (96, 32),
    (576, 64),
    (576, 192),
    (1536, 128),
    (640, 128),
    (520, 8),
    (77, 1),
    (72, 36),
    (2048, 512),
)

# (out_features, in_features) of each linear layer
MODEL_LAYERS = {
    "square": ((4096, 4096),),
    "SmolLM2-135M": ((576, 576), (192, 576), (1536, 576), (576, 1536)),
    "Llama-3-8B": ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)),
}
BENCH_ROWS = (1, 8, 32, 128, 512)

STORAGES = ("plain", "strided", "transposed", "offset")
VALUES = ("random", "extreme", "sparse")


@dataclass(frozen=True)
class LinearCase:
    """One call of an integer linear layer."""

    m: int
    n: int
    k: int
    activation: str = "int8"  # packed int4 ("int4"), int4 values in int8 ("int4 in int8"), or "int8"
    weight_bits: int = 4
    group: int | None = None
    bias: bool = False
    x_scale: bool = True
    out_dtype: str = "float32"
    storage: str = "plain"
    values: str = "random"
    batch: tuple[int, ...] = field(default=())  # leading dimensions besides m

    def __str__(self) -> str:
        flags = [
            f"{self.m}x{self.n}x{self.k}",
            f"a{self.activation.replace(' ', '-')}",
            f"w{self.weight_bits}",
        ]
        flags += [f"g{self.group}"] if self.group else []
        flags += ["bias"] if self.bias else []
        flags += [] if self.x_scale else ["static"]
        return "-".join([*flags, self.out_dtype, self.storage, self.values])


@dataclass
class LinearData:
    """Numpy inputs of a `LinearCase`; codes are int64, scales fp32."""

    x_q: np.ndarray  # [..., M, K]
    x_scale: np.ndarray | None  # [..., M]
    w_q: np.ndarray  # [N, K]
    group_scale: np.ndarray | None  # uint8 [N, G]
    w_scale: np.ndarray  # [N]
    bias: np.ndarray | None  # [N]


def _codes(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int, values: str) -> np.ndarray:
    # the ends only. Even rows repeat one of them, so that sums reach their largest size
    if values == "extreme":
        ends = rng.choice(np.array([low, high]), size=shape)
        constant = rng.choice(np.array([low, high]), size=(*shape[:-1], 1))
        even = (np.arange(shape[-2]) % 2 == 0)[:, None]
        return np.where(even, constant, ends)
    q = rng.integers(low, high + 1, size=shape)
    return q * (rng.random(shape) < 0.05) if values == "sparse" else q


def linear_data(case: LinearCase, seed: int = 0) -> LinearData:
    """Inputs drawn for `case`, always the same for the same case and seed."""
    rng = np.random.default_rng((seed, case.m, case.n, case.k, len(str(case))))
    low, high = (-128, 127) if case.activation == "int8" else (-8, 7)
    weight_range = (-128, 127) if case.weight_bits == 8 else (-8, 7)
    shape = (*case.batch, case.m, case.k)
    group_scale = None
    if case.group:
        shape_s = (case.n, -(-case.k // case.group))
        group_scale = (
            np.full(shape_s, 16) if case.values == "extreme" else rng.integers(1, 17, shape_s)
        ).astype(np.uint8)
    return LinearData(
        x_q=_codes(rng, shape, low, high, case.values),
        x_scale=rng.uniform(1e-3, 0.1, shape[:-1]).astype(np.float32) if case.x_scale else None,
        w_q=_codes(rng, (case.n, case.k), *weight_range, case.values),
        group_scale=group_scale,
        w_scale=rng.uniform(1e-3, 0.1, case.n).astype(np.float32),
        bias=rng.standard_normal(case.n).astype(np.float32) if case.bias else None,
    )


def linear_cases(weight_bits: int) -> Iterator[LinearCase]:
    """Every row count, depth and channel count, each with flags that cycle so that all pairs of values meet.
    """
    activations = ("int8",) if weight_bits == 8 else ("int4", "int8", "int4 in int8")
    groups = (None,) if weight_bits == 8 else (None, 32, 64, 128)
    # coprime cycle lengths walk through the product of the flags
    flags = zip(
        itertools.cycle(activations),
        itertools.cycle(groups),
        itertools.cycle((False, True, False, True, True)),
        itertools.cycle((True, True, False, True, True, True, True)),
        itertools.cycle(
            (
                "float32",
                "bfloat16",
                "float32",
                "float16",
                "float32",
                "float32",
                "float32",
                "float32",
                "bfloat16",
                "float32",
                "float16",
            )
        ),
        itertools.cycle((*STORAGES, "plain", *STORAGES, "plain", "plain", "strided", "plain")),
        itertools.cycle(
            (
                *VALUES,
                "random",
                "extreme",
                *VALUES,
                "random",
                "extreme",
                *VALUES,
                "random",
                "extreme",
                "random",
                "random",
            )
        ),
        strict=False,
    )
    shapes = [(m, n, k) for m in ROWS for n, k in ((33, 65), (16, 128))]
    shapes += [(m, 17, k) for k in DEPTHS for m in (1, 5)]
    shapes += [(m, n, 40) for n in CHANNELS for m in (1, 4, 9)]
    shapes += [(3, 0, 16), (0, 0, 16), (2, 5, 0), (0, 4, 0), (130, 70, 66), (65, 130, 96)]
    shapes += [(m, 33, k) for m, k in MANY_ROWS]
    for (m, n, k), (activation, group, bias, x_scale, out, storage, values) in zip(
        shapes, flags, strict=False
    ):
        yield LinearCase(m, n, k, activation, weight_bits, group, bias, x_scale, out, storage, values)
    for group in groups:  # the largest sums a layer can meet, at the depth of a real layer
        yield LinearCase(4, 33, 1536, "int8", weight_bits, group, values="extreme")
        yield LinearCase(5, 16, 4096, "int8", weight_bits, group, values="extreme")
        yield LinearCase(2, 18, 100, activations[0], weight_bits, group, batch=(2, 3))


def model_linear_cases(
    model: str, rows: tuple[int, ...] = BENCH_ROWS, **flags: object
) -> Iterator[LinearCase]:
    """The layers of `model` at each row count, for the benches and the slow tests."""
    for (n, k), m in itertools.product(MODEL_LAYERS[model], rows):
        yield replace(LinearCase(m, n, k), **flags)


@dataclass(frozen=True)
class RowCase:
    """One call of an op that works on rows: quantisers, transforms, KV cache."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    storage: str = "plain"
    values: str = "normal"
    clip: float = 1.0

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{shape}-{self.dtype}-{self.storage}-{self.values}" + (
            f"-clip{self.clip}" if self.clip != 1 else ""
        )


def row_cases(depths: tuple[int, ...] = DEPTHS) -> Iterator[RowCase]:
    """Rows of every depth in every dtype and storage, with outliers, ties, zero rows, denormals and huge
    values.
    """
    kinds = itertools.cycle(("normal", "outlier", "ties", "zero rows", "tiny", "huge", "integers"))
    dtypes = itertools.cycle(("float32", "bfloat16", "float16", "float32", "float32"))
    storages = itertools.cycle((*STORAGES, "plain", *STORAGES, "plain", "plain"))
    clips = itertools.cycle((1.0, 0.9, 1.0, 0.75, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.95))
    shapes = [(3, k) for k in depths] + [(2, 3, k) for k in depths[::2]] + [(k,) for k in depths[::3]]
    shapes += [(m, 33) for m in ROWS] + [(m, 64) for m in ROWS] + [(1, 2, 3, 2, 16)]
    for shape, kind, dtype, storage, clip in zip(shapes, kinds, dtypes, storages, clips, strict=False):
        yield RowCase(shape, dtype, storage, kind, clip)


def row_data(case: RowCase, seed: int = 0) -> np.ndarray:
    """fp32 values for `case`, inside the range of its dtype; the caller rounds to the dtype first."""
    rng = np.random.default_rng((seed, *case.shape, len(str(case))))
    x = rng.standard_normal(case.shape)
    if case.values == "outlier":
        x *= np.where(rng.random(case.shape) < 0.02, 200.0, 1.0)
    elif case.values == "ties":  # a row maximum of 7 or 127 makes halves fall on ties
        x = np.round(rng.uniform(-7, 7, case.shape) * 2) / 2
        x[..., :1] = 7
    elif case.values == "zero rows":
        x *= rng.random((*case.shape[:-1], 1)) < 0.5
    elif case.values == "tiny":  # scales in and below the denormals of fp32
        exponent = rng.integers(-148, -118, (*case.shape[:-1], 1)) if case.dtype != "float16" else -14
        x *= np.exp2(exponent)
    elif case.values == "huge":
        x *= 3e37 if case.dtype != "float16" else 8e3
    elif case.values == "integers":
        x = rng.integers(-9, 10, case.shape).astype(np.float64)
    return x.astype(np.float32)
