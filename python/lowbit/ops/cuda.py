"""Layouts on CUDA tensors: made once per weight, so plain torch does it (`lowbit.reference.layout`)."""

import torch
from torch import Tensor

from .. import minifloat
from ..reference import fp_layout, layout

_library = torch.library.Library("lowbit", "IMPL", "CUDA")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check(op: str, name: str, t: Tensor, dtype: torch.dtype, shape: str) -> None:
    if t.dtype != dtype:
        raise RuntimeError(f"{op}: {name} has dtype {_name(t.dtype)}, expected {_name(dtype)}")
    if t.dim() != 2:
        raise RuntimeError(f"{op}: {name} has {t.dim()} dimensions, expected {shape}")


def _pack_int4(q: Tensor) -> Tensor:
    if q.dtype != torch.int8:
        raise RuntimeError(f"pack_int4: q has dtype {_name(q.dtype)}, expected int8")
    if q.dim() < 1:
        raise RuntimeError("pack_int4: q has no dimensions, expected at least one")
    if q.numel():
        low, high = (int(v) for v in q.aminmax())
        if low < -8 or high > 7:
            raise RuntimeError(f"pack_int4: q has values {low} to {high}, expected -8 to 7")
    return layout.pack_int4(q).contiguous()


def _unpack_int4(packed: Tensor, k: int | None = None) -> Tensor:
    if packed.dtype != torch.uint8:
        raise RuntimeError(f"unpack_int4: packed has dtype {_name(packed.dtype)}, expected uint8")
    if packed.dim() < 1:
        raise RuntimeError("unpack_int4: packed has no dimensions, expected at least one")
    count = packed.shape[-1]
    if k is not None and (k + 1) // 2 != count:
        want = f"expected {2 * count} or one less for {count} bytes"
        raise RuntimeError(f"unpack_int4: k is {k}, {want}")
    return layout.unpack_int4(packed, k).contiguous()


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


def _prepack_fp_weight(weight_packed: Tensor, format: str, k: int) -> Tensor:
    if format != "int4" and format not in minifloat.FLOAT_FORMATS:
        names = ", ".join((*minifloat.FLOAT_FORMATS, "int4"))
        raise RuntimeError(f'prepack_fp_weight: format is "{format}", expected one of {names}')
    _check("prepack_fp_weight", "weight_packed", weight_packed, torch.uint8, "[N, bytes]")
    count = minifloat.packed_bytes(k, "e2m1" if format == "int4" else format)
    if weight_packed.shape[1] != count:
        got = f"weight_packed has {weight_packed.shape[1]} bytes per row"
        raise RuntimeError(f"prepack_fp_weight: {got}, expected {count} for {k} codes of {format}")
    return fp_layout.prepack_fp_blocks(weight_packed, format, k)


def _prepack_fp_group_scale(group_scale: Tensor) -> Tensor:
    if group_scale.dtype not in (torch.uint8, torch.float16):
        got = _name(group_scale.dtype)
        want = "expected uint8 (e8m0) or float16"
        raise RuntimeError(f"prepack_fp_group_scale: group_scale has dtype {got}, {want}")
    _check("prepack_fp_group_scale", "group_scale", group_scale, group_scale.dtype, "[N, K / group]")
    wrong = group_scale == 255 if group_scale.dtype == torch.uint8 else group_scale.new_zeros(0)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        what = "the NaN of e8m0, expected 0 to 254"
        raise RuntimeError(f"prepack_fp_group_scale: group_scale[{row}, {column}] is 255, {what}")
    return fp_layout.prepack_fp_scale_blocks(group_scale)


def register() -> None:
    """Called once, where the library holds CUDA kernels."""
    for function in (
        _pack_int4, _unpack_int4, _prepack_int4_weight, _prepack_int8_weight, _prepack_group_scale,
        _prepack_fp_weight, _prepack_fp_group_scale,
    ):  # fmt: skip
        _library.impl(function.__name__.removeprefix("_"), function)
