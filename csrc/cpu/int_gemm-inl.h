// Exact-integer GEMM, y[m, n] = epilogue(sum_k x[m, k] w[n, k]). Included once per instruction set after its
// vec header.
//
// Activations are packed into panels of R rows, K cut into blocks (a scale group, or as far as the block
// accumulator cannot overflow). A panel holds, block by block, the zero-point corrections of its rows and
// then one word (4 codes) per row and k4, so that the main loop reads it front to back:
//
//   panel = { corr[R], { word[R][kWordsPerK4] } x k4 of the block } x blocks
#pragma once

#include "../layout/weight_tile.h"
#include "dispatch.h"
#include "epilogue-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

// Loop order of a large problem: 96 rows (24 KiB of sums) x 4 tiles, then 512 k at a time (16 KiB of
// weights), so that the weights stay in L1 while the panels pass, and each piece of a panel serves 4 tiles.
constexpr int64_t kRowsInCache = 96, kTilesInCache = 4, kChunkK8 = 64;
alignas(16) constexpr uint8_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

struct Blocking {
  int64_t k8, block_k8, blocks;  // k in steps of 8
};

template <class Dot>
static inline Blocking blocking(const GemmParams& p) {
  const int64_t k8 = (p.k + 7) / 8, most = Dot::max_block(p.fp4 ? p.fp4->max : 8, p.max_code) / 8;
  // NOTE a group larger than the largest block is cut into several: each flush multiplies by its group's
  // scale
  int64_t block = p.group_scale ? p.group / 8 : k8;
  block = block < most ? block : most;
  if (block < 1) block = 1;
  return {k8, block, (k8 + block - 1) / block};
}

template <class Dot>
static inline int64_t panel_words(const GemmParams& p, int64_t rows) {
  const Blocking b = blocking<Dot>(p);
  return rows * (b.blocks + 2 * b.k8 * Dot::kWordsPerK4);
}

template <class Dot>
static inline void pack_panel(const GemmParams& p, int64_t row, int64_t rows, int32_t* out) {
  const Blocking b = blocking<Dot>(p);
  const int32_t zero = p.fp4 ? p.fp4->max : Dot::kZeroPoint;
  for (int64_t r = 0; r < rows; ++r) {
    const int8_t* x = p.x + (row + r) * p.x_stride;
    int32_t* block = out;
    for (int64_t first = 0; first < b.k8; first += b.block_k8) {
      const int64_t last = first + b.block_k8 < b.k8 ? first + b.block_k8 : b.k8;
      int32_t s01 = 0, s23 = 0;  // the sums of the k that share an accumulator lane
      int32_t* word = block + rows + r * Dot::kWordsPerK4;
      for (int64_t k4 = 2 * first; k4 < 2 * last; ++k4, word += rows * Dot::kWordsPerK4) {
        const int8_t* a = x + 4 * k4;
        if (Dot::kZeroPoint) s01 += a[0] + a[1], s23 += a[2] + a[3];
        Dot::pack_word(a, word);
      }
      block[r] = Dot::correction(zero, s01, s23);
      block += rows * (1 + 2 * (last - first) * Dot::kWordsPerK4);
    }
  }
}

// acc[R][T] += 4 k of the panel's rows x T weight tiles
template <class Dot, int kHalf, int R, int T>
static inline void half_step(typename Dot::Block (&acc)[R][T], const typename Dot::Table& table,
                             const uint8_t* weight, int64_t tile_stride, const int32_t* words) {
  typename Dot::W w[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) w[t] = Dot::template unpack<kHalf>(table, weight + t * tile_stride);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) Dot::dot(acc[r][t], w[t], words + r * Dot::kWordsPerK4);
}

// Weights come from memory once, as fast as it gives them; and where a tile is no longer than a page or two,
// the hardware's prefetcher is always at its start. So the same k of the T tiles behind these is asked for: a
// line or two per 8 k, whatever the rows.
template <int T>
static inline void prefetch_tiles(const uint8_t* weight, int64_t tile_stride, int64_t tile_bytes) {
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
    for (int64_t at = 0; at < tile_bytes; at += 64)
      __builtin_prefetch(weight + (T + t) * tile_stride + at, 0, 2);  // into L2: k may be long
}

// What one call of multiply_panel works on.
struct Work {
  Blocking b;
  const uint8_t* weight;  // first tile, at k = 0
  int64_t tile_bytes;
  const Fp4Table* fp4;   // as in GemmParams
  const uint8_t* scale;  // [tiles][groups][16] of the same tiles, or null
  int64_t group_k8, scale_stride;
};

// total[r][16 t + i] += sum over k8 in [begin, end) of panel row r x channel i of tile t. `panel` is at
// `begin`.
template <class Dot, int R, int T>
static void multiply_panel(const Work& w, int64_t begin, int64_t end, const int32_t* panel, int32_t* total) {
  constexpr int kStep = R * Dot::kWordsPerK4;  // words per k4
  const typename Dot::Table table(w.fp4);
  const uint8_t* s1 = w.scale ? w.scale + begin / w.group_k8 * tile::kN : kOnes;
  int64_t left = w.group_k8 - begin % w.group_k8;  // of the current scale group
  for (int64_t first = begin; first < end; first += w.b.block_k8) {
    const int64_t last = first + w.b.block_k8 < end ? first + w.b.block_k8 : end;
    typename Dot::Block acc[R][T];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) Dot::init(acc[r][t], panel + r);
    panel += R;

    const uint8_t* weight = w.weight + first * w.tile_bytes;
    for (int64_t k8 = first; k8 < last; ++k8, weight += w.tile_bytes, panel += 2 * kStep) {
      prefetch_tiles<T>(weight, w.b.k8 * w.tile_bytes, w.tile_bytes);
      half_step<Dot, 0>(acc, table, weight, w.b.k8 * w.tile_bytes, panel);
      half_step<Dot, 1>(acc, table, weight, w.b.k8 * w.tile_bytes, panel + kStep);
    }

#pragma GCC unroll 4
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        Dot::flush(total + (r * kTilesInCache + t) * tile::kN, acc[r][t], s1 + t * w.scale_stride);
    if ((left -= w.b.block_k8) == 0) left = w.group_k8, s1 += w.scale ? tile::kN : 0;
  }
}

static inline Epilogue epilogue_of(const GemmParams& p) {
  return {p.n,        p.w_scale,     p.w_factor, p.x_scale, p.bias,   p.rank,
          p.low_rank, p.low_rank_up, p.residual, p.y,       p.y_dtype};
}

// Calls multiply_panel with the row count as a constant: full panels have Dot::kRows, the last one what is
// left.
template <class Dot, int T, int R = Dot::kRows>
static inline void dispatch_rows(int64_t rows, const Work& w, int64_t begin, int64_t end,
                                 const int32_t* panel, int32_t* total) {
  if constexpr (R > 0) {
    if (rows == R) return multiply_panel<Dot, R, T>(w, begin, end, panel, total);
    dispatch_rows<Dot, T, R - 1>(rows, w, begin, end, panel, total);
  }
}

template <class Dot>
static void run_tiles(const GemmParams& p, int64_t tile_begin, int64_t tile_end) {
  constexpr int64_t kRowBlock = kRowsInCache / Dot::kRows * Dot::kRows;
  const Blocking b = blocking<Dot>(p);
  const int64_t panel_stride = panel_words<Dot>(p, Dot::kRows);
  const int64_t tile_bytes = p.weight_int8 ? tile::kInt8Bytes : tile::kInt4Bytes;
  const int64_t groups = p.group_scale ? (p.k + p.group - 1) / p.group : 1;
  // a single panel reads each weight once: no reason to cut k
  const int64_t chunk = p.m <= Dot::kRows ? b.k8 : (kChunkK8 + b.block_k8 - 1) / b.block_k8 * b.block_k8;
  alignas(64) int32_t total[kRowBlock * kTilesInCache * tile::kN];

  for (int64_t row = 0; row < p.m; row += kRowBlock) {
    const int64_t rows = p.m - row < kRowBlock ? p.m - row : kRowBlock;
    for (int64_t tile = tile_begin; tile < tile_end; tile += kTilesInCache) {
      const int64_t tiles = tile_end - tile < kTilesInCache ? tile_end - tile : kTilesInCache;
      __builtin_memset(total, 0, size_t(rows * kTilesInCache * tile::kN) * 4);
      for (int64_t k8 = 0; k8 < b.k8; k8 += chunk) {
        const int64_t end = k8 + chunk < b.k8 ? k8 + chunk : b.k8;
        for (int64_t r = 0; r < rows; r += Dot::kRows) {
          const int64_t count = rows - r < Dot::kRows ? rows - r : Dot::kRows;
          const int32_t* panel = p.panels + (row + r) / Dot::kRows * panel_stride +
                                 count * (k8 / b.block_k8 + 2 * k8 * Dot::kWordsPerK4);
          for (int64_t t = 0; t < tiles;) {
            const Work w{b,
                         p.weight + (tile + t) * b.k8 * tile_bytes,
                         tile_bytes,
                         p.fp4,
                         p.group_scale ? p.group_scale + (tile + t) * groups * tile::kN : nullptr,
                         p.group_scale ? p.group / 8 : b.k8,
                         p.group_scale ? groups * tile::kN : 0};
            int32_t* sum = total + (r * kTilesInCache + t) * tile::kN;
            const bool wide = t + Dot::kTiles <= tiles;
            if (wide) dispatch_rows<Dot, Dot::kTiles>(count, w, k8, end, panel, sum);
            else dispatch_rows<Dot, 1>(count, w, k8, end, panel, sum);
            t += wide ? Dot::kTiles : 1;
          }
        }
      }
      finish(epilogue_of(p), 1.f, total, kTilesInCache * tile::kN, row, rows, tile, tiles);
    }
  }
}

// Calls f with the dot product that the codes need.
template <class F>
static inline auto with_dot(const GemmParams& p, const F& f) {
  if (p.weight_int8) return f(Int8Dot{});
  if (!p.fp4) return f(Int4Dot{});
  // blocks shorter than four tiles would spend their time on setting up and adding up
  return Fp4Dot::max_block(p.fp4->max, p.max_code) >= 32 ? f(Fp4Dot{}) : f(WideFp4Dot{});
}

template <class Dot>
static inline int64_t panel_count(const GemmParams& p) {
  return (p.m + Dot::kRows - 1) / Dot::kRows;
}

static inline int64_t gemm_panel_count(const GemmParams& p) {
  return with_dot(p, [&](auto dot) { return panel_count<decltype(dot)>(p); });
}

static inline int64_t gemm_panel_words(const GemmParams& p) {
  return with_dot(p, [&](auto dot) {
    using Dot = decltype(dot);
    return panel_words<Dot>(p, Dot::kRows) * panel_count<Dot>(p);
  });
}

static inline void gemm_pack(const GemmParams& p, int64_t begin, int64_t end) {
  with_dot(p, [&](auto dot) {
    using Dot = decltype(dot);
    const int64_t full = panel_words<Dot>(p, Dot::kRows);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i * Dot::kRows, left = p.m - row;
      pack_panel<Dot>(p, row, left < Dot::kRows ? left : Dot::kRows, p.panels + i * full);
    }
  });
}

static inline void gemm_tiles(const GemmParams& p, int64_t begin, int64_t end) {
  with_dot(p, [&](auto dot) { run_tiles<decltype(dot)>(p, begin, end); });
}

}  // namespace lowbit::cpu::LOWBIT_ISA
