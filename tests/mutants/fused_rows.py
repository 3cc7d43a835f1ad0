"""Mutants of the fused row kernels on the CPU and on CUDA: file in csrc, old, new."""

_FUSED = "cpu/fused_rows-inl.h"
_AVX2 = "cpu/vec_avx2.h"
_EXP = "cpu/exp-inl.h"
_ROW_SUM = "kernels/fused_rows/row_sum.cuh"
_LAYER = "kernels/fused_rows/sm80.cuh"
_GATE = "kernels/common/activation.cuh"
_ENDS, _DEALT = "kernels/quantize/adjust.cuh", "kernels/fused_rows/config.h"

EDITS = [
    # rows that leave as codes: the order of a sum, what is left of a level, the rounded residual
    (
        _FUSED,
        "pair_sums(pair_sums(v[4], v[5]), pair_sums(v[6], v[7])));",
        "pair_sums(pair_sums(v[4], v[6]), pair_sums(v[5], v[7])));",
    ),
    (_FUSED, "for (i = count; i % kChunk; ++i) sums[i] = 0.f;", ""),
    (_AVX2, "_mm256_hadd_ps(a, b)), 0xD8));", "_mm256_hadd_ps(a, b)), 0xE4));"),
    (
        _FUSED,
        "const V s = part(values + i, count);",
        "const V s = sum ? add(part(x + i, count), part(residual + i, count)) : part(values + i, count);",
    ),
    (
        _FUSED,
        "set_part(y + j, scaled(part(values + j, count), j, count), count);",
        "set_part(y + j, part(values + j, count), count);",
    ),
    # the order of two factors and of a step and a shift
    (
        _FUSED,
        "return mul(mul(v, inv), add(part(p.weight + j, count), offset));",
        "return mul(v, mul(inv, add(part(p.weight + j, count), offset)));",
    ),
    (_FUSED, "y[j] = from[index[j]];", "y[j] = from[index[j & ~int64_t(63)] + j % 64];"),
    # the ends of exp, a digit of the polynomial, ln 2 in one part
    (_EXP, "max(min(x, set1(88.f)), set1(-87.f))", "max(min(x, set1(87.f)), set1(-87.f))"),
    (_EXP, "set1(4.1665795894e-2f)", "set1(4.1665805e-2f)"),
    (_EXP, "mul(n, set1(0.693359375f))), mul(", "mul(n, set1(0.693147181f))), mul(set1(0.f), "),
    (_FUSED, "const V cube = mul(mul(g, g), g);", "const V cube = mul(mul(g, set1(0.044715f)), mul(g, g));"),
    # NaN as a static code, the row that a code goes to, the size of the transform's work
    (_FUSED, "to_codes(max(lo, value(j, count)), one", "to_codes(max(value(j, count), lo), one"),
    (
        _FUSED,
        "static_cast<uint8_t*>(c.q) + r * ((c.k + 1) / 2));",
        "static_cast<uint8_t*>(c.q) + r * (c.k / 2));",
    ),
    (
        _FUSED,
        "store(row + i, mul(activation<kGelu>(part(x + i, count)), part(x + n + i, count)));",
        "store(row + i, mul(activation<kGelu>(part(x + n + i, count)), part(x + i, count)));",
    ),
]

CUDA_EDITS = [
    # rows with the layer in front of them: the order of the tree, its last group, the rounded residual
    (
        _ROW_SUM,
        "ptx::add_rn(ptx::add_rn(s[0], s[1]), ptx::add_rn(s[2], s[3]))",
        "ptx::add_rn(ptx::add_rn(s[0], s[2]), ptx::add_rn(s[1], s[3]))",
    ),
    (_ROW_SUM, "one = add_lane(one, 2);", "one = add_lane(one, 16);"),
    (_ROW_SUM, "const int e = 128 * g + 32 * j", "const int e = 32 * j"),
    (_LAYER, "if (p.dtype != DType::f32) to_float(v[i], raw[i], p.dtype);", ""),
    # the ends of exp; the gate for the up; the gather's place
    (_GATE, "ptx::max_f32(t, -87.f), 88.f", "ptx::max_f32(t, -87.f), 87.f"),
    (_GATE, "ptx::mul_rn(gate, sigmoid(at)), up", "ptx::mul_rn(up, sigmoid(at)), gate"),
    (_LAYER, "(k & (kChunk - 1)) * chunks + k / kChunk", "(k & (kChunk - 1)) * chunks + (k + 1) / kChunk"),
    # the shift of another column, the offset of a gain, the mean over what is picked
    (
        _LAYER,
        "quantize::subtract_shift<kWide>(v[i], p.adjust.shift, begin, count);",
        "quantize::subtract_shift<kWide>(v[i], p.adjust.shift, 0, count);",
    ),
    (_LAYER, "if (p.gain_offset != 0.f) f = ptx::add_rn(f, p.gain_offset);", ""),
    (_LAYER, "float(int(p.k)));", "float(int(p.k_out)));"),
    # rows of floats: the end of a row, results that start elsewhere than the rows
    (_ENDS, "int(to.stride / size_of(to.dtype))", "int(to.stride / 2)"),
    (_DEALT, "c.wide = c.wide && c.wide_store;", "c.wide_store = true;"),
]
