"""Tiny random decoders that the tests build themselves, one per supported architecture."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 96
_COMMON = dict(
    vocab_size=VOCABULARY, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
ARCHITECTURES = {
    # 48 = 12 * 4 and 80 = 20 * 4: sizes with a K-factor; tied embeddings
    "llama": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(hidden_size=48, intermediate_size=80, tie_word_embeddings=True),
    ),
    # head_dim that is not hidden_size / heads
    "mistral": (MistralForCausalLM, MistralConfig, dict(hidden_size=64, intermediate_size=96, head_dim=8)),
    # biases on q, k, v; 44 has a matrix of its own
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, dict(hidden_size=32, intermediate_size=44)),
    # norms on q and k; intermediate 72 = 36 * 2
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, dict(hidden_size=64, intermediate_size=72, head_dim=16)),
    # 22 has no matrix: block-diagonal with blocks of 2; head_dim 6 likewise
    "llama odd": (LlamaForCausalLM, LlamaConfig, dict(hidden_size=24, intermediate_size=22)),
}


def tiny(
    name: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> PreTrainedModel:
    """A random model whose norm gains, biases and embeddings are all far from trivial."""
    kind, config, sizes = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = kind(config(**(_COMMON | sizes | changes)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in key:
                p.copy_(1 + 0.4 * noise)
            elif p.ndim == 1:
                p.copy_(0.3 * noise)
            else:
                p.copy_(noise * (1.0 if "embed" in key else p.shape[1] ** -0.5))
    for p in model.parameters():  # parameters only: from_pretrained keeps the rotary buffers in fp32 too
        p.data = p.data.to(dtype)
    return model.eval()


def token_ids(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    """int64 [rows, length] without special tokens."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
