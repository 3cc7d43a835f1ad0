"""The portable checkpoint layout of quantised weights: names, versions, and the checks that refuse a damaged
file.

A quantised linear layer of N outputs and K inputs is stored as

    weight_packed       uint8 [N, B]           codes of 4 or 6 bits (`packed_bytes` tells B)
    weight_int8         int8  [N, K]           codes (int8 layers)
    weight_scale        fp32  [N, 1]           one scale per output channel
    weight_group_scale  [N, G]                 G = ceil(K / group_size) (only with groups), one of
                          uint8                integers 1..16 (integer layers)
                          uint8                E8M0, 2^(code - 127), for groups of 32 (weight-only layers)
                          fp16                 above 0 (weight-only layers)
    weight_meta         int64 [5]              format id, format version, N, K, group_size or 0
    input_shift         fp32  [K]              static mean of the input (only with a mean shift)
    input_scale         fp32  [1]              static scale of the activation (FP4 layers that have one)
    input_exponent      int8  [K]              input k is multiplied by 2^exponent[k] first (the same)
    input_index         int32 [K]              stored input k is the layer's input index[k] (static layers)
    input_inverse_step  fp32  [K]              static steps: stored input k is divided by its step (the same)
    low_rank_down       fp32  [r, K]           what is added to the weight, up @ down (the same)
    low_rank_up         fp32  [N, r]

so that weight[n, k] = weight_scale[n] * weight_group_scale[n, k // group_size] * value(code[n, k]). Codes of
4 bits lie two to a byte, low nibble = even k, int4 as value + 8 (the bytes of compressed-tensors'
`pack-quantized`), a float as its bits with the sign on top. Codes of 6 bits lie four to three bytes,
little-endian. Nothing here depends on a device or on a kernel.

The formats themselves (`round_to`, `encode`, `decode`, ...) are those of `lowbit.minifloat`.
"""

import torch
from torch import Tensor

from .minifloat import (
    E8M0_NAN,
    FLOAT_FORMATS,
    FloatFormat,
    decode,
    decode_e8m0,
    encode,
    encode_e8m0,
    find_format,
    pack_codes,
    round_to,
    unpack_codes,
    value_table,
)
from .minifloat import packed_bytes as _float_bytes

FORMAT_VERSION = 1  # of the layout; a new format is a new id, which older releases refuse by name
INT4, INT8, E3M2, E2M3, E2M1, E1M2, E3M0 = range(1, 8)
FORMAT_NAMES = {
    INT4: "int4", INT8: "int8", E3M2: "e3m2", E2M3: "e2m3", E2M1: "e2m1", E1M2: "e1m2", E3M0: "e3m0",
}  # fmt: skip
FORMAT_IDS = {name: key for key, name in FORMAT_NAMES.items()}
FP4_FORMATS = ("e2m1", "e1m2", "e3m0")
FP6_FORMATS = ("e3m2", "e2m3")
GROUP_SIZES = (32, 64, 128)
MAX_GROUP_SCALE = 16
E8M0_GROUP = 32  # the only group size of E8M0 scales
_SCALE_DTYPES = {None: torch.uint8, "e8m0": torch.uint8, "fp16": torch.float16}

__all__ = [
    "E8M0_GROUP", "E8M0_NAN", "FLOAT_FORMATS", "FORMAT_IDS", "FORMAT_NAMES", "FORMAT_VERSION", "FP4_FORMATS",
    "FP6_FORMATS", "GROUP_SIZES", "MAX_GROUP_SCALE", "FloatFormat", "bits_of", "check_group_size",
    "check_scale_format", "decode", "decode_e8m0", "default_scale_format", "encode", "encode_e8m0",
    "find_format", "group_count", "layer_tensors", "meta_tensor", "pack_codes", "packed_bytes", "round_to",
    "unpack_codes", "validate_layer", "value_table",
]  # fmt: skip


def bits_of(name: str) -> int:
    """Bits per code of a format: 4, 6 or 8."""
    return {"int4": 4, "int8": 8}.get(name) or find_format(name).bits


def packed_bytes(k: int, name: str) -> int:
    """Bytes of a row of k codes in `weight_packed`: ceil(k / 2), or 3 ceil(k / 4) for 6 bits."""
    return -(-k // 2) if name == "int4" else _float_bytes(k, name)


def group_count(k: int, group_size: int | None) -> int:
    """Groups of `group_size` that cover k inputs; the last one may be ragged. 0 without groups."""
    return -(-k // group_size) if group_size else 0


def check_group_size(group_size: int | None) -> None:
    """ValueError unless group_size is None, 32, 64 or 128."""
    if group_size is not None and group_size not in GROUP_SIZES:
        raise ValueError(f"group_size: expected None, 32, 64 or 128, got {group_size}")


def default_scale_format(name: str, group_size: int | None) -> str | None:
    """The scales of groups in a weight-only layer unless told otherwise: E8M0 for groups of 32 of a float
    format, as OCP's MX formats have, else fp16. None without groups.
    """
    if group_size is None:
        return None
    return "e8m0" if group_size == E8M0_GROUP and name != "int4" else "fp16"


def check_scale_format(name: str, group_size: int | None, scale_format: str | None) -> None:
    """ValueError unless a weight-only layer of this format can have scales of this kind."""
    if scale_format not in (None, "e8m0", "fp16"):
        raise ValueError(f"scale_format: expected None, e8m0 or fp16, got {scale_format!r}")
    if (scale_format is None) != (group_size is None):
        raise ValueError(f"scale_format: expected it with group_size alone, got {scale_format}, {group_size}")
    if scale_format == "e8m0" and (group_size != E8M0_GROUP or name == "int4"):
        got = f"{name} with groups of {group_size}"
        raise ValueError(f"scale_format: expected e8m0 for groups of 32 of a float format, got it for {got}")


def meta_tensor(format_id: int, n: int, k: int, group_size: int | None) -> Tensor:
    """int64 [5]: what `weight_meta` of such a layer must hold."""
    return torch.tensor([format_id, FORMAT_VERSION, n, k, group_size or 0], dtype=torch.int64)


def layer_tensors(
    format_id: int, n: int, k: int, group_size: int | None, mean_shift: bool = False,
    scale_format: str | None = None, input_scale: bool = False, input_exponent: bool = False,
    input_index: bool = False, input_step: bool = False, rank: int = 0,
) -> dict:
    """Name -> (dtype, shape) of every tensor of the layer except the bias.

    scale_format: what the scales of groups are: "e8m0", "fp16", or None for the integers of integer layers.
    mean_shift, input_scale, input_exponent, input_index, input_step: whether the layer has these tensors.
    rank: of the compensation, 0 = none.
    """
    if format_id == INT8:
        tensors = {"weight_int8": (torch.int8, (n, k))}
    else:
        tensors = {"weight_packed": (torch.uint8, (n, packed_bytes(k, FORMAT_NAMES[format_id])))}
    tensors["weight_scale"] = (torch.float32, (n, 1))
    if group_size:
        tensors["weight_group_scale"] = (_SCALE_DTYPES[scale_format], (n, group_count(k, group_size)))
    tensors["weight_meta"] = (torch.int64, (5,))
    if mean_shift:
        tensors["input_shift"] = (torch.float32, (k,))
    if input_scale:
        tensors["input_scale"] = (torch.float32, (1,))
    if input_exponent:
        tensors["input_exponent"] = (torch.int8, (k,))
    if input_index:
        tensors["input_index"] = (torch.int32, (k,))
    if input_step:
        tensors["input_inverse_step"] = (torch.float32, (k,))
    if rank:
        tensors["low_rank_down"] = (torch.float32, (rank, k))
        tensors["low_rank_up"] = (torch.float32, (n, rank))
    return tensors


def validate_layer(
    tensors: dict[str, Tensor | None],
    format_id: int,
    n: int,
    k: int,
    group_size: int | None,
    mean_shift: bool = False,
    name: str = "",
    scale_format: str | None = None,
    input_scale: bool = False,
    input_exponent: bool = False,
    input_index: bool = False,
    input_step: bool = False,
    rank: int = 0,
) -> None:
    """Check the tensors of one layer; ValueError with one sentence naming the first that is wrong.

    tensors: name -> tensor of the layer, as read from a file; name: the layer's name, for the message; the
    rest as in `layer_tensors`.
    """
    prefix = f"{name}." if name else ""
    expected = layer_tensors(
        format_id, n, k, group_size, mean_shift, scale_format, input_scale, input_exponent, input_index,
        input_step, rank,
    )  # fmt: skip
    for key, (dtype, shape) in expected.items():
        t = tensors.get(key)
        if t is None:
            want = _describe(dtype, shape)
            raise ValueError(f"{prefix}{key}: expected {want}, got nothing (missing tensor)")
        if t.dtype != dtype or tuple(t.shape) != shape:
            got = f"{_describe(t.dtype, tuple(t.shape))}, {t.numel() * t.element_size()} bytes"
            raise ValueError(f"{prefix}{key}: expected {_describe(dtype, shape)}, got {got}")
    _check_meta(tensors["weight_meta"], format_id, n, k, group_size, f"{prefix}weight_meta")
    _check_positive(tensors["weight_scale"], f"{prefix}weight_scale")
    if group_size:
        _check_group_scale(tensors["weight_group_scale"], scale_format, f"{prefix}weight_group_scale")
    finite = ["input_shift"] * mean_shift + ["low_rank_down", "low_rank_up"] * (rank > 0)
    for key in finite:
        if bad := int((~torch.isfinite(tensors[key])).sum()):
            raise ValueError(f"{prefix}{key}: expected finite values, got {bad} that are not")
    if input_step:
        _check_positive(tensors["input_inverse_step"], f"{prefix}input_inverse_step")
    if input_scale:
        _check_positive(tensors["input_scale"], f"{prefix}input_scale")


def _check_group_scale(s: Tensor, kind: str | None, key: str) -> None:
    if kind == "fp16":
        _check_positive(s, key)
    elif kind == "e8m0":
        if bad := int((s == E8M0_NAN).sum()):
            raise ValueError(f"{key}: expected E8M0 codes 0..254, got {bad} of 255 (NaN)")
    elif bad := int(((s < 1) | (s > MAX_GROUP_SCALE)).sum()):
        raise ValueError(f"{key}: expected integers 1..16, got {bad} outside")


def _check_positive(scale: Tensor, key: str) -> None:
    if bad := int((~(torch.isfinite(scale) & (scale > 0))).sum()):
        raise ValueError(f"{key}: expected finite scales above 0, got {bad} that are not")


def _check_meta(meta: Tensor, format_id: int, n: int, k: int, group_size: int | None, key: str) -> None:
    got_id, version, *shape = meta.tolist()
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{key}: expected format version {FORMAT_VERSION}, got {version}"
            + ("; a newer lowbit wrote this checkpoint" if version > FORMAT_VERSION else "")
        )
    if got_id != format_id:
        got = FORMAT_NAMES.get(got_id, f"unknown format id {got_id}")
        raise ValueError(f"{key}: expected format {FORMAT_NAMES[format_id]}, got {got}")
    want = [n, k, group_size or 0]
    if shape != want:
        raise ValueError(f"{key}: expected [N, K, group_size] = {want}, got {shape}")


def _describe(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
