"""Weight quantisers: round to nearest with a clip search, and GPTQ. Both give integer codes and scales."""

from .gptq import Hessian, gptq
from .rtn import QuantizedWeight, activation_clip_search, rtn, search_group_scale, search_row_scale

__all__ = [
    "Hessian", "QuantizedWeight", "activation_clip_search", "gptq", "rtn", "search_group_scale",
    "search_row_scale",
]
