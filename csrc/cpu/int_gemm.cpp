// Compiled once per instruction set: LOWBIT_ISA is its namespace, LOWBIT_VEC its header (CMakeLists.txt).
#include LOWBIT_VEC
#include "int_gemm-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

void add_int_gemm(Kernels& k) {
  k.gemm_panel_words = gemm_panel_words;
  k.gemm_panel_count = gemm_panel_count;
  k.gemm_pack = gemm_pack;
  k.gemm_tiles = gemm_tiles;
}

}  // namespace lowbit::cpu::LOWBIT_ISA
