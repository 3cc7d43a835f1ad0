"""`lowbit.fuse`: a quantised transformers model whose decoder runs the fused layers and a paged cache.

The model keeps its modules and its `generate`; only `model.model.forward` is another. A call that the fused
layers cannot serve (a mask of its own, a cache of another kind, gradients) goes the old way, with one
warning.
"""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import CausalBias, causal_lower_right
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from lowbit import ops

from ...cuda_graph import StepGraph
from ...fused import ACTIVATIONS, FusedLayer, NotFusable, on_card
from ...kv_cache import CUDA_HEADS, MAX_PREFIX, PagedFloatCache, PagedKv4Cache
from ...nn import QuantizedLinear
from ...transforms.architectures import SUPPORTED
from .cache import CACHE, OLD_CACHE, PREFIX, CacheHook, Int4Cache, behind_prefix
from .fused_cache import FusedCache

_FEW_TOKENS = 4  # that `causal_attention` takes one by one sooner than torch's attention all at once


class FusedDecoder:
    """The layers of one model, fused; see `fuse`."""

    def __init__(self, decoder: nn.Module, max_tokens: int | None):
        config = decoder.config
        self.hook = _hook(decoder) or CacheHook(None)
        self.quantized_cache = self.hook.clip is not None
        if config.hidden_act not in ACTIVATIONS:
            want = " or ".join(ACTIVATIONS)
            raise NotFusable(f"fuse: expected the activation {want}, got {config.hidden_act}")
        slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        window = config.sliding_window if slides or config.model_type == "mistral" else None
        self.prefix = getattr(decoder, PREFIX, None)  # [layers, 2, Hkv, P, D]
        first = 0 if self.prefix is None else self.prefix.shape[3]
        if first > MAX_PREFIX:
            raise NotFusable(f"fuse: expected a prefix of at most {MAX_PREFIX} tokens, got {first}")
        positions = config.max_position_embeddings
        limit = max_tokens or min(positions, window or positions) - first
        if window is not None and limit + first > window:
            want = f"the sliding window {window}" + (f" less a prefix of {first}" if first else "")
            raise NotFusable(f"fuse: expected max_tokens within {want}, got {limit}")
        self.limit, activation = limit, ACTIVATIONS[config.hidden_act]
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        on_cuda = self.quantized_cache and on_card(next(decoder.parameters()))
        if on_cuda and self.head_dim not in CUDA_HEADS:
            want = ", ".join(map(str, CUDA_HEADS))
            raise NotFusable(f"fuse: expected a head size of {want} on CUDA, got {self.head_dim}")
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.layers = [
            FusedLayer(layer, activation, f"layer {i}") for i, layer in enumerate(decoder.layers)
        ]
        self.embedding = decoder.embed_tokens.weight
        self.exact = self._exact_prefix()
        self.warned: set[str] = set()
        self.graph: tuple[tuple, StepGraph] | None = None
        self.made_of = _parts(decoder)

    def _exact_prefix(self) -> Tensor | None:
        """The prefix as the pages take it; made once, so that a CUDA graph finds it where it was."""
        if self.prefix is None:
            return None
        keys, values = self.prefix.detach().float().transpose(2, 3).unbind(1)  # [layers, P, Hkv, D]
        if (block := self.hook.key_block) is not None:
            keys = ops.hadamard(keys, block**-0.5, block)
        return torch.stack((keys, values), 1)

    def new_cache(self) -> FusedCache:
        """An empty cache; it grows page by page."""
        sizes, device = (len(self.layers), self.kv_heads, self.head_dim), self.embedding.device
        if not self.quantized_cache:
            return FusedCache(PagedFloatCache(*sizes, device=device, dtype=self.embedding.dtype), self.limit)
        how = {"clip": self.hook.clip, "key_block": self.hook.key_block, "prefix": self.exact}
        return FusedCache(PagedKv4Cache(*sizes, device=device, **how), self.limit)

    def forward(
        self, decoder: nn.Module, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, cache: Cache | None = None,
        inputs_embeds: Tensor | None = None, use_cache: bool | None = None, **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """What `LlamaModel.forward` computes, and its arguments. kwargs: those that transformers adds."""
        b, t = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        cache = kwargs.pop(OLD_CACHE, cache)
        pads = _left_padding(attention_mask, cache, b, t)
        reason = self._refusal(decoder, pads, cache, inputs_embeds, kwargs)
        if reason is not None:
            plain = Int4Cache if self.quantized_cache else DynamicCache
            goes_on = isinstance(cache, plain) and cache.get_seq_length() > 0
            if reason not in self.warned and not goes_on:
                warnings.warn(f"fused decoder: not used for a call with {reason}", stacklevel=3)
                self.warned.add(reason)
            if isinstance(cache, FusedCache):
                if cache.get_seq_length():
                    raise ValueError(f"fused decoder: expected a call like those before it, got {reason}")
                cache = self.hook.plain_cache(self.prefix)
                if self.prefix is not None:  # the hook let this call pass as one that counts none
                    seen = {"attention_mask": attention_mask, "position_ids": position_ids}
                    attention_mask, position_ids = behind_prefix(seen, self.prefix.shape[3]).values()
            return type(decoder).forward(
                decoder, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                inputs_embeds=inputs_embeds, use_cache=use_cache, **{CACHE: cache}, **kwargs,
            )  # fmt: skip
        x = decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # [B, T, d]
        with torch.autocast(x.device.type, enabled=False):  # one dtype from the embedding to the last norm
            h = self._run(decoder, x, position_ids, cache, pads)
        return BaseModelOutputWithPast(h, cache)

    def _run(
        self, decoder: nn.Module, x: Tensor, position_ids: Tensor | None, cache: FusedCache, pads: list[int]
    ) -> Tensor:
        """x [B, T, d] through all layers and the last norm."""
        b, t = x.shape[:2]
        past = cache.get_seq_length()
        cache.begin(t, pads)
        if position_ids is None:
            position_ids = torch.arange(past, past + t, device=x.device).unsqueeze(0)
        if self.prefix is not None:
            position_ids = position_ids + self.prefix.shape[3]
        cos, sin = (
            v.float().expand(b, t, -1).reshape(b * t, -1) for v in decoder.rotary_emb(x, position_ids)
        )
        h = x.reshape(b * t, -1)
        if t == 1 and not any(pads):
            h = self._step(cache, h, cos, sin)
        else:
            h = self._prompt(cache, h, cos, sin, pads)
        return decoder.norm(h.view(b, t, -1))

    def _step(self, cache: FusedCache, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """One token per sequence: h [B, d] through all layers. On a card that is one CUDA graph, captured
        anew when the pool of pages, the batch or (in steps of 16 pages) the length makes it another.
        """
        table, lengths = cache.step()
        if not on_card(h):
            return self._layers(cache, h, cos, sin, table, lengths)
        pools = (t.data_ptr() for i in range(len(self.layers)) for t in cache.pages.caches(i))
        key = (h.shape, h.dtype, table.shape, *pools)  # all: a new cache may get some of an old one's memory
        inputs = (h, cos, sin, table, lengths)
        if self.graph is None or self.graph[0] != key:
            self.graph = None  # frees its memory first
            self.graph = key, StepGraph(lambda *tensors: self._layers(cache, *tensors), inputs)
        return self.graph[1](inputs)

    def _layers(
        self, cache: FusedCache, h: Tensor, cos: Tensor, sin: Tensor, table: Tensor, lengths: Tensor
    ) -> Tensor:
        def attend(i: int, layer: FusedLayer, qkv: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            """One token per sequence: qkv [B, (Hq + 2 Hkv) D] -> [B, Hq D], or the codes of that."""
            args = (i, qkv, cos, sin, self.heads, places, layer.softmax_scale)
            norms = dict(q_norm=layer.q_norm, k_norm=layer.k_norm, eps=layer.head_eps)
            coder = layer.o.coder if self.quantized_cache else None
            if coder is None or coder.hadamard_block is not None:
                return cache.pages.attend(*args, **norms)
            return cache.pages.attend_quantize(*args, **norms, **coder.attended(qkv))

        places = cache.pages.places((table, lengths))
        for i, layer in enumerate(self.layers):
            h = layer(h, functools.partial(attend, i, layer))
        return h

    def _prompt(self, cache: FusedCache, h: Tensor, cos: Tensor, sin: Tensor, pads: list[int]) -> Tensor:
        """Several tokens, h [B * T, d]: append them; each attends to the prefix and the new keys and values
        as they are, and to older ones as stored. pads: of each row, new places that are no tokens.
        """
        b = len(cache.sequences)
        t = h.shape[0] // b
        stored = cache.stored()
        slots = torch.full((b, t), -1, device=h.device)  # no place for padding
        for row, seq, pad in zip(slots, cache.sequences, pads, strict=True):
            row[pad:] = cache.pages.slots(seq, t - pad)
        slots = slots.flatten()
        first = 0 if self.prefix is None else self.prefix.shape[3]
        past = max(stored)
        mask = _mask_of(first, stored, t, pads, h.device)
        causal = mask is None or isinstance(mask, CausalBias)
        # torch's is as fast where it has the same instructions, and faster where we take tokens one by one
        ours = causal and not on_card(h) and (t <= _FEW_TOKENS or ops.isa() == "amx")

        def attend(i: int, layer: FusedLayer, qkv: Tensor) -> Tensor:
            heads = cache.pages.rope_append(
                i, qkv, cos, sin, self.heads, slots, layer.q_norm, layer.k_norm, layer.head_eps
            )
            q, k, v = (x.view(b, t, -1, self.head_dim) for x in heads)  # [B, T, H, D]
            before = []
            if first:
                before.append(self.prefix[i].to(k).expand(b, -1, -1, -1, -1).transpose(2, 3).unbind(1))
            if past:
                before.append([x[:, :, :past].transpose(1, 2) for x in cache.read(i, k.dtype)])
            if before:
                k, v = (torch.cat(x, 1) for x in zip(*before, (k, v), strict=True))
            if ours:
                return ops.causal_attention(q, k, v, layer.softmax_scale).view(b * t, -1)
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            if isinstance(mask, Tensor) and not causal:  # then few kernels share heads
                k, v = (x.repeat_interleave(self.heads // self.kv_heads, 1) for x in (k, v))
            y = F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=mask is None, scale=layer.softmax_scale, enable_gqa=True
            )
            return y.transpose(1, 2).reshape(b * t, -1)

        for i, layer in enumerate(self.layers):
            h = layer(h, functools.partial(attend, i, layer))
        return h

    def _refusal(
        self, decoder: nn.Module, pads: list[int] | None, cache: Cache | None, embeds: Tensor | None,
        kwargs: dict,
    ) -> str | None:
        """Why the old way has to be gone, or None."""
        if not isinstance(cache, FusedCache):
            return f"a cache of type {type(cache).__name__}"
        if torch.is_grad_enabled() and (decoder.training or (embeds is not None and embeds.requires_grad)):
            return "gradients"
        for key in ("output_attentions", "output_hidden_states"):
            if kwargs.get(key):
                return key
        if pads is None:
            return "a mask of its own, or padding that is not at the left"
        if cache.get_seq_length() == 0 and list(map(id, _parts(decoder))) != list(map(id, self.made_of)):
            return "layers that changed since lowbit.fuse"
        return None


class FusedForward:
    """`forward` of a fused decoder. A copy, pickled or not, fuses its own when first called."""

    def __init__(self, decoder: nn.Module, max_tokens: int | None):
        self.decoder, self.max_tokens = decoder, max_tokens

    @functools.cached_property
    def fused(self) -> FusedDecoder:
        return FusedDecoder(self.decoder, self.max_tokens)

    def __call__(self, *args: object, **kwargs: object) -> BaseModelOutputWithPast:
        return self.fused.forward(self.decoder, *args, **kwargs)

    def new_cache(self) -> FusedCache:
        return self.fused.new_cache()

    def __getstate__(self) -> dict:
        return {"decoder": self.decoder, "max_tokens": self.max_tokens}


def _left_padding(mask: Tensor | None, cache: Cache | None, rows: int, tokens: int) -> list[int] | None:
    """Of each row's new places, those that a mask [B, past + T] leaves out at the left; None: it leaves out
    others, or is no such mask. A cache of another kind is not looked at.
    """
    if mask is None or not isinstance(cache, FusedCache):
        return [0] * rows
    if mask.dim() != 2:
        return None
    stored = cache.stored()
    if tokens == 1 and stored and all(stored):  # no row's padding goes on: a card is not asked at every step
        return [0] * rows
    new = mask[:, -tokens:].bool()
    pads = (~new).sum(1)
    if not torch.equal(new, torch.arange(tokens, device=new.device) >= pads.unsqueeze(1)):
        return None
    found = pads.tolist()
    if any(pad and held for pad, held in zip(found, stored, strict=False)):
        return None
    return found


def _mask_of(
    first: int, stored: list[int], tokens: int, pads: list[int], device: torch.device
) -> Tensor | None:
    """What the new tokens attend to: `first` exact ones, then what each row has stored, up to the longest,
    then the new ones up to themselves but for padding. A causal bias, [B, 1, T, all], or None: the new ones
    alone.
    """
    past = max(stored)
    before = first + past
    if not before and not any(pads):
        return None
    if not any(pads) and min(stored) == past:
        return causal_lower_right(tokens, before + tokens)  # the fast attention of a card takes no other mask
    mask = torch.ones(tokens, before + tokens, dtype=torch.bool, device=device).tril(before)
    column = torch.arange(before + tokens, device=device)
    held, pad = (torch.tensor(n, device=device).unsqueeze(1) for n in (stored, pads))
    there = (column < first + held) | (column >= before + pad)  # [B, all]
    itself = torch.eye(tokens, dtype=torch.bool, device=device)  # padding too: a row of nothing is NaN
    return (mask & there[:, None, None]) | F.pad(itself, (before, 0))


def _hook(decoder: nn.Module) -> CacheHook | None:
    return next((h for h in decoder._forward_pre_hooks.values() if isinstance(h, CacheHook)), None)


def _parts(decoder: nn.Module) -> list[object]:
    """The prefix, the quantised layers and their tiles: others, once adapters, weights or a device came."""
    layers = (m for layer in decoder.layers for m in layer.modules() if isinstance(m, QuantizedLinear))
    return [getattr(decoder, PREFIX, None), *(part for m in layers for part in (m, m._tiles))]


def fuse(model: nn.Module, max_tokens: int | None = None) -> nn.Module:
    """Let a quantised model's decoder run fused layers and a paged KV cache; in place, returned.

    model: a Llama-, Mistral-, Qwen2- or Qwen3-type model quantised by any recipe; the cache is in 4 bits
    where the recipe says kv4, else in the model's dtype. max_tokens: the most tokens a sequence may hold
    (None: what the model's positions allow, and its sliding window where it has one); asking for more raises
    ValueError. `generate`, sampling, streaming and chat work as before; with integer layers and a 4-bit cache
    at eight calls per layer and token. A prompt attends to its own keys and values before they are rounded to
    4 bits, so perplexity by `lowbit.evaluate` measures the cache only on the model as loaded. Layers and
    fused layers share memory. `lowbit.unfuse(model)` undoes it; saving works either way.

    Raises `lowbit.fused.NotFusable` (a ValueError) with one sentence where the model cannot be fused.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in SUPPORTED:
        want = ", ".join(SUPPORTED)
        raise NotFusable(f"fuse: expected a model of type {want}, got {kind or type(model).__name__}")
    unfuse(model)
    forward = FusedForward(model.model, max_tokens)
    hook = forward.fused.hook
    if not forward.fused.quantized_cache:
        hook.handle = model.model.register_forward_pre_hook(hook, with_kwargs=True)
    model.model.forward, hook.factory = forward, forward.new_cache
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """The model's own decoder again. In place, returned; nothing happens to a model that is not fused."""
    decoder = getattr(model, "model", None)
    if isinstance(decoder, nn.Module) and "forward" in vars(decoder):
        del decoder.forward
        hook = _hook(decoder)
        hook.factory = None
        if hook.handle is not None:  # it came with `fuse`
            hook.handle.remove()
    return model
