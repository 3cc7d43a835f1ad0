// Which kernel, which tile, how many splits of K: pure functions of the shape and the card, printable, tested
// without a GPU.
#pragma once

#include <cstdint>
#include <string>

#include "../../numeric/ceil_div.h"
#include "../common/device.h"
#include "../common/splits.h"
#include "params.h"

namespace lowbit::kernels::int_gemm {

constexpr int kStageK = 128;  // k per pipeline stage, in every kernel

enum class Kernel : int32_t { kMma, kWgmma };

// A compiled tile. `rows` are output channels, `tokens` rows of x.
struct Tile {
  Kernel kernel;
  int rows, tokens, threads, stages, blocks_per_sm;
};

constexpr Tile kMmaSmall{Kernel::kMma, 64, 16, 128, 6, 4};
constexpr Tile kMmaMiddle{Kernel::kMma, 128, 64, 128, 4, 2};
constexpr Tile kMmaLarge{Kernel::kMma, 128, 128, 256, 3, 1};
constexpr Tile kWgmmaSmall{Kernel::kWgmma, 128, 64, 384, 10, 1};
constexpr Tile kWgmmaMiddle{Kernel::kWgmma, 128, 128, 384, 6, 1};
constexpr Tile kWgmmaLarge{Kernel::kWgmma, 128, 256, 384, 4, 1};

// Of an mma tile's warps, how many share its channels; the others share its tokens. A warp decodes every
// weight that it multiplies, so where decoding is dear (fp4) fewer of them should meet the same weight.
constexpr int warps_across(const Tile& t, Weight w) { return t.tokens < 128 || w == Weight::kFp4 ? 4 : 2; }

constexpr int kPad = 4;            // words between staged rows: 4 mod 16 keeps the D fragment off itself
constexpr int kStagedTokens = 64;  // of a warpgroup of the wgmma kernel

constexpr int weight_stage_bytes(int rows, Weight w) { return rows * kStageK / (w == Weight::kInt8 ? 1 : 2); }
constexpr int x_stage_bytes(int tokens, Codes c) { return tokens * kStageK / (c == Codes::kInt8 ? 1 : 2); }
constexpr int scale_stage_bytes(int rows, Weight w) { return w == Weight::kInt4Group ? rows * 4 : 0; }
constexpr int stage_bytes(const Tile& t, Weight w, Codes c) {
  const int bytes = x_stage_bytes(t.tokens, c) + weight_stage_bytes(t.rows, w) + scale_stage_bytes(t.rows, w);
  return (bytes + 1023) / 1024 * 1024;
}
// The grouped and the int8 weights of the wgmma kernel take more shared memory: one stage less where it must
// be.
constexpr int stages_of(const Tile& t, Weight w, Codes c) {
  const int room =
      t.kernel == Kernel::kWgmma ? 232448 - 1024 - 2 * kStagedTokens * (64 + kPad) * 4 - 256 : 166912;
  const int fit = room / stage_bytes(t, w, c);
  return t.stages < fit ? t.stages : fit;
}
// Dynamic shared memory of a block, with the slack that aligns it to 1024.
constexpr int shared_bytes(const Tile& t, Weight w, Codes c) {
  const int ring = stages_of(t, w, c) * stage_bytes(t, w, c);
  if (t.kernel == Kernel::kWgmma)
    return 1024 + ring + 2 * kStagedTokens * (64 + kPad) * 4 + 16 * stages_of(t, w, c);
  const int staged = t.tokens * (t.rows + kPad) * 4;
  return 1024 + (ring > staged ? ring : staged);
}

struct Choice {
  Tile tile;
  int row_tiles, token_tiles, stages, splits, stages_per_split, blocks;
  int shared;
  int64_t partial_words, tickets;  // workspace, zero when splits = 1
};

// The s4 tensor cores take plain int4 weights and activations, on cards before Hopper (from there on ptxas
// would emulate them); everything else is int8, FP4 codes too.
constexpr Codes codes_for(Weight weight, int activation_bits, int sm) {
  return activation_bits == 4 && weight == Weight::kInt4 && sm < 90 ? Codes::kOperand4 : Codes::kInt8;
}

// The tile that a card runs for the shape. Without k there is nothing for TMA to point at.
constexpr Tile tile_for(int m, int k, Codes codes, int sm) {
  const bool hopper = sm == 90 && codes == Codes::kInt8;
  if (m <= 16 || (hopper && k == 0)) return kMmaSmall;
  if (hopper) return m <= 64 ? kWgmmaSmall : m <= 128 ? kWgmmaMiddle : kWgmmaLarge;
  return m <= 64 ? kMmaMiddle : kMmaLarge;
}

// What a card runs. `splits`: as many as that at most, none of them empty; 0 = by splits_for. The sums are
// integers, so any number of splits gives the same bits.
constexpr Choice choose(int m, int n, int k, Weight weight, Codes codes, const Device& device,
                        int splits = 0) {
  Choice c{};
  c.tile = tile_for(m, k, codes, device.sm);
  c.row_tiles = ceil_div(n, c.tile.rows), c.token_tiles = ceil_div(m, c.tile.tokens);
  c.stages = ceil_div(k, kStageK);
  const int64_t tiles = int64_t(c.row_tiles) * c.token_tiles;
  c.shared = shared_bytes(c.tile, weight, codes);
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
    c.tickets = tiles * (wgmma ? 2 : 1);
  }
  return c;
}

inline std::string explain(const Choice& c, Codes codes, const Device& device) {
  const auto s = [](int64_t v) { return std::to_string(v); };
  return std::string(c.tile.kernel == Kernel::kWgmma ? "wgmma" : "mma.sync") +
         (codes == Codes::kOperand4 ? " s4" : " s8") + ", tile " + s(c.tile.rows) + " channels x " +
         s(c.tile.tokens) + " tokens, " + s(c.row_tiles) + " x " + s(c.token_tiles) + " tiles, " +
         s(c.splits) + " split" + (c.splits > 1 ? "s" : "") + " of " + s(c.stages_per_split) + " stages, " +
         s(c.blocks) + " blocks of " + s(c.tile.threads) + " threads on " + s(device.multiprocessors) +
         " multiprocessors, " + s(c.shared) + " bytes of shared memory";
}

}  // namespace lowbit::kernels::int_gemm
