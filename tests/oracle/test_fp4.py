"""The FP4 oracle against ml_dtypes, against the library's specification, and against itself."""

import lowbit.reference as ref
import ml_dtypes
import numpy as np
import pytest
import torch
from lowbit.minifloat import FLOAT_FORMATS, encode, value_table

from . import compare, fp4

EVERY_BFLOAT16 = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
FINITE = EVERY_BFLOAT16[np.isfinite(EVERY_BFLOAT16)]


def test_e2m1_is_that_of_ml_dtypes():
    """All finite bfloat16 hold every value, every midpoint, numbers beside them and both zeros."""
    want = FINITE.astype(ml_dtypes.float4_e2m1fn)
    compare.exact(fp4.encode(FINITE, "e2m1"), want.view(np.uint8).astype(np.int64))
    codes = np.arange(16, dtype=np.uint8)
    compare.exact(fp4.values(codes, "e2m1"), codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64))


@pytest.mark.parametrize("fmt", fp4.FORMATS)
def test_formats_are_those_of_the_library(fmt):
    compare.exact(value_table(fmt).double().numpy(), fp4.values(np.arange(16), fmt))
    assert FLOAT_FORMATS[fmt].int_scale == fp4.STEPS[fmt] and FLOAT_FORMATS[fmt].bits == 4
    compare.exact(encode(torch.from_numpy(FINITE), fmt).long(), fp4.encode(FINITE, fmt))


@pytest.mark.parametrize("fmt", fp4.FORMATS)
def test_rounding_is_to_the_nearest(fmt):
    """No other code is nearer, within the range."""
    y = FINITE[np.abs(FINITE) <= fp4.MAGNITUDES[fmt][-1]].astype(np.float64)
    chosen = np.abs(fp4.values(fp4.encode(y, fmt), fmt) - y)
    assert (chosen <= np.abs(fp4.values(np.arange(16), fmt)[:, None] - y).min(0)).all()


@pytest.mark.parametrize("fmt", fp4.FORMATS)
def test_reference_quantiser(fmt):
    x = np.random.default_rng(0).standard_normal((5, 33)).astype(np.float32)
    codes, scale = fp4.quantize_exact(x, fmt, None, None, 0.9)
    got = ref.quantize_fp4(torch.from_numpy(x), fmt, None, None, 0.9)
    compare.exact(got[0], fp4.pack(codes))
    compare.exact(got[1], scale)
