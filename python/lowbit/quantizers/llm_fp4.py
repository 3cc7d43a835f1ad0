"""LLM-FP4 (Liu et al., arXiv 2310.16836): 4-bit floats for weights and activations, found by search.

A format with a real-valued exponent bias b~ is the format with the scale 2^(bias - b~). Formats and biases
are searched on the output of a layer, per output channel for weights and per tensor for static activations,
the two in turn. With a pre-shift, input channel j is multiplied by 2^exponent[j] before it is rounded and
column j of the weight by 2^-exponent[j] before *it* is rounded: what a kernel can run. The simulator of the
paper's authors rounds the weight as it is and undoes the shift in floating point; `fold=False` computes that,
as a reference that no packed kernel can execute. What the paper leaves open is in docs/llm-fp4.md.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..formats import FP4_FORMATS, find_format
from .fp4_weight import (
    candidates,
    compensated,
    exponent_bias,
    leading,
    quantized,
    refine,
    scale_of,
    search_format,
)
from .grid import FloatGrid
from .weight import FloatWeight

_ROWS, _TOKENS = 64, 192  # of a layer that the search of its activation looks at
_GRAM_TOKENS = 2048  # that the search of its weights looks at
_LADDER = tuple(2.0 ** (-i / 2) for i in range(5))  # clips of a folded weight in the search of an activation
_MASSIVE = 4.0  # tokens whose absmax is beyond this many medians are sampled apart
_TINY = 1e-30


@dataclass(frozen=True)
class Fp4Options:
    """What is searched.

    activation: "tensor" = one static scale, "token" = a scale per token, None = not quantised to 4 bits (the
    weights are then fitted to the activations as they are). pre_shift: powers of two per input channel; fold:
    into the weight before it is quantised, False = the paper's simulator. gptq: the weights by GPTQ, against
    the rounded inputs (not the paper's). rounds, candidates: of the search.
    """

    activation: str | None = "tensor"
    pre_shift: bool = True
    fold: bool = True
    gptq: bool = False
    weight_formats: tuple[str, ...] = FP4_FORMATS
    activation_formats: tuple[str, ...] = FP4_FORMATS
    rounds: int = 3
    candidates: int = 100

    def __post_init__(self):
        if self.activation not in ("tensor", "token", None):
            raise ValueError(f"activation: expected tensor, token or None, got {self.activation!r}")
        for field in ("weight_formats", "activation_formats"):
            names = getattr(self, field)
            unknown = [name for name in names if name not in FP4_FORMATS]
            if unknown or not names:
                got = repr(unknown[0]) if unknown else "none"
                raise ValueError(f"{field}: expected some of {', '.join(FP4_FORMATS)}, got {got}")
        if self.rounds < 1 or self.candidates < 2:
            got = f"{self.rounds} and {self.candidates}"
            raise ValueError(f"rounds, candidates: expected at least 1 and 2, got {got}")


@dataclass(frozen=True)
class Fp4Activation:
    """How a layer's input is rounded.

    scale: fp32 [1], or None = one per token, of `clip` times its absmax. exponent: int8 [K] or None.
    """

    format: str
    scale: Tensor | None = None
    exponent: Tensor | None = None
    clip: float = 1.0

    def shifted(self, x: Tensor) -> Tensor:
        """fp32 [..., K]: x[j] * 2^exponent[j], a fresh tensor."""
        return x.float().clone() if self.exponent is None else x.float() * powers(self.exponent)

    def round(self, x: Tensor) -> Tensor:
        """fp32 [..., K]: scale * value(code), in the shifted domain: what the kernel multiplies."""
        grid, x, scale = FloatGrid(self.format), self.shifted(x), self.scale
        if scale is None:
            scale = x.abs().amax(-1, keepdim=True) * self.clip / grid.max
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return grid.round_(x.mul_(1.0 / scale)).mul_(scale)

    def apply(self, x: Tensor) -> Tensor:
        """fp32 [..., K]: what the codes stand for, the shift undone."""
        y = self.round(x)
        return y if self.exponent is None else y.mul_(powers(self.exponent, -1))


@dataclass(frozen=True)
class Fp4Layer:
    """Result of `search`: one activation, a weight per linear (a folded shift is in it).

    loss: squared error of the outputs on the calibration tokens, relative to the outputs. executable: whether
    packed kernels can compute it; False for the paper's simulator.
    """

    activation: Fp4Activation | None
    weights: list[FloatWeight]
    loss: float
    executable: bool = True

    def output(self, x: Tensor, index: int = 0) -> Tensor:
        """fp32 [..., N] of linear `index` by fake quantisation, without bias."""
        w = self.weights[index].dequantize()
        if self.activation is None:
            return x.float() @ w.T
        return (self.activation.round(x) if self.executable else self.activation.apply(x)) @ w.T


def powers(exponent: Tensor, times: int = 1) -> Tensor:
    """fp32 [K]: 2^(times * exponent), exact."""
    return torch.ldexp(torch.ones(exponent.shape, device=exponent.device), times * exponent.int())


def fold(w: Tensor, exponent: Tensor | None) -> Tensor:
    """fp32 [N, K]: w[:, j] * 2^-exponent[j], exact; (x_j * 2^exponent[j]) * fold(w)_j = x_j * w_j."""
    return w if exponent is None else w * powers(exponent, -1)


def pre_shift(absmax: Tensor, rho: float, format: str, limit: int | None = None) -> Tensor:
    """int8 [K]: clip(round(b~_j - rho), 0, limit), b~_j the bias of channel j's absmax [K].

    limit: None = 2^e - 1, the paper's (in its text and its code; its equation 15 prints 2^(e-1)).
    """
    limit = largest_shift(format) if limit is None else limit
    return (exponent_bias(absmax, format) - rho).round().clamp(0, limit).to(torch.int8)


def largest_shift(format: str) -> int:
    """2^e - 1 of a format with e exponent bits."""
    return (1 << find_format(format).exponent_bits) - 1


# ---- tokens


@dataclass(frozen=True)
class _Tokens:
    """Inputs fp32 [T, K] and what each counts in the loss, fp32 [T]."""

    x: Tensor
    weight: Tensor

    def sample(self, count: int, generator: torch.Generator) -> "_Tokens":
        """At most `count` of them, each counting for those that it stands for.

        Tokens of massive activations are few and decide where a static scale clips: they are drawn apart, up
        to a quarter of the sample.
        """
        top = self.x.abs().amax(1)
        massive = top > _MASSIVE * top.median()
        some = min(int(massive.sum()), count // 4)
        index, share = [], []
        for mask, limit in ((massive, some), (~massive, count - some)):
            group = mask.nonzero()[:, 0]
            picked = group[torch.randperm(len(group), generator=generator)[:limit].to(group.device)]
            index.append(picked)
            share.append(torch.full_like(picked, len(group) / max(1, len(picked)), dtype=torch.float32))
        index, share = torch.cat(index), torch.cat(share)
        return _Tokens(self.x[index], self.weight[index] * share)


# ---- activations


def search_activation(
    tokens: _Tokens, absmax: Tensor, w: Tensor, current: Tensor, format: str, options: Fp4Options
) -> Fp4Activation:
    """The activation format, bias and shift of least output error.

    absmax: fp32 [K] of the channels over all tokens; w: fp32 [N, K], rows of the layer; current: the same
    rows as quantised so far, in `format`. A shift that is folded changes the weight: it is rounded again,
    every row at the best of a few clips. Smaller limits of the shift are tried too, down to none: the fold
    may cost the weight more than it gives the activation, which the paper's simulator cannot see.
    """
    target, per_token = tokens.x @ w.T, options.activation == "token"
    power = tokens.weight @ tokens.x.square()  # [K]

    def loss(a: Fp4Activation) -> float:
        x = a.round(tokens.x)
        if a.exponent is None:
            y = x @ current.T
        elif options.fold:
            y = x @ _clip_ladder(fold(w, a.exponent), power * powers(a.exponent, 2), format).T
        else:
            y = x.mul_(powers(a.exponent, -1)) @ current.T
        return float(tokens.weight @ y.sub_(target).square_().sum(1))

    def scan(name: str, limit: int) -> tuple[float, Fp4Activation]:
        # rho starts at the least b~_j, that of the largest channel
        grid = candidates(exponent_bias(absmax.max(), name), options.candidates)

        def make(c: int) -> Fp4Activation:
            shift = pre_shift(absmax, float(grid[c]), name, limit) if options.pre_shift else None
            return Fp4Activation(name, None if per_token else scale_of(grid[c : c + 1], name), shift)

        return _least(loss, make, len(grid))

    def scan_clip(a: Fp4Activation) -> tuple[float, Fp4Activation]:
        count = options.candidates
        return _least(loss, lambda c: replace(a, clip=2.0 ** (-2.0 * c / count)), count)

    if per_token and not options.pre_shift:
        return min((scan_clip(Fp4Activation(name)) for name in options.activation_formats), key=_first)[1]
    found = [scan(name, largest_shift(name)) for name in options.activation_formats]
    if options.pre_shift and options.fold:
        name = min(found, key=_first)[1].format
        limit = largest_shift(name)
        while limit:
            limit //= 2
            found.append(scan(name, limit))
    best = min(found, key=_first)[1]
    return scan_clip(best)[1] if per_token else best


def _first(found: tuple) -> float:
    return found[0]


def _least(
    loss: Callable[[Fp4Activation], float], make: Callable[[int], Fp4Activation], count: int
) -> tuple[float, Fp4Activation]:
    """The least loss among make(0 .. count - 1), coarse to fine, and what has it."""
    rank = torch.full((count, 1), torch.inf, dtype=torch.float64)

    def attempt(c: Tensor) -> None:
        if torch.isinf(rank[c, 0]):
            rank[c, 0] = loss(make(int(c)))

    refine(attempt, rank)
    best = int(rank.argmin())
    return float(rank[best]), make(best)


def _clip_ladder(w: Tensor, power: Tensor, format: str) -> Tensor:
    """w [N, K] rounded to a format, every row at the clip of least error weighted by power [K]."""
    top = scale_of(exponent_bias(w.abs().amax(1), format), format)
    best, best_cost = None, None
    for clip in _LADDER:
        q = quantized(w, top * clip, format)
        cost = (q - w).square_() @ power
        if best is None:
            best, best_cost = q, cost
        else:
            better = cost < best_cost
            best = torch.where(better.unsqueeze(1), q, best)
            best_cost = torch.where(better, cost, best_cost)
    return best


# ---- the layer


def search(x: Tensor, weights: list[Tensor], options: Fp4Options | None = None) -> Fp4Layer:
    """Quantise linears that share their inputs.

    x: float [T, K], calibration tokens as the quantiser will see them (after any transform). weights: float
    [N_i, K]; they get one activation and a format each. Activation and weights are searched in turn, for
    options.rounds or until nothing changes; in the rounds the weights of some rows, all that the search of
    the activation looks at, at last those of all rows. Raises ValueError for shapes that do not fit,
    for no tokens, for NaN and inf.
    """
    options = options or Fp4Options()
    _check(x, weights)
    x, parts = x.detach().float(), [w.detach().float() for w in weights]
    w, generator = torch.cat(parts), torch.Generator().manual_seed(0)
    tokens = _Tokens(x, torch.ones(len(x), device=x.device))
    if not options.gptq:  # which fits every entry of the Gram matrix, and wants all tokens for that
        tokens = tokens.sample(_GRAM_TOKENS, generator)
    total = tokens.weight @ (tokens.x @ w.T).square().sum(1)
    tokens.weight.div_(total.clamp_min(_TINY))  # the losses are relative to the outputs
    activation = None
    if options.activation:
        activation = _alternate(tokens, x.abs().amax(0), parts, options, generator)
    found, loss = _search_weights(tokens, parts, activation, options, options.gptq)
    return Fp4Layer(activation, found, loss, options.fold or not options.pre_shift)


def _alternate(
    tokens: _Tokens, absmax: Tensor, parts: list[Tensor], options: Fp4Options, generator: torch.Generator
) -> Fp4Activation:
    """Rounds of activation and weights, on some rows of each linear."""
    few, share = tokens.sample(_TOKENS, generator), _ROWS / sum(len(w) for w in parts)
    picks = [torch.randperm(len(w), generator=generator)[: max(1, round(share * len(w)))] for w in parts]
    parts = [w[pick.to(w.device)] for w, pick in zip(parts, picks, strict=True)]
    w = current = torch.cat(parts)
    format, before, activation = options.weight_formats[0], None, None
    for _ in range(options.rounds):
        activation = search_activation(few, absmax, w, current, format, options)
        if before is not None and _same(activation, before):
            break
        found, _ = _search_weights(tokens, parts, activation, options)
        current, before, assumed = _effective(found, activation, options), activation, format
        format = Counter(q.format for q in found).most_common(1)[0][0]
        if options.pre_shift and options.fold and format == assumed:
            break  # all that the search of the activation took from the weights
    return activation


def _search_weights(
    tokens: _Tokens, parts: list[Tensor], activation: Fp4Activation | None, options: Fp4Options,
    compensate: bool = False,
) -> tuple[list[FloatWeight], float]:
    """The weights given the activation, and the loss of the layer. compensate: by GPTQ.

    With e = Q(w) - w and d = Q(x) - x, an output channel's squared error over the weighted tokens is
    e G e^T + 2 e (w d^T Q(x))^T + |d w^T|^2, G = Q(x)^T Q(x). The last term no choice of Q(w) changes.
    """
    x, exponent, d, cross = tokens.x, None, None, None
    rounded = x
    if activation is not None:
        rounded = activation.apply(x)
        if options.fold and activation.exponent is not None:
            exponent, rounded, x = activation.exponent, activation.round(x), activation.shifted(x)
        d = (rounded - x) * tokens.weight.sqrt().unsqueeze(1)
    scaled = rounded * tokens.weight.sqrt().unsqueeze(1)
    gram = scaled.T @ scaled
    if d is not None:
        cross = d.T @ scaled  # [K, K]
    metric = leading(gram)
    found, loss = [], 0.0
    for part in parts:
        w = fold(part, exponent)
        linear = None if cross is None else w @ cross
        how = (gram, metric, linear, options.weight_formats, options.candidates)
        best, cost = compensated(w, *how) if compensate else search_format(w, *how)
        found.append(best)
        loss += cost + (0.0 if d is None else float((d @ w.T).square().sum()))
    return found, loss


def _effective(found: list[FloatWeight], activation: Fp4Activation, options: Fp4Options) -> Tensor:
    """fp32 [N, K]: the quantised weights with a folded shift undone."""
    w = torch.cat([q.dequantize() for q in found])
    shift = activation.exponent if options.fold else None
    return w if shift is None else w * powers(shift)


def _same(a: Fp4Activation, b: Fp4Activation) -> bool:
    def equal(s: Tensor | None, t: Tensor | None) -> bool:
        return s is t or (s is not None and t is not None and torch.equal(s, t))

    same = (a.format, a.clip) == (b.format, b.clip)
    return same and equal(a.scale, b.scale) and equal(a.exponent, b.exponent)


def _check(x: Tensor, weights: list[Tensor]) -> None:
    if not weights:
        raise ValueError("weights: expected at least one [out_features, in_features], got none")
    for w in weights:
        if w.dim() != 2:
            raise ValueError(f"weight: expected [out_features, in_features], got {w.dim()} dimensions")
        if not bool(torch.isfinite(w).all()):
            raise ValueError("weight: expected finite values, got NaN or inf")
    k = weights[0].shape[1]
    if any(w.shape[1] != k for w in weights):
        raise ValueError(f"weights: expected {k} inputs in each, got {[w.shape[1] for w in weights]}")
    if x.dim() != 2 or x.shape[1] != k:
        raise ValueError(f"x: expected [tokens, {k}], got {list(x.shape)}")
    if x.shape[0] == 0:
        raise ValueError("calibration: expected at least one token, got none")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("calibration: expected finite activations, got NaN or inf")
