"""Mutants of what runs in panels, by AMX tiles or AVX512_BF16: file in csrc, old, new."""

_LOOPS, _TILES, _DOTS = "cpu/panel_gemm-inl.h", "cpu/tile_gemm-inl.h", "cpu/dot_gemm-inl.h"
_INT, _FLOAT = "cpu/int_gemm_amx-inl.h", "cpu/fp_panels-inl.h"
_TERMS, _CAUSAL = "cpu/bf16_terms-inl.h", "cpu/causal_attention_amx-inl.h"
_CAUSAL_OP = "ops/causal_attention.cpp"

EDITS = [
    # rows shared out: what belongs to a row goes with it
    ("ops/int_gemm_cpu.h", "if (p.x_scale) q.x_scale += row;", ""),
    ("ops/int_gemm_cpu.h", "if (p.low_rank) q.low_rank += row * p.rank;", ""),
    ("ops/fp_gemm.cpp", "q.x = static_cast<const char*>(p.x) + row * p.k * element;", ""),
    ("ops/fp_gemm.cpp", "q.panels = panels.as<float>() + thread * words;", "q.panels = panels.as<float>();"),
    # the loops: sums of the piece before, the other panel's activations, where panels and pieces end
    (_LOOPS, "piece.first == 0, sums,", "true, sums,"),
    (_TILES, "+ 1>(at + p.panels.bytes());", "+ 1>(at);"),
    (_LOOPS, "rows((m + count - 1) / count)", "rows(m / count)"),
    (_LOOPS, "tiles = tile_end - tile < 2 ? 1 : 2, group", "tiles = 1, group"),
    (_TILES, "make_step<Product, T>(p, piece, step + 1);", "make_step<Product, T>(p, piece, step);"),
    (_LOOPS, "2 * steps < 3 * wanted ? 1 : (steps + wanted / 2) / wanted;", "1;"),
    # cuts of k: sums that wait, in a place of their own, until the last
    (_LOOPS, "kept_stride ? p.kept + tile * kept_stride : total", "total"),
    (_LOOPS, "p.kept + tile * kept_stride", "p.kept + tile / 4 * kept_stride"),
    # the codes: the end of a row and of k, a factor, the second half of a step, the upper nibbles
    (_INT, "std::memcpy(to, from, size_t(tail));", "std::memcpy(to, from, size_t(tail - 8));"),
    (_INT, "? 1.f : 1 / 16.f; }", "? 1.f : 1 / 8.f; }"),
    (_INT, "some.scale(widen_u8(scale + tile::kN)", "some.scale(widen_u8(scale)"),
    (_INT, "step * kStepK / p.group) * tile::kN", "step * kStepK / 128) * tile::kN"),
    (_INT, "upper ? w : _mm512_slli_epi16(w, 4), high)", "upper ? _mm512_slli_epi16(w, 4) : w, high)"),
    # bf16: terms that are left out, codes without their sign, a group's scale, a row's power of two, its end
    (_TERMS, "dtype == DType::f16 ? 2 : 3;", "dtype == DType::f16 ? 2 : 2;"),
    (_TERMS, "dtype == DType::bf16 ? 1 : dtype", "dtype != DType::f32 ? 1 : dtype"),
    (_FLOAT, "float(code < 8 ? code : code - 16);", "float(code);"),
    (_FLOAT, "const int64_t group = first / steps_per_group,", "const int64_t group = 0,"),
    (_FLOAT, "store(to + i, first ? add_signed", "store(to + i, first < 0 ? add_signed"),
    (_FLOAT, "e.x_scale = row_scale;", ""),
    (_FLOAT, "_mm512_srli_epi32(w[1], 2), 3)", "_mm512_srli_epi32(w[1], 2), 1)"),
    (_FLOAT, "constexpr int kFoldedPowers = 48;", "constexpr int kFoldedPowers = 127;"),
    (_FLOAT, "(t * groups + step / steps_per_group) * fp_tile::kN, to);", "t * groups * fp_tile::kN, to);"),
    (_FLOAT, "_mm512_mask_add_epi16(w, there, w, exponents)", "_mm512_add_epi16(w, exponents)"),
    (_TERMS, "rest, set1(0.f));", "rest, rest);"),
    # pairs: the other half of the weights, rows that are left out, the second panel
    (_DOTS, "for (int j = 2 * i + 1; j >= 2 * i; --j)", "for (int j = 2 * i + 1; j > 2 * i; --j)"),
    (_DOTS, "*next = piece.at(step, T - 1);", "*next = piece.at(step, 0);"),
    (_DOTS, "p.panels.rows < kRows)", "p.panels.rows + 1 < kRows)"),
    (_DOTS, "x + i * p.panels.bytes(), zero,", "x, zero,"),
    (_DOTS, "zero ? set1(0.f) : load(", "true ? set1(0.f) : load("),
    # a row of bf16 by integers: whom it leaves to floats, what vanishes, the end of the range and of the row
    (_FLOAT, "if (least_u16(smallest) < 0x7f || field == 255)", "if (field == 255)"),
    (_FLOAT, "if (least_u16(smallest) < 0x7f || field == 255)", "if (least_u16(smallest) < 0x7f)"),
    (_FLOAT, "e > 127 ? e - 126 : 1", "1"),
    (_FLOAT, "(p.k - k) * sizeof(*tail));", "p.k - k);"),
]

# Attention of a prompt: which keys a query sees, whose they are, what was summed under another maximum, the
# terms of a product, the end of a head, halves of a tile.
ATTENTION_EDITS = [
    (_CAUSAL, "p.keys - p.queries + lane_of(lane) / group;", "lane_of(lane) / group;"),
    (_CAUSAL, "_mm512_set1_epi32(int32_t(key + t))", "_mm512_set1_epi32(int32_t(key + t + 1))"),
    (_CAUSAL, "> key_of(b.first) + 1) weigh<true>", "> key_of(b.end)) weigh<true>"),
    (_CAUSAL, "h * group + i % group) * p.d;", "h + i % group * p.kv_heads) * p.d;"),
    (_CAUSAL, "V sum = mul(block.sum[tile], factor);", "V sum = block.sum[tile];"),
    (_CAUSAL, "store(at, mul(load(at), factor));", "store(at, load(at));"),
    (_CAUSAL, "kTerms == 3 ? 3 : 2 * kTerms - 1", "kTerms == 3 ? 2 : 2 * kTerms - 1"),
    (_CAUSAL, "kWeightTerms, kWeightTerms, kTiles>", "kWeightTerms, 1, kTiles>"),
    (_CAUSAL, "{9.618437423e-03f,", "{1.018437423e-02f,"),
    (_CAUSAL, "((i / 16 * head_steps + s) * kTerms)", "((i / 16 + s) * kTerms)"),
    (_CAUSAL, "std::copysign(1.f, p.softmax_scale)", "1.f"),
    (_CAUSAL, "t % kKeyStep / 2 * kTileBytes", "t / 2 * kTileBytes"),
    (_CAUSAL, "i % 2 ? items - 1 - i / 2 : i / 2", "i / 2"),
    (_CAUSAL, "if (p.d - j < kLanes) store_some(y, r[i], p.d - j);", "if (p.d < j) ;"),
    (_CAUSAL_OP, "c.keys - c.queries + first + 1", "c.keys - c.queries + 1"),
]
