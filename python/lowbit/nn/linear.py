"""Int4Linear and Int8Linear: quantised weights, per-token quantised activations, exact integer sums."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lowbit import ops

from .. import formats, reference
from ..quantizers import QuantizedWeight, rtn
from ..transforms.hadamard import hadamard


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
    """Base of the quantised layers: y = Q(T(x - input_shift)) W^T + bias, T the optional input Hadamard.

    in_features, out_features, bias, device, dtype: as in `nn.Linear`; dtype is that of the bias and of
    `weight`. activation_bits: 4 or 8, symmetric per token. clip: share of a token's absmax that the largest
    code stands for. group_size: None, or 32, 64, 128 for integer group scales (int4 only). input_hadamard:
    None = none, 0 = over all inputs, b = block-diagonal with blocks of b. mean_shift: subtract the buffer
    `input_shift`, a static mean (the bias then carries W @ input_shift). Raises ValueError for other values.

    The portable buffers (see `lowbit.formats`) are turned into kernel tiles at the first forward and dropped;
    `state_dict()` rebuilds them. Scales stay fp32 through `.to(dtype)` and `.half()`.
    """

    format_id: ClassVar[int]
    _codes_name: ClassVar[str]

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, activation_bits: int = 4,
        group_size: int | None = None, clip: float = 1.0, input_hadamard: int | None = None,
        mean_shift: bool = False, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ):
        nn.Module.__init__(self)  # not nn.Linear's: it would allocate the fp weight
        _check_arguments(in_features, activation_bits, group_size, clip, input_hadamard)
        if group_size is not None and self.format_id != formats.INT4:
            raise ValueError(f"group_size: expected None for {type(self).__name__}, got {group_size}")
        self.in_features, self.out_features = in_features, out_features
        self.activation_bits, self.group_size = activation_bits, group_size
        self.clip, self.input_hadamard, self.mean_shift = float(clip), input_hadamard, mean_shift
        self.compute_dtype = dtype or torch.get_default_dtype()
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=self.compute_dtype))
        else:
            self.register_parameter("bias", None)
        for name, (kind, shape) in self._tensors().items():
            self.register_buffer(name, torch.zeros(shape, dtype=kind, device=device))
        if self.weight_meta.device.type != "meta":
            self.weight_scale.fill_(1.0)
            if group_size:
                self.weight_group_scale.fill_(1)
            meta = formats.meta_tensor(self.format_id, out_features, in_features, group_size)
            self.weight_meta.copy_(meta)
        self.register_buffer("_tiles", None, persistent=False)
        self.register_buffer("_group_tiles", None, persistent=False)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, activation_bits: int = 4, group_size: int | None = None, clip: float = 1.0,
        input_hadamard: int | None = None,
    ) -> "QuantizedLinear":
        """Round the weight of an `nn.Linear` to nearest (MSE clip search for int4, absmax / 127 for int8).

        With input_hadamard the weight gets the same transform, so the layer still computes linear(x).
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear: expected nn.Linear, got {type(linear).__name__}")
        _check_arguments(linear.in_features, activation_bits, group_size, clip, input_hadamard)
        w = linear.weight.detach()
        if input_hadamard is not None:
            w = hadamard(w.double(), input_hadamard or None)
        quantized = rtn(w, cls._weight_bits(), group_size)
        bias = None if linear.bias is None else linear.bias.detach()
        return cls.from_codes(
            quantized.codes, quantized.scale, quantized.group_scale, bias, activation_bits=activation_bits,
            group_size=group_size, clip=clip, input_hadamard=input_hadamard, dtype=linear.weight.dtype,
        )

    @classmethod
    def from_codes(
        cls, codes: Tensor, weight_scale: Tensor, group_scale: Tensor | None = None,
        bias: Tensor | None = None, activation_bits: int = 4, group_size: int | None = None,
        clip: float = 1.0, input_hadamard: int | None = None, input_shift: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> "QuantizedLinear":
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
        )
        limit = 7 if cls.format_id == formats.INT4 else 127
        if codes.numel() and (int(codes.min()) < -limit or int(codes.max()) > limit):
            got = f"{int(codes.min())}..{int(codes.max())}"
            raise ValueError(f"codes: expected values in -{limit}..{limit}, got {got}")
        layer._set_codes(QuantizedWeight(codes, weight_scale.float().reshape(-1), group_scale, group_size))
        if bias is not None:
            layer.bias.data.copy_(bias)
        if input_shift is not None:
            layer.input_shift = input_shift.float().reshape(k).clone()
        layer.requires_grad_(False)
        layer.validate()
        return layer

    # ---- forward

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., K] -> [..., N] in x.dtype. Differentiable in x (straight through the quantiser)."""
        self.prepare()
        return ops.dynamic_linear(
            x, self._tiles, self.weight_scale.view(-1), self._group_tiles, self.bias, self.activation_bits,
            self.clip, self.input_hadamard, self.input_shift if self.mean_shift else None,
        )

    def prepare(self) -> None:
        """Turn the portable codes into kernel tiles and drop them. Done by the first forward; idempotent."""
        if self._tiles is None:
            codes = getattr(self, self._codes_name)
            self._tiles = self._prepack(codes)
            if self.group_size:
                self._group_tiles = ops.prepack_group_scale(self.weight_group_scale)
            setattr(self, self._codes_name, None)

    def validate(self, name: str = "") -> None:
        """ValueError with one sentence naming the tensor if any holds what the format forbids."""
        tensors = {key: getattr(self, key) for key in self._tensors()}
        tensors[self._codes_name] = self._portable_codes()
        formats.validate_layer(
            tensors, self.format_id, self.out_features, self.in_features, self.group_size, self.mean_shift,
            name,
        )

    # ---- the weight, as adapters and merges see it

    @property
    def weight(self) -> Tensor:
        """The effective weight [N, K] in the layer's dtype: dequantised, input transform undone.

        A fresh tensor at every access. Assigning to its `.data` quantises the assigned values into the layer.
        """
        if self.weight_scale.device.type == "meta":
            w = torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device="meta")
        else:
            w = self.dequantize()
            if self.input_hadamard is not None:
                w = hadamard(w.double(), self.input_hadamard or None, transpose=True)
            w = w.to(self.compute_dtype)
        w = w.as_subclass(_DequantizedWeight)
        w._layer = self
        return w

    def set_weight(self, weight: Tensor) -> None:
        """Quantise the effective weight [N, K] into this layer, rounding to nearest (after a LoRA merge)."""
        if tuple(weight.shape) != (self.out_features, self.in_features):
            want = [self.out_features, self.in_features]
            raise ValueError(f"weight: expected {want}, got {list(weight.shape)}")
        w = weight.detach()
        if self.mean_shift:  # the bias carries W @ input_shift
            change = w.float() - self.weight.data.float()
            self.bias.data += (change @ self.input_shift).to(self.bias.dtype)
        if self.input_hadamard is not None:
            w = hadamard(w.double(), self.input_hadamard or None)
        self._set_codes(rtn(w, self._weight_bits(), self.group_size))

    def dequantize(self) -> Tensor:
        """fp32 [N, K]: the stored weight, in the basis after the input transform."""
        return self.codes().dequantize()

    def codes(self) -> QuantizedWeight:
        """The integer codes and scales as stored."""
        packed = self._portable_codes()
        q = packed if self.format_id == formats.INT8 else reference.unpack_int4(packed, self.in_features)
        group_scale = self.weight_group_scale if self.group_size else None
        return QuantizedWeight(q, self.weight_scale.view(-1), group_scale, self.group_size)

    # ---- state

    def _tensors(self) -> dict:
        return formats.layer_tensors(
            self.format_id, self.out_features, self.in_features, self.group_size, self.mean_shift
        )

    @classmethod
    def _weight_bits(cls) -> int:
        return 4 if cls.format_id == formats.INT4 else 8

    def _set_codes(self, quantized: QuantizedWeight) -> None:
        self._tiles = self._group_tiles = None
        packed = reference.pack_int4(quantized.codes) if self.format_id == formats.INT4 else quantized.codes
        setattr(self, self._codes_name, packed.contiguous())
        self.weight_scale = quantized.scale.reshape(-1, 1).clone()
        if self.group_size:
            if quantized.group_scale is None:
                raise ValueError("group_scale: expected uint8 [N, G] with group_size, got None")
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
        """`.to`, `.half()`, `.to_empty`: move everything, but keep scales and shift in fp32.

        Tiles belong to a kind of device: a move to another kind takes the portable codes along instead.
        """
        kept = {key: self._buffers[key] for key in ("weight_scale", "input_shift") if key in self._buffers}
        probe = torch.empty(0, dtype=self.compute_dtype, device=self.weight_scale.device)
        moved = fn(probe)
        self.compute_dtype = moved.dtype
        if moved.device.type != probe.device.type:
            self._drop_tiles()
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if after.dtype != torch.float32:
                self._buffers[name] = before.to(after.device)
        return self

    def _prepack(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def _unpack_tiles(self, tiles: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, "
            f"activation_bits={self.activation_bits}, group_size={self.group_size}, clip={self.clip:g}, "
            f"input_hadamard={self.input_hadamard}, mean_shift={self.mean_shift}"
        )


class Int4Linear(QuantizedLinear):
    """Linear layer with 4-bit weights (-7..7, per channel or two-level groups), 4- or 8-bit activations."""

    format_id = formats.INT4
    _codes_name = "weight_packed"

    def _prepack(self, codes: Tensor) -> Tensor:
        return ops.prepack_int4_weight(codes)

    def _unpack_tiles(self, tiles: Tensor) -> Tensor:
        return reference.unprepack_int4_weight(tiles, self.out_features, self.in_features)


class Int8Linear(QuantizedLinear):
    """Linear layer with 8-bit weights (-127..127, per output channel), 4- or 8-bit activations."""

    format_id = formats.INT8
    _codes_name = "weight_int8"

    def _prepack(self, codes: Tensor) -> Tensor:
        return ops.prepack_int8_weight(codes)

    def _unpack_tiles(self, tiles: Tensor) -> Tensor:
        return reference.unprepack_int8_weight(tiles, self.out_features, self.in_features)


def _check_arguments(
    k: int, activation_bits: int, group_size: int | None, clip: float, block: int | None,
) -> None:
    if activation_bits not in (4, 8):
        raise ValueError(f"activation_bits: expected 4 or 8, got {activation_bits}")
    formats.check_group_size(group_size)
    if not 0.0 < clip <= 1.0:
        raise ValueError(f"clip: expected a value in (0, 1], got {clip}")
    if block is not None:
        size = block or k
        if block < 0 or (k and k % size):
            raise ValueError(f"input_hadamard: expected None, 0 or a divisor of {k}, got {block}")
        if size:
            reference.transform.split_order(size)  # ValueError for a size without a Hadamard matrix
