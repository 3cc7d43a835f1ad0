// Tiles of 16 rows x 64 bytes and their products (AMX): the vocabulary of tile_gemm-inl.h, after
// vec_avx512.h. With LOWBIT_SIMDE the tiles are arrays, so that the loops are proven on machines without AMX.
//
//   tiles 0..3  sums, [row panel][channel tile]: 16 rows x 16 channels of 32 bits
//   tiles 4, 5  activations of two row panels:   16 rows x 64 bytes of one step of k
//   tiles 6, 7  weights of two channel tiles:    16 rows x 16 channels x 4 bytes, row i the bytes 4 i .. 4 i
//   + 3 of the step
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "panel_gemm-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int kSums = 0, kActivations = 4, kWeights = 6;

// f(integral_constant) of every tile of sums of R panels x T channel tiles
template <int R, int T, class F>
static inline void each_sum(const F& f) {
  f(std::integral_constant<int, kSums>{});
  if constexpr (T > 1) f(std::integral_constant<int, kSums + 1>{});
  if constexpr (R > 1) f(std::integral_constant<int, kSums + 2>{});
  if constexpr (R > 1 && T > 1) f(std::integral_constant<int, kSums + 3>{});
}

#ifdef LOWBIT_SIMDE

struct Tile {
  int rows = 0;
  uint8_t row[kTileRows][kTileBytes];
};
inline Tile& tile_at(int i) {
  static thread_local Tile tiles[8];
  return tiles[i];
}

// The tiles of this thread, for as long as it lives: `rows` of activations and sums.
struct TileConfig {
  explicit TileConfig(int64_t rows) {
    for (int i = 0; i < 8; ++i) {
      tile_at(i).rows = i < kWeights ? int(rows) : int(kTileRows);
      std::memset(tile_at(i).row, 0xA5, sizeof(tile_at(i).row));
    }
  }
};
template <int kTile>
static inline void tile_zero() {
  std::memset(tile_at(kTile).row, 0, sizeof(tile_at(kTile).row));
}
template <int kTile>
static inline void tile_load(const void* from, int64_t stride) {
  for (int r = 0; r < tile_at(kTile).rows; ++r)
    std::memcpy(tile_at(kTile).row[r], static_cast<const char*>(from) + r * stride, kTileBytes);
}
// Of what is not soon wanted again.
template <int kTile>
static inline void tile_stream(const void* from, int64_t stride) {
  tile_load<kTile>(from, stride);
}
template <int kTile>
static inline void tile_store(void* to, int64_t stride) {
  for (int r = 0; r < tile_at(kTile).rows; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride, tile_at(kTile).row[r], kTileBytes);
}
template <int kRow, int kChannel>
static inline void dot_s8() {
  Tile& sums = tile_at(kSums + 2 * kRow + kChannel);
  const Tile &x = tile_at(kActivations + kRow), &w = tile_at(kWeights + kChannel);
  for (int m = 0; m < sums.rows; ++m)
    for (int n = 0; n < 16; ++n) {
      uint32_t sum;
      std::memcpy(&sum, sums.row[m] + 4 * n, 4);
      for (int k = 0; k < kTileBytes; ++k)
        sum += uint32_t(int8_t(x.row[m][k]) * int8_t(w.row[k / 4][4 * n + k % 4]));
      std::memcpy(sums.row[m] + 4 * n, &sum, 4);
    }
}

// Two chains of fused multiply-adds, of the even and the odd k, from zero; their sum is added. Subnormals
// count as zero, before and after every operation.
static inline float no_subnormal(float v) { return std::fabs(v) < 0x1p-126f ? std::copysign(0.f, v) : v; }
template <int kRow, int kChannel>
static inline void dot_bf16() {
  Tile& sums = tile_at(kSums + 2 * kRow + kChannel);
  const Tile &x = tile_at(kActivations + kRow), &w = tile_at(kWeights + kChannel);
  const auto value = [](const Tile& t, int row, int i) {
    uint16_t bits;
    std::memcpy(&bits, t.row[row] + 2 * i, 2);
    return no_subnormal(bf16_to_float(bits));
  };
  for (int m = 0; m < sums.rows; ++m)
    for (int n = 0; n < 16; ++n) {
      float chain[2] = {0, 0}, sum;
      for (int k = 0; k < kTileBytes / 2; ++k)
        chain[k % 2] = no_subnormal(std::fma(value(x, m, k), value(w, k / 2, 2 * n + k % 2), chain[k % 2]));
      std::memcpy(&sum, sums.row[m] + 4 * n, 4);
      sum = no_subnormal(no_subnormal(sum) + no_subnormal(chain[0] + chain[1]));
      std::memcpy(sums.row[m] + 4 * n, &sum, 4);
    }
}

#else

// NOTE GCC's intrinsics do not tell it that they read memory: a fence before each keeps the stores in front.
static inline void memory_is_read() { std::atomic_signal_fence(std::memory_order_seq_cst); }

// Configures the tiles of this thread for as long as it lives, `rows` of activations and sums; then they are
// as before.
class TileConfig {
 public:
  explicit TileConfig(int64_t rows) {
    memory_is_read();
    _tile_storeconfig(before_);
    alignas(64) uint8_t config[64] = {1};  // palette; bytes per row from byte 16 on, rows from byte 48 on
    for (int i = 0; i < 8; ++i) {
      config[16 + 2 * i] = kTileBytes;
      config[48 + i] = i < kWeights ? uint8_t(rows) : uint8_t(kTileRows);
    }
    memory_is_read();
    _tile_loadconfig(config);
  }
  TileConfig(const TileConfig&) = delete;
  TileConfig& operator=(const TileConfig&) = delete;
  ~TileConfig() {
    memory_is_read();
    if (before_[0]) _tile_loadconfig(before_);
    else _tile_release();
  }

 private:
  alignas(64) uint8_t before_[64] = {};
};

#define LOWBIT_EACH_TILE(name)       \
  if constexpr (kTile == 0) name(0); \
  if constexpr (kTile == 1) name(1); \
  if constexpr (kTile == 2) name(2); \
  if constexpr (kTile == 3) name(3); \
  if constexpr (kTile == 4) name(4); \
  if constexpr (kTile == 5) name(5); \
  if constexpr (kTile == 6) name(6); \
  if constexpr (kTile == 7) name(7)

template <int kTile>
static inline void tile_zero() {
  LOWBIT_EACH_TILE(_tile_zero);
}
template <int kTile>
static inline void tile_load(const void* from, int64_t stride) {
  memory_is_read();
#define LOWBIT_LOAD(i) _tile_loadd(i, from, stride)
  LOWBIT_EACH_TILE(LOWBIT_LOAD);
#undef LOWBIT_LOAD
}
template <int kTile>
static inline void tile_stream(const void* from, int64_t stride) {
  memory_is_read();
#define LOWBIT_STREAM(i) _tile_stream_loadd(i, from, stride)
  LOWBIT_EACH_TILE(LOWBIT_STREAM);
#undef LOWBIT_STREAM
}
template <int kTile>
static inline void tile_store(void* to, int64_t stride) {
#define LOWBIT_STORE(i) _tile_stored(i, to, stride)
  LOWBIT_EACH_TILE(LOWBIT_STORE);
#undef LOWBIT_STORE
}
#undef LOWBIT_EACH_TILE

template <int kRow, int kChannel>
static inline void dot_s8() {
  if constexpr (kRow == 0 && kChannel == 0) _tile_dpbssd(0, 4, 6);
  if constexpr (kRow == 0 && kChannel == 1) _tile_dpbssd(1, 4, 7);
  if constexpr (kRow == 1 && kChannel == 0) _tile_dpbssd(2, 5, 6);
  if constexpr (kRow == 1 && kChannel == 1) _tile_dpbssd(3, 5, 7);
}
template <int kRow, int kChannel>
static inline void dot_bf16() {
  if constexpr (kRow == 0 && kChannel == 0) _tile_dpbf16ps(0, 4, 6);
  if constexpr (kRow == 0 && kChannel == 1) _tile_dpbf16ps(1, 4, 7);
  if constexpr (kRow == 1 && kChannel == 0) _tile_dpbf16ps(2, 5, 6);
  if constexpr (kRow == 1 && kChannel == 1) _tile_dpbf16ps(3, 5, 7);
}

#endif

}  // namespace lowbit::cpu::LOWBIT_ISA
