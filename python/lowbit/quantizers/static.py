"""Static quantisation of inputs, channel by channel (MergeQuant, arXiv 2503.07654): steps, copies, folding.

A channel y_k with step s_k becomes the code rint(y_k / s_k - shift_k); the step goes into the weight's
column, W'_k = s_k W_k, before the weight is quantised, so that the product of codes needs no scale per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .search import TINY

CODES = {4: (-8, 7), 8: (-127, 127)}
_RANGES = (1.0, 0.9, 0.8, 0.72, 0.64, 0.56, 0.49, 0.42, 0.36, 0.3, 0.24)
_SIDES = (0.85, 0.92, 1.08, 1.18)  # factors tried on one end of the range, then on the other


@dataclass
class StaticInput:
    """codes = rint((y / step)[index] - shift) for y [..., K]; all fp64, so that folding is exact."""

    step: Tensor  # fp64 [K], > 0
    bits: int
    shift: Tensor | None = None  # fp64 [K'], in integer units
    index: Tensor | None = None  # int64 [K'], values in 0..K-1

    def exact(self, y: Tensor) -> Tensor:
        """What is rounded, [..., K'], in y's dtype."""
        v = y * self.step.reciprocal().to(y.dtype)
        v = v if self.index is None else v[..., self.index]
        return v if self.shift is None else v - self.shift.to(y.dtype)

    def codes(self, y: Tensor) -> Tensor:
        """The codes [..., K'], as numbers of y's dtype."""
        return self.exact(y).clamp_(*CODES[self.bits]).round_()

    def copies(self) -> Tensor:
        """int64 [K]: how many codes carry a channel."""
        ones = torch.ones_like(self.step, dtype=torch.int64)
        return ones if self.index is None else torch.bincount(self.index, minlength=self.step.numel())

    def fold(self, w: Tensor) -> Tensor:
        """W' fp64 [N, K']: the columns of w [N, K] in integer units, divided among their copies."""
        w = w.double() * self.step
        return w if self.index is None else (w / self.copies().clamp_min(1))[:, self.index]

    def bias(self, w: Tensor) -> Tensor:
        """fp64 [N]: W' shift, which the shift takes away from the product."""
        return self.fold(w) @ self.shift


def search_steps(
    y: Tensor, bits: int, centred: bool, fineness: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(step, centre, mean squared error), fp32 [K], of least error over the rows of y, fp32 [T, K].

    centred: the range may lie anywhere (a shift puts it on the codes), else around zero. fineness: int [K],
    into how many parts the copies of a channel divide its step; without it, one.
    """
    low, high = CODES[bits]
    parts = torch.ones_like(y[0]) if fineness is None else fineness.to(y)
    mean = y.mean(0) if centred else torch.zeros_like(y[0])
    down, up = (mean - y.amin(0)).clamp_min_(0), (y.amax(0) - mean).clamp_min_(0)
    if not centred:
        down = up = torch.maximum(down, up)
    span = (high - low) if centred else 2 * high
    best = [torch.ones_like(mean), torch.zeros_like(mean), torch.full_like(mean, torch.inf)]
    ends = [down.clone(), up.clone()]
    work = torch.empty_like(y)

    def attempt(d: Tensor, u: Tensor) -> None:
        step = ((d + u) / span).clamp_min_(TINY)
        centre = mean + (u - d) / 2
        # from the middle of the range, in steps; the codes' own middle is half a step below zero
        torch.sub(y, centre, out=work).div_(step)
        if centred and bits == 4:
            work.sub_(0.5).mul_(parts).round_().div_(parts).clamp_(low, high).add_(0.5)
        else:
            work.mul_(parts).round_().div_(parts).clamp_(low, high)
        error = work.mul_(step).add_(centre).sub_(y).square_().mean(0)
        better = error < best[2]
        for old, new in zip([*best, *ends], (step, centre, error, d, u), strict=True):
            old.copy_(torch.where(better, new, old))

    for share in _RANGES:
        attempt(down * share, up * share)
    if centred:
        for side in (0, 1, 0):
            for factor in _SIDES:
                trial = [e * (factor if i == side else 1.0) for i, e in enumerate(ends)]
                attempt(*trial)
    flat = (down + up) <= TINY
    best[0] = torch.where(flat, torch.ones_like(best[0]), best[0])
    return best[0], best[1], best[2]


def split_channels(size: Tensor, threshold: float, growth: float, prune: bool) -> Tensor:
    """int64 [K]: how many codes each channel gets, at least one, or none where pruned.

    size: fp32 [K], the channels' step times the norm of their weight column. A channel larger than
    threshold * median gets ceil(size / (threshold * median)) codes; the threshold rises until there are at
    most (1 + growth) K codes. prune: the smallest channels get none, so that K codes remain.
    """
    k = size.numel()
    limit = threshold * size.median().clamp_min(TINY)
    for _ in range(200):
        copies = (size / limit).ceil().clamp_(1).long()
        if int(copies.sum()) <= k * (1 + growth):
            break
        limit = limit * 1.03
    if prune and (surplus := int(copies.sum()) - k) > 0:
        lone = torch.where(copies == 1, size, torch.full_like(size, torch.inf)).argsort()
        copies[lone[:surplus]] = 0
    return copies


def gather_index(copies: Tensor) -> Tensor:
    """int64 [K']: channel k copies[k] times, in order."""
    return torch.repeat_interleave(torch.arange(copies.numel(), device=copies.device), copies)


def dither(copies: Tensor) -> Tensor:
    """fp64 [K']: offsets in (-1/2, 1/2) that make the m copies of a channel round at m different places.

    Without them the copies are one code m times over; with them their sum resolves the m-th part of a step.
    """
    index = gather_index(copies)
    first = copies.cumsum(0) - copies
    place = torch.arange(index.numel(), device=copies.device) - first[index]
    m = copies[index].double()
    return (place - (m - 1) / 2) / m


def refit(w: Tensor, exact: Tensor, codes: Tensor, damp: float) -> Tensor:
    """fp32 [N, K]: the weight whose product with the rounded inputs is nearest to w's with the exact ones.

    exact = E[v q^T], codes = E[q q^T], fp32 [K, K]; pulled towards w by damp times the mean diagonal.
    """
    eye = torch.eye(codes.shape[0], dtype=torch.float64, device=codes.device)
    ridge = damp * codes.diagonal().double().mean() * eye
    target = w.double() @ (exact.double() + ridge)
    return torch.linalg.solve(codes.double() + ridge, target.T).T.float()


def low_rank(error: Tensor, h: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(up [N, r], down [r, K]) whose product is nearest to error [N, K] in the metric of h [K, K]."""
    values, vectors = torch.linalg.eigh(h.double())
    values = values.clamp_min(values.max() * 1e-9)
    root = vectors * values.sqrt()  # h = root root^T
    u, s, v = torch.linalg.svd(error.double() @ root, full_matrices=False)
    down = torch.linalg.solve(root.T, v[:rank].T).T
    size = s[:rank].sqrt()
    return (u[:, :rank] * size).float(), (size.unsqueeze(1) * down).float()


def output_error(e: Tensor, y: Tensor, w: Tensor) -> tuple[float, float]:
    """(mean over tokens of |e W^T|^2 / |y W^T|^2, the same of the sums), e and y [T, K], w [N, K]."""
    noise, signal = (e @ w.T).square().sum(1), (y @ w.T).square().sum(1).clamp_min_(TINY)
    return float((noise / signal).mean()), float(noise.sum() / signal.sum())
