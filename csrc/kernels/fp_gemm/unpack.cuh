// From packed weights to the A fragments of two k16 steps, in registers.
//
// A pair of weights is the OR of one or two pieces of rotated words; layout/fp_fragment.h says which, at
// compile time, for each format and for fp16 and bf16. What comes out is the value times 2^-exponent_shift:
// for fp16 that stays in the sums, and the epilogue takes it off exactly. In bf16 it is so small (2^-124)
// that products would leave the range of fp32: one exact multiply per pair puts it right.
#pragma once

#include <utility>

#include "../../ptx/bits.h"
#include "../../ptx/memory.h"
#include "params.h"

namespace lowbit::kernels::fp_gemm {

using fp_fragment::Piece;

constexpr uint8_t kAndOr = 0xea;  // (a & b) | c

// word rotated left. A plain shift where no bit that is wanted wraps around: on a Hopper ptxas may put a
// shift to the left on the multiply-add pipe.
template <int kBy, uint32_t kWanted>
LOWBIT_DEVICE uint32_t rotate(uint32_t word) {
  if constexpr (kBy == 0) return word;
  else if constexpr ((kWanted & ((1u << kBy) - 1)) == 0) return word << kBy;
  else if constexpr ((kWanted >> kBy) == 0) return word >> (32 - kBy);
  else return word << kBy | word >> (32 - kBy);
}

template <Weight kWeight, Half kHalf, int kPair, int kNumber = 0>
LOWBIT_DEVICE uint32_t pair_bits(const uint32_t (&words)[fp_fragment::words_of(kWeight)], uint32_t sum = 0) {
  constexpr Piece piece = fp_fragment::piece(kWeight, kHalf, kPair, kNumber);
  if constexpr (piece.mask == 0) {
    return sum;
  } else {
    constexpr uint32_t taken = fp_fragment::taken(kWeight, kHalf, piece.word, piece.by);
    const uint32_t part = rotate<piece.by, taken>(words[piece.word]);
    return pair_bits<kWeight, kHalf, kPair, kNumber + 1>(
        words, kNumber ? ptx::lop3<kAndOr>(part, piece.mask, sum) : part & piece.mask);
  }
}

// The two weights of a pair as an A register.
template <Weight kWeight, Half kHalf, int kPair>
LOWBIT_DEVICE uint32_t pair_of(const uint32_t (&words)[fp_fragment::words_of(kWeight)]) {
  if constexpr (kWeight == Weight::kInt4) {
    // A code u in the low bits of 1024 (fp16) or 128 (bf16) is 1024 + u; the subtraction is exact.
    constexpr uint32_t magic = kHalf == Half::kF16 ? 0x64006400u : 0x43004300u;
    constexpr Piece piece = fp_fragment::piece(kWeight, kHalf, kPair, 0);
    constexpr uint32_t taken = fp_fragment::taken(kWeight, kHalf, piece.word, piece.by);
    const uint32_t u = ptx::lop3<kAndOr>(rotate<piece.by, taken>(words[piece.word]), piece.mask, magic);
    if constexpr (kHalf == Half::kF16) return ptx::fma_rn_f16x2(u, 0x3c003c00u, 0xe408e408u);  // u * 1 - 1032
    else return ptx::fma_rn_bf16x2(u, 0x3f803f80u, 0xc308c308u);                               // u * 1 - 136
  } else {
    const uint32_t bits = pair_bits<kWeight, kHalf, kPair>(words);
    if constexpr (kHalf == Half::kF16) return bits;
    constexpr uint32_t power = uint32_t(127 + fp_fragment::exponent_shift(kWeight, kHalf)) << 7;
    return ptx::fma_rn_bf16x2(bits, power | power << 16, 0x80008000u);  // times 2^124 or 2^126, minus zero
  }
}

// The weights of a lane for 16 channels x 128 k.
template <Weight kWeight>
struct Slab {
  static constexpr int kBytes = fp_fragment::slab_bytes(kWeight), kWords = fp_fragment::words_of(kWeight);
  ptx::u32x4 planes[kWords];

  LOWBIT_DEVICE void load(ptx::smem_ptr<uint8_t> slab) {
    LOWBIT_UNROLL
    for (int w = 0; w < kWords; ++w)
      planes[w] = ptx::ld_shared(slab.plus_bytes(512 * w + 16 * ptx::lane_index()).as<ptx::u32x4>());
  }
  LOWBIT_DEVICE void load_global(const uint8_t* slab) {
    LOWBIT_UNROLL
    for (int w = 0; w < kWords; ++w)
      planes[w] = ptx::ld_global<ptx::Load::kNcNoAllocate>(
          reinterpret_cast<const ptx::u32x4*>(slab + 512 * w + 16 * ptx::lane_index()));
  }

  // The A registers of both k16 steps of a chunk, a[0] and a[1].
  template <Half kHalf>
  LOWBIT_DEVICE void fragments(int chunk, uint32_t (*a)[4]) const {
    uint32_t words[kWords];
    LOWBIT_UNROLL
    for (int w = 0; w < kWords; ++w) words[w] = planes[w][chunk];
    fill<kHalf>(words, a, std::make_integer_sequence<int, fp_fragment::kPairs>{});
  }

 private:
  template <Half kHalf, int... kPair>
  static LOWBIT_DEVICE void fill(const uint32_t (&words)[kWords], uint32_t (*a)[4],
                                 std::integer_sequence<int, kPair...>) {
    ((a[kPair / 4][kPair % 4] = pair_of<kWeight, kHalf, kPair>(words)), ...);
  }
};

}  // namespace lowbit::kernels::fp_gemm
