"""`lowbit compare` shares GPTQ weights between methods that differ in activations alone: they are equal."""

import lowbit
import pytest
import torch
from lowbit.cli.compare import SharedWeights, bits_of
from lowbit.nn import QuantizedLinear
from lowbit.recipes import Recipe
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


def test_weights_of_different_kinds_are_not_shared():
    """A weight-only checkpoint is no start for another recipe, nor another one for it."""
    methods = ["fp6 gptq e2m3", "zeroquant fp6", "quarot gptq w4a8kv4", "quarot gptq w4a4kv4"]
    keys = [SharedWeights._key(name) for name in methods]
    assert keys[0] is None and keys[1] is None
    assert keys[2] is not None and keys[2] == keys[3]


@pytest.mark.parametrize(
    "method,bits",
    [
        ("fp6 e2m3", "W6A16"),
        ("fp4 w4a16 g32", "W4A16 g32"),
        ("mxfp6", "W6A16 g32"),
        ("int4 w4a16", "W4A16"),
        ("rtn w4a4", "W4A4KV16"),
        ("quarot gptq w4a8kv4 g64", "W4A8KV4 g64"),
    ],
)
def test_the_bits_column(method, bits):
    assert bits_of(Recipe.from_name(method)) == bits
