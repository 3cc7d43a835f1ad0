"""The CUDA quantiser and code converter under the emulator: the bits of the contract."""

import itertools

import lowbit.ops  # noqa: F401 - registers torch.ops.lowbit
import numpy as np
import pytest
import torch

from tests.oracle import codec, compare
from tests.oracle import ops as oracle

from . import rows as r

OPS = torch.ops.lowbit
DEPTHS = (1, 2, 7, 8, 31, 32, 33, 63, 64, 65, 127, 128, 129, 509, 576, 1021, 1536)
ROWS = (1, 3, 7)
KINDS = (("packed4", 4), ("int8", 8), ("int8", 4), ("operand4", 4))


def stride_of(codes: str, k: int, pad: int) -> int:
    if codes == "packed4":
        return (k + 1) // 2 + pad
    return k + pad if codes == "int8" else -(-k // 64) * 32 + 32 * (pad > 8)


def expected(codes: np.ndarray, kind: str, stride: int) -> np.ndarray:
    """int [rows, k] in the layout; bytes that the kernel leaves alone hold 0xA5."""
    if kind == "operand4":
        return r.operand4(codes, stride)
    out = np.full((len(codes), stride), 0xA5 if kind == "packed4" else 0, np.uint8)
    packed = codec.pack_nibbles(codes) if kind == "packed4" else codes.astype(np.int8).view(np.uint8)
    out[:, : packed.shape[1]] = packed
    return out


def run(emulated, x, kind="packed4", bits=4, clip=1.0, shift=None, x_pad=0, q_pad=0, offset=0, **options):
    """(codes as bytes, scale, report) of x [rows, k]."""
    rows, k = x.shape
    name = next(n for n, t in r.DTYPES.items() if t == x.dtype)
    stride = stride_of(kind, k, q_pad)
    q, scale = r.raw(rows * stride, offset if kind != "operand4" else 0), np.full(rows, 113, np.float32)
    held = r.stored(x, k + x_pad, offset)
    before = held.copy()
    report = emulated.quantize(
        held, name, rows, k, k + x_pad, shift, kind, bits, clip, q, stride, scale, options
    )
    np.testing.assert_array_equal(held, before)
    return q.reshape(rows, stride), scale, report


def check(emulated, x, kind, bits, clip=1.0, shift=None, **more):
    q, scale, report = run(emulated, x, kind, bits, clip, shift, **more)
    h = x.astype(np.float32) if shift is None else x.astype(np.float32) - shift
    codes, want = oracle.quantize_exact(h, bits, clip)
    np.testing.assert_array_equal(scale.view(np.uint32), want.view(np.uint32))  # NaN: 0x7fc00000
    np.testing.assert_array_equal(q, expected(codes, kind, q.shape[1]))
    return report


@pytest.mark.parametrize("kind,bits", KINDS)
@pytest.mark.parametrize("k", DEPTHS)
def test_bits(emulated, kind, bits, k):
    """Every dtype, number of rows, alignment, padding, clip and shift, in turn."""
    shift = np.random.default_rng(k).standard_normal(k).astype(np.float32)
    turns = itertools.product(r.DTYPES, ROWS)
    for i, (dtype, rows) in enumerate(turns, start=k + bits):
        size = 4 if dtype == "float32" else 2
        check(
            emulated,
            r.normal(rows, k, dtype=dtype),
            kind,
            bits,
            clip=(1.0, 0.7)[i % 2],
            shift=(None, None, r.stored(shift[None]).view(np.float32))[i % 3],
            x_pad=(0, 5)[i % 5 == 0],
            q_pad=(0, 3, 16)[i % 3],
            offset=size * (i % 4 == 1),
            seed=i,
        )


@pytest.mark.parametrize(
    "rows,k,kind,bits,dtype",
    [
        (3, 4096, "packed4", 4, "bfloat16"),
        (1, 8192, "operand4", 4, "float16"),
        (1, 11008, "int8", 8, "bfloat16"),
        (1, 14336, "packed4", 4, "float32"),
        (1, 28672, "operand4", 4, "bfloat16"),
        (1, 32768, "int8", 4, "bfloat16"),
        (1, 33024, "packed4", 4, "bfloat16"),  # two rounds
        (1, 16387, "int8", 8, "float16"),  # two rounds, not aligned
    ],
)
def test_long_rows(emulated, rows, k, kind, bits, dtype):
    report = check(emulated, r.normal(rows, k, dtype=dtype), kind, bits, 0.9)
    assert report["team"]["size"] * report["team"]["vectors"] * report["team"]["rounds"] * 8 >= k
    assert r.written_once(report, "q") and r.written_once(report, "scale")
    assert r.read_once(report, "x") == (report["team"]["rounds"] == 1)


@pytest.mark.parametrize("kind,bits", KINDS)
def test_equals_the_cpu_kernels(emulated, kind, bits):
    x = r.normal(5, 640, dtype="bfloat16", seed=9)
    q, scale, _ = run(emulated, x, kind, bits, 0.9)
    op = OPS.quantize_int4 if bits == 4 else OPS.quantize_int8
    want, want_scale = op(torch.from_numpy(x.view(np.int16)).view(torch.bfloat16), 0.9)
    compare.exact(scale, want_scale.numpy())
    codes = codec.unpack_nibbles(want.numpy(), 640) if bits == 4 else want.numpy()
    np.testing.assert_array_equal(q, expected(codes, kind, q.shape[1]))


@pytest.mark.parametrize("kind,bits", KINDS)
@pytest.mark.parametrize("k", [7, 64, 1536])
def test_special_rows(emulated, kind, bits, k):
    """Zeros, NaN, infinities, the edge of tiny scales, ties, saturation."""
    x = np.zeros((16, k), np.float32)
    x[1, k // 2], x[2, k - 1], x[3, 0] = np.nan, np.inf, -np.inf
    x[4, 0] = -np.nan
    for i, size in enumerate((2.0**-149, 2.0**-130, 2.0**-124, 2.0**-123, 2.0**-118, 3.4e38)):
        x[5 + i] = size * np.linspace(-1, 1, k)
    top = 2 ** (bits - 1) - 1
    x[11] = np.resize([top, -top, 0.5, 1.5, -0.5, -1.5, 2.5], k)  # scale 1: ties go to even
    x[12] = -x[11]
    x[13] = -0.0
    x[14] = np.resize([1e-3, -1], k)
    for clip in (1.0, 0.5):
        check(emulated, x, kind, bits, clip)
    check(emulated, x[14:15], kind, bits, 1e-30)  # everything saturates


def test_empty(emulated):
    for rows, k in ((0, 64), (0, 0)):
        assert "global" not in run(emulated, np.zeros((rows, k), np.float32))[2]
    q, scale, _ = run(emulated, np.zeros((5, 0), np.float32))
    assert q.size == 0 and (scale == 1).all()
    q, scale, _ = run(emulated, np.zeros((2, 0), np.float32), "int8", 8, q_pad=16)
    assert (q == 0).all() and (scale == 1).all()


@pytest.mark.parametrize("rows,k", [(130, 64), (9, 512), (9, 1024), (2, 4096), (1, 11008)])
@pytest.mark.parametrize("dtype", r.DTYPES)
def test_counters(emulated, rows, k, dtype):
    """Every byte once, whole sectors, no bank conflicts; fp32 reads half sectors twice (L1 absorbs it)."""
    for kind, bits in KINDS:
        _, _, report = run(emulated, r.normal(rows, k, dtype=dtype), kind, bits)
        assert report["wide"] and r.read_once(report, "x") and r.written_once(report, "q")
        loads = report["global"]["ld.global"]
        assert loads["bytes"] == rows * k * (4 if dtype == "float32" else 2)
        assert r.ratio(loads) <= (2 if dtype == "float32" else 1)
        assert r.free_of_conflicts(report)
        moved = report["global"]["st.global"]
        assert moved["bytes"] == rows * (k * (1 if kind == "int8" else 0.5) + 4)
        assert moved["actual"] <= rows * k * (1 if kind == "int8" else 0.5) / 32 + rows


@pytest.mark.parametrize("seed", range(20))
def test_no_race(emulated, seed):
    rows, k = ((5, 96), (2, 1200), (1, 9000))[seed % 3]
    kind, bits = KINDS[seed % 4]
    x = r.normal(rows, k, dtype="bfloat16")
    check(emulated, x, kind, bits, seed=seed, smem_base_mod=128 * (seed % 2))


def test_teams(emulated):
    """Every row fits, short rows share a block, long ones do not waste a quarter of it."""
    for k in (*range(1, 2000), *range(2000, 140000, 487)):
        for wide in (True, False):
            t = emulated.quantize_team(-(-k // 8), wide)
            room = t["size"] * t["vectors"] * t["rounds"] * 8
            assert room >= k and t["size"] * t["rows"] <= 1024 and t["size"] * t["rows"] % 32 == 0
            assert t["size"] in (4, 8, 16, 32) or (t["rows"] == 1 and t["size"] % 32 == 0)
            assert k <= 1024 or room < k + 1024 * t["rounds"]  # less than a warp idle
            assert t["rounds"] == 1 or k > (32768 if wide else 16384)


def test_operand4_map(emulated):
    k = 200
    codes = np.arange(k) % 16
    out = np.zeros(-(-k // 64) * 32, np.int64)
    for i in range(k):
        byte, high = emulated.operand4_at(i)
        out[byte] |= codes[i] << (4 * high)
    np.testing.assert_array_equal(out.astype(np.uint8), r.operand4(codes[None], out.size)[0])


# ---- conversions


def convert(emulated, codes, source, target, x_pad=0, q_pad=0, offset=0, low=-8, **options):
    rows, k = codes.shape
    packed = codec.pack_nibbles(codes) if source == "packed4" else codes.astype(np.int8).view(np.uint8)
    if source == "packed4" and k % 2:
        packed[:, -1] ^= 0x50  # what the pad nibble holds must not matter
    x = r.stored(packed, packed.shape[1] + x_pad, offset)
    stride = stride_of(target, k, q_pad)
    q, flag = r.raw(rows * stride, offset), np.zeros(1, np.uint32)
    report = emulated.convert_codes(
        source, x, rows, k, packed.shape[1] + x_pad, target, q, stride, flag, options
    )
    return q.reshape(rows, stride), int(flag[0]), report


CONVERSIONS = [
    ("packed4", "int8"),
    ("packed4", "operand4"),
    ("int8", "int8"),
    ("int8", "operand4"),
    ("int8", "packed4"),
]


@pytest.mark.parametrize("source,target", CONVERSIONS)
def test_conversions(emulated, source, target):
    for i, k in enumerate((1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129, 576, 1024, 9000)):
        codes = np.random.default_rng(k).integers(-8, 8, (3, k))
        offset = 0 if target == "operand4" else i % 2
        x_pad, q_pad = (0, 3, 16)[i % 3], (0, 0, 16, 5)[i % 4]
        q, flag, _ = convert(emulated, codes, source, target, x_pad, q_pad, offset, seed=i)
        np.testing.assert_array_equal(q, expected(codes, target, q.shape[1]))
        assert flag == 0


def test_conversion_of_all_int8(emulated):
    codes = np.arange(-128, 128)[None]
    q, _, _ = convert(emulated, codes, "int8", "int8", q_pad=16)
    np.testing.assert_array_equal(q, expected(codes, "int8", q.shape[1]))
    for value in (-9, 8, 127, -128):
        bad = np.zeros((2, 40), np.int64)
        bad[1, 39] = value
        assert convert(emulated, bad, "int8", "packed4")[1] == 1


@pytest.mark.parametrize("source,target", CONVERSIONS)
def test_conversion_counters(emulated, source, target):
    codes = np.random.default_rng(0).integers(-8, 8, (17, 1024))
    _, _, report = convert(emulated, codes, source, target)
    assert r.read_once(report, "x") and r.written_once(report, "q")
    assert r.ratio(report["global"]["st.global"]) == 1
    # an int8 row makes nibbles from two loads of every other 16 bytes
    assert r.ratio(report["global"]["ld.global"]) == (2 if source == "int8" and target != "int8" else 1)
