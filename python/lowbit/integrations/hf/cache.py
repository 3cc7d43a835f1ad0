"""Int4Cache: a transformers cache of 4-bit keys and values (QuaRot, arXiv 2404.00456, section 4.2)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from lowbit import ops

_MIN_CAPACITY = 64
PREFIX = "lowbit_prefix"  # the decoder's buffer of exact keys and values: [layers, 2, H, P, D]
PREFIX_TOKENS = 1
OLD_CACHE = "past_key_values"
# What models and outputs call the cache: transformers 5.24 renamed it, and takes the old name till 5.40.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else OLD_CACHE


class _Packed:
    """One growing tensor of vectors [B, H, T, D], quantised per vector; the capacity doubles."""

    def __init__(self, clip: float, block: int | None):
        self.clip, self.block = clip, block  # block: of the Hadamard before quantising, None = none
        self.codes: Tensor | None = None  # uint8 [B, H, capacity, ceil(D/2)]
        self.params: Tensor | None = None  # fp16 [B, H, capacity, 2]: scale, zero
        self.d = 0

    def append(self, x: Tensor, length: int) -> None:
        """Quantise x [B, H, T, D] into positions length .. length + T."""
        self.d = x.shape[-1]
        if self.block is not None:
            x = ops.hadamard(x.contiguous(), self.block**-0.5, self.block)
        codes, params = ops.kv4_quantize(x.contiguous(), self.clip)
        new = length + x.shape[-2]
        self.codes = _grow(self.codes, codes, length, new)
        self.params = _grow(self.params, params, length, new)
        self.codes[:, :, length:new] = codes
        self.params[:, :, length:new] = params

    def read(self, length: int, dtype: torch.dtype) -> Tensor:
        """[B, H, length, D] of dtype, the Hadamard undone."""
        codes, params = self.codes[:, :, :length].contiguous(), self.params[:, :, :length].contiguous()
        x = ops.kv4_dequantize(codes, params, dtype, self.d)
        return x if self.block is None else ops.hadamard(x, self.block**-0.5, self.block)

    def index(self, rows: Tensor) -> None:
        rows = rows.to(self.codes.device)
        self.codes, self.params = self.codes[rows], self.params[rows]


def _grow(buffer: Tensor | None, like: Tensor, length: int, new: int) -> Tensor:
    if buffer is not None and buffer.shape[2] >= new:
        return buffer
    capacity = max(new, _MIN_CAPACITY if buffer is None else 2 * buffer.shape[2])
    grown = like.new_empty((*like.shape[:2], capacity, like.shape[3]))
    if length:
        grown[:, :, :length] = buffer[:, :, :length]
    return grown


class Int4Layer(DynamicLayer):
    """Keys and values of one attention layer. clip: share of a vector's range; key_block: of R3, or None.

    prefix: [2, H, P, D], keys and values of P tokens that come before all others and are not quantised.
    exact_prefill: as in `Int4Cache`.
    """

    def __init__(
        self, clip: float = 1.0, key_block: int | None = None, prefix: Tensor | None = None,
        exact_prefill: bool = False,
    ):
        super().__init__()
        self.exact_prefill = exact_prefill
        self._packed_keys, self._packed_values = _Packed(clip, key_block), _Packed(clip, None)
        self._length, self._prefix = 0, prefix
        self.prefix_length = 0 if prefix is None else prefix.shape[2]
        self.dtype, self.device = None, None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append [B, H, T, D] and return everything stored, dequantised to the dtype of the arguments.

        Where gradients flow into the new states, they pass straight through the quantiser.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        out = []
        packs = (self._packed_keys, key_states), (self._packed_values, value_states)
        for side, (packed, x) in enumerate(packs):
            with torch.no_grad():
                packed.append(x, self._length)
                full = packed.read(self._length + x.shape[-2], x.dtype)
            if self.exact_prefill and x.shape[-2] > 1:
                full = torch.cat((full[:, :, : self._length], x), 2)
            elif torch.is_grad_enabled() and x.requires_grad:
                new = full[:, :, self._length :]
                full = torch.cat((full[:, :, : self._length], x + (new - x.detach())), 2)
            if self._prefix is not None:
                first = self._prefix[side].to(full).expand(full.shape[0], -1, -1, -1)
                full = torch.cat((first, full), 2)
            out.append(full)
        self._length += key_states.shape[-2]
        return out[0], out[1]

    def get_seq_length(self, *args) -> int:
        return self.prefix_length + self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    @property
    def batch_size(self) -> int:
        return -1 if self._length == 0 else self._packed_keys.codes.shape[0]

    def nbytes(self) -> int:
        """Bytes held, the spare capacity included."""
        parts = (self._packed_keys, self._packed_values)
        return sum(t.numel() * t.element_size() for p in parts for t in (p.codes, p.params) if t is not None)

    def reset(self) -> None:
        self._length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Negative: drop that many of the last tokens. Positive: keep at most that many (as once)."""
        keep = tokens_to_remove - self.prefix_length
        if tokens_to_remove <= 0:
            keep = self._length + tokens_to_remove
        self._length = max(0, min(self._length, keep))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self._length:
            self._packed_keys.index(indices)
            self._packed_values.index(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self._length:
            self.batch_select_indices(torch.arange(self._packed_keys.codes.shape[0]).repeat_interleave(repeats))

    def offload(self) -> None:
        raise NotImplementedError("Int4Cache: expected a cache without offloading, got offload()")

    prefetch = offload


class Int4Cache(Cache):
    """A cache of `Int4Layer`s, created as layers appear.

    clip: share of each vector's range that the 16 levels span, in (0, 1]. key_block: block size of the
    Hadamard that keys get before quantisation and lose after it (R3), None for none. prefix: [layers, 2, H,
    P, D], exact keys and values of P tokens before all others; they count in the cache's length.
    exact_prefill: a prompt (any update of several tokens) attends to its own keys and values before they are
    rounded, as under `lowbit.fuse`. It suits any attention that reads keys and values through `Cache.update`.
    """

    def __init__(
        self, clip: float = 0.95, key_block: int | None = None, prefix: Tensor | None = None,
        exact_prefill: bool = False,
    ):
        if not 0.0 < clip <= 1.0:
            raise ValueError(f"clip: expected a value in (0, 1], got {clip}")
        self.clip, self.key_block, self.prefix, self.exact_prefill = clip, key_block, prefix, exact_prefill
        super().__init__(layer_class_to_replicate=self._new_layer)

    def _new_layer(self) -> Int4Layer:
        first = None if self.prefix is None else self.prefix[len(self.layers)]
        return Int4Layer(self.clip, self.key_block, first, self.exact_prefill)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens held, the prefix among them, even before the first update."""
        if not self.layers:
            return 0 if self.prefix is None else self.prefix.shape[3]
        return super().get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """As in the base, with a prefix counted before the first update."""
        if not self.layers:
            return self.get_seq_length() + query_length, 0
        return super().get_mask_sizes(query_length, layer_idx)

    def get_query_offset(self, layer_idx: int) -> int:
        """As in the base, with a prefix counted before the first update."""
        return super().get_query_offset(layer_idx) if self.layers else self.get_seq_length()

    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes() for layer in self.layers)


class CacheHook:
    """Decoder pre-hook: where the caller brings no cache, or an empty default one, the model's own takes its
    place: an Int4Cache, or what `factory` makes.

    So a plain `model(ids)`, `generate()` and evaluation harnesses all see the quantised cache. A cache that
    already holds tokens, or that the caller chose (static, sliding, quantised), is left alone. clip: None for
    a model whose cache is not quantised; a hook is then there for the factory's sake.
    """

    def __init__(self, clip: float | None, key_block: int | None = None):
        self.clip, self.key_block = clip, key_block
        self.factory: Callable[[], Cache] | None = None  # makes another kind of cache (a fused model's)
        self.handle: RemovableHandle | None = None  # of a hook that goes when the model is no longer fused

    def plain_cache(self, prefix: Tensor | None = None) -> Int4Cache | None:
        """An empty cache for the model's own attention; None where the model has one."""
        return None if self.clip is None else Int4Cache(self.clip, self.key_block, prefix)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if OLD_CACHE in kwargs:
            kwargs = {CACHE: kwargs[OLD_CACHE], **{k: v for k, v in kwargs.items() if k != OLD_CACHE}}
        cache, prefix = kwargs.get(CACHE), getattr(module, PREFIX, None)
        if cache is None or (type(cache) is DynamicCache and cache.get_seq_length() == 0):
            cache = self.factory() if self.factory else self.plain_cache(prefix)
            kwargs = {**kwargs, CACHE: cache}
        if isinstance(cache, Int4Cache) and cache.prefix is not None:
            kwargs = behind_prefix(kwargs, cache.prefix.shape[3])
        return args, kwargs


def behind_prefix(kwargs: dict, length: int) -> dict:
    """Masks and positions as callers know them, who see nothing of the prefix, made to count it."""
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    changed = {}
    if isinstance(mask, Tensor) and mask.dim() == 2:
        changed["attention_mask"] = torch.cat((mask.new_ones(mask.shape[0], length), mask), 1)
    if positions is not None:
        changed["position_ids"] = positions + length
    return {**kwargs, **changed}
