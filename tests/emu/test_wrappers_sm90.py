"""Each wrapper of csrc/ptx for sm_90 on random data against numpy: TMA, bulk copies, wgmma."""

import re

import ml_dtypes
import numpy as np
import pytest

from tests.emu import lane_tables as tables

WIDTH = {0: 0, 1: 32, 2: 64, 3: 128}


def swizzled(tile, width):
    """Rows of `width` bytes to the bytes that lie in shared memory."""
    flat = tile.reshape(-1)
    if not width:
        return flat.copy()
    out = np.empty_like(flat)
    for i in range(0, flat.size, 16):
        row, chunk = i // width, i % width // 16
        low = (row // (128 // width)) % (width // 16)
        to = row * width + 16 * (chunk ^ low)
        out[to : to + 16] = flat[i : i + 16]
    return out


def box(matrix, x, y, rows, width):
    out = np.zeros((rows, width), np.uint8)
    for r in range(rows):
        for c in range(width):
            if 0 <= y + r < matrix.shape[0] and 0 <= x + c < matrix.shape[1]:
                out[r, c] = matrix[y + r, x + c]
    return out


@pytest.mark.parametrize("swizzle", WIDTH)
@pytest.mark.parametrize("x,y", [(0, 0), (-16, -3), (70, 20), (-200, 0), (5, 7)])
def test_tma_load(emulated, swizzle, x, y):
    rng = np.random.default_rng(1)
    matrix = rng.integers(0, 256, (29, 128)).astype(np.uint8)[:, :103]  # 103 bytes of a row are inside
    width = WIDTH[swizzle] or 48
    out = np.zeros(16 * width, np.uint8)
    report = emulated.tma_load(matrix, 16, width, swizzle, x, y, out, {})
    expected = box(matrix, x, y, 16, width)
    assert np.array_equal(out, swizzled(expected, WIDTH[swizzle]))
    inside = box(np.ones_like(matrix), x, y, 16, width).sum()
    assert report["buffers"]["matrix"]["bytes_read"] == inside


@pytest.mark.parametrize("swizzle", WIDTH)
def test_bulk(emulated, swizzle):
    rng = np.random.default_rng(2)
    width = WIDTH[swizzle] or 80
    data = rng.integers(0, 256, 8 * width).astype(np.uint8)
    matrix, out = np.zeros((10, 256), np.uint8), np.zeros(8 * width, np.uint8)
    emulated.bulk(data, matrix, 8, width, swizzle, 176, 4, out, {})  # hangs over both far edges
    assert np.array_equal(out, data)
    rows = swizzled(data.reshape(8, width), WIDTH[swizzle]).reshape(8, width)  # the XOR is its own inverse
    expected = np.zeros_like(matrix)
    last = min(256, 176 + width)
    expected[4:10, 176:last] = rows[:6, : last - 176]
    assert np.array_equal(matrix, expected)


BAD_MAPS = [
    (dict(pointer=8), "pointer must be 16-byte aligned"),
    (dict(rows=0), "at least 1"),
    (dict(pitch=136), "multiple of 16"),
    (dict(pitch=64), "at least row_bytes"),
    (dict(box_rows=257), r"box_rows must be 1\.\.256"),
    (dict(box_bytes=24), "multiple of 16"),
    (dict(box_bytes=272), "up to 256"),
    (dict(box_bytes=128, swizzle=2), "swizzle width"),
    (dict(box_bytes=32, swizzle=3), "swizzle width"),
]


def test_tensor_map_rules(emulated):
    good = dict(pointer=256, rows=5, row_bytes=100, pitch=112, box_rows=8, box_bytes=64, swizzle=2)
    assert emulated.check_tensor_map(*good.values()) == ""
    for change, message in BAD_MAPS:
        error = emulated.check_tensor_map(*{**good, **change}.values())
        assert re.search(message, error), (change, error)


@pytest.mark.parametrize("swizzled", [False, True])
def test_wgmma(emulated, swizzled):
    rng = np.random.default_rng(int(swizzled))
    assert {n for n, steps in emulated.wgmma_shapes if steps == 4} == {8, 16, 32, 64, 96, 128, 192, 256}
    for n, steps in emulated.wgmma_shapes:
        a = rng.integers(-128, 128, (64, 32 * steps)).astype(np.int8)
        b = rng.integers(-128, 128, (n, 32 * steps)).astype(np.int8)
        c = rng.integers(-(2**31), 2**31, (64, n))
        pieces = [a[:, 32 * s : 32 * s + 32] for s in range(steps)]
        registers = np.stack([tables.scatter(p, tables.wgmma_a_map()).reshape(128, 16) for p in pieces])
        for accumulate in (False, True):
            d = tables.scatter(c, tables.wgmma_d_map(n)).astype(np.int32).reshape(128, n // 2)
            options = {"seed": n + accumulate, "smem_base_mod": 128 * (n // 8 % 5)}
            report = emulated.wgmma(n, registers, b, d, swizzled, accumulate, 1, options)
            product = a.astype(np.int64) @ b.astype(np.int64).T + (c if accumulate else 0)
            got = tables.gather(d, tables.wgmma_d_map(n), (64, n))
            assert np.array_equal(got, product.astype(np.int32)), (n, steps, accumulate)
            assert report["instructions"]["wgmma"] == steps
            assert report["shared"]["wgmma"]["actual"] == report["shared"]["wgmma"]["ideal"]


@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_wgmma_half(emulated, dtype, swizzled):
    """Subnormals of fp16 too. All sums are exact in fp32: any order of the hardware gives these bits."""
    rng = np.random.default_rng(int(swizzled))
    unit = 2.0**-24 if dtype == np.float16 else 2.0**-100
    for n in (8, 64, 128, 256):
        a = rng.integers(-128, 129, (64, 64)) * unit
        b, c = rng.integers(-64, 65, (n, 64)) / 8.0, rng.integers(-(2**12), 2**12, (64, n)) * unit
        bits = a.astype(dtype).view(np.uint16)
        pieces = [bits[:, 16 * s : 16 * s + 16] for s in range(4)]
        words = [tables.scatter(p, tables.wgmma_a_map(2)).view(np.uint32) for p in pieces]
        registers = np.stack(words).reshape(4, 128, 4)
        tile = b.astype(dtype).view(np.uint8).reshape(n, 128)
        for accumulate in (False, True):
            d = tables.scatter(c, tables.wgmma_d_map(n)).astype(np.float32).reshape(128, n // 2)
            options = {"seed": n + accumulate, "smem_base_mod": 128 * (n // 8 % 5)}
            bf16 = dtype != np.float16
            report = emulated.wgmma_half(bf16, n, registers, tile, d, swizzled, accumulate, 1, options)
            got = tables.gather(d, tables.wgmma_d_map(n), (64, n))
            want = (a @ b.T + (c if accumulate else 0)).astype(np.float32)
            assert np.array_equal(got, want), (n, accumulate)
            assert report["instructions"]["wgmma"] == 4
            assert report["shared"]["wgmma"]["actual"] == report["shared"]["wgmma"]["ideal"]


@pytest.mark.parametrize("seed", range(1, 9))
def test_cp_async_mbarrier(emulated, seed):
    data = np.random.default_rng(seed).integers(0, 256, (32, 16)).astype(np.uint8)
    out = np.zeros_like(data)
    emulated.cp_async_mbarrier(data, out, {"seed": seed})
    assert np.array_equal(out, data[::-1])


@pytest.mark.parametrize("seed", range(5))
def test_life_of_an_mbarrier(emulated, seed):
    """expect_tx without an arrival, inval, and an init in the same place."""
    data = np.random.default_rng(seed).integers(0, 2**32, 128, dtype=np.uint32)
    out = np.zeros(256, np.uint32)
    emulated.barrier_life(data.view(np.uint8), out, {"seed": seed})
    assert np.array_equal(out[:128], data)
    assert np.array_equal(out[128:192], np.tile(np.array([0xC0FFEE, 0xF00D], np.uint32), 32))
    assert np.array_equal(out[192:], 1000 + np.arange(63, -1, -1))


def test_setmaxnreg(emulated):
    words = np.random.default_rng(5).integers(0, 2**32, 384, dtype=np.uint32)
    out = np.zeros_like(words)
    emulated.setmaxnreg(words, out, {})
    x = words[(np.arange(384)[:, None] + np.arange(160)) % 384]
    for i in range(160):  # in place: the second half sees what the first has become
        x[:, i] = x[:, i] * 5 + x[:, (i + 80) % 160]
    want = words.copy()
    for i in range(160):
        want = (want ^ x[:, i * 7 % 160]) * 3
    assert np.array_equal(out[:128], words[:128] + 1)
    assert np.array_equal(out[128:], want[128:])
