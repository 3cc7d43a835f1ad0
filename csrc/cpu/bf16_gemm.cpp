// Compiled for the AVX-512 sets: what a CPU with AVX512_BF16 does better. LOWBIT_ISA and LOWBIT_VEC as in
// fp_gemm.cpp.
#include LOWBIT_VEC
#include "fp_gemm_bf16-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

void use_bf16(Kernels& k) {
  k.fp_panel_words = dot_fp_panel_words;
  k.fp_panel_count = dot_fp_panel_count;
  k.fp_pack = dot_fp_pack;
  k.fp_tiles = dot_fp_tiles;
}

}  // namespace lowbit::cpu::LOWBIT_ISA
