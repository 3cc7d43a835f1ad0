"""Schemes: all that round-to-nearest and GPTQ need to know of a format and its scales."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import (
    FLOAT_FORMATS,
    check_group_size,
    check_scale_format,
    decode_e8m0,
    default_scale_format,
    encode,
)
from . import search
from .grid import INT4, INT4_FULL, INT8, FloatGrid, Grid
from .weight import FloatWeight, QuantizedWeight


@dataclass(frozen=True)
class IntegerScheme:
    """The integer layers: fp32 scales per row; for 4 bits also integer scales 1..16 of groups (two levels,
    after QServe, arXiv 2405.04532, without the zero point).

    bits: 4 (clip search, -7..7) or 8 (absmax, -127..127). group_size: None, 32, 64 or 128. Raises ValueError
    for others, and for groups with 8 bits.
    """

    bits: int = 4
    group_size: int | None = None

    def __post_init__(self):
        if self.bits not in (4, 8):
            raise ValueError(f"weight_bits: expected 4 or 8, got {self.bits}")
        check_group_size(self.group_size)
        if self.bits == 8 and self.group_size is not None:
            raise ValueError(f"group_size: expected None with 8-bit weights, got {self.group_size}")

    @property
    def grid(self) -> Grid:
        """The values of a code."""
        return INT4 if self.bits == 4 else INT8

    def row_scale(self, w: Tensor, headroom: float = 1.0, importance: Tensor | None = None) -> Tensor:
        """fp32 [N] of w [N, K]. headroom: share of the group scales' range that w may use now; importance:
        fp32 [K], how much the error of a column counts (rows of 4 bits).
        """
        if self.group_size:
            return search.group_base_scale(w, self.group_size, headroom)
        if self.bits == 8:
            return search.absmax_row_scale(w, INT8)
        return search.search_row_scale(w, INT4, importance)

    def group_scale(self, w: Tensor, row_scale: Tensor, importance: Tensor | None = None) -> Tensor:
        """uint8 [N]: the scales of one group w [N, group] as stored."""
        return search.search_group_scale(w, row_scale, importance)

    def group_factor(self, group_scale: Tensor) -> Tensor:
        """fp32 [...]: what stored group scales stand for."""
        return group_scale.float()

    def weight(self, values: Tensor, row_scale: Tensor, group_scale: Tensor | None) -> QuantizedWeight:
        """The result, of values [N, K] on the grid."""
        return QuantizedWeight(values.to(torch.int8).contiguous(), row_scale, group_scale, self.group_size)


@dataclass(frozen=True)
class FloatScheme:
    """The weight-only and FP4 layers: a float format, or int4 (-8..7), with fp32 scales per row.

    group_size: None, 32, 64 or 128. scale_format: how the scales of groups are stored, "fp16", or "e8m0":
    powers of two, for groups of 32 of a float format, or "mx": the same with row scales of 1, as OCP's MX
    formats have none; None is `formats.default_scale_format`. All other scales are searched for least error.
    Raises ValueError for other combinations.
    """

    format: str
    group_size: int | None = None
    scale_format: str | None = None

    def __post_init__(self):
        if self.format != "int4" and self.format not in FLOAT_FORMATS:
            want = ", ".join(("int4", *FLOAT_FORMATS))
            raise ValueError(f"weight_format: expected one of {want}, got {self.format!r}")
        check_group_size(self.group_size)
        if self.scale_format is None:
            object.__setattr__(self, "scale_format", default_scale_format(self.format, self.group_size))
        stored = "e8m0" if self.scale_format == "mx" else self.scale_format
        check_scale_format(self.format, self.group_size, stored)

    @property
    def grid(self) -> Grid:
        """The values of a code."""
        return INT4_FULL if self.format == "int4" else FloatGrid(self.format)

    def row_scale(self, w: Tensor, headroom: float = 1.0, importance: Tensor | None = None) -> Tensor:
        """fp32 [N] of w [N, K]. headroom has no use here: these group scales have no end to come near.
        importance: fp32 [K], how much the error of a column counts (without groups).
        """
        if not self.group_size:
            return search.search_row_scale(w, self.grid, importance)
        if self.scale_format == "mx":
            return torch.ones(w.shape[0], dtype=torch.float32, device=w.device)
        choose = search.mantissa_row_scale if self.scale_format == "e8m0" else search.group_row_scale
        return choose(w, self.group_size, self.grid)

    def group_scale(self, w: Tensor, row_scale: Tensor, importance: Tensor | None = None) -> Tensor:
        """uint8 or fp16 [N]: the scales of one group w [N, group] as stored."""
        if self.scale_format != "fp16":
            return (search.search_exponent(w, row_scale, self.grid, importance)[0] + 127).to(torch.uint8)
        return search.search_fp16_scale(w, row_scale, self.grid, importance)

    def group_candidates(self, w: Tensor, row_scale: Tensor) -> Tensor:
        """uint8 or fp16 [C, N]: scales as stored that one group w [N, group] may have."""
        if self.scale_format != "fp16":
            return (search.exponent_candidates(w, row_scale, self.grid) + 127).to(torch.uint8)
        return search.fp16_candidates(w, row_scale, self.grid)

    def group_factor(self, group_scale: Tensor) -> Tensor:
        """fp32 [...]: what stored group scales stand for."""
        return decode_e8m0(group_scale) if group_scale.dtype == torch.uint8 else group_scale.float()

    def weight(self, values: Tensor, row_scale: Tensor, group_scale: Tensor | None) -> FloatWeight:
        """The result, of values [N, K] on the grid."""
        codes = values.to(torch.int8) if self.format == "int4" else encode(values, self.format)
        return FloatWeight(codes.contiguous(), row_scale, group_scale, self.group_size, self.format)


Scheme = IntegerScheme | FloatScheme
