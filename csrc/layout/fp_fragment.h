// Where the code of a weight (n, k) lies in the blocks that the CUDA kernels read: 6-bit and 4-bit floats and
// int4 as A fragments of mma.sync m16n8k16 and wgmma m64k16, for fp16 and bf16 activations alike.
//
//   block = 64 output channels x 128 k, blocks of one channel block contiguous along k: [N/64][K/128][block]
//   block = 4 slabs of 16 channels; slab = words_of planes of 32 lanes x 16 bytes; a lane's 16 bytes of plane
//   w are word w of its four chunks; a chunk is a lane's 16 weights in 32 k: the eight A registers of two k16
//   steps. Register ("pair") 4 c + i of step c holds the weights of channel g + 8 (i & 1), k = 16 c +
//   8 (i >> 1) + 2 q and k + 1 (layout/mma_fragment.h).
//
// Six bits do not divide 32: eight pairs fill three words. A pair's two weights lie 16 bits apart, so a
// picture of 16 bits shows a word; s3 is the sign of pair 3, mmmmm2 the exponent and mantissa of pair 2:
//
//   bit      15     14 ............ 10   9 ............. 5   4 ............. 0
//   word 0 | s1 |  m  m  m  m  m2     |  m  m  m  m  m1   |  m  m  m  m  m0  |
//   word 1 | s4 |  m  m  m  m  m5     |  m  m  m  m  m4   |  m  m  m  m  m3  |
//   bit      15   14   13   12 ....... 8   7 ......... 3   2    1    0
//   word 2 | s0 | s7 | s2 | m m m m m6  |  m m m m m7   | s3'| s5 | s6'|       e2m3
//   word 2 | s6 | s2 | s7 | m m m m m6  |  m m m m m7   | s3'| s5 | s0'|       e3m2
//
// Four bits: a word holds the four pairs of a step, floats by the first picture, int4 by the second:
//
//   bit      15   14 ... 12   11 ... 9   8 ... 6    5    4    3    2   1  0
//   float  | lo |  m  m  m3 |  m m m1 |  m m m0 | s2'| s0 | s1'| s3'| hi mi |   of pair 2: hi', mi', lo
//   int4   |  pair 3        | pair 2       | pair 1       | pair 0          |   nibbles, offset-8
//
// A prime: the bits of the first and of the second weight of the pair change places. The pictures are chosen
// for few instructions: one rotation brings a pair's five bits to where fp16 or bf16 has them, another its
// sign, and some rotations serve two pairs (counts: csrc/kernels/fp_gemm/README.md). Past N and K lies the
// code of zero.
#pragma once

#include <cstdint>

#include "../numeric/host_device.h"

namespace lowbit::fp_fragment {

enum class Weight : int32_t { kE3M2, kE2M3, kE2M1, kE3M0, kInt4 };
enum class Half : int32_t { kF16, kBF16 };  // the type of the activations

constexpr int kN = 64, kK = 128, kChunkK = 32, kPairs = 8;  // of a block, a block, a chunk, a chunk

LOWBIT_HOST_DEVICE constexpr int bits_of(Weight w) {
  return w == Weight::kE3M2 || w == Weight::kE2M3 ? 6 : 4;
}
LOWBIT_HOST_DEVICE constexpr int words_of(Weight w) { return bits_of(w) / 2; }  // of a chunk
LOWBIT_HOST_DEVICE constexpr int slab_bytes(Weight w) { return 512 * words_of(w); }
LOWBIT_HOST_DEVICE constexpr int block_bytes(Weight w) { return 4 * slab_bytes(w); }
LOWBIT_HOST_DEVICE constexpr int mantissa_of(Weight w) {
  return w == Weight::kE2M3 ? 3 : w == Weight::kE3M2 ? 2 : w == Weight::kE2M1 ? 1 : 0;
}

// Bit of a word of the chunk that holds a bit of the code of a pair's first weight; the second weight's is 16
// further, modulo 32.
struct Place {
  int word, bit;
};
LOWBIT_HOST_DEVICE constexpr Place place(Weight w, int pair, int bit) {
  if (w == Weight::kInt4) return {pair / 4, 4 * (pair % 4) + bit};
  if (bits_of(w) == 4) {
    constexpr int kMagnitude[4][3] = {{6, 7, 8}, {9, 10, 11}, {15, 16, 17}, {12, 13, 14}};
    constexpr int kSign[4] = {4, 16 + 3, 16 + 5, 16 + 2};
    return {pair / 4, bit == 3 ? kSign[pair % 4] : kMagnitude[pair % 4][bit]};
  }
  constexpr Place kMagnitude[8] = {{0, 0}, {0, 5}, {0, 10}, {1, 0}, {1, 5}, {1, 10}, {2, 8}, {2, 3}};
  constexpr Place kSign[8] = {{2, 15}, {0, 15}, {2, 13}, {2, 16 + 2}, {1, 15}, {2, 1}, {2, 16}, {2, 14}};
  constexpr int kOther[8] = {6, 1, 7, 3, 4, 5, 0, 2};
  return bit == 5 ? kSign[w == Weight::kE3M2 ? kOther[pair] : pair]
                  : Place{kMagnitude[pair].word, kMagnitude[pair].bit + bit};
}

// Where the code of weight (n, k) is: the byte of its chunk's word 0 (word w is 512 w further), and which of
// the 16 weights of the chunk it is.
struct Code {
  int64_t byte;
  int pair;
  bool second;
};
LOWBIT_HOST_DEVICE constexpr Code code_at(Weight w, int64_t n, int64_t k, int64_t k_blocks) {
  const int64_t block = n / kN * k_blocks + k / kK, lane = 4 * (n % 8) + k % 8 / 2;
  return {block * block_bytes(w) + n % kN / 16 * slab_bytes(w) + lane * 16 + k % kK / kChunkK * 4,
          int(4 * (k % 32 / 16) + 2 * (k % 16 / 8) + n % 16 / 8), k % 2 == 1};
}

// ---- decoding: bits of the fp16 or bf16 number that equals the value times 2^-exponent_shift

// The bit of the number where a bit of the code goes. int4: to the low bits of the mantissa.
LOWBIT_HOST_DEVICE constexpr int target(Weight w, Half half, int bit) {
  if (w == Weight::kInt4) return bit;
  return bit == bits_of(w) - 1 ? 15 : (half == Half::kF16 ? 10 : 7) - mantissa_of(w) + bit;
}
// The code's own exponent bias is smaller than that of fp16 (15) or bf16 (127).
LOWBIT_HOST_DEVICE constexpr int exponent_shift(Weight w, Half half) {
  if (w == Weight::kInt4) return 0;
  return (half == Half::kF16 ? 15 : 127) - (w == Weight::kE3M2 || w == Weight::kE3M0 ? 3 : 1);
}

// One step of decoding a pair: its register |= rotate_left(word, by) & mask.
struct Piece {
  int word, by;
  uint32_t mask;  // 0: there is no such piece
};
LOWBIT_HOST_DEVICE constexpr uint32_t piece_mask(Weight w, Half half, int pair, int word, int by) {
  uint32_t mask = 0;
  for (int bit = 0; bit < bits_of(w); ++bit) {
    const Place p = place(w, pair, bit);
    const int to = target(w, half, bit);
    if (p.word == word && ((to - p.bit) & 31) == by) mask |= 0x00010001u << to;
  }
  return mask;
}
LOWBIT_HOST_DEVICE constexpr Piece piece(Weight w, Half half, int pair, int number) {
  for (int word = 0; word < words_of(w); ++word)
    for (int by = 0; by < 32; ++by) {
      const uint32_t mask = piece_mask(w, half, pair, word, by);
      if (mask && number-- == 0) return {word, by, mask};
    }
  return {0, 0, 0};
}
// All bits that any pair takes from a word rotated by so much: a shift will do where none of them wraps
// around.
LOWBIT_HOST_DEVICE constexpr uint32_t taken(Weight w, Half half, int word, int by) {
  uint32_t mask = 0;
  for (int pair = 0; pair < kPairs; ++pair) mask |= piece_mask(w, half, pair, word, by);
  return mask;
}
// Integer instructions for the 16 weights of a chunk: one for each piece, one for each rotation.
LOWBIT_HOST_DEVICE constexpr int instructions(Weight w, Half half) {
  int count = 0;
  for (int word = 0; word < words_of(w); ++word)
    for (int by = 0; by < 32; ++by) {
      for (int pair = 0; pair < kPairs; ++pair) count += piece_mask(w, half, pair, word, by) != 0;
      count += by && taken(w, half, word, by);
    }
  return count;
}

static_assert(instructions(Weight::kE3M2, Half::kF16) == 27 && instructions(Weight::kE2M3, Half::kF16) == 27);
static_assert(instructions(Weight::kE3M2, Half::kBF16) == 22 &&
              instructions(Weight::kE2M3, Half::kBF16) == 27);
static_assert(instructions(Weight::kE2M1, Half::kF16) == 22 &&
              instructions(Weight::kE2M1, Half::kBF16) == 26);
static_assert(instructions(Weight::kInt4, Half::kF16) == 14 && instructions(Weight::kE3M0, Half::kF16) == 32);
static_assert(piece(Weight::kE3M2, Half::kF16, 6, 0).mask == 0x9f009f00u);
static_assert(code_at(Weight::kE2M3, 63, 127, 1).byte == 6144 - 1024 - 4 &&
              code_at(Weight::kE2M3, 8, 1, 1).second);

}  // namespace lowbit::fp_fragment
