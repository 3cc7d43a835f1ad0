// From packed weights to the A fragments of one k32 step (s8) or one k64 step (s4), in registers.
//
// Integer instructions per 8 weights: per channel 3 (shift, two lop3), grouped 7, s4 1, fp4 13. Per-channel
// int4 codes come out times 16, which the epilogue shifts away again.
#pragma once

#include "../../ptx/bits.h"
#include "../../ptx/memory.h"
#include "../common/fp4.cuh"
#include "params.h"

namespace lowbit::kernels::int_gemm {

constexpr uint8_t kAndXor = 0x6a;  // (a & b) ^ c

// The weights of a lane for 16 channels x 64 k, and what turns them into fragments.
template <Weight kWeight>
struct Slab;

template <>
struct Slab<Weight::kInt4> {
  static constexpr int kBytes = 512, kShift = 4;  // sums come out times 2^kShift
  ptx::u32x4 words;

  LOWBIT_DEVICE void load(ptx::smem_ptr<uint8_t> slab) {
    words = ptx::ld_shared(slab.plus_bytes(16 * ptx::lane_index()).as<ptx::u32x4>());
  }
  // registers of k32 step c: channels g, g + 8 for k = 4 q..., then for k = 16 + 4 q...
  LOWBIT_DEVICE void fragment(int c, uint32_t (&a)[4]) const {
    LOWBIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t w = words[2 * c + i];
      a[i] = ptx::lop3<kAndXor>(w << 4, 0xf0f0f0f0u, 0x80808080u);
      a[i + 2] = ptx::lop3<kAndXor>(w, 0xf0f0f0f0u, 0x80808080u);
    }
  }
  // registers of mma m16n8k64 s4: offset-8 to two's complement
  LOWBIT_DEVICE void fragment_s4(uint32_t (&a)[4]) const {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = words[i] ^ 0x88888888u;
  }
};

template <>
struct Slab<Weight::kInt4Group> {
  static constexpr int kBytes = 512, kShift = 0;
  ptx::u32x4 words;

  LOWBIT_DEVICE void load(ptx::smem_ptr<uint8_t> slab) {
    words = ptx::ld_shared(slab.plus_bytes(16 * ptx::lane_index()).as<ptx::u32x4>());
  }
  // Four codes times s1 in one multiply: u s1 + (128 - 8 s1) = q s1 + 128 is in 0..248 for u in 0..15 and s1
  // in 1..16, so no byte carries into the next; the xor takes the 128 off again (the trick of LiquidQuant,
  // arXiv 2509.01229).
  LOWBIT_DEVICE void fragment(int c, uint32_t (&a)[4], const uint32_t (&s1)[2]) const {
    LOWBIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t w = words[2 * c + i], offset = 0x80808080u - s1[i] * 0x08080808u;
      a[i] = ((w & 0x0f0f0f0fu) * s1[i] + offset) ^ 0x80808080u;
      a[i + 2] = (((w >> 4) & 0x0f0f0f0fu) * s1[i] + offset) ^ 0x80808080u;
    }
  }
};

template <>
struct Slab<Weight::kFp4> {
  static constexpr int kBytes = 512, kShift = 0;
  ptx::u32x4 words;

  LOWBIT_DEVICE void load(ptx::smem_ptr<uint8_t> slab) {
    words = ptx::ld_shared(slab.plus_bytes(16 * ptx::lane_index()).as<ptx::u32x4>());
  }
  // A word's nibbles in order are low, high, low, high ... of its bytes: looked up four at a time (2 x 4
  // instructions, and 3 to turn the signs over and to bring the upper half down), then dealt to the two
  // registers (2).
  LOWBIT_DEVICE void fragment(int c, uint32_t (&a)[4], const Fp4Magnitudes& m) const {
    LOWBIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t w = words[2 * c + i], turned = w ^ kFp4Signs;
      const uint32_t first = fp4_values(m, w, turned), second = fp4_values(m, w >> 16, turned >> 16);
      a[i] = ptx::prmt(first, second, 0x6420);
      a[i + 2] = ptx::prmt(first, second, 0x7531);
    }
  }
};

template <>
struct Slab<Weight::kInt8> {
  static constexpr int kBytes = 1024, kShift = 0;
  ptx::u32x4 words[2];

  LOWBIT_DEVICE void load(ptx::smem_ptr<uint8_t> slab) {
    LOWBIT_UNROLL
    for (int c = 0; c < 2; ++c)
      words[c] = ptx::ld_shared(slab.plus_bytes(512 * c + 16 * ptx::lane_index()).as<ptx::u32x4>());
  }
  LOWBIT_DEVICE void fragment(int c, uint32_t (&a)[4]) const {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = words[c][i];
  }
};

// Group scales of the lane's channels g, g + 8 of a slab at k32 step `step` of the stage. scales: [64-channel
// block][groups of the stage][64].
LOWBIT_DEVICE void load_group_scale(ptx::smem_ptr<uint8_t> scales, int slab, int step, int group_shift,
                                    uint32_t (&s1)[2]) {
  const int group = ((slab / 4) << (7 - group_shift)) + (32 * step >> group_shift);
  const auto at = scales.plus_bytes(group * 64 + slab % 4 * 16 + ptx::lane_index() / 4);
  LOWBIT_UNROLL
  for (int a = 0; a < 2; ++a) s1[a] = ptx::ld_shared(at.plus_bytes(8 * a));
}

}  // namespace lowbit::kernels::int_gemm
