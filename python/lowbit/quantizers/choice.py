"""The weights of linears that share an input, quantised as a recipe says; where it leaves the format open, by
the best.
"""

import torch
from torch import Tensor

from ..recipes import Recipe
from .gptq import gptq
from .output_search import rtn_by_output
from .rtn import rtn
from .scheme import FloatScheme, IntegerScheme, Scheme
from .weight import QuantizedWeight


def schemes(recipe: Recipe) -> tuple[Scheme, ...]:
    """What a layer of this recipe may be stored as."""
    if recipe.weight_formats:
        sizes = (recipe.group_size, recipe.scale_format)
        return tuple(FloatScheme(f, *sizes) for f in recipe.weight_formats)
    if recipe.activation_bits == 16:
        return (FloatScheme("int4", recipe.group_size, recipe.scale_format),)
    return (IntegerScheme(recipe.weight_bits, recipe.group_size),)


def choose(w: Tensor, candidates: tuple[Scheme, ...], h: Tensor | None = None) -> Scheme:
    """The scheme whose rounding of w [N, K] to nearest moves the layer's output least.

    h: fp32 [K, K], the Hessian of its inputs; without it all inputs count alike.
    """
    if len(candidates) == 1:
        return candidates[0]

    def error(scheme: Scheme) -> float:
        e = rtn(w, scheme).dequantize().sub_(w)
        return float((e if h is None else e @ h).mul_(e).sum(dtype=torch.float64))

    return min(candidates, key=error)


def quantize_weights(
    weights: list[Tensor], recipe: Recipe, h: Tensor | None = None
) -> list[QuantizedWeight]:
    """The weights [N_i, K] of linears with one input. h: fp32 [K, K], its Hessian, which GPTQ and LLM-FP4
    need; of it the diagonal weighs the errors of "rtn-weighted".
    """
    candidates = schemes(recipe)
    chosen = [choose(w.float(), candidates, h) for w in weights]
    found: list[QuantizedWeight | None] = [None] * len(weights)
    for scheme in dict.fromkeys(chosen):  # one format at a time: GPTQ is as fast on many rows as on few
        members = [i for i, s in enumerate(chosen) if s == scheme]
        w = torch.cat([weights[i].float() for i in members])
        if recipe.weight_method == "gptq":
            q = gptq(w, h, scheme, recipe.damp)
        elif recipe.weight_method == "llm-fp4":
            q = rtn_by_output(w, h, scheme)
        else:
            q = rtn(w, scheme, None if h is None else h.diagonal())
        row = 0
        for i in members:
            rows = slice(row, row + weights[i].shape[0])
            found[i], row = q.rows(rows), rows.stop
    return found
