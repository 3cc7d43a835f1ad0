"""compressed-tensors checkpoints: transformers reads what lowbit writes, lowbit runs what the package writes,
bit for bit; the rest is refused by name, and nothing is left half-written.
"""

import json
import shutil
from dataclasses import replace

import lowbit
import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales
from lowbit import cli
from lowbit.integrations.compressed_tensors import convert, export, load
from lowbit.nn import QuantizedLinear, WeightOnlyLinear
from lowbit.recipes import Recipe
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from tests.models import tiny, token_ids
from tests.oracle import compare

# transformers says so to everyone who asks for decompressed weights
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`")

# inputs in whole groups of 32 everywhere; mistral has its own head, llama ties it, qwen2 has biases
SIZES = {
    "llama": dict(hidden_size=64, intermediate_size=96),
    "mistral": dict(hidden_size=64, intermediate_size=96, head_dim=16),
    "qwen2": dict(hidden_size=64, intermediate_size=128),
}
LAYER = "model.layers.1.mlp.up_proj"


def model_of(arch="mistral", dtype=torch.bfloat16):
    return tiny(arch, dtype=dtype, **SIZES[arch])


def quantised(arch="mistral", recipe="mxfp6", dtype=torch.bfloat16):
    ids = token_ids(4, 32, 5) if "gptq" in recipe else None
    return lowbit.quantize(model_of(arch, dtype), recipe, ids, progress=False)


def quantised_layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def same_bits(a, b):
    """Equal to the sign of zero."""
    compare.exact(a.detach().float().view(torch.int32), b.detach().float().view(torch.int32))


def dense(path, dtype):
    """The model as transformers and the package alone read it, its weights decompressed."""
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, quantization_config=CompressedTensorsConfig(dequantize=True)
    )


def by_package(path, preset, arch="mistral", dtype=torch.bfloat16, **save):
    """A checkpoint that the package itself makes: scales by its rule, its compressor, its config."""
    model = model_of(arch, dtype)
    scheme = preset if isinstance(preset, QuantizationScheme) else preset_name_to_scheme(preset, ["Linear"])
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, ignore=["lm_head"], quantization_status="frozen"
    )
    apply_quantization_config(model, config, show_progress=False)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            args, w = module.quantization_scheme.weights, module.weight.data
            amax = w.float().unflatten(1, (-1, args.group_size or w.shape[1])).abs().amax(2)
            mx = args.type == "float"
            scale = torch.exp2(generate_mx_scales(amax, args.num_bits) - 127) if mx else amax / 7.5
            module.weight_scale.data = scale.to(module.weight_scale.dtype)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(path, **save)
    compressor.update_config(path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(lowbit checkpoint, its export, the model)."""
    folder = tmp_path_factory.mktemp("saved")
    model = quantised()
    model.save_pretrained(folder / "lowbit")
    export(folder / "lowbit", folder / "ct")
    return folder / "lowbit", folder / "ct", model


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved[1], tmp_path / "ct")


# ---- writing ----


@pytest.mark.parametrize(
    "arch,recipe",
    [("llama", "mxfp6"), ("mistral", "mxfp4"), ("qwen2", "mxfp6"), ("qwen2", "int4 w4a16")],
)
def test_transformers_reads_the_export(arch, recipe, tmp_path):
    model = quantised(arch, recipe)
    export(model, tmp_path / "ct")
    layers = quantised_layers(model)
    theirs = dense(tmp_path / "ct", torch.float32)
    compressed = AutoModelForCausalLM.from_pretrained(tmp_path / "ct", dtype=torch.bfloat16)
    logits(compressed, token_ids(1, 4))  # the package decompresses at the first forward
    assert len(layers) == 14
    for name, layer in layers.items():
        same_bits(theirs.get_submodule(name).weight, layer.dequantize())
        if layer.weight_format != "int4":  # an MX value is a bf16
            same_bits(compressed.get_submodule(name).weight, layer.dequantize())
    for name, p in model.named_parameters():  # embeddings, norms, biases
        same_bits(theirs.get_parameter(name), p)


def test_export_and_back_is_the_same_model(saved, tmp_path):
    _, exported, model = saved
    convert(exported, tmp_path / "back")
    ids = token_ids(2, 16)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    compare.exact(logits(other, ids), logits(model, ids))
    export(tmp_path / "back", tmp_path / "again")
    first, second = load_file(exported / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert first.keys() == second.keys()
    for key, value in first.items():
        compare.exact(value, second[key])
    assert (tmp_path / "again/config.json").read_bytes() == (exported / "config.json").read_bytes()


def test_export_of_int4_groups_where_fp32_holds_the_scales(tmp_path):
    by_package(tmp_path / "a", QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=4, strategy="group", group_size=32)
    ))  # fmt: skip
    convert(tmp_path / "a", tmp_path / "b")
    export(tmp_path / "b", tmp_path / "c")
    first, second = load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "c/model.safetensors")
    assert first.keys() == second.keys()
    for key, value in first.items():
        compare.exact(value.float(), second[key].float())
    with pytest.raises(ValueError, match=r"weight_scale: expected products with the group scales"):
        export(quantised(recipe="int4 w4a16 g32"), tmp_path / "d")


def test_mixed_formats_and_other_files(saved, tmp_path):
    """Layers of several formats in one model, and a tokenizer beside them."""
    source, target = shutil.copytree(saved[0], tmp_path / "source"), tmp_path / "ct"
    state, four = load_file(source / "model.safetensors"), quantised(recipe="mxfp4")
    config = json.loads((source / "config.json").read_text())
    specs = config["quantization_config"]["modules"]
    for name, tensor in four.state_dict().items():
        if "down_proj" in name:
            state[name] = tensor
            specs[name.rpartition(".")[0]]["weight_format"] = "e2m1"
    save_file(state, source / "model.safetensors", {"format": "pt"})
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer.json").write_text("{}")
    target.mkdir()
    (target / "README.md").write_text("mine")
    (target / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    export(source, target)
    assert (target / "tokenizer.json").read_text() == "{}" and (target / "README.md").read_text() == "mine"
    assert not (target / "model-00001-of-00002.safetensors").exists()
    block = json.loads((target / "config.json").read_text())["quantization_config"]
    assert block["format"] == "mixed-precision" and len(block["config_groups"]) == 2
    theirs = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
    logits(theirs, token_ids(1, 4))
    for name, layer in quantised_layers(AutoModelForCausalLM.from_pretrained(source)).items():
        assert layer.weight_format == ("e2m1" if "down_proj" in name else "e2m3")
        same_bits(theirs.get_submodule(name).weight, layer.dequantize())


@pytest.mark.parametrize(
    "recipe,words",
    [
        ("fp6 e3m2", r"_proj\.weight_packed: expected e2m3, e2m1 or int4, got e3m2; .* rounds it to e2m3"),
        ("fp6 e2m3", r"_proj\.weight_group_scale: expected groups of 32, got None"),
        ("fp4 w4a16 g64", r"_proj\.weight_group_scale: expected groups of 32, got 64"),
        ("fp4 w4a16 g32", r"_proj\.weight_scale: expected powers of two, .* got \d+ of \d+ others"),
        (replace(Recipe.from_name("mxfp4"), scale_format="e8m0"), "expected powers of two"),
        ("rtn w4a4", r"_proj: expected a weight-only layer, got int4 with quantised activations"),
        (Recipe(activation_bits=16, kv_bits=4), r"recipe\.kv_bits: expected 16 .* got 4"),
        (Recipe(activation_bits=16, rotate=True), r"_proj: expected no transform .* got input_hadamard"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(recipe, words, tmp_path):
    model = quantised(recipe=recipe) if isinstance(recipe, str) else lowbit.quantize(
        model_of(), recipe, progress=False
    )  # fmt: skip
    with pytest.raises(ValueError, match=words):
        export(model, tmp_path / "ct")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe,mx", [("fp6 e3m2", "e2m3"), ("fp4 w4a16 g64", "e2m1"), ("mxfp6", "e2m3")])
def test_requantising_on_request(recipe, mx, tmp_path):
    model = quantised(recipe=recipe)
    export(model, tmp_path / "ct", requantize=True)
    theirs = dense(tmp_path / "ct", torch.float32)
    for name, layer in quantised_layers(model).items():
        got, was = theirs.get_submodule(name).weight.detach(), layer.dequantize()
        if recipe == "mxfp6":
            compare.exact(got, was)
        else:
            error = float((got - was).norm() / was.norm())
            assert 0 < error < (0.04 if mx == "e2m3" else 0.15)


def test_ragged_inputs_are_refused(tmp_path):
    model = lowbit.quantize(tiny("qwen2", hidden_size=64, intermediate_size=72), "mxfp6", progress=False)
    with pytest.raises(ValueError, match=r"down_proj: expected inputs in whole groups of 32, got 72"):
        export(model, tmp_path / "ct")


@pytest.mark.parametrize("given", [lambda: model_of(), lambda: nn.Linear(2, 2)])
def test_models_that_lowbit_did_not_quantise_are_refused(given, tmp_path):
    with pytest.raises(ValueError, match="model: expected one that lowbit quantised, got "):
        export(given(), tmp_path / "ct")
    with pytest.raises(ValueError, match="quant_method: expected lowbit, got None"):
        model_of().save_pretrained(tmp_path / "plain")
        export(tmp_path / "plain", tmp_path / "ct")


# ---- reading ----


@pytest.mark.parametrize(
    "preset,arch,dtype",
    [
        ("MXFP6A16", "llama", torch.bfloat16),
        ("MXFP6A16", "qwen2", torch.float32),
        ("MXFP4A16", "llama", torch.float32),
        ("MXFP4A16", "qwen2", torch.bfloat16),
    ],
)
def test_loads_what_the_package_writes(preset, arch, dtype, tmp_path):
    by_package(tmp_path / "ct", preset, arch, dtype)
    model, theirs = load(tmp_path / "ct", dtype=dtype), dense(tmp_path / "ct", dtype)
    layers = quantised_layers(model)
    assert len(layers) == 14 and all(type(layer) is WeightOnlyLinear for layer in layers.values())
    for name, layer in layers.items():
        same_bits(layer.dequantize(), theirs.get_submodule(name).weight)
    for name, p in model.named_parameters():
        compare.exact(p.detach(), theirs.get_parameter(name).detach())
    assert model.name_or_path == str(tmp_path / "ct")
    ids = token_ids(2, 16)
    got, want = logits(model, ids).float(), logits(theirs, ids).float()
    assert (got - want).norm() <= (1e-5 if dtype == torch.float32 else 0.03) * want.norm()


@pytest.mark.parametrize("group", [None, 32, 64])
def test_loads_int4(group, tmp_path):
    strategy = "channel" if group is None else "group"
    args = QuantizationArgs(num_bits=4, strategy=strategy, group_size=group)
    by_package(tmp_path / "ct", QuantizationScheme(targets=["Linear"], weights=args), "qwen2")
    model, theirs = load(tmp_path / "ct"), dense(tmp_path / "ct", torch.bfloat16)
    for name, layer in quantised_layers(model).items():
        assert layer.weight_format == "int4" and layer.group_size == group
        # the package rounds its products to the dtype of the scale
        compare.exact(layer.dequantize().bfloat16(), theirs.get_submodule(name).weight.detach())
    ids = token_ids(2, 8)
    got, want = logits(model, ids).float(), logits(theirs, ids).float()
    assert (got - want).norm() <= 0.03 * want.norm()


def test_sharded_checkpoints(tmp_path):
    by_package(tmp_path / "ct", "MXFP6A16", max_shard_size="20KB")
    assert len(list((tmp_path / "ct").glob("*.safetensors"))) > 2
    convert(tmp_path / "ct", tmp_path / "lowbit")
    export(tmp_path / "lowbit", tmp_path / "back")
    whole = load(by_package(tmp_path / "one", "MXFP6A16"))
    ids = token_ids(1, 8)
    compare.exact(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "lowbit"), ids), logits(whole, ids))
    for file in (tmp_path / "ct").glob("*.safetensors"):
        first, second = load_file(file), load_file(tmp_path / "back" / file.name)
        assert first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())
    lost = next(iter(first))
    first.pop(lost)
    save_file(first, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{lost}: expected it in {file.name}, .*missing tensor"):
        convert(tmp_path / "ct", tmp_path / "other")
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file.name}: expected it in ct, got nothing \(missing file\)"):
        convert(tmp_path / "ct", tmp_path / "other")


def test_quantised_activations_need_a_word(tmp_path):
    by_package(tmp_path / "ct", "MXFP6A8")
    by_package(tmp_path / "plain", "MXFP6A16")
    with pytest.raises(ValueError, match=r"input_activations: expected none, .*weights_only=True"):
        load(tmp_path / "ct")
    weights = load(tmp_path / "plain")
    for path in (tmp_path / "ct", tmp_path / "plain"):  # as a static scale would be stored
        _state(lambda s: s.update({f"{LAYER}.input_scale": torch.ones(1)}))(path)
    with pytest.raises(ValueError, match=rf"{LAYER}\.input_scale: expected no such tensor"):
        load(tmp_path / "plain")
    ids = token_ids(1, 8)
    compare.exact(logits(load(tmp_path / "ct", weights_only=True), ids), logits(weights, ids))


# ---- damage ----


def _cut(path):
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-7])


def _state(change):
    def edit(path):
        state = load_file(path / "model.safetensors")
        change(state)
        save_file(state, path / "model.safetensors", {"format": "pt"})

    return edit


@pytest.mark.parametrize(
    "edit,words",
    [
        (_cut, r"model\.safetensors: expected \d+ bytes, got \d+; the file is truncated or damaged"),
        (lambda p: (p / "model.safetensors").unlink(), r"model\.safetensors: .* \(missing file\)"),
        (lambda p: (p / "config.json").unlink(), r"config\.json: .* \(missing file\)"),
        (lambda p: (p / "config.json").write_text("{"), r"config\.json: expected JSON"),
        (lambda p: (p / "config.json").write_text("{}"), "quant_method: expected compressed-tensors"),
        (_state(lambda s: s.pop(f"{LAYER}.weight_packed")), rf"{LAYER}\.weight_packed: .*missing tensor"),
        (_state(lambda s: s.pop(f"{LAYER}.weight_scale")), rf"{LAYER}\.weight_scale: .*missing tensor"),
        (_state(lambda s: s[f"{LAYER}.weight_scale"].fill_(255)), rf"{LAYER}\.weight_scale: .* NaN"),
        (
            _state(lambda s: s.update({f"{LAYER}.weight_zero_point": torch.zeros(96, 2)})),
            rf"{LAYER}\.weight_zero_point: expected no such tensor, got one of \[96, 2\]",
        ),
    ],
)
def test_damaged_checkpoint_is_refused(copied, edit, words):
    edit(copied)
    with pytest.raises(ValueError, match=words):
        convert(copied, copied.parent / "out")
    assert [p.name for p in copied.parent.iterdir()] == ["ct"]


def test_damaged_lowbit_checkpoint_is_refused(saved, tmp_path):
    source = shutil.copytree(saved[0], tmp_path / "source")
    _state(lambda s: s[f"{LAYER}.weight_scale"].fill_(torch.nan))(source)
    with pytest.raises(ValueError, match=rf"{LAYER}\.weight_scale: expected finite scales above 0"):
        export(source, tmp_path / "ct")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_failed_write_leaves_what_was_there(saved, copied, monkeypatch):
    before = {p.name: p.read_bytes() for p in copied.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("lowbit.integrations.compressed_tensors.files.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        export(saved[0], copied)
    assert {p.name: p.read_bytes() for p in copied.iterdir()} == before
    with pytest.raises(ValueError, match="directory: expected another one to write to, got ct again"):
        convert(copied, copied)


# ---- the command ----


def test_command(saved, tmp_path, capsys):
    source, exported, _ = saved
    assert cli.main(["export", str(source), str(tmp_path / "ct"), "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["format"] == "compressed-tensors"
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "ct" / name).read_bytes() == (exported / name).read_bytes()
    assert cli.main(["export", str(tmp_path / "ct"), str(tmp_path / "back"), "--to", "lowbit"]) == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    capsys.readouterr()
    for arguments, words in [
        ([str(source), str(tmp_path / "ct")], "is not empty"),
        ([str(tmp_path / "none"), str(tmp_path / "x")], "expected a checkpoint directory"),
        ([str(exported), str(tmp_path / "x")], "quant_method: expected lowbit, got 'compressed-tensors'"),
        ([str(exported), str(tmp_path / "x"), "--to", "lowbit", "--requantize"], "--requantize: expected"),
        ([str(source), str(tmp_path / "x"), "--weights-only"], "--weights-only: expected --to lowbit"),
    ]:
        assert cli.main(["export", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()
