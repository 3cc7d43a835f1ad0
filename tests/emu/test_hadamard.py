"""The CUDA transform under the emulator, plain and quantised: the bits of the contract."""

import lowbit.ops  # noqa: F401 - registers torch.ops.lowbit
import numpy as np
import pytest
import torch

from tests.oracle import codec
from tests.oracle import fused as fused_rows
from tests.oracle import hadamard as had
from tests.oracle import ops as oracle

from . import rows as r
from .test_fused_rows import codes_of
from .test_quantize import expected

OPS = torch.ops.lowbit
UNROLLED = (12, 20, 28, 36, 44, 52, 60)
KINDS = (("packed4", 4), ("int8", 8), ("int8", 4), ("operand4", 4))
# (size, block): powers of two, every kind of K-factor with two below, at and above a warp's columns, blocks
SIZES = [
    *((n, None) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)),
    *((n, None) for n in (12, 20, 24, 28, 36, 40, 96, 156, 172, 344, 576, 768, 1536, 2560, 2304, 2816, 3328)),
    *((96, 32), (576, 64), (576, 192), (1536, 128), (1536, 512), (640, 128), (520, 8), (77, 1), (72, 36)),
    (2048, 512),
]  # fmt: skip
MODEL_SIZES = [8192, 11008, 14336, 16384, 28672, 32768]


def table(order: int, transposed: bool) -> np.ndarray:
    """Signs [K, K/4, 4] for s * ((x0 + p1 x1) + q (x2 + p3 x3)) = (p1, p3, q, s)."""
    if order == 1:
        return r.raw(16).view(np.float32)
    h = had.matrix(order).T if transposed else had.matrix(order)
    x0, x1, x2, x3 = (h[:, i::4] for i in range(4))
    out = r.raw(order * order * 4).view(np.float32)
    out[:] = np.stack([x1 * x0, x3 * x2, x2 * x0, x0], axis=-1).astype(np.float32).ravel()
    return out


def call(emulated, x, block, transposed, scale, out, offset, sm, sms, options):
    rows, width = x.shape
    n = width // 2 if "activation" in out else width
    name = next(k for k, t in r.DTYPES.items() if t == x.dtype)
    order, two = had.factor(block or n)
    held = r.stored(x, width, offset)
    report = emulated.hadamard(
        held, name, rows, n, order, two, transposed, scale, table(order, transposed), out, sm, sms, options
    )
    return report, held


def plain(
    emulated, x, block=None, transposed=False, scale=0.37, offset=0, sm=90, sms=132, in_place=False, **options
):
    """(y, report), y checked against the oracle's fp32 order rounded once."""
    y = r.raw(x.nbytes, offset)
    out = {} if in_place else {"y": y}
    report, held = call(emulated, x, block, transposed, scale, out, offset, sm, sms, options)
    y = (held if in_place else y).view(x.dtype).reshape(x.shape)
    want = had.transform_fp32(x.astype(np.float32), scale, block, transposed).astype(x.dtype)
    view = np.uint32 if x.itemsize == 4 else np.uint16
    np.testing.assert_array_equal(y.view(view), want.view(view))
    return y, report


def fused(
    emulated, x, kind, bits, clip=1.0, block=None, shift=None, q_pad=0, offset=0, sm=90, sms=132,
    activation=None, **options,
):  # fmt: skip
    """(codes as bytes, scale, report), checked against the oracle. activation: x holds gates and ups."""
    rows, n = x.shape[0], x.shape[1] // 2 if activation else x.shape[1]
    stride = (n + 1) // 2 if kind == "packed4" else n + q_pad if kind == "int8" else -(-n // 64) * 32
    q, scale = r.raw(rows * stride), np.full(rows, 113, np.float32)
    held = None if shift is None else r.stored(shift[None]).view(np.float32)
    norm = (block or n) ** -0.5
    out = {"codes": kind, "bits": bits, "clip": clip, "q": q, "stride": stride, "scale": scale, "shift": held}
    out |= {"activation": activation} if activation else {}
    report, _ = call(emulated, x, block, False, norm, out, offset, sm, sms, options)
    h = fused_rows.gated(x, activation) if activation else x.astype(np.float32)
    h = h - (0 if shift is None else shift)
    codes, want = oracle.quantize_exact(had.transform_fp32(h, norm, block), bits, clip)
    np.testing.assert_array_equal(scale.view(np.uint32), want.view(np.uint32))
    if kind == "operand4":
        expected = r.operand4(codes, stride)
    else:
        packed = codec.pack_nibbles(codes) if kind == "packed4" else codes.astype(np.int8).view(np.uint8)
        expected = np.zeros((rows, stride), np.uint8)
        expected[:, : packed.shape[1]] = packed
    np.testing.assert_array_equal(q.reshape(rows, stride), expected)
    return q, scale, report


ADJUSTED = [(64, None), (96, 32), (128, None), (576, 64), (1000, 8), (1024, None), (1536, 128), (77, 1),
            (2048, None), (2304, None), (11008, None)]  # fmt: skip


@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
@pytest.mark.parametrize("n,block", [*ADJUSTED, (14336, None)])
def test_adjusted_and_static(emulated, n, block, activation):
    """Gated or not; after the transform an index, a factor, a shift, each or none; static codes or a scale
    of the row."""
    order, two = had.factor(block or n)
    rng = np.random.default_rng(n)
    for i, (kind, bits) in enumerate(KINDS * 2):
        dtype, clip = ("float32", "bfloat16", "float16")[i % 3], (None, 0.9)[i // 4]
        rows = 3 if n < 4096 else 1
        x = r.normal(rows, 2 * n if activation else n, dtype=dtype, seed=i)
        n_out = (n, n + 40, max(1, n - 3))[i % 3] if i % 2 else n
        index = np.sort(rng.integers(0, n, n_out)).astype(np.int32) if i % 2 else None
        factor = rng.uniform(0.5, 4, n_out).astype(np.float32) if i % 4 != 1 else None
        after = rng.uniform(-1, 1, n_out).astype(np.float32) if i % 3 else None
        stride = (n_out + 1) // 2 if kind == "packed4" else n_out if kind == "int8" else -(-n_out // 64) * 32
        q, scale = r.raw(rows * stride), np.full(rows if clip else 0, 113, np.float32)
        out = {"codes": kind, "bits": bits, "clip": clip or 0.0, "q": q, "stride": stride, "scale": scale}
        out |= {"shift": None, "n_out": n_out} | ({"activation": activation} if activation else {})
        for name, column in (("index", index), ("factor", factor), ("after", after)):
            if column is not None:
                out[name] = r.stored(column[None], offset=4 * (i == 3))
        norm = float(np.float32(1 / np.sqrt(order * two)))
        offset = x.itemsize * (i % 4 == 2)  # element by element
        report, _ = call(emulated, x, block, False, norm, out, offset, (90, 80)[i % 2], 132, {"seed": i})
        assert r.read_once(report, "x")
        v = fused_rows.gated(x, activation) if activation else x.astype(np.float32)
        v = fused_rows.rotated(v, block or 0)
        codes, want = codes_of(fused_rows.scaled(v, index, factor, after), bits, clip)
        if clip:
            np.testing.assert_array_equal(scale.view(np.uint32), want.view(np.uint32))
        np.testing.assert_array_equal(q.reshape(rows, stride), expected(codes, kind, stride))


@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
@pytest.mark.parametrize("n,block", [*ADJUSTED, (14336, None)])
def test_floats(emulated, n, block, activation):
    """Rows of the values themselves, rounded once: gated or not, adjusted or not, aligned or not, padded."""
    order, two = had.factor(block or n)
    norm = float(np.float32(1 / np.sqrt(order * two)))
    for i, dtype in enumerate(r.DTYPES):
        rows, pad = 5 if n < 4096 else 2, (0, 0, 8)[i]
        x = r.normal(rows, 2 * n if activation else n, dtype=dtype, seed=i)
        v = fused_rows.gated(x, activation) if activation else x.astype(np.float32)
        v = fused_rows.rotated(v, block or 0)
        start, stride = x.itemsize * ((n // 4 + i) % 4 == 0), x.itemsize * (n + pad)
        out = {"codes": "floats", "bits": 8, "clip": 0.0, "q": r.raw(rows * stride, start), "stride": stride}
        out |= {"scale": np.zeros(0, np.float32), "shift": None}
        out |= {"activation": activation} if activation else {}
        if i == 1:  # not an op's, but the kernel's
            factor = np.random.default_rng(n).uniform(0.5, 4, n).astype(np.float32)
            out["factor"], v = r.stored(factor[None]), v * factor
        for sm, sms in ((90, 132), (86, 1)):
            report, _ = call(emulated, x, block, False, norm, out, start, sm, sms, {"seed": i})
            np.testing.assert_array_equal(out["q"].reshape(rows, stride), r.floats(v, x.dtype, stride))
            assert r.read_once(report, "x") and r.written_once(report, "q")
            assert r.free_of_conflicts(report) or start or pad or n % 64


@pytest.mark.parametrize("n,block", SIZES)
def test_bits(emulated, n, block):
    """Every dtype, number of rows and alignment in turn, and the transpose."""
    for i, dtype in enumerate(r.DTYPES):
        rows = (1, 3, 5)[(i + n) % 3] if n > 100 else (1, 37, 130)[(i + n) % 3]
        x = r.normal(rows, n, dtype=dtype, seed=i)
        offset = x.itemsize * ((n // 4 + i) % 3 == 0)
        plain(emulated, x, block, i == 1, offset=offset, seed=i, sms=(1, 132)[i % 2])


@pytest.mark.parametrize("n", MODEL_SIZES)
def test_model_sizes(emulated, n):
    for i, dtype in enumerate(("bfloat16", "float32")):
        _, report = plain(emulated, r.normal(1, n, dtype=dtype, seed=n), scale=n**-0.5, seed=i)
        assert report["config"]["shared"] and r.written_once(report, "y")
        assert r.read_once(report, "x")


@pytest.mark.parametrize("n,block", SIZES[1::2])
def test_in_place(emulated, n, block):
    plain(emulated, r.normal(3, n, dtype="bfloat16"), block, in_place=True)


@pytest.mark.parametrize("order", UNROLLED)
def test_signs(emulated, order):
    h = np.array([[1 - 2 * (row >> i & 1) for i in range(order)] for row in emulated.hadamard_signs(order)])
    np.testing.assert_array_equal(h, had.matrix(order))
    np.testing.assert_array_equal(h, OPS.hadamard(torch.eye(order)).numpy().T)


@pytest.mark.parametrize("order", UNROLLED)
@pytest.mark.parametrize("two", [64, 256])
def test_unrolled(emulated, order, two):
    n = order * two
    for blocks in (1, 2):
        _, report = plain(emulated, r.normal(1, n * blocks, dtype="bfloat16"), n)
        assert report["config"]["mix"] == ("small" if order <= 28 else "large")
        fused(emulated, r.normal(1, n * blocks, dtype="float16"), "packed4", 4, 0.9, n)


@pytest.mark.parametrize("two", [32, 64, 128])
def test_williamson(emulated, two):
    """K = 172: 43 additions per element, with no bank conflict, and 53 places read for every 11."""
    n = 172 * two
    x = r.normal(2, n, dtype="bfloat16")
    for report in (plain(emulated, x, sms=1)[1], fused(emulated, x, "packed4", 4, 0.9, sms=1)[2]):
        assert report["config"]["mix"] == "williamson"
        assert r.read_once(report, "x") and r.free_of_conflicts(report)
        moved = sum(c["bytes"] for c in report["shared"].values()) / (4 * 2 * n)
        assert moved < 13  # the table mix: 27


def test_wild_values(emulated):
    """NaN and infinity spread over their block and no further; signed zeros come out as on the CPU."""
    for n, block in ((64, None), (576, None), (1536, None), (5504, None), (4096, 128)):
        x = r.normal(4, n)
        x[1, n // 3], x[2, 5] = np.nan, np.inf
        x[3] = -0.0
        y = r.raw(x.nbytes)
        call(emulated, x, block, False, 1.0, {"y": y}, 0, 90, 132, {})
        y = y.view(np.float32).reshape(x.shape)
        want = OPS.hadamard(torch.from_numpy(x), 1.0, block).numpy()
        np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
        ok = ~np.isnan(want)
        np.testing.assert_array_equal(y[ok].view(np.uint32), want[ok].view(np.uint32))
        for kind, bits in KINDS[:2]:
            fused(emulated, x, kind, bits, 0.9, block)


@pytest.mark.parametrize("kind,bits", KINDS)
@pytest.mark.parametrize("n,block", SIZES)
def test_quantised(emulated, n, block, kind, bits):
    i = n + bits
    dtype = list(r.DTYPES)[i % 3]
    shift = np.random.default_rng(n).standard_normal(n).astype(np.float32) if i // 4 % 3 else None
    rows = (1, 3, 5)[i % 3] if n > 100 else (1, 37, 130)[i % 3]
    x = r.normal(rows, n, dtype=dtype)
    offset = x.itemsize * (i // 4 % 4 == 0)
    clip, q_pad = (1.0, 0.8)[i // 8 % 2], (0, 5, 24)[i % 3]
    fused(emulated, x, kind, bits, clip, block, shift, q_pad, offset, seed=i, sms=i % 7 + 1)


@pytest.mark.parametrize("n", MODEL_SIZES)
def test_quantised_model_sizes(emulated, n):
    kind, bits = KINDS[n // 512 % 4]
    x = r.normal(1, n, dtype="bfloat16", seed=n)
    _, _, report = fused(emulated, x, kind, bits, 0.95)
    assert report["config"]["shared"] and r.read_once(report, "x") and r.written_once(report, "q")


@pytest.mark.parametrize(
    "n,block", [(28672, None), (32768, None), (16384, 128), (18944, None), (36864, None)]
)
def test_rows_beyond_shared_memory(emulated, n, block):
    """On sm_86 and 89 they go through a workspace in global memory; on 9.0 those past 58 k do."""
    x = r.normal(2, n, dtype="bfloat16")
    _, report = plain(emulated, x, block, sm=86, sms=1)
    assert report["config"]["shared"] == (block is not None)
    both = r.normal(1, 2 * n, dtype="float16")
    fused(emulated, both, "int8", 8, 1.0, block, sm=86, sms=1, activation="silu")
    _, _, report = fused(emulated, x, "operand4", 4, 0.9, block, sm=86, sms=1)
    assert not report["config"]["shared"] or n * 4 < 101376


@pytest.mark.parametrize(
    "n,block", [(64, None), (256, None), (1536, None), (4096, None), (7168, None), (4096, 128)]
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_counters(emulated, n, block, dtype):
    """Each byte once, whole sectors, no bank conflicts, and as many passes as the README counts."""
    rows = max(1, 4096 // n) * 2
    size = 4 if dtype == "float32" else 2
    x = r.normal(rows, n, dtype=dtype)
    both = r.normal(rows, 2 * n, dtype=dtype)
    quantised = fused(emulated, x, "packed4", 4, 1.0, block, sms=1)[2]
    gated = fused(emulated, both, "packed4", 4, 1.0, block, sms=1, activation="silu")[2]
    for report in (plain(emulated, x, block, sms=1)[1], quantised, gated):
        assert r.read_once(report, "x") and r.free_of_conflicts(report)
        assert report["global"]["ld.global"]["bytes"] == rows * n * size * (2 if report is gated else 1)
        assert r.ratio(report["global"]["ld.global"]) == (1 if size == 2 else 2)  # fp32: half sectors, twice
        out = report["buffers"].get("y") or report["buffers"]["q"]
        assert out["write_min"] == out["write_max"] == 1
    _, report = plain(emulated, x, block, sms=1)
    assert r.ratio(report["global"]["st.global"]) == 1
    order, two = had.factor(block or n)
    moved = sum(c["bytes"] for c in report["shared"].values()) / (4 * rows * n)
    stages = two.bit_length() - 1
    passes = 1 + 2 * (stages > 3) + 1  # into the tile, strides 8 .. 128 in place, the last read
    assert moved == passes + (2 if order > 1 and stages > 8 else 0)


@pytest.mark.parametrize("seed", range(20))
def test_no_race(emulated, seed):
    n, block = ((512, None), (1536, None), (2048, 128), (344, None))[seed % 4]
    kind, bits = KINDS[seed % 3]
    x = r.normal(3, n, dtype="bfloat16", seed=seed)
    more = {"seed": seed, "smem_base_mod": 128 * (seed % 2), "sms": 1}
    plain(emulated, x, block, **more)
    fused(emulated, x, kind, bits, 0.9, block, **more)
    both = r.normal(3, 2 * n, dtype="bfloat16", seed=seed)
    fused(emulated, both, kind, bits, 0.9, block, **more, activation="gelu_tanh")
    if seed < 4:
        plain(emulated, r.normal(2, 26624, dtype="bfloat16", seed=seed), None, sm=86, sms=1, seed=seed)


def test_configs(emulated):
    """Every size fits; model rows leave room for two blocks on an H100."""
    orders = [1, *(k for k in range(12, 2100, 4) if k & (k - 1)), 5004, 32764]
    for order in orders:
        for two in (2**m for m in range(16) if order * 2**m <= 32768):
            n = order * two
            for quantised in (False, True):
                c = emulated.hadamard_config("bfloat16", 4096, n, order, two, quantised, False, 90, 132)
                assert c["shared"] or (c["mix"] in ("table", "williamson") and n > 28672)
                assert c["shared_bytes"] <= 232448 and 32 <= c["threads"] <= 512 and c["threads"] % 32 == 0
                assert c["tile"] % n == 0 and c["tile"] * c["tiles"] >= 4096 * n
                assert c["words"] % 1024 == 0 and c["tile"] <= c["words"] < c["tile"] + 1024
                if c["mix"] in ("none", "small") and n <= 28672:
                    assert 2 * (c["shared_bytes"] + 1024) <= 228 * 1024
    c = emulated.hadamard_config("bfloat16", 1, 28672, 28, 1024, True, False, 90, 132)
    assert "unrolled" in c["text"]


def test_tile_map(emulated):
    """A permutation of 1024 words that keeps fours together, and free of conflicts as its header says."""
    place = np.array([emulated.hadamard_place(e) for e in range(4096)])
    assert sorted(place) == list(range(4096)) and (place // 1024 == np.arange(4096) // 1024).all()
    assert (place.reshape(-1, 4) == place[::4, None] + np.arange(4)).all()
    lane = np.arange(32)
    for i in range(32):  # strides 8 .. 128
        assert len(set(place[256 * (lane // 8) + 8 * i + lane % 8] % 32)) == 32
    for quarter in range(4):  # chunks of eight, half by half
        for half in range(2):
            e = 8 * lane[8 * quarter : 8 * quarter + 8] + 4 * half
            assert len(set(place[e] // 4 % 8)) == 8
