"""StaticInt4Linear: 4-bit weights behind static steps per input channel (MergeQuant, arXiv 2503.07654).

The codes of the input need no statistics of the token, and the product no scale per token:

    y = float(rint(T(x)[index] * inverse_step - shift) @ W_int^T) * w_scale (+ bias) (+ low rank)

W is the weight in integer units: the steps are multiplied into its columns before it is quantised.
"""

import torch
from torch import Tensor, nn

from lowbit import ops

from .. import reference
from ..quantizers import QuantizedWeight, rtn
from .checks import check_linear, checked_input
from .linear import Int4Codes, QuantizedLinear


class _StraightThrough(torch.autograd.Function):
    """layer.compute(x), with the gradient of x @ weight.T: rounding the input counts as the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, layer: "StaticInt4Linear") -> Tensor:
        return layer.compute(x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.layer = inputs[1]

    @staticmethod
    def backward(ctx, grad: Tensor):
        return (grad.float() @ ctx.layer.weight.data.float()).to(grad.dtype), None


class StaticInt4Linear(Int4Codes, QuantizedLinear):
    """Linear layer with 4-bit weights and static 4- or 8-bit codes per input channel.

    activation_bits, group_size, input_hadamard: as in `Int4Linear`. gathered: None, or K', the number of
    inputs that the buffer `input_index` picks (channels split into copies appear more than once, pruned ones
    not at all). input_step: divide by steps, buffer `input_inverse_step`; without it the input arrives in
    integer units, its steps having been migrated into what computes it. mean_shift: subtract the buffer
    `input_shift` (in integer units; the bias carries its product with the weight). rank: of a compensation
    of the weight's rounding error, `low_rank_up @ low_rank_down`, in integer units too; 0 = none.
    """

    OPTIONS = (
        "in_features", "out_features", "bias", "activation_bits", "group_size", "input_hadamard", "gathered",
        "input_step", "mean_shift", "rank",
    )  # fmt: skip

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, activation_bits: int = 4,
        group_size: int | None = None, input_hadamard: int | None = None, gathered: int | None = None,
        input_step: bool = True, mean_shift: bool = False, rank: int = 0,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, group_size, input_hadamard, dtype)
        if activation_bits not in (4, 8):
            raise ValueError(f"activation_bits: expected 4 or 8, got {activation_bits}")
        for name, value in (("gathered", gathered), ("rank", rank)):
            if value is not None and value < 0:
                raise ValueError(f"{name}: expected 0 or more, got {value}")
        self.activation_bits, self.gathered, self.rank = activation_bits, gathered, rank
        self.input_step, self.mean_shift = input_step, mean_shift
        self._create(bias, device)
        if input_step and self.weight_meta.device.type != "meta":
            self.input_inverse_step.fill_(1.0)

    @property
    def stored_features(self) -> int:
        """Columns of the stored weight: K', or in_features where nothing is gathered."""
        return self.in_features if self.gathered is None else self.gathered

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, step: Tensor, activation_bits: int = 4, group_size: int | None = None,
        input_hadamard: int | None = None,
    ) -> "StaticInt4Linear":
        """Round the weight of an `nn.Linear`, its columns multiplied by `step` [K], to nearest."""
        check_linear(linear)
        w = linear.weight
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, activation_bits, group_size,
            input_hadamard, device=w.device, dtype=w.dtype,
        )  # fmt: skip
        if tuple(step.shape) != (linear.in_features,):
            raise ValueError(f"step: expected [{linear.in_features}], got {list(step.shape)}")
        layer.input_inverse_step.copy_(1.0 / step.float())
        return layer._take(linear)

    @classmethod
    def from_weight(
        cls, weight: QuantizedWeight, in_features: int, bias: Tensor | None = None, activation_bits: int = 4,
        input_hadamard: int | None = None, index: Tensor | None = None, inverse_step: Tensor | None = None,
        shift: Tensor | None = None, low_rank: tuple[Tensor, Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> "StaticInt4Linear":
        """From codes [N, K'] in integer units, index [K'], inverse_step [K'], shift [K'], bias [N], and the
        pair (up [N, r], down [r, K']) of the compensation.
        """
        n, k = weight.codes.shape
        layer = cls(
            in_features, n, bias is not None, activation_bits, weight.group_size, input_hadamard,
            None if index is None else k, inverse_step is not None, shift is not None,
            0 if low_rank is None else low_rank[0].shape[1],
            device=weight.codes.device, dtype=dtype or (bias.dtype if bias is not None else torch.float32),
        )  # fmt: skip
        layer._set_codes(weight)
        up, down = low_rank or (None, None)
        given = dict(
            input_index=index, input_inverse_step=inverse_step, input_shift=shift, low_rank_up=up,
            low_rank_down=down,
        )  # fmt: skip
        for name, value in given.items():
            if value is not None:
                getattr(layer, name).copy_(value)
        return layer._finish(bias)

    def quantize_input(self, x: Tensor) -> Tensor:
        """x [..., K] -> codes as the kernel takes them: packed uint8 for 4 bits, int8 for 8."""
        step = self.input_inverse_step if self.input_step else None
        shift = self.input_shift if self.mean_shift else None
        index = None if self.gathered is None else self.input_index
        return ops.quantize_static(x, self.activation_bits, step, shift, index, self.input_hadamard)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [..., K] -> [..., N] in x.dtype, or autocast's. Differentiable in x (straight through the
        quantiser).
        """
        x = checked_input(x, self.in_features)
        self.prepare()
        return _StraightThrough.apply(x, self) if torch.is_grad_enabled() else self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """`forward` without its gradient, once prepared."""
        codes, scale = self.quantize_input(x), self.weight_scale.view(-1)
        exact = torch.float32 if self.rank else x.dtype
        y = ops.int4_linear(codes, None, self._tiles, scale, self._group_tiles, self.bias, exact)
        if not self.rank:
            return y
        q = codes if codes.dtype == torch.int8 else reference.unpack_int4(codes, self.stored_features)
        return (y + (q.float() @ self.low_rank_down.T) @ self.low_rank_up.T).to(x.dtype)

    def validate(self, name: str = "") -> None:
        """As in the base; the index too must lie within the inputs."""
        super().validate(name)
        if self.gathered:
            low, high = int(self.input_index.min()), int(self.input_index.max())
            if low < 0 or high >= self.in_features:
                key = f"{name}.input_index" if name else "input_index"
                raise ValueError(f"{key}: expected 0..{self.in_features - 1}, got {low}..{high}")

    def dequantize(self) -> Tensor:
        """fp32 [N, K']: the stored weight, in integer units, with its compensation."""
        w = super().dequantize()
        return w + self.low_rank_up @ self.low_rank_down if self.rank else w

    def set_weight(self, weight: Tensor) -> None:
        """Quantise the effective weight [N, K]. Pruned inputs are lost, the compensation becomes nothing, and
        the bias follows where it carries W @ input_shift.
        """
        if tuple(weight.shape) != (self.out_features, self.in_features):
            want = [self.out_features, self.in_features]
            raise ValueError(f"weight: expected {want}, got {list(weight.shape)}")
        stored = self._to_stored(weight.detach())
        before = self.dequantize() if self.mean_shift and self.bias is not None else None
        self._set_codes(rtn(stored, self._scheme()))
        if self.rank:
            self.low_rank_up.zero_()
        if before is not None:
            self.bias.data += ((stored.float() - before) @ self.input_shift).to(self.bias.dtype)

    def _to_stored(self, w: Tensor) -> Tensor:
        w = super()._to_stored(w).double()
        if self.gathered is not None:
            index = self.input_index.long()
            w = w[:, index] / torch.bincount(index, minlength=self.in_features)[index]
        return w / self.input_inverse_step.double() if self.input_step else w

    def _to_effective(self, w: Tensor) -> Tensor:
        w = w.double()
        if self.input_step:
            w = w * self.input_inverse_step.double()
        if self.gathered is not None:
            w = w.new_zeros(w.shape[0], self.in_features).index_add_(1, self.input_index.long(), w)
        return super()._to_effective(w)

    def _layout(self) -> dict:
        return {
            "mean_shift": self.mean_shift, "input_index": self.gathered is not None,
            "input_step": self.input_step, "rank": self.rank,
        }  # fmt: skip
