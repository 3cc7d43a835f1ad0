"""Small floats in plain torch: rounding, codes and packing of the 4- and 6-bit formats.

Formats (OCP Microscaling Formats v1.0, section 5.3; e1m2 and e3m0 from LLM-FP4, arXiv 2310.16836) have a
sign, subnormals, no infinity and no NaN. A code is the bits themselves, sign on top.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FloatFormat:
    """One format. value * int_scale is an integer for every code."""

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def int_scale(self) -> int:
        return 1 << (self.bias - 1 + self.mantissa_bits)

    @property
    def max(self) -> float:
        """The largest value."""
        top = (2 << self.mantissa_bits) - 1
        return top * 2.0 ** ((1 << self.exponent_bits) - 2) / self.int_scale


FLOAT_FORMATS = {
    f.name: f
    for f in (
        FloatFormat("e3m2", 3, 2, 3),
        FloatFormat("e2m3", 2, 3, 1),
        FloatFormat("e2m1", 2, 1, 1),
        FloatFormat("e1m2", 1, 2, 1),
        FloatFormat("e3m0", 3, 0, 3),
    )
}
E8M0_NAN = 255


def find_format(name: str) -> FloatFormat:
    """The format of a name in FLOAT_FORMATS; ValueError names them."""
    if name not in FLOAT_FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FLOAT_FORMATS)}, got {name!r}")
    return FLOAT_FORMATS[name]


def _steps(x: Tensor, f: FloatFormat, ties_away: bool) -> tuple[Tensor, Tensor, Tensor]:
    """|x| as (n, binade): n * 2^(binade - mantissa_bits), n rounded to an integer; and the sign as a bool."""
    x = x.detach().float()
    x = torch.where(x.isnan(), torch.zeros_like(x), x)
    a = x.abs().clamp_max(f.max)
    # the exponent field of fp32; binades start at that of the subnormals
    binade = ((a.view(torch.int32) >> 23) - 127).clamp_min_(1 - f.bias)
    q = torch.ldexp(a, f.mantissa_bits - binade)  # exact: 0 .. 2^(mantissa_bits + 1)
    n = q.round() if not ties_away else q.floor() + (q - q.floor() >= 0.5)  # q + 0.5 could itself round up
    return n, binade, x.signbit()


def round_to(x: Tensor, format: str, ties_away: bool = False) -> Tensor:
    """The nearest value of a format, elementwise.

    x: float [...]. format: "e3m2", "e2m3", "e2m1", "e1m2" or "e3m0". Ties go to the even significand (as OCP
    MX and ml_dtypes), with ties_away to the larger magnitude (as ZeroQuant's quantizer does). What is larger
    saturates; NaN becomes 0. Returns [...] in x.dtype. Raises ValueError for another format.
    """
    f = find_format(format)
    n, binade, negative = _steps(x, f, ties_away)
    a = torch.ldexp(n, binade - f.mantissa_bits)
    return torch.where(negative, -a, a).to(x.dtype)


def encode(x: Tensor, format: str, ties_away: bool = False) -> Tensor:
    """uint8 [...]: the codes of `round_to(x, format)`; a negative zero keeps its sign."""
    f = find_format(format)
    n, binade, negative = _steps(x, f, ties_away)
    code = n.to(torch.int32) + ((binade - (1 - f.bias)) << f.mantissa_bits)
    return (code | (negative.to(torch.int32) << (f.bits - 1))).to(torch.uint8)


def decode(codes: Tensor, format: str) -> Tensor:
    """fp32 [...] of uint8 codes. Raises ValueError for codes that the format does not have."""
    f = find_format(format)
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes: expected uint8, got {codes.dtype}")
    if codes.numel() and int(codes.max()) >= 1 << f.bits:
        raise ValueError(f"codes: expected values below {1 << f.bits} for {format}, got {int(codes.max())}")
    return value_table(format, codes.device)[codes.long()]


def value_table(format: str, device: torch.device | str = "cpu") -> Tensor:
    """fp32 [2^bits]: the value of every code."""
    f = find_format(format)
    code = torch.arange(1 << f.bits, device=device)
    e = (code >> f.mantissa_bits) & ((1 << f.exponent_bits) - 1)
    m = code & ((1 << f.mantissa_bits) - 1)
    steps = torch.where(e > 0, ((1 << f.mantissa_bits) + m) << (e - 1).clamp_min(0), m)
    a = steps.float() / f.int_scale
    return torch.where(code >> (f.bits - 1) == 1, -a, a)


def packed_bytes(k: int, format: str) -> int:
    """Bytes of a row of k codes: two codes a byte, or four codes in three."""
    return -(-k // 2) if find_format(format).bits == 4 else 3 * -(-k // 4)


def pack_codes(codes: Tensor, format: str) -> Tensor:
    """uint8 [..., K] codes -> uint8 [..., packed_bytes(K)], little-endian, code i at bits `bits * i`.

    Missing codes of the last word are zero.
    """
    f = find_format(format)
    if f.bits == 4:
        c = _pad(codes, 2).unflatten(-1, (-1, 2))
        return c[..., 0] | (c[..., 1] << 4)
    c = _pad(codes, 4).unflatten(-1, (-1, 4)).to(torch.int32)
    word = c[..., 0] | (c[..., 1] << 6) | (c[..., 2] << 12) | (c[..., 3] << 18)
    return torch.stack([word & 255, (word >> 8) & 255, word >> 16], -1).to(torch.uint8).flatten(-2)


def unpack_codes(packed: Tensor, format: str, k: int) -> Tensor:
    """Inverse of `pack_codes`: uint8 [..., k]. Raises ValueError where the bytes do not fit k codes."""
    f = find_format(format)
    if packed.dtype != torch.uint8 or packed.shape[-1] != packed_bytes(k, format):
        want = f"uint8 with {packed_bytes(k, format)} bytes per row for {k} codes of {format}"
        raise ValueError(f"packed: expected {want}, got {packed.dtype} {list(packed.shape)}")
    if f.bits == 4:
        return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)[..., :k]
    b = packed.unflatten(-1, (-1, 3)).to(torch.int32)
    word = b[..., 0] | (b[..., 1] << 8) | (b[..., 2] << 16)
    codes = torch.stack([(word >> s) & 63 for s in (0, 6, 12, 18)], -1)
    return codes.to(torch.uint8).flatten(-2)[..., :k]


def decode_e8m0(codes: Tensor) -> Tensor:
    """fp32 [...] of uint8 scale codes: 2^(code - 127); 255 is NaN."""
    value = torch.ldexp(torch.ones_like(codes, dtype=torch.float32), codes.to(torch.int32) - 127)
    return torch.where(codes == E8M0_NAN, torch.full_like(value, torch.nan), value)


def encode_e8m0(x: Tensor) -> Tensor:
    """uint8 [...]: the nearest power of two to x > 0, ties upwards, at most 2^127; 255 (NaN) for other x."""
    x = x.detach().float()
    mantissa, exponent = torch.frexp(x)  # x = mantissa * 2^exponent, 0.5 <= mantissa < 1
    code = (exponent + (mantissa >= 0.75) + 126).clamp(0, 254)
    return torch.where((x > 0) & x.isfinite(), code, torch.full_like(code, E8M0_NAN)).to(torch.uint8)


def _pad(codes: Tensor, multiple: int) -> Tensor:
    return torch.nn.functional.pad(codes, (0, -codes.shape[-1] % multiple))
