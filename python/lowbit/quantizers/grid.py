"""Grids: the values that a code can take, in units of its scale, and how to round to them quickly."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import find_format

_ROUND = 1.5 * 2.0**23
_EXPONENT = 0x7F800000


@dataclass(frozen=True)
class IntegerGrid:
    """low, low + 1, ..., max."""

    low: int
    max: int
    # shares of absmax / max tried as the scale: on every row these, then the best plus and minus the fine
    coarse = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.52)
    fine = (0.04, 0.02)
    widest = 1.0
    norm = 2.4  # of the error that the search minimises, as in GPTQ's code
    dtype = torch.int8

    def round_(self, x: Tensor) -> Tensor:
        """Clamp fp32 x and round to nearest even, in place.

        Adding and subtracting 1.5 * 2^23 is exact rounding below 2^22; `torch.round` goes through a threaded
        vector library whose barriers cost more than the work on the small tensors of these loops.
        """
        return x.clamp_(self.low, self.max).add_(_ROUND).sub_(_ROUND)


@dataclass(frozen=True)
class FloatGrid:
    """The values of a float format.

    Its steps are relative to the value, so a scale above absmax / max wastes no more than the topmost values
    and may place the others better (as adaptive block scaling, "four over six", does): two octaves are tried.
    """

    format: str
    coarse = (1.0, 1.9, 1.75, 1.6, 1.45, 1.3, 1.15, 0.9, 0.8, 0.7, 0.6, 0.52)
    fine = (0.05, 0.025)
    widest = 2.0
    norm = 2.0  # 2.4 gives the same within 0.1 dB, at three times the time
    dtype = torch.float32

    @property
    def max(self) -> float:
        """The largest value."""
        return find_format(self.format).max

    def round_(self, x: Tensor) -> Tensor:
        """`formats.round_to`, in place (a negative zero may lose its sign).

        As for integers, with the constant scaled to the last place of x: 1.5 * 2^23 units of that.
        """
        f = find_format(self.format)
        x.clamp_(-f.max, f.max)
        binade = (x.view(torch.int32) & _EXPONENT).view(torch.float32).clamp_min_(2.0 ** (1 - f.bias))
        binade.mul_(_ROUND * 2.0**-f.mantissa_bits)
        return x.add_(binade).sub_(binade)


Grid = IntegerGrid | FloatGrid
INT4, INT4_FULL, INT8 = IntegerGrid(-7, 7), IntegerGrid(-8, 7), IntegerGrid(-127, 127)
