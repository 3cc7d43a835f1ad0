"""What stands in for a card: refusals are the ops' own, and arguments by name reach the device as well."""

import re
from pathlib import Path

import pytest
import torch

from . import device

SOURCES = Path(__file__).resolve().parents[2] / "csrc/ops"


def test_every_refusal_of_the_cuda_ops_is_known():
    """A new sentence that ends in "on CUDA" belongs into device.refused."""
    text = "".join(path.read_text() for path in sorted(SOURCES.glob("*_cuda.*")))
    assert sorted(re.findall(r'"([^"]*) on CUDA"', text)) == [
        "",  # ", expected a multiple of 8 up to ", the largest head
        " codes in a row, expected 1 to 2^30",  # none in these tests
        ", expected 64, 80, 96, 128 or 256",
        ", expected float16 or bfloat16",
    ]


def qkv(d: int) -> tuple:
    return (torch.ones(2, 15 * d), None, None, 9, 3)


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("fp_linear", (torch.ones(2, 8),), "float16 or bfloat16 on CUDA"),
        ("fp_linear", (torch.ones(2, 8).half(),), None),
        ("kv4_append", (torch.ones(2, 3, 33),), "33, expected a multiple of 8 up to 256 on CUDA"),
        ("kv4_append", (torch.ones(2, 3, 40),), None),
        ("kv4_rope_append", qkv(40), None),
        ("kv4_attention", (torch.ones(2, 9, 40),), "40, expected 64, 80, 96, 128 or 256 on CUDA"),
        ("kv4_attend", qkv(264), "264, expected a multiple of 8 up to 256 on CUDA"),
        ("kv4_attend_quantize", qkv(80), None),
        ("kv4_quantize", (torch.ones(2, 33),), None),
    ],
)
def test_refused(name, args, words):
    sentence = device.refused(name, args)
    assert sentence is None if words is None else sentence.startswith(f"{name}: ") and words in sentence


def test_arguments_by_name_take_their_places():
    op = device._Op("int8_linear")
    args = op.positional((1, 2), {"residual": 3, "weight": 4, "w_scale": 5})
    assert args == (1, 2, 4, 5, None, None, 3, None, None)
    with pytest.raises(AssertionError, match="int8_linear: extra"):
        op.positional((1,), {"extra": 2})
