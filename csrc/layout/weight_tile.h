// Where a weight (n, k) lies in the tiles that the CPU kernels read.
//
//   tile = 16 output channels x 8 k, tiles of one channel block contiguous along k: [N/16][K/8][tile]
//
//   int4 tile, 64 bytes:   byte 4 n + i   = | k = i + 4 (high nibble) | k = i (low nibble) |     n 0..15, i
//   0..3 int8 tile, 128 bytes:  byte 64 h + 4 n + i = w[n][k = 4 h + i]                               h 0..1
//
// One mask (and one shift) turns 64 bytes of nibbles into the operands of two 4-wide dot products over 16
// channels.
#pragma once

#include <cstdint>

namespace lowbit::tile {

constexpr int64_t kN = 16, kK = 8;
constexpr int64_t kInt4Bytes = 64, kInt8Bytes = 128;

struct Nibble {
  int64_t byte;
  bool high;
};

// k_tiles = ceil(K / 8)
static constexpr Nibble int4_at(int64_t n, int64_t k, int64_t k_tiles) {
  const int64_t t = (n / kN) * k_tiles + k / kK;
  return {t * kInt4Bytes + (n % kN) * 4 + k % 4, (k % kK) >= 4};
}

static constexpr int64_t int8_at(int64_t n, int64_t k, int64_t k_tiles) {
  const int64_t t = (n / kN) * k_tiles + k / kK;
  return t * kInt8Bytes + ((k % kK) / 4) * 64 + (n % kN) * 4 + k % 4;
}

static_assert(int4_at(0, 0, 4).byte == 0 && !int4_at(0, 0, 4).high);
static_assert(int4_at(15, 7, 4).byte == 63 && int4_at(15, 7, 4).high);
static_assert(int8_at(15, 7, 4) == 127 && int8_at(16, 0, 4) == 4 * kInt8Bytes);

}  // namespace lowbit::tile
