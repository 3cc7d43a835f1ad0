"""The transformers side of loading: build packed layers before the weights arrive, check them afterwards.

Overrides as little of `HfQuantizer` as possible, since its methods change between releases (works on 5.18 -
5.23).
"""

import torch
from torch import nn
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer

from ...nn import QuantizedLinear
from ...recipes import Recipe
from .cache import PREFIX, PREFIX_TOKENS
from .checkpoint import check_files
from .config import QUANT_METHOD, build_layer, skeleton_check
from .model import install_runtime


class LowbitQuantizer(HfQuantizer):
    """Loads pre-quantised checkpoints; quantising while loading is `lowbit.quantize`'s job."""

    requires_calibration = True  # transformers then refuses to quantise on load, in its own words

    def validate_environment(self, *args, **kwargs):
        self.quantization_config.check()

    def _process_model_before_weight_loading(self, model: nn.Module, *args, checkpoint_files=None, **kwargs):
        specs = self.quantization_config.modules
        if checkpoint_files is not None:
            check_files(checkpoint_files, specs)
        for name, spec in specs.items():
            try:
                module = model.get_submodule(name)
            except AttributeError:
                raise ValueError(
                    f"quantization_config: expected layers of {type(model).__name__}, "
                    f"got {name}, which it lacks"
                ) from None
            skeleton_check(name, module, spec)
            layer = build_layer(spec, module.weight.dtype)
            layer.requires_grad_(False)
            model.set_submodule(name, layer)
        if Recipe.from_dict(self.quantization_config.recipe).prefix:
            c = model.config.get_text_config()
            heads = c.num_key_value_heads
            head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
            shape = (c.num_hidden_layers, 2, heads, PREFIX_TOKENS, head_dim)
            dtype = model.get_input_embeddings().weight.dtype
            model.base_model.register_buffer(PREFIX, torch.empty(shape, dtype=dtype, device="meta"))
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, *args, **kwargs):
        _check_complete(model)
        for name, module in model.named_modules():
            if isinstance(module, QuantizedLinear):
                module.validate(name)
                module.requires_grad_(False)
        install_runtime(model, Recipe.from_dict(self.quantization_config.recipe))
        return model

    def is_serializable(self, *args, **kwargs) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True  # adapters on top; the packed weights themselves are frozen

    @property
    def is_compileable(self) -> bool:
        return True

    def _dequantize(self, model: nn.Module, *args, dtype: torch.dtype | None = None, **kwargs):
        raise NotImplementedError(
            "dequantize: expected a model whose transforms can be undone, got one with online rotations"
        )


def _check_complete(model: nn.Module) -> None:
    """transformers fills missing tensors with fresh values and only logs it; refuse that."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    tensors = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            tensors |= {f"{name}.{key}": value for key, value in module.named_buffers()}
    if (prefix := getattr(model.base_model, PREFIX, None)) is not None:
        tensors[f"{model.base_model_prefix}.{PREFIX}"] = prefix
    for key, tensor in tensors.items():
        if tensor is not None and not getattr(tensor, "_is_hf_initialized", False) and key not in tied:
            shape = list(tensor.shape)
            raise ValueError(f"{key}: expected {shape} in the checkpoint, got nothing (missing tensor)")


if QUANT_METHOD not in AUTO_QUANTIZER_MAPPING:
    register_quantizer(QUANT_METHOD)(LowbitQuantizer)
