// Compiled once per instruction set: LOWBIT_ISA is its namespace, LOWBIT_VEC its header (CMakeLists.txt).
#include LOWBIT_VEC
#include "quantize-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

void add_quantize(Kernels& k) {
  k.quantize_scratch = quantize_scratch;
  k.quantize_rows = quantize_rows;
  k.quantize_fp4_rows = quantize_fp4_rows;
  k.encode_fp = encode_fp;
  k.unpack_nibbles = unpack_nibbles;
}

}  // namespace lowbit::cpu::LOWBIT_ISA
