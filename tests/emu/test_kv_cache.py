"""The CUDA KV-cache kernels under the emulator: the bits of the contract and of the CPU kernels."""

import lowbit.ops  # noqa: F401 - registers torch.ops.lowbit
import numpy as np
import pytest
import torch

from tests.oracle import codec, compare
from tests.oracle import ops as oracle

from . import rows as r

OPS = torch.ops.lowbit
HEADS = (1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 80, 96, 127, 128, 129, 256, 257, 576, 1021)


def quantize(emulated, x, clip=1.0, offset=0, **options):
    """(packed, params, report), checked against the oracle."""
    rows, d = x.shape
    name = next(n for n, t in r.DTYPES.items() if t == x.dtype)
    packed, params = r.raw(rows * ((d + 1) // 2), offset), r.raw(rows * 4).view(np.float16)
    held = r.stored(x, d, offset * x.itemsize)
    report = emulated.kv4_quantize(held, name, rows, d, clip, packed, params, options)
    codes, want = oracle.kv4_quantize_exact(x, clip)
    params = params.reshape(rows, 2)
    compare.exact(params, want, nan_equal=True, allow_empty=True)
    expected = codec.pack_nibbles(codes - 8)
    if d % 2 and rows:
        expected[:, -1] &= 0x0F  # the pad is 0 here
    packed = packed.reshape(rows, -1) if rows else packed.reshape(0, (d + 1) // 2)
    np.testing.assert_array_equal(packed, expected)
    return packed, params, report


def dequantize(emulated, packed, params, d, dtype, offset=0, **options):
    """(y, report), checked against the oracle."""
    rows = packed.shape[0]
    y = r.raw(rows * d * np.dtype(r.DTYPES[dtype]).itemsize, offset * np.dtype(r.DTYPES[dtype]).itemsize)
    held, held_params = r.stored(packed, packed.shape[1], offset), r.raw(rows * 4)
    held_params[:] = params.view(np.uint8).ravel()
    report = emulated.kv4_dequantize(held, held_params, rows, d, dtype, y, options)
    codes = codec.unpack_nibbles(packed, d) + 8
    with np.errstate(invalid="ignore"):
        want = oracle.kv4_dequantize_exact(codes, params, dtype)
    y = y.view(r.DTYPES[dtype]).reshape(rows, d)
    nan = np.isnan(want.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(y.astype(np.float32)), nan)
    view = np.uint32 if dtype == "float32" else np.uint16
    np.testing.assert_array_equal(y.view(view)[~nan], want.view(view)[~nan])
    return y, report


@pytest.mark.parametrize("d", HEADS)
def test_bits(emulated, d):
    for i, dtype in enumerate(r.DTYPES):
        for rows in (1, 3, 37):
            x = r.normal(rows, d, dtype=dtype, seed=i) + r.DTYPES[dtype](0.5)
            packed, params, _ = quantize(emulated, x, (1.0, 0.9)[i % 2], offset=(d + i + rows) % 2, seed=d)
            out = list(r.DTYPES)[(i + rows) % 3]
            dequantize(emulated, packed, params, d, out, offset=(d + i) % 2, seed=d)


def test_equals_the_cpu_kernels(emulated):
    x = r.normal(40, 128, seed=3)
    packed, params, _ = quantize(emulated, x, 0.95)
    want, want_params = OPS.kv4_quantize(torch.from_numpy(x), 0.95)
    compare.exact(packed, want.numpy())
    compare.exact(params, want_params.numpy())
    y, _ = dequantize(emulated, packed, params, 128, "float16")
    compare.exact(y, OPS.kv4_dequantize(want, want_params, torch.float16).numpy())


def test_special_heads(emulated):
    """Constants, NaN, infinities, ranges that float16 cannot hold, subnormal scales, all of one sign."""
    x = np.zeros((14, 40), np.float32)
    x[1], x[2] = 3.25, -7.5
    x[3, 7], x[4, 39], x[5, 0] = np.nan, np.inf, -np.inf
    x[6] = np.linspace(-7e4, 7e4, 40)
    x[7] = np.linspace(7e4, 8e4, 40)
    x[8] = np.linspace(0, 2e-6, 40)
    x[9] = np.linspace(-1e-9, 1e-9, 40)
    x[10] = np.linspace(1, 2, 40)
    x[11] = np.linspace(-2, -1, 40)
    x[12] = np.arange(40) % 16  # scale 1: exact codes
    x[13] = (np.arange(40) % 31) / 2  # ties go to even
    for clip in (1.0, 0.5):
        packed, params, _ = quantize(emulated, x, clip)
        for dtype in r.DTYPES:
            dequantize(emulated, packed, params, 40, dtype)
    for d in (33, 300):
        quantize(emulated, np.resize(x, (14, d)))


def test_empty(emulated):
    quantize(emulated, np.zeros((0, 64), np.float32))


@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("dtype", r.DTYPES)
def test_counters(emulated, d, dtype):
    """Every byte once, whole sectors; fp32 goes in half sectors, twice."""
    x = r.normal(64, d, dtype=dtype)
    packed, params, report = quantize(emulated, x)
    assert report["wide"] and r.read_once(report, "x")
    assert r.written_once(report, "packed") and r.written_once(report, "params")
    assert r.ratio(report["global"]["ld.global"]) <= (2 if dtype == "float32" else 1)
    _, report = dequantize(emulated, packed, params, d, dtype)
    assert r.read_once(report, "packed") and r.written_once(report, "y")
    assert r.ratio(report["global"]["st.global"]) <= (2 if dtype == "float32" else 1)


@pytest.mark.parametrize("seed", range(20))
def test_no_race(emulated, seed):
    d = (64, 129, 300)[seed % 3]
    packed, params, _ = quantize(emulated, r.normal(9, d, dtype="bfloat16", seed=seed), seed=seed)
    dequantize(emulated, packed, params, d, "bfloat16", seed=seed)
