"""dynamic_linear: the fused op has the bits of its parts, on every ISA, in every combination of options."""

import itertools
from dataclasses import dataclass

import lowbit.reference as ref
import numpy as np
import pytest
import torch

from tests.oracle import cases, codec, compare
from tests.oracle import hadamard as had
from tests.oracle import ops as oracle

from .support import (
    GEMM_ISAS,  # noqa: F401  (the isa fixture)
    OPS,
    assert_unchanged,
    snapshot,
    stored,
    tensor,
    weight_tiles,
)


@dataclass(frozen=True)
class Case:
    m: int
    n: int
    k: int
    bits: int  # activation
    weight_bits: int
    group: int | None
    dtype: str
    block: int | None
    clip: float
    bias: bool
    shift: bool
    storage: str

    def __str__(self) -> str:
        text = f"{self.m}x{self.n}x{self.k}-a{self.bits}-w{self.weight_bits}-g{self.group}-{self.dtype}"
        text += f"-h{self.block}"
        return text + f"-clip{self.clip}" + "-bias" * self.bias + "-shift" * self.shift + f"-{self.storage}"


# depth, and the blocks that it can be transformed in (0: all of it)
BLOCKS = {
    7: (None, 1),
    33: (None,),
    64: (None, 0, 16),
    65: (None, 1),
    96: (0, 32, None),
    130: (None, 2),
    576: (0, 64, None),
    40: (None, 0, 8),
    256: (None, 128, 0),
    1536: (0, 128, None),
    257: (None,),
}


def _cases():
    options = zip(
        itertools.cycle((4, 8)),
        itertools.cycle((4, 4, 8)),
        itertools.cycle((None, 32, 64, 128, None)),
        itertools.cycle(("float32", "bfloat16", "float32", "float16", "float32", "bfloat16", "float32")),
        itertools.cycle((1.0, 0.9, 1.0, 0.75)),
        itertools.cycle((True, False, False)),
        itertools.cycle((False, True, False, False, True, False, False, False)),
        itertools.cycle((*cases.STORAGES, "plain", "plain", *cases.STORAGES, "plain")),
        strict=False,
    )
    shapes = [
        (m, n, k, b) for k, blocks in BLOCKS.items() for b in blocks for m, n in ((1, 33), (5, 17), (9, 16))
    ]
    shapes += [(m, 40, 96, b) for m in cases.ROWS for b in (None, 0, 32)]
    shapes += [(3, 0, 64, 0), (0, 0, 64, None), (2, 5, 0, None), (70, 130, 64, 0)]
    for (m, n, k, block), (bits, w, group, dtype, clip, bias, shift, storage) in zip(
        shapes, options, strict=False
    ):
        yield Case(
            m, n, k, bits, w, group if w == 4 and k else None, dtype, block, clip, bias, shift, storage
        )


def make(case: Case, seed: int = 0):
    """(arguments of the op, exact answer)."""
    rng = np.random.default_rng((seed, case.m, case.n, case.k))
    dtype = getattr(torch, case.dtype)
    x = torch.from_numpy(rng.standard_normal((case.m, case.k)).astype(np.float32) * 3 + 0.5).to(dtype)
    low, high = (-7, 7) if case.weight_bits == 4 else (-127, 127)
    q = rng.integers(low, high + 1, (case.n, case.k))
    s = rng.integers(1, 17, (case.n, -(-case.k // case.group))).astype(np.uint8) if case.group else None
    w_scale = rng.uniform(1e-3, 0.1, case.n).astype(np.float32)
    bias = rng.standard_normal(case.n).astype(np.float32) if case.bias else None
    shift = rng.standard_normal(case.k).astype(np.float32) if case.shift else None
    with np.errstate(over="ignore"):  # float16 results may become inf, on both sides
        want = oracle.dynamic_linear_exact(
            compare.to_numpy(x),
            oracle.integer_weight(q, s, case.group),
            w_scale,
            bias,
            case.bits,
            case.clip,
            case.block,
            shift,
        )
    args = [
        stored(x, case.storage),
        weight_tiles(q, case.weight_bits),
        tensor(w_scale),
        None if s is None else tensor(codec.write_group_scale_tiles(s)),
        tensor(bias),
        case.bits,
        case.clip,
        case.block,
        tensor(shift),
    ]
    return args, want


CASES = list(_cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact(case, isa):
    args, want = make(case)
    before = snapshot(args)
    got = OPS.dynamic_linear(*args)
    assert_unchanged(args, before)
    compare.exact(got, want, allow_empty=True)


@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_equals_reference(case, isa):
    args, _ = make(case, seed=1)
    compare.exact(OPS.dynamic_linear(*args), ref.dynamic_linear(*args), allow_empty=True)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("block", [None, 0, 64])
def test_is_its_parts(bits, weight_bits, block, isa):
    """Quantise (or transform and quantise), then the integer linear: the same bits as the fused op."""
    args, _ = make(Case(6, 33, 192, bits, weight_bits, None, "float32", block, 0.9, True, False, "plain"))
    x, tiles, w_scale, _, bias = args[:5]
    if block is None:
        q, scale = (OPS.quantize_int4 if bits == 4 else OPS.quantize_int8)(x, 0.9)
    else:
        q, scale = OPS.hadamard_quantize(x, bits, 0.9, block or None)
    if weight_bits == 8:
        q = OPS.unpack_int4(q, 192) if bits == 4 else q
        parts = OPS.int8_linear(q, scale, tiles, w_scale, bias, torch.float32)
    else:
        parts = OPS.int4_linear(q, scale, tiles, w_scale, None, bias, torch.float32)
    compare.exact(OPS.dynamic_linear(*args), parts)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 1, 5), (7,), ()], ids=str)
def test_leading_dimensions(shape, isa):
    args, _ = make(
        Case(max(1, int(np.prod(shape))), 20, 96, 8, 4, 32, "float32", 0, 1.0, True, True, "plain")
    )
    flat = OPS.dynamic_linear(*args)
    args[0] = args[0].reshape(*shape, 96)
    got = OPS.dynamic_linear(*args)
    assert got.shape == (*shape, 20)
    compare.exact(got.reshape(-1, 20), flat)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [None, 0])
@pytest.mark.parametrize("rows", [19, 140])
def test_rows_do_not_see_each_other(bits, block, rows, isa):
    args, _ = make(Case(rows, 50, 160, bits, 4, 32, "float32", block, 1.0, True, True, "plain"))
    whole = OPS.dynamic_linear(*args)
    x = args[0]
    for part in (slice(0, 1), slice(1, 4), slice(5, 11), slice(2, 18)):
        compare.exact(OPS.dynamic_linear(x[part], *args[1:]), whole[part])
    x[3, 5] = float("nan")
    got = OPS.dynamic_linear(*args)
    assert got[3].isnan().all()
    keep = [i for i in range(rows) if i != 3]
    compare.exact(got[keep], whole[keep])


@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("block", [None, 0])
def test_a_row_that_is_not_finite_gives_nan(bad, block, isa):
    args, _ = make(Case(4, 18, 64, 8, 4, None, "bfloat16", block, 1.0, False, False, "plain"))
    args[0][2, 63] = bad
    got = OPS.dynamic_linear(*args)
    assert got[2].isnan().all() and got[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("weight_bits,group", [(4, None), (4, 32), (4, 128), (8, None)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("k", [64, 520, 2056])
def test_largest_sums(weight_bits, group, bits, k, isa):
    """Every code at an end and all signs alike: what overflows a narrow accumulator first."""
    rows = np.array([1, -1, 1] * 3, dtype=np.float32)[:, None] * np.ones((9, k), dtype=np.float32)
    rows[2::3, 1::2] *= -1
    low, high = (-8, 7) if weight_bits == 4 else (-128, 127)
    q = np.array([low, high, low, high])[:, None] * np.ones((4, k), dtype=np.int64)
    q[2, ::2], q[3, 1::2] = high, low
    s = np.full((4, -(-k // group)), 16, dtype=np.uint8) if group else None
    scale = np.ones(4, dtype=np.float32)
    clip = 0.5 if bits == 4 else 1.0  # reaches -8, too
    want = oracle.dynamic_linear_exact(rows, oracle.integer_weight(q, s, group), scale, None, bits, clip)
    tiles = None if s is None else tensor(codec.write_group_scale_tiles(s))
    w_tiles = weight_tiles(q, weight_bits)
    got = OPS.dynamic_linear(tensor(rows), w_tiles, tensor(scale), tiles, None, bits, clip)
    compare.exact(got, want)


@pytest.mark.parametrize("bias", [False, True])
def test_zero_row_gives_the_bias(bias, isa):
    args, _ = make(Case(3, 18, 64, 4, 4, 32, "float32", 0, 1.0, bias, False, "plain"))
    args[0].zero_()
    want = args[4].expand(3, 18) if bias else torch.zeros(3, 18)
    compare.exact(OPS.dynamic_linear(*args), want)


def test_shift_makes_a_constant_input_vanish(isa):
    args, _ = make(Case(3, 18, 64, 4, 4, None, "float32", None, 1.0, True, True, "plain"))
    args[0] = args[8].expand(3, 64)
    compare.exact(OPS.dynamic_linear(*args), args[4].expand(3, 18))


@pytest.mark.parametrize("weight_bits", [4, 8])
def test_threads_do_not_change_bits_and_repeat(weight_bits, isa):
    args, want = make(Case(67, 300, 256, 8, weight_bits, None, "bfloat16", 0, 1.0, True, True, "plain"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = OPS.dynamic_linear(*args)
        torch.set_num_threads(2)
        two, again = OPS.dynamic_linear(*args), OPS.dynamic_linear(*args)
    finally:
        torch.set_num_threads(before)
    compare.exact(one, want)
    compare.exact(two, one)
    compare.exact(again, one)


@pytest.mark.parametrize("bits", [4, 8])
def test_close_to_the_float_layer(bits, isa):
    """Companion to the exact tests: the distance from x @ W^T is what rounding to `bits` explains."""
    args, _ = make(Case(33, 64, 576, bits, 8, None, "float32", 0, 1.0, False, False, "plain"))
    x, tiles, w_scale = args[0].double().numpy(), args[1].numpy(), args[2].double().numpy()
    w = codec.read_int8_tiles(tiles, 64, 576) * w_scale[:, None]
    h = had.transform(x, 576**-0.5)
    step = np.abs(h).max(-1) / (2 ** (bits - 1) - 1)
    noise = np.sqrt(
        (step**2 / 12).mean() / (h**2).mean()
    )  # of uniform rounding errors, relative to the input
    y64, got = h @ w.T, OPS.dynamic_linear(*args).double().numpy()
    error = np.linalg.norm(got - y64) / np.linalg.norm(y64)
    assert 0.8 * noise <= error <= 1.2 * noise
    assert compare.cosine(got, y64) >= 1 - 2 * noise**2
