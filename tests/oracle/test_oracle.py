"""The oracle against itself, against ml_dtypes, and against the library's own specification."""

import lowbit.reference as ref
import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from . import cases, codec, compare, hadamard, ops

FACTORS = [4 * i for i in range(3, 44)]


@pytest.mark.parametrize("k", [k for k in FACTORS if hadamard.matrix(k) is not None])
def test_matrix_is_hadamard(k):
    h = hadamard.matrix(k)
    assert h.shape == (k, k) and set(np.unique(h)) == {-1, 1}
    assert (h @ h.T == k * np.eye(k, dtype=np.int64)).all()


def test_orders_up_to_172_are_all_there():
    """Every multiple of 4 up to 172 has a matrix or a half that has one."""
    for k in FACTORS:
        assert hadamard.matrix(k) is not None or hadamard.factor(k)[0] < k, k


@pytest.mark.parametrize("n", [*cases.POWERS, *cases.FACTORED, 11008, 14336])
def test_reference_uses_the_same_matrices(n):
    k, two = hadamard.factor(n)
    if k > 1:
        compare.exact(ref.hadamard_matrix(k).numpy().astype(np.int64), hadamard.matrix(k))
    assert k * two == n


@pytest.mark.parametrize("n", [1, 2, 8, 12, 28, 40, 72, 92, 576])
def test_transform_is_the_kronecker_product(n):
    k, two = hadamard.factor(n)
    x = np.random.default_rng(n).integers(-9, 10, (3, n))
    full = np.kron(hadamard.matrix(k), hadamard.sylvester(two))
    for transpose in (False, True):
        want = x @ (full if transpose else full.T)
        compare.exact(hadamard.transform(x, transpose=transpose), want.astype(np.float64))
        compare.exact(hadamard.transform_fp32(x, transpose=transpose), want.astype(np.float32))


@pytest.mark.parametrize(
    "size,block", [(n, None) for n in (*cases.POWERS[:10], *cases.FACTORED)] + list(cases.BLOCKED)
)
@pytest.mark.parametrize("transpose", [False, True])
def test_reference_hadamard(size, block, transpose):
    x = np.random.default_rng(size).standard_normal((3, size)).astype(np.float32)
    got = ref.hadamard(torch.from_numpy(x), 0.37, block, transpose)
    compare.exact(got, hadamard.transform_fp32(x, 0.37, block, transpose))
    terms = sum(hadamard.factor(block or size))
    want = hadamard.transform(x, float(np.float32(0.37)), block, transpose)
    compare.bounded(got, want, hadamard.magnitude(x, 0.37, block), terms, "float32")


@pytest.mark.parametrize("q", [3, 5, 9, 13, 25, 27, 37, 49])
def test_field(q):
    field = hadamard.Field(*hadamard.is_prime_power(q))
    rows = np.array([[field.multiply(a, b) for b in range(q)] for a in range(q)])
    assert (rows == rows.T).all() and (rows[1] == np.arange(q)).all()
    assert all(sorted(rows[a]) == list(range(q)) for a in range(1, q))  # no zero divisors
    squares = {rows[a, a] for a in range(1, q)}
    assert {e for e, c in enumerate(field.character()) if c == 1} == squares


@pytest.mark.parametrize("n,k", [(1, 1), (15, 7), (16, 8), (17, 9), (33, 66), (40, 65)])
def test_codecs_round_trip(n, k):
    q = np.random.default_rng(n).integers(-8, 8, (n, k))
    compare.exact(codec.unpack_nibbles(codec.pack_nibbles(q), k), q)
    compare.exact(codec.read_int4_tiles(codec.write_int4_tiles(q), n, k), q)
    compare.exact(codec.read_int8_tiles(codec.write_int8_tiles(q), n, k), q)


def test_nibbles_are_those_of_compressed_tensors():
    q = np.random.default_rng(0).integers(-8, 8, (6, 64))
    theirs = pack_to_int32(torch.from_numpy(q).to(torch.int8), 4).view(torch.uint8)
    compare.exact(codec.pack_nibbles(q), theirs.numpy())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("case", list(cases.row_cases()), ids=str)
def test_reference_quantize(case, bits):
    x = torch.from_numpy(cases.row_data(case)).to(getattr(torch, case.dtype))
    codes, scale = ops.quantize_exact(compare.to_numpy(x), bits, case.clip)
    got, got_scale = (ref.quantize_int4 if bits == 4 else ref.quantize_int8)(x, case.clip)
    compare.exact(got, codec.pack_nibbles(codes) if bits == 4 else codes.astype(np.int8), allow_empty=True)
    compare.exact(got_scale, scale, allow_empty=True)


@pytest.mark.parametrize("case", [*cases.linear_cases(4), *cases.linear_cases(8)], ids=str)
def test_reference_linear(case):
    data = cases.linear_data(case)
    w = ops.integer_weight(data.w_q, data.group_scale, case.group)
    want = ops.linear_exact(data.x_q, data.x_scale, w, data.w_scale, data.bias, case.out_dtype)
    x_q = codec.pack_nibbles(data.x_q) if case.activation == "int4" else data.x_q.astype(np.int8)
    x_scale, bias = (None if a is None else torch.from_numpy(a) for a in (data.x_scale, data.bias))
    out = getattr(torch, case.out_dtype)
    w_scale = torch.from_numpy(data.w_scale)
    if case.weight_bits == 8:
        tiles = torch.from_numpy(codec.write_int8_tiles(data.w_q))
        got = ref.int8_linear(torch.from_numpy(x_q), x_scale, tiles, w_scale, bias, out)
    else:
        tiles = torch.from_numpy(codec.write_int4_tiles(data.w_q))
        s = (
            None
            if data.group_scale is None
            else torch.from_numpy(codec.write_group_scale_tiles(data.group_scale))
        )
        got = ref.int4_linear(torch.from_numpy(x_q), x_scale, tiles, w_scale, s, bias, out)
    compare.exact(got, want, allow_empty=True)
    if got.numel():
        y64, magnitude = ops.linear64(data.x_q, data.x_scale, w, data.w_scale, data.bias)
        compare.bounded(got, y64, magnitude, 4, case.out_dtype)


@pytest.mark.parametrize(
    "case", [c for c in cases.row_cases((2, 8, 16, 64, 128)) if c.shape[-1] % 2 == 0], ids=str
)
def test_reference_kv4(case):
    x = torch.from_numpy(cases.row_data(case)).to(getattr(torch, case.dtype))
    codes, params = ops.kv4_quantize_exact(compare.to_numpy(x), case.clip)
    packed, got_params = ref.kv4_quantize(x, case.clip)
    compare.exact(got_params, params, allow_empty=True, nan_equal=True)
    compare.exact(packed, codec.pack_nibbles(codes - 8), allow_empty=True)
    got = ref.kv4_dequantize(packed, got_params)
    compare.exact(got, ops.kv4_dequantize_exact(codes, params), allow_empty=True, nan_equal=True)
