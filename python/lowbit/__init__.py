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
    from .integrations.hf import fuse, unfuse  # importing it registers the quantizer
else:

    def fuse(*_args: object, **_kwargs: object) -> object:
        """Needs transformers; see `lowbit.integrations.hf.fuse`."""
        raise ImportError("fuse: needs transformers: pip install 'lowbit[hf]'")

    unfuse = fuse

__all__ = ["Recipe", "build_info", "fuse", "nn", "ops", "quantize", "recipes", "unfuse"]
