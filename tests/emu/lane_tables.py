"""Lane maps by hand from the element formulas of the PTX manual (9.7.14.5.8, .10, .11 and 9.7.15.5.1), which
number elements and not registers. They share nothing with csrc/layout/mma_fragment.h.
"""

import numpy as np


def a_map(e):
    """[(row, k)] of A by lane and element a0, a1, ...; e elements per 32-bit register."""
    out = []
    for lane in range(32):
        group, thread = lane >> 2, lane & 3
        for i in range(4 * e):
            row = group if i < e or 2 * e <= i < 3 * e else group + 8
            k = thread * e + (i & (e - 1)) + (0 if i < 2 * e else 4 * e)
            out.append((row, k))
    return out


def b_map(e):
    """[(n, k)] of B by lane and element b0, b1, ..."""
    out = []
    for lane in range(32):
        group, thread = lane >> 2, lane & 3
        for i in range(2 * e):
            out.append((group, thread * e + (i & (e - 1)) + (0 if i < e else 4 * e)))
    return out


def d_map():
    """[(row, n)] of C and D by lane and element c0 .. c3."""
    out = []
    for lane in range(32):
        group, thread = lane >> 2, lane & 3
        for i in range(4):
            out.append((group if i < 2 else group + 8, thread * 2 + (i & 1)))
    return out


def wgmma_d_map(n):
    """[(row, n)] of the wgmma accumulator by thread and register (figure 'register fragment D')."""
    out = []
    for t in range(128):
        for i in range(n // 2):
            row = 16 * (t // 32) + (t % 32) // 4 + (8 if i % 4 >= 2 else 0)
            out.append((row, (i // 4) * 8 + 2 * (t % 4) + i % 2))
    return out


def wgmma_a_map(e=4):
    """[(row, k)] of A in registers, m64 with 32 bytes of k, by thread and element; e per 32-bit register."""
    lanes = a_map(e)
    return [(16 * w + row, k) for w in range(4) for row, k in lanes]


def scatter(matrix, places):
    """The values of `matrix` at `places`, in register order."""
    rows, cols = zip(*places, strict=True)
    return matrix[np.array(rows), np.array(cols)]


def gather(values, places, shape):
    """The inverse of `scatter`."""
    matrix = np.zeros(shape, values.dtype)
    rows, cols = zip(*places, strict=True)
    matrix[np.array(rows), np.array(cols)] = values.reshape(-1)
    return matrix
