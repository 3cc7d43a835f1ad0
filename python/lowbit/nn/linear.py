"""QuantizedLinear, what all quantised layers share, and the integer layers: exact sums of codes."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lowbit import ops

from .. import formats, reference
from ..quantizers import IntegerScheme, QuantizedWeight, Scheme, rtn
from ..transforms.hadamard import hadamard
from .checks import check_clip, check_compute_dtype, check_linear, checked_input


class _DequantizedWeight(Tensor):
    """What `QuantizedLinear.weight` returns: a plain fp tensor whose `.data` setter quantises into the layer.

    Adapter libraries merge by `layer.weight.data += delta`; on a temporary that would be lost without a word.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def data(self) -> Tensor:
        return self.detach().as_subclass(Tensor)

    @data.setter
    def data(self, value: Tensor) -> None:
        self._layer.set_weight(value)


class QuantizedLinear(nn.Linear):
    """Base of the quantised layers: y = Q(T(x)) W^T + bias, T the optional input Hadamard, Q what the
    subclass does to its input.

    in_features, out_features, bias, device, dtype: as in `nn.Linear`; dtype is that of the bias and of
    `weight`. group_size: None, or 32, 64, 128 for scales of groups along the input. input_hadamard: None =
    none, 0 = over all inputs, b = block-diagonal with blocks of b. Raises ValueError for other values.

    The portable buffers (see `lowbit.formats`) are turned into kernel tiles at the first forward and dropped;
    `state_dict()` rebuilds them. Scales keep their dtype through `.to(dtype)` and `.half()`.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("in_features", "out_features", "bias")  # see `options`
    format_id: int
    _codes_name: ClassVar[str] = "weight_packed"
    _unit_group_scale: float = 1

    def __init__(
        self, in_features: int, out_features: int, group_size: int | None, input_hadamard: int | None,
        dtype: torch.dtype | None,
    ):
        nn.Module.__init__(self)  # not nn.Linear's: it would allocate the fp weight
        formats.check_group_size(group_size)
        if group_size and not in_features:
            raise ValueError(f"group_size: expected None for a layer without inputs, got {group_size}")
        if input_hadamard is not None:
            size = input_hadamard or in_features
            if input_hadamard < 0 or (in_features and in_features % size):
                want = f"None, 0 or a divisor of {in_features}"
                raise ValueError(f"input_hadamard: expected {want}, got {input_hadamard}")
            if size:
                reference.transform.split_order(size)  # ValueError for a size without a Hadamard matrix
        self.in_features, self.out_features = in_features, out_features
        self.group_size, self.input_hadamard = group_size, input_hadamard
        self.compute_dtype = check_compute_dtype(dtype or torch.get_default_dtype())

    def _create(self, bias: bool, device: torch.device | str | None) -> None:
        """The tensors; called once the subclass has set what they depend on."""
        if bias:
            self.bias = nn.Parameter(torch.zeros(self.out_features, device=device, dtype=self.compute_dtype))
        else:
            self.register_parameter("bias", None)
        for name, (kind, shape) in self.tensors().items():
            self.register_buffer(name, torch.zeros(shape, dtype=kind, device=device))
        if self.weight_meta.device.type != "meta":
            self.weight_scale.fill_(1.0)
            if self.group_size:
                self.weight_group_scale.fill_(self._unit_group_scale)
            self.weight_meta.copy_(formats.meta_tensor(*self._sizes()))
        self.register_buffer("_tiles", None, persistent=False)
        self.register_buffer("_group_tiles", None, persistent=False)

    def _take(self, linear: nn.Linear) -> "QuantizedLinear":
        """Weight, rounded to nearest, and bias of an `nn.Linear`."""
        self.set_weight(linear.weight)
        return self._finish(linear.bias)

    def _finish(self, bias: Tensor | None) -> "QuantizedLinear":
        if bias is not None:
            self.bias.data.copy_(bias.detach())
        self.requires_grad_(False)
        self.validate()
        return self

    def prepare(self) -> None:
        """Turn the portable codes into kernel tiles and drop them. Done by the first forward; idempotent."""
        if self._tiles is None:
            codes = getattr(self, self._codes_name)
            with torch.inference_mode(False):  # the first forward may be an evaluation, a later one training
                self._tiles = self._prepack(codes)
                if self.group_size:
                    self._group_tiles = self._prepack_group_scale(self.weight_group_scale)
            setattr(self, self._codes_name, None)

    def tensors(self) -> dict:
        """Name -> (dtype, shape) of the portable tensors, the bias apart."""
        return formats.layer_tensors(*self._sizes(), **self._layout())

    def validate(self, name: str = "") -> None:
        """ValueError with one sentence naming the tensor if any holds what the format forbids."""
        tensors = {key: getattr(self, key) for key in self.tensors()}
        tensors[self._codes_name] = self._portable_codes()
        formats.validate_layer(tensors, *self._sizes(), name=name, **self._layout())

    def options(self) -> dict:
        """The constructor's arguments but device and dtype: what tells how to build this layer again."""
        return {k: self.bias is not None if k == "bias" else getattr(self, k) for k in self.OPTIONS}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.options().items())

    # ---- the weight, as adapters and merges see it

    @property
    def weight(self) -> Tensor:
        """The effective weight [N, K] in the layer's dtype: dequantised, what is done to the input undone.

        A fresh tensor at every access. Assigning to its `.data` quantises the assigned values into the layer.
        """
        if self.weight_scale.device.type == "meta":
            w = torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device="meta")
        else:
            w = self._to_effective(self.dequantize()).to(self.compute_dtype)
        w = w.as_subclass(_DequantizedWeight)
        w._layer = self
        return w

    def set_weight(self, weight: Tensor) -> None:
        """Quantise the effective weight [N, K] into this layer, rounding to nearest (after a LoRA merge)."""
        if tuple(weight.shape) != (self.out_features, self.in_features):
            want = [self.out_features, self.in_features]
            raise ValueError(f"weight: expected {want}, got {list(weight.shape)}")
        self._set_codes(rtn(self._to_stored(weight.detach()), self._scheme()))

    def dequantize(self) -> Tensor:
        """fp32 [N, K]: the stored weight, in the basis after what is done to the input."""
        return self.codes().dequantize()

    def codes(self) -> QuantizedWeight:
        """The codes and scales as stored."""
        group_scale = self.weight_group_scale if self.group_size else None
        return self._quantized(self._portable_codes(), self.weight_scale.view(-1), group_scale)

    def _to_stored(self, w: Tensor) -> Tensor:
        """An effective weight in the basis in which it is stored."""
        return w if self.input_hadamard is None else hadamard(w.double(), self.input_hadamard or None)

    def _to_effective(self, w: Tensor) -> Tensor:
        if self.input_hadamard is None:
            return w
        return hadamard(w.double(), self.input_hadamard or None, transpose=True)

    # ---- what a subclass says of its format

    @property
    def stored_features(self) -> int:
        """Columns of the stored weight."""
        return self.in_features

    def _sizes(self) -> tuple[int, int, int, int | None]:
        return self.format_id, self.out_features, self.stored_features, self.group_size

    def _layout(self) -> dict:
        """Arguments of `formats.layer_tensors` beyond the sizes."""
        return {}

    def _scheme(self) -> Scheme:
        raise NotImplementedError

    def _pack(self, codes: Tensor) -> Tensor:
        """Codes [N, K] to their portable bytes."""
        raise NotImplementedError

    def _quantized(self, packed: Tensor, scale: Tensor, group_scale: Tensor | None) -> QuantizedWeight:
        raise NotImplementedError

    def _prepack(self, packed: Tensor) -> Tensor:
        """Portable bytes to tiles of this device."""
        raise NotImplementedError

    def _unpack_tiles(self, tiles: Tensor) -> Tensor:
        raise NotImplementedError

    def _prepack_group_scale(self, group_scale: Tensor) -> Tensor:
        raise NotImplementedError

    # ---- state

    def _set_codes(self, quantized: QuantizedWeight) -> None:
        if (quantized.group_scale is None) != (self.group_size is None):
            want = "none without group_size" if self.group_size is None else "[N, G] with group_size"
            got = "None" if quantized.group_scale is None else f"{list(quantized.group_scale.shape)}"
            raise ValueError(f"group_scale: expected {want}, got {got}")
        self._tiles = self._group_tiles = None
        setattr(self, self._codes_name, self._pack(quantized.codes).contiguous())
        self.weight_scale = quantized.scale.reshape(-1, 1).clone()
        if self.group_size:
            self.weight_group_scale = quantized.group_scale.contiguous()

    def _portable_codes(self) -> Tensor | None:
        if self._tiles is None:
            return getattr(self, self._codes_name)
        return self._unpack_tiles(self._tiles)

    def _drop_tiles(self) -> None:
        """Back to the portable codes: what `prepare` did, undone."""
        if self._tiles is not None:
            setattr(self, self._codes_name, self._portable_codes())
            self._tiles = self._group_tiles = None

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._tiles is not None:
            destination[prefix + self._codes_name] = self._portable_codes()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self._drop_tiles()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn, recurse=True):
        """`.to`, `.half()`, `.to_empty`: move everything, but keep the dtype of all but the bias.

        Tiles belong to a kind of device: a move to another kind takes the portable codes along instead.
        """
        probe = torch.empty(0, dtype=self.compute_dtype, device=self.weight_scale.device)
        moved = fn(probe)
        self.compute_dtype = moved.dtype
        if moved.device.type != probe.device.type:
            self._drop_tiles()
        kept = {k: b for k, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self


class IntegerLinear(QuantizedLinear):
    """Base of the integer layers: Q(x - input_shift) with integer codes per token, exact integer sums.

    activation_bits: 4 or 8, symmetric per token. clip: share of a token's absmax that the largest code stands
    for. group_size: integer group scales (int4 only). mean_shift: subtract the buffer `input_shift`, a static
    mean (the bias then carries W @ input_shift). The rest as in `QuantizedLinear`.
    """

    OPTIONS = (
        "in_features", "out_features", "bias", "activation_bits", "group_size", "clip", "input_hadamard",
        "mean_shift",
    )  # fmt: skip
    format_id: ClassVar[int]

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, activation_bits: int = 4,
        group_size: int | None = None, clip: float = 1.0, input_hadamard: int | None = None,
        mean_shift: bool = False, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, group_size, input_hadamard, dtype)
        if activation_bits not in (4, 8):
            raise ValueError(f"activation_bits: expected 4 or 8, got {activation_bits}")
        if group_size is not None and self.format_id != formats.INT4:
            raise ValueError(f"group_size: expected None for {type(self).__name__}, got {group_size}")
        self.activation_bits, self.clip, self.mean_shift = activation_bits, check_clip(clip), mean_shift
        self._create(bias, device)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, activation_bits: int = 4, group_size: int | None = None, clip: float = 1.0,
        input_hadamard: int | None = None,
    ) -> "IntegerLinear":
        """Round the weight of an `nn.Linear` to nearest (MSE clip search for int4, absmax / 127 for int8).

        With input_hadamard the weight gets the same transform, so the layer still computes linear(x).
        """
        check_linear(linear)
        w = linear.weight
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, activation_bits, group_size,
            clip, input_hadamard, device=w.device, dtype=w.dtype,
        )  # fmt: skip
        return layer._take(linear)

    @classmethod
    def from_codes(
        cls, codes: Tensor, weight_scale: Tensor, group_scale: Tensor | None = None,
        bias: Tensor | None = None, activation_bits: int = 4, group_size: int | None = None,
        clip: float = 1.0, input_hadamard: int | None = None, input_shift: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> "IntegerLinear":
        """From int8 codes [N, K], fp32 scales [N], uint8 group scales [N, G], bias [N], input_shift [K]."""
        if codes.dim() != 2 or codes.dtype != torch.int8:
            raise ValueError(f"codes: expected int8 [N, K], got {codes.dtype} {list(codes.shape)}")
        n, k = codes.shape
        if group_scale is not None and group_size is None:
            raise ValueError("group_size: expected 32, 64 or 128 with group_scale, got None")
        layer = cls(
            k, n, bias is not None, activation_bits, group_size, clip, input_hadamard,
            mean_shift=input_shift is not None,
            device=codes.device, dtype=dtype or (bias.dtype if bias is not None else torch.float32),
        )  # fmt: skip
        limit = layer._scheme().grid.max
        if codes.numel() and (int(codes.min()) < -limit or int(codes.max()) > limit):
            got = f"{int(codes.min())}..{int(codes.max())}"
            raise ValueError(f"codes: expected values in -{limit}..{limit}, got {got}")
        layer._set_codes(QuantizedWeight(codes, weight_scale.float().reshape(-1), group_scale, group_size))
        if input_shift is not None:
            layer.input_shift = input_shift.float().reshape(k).clone()
        return layer._finish(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., K] -> [..., N] in x.dtype, or autocast's. Differentiable in x (straight through the
        quantiser).
        """
        x = checked_input(x, self.in_features)
        self.prepare()
        return ops.dynamic_linear(
            x, self._tiles, self.weight_scale.view(-1), self._group_tiles, self.bias, self.activation_bits,
            self.clip, self.input_hadamard, self.input_shift if self.mean_shift else None,
        )  # fmt: skip

    def set_weight(self, weight: Tensor) -> None:
        """As in the base; the bias follows where it carries W @ input_shift."""
        before = self.weight.data.float() if self.mean_shift else None
        super().set_weight(weight)
        if self.mean_shift:
            change = weight.detach().float() - before
            self.bias.data += (change @ self.input_shift).to(self.bias.dtype)

    def _layout(self) -> dict:
        return {"mean_shift": self.mean_shift}


class Int4Codes:
    """Mixin of the layers whose weight is int4 codes -7..7."""

    format_id = formats.INT4

    def _scheme(self) -> Scheme:
        return IntegerScheme(4, self.group_size)

    def _pack(self, codes: Tensor) -> Tensor:
        return reference.pack_int4(codes)

    def _quantized(self, packed: Tensor, scale: Tensor, group_scale: Tensor | None) -> QuantizedWeight:
        q = reference.unpack_int4(packed, self.stored_features)
        return QuantizedWeight(q, scale, group_scale, self.group_size)

    def _prepack(self, packed: Tensor) -> Tensor:
        return ops.prepack_int4_weight(packed)

    def _unpack_tiles(self, tiles: Tensor) -> Tensor:
        return reference.unprepack_int4_weight(tiles, self.out_features, self.stored_features)

    def _prepack_group_scale(self, group_scale: Tensor) -> Tensor:
        return ops.prepack_group_scale(group_scale)


class Int4Linear(Int4Codes, IntegerLinear):
    """Linear layer with 4-bit weights (-7..7, per channel or two-level groups), 4- or 8-bit activations."""


class Int8Linear(IntegerLinear):
    """Linear layer with 8-bit weights (-127..127, per output channel), 4- or 8-bit activations."""

    format_id = formats.INT8
    _codes_name = "weight_int8"

    def _scheme(self) -> Scheme:
        return IntegerScheme(8)

    def _pack(self, codes: Tensor) -> Tensor:
        return codes

    def _quantized(self, packed: Tensor, scale: Tensor, group_scale: Tensor | None) -> QuantizedWeight:
        return QuantizedWeight(packed, scale, None, None)

    def _prepack(self, packed: Tensor) -> Tensor:
        return ops.prepack_int8_weight(packed)

    def _unpack_tiles(self, tiles: Tensor) -> Tensor:
        return reference.unprepack_int8_weight(tiles, self.out_features, self.in_features)
