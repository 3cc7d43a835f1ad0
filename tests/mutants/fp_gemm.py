"""Mutants of the weight-only GEMM and its codecs: file in csrc, old, new."""

_FP, _FLOAT, _FP_TILE = "cpu/fp_gemm-inl.h", "numeric/minifloat.h", "layout/fp_tile.h"
_FP_MMA, _FP_EPILOGUE = "kernels/fp_gemm/sm80.cuh", "kernels/fp_gemm/epilogue.cuh"
_FP_UNPACK, _FP_CODEC = "kernels/fp_gemm/unpack.cuh", "kernels/fp_gemm/codec.cuh"
_FP_WGMMA, _FP_SCALE = "kernels/fp_gemm/sm90.cuh", "kernels/fp_gemm/group_scale.cuh"

EDITS = [
    # weight-only on the CPU: a group's scale, masks, the pieces of the last codes of a tile, the tail of K
    (_FP, "w, t, first / w.group_k8", "w, t, begin / w.group_k8"),
    (_FP, "Through::kFp16, 2, 0x9f00, 12>", "Through::kFp16, 2, 0x9e00, 12>"),
    (_FP, "(D::kMask & 0x7fff) >> 3", "(D::kMask & 0x7f7f) >> 3"),
    (_FP, "shift_left<8>(row(1)), 0x0c00", "shift_left<8>(row(1)), 0x0800"),
    (_FP, "++k) out[k * stride] = 0;", "++k) out[k * stride] = NAN;"),
    (_FP, "kSplitLow = 0x1p-20f, kS", "kSplitLow = 0x1p-120f, kS"),
    (_FP, "D::kSplit && !p.group_scale ? kLower", "D::kSplit ? kLower"),
    (_FP_TILE, "k == 6 ? 2 : 0, 0, 2}}, 2};", "k == 6 ? 0 : 2, 0, 2}}, 2};"),
    ("cpu/epilogue-inl.h", "add(v[i], load(residual + i * kLanes));", "add(v[i], load(residual));"),
    # the codec: ties, saturation, the first binade
    (_FLOAT, "float(q - below >= 0.5f)", "float(q - below > 0.5f)"),
    (_FLOAT, "a = bits < top ? bits :", "a = bits < 2 * top ? bits :"),
    (_FLOAT, "kFirst = 127 - kBias + 1;", "kFirst = 127 - kBias;"),
]

CUDA_EDITS = [
    # a wait too few
    (_FP_MMA, "cp_async_wait_group<C::kStages - 2>", "cp_async_wait_group<C::kStages - 1>"),
    # the barrier between reading a stage and overwriting it
    (
        _FP_MMA,
        "ptx::syncthreads();                          // for every thread",
        "// for every thread",
    ),
    # x past the end of K
    (_FP_MMA, "x_left < 16 ? x_left : 16;", "16;"),
    # the swizzle of the lanes that read
    (_FP_MMA, "(chunk ^ (k32 % 2 * 64))", "(chunk + (k32 % 2 * 64))"),
    # channels past the end
    (_FP_MMA, "inside ? row / 64 + b : 0)", "row / 64 + b)"),
    # the scale of the other half of the channels
    (_FP_MMA, "scale[2 * s + (i >> 1)]", "scale[2 * s + (i & 1)]"),
    # a group's sums that go on into the next one
    (_FP_MMA, "    sum = 0;\n", ""),
    # the partial sums in the order of arrival
    (
        _FP_EPILOGUE,
        "ptx::ld_global(place(from, s, j))",
        "ptx::ld_global(place((from + split) % splits, s, j))",
    ),
    # the second roundings of the epilogue
    (
        _FP_EPILOGUE,
        "v = ptx::add_rn(v, bias[i]);",
        "v = ptx::fma_rn(v, 1.0000001f, bias[i]);",
    ),
    # a residual past the end of an odd row; that of another panel of channels
    (_FP_EPILOGUE, "(p.residual, element, valid, wide)", "(p.residual, element, kWide, wide)"),
    (_FP_CODEC, "(p.residual, to, step, step == 4)", "(p.residual, at * step, step, step == 4)"),
    # a shift where bits wrap around
    (_FP_UNPACK, "return word << kBy | word >> (32 - kBy);", "return word << kBy;"),
    # the last code of the zero point
    (_FP_UNPACK, "0x3c003c00u, 0xe408e408u", "0x3c003c00u, 0xe407e408u"),
    # the second part of a scale in bf16
    (
        _FP_SCALE,
        "const float rest = ptx::sub_rn(s, ",
        "const float rest = ptx::mul_rn(0.f, ",
    ),
    # fp16 weights that are scaled while they are subnormal
    (_FP_SCALE, "if constexpr (kWeight != Weight::kInt4) {", "if constexpr (false) {"),
    # channels g and g + 8
    (_FP_WGMMA, "of[i % 2].template", "of[i / 2 % 2].template"),
    # groups past the end of k
    (_FP_WGMMA, "inside < left ? inside : left - 1", "inside"),
    # the scales of a stage that is not whole
    (_FP_WGMMA, "left < stage_scales ? left : stage_scales", "stage_scales"),
    # the group of the dequantised weight
    (_FP_CODEC, "block / k_blocks, k + 32 * chunk", "block / k_blocks, k"),
    # rows of the dequantised weight
    (_FP_CODEC, "r = 2 * i + lane / 16", "r = i + lane / 16"),
    # wgmma: the stage is released before it is multiplied; registers of A written while they are read; the
    # phase of the empty barrier; the first k step for both; the tickets of one warpgroup
    # for both
    (
        _FP_WGMMA,
        "if (half == 0 && i > 0) ring.release(step - 1)",
        "if (half == 0) ring.release(step)",
    ),
    (
        _FP_WGMMA,
        "ptx::wgmma_wait_group<1>(); ",
        "ptx::wgmma_wait_group<2>(); ",
    ),
    (_FP_WGMMA, "Ring<C>::phase(step) ^ 1u", "Ring<C>::phase(step)"),
    (
        _FP_WGMMA,
        "(2 * half + c, a + 2 * c)",
        "(2 * half, a + 2 * c)",
    ),
    (_FP_WGMMA, "p.tickets + at,", "p.tickets + (number % tiles) * C::kTeams,"),
]
