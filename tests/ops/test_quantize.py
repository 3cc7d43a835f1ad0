"""quantize_int4, quantize_int8: exact on every ISA, and the guarantees of a symmetric quantiser."""

import lowbit.reference as ref
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import cases, codec, compare
from tests.oracle import ops as oracle

from .support import OPS, assert_unchanged, row_input, snapshot

CASES = list(cases.row_cases())


def run(bits, x, clip=1.0):
    return (OPS.quantize_int4 if bits == 4 else OPS.quantize_int8)(x, clip)


def packed(codes, bits):
    return codec.pack_nibbles(codes) if bits == 4 else codes.astype(np.int8)


def codes_of(q, bits, k):
    return codec.unpack_nibbles(q.numpy(), k) if bits == 4 else q.numpy().astype(np.int64)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact(case, bits, isa):
    x = row_input(case)
    codes, scale = oracle.quantize_exact(compare.to_numpy(x), bits, case.clip)
    before = snapshot([x])
    got, got_scale = run(bits, x, case.clip)
    assert_unchanged([x], before)
    compare.exact(got, packed(codes, bits), allow_empty=True)
    compare.exact(got_scale, scale, allow_empty=True)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_equals_reference(case, bits, isa):
    x = row_input(case, seed=2)
    want = (ref.quantize_int4 if bits == 4 else ref.quantize_int8)(x, case.clip)
    for got, expected in zip(run(bits, x, case.clip), want, strict=True):
        compare.exact(got, expected, allow_empty=True)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 7, 8, 31, 32, 40])
def test_a_row_that_is_not_finite_gives_a_nan_scale_and_zero_codes(bits, dtype, bad, at, isa):
    x = torch.randn(5, 41, generator=torch.Generator().manual_seed(at)).to(dtype)
    clean, clean_scale = run(bits, x)
    x[3, at] = bad
    q, scale = run(bits, x)
    assert scale[3].isnan() and (codes_of(q, bits, 41)[3] == 0).all()
    keep = [0, 1, 2, 4]
    compare.exact(q[keep], clean[keep])
    compare.exact(scale[keep], clean_scale[keep])


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_rows(bits, isa):
    x = torch.zeros(3, 19)
    x[1] = -0.0
    q, scale = run(bits, x)
    compare.exact(scale, np.ones(3, dtype=np.float32))
    assert (codes_of(q, bits, 19) == 0).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "size", [2.0**-149, 2.0**-140, 2.0**-130, 2.0**-124, 2.0**-123, 2.0**-122, 2.0**-118, 2.0**-116]
)
def test_rows_near_the_smallest_scale(bits, size, isa):
    """1 / scale stays finite: rows whose scale would be denormal become zero rows."""
    x = torch.tensor([[size, -size / 2, 0.0]])
    codes, scale = oracle.quantize_exact(x.numpy(), bits)
    q, got_scale = run(bits, x)
    compare.exact(q, packed(codes, bits))
    compare.exact(got_scale, scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_ends_and_saturation_are_exact(bits, isa):
    top = 2 ** (bits - 1) - 1
    x = torch.tensor([[top, -top, 0.5, 1.5, -0.5, -1.5, 2.5, 1.0]])  # scale 1: ties go to even
    q, scale = run(bits, x)
    compare.exact(codes_of(q, bits, 8), np.array([[top, -top, 0, 2, 0, -2, 2, 1]]))
    assert scale.item() == 1
    q, _ = run(bits, x, 0.5)  # everything beyond half the maximum saturates
    assert codes_of(q, bits, 8)[0, :2].tolist() == [top, oracle.LOWEST[bits]]


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_independent_and_repeat(bits, isa):
    x = torch.randn(37, 129, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 37)[:, None]
    q, scale = run(bits, x)
    for i in range(37):
        one, one_scale = run(bits, x[i])
        compare.exact(one, q[i])
        compare.exact(one_scale.reshape(1), scale[i].reshape(1))
    again, again_scale = run(bits, x)
    compare.exact(again, q)
    compare.exact(again_scale, scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_threads_do_not_change_bits(bits, isa):
    x = torch.randn(700, 257, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(bits, x)
        torch.set_num_threads(2)
        two = run(bits, x)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, two, strict=True):
        compare.exact(a, b)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 5),
    k=st.integers(1, 150),
    bits=st.sampled_from((4, 8)),
    seed=st.integers(0, 10**6),
    spread=st.floats(0, 30),
)
def test_dequantised_is_within_half_a_step(rows, k, bits, seed, spread):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, k)) * np.exp2(rng.uniform(-spread, spread, (rows, 1)))).astype(np.float32)
    q, scale = run(bits, torch.from_numpy(x))
    step = scale.numpy().astype(np.float64)[:, None]
    # half a step, plus the rounding of x * (1 / scale)
    bound = step * (0.5 + 2 ** (bits - 1) * 4 * compare.UNIT["float32"])
    compare.elementwise(codes_of(q, bits, k) * step, x.astype(np.float64), bound)


@settings(max_examples=40, deadline=None)
@given(
    k=st.integers(1, 70),
    bits=st.sampled_from((4, 8)),
    exponent=st.integers(-20, 20),
    seed=st.integers(0, 10**6),
)
def test_power_of_two_scales_the_scale_only(k, bits, exponent, seed):
    x = torch.randn(2, k, generator=torch.Generator().manual_seed(seed))
    q, scale = run(bits, x)
    q2, scale2 = run(bits, x * 2.0**exponent)
    compare.exact(q2, q)
    compare.exact(scale2, scale * 2.0**exponent)
