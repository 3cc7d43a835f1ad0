"""PagedKv4Cache and PagedFloatCache: keys and values of a decoder in 4 bits, or as they are.

    cache = PagedKv4Cache(layers, kv_heads, head_dim)
    seq = cache.add()
    slots = cache.slots(seq, len(prompt))            # prefill
    q, k, v = cache.rope_append(layer, qkv, cos, sin, heads, slots)
    tables = cache.step([seq])                       # decode, one token more
    out = cache.attend(layer, qkv, cos, sin, heads, tables, head_dim**-0.5)
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .paged_cache import PagedCache, Tables

MAX_PREFIX = 16  # exact tokens
CUDA_HEADS = (64, 80, 96, 128, 256)  # head sizes of the decode attention there


class PagedKv4Cache(PagedCache):
    """Codes uint8 [P, kv_heads, page, ceil(head_dim/2)] and parameters fp16 [P, kv_heads, page, 2] of keys,
    then of values, per layer.

    clip: share of a vector's range that the 16 levels span. key_block: blocks of the Hadamard that keys get
    before they are quantised, None for none; `attend` transforms the queries alike, for `attention` the
    caller does. prefix: fp32 [layers, 2, P, kv_heads, head_dim], exact keys and values before those of every
    sequence, after RoPE and the keys' Hadamard; they count in no length. The rest as in `PagedCache`.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, page: int = 64, max_tokens: int | None = None,
        device: torch.device | str = "cpu", clip: float = 1.0, key_block: int | None = None,
        prefix: Tensor | None = None,
    ):
        super().__init__(layers, kv_heads, head_dim, page, max_tokens, device)
        if not 0.0 < clip <= 1.0:
            raise ValueError(f"clip: expected a value in (0, 1], got {clip}")
        if prefix is not None:
            sizes = prefix.shape[:2] + prefix.shape[3:]
            if tuple(sizes) != (layers, 2, kv_heads, head_dim):
                want = f"[{layers}, 2, P, {kv_heads}, {head_dim}]"
                raise ValueError(f"prefix: expected {want}, got {list(prefix.shape)}")
            if prefix.shape[2] > MAX_PREFIX:
                raise ValueError(f"prefix: expected at most {MAX_PREFIX} tokens, got {prefix.shape[2]}")
        self.clip, self.key_block = clip, key_block
        self.prefix = None if prefix is None else prefix.to(self.device, torch.float32).contiguous()

    def _empty(self, pages: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape = (pages, self.kv_heads, self.page)
        codes = [
            torch.zeros((*shape, (self.head_dim + 1) // 2), dtype=torch.uint8, device=self.device)
            for _ in range(2)
        ]
        params = [torch.zeros((*shape, 2), dtype=torch.float16, device=self.device) for _ in range(2)]
        return codes[0], params[0], codes[1], params[1]

    def read(self, layer: int, seqs: list[int], dtype: torch.dtype) -> list[Tensor]:
        """Keys and values as stored, [B, kv_heads, T, head_dim], the keys' Hadamard undone. T is whole pages;
        whatever lies past a sequence's end.
        """
        table, out = self.tables(seqs)[0].long(), []
        key_codes, key_params, value_codes, value_params = self._pools[layer]
        for pair in ((key_codes, key_params), (value_codes, value_params)):
            # [B, pages, H, page, *] -> [B, H, pages * page, *]
            codes, params = (t[table].transpose(1, 2).flatten(2, 3) for t in pair)
            out.append(ops.kv4_dequantize(codes, params, dtype, self.head_dim))
        if self.key_block is not None:
            out[0] = ops.hadamard(out[0], self.key_block**-0.5, self.key_block)
        return out

    def places(self, tables: Tables) -> Tables:
        """What the calls of `attend` in a step take for the tables of `step`: here these themselves."""
        return tables

    def _exact(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """prefix_k, prefix_v of a layer, [P, kv_heads, head_dim]."""
        return (None, None) if self.prefix is None else (self.prefix[layer, 0], self.prefix[layer, 1])

    def append(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> None:
        """key, value [T, kv_heads, head_dim] into the slots: `kv4_append`."""
        ops.kv4_append(key, value, slots, *self._pools[layer], self.clip, self.key_block)

    def rope_append(
        self,
        layer: int,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        heads: int,
        slots: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`kv4_rope_append`: q, k, v after norm and RoPE; k and v are stored."""
        return ops.kv4_rope_append(
            qkv, cos, sin, heads, self.kv_heads, slots, *self._pools[layer],
            q_norm, k_norm, eps, self.clip, self.key_block,
        )  # fmt: skip

    def attention(self, layer: int, q: Tensor, tables: Tables, softmax_scale: float) -> Tensor:
        """`kv4_attention` of q [B, heads, head_dim], already in the basis of the keys."""
        return ops.kv4_attention(q, *self._pools[layer], *tables, softmax_scale, *self._exact(layer))

    def attend(
        self,
        layer: int,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        heads: int,
        tables: Tables,
        softmax_scale: float,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
    ) -> Tensor:
        """`kv4_attend` with the tables of `step`: [B, heads * head_dim]."""
        return ops.kv4_attend(
            qkv, cos, sin, heads, self.kv_heads, *self._pools[layer], *tables, softmax_scale,
            q_norm, k_norm, eps, self.clip, self.key_block, *self._exact(layer),
        )  # fmt: skip

    def attend_quantize(
        self,
        layer: int,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        heads: int,
        tables: Tables,
        softmax_scale: float,
        bits: int,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
        inverse_step: Tensor | None = None,
        shift: Tensor | None = None,
        index: Tensor | None = None,
        static_scale: bool = False,
        code_clip: float = 1.0,
        unpacked: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """`kv4_attend_quantize` with the tables of `step`: codes and scales of [B, heads * head_dim]."""
        return ops.kv4_attend_quantize(
            qkv, cos, sin, heads, self.kv_heads, *self._pools[layer], *tables, softmax_scale, bits,
            q_norm, k_norm, eps, self.clip, self.key_block, *self._exact(layer),
            inverse_step, shift, index, static_scale, code_clip, unpacked,
        )  # fmt: skip


@dataclass(frozen=True)
class _Places:
    """Of one more token of each sequence on a card: where it goes, and what it attends to."""

    slots: Tensor  # int64 [B]
    pages: Tensor  # int64 [B, n]; all pages of each
    held: Tensor  # bool [B, n * page]: what of them holds a token

    @classmethod
    def of(cls, tables: Tables, page: int) -> "_Places":
        table, lengths = tables
        last = table.gather(1, (lengths // page).long().unsqueeze(1)).squeeze(1)
        held = torch.arange(table.shape[1] * page, device=table.device) <= lengths.unsqueeze(1)
        return cls((last * page + lengths % page).long(), table.clamp(min=0).long(), held)


class PagedFloatCache(PagedCache):
    """Keys and values as they are, [P, page, kv_heads, head_dim] of dtype per layer; attention is `kv_attend`
    on the CPU and torch's on a card.

    dtype: also that of qkv. The other parameters and the rest as in `PagedCache`.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, page: int = 64, max_tokens: int | None = None,
        device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
    ):
        self.dtype = dtype
        super().__init__(layers, kv_heads, head_dim, page, max_tokens, device)
        # RoPE is the 4-bit cache's op, with no page to write to
        codes, params = ((0, kv_heads, page, n) for n in ((head_dim + 1) // 2, 2))
        of = {torch.uint8: codes, torch.float16: params}
        self._nowhere = [torch.empty(of[t], dtype=t, device=self.device) for t in (*of, *of)]

    def _empty(self, pages: int) -> tuple[Tensor, Tensor]:
        shape = (pages, self.page, self.kv_heads, self.head_dim)
        keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in "kv")
        return keys, values

    def _rope(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, *norms: Tensor | float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        slots = torch.full((qkv.shape[0],), -1, device=qkv.device)
        return ops.kv4_rope_append(qkv, cos, sin, heads, self.kv_heads, slots, *self._nowhere, *norms)

    def _store(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        for pool, x in zip(self._pools[layer], (key, value), strict=True):
            pool.flatten(0, 1).index_copy_(0, slots, x)

    def rope_append(
        self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, slots: Tensor,
        q_norm: Tensor | None = None, k_norm: Tensor | None = None, eps: float = 1e-6,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] of qkv [T, ...] after norm and RoPE, as
        `kv4_rope_append` has them; k and v are stored in slots [T], but for those of -1.
        """
        q, k, v = self._rope(qkv, cos, sin, heads, q_norm, k_norm, eps)
        kept = slots >= 0
        self._store(layer, slots[kept], k[kept], v[kept])
        return q, k, v

    def places(self, tables: Tables) -> Tables | _Places:
        """What the calls of `attend` in a step take for the tables of `step`."""
        return _Places.of(tables, self.page) if tables[0].is_cuda else tables

    def attend(
        self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, places: Tables | _Places,
        softmax_scale: float, q_norm: Tensor | None = None, k_norm: Tensor | None = None, eps: float = 1e-6,
    ) -> Tensor:
        """[B, heads * head_dim] of one token per sequence, qkv [B, ...], which is stored first."""
        if not isinstance(places, _Places):
            return ops.kv_attend(
                qkv, cos, sin, heads, self.kv_heads, *self._pools[layer], *places, softmax_scale,
                q_norm, k_norm, eps,
            )  # fmt: skip
        q, k, v = self._rope(qkv, cos, sin, heads, q_norm, k_norm, eps)
        self._store(layer, places.slots, k, v)
        k, v = (pool[places.pages].flatten(1, 2) for pool in self._pools[layer])  # [B, T, Hkv, D]
        for x in (k, v):
            x.masked_fill_(~places.held[:, :, None, None], 0)  # no weight of 0 hides a NaN
        b, mask = len(q), places.held[:, None, None]
        q = q.view(b, self.kv_heads, -1, self.head_dim)  # the heads of a group as rows
        y = F.scaled_dot_product_attention(
            q, k.transpose(1, 2), v.transpose(1, 2), mask, scale=softmax_scale
        )
        return y.reshape(b, -1)

    def read(self, layer: int, seqs: list[int], dtype: torch.dtype) -> list[Tensor]:
        """Keys and values [B, kv_heads, T, head_dim], T whole pages; whatever lies past a sequence's end."""
        table = self.tables(seqs)[0].long()
        return [pool[table].flatten(1, 2).transpose(1, 2).to(dtype) for pool in self._pools[layer]]
