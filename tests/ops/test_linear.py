"""int4_linear and int8_linear: exact against the oracle on every ISA, and the properties a linear layer must
have.
"""

from dataclasses import replace

import lowbit.ops
import lowbit.reference as ref
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import cases, codec, compare
from tests.oracle import ops as oracle

from .support import (
    CPU_ONLY,
    GEMM_ISAS,
    OPS,
    assert_unchanged,
    linear_call,
    set_isa,
    snapshot,
    tensor,
    weight_tiles,
)

CASES = [*cases.linear_cases(4), *cases.linear_cases(8)]
BASE = [
    cases.LinearCase(9, 37, 130, "int8", 4, 32, True),
    cases.LinearCase(9, 37, 130, "int4", 4, None, True),
    cases.LinearCase(9, 37, 130, "int8", 8, None, True),
    cases.LinearCase(34, 70, 256, "int8", 4, 128),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact(case, isa):
    call = linear_call(case)
    compare.exact(call(), call.expected, allow_empty=0 in call.expected.shape)


@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_equals_reference_and_leaves_inputs_alone(case, isa):
    call = linear_call(case, seed=1)
    before = snapshot(call.args)
    got = call()
    assert_unchanged(call.args, before)
    reference = ref.int8_linear if case.weight_bits == 8 else ref.int4_linear
    compare.exact(got, reference(*call.args), allow_empty=True)


@pytest.mark.parametrize("case", BASE, ids=str)
def test_rows_do_not_see_each_other(case, isa):
    """Any slice of the batch, at any height, gives the bits that the whole batch gave."""
    call = linear_call(case)
    whole = call()
    for first, last in ((0, 1), (1, 3), (2, 7), (4, 9), (3, 8), (8, 9), (0, 7), (2, 20), (1, 34)):
        args = list(call.args)
        args[0], args[1] = args[0][first:last], args[1][first:last]
        compare.exact(call.op(*args), whole[first:last])


@pytest.mark.parametrize("case", BASE, ids=str)
def test_a_poisoned_row_stays_alone(case, isa):
    call = linear_call(case)
    whole = call()
    call.args[1][4] = float("nan")
    got = call()
    assert got[4].isnan().all()
    keep = [i for i in range(case.m) if i != 4]
    compare.exact(got[keep], whole[keep])


@pytest.mark.parametrize("case", BASE, ids=str)
def test_repeats_bitwise(case, isa):
    call = linear_call(case)
    first = call()
    for _ in range(3):
        compare.exact(call(), first)


@pytest.mark.parametrize(
    "case",
    [
        cases.LinearCase(1, 1030, 512, "int8", 4, 64),
        cases.LinearCase(70, 300, 300, "int4", 4),
        cases.LinearCase(33, 257, 640, "int8", 8),
    ],
    ids=str,
)
def test_threads_do_not_change_bits(case, isa):
    call = linear_call(case)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    compare.exact(results[0], call.expected)
    compare.exact(results[1], results[0])
    compare.exact(results[2], results[0])


@pytest.mark.parametrize("bits,group", [(4, None), (4, 32), (8, None)])
def test_permuted_channels_permute_outputs(bits, group, isa):
    case = cases.LinearCase(6, 45, 100, "int8", bits, group, True)
    data, order = cases.linear_data(case), np.random.default_rng(3).permutation(45)
    op = OPS.int4_linear if bits == 4 else OPS.int8_linear

    def run(index):
        args = [
            tensor(data.x_q.astype(np.int8)),
            tensor(data.x_scale),
            weight_tiles(data.w_q[index], bits),
            tensor(data.w_scale[index]),
        ]
        if bits == 4:
            args.append(tensor(codec.write_group_scale_tiles(data.group_scale[index])) if group else None)
        return op(*args, tensor(data.bias[index]), torch.float32)

    compare.exact(run(order), run(np.arange(45))[:, order])


def test_power_of_two_scale_is_linear(isa):
    call = linear_call(replace(BASE[0], bias=False))
    plain = call()
    call.args[3] = call.args[3] * 8
    compare.exact(call(), plain * 8)


def test_default_arguments(isa):
    """No scale of the activation, no group scale, no bias, fp32 result."""
    case = cases.LinearCase(5, 20, 48, "int8", 4, x_scale=False)
    call = linear_call(case)
    compare.exact(OPS.int4_linear(call.args[0], None, call.args[2], call.args[3]), call.expected)
    case = replace(case, weight_bits=8)
    call = linear_call(case)
    compare.exact(OPS.int8_linear(call.args[0], None, call.args[2], call.args[3]), call.expected)


@pytest.mark.parametrize("rank", [None, 0, 1, 5])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("case", [*BASE, replace(BASE[1], out_dtype="bfloat16")], ids=str)
def test_low_rank_and_residual(case, residual, rank, isa):
    """Added after the bias, rank by rank and rounding by rounding; neither is written to."""
    call, data = linear_call(case), cases.linear_data(case, 0)
    rng = np.random.default_rng(3)
    dtype = getattr(torch, case.out_dtype)
    extra = {}
    if residual:
        wide = torch.from_numpy(rng.standard_normal((case.m, 2 * case.n)).astype(np.float32)).to(dtype)
        extra["residual"] = wide[:, ::2]
    if rank is not None:
        extra["low_rank"] = torch.from_numpy(rng.standard_normal((case.m, rank)).astype(np.float32))
        extra["low_rank_up"] = torch.from_numpy(rng.standard_normal((rank, case.n)).astype(np.float32))
    w = oracle.integer_weight(data.w_q, data.group_scale, case.group)
    want = oracle.linear_exact(
        data.x_q, data.x_scale, w, data.w_scale, data.bias, case.out_dtype,
        **{key: compare.to_numpy(value) for key, value in extra.items()},
    )
    before = snapshot(list(extra.values()))
    compare.exact(call.op(*call.args, **extra), want)
    assert_unchanged(list(extra.values()), before)
    reference = ref.int8_linear if case.weight_bits == 8 else ref.int4_linear
    compare.exact(reference(*call.args, **extra), want)


@pytest.mark.parametrize("bits", [4, 8])
def test_infinite_and_nan_scales_go_through(bits, isa):
    call = linear_call(cases.LinearCase(3, 18, 32, "int8", bits, bias=True))
    call.args[3][7] = float("nan")
    call.args[4 if bits == 8 else 5][2] = float("inf")
    got = call()
    assert got[:, 7].isnan().all() and (got[:, 2] == float("inf")).all()
    rest = [i for i in range(18) if i not in (2, 7)]
    compare.exact(got[:, rest], call.expected[:, rest])


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 70),
    k=st.integers(1, 200),
    bits=st.sampled_from((4, 8)),
    activation=st.sampled_from(("int4", "int8", "int4 in int8")),
    group=st.sampled_from((None, 32, 64, 128)),
    bias=st.booleans(),
    x_scale=st.booleans(),
    out=st.sampled_from(("float32", "bfloat16", "float16")),
    storage=st.sampled_from(cases.STORAGES),
    values=st.sampled_from(cases.VALUES),
    seed=st.integers(0, 1000),
)
def test_any_problem_on_all_isas(m, n, k, bits, activation, group, bias, x_scale, out, storage, values, seed):
    if bits == 8:
        activation, group = "int8", None
    case = cases.LinearCase(m, n, k, activation, bits, group, bias, x_scale, out, storage, values)
    call, before = linear_call(case, seed), lowbit.ops.isa()
    try:
        for name in GEMM_ISAS:
            set_isa(name)
            compare.exact(call(), call.expected)
    finally:
        set_isa(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        *cases.model_linear_cases("SmolLM2-135M", (1, 8, 33)),
        *cases.model_linear_cases("Llama-3-8B", (1, 5), group=128, out_dtype="bfloat16"),
    ],
    ids=str,
)
def test_model_layers(case, isa):
    call = linear_call(case)
    compare.exact(call(), call.expected)


@CPU_ONLY
def test_torch_finds_its_tiles_as_it_left_them(isa):
    """torch's bf16 products use AMX, too, and configure it on the same threads."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 256, generator=generator).bfloat16() for n in (64, 512))
    call = linear_call(cases.LinearCase(64, 512, 256, "int8", 4))
    want = torch.nn.functional.linear(x, w)
    for _ in range(3):
        compare.exact(call(), call.expected)
        assert torch.equal(torch.nn.functional.linear(x, w), want)
