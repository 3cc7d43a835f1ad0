"""Decode attention over the paged INT4 cache under the emulator, against float64 and against itself."""

import numpy as np
import pytest

from tests.oracle import codec, fused
from tests.oracle import ops as oracle

from . import kv_pages as kv
from . import rows as r

F32, F64 = np.float32, np.float64
CARDS = {80: (80, 108, 166912), 86: (86, 84, 101376), 90: (90, 132, 232448)}
LENGTHS = (0, 1, 255, 256, 257, 1000)


class Batch:
    """Sequences with pages of one pool in no order; the cache holds real keys and values. prefix: exact
    tokens before them.
    """

    def __init__(self, lengths, heads, kv_heads, d, page=64, dtype="bfloat16", seed=0, fresh=False, prefix=0):
        rng = np.random.default_rng((seed, d, page))
        self.lengths = np.asarray(lengths, np.int32)
        self.heads, self.kv_heads, self.d, self.dtype = heads, kv_heads, d, dtype
        needs = [-(-(n + fresh) // page) for n in lengths]
        self.max_pages = max([*needs, 1]) + 1
        self.cache = kv.Cache(sum(needs) + 3, kv_heads, page, d, seed)
        self.table = np.full((len(lengths), self.max_pages), -(1 << 30), np.int32)  # poison past the end
        order = rng.permutation(sum(needs) + 3)
        for b, n in enumerate(needs):
            self.table[b, :n], order = order[:n], order[n:]
        for b in range(len(lengths)):
            for i, slot in enumerate(self.slots(b)[: lengths[b]]):
                for h in range(kv_heads):
                    sink = 4.0 if i == 0 else 1.0
                    self.cache.put("key", slot, h, (rng.standard_normal(d) * sink + 0.3).astype(F32))
                    self.cache.put("value", slot, h, (rng.standard_normal(d) - 0.2).astype(F32))
        count = heads + 2 * kv_heads if fresh else heads
        self.q = rng.standard_normal((len(lengths), count, d)).astype(F32).astype(r.DTYPES[dtype])
        self.scale = float(F32(1 / np.sqrt(d)))
        exact = rng.standard_normal((2, prefix, kv_heads, d)).astype(F32)
        self.prefix = kv.stored(exact).view(F32).reshape(exact.shape)

    def slots(self, b):
        """Of every token that sequence b's pages can hold."""
        page = self.cache.page
        held = self.table[b][self.table[b] >= 0].astype(np.int64)
        return (held[:, None] * page + np.arange(page)).ravel()

    def run(self, emulated, rotation=None, sm=80, clip=1.0, multiprocessors=None, codes=None, **options):
        """(y [batch, heads, d], report). codes: the buffers and settings of rows that leave as codes."""
        y = r.raw(len(self.lengths) * self.heads * self.d * self.q.itemsize)
        card = dict(zip(("sm", "multiprocessors", "shared_bytes"), CARDS[sm], strict=True))
        card["multiprocessors"] = multiprocessors or card["multiprocessors"]
        report = emulated.kv4_attention(
            kv.stored(self.q), self.dtype, len(self.lengths), self.heads, self.cache.arrays, self.table,
            self.lengths, rotation, y,
            {"softmax_scale": self.scale, "clip": clip, "prefix": self.prefix, **card}
            | ({} if codes is None else {"codes": codes}),
            options,
        )  # fmt: skip
        return y.view(self.q.dtype).reshape(-1, self.heads, self.d), report


def attend(q, keys, values, scale, prefix=((), ())):
    """float64 (result [d], how far fp32 may be off before the last rounding [d]). keys, values: Cache.get.
    prefix: exact keys and values [P, d].

    u = 2^-24. A sum of products is off by its length times 2u times the sum of their sizes (tensor cores may
    cut where others round). What q and the weights lose as two fp16 is 2^-37 of their largest. An error of a
    score is a relative one of its probability; ex2.approx adds 2 ulp, the factors on the way a rounding each.
    """
    u, d = 2.0**-24, keys[0].shape[1]
    first, second = (np.asarray(x, F64).reshape(-1, d) for x in prefix)
    none = np.zeros(len(first))
    codes, step, zero = keys
    scores = np.concatenate([first, codes * step + zero]) @ q * scale
    size = np.concatenate([np.abs(first), codes * step + np.abs(zero)]) @ np.abs(q) * scale
    lost = np.concatenate([none, 2.0**-37 * np.abs(q).max() * (codes * step).sum(axis=1) * scale])
    off = (2 * (2 * d + 8)) * u * size + 4 * u * np.abs(scores) + lost
    p = np.exp(scores - scores.max())
    relative = np.expm1(off + off.max()) + 8 * u + 2 * u * np.abs(scores - scores.max())
    codes, step, zero = values
    y = p @ np.concatenate([second, codes * step + zero]) / p.sum()
    parts = np.concatenate([np.abs(second), codes * step + np.abs(zero)])
    bound = (p * relative) @ parts + np.abs(y) * (p @ relative) + (2 * 2 * len(p) + 16) * u * (p @ parts)
    bound += 2.0**-37 * (p[len(first) :] @ step).max() * codes.sum(axis=0)
    return y, bound / p.sum()


def check(y, batch, q=None, total=None):
    q = batch.q if q is None else q
    share = batch.heads // batch.kv_heads
    unit = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}[batch.dtype]
    worst = 0.0
    for b, n in enumerate(batch.lengths if total is None else total):
        if n <= 0 and not batch.prefix.size:
            assert not y[b].astype(F32).any()
            continue
        slots = batch.slots(b)[: max(n, 0)]
        for h in range(batch.kv_heads):
            keys, values = (batch.cache.get(name, slots, h) for name in ("key", "value"))
            for head in range(h * share, (h + 1) * share):
                exact = batch.prefix[:, :, h]
                want, bound = attend(q[b, head].astype(F64), keys, values, batch.scale, exact)
                error = np.abs(y[b, head].astype(F64) - want)
                room = bound + unit * (np.abs(want) + bound) + 2.0**-25
                assert (error <= room).all(), (b, head, (error / room).max())
                worst = max(worst, (error / room).max())
    return worst


@pytest.mark.parametrize("page", [16, 64, 256])
@pytest.mark.parametrize("d", [64, 80, 96, 128, 256])
def test_against_float64(emulated, d, page):
    """A batch of every kind of length, and with rows past the end of no page."""
    dtype = list(r.DTYPES)[(d // 16 + page // 64) % 3]
    batch = Batch(LENGTHS, 4, 2, d, page, dtype, seed=page)
    y, report = batch.run(emulated, seed=d)
    assert check(y, batch) > 0  # some element is not exact
    assert report["splits"] >= 4


@pytest.mark.parametrize("prefix", [1, 3, 16])
@pytest.mark.parametrize("d", [64, 80, 96, 128, 256])
def test_prefix_against_float64(emulated, d, prefix):
    """Exact tokens before those of every sequence, of one without any too."""
    dtype = list(r.DTYPES)[(d // 16 + prefix) % 3]
    batch = Batch((0, 1, 256, 257, 600), 4, 2, d, 64, dtype, seed=prefix, prefix=prefix)
    y, report = batch.run(emulated, seed=d)
    assert check(y, batch) > 0
    assert r.written_once(report, "y")
    for name in ("ld.shared", "ldmatrix"):
        assert report["shared"][name]["actual"] == report["shared"][name]["ideal"], name
    batch.prefix[0] *= F32(1000)  # all of the weight
    y, _ = batch.run(emulated)
    check(y, batch)


def test_no_prefix_changes_no_bit(emulated):
    """A token that weighs nothing beside the others."""
    batch = Batch((300, 5), 4, 2, 64, 16, "float32", seed=11, prefix=1)
    batch.q[...] = np.abs(batch.q)
    batch.prefix[0] = F32(-1e4)
    y, _ = batch.run(emulated)
    batch.prefix = np.ascontiguousarray(batch.prefix[:, :0])
    want, _ = batch.run(emulated)
    assert y.tobytes() == want.tobytes()


def test_as_exact_as_float32(emulated):
    """The largest error is at most three times that of the same maths in float32, which cuts nothing."""
    batch = Batch((1000, 300), 4, 2, 128, 64, "float32", seed=1)
    y, _ = batch.run(emulated)
    errors = []
    for b, n in enumerate(batch.lengths):
        for h in range(4):
            keys, values = (batch.cache.get(name, batch.slots(b)[:n], h // 2) for name in ("key", "value"))
            want, _ = attend(batch.q[b, h].astype(F64), keys, values, batch.scale)
            q, scale = batch.q[b, h], F32(batch.scale)
            codes, step, zero = (a.astype(F32) for a in keys)
            s = ((codes @ q) * step[:, 0] + zero[:, 0] * q.sum()) * scale
            p = np.exp(s - s.max())
            codes, step, zero = (a.astype(F32) for a in values)
            plain = ((p * step[:, 0]) @ codes + p @ zero[:, 0]) / p.sum()
            errors.append([np.abs(y[b, h] - want).max(), np.abs(plain - want).max()])
    kernel, plain = np.max(errors, axis=0)
    assert kernel <= 3 * plain


@pytest.mark.parametrize("share", [1, 2, 3, 4, 5, 6, 7, 8, 9, 17])
def test_grouped_heads(emulated, share):
    """Up to eight query heads in a block, more in several."""
    batch = Batch((3, 300, 0), 2 * share, 2, 64, 32, "float16", seed=share)
    y, report = batch.run(emulated, seed=share)
    check(y, batch)
    assert report["groups"] == -(-share // 8)


@pytest.mark.parametrize("size", [1e-30, 1e-4, 3e4])
def test_size_of_queries(emulated, size):
    """Queries that no float16 holds."""
    batch = Batch((40, 300), 2, 1, 64, 16, "float32", seed=2)
    batch.q *= F32(size)
    batch.scale = float(F32(batch.scale / size))
    y, _ = batch.run(emulated)
    check(y, batch)


def test_largest_score_in_a_late_split(emulated):
    """Past what exp holds beyond the first split's scores: the largest of all splits is what counts."""
    batch = Batch((700,), 2, 1, 64, 16, "float32", seed=8)
    batch.cache.put("key", batch.slots(0)[500], 0, batch.q[0, 0] * F32(50))
    y, _ = batch.run(emulated)
    assert np.isfinite(y).all()
    check(y, batch)


def test_size_of_values(emulated):
    """Steps of values from float16's smallest to its largest, in one sequence."""
    batch = Batch((300,), 2, 1, 64, 16, "float32", seed=3)
    steps = batch.cache.arrays["value_params"]
    steps[...] *= np.exp2(np.random.default_rng(0).integers(-8, 8, steps.shape[:-1]))[..., None]
    y, _ = batch.run(emulated)
    check(y, batch)


def test_not_a_number(emulated):
    """A key or a value that is NaN makes its own heads NaN."""
    batch = Batch((70, 300, 20), 4, 2, 64, 16, "bfloat16", seed=4)
    for name, b, token, head in (("key", 0, 33, 1), ("value", 1, 260, 0)):
        slot = batch.slots(b)[token]
        batch.cache.arrays[f"{name}_params"][slot // 16, head, slot % 16] = np.nan
    y, _ = batch.run(emulated)
    nan = np.zeros((3, 4, 64), bool)
    nan[0, 2:] = nan[1, :2] = True
    np.testing.assert_array_equal(np.isnan(y.astype(F32)), nan)


def test_lengths_outside_of_the_table(emulated):
    """Negative: no token. More than the pages hold: all that they hold."""
    batch = Batch((64, 64), 2, 1, 64, 16, "float32", seed=5)
    batch.table = np.ascontiguousarray(batch.table[:, :4])
    want, _ = batch.run(emulated)
    batch.lengths[:] = -5, 1 << 30
    y, _ = batch.run(emulated)
    assert not y[0].any() and y[1].tobytes() == want[1].tobytes()


def test_empty(emulated):
    batch = Batch((), 2, 1, 64, 16)
    assert batch.run(emulated)[0].size == 0


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("d", [64, 80, 128])
def test_batch_independence(emulated, d, prefix):
    """A sequence gives the same bits alone, in company, and with any number of blocks on its splits."""
    batch = Batch((1000, 17, 512, 513, 0), 3, 1, d, 64, "float32", seed=d, prefix=prefix)
    y, report = batch.run(emulated)
    assert report["blocks_per_sequence"] == report["splits"] == 5
    for slots in (1, 2, 3):
        other, report = batch.run(emulated, multiprocessors=slots, sm=86)
        assert other.tobytes() == y.tobytes()
    few = set()
    for b in range(5):
        one = Batch((), 3, 1, d)
        one.cache, one.max_pages, one.scale = batch.cache, batch.max_pages, batch.scale
        one.prefix = batch.prefix
        one.lengths, one.table, one.q = (
            np.ascontiguousarray(a[b : b + 1]) for a in (batch.lengths, batch.table, batch.q)
        )
        one.dtype = batch.dtype
        alone, report = one.run(emulated)
        few.add(report["blocks_per_sequence"])
        assert alone.tobytes() == y[b : b + 1].tobytes()


@pytest.mark.parametrize("append", [False, True])
def test_every_order(emulated, append):
    """Any order of blocks and threads: no race, the same bits."""
    batch = Batch((600, 256, 31), 4, 2, (64, 96)[append], 64, "bfloat16", seed=9, fresh=append, prefix=1)
    rotation = kv.rotation(3, batch.d, batch.d, True, 32) if append else None
    given, want = batch.cache.arrays, None
    for seed in range(10):
        batch.cache.arrays = {name: kv.stored(a).view(a.dtype).reshape(a.shape) for name, a in given.items()}
        mod = (0, 128, 256, 512)[seed % 4]
        y, _ = batch.run(emulated, rotation, multiprocessors=1 + seed % 3, seed=seed, smem_base_mod=mod)
        got = b"".join(a.tobytes() for a in (y, *batch.cache.arrays.values()))
        want = want or got
        assert got == want


@pytest.mark.parametrize("d", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("page", [16, 256])
def test_counters(emulated, d, page):
    """Every byte of the codes that count once, none of the others; whole sectors; bank conflicts only where a
    query is put down.
    """
    lengths = (300, 64, 512)
    batch = Batch(lengths, 8, 2, d, page, "bfloat16", seed=d)
    _, report = batch.run(emulated)
    for name in ("key_codes", "value_codes", "key_params", "value_params"):
        count = report["buffers"][name]
        size = d // 2 if "codes" in name else 4
        assert count["bytes_read"] == sum(lengths) * 2 * size and count["read_max"] == 1
    assert r.written_once(report, "y")
    copied = report["global"]["cp.async"]
    assert copied["bytes"] == sum(lengths) * 2 * d and r.ratio(copied) == 1
    assert r.ratio(report["global"]["ld.global"]) < 1.05 and r.ratio(report["global"]["st.global"]) < 1.05
    shared = report["shared"]
    for name in ("ldmatrix", "ld.shared"):
        assert shared[name]["actual"] == shared[name]["ideal"], name
    assert r.ratio(shared["cp.async"]) <= (2 if d == 80 else 1)  # pieces of 8 bytes in rows of 48
    assert r.ratio(shared["st.shared"]) <= 2  # where a query is put down


ROPE = [
    (64, 64, False, 64),
    (64, 16, True, 64),
    (80, 20, True, 16),
    (96, 96, True, 32),
    (128, 128, False, 128),
    (256, 256, True, 1),
]


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("dtype", r.DTYPES)
@pytest.mark.parametrize(("d", "rotary", "norms", "block"), ROPE)
def test_attend_is_its_parts(emulated, d, rotary, norms, block, dtype, prefix):
    """One launch gives the bits of append, Hadamard and attention: the result, and the whole cache."""
    lengths = np.array((0, 1, 255, 256, 300, 511))
    make = lambda: Batch(lengths, 4, 2, d, 64, dtype, seed=d, fresh=True, prefix=prefix)  # noqa: E731
    rotation = kv.rotation(len(lengths), d, rotary, norms, block, seed=d)
    fused, parts = make(), make()
    y, report = fused.run(emulated, rotation, clip=0.95)
    assert r.written_once(report, "y")

    slots = np.array([parts.slots(b)[n] for b, n in enumerate(lengths)])
    n, size = len(lengths), parts.q.itemsize
    outs = [r.raw(n * heads * d * size) for heads in (4, 2, 2)]
    emulated.kv4_append(kv.stored(parts.q), dtype, 4, slots, parts.cache.arrays, rotation, 0.95, *outs, {})
    q = outs[0].view(parts.q.dtype).reshape(n, 4, d)
    parts.q = np.stack([[kv.hadamard(q[b, h], block) for h in range(4)] for b in range(n)]).astype(q.dtype)
    parts.lengths = parts.lengths + np.int32(1)
    want, _ = parts.run(emulated)
    assert kv.same(fused.cache.arrays, parts.cache.arrays)
    assert y.tobytes() == want.tobytes()
    check(y, parts)


def test_attend_many_heads(emulated):
    """Two groups of query heads on one kv head: the token is stored once."""
    lengths = np.array((300, 5))
    batch = Batch(lengths, 12, 1, 64, 16, "float16", seed=6, fresh=True)
    rotation = kv.rotation(2, 64, 64, False, 64)
    y, report = batch.run(emulated, rotation)
    assert report["groups"] == 2 and report["buffers"]["key_codes"]["write_max"] == 1
    q = np.stack(
        [
            [kv.norm_and_rope(x, None, 0, rotation["cos"][b], rotation["sin"][b]) for x in batch.q[b]]
            for b in range(2)
        ]
    )
    q = np.stack([[kv.hadamard(x, 64) for x in of] for of in q]).astype(np.float16)
    check(y, batch, q, lengths + 1)


def test_attend_without_room(emulated):
    """A full table, or a negative length: nothing is stored; the pages that there are are attended to."""
    batch = Batch((64, 10), 2, 1, 64, 16, "float16", seed=7, fresh=True)
    batch.table = np.ascontiguousarray(batch.table[:, :4])
    batch.lengths[1] = -1
    before = batch.cache.copy()
    y, _ = batch.run(emulated, kv.rotation(2, 64, 0, False, 1))
    assert kv.same(before, batch.cache.arrays) and not y[1].astype(F32).any()
    check(y, batch)


CODED = [(4, "packed", False), (4, "int8", True), (8, "int8", False)]


@pytest.mark.parametrize("dtype", r.DTYPES)
@pytest.mark.parametrize(("bits", "layout", "static"), CODED)
@pytest.mark.parametrize("gathered", [False, True])
def test_attend_to_codes_is_attend_and_a_quantiser(emulated, bits, layout, static, gathered, dtype):
    """The codes and scales of the rows that the attention leaves, from the same launch, for any schedule."""
    lengths = np.array((0, 300, 700))
    rng = np.random.default_rng(bits)
    make = lambda: Batch(lengths, 20, 2, 64, 64, dtype, seed=5, fresh=True, prefix=1)  # noqa: E731
    rotation = kv.rotation(3, 64, 64, True, 64)
    want, _ = make().run(emulated, rotation)
    rows, k = want.reshape(3, -1).astype(F32), 20 * 64
    index = rng.integers(0, k, 1001 if gathered else 0).astype(np.int32)
    columns = len(index) or k
    factor = rng.uniform(5, 9, columns).astype(F32) if static else np.empty(0, F32)
    shift = rng.standard_normal(columns).astype(F32)
    v = rows[:, index] if gathered else rows
    v = (v * factor if static else v) - shift
    if static:
        codes, scale = fused.static_codes(v, bits), np.empty(0, F32)
    else:
        codes, scale = oracle.quantize_exact(v, bits, 0.9)
    expected = codec.pack_nibbles(codes) if layout == "packed" else codes.astype(np.int8).view(np.uint8)
    for multiprocessors in (1, 3, None):
        held = {name: kv.stored(x).view(x.dtype) for name, x in
                (("index", index), ("factor", factor), ("shift", shift))}  # fmt: skip
        q = r.raw(expected.size).reshape(expected.shape)
        out = {"q": q, "scale": r.raw(4 * scale.size).view(F32), "bits": bits, "layout": layout}
        out |= {"clip": 0.0 if static else 0.9}
        y, report = make().run(
            emulated, rotation, codes=held | out, multiprocessors=multiprocessors, seed=columns
        )
        assert report["groups"] == 2 and y.tobytes() == want.tobytes()
        np.testing.assert_array_equal(q.view(np.uint8), expected)
        np.testing.assert_array_equal(out["scale"], scale)
        assert report["buffers"]["codes"]["write_max"] == 1
