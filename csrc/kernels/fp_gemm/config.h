// Which kernel, which tile, how many splits of K, and from how many tokens on torch's own GEMM takes over:
// pure functions of the shape and the card, printable, tested without a GPU.
#pragma once

#include <cstdint>
#include <string>

#include "../../numeric/ceil_div.h"
#include "../common/device.h"
#include "../common/splits.h"
#include "params.h"

namespace lowbit::kernels::fp_gemm {

constexpr int kStageK = fp_fragment::kK;  // k per pipeline stage: one block of the weight

enum class Kernel : int32_t { kMma, kWgmma };

// A compiled tile. `rows` are output channels, `tokens` rows of x; `ring`: bytes of shared memory for stages.
struct Tile {
  Kernel kernel;
  int rows, tokens, threads, ring, blocks_per_sm;
};

// Small: four stages of FP6, 72 KiB of weights in flight on an A100 (two blocks), 108 on a Hopper (three).
// Middle: three stages; with 64 tokens the tensor cores take about as long as the memory.
// Wgmma: four stages (three of FP6 with groups); a producer and three warpgroups of 64 channels.
constexpr Tile kSmall{Kernel::kMma, 128, 16, 128, 70 * 1024, 3};
constexpr Tile kMiddle{Kernel::kMma, 128, 64, 128, 88 * 1024, 2};
constexpr Tile kWgmma{Kernel::kWgmma, 192, 128, 512, 200 * 1024, 1};

constexpr int kPad = 4;            // words between staged rows: 4 mod 16 keeps the D fragment off itself
constexpr int kStagedTokens = 32;  // of a warpgroup of the wgmma kernel

constexpr int x_stage_bytes(int tokens) { return tokens * kStageK * 2; }
constexpr int weight_stage_bytes(int rows, Weight w) {
  return rows / fp_fragment::kN * fp_fragment::block_bytes(w);
}
// At most four groups of 32 in fp16.
constexpr int scale_stage_bytes(int rows, bool grouped) { return grouped ? rows * 4 * 2 : 0; }
constexpr int stage_bytes(const Tile& t, Weight w, bool grouped) {
  const int bytes =
      x_stage_bytes(t.tokens) + weight_stage_bytes(t.rows, w) + scale_stage_bytes(t.rows, grouped);
  return (bytes + 1023) / 1024 * 1024;
}
constexpr int stages_of(const Tile& t, Weight w, bool grouped) { return t.ring / stage_bytes(t, w, grouped); }
// Dynamic shared memory of a block, with the slack that aligns it to 1024.
constexpr int shared_bytes(const Tile& t, Weight w, bool grouped) {
  const int stages = stages_of(t, w, grouped), ring = stages * stage_bytes(t, w, grouped);
  if (t.kernel == Kernel::kWgmma)
    return 1024 + ring + t.rows / 64 * (kStagedTokens * (64 + kPad) * 4) + 16 * stages;
  const int staged = t.tokens * (t.rows + kPad) * 4;
  return 1024 + (ring > staged ? ring : staged);
}

struct Choice {
  Tile tile;
  int row_tiles, token_tiles, stages, splits, stages_per_split, blocks;
  int shared;
  int64_t partial_words, tickets;  // workspace, zero when splits = 1
};

// Eight tokens fill an n of mma.sync: up to 16 the weight stream decides, and a tile of 64 would multiply
// zeros. Past 64 a Hopper takes wgmma; without k there is nothing for TMA to point at.
constexpr Tile tile_for(int m, int k, int sm) {
  if (sm == 90 && m > kMiddle.tokens && k > 0) return kWgmma;
  return m <= kSmall.tokens ? kSmall : kMiddle;
}

// What the sums still lack. Scales of groups are multiplied into whole weights where wgmma takes them.
constexpr float factor_of(const Tile& tile, Weight w, Half half, bool grouped) {
  return tile.kernel == Kernel::kWgmma && grouped ? 1.f : factor_of(w, half);
}

// What a card runs. `splits`: as many as that at most, none of them empty; 0 = by splits_for. A different
// number of splits rounds differently, the same number always gives the same bits.
constexpr Choice choose(int m, int n, int k, Weight weight, bool grouped, const Device& device,
                        int splits = 0) {
  Choice c{};
  c.tile = tile_for(m, k, device.sm);
  c.row_tiles = ceil_div(n, c.tile.rows), c.token_tiles = ceil_div(m, c.tile.tokens);
  c.stages = ceil_div(k, kStageK);
  c.shared = shared_bytes(c.tile, weight, grouped);
  const int64_t tiles = int64_t(c.row_tiles) * c.token_tiles;
  if (!splits) {
    const int blocks = resident(c.shared, c.tile.blocks_per_sm, device);
    splits = splits_for(tiles, c.stages, int64_t(device.multiprocessors) * blocks);
  }
  c.stages_per_split = ceil_div(c.stages, splits);
  c.splits = c.stages_per_split ? ceil_div(c.stages, c.stages_per_split) : 1;
  const int64_t items = tiles * c.splits;
  const bool wgmma = c.tile.kernel == Kernel::kWgmma;  // persistent
  c.blocks = int(wgmma && items > device.multiprocessors ? device.multiprocessors : items);
  if (c.splits > 1) {
    c.partial_words = items * c.tile.rows * c.tile.tokens;
    c.tickets = tiles * (wgmma ? c.tile.rows / 64 : 1);
  }
  return c;
}

// From how many tokens on it is faster to write the weight out once in the type of x and let torch multiply.
// PREDICTED, to be replaced by measurement; the arithmetic is in the README.
constexpr int crossover(const Device& device) { return device.sm == 90 ? 1024 : 512; }
constexpr bool by_torch(int64_t m, int64_t k, const Device& device) {
  return m >= crossover(device) && k % 8 == 0 && k > 0;
}

inline std::string explain(const Choice& c, Weight w, bool grouped, const Device& device) {
  const auto s = [](int64_t v) { return std::to_string(v); };
  return std::string(c.tile.kernel == Kernel::kWgmma ? "wgmma" : "mma.sync") + ", tile " + s(c.tile.rows) +
         " channels x " + s(c.tile.tokens) + " tokens, " + s(c.row_tiles) + " x " + s(c.token_tiles) +
         " tiles, " + s(c.splits) + " split" + (c.splits > 1 ? "s" : "") + " of " + s(c.stages_per_split) +
         " stages, " + s(stages_of(c.tile, w, grouped)) + " stages in the ring, " + s(c.blocks) +
         " blocks of " + s(c.tile.threads) + " threads on " + s(device.multiprocessors) +
         " multiprocessors, " + s(c.shared) + " bytes of shared memory";
}

}  // namespace lowbit::kernels::fp_gemm
