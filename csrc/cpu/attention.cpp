// Compiled once per instruction set: LOWBIT_ISA is its namespace, LOWBIT_VEC its header (CMakeLists.txt).
#include LOWBIT_VEC
#include "attention-inl.h"
#include "float_attention-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

void add_attention(Kernels& k) {
  k.kv4_partial_floats = kv4_partial_floats;
  k.kv4_attend_items = kv4_attend_items;
  k.kv4_merge_rows = kv4_merge_rows;
  k.kv_partial_floats = kv_partial_floats;
  k.kv_attend_items = kv_attend_items;
  k.kv_merge_rows = kv_merge_rows;
}

}  // namespace lowbit::cpu::LOWBIT_ISA
