"""INT4 keys and values: asymmetric, one scale and one zero per token and head (QuaRot, section 4.2)."""

import torch
from torch import Tensor


def kv4_quantize(x: Tensor, clip: float = 1.0) -> tuple[Tensor, Tensor]:
    """x [..., D] -> (packed uint8 [..., ceil(D/2)], params fp16 [..., 2] = (scale, zero)).

    x is about code * scale + zero.

    zero = min * clip, scale = (max - min) * clip / 15, both rounded to fp16 before the codes are taken.
    """
    x = x.float()
    c = torch.tensor(clip, dtype=torch.float32, device=x.device)
    low, high = x.amin(-1), x.amax(-1)
    zero = (low * c).half()
    scale = ((high * c - low * c) / 15).half()
    finite = torch.isfinite(x).all(-1) & torch.isfinite(zero) & torch.isfinite(scale)
    scale, zero = (torch.where(finite, p, torch.full_like(p, float("nan"))) for p in (scale, zero))
    inv = torch.where(scale > 0, 1.0 / scale.float(), torch.zeros_like(low))
    q = ((x - zero.float().unsqueeze(-1)) * inv.unsqueeze(-1)).round().clamp(0, 15)
    code = torch.where(finite.unsqueeze(-1), q, torch.zeros_like(q)).to(torch.uint8)
    if code.shape[-1] % 2:
        code = torch.nn.functional.pad(code, (0, 1))
    return code[..., 0::2] | (code[..., 1::2] << 4), torch.stack((scale, zero), -1)


def kv4_dequantize(
    packed: Tensor, params: Tensor, dtype: torch.dtype = torch.float32, d: int | None = None
) -> Tensor:
    """Inverse: [..., d] of dtype; code * scale rounded once, + zero rounded once, in fp32."""
    code = (
        torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)[..., : d or 2 * packed.shape[-1]].float()
    )
    scale, zero = params.float().unbind(-1)
    return (code * scale.unsqueeze(-1) + zero.unsqueeze(-1)).to(dtype)
