"""lowbit: language models in 4 to 6 bits.

Ops are under `torch.ops.lowbit` (see `lowbit.ops`), drop-in layers in `lowbit.nn`, recipes in
`lowbit.recipes`. Importing lowbit registers its quantizer with transformers, where that is installed, so that
`AutoModelForCausalLM.from_pretrained` loads a lowbit checkpoint. Without this import transformers only warns,
and returns a model with random weights.
"""

import importlib.util
from importlib.metadata import PackageNotFoundError, version

from . import nn, ops, recipes
from ._info import build_info
from .quantize import quantize
from .recipes import Recipe

try:
    __version__ = version("lowbit")
except PackageNotFoundError:  # a source tree on PYTHONPATH
    __version__ = "0.0.0+source"

if importlib.util.find_spec("transformers") is not None:
    from .integrations import hf as _hf  # noqa: F401  registers the quantizer

__all__ = ["Recipe", "build_info", "nn", "ops", "quantize", "recipes"]
