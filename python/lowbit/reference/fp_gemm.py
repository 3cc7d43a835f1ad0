"""Weight-only linear layers in 4- and 6-bit formats: exact values of the codes, fp32 sums."""

import torch
from torch import Tensor

from .. import minifloat
from .fp_layout import is_blocks, unprepack_fp_blocks
from .layout import TILE_K, TILE_N, pack_int4, unpack_int4

_GROUPS = {torch.uint8: (32,), torch.float16: (32, 64, 128)}


def encode_fp(x: Tensor, format: str, ties_away: bool = False) -> Tensor:
    """x float [...] -> uint8 [...], the nearest code of a minifloat."""
    return minifloat.encode(x, format, ties_away)


def _is_six(format: str) -> bool:
    return format != "int4" and minifloat.find_format(format).bits == 6


def _pieces(k: int, format: str) -> list[tuple[int, int, int, int]]:
    """Of the code at step k of a tile: (row of words, bit of the word, bit of the code, bits)."""
    if not _is_six(format):
        return [(k // 4, 12 - 4 * (k % 4), 0, 4)]
    if k < 6:
        return [(k // 2, 4 if k % 2 else 10, 0, 6)]
    return [(0, 0, 2, 4), (1, 2, 0, 2)] if k == 6 else [(2, 0, 2, 4), (1, 0, 0, 2)]


def prepack_fp_weight(weight_packed: Tensor, format: str, k: int) -> Tensor:
    """uint8 [N, bytes] of the checkpoint -> uint8 tiles [ceil(N/16), ceil(K/8), 64 or 96] of the CPU kernels.

    A tile is rows of 16 little-endian words of 16 bits, one per channel (csrc/layout/fp_tile.h). int4 becomes
    two's complement.
    """
    codes = minifloat.unpack_codes(weight_packed, "e2m1" if format == "int4" else format, k).to(torch.int32)
    if format == "int4":
        codes = codes ^ 8
    n = codes.shape[0]
    codes = torch.nn.functional.pad(codes, (0, -k % TILE_K, 0, -n % TILE_N))
    blocks, steps = codes.shape[0] // TILE_N, codes.shape[1] // TILE_K
    codes = codes.view(blocks, TILE_N, steps, TILE_K).transpose(1, 2)  # [N/16, K/8, 16, 8]
    words = codes.new_zeros(blocks, steps, 3 if _is_six(format) else 2, TILE_N)
    for step in range(TILE_K):
        for row, at, first, count in _pieces(step, format):
            words[:, :, row] |= ((codes[..., step] >> first) & ((1 << count) - 1)) << at
    words = words.flatten(2)
    return torch.stack([words & 255, words >> 8], -1).flatten(2).to(torch.uint8)


def unprepack_fp_weight(tiles: Tensor, format: str, n: int, k: int) -> Tensor:
    """Inverse of `prepack_fp_weight` on either device: uint8 [n, bytes]."""
    if is_blocks(tiles):
        return unprepack_fp_blocks(tiles, format, n, k)
    b = tiles.to(torch.int32).unflatten(-1, (-1, TILE_N, 2))
    words = b[..., 0] | (b[..., 1] << 8)  # [N/16, K/8, rows, 16]
    codes = words.new_zeros(*tiles.shape[:2], TILE_N, TILE_K)
    for step in range(TILE_K):
        for row, at, first, count in _pieces(step, format):
            codes[..., step] |= ((words[:, :, row] >> at) & ((1 << count) - 1)) << first
    codes = codes.transpose(1, 2).reshape(tiles.shape[0] * TILE_N, tiles.shape[1] * TILE_K)
    codes = codes[:n, :k].to(torch.uint8)
    if format == "int4":
        return pack_int4((codes ^ 8).to(torch.int8) - 8)
    return minifloat.pack_codes(codes, format)


def prepack_fp_group_scale(group_scale: Tensor) -> Tensor:
    """[N, G] e8m0 (uint8) or fp16 -> [ceil(N/16), G, 16]; the padding holds one."""
    one = 127 if group_scale.dtype == torch.uint8 else 1.0
    padded = torch.nn.functional.pad(group_scale, (0, 0, 0, -group_scale.shape[0] % TILE_N), value=one)
    return padded.view(padded.shape[0] // TILE_N, TILE_N, group_scale.shape[1]).transpose(1, 2).contiguous()


def unprepack_fp_group_scale(tiles: Tensor, n: int) -> Tensor:
    """Inverse of `prepack_fp_group_scale`: [n, G]."""
    return tiles.transpose(1, 2).flatten(0, 1)[:n].contiguous()


def group_scale_values(scale: Tensor, k: int) -> Tensor:
    """fp32 [N, k] of group scales [N, G]: e8m0 (groups of 32) or fp16 (of 32, 64 or 128)."""
    for group in _GROUPS[scale.dtype]:
        if -(-k // group) == scale.shape[1]:
            value = minifloat.decode_e8m0(scale) if scale.dtype == torch.uint8 else scale.float()
            return value.repeat_interleave(group, 1)[:, :k]
    sizes = " or ".join(map(str, _GROUPS[scale.dtype]))
    raise ValueError(f"group_scale: expected ceil({k} / g) groups with g of {sizes}, got {scale.shape[1]}")


def code_values(weight_packed: Tensor, format: str, k: int) -> Tensor:
    """fp32 [N, k]: the values of the checkpoint's codes, without scales."""
    if format == "int4":
        return unpack_int4(weight_packed, k).float()
    return minifloat.decode(minifloat.unpack_codes(weight_packed, format, k), format)


def dequantize_fp_weight(
    tiles: Tensor, format: str, w_scale: Tensor, group_scale: Tensor | None, k: int,
) -> Tensor:
    """fp32 [N, k] of a prepacked weight."""
    n = w_scale.numel()
    w = code_values(unprepack_fp_weight(tiles, format, n, k), format, k)
    if group_scale is not None:
        w = w * group_scale_values(unprepack_fp_group_scale(group_scale, n), k)
    return w * w_scale.reshape(-1, 1).float()


def fp_linear(
    x: Tensor,
    weight: Tensor,
    format: str,
    w_scale: Tensor,
    group_scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x float [..., K]; weight tiles; w_scale fp32 [N] -> [..., N] in x.dtype, summed in double."""
    n, k = w_scale.numel(), x.shape[-1]
    one = torch.ones(n, device=w_scale.device)
    w = dequantize_fp_weight(weight, format, one, group_scale, k)
    y = (x.double() @ w.double().T).float() * w_scale.reshape(-1)
    if bias is not None:
        y = y + bias.float()
    if residual is not None:
        y = y + residual.float()
    return y.to(x.dtype)
