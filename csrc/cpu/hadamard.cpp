// Compiled once per instruction set: LOWBIT_ISA is its namespace, LOWBIT_VEC its header (CMakeLists.txt).
#include LOWBIT_VEC
#include "hadamard-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

void add_hadamard(Kernels& k) {
  k.hadamard_scratch = hadamard_scratch;
  k.hadamard_rows = hadamard_rows;
}

}  // namespace lowbit::cpu::LOWBIT_ISA
