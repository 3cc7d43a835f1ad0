"""Whole checkpoints: lowbit to compressed-tensors (`export`) and back (`convert`, `load`)."""

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ... import formats
from ...quantizers import FloatWeight
from ...recipes import Recipe
from ..hf.checkpoint import check_files
from ..hf.config import QUANT_METHOD, LowbitConfig
from .config import read_config, write_config
from .files import Checkpoint
from .layers import INT4_FORMAT, MX_FORMATS, MX_GROUP, Storage, from_compressed, requantize, to_compressed

_MX_OF = {weight_format: name for name, weight_format in MX_FORMATS.items()}
_NEAREST = {"e3m2": "e2m3", "e1m2": "e2m1", "e3m0": "e2m1"}  # the MX format of the same size
_STORED = {"weight_packed", "weight_scale", "weight_shape", "bias"}
_ACTIVATIONS = ("input_", "output_")


# ---------------------------------------------------------------- lowbit -> compressed-tensors


def export(
    model: nn.Module | str | os.PathLike, directory: str | os.PathLike, requantize: bool = False
) -> None:
    """Write a lowbit model as a compressed-tensors checkpoint that dequantises to the same bits.

    model: one that `lowbit.quantize` made or `from_pretrained` loaded, or the directory of its checkpoint.
    directory: to write, a whole one or none; other files in it stay, weights are replaced. requantize: where
    a layer of float weights has no exact counterpart (another format, group or kind of scale), round its
    dequantised weights once more into MXFP6 or MXFP4, instead of refusing.

    Raises ValueError with one sentence that names the layer or tensor: for layers that quantise activations
    or transform their input, a 4-bit KV cache, and what docs/compressed-tensors.md lists; also for a damaged
    checkpoint.
    """
    if not isinstance(model, nn.Module):
        return _export(Checkpoint(model), directory, requantize)
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if not isinstance(config, LowbitConfig):
        raise ValueError(f"model: expected one that lowbit quantised, got {type(model).__name__}")
    with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
        model.save_pretrained(folder)
        return _export(Checkpoint(folder), directory, requantize)


def _export(source: Checkpoint, directory: str | os.PathLike, again: bool) -> None:
    block = source.block
    if not isinstance(block, dict) or block.get("quant_method") != QUANT_METHOD:
        method = block.get("quant_method") if isinstance(block, dict) else block
        raise ValueError(f"quantization_config.quant_method: expected {QUANT_METHOD}, got {method!r}")
    config = LowbitConfig.from_dict(block)
    config.check()
    if (bits := Recipe.from_dict(config.recipe).kv_bits) != 16:
        raise ValueError(f"recipe.kv_bits: expected 16 for compressed-tensors, got {bits}")
    check_files(source.paths, config.modules)
    storages = {name: _storage(name, spec, again) for name, spec in config.modules.items()}
    layers = {
        name: functools.partial(_compressed, source, name, spec, storages[name], again)
        for name, spec in config.modules.items()
    }
    others = {m for m, keys in source.modules.items() if m not in layers and len(keys.get("weight", ())) == 2}
    source.rewrite(directory, write_config(storages, others), layers)


def _storage(name: str, spec: dict, again: bool) -> Storage:
    """How compressed-tensors can store that layer; ValueError where it cannot."""
    if spec["type"] != "weight_only":
        raise ValueError(
            f"{name}: expected a weight-only layer, got {spec['type']} with quantised activations"
        )
    if (block := spec["input_hadamard"]) is not None:
        raise ValueError(f"{name}: expected no transform of the input, got input_hadamard {block}")
    weight_format, group, k = spec["weight_format"], spec["group_size"], spec["in_features"]
    if weight_format == "int4":
        storage = Storage(INT4_FORMAT, group)
    else:
        nearest = _NEAREST.get(weight_format, weight_format)
        storage = Storage(_MX_OF[nearest], MX_GROUP)
        hint = f"; requantising rounds it to {nearest} in groups of {MX_GROUP}"
        if weight_format != nearest and not again:
            raise ValueError(f"{name}.weight_packed: expected e2m3, e2m1 or int4, got {weight_format}{hint}")
        if group != MX_GROUP and not again:
            raise ValueError(f"{name}.weight_group_scale: expected groups of {MX_GROUP}, got {group}{hint}")
    if storage.group_size and k % storage.group_size:
        raise ValueError(f"{name}: expected inputs in whole groups of {storage.group_size}, got {k}")
    return storage


def _compressed(
    source: Checkpoint, name: str, spec: dict, storage: Storage, again: bool
) -> dict[str, Tensor]:
    n, k, group = spec["out_features"], spec["in_features"], spec["group_size"]
    format_id, kind = formats.FORMAT_IDS[spec["weight_format"]], spec["scale_format"]
    keys = formats.layer_tensors(format_id, n, k, group, scale_format=kind)
    tensors = {key: source.read(f"{name}.{key}") for key in keys}
    formats.validate_layer(tensors, format_id, n, k, group, name=name, scale_format=kind)
    if again and storage.format in MX_FORMATS:
        codes = formats.unpack_codes(tensors["weight_packed"], spec["weight_format"], k)
        scale, group_scale = tensors["weight_scale"].view(-1), tensors.get("weight_group_scale")
        w = FloatWeight(codes, scale, group_scale, group, spec["weight_format"]).dequantize()
        tensors = requantize(w, storage.weight_format)
    return to_compressed(tensors, storage, k, name)


# ---------------------------------------------------------------- compressed-tensors -> lowbit


def convert(directory: str | os.PathLike, target: str | os.PathLike, weights_only: bool = False) -> None:
    """Write a compressed-tensors checkpoint as lowbit's, with the same codes and scales.

    directory: the checkpoint, in `mxfp6-pack-quantized`, `mxfp4-pack-quantized` or 4-bit `pack-quantized`.
    target: to write, a whole one or none; `AutoModelForCausalLM.from_pretrained` loads it. weights_only:
    leave out the quantisation of activations and KV cache that the checkpoint asks for.

    Raises ValueError with one sentence, before anything is written, for other formats, schemes that lowbit
    has no layer for and damaged files.
    """
    source = Checkpoint(directory)
    schemes = read_config(source.block, weights_only)
    specs, layers = {}, {}
    for name, keys in source.modules.items():
        if not keys.keys() & {"weight_packed", "weight_scale"}:
            continue
        storage = schemes.find(name)
        _refuse_others(name, keys, weights_only)
        layers[name] = functools.partial(_portable, source, name, storage)
        n, k, group = (meta := layers[name]()["weight_meta"].tolist())[2:]
        specs[name] = {
            "type": "weight_only", "in_features": k, "out_features": n, "bias": "bias" in keys,
            "weight_format": formats.FORMAT_NAMES[meta[0]], "group_size": group or None,
            "scale_format": _scale_format(storage), "input_hadamard": None,
        }  # fmt: skip
    if not specs:
        raise ValueError("checkpoint: expected quantised layers, got none with a weight_packed")
    config = LowbitConfig(recipe=_recipe(storage).to_dict(), modules=specs)
    config.check()
    source.rewrite(target, config.to_dict(), layers)


def load(directory: str | os.PathLike, weights_only: bool = False, **kwargs: Any) -> nn.Module:
    """The model of a compressed-tensors checkpoint, on lowbit's packed kernels.

    It goes through `convert` and a temporary directory; convert once to load often. kwargs: those of
    `AutoModelForCausalLM.from_pretrained`. Raises as `convert`.
    """
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
        converted = Path(folder) / "model"
        convert(directory, converted, weights_only)
        model = AutoModelForCausalLM.from_pretrained(converted, **kwargs)
    model.name_or_path = model.config.name_or_path = os.fspath(directory)
    return model


def _portable(source: Checkpoint, name: str, storage: Storage) -> dict[str, Tensor]:
    keys = source.modules[name].keys() & _STORED
    read = {key: source.read(f"{name}.{key}") for key in keys if key != "bias"}
    tensors, k = from_compressed(read, storage, name)
    format_id, n = formats.FORMAT_IDS[storage.weight_format], tensors["weight_packed"].shape[0]
    meta = formats.meta_tensor(format_id, n, k, storage.group_size)
    return tensors | {"weight_meta": meta}


def _refuse_others(name: str, keys: dict[str, list[int]], weights_only: bool) -> None:
    for key, shape in keys.items():
        if key not in _STORED and not (weights_only and key.startswith(_ACTIVATIONS)):
            raise ValueError(f"{name}.{key}: expected no such tensor, got one of {shape}")


def _recipe(storage: Storage) -> Recipe:
    """A recipe for layers stored like that, for the checkpoint's records."""
    weight_format, mx = storage.weight_format, storage.format in MX_FORMATS
    return Recipe(
        f"imported {storage.format}", weight_bits=formats.bits_of(weight_format), activation_bits=16,
        group_size=storage.group_size, weight_format=weight_format if mx else None,
        scale_format="mx" if mx else _scale_format(storage),
    )  # fmt: skip


def _scale_format(storage: Storage) -> str | None:
    if storage.group_size is None:
        return None
    return "e8m0" if storage.format in MX_FORMATS else "fp16"
