// The loops of a GEMM in AMX tiles, whatever its operands: included after amx.h.
//
// Activations are packed into panels of up to 16 rows, { [terms][rows][64 bytes] } x steps of k; several
// terms add up to what one tile cannot hold. A piece of the weights of two channel tiles, { [16][64 bytes] }
// x steps, lies in L1 while the panels pass, two at a time; the first two make it on their way, a step ahead
// of its use.
#pragma once

#include "amx.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kStepBytes = kTileRows * kTileBytes;  // of the weights of a channel tile
constexpr int64_t kMostSteps = 16;                      // that lie there: a power of two
constexpr int64_t kRing = 4;                            // where the panels pass but once
constexpr int64_t kPanelBytesInCache = 1024 * 1024;     // of the activations, while the weights pass
constexpr int64_t kMostPanels = 16;                     // at a time: 32 KiB of sums
constexpr int64_t kSumStride = 2 * 16;                  // from row to row of a panel's sums
constexpr int64_t kPanelSums = kTileRows * kSumStride;
constexpr int64_t kStepsAhead = 8;  // of the prefetch

// Panels of equal height, as few as can be.
struct Panels {
  int64_t count, rows, steps, terms;
  Panels(int64_t m, int64_t steps, int64_t terms)
      : count((m + kTileRows - 1) / kTileRows), rows((m + count - 1) / count), steps(steps), terms(terms) {}
  int64_t step_bytes() const { return terms * rows * kTileBytes; }
  int64_t bytes() const { return steps * step_bytes(); }
  // Steps this far from `step` in the weights will be wanted soon: in the tile, or in the next but one, since
  // the next is being read as well.
  int64_t ahead(int64_t step) const { return step + kStepsAhead < steps ? kStepsAhead : kStepsAhead + steps; }
};

// About 8 steps of k for two channel tiles.
struct Piece {
  int64_t tile, tiles, first, last;
  int64_t group_steps;  // of the groups whose sums get a scale; 0: there are none, or the weights have it
  int64_t mask;         // where fewer steps than the piece has lie there at a time: that number less one
  uint8_t* weights;     // [2][kMostSteps][kStepBytes]

  // Of all, in multiples of `unit`.
  static int64_t steps_of(int64_t steps, int64_t unit) {
    const int64_t pieces = steps < 12 ? 1 : (steps + 4) / 8;
    return (steps + unit * pieces - 1) / (unit * pieces) * unit;
  }
  uint8_t* at(int64_t step, int64_t t) const {
    return weights + (t * kMostSteps + ((step - first) & mask)) * kStepBytes;
  }
};

template <class Product, int T>
static inline void make_step(const Product& p, const Piece& piece, int64_t step) {
#pragma GCC unroll 2
  for (int t = 0; t < T; ++t) p.weights(piece.tile + t, step, !piece.group_steps, piece.at(step, t));
}

// Steps [first, last) of a piece: the sums of R panels x T channel tiles go to `to`, those of the second
// panel `second` further; they begin with zero or with what is there.
template <class Product, int R, int T, bool kMake>
static inline void multiply_steps(const Product& p, const Piece& piece, int64_t first, int64_t last,
                                  const uint8_t* x, bool zero, int32_t* to, int64_t second) {
  const auto sums = [&](int i) { return to + (i < 2 ? 0 : second) + i % 2 * 16; };
  each_sum<R, T>([&](auto i) {
    if (zero) tile_zero<i.value>();
    else tile_load<i.value>(sums(i.value), kSumStride * 4);
  });
  for (int64_t step = first; step < last; ++step) {
    if (kMake && step + 1 < piece.last) make_step<Product, T>(p, piece, step + 1);
    tile_load<kWeights>(piece.at(step, 0), kTileBytes);
    if constexpr (T > 1) tile_load<kWeights + 1>(piece.at(step, 1), kTileBytes);
    const uint8_t* at = x + step * p.panels.step_bytes();
#pragma GCC unroll 3
    for (int term = 0; term < Product::kTerms; ++term, at += p.panels.rows * kTileBytes) {
      tile_load<kActivations>(at, kTileBytes);
      Product::template dot<0, 0>();
      if constexpr (T > 1) Product::template dot<0, 1>();
      if constexpr (R > 1) {
        tile_load<kActivations + 1>(at + p.panels.bytes(), kTileBytes);
        Product::template dot<1, 0>();
        if constexpr (T > 1) Product::template dot<1, 1>();
      }
    }
  }
  each_sum<R, T>([&](auto i) { tile_store<i.value>(sums(i.value), kSumStride * 4); });
}

// sums of R panels x T channel tiles += a piece. Groups that have a scale are multiplied apart.
template <class Product, int R, int T, bool kMake>
static void multiply_piece(const Product& p, const Piece& piece, const uint8_t* x, int32_t* sums) {
  if (kMake) make_step<Product, T>(p, piece, piece.first);
  if (!piece.group_steps) {
    multiply_steps<Product, R, T, kMake>(p, piece, piece.first, piece.last, x, piece.first == 0, sums,
                                         p.panels.rows * kSumStride);
    return;
  }
  alignas(64) int32_t group[2 * kPanelSums];
  for (int64_t first = piece.first; first < piece.last; first += piece.group_steps) {
    const int64_t last = first + piece.group_steps < piece.last ? first + piece.group_steps : piece.last;
    multiply_steps<Product, R, T, kMake>(p, piece, first, last, x, true, group, p.panels.rows * kSumStride);
    p.add_group(piece, first, group, R * p.panels.rows, sums);
  }
}

template <class Product, bool kMake>
static inline void multiply(const Product& p, const Piece& piece, int64_t panels, const uint8_t* x,
                            int32_t* sums) {
  if (panels > 1 && piece.tiles > 1) return multiply_piece<Product, 2, 2, kMake>(p, piece, x, sums);
  if (panels > 1) return multiply_piece<Product, 2, 1, kMake>(p, piece, x, sums);
  if (piece.tiles > 1) return multiply_piece<Product, 1, 2, kMake>(p, piece, x, sums);
  multiply_piece<Product, 1, 1, kMake>(p, piece, x, sums);
}

// A Product says where the operands come from and where the sums go:
//   panels, x, kTerms         the packed activations
//   weights(tile, step, scaled, to)  makes a step of a channel tile, with the scale of its group or without
//   dot<panel, tile>()        the instruction
//   group_steps(tile, tiles)  as a piece of these tiles has it
//   add_group(piece, first step, its sums, rows, sums)
//   piece_unit                pieces are a multiple of so many steps
//   write(sums, row, rows, tile, tiles)
template <class Product>
static void run_tile_gemm(const Product& p, int64_t tile_begin, int64_t tile_end) {
  const Panels& panels = p.panels;
  int64_t block = kPanelBytesInCache / panels.bytes() / 2 * 2;
  block = block < 4 ? 4 : block > kMostPanels ? kMostPanels : block;
  alignas(64) uint8_t weights[2 * kMostSteps * kStepBytes];
  alignas(64) int32_t total[kMostPanels * kPanelSums];
  const TileConfig config(panels.rows);
  const bool once = panels.count <= 2;
  const int64_t steps = once ? panels.steps : Piece::steps_of(panels.steps, p.piece_unit);
  const int64_t mask = once ? kRing - 1 : kMostSteps - 1;

  for (int64_t panel = 0; panel < panels.count; panel += block) {
    const int64_t end = panel + block < panels.count ? panel + block : panels.count;
    for (int64_t tile = tile_begin; tile < tile_end; tile += 2) {
      const int64_t tiles = tile_end - tile < 2 ? 1 : 2, group_steps = p.group_steps(tile, tiles);
      for (int64_t first = 0; first < panels.steps; first += steps) {
        const int64_t last = first + steps < panels.steps ? first + steps : panels.steps;
        const Piece piece{tile, tiles, first, last, group_steps, mask, weights};
        for (int64_t i = panel; i < end; i += 2) {
          const int64_t count = end - i < 2 ? 1 : 2;
          const uint8_t* x = p.x + i * panels.bytes();
          int32_t* sums = total + (i - panel) * panels.rows * kSumStride;
          if (i == panel) multiply<Product, true>(p, piece, count, x, sums);
          else multiply<Product, false>(p, piece, count, x, sums);
          if (last == panels.steps) p.write(sums, i * panels.rows, count * panels.rows, tile, tiles);
        }
      }
    }
  }
}

}  // namespace lowbit::cpu::LOWBIT_ISA
