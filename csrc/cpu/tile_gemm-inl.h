// The loops of a GEMM in AMX tiles, whatever its operands: included after amx.h.
//
// Activations are packed into panels of up to 16 rows, { [rows][64 bytes] } x steps of k. A piece of the
// weights of two channel tiles, { [16][64 bytes] } x steps, lies in L1 while the panels pass, two at a time;
// the first two make it on their way, a step ahead of its use.
#pragma once

#include "amx.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kStepBytes = kTileRows * kTileBytes;  // of the weights of a channel tile
constexpr int64_t kMostSteps = 16;                      // that lie there: a power of two
constexpr int64_t kRing = 4;                            // where the panels pass but once
constexpr int64_t kPanelBytesInCache = 1024 * 1024;     // of the activations, while the weights pass
constexpr int64_t kMostPanels = 16;                     // at a time: 32 KiB of sums
constexpr int64_t kSumStride = 2 * 16;                  // from row to row of a panel's sums

// Panels of equal height, as few as can be.
struct Panels {
  int64_t count, rows, steps;
  Panels(int64_t m, int64_t steps) : count((m + kTileRows - 1) / kTileRows), steps(steps) {
    rows = (m + count - 1) / count;
  }
  int64_t bytes() const { return rows * steps * kTileBytes; }
};

// About 8 steps of k for two channel tiles, a whole number of 128-k groups.
struct Piece {
  int64_t tile, first, last;
  int64_t mask;      // where fewer steps than the piece has lie there at a time: that number less one
  uint8_t* weights;  // [2][kMostSteps][kStepBytes]

  static int64_t steps_of(int64_t steps) {
    const int64_t pieces = steps < 12 ? 1 : (steps + 4) / 8;
    return (steps + 2 * pieces - 1) / (2 * pieces) * 2;
  }
  uint8_t* at(int64_t step, int64_t t) const {
    return weights + (t * kMostSteps + ((step - first) & mask)) * kStepBytes;
  }
};

template <class Product, int T>
static inline void make_step(const Product& p, const Piece& piece, int64_t step) {
#pragma GCC unroll 2
  for (int t = 0; t < T; ++t) p.weights(piece.tile + t, step, piece.at(step, t));
}

// sums of R panels x T channel tiles += the steps of a piece
template <class Product, int R, int T, bool kMake>
static void multiply_tiles(const Product& p, const Piece& piece, const uint8_t* x, int32_t* sums) {
  const int64_t rows = p.panels.rows;
  int32_t* second = sums + rows * kSumStride;
  each_sum<R, T>([&](auto i) {
    int32_t* at = (i.value < 2 ? sums : second) + i.value % 2 * 16;
    if (piece.first) tile_load<i.value>(at, kSumStride * 4);
    else tile_zero<i.value>();
  });
  if (kMake) make_step<Product, T>(p, piece, piece.first);
  x += piece.first * rows * kTileBytes;
  for (int64_t step = piece.first; step < piece.last; ++step, x += rows * kTileBytes) {
    if (kMake && step + 1 < piece.last) make_step<Product, T>(p, piece, step + 1);
    tile_load<kWeights>(piece.at(step, 0), kTileBytes);
    tile_load<kActivations>(x, kTileBytes);
    Product::template dot<0, 0>();
    if constexpr (T > 1) {
      tile_load<kWeights + 1>(piece.at(step, 1), kTileBytes);
      Product::template dot<0, 1>();
    }
    if constexpr (R > 1) {
      tile_load<kActivations + 1>(x + p.panels.bytes(), kTileBytes);
      Product::template dot<1, 0>();
      if constexpr (T > 1) Product::template dot<1, 1>();
    }
  }
  each_sum<R, T>(
      [&](auto i) { tile_store<i.value>((i.value < 2 ? sums : second) + i.value % 2 * 16, kSumStride * 4); });
}

template <class Product, bool kMake>
static inline void multiply_some(const Product& p, const Piece& piece, int64_t panels, int64_t tiles,
                                 const uint8_t* x, int32_t* sums) {
  const auto multiply =
      panels > 1  ? tiles > 1 ? multiply_tiles<Product, 2, 2, kMake> : multiply_tiles<Product, 2, 1, kMake>
      : tiles > 1 ? multiply_tiles<Product, 1, 2, kMake>
                  : multiply_tiles<Product, 1, 1, kMake>;
  multiply(p, piece, x, sums);
}

// A Product says where the codes come from and where the sums go:
//   panels, x                 the packed activations
//   weights(tile, step, to)   makes a step of a channel tile
//   dot<panel, tile>()        the instruction
//   write(sums, row, rows, tile, tiles)
template <class Product>
static void run_tile_gemm(const Product& p, int64_t tile_begin, int64_t tile_end) {
  const Panels& panels = p.panels;
  int64_t block = kPanelBytesInCache / panels.bytes() / 2 * 2;
  block = block < 2 ? 2 : block > kMostPanels ? kMostPanels : block;
  alignas(64) uint8_t weights[2 * kMostSteps * kStepBytes];
  alignas(64) int32_t total[kMostPanels * kTileRows * kSumStride];
  const TileConfig config(panels.rows);
  const bool once = panels.count <= 2;
  const int64_t steps = once ? panels.steps : Piece::steps_of(panels.steps);
  const int64_t mask = once ? kRing - 1 : kMostSteps - 1;

  for (int64_t panel = 0; panel < panels.count; panel += block) {
    const int64_t end = panel + block < panels.count ? panel + block : panels.count;
    for (int64_t tile = tile_begin; tile < tile_end; tile += 2) {
      const int64_t tiles = tile_end - tile < 2 ? 1 : 2;
      for (int64_t first = 0; first < panels.steps; first += steps) {
        const Piece piece{tile, first, first + steps < panels.steps ? first + steps : panels.steps, mask,
                          weights};
        for (int64_t i = panel; i < end; i += 2) {
          const int64_t count = end - i < 2 ? 1 : 2;
          const uint8_t* x = p.x + i * panels.bytes();
          int32_t* sums = total + (i - panel) * panels.rows * kSumStride;
          if (i == panel) multiply_some<Product, true>(p, piece, count, tiles, x, sums);
          else multiply_some<Product, false>(p, piece, count, tiles, x, sums);
          if (piece.last == panels.steps) p.write(sums, i * panels.rows, count * panels.rows, tile, tiles);
        }
      }
    }
  }
}

}  // namespace lowbit::cpu::LOWBIT_ISA
