"""LLM-FP4: the search finds known optima, the fold is exact, and the kernels compute what it promised."""

import math
from dataclasses import replace

import lowbit
import pytest
import torch
from lowbit.formats import FLOAT_FORMATS, FP4_FORMATS, decode, round_to
from lowbit.nn import Fp4Linear, QuantizedLinear, WeightOnlyLinear
from lowbit.quantizers import calibration, fp4_weight
from lowbit.quantizers.llm_fp4 import (
    Fp4Activation,
    Fp4Options,
    fold,
    largest_shift,
    powers,
    pre_shift,
    search,
)
from lowbit.recipes import METHODS, Recipe
from lowbit.transforms import find_layout

from tests.models import tiny, token_ids
from tests.oracle import hadamard as had
from tests.recipes import test_smollm2 as smollm2

NAMES = [name for name in METHODS if "llm-fp4" in name]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outliers(tokens=512, k=64, seed=0):
    """Inputs [T, K] whose channels span three octaves and a few tens, as those of language models."""
    x = randn(tokens, k, seed=seed) * 2.0 ** torch.linspace(-1.5, 1.5, k)
    x[:, [5, 17]] *= 30
    return x


def error(layer, x, w, index=0):
    y = (x @ w.T).double()
    return ((layer.output(x, index).double() - y).norm() / y.norm()).item() ** 2


# ---- the formulas


@pytest.mark.parametrize("name", FP4_FORMATS)
def test_exponent_bias_is_the_papers_and_its_scale_puts_the_top_at_the_largest_value(name):
    """Against b~ = 2^e - log2(Qmax~) + log2(2 - 2^-m) - 1 and Qmax~ = 2^-b~ (2 - 2^-m) 2^(2^e - 1)."""
    f = FLOAT_FORMATS[name]
    e, m = f.exponent_bits, f.mantissa_bits
    top = torch.tensor([1e-4, 0.37, 1.0, 5.5, 3000.0])
    b = fp4_weight.exponent_bias(top, name)
    want = 2**e - top.double().log2() + math.log2(2 - 2.0**-m) - 1
    assert (b.double() - want).abs().max() <= 1e-5
    assert (2.0 ** -b.double() * (2 - 2.0**-m) * 2 ** (2**e - 1) / top - 1).abs().max() <= 1e-5
    assert (fp4_weight.scale_of(b, name) * f.max / top - 1).abs().max() <= 1e-5


@pytest.mark.parametrize("initial", [5.3, 1.0, 0.0, -0.4, -8.0])
def test_candidates_cover_what_is_useful_of_the_papers_range(initial):
    grid = fp4_weight.candidates(torch.tensor(initial), 100)
    assert grid.shape == (100,) and (grid.diff() > 0).all()
    low, high = sorted((0.01 * initial, 1.2 * initial))
    assert abs(grid[0] - (initial - 1)) <= 1e-5 and grid[-1] >= high - 1e-5
    assert grid[-1] - initial >= 3 - 1e-5 and low <= grid[-1]
    assert (grid - initial).abs().min() <= grid.diff().max()  # the initial one is as good as in it


@pytest.mark.parametrize("name", FP4_FORMATS)
def test_an_octave_more_than_the_absmax_is_never_better(name):
    """Why candidates below b~ - 1 are left out: element by element, for any scale."""
    x = torch.linspace(-1, 1, 20001)
    for scale in torch.linspace(1, 2.3, 14) / FLOAT_FORMATS[name].max:  # from the absmax up
        fine, coarse = ((round_to(x / s, name) * s - x).abs() for s in (scale, 2 * scale))
        assert (fine <= coarse + 1e-6).all() and fine.sum() < coarse.sum()


@pytest.mark.parametrize("name", FP4_FORMATS)
def test_pre_shift_follows_the_papers_clip(name):
    absmax = torch.tensor([100.0, 99.0, 51.0, 26.0, 1.0, 1e-9, 0.0])
    rho = float(fp4_weight.exponent_bias(absmax[:1], name)[0])
    b = pre_shift(absmax, rho, name)
    limit = 2 ** FLOAT_FORMATS[name].exponent_bits - 1
    want = [min(round(math.log2(100 / max(a, 1e-30))), limit) for a in absmax]
    assert b.dtype == torch.int8 and b.tolist() == want
    assert b[0] == 0 and int(b.max()) == largest_shift(name)
    assert pre_shift(absmax, rho, name, 1).tolist() == [min(v, 1) for v in want]
    assert not pre_shift(absmax, rho + 200, name).any()


def test_the_fold_is_exact():
    """(x_j 2^b_j) (w_j 2^-b_j) = x_j w_j bit for bit; powers of two move no mantissa."""
    x, w = randn(40, 96), randn(24, 96, seed=1)
    b = torch.randint(0, 8, (96,), generator=torch.Generator().manual_seed(2)).to(torch.int8)
    a = Fp4Activation("e2m1", torch.ones(1), b)
    assert b.max() == 7 and not torch.equal(fold(w, b), w)
    assert torch.equal(a.shifted(x)[:, None] * fold(w, b), x[:, None] * w)
    assert torch.equal(fold(fold(w, b), -b), w) and fold(w, None) is w
    assert torch.equal(powers(b, -1) * powers(b), torch.ones(96))
    # and of quantised operands: the shifted product is that of what the codes stand for
    assert torch.equal(a.round(x)[:, None] * fold(w, b), a.apply(x)[:, None] * w)


# ---- the search


@pytest.mark.parametrize("name", FP4_FORMATS)
def test_weights_on_a_grid_are_found_again(name):
    """Rows that lie on one format's grid, with scales of their own: that format, those scales, no error."""
    codes = torch.randint(0, 16, (24, 96), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    codes[:, 0] = 7  # every row reaches the largest value
    scale = 2.0 ** (4 * torch.rand(24, generator=torch.Generator().manual_seed(1)) - 6)
    w = decode(codes, name) * scale[:, None]
    layer = search(randn(300, 96, seed=2), [w], Fp4Options(activation=None, candidates=401))
    (q,) = layer.weights
    assert q.format == name
    # the candidates step by 1/100 of an octave: next to the true scale nearly all codes are the true ones
    assert (q.scale / scale).log2().abs().max() <= 0.02
    assert (decode(q.codes, name) == decode(codes, name)).float().mean() >= 0.995
    assert layer.loss <= 1e-4


@pytest.mark.parametrize("name", FP4_FORMATS)
@pytest.mark.parametrize("correlated", [False, True])
def test_the_search_is_near_the_exhaustive_one(name, correlated):
    """Against all 100 candidates of every row, by the whole Gram matrix in float64."""
    k, n = 48, 40
    x, w = randn(400, k), randn(n, k, seed=1)
    if correlated:
        x = x @ randn(k, k, seed=2) + 3 * randn(k, seed=3)
    gram = x.T @ x
    scale, loss = fp4_weight.search_scale(w, gram, fp4_weight.leading(gram), None, name)
    grid = fp4_weight.candidates(fp4_weight.exponent_bias(w.abs().amax(1), name))

    def exact(s):
        e = (round_to(w / s[:, None], name) * s[:, None] - w).double()
        return ((e @ gram.double()) * e).sum(1)

    every = torch.stack([exact(s) for s in fp4_weight.scale_of(grid, name)])
    absmax = exact(w.abs().amax(1) / FLOAT_FORMATS[name].max)
    torch.testing.assert_close(loss.double(), exact(scale), rtol=2e-3, atol=0)
    assert every.min(0).values.sum() <= loss.sum() * 1.0001
    assert loss.sum() <= 1.12 * every.min(0).values.sum()  # coarse to fine misses some
    assert loss.sum() <= 0.95 * absmax.sum()


def test_the_linear_term_makes_weights_answer_the_activations_error():
    """With it the found scales are better for what reaches the layer than those found without."""
    x, w = outliers(), randn(40, 64, seed=1)
    a = Fp4Activation("e2m1", x.abs().amax().reshape(1) / 30)  # clipped hard
    q = a.round(x)
    gram, cross = q.T @ q, w @ ((q - x).T @ q)
    metric = fp4_weight.leading(gram)

    def output(linear):
        scale, loss = fp4_weight.search_scale(w, gram, metric, linear, "e2m1")
        e = (q @ fp4_weight.quantized(w, scale, "e2m1").T - x @ w.T).double()
        return e.square().sum(), loss.double().sum()

    (ours, promised), (blind, _) = output(cross), output(None)
    assert ours < 0.999 * blind
    constant = ((q - x) @ w.T).double().square().sum()
    assert abs(promised + constant - ours) <= 1e-3 * ours  # the loss is the error but for that constant


def test_the_static_scale_is_the_best_of_all():
    """Per tensor and without a shift there is one number to find: against a fine sweep of it."""
    x, w = randn(600, 64), randn(48, 64, seed=1)
    options = Fp4Options(pre_shift=False, activation_formats=("e2m1",), rounds=1)
    found = search(x, [w], options).activation
    assert found.format == "e2m1" and found.exponent is None and found.scale.shape == (1,)

    def loss(scale):
        e = Fp4Activation("e2m1", scale).round(x) @ w.T - x @ w.T
        return float(e.square().sum())

    best = min(loss(torch.tensor([s])) for s in torch.linspace(0.05, 1.5, 300).tolist())
    assert loss(found.scale) <= 1.05 * best


def test_formats_follow_the_distribution():
    """Values spread evenly want mantissa bits, values with heavy tails exponent bits."""
    even = 2 * torch.rand(400, 64, generator=torch.Generator().manual_seed(1)) - 1
    heavy = randn(400, 64, seed=2) ** 3
    w, options = randn(32, 64, seed=3), Fp4Options(pre_shift=False)
    assert search(even, [w], options).activation.format == "e1m2"
    assert search(heavy, [w], options).activation.format != "e1m2"
    both = search(randn(500, 400, seed=4), [even.T.contiguous(), heavy.T.contiguous()], Fp4Options(None))
    assert both.weights[0].format == "e1m2" and both.weights[1].format != "e1m2"


@pytest.mark.parametrize("name", FP4_FORMATS)
def test_pre_shift_beats_none_on_channel_outliers(name):
    x, w = outliers(), randn(48, 64, seed=1)
    options = Fp4Options(activation_formats=(name,))
    plain = search(x, [w], Fp4Options(pre_shift=False, activation_formats=(name,)))
    shifted = search(x, [w], options)
    assert shifted.activation.exponent.max() >= 1 and shifted.executable
    # e3m0 reaches eight octaves by itself, e1m2 may shift by one only
    assert error(shifted, x, w) <= {"e2m1": 0.5, "e1m2": 0.75, "e3m0": 1.0}[name] * error(plain, x, w)


def test_the_papers_simulator_is_a_bound_that_no_kernel_reaches():
    """It rounds the weight unfolded. With the fold e2m1 loses something, and never claims otherwise."""
    x, w = outliers(), randn(48, 64, seed=1)
    folded, simulated = search(x, [w]), search(x, [w], Fp4Options(fold=False))
    assert folded.executable and not simulated.executable
    assert error(simulated, x, w) <= 1.02 * error(folded, x, w)
    # its weights are those of the layer as it is, the shift is in the activations alone
    plain = simulated.activation.apply(x) @ simulated.weights[0].dequantize().T
    assert torch.equal(simulated.output(x), plain)


def test_losses_are_the_errors_of_the_layer():
    x = outliers(1500)
    weights = [randn(40, 64, seed=1), randn(16, 64, seed=2)]
    for options in (Fp4Options(), Fp4Options(activation="token"), Fp4Options(activation=None)):
        layer = search(x, weights, options)
        y = [x @ w.T for w in weights]
        e = sum((layer.output(x, i) - y[i]).double().square().sum() for i in range(2))
        assert abs(layer.loss / (e / sum(t.double().square().sum() for t in y)) - 1) <= 2e-3


def test_massive_tokens_are_sampled_and_weighted():
    """Two tokens of 5000 carry nearly all of the energy: a sample without them would clip them away."""
    x, w = randn(5000, 64), randn(48, 64, seed=1)
    x[[7, 4000], 11] = 4000.0
    layer = search(x, [w], Fp4Options(pre_shift=False))
    big = torch.tensor([7, 4000])
    got, want = layer.output(x[big]), x[big] @ w.T
    assert (got - want).norm() <= 0.35 * want.norm()


@pytest.mark.parametrize("activation", ["tensor", "token", None])
def test_gptq_makes_up_for_what_rounding_leaves(activation):
    """On the tokens it was fitted to, and on others; its loss is the error as well."""
    mix = randn(64, 64, seed=3) * torch.logspace(0, -1.5, 64)[:, None]
    x, other = outliers(3000) @ mix, outliers(800, seed=9) @ mix
    w = randn(48, 64, seed=1)
    options = Fp4Options(activation)
    plain, ours = search(x, [w], options), search(x, [w], replace(options, gptq=True))
    assert ours.loss <= 0.8 * plain.loss and error(ours, other, w) <= 0.85 * error(plain, other, w)
    assert abs(ours.loss / error(ours, x, w) - 1) <= 2e-3
    assert ours.weights[0].codes.max() <= 15 and (ours.weights[0].scale > 0).all()


def test_gptq_leans_against_the_activations_error():
    """Inputs clipped to half of what they are want larger weights: GPTQ finds them, rounding cannot."""
    x, w = randn(2000, 32).sign() * 3, randn(24, 32, seed=1)
    x[:, 16:] = randn(2000, 16, seed=2)
    rounded = x.clone()
    rounded[:, :16] /= 2
    gram, linear = rounded.T @ rounded, w @ ((rounded - x).T @ rounded)
    q, _ = fp4_weight.compensated(w, gram, fp4_weight.leading(gram), linear, ("e2m1",))
    target = (rounded @ q.dequantize().T - x @ w.T).norm() / (x @ w.T).norm()
    found, _ = fp4_weight.search_format(w, gram, fp4_weight.leading(gram), linear, ("e2m1",))
    plain = (rounded @ found.dequantize().T - x @ w.T).norm() / (x @ w.T).norm()
    assert target <= 0.15 and plain >= 0.3


def test_rounds_never_make_it_worse_and_stop_by_themselves():
    x, w = outliers(), randn(48, 64, seed=1)
    one, three, many = (search(x, [w], Fp4Options(rounds=r)).loss for r in (1, 3, 30))
    assert three <= 1.05 * one and many <= 1.05 * one


def test_dead_channels_zero_rows_and_zero_inputs():
    x, w = outliers(), randn(20, 64, seed=1)
    x[:, 3] = 0
    w[4] = 0
    for options in (Fp4Options(), Fp4Options(activation="token"), Fp4Options(pre_shift=False)):
        layer = search(x, [w], options)
        out = layer.output(x)
        assert out.isfinite().all() and (out[:, 4] == 0).all() and (layer.weights[0].scale > 0).all()
        dead = search(torch.zeros(8, 64), [w], options)
        assert (dead.output(torch.zeros(8, 64)) == 0).all() and dead.loss == 0


def test_a_single_token_and_a_single_output_are_enough():
    layer = search(randn(1, 5), [randn(1, 5, seed=1)])
    assert layer.output(randn(1, 5)).shape == (1, 1) and layer.weights[0].codes.shape == (1, 5)


def test_codes_and_shapes_are_those_of_the_kernels():
    x, weights = outliers(), [randn(40, 64, seed=1), randn(16, 64, seed=2)]
    for options in (Fp4Options(), Fp4Options(activation="token"), Fp4Options(activation=None)):
        layer = search(x, weights, options)
        for q, w in zip(layer.weights, weights, strict=True):
            assert q.codes.dtype == torch.uint8 and q.codes.shape == w.shape and q.codes.max() <= 15
            assert q.scale.dtype == torch.float32 and q.scale.shape == (len(w),)
            assert q.group_scale is None and q.format in FP4_FORMATS
        a = layer.activation
        if a is not None:
            assert a.format in FP4_FORMATS and 0 < a.clip <= 1
            assert a.exponent.dtype == torch.int8 and a.exponent.shape == (64,)
            assert a.exponent.min() >= 0 and a.exponent.max() <= largest_shift(a.format)
            assert (a.scale is None) == (options.activation == "token")


def test_the_same_inputs_give_the_same_layer():
    x, w = outliers(), randn(48, 64, seed=1)
    one, two = search(x, [w]), search(x, [w])
    assert torch.equal(one.weights[0].codes, two.weights[0].codes) and one.loss == two.loss


# ---- refusals


W = torch.ones(4, 8)


@pytest.mark.parametrize(
    "x,weights,words",
    [
        (torch.ones(3, 8), [], "weights: expected at least one .* got none"),
        (torch.ones(3, 8), [torch.ones(8)], "weight: expected .* got 1 dimensions"),
        (torch.ones(3, 8), [W, torch.full((4, 8), math.nan)], "weight: expected finite values, got NaN"),
        (torch.ones(3, 8), [W, torch.ones(4, 7)], r"weights: expected 8 inputs in each, got \[8, 7\]"),
        (torch.ones(3, 9), [W], r"x: expected \[tokens, 8\], got \[3, 9\]"),
        (torch.ones(3, 2, 8), [W], r"x: expected \[tokens, 8\], got \[3, 2, 8\]"),
        (torch.ones(0, 8), [W], "calibration: expected at least one token, got none"),
        (torch.full((3, 8), math.inf), [W], "calibration: expected finite activations, got NaN or inf"),
    ],
)
def test_bad_arguments_are_refused(x, weights, words):
    with pytest.raises(ValueError, match=words) as caught:
        search(x, weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields,words",
    [
        (dict(activation="row"), "activation: expected tensor, token or None, got 'row'"),
        (dict(weight_formats=("e2m1", "e3m2")), "weight_formats: expected some of e2m1, .* got 'e3m2'"),
        (dict(activation_formats=()), "activation_formats: expected some of .* got none"),
        (dict(rounds=0), "rounds, candidates: expected at least 1 and 2, got 0 and 100"),
        (dict(candidates=1), "rounds, candidates: expected at least 1 and 2, got 3 and 1"),
    ],
)
def test_bad_options_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Fp4Options(**fields)


LLM = dict(weight_method="llm-fp4", weight_format="fp4")


@pytest.mark.parametrize(
    "fields,words",
    [
        (dict(weight_method="llm-fp4"), "weight_format: expected FP4 with llm-fp4, got None"),
        (dict(LLM, weight_format="e2m3", weight_bits=6, activation_bits=16), "expected FP4 .* got e2m3"),
        (dict(LLM, activation_bits=8, group_size=32), "activation_bits: expected 16 with these weights"),
        (
            dict(LLM, weight_method="llm-fp4-gptq", activation_bits=16, group_size=32),
            "group_size: expected None, or llm-fp4 and 16 .* got 32 with llm-fp4-gptq and 16",
        ),
        (dict(weight_format="e2m1", activation_format="fp4"), "activation_format: expected one .* got fp4"),
        (dict(LLM, activation_bits=8, pre_shift=True), "pre_shift: expected llm-fp4 with 4 activation bits"),
        (
            dict(weight_format="e2m1", activation_format="e2m1", static_activations=True),
            "static_activations: expected llm-fp4 with 4 activation bits, got rtn with 4",
        ),
    ],
)
def test_bad_recipes_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**fields)


# ---- models: what is loaded runs through the packed kernels


def test_the_methods_have_their_names():
    assert {
        "llm-fp4 w4a16", "llm-fp4 w4a16 g32", "llm-fp4 w4a8", "llm-fp4 w4a4 no-pre-shift",
        "llm-fp4 w4a4 pre-shift", "llm-fp4 w4a4kv4 pre-shift", "quarot llm-fp4 w4a4kv4",
        "quarot llm-fp4 gptq w4a4kv4",
    } <= set(NAMES)  # fmt: skip
    for name in NAMES:
        recipe = Recipe.from_name(name)
        assert recipe.needs_calibration and Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_packed_kernels_agree_with_fake_quantisation(name, arch):
    """Every layer of a quantised model against float64 of its codes, rounded as `Fp4Activation` rounds."""
    recipe = Recipe.from_name(name)
    model = lowbit.quantize(tiny(arch), name, token_ids(6, 48, 5), progress=False)
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    kind = WeightOnlyLinear if recipe.activation_bits == 16 else Fp4Linear
    seen = {}

    def compare(layer, args, output):
        x = args[0].float()
        if layer.input_hadamard is not None:
            n = layer.input_hadamard or x.shape[-1]
            x = torch.from_numpy(had.transform(x.double().numpy(), n**-0.5, n)).float()
        slack = 1e-5
        if kind is Fp4Linear:
            if layer.activation_format == "int8":
                step = x.abs().amax(-1, keepdim=True) / 127
                x, slack = (x / step).round() * step, 1e-2
            else:
                scale = layer.input_scale if layer.static_scale else None
                shift = layer.input_exponent if layer.pre_shift else None
                x = Fp4Activation(layer.activation_format, scale, shift, layer.clip).round(x)
                # the transform's last bit can move a value over a boundary of the grid
                slack = 1e-5 if layer.input_hadamard is None else 2e-2
        w = layer.dequantize().double()
        want = x.double() @ w.T + (0 if layer.bias is None else layer.bias.double())
        seen[layer] = ((output.double() - want).norm() / want.norm()).item() / slack

    handles = [m.register_forward_hook(compare) for m in layers]
    with torch.no_grad():
        logits = model(token_ids(2, 24)).logits
    for handle in handles:
        handle.remove()
    assert logits.isfinite().all() and len(seen) == len(layers) == 14
    assert all(type(m) is kind for m in layers) and max(seen.values()) <= 1
    if kind is Fp4Linear:
        options = {(m.static_scale, m.pre_shift) for m in layers}
        assert options == {(recipe.static_activations, recipe.pre_shift)}
        assert {m.activation_bits for m in layers} == {recipe.activation_bits}


def test_the_shift_is_in_the_stored_weight_and_not_in_the_effective_one():
    """`layer.weight`, which adapters see, is near the original; the stored one differs by powers of two."""
    model, plain = tiny("mistral"), tiny("mistral")
    lowbit.quantize(model, "llm-fp4 w4a4 pre-shift", token_ids(6, 48, 5), progress=False)
    shifts = []
    for name, layer in model.named_modules():
        if isinstance(layer, Fp4Linear):
            w = plain.get_submodule(name).weight
            assert (layer.weight - w).norm() <= 0.35 * w.norm()
            shifts.append(int(layer.input_exponent.max()))
    assert max(shifts) >= 1


def test_w4a16_is_better_than_w4a4_and_a_saved_model_comes_back(tmp_path):
    ids, calibration = token_ids(2, 40), token_ids(12, 48, 5)
    with torch.no_grad():
        plain = tiny("qwen3")(ids).logits
        errors = {}
        for name in ("llm-fp4 w4a16", "llm-fp4 w4a4 pre-shift"):
            model = lowbit.quantize(tiny("qwen3"), name, calibration, progress=False)
            got = model(ids).logits
            errors[name] = ((got - plain).norm() / plain.norm()).item()
            model.save_pretrained(tmp_path / name)
            again = type(model).from_pretrained(tmp_path / name)
            assert torch.equal(again(ids).logits, got)
    assert 0.01 <= errors["llm-fp4 w4a16"] <= 0.8 * errors["llm-fp4 w4a4 pre-shift"]


def test_calibration_is_refused_where_it_is_missing():
    with pytest.raises(ValueError, match=r"calibration: expected token ids .* got None"):
        lowbit.quantize(tiny(), "llm-fp4 w4a8", progress=False)


# ---- the real model (see test_smollm2.py); about ten minutes on 2 cores

directory, texts = smollm2.directory, smollm2.texts


class Simulated(torch.nn.Module):
    """A layer as the paper's simulator computes it: in floating point, the weight without the shift."""

    def __init__(self, layer, index):
        super().__init__()
        self.layer, self.index = layer, index

    def forward(self, x):
        return self.layer.output(x, self.index)


class SimulatedStage(calibration.LlmFp4Stage):
    def finish(self):
        weights = [linear.weight for linear in self.linears]
        layer = search(torch.cat(self.inputs), weights, Fp4Options(fold=False))
        assert not layer.executable
        self.modules = [Simulated(layer, i) for i in range(len(weights))]

    def forward(self, index, x):
        return x @ self.modules[index].layer.weights[index].dequantize().T


def simulate(model, ids):
    recipe = Recipe.from_name("llm-fp4 w4a4 pre-shift")
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "LlmFp4Stage", SimulatedStage)
        calibration.calibrate(find_layout(model), recipe, [ids], {}, lambda: None)
    return model


@pytest.mark.slow
def test_pre_shift_saves_the_model(directory, texts):
    """W4A4, static, no rotation: without the shift little is left of SmolLM2 (2310.16836, table 1: 42.7
    against 58.1 points on LLaMA-7B); and what the fold costs against the paper's simulator.
    """
    ppl = {"fp32": smollm2.ppl(smollm2.load(directory), texts[1])}
    for name in ("w4a4 pre-shift", "w4a4 no-pre-shift", "w4a8", "w4a16"):
        model = lowbit.quantize(smollm2.load(directory), f"llm-fp4 {name}", texts[0], progress=False)
        ppl[name] = smollm2.ppl(model, texts[1])
    ppl["simulated"] = smollm2.ppl(simulate(smollm2.load(directory), texts[0]), texts[1])
    print({name: round(value / ppl["fp32"], 3) for name, value in ppl.items()})
    assert 10 * ppl["w4a4 pre-shift"] <= ppl["w4a4 no-pre-shift"]
    assert 1.05 * ppl["w4a8"] <= ppl["w4a4 pre-shift"] <= 6 * ppl["fp32"]
    assert 1.01 * ppl["fp32"] <= ppl["w4a16"] <= 1.02 * ppl["w4a8"]
    assert ppl["w4a8"] <= ppl["simulated"] <= 1.1 * ppl["w4a4 pre-shift"]
