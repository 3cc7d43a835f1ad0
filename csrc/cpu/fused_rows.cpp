// Compiled once per instruction set: LOWBIT_ISA is its namespace, LOWBIT_VEC its header (CMakeLists.txt).
#include LOWBIT_VEC
#include "fused_rows-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

void add_fused_rows(Kernels& k) {
  k.fused_rows_scratch = fused_rows_scratch;
  k.static_rows = fused_rows<StaticRow>;
  k.norm_rows = fused_rows<NormRow>;
  k.gated_rows = fused_rows<GatedRow>;
}

}  // namespace lowbit::cpu::LOWBIT_ISA
