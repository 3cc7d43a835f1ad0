"""Round-to-nearest weights, and the clip search of per-token integer activations."""

import torch
from torch import Tensor

from .grid import INT4_FULL, Grid
from .scheme import IntegerScheme, Scheme
from .search import TINY
from .weight import QuantizedWeight


def rtn(w: Tensor, scheme: Scheme | None = None, importance: Tensor | None = None) -> QuantizedWeight:
    """Round a weight to nearest.

    w: float [N, K]. scheme: an `IntegerScheme` (4 bits without it) or a `FloatScheme`. Scales by a search for
    the least error, as GPTQ (arXiv 2210.17323) and QuaRot search the clip; int8 by absmax. importance: fp32
    [K], how much the error of a column counts (not in int8); with the mean squares of the layer's inputs the
    scales minimise the error of its output, LLM-FP4's objective (arXiv 2310.16836, section 3.2), as far as
    the inputs are uncorrelated. Raises ValueError where w is not [N, K] or holds NaN or inf.
    """
    scheme = scheme or IntegerScheme()
    check_weight(w)
    w = w.float()
    scale, group_scale = scheme.row_scale(w, importance=importance), None
    if group := scheme.group_size:
        counts = [None] * -(-w.shape[1] // group) if importance is None else importance.split(group)
        parts = zip(w.split(group, 1), counts, strict=True)
        group_scale = torch.stack([scheme.group_scale(part, scale, c) for part, c in parts], 1)
    return rounded(w, scheme, scale, group_scale)


def rounded(w: Tensor, scheme: Scheme, scale: Tensor, group_scale: Tensor | None) -> QuantizedWeight:
    """w fp32 [N, K] to the nearest under row scales [N] and stored group scales [N, G]."""
    steps = scale.unsqueeze(1)
    if group_scale is not None:
        factor = scheme.group_factor(group_scale)
        steps = steps * factor.repeat_interleave(scheme.group_size, 1)[:, : w.shape[1]]
    return scheme.weight(scheme.grid.round_(w * (1.0 / steps)), scale, group_scale)


def check_weight(w: Tensor) -> None:
    """The refusals shared by the quantisers."""
    if w.dim() != 2:
        raise ValueError(f"weight: expected [out_features, in_features], got {w.dim()} dimensions")
    if not bool(torch.isfinite(w).all()):
        raise ValueError("weight: expected finite values, got NaN or inf")


def check_hessian(h: Tensor, w: Tensor) -> None:
    """h has a row and a column per input of w."""
    if h.shape != (w.shape[1], w.shape[1]):
        raise ValueError(f"h: expected [{w.shape[1]}, {w.shape[1]}], got {list(h.shape)}")


def activation_clip_search(
    x: Tensor, w: Tensor, clips: tuple[float, ...], grid: Grid = INT4_FULL
) -> float:
    """The one of `clips` whose per-token quantisation of x moves x @ w.T least.

    x: float [T, K] (as the quantiser sees it: shifted and transformed), w: float [N, K]; grid: the values of
    the codes. Each token's error is taken relative to its own output norm, so that a token of massive
    activations does not decide alone.
    """
    n, k = w.shape
    metric = w.T @ w if k < n else w.T  # |e W^T|^2 = e (W^T W) e^T, whichever product is smaller
    norm = (x @ w.T).square().sum(1).clamp_min_(TINY)
    amax = x.abs().amax(1, keepdim=True).clamp_min_(TINY)
    best, best_loss = clips[0], float("inf")
    e, p = torch.empty_like(x), x.new_empty(x.shape[0], metric.shape[1])
    for clip in clips:
        scale = amax * clip / grid.max
        grid.round_(torch.div(x, scale, out=e)).mul_(scale).sub_(x)
        torch.mm(e, metric, out=p)
        loss = float(p.mul_(e if k < n else p).sum(1).div_(norm).mean())
        if loss < best_loss:
            best, best_loss = clip, loss
    return best
