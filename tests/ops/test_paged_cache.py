"""PagedKv4Cache: growing loses nothing, sequences keep to their own pages, limits are one clear sentence."""

import pytest
import torch
from lowbit.kv_cache import PagedKv4Cache
from torch import Tensor

from tests.oracle import compare

from .support import OPS, TORCH_DEVICE

LAYERS, HEADS, KV_HEADS, D = 2, 6, 2, 64


def new(**options: object) -> PagedKv4Cache:
    return PagedKv4Cache(LAYERS, KV_HEADS, D, **{"page": 16, "device": TORCH_DEVICE, **options})


def tokens(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Keys and values of all layers: [LAYERS, n, KV_HEADS, D]."""
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(LAYERS, n, KV_HEADS, D, generator=g).to(TORCH_DEVICE) for _ in "kv")


def extend(cache: PagedKv4Cache, seq: int, new_tokens: tuple[Tensor, Tensor]) -> None:
    slots = cache.slots(seq, new_tokens[0].shape[1])
    for layer in range(cache.layers):
        cache.append(layer, new_tokens[0][layer], new_tokens[1][layer], slots)


def stored(cache: PagedKv4Cache, seq: int) -> list[Tensor]:
    """Codes and parameters of a sequence's tokens, of all layers: [n, KV_HEADS, ...]."""
    table, lengths = cache.tables([seq])
    n = int(lengths[0])
    assert n == cache.length(seq)
    at = torch.arange(n)
    slots = table[0].cpu().long()[at // cache.page] * cache.page + at % cache.page
    return [t.transpose(1, 2).flatten(0, 1)[slots] for layer in range(LAYERS) for t in cache.caches(layer)]


def expected(parts: list[tuple[Tensor, Tensor]], clip: float = 1.0) -> list[Tensor]:
    out = []
    for layer in range(LAYERS):
        for i in (0, 1):
            out += OPS.kv4_quantize(torch.cat([p[i][layer] for p in parts]).cpu(), clip)
    return out


def check(cache: PagedKv4Cache, seq: int, parts: list[tuple[Tensor, Tensor]]) -> None:
    for got, want in zip(stored(cache, seq), expected(parts, cache.clip), strict=True):
        compare.exact(got, want)


def test_growing_loses_nothing():
    """Three sequences that take turns, from one page to dozens."""
    cache = new(clip=0.9)
    parts = {cache.add(): [] for _ in range(3)}
    sizes = set()
    for turn in range(60):
        for seq, kept in parts.items():
            kept.append(tokens(1 + (turn * 7 + seq) % 13, 100 * turn + seq))
            extend(cache, seq, kept[-1])
        sizes.add(cache.nbytes())
        if turn % 10 == 9:
            for seq, kept in parts.items():
                check(cache, seq, kept)
    assert len(sizes) >= 4  # it did grow, and by doubling
    assert sorted(sizes) == [min(sizes) * 2**i for i in range(len(sizes))]


def test_size_of_four_thousand_tokens():
    """At most 0.30 of what fp16 keys and values take."""
    for heads, d in ((3, 64), (8, 128)):
        cache = PagedKv4Cache(3, heads, d, device=TORCH_DEVICE)
        cache.slots(cache.add(), 4000)
        assert cache.nbytes() <= 0.30 * (3 * 2 * 4000 * heads * d * 2)


def test_a_prefix_is_in_every_attention_and_in_no_length():
    exact = torch.randn(LAYERS, 2, 3, KV_HEADS, D, generator=torch.Generator().manual_seed(9))
    cache, plain = new(prefix=exact), new()
    part, q = tokens(50, 3), torch.ones(1, HEADS, D, device=TORCH_DEVICE)
    for c in (cache, plain):
        seq = c.add()
        extend(c, seq, part)
        assert c.length(c.fork(seq)) == c.length(seq) == 50
    for seq in (0, 1):
        tables = plain.tables([seq])
        for layer in range(LAYERS):
            prefix = [x.to(TORCH_DEVICE) for x in exact[layer]]
            want = OPS.kv4_attention(q, *plain.caches(layer), *tables, 0.1, *prefix)
            compare.exact(cache.attention(layer, q, cache.tables([seq]), 0.1), want)
    with pytest.raises(ValueError, match=r"prefix: expected \[2, 2, P, 2, 64\], got \[2, 2, 2, 3, 64\]"):
        new(prefix=exact.transpose(2, 3))


def test_more_than_max_tokens_is_one_sentence_and_changes_nothing():
    cache = new(max_tokens=40)
    a, b = cache.add(), cache.add()
    parts = [tokens(30, 1)]
    extend(cache, a, parts[0])
    cache.slots(b, 9)
    with pytest.raises(ValueError) as caught:
        cache.slots(b, 2)
    assert str(caught.value) == "max_tokens: the cache holds 39 of at most 40 tokens, got 2 more"
    with pytest.raises(ValueError, match="max_tokens: the cache holds 39 of at most 40 tokens, got 2 more"):
        cache.step([a, b])
    with pytest.raises(ValueError, match="got 30 more"):
        cache.fork(a)
    assert cache.length(a) == 30 and cache.length(b) == 9 and cache.tokens == 39
    check(cache, a, parts)
    cache.step([b])
    cache.free(a)
    cache.slots(b, 30)


def test_freed_pages_are_used_again():
    cache = new()
    seq = cache.add()
    cache.slots(seq, 300)
    size = cache.nbytes()
    for i in range(5):
        cache.free(seq)
        seq = cache.add()
        parts = [tokens(300, i)]
        extend(cache, seq, parts[0])
        check(cache, seq, parts)
    cache.reset()
    assert cache.tokens == 0 and cache.nbytes() == size
    with pytest.raises(ValueError, match=r"seq: expected a sequence of the cache \(none\), got 5"):
        cache.length(seq)


@pytest.mark.parametrize("n", [1, 16, 20, 32])
def test_forks_share_pages_until_one_writes(n):
    cache = new()
    a, common = cache.add(), [tokens(n, 0)]
    extend(cache, a, common[0])
    forks = [cache.fork(a), cache.fork(a)]
    used = len(set(cache.tables([a, *forks])[0].flatten().tolist()) - {-1})
    assert used == -(-n // 16)
    mine = {seq: [*common, tokens(5 + seq, seq)] for seq in (a, *forks)}
    for seq, parts in mine.items():
        extend(cache, seq, parts[-1])
    for seq, parts in mine.items():
        check(cache, seq, parts)
    cache.free(a)
    for seq in forks:
        check(cache, seq, mine[seq])


def test_forks_that_step_together():
    cache = new()
    a, common = cache.add(), [tokens(20, 0)]
    extend(cache, a, common[0])
    b = cache.fork(a)
    table, lengths = cache.step([a, b])
    assert lengths.tolist() == [20, 20] and table[0, 0] == table[1, 0] and table[0, 1] != table[1, 1]
    for seq in (a, b):
        cache.crop(seq, -1)
        check(cache, seq, common)


@pytest.mark.parametrize("keep", [-1, -16, -100, 0, 16, 17, 40, 99])
def test_crop(keep):
    cache = new()
    seq, parts = cache.add(), [tokens(40, 0)]
    other = cache.fork(seq)
    extend(cache, seq, parts[0])
    cache.crop(seq, keep)
    left = max(0, min(40, keep if keep >= 0 else 40 + keep))
    assert cache.length(seq) == left
    rest = [tuple(t[:, :left] for t in parts[0]), tokens(30, 9)]
    extend(cache, other, tokens(50, 3))  # may take the pages that came free
    extend(cache, seq, rest[1])
    check(cache, seq, rest)


def test_decoding_a_batch_equals_decoding_alone():
    """Prefill, then steps, with everything that attend does; sequences join and leave."""
    g = torch.Generator().manual_seed(0)
    width = (HEADS + 2 * KV_HEADS) * D

    def run(together: bool) -> dict[int, list[Tensor]]:
        g.manual_seed(5)
        cache = new(key_block=64, clip=0.95)
        out: dict[int, list[Tensor]] = {}
        for n in (3, 70, 16):
            seq = cache.add()
            qkv, angle = torch.randn(n, width, generator=g), torch.randn(n, D // 2, generator=g).repeat(1, 2)
            args = [t.to(TORCH_DEVICE) for t in (qkv, angle.cos(), angle.sin())]
            slots = cache.slots(seq, n)
            for layer in range(LAYERS):
                cache.rope_append(layer, *args, HEADS, slots)
            out[seq] = []
        for step in range(20):
            seqs = [s for s in out if not (s == 1 and step > 9)]
            angle = torch.randn(1, D // 2, generator=g).repeat(len(seqs), 2)
            args = [
                t.to(TORCH_DEVICE)
                for t in (torch.randn(3, width, generator=g)[seqs], angle.cos(), angle.sin())
            ]
            for group in [seqs] if together else [[s] for s in seqs]:
                rows = [seqs.index(s) for s in group]
                tables = cache.step(group)
                for layer in range(LAYERS):
                    y = cache.attend(layer, *(a[rows] for a in args), HEADS, tables, D**-0.5)
                    for s, row in zip(group, y, strict=True):
                        out[s].append(row)
        return out

    one, two = run(True), run(False)
    for seq in one:
        compare.exact(torch.stack(one[seq]), torch.stack(two[seq]))


def test_attention_reads_what_append_wrote():
    cache = new()
    seq, parts = cache.add(), tokens(100, 0)
    extend(cache, seq, parts)
    q = torch.randn(1, HEADS, D, generator=torch.Generator().manual_seed(1)).to(TORCH_DEVICE)
    got = cache.attention(1, q, cache.tables([seq]), D**-0.5)
    key, value = (
        OPS.kv4_dequantize(*OPS.kv4_quantize(p[1].cpu())).double().repeat_interleave(HEADS // KV_HEADS, 1)
        for p in parts
    )
    score = torch.einsum("hd,thd->ht", q[0].cpu().double(), key) * D**-0.5
    want = torch.einsum("ht,thd->hd", score.softmax(-1), value)
    compare.elementwise(got[0], want.numpy(), 1e-5)


@pytest.mark.parametrize(
    "options,sentence",
    [
        ({"page": 24}, "page: expected one of 16, 32, 64, 128, 256, got 24"),
        ({"clip": 0.0}, r"clip: expected a value in \(0, 1\], got 0.0"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        new(**options)


def test_bad_calls():
    cache = new()
    seq = cache.add()
    with pytest.raises(ValueError, match="layers: expected at least 1, got 0"):
        PagedKv4Cache(0, 1, 64)
    with pytest.raises(ValueError, match=r"seq: expected a sequence of the cache \(0\), got 3"):
        cache.slots(3, 1)
    with pytest.raises(ValueError, match="n: expected 0 or more tokens, got -1"):
        cache.slots(seq, -1)
    with pytest.raises(ValueError, match="seqs: expected each sequence once, got 0, 0"):
        cache.step([seq, seq])
