// The table of one instruction set. Included last in isa_*.cpp.
#pragma once

namespace lowbit::cpu::LOWBIT_ISA {

#define LOWBIT_STRING_OF(x) #x
#define LOWBIT_STRING(x) LOWBIT_STRING_OF(x)

extern const Kernels kernels;
const Kernels kernels = {
    LOWBIT_STRING(LOWBIT_ISA),
    quantize_scratch,
    quantize_rows,
    quantize_fp4_rows,
    hadamard_scratch,
    hadamard_rows,
    gemm_panel_words,
    gemm_panel_count,
    gemm_pack,
    gemm_tiles,
    fp_panel_count,
    fp_prefers_split,
    fp_pack,
    fp_tiles,
    encode_fp,
    kv4_quantize_rows,
    kv4_dequantize_rows,
};

}  // namespace lowbit::cpu::LOWBIT_ISA
