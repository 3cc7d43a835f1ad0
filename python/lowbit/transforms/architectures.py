"""Where a decoder keeps the parts that transforms and calibration touch, and which decoders qualify.

The transforms are exact for pre-norm decoders with RMSNorm (gain w, not 1 + w), gated MLP and grouped-query
attention. A model type is listed here once its modules have been checked against that; others are refused.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")

_REASONS = {
    "gemma": "its RMSNorm multiplies by 1 + weight",
    "gemma2": "it normalises after the blocks (post-norm) and multiplies by 1 + weight",
    "gemma3_text": "it normalises after the blocks (post-norm) and multiplies by 1 + weight",
    "gpt2": "its LayerNorm subtracts a mean and its linears are Conv1D",
    "opt": "its LayerNorm subtracts a mean",
    "gpt_neox": "its LayerNorm subtracts a mean",
    "falcon": "its LayerNorm subtracts a mean",
    "phi": "its LayerNorm subtracts a mean",
    "olmo2": "it normalises after the blocks (post-norm)",
    "olmo3": "it normalises after the blocks (post-norm)",
    "glm4": "it normalises after the blocks (post-norm)",
    "mixtral": "its experts are not linear modules",
    "qwen2_moe": "its experts are not linear modules",
    "qwen3_moe": "its experts are not linear modules",
}

_KNOWN_PARAMETERS = {
    "input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    *(f"self_attn.{p}_proj.{t}" for p in "qkvo" for t in ("weight", "bias")),
    *(f"mlp.{p}_proj.{t}" for p in ("gate", "up", "down") for t in ("weight", "bias")),
}


@dataclass
class LayerParts:
    """One decoder layer; `stages` are the groups of linears that share an input, in order of computation."""

    module: nn.Module
    input_norm: nn.Module
    mlp_norm: nn.Module
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear

    STAGES: ClassVar[tuple[tuple[str, ...], ...]] = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
    PATHS: ClassVar[dict[str, str]] = {
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
    }


@dataclass
class DecoderLayout:
    """A supported causal language model, taken apart."""

    model: nn.Module
    decoder: nn.Module  # the module that owns embedding, layers and final norm
    embedding: nn.Embedding
    layers: list[LayerParts]
    final_norm: nn.Module
    head: nn.Linear
    hidden_size: int
    intermediate_size: int
    head_dim: int


def find_layout(model: nn.Module, purpose: str = "rotation") -> DecoderLayout:
    """Take a Llama-, Mistral-, Qwen2- or Qwen3-type model apart.

    purpose: what needs it, for the message. Raises ValueError with one sentence for any other model, and for
    one whose layers hold parameters that the transforms do not know.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in SUPPORTED:
        reason = f" ({_REASONS[kind]})" if kind in _REASONS else ""
        raise ValueError(
            f"model: {purpose} expects a pre-norm RMSNorm decoder of type {', '.join(SUPPORTED)}, "
            f"got {kind or type(model).__name__}{reason}"
        )
    decoder, head = getattr(model, "model", None), model.get_output_embeddings()
    if decoder is None or not isinstance(head, nn.Linear):
        got = type(model).__name__
        raise ValueError(f"model: {purpose} expects a causal language model with lm_head, got {got}")
    layers = [_layer_parts(layer, f"layer {i}", purpose) for i, layer in enumerate(decoder.layers)]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return DecoderLayout(
        model, decoder, decoder.embed_tokens, layers, decoder.norm, head,
        config.hidden_size, config.intermediate_size, head_dim,
    )


def _layer_parts(layer: nn.Module, name: str, purpose: str) -> LayerParts:
    for key, _ in layer.named_parameters():
        if key not in _KNOWN_PARAMETERS:
            raise ValueError(f"model: {purpose} expects plain attention and MLP weights, got {key} in {name}")
    parts = {}
    for key, path in LayerParts.PATHS.items():
        module = layer.get_submodule(path)
        if type(module) is not nn.Linear:
            got = type(module).__name__
            raise ValueError(f"model: {purpose} expects nn.Linear at {path} of {name}, got {got}")
        parts[key] = module
    for norm in ("input_layernorm", "post_attention_layernorm"):
        if getattr(layer.get_submodule(norm), "bias", None) is not None:
            raise ValueError(f"model: {purpose} expects RMSNorm, got a norm with a bias at {norm} of {name}")
    return LayerParts(layer, layer.input_layernorm, layer.post_attention_layernorm, **parts)
