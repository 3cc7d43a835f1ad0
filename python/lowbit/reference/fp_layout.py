"""The blocks of 4- and 6-bit weights that the CUDA kernels read (csrc/layout/fp_fragment.h): 64 output
channels x 128 k in the order in which the lanes of a warp hold them as tensor-core fragments.

A chunk is a lane's 16 weights of 16 channels x 32 k: eight pairs of neighbours along k, in three words of 32
bits (6-bit formats) or two (4-bit ones). The second weight of a pair lies 16 bits further, modulo 32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import minifloat

BLOCK_N, BLOCK_K = 64, 128
# lowest bit of exponent and mantissa of the first weight of each pair, and its sign: (word, bit)
_FIELD6 = ((0, 0), (0, 5), (0, 10), (1, 0), (1, 5), (1, 10), (2, 8), (2, 3))
_SIGN6 = {
    "e2m3": ((2, 15), (0, 15), (2, 13), (2, 18), (1, 15), (2, 1), (2, 16), (2, 14)),
    "e3m2": ((2, 16), (0, 15), (2, 14), (2, 18), (1, 15), (2, 1), (2, 15), (2, 13)),
}
_FIELD4 = (6, 9, 15, 12)
_SIGN4 = (4, 19, 21, 18)


def block_bytes(format: str) -> int:
    """Bytes of one block of 64 channels x 128 k."""
    return BLOCK_N * BLOCK_K * _bits(format) // 8


def is_blocks(tiles: Tensor) -> bool:
    """Whether a prepacked weight has this layout: the tiles of the CPU kernels are smaller."""
    return tiles.shape[-1] in (4096, 6144)


def _bits(format: str) -> int:
    return 4 if format == "int4" else minifloat.find_format(format).bits


def _places(format: str) -> list[tuple[int, int, int, int, int]]:
    """(pair, first bit of the code, bits, word, bit of the word of the pair's first weight)."""
    places = []
    for pair in range(8):
        if _bits(format) == 6:
            places += [(pair, 0, 5, *_FIELD6[pair]), (pair, 5, 1, *_SIGN6[format][pair])]
        elif format in ("int4", "e1m2"):
            places.append((pair, 0, 4, pair // 4, 4 * (pair % 4)))
        else:
            places.append((pair, 0, 3, pair // 4, _FIELD4[pair % 4]))
            places.append((pair, 3, 1, pair // 4, _SIGN4[pair % 4]))
    return places


def _rotate(word: Tensor, by: int) -> Tensor:
    """32-bit rotation to the left of int64 words."""
    return ((word << by) | (word >> (32 - by))) & 0xFFFFFFFF if by else word


def prepack_fp_blocks(weight_packed: Tensor, format: str, k: int) -> Tensor:
    """uint8 [N, bytes] of the checkpoint -> uint8 [ceil(N/64), ceil(K/128), 6144 or 4096].

    Four times an e1m2 is an integer: it is stored as int4, and the kernel's factor is a quarter. int4 keeps
    its offset of 8. The padding holds the code of zero.
    """
    codes = minifloat.unpack_codes(weight_packed, "e2m1" if format == "int4" else format, k)
    if format == "e1m2":
        codes = (4 * minifloat.decode(codes, format) + 8).to(torch.uint8)
    n, zero = codes.shape[0], 8 if format in ("int4", "e1m2") else 0
    codes = F.pad(codes, (0, -k % BLOCK_K, 0, -n % BLOCK_N), value=zero)
    # n = 16 slab + 8 a + g; k = 32 chunk + 16 c + 8 h + 2 q + e
    t = codes.view(codes.shape[0] // BLOCK_N, 4, 2, 8, codes.shape[1] // BLOCK_K, 4, 2, 2, 4, 2)
    t = t.permute(0, 4, 1, 3, 8, 5, 6, 7, 2, 9).flatten(3, 4).flatten(5, 7)  # N K slab lane chunk pair e
    words = t.new_zeros(*t.shape[:3], _bits(format) // 2, *t.shape[3:5], dtype=torch.int64)
    for pair, first, count, word, at in _places(format):
        for e in range(2):
            field = (t[..., pair, e].long() >> first) & ((1 << count) - 1)
            words[:, :, :, word] |= _rotate(field, (at + 16 * e) % 32)
    return torch.stack([(words >> (8 * i)) & 255 for i in range(4)], -1).to(torch.uint8).flatten(2)


def unprepack_fp_blocks(blocks: Tensor, format: str, n: int, k: int) -> Tensor:
    """Inverse of `prepack_fp_blocks`: uint8 [n, bytes]. A negative zero of e1m2 comes back as zero."""
    b = blocks.long().unflatten(-1, (4, _bits(format) // 2, 32, 4, 4))
    words = sum(b[..., i] << (8 * i) for i in range(4))  # N K slab word lane chunk
    t = words.new_zeros(*words.shape[:3], *words.shape[4:], 8, 2)
    for pair, first, count, word, at in _places(format):
        for e in range(2):
            field = _rotate(words[:, :, :, word], (32 - at - 16 * e) % 32) & ((1 << count) - 1)
            t[..., pair, e] |= field << first
    t = t.unflatten(5, (2, 2, 2)).unflatten(3, (8, 4))  # N K slab g q chunk c h a e
    codes = t.permute(0, 2, 8, 3, 1, 5, 6, 7, 4, 9).reshape(blocks.shape[0] * BLOCK_N, -1)[:n, :k]
    if format == "e1m2":
        codes = minifloat.encode((codes - 8).float() / 4, format)
    return minifloat.pack_codes(codes.to(torch.uint8), "e2m1" if format == "int4" else format)


def prepack_fp_scale_blocks(group_scale: Tensor) -> Tensor:
    """[N, G] e8m0 (uint8) or fp16 -> [ceil(N/64), G, 64]; the padding holds one."""
    one = 127 if group_scale.dtype == torch.uint8 else 1.0
    padded = F.pad(group_scale, (0, 0, 0, -group_scale.shape[0] % BLOCK_N), value=one)
    return padded.view(padded.shape[0] // BLOCK_N, BLOCK_N, group_scale.shape[1]).transpose(1, 2).contiguous()
