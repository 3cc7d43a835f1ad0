"""MergeQuant: the algebra is exact before rounding, its parts do what they say, the model survives a file."""

import json

import lowbit
import pytest
import torch
from lowbit.cli.quantize import report_lines
from lowbit.integrations.hf import CacheHook, Int4Cache
from lowbit.integrations.hf.cache import CACHE
from lowbit.nn import Int4Linear, QuantizedLinear, StaticInt4Linear
from lowbit.quantizers import mergequant, static
from lowbit.quantizers.static import StaticInput
from lowbit.recipes import METHODS, Recipe
from lowbit.transforms import hadamard, invariance_error
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache

from tests.models import tiny, token_ids

NAMES = [name for name in METHODS if name.startswith("mergequant")]
STATIC = dict(rotate=True, kv_bits=4, weight_method="gptq", activation_clip=None, static_channels=True)
VARIANTS = {
    "plain": dict(),
    "all": dict(static_sites="all"),
    "shifted": dict(static_sites="all", mean_shift=True),
    "split": dict(static_sites="all", split=1.2, split_growth=0.5, dither=False),
    "dithered": dict(static_sites="all", split=1.2, split_growth=0.5, mean_shift=True),
    "no r1": dict(static_sites="all", rotate_residual=False, split=1.2, split_growth=0.5, mean_shift=True),
    "values": dict(static_sites="all", migrate_values=True, mean_shift=True),
}


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def quantised(arch="llama", calibration=None, **fields):
    recipe = Recipe(**{**STATIC, **fields})
    model = tiny(arch)
    ids = token_ids(12, 48, 5) if calibration is None else calibration
    return lowbit.quantize(model, recipe, ids, progress=False)


class Unrounded(nn.Module):
    """A StaticInt4Linear before rounding: what it does to its input, and the folded weight in fp64."""

    def __init__(self, layer, weight, bias):
        super().__init__()
        self.layer, self.folded, self.offset = layer, weight, bias

    def forward(self, x):
        layer, v = self.layer, x.double()
        if layer.input_hadamard is not None:
            v = hadamard(v, layer.input_hadamard or None)
        v = v[..., layer.input_index.long()] if layer.gathered is not None else v
        v = v * layer.input_inverse_step if layer.input_step else v
        v = v - layer.input_shift if layer.mean_shift else v
        return (v @ self.folded.T + self.offset).to(x.dtype)


# ---- the algebra ----


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_the_migrated_model_is_the_original_one_before_rounding(variant, arch, monkeypatch):
    """Norm gains, gathers, steps and shifts as stored; only the rounding of weights and codes is left out."""
    ids = token_ids(1, 40)
    before = logits(tiny(arch), ids)
    parts = {}
    real = mergequant.StaticStage._quantize

    def record(stage, y, entry):
        real(stage, y, entry)
        for linear, module in zip(stage.linears, stage.modules, strict=True):
            w = linear.weight.detach()
            bias = 0.0 if linear.bias is None else linear.bias.detach().double()
            bias = bias + (0.0 if stage.static.shift is None else stage.static.bias(w))
            parts[module] = stage.static.fold(w), bias, module.weight_scale.clone()

    monkeypatch.setattr(mergequant.StaticStage, "_quantize", record)
    fields = {**VARIANTS[variant], "static_sites": "all", "kv_bits": 16}
    model = quantised(arch, **fields)
    for name, module in list(model.named_modules()):
        if isinstance(module, StaticInt4Linear):
            weight, bias, scale = parts[module]
            migrated = (module.weight_scale / scale).double()  # v_proj's channels may have taken steps
            model.set_submodule(name, Unrounded(module, weight * migrated, bias * migrated[:, 0]))
    assert len(parts) == 14
    assert 0 < invariance_error(before, logits(model, ids)) <= 2e-5


def sample(seed=0, tokens=300, k=24):
    g = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 1, k)
    return torch.randn(tokens, k, generator=g, dtype=torch.float64) * spread + 3 * torch.randn(
        k, generator=g, dtype=torch.float64
    )


@pytest.mark.parametrize("dithered", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_splitting_and_shifting_are_exact_before_rounding(dithered, seed):
    y, w = sample(seed), torch.randn(7, 24, generator=torch.Generator().manual_seed(seed)).double()
    copies = torch.randint(1, 5, (24,), generator=torch.Generator().manual_seed(seed))
    index = static.gather_index(copies)
    assert index.tolist() == [k for k, m in enumerate(copies.tolist()) for _ in range(m)]
    shift = torch.randn(24).double()[index] + (static.dither(copies) if dithered else 0)
    s = StaticInput(torch.rand(24).double() + 0.1, 4, shift, index)
    assert torch.equal(s.copies(), copies)
    got = s.exact(y) @ s.fold(w).T + s.bias(w)
    assert (got - y @ w.T).abs().max() <= 1e-12 * (y @ w.T).abs().max()


@pytest.mark.parametrize("m", [1, 2, 3, 4, 7])
def test_dithered_copies_resolve_a_part_of_a_step(m):
    copies = torch.tensor([m])
    y = torch.linspace(-6, 6, 4001, dtype=torch.float64).unsqueeze(1)
    index = static.gather_index(copies)
    s = StaticInput(torch.ones(1).double(), 4, static.dither(copies), index)
    found = s.codes(y).mean(1)
    assert (found - y[:, 0]).abs().max() <= 0.5 / m + 1e-3
    same = StaticInput(torch.ones(1).double(), 4, None, index)
    assert (same.codes(y).mean(1) - y[:, 0]).abs().max() >= 0.49


def test_steps_are_searched_per_channel():
    y = sample(0, 2000).float()
    for centred in (False, True):
        step, centre, error = static.search_steps(y, 4, centred)
        shift = centre / step + 0.5 if centred else None
        s = StaticInput(step.double(), 4, None if shift is None else shift.double())
        v = s.codes(y)
        back = (v if shift is None else v + shift) * step
        torch.testing.assert_close((back - y).square().mean(0), error, rtol=1e-3, atol=1e-9)
        absmax = y.abs().amax(0) / 7
        plain = ((y / absmax).round().clamp(-8, 7) * absmax - y).square().mean(0)
        assert (error <= plain * 1.001).all()
    assert error.sum() <= 0.5 * plain.sum()  # means far from zero: the free centre pays
    flat = torch.zeros(50, 3)
    step, centre, error = static.search_steps(flat, 4, True)
    assert (step == 1).all() and (error <= 1e-12).all()


def test_split_counts_obey_threshold_growth_and_pruning():
    size = torch.ones(100)
    size[7], size[50] = 9.5, 4.0
    copies = static.split_channels(size, 2.0, 1.0, False)
    assert copies[7] == 5 and copies[50] == 2 and int(copies.sum()) == 105
    assert int(static.split_channels(size, 2.0, 0.03, False).sum()) <= 103
    size[3] = 0.01
    pruned = static.split_channels(size, 2.0, 1.0, True)
    assert int(pruned.sum()) == 100 and pruned[3] == 0 and pruned[7] == 5
    assert (static.split_channels(torch.ones(10), 2.0, 1.0, False) == 1).all()


def test_refit_is_the_least_squares_solution():
    g = torch.Generator().manual_seed(0)
    v = torch.randn(4000, 12, generator=g) @ torch.randn(12, 12, generator=g)
    q, w = v.round(), torch.randn(5, 12, generator=g)
    fitted = static.refit(w, v.T @ q / 4000, q.T @ q / 4000, 0.0)

    def loss(x):
        return (q @ x.T - v @ w.T).square().sum()

    assert loss(fitted) < loss(w)
    for step in (1e-3, -1e-3):
        assert loss(fitted + step * torch.randn(5, 12, generator=g)) > loss(fitted)


def test_low_rank_is_the_best_of_its_rank_in_the_metric():
    g = torch.Generator().manual_seed(0)
    error = torch.randn(20, 16, generator=g)
    mix = torch.randn(16, 16, generator=g) * torch.logspace(0, -2, 16)
    h = (mix.T @ mix).double()
    up, down = static.low_rank(error, h, 3)
    assert up.shape == (20, 3) and down.shape == (3, 16)

    def loss(e):
        return float(((e.double() @ h) * e).sum())

    found = loss(error - up @ down)
    values, vectors = torch.linalg.eigh(h)
    singular = torch.linalg.svdvals(error.double() @ (vectors * values.sqrt()))
    assert found == pytest.approx(float(singular[3:].square().sum()), rel=1e-4)


def test_a_migration_that_is_wrong_is_noticed(monkeypatch):
    real = StaticInput.fold
    monkeypatch.setattr(StaticInput, "fold", lambda s, w: real(s, w) * (1 + 1e-6))
    with pytest.raises(RuntimeError, match=r"migration: expected outputs to move by at most 1e-08 .*got "):
        quantised()


# ---- whole models ----


@pytest.mark.parametrize("variant", VARIANTS)
def test_static_layers_where_the_recipe_wants_them(variant):
    model, ids = quantised(**VARIANTS[variant]), token_ids(2, 32)
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 14 and {type(m) for m in layers} <= {StaticInt4Linear, Int4Linear}
    if VARIANTS[variant].get("static_sites") == "all":
        assert all(type(m) is StaticInt4Linear for m in layers)
    for block in model.model.layers:
        assert not block.self_attn.q_proj.input_step and not block.mlp.up_proj.input_step  # in the norm
        o = block.self_attn.o_proj
        if isinstance(o, StaticInt4Linear):
            assert o.input_step == ("values" not in variant)
    plain = logits(tiny(), ids)
    got = logits(model, ids)
    assert 1e-3 <= ((got - plain).norm() / plain.norm()).item() <= 1.2


def test_eight_bits_stay_near():
    ids = token_ids(2, 32)
    plain = logits(tiny(), ids)
    error = {}
    for bits in (4, 8):
        model = quantised(activation_bits=bits, mean_shift=True, static_sites="all", kv_bits=16)
        error[bits] = ((logits(model, ids) - plain).norm() / plain.norm()).item()
    assert error[8] <= 0.8 * error[4]


def test_pruning_keeps_the_width():
    model = quantised(split=1.2, split_growth=0.5, prune=True, static_sites="all")
    layers = [m for m in model.modules() if isinstance(m, StaticInt4Linear)]
    assert all(m.stored_features == m.in_features for m in layers)
    assert any(m.gathered is not None and len(m.input_index.unique()) < m.in_features for m in layers)


def test_the_report_says_what_is_static_and_why():
    model = quantised(static_sites="best", mean_shift=True, split=1.3, rank=2)
    report = model.quantization_report
    assert [e["layer"] for e in report] == [
        f"{i}.{part}" for i in range(2)
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                     "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    ]  # fmt: skip
    for entry in report:
        module = model.model.layers[int(entry["layer"][0])].get_submodule(entry["layer"][2:])
        assert entry["static"] == isinstance(module, StaticInt4Linear)
        if entry["static"]:
            assert entry["codes"] == module.stored_features and entry["rank"] == module.rank
        if entry["layer"].endswith(("o_proj", "down_proj")):
            wins = all(entry[f"static_{k}"] <= entry[f"dynamic_{k}"] for k in ("error", "energy_error"))
            assert entry["static"] == wins
    json.dumps(report)


@pytest.mark.parametrize(
    "fields",
    [
        dict(mean_shift=True, split=1.3, split_growth=0.4, rank=2),
        dict(prefix=True, mean_shift=True, static_sites="all", migrate_values=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_logits_are_identical(fields, dtype, tmp_path):
    recipe = Recipe(**{**STATIC, **fields})
    model = lowbit.quantize(tiny("qwen2", dtype=dtype), recipe, token_ids(12, 48, 5), progress=False)
    ids = token_ids(2, 24)
    want = logits(model, ids)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert torch.equal(logits(again, ids), want)
    static_layers = [n for n, m in model.named_modules() if isinstance(m, StaticInt4Linear)]
    assert static_layers and all(type(again.get_submodule(n)) is StaticInt4Linear for n in static_layers)


def test_a_checkpoint_that_lacks_the_prefix_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    quantised(prefix=True).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.lowbit_prefix"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"model.lowbit_prefix: expected .* got nothing \(missing tensor\)"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_the_command_line_sums_the_report_up():
    report = [
        {"layer": "0.mlp.up_proj", "static": True, "codes": 60, "inputs": 48, "rank": 0},
        {"layer": "1.mlp.up_proj", "static": True, "codes": 48, "inputs": 48, "rank": 2},
        {"layer": "0.mlp.down_proj", "static": False, "codes": 80, "inputs": 80},
    ]
    assert report_lines(report) == [
        "mlp.up_proj: static in 2 of 2 layers, 1.125 codes per input, rank 2",
        "mlp.down_proj: static in 0 of 1 layers",
    ]
    real = report_lines(quantised().quantization_report)
    assert len(real) == 7 and real[0].startswith("self_attn.q_proj: static in 2 of 2 layers, 1.000 codes")


# ---- the exact first token ----


def test_the_prefix_is_exact_and_only_seen_through_the_cache():
    """With all else in floating point, a prefixed model is the plain model behind one more token."""
    model = quantised(prefix=True)
    first = model.model.lowbit_prefix
    assert list(first.shape) == [2, 2, 2, 1, 12]
    plain = tiny()
    bos = torch.full((1, 1), plain.config.bos_token_id)
    cache = DynamicCache()
    plain.model(bos, **{CACHE: cache}, use_cache=True)
    want = torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers])
    # keys as they are; values up to R2, which is orthogonal
    torch.testing.assert_close(first[:, 0], want[:, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(first[:, 1].norm(dim=-1), want[:, 1].norm(dim=-1), rtol=1e-3, atol=1e-3)
    ids = token_ids(2, 20)
    behind = logits(plain, torch.cat((bos.expand(2, -1), ids), 1))[:, 1:]
    plain.model.register_buffer("lowbit_prefix", want)
    plain.model.register_forward_pre_hook(CacheHook(1.0, None), with_kwargs=True)
    seen = logits(plain, ids)
    assert ((seen - behind).norm() / behind.norm()).item() <= 0.2  # the cache's 4 bits
    alone = logits(tiny(), ids)
    assert (seen - behind).norm() <= 0.7 * (alone - behind).norm()
    assert Int4Cache(1.0, None, want).get_seq_length() == 1


@pytest.mark.parametrize("padding", [False, True])
def test_generation_behind_a_prefix_is_what_full_passes_give(padding):
    model = quantised(prefix=True, activation_bits=8)
    model.generation_config.eos_token_id = None
    ids = token_ids(2, 8)
    mask = torch.ones_like(ids)
    if padding:
        mask[0, :3] = 0
    made = model.generate(
        ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=True
    )
    longer = ids
    for _ in range(6):
        full = torch.cat((mask, mask.new_ones(2, longer.shape[1] - 8)), 1)
        positions = (full.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            next_logits = model(longer, attention_mask=full, position_ids=positions).logits[:, -1]
        longer = torch.cat((longer, next_logits.argmax(-1, keepdim=True)), 1)
    assert torch.equal(made, longer)


# ---- refusals, names, command line ----


@pytest.mark.parametrize(
    "fields,words",
    [
        (dict(static_sites="some"), "static_sites: expected one of norm, best, all, got some"),
        (dict(weight_bits=8), "static_channels: expected int4 weights, 4- or 8-bit activations, got 8 and 4"),
        (dict(activation_bits=16), "static_channels: expected int4 weights, .*got 4 and 16"),
        (dict(weight_method="rtn"), "static_channels: expected weight_method gptq, got rtn"),
        (dict(split=0.0), "split: expected None or a value above 0, got 0.0"),
        (dict(split_growth=-0.1), "split_growth: expected 0 or more, got -0.1"),
        (dict(prune=True), "prune: expected it with split alone, got split None"),
        (dict(rank=-1), "rank: expected 0 or more, got -1"),
        (dict(static_channels=False, rank=4), "rank: expected it with static_channels alone, got 4"),
        (dict(static_channels=False, split=2.0), "split: expected it with static_channels alone, got 2.0"),
        (dict(prefix=True, kv_bits=16), "prefix: expected it with a 4-bit cache and calibration, got kv"),
    ],
)
def test_recipe_fields_are_checked(fields, words):
    with pytest.raises(ValueError, match=words):
        Recipe(**{**STATIC, **fields})


def test_names_and_round_trip():
    assert {"mergequant w4a4", "mergequant w4a4 no-r1", "mergequant w4a8", "mergequant w4a8 no-r1",
            "mergequant w4a4 no-split"} <= set(METHODS)  # fmt: skip
    for name in NAMES:
        recipe = Recipe.from_name(name)
        assert recipe.static_channels and recipe.needs_calibration
        assert recipe.rotate_residual == ("no-r1" not in name)
        assert (recipe.split is None) == ("no-split" in name)
        assert recipe.activation_bits == (8 if "w4a8" in name else 4)
        assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(ValueError, match=r"calibration: expected token ids .* got None"):
        lowbit.quantize(tiny(), NAMES[0], progress=False)
