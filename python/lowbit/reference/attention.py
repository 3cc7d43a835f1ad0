"""The paged KV caches: appending, with norm and RoPE, and decode attention over them.

Appending has the bits of the ops. Attention is the same mathematics; the ops sum in another order and are
compared within a bound.
"""

import math

import torch
from torch import Tensor

from .fused import codes_of, exponential, inverse_rms, scaled
from .kv_cache import kv4_dequantize, kv4_quantize
from .transform import hadamard


def head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension in fp32."""
    return (x * inverse_rms(x, eps).unsqueeze(-1)) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE of the first R elements of x [T, H, D], in halves; cos and sin [T, R]."""
    half = cos.shape[-1] // 2
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = torch.cat((first, second), -1) * cos.unsqueeze(1) + torch.cat(
        (-second, first), -1
    ) * sin.unsqueeze(1)
    return torch.cat((turned, rest), -1)


def kv4_append(
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
    """Quantise key and value [T, Hkv, D] into their slots; negative slots are skipped."""
    key = key.float() if key_block is None else hadamard(key.float(), key_block**-0.5, key_block)
    page = key_codes.shape[2]
    used = slots >= 0
    at, offset = slots[used] // page, slots[used] % page
    for x, codes, params in ((key, key_codes, key_params), (value, value_codes, value_params)):
        codes[at, :, offset], params[at, :, offset] = kv4_quantize(x[used], clip)


def _split_qkv(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    d = qkv.shape[1] // (heads + 2 * kv_heads)
    q, k, v = qkv.view(qkv.shape[0], -1, d).split((heads, kv_heads, kv_heads), 1)
    q, k = (
        rotate(x.float() if norm is None else head_norm(x.float(), norm, eps), cos, sin).to(qkv.dtype)
        for x, norm in ((q, q_norm), (k, k_norm))
    )
    return q, k, v.clone(memory_format=torch.contiguous_format)


def kv4_rope_append(
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
    """Norm, RoPE, one rounding to the dtype; then `kv4_append` of the rounded k, and of v."""
    q, k, v = _split_qkv(qkv, cos, sin, heads, kv_heads, q_norm, k_norm, eps)
    kv4_append(k, v, slots, key_codes, key_params, value_codes, value_params, clip, key_block)
    return q, k, v


def _attention(q: Tensor, keys: Tensor, values: Tensor, softmax_scale: float) -> Tensor:
    """q [Hkv, group, D] over keys and values fp32 [Hkv, T, D]: [heads, D]."""
    score = (q.float() * softmax_scale) @ keys.transpose(1, 2)
    weight = exponential(score - score.amax(-1, keepdim=True))
    return ((weight @ values) / weight.sum(-1, keepdim=True)).flatten(0, 1)


def kv4_attention(
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
    """softmax(q . keys * softmax_scale) . values for one query token per sequence; zeros without tokens.

    prefix_k, prefix_v: fp32 [P, Hkv, D], exact keys and values before those of every sequence.
    """
    d, page = q.shape[-1], key_codes.shape[2]
    group = q.shape[1] // key_codes.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    exact = q.new_empty(0, key_codes.shape[1], d, dtype=torch.float32)
    prefix = [(exact if x is None else x).transpose(0, 1) for x in (prefix_k, prefix_v)]  # [Hkv, P, D]
    for b, length in enumerate(lengths.tolist()):
        if length + prefix[0].shape[1] == 0:
            continue
        pages = block_table[b, : math.ceil(length / page)].long()
        keys, values = (
            kv4_dequantize(c[pages], p[pages], torch.float32, d).transpose(0, 1).flatten(1, 2)[:, :length]
            for c, p in ((key_codes, key_params), (value_codes, value_params))
        )  # [Hkv, length, D]
        keys, values = (torch.cat(x, 1) for x in zip(prefix, (keys, values), strict=True))
        out[b] = _attention(q[b].unflatten(0, (-1, group)), keys, values, softmax_scale)
    return out.to(q.dtype)


def _last_slots(block_table: Tensor, lengths: Tensor, page: int) -> Tensor:
    """Where the token behind those of each sequence goes."""
    last = lengths.long()
    return block_table.gather(1, (last // page).unsqueeze(1)).squeeze(1).long() * page + last % page


def kv4_attend(
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
    """One new token per sequence: `kv4_rope_append` at the end of each, then `kv4_attention` over it too."""
    slots = _last_slots(block_table, lengths, key_codes.shape[2])
    caches = (key_codes, key_params, value_codes, value_params)
    q, _, _ = kv4_rope_append(
        qkv, cos, sin, heads, kv_heads, slots, *caches, q_norm, k_norm, eps, clip, key_block
    )
    q = q if key_block is None else hadamard(q, key_block**-0.5, key_block)
    y = kv4_attention(q, *caches, block_table, lengths + 1, softmax_scale, prefix_k, prefix_v)
    return y.flatten(1)


def kv4_attend_quantize(
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
    """`kv4_attend`, and the codes and scales that `quantize_static` or a quantiser per token makes of it."""
    y = kv4_attend(
        qkv, cos, sin, heads, kv_heads, key_codes, key_params, value_codes, value_params, block_table,
        lengths, softmax_scale, q_norm, k_norm, eps, clip, key_block, prefix_k, prefix_v,
    )  # fmt: skip
    return codes_of(scaled(y.float(), index, inverse_step, shift), bits, static_scale, code_clip, unpacked)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
    """Every query [B, T, H, D] attends to the keys [B, S, Hkv, D] up to its own, the last of them to all."""
    b, queries, heads, _ = q.shape
    keys, kv_heads = k.shape[1:3]
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    k, v = (x.float().transpose(1, 2) for x in (k, v))  # [B, Hkv, S, D]
    for row in range(b):
        for t in range(queries):
            seen = slice(keys - queries + t + 1)
            group = q[row, t].float().unflatten(0, (kv_heads, -1))
            out[row, t] = _attention(group, k[row, :, seen], v[row, :, seen], softmax_scale).view(heads, -1)
    return out.to(q.dtype)


def kv_attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    softmax_scale: float,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """`kv4_attend` over keys and values as they are, [P, page, Hkv, D]."""
    page = key_cache.shape[1]
    q, k, v = _split_qkv(qkv, cos, sin, heads, kv_heads, q_norm, k_norm, eps)
    slots = _last_slots(block_table, lengths, page)
    out = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    for cache, x in ((key_cache, k), (value_cache, v)):
        cache.flatten(0, 1)[slots] = x
    for b, length in enumerate((lengths + 1).tolist()):
        pages = block_table[b, : math.ceil(length / page)].long()
        keys, values = (
            cache[pages].flatten(0, 1)[:length].transpose(0, 1).float() for cache in (key_cache, value_cache)
        )  # [Hkv, length, D]
        out[b] = _attention(q[b].unflatten(0, (kv_heads, -1)), keys, values, softmax_scale)
    return out.to(qkv.dtype).flatten(1)
