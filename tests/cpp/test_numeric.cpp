// Codecs against their definitions, over all 2^16 codes; the tile map against a brute-force inverse.
#include <cmath>
#include <cstdio>
#include <set>

#include "../../csrc/layout/weight_tile.h"
#include "../../csrc/numeric/float16.h"
#include "../../csrc/numeric/int4.h"

using namespace lowbit;

static int failures = 0;
#define EXPECT(ok, ...)                                                 \
  do {                                                                  \
    if (!(ok)) {                                                        \
      if (++failures < 20) std::printf(__VA_ARGS__), std::printf("\n"); \
    }                                                                   \
  } while (0)

static double fp16_value(
    uint16_t h) {  // from the definition: (-1)^s 2^(e - 15) (1 + m / 1024), subnormals at e = 0
  const int e = (h >> 10) & 31, m = h & 1023;
  const double magnitude = e ? std::ldexp(1.0 + m / 1024.0, e - 15) : std::ldexp(m / 1024.0, -14);
  return h & 0x8000 ? -magnitude : magnitude;
}

int main() {
  for (uint32_t h = 0; h < 65536; ++h) {
    if ((h & 0x7c00) == 0x7c00) continue;
    EXPECT(double(fp16_to_float(uint16_t(h))) == fp16_value(uint16_t(h)), "fp16 %x decodes to %g", h,
           fp16_to_float(uint16_t(h)));
    EXPECT(float_to_fp16(fp16_to_float(uint16_t(h))) == h, "fp16 %x does not come back", h);
  }
  for (uint32_t h = 0; h < 0x7bff; ++h) {  // between neighbours: below half down, above half up, half to even
    const double a = fp16_value(uint16_t(h)), b = fp16_value(uint16_t(h + 1)), half = (a + b) / 2;
    const float mid = float(half);
    EXPECT(float_to_fp16(mid) == (h & 1 ? h + 1 : h), "fp16 tie above %x gives %x", h, float_to_fp16(mid));
    EXPECT(float_to_fp16(std::nextafterf(mid, 0.f)) == h, "fp16 below the tie above %x", h);
    EXPECT(float_to_fp16(std::nextafterf(mid, 1e9f)) == h + 1, "fp16 past the tie above %x", h);
  }
  EXPECT(float_to_fp16(65519.99f) == 0x7bff && float_to_fp16(65520.f) == 0x7c00, "fp16 overflow");
  EXPECT(float_to_fp16(-INFINITY) == 0xfc00 && std::isnan(fp16_to_float(float_to_fp16(NAN))),
         "fp16 inf, NaN");
  for (uint32_t h = 0; h < 65536; ++h) {
    const float x = bf16_to_float(uint16_t(h));
    if (std::isnan(x)) {
      EXPECT(float_to_bf16(x) == 0x7fc0, "bf16 NaN %x", h);
      continue;
    }
    EXPECT(float_to_bf16(x) == h, "bf16 %x does not come back", h);
    if ((h & 0x7fff) >= 0x7f7f) continue;
    const uint32_t tie = (h << 16) | 0x8000;
    EXPECT(float_to_bf16(bits_float(tie)) == (h & 1 ? h + 1 : h), "bf16 tie %x", h);
    EXPECT(float_to_bf16(bits_float(tie - 1)) == h && float_to_bf16(bits_float(tie + 1)) == h + 1,
           "bf16 near %x", h);
  }
  for (int a = -8; a < 8; ++a)
    for (int b = -8; b < 8; ++b) {
      const uint8_t byte = int4::encode(a, b);
      EXPECT(int4::decode_low(byte) == a && int4::decode_high(byte) == b, "int4 %d %d", a, b);
    }
  const int64_t k_tiles = 5;  // every nibble and byte of 2 x 5 tiles is some (n, k), once
  std::set<int64_t> nibbles, bytes;
  for (int64_t n = 0; n < 32; ++n)
    for (int64_t k = 0; k < 40; ++k) {
      const tile::Nibble at = tile::int4_at(n, k, k_tiles);
      nibbles.insert(2 * at.byte + at.high);
      bytes.insert(tile::int8_at(n, k, k_tiles));
    }
  EXPECT(nibbles.size() == 1280 && *nibbles.rbegin() == 1279, "int4 tiles overlap");
  EXPECT(bytes.size() == 1280 && *bytes.rbegin() == 1279, "int8 tiles overlap");
  std::printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
