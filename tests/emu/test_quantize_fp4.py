"""The CUDA quantiser to FP4, and FP4 codes as int8, under the emulator: the bits of the contract."""

import itertools

import lowbit.ops  # noqa: F401 - registers torch.ops.lowbit
import numpy as np
import pytest
import torch

from tests.oracle import compare, fp4

from . import rows as r

DEPTHS = (1, 2, 7, 8, 12, 31, 32, 33, 63, 64, 65, 127, 128, 129, 509, 576, 1021, 1536)


def run(emulated, x, fmt, scale=None, exponent=None, clip=1.0, x_pad=0, offset=0, **options):
    """(nibbles, scale, report) of x [rows, k]."""
    rows, k = x.shape
    name = next(n for n, t in r.DTYPES.items() if t == x.dtype)
    q, s = r.raw(rows * ((k + 1) // 2)), np.full(rows, 113, np.float32)
    held = r.stored(x, k + x_pad, offset)
    before = held.copy()
    powers = None if exponent is None else r.stored(exponent[None], offset=offset).view(np.int8)
    fixed = None if scale is None else np.array([scale], np.float32)
    report = emulated.quantize_fp4(held, name, rows, k, k + x_pad, powers, fmt, clip, fixed, q, s, options)
    np.testing.assert_array_equal(held, before)
    return q.reshape(rows, (k + 1) // 2), s, report


def check(emulated, x, fmt, scale=None, exponent=None, clip=1.0, **more):
    q, s, report = run(emulated, x, fmt, scale, exponent, clip, **more)
    codes, want = fp4.quantize_exact(x, fmt, scale, exponent, clip)
    np.testing.assert_array_equal(s.view(np.uint32), want.view(np.uint32))  # NaN: 0x7fc00000
    np.testing.assert_array_equal(q, fp4.pack(codes))
    return report


@pytest.mark.parametrize("fmt", fp4.FORMATS)
@pytest.mark.parametrize("k", DEPTHS)
def test_bits(emulated, fmt, k):
    """Every dtype, number of rows, alignment, padding, clip, scale and exponent, in turn."""
    for i, (dtype, rows) in enumerate(itertools.product(r.DTYPES, (1, 3, 7)), start=k):
        size = 4 if dtype == "float32" else 2
        exponent = np.random.default_rng(i).integers(-9, 10, k).astype(np.int8)
        scale = (None, None, 0.37)[i % 3]
        check(
            emulated,
            r.normal(rows, k, dtype=dtype),
            fmt,
            scale,
            (None, exponent)[i % 2],
            (1.0, 0.7)[i // 2 % 2] if scale is None else 1.0,
            x_pad=(0, 5)[i % 5 == 0],
            offset=size * (i % 4 == 1),
            seed=i,
        )


@pytest.mark.parametrize(
    ("rows", "k", "dtype", "exponent"),
    [
        (3, 4096, "bfloat16", True),
        (1, 14336, "float32", False),
        (1, 32768, "bfloat16", True),
        (1, 33024, "float16", True),  # two rounds
        (1, 16387, "float16", True),  # two rounds, not aligned
    ],
)
def test_long_rows(emulated, rows, k, dtype, exponent):
    e = np.random.default_rng(k).integers(-4, 5, k).astype(np.int8) if exponent else None
    report = check(emulated, r.normal(rows, k, dtype=dtype), "e2m1", None, e, 0.9)
    assert r.written_once(report, "q") and r.written_once(report, "scale")
    assert r.read_once(report, "x") == (report["team"]["rounds"] == 1)


@pytest.mark.parametrize("fmt", fp4.FORMATS)
def test_every_value_midpoint_and_neighbour(emulated, fmt):
    table = np.array(fp4.MAGNITUDES[fmt], np.float32)
    middle = (table[:-1] + table[1:]) / 2
    below, above = (np.nextafter(middle, np.float32(to)) for to in (0, np.inf))
    points = np.concatenate([table, middle, below, above, np.float32([1e-45, 1e-30, 17, 1e30, 3e38])])
    check(emulated, np.concatenate([points, -points])[None], fmt, 1.0)


@pytest.mark.parametrize("fmt", fp4.FORMATS)
@pytest.mark.parametrize("k", [7, 64, 1536])
def test_special_rows(emulated, fmt, k):
    """Zeros, NaN, infinities, the edges of the range, saturation."""
    x = np.zeros((14, k), np.float32)
    x[1, k // 2], x[2, k - 1], x[3, 0] = np.nan, np.inf, -np.inf
    x[4, 0] = -np.nan
    for i, size in enumerate((2.0**-149, 2.0**-130, 2.0**-126, 2.0**-124, 2.0**-122, 2.0**-118, 3.4e38)):
        x[5 + i] = size * np.linspace(-1, 1, k)
    x[12] = -0.0
    x[13] = np.resize([1e-3, -1], k)
    for clip in (1.0, 0.5):
        check(emulated, x, fmt, None, None, clip)
    check(emulated, x, fmt, 0.25)
    exponent = np.resize(np.arange(-128, 128), k).astype(np.int8)
    check(emulated, np.ones((2, k), np.float32), fmt, 0.25, exponent)
    check(emulated, np.full((1, k), 2.0**100, np.float32), fmt, 0.25, exponent)  # leaves the range: NaN


def test_every_exponent(emulated):
    """2^e of all of int8, subnormal ones included: x = 2^-e becomes one, as far as fp32 has it."""
    exponent = np.arange(-128, 128).astype(np.int8)
    x = np.ldexp(np.float32(1), np.minimum(-exponent.astype(np.int64), 127)).astype(np.float32)
    for fmt in fp4.FORMATS:
        check(emulated, x[None], fmt, 0.25, exponent)


@pytest.mark.parametrize("k", [4, 12, 20, 132])
def test_exponents_of_a_row_that_ends_inside_a_chunk(emulated, k):
    """fp32 rows of k = 4 modulo 8 start on 16 bytes, but their exponents end inside a chunk's eight."""
    exponent = np.arange(k).astype(np.int8) % 7 - 3
    check(emulated, r.normal(1, k), "e2m1", None, exponent)
    check(emulated, r.normal(3, k), "e3m0", 0.7, exponent)


def test_equals_the_cpu_kernels(emulated):
    x = r.normal(5, 640, dtype="bfloat16", seed=9)
    exponent = np.random.default_rng(0).integers(-3, 4, 640).astype(np.int8)
    for fmt in fp4.FORMATS:
        q, scale, _ = run(emulated, x, fmt, None, exponent, 0.9)
        of_cpu = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
        want = torch.ops.lowbit.quantize_fp4(of_cpu, fmt, None, torch.from_numpy(exponent), 0.9)
        compare.exact(q, want[0].numpy())
        compare.exact(scale, want[1].numpy())


def test_empty(emulated):
    assert "global" not in run(emulated, np.zeros((0, 64), np.float32), "e2m1")[2]
    q, scale, _ = run(emulated, np.zeros((5, 0), np.float32), "e2m1")
    assert q.size == 0 and (scale == 1).all()


@pytest.mark.parametrize(("rows", "k"), [(130, 64), (9, 512), (9, 1024), (2, 4096)])
@pytest.mark.parametrize("exponent", [False, True])
def test_counters(emulated, rows, k, exponent):
    """Every byte of x once, whole sectors, no bank conflicts."""
    e = np.zeros(k, np.int8) if exponent else None
    _, _, report = run(emulated, r.normal(rows, k, dtype="bfloat16"), "e2m1", None, e)
    assert report["wide"] and r.read_once(report, "x") and r.written_once(report, "q")
    assert r.ratio(report["global"]["ld.global"]) == 1 and r.free_of_conflicts(report)
    moved = report["global"]["st.global"]
    assert moved["bytes"] == rows * (k * 0.5 + 4) and moved["actual"] <= rows * k * 0.5 / 32 + rows


@pytest.mark.parametrize("seed", range(10))
def test_no_race(emulated, seed):
    rows, k = ((5, 96), (2, 1200), (1, 9000))[seed % 3]
    x = r.normal(rows, k, dtype="bfloat16")
    check(emulated, x, fp4.FORMATS[seed % 3], seed=seed, smem_base_mod=128 * (seed % 2))


# ---- FP4 nibbles as int8


@pytest.mark.parametrize("fmt", fp4.FORMATS)
@pytest.mark.parametrize("k", [1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 129, 576, 9000])
def test_codes_as_int8(emulated, fmt, k):
    """All codes in all places of a word, rows padded with zeros; the pad nibble may hold anything."""
    codes = (np.arange(3)[:, None] * 5 + np.arange(k)) % 16
    packed = fp4.pack(codes)
    if k % 2:
        packed[:, -1] |= 0x70
    for offset, pad, stride in ((0, 0, -(-k // 64) * 64), (1, 3, k + 5), (0, 16, -(-k // 16) * 16)):
        x, q = r.stored(packed, packed.shape[1] + pad, offset), r.raw(3 * stride, offset)
        report = emulated.convert_codes(
            fmt, x, 3, k, packed.shape[1] + pad, "int8", q, stride, None, {"seed": k}
        )
        want = np.zeros((3, stride), np.int8)
        want[:, :k] = fp4.integers(codes, fmt)
        np.testing.assert_array_equal(q.reshape(3, stride).view(np.int8), want)
        assert r.written_once(report, "q")
