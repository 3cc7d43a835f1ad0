"""RMSNorm, gated activations and static scales fused with the quantiser: the bits of the contract."""

import itertools

import numpy as np
import pytest

from tests.oracle import fused
from tests.oracle import ops as oracle

from . import rows as r
from .test_quantize import KINDS, expected, stride_of

F32 = np.float32
SHARED = 166912


def run(emulated, kind, x, fmt="packed4", bits=4, clip=None, k_out=None, eps=1e-5, offset=0.0, **more):
    """(codes or floats as bytes, scale or None, sum or None, report). clip None: static. `more`: the other
    inputs, pads, activation, start (of every buffer, in bytes), shared, and options of the emulator.
    """
    rows, width = x.shape
    k = width // 2 if kind == "gated" else width
    index = more.pop("index", None)
    k_out = k if index is None else len(index)
    start = more.pop("start", 0)
    stride = stride_of("int8" if fmt == "floats" else fmt, k_out, more.pop("q_pad", 0))
    stride *= x.itemsize if fmt == "floats" else 1
    name = next(n for n, t in r.DTYPES.items() if t == x.dtype)
    inputs = {"x": r.stored(x, offset=start)}
    out = {"q": r.raw(rows * stride, more.pop("q_start", start) if fmt != "operand4" else 0)}
    if index is not None:
        inputs["index"] = r.stored(np.asarray(index, np.int32)[None], offset=2 * start)
    for each in ("factor", "shift"):
        value = more.pop(each, None)
        if value is not None:
            inputs[each] = r.stored(value[None], offset=2 * start)
    residual = more.pop("residual", None)
    if residual is not None:
        inputs["residual"] = r.stored(residual, offset=start)
        out["sum"] = r.raw(x.nbytes, start)
    if clip is not None:
        out["scale"] = np.full(rows, 113, F32)
    report = emulated.fused_rows(
        kind,
        name,
        rows,
        k,
        k_out,
        inputs,
        out,
        fmt,
        bits,
        clip or 0.0,
        stride,
        eps,
        offset,
        more.pop("activation", "silu"),
        more.pop("shared", SHARED),
        more,
    )
    total = out["sum"].view(x.dtype).reshape(x.shape) if residual is not None else None
    return out["q"].reshape(rows, stride), out.get("scale"), total, report


def codes_of(v, bits, clip):
    """(codes, scale or None) of v; clip None: static."""
    return (fused.static_codes(v, bits), None) if clip is None else oracle.quantize_exact(v, bits, clip)


def check(emulated, kind, x, fmt="packed4", bits=4, clip=None, **more):
    """Everything equal to the oracle, bit for bit; returns the report."""
    q, scale, total, report = run(emulated, kind, x, fmt, bits, clip, **more)
    factor, shift, index = more.get("factor"), more.get("shift"), more.get("index")
    if kind == "norm":
        s = x if more.get("residual") is None else fused.added(x, more["residual"])
        if total is not None:
            np.testing.assert_array_equal(total.view(np.uint8), s.view(np.uint8))
        v = fused.normalised(s, factor, more.get("eps", 1e-5), index, more.get("offset", 0.0))
        v = fused.scaled(v, shift=shift)
    else:
        v = fused.gated(x, more.get("activation", "silu")) if kind == "gated" else x.astype(F32)
        v = fused.scaled(v, index, factor, shift)
    if fmt == "floats":
        np.testing.assert_array_equal(q, r.floats(v, x.dtype, q.shape[1]))
        return report
    codes, want = codes_of(v, bits, clip)
    if clip is not None:
        np.testing.assert_array_equal(scale.view(np.uint32), want.view(np.uint32))
    np.testing.assert_array_equal(q, expected(codes, fmt, q.shape[1]))
    if codes.shape[1] >= 64 and (kind == "norm" or clip is not None):
        assert len(np.unique(codes)) > 4  # not all clamped or zero
    return report


def column(k, seed, low=0.5, high=4.0):
    """k positive factors."""
    return np.random.default_rng((k, seed)).uniform(low, high, k).astype(F32)


def some_index(k, k_out, seed=0):
    """Mostly in order, with repeats and omissions, as a reconstructed dimension is."""
    rng = np.random.default_rng((k, k_out, seed))
    return np.sort(rng.integers(0, k, k_out)) if seed % 2 else rng.integers(0, k, k_out)


DEPTHS = (1, 2, 7, 8, 31, 33, 64, 65, 127, 128, 136, 255, 509, 512, 520, 576, 1021, 1024, 1536)


@pytest.mark.parametrize("kind", ["norm", "gated", "plain"])
@pytest.mark.parametrize("k", DEPTHS)
def test_bits(emulated, kind, k):
    """Every dtype, layout, alignment, with and without each of the steps, in turn."""
    turns = itertools.product(r.DTYPES, KINDS)
    for i, (dtype, (fmt, bits)) in enumerate(turns, start=k):
        rows = (1, 3, 5)[i % 3]
        k_out = (k, k + 8, max(1, k - 3), 2 * k)[i % 4] if i % 2 else k
        more = {
            "q_pad": (0, 3, 16)[i % 3],
            "start": (4 if dtype == "float32" else 2) * (i % 5 == 1),
            "seed": i,
        }
        if i % 2:
            more["index"] = some_index(k, k_out, i)
        if kind == "norm" or i % 3:
            more["factor"] = column(k_out, i)
        if i % 4 > 1:
            more["shift"] = column(k_out, i, -1, 1)
        x = r.normal(rows, 2 * k if kind == "gated" else k, dtype=dtype, seed=i)
        if kind == "norm":
            more |= {"eps": (1e-5, 1e-6)[i % 2], "offset": (0.0, 1.0)[i % 7 == 0]}
            if i % 3 != 1:
                more["residual"] = r.normal(rows, k, dtype=dtype, seed=i + 99)
        if kind == "gated":
            more["activation"] = ("silu", "gelu_tanh")[i % 2]
        check(emulated, kind, x, fmt, bits, (None, 1.0, 0.8)[i % 3], **more)


@pytest.mark.parametrize("kind", ["norm", "gated"])
@pytest.mark.parametrize("k", DEPTHS)
def test_floats(emulated, kind, k):
    """The values themselves, rounded once: every dtype, aligned or not, side by side or padded."""
    for i, dtype in enumerate(r.DTYPES, start=k):
        rows, size = (1, 3, 5)[i % 3], 4 if dtype == "float32" else 2
        x = r.normal(rows, 2 * k if kind == "gated" else k, dtype=dtype, seed=i)
        more = {"start": size * (i % 4 == 1), "q_pad": (0, 0, 3, 8)[i % 4]}
        if i % 5 == 2:
            more["q_start"] = size  # results that start elsewhere than x does
        if kind == "norm":
            more |= {"factor": column(k, i), "offset": (0.0, 1.0)[i % 2]}
            if i % 3 != 1:
                more["residual"] = r.normal(rows, k, dtype=dtype, seed=i + 99)
        else:
            more["activation"] = ("silu", "gelu_tanh")[i // 2 % 2]
        report = check(emulated, kind, x, "floats", 8, **more)
        assert r.written_once(report, "q") and r.read_once(report, "x")
        if i % 2:  # not an op's, but the kernel's
            picked = {"index": some_index(k, k + 5, i), "factor": column(k + 5, i), "shift": column(k + 5, 1)}
            check(emulated, kind, x, "floats", 8, **(more | picked))


LONG = [
    ("norm", 1, 4096, "packed4", 4, "bfloat16"),
    ("norm", 2, 5120, "operand4", 4, "float16"),
    ("norm", 1, 8192, "int8", 8, "bfloat16"),
    ("norm", 1, 16384, "packed4", 4, "float32"),
    ("norm", 1, 16392, "packed4", 4, "bfloat16"),  # several rounds
    ("norm", 1, 8195, "packed4", 4, "bfloat16"),  # several rounds, not aligned
    ("norm", 1, 50000, "int8", 8, "bfloat16"),  # more than 128 warps' sums
    ("gated", 1, 11008, "operand4", 4, "bfloat16"),
    ("gated", 1, 14336, "int8", 8, "float16"),
    ("gated", 1, 28672, "packed4", 4, "bfloat16"),
    ("plain", 1, 14336, "packed4", 4, "bfloat16"),
    ("plain", 1, 20001, "int8", 8, "float16"),
]


@pytest.mark.parametrize("kind,rows,k,fmt,bits,dtype", LONG)
def test_long_rows(emulated, kind, rows, k, fmt, bits, dtype):
    x = r.normal(rows, 2 * k if kind == "gated" else k, dtype=dtype)
    more = {"factor": column(k, 0)}
    if kind == "norm":
        more["residual"] = r.normal(rows, k, dtype=dtype, seed=1)
    for clip in (None, 0.9):
        report = check(emulated, kind, x, fmt, bits, clip, **more)
        assert r.written_once(report, "q")
        once = report["rounds"] == 1 or (clip is None and kind != "norm")
        assert r.read_once(report, "x") == once
        picked = {**more, "factor": column(k + 40, 1), "index": some_index(k, k + 40, 1)}
        check(emulated, kind, x, fmt, bits, clip, **picked)
        check(emulated, kind, x, fmt, bits, clip, **picked, shared=1024)  # gathered from global memory
        if "residual" in more:
            assert r.written_once(report, "sum") or report["rounds"] > 1


@pytest.mark.parametrize("kind,rows,k,dtype", [(*row[:3], row[5]) for row in LONG if row[0] != "plain"])
def test_long_floats(emulated, kind, rows, k, dtype):
    x = r.normal(rows, 2 * k if kind == "gated" else k, dtype=dtype)
    more = {}
    if kind == "norm":
        more = {"factor": column(k, 0), "residual": r.normal(rows, k, dtype=dtype, seed=1)}
    for start in (0, x.itemsize):
        report = check(emulated, kind, x, "floats", 8, **more, start=start)
        assert r.written_once(report, "q")
        assert r.read_once(report, "x") == (report["rounds"] == 1 or kind == "gated")


def test_norms_that_depend_on_the_last_bit(emulated):
    """fp32 rows, int8 codes, thousands of elements: any other order of the sum moves some code."""
    for k in (1000, 4096, 9000):
        check(emulated, "norm", r.normal(3, k), "int8", 8, 1.0, factor=column(k, 3))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_the_whole_range_of_activations(emulated, activation):
    g = np.concatenate([np.linspace(-100, 100, 1500), [0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38, 87.4, -88.5]])
    g = g.astype(F32)[None]
    if activation == "gelu_tanh":
        g = np.clip(g, -1e12, 1e12)  # the cube of more is infinite
    up = np.where(np.abs(g) > 100, F32(0), F32(1)) * column(g.shape[1], 5)[None]
    x = np.concatenate([g, up], axis=1)
    check(emulated, "gated", x, "int8", 8, 1.0, activation=activation)
    check(emulated, "gated", x, "int8", 8, None, activation=activation)


def test_saturation_and_ties(emulated):
    v = np.array(
        [[-1e9, 1e9, -8.5, -8.4, 7.4, 7.5, 0.5, 1.5, -0.5, -1.5, 2.5, -126.5, 126.5, -127.5, 127.6, 0]]
    )
    for fmt, bits in KINDS:
        check(emulated, "plain", v.astype(F32), fmt, bits)


def test_empty(emulated):
    assert "global" not in run(emulated, "plain", np.zeros((0, 64), F32))[3]
    q, scale, _, _ = run(emulated, "plain", np.zeros((2, 0), F32), "int8", 8, 1.0, q_pad=16)
    assert (q == 0).all() and (scale == 1).all()
    _, _, _, report = run(emulated, "gated", np.zeros((2, 0), F32), "floats", 8)
    assert "st.global" not in report["global"]
    for kind, k_out, fmt, stride, words in (
        ("plain", 16, "int8", 16, "without an index"),
        ("plain", 8, "floats", 32, "floats leave a norm or a gate"),
        ("gated", 8, "floats", 28, "too few bytes"),
        ("gated", 8, "floats", 34, "part of an element"),
    ):
        with pytest.raises(ValueError, match=words):
            emulated.fused_rows(
                kind, "float32", 1, 8, k_out, {}, {}, fmt, 8, 0.0, stride, 0.0, 0.0, "silu", SHARED, {}
            )


@pytest.mark.parametrize(
    "kind,k", [("norm", 512), ("norm", 4096), ("gated", 1536), ("gated", 4096), ("plain", 4096)]
)
@pytest.mark.parametrize("dtype", r.DTYPES)
def test_counters(emulated, kind, k, dtype):
    """Every byte of the rows once, whole sectors, no bank conflict; with an index too, where it is in order.
    fp32 loads half sectors twice (L1 absorbs it), and so do the factors.
    """
    rows, size = 3, 4 if dtype == "float32" else 2
    x = r.normal(rows, 2 * k if kind == "gated" else k, dtype=dtype)
    more = {"residual": r.normal(rows, k, dtype=dtype, seed=1)} if kind == "norm" else {}
    cases = list(itertools.product(KINDS, (None, 1.0), (None, np.arange(k))))
    cases += [(("floats", 8), None, None)] * (kind != "plain")
    for (fmt, bits), clip, index in cases:
        more["index"], more["factor"] = index, column(k, 1)
        _, _, _, report = run(emulated, kind, x, fmt, bits, clip, **more)
        assert report["wide"] and r.written_once(report, "q")
        assert all(r.read_once(report, name) for name in ("x", "residual") if name in report["buffers"])
        loads, stores = report["global"]["ld.global"], report["global"]["st.global"]
        moved = x.nbytes + rows * k * (4 + 4 * (index is not None) + size * (kind == "norm"))
        assert loads["bytes"] == moved and r.ratio(loads) <= 2
        assert loads["bytes"] >= 500 * loads["requests"]  # 16 bytes per lane
        written = rows * (
            k * {"int8": 1, "floats": size}.get(fmt, 0.5)
            + 4 * (clip is not None)
            + k * size * (kind == "norm")
        )
        assert stores["bytes"] == written
        if "residual" in more:
            assert r.written_once(report, "sum")
        assert r.free_of_conflicts(report)
        if fmt == "floats":
            assert r.ratio(stores) == (1 if size == 2 else 2)


@pytest.mark.parametrize("seed", range(12))
def test_no_race(emulated, seed):
    kind = ("norm", "gated", "plain")[seed % 3]
    rows, k = ((5, 96), (2, 1200), (1, 9000))[seed // 3 % 3]
    fmt, bits = KINDS[seed % 4]
    x = r.normal(rows, 2 * k if kind == "gated" else k, dtype="bfloat16")
    more = {"factor": column(k, seed), "index": some_index(k, k, seed)}
    if kind == "norm":
        more["residual"] = r.normal(rows, k, dtype="bfloat16", seed=seed)
    check(
        emulated, kind, x, fmt, bits, (None, 1.0)[seed % 2], **more, seed=seed, smem_base_mod=128 * (seed % 2)
    )
    if kind != "plain":
        check(emulated, kind, x, "floats", 8, **more, seed=seed)
