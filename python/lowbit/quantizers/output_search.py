"""Scales of groups by the error of the layer's output: LLM-FP4's criterion, in groups.

LLM-FP4 (Liu et al., arXiv 2310.16836) takes the scale of an output channel that moves the layer's output
least on calibration tokens. With groups a channel has K / group of them, and their errors add up: the
output's squared error is e H e^T over the whole row, e = Q(w) - w, in which errors of groups may cancel.
"""

import torch
from torch import Tensor

from .rtn import check_hessian, check_weight, rounded, rtn
from .scheme import FloatScheme
from .weight import FloatWeight

_SWEEPS = 3  # over the groups; a fourth gains 0.04 dB (e2m1, SmolLM2's weights)
_CHUNK = 1 << 18  # elements rounded at a time


def rtn_by_output(w: Tensor, h: Tensor, scheme: FloatScheme) -> FloatWeight:
    """Round a weight to nearest under the scales of groups that move the layer's output least.

    w: float [N, K]; h: fp32 [K, K], the Hessian of its inputs (any multiple of their Gram matrix); scheme:
    one with groups. Starts from `rtn`, goes over the groups in the order of falling input energy, and gives
    each the candidate of least e H e^T while the others stay: coordinate descent, so that no row ends worse
    than it began. h chooses the scales alone: every code is that of the nearest value. Raises ValueError for
    a scheme without groups, and where `rtn` or `gptq` would.
    """
    if scheme.group_size is None:
        raise ValueError("group_size: expected 32, 64 or 128 for a search by the output, got None")
    check_weight(w)
    check_hessian(h, w)
    w, start, group = w.float(), rtn(w, scheme), scheme.group_size
    energy = torch.stack([part.sum() for part in h.diagonal().split(group)])
    order = energy.argsort(descending=True, stable=True).tolist()
    error, found = start.dequantize().sub_(w), start.group_scale.clone()
    candidates = len(scheme.group_candidates(w[:1, :group], start.scale[:1]))
    rows = max(1, _CHUNK // (group * candidates))
    for i in range(0, w.shape[0], rows):
        part = slice(i, i + rows)
        for _ in range(_SWEEPS):
            for g in order:
                _improve(w[part], error[part], h, scheme, start.scale[part], found[part], g)
    return rounded(w, scheme, start.scale, found)


def _improve(
    w: Tensor, error: Tensor, h: Tensor, scheme: FloatScheme, scale: Tensor, group_scale: Tensor, g: int
) -> None:
    """The best scale of group g, all others fixed: error [R, K] and group_scale [R, G] change in place."""
    columns = slice(g * scheme.group_size, (g + 1) * scheme.group_size)
    x, old, own = w[:, columns], error[:, columns], h[columns, columns]
    others = torch.mm(error, h[:, columns]).sub_(old @ own).mul_(2.0)  # [R, group]: e own e^T + others e^T
    tried = torch.cat((group_scale[None, :, g], scheme.group_candidates(x, scale)))  # [C, R]; ties: as it is
    steps = (scale * scheme.group_factor(tried)).unsqueeze(-1)
    e = scheme.grid.round_(x * (1.0 / steps)).mul_(steps).sub_(x)  # [C, R, group]
    best = torch.matmul(e, own).add_(others).mul_(e).sum(-1).argmin(0)
    index = torch.arange(len(w), device=w.device)
    error[:, columns] = e[best, index]
    group_scale[:, g] = tried[best, index]
