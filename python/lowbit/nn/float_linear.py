"""WeightOnlyLinear: weights in 4 or 6 bits under float activations. Fp4Linear: 4-bit floats on both sides,
whose products are exact integers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowbit import ops

from .. import formats, reference
from ..quantizers import FloatScheme, FloatWeight, Scheme
from .checks import check_clip, check_linear, checked_input
from .linear import QuantizedLinear


class _FloatLinear(QuantizedLinear):
    """What both share: codes of `weight_format` under float scales."""

    weight_format: str

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., K] -> [..., N] in x.dtype, or autocast's. Differentiable in x (straight through a
        quantiser).
        """
        x = checked_input(x, self.in_features)
        self.prepare()
        if self.input_hadamard is not None:
            block = self.input_hadamard or self.in_features
            x = ops.hadamard(x, block**-0.5, block)
        return self._linear(x)

    def _linear(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[..., N] of x behind the transform (+ residual)."""
        raise NotImplementedError

    @property
    def format_id(self) -> int:
        """Of `weight_format`, as in `weight_meta`."""
        return formats.FORMAT_IDS[self.weight_format]

    def _pack(self, codes: Tensor) -> Tensor:
        if self.weight_format == "int4":
            return reference.pack_int4(codes)
        return formats.pack_codes(codes, self.weight_format)

    def _quantized(self, packed: Tensor, scale: Tensor, group_scale: Tensor | None) -> FloatWeight:
        if self.weight_format == "int4":
            codes = reference.unpack_int4(packed, self.in_features)
        else:
            codes = formats.unpack_codes(packed, self.weight_format, self.in_features)
        return FloatWeight(codes, scale, group_scale, self.group_size, self.weight_format)

    @classmethod
    def merged(cls, layers: "Sequence[_FloatLinear]") -> "_FloatLinear | None":
        """One layer whose outputs are those of several that share an input, behind one another; None where
        they differ in how they treat it, or in their formats. Biases that are missing are zeros.
        """
        first, bias = layers[0], any(layer.bias is not None for layer in layers)
        size = {"out_features": sum(layer.out_features for layer in layers), "bias": bias}
        options = {**first.options(), **size}
        shared = [name for name in first.tensors() if name.startswith("input_")]
        for other in layers[1:]:
            same = type(other) is cls and {**other.options(), **size} == options
            if not (same and all(torch.equal(getattr(other, t), getattr(first, t)) for t in shared)):
                return None
        layer = cls(**options, device=first.weight_scale.device, dtype=first.compute_dtype)
        for name in layer.tensors():
            codes = name == cls._codes_name
            if name in shared:
                setattr(layer, name, getattr(first, name))
            elif name != "weight_meta":
                parts = [m._portable_codes() if codes else getattr(m, name) for m in layers]
                setattr(layer, name, torch.cat(parts))
        zeros = layer.weight_scale.new_zeros
        biases = [zeros(m.out_features) if m.bias is None else m.bias.detach() for m in layers]
        return layer._finish(torch.cat(biases) if bias else None)

    def _set_weight_parts(self, q: FloatWeight, bias: Tensor | None) -> "QuantizedLinear":
        if q.format != self.weight_format:
            raise ValueError(f"weight: expected codes of {self.weight_format}, got {q.format}")
        want = torch.int8 if q.format == "int4" else torch.uint8
        if q.codes.dim() != 2 or q.codes.dtype != want:
            got = f"{q.codes.dtype} {list(q.codes.shape)}"
            raise ValueError(f"codes: expected {want} [N, K] for {q.format}, got {got}")
        low, high = (-8, 7) if q.format == "int4" else (0, (1 << formats.bits_of(q.format)) - 1)
        if q.codes.numel() and (int(q.codes.min()) < low or int(q.codes.max()) > high):
            got = f"{int(q.codes.min())}..{int(q.codes.max())}"
            raise ValueError(f"codes: expected values in {low}..{high}, got {got}")
        self._set_codes(q)
        return self._finish(bias)


class WeightOnlyLinear(_FloatLinear):
    """Linear layer with weights of 4 or 6 bits and activations as they come.

    weight_format: e3m2, e2m3, e2m1, e1m2, e3m0 or int4. group_size: None, or 32, 64, 128. scale_format: how
    scales of groups are stored: "fp16", or "e8m0" (powers of two, groups of 32 of a float format);
    None takes `formats.default_scale_format`. input_hadamard: transform the input first. The rest as in
    `nn.Linear`. Raises ValueError for other values.
    """

    OPTIONS = (
        "in_features", "out_features", "bias", "weight_format", "group_size", "scale_format",
        "input_hadamard",
    )  # fmt: skip
    activation_bits = 16

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, weight_format: str = "e2m3",
        group_size: int | None = None, scale_format: str | None = None, input_hadamard: int | None = None,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, group_size, input_hadamard, dtype)
        if scale_format is None:
            scale_format = formats.default_scale_format(weight_format, group_size)
        formats.check_scale_format(weight_format, group_size, scale_format)
        self.weight_format, self.scale_format = weight_format, scale_format
        self._scheme()  # ValueError for an unknown format
        if self.scale_format == "e8m0":
            self._unit_group_scale = 127  # the code of 1
        self._create(bias, device)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, weight_format: str = "e2m3", group_size: int | None = None,
        scale_format: str | None = None, input_hadamard: int | None = None,
    ) -> "WeightOnlyLinear":
        """Round the weight of an `nn.Linear` to nearest, under scales of least error.

        With input_hadamard the weight gets the same transform, so the layer still computes linear(x).
        """
        check_linear(linear)
        w = linear.weight
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, weight_format, group_size,
            scale_format, input_hadamard, w.device, w.dtype,
        )  # fmt: skip
        return layer._take(linear)

    @classmethod
    def from_weight(
        cls, weight: FloatWeight, bias: Tensor | None = None, input_hadamard: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> "WeightOnlyLinear":
        """From codes and scales, bias [N]. dtype: that of the bias, or fp32, without it."""
        n, k = weight.codes.shape
        layer = cls(
            k, n, bias is not None, weight.format, weight.group_size, weight.scale_format, input_hadamard,
            weight.codes.device, dtype or (bias.dtype if bias is not None else torch.float32),
        )  # fmt: skip
        return layer._set_weight_parts(weight, bias)

    def _linear(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        scale = self.weight_scale.view(-1)
        return ops.fp_linear(
            x, self._tiles, self.weight_format, scale, self._group_tiles, self.bias, residual
        )

    def _layout(self) -> dict:
        return {"scale_format": self.scale_format}

    def _scheme(self) -> Scheme:
        return FloatScheme(self.weight_format, self.group_size, self.scale_format)

    def _prepack(self, packed: Tensor) -> Tensor:
        return ops.prepack_fp_weight(packed, self.weight_format, self.in_features)

    def _unpack_tiles(self, tiles: Tensor) -> Tensor:
        sizes = (self.out_features, self.in_features)
        return reference.unprepack_fp_weight(tiles, self.weight_format, *sizes)

    def _prepack_group_scale(self, group_scale: Tensor) -> Tensor:
        return ops.prepack_fp_group_scale(group_scale)


class Fp4Linear(_FloatLinear):
    """Linear layer with FP4 weights (one scale per output channel), FP4 or int8 activations and exact sums.

    weight_format: e2m1, e1m2 or e3m0. activation_format: one of these, or int8. clip: share of a token's
    absmax that the largest code stands for. static_scale: the activation's scale is the buffer `input_scale`,
    one number, instead of one per token. pre_shift: channel k of the input is multiplied by
    2^input_exponent[k] before it is rounded (LLM-FP4, arXiv 2310.16836, section 4.2); the stored weight
    carries the inverse. Both need an FP4 activation. The rest as in `WeightOnlyLinear`. Raises ValueError for
    other values.
    """

    OPTIONS = (
        "in_features", "out_features", "bias", "weight_format", "activation_format", "clip",
        "input_hadamard", "static_scale", "pre_shift",
    )  # fmt: skip

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, weight_format: str = "e2m1",
        activation_format: str = "e2m1", clip: float = 1.0, input_hadamard: int | None = None,
        static_scale: bool = False, pre_shift: bool = False,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, None, input_hadamard, dtype)
        if weight_format not in formats.FP4_FORMATS:
            want = ", ".join(formats.FP4_FORMATS)
            raise ValueError(f"weight_format: expected one of {want}, got {weight_format!r}")
        if activation_format not in (*formats.FP4_FORMATS, "int8"):
            want = ", ".join((*formats.FP4_FORMATS, "int8"))
            raise ValueError(f"activation_format: expected one of {want}, got {activation_format!r}")
        if activation_format == "int8" and (static_scale or pre_shift):
            raise ValueError("activation_format: expected FP4 with static_scale or pre_shift, got int8")
        if static_scale and clip != 1:
            raise ValueError(f"clip: expected 1 with static_scale, which has it in the scale, got {clip}")
        self.weight_format, self.activation_format = weight_format, activation_format
        self.clip, self.static_scale, self.pre_shift = check_clip(clip), static_scale, pre_shift
        self._create(bias, device)
        if static_scale and self.input_scale.device.type != "meta":
            self.input_scale.fill_(1.0)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, weight_format: str = "e2m1", activation_format: str = "e2m1",
        clip: float = 1.0, input_hadamard: int | None = None,
    ) -> "Fp4Linear":
        """Round the weight of an `nn.Linear` to nearest; activations get a scale per token.

        With input_hadamard the weight gets the same transform, so the layer still computes linear(x).
        """
        check_linear(linear)
        w = linear.weight
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, weight_format,
            activation_format, clip, input_hadamard, device=w.device, dtype=w.dtype,
        )  # fmt: skip
        return layer._take(linear)

    @classmethod
    def from_weight(
        cls, weight: FloatWeight, bias: Tensor | None = None, activation_format: str = "e2m1",
        clip: float = 1.0, input_hadamard: int | None = None, input_scale: Tensor | None = None,
        input_exponent: Tensor | None = None, dtype: torch.dtype | None = None,
    ) -> "Fp4Linear":
        """From codes and scales of the weight as stored, that is with 2^-input_exponent[k] in its column k.

        bias: [N]. input_scale: fp32 [1], the static scale of the activation; input_exponent: int8 [K].
        """
        n, k = weight.codes.shape
        layer = cls(
            k, n, bias is not None, weight.format, activation_format, clip, input_hadamard,
            input_scale is not None, input_exponent is not None,
            weight.codes.device, dtype or (bias.dtype if bias is not None else torch.float32),
        )  # fmt: skip
        if input_scale is not None:
            layer.input_scale = input_scale.detach().float().reshape(1).clone()
        if input_exponent is not None:
            layer.input_exponent = input_exponent.to(torch.int8).reshape(k).clone()
        return layer._set_weight_parts(weight, bias)

    @property
    def activation_bits(self) -> int:
        """4 or 8."""
        return formats.bits_of(self.activation_format)

    def _linear(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = _Fp4Function.apply(
            x, self._tiles, self.weight_scale.view(-1), self.bias,
            self.input_scale if self.static_scale else None,
            self.input_exponent if self.pre_shift else None,
            self.weight_format, self.activation_format, self.clip,
        )  # fmt: skip
        return y if residual is None else y + residual

    def _layout(self) -> dict:
        return {"input_scale": self.static_scale, "input_exponent": self.pre_shift}

    def _scheme(self) -> Scheme:
        return FloatScheme(self.weight_format)

    def _to_stored(self, w: Tensor) -> Tensor:
        w = super()._to_stored(w)
        return torch.ldexp(w, -self.input_exponent.int()) if self.pre_shift else w

    def _to_effective(self, w: Tensor) -> Tensor:
        return super()._to_effective(torch.ldexp(w, self.input_exponent.int()) if self.pre_shift else w)

    def _prepack(self, packed: Tensor) -> Tensor:
        return ops.prepack_int4_weight(packed)  # moves nibbles, whatever they mean

    def _unpack_tiles(self, tiles: Tensor) -> Tensor:
        return _nibbles(tiles, self.out_features, self.in_features)


def _nibbles(tiles: Tensor, n: int, k: int) -> Tensor:
    # up to the even k: past an odd one `unprepack_int4_weight` would put int4's zero, 8, which is -0 here
    return reference.unprepack_int4_weight(tiles, n, k + k % 2)


class _Fp4Function(torch.autograd.Function):
    """Quantise and multiply; backwards, the rounding is taken as the identity (straight through)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, tiles, scale, bias, input_scale, exponent, weight_format, x_format, clip):
        if x_format == "int8":
            codes, x_scale = ops.quantize_int8(x, clip)
        else:
            codes, x_scale = ops.quantize_fp4(x, x_format, input_scale, exponent, clip)
        return ops.fp4_linear(codes, x_format, x_scale, tiles, weight_format, scale, bias, x.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, tiles, scale, bias, _input_scale, exponent, ctx.weight_format, _x_format, _clip = inputs
        ctx.save_for_backward(tiles, scale, exponent)
        ctx.k, ctx.bias_dtype = x.shape[-1], None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx, grad):
        tiles, scale, exponent = ctx.saved_tensors
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            codes = formats.unpack_codes(_nibbles(tiles, scale.numel(), ctx.k), ctx.weight_format, ctx.k)
            w = formats.value_table(ctx.weight_format, codes.device)[codes.long()] * scale.unsqueeze(1)
            if exponent is not None:
                w = torch.ldexp(w, exponent.int())
            grad_x = (grad.float() @ w).to(grad.dtype)
        if ctx.bias_dtype is not None and ctx.needs_input_grad[3]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0).to(ctx.bias_dtype)
        return grad_x, None, None, grad_bias, None, None, None, None, None
