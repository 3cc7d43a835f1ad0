"""fp_linear: exact where sums are exact, within the derived bound elsewhere, the same bits on every ISA; AMX
tiles, which take many rows, have the bits of tiles in portable code.
"""

import dataclasses
import itertools

import lowbit.ops
import lowbit.reference as ref
import numpy as np
import pytest
import torch

from tests.oracle import compare, minifloat

from .support import (
    CPU_ONLY,
    FP_ISAS,
    ISAS,
    ON_CPU,
    OPS,
    assert_unchanged,
    set_isa,
    snapshot,
    stored,
    tensor,
)

WIDEST = "float32" if ON_CPU else "float16"  # of the activations that the device takes, the most exact
LARGEST = "float32" if ON_CPU else "bfloat16"  # and the one of the widest range


def here(case: minifloat.Case) -> minifloat.Case:
    return dataclasses.replace(case, dtype=WIDEST) if case.dtype == "float32" else case


CASES = [
    *map(here, minifloat.cases()),
    *(  # on a Hopper: wgmma, without groups and with
        minifloat.Case(70 + i, 90, 264, fmt, group, ("float16", "bfloat16")[i % 2], i % 3 == 0)
        for i, (fmt, group) in enumerate(itertools.product(minifloat.FORMATS, (None, 32, 64)))
    ),
    minifloat.Case(70, 40, 256, "int4", 128, "bfloat16"),  # on a Hopper: wgmma with groups
    minifloat.Case(1030, 70, 264, "e2m3", 32, "float16", True),  # on any card: torch's matmul
    *(  # in AMX tiles: pieces of k, blocks of rows, a single channel tile
        minifloat.Case(m, n, k, fmt, group, dtype, values=values)
        for (m, n, k), (fmt, group), (dtype, values) in zip(
            ((6, 33, 600), (17, 16, 33), (40, 40, 390), (49, 17, 776), (130, 33, 1100), (300, 33, 260)),
            (("e3m2", 32), ("e2m1", None), ("e2m3", None), ("int4", 128), ("e2m3", 64), ("int4", 32)),
            itertools.cycle(((WIDEST, "random"), ("bfloat16", "integers"), ("float16", "random"))),
            strict=False,
        )
    ),
]
BASE = [
    minifloat.Case(9, 37, 130, "e3m2", None, WIDEST, True),
    minifloat.Case(9, 37, 130, "e2m3", 32, WIDEST),
    minifloat.Case(34, 70, 1100, "e2m1", 64, "bfloat16", True),
    minifloat.Case(11, 40, 256, "int4", 128, WIDEST),
]


def order_of_sums(isa: str, rows: int, dtype: str) -> str:
    """What multiplies these rows: tiles and products of bf16 add in an order of their own."""
    if rows >= 6 and isa.startswith("amx"):
        return "tiles"
    if rows >= 6 and isa.startswith("avx512_bf16") and dtype == "bfloat16":
        return "pairs"
    return "vectors"


def terms(case: minifloat.Case) -> int:
    """Roundings to fp32 on the way to an output. On a card more than 64 rows of a grouped layer may meet
    weights that are rounded, scale and all, to the type of x.
    """
    rounded = not ON_CPU and case.group and case.m > 64
    return case.k + 8 + (2**17 if rounded else 0)


def arguments(case: minifloat.Case, d: minifloat.Data) -> list:
    """x, tiles, format, w_scale, group scale tiles, bias; the tiles from the oracle's own bytes."""
    x = stored(tensor(d.x).to(getattr(torch, case.dtype)), case.storage)
    packed = tensor(minifloat.pack(d.codes, case.format))
    scale = None if d.group_scale is None else lowbit.ops.prepack_fp_group_scale(tensor(d.group_scale))
    tiles = lowbit.ops.prepack_fp_weight(packed, case.format, case.k)
    return [x, tiles, case.format, tensor(d.w_scale), scale, tensor(d.bias)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_the_oracle(case, isa):
    d = minifloat.data(case)
    args = arguments(case, d)
    before = snapshot(args)
    y = OPS.fp_linear(*args)
    assert_unchanged(args, before)
    want, magnitude = minifloat.expected(case, d)
    empty = 0 in want.shape
    if case.values == "integers":  # every sum is exact; what is left is the rounding to the output's dtype
        compare.exact(y, torch.from_numpy(want).float().to(y.dtype), allow_empty=empty)
    else:
        compare.bounded(y, want, magnitude, terms(case), case.dtype, allow_empty=empty)


@CPU_ONLY
@pytest.mark.parametrize("case", [c for c in CASES if c.m][::3], ids=str)
def test_same_bits_on_every_isa(case):
    args, results = arguments(case, minifloat.data(case, seed=1)), {}
    before = lowbit.ops.isa()
    for isa in FP_ISAS:
        set_isa(isa)
        results[isa] = lowbit.ops.fp_linear(*args)
    set_isa(before)
    first = {}
    for isa, y in results.items():
        assert torch.equal(y, first.setdefault(order_of_sums(isa, case.m, case.dtype), y)), isa


@pytest.mark.parametrize("case", BASE, ids=str)
def test_rows_do_not_see_each_other(case, isa):
    d = minifloat.data(case)
    args = arguments(case, d)
    whole = OPS.fp_linear(*args)
    for first, last in ((0, 1), (1, 3), (2, 7), (4, 9), (3, 8), (8, 9), (0, 6), (2, 9), (1, 33)):
        x = args[0][first:last]
        if order_of_sums(isa, len(x), case.dtype) != order_of_sums(isa, case.m, case.dtype):
            rows, (want, magnitude) = slice(first, last), minifloat.expected(case, d)
            got = OPS.fp_linear(x, *args[1:])
            compare.bounded(got, want[rows], magnitude[rows], terms(case), case.dtype)
        else:
            compare.exact(OPS.fp_linear(x, *args[1:]), whole[first:last])
    x = args[0].clone()
    x[4] = float("nan")
    got = OPS.fp_linear(x, *args[1:])
    keep = [i for i in range(case.m) if i != 4]
    assert got[4].isnan().all()
    compare.exact(got[keep], whole[keep])


@pytest.mark.parametrize("rows", [2, 9])
def test_infinity_and_nan_are_not_lost(rows, isa):
    """An infinite activation gives what it gives in fp32; other rows do not see it."""
    case = minifloat.Case(rows, 40, 70, "e2m3", None, LARGEST, values="integers")
    d = minifloat.data(case)
    d.x[1, 69] = np.inf
    d.codes[0, 69], d.codes[1, 69], d.codes[2, 69] = 0b001000, 0b101000, 0  # 1, -1, 0
    got = OPS.fp_linear(*arguments(case, d))[:, :3]
    assert got[1, 0] == np.inf and got[1, 1] == -np.inf and got[1, 2].isnan()
    d.x[1, 69] = 0
    got = got[[i for i in range(rows) if i != 1]]
    compare.exact(got, OPS.fp_linear(*arguments(case, d))[[i for i in range(rows) if i != 1]][:, :3])


@pytest.mark.parametrize("case", [*BASE, *CASES[::11]], ids=str)
def test_residual(case, isa):
    """Added to the fp32 sum, behind the bias, before the one rounding."""
    args = arguments(case, minifloat.data(case))
    plain = OPS.fp_linear(*args)
    g = torch.Generator().manual_seed(case.n)
    residual = stored((torch.randn(plain.shape, generator=g) * 3).to(plain.dtype), "strided")
    before = snapshot([*args, residual])
    got = OPS.fp_linear(*args, residual)
    assert_unchanged([*args, residual], before)
    if ON_CPU:  # whose sums are the same ones in every dtype
        total = OPS.fp_linear(args[0].float(), *args[1:]) + residual.float()
        compare.exact(got, total.to(plain.dtype), allow_empty=True)
    else:
        unit, want = compare.UNIT[case.dtype], plain.double() + residual.double()
        bound = unit * (plain.double().abs() + want.abs()) + 1e-6
        compare.elementwise(got, want.numpy(), 1.01 * bound.numpy(), allow_empty=True)
    compare.exact(OPS.fp_linear(*args, torch.zeros_like(plain)), plain, allow_empty=True)


def test_a_residual_is_of_the_result():
    args = arguments(BASE[0], minifloat.data(BASE[0]))
    with pytest.raises(RuntimeError, match=r"fp_linear: residual has shape \[8, 37\], expected \[9, 37\]"):
        OPS.fp_linear(*args, torch.zeros(8, 37, dtype=args[0].dtype))
    with pytest.raises(RuntimeError, match="fp_linear: residual has dtype float64, expected float"):
        OPS.fp_linear(*args, torch.zeros(9, 37).double())


@pytest.mark.parametrize("case", BASE, ids=str)
def test_close_to_the_reference(case, isa):
    args = arguments(case, minifloat.data(case, seed=2))
    got, want = OPS.fp_linear(*args), ref.fp_linear(*args)
    d = minifloat.data(case, seed=2)
    _, magnitude = minifloat.expected(case, d)
    compare.bounded(got, want.double().numpy(), magnitude, terms(case), case.dtype)


@CPU_ONLY
@pytest.mark.parametrize("name", minifloat.FORMATS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 8), (33, 37), (5, 0), (0, 9)])
def test_tiles(name, n, k):
    """The prepacked weight, read by an independent reader, and unpacked again."""
    codes = np.random.default_rng((n, k)).integers(0, 1 << minifloat.BITS[name], (n, k)).astype(np.uint8)
    packed = tensor(minifloat.pack(codes, name))
    tiles = lowbit.ops.prepack_fp_weight(packed, name, k)
    assert torch.equal(tiles, ref.prepack_fp_weight(packed, name, k))
    assert np.array_equal(minifloat.read_tiles(tiles.numpy(), name, n, k), codes)
    back = ref.unprepack_fp_weight(tiles, name, n, k)
    if name == "int4" and k % 2:
        # its pad is the code of zero, 8
        back = back & torch.tensor([255] * (k // 2) + [15], dtype=torch.uint8)
    assert torch.equal(back, packed)


def test_every_code_at_every_place(isa):
    """One hot input: each output is one weight, for all codes at all eight steps of a tile."""
    for name in minifloat.FORMATS:
        count = 1 << minifloat.BITS[name]
        codes = (np.arange(count)[:, None] + np.arange(16)) % count
        case = minifloat.Case(16, count, 16, name, None, WIDEST)
        d = minifloat.Data(np.eye(16, dtype=np.float32), codes.astype(np.uint8), np.ones(count, np.float32),
                           None, None)  # fmt: skip
        want = minifloat.TABLES[name][codes].T.astype(np.float32)
        compare.exact(OPS.fp_linear(*arguments(case, d)), torch.from_numpy(want).to(getattr(torch, WIDEST)))


@pytest.mark.parametrize("low,high", [(0, 254), (78, 175), (79, 176), (79, 175)])
@pytest.mark.parametrize("rows", [1, 9])
def test_extreme_scales(rows, low, high, isa):
    """Group scales over the whole range of e8m0, its subnormal end included; around what tiles take into the
    weights.
    """
    scale = np.array([[low, low + 1, 127, high - 1, high]], np.uint8)
    codes = np.zeros((1, 160), np.uint8)
    codes[0, ::32] = 0b001000  # 1.0 in e2m3
    for g in range(5):
        x = np.zeros((rows, 160), np.float32)
        x[:, 32 * g] = 1.0
        d = minifloat.Data(x, codes, np.ones(1, np.float32), scale, None)
        y = OPS.fp_linear(*arguments(minifloat.Case(rows, 1, 160, "e2m3", 32, LARGEST), d))
        # the power of two that fp16 lends the codes is given back after the scale, so the smallest underflow
        want = float(np.float32(2.0 ** (int(scale[0, g]) - 127 - 14))) * 2.0**14
        assert (y == want).all()


@pytest.mark.parametrize("power", [-100, -80, -40, -21, -20, 40, 41, 70, 100])
@pytest.mark.parametrize("rows", [3, 9])
def test_activations_of_any_size(power, rows, isa):
    """Whole numbers times a power of two: exact, though the way through bf16 serves a part of the range."""
    for fmt, group in (("e3m2", None), ("e2m3", 32), ("e2m1", None)):
        case = minifloat.Case(rows, 40, 96, fmt, group, LARGEST, values="integers")
        d = minifloat.data(case)
        d.w_scale[:] = 1
        want, _ = minifloat.expected(case, d)
        d.x = (d.x * 2.0**power).astype(np.float32)
        want = torch.from_numpy(want * 2.0**power).float().to(getattr(torch, LARGEST))
        compare.exact(OPS.fp_linear(*arguments(case, d)), want)


@CPU_ONLY
def test_bf16_rows_of_any_size(isa):
    """Rows of normal numbers, of subnormals, of both, of both ends of the range, of zeros: sums are exact."""
    case = minifloat.Case(9, 40, 69, "e2m3", None, "bfloat16", values="integers")
    d = minifloat.data(case)
    d.w_scale[:] = 1
    d.codes[:, 0] = 8  # 1.0: the large element of a row is not lost
    whole, low = d.x.copy(), -100 if isa in ISAS else -133  # sums without tiles end at 2^-149
    for power in (low, -90, 0, 110):
        d.x = (whole * 2.0**power).astype(np.float32)
        d.x[1, ::2] = whole[1, ::2] * 2.0**low
        d.x[1, 1::2] = whole[1, 1::2] * 2.0 ** (low + 7)
        d.x[2] = 0
        d.x[3] = np.where(np.arange(69) == 1, 2.0 ** (low + 3), 0)
        d.x[4] = np.where(np.arange(69) == 0, 2.0**127 if isa not in ISAS else 2.0**100, 0)
        d.x[5] = np.where(np.arange(69) == 0, 2.0**100, 2.0**-100)
        want, _ = minifloat.expected(case, d)
        with np.errstate(over="ignore"):
            want = torch.from_numpy(want.astype(np.float32)).bfloat16()
        compare.exact(OPS.fp_linear(*arguments(case, d)), want)


def good(**changes) -> dict:
    args = {
        "x": torch.zeros(2, 40), "weight": torch.zeros(2, 5, 96, dtype=torch.uint8), "format": "e2m3",
        "w_scale": torch.ones(20),
    }  # fmt: skip
    return args | changes


@CPU_ONLY
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "e4m3"}, 'format is "e4m3", expected one of e3m2, e2m3, e2m1, e1m2, e3m0, int4'),
        ({"format": "e2m1"}, r"fp_linear: weight \(tiles .*\) has shape \[2, 5, 96\], expected \[2, 5, 64\]"),
        ({"x": torch.zeros(2, 41)}, r"weight .* has shape \[2, 5, 96\], expected \[2, 6, 96\]"),
        ({"x": torch.zeros(2, 40).double()}, "x has dtype float64, expected float32, bfloat16 or float16"),
        ({"w_scale": torch.ones(33)}, r"expected \[3, 5, 96\]"),
        ({"w_scale": torch.ones(20).half()}, "w_scale has dtype float16, expected float32"),
        ({"bias": torch.ones(19)}, r"bias has shape \[19\], expected \[20\]"),
        ({"group_scale": torch.ones(2, 2, 16)}, "group_scale has dtype float32, expected uint8"),
        (
            {"group_scale": torch.ones(2, 3, 16, dtype=torch.uint8)},
            r"group_scale has 3 groups for K = 40, expected ceil\(K / 32\)",
        ),
        ({"group_scale": torch.ones(1, 2, 16, dtype=torch.uint8)}, r"expected the \[2, groups, 16\]"),
    ],
)
def test_refusals(changes, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        lowbit.ops.fp_linear(**good(**changes))


@CPU_ONLY
def test_prepack_refusals():
    packed = torch.zeros(4, 6, dtype=torch.uint8)
    for args, sentence in (
        ((packed, "e2m3", 9), "6 bytes per row, expected 9 for 9 codes of e2m3"),
        ((packed, "e2m1", 10), "6 bytes per row, expected 5 for 10 codes of e2m1"),
        ((packed.int(), "e2m3", 8), "weight_packed has dtype int32, expected uint8"),
        ((packed[0], "e2m3", 8), "weight_packed has 1 dimensions"),
        ((packed, "int8", 6), 'format is "int8", expected one of'),
    ):
        with pytest.raises(RuntimeError, match=sentence):
            lowbit.ops.prepack_fp_weight(*args)
    scale = torch.full((2, 3), 127, dtype=torch.uint8)
    scale[1, 2] = 255
    with pytest.raises(RuntimeError, match=r"group_scale\[1, 2\] is 255, the NaN of e8m0"):
        lowbit.ops.prepack_fp_group_scale(scale)
    with pytest.raises(RuntimeError, match="group_scale has dtype float32, expected uint8"):
        lowbit.ops.prepack_fp_group_scale(torch.ones(2, 3))


@CPU_ONLY
def test_gradient_is_exact():
    """dL/dx = dL/dy W and dL/db = sum dL/dy, as of a plain linear with the same weight."""
    for case in (BASE[0], BASE[1]):
        args = arguments(case, minifloat.data(case))
        d = minifloat.data(case)
        w = torch.from_numpy(d.weight64(case) * d.w_scale[:, None].astype(np.float64)).float()
        x = args[0].clone().requires_grad_()
        bias = None if args[5] is None else args[5].clone().requires_grad_()
        residual = torch.randn(case.m, case.n, requires_grad=True)
        y = lowbit.ops.fp_linear(x, *args[1:5], bias, residual)
        grad = torch.randn_like(y)
        y.backward(grad)
        assert torch.equal(residual.grad, grad)
        torch.testing.assert_close(x.grad, grad @ w, rtol=1e-5, atol=1e-5)
        if bias is not None:
            torch.testing.assert_close(bias.grad, grad.sum(0), rtol=1e-6, atol=1e-5)


def test_threads_change_nothing(isa):
    case = minifloat.Case(5, 1030, 512, "e3m2", 64, WIDEST)
    args, results = arguments(case, minifloat.data(case)), []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(OPS.fp_linear(*args))
    torch.set_num_threads(before)
    assert all(torch.equal(y, results[0]) for y in results)


def test_all_formats_are_listed():
    from lowbit.minifloat import FLOAT_FORMATS

    assert sorted(minifloat.FLOATS) == sorted(FLOAT_FORMATS)
    assert len(list(itertools.groupby(sorted(c.format for c in CASES)))) == len(minifloat.FORMATS)
