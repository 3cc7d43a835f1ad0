"""quantize_fp4 and fp4_linear: exact against the oracle on every ISA, for every pair of formats."""

import itertools
from dataclasses import replace

import lowbit.ops
import lowbit.reference as ref
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import cases, codec, compare, fp4

from .samples import SAMPLES, call
from .support import (
    GEMM_ISAS,
    ISAS,
    ON_CPU,
    OPS,
    assert_unchanged,
    row_input,
    set_isa,
    snapshot,
    stored,
    tensor,
)
from .test_errors import Q8, W4, W8, XS, S, X

LINEAR = list(fp4.linear_cases())
ROWS = list(cases.row_cases())
PAIRS = list(itertools.product((*fp4.FORMATS, "int8"), fp4.FORMATS))


class LinearCall:
    """Arguments of fp4_linear and the exact answer; tiles are written by the oracle's own packer."""

    def __init__(self, case: fp4.Case, seed: int = 0):
        data = fp4.data(case, seed)
        self.expected = data.expected(case)
        x = data.x.astype(np.int8) if case.x_format == "int8" else fp4.pack(data.x)
        self.args = [
            stored(tensor(x), case.storage),
            case.x_format,
            tensor(data.x_scale),
            tensor(fp4.weight_tiles(data.w)),
            case.w_format,
            tensor(data.w_scale),
            tensor(data.bias),
            getattr(torch, case.out_dtype),
        ]
        if case.storage != "plain":
            for i, storage in ((2, "strided"), (5, "strided"), (6, "offset")):
                if self.args[i] is not None:
                    self.args[i] = stored(self.args[i], storage)

    def __call__(self) -> torch.Tensor:
        return OPS.fp4_linear(*self.args)


def quantized(x: torch.Tensor, fmt: str, scale=None, exponent=None, clip=1.0) -> tuple:
    """What quantize_fp4 must return, as bytes and scales."""
    codes, s = fp4.quantize_exact(compare.to_numpy(x), fmt, scale, exponent, clip)
    return fp4.pack(codes), s


def check_quantized(got, want) -> None:
    for g, w in zip(got, want, strict=True):
        compare.exact(g, w, allow_empty=True, nan_equal=True)


# ---- fp4_linear


@pytest.mark.parametrize(("x_format", "w_format"), PAIRS)
def test_product_of_every_pair_of_codes(x_format, w_format, isa):
    """Each code times each code, with a scale of one: the product of their values."""
    x = np.arange(-128, 128) if x_format == "int8" else np.arange(16)
    w = np.arange(16)
    x_q = np.stack([x, np.zeros_like(x)], -1)  # the code 0 is zero everywhere
    x_q = x_q.astype(np.int8) if x_format == "int8" else fp4.pack(x_q)
    tiles = fp4.weight_tiles(np.stack([w, w], -1))
    got = OPS.fp4_linear(tensor(x_q), x_format, None, tensor(tiles), w_format, torch.ones(16))
    value = x if x_format == "int8" else fp4.values(x, x_format)
    compare.exact(got, np.outer(value, fp4.values(w, w_format)).astype(np.float32) + np.float32(0))


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_exact(case, isa):
    linear = LinearCall(case)
    compare.exact(linear(), linear.expected, allow_empty=0 in linear.expected.shape)


@pytest.mark.parametrize("case", LINEAR[::5], ids=str)
def test_equals_reference_and_leaves_inputs_alone(case, isa):
    linear = LinearCall(case, seed=1)
    before = snapshot(linear.args)
    got = linear()
    assert_unchanged(linear.args, before)
    compare.exact(got, ref.fp4_linear(*linear.args), allow_empty=True)


@pytest.mark.parametrize(("x_format", "w_format"), PAIRS)
@pytest.mark.parametrize("m", [1, 3, 4, 13])
def test_largest_sums_of_one_sign(x_format, w_format, m, isa):
    """All codes at one end: what a block too long for its accumulator could not hold, whole and in parts."""
    for k, (x_code, w_code) in itertools.product((8, 72, 4096), itertools.product((0, 1), repeat=2)):
        x = np.full((m, k), (127, -128)[x_code] if x_format == "int8" else 7 + 8 * x_code)
        w = np.full((17, k), 7 + 8 * w_code)
        scale = np.ones(17, np.float32)
        want = fp4.linear_exact(x, x_format, None, w, w_format, scale, None, "float32")
        x_q = x.astype(np.int8) if x_format == "int8" else fp4.pack(x)
        tiles = tensor(fp4.weight_tiles(w))
        compare.exact(OPS.fp4_linear(tensor(x_q), x_format, None, tiles, w_format, tensor(scale)), want)


BASE = [
    fp4.Case(9, 37, 130, "e2m1", "e2m1", True),
    fp4.Case(9, 37, 130, "e3m0", "e3m0", True),
    fp4.Case(9, 37, 130, "int8", "e1m2", True),
]


@pytest.mark.parametrize("case", BASE, ids=str)
def test_rows_do_not_see_each_other(case, isa):
    linear = LinearCall(case)
    whole = linear()
    linear.args[2][4] = float("nan")
    poisoned = linear()
    assert poisoned[4].isnan().all()
    keep = [i for i in range(case.m) if i != 4]
    compare.exact(poisoned[keep], whole[keep])
    x, x_scale = linear.args[0], linear.args[2]
    for first, last in ((0, 1), (1, 3), (5, 9)):
        linear.args[0], linear.args[2] = x[first:last], x_scale[first:last]
        compare.exact(linear(), whole[first:last])


@pytest.mark.parametrize("case", [replace(c, m=33, n=257, k=640) for c in BASE], ids=str)
def test_threads_and_repeats_do_not_change_bits(case, isa):
    linear = LinearCall(case)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            compare.exact(linear(), linear.expected)
    finally:
        torch.set_num_threads(before)


def test_default_arguments(isa):
    case = fp4.Case(5, 20, 48, "e2m1", "e3m0", x_scale=False)
    linear = LinearCall(case)
    compare.exact(OPS.fp4_linear(*linear.args[:6]), linear.expected)


def test_smallest_scales(isa):
    """Where the power of two cannot leave the scale as it is: w_scale * 2^-a rounds to a subnormal first."""
    case = fp4.Case(3, 16, 24, "e1m2", "e3m0")
    linear = LinearCall(case)
    data = fp4.data(case)
    data.w_scale = (np.linspace(1, 9, 16) * 2.0**-126).astype(np.float32)
    data.x_scale[:] = 1
    linear.args[2], linear.args[5] = tensor(data.x_scale), tensor(data.w_scale)
    compare.exact(linear(), data.expected(case))


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 70),
    k=st.integers(1, 200),
    pair=st.sampled_from(PAIRS),
    bias=st.booleans(),
    x_scale=st.booleans(),
    out=st.sampled_from(("float32", "bfloat16", "float16")),
    storage=st.sampled_from(cases.STORAGES),
    kind=st.sampled_from(("random", "extreme")),
    seed=st.integers(0, 1000),
)
def test_any_problem_on_all_isas(m, n, k, pair, bias, x_scale, out, storage, kind, seed):
    linear = LinearCall(fp4.Case(m, n, k, *pair, bias, x_scale, out, storage, kind), seed)
    before = lowbit.ops.isa()
    try:
        for name in GEMM_ISAS:
            set_isa(name)
            compare.exact(linear(), linear.expected)
    finally:
        set_isa(before)


# ---- quantize_fp4


@pytest.mark.parametrize("fmt", fp4.FORMATS)
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_quantize_exact(case, fmt, isa):
    """Plain, with a scale for all rows, with powers of two, with both."""
    x = row_input(case)
    k, size = x.shape[-1], float(compare.to_numpy(x).astype(np.float32)[..., :1].mean() if x.numel() else 1)
    scale = float(np.float32(abs(size) / 3)) if 1e-30 < abs(size) < 1e30 else 0.37
    exponent = np.random.default_rng(k).integers(-9, 10, k).astype(np.int8)
    before = snapshot([x])
    for s, e in itertools.product((None, scale), (None, exponent)):
        clip = case.clip if s is None else 1.0
        got = OPS.quantize_fp4(x, fmt, None if s is None else torch.tensor([s]), tensor(e), clip)
        check_quantized(got, quantized(x, fmt, s, e, clip))
    assert_unchanged([x], before)


@pytest.mark.parametrize("fmt", fp4.FORMATS)
@pytest.mark.parametrize("case", ROWS[::4], ids=str)
def test_quantize_equals_reference(case, fmt, isa):
    x = row_input(case, seed=2)
    exponent = torch.arange(x.shape[-1]).remainder(7).sub(3).to(torch.int8)
    for args in ((None, None, case.clip), (torch.tensor([0.7]), exponent, 1.0)):
        check_quantized(OPS.quantize_fp4(x, fmt, *args), ref.quantize_fp4(x, fmt, *args))


@pytest.mark.parametrize("fmt", fp4.FORMATS)
def test_every_value_midpoint_and_neighbour(fmt, isa):
    """Scale one: values keep their codes, midpoints go to the even significand, floats beside them do not."""
    table = np.array(fp4.MAGNITUDES[fmt], np.float32)
    middle = (table[:-1] + table[1:]) / 2
    below, above = (np.nextafter(middle, np.float32(to)) for to in (0, np.inf))
    others = np.float32([1e-45, 1e-30, table[-1] * 1.01, 1e30, 3e38])
    points = np.concatenate([table, middle, below, above, others])
    points = np.concatenate([points, -points])
    q, scale = OPS.quantize_fp4(tensor(points), fmt, torch.ones(1))
    codes = codec.unpack_nibbles(q.numpy(), len(points)) + 8
    assert codes[:8].tolist() == list(range(8))
    assert codes[8:15].tolist() == [i + up for i, up in enumerate(fp4.TIE_UP[fmt])]
    assert codes[15:22].tolist() == list(range(7)) and codes[22:29].tolist() == list(range(1, 8))
    assert codes[29:34].tolist() == [0, 0, 7, 7, 7]
    assert (codes[34:] == codes[:34] + 8).all() and scale.item() == 1


@pytest.mark.parametrize("fmt", fp4.FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 7, 8, 255, 256, 300])
def test_a_row_that_is_not_finite_gives_a_nan_scale_and_zero_codes(fmt, dtype, bad, at, isa):
    x = torch.randn(5, 301, generator=torch.Generator().manual_seed(at)).to(dtype)
    for fixed in (None, torch.tensor([0.25])):
        clean, clean_scale = OPS.quantize_fp4(x, fmt, fixed)
        poisoned = x.clone()
        poisoned[3, at] = bad
        q, scale = OPS.quantize_fp4(poisoned, fmt, fixed)
        assert scale[3].isnan() and (q[3] == 0).all()
        keep = [0, 1, 2, 4]
        compare.exact(q[keep], clean[keep])
        compare.exact(scale[keep], clean_scale[keep])


def test_a_power_of_two_that_leaves_the_range_is_not_finite(isa):
    x = torch.tensor([[1.0, 2.0**100, 3.0], [1.0, 2.0**20, 3.0]])
    q, scale = OPS.quantize_fp4(x, "e2m1", None, torch.tensor([0, 100, 0], dtype=torch.int8))
    assert scale[0].isnan() and (q[0] == 0).all() and scale[1] == 2.0**120 / np.float32(6)


@pytest.mark.parametrize("fmt", fp4.FORMATS)
def test_every_exponent(fmt, isa):
    """2^e of all of int8, subnormal ones included: x = 2^-e becomes one."""
    exponent = np.arange(-126, 128).astype(np.int8)
    x = np.ldexp(np.float32(1), -exponent.astype(np.int64)).astype(np.float32)
    exponent = np.append(exponent, [-127, -128]).astype(np.int8)
    x = np.append(x, np.float32([2.0**126, 2.0**126]))  # one half, one quarter
    got = OPS.quantize_fp4(tensor(x), fmt, torch.tensor([0.25]), tensor(exponent))
    check_quantized(got, quantized(tensor(x), fmt, 0.25, exponent))
    one, half, quarter = (fp4.encode(np.array(v / 0.25), fmt).item() for v in (1.0, 0.5, 0.25))
    codes = codec.unpack_nibbles(got[0].numpy(), len(x)) + 8
    assert (codes[:254] == one).all() and codes[254] == half and codes[255] == quarter


@pytest.mark.parametrize("fmt", fp4.FORMATS)
@pytest.mark.parametrize("size", [2.0**-149, 2.0**-130, 2.0**-126, 2.0**-124, 2.0**-122, 2.0**-118, 3.4e38])
def test_rows_at_the_ends_of_the_range(fmt, size, isa):
    """1 / scale stays finite: rows whose scale would be denormal become zero rows. The largest have a
    denormal inverse, with all its bits.
    """
    x = torch.tensor([[size, -size / 2, size * 0.37, 0.0]])
    check_quantized(OPS.quantize_fp4(x, fmt), quantized(x, fmt))


def test_zero_rows(isa):
    x = torch.zeros(3, 19)
    x[1] = -0.0
    for fmt in fp4.FORMATS:
        q, scale = OPS.quantize_fp4(x, fmt)
        assert (q == 0).all() and (scale == 1).all()
        q, scale = OPS.quantize_fp4(x, fmt, torch.tensor([2.0]))
        assert (q[0] == 0).all() and (q[1, :9] == 0x88).all() and (scale == 2).all()


def test_rows_are_independent_and_threads_do_not_change_bits(isa):
    x = torch.randn(700, 257, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-3, 3, 700)[:, None]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        q, scale = OPS.quantize_fp4(x, "e2m1")
        torch.set_num_threads(1)
        check_quantized(OPS.quantize_fp4(x, "e2m1"), (q, scale))
    finally:
        torch.set_num_threads(before)
    for i in range(0, 700, 37):
        one, one_scale = OPS.quantize_fp4(x[i], "e2m1")
        compare.exact(one, q[i])
        compare.exact(one_scale.reshape(1), scale[i].reshape(1))


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 600),
    fmt=st.sampled_from(fp4.FORMATS),
    dtype=st.sampled_from(("float32", "bfloat16", "float16")),
    clip=st.floats(0.01, 1.0),
    shift=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_rows_on_all_isas(k, fmt, dtype, clip, shift, seed):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((2, k)).astype(np.float32) * 20).to(getattr(torch, dtype))
    exponent = rng.integers(-15, 16, k).astype(np.int8) if shift else None
    want, before = quantized(x, fmt, None, exponent, clip), lowbit.ops.isa()
    try:
        for name in ISAS:
            set_isa(name)
            check_quantized(OPS.quantize_fp4(x, fmt, None, tensor(exponent), clip), want)
    finally:
        set_isa(before)


# ---- both


@pytest.mark.parametrize(("x_format", "w_format"), [p for p in PAIRS if p[0] != "int8"])
def test_a_layer_is_the_product_of_what_its_codes_stand_for(x_format, w_format, isa):
    """Quantise x and w, odd K: the result is the real product of the decoded values, to fp32 roundings."""
    generator = torch.Generator().manual_seed(3)
    x, w = torch.randn(7, 129, generator=generator), torch.randn(20, 129, generator=generator)
    x_q, x_scale = OPS.quantize_fp4(x, x_format)
    w_q, w_scale = OPS.quantize_fp4(w, w_format)
    y = OPS.fp4_linear(x_q, x_format, x_scale, torch.ops.lowbit.prepack_int4_weight(w_q), w_format, w_scale)

    def decoded(q, scale, fmt):
        value = fp4.values(codec.unpack_nibbles(q.numpy(), 129) + 8, fmt)
        return value * scale.numpy().astype(np.float64)[:, None]

    a, b = decoded(x_q, x_scale, x_format), decoded(w_q, w_scale, w_format)
    compare.elementwise(y, a @ b.T, np.abs(a @ b.T) * 4 * compare.UNIT["float32"])


F64 = torch.float64
NIBBLES = torch.zeros(3, 12, dtype=torch.uint8)
# op, arguments, words that the message must hold
BAD = [
    ("quantize_fp4", (X, "e4m3"), ["format", "e4m3", "e2m1, e1m2, e3m0"]),
    ("quantize_fp4", (X, "e3m2"), ["format", "e3m2", "e2m1, e1m2, e3m0"]),
    ("quantize_fp4", (X.to(F64), "e2m1"), ["x", "float64", "float32"]),
    ("quantize_fp4", (Q8, "e2m1"), ["x", "int8", "float32"]),
    ("quantize_fp4", (torch.tensor(1.0), "e2m1"), ["x", "dimension"]),
    ("quantize_fp4", (X, "e2m1", None, None, 1.5), ["clip", "1.5", "0 < clip <= 1"]),
    ("quantize_fp4", (X, "e2m1", None, None, 0.0), ["clip", "is 0", "0 < clip <= 1"]),
    ("quantize_fp4", (X, "e2m1", torch.ones(1), None, 0.5), ["clip", "0.5", "scale", "expected 1"]),
    ("quantize_fp4", (X, "e2m1", torch.ones(3)), ["scale", "[3]", "[1]"]),
    ("quantize_fp4", (X, "e2m1", torch.ones(1, dtype=F64)), ["scale", "float64", "float32"]),
    *[
        ("quantize_fp4", (X, "e2m1", torch.tensor([s])), ["scale is", word, "a finite number of at least"])
        for s, word in ((0.0, "0"), (-1.0, "-1"), (np.nan, "nan"), (np.inf, "inf"), (1e-39, "1e-39"))
    ],
    ("quantize_fp4", (X, "e2m1", None, torch.zeros(24)), ["exponent", "float32", "int8"]),
    ("quantize_fp4", (X, "e2m1", None, Q8[0, :20]), ["exponent", "[20]", "[24]"]),
    ("fp4_linear", (NIBBLES, "int4", XS, W4, "e2m1", S), ["x_format", "int4", "e2m1, e1m2, e3m0, int8"]),
    ("fp4_linear", (NIBBLES, "e2m1", XS, W4, "int8", S), ["w_format", "int8", "e2m1, e1m2, e3m0"]),
    ("fp4_linear", (Q8, "e2m1", XS, W4, "e2m1", S), ["x_q", "int8", "packed uint8", "e2m1"]),
    ("fp4_linear", (NIBBLES, "int8", XS, W4, "e2m1", S), ["x_q", "uint8", "expected int8"]),
    ("fp4_linear", (NIBBLES, "e2m1", XS, W8, "e2m1", S), ["weight", "int8", "prepack_int4_weight"]),
    ("fp4_linear", (NIBBLES[:, :8], "e2m1", XS, W4, "e2m1", S), ["weight", "[2, 3, 64]", "[2, 2, 64]"]),
    ("fp4_linear", (NIBBLES, "e2m1", XS, W4, "e2m1", S[:16]), ["weight", "[2, 3, 64]", "[1, 3, 64]"]),
    ("fp4_linear", (NIBBLES, "e2m1", XS[:2], W4, "e2m1", S), ["x_scale", "2", "3"]),
    ("fp4_linear", (NIBBLES, "e2m1", XS, W4, "e2m1", S.to(F64)), ["w_scale", "float64", "float32"]),
    ("fp4_linear", (NIBBLES, "e2m1", XS, W4, "e2m1", S, S[:3]), ["bias", "[3]", "[20]"]),
    ("fp4_linear", (NIBBLES, "e2m1", XS, W4, "e2m1", S, None, F64), ["out_dtype", "float64", "float32"]),
]


@pytest.mark.parametrize("name,args,words", BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_bad_argument(name, args, words):
    if not ON_CPU and ("a finite number of at least" in words or any(w.endswith("64]") for w in words)):
        pytest.skip("a check of values would wait for the GPU; weight tiles have other shapes there")
    with pytest.raises(RuntimeError) as caught:
        getattr(OPS, name)(*args)
    sentence = str(caught.value).split("\n")[0]
    assert sentence.startswith(f"{name}: "), sentence
    for word in words:
        assert word in sentence, f"{word!r} is not in: {sentence}"
    args, want = next(iter(SAMPLES[name]()))  # and the next call is fine
    want = want if isinstance(want, tuple) else (want,)
    for got, expected in zip(call(name, args), want, strict=True):
        compare.exact(got, expected)


def test_the_sum_of_a_layer_too_deep_for_32_bits_is_refused():
    """64 * 128 * K passes 2^31 at K = 262144."""
    k = 262144
    x = torch.full((1, k), -128, dtype=torch.int8)
    tiles = torch.full((1, k // 8, 64), 0xFF, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="262144"):
        OPS.fp4_linear(x, "int8", None, tiles, "e3m0", torch.ones(1))
    x = x[:, : k - 8]
    got = OPS.fp4_linear(x, "int8", None, tiles[:, : k // 8 - 1].contiguous(), "e3m0", torch.ones(1))
    assert got.item() == (k - 8) * 128 * 16
