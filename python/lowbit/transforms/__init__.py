"""Exact transforms of a model: fold norm gains, rotate residual stream, heads and down projection."""

from .architectures import DecoderLayout, LayerParts, find_layout
from .hadamard import hadamard, largest_block
from .invariance import check_invariance, exact_logits, invariance_error
from .rotation import OnlineHadamard, fold_norms, key_block, rotate, untie_embeddings

__all__ = [
    "DecoderLayout", "LayerParts", "OnlineHadamard", "check_invariance", "exact_logits", "find_layout",
    "fold_norms", "hadamard", "invariance_error", "key_block", "largest_block", "rotate", "untie_embeddings",
]
