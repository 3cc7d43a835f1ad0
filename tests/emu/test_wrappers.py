"""Each wrapper of csrc/ptx for sm_80 on random data against numpy."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from tests.emu import lane_tables as tables

SEEDS = [1, 2, 3]
# kind: elements per register, type of A, type of B
INTEGER = {
    0: (8, "s4", "s4"),
    1: (4, np.int8, np.int8),
    2: (4, np.uint8, np.int8),
    3: (4, np.int8, np.uint8),
}


def random_integers(rng, shape, dtype):
    if dtype == "s4":
        return rng.integers(-8, 8, shape).astype(np.int8)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def pack(values, lanes, e):
    """Elements in register order to 32-bit registers, the first in the low bits."""
    bits = 32 // e
    raw = values.reshape(lanes, -1, e).astype(np.int64) & ((1 << bits) - 1)
    return np.ascontiguousarray((raw << (bits * np.arange(e))).sum(-1).astype(np.uint32))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", INTEGER)
def test_integer_mma(emulated, kind, seed):
    rng = np.random.default_rng(seed)
    e, type_a, type_b = INTEGER[kind]
    a, b = random_integers(rng, (16, 8 * e), type_a), random_integers(rng, (8, 8 * e), type_b)
    c = rng.integers(-(2**31), 2**31, (16, 8))  # so that the sum wraps
    ra, rb = (
        pack(tables.scatter(a, tables.a_map(e)), 32, e),
        pack(tables.scatter(b, tables.b_map(e)), 32, e),
    )
    d = tables.scatter(c, tables.d_map()).astype(np.int32).reshape(32, 4)
    report = emulated.mma(kind, ra, rb, d, 1, {"seed": seed})
    expected = (c + a.astype(np.int64) @ b.astype(np.int64).T).astype(np.int32)
    assert np.array_equal(tables.gather(d, tables.d_map(), (16, 8)), expected)
    assert sum(n for name, n in report["instructions"].items() if name.startswith("mma.")) == 1


def float_mma(mma, kind, a, b, c):
    """c [16, 8] + a [16, 16] b [8, 16]^T of halves, as mma(kind, a, b, d, repeat) gives it."""
    ra = pack(tables.scatter(a.view(np.uint16), tables.a_map(2)), 32, 2)
    rb = pack(tables.scatter(b.view(np.uint16), tables.b_map(2)), 32, 2)
    d = np.ascontiguousarray(tables.scatter(c, tables.d_map()).reshape(32, 4))
    mma(kind, ra, rb, d, 1)
    return tables.gather(d, tables.d_map(), (16, 8))


@pytest.mark.parametrize("kind,dtype", [(4, np.float16), (5, ml_dtypes.bfloat16)])
def test_float_mma(emulated, kind, dtype):
    rng = np.random.default_rng(kind)
    a, b = (rng.integers(-64, 65, (n, 16)).astype(dtype) for n in (16, 8))  # exact sums: no order matters
    c = rng.integers(-64, 65, (16, 8)).astype(np.float32)
    expected = c + a.astype(np.float32) @ b.astype(np.float32).T
    assert np.array_equal(float_mma(lambda *v: emulated.mma(*v, {}), kind, a, b, c), expected)


def parts(x, least):
    """x as fraction * 2^exponent, in float64; the exponent of what is subnormal is `least`."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    exponent = np.maximum(exponent - 1, least)
    return np.ldexp(x.astype(np.float64), -exponent), np.where(fraction == 0, -1000, exponent)


def tensor_core(a, b, c, least, bits=24):
    """c [M, N] + a [M, K] b [N, K]^T: all terms cut `bits` behind the largest, rounded to zero."""
    (fa, ea), (fb, eb), (fc, ec) = parts(a, least), parts(b, least), parts(c, -126)
    terms = np.concatenate((fa[:, None] * fb[None], fc[:, :, None]), 2)
    exponents = np.concatenate((ea[:, None] + eb[None], ec[:, :, None]), 2)
    unit = exponents.max(2, keepdims=True) - bits
    total = np.trunc(np.ldexp(terms, np.maximum(exponents - unit, -200))).sum(2)
    fraction, exponent = np.frexp(total)
    return np.ldexp(np.trunc(np.ldexp(fraction, 24)), exponent - 24 + unit[..., 0]).astype(np.float32)


HALVES = [(4, np.float16, -14), (5, ml_dtypes.bfloat16, -126)]  # kind, type, least exponent


def far_apart(kind, dtype):
    """Operands of float_mma: subnormals among them, sums that cancel, terms far apart."""
    rng = np.random.default_rng(kind)
    for reach in (2, 8, 24):
        a, b = (
            (rng.standard_normal((n, 16)) * 2.0 ** rng.integers(-reach, reach / 3, (n, 16))).astype(dtype)
            for n in (16, 8)
        )
        b[:, 8:] = b[:, :8] * dtype(-1)
        c = (rng.standard_normal((16, 8)) * 2.0 ** rng.integers(-reach, 1, (16, 8))).astype(np.float32)
        yield a, b, c


@pytest.mark.parametrize("kind,dtype,least", HALVES)
def test_float_mma_adds_as_a_tensor_core(emulated, kind, dtype, least):
    seen = 0
    for a, b, c in far_apart(kind, dtype):
        got = float_mma(lambda *v: emulated.mma(*v, {}), kind, a, b, c)
        assert np.array_equal(got, tensor_core(a, b, c, least))
        seen += (got != (c + a.astype(np.float32) @ b.astype(np.float32).T)).sum()
    assert seen > 50  # plain fp32 sums are others


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_ldmatrix(emulated, matrices, trans, seed):
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, 512).astype(np.uint8)
    rows = (16 * rng.permutation(32)).astype(np.int32)
    out = np.zeros((32, 4), np.uint32)
    emulated.ldmatrix(matrices, trans, data, rows, out, {"seed": seed})
    expected = np.zeros((32, 4), np.uint32)
    for i in range(matrices):
        halves = np.stack([data[rows[8 * i + r] :][:16].view(np.uint16) for r in range(8)])  # [row, column]
        if trans:
            halves = halves.T
        expected[:, i] = np.ascontiguousarray(halves).view(np.uint32).reshape(32)
    assert np.array_equal(out[:, :matrices], expected[:, :matrices])


@pytest.mark.parametrize("trans", [False, True])
def test_stmatrix_undoes_ldmatrix(emulated, trans):
    rng = np.random.default_rng(5)
    data = rng.integers(0, 256, 512).astype(np.uint8)
    rows = (16 * rng.permutation(32)).astype(np.int32)
    registers, back = np.zeros((32, 4), np.uint32), np.zeros(512, np.uint8)
    emulated.ldmatrix(4, trans, data, rows, registers, {})
    emulated.stmatrix(trans, registers, rows, back, {})
    assert np.array_equal(back, data)


@pytest.mark.parametrize("seed", SEEDS)
def test_warp(emulated, seed):
    rng = np.random.default_rng(seed)
    v = rng.integers(0, 2**32, 32, dtype=np.uint32)
    n = rng.integers(0, 32, 32).astype(np.int32)
    out = np.zeros((12, 32), np.uint32)
    emulated.warp(v, n, out, {"seed": seed})
    lane = np.arange(32)
    assert np.array_equal(out[0], v[lane ^ n])
    assert np.array_equal(out[1], v[n])
    assert np.array_equal(out[2], v[np.where(lane - n >= 0, lane - n, lane)])
    assert np.array_equal(out[3], v[np.where(lane + n < 32, lane + n, lane)])
    assert np.array_equal(out[4], v[lane ^ 1])
    s = v.view(np.int32)
    ballot = int(sum(int(x & 1) << i for i, x in enumerate(v)))
    same = [
        v.sum(dtype=np.uint32),
        s.max().view(np.uint32),
        s.min().view(np.uint32),
        v.max(),
        np.bitwise_or.reduce(v),
        ballot,
        2 * (ballot != 0) + (ballot == 2**32 - 1),
    ]
    assert all((row == x).all() for row, x in zip(out[5:], same, strict=True))


@pytest.mark.parametrize("seed", SEEDS)
def test_cp_async(emulated, seed):
    rng = np.random.default_rng(seed)
    src = rng.integers(1, 256, (32, 16)).astype(np.uint8)
    sizes = rng.integers(0, 17, 32).astype(np.int32)
    out = np.zeros((4, 32, 16), np.uint8)
    report = emulated.cp_async(src, sizes, out, {"seed": seed})
    for row, size in zip(range(4), (4, 8, 16, 16), strict=True):
        keep = np.arange(16) < np.minimum(sizes, size)[:, None]
        assert np.array_equal(out[row], np.where(keep, src, 0))
    # nothing past src_bytes is read: each byte four times at most, and not at all where no size covers it
    assert report["buffers"]["src"]["bytes_read"] == sum(
        int(np.minimum(sizes, s).sum()) for s in (4, 8, 16, 16)
    )


def test_memory(emulated):
    data = np.random.default_rng(0).integers(0, 256, 5 * 512).astype(np.uint8)
    out = np.zeros_like(data)
    report = emulated.memory(data, out, {})
    assert np.array_equal(out, data)
    assert report["buffers"]["in"]["read_min"] == report["buffers"]["in"]["read_max"] == 1
    assert report["buffers"]["out"]["write_min"] == report["buffers"]["out"]["write_max"] == 1
    assert report["global"]["ld.global"]["actual"] == report["global"]["ld.global"]["ideal"] == 5 * 512 // 32


def prmt(a, b, selector):
    pool = [(a >> (8 * i)) & 255 for i in range(4)] + [(b >> (8 * i)) & 255 for i in range(4)]
    out = 0
    for n in range(4):
        s = (selector >> (4 * n)) & 15
        byte = pool[s & 7]
        out |= ((255 if byte & 128 else 0) if s & 8 else byte) << (8 * n)
    return out


def fma_half(dtype, a, b, c):
    """a * b + c of fp16 or bf16 bit patterns in rational arithmetic, rounded once to nearest even."""
    x, y, z = (float(np.uint16(v).view(dtype)) for v in (a, b, c))
    least, fraction = (-14, 10) if dtype is np.float16 else (-126, 7)
    infinity = 0x7C00 if dtype is np.float16 else 0x7F80
    if not all(map(math.isfinite, (x, y, z))):
        special = np.array(x, np.float64) * y + z
        return infinity + (1 << fraction >> 1) if np.isnan(special) else infinity | (special < 0) << 15
    exact = Fraction(x) * Fraction(y) + Fraction(z)
    if not exact:  # the sign of zero: negative only if both terms are
        return 0x8000 * (math.copysign(1, x) * math.copysign(1, y) < 0 and math.copysign(1, z) < 0)
    size, sign = abs(exact), 0x8000 * (exact < 0)
    exponent = max(size.numerator.bit_length() - size.denominator.bit_length() - 1, least)
    if size >= Fraction(2) ** (exponent + 1):
        exponent += 1
    steps = round(size / Fraction(2) ** (exponent - fraction))  # Python rounds ties to even
    return sign | min((max(exponent - least, 0) << fraction) + steps, infinity)


def signed(x, bits):
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_bits(emulated):
    rng = np.random.default_rng(0)
    n = 512
    a, b, c = (rng.integers(0, 2**32, n, dtype=np.uint32) for _ in range(3))
    a[:64] = (rng.standard_normal(64) * 1000).astype(np.float32).view(np.uint32)
    a[:16] = (np.arange(16) / 2 - 4).astype(np.float32).view(np.uint32)  # ties
    a[16:20] = np.array([3e9, -3e9, np.nan, np.inf], np.float32).view(np.uint32)
    b[:64] = (rng.standard_normal(64) * 10).astype(np.float32).view(np.uint32)
    out = np.zeros((18, n), np.uint32)
    emulated.bits(a, b, c, out, {})
    ints = [tuple(int(v) for v in t) for t in zip(a, b, c, strict=True)]
    assert out[0].tolist() == [prmt(x, y, z) for x, y, z in ints]
    assert np.array_equal(out[1], (a & b) | c) and np.array_equal(out[2], a ^ b ^ c)
    dots = [
        z + sum(signed(x >> (8 * i), 8) * signed(y >> (8 * i), 8) for i in range(4)) & 0xFFFFFFFF
        for x, y, z in ints
    ]
    assert out[3].tolist() == dots
    for row, bits, shift in ((4, 8, 22), (5, 4, 27)):
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        packed = []
        for x, y, z in ints:
            first, second = (min(max(signed(v, 32) >> shift, low), high) & ((1 << bits) - 1) for v in (x, y))
            packed.append(((z << (2 * bits)) | (first << bits) | second) & 0xFFFFFFFF)
        assert out[row].tolist() == packed
    fa, fb = a.view(np.float32), b.view(np.float32)

    def same(row, expected):
        got = out[row].view(np.float32)
        assert np.array_equal(got, expected.astype(np.float32), equal_nan=True)

    same(6, fa * fb)
    same(7, fa + fb)
    same(8, fa / fb)
    same(10, a.view(np.int32).astype(np.float32))
    same(13, a.astype(np.uint16).view(np.float16).astype(np.float32))
    same(14, np.rint(fa))
    same(15, np.where(np.isnan(fa), fb, np.where(np.isnan(fb), fa, np.maximum(fa, fb))))
    clipped = np.clip(np.nan_to_num(np.rint(fa.astype(np.float64)), nan=0), -(2**31), 2**31 - 1)
    assert np.array_equal(out[9].view(np.int32), clipped.astype(np.int64).astype(np.int32))
    for row, dtype in ((11, np.float16), (12, ml_dtypes.bfloat16)):
        got = np.ascontiguousarray(out[row]).view(np.uint16).view(dtype).astype(np.float32).reshape(n, 2)
        expected = np.stack([fa, fb], 1).astype(dtype).astype(np.float32)
        assert np.array_equal(got, expected, equal_nan=True)
    x, y, z = (np.ascontiguousarray(v).view(np.uint16) for v in (a, b, c))
    for row, dtype in ((16, np.float16), (17, ml_dtypes.bfloat16)):
        got = np.ascontiguousarray(out[row]).view(np.uint16)
        triples = zip(x, y, z, strict=True)
        expected = np.array([fma_half(dtype, *(int(v) for v in t)) for t in triples], np.uint16)
        nan = np.isnan(got.view(dtype).astype(np.float32))
        assert np.array_equal(nan, np.isnan(expected.view(dtype).astype(np.float32)))
        assert np.array_equal(got[~nan], expected[~nan])


@pytest.mark.parametrize("seed", SEEDS)
def test_ticket(emulated, seed):
    x = np.random.default_rng(seed).integers(-(2**31), 2**31, (9, 32)).astype(np.int32)
    total, ticket, y = np.zeros(32, np.int32), np.zeros(1, np.uint32), np.zeros(32, np.int32)
    emulated.ticket(x, total, ticket, y, True, {"seed": seed})
    assert np.array_equal(y, (2 * x.astype(np.int64).sum(0)).astype(np.int32)) and ticket[0] == 9


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plain_counter_is_no_ticket(emulated, seed):
    x = np.ones((9, 32), np.int32)
    total, ticket, y = np.zeros(32, np.int32), np.zeros(1, np.uint32), np.zeros(32, np.int32)
    race = r"(ld.global reads|red.global.add writes) .* of block \d+ (writes with red|reads with ld.global)"
    with pytest.raises(emulated.Violation, match=race):
        emulated.ticket(x, total, ticket, y, False, {"seed": seed})


@pytest.mark.parametrize("seed", range(1, 9))
def test_named_barrier(emulated, seed):
    out = np.zeros(32, np.uint32)
    emulated.named_barrier(out, {"seed": seed})
    assert out.tolist() == list(range(100, 132))


@pytest.mark.parametrize("rows", [1, 16, 37])
def test_example(emulated, rows):
    rng = np.random.default_rng(rows)
    x = rng.integers(-128, 128, (rows, 192)).astype(np.int8)
    w = rng.integers(-128, 128, (8, 192)).astype(np.int8)
    y = np.zeros((rows, 8), np.int32)
    report = emulated.example_int8_gemm(x, w, y, {})
    assert np.array_equal(y, x.astype(np.int64) @ w.T.astype(np.int64))
    assert report["shared"]["ldmatrix"]["actual"] == report["shared"]["ldmatrix"]["ideal"]
    assert report["buffers"]["x"]["read_min"] == report["buffers"]["x"]["read_max"] == 1


def test_the_seed_repeats(emulated):
    x = np.ones((9, 32), np.int32)
    runs = []
    for _ in range(2):
        total, ticket, y = np.zeros(32, np.int32), np.zeros(1, np.uint32), np.zeros(32, np.int32)
        with pytest.raises(emulated.Violation) as caught:
            emulated.ticket(x, total, ticket, y, False, {"seed": 11})
        runs.append(str(caught.value))
    assert runs[0] == runs[1]
