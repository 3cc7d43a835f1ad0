"""PagedFloatCache: attention over its pages is attention over a list of keys and values."""

import pytest
import torch
from lowbit.kv_cache import PagedFloatCache, _Places
from torch import Tensor

from tests.oracle import compare

from .support import TORCH_DEVICE

LAYERS, HEADS, KV_HEADS, D = 2, 6, 2, 64
WIDTH = (HEADS + 2 * KV_HEADS) * D


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, D], cos and sin [T, D], in float64."""
    low, high = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None]


class Lists:
    """The same, as lists of tokens, in float64; one layer after another."""

    def __init__(self):
        self.held: dict[int, list[list[tuple[Tensor, Tensor]]]] = {}

    def store(self, seq: int, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = qkv.double().view(len(qkv), -1, D).split((HEADS, KV_HEADS, KV_HEADS), 1)
        q, k = (rope(x, cos.double(), sin.double()) for x in (q, k))
        self.held.setdefault(seq, [[] for _ in range(LAYERS)])[layer] += zip(k, v, strict=True)
        return q

    def attend(self, seq: int, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor, scale: float) -> Tensor:
        q = self.store(seq, layer, qkv, cos, sin)[0]  # [H, D]
        held = zip(*self.held[seq][layer], strict=True)
        k, v = (torch.stack(x).repeat_interleave(HEADS // KV_HEADS, 1) for x in held)  # [T, H, D]
        weights = (torch.einsum("hd,thd->ht", q, k) * scale).softmax(-1)
        return torch.einsum("ht,thd->hd", weights, v).flatten()


@pytest.fixture(autouse=True, params=["as here", "as on a card"])
def attends(request, monkeypatch):
    """With the op, and with torch's attention, which runs on any device."""
    if request.param == "as on a card":
        monkeypatch.setattr(PagedFloatCache, "places", lambda self, tables: _Places.of(tables, self.page))


class Both:
    """A cache and its oracle, told the same."""

    def __init__(self, dtype: torch.dtype = torch.float32, **options: object):
        self.cache = PagedFloatCache(
            LAYERS, KV_HEADS, D, page=16, device=TORCH_DEVICE, dtype=dtype, **options
        )
        self.lists, self.dtype, self.g = Lists(), dtype, torch.Generator().manual_seed(0)

    def random(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        angle = torch.randn(n, D // 2, generator=self.g).repeat(1, 2)
        return torch.randn(n, WIDTH, generator=self.g).to(self.dtype), angle.cos(), angle.sin()

    def prompt(self, seq: int, n: int, padding: int = 0) -> None:
        slots = self.cache.slots(seq, n)
        slots = torch.cat((slots.new_full((padding,), -1), slots))
        for layer in range(LAYERS):
            args = self.random(padding + n)
            q, k, _ = self.cache.rope_append(layer, *(t.to(TORCH_DEVICE) for t in args), HEADS, slots)
            assert q.dtype == k.dtype == self.dtype and q.shape == (padding + n, HEADS, D)
            self.lists.store(seq, layer, *(t[padding:] for t in args))

    def step(self, seqs: list[int], bound: float = 1e-5) -> None:
        places = self.cache.places(self.cache.step(seqs))
        for layer in range(LAYERS):
            args = self.random(len(seqs))
            got = self.cache.attend(layer, *(t.to(TORCH_DEVICE) for t in args), HEADS, places, D**-0.5)
            for row, seq in enumerate(seqs):
                want = self.lists.attend(seq, layer, *(t[row : row + 1] for t in args), D**-0.5)
                compare.elementwise(got[row], want.numpy(), bound)


def test_steps_of_several_sequences_that_grow():
    """Over the doubling of the pool; alone in consecutive pages, and interleaved with others."""
    both = Both()
    first = both.cache.add()
    both.prompt(first, 15, padding=3)
    for _ in range(40):
        both.step([first])
    others = [both.cache.add() for _ in range(2)]
    for n, seq in zip((1, 33), others, strict=True):
        both.prompt(seq, n)
    for _ in range(20):
        both.step([others[1], first, others[0]])
    both.prompt(first, 20)
    both.step([first])
    assert both.cache.length(first) == 15 + 40 + 20 + 20 + 1


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision(dtype, bound):
    both = Both(dtype)
    seq = both.cache.add()
    both.prompt(seq, 40)
    assert both.cache.caches(0)[0].dtype == dtype
    both.step([seq], bound)


def test_what_a_page_held_before_does_not_matter():
    """Cropped, freed and forked: a NaN in a place that no token has any more is not read."""
    both = Both()
    a, b = both.cache.add(), both.cache.add()
    for seq in (a, b):
        both.prompt(seq, 20)
    both.cache.crop(a, 5)
    for held in both.lists.held[a]:
        del held[5:]
    table = both.cache.tables([a])[0]
    for layer in range(LAYERS):
        for pool in both.cache.caches(layer):
            pool[table[0, 0], 5:] = torch.nan
    both.step([a])
    both.step([a, b])
    c = both.cache.fork(b)
    both.lists.held[c] = [list(held) for held in both.lists.held[b]]
    both.cache.free(a)
    for _ in range(3):
        both.step([c, b])


def test_read_gives_what_was_stored():
    both = Both()
    a, b = both.cache.add(), both.cache.add()
    both.prompt(a, 20)
    both.prompt(b, 40)
    for layer in range(LAYERS):
        keys, values = both.cache.read(layer, [b, a], torch.float64)
        for row, seq in enumerate((b, a)):
            held = [torch.stack(x).numpy() for x in zip(*both.lists.held[seq][layer], strict=True)]
            n = both.cache.length(seq)
            for got, want in zip((keys, values), held, strict=True):
                compare.elementwise(got[row, :, :n].transpose(0, 1), want, 1e-6)


def test_a_limit_is_one_sentence():
    both = Both(max_tokens=20)
    seq = both.cache.add()
    both.prompt(seq, 20)
    with pytest.raises(ValueError, match="max_tokens: the cache holds 20 of at most 20 tokens, got 1 more"):
        both.cache.step([seq])
