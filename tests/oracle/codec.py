"""Readers and writers of every packed layout by index arithmetic, sharing no code with the library."""

import numpy as np


def unpack_nibbles(packed: np.ndarray, k: int | None = None) -> np.ndarray:
    """uint8 [..., B] -> int64 [..., k]: element i is nibble i % 2 of byte i // 2, offset by 8."""
    k = 2 * packed.shape[-1] if k is None else k
    i = np.arange(k)
    return ((packed[..., i // 2].astype(np.int64) >> (4 * (i % 2))) % 16) - 8


def pack_nibbles(q: np.ndarray) -> np.ndarray:
    """int [..., K] in -8..7 -> uint8 [..., ceil(K/2)]; the pad nibble holds the code of zero, 8."""
    k = q.shape[-1]
    out = np.full((*q.shape[:-1], (k + 1) // 2), 0x88, dtype=np.int64)
    i = np.arange(k)
    for half in (0, 1):
        at = i[i % 2 == half]
        code = q[..., at].astype(np.int64) + 8
        keep = 0xF0 if half == 0 else 0x0F
        out[..., at // 2] = (out[..., at // 2] & keep) | (code << (4 * half))
    return out.astype(np.uint8)


def read_int4_tiles(tiles: np.ndarray, n: int, k: int) -> np.ndarray:
    """uint8 [NT, KT, 64] -> int64 [n, k]. Tile byte 4 * (row % 16) + k % 4; low nibble for k % 8 < 4, else
    high.
    """
    row, col = np.meshgrid(np.arange(n), np.arange(k), indexing="ij")
    byte = tiles[row // 16, col // 8, 4 * (row % 16) + col % 4].astype(np.int64)
    return np.where(col % 8 < 4, byte % 16, byte // 16) - 8


def read_int8_tiles(tiles: np.ndarray, n: int, k: int) -> np.ndarray:
    """int8 [NT, KT, 128] -> int64 [n, k]. Tile byte 64 * (k % 8 // 4) + 4 * (row % 16) + k % 4."""
    row, col = np.meshgrid(np.arange(n), np.arange(k), indexing="ij")
    return tiles[row // 16, col // 8, 64 * (col % 8 // 4) + 4 * (row % 16) + col % 4].astype(np.int64)


def write_int4_tiles(q: np.ndarray) -> np.ndarray:
    """int [N, K] -> uint8 [ceil(N/16), ceil(K/8), 64]; K counts as even, padding holds code 8."""
    n, k = q.shape
    tiles = np.full((-(-n // 16), -(-k // 8), 64), 0x88, dtype=np.int64)
    row, col = np.meshgrid(np.arange(n), np.arange(k), indexing="ij")
    for half in (0, 1):
        at = (col % 8) // 4 == half
        r, c, v = row[at], col[at], q[at].astype(np.int64)
        where = (r // 16, c // 8, 4 * (r % 16) + c % 4)
        tiles[where] += v << (4 * half)  # the pad already holds 8, the code of zero, in this nibble
    return tiles.astype(np.uint8)


def write_int8_tiles(q: np.ndarray) -> np.ndarray:
    """int [N, K] -> int8 [ceil(N/16), ceil(K/8), 128]; padding holds 0."""
    n, k = q.shape
    tiles = np.zeros((-(-n // 16), -(-k // 8), 128), dtype=np.int8)
    row, col = np.meshgrid(np.arange(n), np.arange(k), indexing="ij")
    tiles[row // 16, col // 8, 64 * (col % 8 // 4) + 4 * (row % 16) + col % 4] = q
    return tiles


def write_group_scale_tiles(s: np.ndarray) -> np.ndarray:
    """uint8 [N, G] -> uint8 [ceil(N/16), G, 16]; padding holds 1."""
    n, groups = s.shape
    out = np.ones((-(-n // 16), groups, 16), dtype=np.uint8)
    for row in range(n):
        out[row // 16, :, row % 16] = s[row]
    return out
