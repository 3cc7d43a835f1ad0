"""The cache of a fused model."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache

from ...fused import on_card
from ...paged_cache import PagedCache


class FusedCache(Cache):
    """The pages of all layers and sequences, as `generate` hands them around. max_tokens: per sequence.

    A model's exact prefix is in the pages' hands and in no length: callers see nothing of it. Padding at the
    left of a row is in its length, as callers count, but not stored.
    """

    def __init__(self, pages: PagedCache, max_tokens: int):
        super().__init__(layers=[])
        self.pages, self.max_tokens = pages, max_tokens
        self.sequences: list[int] = []  # one per row of the batch
        self.pads: list[int] = []  # of each row; with it all are of one length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.stored()[0] + self.pads[0] if self.sequences else 0

    def stored(self) -> list[int]:
        """Tokens of each sequence."""
        return [self.pages.length(seq) for seq in self.sequences]

    def begin(self, tokens: int, pads: list[int]) -> None:
        """Before each row gets `tokens` new places, of which the first pads[row] are padding."""
        if not self.sequences:
            self.sequences = [self.pages.add() for _ in pads]
            self.pads = [0] * len(pads)
        if len(pads) != len(self.sequences):
            raise ValueError(
                f"input_ids: expected {len(self.sequences)} rows as in the cache, got {len(pads)}"
            )
        for held, pad in zip(self.stored(), pads, strict=True):
            if held + tokens - pad > self.max_tokens:
                want = f"at most {self.max_tokens} tokens per sequence"
                raise ValueError(f"max_tokens: expected {want}, got {held} and {tokens - pad} more")
        self.pads = [old + new for old, new in zip(self.pads, pads, strict=True)]

    def step(self) -> tuple[Tensor, Tensor]:
        """Before one more token of each sequence: the block table and lengths of `PagedCache.step`. On a
        card the table grows by 16 pages at a time, so that a graph made for it lasts.
        """
        table, lengths = self.pages.step(self.sequences)
        return (F.pad(table, (0, -table.shape[1] % 16), value=-1) if on_card(table) else table), lengths

    def read(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer as stored, [B, Hkv, T, D]. Rows that hold fewer than T tokens end in
        zeros.
        """
        stored = self.stored()
        length = max(stored)
        out = [x[:, :, :length] for x in self.pages.read(layer, self.sequences, dtype)]
        if min(stored) < length:  # the pages may hold anything there, and no weight of 0 hides a NaN
            held = torch.tensor(stored, device=out[0].device).unsqueeze(1)
            beyond = torch.arange(length, device=held.device) >= held  # [B, T]
            out = [x.masked_fill(beyond[:, None, :, None], 0) for x in out]
        return out[0], out[1]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def nbytes(self) -> int:
        """Bytes held, the spare pages included."""
        return self.pages.nbytes()

    def reset(self) -> None:
        self.pages.reset()
        self.sequences, self.pads = [], []

    def crop(self, max_length: int) -> None:
        """Negative: drop that many of the last tokens. Positive: keep at most that many."""
        if not max_length:  # 0 drops none
            return
        keep = max_length if max_length > 0 else max(0, self.get_seq_length() + max_length)
        for seq, pad in zip(self.sequences, self.pads, strict=True):
            self.pages.crop(seq, max(0, keep - pad))
        self.pads = [min(pad, keep) for pad in self.pads]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        old, self.sequences = self.sequences, [self.pages.fork(self.sequences[i]) for i in indices.tolist()]
        self.pads = [self.pads[i] for i in indices.tolist()]
        for seq in old:
            self.pages.free(seq)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.sequences)).repeat_interleave(repeats))
