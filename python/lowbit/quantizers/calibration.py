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

from ..recipes import Recipe
from ..transforms.architectures import DecoderLayout, LayerParts
from ..transforms.rotation import OnlineHadamard
from .mergequant import StaticStage
from .stages import LlmFp4Stage, Stage

_ACTIVATION_BYTES = 640 << 20  # of one layer's widest tensors, per micro-batch


class _Stop(Exception):
    """Raised by a stage that has taken its input and needs nothing of the rest of the layer."""


def calibrate(
    layout: DecoderLayout, recipe: Recipe, batches: list[Tensor], online: dict[nn.Linear, OnlineHadamard],
    report: Callable[[], None], prefix: int = 0,
) -> list[dict]:
    """Quantise every layer in place. batches: token ids [b, s]; report: called after each layer. prefix: the
    first tokens of every sequence, which stay exact and are left out of the statistics. Returns what was
    decided, a dict per linear, where the recipe leaves something to decide.
    """
    batches = _micro_batches(batches, layout.intermediate_size)
    hidden, arguments = capture_inputs(layout, batches)
    decisions: list[dict] = []
    for i, parts in enumerate(layout.layers):
        original = next(parts.module.parameters()).dtype
        stages: list[Stage] = []
        for keys in LayerParts.STAGES:
            stages.append(_stage(parts, keys, i, recipe, online, stages, layout.head_dim))
        _run_layer(parts, stages, hidden, [a[i] for a in arguments], prefix)
        for keys, stage in zip(LayerParts.STAGES, stages, strict=True):
            for key, module in zip(keys, stage.modules, strict=True):
                parts.module.set_submodule(LayerParts.PATHS[key], module)
            stage.commit()
            if prefix and (step := stage.value_step()) is not None:
                stored = layout.decoder.lowbit_prefix[i, 1]  # values [H, P, D], as v_proj now gives them
                stored.div_(step.view(stored.shape[0], 1, -1))
            decisions += stage.report
        parts.module.to(original)  # calibration ran it in fp32
        report()
    return decisions


def _stage(
    parts: LayerParts, keys: tuple[str, ...], layer: int, recipe: Recipe, online: dict,
    earlier: list[Stage], head_dim: int,
) -> Stage:
    linears = [getattr(parts, key) for key in keys]
    common = (linears, recipe, online.get(linears[0]))
    if recipe.static_channels:
        norm = {"q": parts.input_norm, "gate": parts.mlp_norm}.get(keys[0])
        names = [f"{layer}.{LayerParts.PATHS[key]}" for key in keys]
        values = (earlier[0], 2, head_dim) if recipe.migrate_values and keys == ("o",) else None
        return StaticStage(*common, norm, names, values)
    return LlmFp4Stage(*common) if recipe.needs_inputs else Stage(*common)


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


def _run_layer(
    parts: LayerParts, stages: list[Stage], hidden: list[Tensor], arguments: list[dict], prefix: int
) -> None:
    """Quantise the stages in order and replace `hidden` by the layer's outputs."""
    single = len(hidden) == 1

    def route(stage: Stage, index: int) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if stage.modules is None:
                stage.add(x[:, prefix:])
                if not single:
                    raise _Stop
                stage.finish()
            y = stage.forward(index, x[:, prefix:])
            if not prefix:
                return y
            first = x[:, :prefix] if stage.online is None else stage.online.apply(x[:, :prefix])
            linear = stage.linears[index]
            return torch.cat((nn.functional.linear(first, linear.weight, linear.bias), y), 1)

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
