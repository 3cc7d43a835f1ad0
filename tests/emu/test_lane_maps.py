"""csrc/layout: the lane maps own each element once and equal the hand-written tables; the swizzles too."""

import pytest

from tests.emu import lane_tables as tables


@pytest.mark.parametrize("e", [2, 4, 8])
def test_mma_maps(emulated, e):
    maps = emulated.lane_maps(e)
    assert maps["a"] == tables.a_map(e)
    assert maps["b"] == tables.b_map(e)
    assert maps["d"] == tables.d_map()
    assert sorted(maps["a"]) == [(r, k) for r in range(16) for k in range(8 * e)]
    assert sorted(maps["b"]) == [(n, k) for n in range(8) for k in range(8 * e)]
    assert sorted(maps["d"]) == [(r, n) for r in range(16) for n in range(8)]


def test_wgmma_maps(emulated):
    maps = emulated.lane_maps(4)
    assert maps["wgmma_a"] == tables.wgmma_a_map()[::4]  # by register, not by byte
    assert maps["wgmma_d"] == tables.wgmma_d_map(256)
    assert sorted(maps["wgmma_d"]) == [(r, n) for r in range(64) for n in range(256)]


@pytest.mark.parametrize("width,mask", [(32, 1), (64, 3), (128, 7)])
def test_swizzle_in_the_atom(emulated, width, mask):
    """PTX 5.5.7: chunk c of row r lies at c ^ (low bits of the row); rows pair up below 128 bytes."""
    for r in range(8):
        for c in range(width // 16):
            chunk = c ^ ((r // (128 // width)) & mask)
            assert emulated.swizzle(r * width + 16 * c + 5, width) == r * width + 16 * chunk + 5


@pytest.mark.parametrize("width", [32, 64, 128])
def test_swizzle_is_its_own_inverse(emulated, width):
    for a in range(0, 1 << 12, 4):
        b = emulated.swizzle(a, width)
        assert emulated.swizzle(b, width) == a and b >> 7 == a >> 7 and b & 15 == a & 15
