// FP4 codes to int8, four at a time, by a table that the kernel is given: one compiled kernel serves all
// formats.
#pragma once

#include "../../numeric/fp4_table.h"
#include "../../ptx/bits.h"

namespace lowbit::kernels {

// Bit 3 of a selector nibble makes prmt give the sign of the byte, and magnitudes have none: so a lookup with
// codes as selectors gives the magnitude of the positive codes and zero for the negative ones, and with the
// sign bits turned over the other way round. Their difference is taken at an offset of 128, where no byte
// borrows from the next.
constexpr uint32_t kFp4Signs = 0x88888888u;

// The values of the four codes in the low half of `codes`, in order; `turned` is codes ^ kFp4Signs. 4
// instructions.
LOWBIT_DEVICE uint32_t fp4_values(const Fp4Magnitudes& m, uint32_t codes, uint32_t turned) {
  const uint32_t plus = ptx::prmt(m.low, m.high, codes), minus = ptx::prmt(m.low, m.high, turned);
  return (plus - minus + 0x80808080u) ^ 0x80808080u;
}

}  // namespace lowbit::kernels
