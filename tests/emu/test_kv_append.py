"""Append to the paged INT4 cache under the emulator, with and without norm and RoPE: the exact bits."""

import numpy as np
import pytest

from . import kv_pages as kv
from . import rows as r

EMPTY = np.zeros(0, np.uint8)


def append(emulated, qkv, heads, slots, cache, rotation, clip=1.0, **options):
    """Runs the kernel on `cache`; checks q, k, v and every byte of the cache. Returns the report."""
    tokens, d, kv_heads = len(qkv), cache.d, cache.kv_heads
    name = next(n for n, t in r.DTYPES.items() if t == qkv.dtype)
    rows = heads + 2 * kv_heads
    outs = [r.raw(tokens * n * d * qkv.itemsize) if heads else EMPTY for n in (heads, kv_heads, kv_heads)]
    given = cache.copy()
    held_slots = np.asarray(slots, np.int64)
    report = emulated.kv4_append(
        kv.stored(qkv), name, heads, held_slots, cache.arrays, rotation, clip, *outs, options
    )
    got, cache.arrays = cache.arrays, given
    norms = [rotation["q_norm"], rotation["k_norm"]]
    x = qkv.reshape(tokens, rows, d)
    want = x.copy()
    total = cache.arrays["key_codes"].shape[0] * cache.page
    for t in range(tokens):
        for h in range(rows):
            is_q, is_v = h < heads, h >= heads + kv_heads
            if not is_v:
                weight = norms[0] if is_q else norms[1]
                cos, sin = (rotation[n][t] if rotation[n].size else np.zeros(0) for n in ("cos", "sin"))
                want[t, h] = kv.norm_and_rope(x[t, h], weight if weight.size else None, 1e-6, cos, sin)
            if is_q or not 0 <= slots[t] < total:
                continue
            head = want[t, h].astype(np.float32)
            if not is_v:
                head = kv.hadamard(head, rotation["key_block"])
            cache.put("value" if is_v else "key", slots[t], (h - heads) % kv_heads, head, clip)
    for a in cache.arrays:
        assert got[a].tobytes() == cache.arrays[a].tobytes(), a
    edges = np.cumsum([0, heads, kv_heads, kv_heads])
    for out, begin, end in zip(outs, edges[:-1], edges[1:], strict=True):
        if heads:
            assert out.tobytes() == np.ascontiguousarray(want[:, begin:end]).tobytes()
    return report


def slots_of(tokens, total, seed=0):
    return np.random.default_rng(seed).permutation(total)[:tokens].astype(np.int64)


@pytest.mark.parametrize("page", [16, 64, 256])
@pytest.mark.parametrize("d", [8, 64, 80, 96, 128, 256])
def test_without_rope(emulated, d, page):
    for i, dtype in enumerate(r.DTYPES):
        cache = kv.Cache(512 // page, 2, page, d, seed=d)
        qkv = r.normal(5, 4 * d, dtype=dtype, seed=i + d)
        rotation = kv.rotation(5, d, 0, False, d & -d if i % 2 else 1)
        append(emulated, qkv, 0, slots_of(5, 512, d), cache, rotation, (1.0, 0.95)[i % 2], seed=i)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(
    ("d", "rotary"),
    [
        (64, 64),
        (64, 16),
        (64, 20),
        (80, 80),
        (80, 32),
        (80, 20),
        (96, 96),
        (96, 48),
        (128, 128),
        (256, 256),
        (64, 2),
    ],
)
def test_rope(emulated, d, rotary, norms):
    """All of a head or a part of it, halves that are whole chunks or not."""
    for i, dtype in enumerate(r.DTYPES):
        cache = kv.Cache(20, 2, 16, d, seed=d)
        qkv = r.normal(3, 7 * d, dtype=dtype, seed=i + rotary)
        rotation = kv.rotation(3, d, rotary, norms, (1, 2, d & -d)[i], seed=rotary)
        append(emulated, qkv, 3, slots_of(3, 320, d), cache, rotation, (0.95, 1.0, 0.9)[i], seed=i)


@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_hadamard_of_keys(emulated, block):
    cache = kv.Cache(2, 1, 16, 256)
    append(
        emulated,
        r.normal(3, 512, seed=block),
        0,
        np.array([3, 17, 30]),
        cache,
        kv.rotation(3, 256, 0, False, block),
    )


def test_equals_kv4_quantize(emulated):
    """The codes of the unpaged kernel, bit for bit."""
    d, tokens = 128, 6
    x = r.normal(tokens, 2 * d, dtype="bfloat16", seed=1)
    packed, params = r.raw(2 * tokens * d // 2), r.raw(2 * tokens * 4)
    emulated.kv4_quantize(kv.stored(x), "bfloat16", 2 * tokens, d, 0.95, packed, params.view(np.float16), {})
    cache = kv.Cache(1, 1, 16, d)
    append(emulated, x, 0, np.arange(tokens), cache, kv.rotation(tokens, d, 0, False), 0.95)
    codes = packed.reshape(tokens, 2, d // 2)
    held = params.reshape(tokens, 2, 4)
    for i, name in enumerate(("key", "value")):
        np.testing.assert_array_equal(cache.arrays[f"{name}_codes"][0, 0, :tokens], codes[:, i])
        got = cache.arrays[f"{name}_params"][0, 0, :tokens]
        np.testing.assert_array_equal(np.ascontiguousarray(got).view(np.uint8), held[:, i])


def test_skipped_slots(emulated):
    """Negative slots, and such as the cache does not have, are not stored; q, k and v come out."""
    cache = kv.Cache(2, 2, 16, 64)
    rotation = kv.rotation(5, 64, 64, True, 64)
    append(emulated, r.normal(5, 8 * 64), 4, np.array([-1, 3, 32, -(1 << 40), 31]), cache, rotation)


def test_special_heads(emulated):
    """Constants, NaN, infinities, ranges that float16 cannot hold."""
    x = np.zeros((6, 2, 64), np.float32)
    x[0], x[1, 0] = 3.25, -7.5
    x[2, 0, 7], x[2, 1, 63], x[3, 0, 0] = np.nan, np.inf, -np.inf
    x[4, 0] = np.linspace(-7e4, 7e4, 64)
    x[5, 1] = np.linspace(-1e-9, 1e-9, 64)
    cache = kv.Cache(1, 1, 16, 64)
    append(emulated, x.reshape(6, 128), 0, np.arange(6), cache, kv.rotation(6, 64, 0, False))


def test_empty(emulated):
    append(
        emulated,
        np.zeros((0, 256), np.float32),
        0,
        slots_of(0, 16),
        kv.Cache(1, 2, 16, 64),
        kv.rotation(0, 64, 0, False),
    )


@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_counters(emulated, d, dtype):
    """Each byte of qkv once, each byte of the results once, whole sectors, no shared memory."""
    cache = kv.Cache(4, 2, 16, d)
    rotation = kv.rotation(6, d, d, True, d)
    report = append(emulated, r.normal(6, 8 * d, dtype=dtype), 4, slots_of(6, 64), cache, rotation)
    assert r.read_once(report, "qkv")
    assert all(r.written_once(report, name) for name in "qkv")
    assert report["buffers"]["key_codes"]["write_max"] == report["buffers"]["key_params"]["write_max"] == 1
    assert report["buffers"]["key_codes"]["bytes_written"] == 6 * 2 * d // 2
    assert not report["shared"]
    # cos, sin and the norms are fp32: half sectors, twice
    assert r.ratio(report["global"]["ld.global"]) <= 2


@pytest.mark.parametrize("seed", range(10))
def test_no_race(emulated, seed):
    cache = kv.Cache(4, 3, 16, 80)
    rotation = kv.rotation(7, 80, 80, True, 16)
    append(emulated, r.normal(7, 12 * 80, dtype="bfloat16"), 6, slots_of(7, 64), cache, rotation, seed=seed)
