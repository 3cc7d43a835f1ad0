// Products of panels in AMX tiles: included after vec_avx512.h. The weights of the first two panels are made
// on their way, a step ahead of their use.
#pragma once

#include "amx.h"
#include "panel_gemm-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

// Weights of long pieces take most of L1: activations pass it by.
template <class Product, bool kMake, int kTile>
static inline void load_activations(const uint8_t* from) {
  if constexpr (Product::kPieceSteps > 8 && !kMake) tile_stream<kTile>(from, kTileBytes);
  else tile_load<kTile>(from, kTileBytes);
}

// Of a Product it takes dot<panel, tile>(), the instruction.
struct Tiles {
  static constexpr int64_t kRows = kTileRows;
  static constexpr bool kMakesOnTheWay = true;
  using Config = TileConfig;

  template <class Product, int R, int T, bool kMake>
  static inline void multiply(const Product& p, const Piece& piece, int64_t first, int64_t last,
                              const uint8_t* x, Share share, bool zero, int32_t* to, int64_t second) {
    const auto sums = [&](int i) { return to + (i < 2 ? 0 : second) + i % 2 * 16; };
    each_sum<R, T>([&](auto i) {
      if (zero) tile_zero<i.value>();
      else tile_load<i.value>(sums(i.value), T * 64);
    });
    for (int64_t step = first; step < last; ++step) {
      ask_for_weights<Product, T>(p, piece, step, share);
      if (kMake && step + 1 < piece.last) make_step<Product, T>(p, piece, step + 1);
      tile_load<kWeights>(piece.at(step, 0), kTileBytes);
      if constexpr (T > 1) tile_load<kWeights + 1>(piece.at(step, 1), kTileBytes);
      const uint8_t* at = x + step * p.panels.step_bytes();
#pragma GCC unroll 3
      for (int term = 0; term < Product::kTerms; ++term, at += p.panels.rows * kTileBytes) {
        load_activations<Product, kMake, kActivations>(at);
        Product::template dot<0, 0>();
        if constexpr (T > 1) Product::template dot<0, 1>();
        if constexpr (R > 1) {
          load_activations<Product, kMake, kActivations + 1>(at + p.panels.bytes());
          Product::template dot<1, 0>();
          if constexpr (T > 1) Product::template dot<1, 1>();
        }
      }
    }
    each_sum<R, T>([&](auto i) { tile_store<i.value>(sums(i.value), T * 64); });
  }
};

}  // namespace lowbit::cpu::LOWBIT_ISA
