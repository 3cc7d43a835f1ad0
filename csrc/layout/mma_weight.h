// Where a weight (n, k) lies in the blocks that the CUDA kernels read: one layout for mma.sync s4, mma.sync
// s8 and wgmma s8.
//
//   block = 64 output channels x 64 k, blocks of one channel block contiguous along k: [N/64][K/64][block]
//   int4 block, 2048 bytes: 4 slabs of 16 channels, one per warp of a wgmma, each 32 lanes x 16 bytes.
//     A lane's 16 bytes are four words (a, c), word 2 c + a: channel g + 8 a, k = 32 c ..., byte j of the
//     word:
//       low nibble k = 32 c + 4 q + j, high nibble k = 32 c + 16 + 4 q + j          g = lane / 4, q = lane %
//       4
//     so the low nibbles of words (0, c), (1, c) are registers 0, 1 of the s8 fragment of step c, and the
//     high nibbles registers 2, 3: one 16-byte load, two steps of k32. As registers of mma m16n8k64 the same
//     words hold k in the order of layout/operand4.h, which is the order the int4 activations come in.
//   int8 block, 4096 bytes: per slab the two k32 steps, each 32 lanes x 16 bytes = registers 0..3.
//
// Nibbles are offset-8, as in the checkpoint; past N and K they hold 8, which is zero.
#pragma once

#include <cstdint>

#include "../numeric/host_device.h"

namespace lowbit::mma_weight {

constexpr int kN = 64, kK = 64;
constexpr int kInt4Bytes = 2048, kInt8Bytes = 4096;

struct Nibble {
  int64_t byte;
  bool high;
};

// k_blocks = ceil(K / 64)
LOWBIT_HOST_DEVICE constexpr Nibble int4_at(int64_t n, int64_t k, int64_t k_blocks) {
  const int64_t block = n / kN * k_blocks + k / kK;
  const int64_t slab = n % 64 / 16, a = n % 16 / 8, g = n % 8, c = k % 64 / 32, q = k % 16 / 4, j = k % 4;
  return {block * kInt4Bytes + slab * 512 + (4 * g + q) * 16 + 4 * (2 * c + a) + j, k % 32 >= 16};
}

LOWBIT_HOST_DEVICE constexpr int64_t int8_at(int64_t n, int64_t k, int64_t k_blocks) {
  const int64_t block = n / kN * k_blocks + k / kK;
  const int64_t slab = n % 64 / 16, a = n % 16 / 8, g = n % 8, c = k % 64 / 32, half = k % 32 / 16;
  return block * kInt8Bytes + slab * 1024 + c * 512 + (4 * g + k % 16 / 4) * 16 + 4 * (2 * half + a) + k % 4;
}

// Group scales: [N/64][G][64], so that the groups of a pipeline stage are contiguous.
LOWBIT_HOST_DEVICE constexpr int64_t scale_at(int64_t n, int64_t group, int64_t groups) {
  return (n / kN * groups + group) * kN + n % kN;
}

static_assert(int4_at(63, 63, 1).byte == 2047 && int4_at(63, 63, 1).high && int8_at(63, 63, 1) == 4095);
static_assert(int4_at(8, 36, 1).byte == 16 + 12 && !int4_at(8, 36, 1).high);

}  // namespace lowbit::mma_weight
