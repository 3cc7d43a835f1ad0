"""The check that a transform left the model's function alone."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .architectures import DecoderLayout

# largest |difference| of a logit, relative to the logits' range, that rounding explains
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def exact_logits(layout: DecoderLayout, ids: Tensor) -> Tensor:
    """Logits [1, T, vocab] of ids [1, T] without cache; in an fp64 model the norms compute in fp64 too."""
    with torch.no_grad(), _fp64_norms(layout):
        return layout.model(ids.to(layout.embedding.weight.device), use_cache=False).logits


def invariance_error(before: Tensor, after: Tensor) -> float:
    """max |after - before| / (max before - min before)."""
    span = float(before.max() - before.min())
    return float((after - before).abs().max()) / max(span, torch.finfo(torch.float32).tiny)


def check_invariance(before: Tensor, after: Tensor) -> float:
    """Return the error; RuntimeError where it is beyond what the rounding of the dtype explains."""
    error, limit = invariance_error(before, after), TOLERANCE.get(before.dtype, 1e-3)
    if not error <= limit:
        raise RuntimeError(
            f"rotation: expected logits to move by at most {limit:g} of their range in {before.dtype}, "
            f"got {error:.3g}; the model was transformed wrongly and must be loaded again"
        )
    return error


@contextlib.contextmanager
def _fp64_norms(layout: DecoderLayout) -> Iterator[None]:
    """transformers' RMSNorm computes in fp32 whatever its input, which would hide errors below 1e-7."""
    if layout.embedding.weight.dtype != torch.float64:
        yield
        return
    norms = [m for m in layout.decoder.modules() if type(m).__name__.endswith("RMSNorm")]
    for norm in norms:
        norm.forward = _exact_rms_norm.__get__(norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _exact_rms_norm(norm: nn.Module, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
