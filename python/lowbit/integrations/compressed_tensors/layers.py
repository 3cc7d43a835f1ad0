"""The tensors of one layer: lowbit's portable layout and those of compressed-tensors, exactly or not at all.

compressed-tensors (version 0.20) stores a weight [N, K] in three layouts that have an exact counterpart:

    mxfp6-pack-quantized  weight_packed uint8 [N, 3K/4], weight_scale uint8 E8M0 [N, K/32]     e2m3, group 32
    mxfp4-pack-quantized  weight_packed uint8 [N, K/2], weight_scale uint8 E8M0 [N, K/32]      e2m1, group 32
    pack-quantized        weight_packed int32 [N, ceil(K/8)], weight_scale float [N, 1] or [N, K/group],
                          weight_shape int64 [2]                                               int4

The bytes of `weight_packed` are lowbit's own (int32 words are padded with zero bits). What differs is the
scale: lowbit's is fp32 per channel times fp16 or E8M0 per group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ... import formats, minifloat
from ...quantizers.grid import FloatGrid
from ...quantizers.search import search_exponent

MX_FORMATS = {"mxfp6-pack-quantized": "e2m3", "mxfp4-pack-quantized": "e2m1"}
INT4_FORMAT = "pack-quantized"
MX_GROUP = 32


@dataclass(frozen=True)
class Storage:
    """How compressed-tensors stores a weight: its format, and the inputs per scale (None: all of them)."""

    format: str
    group_size: int | None

    @property
    def weight_format(self) -> str:
        """lowbit's name of the number format."""
        return MX_FORMATS.get(self.format, "int4")


# ---------------------------------------------------------------- from compressed-tensors


def from_compressed(tensors: dict[str, Tensor], storage: Storage, name: str) -> tuple[dict[str, Tensor], int]:
    """Portable tensors of lowbit (without `weight_meta` and bias) and K, from those of compressed-tensors.

    tensors: `weight_packed`, `weight_scale` and `weight_shape` as read. Raises ValueError naming the tensor
    that is missing, has another shape or dtype, or holds scales that lowbit cannot.
    """
    packed, scale = _need(tensors, "weight_packed", name), _need(tensors, "weight_scale", name)
    if storage.format in MX_FORMATS:
        return _from_mx(packed, scale, storage, name)
    return _from_int4(packed, scale, _need(tensors, "weight_shape", name), storage, name)


def _from_mx(packed: Tensor, scale: Tensor, storage: Storage, name: str) -> tuple[dict[str, Tensor], int]:
    bits = minifloat.find_format(storage.weight_format).bits
    group_bytes = MX_GROUP * bits // 8
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] % group_bytes:
        want = f"uint8 [N, {bits} K / 8] with K a multiple of {MX_GROUP}"
        raise ValueError(f"{name}.weight_packed: expected {want}, got {_describe(packed)}")
    n, groups = packed.shape[0], packed.shape[1] // group_bytes
    if scale.dtype != torch.uint8 or tuple(scale.shape) != (n, groups):
        raise ValueError(f"{name}.weight_scale: expected uint8 {[n, groups]}, got {_describe(scale)}")
    if bad := int((scale == formats.E8M0_NAN).sum()):
        raise ValueError(
            f"{name}.weight_scale: expected E8M0 codes below {formats.E8M0_NAN}, got {bad} that are NaN"
        )
    ones = torch.ones(n, 1, dtype=torch.float32)
    return {"weight_packed": packed, "weight_scale": ones, "weight_group_scale": scale}, groups * MX_GROUP


def _from_int4(
    packed: Tensor, scale: Tensor, shape: Tensor, storage: Storage, name: str
) -> tuple[dict[str, Tensor], int]:
    if shape.is_floating_point() or tuple(shape.shape) != (2,):
        raise ValueError(f"{name}.weight_shape: expected two integers, got {_describe(shape)}")
    n, k = shape.tolist()
    want = (n, -(-k // 8))
    if packed.dtype != torch.int32 or tuple(packed.shape) != want:
        raise ValueError(f"{name}.weight_packed: expected int32 {list(want)}, got {_describe(packed)}")
    if storage.group_size and k % storage.group_size:
        raise ValueError(f"{name}: expected inputs in whole groups of {storage.group_size}, got {k}")
    columns = formats.group_count(k, storage.group_size) or 1
    if scale.numel() == 1 and columns == 1:  # one scale for the whole tensor
        scale = scale.reshape(1, 1).expand(n, 1)
    if not scale.is_floating_point() or tuple(scale.shape) != (n, columns):
        raise ValueError(f"{name}.weight_scale: expected floats {[n, columns]}, got {_describe(scale)}")
    if bad := int((~(torch.isfinite(scale) & (scale > 0))).sum()):
        raise ValueError(f"{name}.weight_scale: expected finite scales above 0, got {bad} that are not")
    nibbles = packed.contiguous().view(torch.uint8)[:, : -(-k // 2)].clone()
    if k % 2:
        nibbles[:, -1] = (nibbles[:, -1] & 15) | (8 << 4)  # lowbit pads with the code of zero
    if storage.group_size is None:
        return {"weight_packed": nibbles, "weight_scale": scale.float().contiguous()}, k
    row, group = split_scales(scale.float(), f"{name}.weight_scale")
    return {"weight_packed": nibbles, "weight_scale": row, "weight_group_scale": group}, k


def split_scales(scale: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Positive fp32 [N, G] -> powers of two fp32 [N, 1] and fp16 [N, G] with exactly that product.

    Any bf16 or fp16 scales split, unless those of one row span more than 2^30; fp32 ones only where their
    significands have at most 11 bits. Raises ValueError otherwise.
    """
    group = scale.half()
    if torch.equal(group.float(), scale):  # fp16 as it is
        return torch.ones_like(scale[:, :1]), group
    exponent = torch.frexp(scale.amax(1, keepdim=True)).exponent - 15  # a row's largest to 2^14 .. 2^15
    exponent = exponent.clamp(-126, 126)  # 2^exponent and its inverse are normal
    row = torch.ldexp(torch.ones_like(scale[:, :1]), exponent)
    group = torch.ldexp(scale, -exponent).half()
    if bad := int((torch.ldexp(group.float(), exponent) != scale).sum()):
        want = "group scales of at most 11 significant bits within 2^30 of each other"
        raise ValueError(f"{name}: expected {want}, as lowbit stores them in fp16, got {bad} others")
    return row, group


# ---------------------------------------------------------------- to compressed-tensors


def to_compressed(tensors: dict[str, Tensor], storage: Storage, k: int, name: str) -> dict[str, Tensor]:
    """Tensors of compressed-tensors from lowbit's portable ones, dequantising to the same bits.

    tensors: as `formats.validate_layer` accepts them. Raises ValueError naming the tensor whose scales
    compressed-tensors cannot store.
    """
    packed, group = tensors["weight_packed"], tensors.get("weight_group_scale")
    scale = tensors["weight_scale"].double()
    if group is not None:
        scale = scale * (minifloat.decode_e8m0(group) if group.dtype == torch.uint8 else group).double()
    if storage.format in MX_FORMATS:
        codes = minifloat.unpack_codes(packed, storage.weight_format, k)
        sign = 1 << (minifloat.find_format(storage.weight_format).bits - 1)
        empty = (codes & (sign - 1)).unflatten(1, (-1, MX_GROUP)).amax(2) == 0
        return {"weight_packed": packed, "weight_scale": _e8m0(scale, empty, f"{name}.weight_scale")}
    if bad := int((scale.float().double() != scale).sum()):
        want = "products with the group scales that fp32 holds exactly"
        raise ValueError(f"{name}.weight_scale: expected {want}, got {bad} others")
    words = torch.nn.functional.pad(packed, (0, -packed.shape[1] % 4))  # a copy
    if k % 2:
        words[:, k // 2] &= 15  # compressed-tensors pads with zero bits
    return {
        "weight_packed": words.contiguous().view(torch.int32), "weight_scale": scale.float(),
        "weight_shape": torch.tensor([packed.shape[0], k]),
    }  # fmt: skip


def _e8m0(scale: Tensor, empty: Tensor, name: str) -> Tensor:
    """uint8 [N, G] of fp64 scales that are powers of two; a group of zeros (`empty`) may have any scale."""
    mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2^exponent, a power of two has 0.5
    code = exponent + 126
    if bad := int(((mantissa != 0.5) & ~empty).sum()):
        want = "powers of two, the only scales of an MX format"
        raise ValueError(f"{name}: expected {want}, got {bad} of {scale.numel()} others")
    if bad := int((((code < 0) | (code > 254)) & ~empty).sum()):
        raise ValueError(f"{name}: expected group scales in 2^-127 .. 2^127, got {bad} outside")
    return code.clamp(0, 254).to(torch.uint8)


def requantize(w: Tensor, weight_format: str) -> dict[str, Tensor]:
    """Round fp [N, K] into an MX format: portable tensors with a `weight_scale` of ones.

    Each group of 32 takes the power of two of least error, as in lowbit's own quantiser. K must be a multiple
    of 32 and w finite.
    """
    groups = w.float().unflatten(1, (-1, MX_GROUP))
    ones = torch.ones(groups.shape[:2])
    exponent = search_exponent(groups, ones, FloatGrid(weight_format))[0]  # -126 .. 127
    codes = minifloat.encode(torch.ldexp(groups, -exponent.unsqueeze(2)), weight_format)
    return {
        "weight_packed": minifloat.pack_codes(codes.flatten(1), weight_format),
        "weight_scale": ones[:, :1].clone(),
        "weight_group_scale": (exponent + 127).to(torch.uint8),
    }


def _need(tensors: dict[str, Tensor], key: str, name: str) -> Tensor:
    if key not in tensors:
        raise ValueError(f"{name}.{key}: expected a tensor, got nothing (missing tensor)")
    return tensors[key]


def _describe(t: Tensor) -> str:
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
