// Where the sm_80 s4 tensor-core GEMM wants int4 activations: two's complement nibbles, 16 bytes per 32 k.
//
//   byte 16 c + t  =  | k = 32 c + 16 + t (high nibble) | k = 32 c + t (low nibble) |      t = 0..15
//
// A row holds a multiple of 32 bytes (64 k, one mma.m16n8k64), zero past K.
#pragma once

#include <cstdint>

#include "../numeric/host_device.h"

namespace lowbit::operand4 {

constexpr int kGroup = 32;        // k per 16 bytes
constexpr int kRowMultiple = 32;  // bytes

struct Nibble {
  int64_t byte;
  bool high;
};

LOWBIT_HOST_DEVICE constexpr Nibble at(int64_t k) { return {k / 32 * 16 + k % 16, k % 32 >= 16}; }

LOWBIT_HOST_DEVICE constexpr int64_t row_bytes(int64_t k) { return (k + 63) / 64 * kRowMultiple; }

// Eight k, 8 chunk .. 8 chunk + 7, share their bytes with those of chunk ^ 2 (16 k away). The pair's eight
// bytes are two words; the lower chunk writes the first (its k 0..3 with the other's 0..3), the upper chunk
// the second (4..7).
LOWBIT_HOST_DEVICE constexpr int chunk_word_byte(int chunk) {
  return chunk / 4 * 16 + chunk % 2 * 8 + (chunk / 2) % 2 * 4;
}

static_assert(at(15).byte == 15 && !at(15).high && at(16).byte == 0 && at(16).high && at(47).byte == 31);
static_assert(chunk_word_byte(0) == at(0).byte && chunk_word_byte(2) == at(20).byte);
static_assert(chunk_word_byte(1) == at(8).byte && chunk_word_byte(7) == at(32 + 16 + 8 + 4).byte);
static_assert(row_bytes(64) == 32 && row_bytes(65) == 64 && row_bytes(0) == 0);

}  // namespace lowbit::operand4
