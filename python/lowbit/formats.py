"""The portable checkpoint layout of quantised weights: names, versions, and the checks that refuse a damaged
file.

A quantised linear layer of N outputs and K inputs is stored as

    weight_packed       uint8 [N, ceil(K/2)]   int4 codes, low nibble = even k, code = value + 8 (int4 layers)
    weight_int8         int8  [N, K]           codes (int8 layers)
    weight_scale        fp32  [N, 1]           one scale per output channel
    weight_group_scale  uint8 [N, G]           integer group scales 1..16, G = ceil(K / group_size) (only with
    groups) weight_meta         int64 [5]              format id, format version, N, K, group_size or 0
    input_shift         fp32  [K]              static mean of the input (only with a mean shift)

so that weight[n, k] = weight_scale[n] * weight_group_scale[n, k // group_size] * code[n, k]. The int4 bytes
are those of compressed-tensors' `pack-quantized`. Nothing here depends on a device or on a kernel.
"""

import torch
from torch import Tensor

FORMAT_VERSION = 1
INT4, INT8 = 1, 2
FORMAT_NAMES = {INT4: "int4", INT8: "int8"}
GROUP_SIZES = (32, 64, 128)
MAX_GROUP_SCALE = 16


def group_count(k: int, group_size: int | None) -> int:
    """Groups of `group_size` that cover k inputs; the last one may be ragged. 0 without groups."""
    return -(-k // group_size) if group_size else 0


def check_group_size(group_size: int | None) -> None:
    """ValueError unless group_size is None, 32, 64 or 128."""
    if group_size is not None and group_size not in GROUP_SIZES:
        raise ValueError(f"group_size: expected None, 32, 64 or 128, got {group_size}")


def meta_tensor(format_id: int, n: int, k: int, group_size: int | None) -> Tensor:
    """int64 [5]: what `weight_meta` of such a layer must hold."""
    return torch.tensor([format_id, FORMAT_VERSION, n, k, group_size or 0], dtype=torch.int64)


def layer_tensors(format_id: int, n: int, k: int, group_size: int | None, mean_shift: bool) -> dict:
    """Name -> (dtype, shape) of every tensor of the layer except the bias."""
    if format_id == INT4:
        tensors = {"weight_packed": (torch.uint8, (n, -(-k // 2)))}
    else:
        tensors = {"weight_int8": (torch.int8, (n, k))}
    tensors["weight_scale"] = (torch.float32, (n, 1))
    if group_size:
        tensors["weight_group_scale"] = (torch.uint8, (n, group_count(k, group_size)))
    tensors["weight_meta"] = (torch.int64, (5,))
    if mean_shift:
        tensors["input_shift"] = (torch.float32, (k,))
    return tensors


def validate_layer(
    tensors: dict[str, Tensor | None],
    format_id: int,
    n: int,
    k: int,
    group_size: int | None,
    mean_shift: bool = False,
    name: str = "",
) -> None:
    """Check the tensors of one layer; ValueError with one sentence naming the first that is wrong.

    tensors: name -> tensor of the layer, as read from a file; name: the layer's name, for the message.
    """
    prefix = f"{name}." if name else ""
    for key, (dtype, shape) in layer_tensors(format_id, n, k, group_size, mean_shift).items():
        t = tensors.get(key)
        if t is None:
            want = _describe(dtype, shape)
            raise ValueError(f"{prefix}{key}: expected {want}, got nothing (missing tensor)")
        if t.dtype != dtype or tuple(t.shape) != shape:
            got = f"{_describe(t.dtype, tuple(t.shape))}, {t.numel() * t.element_size()} bytes"
            raise ValueError(f"{prefix}{key}: expected {_describe(dtype, shape)}, got {got}")
    _check_meta(tensors["weight_meta"], format_id, n, k, group_size, f"{prefix}weight_meta")
    scale = tensors["weight_scale"]
    if bad := int((~(torch.isfinite(scale) & (scale > 0))).sum()):
        raise ValueError(f"{prefix}weight_scale: expected finite scales above 0, got {bad} that are not")
    if group_size:
        s = tensors["weight_group_scale"]
        if bad := int(((s < 1) | (s > MAX_GROUP_SCALE)).sum()):
            raise ValueError(f"{prefix}weight_group_scale: expected integers 1..16, got {bad} outside")
    if mean_shift and (bad := int((~torch.isfinite(tensors["input_shift"])).sum())):
        raise ValueError(f"{prefix}input_shift: expected finite values, got {bad} that are not")


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
