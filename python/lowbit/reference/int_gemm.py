"""Integer linear layers: exact s32 sums, one fixed fp32 epilogue."""

import torch
from torch import Tensor

from .layout import unpack_int4, unprepack_int4_weight, unprepack_int8_weight
from .quantize import _codes
from .transform import hadamard


def _integer_weight(weight: Tensor, group_scale: Tensor | None, n: int, k: int) -> Tensor:  # -> int64 [N, K]
    if weight.dtype == torch.int8:
        return unprepack_int8_weight(weight, n, k).long()
    w = unpack_int4(unprepack_int4_weight(weight, n, k), k).long()
    if group_scale is not None:
        s = group_scale.transpose(1, 2).flatten(0, 1)[:n]  # [N, G]
        w = w * s.long().repeat_interleave(_group_size(k, s.shape[1]), dim=1)[:, :k]
    return w


def _group_size(k: int, groups: int) -> int:
    for g in (32, 64, 128):
        if -(-k // g) == groups:
            return g
    raise ValueError(
        f"group_scale: expected ceil(K / g) groups for g in 32, 64, 128 with K = {k}, got {groups}"
    )


def _linear(
    x_q, x_scale, weight, w_scale, group_scale, bias, out_dtype,
    residual=None, low_rank=None, low_rank_up=None,
) -> Tensor:
    n, k = w_scale.numel(), x_q.shape[-1]
    acc = x_q.double() @ _integer_weight(weight, group_scale, n, k).double().T  # exact: |acc| < 2^53
    y = _epilogue(acc, w_scale, x_scale, bias)
    if low_rank is not None:
        for t, up in zip(low_rank.float().unbind(-1), low_rank_up.float(), strict=True):
            y = y + t.unsqueeze(-1) * up
    if residual is not None:
        y = y + residual.float()
    return y.to(out_dtype)


def _epilogue(acc, w_scale, x_scale, bias) -> Tensor:
    y = acc.to(torch.int64).float() * w_scale.reshape(-1).float()
    if x_scale is not None:
        y = y * x_scale.reshape(*acc.shape[:-1], 1).float()
    if bias is not None:
        y = y + bias.float()
    return y


def int4_linear(
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
    """x_q packed uint8 [..., K/2] or int8 [..., K]; weight tiles; w_scale fp32 [N] -> [..., N].

    low_rank fp32 [..., r] and low_rank_up fp32 [r, N]: their product is added after the bias, one rank after
    the other, then residual [..., N] of out_dtype.
    """
    if x_q.dtype == torch.uint8:
        x_q = unpack_int4(x_q)
    how = (bias, out_dtype or torch.float32, residual, low_rank, low_rank_up)
    return _linear(x_q, x_scale, weight, w_scale, group_scale, *how)


def int8_linear(
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
    """x_q int8 [..., K]; weight int8 tiles; w_scale fp32 [N] -> [..., N]; the rest as in `int4_linear`."""
    how = (bias, out_dtype or torch.float32, residual, low_rank, low_rank_up)
    return _linear(x_q, x_scale, weight, w_scale, None, *how)


def dynamic_linear(
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
    """[subtract shift] -> [Hadamard] -> per-token quantise -> integer linear [+ residual]; result in x.dtype.

    hadamard_block: None = no transform, 0 = over all of K, b = block-diagonal.
    """
    h = x.float()
    if shift is not None:
        h = h - shift.float()
    if hadamard_block is not None:
        n = hadamard_block or x.shape[-1]
        h = hadamard(h, n**-0.5, hadamard_block)
    x_q, x_scale = _codes(h, 7 if activation_bits == 4 else 127, clip)
    return _linear(x_q, x_scale, weight, w_scale, group_scale, bias, x.dtype, residual)


def dequantize_weight(weight: Tensor, w_scale: Tensor, group_scale: Tensor | None, k: int) -> Tensor:
    """fp32 [N, k] of a prepacked weight."""
    n = w_scale.numel()
    return _integer_weight(weight, group_scale, n, k).float() * w_scale.reshape(-1, 1).float()
