"""Scales of FP4 weights by the error of the layer's output: LLM-FP4's search of real-valued exponent biases.

The bias b~ of a format with the scale s is bias - log2(s). The error of an output channel is a quadratic form
in the error of its weights, so the tokens enter through their Gram matrix alone.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..formats import encode, find_format
from .gptq import gptq
from .grid import FloatGrid
from .scheme import FloatScheme
from .weight import FloatWeight

LOW, HIGH = 0.01, 1.2  # the paper's range of candidates, times the initial bias
_OCTAVES = 3.0  # of clipping that the candidates reach at least
_STRIDE = 4  # of the first pass over the candidates; those between are tried around the best
_EXACT = 4  # candidates per row that the whole Gram matrix decides between
_RANK = 32  # of the part of the Gram matrix that ranks them, beside its diagonal
_FORMAT_ROWS = 128  # of a linear that choose its format
_CHUNK = 1 << 14  # elements of a weight worked on at a time: in cache, and torch does not wake its threads
_TINY = 1e-30

Metric = tuple[Tensor, Tensor]


def exponent_bias(top: Tensor, format: str) -> Tensor:
    """b~ of the scale that puts `top` at the largest value: 2^e - log2(top) + log2(2 - 2^-m) - 1."""
    f = find_format(format)
    return f.bias - torch.log2(top.clamp_min(_TINY) / f.max)


def scale_of(bias: Tensor, format: str) -> Tensor:
    """fp32: the scale of a real-valued exponent bias."""
    return torch.exp2(find_format(format).bias - bias)


def candidates(initial: Tensor, count: int = 100) -> Tensor:
    """[count, ...]: biases to try for initial ones [...], which put the absmax at the largest value.

    The paper's range is 0.01 * b to 1.2 * b. Of it, what lies an octave or more below b is left out: no
    element's error is smaller there than at the candidate one octave further up. And it is widened to three
    octaves of clipping: near b = 0 (an absmax of 12 in e2m1) it would be a single point.
    """
    top = torch.maximum(initial * LOW, initial * HIGH).maximum(initial + _OCTAVES)
    steps = torch.linspace(0, 1, count, device=initial.device).view(-1, *[1] * initial.dim())
    return (initial - 1) + steps * (top - (initial - 1))


def quantized(w: Tensor, scale: Tensor, format: str) -> Tensor:
    """fp32 [N, K]: w rounded to scale [N] times a value of the format, a fresh tensor."""
    scale = scale.unsqueeze(1)
    return FloatGrid(format).round_(w * (1.0 / scale)).mul_(scale)


def leading(gram: Tensor) -> Metric:
    """gram ~ basis basis^T + diag(rest): basis [K, r], rest [K].

    Inputs have means and a few strong directions, which the diagonal alone does not see.
    """
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(len(gram), min(_RANK, len(gram)), generator=generator).to(gram)
    for _ in range(3):
        y = torch.linalg.qr(gram @ y).Q
    values, vectors = torch.linalg.eigh(y.T @ (gram @ y))
    basis = (y @ vectors) * values.clamp_min(0).sqrt()
    return basis, (gram.diagonal() - basis.square().sum(1)).clamp_min(0)


def search_scale(
    w: Tensor, gram: Tensor, metric: Metric, linear: Tensor | None, format: str, count: int = 100
) -> tuple[Tensor, Tensor]:
    """The scale of every row, fp32 [N], and its loss e gram e^T + 2 e linear^T, fp32 [N], e = Q(w) - w.

    w: fp32 [N, K]; gram: [K, K] of the inputs; metric: `leading(gram)`; linear: [N, K] or None. Candidates
    are ranked by the metric, the best few then compared by all of gram. A row of zeros gets scale 1.
    """
    absmax = w.abs().amax(1)
    scales = scale_of(candidates(exponent_bias(absmax, format), count), format)  # [C, N]
    rank = torch.full_like(scales, torch.inf)
    for part, columns, some, out in _chunks(w, scales.T, linear, rank.T):
        _rank(part, columns.T, metric, some, format, out.T)
    best_scale, best = torch.ones_like(absmax), torch.full_like(absmax, torch.inf)
    e, product = torch.empty_like(w), torch.empty_like(w)
    for c in rank.topk(min(_EXACT, count), 0, largest=False).indices:
        scale = scales.gather(0, c.unsqueeze(0))[0]
        for part, s, _, out in _chunks(w, scale, None, e):
            torch.sub(quantized(part, s, format), part, out=out)
        torch.mm(e, gram, out=product)
        if linear is not None:
            product.add_(linear, alpha=2.0)
        loss = product.mul_(e).sum(1)
        better = loss < best
        best, best_scale = torch.where(better, loss, best), torch.where(better, scale, best_scale)
    return torch.where(absmax > _TINY, best_scale, torch.ones_like(best_scale)), best


def search_format(
    w: Tensor, gram: Tensor, metric: Metric, linear: Tensor | None, formats: tuple[str, ...], count: int = 100
) -> tuple[FloatWeight, float]:
    """The best of the formats with the best scale of every row, and the loss."""
    name = _choose(w, gram, metric, linear, formats, count)
    scale, loss = search_scale(w, gram, metric, linear, name, count)
    codes = encode(w * (1.0 / scale.unsqueeze(1)), name)
    return FloatWeight(codes, scale, None, None, name), float(loss.sum())


def compensated(
    w: Tensor, gram: Tensor, metric: Metric, linear: Tensor | None, formats: tuple[str, ...],
    count: int = 100, damp: float = 0.01,
) -> tuple[FloatWeight, float]:
    """As `search_format`, but by GPTQ, which spreads the error of a column over those to come.

    e gram e^T + 2 e linear^T is least at e = -linear gram^-1: GPTQ rounds towards that weight, which makes up
    for the error of the inputs as far as any weight can.
    """
    name, target = _choose(w, gram, metric, linear, formats, count), w
    if linear is not None:
        damped = gram.double()
        damped.diagonal().add_(damp * damped.diagonal().mean() + _TINY)
        target = w - torch.linalg.solve(damped, linear.double().T).T.float()
    found = gptq(target, gram, FloatScheme(name), damp)
    e = found.dequantize() - w
    product = e @ gram
    if linear is not None:
        product.add_(linear, alpha=2.0)
    return found, float(product.mul_(e).sum())


def _choose(
    w: Tensor, gram: Tensor, metric: Metric, linear: Tensor | None, formats: tuple[str, ...], count: int
) -> str:
    """The format of least loss, by some of the rows."""
    if len(formats) == 1:
        return formats[0]
    rows = slice(None, None, max(1, len(w) // _FORMAT_ROWS))
    some = None if linear is None else linear[rows]
    losses = {f: float(search_scale(w[rows], gram, metric, some, f, count)[1].sum()) for f in formats}
    return min(losses, key=losses.get)


def refine(attempt: Callable[[Tensor], None], rank: Tensor) -> None:
    """Fill rank [C, R] coarse to fine.

    attempt(index [R]) is called for every fourth candidate and the last, then around each column's best.
    """
    count, step = len(rank), _STRIDE
    for c in [*range(0, count - 1, step), count - 1]:
        attempt(torch.full(rank.shape[1:], c, dtype=torch.int64, device=rank.device))
    while step := step // 2:
        best = rank.argmin(0)
        for c in (best - step, best + step):
            attempt(c.clamp_(0, count - 1))


def _rank(
    w: Tensor, scales: Tensor, metric: Metric, linear: Tensor | None, format: str, rank: Tensor
) -> None:
    """Fill rank [C, N] with the loss by the metric of the candidates scales [C, N]."""
    basis, rest = metric
    index = torch.arange(len(w), device=w.device)

    def attempt(c: Tensor) -> None:
        e = quantized(w, scales[c, index], format).sub_(w)
        loss = torch.mm(e, basis).square_().sum(1)
        if linear is not None:
            loss += 2 * (e * linear).sum(1)
        rank[c, index] = loss.addmv_(e.square_(), rest)

    refine(attempt, rank)


def _chunks(w: Tensor, second: Tensor, third: Tensor | None, out: Tensor) -> Iterator[tuple]:
    """The same rows of each, a chunk at a time."""
    rows = max(1, _CHUNK // max(1, w.shape[1]))
    for i in range(0, len(w), rows):
        part = slice(i, i + rows)
        yield w[part], second[part], None if third is None else third[part], out[part]
