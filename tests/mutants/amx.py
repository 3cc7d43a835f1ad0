"""Mutants of the GEMMs in AMX tiles: file in csrc, old, new."""

_LOOPS, _INT = "cpu/tile_gemm-inl.h", "cpu/int_gemm_amx-inl.h"

EDITS = [
    # the loops: sums of the piece before, the other panel's activations, where a panel or a piece begins
    (_LOOPS, "if (piece.first) tile_load", "if (piece.first > 8) tile_load"),
    (_LOOPS, "x + p.panels.bytes(), kTileBytes", "x, kTileBytes"),
    (_LOOPS, "x += piece.first * rows * kTileBytes;", ""),
    (_LOOPS, "return (steps + 2 * pieces - 1) / (2 * pieces) * 2;", "return (steps + pieces - 1) / pieces;"),
    (_LOOPS, "rows = (m + count - 1) / count;", "rows = m / count;"),
    (_LOOPS, "const int64_t tiles = tile_end - tile < 2 ? 1 : 2;", "const int64_t tiles = 2;"),
    (_LOOPS, "make_step<Product, T>(p, piece, step + 1);", "make_step<Product, T>(p, piece, step);"),
    # the codes: the end of a row and of k, an offset, a factor, the second half of a step, the upper nibbles
    (_INT, "std::memcpy(to, from, size_t(tail));", "std::memcpy(to, from, size_t(tail - 8));"),
    (_INT, "if (r < full && (step + 1", "if (r <= full && (step + 1"),
    (_INT, "? 1.f : 1 / 16.f; }", "? 1.f : 1 / 8.f; }"),
    (_INT, "codes.scale(widen_u8(scale + tile::kN)", "codes.scale(widen_u8(scale)"),
    (_INT, "step * kStepK / p.group) * tile::kN", "step * kStepK / 128) * tile::kN"),
    (_INT, "_mm512_slli_epi32(scales, 16));", "scales);"),
    (_INT, "upper ? w : _mm512_slli_epi16(w, 4), high)", "upper ? _mm512_slli_epi16(w, 4) : w, high)"),
]
