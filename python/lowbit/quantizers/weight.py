"""What the quantisers give: codes and scales, as the layers store them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..formats import decode, decode_e8m0


@dataclass
class QuantizedWeight:
    """weight[n, k] = scale[n] * group_scale[n, k // group_size] * codes[n, k], all but scale integers."""

    codes: Tensor  # int8 [N, K], -7..7 or -127..127
    scale: Tensor  # fp32 [N], > 0
    group_scale: Tensor | None  # uint8 [N, G], 1..16
    group_size: int | None

    def values(self) -> Tensor:
        """fp32 [N, K]: what the codes stand for, without any scale."""
        return self.codes.float()

    def group_factors(self) -> Tensor:
        """fp32 [N, G]: what the group scales stand for."""
        return self.group_scale.float()

    def dequantize(self) -> Tensor:
        """fp32 [N, K]; each weight rounded once, as in the epilogue of the kernels."""
        w = self.values()
        if self.group_scale is not None:
            w = w * self.group_factors().repeat_interleave(self.group_size, 1)[:, : w.shape[1]]
        return w * self.scale.unsqueeze(1)

    def rows(self, rows: slice) -> "QuantizedWeight":
        """The weight of some output channels."""
        group_scale = None if self.group_scale is None else self.group_scale[rows]
        return replace(self, codes=self.codes[rows], scale=self.scale[rows], group_scale=group_scale)


@dataclass
class FloatWeight(QuantizedWeight):
    """weight[n, k] = scale[n] * group_scale[n, k // group_size] * value(codes[n, k]).

    codes: uint8 [N, K], the bits of `format`; int8 [N, K], -8..7, where that is "int4". group_scale: uint8
    [N, G], E8M0 codes, or fp16 [N, G].
    """

    format: str  # of lowbit.formats.FLOAT_FORMATS, or "int4"

    def values(self) -> Tensor:
        """fp32 [N, K]: what the codes stand for, without any scale."""
        return self.codes.float() if self.format == "int4" else decode(self.codes, self.format)

    def group_factors(self) -> Tensor:
        """fp32 [N, G]: what the group scales stand for."""
        s = self.group_scale
        return decode_e8m0(s) if s.dtype == torch.uint8 else s.float()

    @property
    def scale_format(self) -> str | None:
        """ "e8m0" or "fp16"; None without groups."""
        if self.group_scale is None:
            return None
        return "e8m0" if self.group_scale.dtype == torch.uint8 else "fp16"
