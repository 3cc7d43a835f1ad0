"""kv4_quantize and kv4_dequantize: exact on every ISA; appending equals quantising at once."""

import lowbit.reference as ref
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import cases, codec, compare
from tests.oracle import ops as oracle

from .support import OPS, assert_unchanged, row_input, snapshot, stored

CASES = [
    c
    for c in cases.row_cases((1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 64, 65, 80, 96, 128, 256))
    if 0 not in c.shape[-1:]
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact(case, isa):
    x = row_input(case)
    codes, params = oracle.kv4_quantize_exact(compare.to_numpy(x), case.clip)
    before = snapshot([x])
    packed, got_params = OPS.kv4_quantize(x, case.clip)
    assert_unchanged([x], before)
    compare.exact(got_params, params, allow_empty=True, nan_equal=True)
    compare.exact(codec.unpack_nibbles(packed.numpy(), x.shape[-1]) + 8, codes, allow_empty=True)
    for got, want in zip((packed, got_params), ref.kv4_quantize(x, case.clip), strict=True):
        compare.exact(got, want, allow_empty=True, nan_equal=got.is_floating_point())


def test_the_range_is_the_difference_of_the_clipped_ends(isa):
    """Rows found by search whose fp16 scale differs if the range is clipped after the subtraction."""
    ends = [(0.8210928440093994, 0.8444498777389526), (-0.47004666924476624, -0.41996288299560547),
            (0.8872583508491516, 0.9015594720840454), (-0.7384139895439148, -0.7372363209724426)]  # fmt: skip
    x = torch.tensor(ends)
    _, params = OPS.kv4_quantize(x, 0.9)
    compare.exact(params, oracle.kv4_quantize_exact(x.numpy(), 0.9)[1])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_dequantize(case, dtype, isa):
    codes, params = oracle.kv4_quantize_exact(compare.to_numpy(row_input(case)), case.clip)
    packed = stored(torch.from_numpy(codec.pack_nibbles(codes - 8)), case.storage)
    got = OPS.kv4_dequantize(packed, torch.from_numpy(params), getattr(torch, dtype), case.shape[-1])
    with np.errstate(over="ignore"):
        want = oracle.kv4_dequantize_exact(codes, params, dtype)
    compare.exact(got, want, allow_empty=True, nan_equal=True)


def test_defaults_are_fp32_and_both_nibbles(isa):
    packed, params = OPS.kv4_quantize(torch.randn(3, 7, generator=torch.Generator().manual_seed(0)))
    got = OPS.kv4_dequantize(packed, params)
    assert got.shape == (3, 8) and got.dtype == torch.float32
    compare.exact(got[:, :7], OPS.kv4_dequantize(packed, params, torch.float32, 7))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 15, 31, 63])
def test_a_row_that_is_not_finite_gives_nan_and_stays_alone(bad, at, isa):
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(at))
    clean, clean_params = OPS.kv4_quantize(x)
    x[2, at] = bad
    packed, params = OPS.kv4_quantize(x)
    assert params[2].isnan().all() and (packed[2] == 0).all()
    assert OPS.kv4_dequantize(packed, params)[2].isnan().all()
    compare.exact(packed[[0, 1, 3]], clean[[0, 1, 3]])
    compare.exact(params[[0, 1, 3]], clean_params[[0, 1, 3]])


def test_constant_rows_come_back(isa):
    x = torch.tensor([0.0, 1.0, -3.5, 1024.0])[:, None].expand(4, 16)
    packed, params = OPS.kv4_quantize(x)
    assert (packed == 0).all() and (params[:, 0] == 0).all()
    compare.exact(OPS.kv4_dequantize(packed, params), x)


def test_append_equals_rebuild(isa):
    """[batch, heads, tokens, D] quantised at once, token by token, and in pieces."""
    x = torch.randn(2, 3, 11, 64, generator=torch.Generator().manual_seed(0))
    whole = OPS.kv4_quantize(x, 0.95)
    for sizes in ([1] * 11, [7, 1, 3], [10, 1]):
        parts = [OPS.kv4_quantize(p, 0.95) for p in x.split(sizes, 2)]
        for i in (0, 1):
            compare.exact(torch.cat([p[i] for p in parts], 2), whole[i])


def test_threads_do_not_change_bits(isa):
    x, before = torch.randn(900, 128, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = OPS.kv4_quantize(x, 0.95)
        back = OPS.kv4_dequantize(*one)
        torch.set_num_threads(2)
        two = OPS.kv4_quantize(x, 0.95)
        compare.exact(OPS.kv4_dequantize(*two), back)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, two, strict=True):
        compare.exact(a, b)


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 5), d=st.integers(2, 140), seed=st.integers(0, 10**6), offset=st.floats(-50, 50))
def test_within_half_a_step(rows, d, seed, offset):
    x = (np.random.default_rng(seed).standard_normal((rows, d)) + offset).astype(np.float32)
    packed, params = OPS.kv4_quantize(torch.from_numpy(x))
    back = OPS.kv4_dequantize(packed, params, torch.float32, d)
    scale = params[:, :1].double().numpy()
    # half a step, plus what rounding scale and zero to fp16 moves the ends by
    slack = (
        compare.UNIT["float16"] * (np.abs(x).max(-1, keepdims=True).astype(np.float64) + 15 * scale) + 1e-6
    )
    compare.elementwise(back, x.astype(np.float64), 0.5 * scale + slack * 1.01)
