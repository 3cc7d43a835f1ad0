"""The paged INT4 cache in numpy: what the tests of its kernels share, with the bits of the contract."""

import numpy as np

from tests.oracle import codec
from tests.oracle import ops as oracle

from . import rows as r

F32 = np.float32


class Cache:
    """Pages of random bytes as a reused pool has them, in an order of their own."""

    def __init__(self, pages: int, kv_heads: int, page: int, d: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.page, self.kv_heads, self.d = page, kv_heads, d
        shape = (pages, kv_heads, page)
        self.arrays = {}
        for name in ("key", "value"):
            codes = r.raw(pages * kv_heads * page * d // 2)
            codes[:] = rng.integers(0, 256, codes.size)
            self.arrays[f"{name}_codes"] = codes.reshape(*shape, d // 2)
            params = r.raw(pages * kv_heads * page * 4).view(np.float16)
            params[:] = np.nan  # of a slot that nobody has written
            self.arrays[f"{name}_params"] = params.reshape(*shape, 2)

    def copy(self) -> dict[str, np.ndarray]:
        return {name: a.copy() for name, a in self.arrays.items()}

    def put(self, name: str, slot: int, head: int, x: np.ndarray, clip: float = 1.0) -> None:
        """Quantise x [d] into a slot."""
        codes, params = oracle.kv4_quantize_exact(x[None], clip)
        at = (slot // self.page, head, slot % self.page)
        self.arrays[f"{name}_codes"][at] = codec.pack_nibbles(codes - 8)[0]
        self.arrays[f"{name}_params"][at] = params[0]

    def get(self, name: str, slots: np.ndarray, head: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """float64 codes [slots, d], scale and zero [slots, 1]: the vectors are codes * scale + zero."""
        at = (slots // self.page, head, slots % self.page)
        codes = codec.unpack_nibbles(self.arrays[f"{name}_codes"][at], self.d) + 8.0
        params = self.arrays[f"{name}_params"][at].astype(np.float64)
        return codes, params[:, :1], params[:, 1:]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Bit for bit."""
    return all(a[name].tobytes() == b[name].tobytes() for name in a)


def tree_sum(v: np.ndarray) -> np.float32:
    v = np.concatenate([v, np.zeros((1 << (len(v) - 1).bit_length()) - len(v), F32)])
    while len(v) > 1:
        v = v[::2] + v[1::2]
    return v[0]


def hadamard(x: np.ndarray, block: int) -> np.ndarray:
    """Normalised, over blocks of a power of two: fp32 butterflies of stride 1, 2, 4, ..., one multiply."""
    x = x.astype(F32).copy()
    stride = 1
    while stride < block:
        y = x.reshape(-1, 2, stride)
        x = np.stack([y[:, 0] + y[:, 1], y[:, 0] - y[:, 1]], 1).reshape(-1)
        stride *= 2
    return x * F32(1 / np.sqrt(np.float64(block)))


def norm_and_rope(x: np.ndarray, weight: np.ndarray | None, eps: float, cos: np.ndarray, sin: np.ndarray):
    """x [d] of any float dtype -> the same dtype, rounded once."""
    v, dtype = x.astype(F32), x.dtype
    if weight is not None:
        inverse = F32(1) / np.sqrt(tree_sum(v * v) / F32(len(v)) + F32(eps))
        v = (v * inverse) * weight
    size = len(cos)
    if size:
        first, second = v[: size // 2], v[size // 2 : size]
        turned = np.concatenate([-second, first])
        v = np.concatenate([v[:size] * cos + turned * sin, v[size:]])
    return v.astype(dtype)


def rotation(tokens: int, d: int, rotary: int, norms: bool, key_block: int = 1, seed: int = 0) -> dict:
    """The arguments of a kernel that rotates heads: angles as of a real model, norms near one."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-3, 3, (tokens, rotary))
    held = {"cos": np.cos(angle), "sin": np.sin(angle)}
    held |= {name: rng.uniform(0.5, 1.5, d if norms else 0) for name in ("q_norm", "k_norm")}
    out = {}
    for name, x in held.items():
        out[name] = r.raw(x.size * 4).view(F32).reshape(x.shape)
        out[name][...] = x
    return out | {"eps": 1e-6, "key_block": key_block}


def stored(x: np.ndarray) -> np.ndarray:
    """The same numbers on 128 bytes, without a byte to spare."""
    out = r.raw(x.nbytes)
    out[:] = np.ascontiguousarray(x).view(np.uint8).ravel()
    return out
