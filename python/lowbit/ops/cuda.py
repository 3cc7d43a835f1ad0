"""prepack on CUDA tensors. It runs once per weight, so plain torch does it (`lowbit.reference.layout`)."""

import torch
from torch import Tensor

from ..reference import layout

_library = torch.library.Library("lowbit", "IMPL", "CUDA")


def _check(op: str, name: str, t: Tensor, dtype: torch.dtype, shape: str) -> None:
    if t.dtype != dtype:
        got, want = str(t.dtype).removeprefix("torch."), str(dtype).removeprefix("torch.")
        raise RuntimeError(f"{op}: {name} has dtype {got}, expected {want}")
    if t.dim() != 2:
        raise RuntimeError(f"{op}: {name} has {t.dim()} dimensions, expected {shape}")


def _prepack_int4_weight(weight_packed: Tensor) -> Tensor:
    _check("prepack_int4_weight", "weight_packed", weight_packed, torch.uint8, "[N, ceil(K / 2)]")
    return layout.prepack_int4_blocks(weight_packed)


def _prepack_int8_weight(weight: Tensor) -> Tensor:
    _check("prepack_int8_weight", "weight", weight, torch.int8, "[N, K]")
    return layout.prepack_int8_blocks(weight)


def _prepack_group_scale(group_scale: Tensor) -> Tensor:
    _check("prepack_group_scale", "group_scale", group_scale, torch.uint8, "[N, K / group]")
    wrong = (group_scale < 1) | (group_scale > 16)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        value = int(group_scale[row, column])
        raise RuntimeError(f"prepack_group_scale: group_scale[{row}, {column}] is {value}, expected 1 to 16")
    return layout.prepack_group_scale_blocks(group_scale)


def register() -> None:
    """Called once, where the library holds CUDA kernels."""
    for function in (_prepack_int4_weight, _prepack_int8_weight, _prepack_group_scale):
        _library.impl(function.__name__.removeprefix("_"), function)
