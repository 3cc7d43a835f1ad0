"""`lowbit.quantize`: a recipe applied to a model, in place."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .nn import Int8Linear, QuantizedLinear
from .quantizers.calibration import calibrate
from .quantizers.choice import quantize_weights
from .quantizers.stages import build_module
from .recipes import Recipe
from .transforms import (
    DecoderLayout,
    OnlineHadamard,
    check_invariance,
    exact_logits,
    find_layout,
    rotate,
    untie_embeddings,
)

_PROBE_TOKENS = 64


def quantize(
    model: nn.Module,
    recipe: str | Recipe,
    calibration: Tensor | Sequence | None = None,
    progress: bool = True,
) -> nn.Module:
    """Quantise a causal language model in place and return it.

    model: a transformers model in fp32, bf16, fp16 or fp64. recipe: a `Recipe`, or a name from
    `recipes.METHODS`. calibration: token ids, int64 [n, seq], or a list of sequences of any lengths; needed
    by GPTQ, LLM-FP4, a mean shift and a searched clip (`recipe.needs_calibration`). progress: show a bar
    over the layers.

    Rotated recipes need a pre-norm RMSNorm decoder (Llama, Mistral, Qwen2, Qwen3) and check that the rotation
    left the logits alone. Embeddings stay in floating point, and lm_head unless `recipe.head_bits` says
    otherwise. Layers are processed one at a time.

    Raises ValueError (TypeError for a wrong type) with one sentence, before the model is touched, for: an
    unknown recipe, calibration that is missing, empty, not integer or out of the vocabulary, a model without
    linear layers, with NaN in its weights or already quantised, an architecture that the recipe cannot treat.
    Raises RuntimeError if the rotated logits moved by more than rounding explains.
    """
    recipe = _recipe(recipe)
    linears = _linears(model)
    layout = None
    if recipe.rotate or recipe.needs_calibration or recipe.head_bits == 8:
        needs = "calibration" if recipe.needs_calibration else "an 8-bit head"
        layout = find_layout(model, "rotation" if recipe.rotate else needs)
    batches = _calibration(calibration, recipe, model)
    _check_weights(linears)
    training = model.training
    model.eval()
    decisions: list[dict] = []
    with torch.no_grad():
        online = _rotate(layout, recipe, batches) if recipe.rotate else {}
        total = len(layout.layers) if recipe.needs_calibration else len(linears)
        with tqdm(total=total, desc=f"quantize {recipe.name}", disable=not progress) as bar:
            if recipe.needs_calibration:
                first = _prefix_ids(layout) if recipe.prefix else None
                if first is not None:
                    layout.decoder.register_buffer("lowbit_prefix", _prefix_cache(layout, first))
                    batches = [torch.cat((first.expand(len(b), -1).to(b), b), 1) for b in batches]
                tokens = 0 if first is None else first.shape[1]
                decisions = calibrate(layout, recipe, batches, online, lambda: bar.update(1), tokens)
            else:
                _round_all(model, linears, recipe, online, bar)
        if recipe.head_bits == 8:
            untie_embeddings(layout)
            name = next(name for name, module in model.named_modules() if module is layout.head)
            model.set_submodule(name, Int8Linear.from_linear(layout.head, activation_bits=8))
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.prepare()
    if decisions:
        model.quantization_report = decisions
    if hasattr(model, "config") and hasattr(model, "save_pretrained"):
        from .integrations.hf import attach

        attach(model, recipe)
    return model.train(training)


def _recipe(recipe: str | Recipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise TypeError(f"recipe: expected a name or lowbit.Recipe, got {type(recipe).__name__}")
    return Recipe.from_name(recipe)


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linears to quantise, by name: all but the output head."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected torch.nn.Module, got {type(model).__name__}")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    modules = dict(model.named_modules())
    if any(isinstance(m, QuantizedLinear) for m in modules.values()) or getattr(model, "is_quantized", False):
        raise ValueError("model: expected one in floating point, got one that is already quantised")
    linears = {n: m for n, m in modules.items() if type(m) is nn.Linear and m is not head}
    if not linears:
        got = type(model).__name__
        raise ValueError(f"model: expected at least one nn.Linear besides the head, got none in {got}")
    if any(linear.weight.device.type == "meta" for linear in linears.values()):
        raise ValueError("model: expected weights in memory, got tensors on the meta device")
    experts = sum(p.numel() for p in model.parameters() if p.dim() > 2)
    if experts:
        share = experts / sum(p.numel() for p in model.parameters())
        warnings.warn(
            f"model: {share:.0%} of the parameters are in tensors of 3 or more dimensions (fused experts, "
            "convolutions), which lowbit leaves in floating point",
            stacklevel=3,
        )
    return linears


def _check_weights(linears: dict[str, nn.Linear]) -> None:
    for name, linear in linears.items():
        if not bool(torch.isfinite(linear.weight.detach()).all()):
            raise ValueError(f"{name}.weight: expected finite values, got NaN or inf")


def _calibration(calibration: Tensor | Sequence | None, recipe: Recipe, model: nn.Module) -> list[Tensor]:
    """Token ids as a list of int64 [b, s]; [] where none were given and none are needed."""
    if calibration is None:
        if recipe.needs_calibration:
            raise ValueError(f"calibration: expected token ids [n, seq] for recipe {recipe.name!r}, got None")
        return []
    items = [calibration] if isinstance(calibration, Tensor) else list(calibration)
    batches = []
    for item in items:
        ids = item if isinstance(item, Tensor) else torch.as_tensor(item)
        if ids.numel() == 0:
            raise ValueError(f"calibration: expected at least one token, got shape {list(ids.shape)}")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            nan = ", holding NaN" if ids.is_floating_point() and bool(ids.isnan().any()) else ""
            raise ValueError(f"calibration: expected integer token ids, got {ids.dtype}{nan}")
        if ids.dim() not in (1, 2):
            raise ValueError(f"calibration: expected token ids [n, seq], got shape {list(ids.shape)}")
        batches.append(ids.long().reshape(-1, ids.shape[-1]))
    if not batches:
        raise ValueError("calibration: expected at least one sequence of token ids, got an empty list")
    has_vocabulary = hasattr(model, "get_input_embeddings")
    vocabulary = model.get_input_embeddings().num_embeddings if has_vocabulary else None
    low, high = min(int(b.min()) for b in batches), max(int(b.max()) for b in batches)
    if vocabulary is not None and (low < 0 or high >= vocabulary):
        raise ValueError(f"calibration: expected token ids in 0..{vocabulary - 1}, got {low}..{high}")
    return batches


def _rotate(layout: DecoderLayout, recipe: Recipe, batches: list[Tensor]) -> dict[nn.Linear, OnlineHadamard]:
    if batches:
        probe = batches[0][:1, :_PROBE_TOKENS]
    else:
        generator = torch.Generator().manual_seed(recipe.seed)
        probe = torch.randint(layout.embedding.num_embeddings, (1, _PROBE_TOKENS), generator=generator)
    before = exact_logits(layout, probe)
    if not bool(torch.isfinite(before).all()):
        raise ValueError("model: expected finite logits on the calibration tokens, got NaN or inf")
    online = rotate(layout, recipe.seed, recipe.rotate_residual)
    check_invariance(before, exact_logits(layout, probe))
    return online


def _prefix_ids(layout: DecoderLayout) -> Tensor:
    """int64 [1, 1]: the token that takes the massive activations of a first position upon itself."""
    bos = layout.model.config.get_text_config().bos_token_id
    return torch.tensor([[0 if bos is None else bos]], device=layout.embedding.weight.device)


def _prefix_cache(layout: DecoderLayout, ids: Tensor) -> Tensor:
    """[layers, 2, H, P, D]: keys and values that the model in floating point gives tokens ids [1, P]."""
    from transformers import DynamicCache  # only models of transformers get here

    from .integrations.hf.cache import CACHE

    cache = DynamicCache()
    layout.decoder(input_ids=ids, use_cache=True, **{CACHE: cache})
    return torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers])


def _round_all(
    model: nn.Module,
    linears: dict[str, nn.Linear],
    recipe: Recipe,
    online: dict[nn.Linear, OnlineHadamard],
    bar: tqdm,
) -> None:
    """Without calibration: every linear by itself."""
    for name, linear in linears.items():
        hook = online.get(linear)
        if hook is not None:
            hook.remove()
        (q,) = quantize_weights([linear.weight.detach()], recipe)
        bias = None if linear.bias is None else linear.bias.detach()
        model.set_submodule(name, build_module(q, linear, recipe, recipe.activation_clip, bias, hook))
        bar.update(1)
