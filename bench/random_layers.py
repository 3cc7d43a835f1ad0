"""Models as a recipe would lay them out, with random codes: at the size of a real model in a second, where
rotating and rounding real weights takes minutes. What layers there are is read off a tiny model, quantised.
"""

import functools

import torch
from lowbit.integrations.hf.model import install_runtime
from lowbit.nn import QuantizedLinear, StaticInt4Linear
from lowbit.recipes import Recipe
from lowbit.transforms.hadamard import largest_block
from torch import Tensor, nn

from .model import Shape, random_layer, repeat_layer

_TINY = Shape(hidden=256, intermediate=512, heads=2, kv_heads=1, layers=1, vocabulary=256)
_STD_OF_CODES = 4.3  # of int4 weights -7..7, all alike
_UNITS = {4: 2.5, 8: 40.0}  # how large static codes of an activation are


@functools.cache
def _tiny(method: str) -> nn.Module:
    return random_layer(_TINY, _TINY.vocabulary, method)


def random_quantized(
    shape: Shape, layers: int, method: str, device: str, dtype: torch.dtype = torch.float16
) -> nn.Module:
    """`layers` layers, each in memory of its own, with embedding, head and cache as the recipe has them."""
    with torch.device(device):
        model = random_layer(shape, shape.vocabulary)
    model.to(dtype)
    generator, recipe = torch.Generator(device).manual_seed(5), Recipe.from_name(method)
    for name, like in _tiny(method).named_modules():
        if isinstance(like, QuantizedLinear):
            layer = _random_like(like, model.get_submodule(name), recipe, generator, dtype)
            model.set_submodule(name, layer)
    _set_units(model)
    install_runtime(model, recipe)
    return repeat_layer(model, layers)


def _random_like(
    like: QuantizedLinear, plain: nn.Linear, recipe: Recipe, generator: torch.Generator, dtype: torch.dtype
) -> QuantizedLinear:
    """Of the kind and options of `like` and the size of `plain`; outputs about as large as those of `plain`.

    Behind a norm, with all the copies of large channels that the recipe allows: real models need them, and
    random ones have none.
    """
    k, n = plain.in_features, plain.out_features
    options = like.options() | {"in_features": k, "out_features": n}
    if options["input_hadamard"] is not None:
        options["input_hadamard"] = largest_block(k) % k  # 0: over all of them
    if isinstance(like, StaticInt4Linear) and not like.input_step and recipe.split is not None:
        options["gathered"] = k if recipe.prune else int(k * (1 + recipe.split_growth))
    layer = type(like)(**options, device=generator.device, dtype=dtype)
    where = {"device": generator.device, "generator": generator}
    size = 0.02 / _STD_OF_CODES
    if like._codes_name == "weight_int8":
        layer.weight_int8 = torch.randint(-127, 128, (n, k), dtype=torch.int8, **where)
        size = 0.02 / 73
    else:
        layer.weight_packed = _random_nibbles(n, layer.stored_features, where)
    if isinstance(layer, StaticInt4Linear):
        size /= _UNITS[layer.activation_bits]
        if layer.input_step:
            layer.input_inverse_step.fill_(_UNITS[layer.activation_bits])
        if layer.gathered is not None:
            layer.input_index.copy_(torch.arange(layer.gathered) * k // layer.gathered)
    layer.weight_scale.copy_(size * (0.5 + torch.rand(n, 1, **where)))
    if layer.mean_shift:  # one for all readers of an input
        layer.input_shift.copy_(torch.linspace(-0.5, 0.5, len(layer.input_shift)))
    layer.requires_grad_(False)
    layer.prepare()
    return layer


def _random_nibbles(n: int, k: int, where: dict) -> Tensor:
    """Packed int4 -7..7 with offset 8; the spare nibble of an odd k is 8."""
    low, high = (torch.randint(1, 16, (n, (k + 1) // 2), dtype=torch.uint8, **where) for _ in range(2))
    if k % 2:
        high[:, -1] = 8
    return low | (high << 4)


def _set_units(model: nn.Module) -> None:
    """Norms whose readers expect integer units give them."""
    for layer in model.model.layers:
        pairs = (
            (layer.input_layernorm, layer.self_attn.q_proj),
            (layer.post_attention_layernorm, layer.mlp.gate_proj),
        )
        for norm, reader in pairs:
            if isinstance(reader, StaticInt4Linear) and not reader.input_step:
                norm.weight.fill_(_UNITS[reader.activation_bits])
