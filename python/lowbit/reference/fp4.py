"""FP4 activations, and linear layers on FP4 codes as exact integers."""

import torch
from torch import Tensor

from ..minifloat import FloatFormat, encode, find_format, pack_codes, unpack_codes, value_table
from .int_gemm import _epilogue
from .layout import unprepack_int4_weight

_FLT_MIN = torch.finfo(torch.float32).tiny


def quantize_fp4(
    x: Tensor, format: str, scale: Tensor | None = None, exponent: Tensor | None = None, clip: float = 1.0
) -> tuple[Tensor, Tensor]:
    """x [..., K] float -> (nibbles uint8 [..., ceil(K/2)], scale fp32 [...]).

    format: "e2m1", "e1m2" or "e3m0". exponent: int8 [K], channel j counts 2^exponent[j] times.
    scale: fp32 [1] for all rows; without it, per row, amax * clip / the format's largest value.
    """
    f = find_format(format)
    h = x.float()
    if exponent is not None:
        h = torch.ldexp(h, exponent.to(torch.int32))
    finite = torch.isfinite(h).all(-1)
    if scale is None:
        amax = h.abs().amax(-1) if h.shape[-1] else h.new_zeros(h.shape[:-1])
        s = (amax * torch.tensor(clip, dtype=torch.float32, device=x.device)) / f.max
    else:
        s = scale.float().reshape(()).expand(h.shape[:-1])
    zero = s < _FLT_MIN  # zero rows, and rows whose 1 / scale would overflow
    s = torch.where(zero, torch.ones_like(s), s)
    codes = encode(h * (1.0 / s).unsqueeze(-1), format)
    codes = torch.where((finite & ~zero).unsqueeze(-1), codes, torch.zeros_like(codes))
    return pack_codes(codes, format), torch.where(finite, s, torch.full_like(s, float("nan")))


def fp4_linear(
    x_q: Tensor,
    x_format: str,
    x_scale: Tensor | None,
    weight: Tensor,
    w_format: str,
    w_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x_q nibbles uint8 [..., K/2], or int8 codes [..., K] with x_format "int8"; weight: prepack_int4_weight
    of the nibbles; w_scale fp32 [N] -> [..., N].
    """
    n, w_f = w_scale.numel(), find_format(w_format)
    k, steps = x_q.shape[-1], w_f.int_scale
    if x_format != "int8":
        x_f = find_format(x_format)
        k, steps = 2 * k, steps * x_f.int_scale
        x_q = _integers(unpack_codes(x_q, x_format, k), x_f)
    w = _integers(unpack_codes(unprepack_int4_weight(weight, n, k), w_format, k), w_f)
    acc = x_q.double() @ w.double().T  # exact: |acc| < 2^53
    # what the integers are too large by is a power of two and goes into w_scale without rounding
    return _epilogue(acc, w_scale.float() / steps, x_scale, bias).to(out_dtype or torch.float32)


def _integers(codes: Tensor, f: FloatFormat) -> Tensor:  # the values of codes times int_scale, in fp32
    return value_table(f.name, codes.device)[codes.long()] * f.int_scale
