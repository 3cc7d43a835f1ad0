"""The bank-conflict and sector counters against the table of reference/ptx-semantics.md 8."""

import numpy as np
import pytest

# conflict degree of an ldmatrix phase of 8 rows: row pitch -> (no swizzle, 32 B, 64 B, 128 B)
TABLE = {
    16: (1, 1, 1, 1),
    32: (2, 1, 1, 1),
    64: (4, 2, 1, 1),
    80: (1, 2, 2, 2),
    128: (8, 4, 2, 1),
    144: (1, 2, 4, 8),
    256: (8, 8, 4, 2),
}


def wavefronts(emulated, bytes_per_lane, address):
    address = np.asarray(address, np.int32)
    total = int(-(-(address.max() + 16) // 512) * 512)
    out = np.zeros(32 * bytes_per_lane, np.uint8)
    report = emulated.bank(bytes_per_lane, address, total, out, {})
    count = report["shared"]["ld.shared"]
    assert count["requests"] == 1
    return count["actual"], count["ideal"]


@pytest.mark.parametrize("pitch", TABLE)
@pytest.mark.parametrize("column,width", list(enumerate((0, 32, 64, 128))))
def test_rows_of_sixteen_bytes(emulated, pitch, column, width):
    address = [emulated.swizzle(pitch * (lane % 8), width) for lane in range(32)]  # four times the same phase
    actual, ideal = wavefronts(emulated, 16, address)
    assert ideal == 4
    assert actual == 4 * TABLE[pitch][column]


EIGHT = [(128, 8), (256, 8), (512, 8), (272, 4), (528, 4), (288, 2), (544, 2)]


@pytest.mark.parametrize("pitch,expected", EIGHT)
def test_fragments_of_eight_bytes(emulated, pitch, expected):
    lane = np.arange(32)
    assert wavefronts(emulated, 8, pitch * (lane // 4) + 8 * (lane % 4)) == (expected, 2)


@pytest.mark.parametrize("pitch,expected", [(272, 1), (528, 1), (256, 8)])
def test_fragments_of_four_bytes(emulated, pitch, expected):
    lane = np.arange(32)
    assert wavefronts(emulated, 4, pitch * (lane // 4) + 4 * (lane % 4)) == (expected, 1)


def test_broadcast_is_free(emulated):
    assert wavefronts(emulated, 4, np.zeros(32)) == (1, 1)
    assert wavefronts(emulated, 4, 128 * np.arange(32)) == (32, 1)


def test_sectors(emulated):
    """The epilogue of the example: 4-byte stores of a fragment touch half of each row of 32 bytes."""
    x, w, y = np.zeros((16, 32), np.int8), np.zeros((8, 32), np.int8), np.zeros((16, 8), np.int32)
    count = emulated.example_int8_gemm(x, w, y, {})["global"]["st.global"]
    assert count == {"requests": 4, "bytes": 512, "actual": 32, "ideal": 16}
