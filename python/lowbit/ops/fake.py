"""Shapes and dtypes of every op, for torch.compile and meta tensors."""

import torch
from torch import Tensor

from ..minifloat import find_format
from ..reference import fp_layout
from ..reference.layout import BLOCK_INT4, BLOCK_INT8, BLOCK_K, BLOCK_N, TILE_K, TILE_N


def _blocks(size: int, of: int) -> int:
    return (size + of - 1) // of


def _fake(name: str):
    return torch.library.register_fake(f"lowbit::{name}")


@_fake("pack_int4")
def _(q: Tensor) -> Tensor:
    return q.new_empty((*q.shape[:-1], _blocks(q.shape[-1], 2)), dtype=torch.uint8)


@_fake("unpack_int4")
def _(packed: Tensor, k: int | None = None) -> Tensor:
    return packed.new_empty((*packed.shape[:-1], 2 * packed.shape[-1] if k is None else k), dtype=torch.int8)


def _pieces(t: Tensor, n: int, k: int, tile_bytes: int, block_bytes: int) -> Tensor:
    """Tiles for the CPU kernels, blocks for the CUDA kernels."""
    if t.device.type == "cuda":
        return t.new_empty((_blocks(n, BLOCK_N), _blocks(k, BLOCK_K), block_bytes))
    return t.new_empty((_blocks(n, TILE_N), _blocks(k, TILE_K), tile_bytes))


@_fake("prepack_int4_weight")
def _(weight_packed: Tensor) -> Tensor:
    n, b = weight_packed.shape
    return _pieces(weight_packed, n, 2 * b, 64, BLOCK_INT4)


@_fake("prepack_int8_weight")
def _(weight: Tensor) -> Tensor:
    return _pieces(weight, *weight.shape, 128, BLOCK_INT8)


@_fake("prepack_group_scale")
def _group_scale_pieces(group_scale: Tensor) -> Tensor:
    n, g = group_scale.shape
    wide = BLOCK_N if group_scale.device.type == "cuda" else TILE_N
    return group_scale.new_empty((_blocks(n, wide), g, wide))


def _quantized(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    k = x.shape[-1] if bits == 8 else _blocks(x.shape[-1], 2)
    q = x.new_empty((*x.shape[:-1], k), dtype=torch.int8 if bits == 8 else torch.uint8)
    return q, x.new_empty(x.shape[:-1], dtype=torch.float32)


@_fake("quantize_int4")
def _(x: Tensor, clip: float = 1.0) -> tuple[Tensor, Tensor]:
    return _quantized(x, 4)


@_fake("quantize_int8")
def _(x: Tensor, clip: float = 1.0) -> tuple[Tensor, Tensor]:
    return _quantized(x, 8)


@_fake("hadamard")
def _(x: Tensor, scale: float = 1.0, block: int | None = None, transpose: bool = False) -> Tensor:
    return x.new_empty(x.shape)


@_fake("hadamard_")
def _(x: Tensor, scale: float = 1.0, block: int | None = None, transpose: bool = False) -> None:
    return None


@_fake("hadamard_quantize")
def _(x: Tensor, bits: int, clip: float = 1.0, block: int | None = None) -> tuple[Tensor, Tensor]:
    return _quantized(x, bits)


def _linear(x: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty((*x.shape[:-1], n), dtype=dtype)


@_fake("int4_linear")
def _(
    x_q: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    w_scale: Tensor,
    group_scale: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    residual: Tensor | None = None,
    low_rank: Tensor | None = None,
    low_rank_up: Tensor | None = None,
) -> Tensor:
    return _linear(x_q, w_scale.numel(), out_dtype or torch.float32)


@_fake("int8_linear")
def _(
    x_q: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    w_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    residual: Tensor | None = None,
    low_rank: Tensor | None = None,
    low_rank_up: Tensor | None = None,
) -> Tensor:
    return _linear(x_q, w_scale.numel(), out_dtype or torch.float32)


@_fake("dynamic_linear")
def _(
    x: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    group_scale: Tensor | None = None,
    bias: Tensor | None = None,
    activation_bits: int = 8,
    clip: float = 1.0,
    hadamard_block: int | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    return _linear(x, w_scale.numel(), x.dtype)


@_fake("encode_fp")
def _(x: Tensor, format: str, ties_away: bool = False) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.uint8)


@_fake("prepack_fp_weight")
def _(weight_packed: Tensor, format: str, k: int) -> Tensor:
    bits = 4 if format == "int4" else find_format(format).bits
    n, fp_k = weight_packed.shape[0], fp_layout.BLOCK_K
    if weight_packed.device.type == "cuda":
        return weight_packed.new_empty((_blocks(n, BLOCK_N), _blocks(k, fp_k), BLOCK_N * fp_k * bits // 8))
    return weight_packed.new_empty((_blocks(n, TILE_N), _blocks(k, TILE_K), TILE_N * TILE_K * bits // 8))


_fake("prepack_fp_group_scale")(_group_scale_pieces)


@_fake("fp_linear")
def _(
    x: Tensor,
    weight: Tensor,
    format: str,
    w_scale: Tensor,
    group_scale: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    return _linear(x, w_scale.numel(), x.dtype)


@_fake("quantize_fp4")
def _(
    x: Tensor, format: str, scale: Tensor | None = None, exponent: Tensor | None = None, clip: float = 1.0
) -> tuple[Tensor, Tensor]:
    return _quantized(x, 4)


@_fake("fp4_linear")
def _(
    x_q: Tensor,
    x_format: str,
    x_scale: Tensor | None,
    weight: Tensor,
    w_format: str,
    w_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return _linear(x_q, w_scale.numel(), out_dtype or torch.float32)


def _coded(
    x: Tensor, n: int, bits: int, index: Tensor | None, static_scale: bool, unpacked: bool
) -> tuple[Tensor, Tensor]:
    k, unpacked = n if index is None else index.shape[0], unpacked or bits == 8
    q = x.new_empty(
        (*x.shape[:-1], k if unpacked else _blocks(k, 2)), dtype=torch.int8 if unpacked else torch.uint8
    )
    return q, x.new_empty((0,) if static_scale else x.shape[:-1], dtype=torch.float32)


@_fake("quantize_static")
def _(
    x: Tensor,
    bits: int,
    inverse_step: Tensor | None = None,
    shift: Tensor | None = None,
    index: Tensor | None = None,
    hadamard_block: int | None = None,
    unpacked: bool = False,
) -> Tensor:
    return _coded(x, x.shape[-1], bits, index, True, unpacked)[0]


@_fake("rms_norm")
def _(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, gain_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((0,) if residual is None else x.shape)


@_fake("rms_norm_quantize")
def _(
    x: Tensor,
    weight: Tensor,
    eps: float,
    bits: int,
    residual: Tensor | None = None,
    index: Tensor | None = None,
    shift: Tensor | None = None,
    static_scale: bool = False,
    clip: float = 1.0,
    gain_offset: float = 0.0,
    unpacked: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    q, scale = _coded(x, x.shape[-1], bits, index, static_scale, unpacked)
    return q, scale, x.new_empty((0,) if residual is None else x.shape)


@_fake("gated")
def _(gate_up: Tensor, activation: str = "silu", hadamard_block: int | None = None) -> Tensor:
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


@_fake("gated_quantize")
def _(
    gate_up: Tensor,
    bits: int,
    activation: str = "silu",
    hadamard_block: int | None = None,
    inverse_step: Tensor | None = None,
    shift: Tensor | None = None,
    index: Tensor | None = None,
    static_scale: bool = False,
    clip: float = 1.0,
    unpacked: bool = False,
) -> tuple[Tensor, Tensor]:
    return _coded(gate_up, gate_up.shape[-1] // 2, bits, index, static_scale, unpacked)


@_fake("kv4_quantize")
def _(x: Tensor, clip: float = 1.0) -> tuple[Tensor, Tensor]:
    packed = x.new_empty((*x.shape[:-1], _blocks(x.shape[-1], 2)), dtype=torch.uint8)
    return packed, x.new_empty((*x.shape[:-1], 2), dtype=torch.float16)


@_fake("kv4_dequantize")
def _(packed: Tensor, params: Tensor, dtype: torch.dtype | None = None, d: int | None = None) -> Tensor:
    d = 2 * packed.shape[-1] if d is None else d
    return packed.new_empty((*packed.shape[:-1], d), dtype=dtype or torch.float32)


@_fake("kv4_append")
def _(
    key: Tensor,
    value: Tensor,
    slots: Tensor,
    key_codes: Tensor,
    key_params: Tensor,
    value_codes: Tensor,
    value_params: Tensor,
    clip: float = 1.0,
    key_block: int | None = None,
) -> None:
    return None


@_fake("kv4_rope_append")
def _(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    slots: Tensor,
    key_codes: Tensor,
    key_params: Tensor,
    value_codes: Tensor,
    value_params: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    clip: float = 1.0,
    key_block: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, d = qkv.shape[0], qkv.shape[1] // (heads + 2 * kv_heads)
    q, k, v = (qkv.new_empty((tokens, h, d)) for h in (heads, kv_heads, kv_heads))
    return q, k, v


@_fake("kv4_attention")
def _(
    q: Tensor,
    key_codes: Tensor,
    key_params: Tensor,
    value_codes: Tensor,
    value_params: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    softmax_scale: float,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
) -> Tensor:
    return q.new_empty(q.shape)


@_fake("kv_attend")
def _(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int, key_cache: Tensor, value_cache: Tensor,
    block_table: Tensor, lengths: Tensor, softmax_scale: float, q_norm: Tensor | None = None,
    k_norm: Tensor | None = None, eps: float = 1e-6,
) -> Tensor:  # fmt: skip
    return qkv.new_empty((qkv.shape[0], key_cache.shape[3] * heads))


@_fake("causal_attention")
def _(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
    return q.new_empty(q.shape)


@_fake("kv4_attend")
def _(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    key_codes: Tensor,
    key_params: Tensor,
    value_codes: Tensor,
    value_params: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    softmax_scale: float,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    clip: float = 1.0,
    key_block: int | None = None,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
) -> Tensor:
    return qkv.new_empty((qkv.shape[0], qkv.shape[1] // (heads + 2 * kv_heads) * heads))


@_fake("kv4_attend_quantize")
def _(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    key_codes: Tensor,
    key_params: Tensor,
    value_codes: Tensor,
    value_params: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    softmax_scale: float,
    bits: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    clip: float = 1.0,
    key_block: int | None = None,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    inverse_step: Tensor | None = None,
    shift: Tensor | None = None,
    index: Tensor | None = None,
    static_scale: bool = False,
    code_clip: float = 1.0,
    unpacked: bool = False,
) -> tuple[Tensor, Tensor]:
    n = qkv.shape[1] // (heads + 2 * kv_heads) * heads
    return _coded(qkv, n, bits, index, static_scale, unpacked)
