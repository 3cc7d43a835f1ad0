"""Per-token symmetric quantisation (QuaRot, arXiv 2404.00456, section 4.2)."""

import torch
from torch import Tensor

from .layout import pack_int4

_FLT_MIN = torch.finfo(torch.float32).tiny


def _codes(x: Tensor, qmax: int, clip: float) -> tuple[Tensor, Tensor]:
    x = x.float()
    amax = x.abs().amax(-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    finite = torch.isfinite(x).all(-1)
    # fp32: amax * clip, then the division, each rounded once
    scale = (amax * torch.tensor(clip, dtype=torch.float32, device=x.device)) / qmax
    zero = scale < _FLT_MIN  # zero rows, and rows whose 1/scale would overflow
    scale = torch.where(zero, torch.ones_like(scale), scale)
    inv = torch.where(zero, torch.zeros_like(scale), 1.0 / scale)
    q = (x * inv.unsqueeze(-1)).round().clamp(-8 if qmax == 7 else -qmax, qmax)
    q = torch.where(finite.unsqueeze(-1), q, torch.zeros_like(q))
    return q.to(torch.int8), torch.where(finite, scale, torch.full_like(scale, float("nan")))


def quantize_int8(x: Tensor, clip: float = 1.0) -> tuple[Tensor, Tensor]:
    """x [..., K] float -> (int8 [..., K] in -127..127, scale fp32 [...]), scale = amax * clip / 127."""
    return _codes(x, 127, clip)


def quantize_int4(x: Tensor, clip: float = 1.0) -> tuple[Tensor, Tensor]:
    """x [..., K] float -> (packed uint8 [..., ceil(K/2)], scale fp32 [...]), scale = amax * clip / 7."""
    q, scale = _codes(x, 7, clip)
    return pack_int4(q), scale
