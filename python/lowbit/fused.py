"""The fused decoder: a layer of quantised linears as eight calls per step.

    RMSNorm -> codes | q, k, v | RoPE -> append -> attend -> codes | o + residual
    RMSNorm -> codes | gate, up | SiLU -> Hadamard -> codes | down + residual

A call is a kernel, and in a decode step on CUDA a launch; what products with split work and the attention
count with is cleared on top of that, once per step (`cuda_graph.Tickets`). Codes are converted in launches of
their own for many 4-bit rows before Hopper, where K is no multiple of 16, and for an o_proj with a Hadamard.

Linears that share an input are one product; activations cross memory as codes, and residuals are added in the
products' epilogues. Static layers (MergeQuant, arXiv 2503.07654) need no scale per token; dynamic ones
(QuaRot, arXiv 2404.00456) take it from the kernel that made the codes. Layers that take floats (weight-only,
FP4, or with a low-rank term) get the values that would have become codes. Nothing here knows transformers:
`integrations.hf.fused` puts it into a model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit import ops

from .nn import Fp4Linear, Int8Linear, QuantizedLinear, StaticInt4Linear, WeightOnlyLinear
from .nn.linear import IntegerLinear
from .transforms.hadamard import hadamard

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


_FEW_ROWS = 16  # of the smallest tile of the products on CUDA
_CACHED_ROWS = 256  # of an MLP at a time
_COLUMNS = 16  # bytes: rows of codes that a product on CUDA takes as they lie are a multiple of this


def on_card(x: Tensor) -> bool:
    """Whether kernels for CUDA run on x."""
    return x.is_cuda


class NotFusable(ValueError):
    """What keeps a model from being fused, in one sentence."""


@dataclass(frozen=True)
class Coder:
    """How the input of a product becomes codes, as the fused ops take it."""

    bits: int
    clip: float
    static: bool
    index: Tensor | None  # int32 [K']: which channels, in the basis after the Hadamard
    inverse_step: Tensor | None  # fp32 [K']
    shift: Tensor | None  # fp32 [K'], in the units of the values that are rounded
    hadamard_block: int | None
    grouped: bool  # whether the weights have group scales
    int8: bool = False  # whether the weights are int8, which take 4-bit codes one per byte

    @classmethod
    def of(cls, layer: QuantizedLinear) -> "Coder":
        shift = layer.input_shift if layer.mean_shift else None
        if isinstance(layer, StaticInt4Linear):
            index = None if layer.gathered is None else layer.input_index
            step = layer.input_inverse_step if layer.input_step else None
            if index is not None and on_card(index):  # more columns, which the product weighs with 0
                more = (0, -len(index) % _COLUMNS)
                index, step, shift = (t if t is None else F.pad(t, more) for t in (index, step, shift))
            hadamard_block, grouped = layer.input_hadamard, bool(layer.group_size)
            return cls(layer.activation_bits, 1.0, True, index, step, shift, hadamard_block, grouped)
        if shift is not None and layer.input_hadamard is not None:
            # H (x - s) = H x - H s: the fused ops subtract behind the transform
            shift = hadamard(shift.double(), layer.input_hadamard or None).float()
        how = layer.activation_bits, layer.clip, False, None, None, shift, layer.input_hadamard
        return cls(*how, bool(layer.group_size), isinstance(layer, Int8Linear))

    def unpacked(self, x: Tensor) -> bool:
        """Whether 4-bit codes of x [T, K] leave one per byte, as the int8 kernels of a card take them without
        a launch in between. Nibbles are for the s4 tensor cores before Hopper, which pay from many rows on.
        """
        if self.bits != 4:
            return False
        if self.int8 or not on_card(x):
            return self.int8
        few = self.grouped or x.shape[0] <= _FEW_ROWS
        return few or torch.cuda.get_device_capability(x.device) >= (9, 0)

    def same_input(self, other: "Coder") -> bool:
        """Whether both make the same codes."""
        plain = ("bits", "clip", "static", "hadamard_block")
        if any(getattr(self, key) != getattr(other, key) for key in plain):
            return False
        for key in ("index", "inverse_step", "shift"):
            a, b = getattr(self, key), getattr(other, key)
            if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
                return False
        return True

    def norm(self, x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor | None]:
        """(codes, scale) of an RMSNorm's output. x [T, K]; gain fp32 [K'], see `fold_gain`."""
        q, scale, _ = ops.rms_norm_quantize(
            x, gain, eps, self.bits, None, self.index, self.shift, self.static, self.clip,
            unpacked=self.unpacked(x),
        )  # fmt: skip
        return q, None if self.static else scale

    def gated(self, gate_up: Tensor, activation: str) -> tuple[Tensor, Tensor | None]:
        """(codes, scale) of activation(gate) * up. gate_up [T, 2 F]."""
        q, scale = ops.gated_quantize(
            gate_up, self.bits, activation, self.hadamard_block, self.inverse_step, self.shift, self.index,
            self.static, self.clip, self.unpacked(gate_up),
        )  # fmt: skip
        return q, None if self.static else scale

    def attended(self, qkv: Tensor) -> dict:
        """The arguments with which `kv4_attend_quantize` makes the codes of what qkv [T, ...] leads to."""
        return dict(
            bits=self.bits, inverse_step=self.inverse_step, shift=self.shift, index=self.index,
            static_scale=self.static, code_clip=self.clip, unpacked=self.unpacked(qkv),
        )  # fmt: skip

    def fold_gain(self, gain: Tensor) -> Tensor:
        """The gain [K] of a norm, gathered, with the steps in it: fp32 [K']."""
        gain = gain.detach().float()
        if self.index is not None:
            gain = gain[self.index.long()]
        return gain if self.inverse_step is None else gain * self.inverse_step


class Product:
    """Quantised linears with one input as one: their outputs lie behind one another. norm: the RMSNorm whose
    output that input is, None for another.
    """

    @staticmethod
    def of(layers: Sequence[nn.Module], name: str, norm: nn.Module | None = None) -> "Product":
        """The kind that fits; NotFusable where none does."""
        for layer in layers:
            if not isinstance(layer, QuantizedLinear):
                raise NotFusable(f"fuse: expected quantised layers, got {type(layer).__name__} at {name}")
        kinds = IntegerLinear | StaticInt4Linear
        coded = all(isinstance(layer, kinds) and not getattr(layer, "rank", 0) for layer in layers)
        if not coded or (norm is not None and layers[0].input_hadamard is not None):
            return FloatProduct(layers, norm)
        return CodedProduct(layers, name, norm)

    def behind_norm(self, h: Tensor) -> Tensor:
        """[T, N] of the norm's output, h [T, K]."""
        raise NotImplementedError

    def behind_gate(self, gate_up: Tensor, activation: str, residual: Tensor) -> Tensor:
        """[T, N] of activation(gate) * up, gate_up [T, 2 K], + residual [T, N]."""
        raise NotImplementedError

    def behind_attention(self, y: Tensor | tuple[Tensor, Tensor], residual: Tensor) -> Tensor:
        """[T, N] of y [T, K], or of its codes and scales, + residual [T, N]."""
        raise NotImplementedError

    def nbytes(self) -> int:
        """Of the weights and their scales, as a call reads them."""
        raise NotImplementedError


class FloatProduct(Product):
    """Of layers that take floats: one layer where they can be merged, else each by itself."""

    coder = None

    def __init__(self, layers: Sequence[QuantizedLinear], norm: nn.Module | None):
        merged = None
        if len(layers) > 1 and isinstance(layers[0], WeightOnlyLinear | Fp4Linear):
            merged = type(layers[0]).merged(layers)
        self.layers = layers if merged is None else [merged]
        for layer in self.layers:
            layer.prepare()
        if merged is not None:
            _share_tiles(layers, merged._tiles)
        first = self.layers[0]
        alone = len(self.layers) == 1 and isinstance(first, WeightOnlyLinear | Fp4Linear)
        self.product = first._linear if alone else None  # takes a residual, and x behind the transform
        self.hadamard_block = first.input_hadamard if alone else None
        if norm is not None:
            self.gain, self.eps = norm.weight.detach().float(), float(norm.variance_epsilon)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[T, N] of x [T, K] (+ residual [T, N])."""
        if self.product is not None and self.hadamard_block is None:
            return self.product(x, residual)
        y = [layer(x) for layer in self.layers]
        y = y[0] if len(y) == 1 else torch.cat(y, -1)
        return y if residual is None else residual + y

    def behind_norm(self, h: Tensor) -> Tensor:
        return self(ops.rms_norm(h, self.gain, self.eps)[0])

    def behind_gate(self, gate_up: Tensor, activation: str, residual: Tensor) -> Tensor:
        x = ops.gated(gate_up, activation, self.hadamard_block)
        return self(x, residual) if self.product is None else self.product(x, residual)

    def behind_attention(self, y: Tensor, residual: Tensor) -> Tensor:
        return self(y, residual)

    def nbytes(self) -> int:
        parts = (t for m in self.layers for t in (m._tiles, m.weight_scale, m._group_tiles))
        return sum(t.nbytes for t in parts if t is not None)


class CodedProduct(Product):
    """Of integer layers: one set of tiles, codes as input, the residual added in the epilogue."""

    def __init__(self, layers: Sequence[QuantizedLinear], name: str, norm: nn.Module | None):
        first = layers[0]
        self.coder = Coder.of(first)
        self.input_shift = first.input_shift if first.mean_shift else None  # in the basis of the input
        self.int8 = first._codes_name == "weight_int8"
        for layer in layers[1:]:
            kind = (type(layer), layer.format_id, layer.group_size, layer.in_features)
            if kind != (type(first), first.format_id, first.group_size, first.in_features):
                raise NotFusable(f"fuse: expected layers of one kind at {name}, got {layers}")
            if not self.coder.same_input(Coder.of(layer)):
                raise NotFusable(f"fuse: expected one way of quantising the input of {name}, got several")
        self.w_scale = torch.cat([layer.weight_scale.reshape(-1) for layer in layers])
        self.group_scale, self.bias = None, None
        if first.group_size:
            self.group_scale = first._prepack_group_scale(torch.cat([m.weight_group_scale for m in layers]))
        if any(layer.bias is not None for layer in layers):
            zeros = self.w_scale.new_zeros
            parts = [zeros(m.out_features) if m.bias is None else m.bias.detach().float() for m in layers]
            self.bias = torch.cat(parts)
        codes = torch.cat([layer._portable_codes() for layer in layers])
        if self.coder.index is not None:
            codes = F.pad(codes, (0, (len(self.coder.index) + 1) // 2 - codes.shape[1]), value=0x88)  # zeros
        self.tiles = first._prepack(codes)
        _share_tiles(layers, self.tiles)
        if norm is not None:
            self.gain, self.eps = self.coder.fold_gain(norm.weight), float(norm.variance_epsilon)

    def __call__(
        self, q: Tensor, scale: Tensor | None, dtype: torch.dtype, residual: Tensor | None = None
    ) -> Tensor:
        """[T, N] of codes [T, K'] (+ residual [T, N])."""
        if self.int8:
            return ops.int8_linear(q, scale, self.tiles, self.w_scale, self.bias, dtype, residual)
        return ops.int4_linear(
            q, scale, self.tiles, self.w_scale, self.group_scale, self.bias, dtype, residual
        )

    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.tiles, self.w_scale, self.group_scale) if t is not None)

    def behind_norm(self, h: Tensor) -> Tensor:
        return self(*self.coder.norm(h, self.gain, self.eps), h.dtype)

    def behind_gate(self, gate_up: Tensor, activation: str, residual: Tensor) -> Tensor:
        return self(*self.coder.gated(gate_up, activation), residual.dtype, residual)

    def behind_attention(self, y: Tensor | tuple[Tensor, Tensor], residual: Tensor) -> Tensor:
        c = self.coder
        if not isinstance(y, Tensor):
            return self(y[0], None if c.static else y[1], residual.dtype, residual)
        if c.static:
            how = c.inverse_step, c.shift, c.index, c.hadamard_block, c.unpacked(y)
            return self(ops.quantize_static(y, c.bits, *how), None, y.dtype, residual)
        return ops.dynamic_linear(
            y, self.tiles, self.w_scale, self.group_scale, self.bias, c.bits, c.clip, c.hadamard_block,
            self.input_shift, residual,
        )  # fmt: skip


def _share_tiles(layers: Sequence[QuantizedLinear], tiles: Tensor) -> None:
    """Let layers use their product's memory instead of their own, where their tiles are whole in it."""
    for layer in layers:
        layer.prepare()
    counts = [layer._tiles.shape[0] for layer in layers]
    if sum(counts) == tiles.shape[0] and layers[0]._tiles.shape[1:] == tiles.shape[1:]:
        for layer, part in zip(layers, tiles.split(counts), strict=True):
            layer._tiles = part


class FusedLayer:
    """One pre-norm decoder layer with gated MLP; modules named as in `transforms.architectures`."""

    def __init__(self, layer: nn.Module, activation: str, name: str):
        attention, mlp = layer.self_attn, layer.mlp
        qkv, gate_up = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
        norms = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = Product.of([getattr(attention, key) for key in qkv], f"{name}.self_attn.q_proj", norms[0])
        self.o = Product.of([attention.o_proj], f"{name}.self_attn.o_proj")
        self.gate_up = Product.of([getattr(mlp, key) for key in gate_up], f"{name}.mlp.gate_proj", norms[1])
        self.down = Product.of([mlp.down_proj], f"{name}.mlp.down_proj")
        self.q_norm, self.k_norm = (
            norm if norm is None else norm.weight.detach().float()
            for norm in (getattr(attention, "q_norm", None), getattr(attention, "k_norm", None))
        )
        self.head_eps = 1e-6 if self.q_norm is None else float(attention.q_norm.variance_epsilon)
        self.softmax_scale = float(attention.scaling)
        self.activation = activation

    def __call__(self, h: Tensor, attend: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]) -> Tensor:
        """h [T, d] -> [T, d]; attend(qkv [T, (Hq + 2 Hkv) D]) -> [T, Hq D], or codes and scales of that."""
        qkv = self.qkv.behind_norm(h)  # [T, (Hq + 2 Hkv) D]
        h = self.o.behind_attention(attend(qkv), h)
        if on_card(h) or len(h) <= _CACHED_ROWS:
            return self._mlp(h)
        # a CPU has the values between the two products still in its caches, if they are few
        return torch.cat([self._mlp(rows) for rows in h.tensor_split(-(-len(h) // _CACHED_ROWS))])

    def _mlp(self, h: Tensor) -> Tensor:
        gate_up = self.gate_up.behind_norm(h)  # [T, 2 F]
        return self.down.behind_gate(gate_up, self.activation, h)
