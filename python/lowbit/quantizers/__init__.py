"""Weight quantisers: round to nearest with a search of the scales, and GPTQ, on integer and float grids."""

from .gptq import Hessian, gptq
from .output_search import rtn_by_output
from .rtn import activation_clip_search, rtn
from .scheme import FloatScheme, IntegerScheme, Scheme
from .search import search_group_scale, search_row_scale
from .weight import FloatWeight, QuantizedWeight

__all__ = [
    "FloatScheme", "FloatWeight", "Hessian", "IntegerScheme", "QuantizedWeight", "Scheme",
    "activation_clip_search", "gptq", "rtn", "rtn_by_output", "search_group_scale", "search_row_scale",
]  # fmt: skip
