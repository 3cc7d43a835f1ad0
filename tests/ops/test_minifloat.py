"""Codecs of the small floats: the op and `lowbit.minifloat` against tables written by hand and ml_dtypes."""

import lowbit
import lowbit.ops
import ml_dtypes
import numpy as np
import pytest
import torch
from lowbit import minifloat as mf

from tests.oracle import minifloat

from .support import CPU_ONLY, OPS, stored

THEIRS = {
    "e3m2": ml_dtypes.float6_e3m2fn, "e2m3": ml_dtypes.float6_e2m3fn, "e2m1": ml_dtypes.float4_e2m1fn,
}  # fmt: skip


def numbers(name: str) -> np.ndarray:
    """fp32: all values, all ties, their neighbours, tiny and huge numbers, both signs, a random crowd."""
    values = np.array(minifloat.POSITIVE[name], np.float32)
    ties = (values[1:] + values[:-1]) / 2
    x = np.concatenate([values, ties])
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))])
    special = np.array([0, 1e-45, 1e-39, 1e-30, 2.0**-126, 1e9, 3e38, np.inf], np.float32)
    crowd = np.random.default_rng(0).standard_normal(20000).astype(np.float32)
    crowd *= np.exp2(np.random.default_rng(1).integers(-8, 6, 20000)).astype(np.float32)
    x = np.concatenate([x, special, crowd])
    return np.concatenate([x, -x])


@pytest.mark.parametrize("name", minifloat.FLOATS)
@pytest.mark.parametrize("ties_away", [False, True])
def test_encode(name, ties_away, isa):
    x = numbers(name)
    want = minifloat.nearest(x, name, ties_away)
    got = OPS.encode_fp(torch.from_numpy(x), name, ties_away)
    assert np.array_equal(got.numpy(), want)
    assert np.array_equal(mf.encode(torch.from_numpy(x), name, ties_away).numpy(), want)


@pytest.mark.parametrize("name", THEIRS)
def test_agrees_with_ml_dtypes(name, isa):
    x = numbers(name)
    theirs = x.astype(THEIRS[name])
    assert np.array_equal(OPS.encode_fp(torch.from_numpy(x), name, False).numpy(), theirs.view(np.uint8))
    rounded = lowbit.formats.round_to(torch.from_numpy(x), name).numpy()
    assert np.array_equal(rounded.view(np.uint32), theirs.astype(np.float32).view(np.uint32))  # -0 too


@pytest.mark.parametrize("name", minifloat.FLOATS)
def test_decode(name):
    codes = torch.arange(1 << minifloat.BITS[name], dtype=torch.uint8)
    assert np.array_equal(mf.decode(codes, name).numpy(), minifloat.TABLES[name].astype(np.float32))
    if name in THEIRS:
        theirs = codes.numpy().view(THEIRS[name]).astype(np.float32)
        assert np.array_equal(mf.decode(codes, name).numpy(), theirs)
    assert torch.equal(mf.encode(mf.decode(codes, name), name), codes)
    assert mf.FLOAT_FORMATS[name].max == max(minifloat.POSITIVE[name])
    whole = minifloat.TABLES[name] * mf.FLOAT_FORMATS[name].int_scale
    assert np.array_equal(whole, np.rint(whole))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("storage", ["plain", "strided", "offset"])
def test_dtypes_and_storages(dtype, storage, isa):
    x = torch.from_numpy(numbers("e3m2"))[:20000].to(dtype).view(200, 100)
    want = minifloat.nearest(x.float().numpy(), "e3m2")
    assert np.array_equal(OPS.encode_fp(stored(x, storage), "e3m2", False).numpy(), want)
    assert mf.round_to(x, "e3m2").dtype == dtype


def test_nan_and_shapes(isa):
    assert OPS.encode_fp(torch.tensor([float("nan"), -float("nan")]), "e2m3", False).tolist() == [0, 0]
    assert mf.round_to(torch.tensor([float("nan")]), "e2m3").item() == 0
    assert OPS.encode_fp(torch.zeros(0, 3), "e2m3", False).shape == (0, 3)
    assert OPS.encode_fp(torch.tensor(6.4), "e2m1", False).item() == 7


@pytest.mark.parametrize("name", minifloat.FLOATS)
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 5, 17, 32])
def test_packing(name, k):
    codes = np.random.default_rng(k).integers(0, 1 << minifloat.BITS[name], (3, k)).astype(np.uint8)
    packed = mf.pack_codes(torch.from_numpy(codes), name)
    assert np.array_equal(packed.numpy(), minifloat.pack(codes, name))
    assert packed.shape[1] == mf.packed_bytes(k, name)
    assert np.array_equal(mf.unpack_codes(packed, name, k).numpy(), codes)


def test_e8m0():
    exponents = np.arange(-127, 128)
    powers = np.exp2(exponents.astype(np.float64)).astype(np.float32)
    ties = powers * np.float32(1.5)
    x = np.concatenate([powers, np.nextafter(ties, np.float32(0)), ties])
    # not between 2^-127 and 2^-126, where ml_dtypes rounds up what is nearer to 2^-127
    x = x[(x < 2.0**127 * 1.5) & ((x >= 2.0**-126) | (x == 2.0**-127))]
    theirs = x.astype(ml_dtypes.float8_e8m0fnu)
    assert np.array_equal(mf.encode_e8m0(torch.from_numpy(x)).numpy(), theirs.view(np.uint8))
    codes = np.arange(255, dtype=np.uint8)
    values = mf.decode_e8m0(torch.from_numpy(codes)).numpy()
    assert np.array_equal(values, codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    assert mf.decode_e8m0(torch.tensor([255], dtype=torch.uint8)).isnan().all()
    below = np.nextafter(np.float32(1.5 * 2.0**-127), np.float32(0))
    assert mf.encode_e8m0(torch.tensor([below, 1.5 * 2.0**-127])).tolist() == [0, 1]
    bad = torch.tensor([0.0, -1.0, float("inf"), float("nan")])
    assert mf.encode_e8m0(bad).tolist() == [255] * 4
    assert mf.encode_e8m0(torch.tensor([3e38])).item() == 254  # saturates, where ml_dtypes gives NaN


@CPU_ONLY
def test_refusals():
    with pytest.raises(ValueError, match="format: expected one of e3m2, e2m3, e2m1, e1m2, e3m0, got 'int4'"):
        mf.round_to(torch.zeros(3), "int4")
    with pytest.raises(ValueError, match="codes: expected values below 16 for e2m1, got 16"):
        mf.decode(torch.tensor([16], dtype=torch.uint8), "e2m1")
    with pytest.raises(ValueError, match="codes: expected uint8"):
        mf.decode(torch.tensor([1]), "e2m1")
    with pytest.raises(ValueError, match="packed: expected uint8 with 6 bytes per row for 7 codes of e3m2"):
        mf.unpack_codes(torch.zeros(2, 5, dtype=torch.uint8), "e3m2", 7)
    with pytest.raises(RuntimeError, match='encode_fp: format is "int4", expected one of e3m2'):
        lowbit.ops.encode_fp(torch.zeros(3), "int4")
    with pytest.raises(RuntimeError, match="encode_fp: x has dtype int64"):
        lowbit.ops.encode_fp(torch.zeros(3).long(), "e2m1")
