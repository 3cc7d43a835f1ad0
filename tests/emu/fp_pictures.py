"""The layout of FP6, FP4 and int4 weights for CUDA, written a second time: from pictures of its words."""

import numpy as np

# A pair's two weights lie 16 bits apart, so a picture has 16 columns, bit 15 first: which pair the bit is of,
# and below it which bit of the code. `'`: the second weight's bit is in the lower half, the first's above.
E2M3 = [
    ("1  2 2 2 2 2  1 1 1 1 1  0 0 0 0 0", "5  4 3 2 1 0  4 3 2 1 0  4 3 2 1 0"),
    ("4  5 5 5 5 5  4 4 4 4 4  3 3 3 3 3", "5  4 3 2 1 0  4 3 2 1 0  4 3 2 1 0"),
    ("0 7 2  6 6 6 6 6  7 7 7 7 7  3' 5 6'", "5 5 5  4 3 2 1 0  4 3 2 1 0  5 5 5"),
]
E3M2 = [*E2M3[:2], ("6 2 7  6 6 6 6 6  7 7 7 7 7  3' 5 0'", E2M3[2][1])]
FOUR = [("2  3 3 3  1 1 1  0 0 0  2' 0 1' 3' 2' 2'", "0  2 1 0  2 1 0  2 1 0  3 3 3 3 2 1")]
NIBBLES = [("3 3 3 3  2 2 2 2  1 1 1 1  0 0 0 0", "3 2 1 0  3 2 1 0  3 2 1 0  3 2 1 0")]


def places(format):
    """(pair, bit of the code) -> (word, bit of the word) of the first weight of the pair."""
    pictures = {"e3m2": E3M2, "e2m3": E2M3, "int4": NIBBLES}.get(format, FOUR)
    found = {}
    for word, (pairs, bits) in enumerate(pictures):
        columns = zip(pairs.split(), bits.split(), strict=True)
        for bit, (pair, of_code) in zip(range(15, -1, -1), columns, strict=True):
            found[int(pair.rstrip("'")), int(of_code)] = (word, bit + 16 * pair.endswith("'"))
    if len(pictures) == 1:  # the second word holds pairs 4 to 7 alike
        found |= {(pair + 4, bit): (1, at) for (pair, bit), (_, at) in found.items()}
    return found


def pack_weight(codes, format):
    """[N, K] codes -> bytes of the blocks [N/64][K/128], one weight at a time."""
    n, k = codes.shape
    six = format in ("e3m2", "e2m3")
    words, k_blocks = 3 if six else 2, -(-k // 128)
    padded = np.full((-(-n // 64) * 64, k_blocks * 128), 8 if format == "int4" else 0, np.int64)
    padded[:n, :k] = codes
    row, col = np.indices(padded.shape)
    slab, lane = row % 64 // 16, 4 * (row % 8) + col % 8 // 2
    pair = 4 * (col % 32 // 16) + 2 * (col % 16 // 8) + row % 16 // 8
    out = np.zeros((padded.shape[0] // 64, k_blocks, 4, words, 32, 4), np.int64)  # ... slab word lane chunk
    for (p, bit), (word, at) in places(format).items():
        here = pair == p
        r, c = row[here], col[here]
        to = (at + 16 * (c % 2)) % 32
        where = (r // 64, c // 128, slab[here], np.full(r.shape, word), lane[here], c % 128 // 32)
        np.bitwise_or.at(out, where, (padded[here] >> bit & 1) << to)
    return out.astype(np.uint32).view(np.uint8).ravel()


def pack_scales(scales):
    """[N, G] -> [N/64][G][64], ones past N."""
    n, groups = scales.shape
    one = 127 if scales.dtype == np.uint8 else 1
    padded = np.full((-(-n // 64) * 64, groups), one, scales.dtype)
    padded[:n] = scales
    blocks = padded.reshape(padded.shape[0] // 64, 64, groups)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1)).ravel()
