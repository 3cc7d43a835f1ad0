"""Scales of least rounding error: per row, and per group in the three ways that groups are stored.

Where a function takes `importance`, fp32 [C], the error of column c counts that many times.
"""

import math

import torch
from torch import Tensor

from ..formats import MAX_GROUP_SCALE, group_count
from .grid import INT4, Grid, IntegerGrid

TINY = 1e-30
_CHUNK = 1 << 14  # elements searched at a time: they stay in cache, and torch does not wake its threads
_GROUP_RATIOS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52)
_STEPS = IntegerGrid(1, MAX_GROUP_SCALE)
_EXPONENTS = (0, -1, 1)  # tried around the smallest power of two that clips nothing
_MANTISSAS = 8  # row scales tried per octave, under power-of-two group scales
_CANDIDATES = 32  # fp16 scales of a group that a search by the output compares, evenly on a log scale
_SMALLEST_SHARE = 0.5  # of absmax / max, among them


def rounding_error(w: Tensor, scale: Tensor, grid: Grid, importance: Tensor | None = None) -> Tensor:
    """Sum over the last dimension of |w - Q(w)|^norm for scales [..., 1]."""
    d = grid.round_(w * (1.0 / scale)).mul_(scale).sub_(w)
    d = d.mul_(d) if grid.norm == 2.0 else d.abs_().pow_(grid.norm)
    return d.sum(-1) if importance is None else d @ importance


def search_row_scale(w: Tensor, grid: Grid = INT4, importance: Tensor | None = None) -> Tensor:
    """fp32 [R, C] -> [R]: per row the scale share * absmax / max of least error, share in what `grid` tries.

    The share is searched coarse, then fine. A zero row gets scale 1.
    """
    out = torch.ones(w.shape[0], dtype=torch.float32, device=w.device)
    if not w.shape[1]:
        return out
    rows = max(1, _CHUNK // w.shape[1])
    for i in range(0, w.shape[0], rows):
        part = w[i : i + rows].float()
        base = part.abs().amax(1, keepdim=True) / grid.max
        base = torch.where(base > TINY, base, torch.ones_like(base))
        best = torch.ones_like(base)
        best_error = torch.full_like(base, torch.inf)

        def attempt(share: Tensor | float, part=part, base=base, best=best, best_error=best_error) -> None:
            error = rounding_error(part, base * share, grid, importance).unsqueeze(1)
            better = error < best_error
            best_error.copy_(torch.where(better, error, best_error))
            best.copy_(torch.where(better, share, best))

        for share in grid.coarse:
            attempt(share)
        for step in grid.fine:
            centre = best.clone()
            attempt((centre + step).clamp_max_(grid.widest))
            attempt(centre - step)
        out[i : i + rows] = (base * best)[:, 0]
    return out


def absmax_row_scale(w: Tensor, grid: Grid) -> Tensor:
    """fp32 [R, C] -> [R]: absmax / max; a zero row gets scale 1."""
    scale = w.float().abs().amax(1) / grid.max if w.shape[1] else w.new_ones(w.shape[0])
    return torch.where(scale > TINY, scale, torch.ones_like(scale))


def split_groups(w: Tensor, group_size: int) -> Tensor:
    """[N, K] -> fp32 [N, G, group_size], the last group filled up with zeros."""
    groups = group_count(w.shape[1], group_size)
    padded = torch.nn.functional.pad(w.float(), (0, groups * group_size - w.shape[1]))
    return padded.view(w.shape[0], groups, group_size)


# ---- integer group scales


def search_group_scale(w: Tensor, scale: Tensor, importance: Tensor | None = None) -> Tensor:
    """fp32 [N, group], row scales [N] -> uint8 [N]: the s in 1..16 of least error for s * scale * q, int4."""
    best = torch.ones(w.shape[0], dtype=torch.uint8, device=w.device)
    rows = max(1, _CHUNK // max(1, w.shape[1]))
    for i in range(0, w.shape[0], rows):
        part, row = w[i : i + rows], scale[i : i + rows]
        # a group whose absmax is 7 s * scale wants s or somewhat less; the ratios span what a row search does
        top = (part.abs().amax(1) / (INT4.max * row)).ceil_().clamp_(1, MAX_GROUP_SCALE)
        tried = torch.stack([_STEPS.round_(top * r) for r in _GROUP_RATIOS])
        steps = [(s * row).unsqueeze(1) for s in tried]
        errors = torch.stack([rounding_error(part, s, INT4, importance) for s in steps])
        best[i : i + rows] = tried.gather(0, errors.argmin(0, keepdim=True))[0].to(torch.uint8)
    return best


def group_base_scale(w: Tensor, group_size: int, headroom: float = 1.0) -> Tensor:
    """Row scales [N] such that the best scale of a row's widest group is `headroom` * 16 steps or less."""
    best, zero = _widest_group(w, group_size, INT4)
    return torch.where(zero, torch.ones_like(best), best / (MAX_GROUP_SCALE * headroom))


def _widest_group(w: Tensor, group_size: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """(largest of the groups' best scales, whether the row is zero), both [N]."""
    groups = split_groups(w, group_size)
    n, g, _ = groups.shape
    absmax = groups.abs().amax(-1)  # [N, G]
    zero = absmax.amax(1) <= TINY
    best = search_row_scale(groups.reshape(n * g, group_size), grid).view(n, g)
    return torch.where(absmax > TINY, best, torch.zeros_like(best)).amax(1), zero


# ---- float group scales


def group_row_scale(w: Tensor, group_size: int, grid: Grid) -> Tensor:
    """Row scales [N] for fp16 group scales: that of the row's widest group, whose factor is then about 1."""
    best, zero = _widest_group(w, group_size, grid)
    return torch.where(zero, torch.ones_like(best), best)


def search_fp16_scale(w: Tensor, scale: Tensor, grid: Grid, importance: Tensor | None = None) -> Tensor:
    """fp32 [N, group], row scales [N] -> fp16 [N]: the group scale of least error, at most 2^-11 off it."""
    zero = w.abs().amax(1) <= TINY
    factor = _to_fp16(search_row_scale(w, grid, importance) / scale)
    return torch.where(zero, torch.ones_like(factor), factor)


def fp16_candidates(w: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """fp32 [N, group], row scales [N] -> fp16 [C, N]: group scales from half the absmax scale to `widest`."""
    ends = math.log2(_SMALLEST_SHARE), math.log2(grid.widest)
    shares = torch.logspace(*ends, _CANDIDATES, 2.0, device=w.device)
    return _to_fp16(shares.unsqueeze(1) * (absmax_row_scale(w, grid) / scale))


def _to_fp16(factor: Tensor) -> Tensor:
    return factor.clamp(2.0**-24, torch.finfo(torch.float16).max).half()


def search_exponent(
    w: Tensor, scale: Tensor, grid: Grid, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """fp32 [..., group], scales [...] -> (int32 e, error) [...]: the power of two of least error.

    OCP's rule, floor(log2 absmax) - emax, clips the top of the binade and looks at one number of the group;
    trying three powers costs three roundings and gains 0.1 to 0.3 dB (e2m1, e3m2; SmolLM2's weights).
    """
    tried = exponent_candidates(w, scale, grid)
    best, best_error = tried[0], torch.full_like(scale, torch.inf)
    for e in tried:
        error = rounding_error(w, torch.ldexp(scale, e).unsqueeze(-1), grid, importance)
        best = torch.where(error < best_error, e, best)
        best_error = torch.minimum(error, best_error)
    return best, best_error


def exponent_candidates(w: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """fp32 [..., group], scales [...] -> int32 [3, ...]: powers of two near the least that clips nothing."""
    top = w.abs().amax(-1) / (grid.max * scale)
    first = torch.where(top > TINY, top, torch.ones_like(top)).log2().ceil_().to(torch.int32)
    return torch.stack([(first + step).clamp_(-126, 127) for step in _EXPONENTS])


def mantissa_row_scale(w: Tensor, group_size: int, grid: Grid) -> Tensor:
    """Row scales [N] in [1, 2) for E8M0 group scales: the one under which the row's groups err least.

    A power of two alone is up to an octave off the best scale of a group; the row scale is free, and moves
    all groups of the row together (0.4 dB on SmolLM2's weights).
    """
    out = torch.ones(w.shape[0], dtype=torch.float32, device=w.device)
    rows = max(1, _CHUNK // max(1, w.shape[1]))
    for i in range(0, w.shape[0], rows):
        part = split_groups(w[i : i + rows], group_size)
        best_error = part.new_full((part.shape[0],), torch.inf)
        for j in range(_MANTISSAS):
            scale = part.new_full(part.shape[:2], 2.0 ** (j / _MANTISSAS))
            error = search_exponent(part, scale, grid)[1].sum(1)
            better = error < best_error
            out[i : i + rows] = torch.where(better, 2.0 ** (j / _MANTISSAS), out[i : i + rows])
            best_error = torch.where(better, error, best_error)
    return out
