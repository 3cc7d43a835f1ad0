"""dynamic_linear as a card runs it: the emulated quantiser, then the emulated GEMM, against the oracle."""

import numpy as np
import pytest

from tests.oracle import compare
from tests.oracle import ops as oracle

from . import rows as r
from .test_int_gemm import EMPTY, Problem, aligned, pack_scales, pack_weight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("sm", "m", "kind", "bits"),
    [
        (80, 5, "int4", 8),
        (80, 21, "s4", 4),
        (80, 70, "s4", 4),
        (80, 9, "int4_group", 4),
        (90, 3, "int4", 4),
        (90, 40, "int4", 8),
        (90, 130, "int4_group", 4),
        (90, 70, "int8", 8),
    ],
)
def test_quantise_then_multiply(emulated, sm, m, kind, bits, dtype):
    n, k = 72, 200
    p = Problem(m, n, k, kind, out=dtype, seed=m)
    x = r.normal(m, k, dtype=dtype)
    shift = np.random.default_rng(m).standard_normal(k).astype(np.float32)
    # what csrc/ops/int_gemm_cuda.cpp allocates: rows padded to 64 k
    layout, stride = ("operand4", 128) if kind == "s4" else ("int8", 256)
    q, scale = r.raw(m * stride), np.zeros(m, np.float32)
    held = r.stored(shift[None]).view(np.float32)
    emulated.quantize(r.stored(x), dtype, m, k, k, held, layout, bits, 0.9, q, stride, scale, {})

    y = aligned(np.zeros((m, n), r.DTYPES[dtype]))
    weight = pack_weight(p.codes, p.weight)
    groups = pack_scales(p.scales) if p.group else EMPTY
    emulated.int_gemm(
        p.weight, kind == "s4", k, p.group, q.reshape(m, stride), stride, aligned(weight), aligned(groups),
        aligned(p.w_scale), aligned(scale), aligned(p.bias), y.view(np.uint16) if dtype == "bfloat16" else y,
        dtype, sm, 4, 1, 1.0, {}, {},
    )  # fmt: skip
    w = oracle.integer_weight(p.codes, p.scales, p.group or None)
    want = oracle.dynamic_linear_exact(x, w, p.w_scale, p.bias, bits, 0.9, None, shift)
    compare.exact(y, want)
