"""`lowbit compare` shares GPTQ weights between methods that differ in activations alone: they are equal."""

import lowbit
import torch
from lowbit.nn import QuantizedLinear
from transformers import LlamaConfig, LlamaForCausalLM


def quantised(method):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    ids = torch.randint(64, (4, 32), generator=torch.Generator().manual_seed(1))
    model = LlamaForCausalLM(config).eval()
    return lowbit.quantize(model, method, ids, progress=False)


def test_weights_do_not_depend_on_the_activation_bits():
    four, eight = (
        [m for m in quantised(f"quarot gptq w4a{bits}kv4").modules() if isinstance(m, QuantizedLinear)]
        for bits in (4, 8)
    )
    assert len(four) == len(eight) == 14
    for a, b in zip(four, eight, strict=True):
        assert (a.activation_bits, b.activation_bits) == (4, 8)
        assert torch.equal(a.codes().codes, b.codes().codes)
        assert torch.equal(a.weight_scale, b.weight_scale)
