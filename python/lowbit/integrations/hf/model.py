"""What a quantised transformers model carries: its config block, its cache hook, its way of saving."""

import functools
import os

from torch import nn

from ...nn import QuantizedLinear
from ...recipes import Recipe
from ...transforms.rotation import key_block
from .cache import CacheHook
from .checkpoint import replace_directory
from .config import QUANT_METHOD, LowbitConfig, describe_layer


def attach(model: nn.Module, recipe: Recipe) -> None:
    """Make a model that `lowbit.quantize` has changed savable, and give it its cache."""
    from .quantizer import LowbitQuantizer

    modules = {n: describe_layer(m) for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    config = LowbitConfig(recipe=recipe.to_dict(), modules=modules)
    model.hf_quantizer = LowbitQuantizer(config, pre_quantized=True)
    model.is_quantized = True
    model.quantization_method = QUANT_METHOD
    model.config.quantization_config = config
    model.config._is_quantized = True
    install_runtime(model, recipe)


def install_runtime(model: nn.Module, recipe: Recipe) -> None:
    """The parts that are no tensors: the 4-bit cache hook and the atomic `save_pretrained`."""
    if recipe.kv_bits == 4:
        config = model.config.get_text_config()
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        hook = CacheHook(recipe.kv_clip, key_block(head_dim) if recipe.rotate else None)
        model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    model.save_pretrained = functools.partial(save_pretrained, model)


def save_pretrained(model: nn.Module, save_directory: str | os.PathLike, **kwargs) -> None:
    """`PreTrainedModel.save_pretrained` through a temporary directory that is renamed when everything is
    written.

    kwargs: those of transformers, which change between releases.
    """
    directory = os.fspath(save_directory)
    if kwargs.get("push_to_hub"):
        kwargs.setdefault("repo_id", os.path.basename(os.path.normpath(directory)))
    with replace_directory(directory) as temporary:
        type(model).save_pretrained(model, temporary, **kwargs)
