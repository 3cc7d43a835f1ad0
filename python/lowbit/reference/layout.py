"""Byte layouts of int4: the portable one of checkpoints, and the tiles that the kernels read.

Portable: uint8 [..., ceil(K/2)], low nibble = even k, code = value + 8 (the bytes of compressed-tensors'
`pack-quantized`).
Tile (private to the CPU kernels): 16 output channels x 8 k; the 4 bytes of a channel hold k 0..3 in their low
and k 4..7 in their high nibbles, so that one mask and one shift give two operands of a 4-wide dot product.
Block (private to the CUDA kernels, csrc/layout/mma_weight.h): 64 output channels x 64 k in the order in which
the lanes of a warp hold them as tensor-core fragments.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_N, TILE_K = 16, 8
BLOCK_N, BLOCK_K, BLOCK_INT4, BLOCK_INT8 = 64, 64, 2048, 4096


def pack_int4(q: Tensor) -> Tensor:
    """int8 [..., K], values -8..7 -> uint8 [..., ceil(K/2)]; an odd K is padded with one zero."""
    if q.shape[-1] % 2:
        q = F.pad(q, (0, 1))
    code = (q + 8).to(torch.uint8)
    return code[..., 0::2] | (code[..., 1::2] << 4)


def unpack_int4(packed: Tensor, k: int | None = None) -> Tensor:
    """uint8 [..., B] -> int8 [..., k]; k defaults to 2 B."""
    q = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2).to(torch.int8) - 8
    return q if k is None else q[..., :k]


def _to_tiles(w: Tensor) -> Tensor:  # [N, K] -> [N/16, K/8, 16, 8], zero padded
    n, k = w.shape
    w = F.pad(w, (0, -k % TILE_K, 0, -n % TILE_N))
    return w.view(w.shape[0] // TILE_N, TILE_N, w.shape[1] // TILE_K, TILE_K).transpose(1, 2)


def _from_tiles(t: Tensor, n: int, k: int) -> Tensor:  # [N/16, K/8, 16, 8] -> [N, K]
    return t.transpose(1, 2).reshape(t.shape[0] * TILE_N, t.shape[1] * TILE_K)[:n, :k]


def prepack_int4_weight(weight_packed: Tensor) -> Tensor:
    """uint8 [N, B] (portable) -> uint8 [ceil(N/16), ceil(2B/8), 64]; padding holds the code of zero."""
    code = _to_tiles(unpack_int4(weight_packed)) + 8
    return (code[..., :4] | (code[..., 4:] << 4)).to(torch.uint8).flatten(-2).contiguous()


def unprepack_int4_weight(tiles: Tensor, n: int, k: int) -> Tensor:
    """Inverse of `prepack_int4_weight` on either device: uint8 [N, ceil(k/2)]."""
    if tiles.shape[-1] == BLOCK_INT4:
        t = tiles.unflatten(-1, (4, 8, 4, 2, 2, 4))  # slab g q c a j
        t = torch.stack((t & 15, t >> 4), dim=-1).to(torch.int8) - 8
        return pack_int4(_from_blocks(t.permute(0, 2, 6, 3, 1, 5, 8, 4, 7), n, k))
    t = tiles.unflatten(-1, (TILE_N, 4))
    return pack_int4(_from_tiles(torch.cat((t & 15, t >> 4), dim=-1).to(torch.int8) - 8, n, k))


def prepack_int8_weight(weight: Tensor) -> Tensor:
    """int8 [N, K] -> int8 [ceil(N/16), ceil(K/8), 128]: a tile is [16, 4] bytes of k 0..3, then of k 4..7."""
    t = _to_tiles(weight)
    return torch.cat((t[..., :4].flatten(-2), t[..., 4:].flatten(-2)), dim=-1).contiguous()


def unprepack_int8_weight(tiles: Tensor, n: int, k: int) -> Tensor:
    """Inverse of `prepack_int8_weight` on either device: int8 [N, K]."""
    if tiles.shape[-1] == BLOCK_INT8:
        t = tiles.unflatten(-1, (4, 2, 8, 4, 2, 2, 4))  # slab c g q h a j
        return _from_blocks(t.permute(0, 2, 7, 4, 1, 3, 6, 5, 8), n, k)
    t = tiles.unflatten(-1, (2, TILE_N, 4))  # [NT, KT, half, 16, 4]
    return _from_tiles(t.transpose(2, 3).flatten(-2), n, k)


def prepack_group_scale(group_scale: Tensor) -> Tensor:
    """uint8 [N, G], 1..16 -> uint8 [ceil(N/16), G, 16]; padding holds 1."""
    n, g = group_scale.shape
    s = F.pad(group_scale, (0, 0, 0, -n % TILE_N), value=1)
    return s.view(s.shape[0] // TILE_N, TILE_N, g).transpose(1, 2).contiguous()


def _to_blocks(w: Tensor) -> Tensor:
    """[N, K] -> [N/64, slab 4, a 2, g 8, K/64, c 2, h 2, q 4, j 4], zero padded: n = 16 slab + 8 a + g,
    k = 32 c + 16 h + 4 q + j.
    """
    n, k = w.shape
    w = F.pad(w, (0, -k % BLOCK_K, 0, -n % BLOCK_N))
    return w.view(w.shape[0] // BLOCK_N, 4, 2, 8, w.shape[1] // BLOCK_K, 2, 2, 4, 4)


def _from_blocks(t: Tensor, n: int, k: int) -> Tensor:  # inverse of _to_blocks
    return t.reshape(t.shape[0] * BLOCK_N, t.shape[4] * BLOCK_K)[:n, :k]


def prepack_int4_blocks(weight_packed: Tensor) -> Tensor:
    """uint8 [N, B] (portable) -> uint8 [ceil(N/64), ceil(2B/64), 2048] for CUDA; padding is zero."""
    t = _to_blocks(unpack_int4(weight_packed)).permute(0, 4, 1, 3, 7, 5, 2, 8, 6) + 8
    return (t[..., 0] | (t[..., 1] << 4)).to(torch.uint8).flatten(2).contiguous()


def prepack_int8_blocks(weight: Tensor) -> Tensor:
    """int8 [N, K] -> int8 [ceil(N/64), ceil(K/64), 4096] for CUDA."""
    return _to_blocks(weight).permute(0, 4, 1, 5, 3, 7, 6, 2, 8).flatten(2).contiguous()


def prepack_group_scale_blocks(group_scale: Tensor) -> Tensor:
    """uint8 [N, G], 1..16 -> uint8 [ceil(N/64), G, 64] for CUDA; padding holds 1."""
    n, g = group_scale.shape
    s = F.pad(group_scale, (0, 0, 0, -n % BLOCK_N), value=1)
    return s.view(s.shape[0] // BLOCK_N, BLOCK_N, g).transpose(1, 2).contiguous()
