"""transformers: a saved model comes back bit for bit, a damaged one is refused, nothing is left half-written.
"""

import json
import shutil
import struct

import lowbit
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from lowbit.nn import Int4Linear, QuantizedLinear
from lowbit.recipes import Recipe
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.models import tiny, token_ids
from tests.oracle import codec, compare

CALIBRATION = token_ids(6, 40, 5)
METHODS = [
    ("llama", "rtn w4a4"),
    ("mistral", "quarot rtn w4a4kv4"),
    ("qwen2", "quarot gptq w4a8kv4 g32"),
    ("qwen3", "quarot gptq w4a4kv4 +shift"),
    ("llama odd", "quarot rtn w8a8"),
    ("qwen2", "zeroquant fp6"),
    ("llama", "mxfp4"),
    ("mistral", "fp4 w4a16 g64"),
    ("llama odd", "int4 w4a16 g128"),
    ("qwen3", Recipe(weight_format="e2m1", activation_format="e2m1", rotate=True, kv_bits=4)),
    ("qwen2", Recipe(weight_format="fp4", activation_bits=8)),
]


def quantised(arch="llama", recipe="quarot gptq w4a8kv4 g32", dtype=torch.float32):
    return lowbit.quantize(tiny(arch, dtype=dtype), recipe, CALIBRATION, progress=False)


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def tokens(model, ids):
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)


def load(path):
    return AutoModelForCausalLM.from_pretrained(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(directory, logits, tokens) of one saved model; tests copy the directory before they damage it."""
    path = tmp_path_factory.mktemp("saved") / "model"
    model = quantised()
    model.save_pretrained(path)
    ids = token_ids(2, 20)
    return path, logits(model, ids), tokens(model, ids)


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "model")


@pytest.mark.parametrize("arch,recipe", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reload_is_bit_identical(arch, recipe, dtype, tmp_path):
    model, ids = quantised(arch, recipe, dtype), token_ids(2, 24)
    want, generated = logits(model, ids), tokens(model, ids)
    model.save_pretrained(tmp_path / "m")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=dtype)
    compare.exact(logits(other, ids), want)
    assert torch.equal(tokens(other, ids), generated)
    layers = [m for m in other.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 14 and not any(p.requires_grad for layer in layers for p in layer.parameters())
    other.save_pretrained(tmp_path / "again")  # and saves the same files
    first = load_file(tmp_path / "m/model.safetensors")
    second = load_file(tmp_path / "again/model.safetensors")
    assert set(first) == set(second)
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def test_files_hold_the_documented_layout(saved):
    config = json.loads((saved[0] / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "lowbit" and config["format_version"] == 1 and config["lowbit_version"]
    assert config["recipe"]["group_size"] == 32 and config["recipe"]["kv_bits"] == 4
    with safe_open(saved[0] / "model.safetensors", "pt") as f:
        keys = set(f.keys())
        packed = f.get_tensor("model.layers.0.mlp.gate_proj.weight_packed")
        meta = f.get_tensor("model.layers.0.mlp.gate_proj.weight_meta")
    assert packed.dtype == torch.uint8 and packed.shape == (80, 24) and meta.tolist()[2:] == [80, 48, 32]
    assert not any("tiles" in key for key in keys)
    assert {k.rsplit(".", 1)[1] for k in keys if "gate_proj" in k} == {
        "weight_packed",
        "weight_scale",
        "weight_group_scale",
        "weight_meta",
    }
    assert not list(saved[0].parent.glob(".*")), "a temporary directory is left"


def test_packed_bytes_are_those_of_compressed_tensors(saved):
    state = load_file(saved[0] / "model.safetensors")
    for name in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"):
        packed = state[f"{name}.weight_packed"]
        q = torch.from_numpy(codec.unpack_nibbles(packed.numpy())).to(torch.int8)
        compare.exact(packed.view(torch.int32), pack_to_int32(q, 4))
        compare.exact(unpack_from_int32(packed.view(torch.int32), 4, q.shape), q)


def test_sharded_checkpoint(tmp_path):
    model, ids = quantised(), token_ids(1, 16)
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    compare.exact(logits(load(tmp_path / "m"), ids), logits(model, ids))


# ---- damage ----


def test_truncated_file_is_refused(copied):
    file = copied / "model.safetensors"
    data = file.read_bytes()
    for size in (len(data) - 1, len(data) // 2, 100, 4, 0):
        file.write_bytes(data[:size])
        with pytest.raises(ValueError, match=rf"model\.safetensors: expected .* got {size}\b"):
            load(copied)
    file.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match=r"model\.safetensors: expected "):
        load(copied)
    file.write_bytes(data)
    assert load(copied) is not None


LAYER = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    "key,change,words",
    [
        ("weight_packed", None, "missing tensor"),
        ("weight_scale", None, "missing tensor"),
        ("weight_meta", None, "missing tensor"),
        ("weight_group_scale", None, "missing tensor"),
        ("weight_packed", lambda t: t[:, :-1].contiguous(), r"expected U8 \[48, 40\], got U8 \[48, 39\]"),
        ("weight_packed", lambda t: t.view(torch.int32), r"expected U8 .* got I32"),
        ("weight_scale", lambda t: t.half(), "expected F32 .* got F16"),
        ("weight_scale", lambda t: t * float("nan"), "expected finite scales above 0"),
        ("weight_scale", lambda t: -t, "expected finite scales above 0"),
        ("weight_group_scale", lambda t: t * 0, "expected integers 1..16"),
        ("weight_group_scale", lambda t: t * 0 + 17, "expected integers 1..16"),
        ("weight_meta", lambda t: t * 0 + 9, "expected format version 1, got 9"),
    ],
)
def test_edited_tensor_is_refused_by_name(copied, key, change, words):
    file = copied / "model.safetensors"
    state = load_file(file)
    if change is None:
        del state[f"{LAYER}.{key}"]
    else:
        state[f"{LAYER}.{key}"] = change(state[f"{LAYER}.{key}"])
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{LAYER}\.{key}: .*{words}"):
        load(copied)


FLOAT_DAMAGE = [
    ("fp6 gptq e2m3", "weight_packed", lambda t: t[:, :-3].contiguous(), r"expected U8 \[48, 60\], got U8"),
    ("fp6 gptq e2m3", "weight_meta", lambda t: t * 0 + 1, "expected format e2m3, got int4"),
    ("fp4 w4a16 g64", "weight_group_scale", None, "missing tensor"),
    ("fp4 w4a16 g64", "weight_group_scale", lambda t: t.float(), "expected F16 .* got F32"),
    ("fp4 w4a16 g64", "weight_group_scale", lambda t: t * float("nan"), "expected finite scales above 0"),
    ("mxfp4", "weight_group_scale", lambda t: t * 0 + 255, "expected E8M0 codes 0..254, got 144 of 255"),
    ("mxfp4", "weight_group_scale", lambda t: t[:, :-1].contiguous(), r"expected U8 \[48, 3\], got U8"),
    ("mxfp4", "weight_scale", lambda t: t * 0, "expected finite scales above 0"),
]


@pytest.mark.parametrize("recipe,key,change,words", FLOAT_DAMAGE)
def test_edited_float_layer_is_refused_by_name(recipe, key, change, words, tmp_path):
    quantised("llama", recipe).save_pretrained(tmp_path / "m")
    file = tmp_path / "m/model.safetensors"
    state = load_file(file)
    tensor = state.pop(f"{LAYER}.{key}")
    if change is not None:
        state[f"{LAYER}.{key}"] = change(tensor)
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"{LAYER}\.{key}: .*{words}"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    "edit,words",
    [
        ({"weight_format": "e4m3"}, "weight_format: expected one of int4, e3m2, .*got 'e4m3'"),
        ({"weight_format": "e3m2"}, r"weight_packed: expected U8 \[48, 60\], got U8 \[48, 40\]"),
        ({"scale_format": "e8m0"}, "scale_format: expected e8m0 for groups of 32"),
        ({"scale_format": 3}, "scale_format: expected .* got 3"),
        ({"weight_format": "e1m2"}, "weight_meta: expected format e1m2, got e2m1"),
        ({"type": "int4"}, "expected the fields type, in_features, .*activation_bits.*, got "),
        ({"type": "fp4"}, "expected the fields type, in_features, .*pre_shift, got "),
    ],
)
def test_edited_float_config_is_refused(edit, words, tmp_path):
    quantised("llama", "fp4 w4a16 g64").save_pretrained(tmp_path / "m")
    file = tmp_path / "m/config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["modules"][LAYER] |= edit
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "m")


def test_a_checkpoint_of_the_first_release_still_loads(saved, copied):
    """Before there were float formats recipes had fewer fields; layers had the same."""
    file = copied / "config.json"
    config = json.loads(file.read_text())
    recipe = config["quantization_config"]["recipe"]
    for field in ("weight_format", "activation_format", "scale_format"):
        assert recipe.pop(field) is None
    assert set(config["quantization_config"]["modules"][LAYER]) == {
        "type", "in_features", "out_features", "bias", "activation_bits", "group_size", "clip",
        "input_hadamard", "mean_shift",
    }  # fmt: skip
    file.write_text(json.dumps(config))
    ids = token_ids(2, 20)
    compare.exact(logits(load(copied), ids), saved[1])


def test_header_that_is_not_one(copied):
    file = copied / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 40) + b"x" * 200)
    with pytest.raises(ValueError, match=r"model\.safetensors: expected a safetensors header"):
        load(copied)


def _set(*path_and_value):
    *path, last, value = path_and_value

    def edit(config):
        for key in path:
            config = config[key]
        config[last] = value

    return edit


@pytest.mark.parametrize(
    "edit,words",
    [
        (_set("format_version", 2), "format_version: expected 1, got 2"),
        (_set("recipe", "weight_bits", 3), "weight_bits: expected one of 4, 6, 8, got 3"),
        (_set("recipe", {"bits": 4}), "recipe: expected the fields .* got bits"),
        (_set("modules", {}), "modules: expected the quantised layers by name, got none"),
        (_set("modules", LAYER, "type", "int5"), "type: expected one of int4, int8, .* fp4, got 'int5'"),
        (
            _set("modules", LAYER, "out_features", 96),
            rf"{LAYER}.weight_packed: expected U8 \[96, 40\], got U8 \[48, 40\]",
        ),
        (_set("modules", LAYER, "clip", "no"), "clip: expected .* got 'no'"),
        (_set("modules", LAYER, "activation_bits", 5), "activation_bits: expected 4 or 8, got 5"),
        (_set("modules", LAYER, {}), "expected the fields type, "),
        (_set("modules", LAYER, "group_size", 64), "expected .* got "),
    ],
)
def test_edited_config_is_refused(copied, edit, words):
    file = copied / "config.json"
    config = json.loads(file.read_text())
    edit(config["quantization_config"])
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        load(copied)


def test_unknown_module_is_refused(copied):
    file = copied / "config.json"
    config = json.loads(file.read_text())
    modules = config["quantization_config"]["modules"]
    modules["model.layers.7.mlp.up_proj"] = modules[LAYER]
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model\.layers\.7\.mlp\.up_proj"):
        load(copied)


def test_other_sizes_in_the_model_config_are_refused(copied):
    file = copied / "config.json"
    config = json.loads(file.read_text())
    config["intermediate_size"] = 96
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"_proj of size \[.*96.*\] as in config.json, got \[.*80.*\]"):
        load(copied)


# ---- writing ----


def test_a_failed_save_leaves_what_was_there(saved, copied, monkeypatch):
    before = {p.name: p.read_bytes() for p in copied.iterdir()}
    model = load(copied)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(type(model), "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(copied)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(copied.parent / "new")
    assert {p.name: p.read_bytes() for p in copied.iterdir()} == before
    assert sorted(p.name for p in copied.parent.iterdir()) == ["model"]


def test_saving_over_replaces_weights_and_keeps_other_files(copied):
    (copied / "README.md").write_text("mine")
    (copied / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    model = quantised(recipe="rtn w8a8")
    model.save_pretrained(copied)
    assert (copied / "README.md").read_text() == "mine"
    assert not (copied / "model-00001-of-00002.safetensors").exists()
    ids = token_ids(1, 8)
    compare.exact(logits(load(copied), ids), logits(model, ids))


def test_saving_onto_a_file_is_refused(saved, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="save_directory: expected a directory, got the file file"):
        quantised().save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_adapter_trains_on_a_loaded_model(saved):
    peft = pytest.importorskip("peft")
    model = load(saved[0])
    ids = token_ids(2, 16)
    plain = logits(model, ids)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    compare.exact(logits(model, ids), plain)
    loss = model(ids, labels=ids).loss
    loss.backward()
    grads = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    assert len(grads) == 4 and all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in grads)
    assert isinstance(model.base_model.model.model.layers[0].mlp.up_proj, Int4Linear)
