"""Bad arguments: one sentence that names the argument, what was expected and what came; then a good call
works.
"""

import re

import pytest
import torch

from tests.oracle import compare

from .samples import SAMPLES, call
from .support import ON_CPU, OPS

X = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
Q8 = torch.ones(3, 24, dtype=torch.int8)
PACKED = torch.full((3, 12), 0x88, dtype=torch.uint8)
W4 = torch.full((2, 3, 64), 0x88, dtype=torch.uint8)  # tiles of a [20, 24] weight
W8 = torch.zeros((2, 3, 128), dtype=torch.int8)
S, XS, GS = torch.ones(20), torch.ones(3), torch.ones((2, 1, 16), dtype=torch.uint8)
F64, F16 = torch.float64, torch.float16

# op, arguments, words that the message must hold
BAD = [
    ("pack_int4", (X,), ["q", "float32", "int8"]),
    ("pack_int4", (Q8 * 9,), ["q", "9", "-8 to 7"]),
    ("pack_int4", (Q8 * -9,), ["q", "-9", "-8 to 7"]),
    ("unpack_int4", (Q8,), ["packed", "int8", "uint8"]),
    ("unpack_int4", (PACKED, 25), ["k", "25", "24"]),
    ("unpack_int4", (PACKED, 22), ["k", "22", "24"]),
    ("unpack_int4", (PACKED, -1), ["k", "-1", "24"]),
    ("prepack_int4_weight", (Q8,), ["weight_packed", "int8", "uint8"]),
    ("prepack_int4_weight", (PACKED[0],), ["weight_packed", "1 dim", "[N"]),
    ("prepack_int8_weight", (PACKED,), ["weight", "uint8", "int8"]),
    ("prepack_int8_weight", (Q8[None],), ["weight", "3 dim", "[N, K]"]),
    ("prepack_group_scale", (Q8,), ["group_scale", "int8", "uint8"]),
    ("prepack_group_scale", (PACKED,), ["group_scale", "136", "1 to 16"]),
    (
        "prepack_group_scale",
        (torch.zeros(2, 2, dtype=torch.uint8),),
        ["group_scale[0, 0]", "is 0", "1 to 16"],
    ),
    ("prepack_group_scale", (GS,), ["group_scale", "3 dim", "[N"]),
    *[
        (op, (X.to(F64),), ["x", "float64", "float32"])
        for op in ("quantize_int4", "quantize_int8", "kv4_quantize")
    ],
    *[
        (op, (Q8,), ["x", "int8", "float32"])
        for op in ("quantize_int4", "quantize_int8", "kv4_quantize", "hadamard")
    ],
    *[
        (op, (X, clip), ["clip", word])
        for op in ("quantize_int4", "quantize_int8", "kv4_quantize")
        for clip, word in (
            (0.0, "is 0"),
            (-1.0, "is -1"),
            (1.5, "is 1.5"),
            (float("nan"), "nan"),
            (float("inf"), "inf"),
        )
    ],
    *[
        (op, (torch.tensor(1.0),), ["x", "dimension"])
        for op in ("quantize_int4", "quantize_int8", "kv4_quantize", "hadamard")
    ],
    ("hadamard", (X.to(F64), 1.0), ["x", "float64", "float32"]),
    ("hadamard", (X, 1.0, 7), ["block", "7", "24"]),
    ("hadamard", (X, 1.0, -8), ["block", "-8"]),
    ("hadamard", (X, 1.0, 48), ["block", "48", "24"]),
    ("hadamard", (X, 1.0, 6), ["6", "Hadamard matrix", "block"]),
    ("hadamard", (torch.ones(2, 22), 1.0), ["22", "Hadamard matrix", "block", "such as 2"]),
    ("hadamard_", (X.to(F64), 1.0), ["x", "float64", "float32"]),
    ("hadamard_", (X.clone(), 1.0, 7), ["block", "7", "24"]),
    ("hadamard_quantize", (X, 5), ["bits", "5", "4 or 8"]),
    ("hadamard_quantize", (X, 4, 2.0), ["clip", "2", "0 < clip <= 1"]),
    ("hadamard_quantize", (X, 4, 1.0, 5), ["block", "5", "24"]),
    ("hadamard_quantize", (X.to(F64), 4), ["x", "float64", "float32"]),
    ("int4_linear", (X, XS, W4, S), ["x_q", "float32", "int8"]),
    ("int4_linear", (Q8, XS, W8, S), ["weight", "int8", "prepack_int4_weight"]),
    ("int4_linear", (Q8, XS, W4.int(), S), ["weight", "int32", "prepack_int4_weight"]),
    ("int4_linear", (Q8[:, :16], XS, W4, S), ["weight", "[2, 3, 64]", "[2, 2, 64]"]),
    ("int4_linear", (PACKED[:, :8], XS, W4, S), ["weight", "[2, 3, 64]", "[2, 2, 64]"]),
    ("int4_linear", (Q8, XS, W4[:1], S), ["weight", "[1, 3, 64]", "[2, 3, 64]"]),
    ("int4_linear", (Q8, XS, W4[..., :63], S), ["weight", "[2, 3, 63]", "[2, 3, 64]"]),
    ("int4_linear", (Q8, XS, W4[0], S), ["weight", "[3, 64]", "[2, 3, 64]"]),
    ("int4_linear", (Q8, XS, W4, S[:16]), ["weight", "[2, 3, 64]", "[1, 3, 64]"]),
    ("int4_linear", (Q8, XS, W4, S.to(F16)), ["w_scale", "float16", "float32"]),
    ("int4_linear", (Q8, XS[:2], W4, S), ["x_scale", "2", "3"]),
    ("int4_linear", (Q8, XS.to(F64), W4, S), ["x_scale", "float64", "float32"]),
    ("int4_linear", (Q8, XS, W4, S, GS.float()), ["group_scale", "float32", "uint8"]),
    ("int4_linear", (Q8, XS, W4, S, GS[:1]), ["group_scale", "[1, 1, 16]", "2"]),
    ("int4_linear", (Q8, XS, W4, S, GS.expand(2, 5, 16)), ["group_scale", "5", "24"]),
    ("int4_linear", (Q8, XS, W4, S, None, S[:19]), ["bias", "[19]", "[20]"]),
    ("int4_linear", (Q8, XS, W4, S, None, S[None]), ["bias", "[1, 20]", "[20]"]),
    ("int4_linear", (Q8, XS, W4, S, None, S.long()), ["bias", "int64", "float32"]),
    ("int4_linear", (Q8, XS, W4, S, None, None, torch.int32), ["out_dtype", "int32", "float32"]),
    ("int8_linear", (PACKED, XS, W8, S), ["x_q", "uint8", "int8"]),
    ("int8_linear", (Q8, XS, W4, S), ["weight", "uint8", "prepack_int8_weight"]),
    ("int8_linear", (Q8[:, :16], XS, W8, S), ["weight", "[2, 3, 128]", "[2, 2, 128]"]),
    ("int8_linear", (Q8, XS[:1], W8, S), ["x_scale", "1", "3"]),
    ("int8_linear", (Q8, XS, W8, S, S[:3]), ["bias", "[3]", "[20]"]),
    ("int4_linear", (Q8, XS, W4, S, None, None, F16, X[:, :20]), ["residual", "float32", "float16"]),
    ("int4_linear", (Q8, XS, W4, S, None, None, None, X), ["residual", "[3, 24]", "[3, 20]"]),
    ("int4_linear", (Q8, XS, W4, S, None, None, None, None, X), ["low_rank", "low_rank_up", "together"]),
    ("int8_linear", (Q8, XS, W8, S, None, None, None, X, X.T), ["low_rank_up", "[24, 3]", "[r, 20]"]),
    ("int8_linear", (Q8, XS, W8, S, None, None, None, X, X[:2, :20]), ["low_rank", "[3, 24]", "[3, 2]"]),
    ("dynamic_linear", (X, W4, S, None, None, 8, 1.0, None, None, X), ["residual", "[3, 24]", "[3, 20]"]),
    ("dynamic_linear", (Q8, W4, S), ["x", "int8", "float32"]),
    ("dynamic_linear", (X.to(F64), W4, S), ["x", "float64", "float32"]),
    ("dynamic_linear", (X[:, :16], W4, S), ["weight", "[2, 3, 64]", "[2, 2, 64]"]),
    ("dynamic_linear", (X, W4.int(), S), ["weight", "int32", "uint8"]),
    ("dynamic_linear", (X, W4, S[:3]), ["weight", "[2, 3, 64]", "[1, 3, 64]"]),
    ("dynamic_linear", (X, W4, S, None, None, 5), ["activation_bits", "5", "4 or 8"]),
    ("dynamic_linear", (X, W4, S, None, None, 8, 0.0), ["clip", "0", "0 < clip <= 1"]),
    ("dynamic_linear", (X, W4, S, None, None, 8, 1.0, 5), ["block", "5", "24"]),
    ("dynamic_linear", (X, W4, S, None, None, 8, 1.0, None, S), ["shift", "[20]", "[24]"]),
    ("dynamic_linear", (X, W4, S, None, None, 8, 1.0, None, X[0].to(F16)), ["shift", "float16", "float32"]),
    ("dynamic_linear", (X, W8, S, GS), ["group_scale", "int8", "int4"]),
    ("kv4_quantize", (torch.empty(3, 0),), ["x", "0", "at least 1"]),
    ("kv4_dequantize", (Q8, torch.ones(3, 2, dtype=F16)), ["packed", "int8", "uint8"]),
    ("kv4_dequantize", (PACKED, torch.ones(3, 2)), ["params", "float32", "float16"]),
    ("kv4_dequantize", (PACKED, torch.ones(2, 2, dtype=F16)), ["params", "[2, 2]", "[3, 2]"]),
    ("kv4_dequantize", (PACKED, torch.ones(3, 2, dtype=F16), torch.int8), ["dtype", "int8", "float32"]),
    ("kv4_dequantize", (PACKED, torch.ones(3, 2, dtype=F16), None, 30), ["d is 30", "24"]),
]


VALUES = {"-8 to 7", "1 to 16"}


@pytest.mark.parametrize("name,args,words", BAD, ids=lambda v: v if isinstance(v, str) else None)
def test_bad_argument(name, args, words):
    if not ON_CPU and (set(words) & VALUES or any(re.fullmatch(r"\[\d+, \d+, \d+\]", w) for w in words)):
        pytest.skip("a check of values would wait for the GPU; weight tiles have other shapes there")
    with pytest.raises((RuntimeError, ValueError)) as caught:
        getattr(OPS, name)(*args)
    message = str(caught.value)
    assert message.startswith(f"{name}: ") or f"\n{name}: " in message, message
    sentence = re.search(rf"^{name}: .*$", message, re.MULTILINE).group()
    for word in words:
        assert word in sentence, f"{word!r} is not in: {sentence}"
    args, want = next(iter(SAMPLES[name]()))  # and the next call is fine
    want = want if isinstance(want, tuple) else (want,)
    for got, expected in zip(call(name, args), want, strict=True):
        compare.exact(got, expected)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_wrong_number_of_arguments_and_no_tensor(name):
    with pytest.raises(RuntimeError, match=name):
        getattr(OPS, name)()
    with pytest.raises(RuntimeError, match=name):
        getattr(OPS, name)("text")


LINEARS = ("int4_linear", "int8_linear", "dynamic_linear", "fp_linear", "fp4_linear")


@pytest.mark.parametrize("name", LINEARS)
def test_every_linear_takes_the_same_types_of_bias(name):
    """fp32, bf16 and fp16, as for x; float64 is refused, as for x, in one and the same sentence."""
    schema = getattr(torch.ops.lowbit, name).default._schema.arguments
    names, args = [a.name for a in schema], list(next(iter(SAMPLES[name]()))[0])
    args += [a.default_value for a in schema[len(args) :]]
    n, at = args[names.index("w_scale")].shape[0], names.index("bias")
    bias = torch.linspace(-2, 2, n).to(torch.bfloat16)  # exact in all four types
    results = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        args[at] = bias.to(dtype)
        results += call(name, tuple(args))
    compare.exact(results[1], results[0])
    compare.exact(results[2], results[0])
    args[at] = bias.double()
    sentence = f"{name}: bias has dtype float64, expected float32, bfloat16 or float16"
    with pytest.raises(RuntimeError, match=sentence):
        call(name, tuple(args))


def test_the_sum_of_a_layer_too_deep_for_32_bits_is_refused():
    """128 * 128 * K passes 2^31 at K = 131072 for int8 weights."""
    k = 131080
    x = torch.full((1, k), -128, dtype=torch.int8)
    tiles = torch.full((1, k // 8, 128), -128, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="131080"):
        OPS.int8_linear(x, None, tiles, torch.ones(1))


def test_meta_tensors_of_the_wrong_shape_do_not_crash():
    assert OPS.quantize_int4(torch.empty(2, 5, device="meta"))[0].shape == (2, 3)
