// int4 as stored: nibbles hold value + 8, the low nibble of a byte is the even index.
#pragma once

#include <cstdint>

namespace lowbit::int4 {

constexpr int kMin = -8, kMax = 7, kOffset = 8;
constexpr uint8_t kZeroByte = 0x88;  // two zeros

static constexpr uint8_t encode(int even, int odd) {
  return uint8_t((even + kOffset) | ((odd + kOffset) << 4));
}
static constexpr int decode_low(uint8_t b) { return int(b & 15) - kOffset; }
static constexpr int decode_high(uint8_t b) { return int(b >> 4) - kOffset; }

static_assert(decode_low(encode(kMin, kMax)) == kMin && decode_high(encode(kMin, kMax)) == kMax);
static_assert(encode(0, 0) == kZeroByte);

}  // namespace lowbit::int4
