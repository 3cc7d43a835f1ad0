"""Sample inputs and the oracle of every registered op; a new op must be added here."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from tests.oracle import cases, codec, compare
from tests.oracle import hadamard as had
from tests.oracle import ops as oracle

from .support import OPS, linear_call
from .test_dynamic_linear import Case, make

Sample = tuple[tuple, object]  # arguments, expected result


def _x(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def _q(*shape: int, low: int = -8, high: int = 7) -> np.ndarray:
    return np.random.default_rng(shape).integers(low, high + 1, shape).astype(np.int8)


def _pack() -> Iterator[Sample]:
    for shape in ((3, 8), (2, 3, 9)):
        yield (torch.from_numpy(_q(*shape)),), codec.pack_nibbles(_q(*shape))


def _unpack() -> Iterator[Sample]:
    yield (torch.from_numpy(codec.pack_nibbles(_q(3, 8))),), _q(3, 8)
    yield (torch.from_numpy(codec.pack_nibbles(_q(2, 3, 9))), 9), _q(2, 3, 9)


def _prepack_int4() -> Iterator[Sample]:
    yield (torch.from_numpy(codec.pack_nibbles(_q(17, 10))),), codec.write_int4_tiles(_q(17, 10))


def _prepack_int8() -> Iterator[Sample]:
    q = _q(17, 10, low=-128, high=127)
    yield (torch.from_numpy(q),), codec.write_int8_tiles(q)


def _prepack_scale() -> Iterator[Sample]:
    s = np.random.default_rng(0).integers(1, 17, (17, 3)).astype(np.uint8)
    yield (torch.from_numpy(s),), codec.write_group_scale_tiles(s)


def _quantize(bits: int) -> Callable[[], Iterator[Sample]]:
    def samples() -> Iterator[Sample]:
        for x, clip in ((_x(3, 33), 1.0), (_x(2, 3, 16, dtype=torch.bfloat16), 0.9)):
            codes, scale = oracle.quantize_exact(compare.to_numpy(x), bits, clip)
            yield (x, clip), (codec.pack_nibbles(codes) if bits == 4 else codes.astype(np.int8), scale)

    return samples


def _hadamard() -> Iterator[Sample]:
    yield (_x(3, 24), 0.5), had.transform_fp32(_x(3, 24).numpy(), 0.5)
    yield (_x(3, 24), 0.5, 12, True), had.transform_fp32(_x(3, 24).numpy(), 0.5, 12, True)


def _hadamard_in_place() -> Iterator[Sample]:  # expected: what its first argument holds afterwards
    yield from _hadamard()
    yield (_x(5, 24).T.contiguous().T, 2.0), had.transform_fp32(_x(5, 24).numpy(), 2.0)


def _hadamard_quantize() -> Iterator[Sample]:
    for bits in (4, 8):
        codes, scale = oracle.quantize_exact(had.transform_fp32(_x(3, 24).numpy(), 12**-0.5, 12), bits)
        yield (
            (_x(3, 24), bits, 1.0, 12),
            (codec.pack_nibbles(codes) if bits == 4 else codes.astype(np.int8), scale),
        )


def _linear(weight_bits: int) -> Callable[[], Iterator[Sample]]:
    def samples() -> Iterator[Sample]:
        for case in list(cases.linear_cases(weight_bits))[2:50:9]:
            call = linear_call(case)
            if call.expected.size:
                yield tuple(call.args), call.expected

    return samples


def _dynamic_linear() -> Iterator[Sample]:
    for bits, weight_bits, group, dtype, block, shift in (
        (4, 4, 32, "float32", 0, True),
        (8, 8, None, "bfloat16", None, False),
        (8, 4, None, "float32", 16, False),
    ):
        args, want = make(Case(3, 20, 64, bits, weight_bits, group, dtype, block, 0.9, True, shift, "plain"))
        yield tuple(args), want


def _kv4_quantize() -> Iterator[Sample]:
    codes, params = oracle.kv4_quantize_exact(_x(2, 3, 10).numpy(), 0.9)
    yield (_x(2, 3, 10), 0.9), (codec.pack_nibbles(codes - 8), params)


def _kv4_dequantize() -> Iterator[Sample]:
    codes, params = oracle.kv4_quantize_exact(_x(2, 3, 10).numpy())
    packed = torch.from_numpy(codec.pack_nibbles(codes - 8))
    yield (packed, torch.from_numpy(params)), oracle.kv4_dequantize_exact(codes, params)
    yield (
        (packed, torch.from_numpy(params), torch.bfloat16, 9),
        oracle.kv4_dequantize_exact(codes, params, "bfloat16")[..., :9],
    )


SAMPLES: dict[str, Callable[[], Iterator[Sample]]] = {
    "pack_int4": _pack,
    "unpack_int4": _unpack,
    "prepack_int4_weight": _prepack_int4,
    "prepack_int8_weight": _prepack_int8,
    "prepack_group_scale": _prepack_scale,
    "quantize_int4": _quantize(4),
    "quantize_int8": _quantize(8),
    "hadamard": _hadamard,
    "hadamard_": _hadamard_in_place,
    "hadamard_quantize": _hadamard_quantize,
    "int4_linear": _linear(4),
    "int8_linear": _linear(8),
    "dynamic_linear": _dynamic_linear,
    "kv4_quantize": _kv4_quantize,
    "kv4_dequantize": _kv4_dequantize,
}


def call(name: str, args: tuple, ops: object = OPS) -> tuple:
    """The results of the op as a tuple; of an op that writes to its first argument, a copy that it wrote to.
    """
    op = getattr(ops, name)
    if name == "hadamard_":
        first = args[0].clone(memory_format=torch.preserve_format)
        assert op(first, *args[1:]) is None
        return (first,)
    result = op(*args)
    return result if isinstance(result, tuple) else (result,)
