"""Bad arguments to the ops of the paged KV cache: one sentence, and nothing is written."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from tests.oracle import attention as oracle

from .support import CPU_ONLY, ON_CPU, OPS, assert_unchanged, snapshot

C = tuple(torch.from_numpy(a) for a in oracle.poisoned(4, 3, 16, 64).arrays())
KV, AT, Q = torch.ones(2, 3, 64), torch.tensor([0, 63]), torch.ones(2, 9, 64)
QKV, ROTATION = torch.ones(2, 960), (torch.ones(2, 64), torch.zeros(2, 64))
TABLE, LENGTHS_2 = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), torch.tensor([20, 3], dtype=torch.int32)
ROPE, ATTEND = (QKV, *ROTATION, 9, 3, AT, *C), (QKV, *ROTATION, 9, 3, *C, TABLE, LENGTHS_2, 0.125)
DECODE = (Q, *C, TABLE, LENGTHS_2, 0.125)


def replaced(args: tuple, **at: object) -> tuple:
    """_3=x: argument 3 replaced by x."""
    return tuple(at.get(f"_{i}", a) for i, a in enumerate(args))


APPEND = (KV, KV, AT, *C)
F16 = torch.float16
# op, arguments, the sentence
BAD = [
    ("kv4_append", replaced(APPEND, _0=KV.double()), "key has dtype float64, expected float32"),
    ("kv4_append", replaced(APPEND, _1=KV.half()), "value has dtype float16, expected float32"),
    ("kv4_append", replaced(APPEND, _0=KV[0]), "key has 2 dimensions, expected 3: [tokens"),
    ("kv4_append", replaced(APPEND, _1=KV[:1]), "value has shape [1, 3, 64], expected [2, 3, 64]"),
    ("kv4_append", replaced(APPEND, _0=KV[:, :2]), "key has shape [2, 2, 64], expected [2, 3, 64]"),
    ("kv4_append", replaced(APPEND, _2=AT.int()), "slots has dtype int32, expected int64"),
    ("kv4_append", replaced(APPEND, _2=AT[:1]), "slots has shape [1], expected [2]"),
    (
        "kv4_append",
        replaced(APPEND, _2=AT + 1),
        "slots[1] is 64, expected less than 64 (4 pages of 16 tokens)",
    ),
    ("kv4_append", replaced(APPEND, _3=C[0].char()), "key_codes has dtype int8, expected uint8"),
    ("kv4_append", replaced(APPEND, _3=C[0][0]), "key_codes has 3 dimensions, expected 4: [pages"),
    (
        "kv4_append",
        replaced(APPEND, _3=C[0][:, :, :8]),
        "key_codes has pages of 8 tokens, expected a power of two",
    ),
    ("kv4_append", replaced(APPEND, _3=C[0][:, :0]), "key_codes has 0 heads, expected at least 1"),
    (
        "kv4_append",
        replaced(APPEND, _5=C[2][..., :31]),
        "value_codes has shape [4, 3, 16, 31], expected [4, 3, 16, 32]",
    ),
    ("kv4_append", replaced(APPEND, _4=C[1].float()), "key_params has dtype float32, expected float16"),
    (
        "kv4_append",
        replaced(APPEND, _6=C[3][:3]),
        "value_params has shape [3, 3, 16, 2], expected [4, 3, 16, 2]",
    ),
    ("kv4_append", replaced(APPEND, _5=C[2].mT.contiguous().mT), "value_codes is not contiguous"),
    (
        "kv4_append",
        (torch.ones(2, 3, 0), torch.ones(2, 3, 0), AT, *C),
        "the head size is 0, expected 1 to 512",
    ),
    ("kv4_append", (torch.ones(2, 3, 513), torch.ones(2, 3, 513), AT, *C), "the head size is 513"),
    ("kv4_append", (*APPEND, 0.0), "clip is 0, expected 0 < clip <= 1"),
    (
        "kv4_append",
        (*APPEND, 1.0, 12),
        "key_block is 12, expected a power of two that divides the head size 64",
    ),
    ("kv4_append", (*APPEND, 1.0, 128), "key_block is 128, expected a power of two"),
    ("kv4_append", (*APPEND, 1.0, 0), "key_block is 0, expected a power of two"),
    ("kv4_rope_append", replaced(ROPE, _0=QKV[0]), "qkv has 1 dimensions, expected 2: [tokens"),
    ("kv4_rope_append", replaced(ROPE, _0=QKV[:, :959]), "qkv has shape [2, 959], expected [2, 945]"),
    (
        "kv4_rope_append",
        replaced(ROPE, _3=10),
        "heads is 10, expected a positive multiple of kv_heads, which is 3",
    ),
    ("kv4_rope_append", replaced(ROPE, _3=9, _4=0), "heads is 9, expected a positive multiple of kv_heads"),
    ("kv4_rope_append", replaced(ROPE, _3=13, _4=1), "kv_heads is 1, expected 3 as in key_codes"),
    ("kv4_rope_append", replaced(ROPE, _1=ROTATION[0].half()), "cos has dtype float16, expected float32"),
    ("kv4_rope_append", replaced(ROPE, _1=ROTATION[0][:1]), "cos has shape [1, 64], expected [2, 64]"),
    (
        "kv4_rope_append",
        replaced(ROPE, _1=torch.ones(2, 66)),
        "cos has a last dimension of 66, expected an even number",
    ),
    (
        "kv4_rope_append",
        replaced(ROPE, _1=torch.ones(2, 3)),
        "cos has a last dimension of 3, expected an even number",
    ),
    ("kv4_rope_append", replaced(ROPE, _2=torch.ones(2, 32)), "sin has shape [2, 32], expected [2, 64]"),
    ("kv4_rope_append", replaced(ROPE, _5=AT * 2), "slots[1] is 126, expected less than 64"),
    ("kv4_rope_append", (*ROPE, torch.ones(32)), "q_norm has shape [32], expected [64]"),
    (
        "kv4_rope_append",
        (*ROPE, None, torch.ones(64, dtype=F16)),
        "k_norm has dtype float16, expected float32",
    ),
    ("kv4_rope_append", (*ROPE, None, None, -1.0), "eps is -1, expected 0 or more"),
    ("kv4_attention", replaced(DECODE, _0=Q[0]), "q has 2 dimensions, expected 3: [sequences"),
    (
        "kv4_attention",
        replaced(DECODE, _0=Q[:, :8]),
        "q has 8 heads, expected a multiple of the 3 of key_codes",
    ),
    ("kv4_attention", replaced(DECODE, _0=Q.long()), "q has dtype int64, expected float32"),
    ("kv4_attention", replaced(DECODE, _5=TABLE.long()), "block_table has dtype int64, expected int32"),
    (
        "kv4_attention",
        replaced(DECODE, _5=TABLE[0]),
        "block_table has 1 dimensions, expected 2: [sequences, pages]",
    ),
    ("kv4_attention", replaced(DECODE, _5=TABLE[:1]), "block_table has shape [1, 2], expected [2, 2]"),
    ("kv4_attention", replaced(DECODE, _5=TABLE + 2), "block_table[1, 0] is 4, expected a page from 0 to 3"),
    ("kv4_attention", replaced(DECODE, _5=TABLE - 1), "block_table[0, 0] is -1, expected a page from 0 to 3"),
    ("kv4_attention", replaced(DECODE, _6=LENGTHS_2[:1]), "lengths has shape [1], expected [2]"),
    (
        "kv4_attention",
        replaced(DECODE, _6=LENGTHS_2 + 13),
        "lengths[0] is 33, expected 0 to 32 (block_table has 2 pages",
    ),
    ("kv4_attention", replaced(DECODE, _6=LENGTHS_2 - 4), "lengths[1] is -1, expected 0 to 32"),
    ("kv4_attention", (*DECODE, torch.ones(1, 3, 64)), "prefix_v is None, expected both or none"),
    ("kv4_attention", (*DECODE, None, torch.ones(1, 3, 64)), "prefix_k is None, expected both or none"),
    ("kv4_attention", (*DECODE, *[torch.ones(3, 64)] * 2), "prefix_k has 2 dimensions, expected 3: [tokens"),
    (
        "kv4_attention",
        (*DECODE, *[torch.ones(17, 3, 64)] * 2),
        "prefix_k has 17 tokens, expected at most 16",
    ),
    (
        "kv4_attention",
        (*DECODE, torch.ones(2, 3, 64), torch.ones(1, 3, 64)),
        "prefix_v has shape [1, 3, 64], expected [2, 3, 64]",
    ),
    (
        "kv4_attention",
        (*DECODE, *[torch.ones(1, 3, 64, dtype=F16)] * 2),
        "prefix_k has dtype float16, expected float32",
    ),
    (
        "kv4_attend",
        (*ATTEND, *(None, None, 1e-6, 1.0, None), *[torch.ones(1, 9, 64)] * 2),
        "prefix_k has shape [1, 9, 64], expected [1, 3, 64]",
    ),
    ("kv4_attend_quantize", (*ATTEND, 5), "bits is 5, expected 4 or 8"),
    (
        "kv4_attend_quantize",
        (*ATTEND, 8, *(None, None, 1e-6, 1.0, None, None, None), torch.ones(3)),
        "inverse_step has shape [3], expected [576]",
    ),
    ("kv4_attend_quantize", replaced((*ATTEND, 8), _10=LENGTHS_2 + 12), "lengths[0] is 32, expected 0 to 31"),
    ("kv4_attend", replaced(ATTEND, _10=LENGTHS_2 + 12), "lengths[0] is 32, expected 0 to 31"),
    ("kv4_attend", replaced(ATTEND, _9=TABLE + 2), "block_table[1, 0] is 4, expected a page from 0 to 3"),
    ("kv4_attend", replaced(ATTEND, _9=TABLE[:1]), "block_table has shape [1, 2], expected [2, 2]"),
]
VALUES = ("slots[", "block_table[", "lengths[")


@pytest.mark.parametrize("name,args,sentence", BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_bad_argument(name, args, sentence):
    if not ON_CPU and sentence.startswith(VALUES):
        pytest.skip("a check of values would wait for the GPU")
    tensors = [a for a in args if isinstance(a, Tensor)]
    before = snapshot(tensors)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        getattr(OPS, name)(*args)
    assert f"{name}: {sentence}" in str(caught.value)
    assert_unchanged(tensors, before)


def test_pages_beyond_the_length_are_not_looked_at():
    table = torch.tensor([[0, 99], [2, -1]], dtype=torch.int32)
    OPS.kv4_attention(Q, *C, table, torch.tensor([16, 3], dtype=torch.int32), 0.125)


CHECKED = """
import torch, lowbit
ops = torch.ops.lowbit
C = [torch.zeros(2, 1, 16, n, dtype=t) for n, t in ((32, torch.uint8), (2, torch.float16)) * 2]
x, bad, at = torch.ones(2, 1, 64), torch.ones(2, 1, 64), torch.tensor([0, 1])
bad[1, 0, 3] = float("inf")
turn = (torch.ones(2, 64), torch.zeros(2, 64))
table, one = torch.tensor([[0], [1]]).int(), torch.ones(2).int()
good = torch.ones(2, 192)
ops.kv4_append(x, x, at, *C)
ops.kv4_attention(x, *C, table, one, 1.0)
for name, call in (
    ("kv4_append: key or value has NaN or infinity in row 1", lambda: ops.kv4_append(x, bad, at, *C)),
    ("kv4_append: key or value has NaN or infinity in row 1", lambda: ops.kv4_append(bad, x, at, *C)),
    ("kv4_attention: q or the cache has NaN or infinity in sequence 1",
     lambda: ops.kv4_attention(bad, *C, table, one, 1.0)),
    ("kv4_rope_append: qkv has NaN or infinity in row 1",
     lambda: ops.kv4_rope_append(torch.cat((x, bad, x), 1).flatten(1), *turn, 1, 1, at, *C)),
    ("kv4_attend: qkv has NaN or infinity in row 1",
     lambda: ops.kv4_attend(torch.cat((x, x, bad), 1).flatten(1), *turn, 1, 1, *C, table, one, 1.0)),
):
    try:
        call()
        print("passed:", name)
    except RuntimeError as error:
        assert name in str(error) and "expected finite values (LOWBIT_CHECKED)" in str(error), error
"""


@CPU_ONLY
def test_checked_mode_refuses_what_is_not_finite():
    for checked, passed in (("1", 0), ("0", 5)):
        result = subprocess.run(
            [sys.executable, "-c", CHECKED],
            env=os.environ | {"LOWBIT_CHECKED": checked},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("passed:") == passed, result.stdout
