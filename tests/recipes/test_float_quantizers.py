"""Weights on float grids: rounding, scales of three kinds, GPTQ, the choice of a format."""

import lowbit
import numpy as np
import pytest
import torch
from lowbit import formats
from lowbit.nn import Fp4Linear, WeightOnlyLinear
from lowbit.quantizers import FloatScheme, FloatWeight, IntegerScheme, gptq, rtn, rtn_by_output
from lowbit.quantizers.choice import choose, quantize_weights, schemes
from lowbit.quantizers.grid import FloatGrid
from lowbit.recipes import Recipe

from tests.models import tiny, token_ids

FLOATS = tuple(formats.FLOAT_FORMATS)
SCHEMES = [
    *(FloatScheme(f) for f in (*FLOATS, "int4")),
    FloatScheme("e2m3", 32), FloatScheme("e2m1", 32, "mx"), FloatScheme("e2m1", 32, "fp16"),
    FloatScheme("e3m2", 64), FloatScheme("int4", 32), FloatScheme("e2m1", 128),
]  # fmt: skip


def weight(n=30, k=160, seed=0, tail=0.0):
    """Gaussian, with columns of several sizes; tail > 0 makes a few elements of each row large."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(n, k, generator=g) * torch.logspace(-0.5, 0.5, k)
    return w * torch.exp(tail * torch.randn(n, k, generator=g))


def square(q, w, h=None):
    e = (q.dequantize() - w).double()
    return ((e if h is None else e @ h.double()) * e).sum().item()


def correlated(tokens, k, seed=0):
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=g) * torch.logspace(0, -2, k)[:, None]
    x = torch.randn(tokens, k, generator=g) @ mix
    return 2 / tokens * x.T @ x


@pytest.mark.parametrize("name", FLOATS)
def test_the_fast_rounding_is_the_codec(name):
    """Every value, every midpoint and both neighbours of each, many scales of random numbers, all signs."""
    values = formats.value_table(name).abs().unique()
    points = torch.cat([values, (values[1:] + values[:-1]) / 2])
    points = torch.cat([points, points.nextafter(points + 1), points.nextafter(points - 1)])
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(20000, generator=g) * 2.0 ** torch.randint(-9, 9, (20000,), generator=g)
    x = torch.cat([points, -points, noise, torch.tensor([0.0, 1e-38, -1e-45, 3e38, -3e38])])
    want = formats.round_to(x, name)
    assert torch.equal(FloatGrid(name).round_(x.clone()), want)
    strided = x.repeat(2).view(-1, 2)[:, 0]
    assert torch.equal(FloatGrid(name).round_(strided.clone()), formats.round_to(strided, name))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_rtn_gives_is_what_the_layers_store(scheme):
    w = weight(seed=1)
    w[4] = 0
    q = rtn(w, scheme)
    assert isinstance(q, FloatWeight) and q.format == scheme.format
    assert q.codes.dtype == (torch.int8 if scheme.format == "int4" else torch.uint8)
    assert q.scale.shape == (30,) and q.scale.dtype == torch.float32 and (q.scale > 0).all()
    assert q.scale_format == ("e8m0" if scheme.scale_format == "mx" else scheme.scale_format)
    layer = WeightOnlyLinear.from_weight(q)
    assert torch.equal(layer.dequantize(), q.dequantize())
    assert (q.dequantize()[4] == 0).all()
    half = q.rows(slice(10, 20))
    assert torch.equal(half.dequantize(), q.dequantize()[10:20]) and type(half) is FloatWeight


def test_dequantize_is_value_times_group_times_row():
    codes = torch.arange(64, dtype=torch.uint8).repeat(1, 2)
    scale, exponents = torch.tensor([0.3]), torch.tensor([[127, 120, 130, 1]], dtype=torch.uint8)
    q = FloatWeight(codes, scale, exponents, 32, "e2m3")
    value = formats.value_table("e2m3")[codes.long()]
    factor = 2.0 ** torch.tensor([0.0, -7.0, 3.0, -126.0]).repeat_interleave(32)
    assert torch.equal(q.dequantize(), value * factor * scale)
    q = FloatWeight(codes, scale, torch.tensor([[1.5, 0.1]]).half(), 64, "e2m3")
    factor = torch.tensor([1.5, 0.1]).half().float().repeat_interleave(64)
    assert torch.equal(q.dequantize(), value * factor * scale)


@pytest.mark.parametrize("name", FLOATS)
def test_the_search_beats_absmax_and_groups_beat_rows(name):
    w = weight(60, 256, tail=0.3)
    absmax = w.abs().amax(1, keepdim=True) / formats.FLOAT_FORMATS[name].max
    plain = (formats.round_to(w / absmax, name) * absmax - w).double().square().sum().item()
    row, g32, g128 = (square(rtn(w, FloatScheme(name, g, g and "fp16")), w) for g in (None, 32, 128))
    assert row <= (0.97 if name in formats.FP6_FORMATS else 0.93) * plain
    assert g32 < g128 < row


@pytest.mark.parametrize("name", ["e2m1", "e2m3"])
def test_power_of_two_scales(name):
    """A free row scale beats MX's, a search of the exponent beats OCP's rule, fp16 scales beat both."""
    w = weight(60, 256, tail=0.3)
    f = formats.FLOAT_FORMATS[name]
    groups = w.view(60, 8, 32)
    emax = int(np.floor(np.log2(f.max)))
    ocp = 2.0 ** (groups.abs().amax(-1, keepdim=True).log2().floor() - emax)
    rule = (formats.round_to(groups / ocp, name) * ocp - groups).double().square().sum().item()
    mx, free, fp16 = (rtn(w, FloatScheme(name, 32, kind)) for kind in ("mx", "e8m0", "fp16"))
    assert torch.equal(mx.scale, torch.ones(60)) and mx.group_scale.dtype == torch.uint8
    assert (free.scale >= 1).all() and (free.scale < 2).all() and len(free.scale.unique()) >= 4
    assert free.group_scale.dtype == torch.uint8 and fp16.group_scale.dtype == torch.float16
    assert square(fp16, w) < 0.9 * square(free, w) and square(free, w) < square(mx, w) < rule


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_tiny_and_huge_weights_keep_their_relative_error(scheme):
    """At 2^-40 and 2^40 as at 1: no scale under- or overflows, nor does the error that is searched."""
    w = weight(12, 128)
    relative = square(rtn(w, scheme), w) / w.double().square().sum().item()
    for power in (-40, 40):
        scaled = torch.ldexp(w, torch.tensor(power))
        q = rtn(scaled, scheme)
        assert q.dequantize().isfinite().all()
        got = square(q, scaled) / scaled.double().square().sum().item()
        assert abs(got - relative) <= 0.02 * relative


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_gptq_beats_rounding_on_its_own_objective(scheme, seed):
    h, w = correlated(2000, 160, seed), weight(48, 160, seed + 10)
    q = gptq(w, h, scheme)
    assert isinstance(q, FloatWeight) and (q.format, q.group_size) == (scheme.format, scheme.group_size)
    assert 0 < square(q, w, h) <= 0.6 * square(rtn(w, scheme), w, h)
    WeightOnlyLinear.from_weight(q).validate()


@pytest.mark.parametrize("scheme", [*SCHEMES, IntegerScheme(), IntegerScheme(4, 32)], ids=str)
def test_weighted_scales_beat_plain_ones_where_inputs_differ(scheme):
    """On the weighted error, which the plain search does not look at; equal weights change nothing."""
    w, importance = weight(tail=0.3), torch.logspace(2, -4, 160)[torch.randperm(160)]
    plain, weighted = rtn(w, scheme), rtn(w, scheme, importance)
    assert square(weighted, w, importance.diag()) <= 0.98 * square(plain, w, importance.diag())
    same = rtn(w, scheme, torch.full((160,), 0.5))
    assert torch.equal(same.dequantize(), plain.dequantize())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptq_with_an_identity_hessian_is_rounding(scheme):
    w = weight(20, 96)
    w[7] = 0
    ours, plain = gptq(w, torch.eye(96), scheme), rtn(w, scheme)
    assert torch.equal(ours.scale, plain.scale) and torch.equal(ours.codes, plain.codes)
    if scheme.group_size:
        assert torch.equal(ours.group_scale, plain.group_scale)


GROUPED = [scheme for scheme in SCHEMES if scheme.group_size]


@pytest.mark.parametrize("scheme", GROUPED, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_scales_by_the_output_beat_scales_by_the_weight(scheme, seed):
    """No row is worse, all together are much better; h has chosen the scales and nothing else."""
    h, w = correlated(2000, 160, seed), weight(48, 160, seed + 10)
    w[5] = 0
    plain, q = rtn(w, scheme), rtn_by_output(w, h, scheme)
    before, after = ([square(x.rows(slice(i, i + 1)), w[i], h) for i in range(48)] for x in (plain, q))
    assert all(a <= b * (1 + 1e-4) for a, b in zip(after, before, strict=True)) and after[5] == 0
    assert 0 < sum(after) <= (0.8 if scheme.scale_format == "fp16" else 0.95) * sum(before)
    assert torch.equal(q.scale, plain.scale) and q.group_scale.dtype == plain.group_scale.dtype
    steps = (q.group_factors() * q.scale[:, None]).repeat_interleave(scheme.group_size, 1)[:, :160]
    assert torch.equal(q.values(), scheme.grid.round_(w * (1.0 / steps)))
    WeightOnlyLinear.from_weight(q).validate()


def test_the_scale_of_a_single_group_is_the_best_candidate():
    scheme, h, w = FloatScheme("e2m1", 32, "fp16"), correlated(500, 32), weight(20, 32)
    plain, q = rtn(w, scheme), rtn_by_output(w, h, scheme)
    tried = torch.cat((plain.group_scale.T, scheme.group_candidates(w, plain.scale))).double()
    steps = tried[..., None] * plain.scale[:, None]
    e = formats.round_to(w.double() / steps, "e2m1") * steps - w
    best = ((e @ h.double()) * e).sum(-1).amin(0)
    got = (q.dequantize() - w).double()
    np.testing.assert_allclose(((got @ h.double()) * got).sum(1), best, rtol=1e-4)
    shares = tried[1:] * plain.scale * 6 / w.abs().amax(1)
    assert shares.amin() >= 0.499 and 1.99 <= shares.amax() <= 2.001 and len(tried) >= 20


def test_groups_without_input_keep_the_scales_of_the_weight():
    """And what the others do is the same as if those groups were not there."""
    scheme, w = FloatScheme("e2m1", 32, "fp16"), weight(16, 96)
    h = torch.zeros(96, 96)
    h[32:, 32:] = correlated(800, 64)
    q, part = rtn_by_output(w, h, scheme), rtn_by_output(w[:, 32:], h[32:, 32:], scheme)
    assert torch.equal(q.group_scale[:, 0], rtn(w, scheme).group_scale[:, 0])
    assert abs(square(q, w, h) / square(part, w[:, 32:], h[32:, 32:]) - 1) <= 0.02


@pytest.mark.parametrize("power", [-40, 40])
def test_the_search_by_the_output_does_not_depend_on_units(power):
    scheme, w, h = FloatScheme("e2m1", 32, "fp16"), weight(12, 128), correlated(800, 128)
    scaled, want = torch.ldexp(w, torch.tensor(power)), square(rtn_by_output(w, h, scheme), w, h)
    got = square(rtn_by_output(scaled, 5 * h, scheme), scaled, h) / 4.0**power
    assert abs(got - want) <= 0.02 * want


def test_a_search_by_the_output_needs_groups_and_their_hessian():
    with pytest.raises(ValueError, match=r"group_size: expected 32, 64 or 128 .* got None"):
        rtn_by_output(weight(4, 32), torch.eye(32), FloatScheme("e2m1"))
    with pytest.raises(ValueError, match=r"h: expected \[64, 64\], got \[32, 32\]"):
        rtn_by_output(weight(4, 64), torch.eye(32), FloatScheme("e2m1", 32))
    assert rtn_by_output(torch.empty(0, 64), torch.eye(64), FloatScheme("e2m1", 32)).codes.shape == (0, 64)


def test_the_order_of_the_searches_on_a_model():
    """By the output's own error, by the inputs' energies, by the weight alone."""
    ids, layers = token_ids(12, 64), 14
    with torch.no_grad():
        plain, errors = tiny("llama")(ids).logits, []
        for name in ("llm-fp4 w4a16 g32", "fp4 weighted w4a16 g32", "fp4 w4a16 g32"):
            model = lowbit.quantize(tiny("llama"), name, ids, progress=False)
            found = [m for m in model.modules() if isinstance(m, WeightOnlyLinear)]
            assert len(found) == layers and {(m.weight_format, m.group_size) for m in found} == {("e2m1", 32)}
            errors.append((model(ids).logits - plain).norm().item())
    assert 0 < errors[0] <= 0.97 * errors[1] and errors[1] < errors[2]


def test_the_better_format_is_chosen():
    """Near the row's absmax e2m3 has finer steps, far below it e3m2: bounded rows against heavy tails."""
    bounded, heavy = weight(30, 128), weight(30, 128, tail=1.5)
    six = tuple(FloatScheme(f) for f in formats.FP6_FORMATS)
    assert choose(bounded, six).format == "e2m3" and choose(heavy, six).format == "e3m2"
    four = tuple(FloatScheme(f) for f in formats.FP4_FORMATS)
    assert choose(torch.rand(30, 128) - 0.5, four).format == "e1m2"  # evenly spread: the integers
    assert choose(heavy, four).format != "e1m2"
    # the inputs have the last word: what no input carries does not count
    mixed = torch.cat([bounded, heavy], 1)
    for start, want in ((0, "e2m3"), (128, "e3m2")):
        h = torch.zeros(256, 256)
        h[start : start + 128, start : start + 128] = torch.eye(128)
        alone = mixed * (h.diagonal() > 0)
        assert choose(alone, six, h).format == want


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_linears_of_one_input_may_take_different_formats(method):
    recipe = Recipe(weight_bits=6, weight_format="fp6", activation_bits=16, weight_method=method)
    ws = [weight(8, 96), weight(5, 96, tail=1.5), weight(7, 96, seed=3)]
    h = correlated(1000, 96) if method == "gptq" else None
    found = quantize_weights(ws, recipe, torch.eye(96) if h is None else torch.diag(h.diagonal()))
    assert [q.format for q in found] == ["e2m3", "e3m2", "e2m3"]
    for q, w in zip(found, ws, strict=True):
        assert q.codes.shape == w.shape
        assert square(q, w) <= 2e-3 * w.double().square().sum()
    one = gptq if method == "gptq" else rtn
    alone = one(ws[1], *((torch.diag(h.diagonal()),) if h is not None else ()), FloatScheme("e3m2"))
    assert torch.equal(found[1].codes, alone.codes)


def test_schemes_of_recipes():
    assert schemes(Recipe()) == (IntegerScheme(4),)
    assert schemes(Recipe(activation_bits=16, group_size=64)) == (FloatScheme("int4", 64, "fp16"),)
    four = schemes(Recipe(activation_bits=16, weight_format="fp4"))
    assert [s.format for s in four] == ["e2m1", "e1m2", "e3m0"]
    assert schemes(Recipe.from_name("mxfp4")) == (FloatScheme("e2m1", 32, "mx"),)
    assert FloatScheme("e2m3", 32).scale_format == "e8m0" and FloatScheme("int4", 32).scale_format == "fp16"


@pytest.mark.parametrize(
    "arguments,words",
    [
        (("e4m3",), "weight_format: expected one of int4, e3m2, .*got 'e4m3'"),
        (("e2m1", 48), "group_size: expected None, 32, 64 or 128, got 48"),
        (("e2m1", None, "fp16"), "scale_format: expected it with group_size alone, got fp16, None"),
        (("e2m1", 64, "mx"), "scale_format: expected e8m0 for groups of 32 .*, got it for e2m1 with .*64"),
        (("int4", 32, "mx"), "scale_format: expected e8m0 .*got it for int4"),
        (("e2m1", 32, "fp8"), "scale_format: expected None, e8m0 or fp16, got 'fp8'"),
    ],
)
def test_schemes_that_do_not_exist(arguments, words):
    with pytest.raises(ValueError, match=words):
        FloatScheme(*arguments)


@pytest.mark.parametrize(
    "recipe,kind,bits",
    [
        (Recipe(weight_format="e2m1", activation_format="e2m1"), Fp4Linear, 4),
        (Recipe(weight_format="fp4", activation_format="e1m2", rotate=True, kv_bits=4), Fp4Linear, 4),
        (Recipe(weight_format="e2m1", activation_bits=8, weight_method="gptq"), Fp4Linear, 8),
        (
            Recipe(weight_format="e2m1", activation_format="e2m1", activation_clip=None, rotate=True),
            Fp4Linear,
            4,
        ),
        (Recipe(weight_format="fp6", weight_bits=6, activation_bits=16, rotate=True), WeightOnlyLinear, 16),
    ],
    ids=["w4a4", "rotated fp4 x e1m2", "gptq w4a8", "searched clip", "rotated w6a16"],
)
def test_models_of_float_layers(recipe, kind, bits):
    ids = token_ids(2, 32)
    with torch.no_grad():
        plain = tiny("qwen3")(ids).logits
        model = lowbit.quantize(tiny("qwen3"), recipe, token_ids(6, 48, 5), progress=False)
        got = model(ids).logits
    layers = [m for m in model.modules() if isinstance(m, kind)]
    assert len(layers) == 14 and all(m.activation_bits == bits for m in layers)
    if recipe.activation_clip is None:
        assert len({m.clip for m in layers}) > 1
    error = ((got - plain).norm() / plain.norm()).item()
    assert 1e-4 <= error <= {4: 1.4, 8: 1.0, 16: 0.2}[bits]
