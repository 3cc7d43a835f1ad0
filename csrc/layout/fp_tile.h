// Where a code (n, k) of a weight-only layer lies in the tiles that the CPU kernels read.
//
//   tile = 16 output channels x 8 k, tiles of one channel block contiguous along k: [N/16][K/8][tile]
//   A tile is rows of 16 words of 16 bits, little-endian, word n of a row belongs to channel n. Of its word:
//
//     4 bits, 2 rows:  row j   | k = 4 j | 4 j + 1 | 4 j + 2 | 4 j + 3 |         from bit 15 down
//     6 bits, 3 rows:  row 0   | k = 0 (6) | k = 1 (6) | k = 6, upper four |
//                      row 1   | k = 2     | k = 3     | k = 6, lower two | k = 7, lower two |
//                      row 2   | k = 4     | k = 5     | k = 7, upper four |
//
// A shift brings a code to the top of its word; an arithmetic shift and one mask then spread sign, exponent
// and mantissa to where fp16 has them.
#pragma once

#include <cstdint>

namespace lowbit::fp_tile {

constexpr int64_t kN = 16, kK = 8, kRowWords = 16;

static constexpr int64_t bytes(int bits) { return kN * kK * bits / 8; }

// `count` bits of the code, from bit `from` of it, lie at bit `at` of word `word` of the tile.
struct Piece {
  int64_t word;
  int at, from, count;
};
struct Place {
  Piece piece[2];
  int pieces;
};

// n and k within the tile
static constexpr Place place(int64_t n, int64_t k, int bits) {
  if (bits == 4) return {{{k / 4 * kRowWords + n, int(12 - 4 * (k % 4)), 0, 4}}, 1};
  if (k < 6) return {{{k / 2 * kRowWords + n, k % 2 ? 4 : 10, 0, 6}}, 1};
  const int64_t row = k == 6 ? 0 : 2;
  return {{{row * kRowWords + n, 0, 2, 4}, {kRowWords + n, k == 6 ? 2 : 0, 0, 2}}, 2};
}

static_assert(bytes(6) == 96 && bytes(4) == 64);
static_assert(place(3, 5, 6).piece[0].word == 35 && place(3, 5, 6).piece[0].at == 4);
static_assert(place(15, 7, 4).piece[0].word == 31 && place(15, 7, 4).piece[0].at == 0);

}  // namespace lowbit::fp_tile
