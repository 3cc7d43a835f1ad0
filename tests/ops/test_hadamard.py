"""hadamard and hadamard_quantize: the contract's bits on every ISA, and H H^T = n."""

import lowbit.reference as ref
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import cases, codec, compare
from tests.oracle import hadamard as had
from tests.oracle import ops as oracle

from .support import OPS, assert_unchanged, snapshot, stored

SIZES = [(n, None) for n in (*cases.POWERS, *cases.FACTORED)] + list(cases.BLOCKED)
MODEL_SIZES = [(8192, None), (11008, None), (5504, 2752), (14336, None), (14336, 512), (28672, 128)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n,block", SIZES)
@pytest.mark.parametrize("transpose", [False, True])
def test_fp32_bits(n, block, transpose, isa):
    x = stored(normal(3, n, seed=n), cases.STORAGES[n % 4])
    before = snapshot([x])
    got = OPS.hadamard(x, 0.37, block, transpose)
    assert_unchanged([x], before)
    compare.exact(got, had.transform_fp32(x.numpy(), 0.37, block, transpose))


@pytest.mark.parametrize("n,block", MODEL_SIZES)
def test_fp32_bits_of_model_sizes(n, block, isa):
    x = normal(2, n)
    compare.exact(OPS.hadamard(x, n**-0.5, block), had.transform_fp32(x.numpy(), n**-0.5, block))


@pytest.mark.parametrize("k", [92, 116, 156, 172])
def test_quaternions_make_williamson_matrices(k):
    """n + 7 additions per element stand for 4 n, whatever the four sequences."""
    v = torch.eye(k, dtype=torch.float64)[:, :, None]
    compare.exact(ref.transform.mix_williamson(v)[:, :, 0].T, ref.hadamard_matrix(k).double())


@pytest.mark.parametrize("n", [12, 24, 36, 40, 44, 56, 80, 112, 152, 304, 688])
@pytest.mark.parametrize("rows", [15, 70])
def test_blocks_narrower_than_a_register(n, rows, isa):
    """Many rows share a register, the last of them do not fill it."""
    x = normal(rows, n, seed=n)
    compare.exact(OPS.hadamard(x, 0.37), had.transform_fp32(x.numpy(), 0.37))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("n,block", [*SIZES, (1536, None), (3584, None), (2560, 640)])
def test_half_precision_rounds_once(n, block, dtype, isa):
    x = normal(2, 3, n, seed=n).to(getattr(torch, dtype))
    want = had.transform_fp32(x.float().numpy(), n**-0.5, block)
    compare.exact(OPS.hadamard(x, n**-0.5, block), want.astype(oracle.DTYPES[dtype]))


@pytest.mark.parametrize("n", [2, 32, 64, 256, 576, 1024, 8192])
def test_bf16_at_the_ends_of_its_range(n, isa):
    """NaN stays NaN; infinity, the largest, subnormal and negative zero round like the rest."""
    values = [float("nan"), float("inf"), -float("inf"), 3.3895e38, 1e-39, -1e-40, -0.0]
    x = normal(len(values) + 2, n, seed=n).bfloat16()
    for row, value in enumerate(values):
        x[row, (5 * row) % n] = value
    x[-2], x[-1] = 1e-39, -0.0
    with np.errstate(all="ignore"):
        want = had.transform_fp32(x.float().numpy(), 0.5, None)
    nan, got = np.isnan(want), OPS.hadamard(x, 0.5)
    assert (got.isnan().numpy() == nan).all()
    want = np.where(nan, 0, want).astype(oracle.DTYPES["bfloat16"])
    compare.exact(got.masked_fill(torch.from_numpy(nan), 0), want)


@pytest.mark.parametrize("n,block", [*SIZES, *MODEL_SIZES])
def test_real_valued_answer(n, block):
    x, scale = normal(2, n, seed=n), float(np.float32((block or n) ** -0.5))
    terms = sum(had.factor(block or n))
    compare.bounded(
        OPS.hadamard(x, scale, block),
        had.transform(x.numpy(), scale, block),
        had.magnitude(x.numpy(), scale, block),
        terms,
        "float32",
    )


@pytest.mark.parametrize("n,block", SIZES)
def test_small_integers_are_exact_and_come_back(n, block, isa):
    """H^T (H x) = n x on integers, with no rounding anywhere."""
    x = torch.from_numpy(np.random.default_rng(n).integers(-9, 10, (4, n)).astype(np.float32))
    y = OPS.hadamard(x, 1.0, block)
    compare.exact(y, had.transform(x.numpy(), 1.0, block).astype(np.float32))
    compare.exact(OPS.hadamard(y, 1.0, block, True), x * (block or n))
    if had.factor(block or n)[0] == 1:  # a power of two is its own transpose
        compare.exact(OPS.hadamard(y, 1.0, block), x * (block or n))


@pytest.mark.parametrize("n,block", SIZES[::3])
def test_equals_reference(n, block, isa):
    x = normal(5, n, seed=1)
    compare.exact(OPS.hadamard(x, 0.3, block), ref.hadamard(x, 0.3, block))


@pytest.mark.parametrize("n", [64, 576, 1024])
def test_rows_are_independent_and_repeat(n, isa):
    x = normal(19, n)
    whole = OPS.hadamard(x, 1.0)
    compare.exact(OPS.hadamard(x, 1.0), whole)
    for rows in (slice(0, 1), slice(3, 8), slice(18, 19)):
        compare.exact(OPS.hadamard(x[rows], 1.0), whole[rows])
    x[5, 3] = float("nan")
    got = OPS.hadamard(x, 1.0)
    assert got[5].isnan().all()
    keep = [i for i in range(19) if i != 5]
    compare.exact(got[keep], whole[keep])


@pytest.mark.parametrize("n", [1024, 1536])
def test_threads_do_not_change_bits(n, isa):
    x, before = normal(130, n), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = OPS.hadamard(x, 1.0)
        torch.set_num_threads(2)
        two = OPS.hadamard(x, 1.0)
    finally:
        torch.set_num_threads(before)
    compare.exact(one, two)


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (0, 0), (2, 0, 16), (0,)])
def test_empty(shape, isa):
    x = torch.empty(shape)
    got = OPS.hadamard(x, 1.0)
    assert got.shape == x.shape and got.dtype == x.dtype


def test_the_result_is_a_new_tensor(isa):
    x = normal(2, 1)
    assert OPS.hadamard(x, 1.0).data_ptr() != x.data_ptr()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("n,block", [*SIZES, *MODEL_SIZES])
def test_hadamard_quantize(n, block, bits, isa):
    x = stored(normal(3, n, seed=n + bits), cases.STORAGES[n % 4])
    h = had.transform_fp32(x.numpy(), (block or n) ** -0.5, block)
    codes, scale = oracle.quantize_exact(h, bits, 0.9)
    q, got_scale = OPS.hadamard_quantize(x, bits, 0.9, block)
    compare.exact(q, codec.pack_nibbles(codes) if bits == 4 else codes.astype(np.int8))
    compare.exact(got_scale, scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n,block", SIZES[1::6])
def test_hadamard_quantize_keeps_fp32_between(n, block, dtype, isa):
    """The transform's result is not rounded to the input's dtype before it is quantised."""
    x = normal(4, n, seed=n).to(dtype)
    codes, scale = oracle.quantize_exact(
        had.transform_fp32(x.float().numpy(), (block or n) ** -0.5, block), 8
    )
    q, got_scale = OPS.hadamard_quantize(x, 8, 1.0, block)
    compare.exact(q, codes.astype(np.int8))
    compare.exact(got_scale, scale)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(0, 11),
    k=st.sampled_from((1, 12, 20, 28, 36)),
    blocks=st.integers(1, 3),
    rows=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_orthogonal_on_any_size(m, k, blocks, rows, seed):
    n = k << min(m, 6)
    x = torch.from_numpy(np.random.default_rng(seed).integers(-7, 8, (rows, blocks * n)).astype(np.float32))
    y = OPS.hadamard(x, 1.0, n)
    compare.exact(OPS.hadamard(y, 1.0, n, True), x * n)
    energy = (y.double() ** 2).sum(-1)
    compare.exact(energy, (x.double() ** 2).sum(-1) * n)
