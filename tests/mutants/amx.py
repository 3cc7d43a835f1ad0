"""Mutants of the GEMMs in AMX tiles: file in csrc, old, new."""

_LOOPS, _INT, _FLOAT = "cpu/tile_gemm-inl.h", "cpu/int_gemm_amx-inl.h", "cpu/fp_gemm_amx-inl.h"

EDITS = [
    # the loops: sums of the piece before, the other panel's activations, where panels and pieces end
    (_LOOPS, "piece.last, x, piece.first == 0, sums,", "piece.last, x, true, sums,"),
    (_LOOPS, "at + p.panels.bytes(), kTileBytes", "at, kTileBytes"),
    (_LOOPS, "rows((m + count - 1) / count)", "rows(m / count)"),
    (_LOOPS, "tile_end - tile < 2 ? 1 : 2, first", "2, first"),
    (_LOOPS, "make_step<Product, T>(p, piece, step + 1);", "make_step<Product, T>(p, piece, step);"),
    (_LOOPS, "return (steps + unit * pieces - 1) / (unit * pieces) * unit;", "return steps / pieces;"),
    # the codes: the end of a row and of k, a factor, the second half of a step, the upper nibbles
    (_INT, "std::memcpy(to, from, size_t(tail));", "std::memcpy(to, from, size_t(tail - 8));"),
    (_INT, "if (r < full && (step + 1", "if (r <= full && (step + 1"),
    (_INT, "? 1.f : 1 / 16.f; }", "? 1.f : 1 / 8.f; }"),
    (_INT, "codes.scale(widen_u8(scale + tile::kN)", "codes.scale(widen_u8(scale)"),
    (_INT, "step * kStepK / p.group) * tile::kN", "step * kStepK / 128) * tile::kN"),
    (_INT, "upper ? w : _mm512_slli_epi16(w, 4), high)", "upper ? _mm512_slli_epi16(w, 4) : w, high)"),
    # bf16: terms that are left out, codes without their sign, a group's scale, a row's power of two, its end
    (_FLOAT, "dtype == DType::f16 ? 2 : 3;", "dtype == DType::f16 ? 2 : 2;"),
    (_FLOAT, "dtype == DType::bf16 ? 1 : dtype", "dtype != DType::f32 ? 1 : dtype"),
    (_FLOAT, "float(code < 8 ? code : code - 16);", "float(code);"),
    (_FLOAT, "const int64_t group = first / group_steps,", "const int64_t group = 0,"),
    (_FLOAT, "store(to + i, first ? add_signed", "store(to + i, first < 0 ? add_signed"),
    (_FLOAT, "e.x_scale = row_scale;", ""),
    (_FLOAT, "if (step * kFpStepK8 + i >= k8)", "if (step * kFpStepK8 + i > k8)"),
    (_FLOAT, "_mm512_srli_epi32(w[1], 2), 3)", "_mm512_srli_epi32(w[1], 2), 1)"),
    (_FLOAT, "rest, set1(0.f));", "rest, rest);"),
]
