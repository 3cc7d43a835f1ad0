"""What the op tests share: storage variants, the cases turned into tensors, and the list of ISAs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.oracle import cases, codec
from tests.oracle import ops as oracle

from .device import CPU_ONLY, DEVICE, FP_ISAS, GEMM_ISAS, ISAS, ON_CPU, OPS, TORCH_DEVICE, place, set_isa

__all__ = [
    "CPU_ONLY", "DEVICE", "FP_ISAS", "GEMM_ISAS", "ISAS", "ON_CPU", "OPS", "TORCH_DEVICE", "LinearCall",
    "assert_unchanged", "linear_call", "place", "row_input", "set_isa", "snapshot", "stored", "tensor",
    "weight_tiles",
]  # fmt: skip


def _poison(dtype: torch.dtype) -> float | int:
    return float("nan") if dtype.is_floating_point else 113


def stored(x: Tensor, storage: str) -> Tensor:
    """The same values in another storage; everything around them is NaN (113 in integer types)."""
    if storage == "plain" or x.ndim == 0:
        return x.clone()
    poison = _poison(x.dtype)
    if storage == "strided":  # every second element of a wider buffer
        base = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), poison, dtype=x.dtype)
        view = base[..., 1::2][..., : x.shape[-1]]
    elif storage == "transposed":  # last dimension is not the contiguous one
        base = torch.full(
            (*x.shape[:-2], x.shape[-1], x.shape[-2] + 3) if x.ndim > 1 else (3 * x.shape[0],),
            poison,
            dtype=x.dtype,
        )
        view = base[..., : x.shape[-2]].transpose(-1, -2) if x.ndim > 1 else base[::3]
    elif storage == "offset":  # contiguous, but not at the start of the storage and not aligned
        base = torch.full((x.numel() + 8,), poison, dtype=x.dtype)
        view = base[3 : 3 + x.numel()].view(x.shape)
    else:
        raise ValueError(f"storage: {storage}")
    view.copy_(x)
    return view


def tensor(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(np.ascontiguousarray(array))


def row_input(case: cases.RowCase, seed: int = 0) -> Tensor:
    """The case's values, rounded to its dtype and put into its storage."""
    return stored(torch.from_numpy(cases.row_data(case, seed)).to(getattr(torch, case.dtype)), case.storage)


@dataclass
class LinearCall:
    """Arguments of int4_linear or int8_linear, and the exact answer."""

    op: Callable[..., Tensor]
    args: list
    expected: np.ndarray
    x_at: int = 0

    def __call__(self) -> Tensor:
        return self.op(*self.args)


def linear_call(case: cases.LinearCase, seed: int = 0) -> LinearCall:
    """Tiles are written by the oracle's own packer, not by the library's prepack ops."""
    data = cases.linear_data(case, seed)
    w = oracle.integer_weight(data.w_q, data.group_scale, case.group)
    expected = oracle.linear_exact(data.x_q, data.x_scale, w, data.w_scale, data.bias, case.out_dtype)
    x_q = tensor(codec.pack_nibbles(data.x_q) if case.activation == "int4" else data.x_q.astype(np.int8))
    x_scale, bias, w_scale = tensor(data.x_scale), tensor(data.bias), tensor(data.w_scale)
    x_q = stored(x_q, case.storage)
    if case.storage != "plain":
        x_scale = None if x_scale is None else stored(x_scale, "strided")
        w_scale = stored(w_scale, "strided")
        bias = None if bias is None else stored(bias, "offset")
    out = getattr(torch, case.out_dtype)
    if case.weight_bits == 8:
        tiles = tensor(codec.write_int8_tiles(data.w_q))
        return LinearCall(OPS.int8_linear, [x_q, x_scale, tiles, w_scale, bias, out], expected)
    tiles = tensor(codec.write_int4_tiles(data.w_q))
    s = None if data.group_scale is None else tensor(codec.write_group_scale_tiles(data.group_scale))
    return LinearCall(OPS.int4_linear, [x_q, x_scale, tiles, w_scale, s, bias, out], expected)


def weight_tiles(q: np.ndarray, bits: int) -> Tensor:
    return tensor(codec.write_int4_tiles(q) if bits == 4 else codec.write_int8_tiles(q))


def snapshot(args: list) -> list:
    """Copies of the whole storages behind the tensors, poison included."""
    return [
        torch.empty(0, dtype=torch.uint8).set_(a.untyped_storage()).clone() if isinstance(a, Tensor) else a
        for a in args
    ]


def assert_unchanged(args: list, before: list) -> None:
    """No op writes to its inputs, nor to the memory around them."""
    for now, then in zip(snapshot(args), before, strict=True):
        assert torch.equal(now, then) if isinstance(now, Tensor) else now == then
