"""Round-to-nearest weights with an MSE clip search (as GPTQ, arXiv 2210.17323, and QuaRot use it)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..formats import MAX_GROUP_SCALE, check_group_size, group_count

QMAX4, QMAX8 = 7, 127
ERROR_NORM = 2.4
_COARSE = (1.0, 0.92, 0.84, 0.76, 0.68, 0.6, 0.52)  # clip ratios tried on every row
_FINE = (0.04, 0.02)  # then the best one plus and minus these
_CHUNK = 1 << 14  # elements searched at a time: they stay in cache, and torch does not wake its threads
_GROUP_RATIOS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52)
_TINY = 1e-30
_ROUND = 1.5 * 2.0**23


@dataclass
class QuantizedWeight:
    """weight[n, k] = scale[n] * group_scale[n, k // group_size] * codes[n, k]."""

    codes: Tensor  # int8 [N, K], -7..7 or -127..127
    scale: Tensor  # fp32 [N], > 0
    group_scale: Tensor | None  # uint8 [N, G], 1..16
    group_size: int | None

    def dequantize(self) -> Tensor:
        """fp32 [N, K]; each weight rounded once, as in the epilogue of the kernels."""
        w = self.codes.float()
        if self.group_scale is not None:
            w = w * self.group_scale.float().repeat_interleave(self.group_size, 1)[:, : w.shape[1]]
        return w * self.scale.unsqueeze(1)


def round_(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp fp32 x to low..high and round to nearest even, in place.

    Adding and subtracting 1.5 * 2^23 is exact rounding below 2^22; `torch.round` goes through a threaded
    vector library whose barriers cost more than the work on the small tensors of these loops.
    """
    return x.clamp_(low, high).add_(_ROUND).sub_(_ROUND)


def activation_codes_(x: Tensor, qmax: int) -> Tensor:
    """Fp32 x / scale to the codes of the layers' per-token quantiser, in place: -8..7, or -127..127."""
    return round_(x, -8 if qmax == QMAX4 else -qmax, qmax)


def _error(w: Tensor, scale: Tensor, qmax: int) -> Tensor:
    """Sum over the last dimension of |w - Q(w)|^2.4 for scales [..., 1]."""
    d = round_(w * (1.0 / scale), -qmax, qmax).mul_(scale).sub_(w).abs_()
    return d.pow_(ERROR_NORM).sum(-1)


def search_row_scale(w: Tensor, qmax: int = QMAX4) -> Tensor:
    """fp32 [R, C] -> [R]: per row the scale shrink * absmax / qmax of least error, shrink in 0.46 ... 1.

    The error is sum |w - Q(w)|^2.4; the shrink is found to 0.02, coarse then fine. A zero row gets scale 1.
    """
    out = torch.empty(w.shape[0], dtype=torch.float32, device=w.device)
    rows = max(1, _CHUNK // max(1, w.shape[1]))
    for i in range(0, w.shape[0], rows):
        part = w[i : i + rows].float()
        base = part.abs().amax(1, keepdim=True) / qmax
        base = torch.where(base > _TINY, base, torch.ones_like(base))
        best = torch.ones_like(base)
        best_error = torch.full_like(base, torch.inf)

        def attempt(shrink: Tensor | float, part=part, base=base, best=best, best_error=best_error) -> None:
            error = _error(part, base * shrink, qmax).unsqueeze(1)
            better = error < best_error
            best_error.copy_(torch.where(better, error, best_error))
            best.copy_(torch.where(better, shrink, best))

        for shrink in _COARSE:
            attempt(shrink)
        for step in _FINE:
            centre = best.clone()
            attempt((centre + step).clamp_max_(1.0))
            attempt(centre - step)
        out[i : i + rows] = (base * best)[:, 0]
    return out


def search_group_scale(w: Tensor, scale: Tensor) -> Tensor:
    """fp32 [N, group], row scales [N] -> uint8 [N]: the s in 1..16 of least error for s * scale * q."""
    best = torch.ones(w.shape[0], dtype=torch.uint8, device=w.device)
    rows = max(1, _CHUNK // max(1, w.shape[1]))
    for i in range(0, w.shape[0], rows):
        part, row = w[i : i + rows], scale[i : i + rows]
        # a group whose absmax is 7 s * scale wants s or somewhat less; the ratios span what a row search does
        top = (part.abs().amax(1) / (QMAX4 * row)).ceil_().clamp_(1, MAX_GROUP_SCALE)
        tried = torch.stack([round_(top * r, 1, MAX_GROUP_SCALE) for r in _GROUP_RATIOS])
        errors = torch.stack([_error(part, (s * row).unsqueeze(1), QMAX4) for s in tried])
        best[i : i + rows] = tried.gather(0, errors.argmin(0, keepdim=True))[0].to(torch.uint8)
    return best


def group_base_scale(w: Tensor, group_size: int, headroom: float = 1.0) -> Tensor:
    """Row scales [N] such that the best scale of a row's widest group is `headroom` * 16 steps or less."""
    n, k = w.shape
    groups = group_count(k, group_size)
    padded = torch.nn.functional.pad(w.float(), (0, groups * group_size - k)).view(n, groups, group_size)
    absmax = padded.abs().amax(-1)  # [N, G]
    zero = absmax.amax(1) <= _TINY
    best = search_row_scale(padded.reshape(n * groups, group_size)).view(n, groups)
    best = torch.where(absmax > _TINY, best, torch.zeros_like(best)).amax(1)
    return torch.where(zero, torch.ones_like(best), best / (MAX_GROUP_SCALE * headroom))


def rtn(w: Tensor, bits: int = 4, group_size: int | None = None) -> QuantizedWeight:
    """Round a weight to nearest.

    w: float [N, K]. bits 4: clip search per row, or per group with two-level integer scales (weight =
    scale[n] * s[n, g] * q, s in 1..16, after QServe, arXiv 2405.04532, without the zero point).
    bits 8: absmax / 127. Raises ValueError for other bits or groups, and where w holds NaN or inf.
    """
    check_weight(w, bits, group_size)
    w = w.float()
    if bits == 8:
        scale = w.abs().amax(1) / QMAX8 if w.shape[1] else w.new_ones(w.shape[0])
        scale = torch.where(scale > _TINY, scale, torch.ones_like(scale))
        return QuantizedWeight(_round(w, scale.unsqueeze(1), QMAX8), scale, None, None)
    if group_size is None:
        scale = search_row_scale(w) if w.shape[1] else w.new_ones(w.shape[0])
        return QuantizedWeight(_round(w, scale.unsqueeze(1), QMAX4), scale, None, None)
    scale = group_base_scale(w, group_size)
    parts = [search_group_scale(g, scale) for g in w.split(group_size, 1)]
    group_scale = torch.stack(parts, 1)
    steps = group_scale.float().repeat_interleave(group_size, 1)[:, : w.shape[1]] * scale.unsqueeze(1)
    return QuantizedWeight(_round(w, steps, QMAX4), scale, group_scale, group_size)


def check_weight(w: Tensor, bits: int, group_size: int | None) -> None:
    """The refusals shared by the quantisers."""
    if bits not in (4, 8):
        raise ValueError(f"weight_bits: expected 4 or 8, got {bits}")
    check_group_size(group_size)
    if bits == 8 and group_size is not None:
        raise ValueError(f"group_size: expected None with 8-bit weights, got {group_size}")
    if w.dim() != 2:
        raise ValueError(f"weight: expected [out_features, in_features], got {w.dim()} dimensions")
    if not bool(torch.isfinite(w).all()):
        raise ValueError("weight: expected finite values, got NaN or inf")


def _round(w: Tensor, scale: Tensor, qmax: int) -> Tensor:
    return round_(w * (1.0 / scale), -qmax, qmax).to(torch.int8)


def activation_clip_search(x: Tensor, w: Tensor, grid: tuple[float, ...], qmax: int = QMAX4) -> float:
    """The clip ratio of `grid` whose per-token quantisation of x moves x @ w.T least.

    x: float [T, K] (as the quantiser sees it: shifted and transformed), w: float [N, K]. Each token's error
    is taken relative to its own output norm, so that a token of massive activations does not decide alone.
    """
    n, k = w.shape
    metric = w.T @ w if k < n else w.T  # |e W^T|^2 = e (W^T W) e^T, whichever product is smaller
    norm = (x @ w.T).square().sum(1).clamp_min_(_TINY)
    amax = x.abs().amax(1, keepdim=True).clamp_min_(_TINY)
    best, best_loss = grid[0], float("inf")
    e, p = torch.empty_like(x), x.new_empty(x.shape[0], metric.shape[1])
    for clip in grid:
        scale = amax * clip / qmax
        activation_codes_(torch.div(x, scale, out=e), qmax).mul_(scale).sub_(x)
        torch.mm(e, metric, out=p)
        loss = float(p.mul_(e if k < n else p).sum(1).div_(norm).mean())
        if loss < best_loss:
            best, best_loss = clip, loss
    return best
