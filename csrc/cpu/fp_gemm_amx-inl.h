// Weight-only GEMM in AMX tiles of bf16, for many rows.
#pragma once

#include "fp_panels-inl.h"
#include "tile_gemm-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kFewestFpTileRows = 6;

template <int kTerms>
struct FpTiles : FpPanels<Tiles, kTerms, 16> {
  using FpPanels<Tiles, kTerms, 16>::FpPanels;

  template <int kRow, int kChannel>
  static inline void dot() {
    dot_bf16<kRow, kChannel>();
  }
};

static inline bool fits_fp_tiles(const FpGemmParams& p) { return p.m >= kFewestFpTileRows && p.k > 0; }

// f(FpTiles) of the terms that the activations need
template <class F>
static inline auto with_fp_tiles(const FpGemmParams& p, const F& f) {
  const int terms = terms_of(p.dtype);
  return terms == 1 ? f(FpTiles<1>(p)) : terms == 2 ? f(FpTiles<2>(p)) : f(FpTiles<3>(p));
}

static inline int64_t tile_fp_panel_words(const FpGemmParams& p) {
  if (!fits_fp_tiles(p)) return fp_panel_words(p);
  return with_fp_tiles(p, [](const auto& tiles) { return tiles.words(); });
}

static inline int64_t tile_fp_panel_count(const FpGemmParams& p) {
  if (!fits_fp_tiles(p)) return fp_panel_count(p);
  return with_fp_tiles(p, [](const auto& tiles) { return tiles.panels.count; });
}

static inline bool tile_fp_pack(const FpGemmParams& p, int64_t begin, int64_t end) {
  if (!fits_fp_tiles(p)) return fp_pack(p, begin, end);
  with_fp_tiles(p, [&](const auto& tiles) {
    for (int64_t i = begin; i < end; ++i) tiles.pack(i);
  });
  return true;
}

static inline void tile_fp_tiles(const FpGemmParams& p, int64_t begin, int64_t end) {
  if (!fits_fp_tiles(p)) return fp_tiles(p, begin, end);
  with_fp_tiles(p, [&](const auto& tiles) { run_panel_gemm(tiles, begin, end); });
}

}  // namespace lowbit::cpu::LOWBIT_ISA
