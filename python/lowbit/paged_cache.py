"""PagedCache: keys and values in pages, for any number of sequences.

One block table serves all layers: page p of a sequence is the same page in every layer's tensors. A step of a
model reserves its tokens once (`slots` or `step`) and then calls every layer's ops with what it got. What a
page holds, and how it is written and read, is said by `PagedKv4Cache` and `PagedFloatCache` in `kv_cache`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

_FIRST_PAGES = 4
_PAGES = (16, 32, 64, 128, 256)

Tables = tuple[Tensor, Tensor]  # block table int32 [B, pages], lengths int32 [B]


@dataclass
class _Sequence:
    pages: list[int] = field(default_factory=list)
    length: int = 0


class PagedCache:
    """Who holds which page. max_tokens: what all sequences together may hold, None for no limit.

    The pool doubles when it is full, which moves its tensors: ask `caches` for them after reserving tokens,
    not before.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, page: int = 64, max_tokens: int | None = None,
        device: torch.device | str = "cpu",
    ):
        for name, value in (("layers", layers), ("kv_heads", kv_heads), ("head_dim", head_dim)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if page not in _PAGES:
            raise ValueError(f"page: expected one of {', '.join(map(str, _PAGES))}, got {page}")
        self.layers, self.kv_heads, self.head_dim, self.page = layers, kv_heads, head_dim, page
        self.max_tokens, self.device = max_tokens, torch.device(device)
        self._pools = [self._empty(0) for _ in range(layers)]
        self._free: list[int] = []
        self._users: list[int] = []  # of each page: sequences that hold it
        self._sequences: dict[int, _Sequence] = {}
        self._next = 0
        self._table: tuple[tuple[int, ...], Tensor] | None = None  # the last one made, until a page changes

    def _empty(self, pages: int) -> tuple[Tensor, ...]:
        """What so many pages of one layer are made of, zeros; the first size of each tensor is `pages`."""
        raise NotImplementedError

    def caches(self, layer: int) -> tuple[Tensor, ...]:
        """The tensors of a layer, until the next reservation."""
        return self._pools[layer]

    # ---- sequences

    def add(self) -> int:
        """A new, empty sequence; its number."""
        seq, self._next = self._next, self._next + 1
        self._sequences[seq] = _Sequence()
        return seq

    def free(self, seq: int) -> None:
        """Forget a sequence; its pages are used again."""
        self._drop(self._find(seq).pages)
        del self._sequences[seq]

    def fork(self, seq: int) -> int:
        """A new sequence with the same tokens. Pages are shared until one of the two writes to them."""
        source = self._find(seq)
        self._check_room(source.length)
        new = self.add()
        self._sequences[new] = _Sequence(list(source.pages), source.length)
        for page in source.pages:
            self._users[page] += 1
        return new

    def length(self, seq: int) -> int:
        """Tokens of a sequence."""
        return self._find(seq).length

    def crop(self, seq: int, tokens: int) -> None:
        """Keep at most that many tokens; negative: drop that many of the last ones."""
        s = self._find(seq)
        s.length = max(0, min(s.length, tokens if tokens >= 0 else s.length + tokens))
        keep = -(-s.length // self.page)
        self._drop(s.pages[keep:])
        del s.pages[keep:]

    def reset(self) -> None:
        """Forget every sequence; the pool keeps its size."""
        for seq in list(self._sequences):
            self.free(seq)

    @property
    def tokens(self) -> int:
        """Tokens of all sequences together."""
        return sum(s.length for s in self._sequences.values())

    def nbytes(self) -> int:
        """Bytes of the pool, free pages included."""
        return sum(t.numel() * t.element_size() for pool in self._pools for t in pool)

    def _find(self, seq: int) -> _Sequence:
        if seq not in self._sequences:
            known = ", ".join(map(str, self._sequences)) or "none"
            raise ValueError(f"seq: expected a sequence of the cache ({known}), got {seq}")
        return self._sequences[seq]

    # ---- pages

    def _check_room(self, more: int) -> None:
        held = self.tokens
        if self.max_tokens is not None and held + more > self.max_tokens:
            raise ValueError(
                f"max_tokens: the cache holds {held} of at most {self.max_tokens} tokens, got {more} more"
            )

    def _grow(self, pages: int) -> None:
        """At least `pages` free ones; what is stored stays where it is."""
        if len(self._free) >= pages:
            return
        old = len(self._users)
        new = max(2 * old, _FIRST_PAGES, old + pages - len(self._free))
        for layer, pool in enumerate(self._pools):
            grown = self._empty(new)
            for to, t in zip(grown, pool, strict=True):
                to[:old] = t
            self._pools[layer] = grown
        self._users += [0] * (new - old)
        self._free += range(new - 1, old - 1, -1)  # the lowest is taken first

    def _take(self) -> int:
        page = self._free.pop()
        self._users[page], self._table = 1, None
        return page

    def _drop(self, pages: list[int]) -> None:
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                self._free.append(page)
        self._table = None

    def _reserve(self, seqs: list[int], more: int) -> None:
        """Room for `more` tokens at the end of each sequence, in pages that no other sequence reads."""
        found = [self._find(seq) for seq in seqs]
        if len(set(seqs)) != len(seqs):
            raise ValueError(f"seqs: expected each sequence once, got {', '.join(map(str, seqs))}")
        self._check_room(more * len(seqs))
        missing, shared = [], []
        for s in found:
            missing.append(-(-(s.length + more) // self.page) - len(s.pages))
            last = s.length // self.page  # the page that the next token goes to, if it is there already
            shared.append(more > 0 and last < len(s.pages) and self._users[s.pages[last]] > 1)
        self._grow(sum(missing) + sum(shared))
        for s, count, copy in zip(found, missing, shared, strict=True):
            if copy and self._users[s.pages[-1]] > 1:
                page, s.pages[-1] = s.pages[-1], self._take()
                for pool in self._pools:
                    for t in pool:
                        t[s.pages[-1]] = t[page]
                self._drop([page])
            s.pages += [self._take() for _ in range(count)]

    def slots(self, seq: int, n: int) -> Tensor:
        """Adds n tokens to a sequence: the int64 [n] slots to write them to, in every layer."""
        if n < 0:
            raise ValueError(f"n: expected 0 or more tokens, got {n}")
        self._reserve([seq], n)
        s = self._find(seq)
        at = torch.arange(s.length, s.length + n)
        pages = torch.tensor(s.pages, dtype=torch.int64)
        s.length += n
        return (pages[at // self.page] * self.page + at % self.page).to(self.device)

    def tables(self, seqs: list[int]) -> Tables:
        """Block table and lengths of these sequences, as `kv4_attention` reads them."""
        rows = [self._find(seq).pages for seq in seqs]
        if self._table is None or self._table[0] != tuple(seqs):
            width = max(map(len, rows), default=0)
            padded = [row + [-1] * (width - len(row)) for row in rows]
            table = torch.tensor(padded, dtype=torch.int32).view(len(rows), width)
            self._table = (tuple(seqs), table.to(self.device))
        lengths = torch.tensor([self.length(seq) for seq in seqs], dtype=torch.int32)
        return self._table[1], lengths.to(self.device)

    def step(self, seqs: list[int]) -> Tables:
        """Adds one token to each sequence: block table and lengths before it, as `kv4_attend` reads them."""
        self._reserve(seqs, 1)
        table, lengths = self.tables(seqs)
        for seq in seqs:
            self._find(seq).length += 1
        return table, lengths
