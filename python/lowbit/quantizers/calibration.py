"""Layer-by-layer calibration: run each decoder layer on the calibration tokens, quantise its linears in
order.

Within a layer the linears that share an input form a stage ({q,k,v} -> {o} -> {gate,up} -> {down}); a stage
is quantised when its input arrives, and the forward goes on through the quantised layers. When all tokens fit
one micro-batch a layer is therefore run once; otherwise once per stage (stopping there) and once at the end.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..nn import Int4Linear, Int8Linear, QuantizedLinear
from ..recipes import Recipe
from ..transforms.architectures import DecoderLayout, LayerParts
from ..transforms.rotation import OnlineHadamard
from .gptq import Hessian, gptq
from .rtn import QuantizedWeight, activation_clip_search, activation_codes_, rtn

CLIP_GRID = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
_CLIP_TOKENS = 1024  # tokens that the clip search looks at
_CHUNK_TOKENS = 2048  # tokens transformed at a time
_ACTIVATION_BYTES = 640 << 20  # of one layer's widest tensors, per micro-batch
_OUTLIER = 8.0  # tokens of more than this many median norms do not count in the mean


class _Stop(Exception):
    """Raised by a stage that has taken its input and needs nothing of the rest of the layer."""


class Stage:
    """Linears of one layer that share an input: gathers statistics of it, then replaces them."""

    def __init__(self, linears: list[nn.Linear], recipe: Recipe, online: OnlineHadamard | None):
        self.linears, self.recipe, self.online = linears, recipe, online
        self.hessian: Hessian | None = None
        self.shift: Tensor | None = None
        self.clip = recipe.activation_clip
        self.modules: list[QuantizedLinear] | None = None

    def add(self, x: Tensor) -> None:
        """x: [..., K] inputs of the linears as they come. The first call fixes shift and clip."""
        x = x.detach().reshape(-1, x.shape[-1])
        first = self.hessian is None
        if first:
            self.hessian = Hessian(x.shape[1], x.device)
            if self.recipe.mean_shift:
                self.shift = _robust_mean(x)
            if self.clip is None:
                sample = self._transform(x[:: max(1, x.shape[0] // _CLIP_TOKENS)].float())
                self.clip = activation_clip_search(sample, self._weight(), CLIP_GRID, self._qmax)
        if self.recipe.weight_method == "gptq":
            for part in x.split(_CHUNK_TOKENS):
                h = self._transform(part.float())
                if self.recipe.quantized_calibration:
                    h = fake_quantize(h, self._qmax, self.clip)
                self.hessian.add(h)

    def finish(self) -> None:
        """Quantise the weights, build the layers that replace the linears."""
        w, recipe = self._weight(), self.recipe
        if recipe.weight_method == "gptq":
            q = gptq(w, self.hessian.matrix(), recipe.weight_bits, recipe.group_size, recipe.damp)
        else:
            q = rtn(w, recipe.weight_bits, recipe.group_size)
        self.hessian = None
        mean = None if self.shift is None else w @ self._transform_only(self.shift)
        self.modules, row = [], 0
        for linear in self.linears:
            rows = slice(row, row + linear.out_features)
            row = rows.stop
            bias = None if linear.bias is None else linear.bias.detach().float()
            if mean is not None:
                bias = mean[rows] if bias is None else bias + mean[rows]
            part = QuantizedWeight(
                q.codes[rows], q.scale[rows], None if q.group_scale is None else q.group_scale[rows],
                q.group_size,
            )
            self.modules.append(build_module(part, linear, recipe, self.clip, bias, self.online, self.shift))

    def forward(self, index: int, x: Tensor) -> Tensor:
        """What linear `index` computes now that it is quantised."""
        if self.recipe.quantized_calibration:
            return self.modules[index](x)
        module = self.modules[index]
        return nn.functional.linear(self._transform(x.float()), module.dequantize(), module.bias).to(x.dtype)

    @property
    def _qmax(self) -> int:
        return 7 if self.recipe.activation_bits == 4 else 127

    def _weight(self) -> Tensor:  # fp32 [sum of N, K]
        return torch.cat([linear.weight.detach().float() for linear in self.linears])

    def _transform(self, x: Tensor) -> Tensor:
        return self._transform_only(x if self.shift is None else x - self.shift)

    def _transform_only(self, x: Tensor) -> Tensor:
        return x if self.online is None else self.online.apply(x)


def build_module(
    q: QuantizedWeight, linear: nn.Linear, recipe: Recipe, clip: float, bias: Tensor | None,
    online: OnlineHadamard | None, shift: Tensor | None = None,
) -> QuantizedLinear:
    """The quantised layer that takes `linear`'s place."""
    kind = Int4Linear if recipe.weight_bits == 4 else Int8Linear
    block = None if online is None else online.block or 0
    return kind.from_codes(
        q.codes, q.scale, q.group_scale, bias, recipe.activation_bits, q.group_size, clip,
        input_hadamard=block, input_shift=shift, dtype=linear.weight.dtype,
    )


def fake_quantize(x: Tensor, qmax: int, clip: float) -> Tensor:
    """x fp32 [T, K] rounded to the values that the per-token quantiser of the layers can represent."""
    scale = x.abs().amax(1, keepdim=True).mul_(clip / qmax).clamp_min_(torch.finfo(torch.float32).tiny)
    return activation_codes_(x / scale, qmax).mul_(scale)


def calibrate(
    layout: DecoderLayout, recipe: Recipe, batches: list[Tensor], online: dict[nn.Linear, OnlineHadamard],
    report: Callable[[], None],
) -> None:
    """Quantise every layer in place. batches: token ids [b, s]; report: called after each layer."""
    batches = _micro_batches(batches, layout.intermediate_size)
    hidden, arguments = capture_inputs(layout, batches)
    for i, parts in enumerate(layout.layers):
        original = next(parts.module.parameters()).dtype
        stages = [
            Stage([getattr(parts, key) for key in keys], recipe, online.get(getattr(parts, keys[0])))
            for keys in LayerParts.STAGES
        ]
        _run_layer(parts, stages, hidden, [a[i] for a in arguments])
        for keys, stage in zip(LayerParts.STAGES, stages, strict=True):
            for key, module in zip(keys, stage.modules, strict=True):
                parts.module.set_submodule(LayerParts.PATHS[key], module)
        parts.module.to(original)  # calibration ran it in fp32
        report()


def capture_inputs(layout: DecoderLayout, batches: list[Tensor]) -> tuple[list[Tensor], list[list[dict]]]:
    """(hidden states [b, s, d] entering the first layer, keyword arguments of each layer), per batch."""
    hidden: list[Tensor] = []
    arguments: list[list[dict]] = []

    def record(first: bool):
        def forward(x: Tensor, *args, **kwargs):
            if first:
                hidden.append(x.float())
            arguments[-1].append(kwargs)
            return x

        return forward

    modules = [parts.module for parts in layout.layers]
    for i, module in enumerate(modules):
        module.forward = record(i == 0)
    try:
        for ids in batches:
            arguments.append([])
            layout.decoder(input_ids=ids.to(layout.embedding.weight.device), use_cache=False)
    finally:
        for module in modules:
            del module.forward
    return hidden, arguments


def _run_layer(parts: LayerParts, stages: list[Stage], hidden: list[Tensor], arguments: list[dict]) -> None:
    """Quantise the stages in order and replace `hidden` by the layer's outputs."""
    single = len(hidden) == 1

    def route(stage: Stage, index: int) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if stage.modules is None:
                stage.add(x)
                if not single:
                    raise _Stop
                stage.finish()
            return stage.forward(index, x)

        return forward

    parts.module.float()
    for stage in stages:
        if stage.online is not None:
            stage.online.remove()  # the stage applies it
        for index, linear in enumerate(stage.linears):
            linear.forward = route(stage, index)
    try:
        if not single:
            for stage in stages:
                for x, kwargs in zip(hidden, arguments, strict=True):
                    with contextlib.suppress(_Stop):
                        parts.module(x, **kwargs)
                stage.finish()
        for i, kwargs in enumerate(arguments):
            hidden[i] = _output(parts.module(hidden[i], **kwargs))
    finally:
        for stage in stages:
            for linear in stage.linears:
                del linear.forward
    if not all(bool(torch.isfinite(x).all()) for x in hidden):
        raise ValueError("calibration: expected finite activations, got NaN or inf out of a decoder layer")


def _output(out: Tensor | tuple) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _micro_batches(batches: list[Tensor], width: int) -> list[Tensor]:
    """One batch if all sequences have one length and a layer's activations fit; else smaller ones."""
    tokens = max(1, _ACTIVATION_BYTES // (6 * 4 * width))
    merged: list[Tensor] = []
    for ids in batches:
        if merged and merged[-1].shape[1] == ids.shape[1]:
            merged[-1] = torch.cat((merged[-1], ids))
        else:
            merged.append(ids)
    return [part for ids in merged for part in ids.split(max(1, tokens // ids.shape[1]))]


def _robust_mean(x: Tensor) -> Tensor:
    """fp32 [K]: mean over tokens [T, K], without those of massive norm."""
    norm = x.float().norm(dim=1)
    return x[norm <= _OUTLIER * norm.median()].float().mean(0)
