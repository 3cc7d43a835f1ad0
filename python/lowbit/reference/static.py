"""Static per-channel quantisation (MergeQuant, arXiv 2503.07654): no statistics of the input at run time."""

import torch
from torch import Tensor

from .layout import pack_int4
from .transform import hadamard

LOWEST = {4: -8, 8: -127}
HIGHEST = {4: 7, 8: 127}


def quantize_static(
    x: Tensor,
    bits: int,
    inverse_step: Tensor | None = None,
    shift: Tensor | None = None,
    index: Tensor | None = None,
    hadamard_block: int | None = None,
) -> Tensor:
    """x [..., K] -> codes rint(clamp(T(x)[index] * inverse_step - shift)), each step where it is given.

    bits 4: packed uint8 [..., ceil(K'/2)], values -8..7; bits 8: int8 [..., K'], values -127..127. index:
    int32 [K'], K' = K without it; inverse_step, shift: fp32 [K']. hadamard_block: None = no transform, 0 =
    over all of K, b = block-diagonal.
    """
    v = x.float()
    if hadamard_block is not None:
        v = hadamard(v, (hadamard_block or x.shape[-1]) ** -0.5, hadamard_block or None)
    if index is not None:
        v = v[..., index.long()]
    if inverse_step is not None:
        v = v * inverse_step
    if shift is not None:
        v = v - shift
    codes = v.clamp(LOWEST[bits], HIGHEST[bits]).round().to(torch.int8)
    return pack_int4(codes) if bits == 4 else codes
