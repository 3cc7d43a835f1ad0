"""rms_norm, gated, and with codes rms_norm_quantize, gated_quantize, quantize_static: exact on every ISA,
equal to the ops they fuse, and close to the textbook.
"""

import itertools
from dataclasses import dataclass, replace

import lowbit.reference as ref
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracle import cases, compare, fused

from .support import CPU_ONLY, ON_CPU, OPS, assert_unchanged, snapshot, stored, tensor
from .test_isa import run as run_program

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")

DEPTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 257, 576, 1000, 1025, 1536, 4099)
EPS = 1e-6


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    dtype: str = "float32"
    bits: int = 8
    static: bool = False
    index: str = "none"  # none, permutation, repeats, fewer
    step: bool = False
    shift: bool = False
    clip: float = 1.0
    storage: str = "plain"
    values: str = "normal"
    residual: bool = False
    gain_offset: float = 0.0
    activation: str = "silu"
    block: int | None = None

    def __str__(self) -> str:
        flags = [n for n in ("static", "step", "shift", "residual") if getattr(self, n)]
        flags += [] if self.block is None else [f"h{self.block}"]
        text = f"{'x'.join(map(str, self.shape))}-{self.dtype}-a{self.bits}-{self.index}-{self.storage}"
        return "-".join([text, self.values, self.activation, *flags])


def _cases(shapes):
    """Every shape, with options that cycle at different lengths, so that all pairs of them meet."""
    options = zip(
        itertools.cycle(("float32", "bfloat16", "float16", "float32", "bfloat16")),
        itertools.cycle((4, 8)),
        itertools.cycle((True, False, False)),
        itertools.cycle(("none", "permutation", "repeats", "none", "fewer", "none", "none")),
        itertools.cycle((True, False, True, False, False)),
        itertools.cycle((False, True, False)),
        itertools.cycle((1.0, 0.9, 1.0, 0.5)),
        itertools.cycle((*cases.STORAGES, "plain", "plain", "plain")),
        itertools.cycle(("normal", "outlier", "zero rows", "normal", "tiny", "huge", "ties", "integers")),
        itertools.cycle((True, False, False, True, True)),
        itertools.cycle((0.0, 1.0, 0.0)),
        itertools.cycle(("silu", "gelu_tanh", "silu", "gelu_tanh", "gelu_tanh")),
        strict=False,
    )
    for shape, (dtype, bits, static, index, step, shift, clip, storage, values, *rest) in zip(
        shapes, options, strict=False
    ):
        clip = 1.0 if static else clip
        yield Case(shape, dtype, bits, static, index, step, shift, clip, storage, values, *rest)


SHAPES = [(3, k) for k in DEPTHS] + [(2, 2, k) for k in DEPTHS[::2]] + [(k,) for k in DEPTHS[1::2]]
SHAPES += [(m, 40) for m in (0, 1, 2, 5, 64)] + [(3, 0)]
CASES = [*_cases(SHAPES), *list(_cases(SHAPES * 2))[len(SHAPES) + 1 :]]
BLOCKS = [
    (1536, 0),
    (1536, 128),
    (1536, 64),
    (576, 0),
    (576, 64),
    (64, 0),
    (64, 16),
    (256, 2),
    (12, 0),
    (1, 0),
]
ROTATED = [
    Case((3, k), dtype, bits, static, index, step=static, activation=activation, block=block)
    for (k, block), (dtype, bits, static, index, activation) in zip(
        BLOCKS * 2,
        itertools.cycle(
            (
                ("float32", 4, True, "none", "silu"),
                ("bfloat16", 8, False, "permutation", "gelu_tanh"),
                ("float16", 8, True, "repeats", "silu"),
            )
        ),
        strict=False,
    )
]


def rows(case: Case, width: int | None = None, seed: int = 0) -> Tensor:
    """The case's values in its dtype and storage; width replaces the last dimension."""
    shape = case.shape if width is None else (*case.shape[:-1], width)
    source = cases.RowCase(shape, case.dtype, case.storage, case.values)
    x = torch.from_numpy(cases.row_data(source, seed)).to(getattr(torch, case.dtype))
    return stored(x, case.storage)


def columns(case: Case, seed: int = 0) -> tuple[Tensor | None, Tensor, Tensor]:
    """index, and two fp32 vectors for its columns (steps away from zero; shifts)."""
    k = case.shape[-1]
    rng = np.random.default_rng((seed, k, len(case.index)))
    index = None
    if case.index == "permutation":
        index = rng.permutation(k)
    elif case.index != "none" and k:
        index = rng.integers(0, k, k + 5 if case.index == "repeats" else k // 2)
    wide = k if index is None else len(index)
    storage = "plain" if case.storage == "plain" else "strided"
    step = stored(tensor(rng.uniform(0.5, 40, wide).astype(np.float32)), storage)
    shift = stored(tensor(rng.normal(0, 2, wide).astype(np.float32)), storage)
    return None if index is None else stored(tensor(index.astype(np.int32)), storage), step, shift


def as_numpy(*args):
    return [compare.to_numpy(a) if isinstance(a, Tensor) else a for a in args]


def norm_args(case: Case, seed: int = 0) -> list:
    index, weight, shift = columns(case, seed)
    residual = rows(case, seed=seed + 1) if case.residual else None
    shift = shift if case.shift else None
    x = rows(case, seed=seed)
    return [x, weight, EPS, case.bits, residual, index, shift, case.static, case.clip, case.gain_offset]


def norm_expected(args: list) -> tuple[np.ndarray, ...]:
    x, weight, eps, bits, residual, index, shift, static, clip, gain_offset = as_numpy(*args)
    total = np.empty(0, dtype=x.dtype) if residual is None else fused.added(x, residual)
    v = fused.normalised(x if residual is None else total, weight, eps, index, gain_offset)
    return *fused.coded(fused.scaled(v, shift=shift), bits, static, clip), total


def gated_args(case: Case, seed: int = 0) -> list:
    index, step, shift = columns(case, seed)
    gate_up = rows(case, 2 * case.shape[-1], seed)
    step, shift = step if case.step else None, shift if case.shift else None
    return [gate_up, case.bits, case.activation, case.block, step, shift, index, case.static, case.clip]


def gated_expected(args: list) -> tuple[np.ndarray, ...]:
    gate_up, bits, activation, block, step, shift, index, static, clip = as_numpy(*args)
    return fused.coded(
        fused.scaled(fused.gated(gate_up, activation, block), index, step, shift), bits, static, clip
    )


def static_args(case: Case, seed: int = 0) -> list:
    index, step, shift = columns(case, seed)
    x, block = rows(case, seed=seed), case.block
    return [x, case.bits, step if case.step else None, shift if case.shift else None, index, block]


def static_expected(args: list) -> tuple[np.ndarray, ...]:
    x, bits, step, shift, index, block = as_numpy(*args)
    v = fused.scaled(fused.rotated(x.astype(np.float32), block), index, step, shift)
    return (fused.stored(fused.static_codes(v, bits), bits),)


def norm_float_args(case: Case, seed: int = 0) -> list:
    args = norm_args(replace(case, index="none"), seed)
    return [*args[:3], args[4], case.gain_offset]


def norm_float_expected(args: list) -> tuple[np.ndarray, ...]:
    x, weight, eps, residual, gain_offset = as_numpy(*args)
    total = np.empty(0, dtype=x.dtype) if residual is None else fused.added(x, residual)
    v = fused.normalised(x if residual is None else total, weight, eps, None, gain_offset)
    return v.astype(x.dtype), total


def gated_float_args(case: Case, seed: int = 0) -> list:
    return [rows(case, 2 * case.shape[-1], seed), case.activation, case.block]


def gated_float_expected(args: list) -> tuple[np.ndarray, ...]:
    gate_up, activation, block = as_numpy(*args)
    return (fused.gated(gate_up, activation, block).astype(gate_up.dtype),)


OPERATIONS = {
    "rms_norm": (norm_float_args, norm_float_expected),
    "gated": (gated_float_args, gated_float_expected),
    "rms_norm_quantize": (norm_args, norm_expected),
    "gated_quantize": (gated_args, gated_expected),
    "quantize_static": (static_args, static_expected),
}
CALLS = [
    pytest.param(name, case, id=f"{name}-{case}")
    for name in OPERATIONS
    for case in CASES + ([] if name.startswith("rms_norm") else ROTATED)
]


def call(name: str, args: list) -> tuple[Tensor, ...]:
    result = getattr(OPS, name)(*args)
    return result if isinstance(result, tuple) else (result,)


def same(got: tuple, want: tuple) -> None:
    for a, b in zip(got, want, strict=True):
        compare.exact(a, b, allow_empty=True, nan_equal=compare.to_numpy(b).dtype.kind != "i")


@pytest.mark.parametrize("name,case", CALLS)
def test_exact(name, case, isa):
    make, expected = OPERATIONS[name]
    args = make(case)
    tensors = [a for a in args if isinstance(a, Tensor)]
    before = snapshot(tensors)
    got = call(name, args)
    assert_unchanged(tensors, before)
    same(got, expected(args))
    assert all(t.is_contiguous() for t in got)


@pytest.mark.parametrize("name,case", CALLS[::3])
def test_equals_reference(name, case):
    args = OPERATIONS[name][0](case, seed=7)
    want = getattr(ref, name)(*args)
    same(call(name, args), want if isinstance(want, tuple) else (want,))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [4, 8])
def test_fused_equals_its_parts(bits, isa):
    """The values are the oracle's; what happens to them afterwards is what the plain ops do."""
    x, residual, weight = _random(5, 96).bfloat16(), _random(5, 96, seed=1).bfloat16(), _random(96, seed=2)
    quantize = OPS.quantize_int4 if bits == 4 else OPS.quantize_int8
    v = tensor(fused.normalised(*as_numpy(x + residual, weight), EPS))
    q, scale, total = OPS.rms_norm_quantize(x, weight, EPS, bits, residual)
    same((q, scale, total), (*quantize(v), x + residual))
    step, shift = _random(96, seed=3).abs() * 9, _random(96, seed=4)
    q, scale, _ = OPS.rms_norm_quantize(x, weight * step, EPS, bits, residual, None, shift, True)
    v = tensor(fused.normalised(*as_numpy(x + residual, weight * step), EPS))
    same((q, scale), (OPS.quantize_static(v, bits, None, shift), torch.empty(0)))

    gate_up, index = _random(5, 192, seed=5), torch.randperm(96).int()
    v = tensor(fused.gated(*as_numpy(gate_up), "silu"))
    same(OPS.gated_quantize(gate_up, bits, "silu", 32), OPS.hadamard_quantize(v, bits, 1.0, 32))
    same(OPS.gated_quantize(gate_up, bits), quantize(v))
    static = OPS.gated_quantize(gate_up, bits, "silu", 32, step, shift, index, True)
    same(static, (OPS.quantize_static(v, bits, step, shift, index, 32), torch.empty(0)))
    turned = OPS.hadamard(v, 32**-0.5, 32)
    same((OPS.quantize_static(turned, bits, step, shift, index),), static[:1])
    same((OPS.quantize_static(turned[:, index.long()], bits, step, shift),), static[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_floats_become_the_codes_of_the_fused_op(dtype, isa):
    """In fp32, where nothing is rounded on the way; elsewhere the codes are of the values before rounding."""
    x, weight, gate_up = _random(5, 96).to(dtype), _random(96, seed=2), _random(5, 192, seed=5).to(dtype)
    y, total = OPS.rms_norm(x, weight, EPS, x, 1.0)
    q, scale, same_total = OPS.rms_norm_quantize(x, weight, EPS, 8, x, gain_offset=1.0)
    z, (r, z_scale) = OPS.gated(gate_up, "gelu_tanh", 32), OPS.gated_quantize(gate_up, 8, "gelu_tanh", 32)
    same((total,), (same_total,))
    assert y.dtype == z.dtype == dtype
    for v, codes, s in ((y, q, scale), (z, r, z_scale)):
        if dtype == torch.float32:
            same(OPS.quantize_int8(v), (codes, s))
        off = (v.float() / s[:, None] - codes.float()).abs().max()
        assert off <= 0.5 + 127 * compare.UNIT[str(dtype).removeprefix("torch.")]


@pytest.mark.parametrize("static", [False, True])
def test_unpacked_codes_are_the_same_codes(static, isa):
    """One per byte, of an odd number of columns too; of eight bits they are that already."""
    x, weight = _random(5, 2, 64), _random(33, seed=1) * 9
    index, last = torch.arange(63, 30, -1).int(), (None, static)
    calls = {
        "rms_norm_quantize": (x, weight, EPS, 4, None, index, *last, 1.0, 0.0),
        "gated_quantize": (x.repeat(1, 1, 2), 4, "silu", 32, weight, None, index, static, 1.0),
        "quantize_static": (x, 4, weight, None, index, None),
    }
    for name, args in calls.items():
        packed, wide = (getattr(OPS, name)(*args, unpacked) for unpacked in (False, True))
        if name == "quantize_static":
            packed, wide = (packed,), (wide,)
        same((OPS.unpack_int4(packed[0], 33), *packed[1:]), wide)
        eight = [8 if type(a) is int and a == 4 else a for a in args]
        one, other = (getattr(OPS, name)(*eight, unpacked) for unpacked in (False, True))
        same(*((r,) if isinstance(r, Tensor) else r for r in (one, other)))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("case", [CASES[18], CASES[19], *ROTATED[:3]], ids=str)
def test_rows_are_independent_and_repeat(name, case, isa):
    args = OPERATIONS[name][0](replace(case, shape=(37, case.shape[-1]), storage="plain"))
    whole = call(name, args)
    same(call(name, args), whole)
    for i in (0, 1, 17, 36):
        one = [a[i] if isinstance(a, Tensor) and a.dim() == 2 else a for a in args]
        for a, b in zip(call(name, one), whole, strict=True):
            compare.exact(
                a.reshape(b[i : i + 1].shape), b[i : i + 1], allow_empty=True, nan_equal=b.is_floating_point()
            )


@CPU_ONLY
@pytest.mark.parametrize("name", OPERATIONS)
def test_threads_do_not_change_bits(name, isa):
    args = OPERATIONS[name][0](Case((700, 257), index="permutation", residual=True, shift=True))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = call(name, args)
        torch.set_num_threads(2)
        two = call(name, args)
    finally:
        torch.set_num_threads(before)
    same(two, one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_static_rounding_and_ends(bits, dtype, isa):
    low, high = fused.LIMITS[bits]
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 6.5, 7.5, -8.5, 126.5, 300.0, -300.0, 0.0, -0.0]]).to(
        dtype
    )
    want = [0, 2, 2, 0, -2, -2, 6, 8, -8, 126, 300, -300, 0, 0]
    q = fused.stored(np.clip(np.array([want]), low, high), bits)
    compare.exact(OPS.quantize_static(x, bits), q)
    bad = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0] * 5]).to(dtype)
    q = fused.stored(np.array([[low, high, low, 1] * 5]), bits)
    compare.exact(OPS.quantize_static(bad, bits), q)


@pytest.mark.parametrize("name", ["rms_norm_quantize", "gated_quantize"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 7, 40])
def test_a_row_that_is_not_finite_gives_a_nan_scale_and_zero_codes(name, bits, bad, at, isa):
    args = OPERATIONS[name][0](Case((5, 41), bits=bits))
    clean, clean_scale, *_ = call(name, args)
    args[0][3, at] = bad
    q, scale, *_ = call(name, args)
    compare.exact(scale[3:4], np.full(1, np.nan, dtype=np.float32), nan_equal=True)
    compare.exact(q[3], fused.stored(np.zeros(41, dtype=np.int64), bits))
    keep = [0, 1, 2, 4]
    same((q[keep], scale[keep]), (clean[keep], clean_scale[keep]))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("bits", [4, 8])
def test_activation_at_the_ends_of_exp(activation, bits, isa):
    """Exact where exp is clamped, and near zero; an up of 1 lets the activation itself be seen."""
    ends = [0.0, -0.0, 1e-30, -1e-30, 1e-8, 86.9, 87.0, 87.5, 88.0, 88.4, 89.0, 100.0, 1e4, 3e38]
    g = np.array([*ends, *(-e for e in ends), *np.linspace(-12, 12, 101)], dtype=np.float32)
    for gate in (g[:, None], g[None]):  # alone in a row, too: then the code is the largest
        gate_up = np.concatenate([gate, np.ones_like(gate)], -1)
        same(
            OPS.gated_quantize(tensor(gate_up), bits, activation),
            gated_expected([gate_up, bits, activation, *[None] * 4, False, 1.0]),
        )
        steps = np.full(gate.shape[1], 1e3, dtype=np.float32)
        args = [gate_up, bits, activation, None, steps, None, None, True, 1.0]
        same(
            call(
                "gated_quantize", [tensor(gate_up), bits, activation, None, tensor(steps), None, None, True]
            ),
            gated_expected(args),
        )


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_every_bit_of_the_activation(activation, isa):
    """A row of one value has the scale |value| / 127, which shows what 256 codes hide."""
    gate = np.linspace(-15, 15, 12001, dtype=np.float32)
    gate_up = np.stack([gate, np.ones_like(gate)], -1)
    _, scale = OPS.gated_quantize(tensor(gate_up), 8, activation)
    want = np.abs((fused.silu if activation == "silu" else fused.gelu_tanh)(gate)) / np.float32(127)
    compare.exact(scale, np.where(want < np.finfo(np.float32).tiny, np.float32(1), want))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gate_is_close_to_the_textbook(activation):
    """Within half a step of the real-number activation, and some roundings of it."""
    gate_up = np.random.default_rng(0).normal(0, 3, (64, 2 * 200)).astype(np.float32)
    q, scale = OPS.gated_quantize(tensor(gate_up), 8, activation)
    v = fused.activation64(gate_up[:, :200], activation) * gate_up[:, 200:].astype(np.float64)
    step = scale.numpy().astype(np.float64)[:, None]
    compare.elementwise(q.numpy() * step, v, step * (0.5 + 1e-4) + 1e-6 * np.abs(v).max(-1, keepdims=True))
    g = np.linspace(-80, 80, 20001, dtype=np.float32)  # and the activation alone
    got, want = (
        (fused.silu if activation == "silu" else fused.gelu_tanh)(g),
        fused.activation64(g, activation),
    )
    # exp(t) carries the roundings of t, |t| units each: one for silu, four for gelu's cubic
    t = np.abs(g) if activation == "silu" else 4 * np.minimum(1.6 * np.abs(g + 0.044715 * g**3), 88)
    compare.elementwise(got, want, np.abs(want) * (8 + t) * compare.UNIT["float32"] + 1e-15 * np.abs(g))


def test_norm_is_close_to_the_textbook():
    x, weight = np.random.default_rng(0).normal(0, 3, (64, 576)), np.random.default_rng(1).normal(0, 1, 576)
    x, weight = x.astype(np.float32), weight.astype(np.float32)
    q, scale, _ = OPS.rms_norm_quantize(tensor(x), tensor(weight), EPS, 8, None, None, None, False, 1.0, 1.0)
    x64 = x.astype(np.float64)
    v = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + EPS) * (1 + weight.astype(np.float64))
    step = scale.numpy().astype(np.float64)[:, None]
    compare.elementwise(q.numpy() * step, v, step * (0.5 + 1e-4))


def test_zero_rows_and_no_eps(isa):
    """0 / 0 is NaN, so a zero row needs its eps; with one it gives scale 1 and codes 0."""
    x, weight = torch.zeros(2, 19), torch.ones(19)
    q, scale, _ = OPS.rms_norm_quantize(x, weight, EPS, 8)
    assert scale.tolist() == [1, 1] and not q.any()
    assert OPS.rms_norm_quantize(x, weight, 0.0, 8)[1].isnan().all()
    q, scale = OPS.gated_quantize(torch.zeros(2, 38), 8)
    assert scale.tolist() == [1, 1] and not q.any()


def test_a_sum_that_only_its_dtype_rounds(isa):
    """The residual stream is rounded to bf16 before it is normalised: 256 + 1 is 256 there."""
    x, residual = torch.full((1, 8), 256.0).bfloat16(), torch.ones(1, 8).bfloat16()
    q, scale, total = OPS.rms_norm_quantize(x, torch.full((8,), 100.0), 0.0, 8, residual, None, None, True)
    assert total.tolist() == [[256.0] * 8] and q.tolist() == [[100] * 8]
    assert total.dtype == torch.bfloat16 and scale.shape == (0,)


F = _random(3, 24)
GU, W24 = _random(3, 48), torch.ones(24)
I24 = torch.arange(24, dtype=torch.int32)
BAD = [
    ("quantize_static", (F.double(), 8), ["x", "float64", "float32"]),
    ("quantize_static", (torch.tensor(1.0), 8), ["x", "dimension"]),
    ("quantize_static", (F, 5), ["bits", "5", "4 or 8"]),
    ("quantize_static", (F, 8, W24[:5]), ["inverse_step", "[5]", "[24]"]),
    ("quantize_static", (F, 8, W24.half()), ["inverse_step", "float16", "float32"]),
    ("quantize_static", (F, 8, None, W24[None]), ["shift", "[1, 24]", "[24]"]),
    ("quantize_static", (F, 8, W24, None, I24[:7]), ["inverse_step", "[24]", "[7]"]),
    ("quantize_static", (F, 8, None, None, I24.long()), ["index", "int64", "int32"]),
    ("quantize_static", (F, 8, None, None, I24[None]), ["index", "2 dim", "[K']"]),
    ("quantize_static", (F, 8, None, None, I24 + 1), ["index", "24", "0 to 23"]),
    ("quantize_static", (F, 8, None, None, I24 - 1), ["index", "-1", "0 to 23"]),
    ("quantize_static", (F, 8, None, None, None, 7), ["block", "7", "24"]),
    ("rms_norm", (F.long(), W24, EPS), ["x", "int64", "float32"]),
    ("rms_norm", (F, W24[:3], EPS), ["weight", "[3]", "[24]"]),
    ("rms_norm", (F, W24.bfloat16(), EPS), ["weight", "bfloat16", "float32"]),
    ("rms_norm", (F, W24, -1.0), ["eps", "-1", "at least 0"]),
    ("rms_norm", (F, W24, EPS, F[:2]), ["residual", "[2, 24]", "[3, 24]"]),
    ("rms_norm", (F, W24, EPS, F.half()), ["residual", "float16", "float32"]),
    ("gated", (GU.double(),), ["gate_up", "float64", "float32"]),
    ("gated", (GU[:, 1:],), ["gate_up", "47", "even"]),
    ("gated", (GU, "relu"), ["activation", "relu", "silu"]),
    ("gated", (GU, "silu", 7), ["block", "7", "24"]),
    ("rms_norm_quantize", (F.long(), W24, EPS, 8), ["x", "int64", "float32"]),
    ("rms_norm_quantize", (F, W24[:3], EPS, 8), ["weight", "[3]", "[24]"]),
    ("rms_norm_quantize", (F, W24.bfloat16(), EPS, 8), ["weight", "bfloat16", "float32"]),
    ("rms_norm_quantize", (F, W24, -1.0, 8), ["eps", "-1", "at least 0"]),
    ("rms_norm_quantize", (F, W24, float("nan"), 8), ["eps", "nan", "at least 0"]),
    ("rms_norm_quantize", (F, W24, EPS, 16), ["bits", "16", "4 or 8"]),
    ("rms_norm_quantize", (F, W24, EPS, 8, F[:2]), ["residual", "[2, 24]", "[3, 24]"]),
    ("rms_norm_quantize", (F, W24, EPS, 8, F.half()), ["residual", "float16", "float32"]),
    ("rms_norm_quantize", (F, W24, EPS, 8, None, I24[:7]), ["weight", "[24]", "[7]"]),
    ("rms_norm_quantize", (F, W24, EPS, 8, None, I24 * 2), ["index", "46", "0 to 23"]),
    ("rms_norm_quantize", (F, W24, EPS, 8, None, None, W24[1:]), ["shift", "[23]", "[24]"]),
    ("rms_norm_quantize", (F, W24, EPS, 8, None, None, None, False, 0.0), ["clip", "0 < clip <= 1"]),
    ("rms_norm_quantize", (F, W24, EPS, 8, None, None, None, True, 0.9), ["clip", "0.9", "static_scale"]),
    ("gated_quantize", (GU.int(), 8), ["gate_up", "int32", "float32"]),
    ("gated_quantize", (GU[:, :47], 8), ["gate_up", "47", "even"]),
    ("gated_quantize", (GU, 3), ["bits", "3", "4 or 8"]),
    ("gated_quantize", (GU, 8, "relu"), ["activation", '"relu"', '"silu"']),
    ("gated_quantize", (GU, 8, "silu", 5), ["block", "5", "24"]),
    ("gated_quantize", (GU, 8, "silu", None, torch.ones(48)), ["inverse_step", "[48]", "[24]"]),
    ("gated_quantize", (GU, 8, "silu", None, None, W24.double()), ["shift", "float64", "float32"]),
    ("gated_quantize", (GU, 8, "silu", None, None, None, I24 + 24), ["index", "47", "0 to 23"]),
    ("gated_quantize", (GU, 8, "silu", None, None, None, None, True, 0.5), ["clip", "0.5", "static_scale"]),
]


@pytest.mark.parametrize("name,args,words", BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_bad_argument(name, args, words):
    if "0 to 23" in words and not ON_CPU:
        pytest.skip("a check of values would wait for the GPU")
    with pytest.raises(RuntimeError) as caught:
        getattr(OPS, name)(*args)
    sentence = next(line for line in str(caught.value).splitlines() if line.startswith(f"{name}: "))
    for word in words:
        assert word in sentence, f"{word!r} is not in: {sentence}"


@CPU_ONLY
def test_an_index_into_nothing_is_refused():
    with pytest.raises(RuntimeError, match="index has values 0 to 0, expected 0 to -1"):
        OPS.quantize_static(torch.empty(2, 0), 8, None, None, torch.zeros(3, dtype=torch.int32))


@CPU_ONLY
def test_checked_mode_refuses_nan():
    program = """
import torch, lowbit
x = torch.ones(3, 16); x[1, 5] = float("inf")
w = torch.ones(16)
calls = [("quantize_static", "x", (x, 8)), ("rms_norm_quantize", "x", (x, w, 1e-6, 8)),
         ("rms_norm_quantize", "x", (x, w, 1e-6, 4, None, None, None, True)),
         ("gated_quantize", "gate_up", (x, 8)),
         ("gated_quantize", "gate_up", (x, 4, "silu", 0, None, None, None, True))]
for op, name, args in calls:
    try:
        getattr(torch.ops.lowbit, op)(*args)
        print(op, "passed")
    except RuntimeError as error:
        assert f"{op}: {name} has NaN or infinity in row 1" in str(error), error
    getattr(torch.ops.lowbit, op)(x[:1], *args[1:])
"""
    result = run_program(program, LOWBIT_CHECKED="1")
    assert result.returncode == 0 and result.stdout == "", result.stdout + result.stderr
    result = run_program(program)
    assert result.stdout.count("passed") == 5, result.stderr
