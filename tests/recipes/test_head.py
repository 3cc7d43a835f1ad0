"""Recipe.head_bits: the output head in int8."""

from dataclasses import replace

import lowbit
import pytest
import torch
from lowbit.recipes import Recipe

from tests.models import tiny, token_ids


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_an_eight_bit_head(name, tmp_path):
    """lm_head in int8, untied from the embedding, saved and loaded like any layer; nearly what it was."""
    ids, settings = token_ids(2, 24), Recipe(weight_bits=8, activation_bits=8)
    plain = lowbit.quantize(tiny(name), settings, progress=False)
    model = lowbit.quantize(tiny(name), replace(settings, head_bits=8), progress=False)
    assert type(model.lm_head) is lowbit.nn.Int8Linear and model.lm_head.activation_bits == 8
    assert torch.equal(model.get_input_embeddings().weight, tiny(name).get_input_embeddings().weight)
    with torch.no_grad():
        want, got = plain(ids).logits, model(ids).logits
        span = float(want.max() - want.min())
        assert 0 < float((got - want).abs().max()) <= 0.02 * span
        model.save_pretrained(tmp_path / "m")
        again = type(model).from_pretrained(tmp_path / "m")
        assert type(again.lm_head) is lowbit.nn.Int8Linear
        assert torch.equal(again(ids).logits, got)
