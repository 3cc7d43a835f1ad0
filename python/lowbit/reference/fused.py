"""RMSNorm and the MLP's gate, as floats or fused with the quantisation behind them; static quantisation
(MergeQuant).

All in fp32, one rounding per operation, in the order written here.
"""

import torch
from torch import Tensor

from .layout import pack_int4, unpack_int4
from .quantize import quantize_int4, quantize_int8
from .transform import hadamard

# exp(r) - 1 - r over r^2, for |r| <= ln(2) / 2
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def tree_sum(v: Tensor) -> Tensor:
    """v [..., n] -> [...]: zeros up to a power of two, then neighbours are added until one value is left."""
    n = v.shape[-1]
    v = torch.nn.functional.pad(v, (0, (1 << max(n - 1, 0).bit_length()) - n))
    while v.shape[-1] > 1:
        v = v[..., 0::2] + v[..., 1::2]
    return v.squeeze(-1)


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean of x^2 + eps) over the last dimension of x, fp32."""
    f = torch.float32
    mean = tree_sum(x * x) / torch.tensor(x.shape[-1], dtype=f)
    # torch's fp32 root is an ulp off at times; an fp64 root lies off fp32's midpoints, so it rounds right
    return 1 / (mean + torch.tensor(eps, dtype=f)).double().sqrt().float()


def exponential(x: Tensor) -> Tensor:
    """exp of x clamped to [-87, 88]; polynomial and order of roundings are part of the contract."""
    f = torch.float32
    t = x.clamp(-87.0, 88.0)
    n = (t * torch.tensor(1.44269504, dtype=f)).round()  # ties to even
    # ln(2) in two parts: the first has so few bits that n times it is exact
    r = (t - n * torch.tensor(0.693359375, dtype=f)) - n * torch.tensor(-2.12194440e-4, dtype=f)
    p = torch.full_like(r, _EXP[0])
    for c in _EXP[1:]:
        p = p * r + torch.tensor(c, dtype=f)
    p = (p * (r * r) + r) + 1
    power = n.nan_to_num().to(torch.int32) << 23
    return torch.where(t.isnan(), t, (p.view(torch.int32) + power).view(f))


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + exponential(-x))


def _activation(g: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return g * _sigmoid(g)
    if activation != "gelu_tanh":
        raise ValueError(f"activation: expected 'silu' or 'gelu_tanh', got {activation!r}")
    cube = (g * g) * g
    inner = g + torch.tensor(0.044715, dtype=torch.float32) * cube
    # tanh(z) = 2 sigmoid(2 z) - 1, so gelu_tanh(g) = g sigmoid(2 sqrt(2 / pi) (g + 0.044715 g^3))
    return g * _sigmoid(torch.tensor(1.59576912, dtype=torch.float32) * inner)


def _transform(v: Tensor, block: int | None) -> Tensor:
    if block is None or v.shape[-1] == 0:
        return v
    n = block or v.shape[-1]
    return hadamard(v, n**-0.5, n)


def _static_codes(v: Tensor, bits: int, unpacked: bool) -> Tensor:
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    q = torch.where(v.isnan(), low, v.clamp(low, high).round()).to(torch.int8)
    return pack_int4(q) if bits == 4 and not unpacked else q


def codes_of(
    v: Tensor, bits: int, static_scale: bool, clip: float, unpacked: bool
) -> tuple[Tensor, Tensor]:
    """(codes, scale) of rows v; a static scale is already in them."""
    if static_scale:
        return _static_codes(v, bits, unpacked), v.new_empty(0)
    q, scale = quantize_int4(v, clip) if bits == 4 else quantize_int8(v, clip)
    return unpack_int4(q, v.shape[-1]) if bits == 4 and unpacked else q, scale


def scaled(v: Tensor, index: Tensor | None, inverse_step: Tensor | None, shift: Tensor | None) -> Tensor:
    """v[index] * inverse_step - shift."""
    v = v if index is None else v[..., index.long()]
    v = v if inverse_step is None else v * inverse_step
    return v if shift is None else v - shift


def quantize_static(
    x: Tensor,
    bits: int,
    inverse_step: Tensor | None = None,
    shift: Tensor | None = None,
    index: Tensor | None = None,
    hadamard_block: int | None = None,
    unpacked: bool = False,
) -> Tensor:
    """Codes of hadamard(x)[index] * inverse_step - shift; the scale is already in inverse_step."""
    v = _transform(x.float(), hadamard_block)
    return _static_codes(scaled(v, index, inverse_step, shift), bits, unpacked)


def _norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, index: Tensor | None, gain_offset: float
) -> tuple[Tensor, Tensor]:
    """RMSNorm(x + residual)[index] * (weight + gain_offset) in fp32; x + residual in x's dtype, or none."""
    total = x.new_empty(0)
    if residual is not None:
        x = total = (x.float() + residual.float()).to(x.dtype)
    s, f = x.float(), torch.float32
    inverse = inverse_rms(s, eps)
    gain = weight if gain_offset == 0 else weight + torch.tensor(gain_offset, dtype=f)
    s = s if index is None else s[..., index.long()]
    return (s * inverse.unsqueeze(-1)) * gain, total


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, gain_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(RMSNorm(x + residual) * (weight + gain_offset), x + residual), rounded to x's dtype."""
    v, total = _norm(x, weight, eps, residual, None, gain_offset)
    return v.to(x.dtype), total


def rms_norm_quantize(
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
    """(codes, scale, x + residual) of RMSNorm(x + residual)[index] * (weight + gain_offset) - shift."""
    v, total = _norm(x, weight, eps, residual, index, gain_offset)
    return *codes_of(scaled(v, None, None, shift), bits, static_scale, clip, unpacked), total


def _gate(gate_up: Tensor, activation: str, block: int | None) -> Tensor:
    gate, up = gate_up.float().chunk(2, -1)
    return _transform(_activation(gate, activation) * up, block)


def gated(gate_up: Tensor, activation: str = "silu", hadamard_block: int | None = None) -> Tensor:
    """hadamard(activation(gate) * up), rounded to the dtype of gate_up."""
    return _gate(gate_up, activation, hadamard_block).to(gate_up.dtype)


def gated_quantize(
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
    """(codes, scale) of hadamard(activation(gate) * up)[index] * inverse_step - shift."""
    v = _gate(gate_up, activation, hadamard_block)
    return codes_of(scaled(v, index, inverse_step, shift), bits, static_scale, clip, unpacked)
