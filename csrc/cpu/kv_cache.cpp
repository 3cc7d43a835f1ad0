// Compiled once per instruction set: LOWBIT_ISA is its namespace, LOWBIT_VEC its header (CMakeLists.txt).
#include LOWBIT_VEC
#include "kv_paged-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

void add_kv_cache(Kernels& k) {
  k.kv4_quantize_rows = kv4_quantize_rows;
  k.kv4_dequantize_rows = kv4_dequantize_rows;
  k.kv4_append_rows = kv4_append_rows;
  k.kv4_rope_rows = kv4_rope_rows;
  k.kv_rope_rows = kv_rope_rows;
}

}  // namespace lowbit::cpu::LOWBIT_ISA
