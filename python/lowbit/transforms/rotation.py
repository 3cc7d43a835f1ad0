"""QuaRot's rotations (arXiv 2404.00456), fused offline where they can be. All arithmetic is in fp64.

R1  residual stream: x -> x Q, Q = diag(+-1) H / sqrt(d), into embedding, every reader and every writer.
R2  values: Hadamard of head_dim on v_proj's outputs, undone by o_proj's inputs (random signs per layer).
R3  keys and queries after RoPE: lives in the KV cache, nothing to fuse (see `key_block`).
R4  down_proj's input: online Hadamard of the intermediate size, the weight gets the same transform.

With M orthogonal, <M x, M w> = <x, w>: a reader's weight rows are transformed like its input.
"""

import torch
from torch import Tensor, nn

from lowbit import ops

from .architectures import DecoderLayout
from .hadamard import hadamard, largest_block

_ROWS = 4096  # rows of an embedding converted to fp64 at a time


class OnlineHadamard:
    """Forward pre-hook of an fp linear: Hadamard on its input. The quantised layer does that itself."""

    def __init__(self, linear: nn.Linear, block: int | None):
        self.block = block  # None = over all inputs
        self._handle = linear.register_forward_pre_hook(self)

    def remove(self) -> None:
        """Take the hook off its linear."""
        self._handle.remove()

    def __call__(self, module: nn.Module, args: tuple) -> tuple:
        return (self.apply(args[0]), *args[1:])

    def apply(self, x: Tensor) -> Tensor:
        """x [..., K] -> transformed, same dtype; fp64 is exact to fp64, anything else goes through the op."""
        if x.dtype == torch.float64:
            return hadamard(x, self.block)
        n = self.block or x.shape[-1]
        return ops.hadamard(x.contiguous(), n**-0.5, self.block)


def untie_embeddings(layout: DecoderLayout) -> None:
    """Give lm_head its own weight: the final norm's gain goes into the head and not into the embedding."""
    if layout.head.weight is layout.embedding.weight:
        layout.head.weight = nn.Parameter(layout.embedding.weight.detach().clone(), requires_grad=False)
    for config in {id(c): c for c in (layout.model.config, layout.decoder.config)}.values():
        config.tie_word_embeddings = False
    if hasattr(layout.model, "all_tied_weights_keys"):
        layout.model.all_tied_weights_keys = {}


def fold_norms(layout: DecoderLayout) -> None:
    """Move every RMSNorm gain into the linears that read it; gains become 1. Embeddings must be untied."""
    for layer in layout.layers:
        _fold(layer.input_norm, [layer.q, layer.k, layer.v])
        _fold(layer.mlp_norm, [layer.gate, layer.up])
    _fold(layout.final_norm, [layout.head])


def rotate(
    layout: DecoderLayout, seed: int = 0, residual: bool = True
) -> dict[nn.Linear, OnlineHadamard]:
    """Fold norms, fuse R1 and R2, transform down_proj for R4. In place; the model computes the same function.

    residual: whether to do R1; without it norms and embeddings stay as they are.

    Sizes without a Hadamard matrix get a block-diagonal one (largest divisor that has one). Returns, per
    linear with an online transform, the hook that performs it (already registered).
    """
    generator = torch.Generator().manual_seed(seed)
    sign = _signs(layout.hidden_size, generator)
    if residual:
        untie_embeddings(layout)
        fold_norms(layout)
        _rotate_residual(layout, sign)
    online = {}
    for layer in layout.layers:
        _rotate_heads(layer.v, layer.o, layout.head_dim, generator)
        ff = largest_block(layout.intermediate_size)
        _rotate_rows(layer.down.weight, None, ff)
        online[layer.down] = OnlineHadamard(layer.down, None if ff == layout.intermediate_size else ff)
    return online


def _rotate_residual(layout: DecoderLayout, sign: Tensor) -> None:
    block = largest_block(layout.hidden_size)
    _rotate_rows(layout.embedding.weight, sign, block)
    _rotate_rows(layout.head.weight, sign, block)
    for layer in layout.layers:
        for reader in (layer.q, layer.k, layer.v, layer.gate, layer.up):
            _rotate_rows(reader.weight, sign, block)
        for writer in (layer.o, layer.down):
            _rotate_columns(writer, sign, block)


def key_block(head_dim: int) -> int:
    """R3's block: the largest power of two that divides head_dim, so that every cache kernel can do it."""
    return head_dim & -head_dim


def _signs(n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (n,), generator=generator, dtype=torch.int64).double() * 2 - 1


def _fold(norm: nn.Module, readers: list[nn.Linear]) -> None:
    gain = norm.weight.detach().double()
    for reader in readers:
        for rows in reader.weight.detach().split(_ROWS):
            rows.copy_(rows.double() * gain)
    norm.weight.detach().fill_(1.0)


def _rotate_rows(weight: Tensor, sign: Tensor | None, block: int) -> None:
    for rows in weight.detach().split(_ROWS):
        w = rows.double()
        rows.copy_(hadamard(w if sign is None else w * sign.to(w.device), block))


def _rotate_columns(writer: nn.Linear, sign: Tensor, block: int) -> None:
    w = writer.weight.detach()
    sign = sign.to(w.device)
    w.copy_(hadamard(w.double().T.contiguous() * sign, block).T)
    if writer.bias is not None:
        b = writer.bias.detach()
        b.copy_(hadamard(b.double() * sign, block))


def _rotate_heads(v: nn.Linear, o: nn.Linear, head_dim: int, generator: torch.Generator) -> None:
    sign = _signs(head_dim, generator).to(v.weight.device)
    block = largest_block(head_dim)

    def per_head(t: Tensor) -> Tensor:  # [..., heads * head_dim]
        heads = t.double().unflatten(-1, (-1, head_dim))
        return hadamard(heads * sign, block).flatten(-2)

    v.weight.detach().copy_(per_head(v.weight.detach().T).T)
    if v.bias is not None:
        v.bias.detach().copy_(per_head(v.bias.detach()))
    o.weight.detach().copy_(per_head(o.weight.detach()))
