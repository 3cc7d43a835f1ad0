"""Many rows, of many inputs or for few channels: how they are cut and shared out changes no bit."""

from collections.abc import Callable

import pytest
import torch
from lowbit import ops
from lowbit.nn import Fp4Linear, Int4Linear, Int8Linear, WeightOnlyLinear
from torch import Tensor, nn

from tests.oracle import compare

from .support import CPU_ONLY, FP_ISAS  # noqa: F401

pytestmark = CPU_ONLY
ROWS, K, N = 300, 96, 40


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[-1]))


def _linear() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(K, N).requires_grad_(False)


def _module(kind: type, dtype: torch.dtype, *args: object, **how: object) -> Callable[[], Tensor]:
    return lambda: kind.from_linear(_linear(), *args, **how).to(dtype)(_x(ROWS, K).to(dtype))


def _residual(dtype: torch.dtype, group: int | None) -> Tensor:
    """int4_linear with all that a row may bring along."""
    layer = Int4Linear.from_linear(_linear(), group_size=group)
    layer.prepare()
    q, scale = ops.quantize_int8(_x(ROWS, K))
    low = _x(ROWS, 5), _x(5, N)
    return ops.int4_linear(
        q, scale, layer._tiles, layer.weight_scale.view(-1), layer._group_tiles, _linear().bias, dtype,
        _x(ROWS, N).to(dtype), *low,
    )  # fmt: skip


def _float_residual(dtype: torch.dtype) -> Tensor:
    layer = WeightOnlyLinear.from_linear(_linear(), "e3m2")
    layer.prepare()
    x = _x(ROWS, K).to(dtype)
    x[200] *= 2.0**-20  # one part goes another way than the other, where there are two
    args = layer._tiles, "e3m2", layer.weight_scale.view(-1), None, _linear().bias, _x(ROWS, N).to(dtype)
    return ops.fp_linear(x, *args)


CALLS: dict[str, Callable[[], Tensor]] = {
    "w4a8": _module(Int4Linear, torch.float32),
    "w4a4 g32 hadamard bf16": _module(
        Int4Linear, torch.bfloat16, activation_bits=4, group_size=32, input_hadamard=32
    ),
    "w8a8 fp16": _module(Int8Linear, torch.float16),
    "fp4": _module(Fp4Linear, torch.float32),
    "e2m3": _module(WeightOnlyLinear, torch.float32),
    "e2m1 g32 bf16": _module(WeightOnlyLinear, torch.bfloat16, "e2m1", 32),
    "int4 g64 fp16": _module(WeightOnlyLinear, torch.float16, "int4", 64),
    "residual and low rank": lambda: _residual(torch.float32, None),
    "residual and low rank, g32 bf16": lambda: _residual(torch.bfloat16, 32),
    "float residual": lambda: _float_residual(torch.float32),
    "float residual bf16": lambda: _float_residual(torch.bfloat16),
}


@pytest.mark.parametrize("name", CALLS)
def test_threads_that_share_out_rows_change_no_bit(name, isa):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):  # one: no rows are shared out
            torch.set_num_threads(threads)
            results.append(CALLS[name]())
    finally:
        torch.set_num_threads(before)
    assert results[0].shape == (ROWS, N) and results[0].isfinite().all()
    for other in results[1:]:
        compare.exact(other, results[0])


# Rows whose packed activations leave the cache: tiles cut k, and the sums wait in between. 40 channels are a
# pair of tiles and one alone.
LONG = {
    "w4a8": (22000, lambda source: Int4Linear.from_linear(source, 8)),
    "w4a4 g32": (22000, lambda source: Int4Linear.from_linear(source, 4, 32)),
    "e2m3": (4200, lambda source: WeightOnlyLinear.from_linear(source)),
    "e2m1 g32 e8m0": (4200, lambda source: WeightOnlyLinear.from_linear(source, "e2m1", 32)),
    "int4 g128 fp16": (4200, lambda source: WeightOnlyLinear.from_linear(source, "int4", 128)),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", LONG)
def test_long_rows_have_the_bits_they_have_in_small_batches(name, threads, isa):
    k, convert = LONG[name]
    torch.manual_seed(5)
    layer, rows, before = convert(nn.Linear(k, N).requires_grad_(False)), 76, torch.get_num_threads()
    x = _x(rows, k)
    try:
        torch.set_num_threads(threads)
        together = layer(x)
    finally:
        torch.set_num_threads(before)
    assert together.isfinite().all()
    compare.exact(together, torch.cat([layer(part) for part in x.split(19)]))
