"""Recipes on tiny random models: rotations change nothing, quantisers help, bad requests change nothing."""

import copy

import lowbit
import numpy as np
import pytest
import torch
from lowbit.nn import Fp4Linear, Int4Linear, Int8Linear, QuantizedLinear, StaticInt4Linear, WeightOnlyLinear
from lowbit.quantizers import IntegerScheme, gptq, rtn
from lowbit.quantizers.grid import INT4_FULL, INT8
from lowbit.quantizers.stages import fake_quantize
from lowbit.recipes import METHODS, Recipe
from lowbit.transforms import (
    exact_logits,
    find_layout,
    fold_norms,
    invariance_error,
    rotate,
    untie_embeddings,
)
from torch import nn

from tests.models import ARCHITECTURES, VOCABULARY, tiny, token_ids
from tests.oracle import hadamard as had
from tests.oracle import ops as oracle

NAMES = [name for name in METHODS if name not in ("fp32", "bf16")]


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_untouched(model, before, kinds):
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    after = model.state_dict()
    assert set(after) == set(before)
    for key, value in before.items():
        assert torch.equal(after[key], value), key


# ---- rotation ----


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype,limit", [(torch.float64, 1e-8), (torch.float32, 1e-3)])
@pytest.mark.parametrize("seed", [0, 3])
def test_rotated_logits_are_the_original_ones(name, dtype, limit, seed):
    model = tiny(name, dtype=dtype)
    layout, ids = find_layout(model), token_ids(1, 40)
    before = exact_logits(layout, ids)
    rotate(layout, seed)
    after = exact_logits(layout, ids)
    assert invariance_error(before, after) <= limit
    span = (before.max() - before.min()).item()
    assert (after - before).abs().max().item() <= limit * span
    assert before.abs().max() > 0 and before.dtype == dtype


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fold_norms_alone_is_exact_and_leaves_unit_gains(name):
    model = tiny(name, dtype=torch.float64)
    layout, ids = find_layout(model), token_ids(1, 20)
    before = exact_logits(layout, ids)
    untie_embeddings(layout)
    fold_norms(layout)
    assert invariance_error(before, exact_logits(layout, ids)) <= 1e-12
    for layer in layout.layers:
        assert (layer.input_norm.weight == 1).all() and (layer.mlp_norm.weight == 1).all()
    assert (layout.final_norm.weight == 1).all()


def test_the_residual_stream_is_really_rotated():
    """An orthogonal matrix that mixes every channel multiplies the embedding; seeds give different ones."""
    plain, one, two = (tiny("llama", dtype=torch.float64) for _ in range(3))
    rotate(find_layout(one), 0)
    rotate(find_layout(two), 1)
    e, r, s = (m.model.embed_tokens.weight.detach() for m in (plain, one, two))
    assert not torch.allclose(r, s)
    q = torch.linalg.lstsq(e, r).solution
    assert (q @ q.T - torch.eye(48)).abs().max() <= 1e-9
    assert (q.abs() - 48**-0.5).abs().max() <= 1e-9  # every entry is +-1/sqrt(n)


def test_down_projection_is_transformed_by_the_hadamard():
    plain, model = tiny("llama", dtype=torch.float64), tiny("llama", dtype=torch.float64)
    layout = find_layout(model)
    online = rotate(layout, 0)
    assert set(online) == {layer.down for layer in layout.layers}
    x = torch.randn(3, 80, dtype=torch.float64)
    want = had.transform(x.numpy(), 80**-0.5)
    got = online[layout.layers[0].down].apply(x)
    assert np.abs(got.numpy() - want).max() <= 1e-12
    # the product with the rotated weight, brought back by the embedding's rotation, is the plain product
    e, r = (m.model.embed_tokens.weight.detach() for m in (plain, model))
    q = torch.linalg.lstsq(e, r).solution
    back = got @ layout.layers[0].down.weight.detach().T @ q.T
    direct = x @ plain.model.layers[0].mlp.down_proj.weight.detach().T
    assert (back - direct).abs().max() <= 1e-9 * direct.abs().max()


def test_a_rotation_that_is_wrong_is_noticed(monkeypatch):
    import lowbit.quantize

    module = __import__("sys").modules["lowbit.quantize"]
    real = module.rotate

    def broken(layout, *how):
        online = real(layout, *how)
        layout.layers[1].gate.weight.data[0] *= 1.3
        return online

    monkeypatch.setattr(module, "rotate", broken)
    with pytest.raises(RuntimeError, match=r"rotation: expected logits to move by at most .* got "):
        lowbit.quantize(tiny(), "quarot rtn w4a4kv4", progress=False)


# ---- quantisers ----


def correlated(tokens, k, seed=0):
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(k, k, generator=g) * torch.logspace(0, -2, k)[:, None]
    return torch.randn(tokens, k, generator=g) @ mix


@pytest.mark.parametrize("group", [None, 32, 64, 128])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gptq_beats_rounding_on_its_own_objective(group, seed):
    k, n = 160, 48
    x, w = correlated(2000, k, seed), torch.randn(n, k, generator=torch.Generator().manual_seed(seed + 10))
    h = 2 / 2000 * x.T @ x

    def loss(q):
        e = (q.dequantize() - w).double()
        return ((e @ h.double()) * e).sum().item()

    ours, plain = (loss(q) for q in (gptq(w, h, IntegerScheme(4, group)), rtn(w, IntegerScheme(4, group))))
    assert 0 < ours <= 0.6 * plain


def test_gptq_with_an_identity_hessian_is_rounding():
    w = torch.randn(20, 96, generator=torch.Generator().manual_seed(0))
    ours, plain = gptq(w, torch.eye(96)), rtn(w)
    assert torch.equal(ours.scale, plain.scale)
    assert torch.equal(ours.codes, plain.codes)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_groups_are_finer_than_rows(group):
    w = torch.randn(30, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 256)
    row, grouped = rtn(w), rtn(w, IntegerScheme(4, group))
    assert ((grouped.dequantize() - w) ** 2).sum() <= 0.8 * ((row.dequantize() - w) ** 2).sum()
    assert grouped.group_scale.min() >= 1 and grouped.group_scale.max() <= 16
    assert grouped.codes.abs().max() <= 7


def test_dead_inputs_and_zero_rows():
    x = correlated(500, 64)
    x[:, 5] = 0
    w = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    w[3] = 0
    q = gptq(w, 2 / 500 * x.T @ x)
    assert q.dequantize().isfinite().all() and (q.codes[3] == 0).all() and (q.scale > 0).all()


# ---- whole models ----


def names_for_all():
    return [
        pytest.param(name, arch, id=f"{name}-{arch}")
        for i, name in enumerate(NAMES)
        for arch in ([*ARCHITECTURES] if i % 5 == 3 else [[*ARCHITECTURES][i % len(ARCHITECTURES)]])
    ]


@pytest.mark.parametrize("name,arch", names_for_all())
def test_every_recipe_runs_and_stays_near(name, arch):
    """At 8 bits the model barely moves; at 4 bits it stays correlated with the original."""
    model, ids = tiny(arch), token_ids(2, 32)
    plain = logits(model, ids)
    heads = {id(model.get_output_embeddings()), id(model.get_input_embeddings())}
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) not in heads]
    recipe = Recipe.from_name(name)
    assert lowbit.quantize(model, name, token_ids(6, 48, 5), progress=False) is model
    kind = Int4Linear if recipe.weight_bits == 4 else Int8Linear
    if recipe.weight_format is not None or recipe.activation_bits == 16:
        kind = WeightOnlyLinear if recipe.activation_bits == 16 else Fp4Linear
    kinds = (kind, StaticInt4Linear) if recipe.static_channels else (kind,)
    assert all(type(model.get_submodule(n)) in kinds for n in linears) and linears
    for n in linears:
        layer = model.get_submodule(n)
        assert layer.activation_bits == recipe.activation_bits and layer.group_size == recipe.group_size
        dithered = recipe.dither and isinstance(layer, StaticInt4Linear) and layer.gathered is not None
        assert getattr(layer, "mean_shift", False) == (recipe.mean_shift or dithered)
    got = logits(model, ids)
    assert got.isfinite().all() and got.shape == plain.shape
    error = ((got - plain).norm() / plain.norm()).item()
    limit = {8: 0.03, 6: 0.2, 4: 1.1}[recipe.weight_bits] if recipe.activation_bits >= 8 else 1.4
    assert 1e-5 <= error <= limit


def test_order_of_quality():
    """Over the same tokens: 8 bits beats 4-bit weights, which beat 4-bit everything."""
    ids, calibration = token_ids(4, 48), token_ids(16, 48, 5)
    plain = logits(tiny("qwen3"), ids)
    error = {}
    for name in ("quarot rtn w8a8", "quarot gptq w4a8kv4 g32", "quarot gptq w4a8kv4", "quarot gptq w4a4kv4"):
        model = lowbit.quantize(tiny("qwen3"), name, calibration, progress=False)
        error[name] = ((logits(model, ids) - plain).norm() / plain.norm()).item()
    assert sorted(error, key=error.get) == list(error), error


@pytest.mark.parametrize("name", ["quarot rtn w4a4kv4", "quarot rtn w8a8", "quarot gptq w4a8kv4 g64 +shift"])
def test_packed_kernels_agree_with_fake_quantisation(name):
    """The same model with every quantised layer replaced by float matmuls of fake-quantised operands."""
    model = lowbit.quantize(tiny("llama"), name, token_ids(6, 48, 5), progress=False)
    ids = token_ids(2, 24)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    seen = {}

    def compare_layer(layer, args, output):
        x = args[0].double()
        if layer.mean_shift:
            x = x - layer.input_shift.double()
        if layer.input_hadamard is not None:
            n = layer.input_hadamard or x.shape[-1]
            x = torch.from_numpy(had.transform(x.numpy(), n**-0.5, n))
        top = 2 ** (layer.activation_bits - 1) - 1
        step = x.abs().amax(-1, keepdim=True) * layer.clip / top
        ratio = x / step
        codes = ratio.round().clamp(oracle.LOWEST[layer.activation_bits], top)
        # a code within fp32 rounding of a tie may fall on either side
        tie = ((ratio - ratio.floor() - 0.5).abs() <= 1e-3 * (layer.activation_bits / 4)).double()
        w = layer.dequantize().double()
        want = (codes * step) @ w.T + (0 if layer.bias is None else layer.bias.double())
        slack = (tie * step) @ w.abs().T + 1e-5 * ((codes.abs() * step) @ w.abs().T) + 1e-6
        seen[layer] = ((output.double() - want).abs() - slack).max().item()

    handles = [m.register_forward_hook(compare_layer) for m in layers.values()]
    logits(model, ids)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(layers) == 14
    assert max(seen.values()) <= 0


@pytest.mark.parametrize("bits", [4, 8])
def test_calibration_clamps_as_the_kernels_do(bits):
    """Half of the values lie outside the clip, on both sides: the codes at both ends must be the kernel's."""
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).sign() * torch.linspace(0.2, 1, 64)
    op = {4: lowbit.ops.quantize_int4, 8: lowbit.ops.quantize_int8}[bits]
    codes, scale = op(x, 0.5)
    codes = lowbit.ops.unpack_int4(codes) if bits == 4 else codes
    want = codes.float() * scale[:, None]
    torch.testing.assert_close(fake_quantize(x, {4: INT4_FULL, 8: INT8}[bits], 0.5), want, rtol=1e-6, atol=0)


def test_same_seed_same_model_other_seed_other_model():
    ids = token_ids(1, 16)
    runs = [lowbit.quantize(tiny(), Recipe(rotate=True, seed=s), progress=False) for s in (0, 0, 1)]
    a, b, c = (logits(m, ids) for m in runs)
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["quarot rtn w8a8", "quarot gptq w4a8kv4 g32"])
def test_other_dtypes(dtype, name):
    ids = token_ids(1, 8)
    plain = logits(tiny("qwen2"), ids)
    model = lowbit.quantize(tiny("qwen2", dtype=dtype), name, token_ids(6, 48, 5), progress=False)
    got = logits(model, ids)
    assert got.dtype == dtype and {p.dtype for p in model.parameters()} == {dtype}
    error = ((got.double() - plain.double()).norm() / plain.double().norm()).item()
    assert 1e-5 <= error <= (0.06 if "w8a8" in name else 1.0)


def test_batch_rows_do_not_see_each_other():
    model = lowbit.quantize(tiny(), "quarot rtn w4a4kv4", progress=False)
    ids = token_ids(3, 20)
    together = logits(model, ids)
    alone = torch.cat([logits(model, ids[i : i + 1]) for i in range(3)])
    # attention itself is torch's; the layers of ours add nothing to its differences
    assert (together - alone).abs().max() <= 1e-2 * together.abs().max()


# ---- refusals ----


def _nan_weights():
    model = tiny()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    return model


def _gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=VOCABULARY))


def _opt():
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            num_hidden_layers=1,
            num_attention_heads=2,
            hidden_size=32,
            ffn_dim=64,
            vocab_size=VOCABULARY,
            word_embed_proj_dim=32,
        )
    )


def _gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(
        Gemma2Config(
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            hidden_size=32,
            intermediate_size=64,
            vocab_size=VOCABULARY,
        )
    )


def _quantised():
    return lowbit.quantize(tiny(), "rtn w8a8", progress=False)


CALIBRATION = token_ids(2, 16)
GPTQ = "quarot gptq w4a4kv4"
REFUSED = {
    "unknown recipe": (
        tiny,
        "quarot gptq w3a3",
        CALIBRATION,
        ValueError,
        r"recipe: expected a name that .*--list.*, got 'quarot gptq w3a3' \(did you mean 'quarot gptq w\d",
    ),
    "baseline": (tiny, "fp32", None, ValueError, "recipe: expected a quantised method, got 'fp32'"),
    "recipe type": (tiny, 4, None, TypeError, "recipe: expected a name or lowbit.Recipe, got int"),
    "no calibration": (tiny, GPTQ, None, ValueError, "calibration: expected token ids .* got None"),
    "empty list": (tiny, GPTQ, [], ValueError, "calibration: expected at least one sequence"),
    "empty tensor": (
        tiny,
        GPTQ,
        torch.zeros(0, 5, dtype=torch.int64),
        ValueError,
        r"calibration: .*\[0, 5\]",
    ),
    "nan": (
        tiny,
        GPTQ,
        torch.full((2, 5), float("nan")),
        ValueError,
        "calibration: expected integer token ids, .*NaN",
    ),
    "floats": (
        tiny,
        GPTQ,
        torch.ones(2, 5),
        ValueError,
        "calibration: expected integer token ids, got torch.float32",
    ),
    "token too large": (
        tiny,
        GPTQ,
        CALIBRATION + 90,
        ValueError,
        r"calibration: expected token ids in 0..95, got ",
    ),
    "token negative": (
        tiny,
        GPTQ,
        CALIBRATION - 50,
        ValueError,
        r"calibration: expected token ids in 0..95, got -",
    ),
    "three dimensions": (tiny, GPTQ, CALIBRATION[None], ValueError, r"calibration: .*\[1, 2, 16\]"),
    "nan weights": (
        _nan_weights,
        "rtn w4a4",
        None,
        ValueError,
        r"layers.1.mlp.up_proj.weight: expected finite",
    ),
    "nan weights rotated": (
        _nan_weights,
        GPTQ,
        CALIBRATION,
        ValueError,
        r"layers.1.mlp.up_proj.weight: expected finite",
    ),
    "no linear": (
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4)),
        "rtn w4a4",
        None,
        ValueError,
        "model: expected at least one nn.Linear .*got none in Sequential",
    ),
    "not a model": (
        lambda: nn.Parameter(torch.ones(3)),
        "rtn w4a4",
        None,
        TypeError,
        "model: expected torch.nn.Module",
    ),
    "LayerNorm": (
        _opt,
        "quarot rtn w4a4kv4",
        None,
        ValueError,
        "model: rotation expects .*got opt .*LayerNorm",
    ),
    "Conv1D": (
        _gpt2,
        "quarot rtn w4a4kv4",
        None,
        ValueError,
        "model: (rotation|expected) .*(gpt2|GPT2|none)",
    ),
    "post-norm": (
        _gemma2,
        "quarot rtn w4a4kv4",
        None,
        ValueError,
        "model: rotation expects .*got gemma2 .*post-norm",
    ),
    "no decoder": (
        lambda: nn.Sequential(nn.Linear(8, 8)),
        "quarot rtn w4a4kv4",
        None,
        ValueError,
        "model: .*got Sequential",
    ),
    "twice": (
        _quantised,
        "rtn w8a8",
        None,
        ValueError,
        "model: expected one in floating point, got .*already quantised",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_sentence_and_untouched(case):
    make, recipe, calibration, kind, words = REFUSED[case]
    model = make()
    is_module = isinstance(model, nn.Module)
    before = snapshot(model) if is_module else None
    kinds = {n: type(m) for n, m in model.named_modules()} if is_module else None
    with pytest.raises(kind, match=words) as caught:
        lowbit.quantize(model, recipe, calibration, progress=False)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 700
    if is_module:
        for key, value in before.items():
            before[key] = value.nan_to_num(1.5) if value.is_floating_point() else value
        after = copy.copy(model.state_dict())
        for key, value in after.items():
            value = value.nan_to_num(1.5) if value.is_floating_point() else value
            assert torch.equal(value, before[key]), key
        assert {n: type(m) for n, m in model.named_modules()} == kinds


@pytest.mark.parametrize(
    "fields,words",
    [
        (dict(weight_bits=3), "weight_bits: expected one of 4, 6, 8, got 3"),
        (dict(activation_bits=6), "activation_bits: expected one of 4, 8, 16, got 6"),
        (dict(weight_bits=8, activation_bits=16), "activation_bits: expected 4 or 8 with weight_bits 8"),
        (dict(weight_bits=6, activation_bits=16), "weight_format: expected one of 6 bits, got .* with None"),
        (dict(weight_format="e2m3", activation_bits=16), "weight_format: expected one of 4 bits, got .*e2m3"),
        (dict(weight_format="e4m3"), "weight_format: expected one of None, fp6, fp4, e3m2, .*got e4m3"),
        (dict(weight_format="fp6", weight_bits=6, activation_bits=8), "activation_bits: expected 16 .*got 8"),
        (dict(weight_format="e2m1"), "activation_bits: expected 16 with these weights, got 4 with e2m1"),
        (
            dict(weight_format="e2m1", activation_format="e2m1", group_size=32),
            "activation_bits: expected 16 with these weights, got 4 with e2m1 in groups",
        ),
        (dict(activation_format="e2m1"), "activation_format: expected None but for FP4 weights and 4 bits"),
        (
            dict(weight_format="e2m1", activation_format="e3m2"),
            "activation_format: expected one of None, .*e2m1, e1m2, e3m0, got e3m2",
        ),
        (
            dict(weight_format="e2m1", activation_bits=8, mean_shift=True),
            "mean_shift, quantized_calibration: expected False with a weight_format",
        ),
        (dict(activation_bits=16, mean_shift=True), "expected False with activation_bits 16"),
        (dict(activation_bits=16, scale_format="fp16"), "scale_format: expected it with group_size alone"),
        (
            dict(activation_bits=16, group_size=32, scale_format="e8m0"),
            "scale_format: expected e8m0 for groups of 32 of a float format, got it for int4",
        ),
        (dict(group_size=32, scale_format="fp16"), "scale_format: expected None without activation_bits 16"),
        (dict(kv_bits=8), "kv_bits: expected one of 4, 16, got 8"),
        (dict(group_size=100), "group_size: expected one of None, 32, 64, 128, got 100"),
        (dict(weight_method="awq"), "weight_method: expected one of rtn, rtn-weighted, gptq, .*got awq"),
        (dict(activation_clip=0.0), r"activation_clip: expected a value in \(0, 1\], got 0"),
        (dict(kv_clip=1.5), r"kv_clip: expected a value in \(0, 1\], got 1.5"),
        (dict(weight_bits=8, group_size=32), "group_size: expected None with weight_bits 8, got 32"),
        (dict(damp=-1.0), r"damp: expected a value in \[0, 1\], got -1"),
    ],
)
def test_recipe_fields_are_checked(fields, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**fields)


def test_recipes_round_trip_and_have_names():
    for name in NAMES:
        recipe = Recipe.from_name(name)
        assert recipe.name == name and Recipe.from_dict(recipe.to_dict()) == recipe
        assert Recipe.from_name(name.upper()) == recipe
    with pytest.raises(ValueError, match="did you mean 'rtn w4a4'"):
        Recipe.from_name("rtn w4a")
    with pytest.raises(ValueError, match=r"recipe: expected the fields .* got bits"):
        Recipe.from_dict({"bits": 4})
    with pytest.raises(AttributeError):
        Recipe().weight_bits = 8


def test_the_names_that_others_script_against():
    wanted = {
        "fp32",
        "bf16",
        "rtn w4a4",
        "rtn w4a4kv4",
        "quarot rtn w4a4kv4",
        "quarot gptq w4a4kv4",
        "quarot gptq w4a4kv4 g64",
        "quarot gptq w4a4kv4 g32",
        "quarot gptq w4a4kv4 g128",
        "quarot gptq w4a8kv4",
        "quarot gptq w4a8kv4 g64",
        "quarot rtn w8a8",
        "rtn w8a8",
        "quarot gptq w4a4kv4 +shift",
        "fp6 e3m2",
        "fp6 e2m3",
        "fp6 gptq e3m2",
        "fp6 gptq e2m3",
        "zeroquant fp6",
        "fp4 w4a16",
        "fp4 w4a16 g32",
        "int4 w4a16",
        "int4 w4a16 g32",
        "mxfp6",
        "mxfp4",
    }
    assert wanted <= set(METHODS)


def test_layers_of_a_plain_module_can_be_quantised_too():
    """No transformers model needed where nothing has to be rotated or calibrated."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8))
    x = torch.randn(16, 32)
    plain = net(x).detach()
    lowbit.quantize(net, "rtn w8a8", progress=False)
    error = ((net(x) - plain).norm() / plain.norm()).item()
    assert isinstance(net[0], Int8Linear) and 0 < error <= 0.02
