// Compiled once per instruction set: LOWBIT_ISA is its namespace, LOWBIT_VEC its header (CMakeLists.txt).
#include LOWBIT_VEC
#include "fp_gemm-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

void add_fp_gemm(Kernels& k) {
  k.fp_panel_words = fp_panel_words;
  k.fp_panel_count = fp_panel_count;
  k.fp_prefers_split = fp_prefers_split;
  k.fp_pack = fp_pack;
  k.fp_tiles = fp_tiles;
}

}  // namespace lowbit::cpu::LOWBIT_ISA
