"""Stages of calibration: the linears of one decoder layer that share an input, and how they are quantised."""

import torch
from torch import Tensor, nn

from ..nn import Fp4Linear, Int4Linear, Int8Linear, QuantizedLinear, WeightOnlyLinear
from ..recipes import Recipe
from ..transforms.rotation import OnlineHadamard
from .choice import quantize_weights
from .gptq import Hessian
from .grid import INT4_FULL, INT8, FloatGrid, Grid
from .llm_fp4 import Fp4Activation, Fp4Options, fold, search
from .rtn import activation_clip_search
from .weight import FloatWeight, QuantizedWeight

CLIP_GRID = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
_CLIP_TOKENS = 1024  # tokens that the clip search looks at
CHUNK_TOKENS = 2048  # tokens transformed at a time
_OUTLIER = 8.0  # tokens of more than this many median norms do not count in the mean


class Stage:
    """Linears of one layer that share an input: gathers statistics of it, then replaces them."""

    def __init__(self, linears: list[nn.Linear], recipe: Recipe, online: OnlineHadamard | None):
        self.linears, self.recipe, self.online = linears, recipe, online
        self.hessian: Hessian | None = None
        self.shift: Tensor | None = None
        self.clip = recipe.activation_clip
        self.modules: list[QuantizedLinear] | None = None
        self.report: list[dict] = []  # what was decided, per linear

    def commit(self) -> None:
        """Change what else must change, once the layer's linears are replaced."""

    def value_step(self) -> Tensor | None:
        """What the layer's values are divided by from now on; None = they stay."""

    def add(self, x: Tensor) -> None:
        """x: [..., K] inputs of the linears as they come. The first call fixes shift and clip."""
        x = x.detach().reshape(-1, x.shape[-1])
        first = self.hessian is None
        if first:
            self.hessian = Hessian(x.shape[1], x.device)
            if self.recipe.mean_shift:
                self.shift = robust_mean(x)
            if self.clip is None:
                sample = self._transform(x[:: max(1, x.shape[0] // _CLIP_TOKENS)].float())
                grid = activation_grid(self.recipe)
                self.clip = activation_clip_search(sample, self._weight(), CLIP_GRID, grid)
        if self.recipe.needs_hessian:
            for part in x.split(CHUNK_TOKENS):
                h = self._transform(part.float())
                if self.recipe.quantized_calibration:
                    h = fake_quantize(h, activation_grid(self.recipe), self.clip)
                self.hessian.add(h)

    def finish(self) -> None:
        """Quantise the weights, build the layers that replace the linears."""
        weights = [linear.weight.detach().float() for linear in self.linears]
        h = self.hessian.matrix() if self.recipe.needs_hessian else None
        quantized = quantize_weights(weights, self.recipe, h)
        self.hessian = None
        mean = None if self.shift is None else self._transform_only(self.shift)
        self.modules = []
        for linear, w, q in zip(self.linears, weights, quantized, strict=True):
            bias = None if linear.bias is None else linear.bias.detach().float()
            if mean is not None:
                bias = w @ mean if bias is None else bias + w @ mean
            how = (self.recipe, self.clip, bias, self.online, self.shift)
            self.modules.append(build_module(q, linear, *how))

    def forward(self, index: int, x: Tensor) -> Tensor:
        """What linear `index` computes now that it is quantised."""
        if self.recipe.quantized_calibration:
            return self.modules[index](x)
        module = self.modules[index]
        return nn.functional.linear(self._transform(x.float()), module.dequantize(), module.bias).to(x.dtype)

    def _weight(self) -> Tensor:  # fp32 [sum of N, K]
        return torch.cat([linear.weight.detach().float() for linear in self.linears])

    def _transform(self, x: Tensor) -> Tensor:
        return self._transform_only(x if self.shift is None else x - self.shift)

    def _transform_only(self, x: Tensor) -> Tensor:
        return x if self.online is None else self.online.apply(x)


class LlmFp4Stage(Stage):
    """A stage of LLM-FP4: keeps the inputs themselves, by which activation and weights are searched."""

    def __init__(self, linears: list[nn.Linear], recipe: Recipe, online: OnlineHadamard | None):
        super().__init__(linears, recipe, online)
        self.inputs: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """x: [..., K] inputs of the linears as they come."""
        x = x.detach().reshape(-1, x.shape[-1])
        self.inputs += [self._transform(part.float()) for part in x.split(CHUNK_TOKENS)]

    def finish(self) -> None:
        """Search, build the layers that replace the linears."""
        x, self.inputs = torch.cat(self.inputs), []
        found = search(x, [linear.weight for linear in self.linears], fp4_options(self.recipe))
        self.modules = []
        for linear, q in zip(self.linears, found.weights, strict=True):
            bias = None if linear.bias is None else linear.bias.detach().float()
            how = (self.recipe, 1.0, bias, self.online, None, found.activation)
            self.modules.append(build_module(q, linear, *how))

    def forward(self, index: int, x: Tensor) -> Tensor:
        """What linear `index` computes now that it is quantised."""
        if self.recipe.quantized_calibration:
            return self.modules[index](x)
        module = self.modules[index]
        shift = getattr(module, "input_exponent", None)
        w = fold(module.dequantize(), None if shift is None else -shift)
        return nn.functional.linear(self._transform(x.float()), w, module.bias).to(x.dtype)


def fp4_options(recipe: Recipe) -> Fp4Options:
    """What LLM-FP4 searches for a recipe."""
    compensate, formats = recipe.weight_method == "llm-fp4-gptq", recipe.weight_formats
    if recipe.activation_bits != 4:
        return Fp4Options(None, pre_shift=False, gptq=compensate, weight_formats=formats)
    how = "tensor" if recipe.static_activations else "token"
    return Fp4Options(how, recipe.pre_shift, True, compensate, formats, recipe.activation_formats)


def build_module(
    q: QuantizedWeight, linear: nn.Linear, recipe: Recipe, clip: float, bias: Tensor | None,
    online: OnlineHadamard | None, shift: Tensor | None = None, activation: Fp4Activation | None = None,
) -> QuantizedLinear:
    """The quantised layer that takes `linear`'s place."""
    block = None if online is None else online.block or 0
    dtype = linear.weight.dtype
    if recipe.activation_bits == 16:
        return WeightOnlyLinear.from_weight(q, bias, block, dtype)
    if activation is not None:
        how = (activation.format, activation.clip, block, activation.scale, activation.exponent, dtype)
        return Fp4Linear.from_weight(q, bias, *how)
    if isinstance(q, FloatWeight):
        activation = recipe.activation_format or "int8"
        return Fp4Linear.from_weight(q, bias, activation, clip, input_hadamard=block, dtype=dtype)
    kind = Int4Linear if recipe.weight_bits == 4 else Int8Linear
    return kind.from_codes(
        q.codes, q.scale, q.group_scale, bias, recipe.activation_bits, q.group_size, clip,
        input_hadamard=block, input_shift=shift, dtype=dtype,
    )


def activation_grid(recipe: Recipe) -> Grid:
    """The values of the codes that the layers give their inputs: -8..7, -127..127 or those of a float."""
    if recipe.activation_format is not None:
        return FloatGrid(recipe.activation_format)
    return INT4_FULL if recipe.activation_bits == 4 else INT8


def fake_quantize(x: Tensor, grid: Grid, clip: float) -> Tensor:
    """x fp32 [T, K] rounded to the values that the per-token quantiser of the layers can represent."""
    scale = x.abs().amax(1, keepdim=True).mul_(clip / grid.max).clamp_min_(torch.finfo(torch.float32).tiny)
    return grid.round_(x / scale).mul_(scale)


def robust_mean(x: Tensor) -> Tensor:
    """fp32 [K]: mean over tokens [T, K], without those of massive norm."""
    norm = x.float().norm(dim=1)
    return x[norm <= _OUTLIER * norm.median()].float().mean(0)
