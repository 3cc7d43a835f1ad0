"""Ten one-line mutants per kernel family, each with the tests that should kill it."""

from dataclasses import dataclass

from . import amx, attention, fp_gemm, fused_rows


@dataclass(frozen=True)
class Mutant:
    """`old` occurs exactly once in csrc/`file`; the mutant has `new` in its place."""

    family: str
    file: str
    old: str
    new: str


TESTS = {
    "int_gemm": ["tests/ops/test_linear.py", "tests/ops/test_dynamic_linear.py", "tests/ops/test_layout.py"],
    "amx_attention": ["tests/ops/test_causal_attention.py"],
    "amx": [
        "tests/ops/test_many_rows.py", "tests/ops/test_linear.py", "tests/ops/test_fp4.py",
        "tests/ops/test_fp_linear.py",
    ],
    "hadamard": ["tests/ops/test_hadamard.py"],
    "quantize": ["tests/ops/test_quantize.py", "tests/ops/test_dynamic_linear.py"],
    "fp4": ["tests/ops/test_fp4.py"],
    "fp_gemm": ["tests/ops/test_fp_linear.py", "tests/ops/test_minifloat.py"],
    "kv_cache": ["tests/ops/test_kv_cache.py"],
    "attention": [
        "tests/ops/test_kv_paged.py", "tests/ops/test_kv_paged_errors.py", "tests/ops/test_kv_float.py",
    ],
    "fused_rows": ["tests/ops/test_fused_rows.py"],
    "int_gemm_cuda": ["tests/emu/test_int_gemm.py"],
    "fp_gemm_cuda": ["tests/emu/test_fp_gemm.py"],
    "quantize_cuda": ["tests/emu/test_quantize.py", "tests/emu/test_quantize_fp4.py"],
    "hadamard_cuda": ["tests/emu/test_hadamard.py"],
    "kv_cache_cuda": ["tests/emu/test_kv_cache.py"],
    "attention_cuda": ["tests/emu/test_kv_append.py", "tests/emu/test_attention.py"],
    "fused_rows_cuda": ["tests/emu/test_fused_rows.py"],
}
# kernels that run under the emulator
EMULATED = tuple(family for family in TESTS if family.endswith("_cuda"))

_FINISHED = "cpu/epilogue-inl.h"
_GEMM, _AVX2, _TILE = "cpu/int_gemm-inl.h", "cpu/vec_avx2.h", "layout/weight_tile.h"
_HADAMARD, _MATRIX = "cpu/hadamard-inl.h", "cpu/hadamard_matrix.cpp"
_MIX_CPU, _WILLIAMSON = "cpu/hadamard_mix-inl.h", "numeric/williamson.h"
_WILLIAMSON_CPU, _WILLIAMSON_CUDA = "cpu/hadamard_williamson-inl.h", "kernels/hadamard/williamson.cuh"
_MMA, _WGMMA = "kernels/int_gemm/sm80.cuh", "kernels/int_gemm/sm90.cuh"
_UNPACK, _EPILOGUE = "kernels/int_gemm/unpack.cuh", "kernels/int_gemm/epilogue.cuh"
_CODES, _ROWS = "kernels/quantize/codes.cuh", "kernels/quantize/sm80.cuh"
_FP4, _CODES4 = "kernels/common/fp4.cuh", "kernels/quantize/fp4.cuh"
_PLAN = "kernels/quantize/config.h"
_TRANSFORM, _MIX = "kernels/hadamard/sm80.cuh", "kernels/hadamard/mix.cuh"
_FINISH, _INTO = "kernels/hadamard/finish.cuh", "kernels/hadamard/rows.cuh"
_HEADS = "kernels/kv_cache/sm80.cuh"
_QUANTIZE, _KV, _HALF = "cpu/quantize-inl.h", "cpu/kv_cache-inl.h", "numeric/float16.h"

MUTANTS = [
    # the tail of the channels
    Mutant(
        "int_gemm",
        _FINISHED,
        "const bool plain = e.n - n >= 16 &&",
        "const bool plain = e.n - n >= 15 &&",
    ),
    # the order of the roundings
    Mutant(
        "int_gemm",
        _FINISHED,
        "v[i] = add(v[i], bias[i]);",
        "v[i] = add(bias[i], mul(v[i], set1(1.0000001f)));",
    ),
    Mutant("int_gemm", _FINISHED, "mul(v[i], set1(x_scale[m]));", "mul(v[i], set1(x_scale[0]));"),
    # the low-rank product of the first rank for all
    Mutant("int_gemm", _FINISHED, "e.low_rank[m * e.rank + r]", "e.low_rank[m * e.rank]"),
    # the zero point of two of the four k
    Mutant("int_gemm", _GEMM, "s23 += a[2] + a[3]", "s23 += a[2]"),
    # the last, shorter panel
    Mutant("int_gemm", _GEMM, "left < Dot::kRows ? left : Dot::kRows, p.panels", "Dot::kRows, p.panels"),
    # the group scale of the first group for all
    Mutant("int_gemm", _GEMM, "s1 += w.scale ? tile::kN : 0;", "s1 += 0;"),
    # an accumulator that overflows on the largest sums only
    Mutant("int_gemm", _GEMM, "p.fp4->max : 8, p.max_code) / 8;", "p.fp4->max : 8, 127) / 8;"),
    Mutant(
        "int_gemm",
        _AVX2,
        "_mm256_and_si256(_mm256_srli_epi16(a, 4), mask)",
        "_mm256_and_si256(_mm256_srli_epi16(a, 3), mask)",
    ),
    Mutant(
        "int_gemm",
        _AVX2,
        "add_to(total + 8, _mm256_madd_epi16(b.b, sb));",
        "add_to(total + 8, _mm256_madd_epi16(b.b, sa));",
    ),
    Mutant("int_gemm", _TILE, "+ k % 4, (k % kK) >= 4};", "+ k % 4, (k % kK) > 4};"),
    # one butterfly the wrong way round
    Mutant("hadamard", _HADAMARD, "b = sub(a, b);", "b = sub(b, a);"),
    Mutant(
        "hadamard",
        _HADAMARD,
        "if (!(i & s)) butterfly(v[i], v[i + s]);",
        "if (!(i & s) && s < 4) butterfly(v[i], v[i + s]);",
    ),
    Mutant(
        "hadamard",
        _HADAMARD,
        "if (stride * 4 == two) later_pass<4, kWords>(w, y + base, two, stride, scale, true);",
        "if (stride * 4 == two) later_pass<4, kWords>(w, y + base, two, stride, scale, false);",
    ),
    Mutant(
        "hadamard",
        _HADAMARD,
        "for (; stride * 8 < two; stride *= 8)",
        "for (; stride * 8 <= two; stride *= 8)",
    ),
    Mutant("hadamard", _HADAMARD, "t[i] = a + b, t[i + s] = a - b;", "t[i] = a + b, t[i + s] = b - a;"),
    # even and odd words
    Mutant("hadamard", _HADAMARD, "kWithin = kStages - kWords;", "kWithin = kStages;"),
    Mutant("hadamard", _HADAMARD, "butterflies<2 * kBetween, 2>(v);", "butterflies<2 * kBetween, 1>(v);"),
    Mutant("hadamard", _HADAMARD, "store_both<kStore>(y", "store_both<false>(y"),
    Mutant("hadamard", _AVX2, "round_upper(odd), 0xAA)", "round_upper(odd), 0x55)"),
    Mutant(
        "hadamard",
        _AVX2,
        "_mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1)",
        "_mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, 1)",
    ),
    Mutant(
        "hadamard",
        _MATRIX,
        "h[i * k + j] = int8_t(i == j ? 1 : i == 0 ? 1 : j == 0 ? -1 : r[(i - 1) * q + j - 1]);",
        "h[i * k + j] = int8_t(i == j ? 1 : i == 0 ? 1 : j == 0 ? -1 : r[(j - 1) * q + i - 1]);",
    ),
    Mutant(
        "hadamard",
        _MATRIX,
        "constexpr int on[2][2] = {{1, 1}, {1, -1}}, off[2][2] = {{1, -1}, {-1, -1}};",
        "constexpr int on[2][2] = {{1, 1}, {1, -1}}, off[2][2] = {{1, 1}, {-1, -1}};",
    ),
    Mutant(
        "hadamard",
        _WILLIAMSON,
        "{29, {0x7614, 0x3794, 0x305a, 0xe24}},",
        "{29, {0x7614, 0x3794, 0x305a, 0xe25}},",
    ),
    # the sum of four terms in another order: the last bit only
    Mutant(
        "hadamard",
        _MIX_CPU,
        "add(first[k / 2], second[k % 2]));",
        "k % 2 ? sub(add(first[k / 2], v[2]), v[3]) : add(add(first[k / 2], v[2]), v[3]));",
    ),
    # what the first quads added up is forgotten
    Mutant("hadamard", _MIX_CPU, "acc[c] = first ? load(", "acc[c] = first < 0 ? load("),
    # the other output's sign
    Mutant("hadamard", _MIX_CPU, "set1(T::negative ? -1.f : 1.f)", "set1(T::negative ? 1.f : -1.f)"),
    # the second column register gets the first one's outputs
    Mutant("hadamard", _MIX_CPU, "combine<1>(x + c * kLanes,", "combine<1>(x,"),
    # H for its transpose
    Mutant("hadamard", _MIX_CPU, "if (!h.transposed)", "if (true)"),
    # blocks side by side, one place on
    Mutant("hadamard", _MIX_CPU, "mixed[i * beside.two + b * two + c]", "mixed[i * beside.two + c]"),
    # quaternions: units and rows of the other sign, places that do not go round, another place
    Mutant("hadamard", _WILLIAMSON, "unit = {r, sum < 0};", "unit = {r, sum > 0};"),
    Mutant("hadamard", _WILLIAMSON_CPU, "work + (kN + i) * kPlace", "work + (kN - 1 + i) * kPlace"),
    Mutant("hadamard", _WILLIAMSON_CPU, "T::sign0 > 0 ? add", "T::sign0 < 0 ? add"),
    Mutant("hadamard", _WILLIAMSON_CPU, "v[4] = {load(at),", "v[4] = {load(at + kPlace),"),
    # rounding, clamping, special rows
    Mutant(
        "quantize",
        _QUANTIZE,
        "const int qmin = qmax == 7 ? -8 : -127;",
        "const int qmin = qmax == 7 ? -7 : -127;",
    ),
    Mutant("quantize", _QUANTIZE, "else if (s < 1.17549435e-38f) s = 1.f;", "else if (s <= 0.f) s = 1.f;"),
    Mutant(
        "quantize",
        _QUANTIZE,
        "if (bits >= 0x7f800000u) s = bits_float(0x7fc00000u);",
        "if (bits > 0x7f800000u) s = bits_float(0x7fc00000u);",
    ),
    Mutant(
        "quantize",
        _QUANTIZE,
        "bits_float(bits) * p.clip / float(qmax)",
        "bits_float(bits) * (p.clip / float(qmax))",
    ),
    Mutant("quantize", _QUANTIZE, "if (i < k) m0 = max_abs_bits(m0, load_some(x + i, k - i));", ""),
    Mutant(
        "quantize",
        _QUANTIZE,
        "for (; i + kLanes <= k; i += kLanes) m0 = max_abs_bits(m0, load(x + i));",
        "for (; i + kLanes < k; i += kLanes) m0 = max_abs_bits(m0, load(x + i + 1));",
    ),
    Mutant(
        "quantize",
        _QUANTIZE,
        "if (k % 2) out[k / 2] = uint8_t((q[k - 1] + 8) | 0x80);",
        "if (k % 2) out[k / 2] = uint8_t(q[k - 1] + 8);",
    ),
    Mutant(
        "quantize",
        _QUANTIZE,
        "for (int64_t j = 0; i + j < p.k; ++j) row[i + j] = t[j];",
        "for (int64_t j = 1; i + j < p.k; ++j) row[i + j] = t[j];",
    ),
    Mutant("quantize", _QUANTIZE, "for (const I m : {m0, m1, m2, m3})", "for (const I m : {m0, m1, m2})"),
    Mutant(
        "quantize",
        _AVX2,
        "_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);",
        "_MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);",
    ),
    # FP4: blocks as long as those of int4
    Mutant("fp4", _GEMM, "Dot::max_block(p.fp4 ? p.fp4->max : 8,", "Dot::max_block(8,"),
    # int4's zero point
    Mutant("fp4", _GEMM, "p.fp4 ? p.fp4->max : Dot::kZeroPoint", "Dot::kZeroPoint"),
    # the power of two of the integers
    Mutant("fp4", _FINISHED, "mul(load(from + i * kLanes), set1(e.w_factor))", "load(from + i * kLanes)"),
    Mutant("fp4", "ops/fp4.h", "(x ? x->int_scale : 1)", "2"),
    # s16 sums of e3m0 times int8
    Mutant("fp4", _GEMM, "p.max_code) >= 32 ?", "p.max_code) >= 4 ?"),
    Mutant("fp4", _AVX2, "{ return -zero * (s01 + s23); }", "{ return -zero * s01; }"),
    # half of the channels
    Mutant("fp4", _AVX2, "_mm256_shuffle_epi8(table.v, w.b)}", "_mm256_shuffle_epi8(table.v, w.a)}"),
    # codes of odd k
    Mutant("fp4", "ops/fp4.cpp", "operands.x->value[from[i] >> 4]", "operands.x->value[from[i] & 15]"),
    # quantising: the pad nibble, the second block of a row, the given scale, subnormal powers of two
    Mutant("fp4", _QUANTIZE, "code[count] = 0;", "code[count] = 8;"),
    Mutant("fp4", _QUANTIZE, "whole ? load(p.power + at)", "whole ? load(p.power + i)"),
    Mutant("fp4", _QUANTIZE, "p.fixed_scale > 0.f ? p.fixed_scale : dynamic", "dynamic"),
    Mutant("fp4", "ops/fp4.cpp", "0x00400000u >> (-127 - exponent)", "0x00400000u"),
    # scale and zero, their rounding, and the nibbles
    Mutant(
        "kv_cache",
        _KV,
        "float_to_fp16((hi * clip - lo * clip) / 15.f)",
        "float_to_fp16((hi - lo) * clip / 15.f)",
    ),
    Mutant("kv_cache", _KV, "zero = float_to_fp16(lo * clip);", "zero = float_to_fp16(lo);"),
    Mutant(
        "kv_cache",
        _KV,
        "const float s = fp16_to_float(scale), z = fp16_to_float(zero);",
        "const float s = fp16_to_float(scale), z = lo * clip;",
    ),
    Mutant("kv_cache", _KV, "hi = t[j] > hi ? t[j] : hi;", "hi = t[j] >= hi ? hi : hi;"),
    Mutant("kv_cache", _KV, "scale = zero = 0x7e00;", "scale = 0x7e00, zero = 0;"),
    Mutant("kv_cache", _KV, "last = set1(15.f);", "last = set1(14.f);"),
    Mutant(
        "kv_cache",
        _KV,
        "uint8_t(q[2 * i] | (q[2 * i + 1] << 4));",
        "uint8_t(q[2 * i + 1] | (q[2 * i] << 4));",
    ),
    Mutant("kv_cache", _KV, "if (count % 2) packed[(base + count) / 2] = uint8_t(q[count - 1]);", ""),
    Mutant("kv_cache", _KV, "add(mul(from_u8(q + i), scale), zero)", "mul(add(from_u8(q + i), zero), scale)"),
    Mutant(
        "kv_cache",
        _HALF,
        "(a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13",
        "(a - 0x38000000u + 0x1000u) >> 13",
    ),
    *(Mutant("attention", *edit) for edit in attention.EDITS),
    *(Mutant("fused_rows", *edit) for edit in fused_rows.EDITS),
    *(Mutant("fused_rows_cuda", *edit) for edit in fused_rows.CUDA_EDITS),
    # ---- CUDA, under the emulator
    # a wait too few
    Mutant(
        "int_gemm_cuda", _MMA, "cp_async_wait_group<C::kStages - 2>", "cp_async_wait_group<C::kStages - 1>"
    ),
    # the barrier between reading a stage and overwriting it
    Mutant(
        "int_gemm_cuda",
        _MMA,
        "ptx::syncthreads();                          // for every thread",
        "// for every thread",
    ),
    # the ring becomes the staged tile too early
    Mutant("int_gemm_cuda", _MMA, "ptx::syncthreads();  // the ring becomes the staged tile", ""),
    # the swizzle of the lanes that read
    Mutant(
        "int_gemm_cuda",
        _MMA,
        "from = stage.plus_bytes(row + (chunk ^ at))",
        "from = stage.plus_bytes(row + (chunk + at))",
    ),
    # rows past the end
    Mutant(
        "int_gemm_cuda",
        _MMA,
        "i * kTokenStep < tokens_left && left > 0",
        "i * kTokenStep <= tokens_left && left > 0",
    ),
    # the upper half of the nibbles
    Mutant(
        "int_gemm_cuda",
        _UNPACK,
        "a[i + 2] = ptx::lop3<kAndXor>(w, 0xf0f0f0f0u",
        "a[i + 2] = ptx::lop3<kAndXor>(w, 0x70f0f0f0u",
    ),
    # a carry between the bytes of a grouped weight
    Mutant(
        "int_gemm_cuda",
        _UNPACK,
        "offset = 0x80808080u - s1[i] * 0x08080808u",
        "offset = 0x88808080u - s1[i] * 0x08080808u",
    ),
    # the order of the roundings
    Mutant(
        "int_gemm_cuda",
        _EPILOGUE,
        "if (p.bias) v[j][i] = ptx::add_rn(v[j][i], bias[i]);",
        "if (p.bias) v[j][i] = ptx::fma_rn(v[j][i], 1.0000001f, bias[i]);",
    ),
    # the sums of another split
    Mutant("int_gemm_cuda", _EPILOGUE, "if (s == split) continue;", "if (s == splits - 1) continue;"),
    # wgmma: the stage is released before it is multiplied
    Mutant("int_gemm_cuda", _WGMMA, "if (i > 0) ring.release(step - 1);", "ring.release(step);"),
    # wgmma: registers of A written while they are read
    Mutant(
        "int_gemm_cuda",
        _WGMMA,
        "issue_half<C>(sums, second, stage, 1, true);\n    ptx::wgmma_wait_group<1>();",
        "issue_half<C>(sums, second, stage, 1, true);",
    ),
    # wgmma: the phase of the empty barrier
    Mutant("int_gemm_cuda", _WGMMA, "Ring<C>::phase(step) ^ 1u", "Ring<C>::phase(step)"),
    # wgmma: the second k step of the half
    Mutant("int_gemm_cuda", _WGMMA, "x.plus_bytes(64 * half + 32)", "x.plus_bytes(64 * half + 16)"),
    # wgmma: the group scales of the other half
    Mutant("int_gemm_cuda", _WGMMA, "4 * team + slab, 2 * half + c,", "4 * team + slab, c,"),
    # FP4: a byte that borrows from the next, the upper four codes, the places of a word's codes
    Mutant("int_gemm_cuda", _FP4, "(plus - minus + 0x80808080u) ^ 0x80808080u", "plus - minus"),
    Mutant("int_gemm_cuda", _UNPACK, "w >> 16, turned >> 16)", "w >> 16, turned)"),
    Mutant("int_gemm_cuda", _UNPACK, "ptx::prmt(first, second, 0x7531)", "ptx::prmt(first, second, 0x5731)"),
    Mutant("int_gemm_cuda", _EPILOGUE, "ptx::mul_rn(w_scale[i], p.w_factor)", "w_scale[i]"),
    # FP4: the given scale, subnormal powers of two, saturation, exponents past the end of a row, signs
    Mutant(
        "quantize_cuda",
        _CODES4,
        "p.fixed_scale ? ptx::ld_global",
        "!p.exponent && p.fixed_scale ? ptx::ld_global",
    ),
    Mutant("quantize_cuda", _CODES4, "e > -127 ?", "e >= -127 ?"),
    Mutant("quantize_cuda", _CODES4, "bits < p.rounding.top ? bits", "bits <= 0x7f800000u ? bits"),
    Mutant("quantize_cuda", _PLAN, "% 8 == 0 && p.k % 8 == 0)", "% 8 == 0 && p.k % 4 == 0)"),
    Mutant("quantize_cuda", _FP4, "prmt(m.low, m.high, turned)", "prmt(m.low, m.high, codes)"),
    # rows whose inverse overflows
    Mutant("quantize_cuda", _CODES, "s.scale < 1.17549435e-38f", "s.scale <= 0.f"),
    # infinity
    Mutant("quantize_cuda", _CODES, "most >= 0x7f800000u", "most > 0x7f800000u"),
    # half integers stay halves
    Mutant(
        "quantize_cuda",
        _CODES,
        "kRoundToInteger = 12582912.f",
        "kRoundToInteger = 12582912.5f * 0.5f",
    ),
    # the codes of a NaN row
    Mutant("quantize_cuda", _CODES, "if (inverse == 0.f) word[h] = 0;", ""),
    # saturation
    Mutant("quantize_cuda", _CODES, "if (to.clip < 1.f) {", "if (to.clip < 0.75f) {"),
    # the offset of the last nibble
    Mutant(
        "quantize_cuda",
        _CODES,
        "odd << 4, 0x0f0f0f0fu) ^ 0x88888888u",
        "odd << 4, 0x0f0f0f0fu) ^ 0x80888888u",
    ),
    # operand4: the other half of the partner's chunk
    Mutant(
        "quantize_cuda",
        _CODES,
        "shfl_sync_xor(upper ? code[0] : code[1], 2)",
        "shfl_sync_xor(upper ? code[1] : code[0], 2)",
    ),
    # the warps' maxima before they are there
    Mutant(
        "quantize_cuda",
        _CODES,
        "ptx::warp_index(), value);\n  ptx::syncthreads();",
        "ptx::warp_index(), value);",
    ),
    # the first round of a long row
    Mutant("quantize_cuda", _CODES, "if (kRounds && rounds > 1) load(x, round);", ""),
    # one element past an odd row
    Mutant(
        "quantize_cuda",
        "kernels/common/elements.cuh",
        "begin + 2 * i + 1 < count ? ptx::ld_global(pair + 1)",
        "begin + 2 * i < count ? ptx::ld_global(pair + 1)",
    ),
    # zeros past the end of a packed row
    Mutant(
        "quantize_cuda",
        _ROWS,
        "load_bytes(packed, from, 16 * piece, (k + 1) / 2, 0x88,",
        "load_bytes(packed, from, 16 * piece, (k + 1) / 2, 0x08,",
    ),
    # the sign of a nibble
    Mutant("quantize_cuda", _ROWS, "((v & 0x08080808u) >> 3) * 0xf0u", "((v & 0x08080808u) >> 3) * 0x70u"),
    # a butterfly the wrong way round
    Mutant(
        "hadamard_cuda",
        "kernels/hadamard/tile.cuh",
        "b = ptx::sub_rn(a, b);",
        "b = ptx::sub_rn(b, a);",
    ),
    # one stage too many
    Mutant(
        "hadamard_cuda",
        _TRANSFORM,
        "else if (a.c.stages == 6) warp_stages<3",
        "else if (a.c.stages == 6) warp_stages<4",
    ),
    # the chunks of other lanes before they are there
    Mutant(
        "hadamard_cuda",
        _TRANSFORM,
        "kChunk);\n    ptx::syncwarp();\n    if (a.c.stages > kFirstStages)",
        "kChunk);\n    if (a.c.stages > kFirstStages)",
    ),
    # the elements of other warps before they are there
    Mutant(
        "hadamard_cuda",
        _TRANSFORM,
        "    ptx::syncthreads();\n    const int bits",
        "    const int bits",
    ),
    # mixed columns before they are there
    Mutant(
        "hadamard_cuda",
        _TRANSFORM,
        "mix<kMix, kQuantised>(w, a);\n    ptx::syncthreads();",
        "mix<kMix, kQuantised>(w, a);",
    ),
    # the swizzle
    Mutant(
        "hadamard_cuda",
        _TRANSFORM,
        "^ Tile<kShared>::low_part(8 * (i & 4))",
        "^ Tile<kShared>::low_part(4 * (i & 4))",
    ),
    # the shift of the second row of a tile
    Mutant(
        "hadamard_cuda",
        _TRANSFORM,
        "subtract_shift<true>(x, p.shift, e % int(p.n), int(p.n))",
        "subtract_shift<true>(x, p.shift, e, int(p.n))",
    ),
    # the maximum before the scale
    Mutant(
        "hadamard_cuda",
        _FINISH,
        "most = ptx::bit_cast<uint32_t>(ptx::mul_rn(ptx::bit_cast<float>(most), p.scale));",
        "",
    ),
    # gates and ups of the second row of a tile; gates for ups
    Mutant("hadamard_cuda", _INTO, "at = e + e / n * n, end", "at = e, end"),
    Mutant("hadamard_cuda", _INTO, "p.dtype, at + n, end + n", "p.dtype, at, end"),
    # the maximum of another stage
    Mutant("hadamard_cuda", _TRANSFORM, "if (kQuantised && last)", "if (kQuantised && !last)"),
    # inputs of a quad swapped
    Mutant("hadamard_cuda", _MIX, "low + (4 * g + i) * two", "low + (4 * g + (i ^ 1)) * two"),
    # signs of a quad swapped
    Mutant(
        "hadamard_cuda",
        _MIX,
        "ptx::fma_rn(s[3], ptx::fma_rn(s[2], last_two, first_two), acc[r][c])",
        "ptx::fma_rn(s[2], ptx::fma_rn(s[3], last_two, first_two), acc[r][c])",
    ),
    Mutant(
        "hadamard_cuda",
        "numeric/hadamard_signs.h",
        "4 * (minus[1] != minus[0])",
        "4 * (minus[1] == minus[0])",
    ),
    # a bank conflict
    Mutant("hadamard_cuda", "kernels/hadamard/config.h", "c.chunks < 8 ? 4 : 8;", "4;"),
    # quaternions: one place too late around, the last thread's share not cut, another output, another place
    Mutant("hadamard_cuda", _WILLIAMSON_CUDA, "(i + ahead < kN ?", "(i + ahead <= kN ?"),
    Mutant("hadamard_cuda", _WILLIAMSON_CUDA, "if (i + p >= kN) continue;", ""),
    Mutant("hadamard_cuda", _WILLIAMSON_CUDA, "add_row<1, 2>(0.f, z[p])", "add_row<1, 1>(0.f, z[p])"),
    Mutant("hadamard_cuda", _WILLIAMSON_CUDA, "load(x, p);", "load(x, p + 1);"),
    # negative floats in order
    Mutant("kv_cache_cuda", _HEADS, "return bits ^ ((bits >> 31) & 0x7fffffff);", "return bits;"),
    # the zero point of a head that does not fit
    Mutant("kv_cache_cuda", _HEADS, "a.scale = a.zero = 0x7e00;", "a.scale = 0x7e00;"),
    # a zero point that float16 cannot hold
    Mutant("kv_cache_cuda", _HEADS, "(a.zero & 0x7c00) != 0x7c00", "true"),
    Mutant("kv_cache_cuda", _HEADS, "ptx::sub_rn(high, low), 15.f", "ptx::sub_rn(high, low), 16.f"),
    # a constant head
    Mutant("kv_cache_cuda", _HEADS, "if (fits && s > 0.f)", "if (fits)"),
    # the pad of an odd head
    Mutant("kv_cache_cuda", _HEADS, "count ? 0xff : 0x0f", "count ? 0xff : 0xff"),
    # the scale for the zero point
    Mutant("kv_cache_cuda", _HEADS, "uint16_t(params >> 16)", "uint16_t(params)"),
    # zeros past the head in its range
    Mutant("kv_cache_cuda", _HEADS, "if (begin + i < count)", "if (begin < count)"),
    # the last exchange between lanes
    Mutant(
        "kv_cache_cuda",
        _HEADS,
        "step = size / 2; step > 0; step /= 2",
        "step = size / 2; step > 1; step /= 2",
    ),
    # the first chunk of a long head
    Mutant(
        "kv_cache_cuda",
        _HEADS,
        "if (team.rounds > 1) load_floats(v, x, p.dtype, begin, count, a.c.wide);",
        "",
    ),
    # a head past the end
    Mutant("kv_cache_cuda", _HEADS, "if (row >= p.rows) return;", "if (row > p.rows) return;"),
    *(Mutant("attention_cuda", *edit) for edit in attention.CUDA_EDITS),
    *(Mutant("fp_gemm", *edit) for edit in fp_gemm.EDITS),
    *(Mutant("amx", *edit) for edit in amx.EDITS),
    *(Mutant("amx_attention", *edit) for edit in amx.ATTENTION_EDITS),
    *(Mutant("fp_gemm_cuda", *edit) for edit in fp_gemm.CUDA_EDITS),
    # what was transformed: the maximum after the factor, not before it; the first row for all
    Mutant(
        "hadamard_cuda",
        _FINISH,
        "    if (adjusted(p.adjust)) {\n      most = 0;",
        "    if (p.adjust.index) {\n      most = 0;",
    ),
    Mutant(
        "hadamard_cuda",
        _FINISH,
        "Tile<kShared>::place(begin + e))[0], p.scale)",
        "Tile<kShared>::place(e))[0], p.scale)",
    ),
    # rows of floats: those of another tile
    Mutant("hadamard_cuda", _FINISH, "a.c.tile_rows + row) * to.stride", "a.c.tiles + row) * to.stride"),
    # addends: the low-rank row of another token, the channels of another
    Mutant("int_gemm_cuda", _EPILOGUE, "const int t = token + j * step;", "const int t = token + j;"),
    Mutant("int_gemm_cuda", _EPILOGUE, "int64_t(i) * p.n + channel", "int64_t(i) * p.n + channel / 64 * 64"),
]
