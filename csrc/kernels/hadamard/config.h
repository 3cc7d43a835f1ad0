// How rows are cut into tiles that fit on chip. Pure functions; tested without a GPU.
#pragma once

#include <algorithm>
#include <string>

#include "../../layout/hadamard_tile.h"
#include "../../numeric/williamson.h"
#include "../quantize/config.h"
#include "params.h"

namespace lowbit::kernels::hadamard {

constexpr int kMaxThreads = 512;
constexpr int kFirstStages = 3;        // strides inside a chunk
constexpr int kWarpStages = 8;         // and inside the 256 elements that a warp exchanges by itself
constexpr int kScratchBytes = 64;      // one word per warp
constexpr int64_t kShortTile = 4096;   // elements of a tile of several short blocks or rows
constexpr int64_t kShortRow = 1024;    // elements of a row that one warp quantises
constexpr int kWilliamsonPlaces = 11;  // of the 43 of a column, a thread's

enum class Mix : int32_t {
  kNone,        // powers of two
  kSmall,       // K 12, 20, 28, unrolled
  kLarge,       // K 36, 44, 52, 60, unrolled; twice the registers
  kTable,       // any K, signs read from memory
  kWilliamson,  // K 172; in the kernels of kTable
};

LOWBIT_HOST_DEVICE constexpr bool goes_to_other_buffer(Mix mix) {
  return mix == Mix::kTable || mix == Mix::kWilliamson;
}

// Who runs the last stage, and so writes y or sees the row's largest magnitude.
enum class Last : int32_t { kChunk, kWarp, kLater, kMix };

struct Config {
  int64_t tile;       // elements: whole blocks, whole rows when quantised
  int32_t tile_rows;  // when quantised
  int64_t tiles;
  int32_t words;  // of a buffer: tile rounded up to 1024
  int32_t threads;
  Mix mix;
  bool shared;  // buffers in shared memory, else in the workspace
  bool wide;    // tiles of x and y start and end on 16 bytes
  Last last;
  quantize::Team team;  // of the quantiser; the whole block when a tile is one row
  int32_t chunks;
  bool wide_codes, wide_adjust;
  bool long_row;   // quantised, one row per tile, by the whole block
  int32_t stages;  // m
  int32_t shared_bytes;
  int64_t workspace;  // floats
  int64_t blocks;
};

inline constexpr bool is_unrolled(int64_t order) {
  return order == 12 || order == 20 || order == 28 || order == 36 || order == 44 || order == 52 ||
         order == 60;
}

// Unrolled mixing gives a lane a column of the block: a warp needs 64 neighbouring columns to be free of bank
// conflicts and of index arithmetic.
inline constexpr Mix mix_of(int64_t order, int64_t two, bool transposed, bool wide) {
  if (order == 1) return Mix::kNone;
  if (order == 4 * kWilliamsonN && !transposed) return Mix::kWilliamson;
  if (!is_unrolled(order) || two < 64 || transposed || !wide) return Mix::kTable;
  return order <= 28 ? Mix::kSmall : Mix::kLarge;
}

inline constexpr int64_t gcd(int64_t a, int64_t b) { return b ? gcd(b, a % b) : a; }

// Elements per tile of units of `unit` elements: one long unit, or several short ones, in chunks of eight
// where that is possible, and not so many that a card of `multiprocessors` would be idle.
inline constexpr int64_t tile_of(int64_t unit, int64_t units, int64_t most, int multiprocessors) {
  const int64_t step = 8 / gcd(unit, 8);  // units that end on a chunk
  int64_t count = unit >= kShortTile ? 1 : std::min(kShortTile / unit, most);
  const int64_t share = ceil_div(units, 2 * multiprocessors);
  if (count > share) count = share;
  count = ceil_div(count, step) * step;
  return (count < 1 ? 1 : count) * unit;
}

inline Config choose(const Params& p, const Device& device) {
  Config c{};
  const int64_t block = p.order * p.two, bytes = size_of(p.dtype);
  for (c.stages = 0; (int64_t(1) << c.stages) < p.two; ++c.stages) {}
  c.last = p.order > 1                ? Last::kMix
           : c.stages <= kFirstStages ? Last::kChunk
           : c.stages <= kWarpStages  ? Last::kWarp
                                      : Last::kLater;
  const int64_t unit = p.quantised ? p.n : block, units = p.rows * p.n / unit;
  if (p.quantised)
    c.chunks = int32_t(quantize::chunks_of(p.to, p.n_out)), c.wide_codes = quantize::wide_codes(p.to);
  const auto columns_of = reinterpret_cast<uintptr_t>(p.adjust.index) |
                          reinterpret_cast<uintptr_t>(p.adjust.factor) |
                          reinterpret_cast<uintptr_t>(p.adjust.shift);
  c.wide_adjust = columns_of % 16 == 0 && p.n_out % 4 == 0;
  c.long_row = p.quantised && int64_t(c.chunks) * 8 > kShortRow;
  // Lanes that quantise a short row. Eight chunks side by side fill the banks.
  int32_t size = c.chunks < 8 ? 4 : 8;
  while (size < 32 && size * 4 < c.chunks) size *= 2;
  const int64_t most = p.quantised ? kMaxThreads / size : kShortTile;
  c.tile = c.long_row ? p.n : tile_of(unit, units, most, device.multiprocessors);
  c.tiles = ceil_div(units * unit, c.tile), c.tile_rows = p.quantised ? int32_t(c.tile / p.n) : 0;
  const auto start = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.y) |
                     reinterpret_cast<uintptr_t>(p.shift);
  c.wide = start % 16 == 0 && c.tile * bytes % 16 == 0 && units * unit * bytes % 16 == 0 &&
           (!(p.shift || p.gated) || p.n % 8 == 0);
  c.words = int32_t(ceil_div(c.tile, hadamard_tile::kWords) * hadamard_tile::kWords);
  c.mix = mix_of(p.order, p.two, p.transposed, c.wide);
  auto bytes_of = [&] {
    return int64_t(c.words) * 4 * (goes_to_other_buffer(c.mix) ? 2 : 1) + kScratchBytes;
  };
  c.shared = bytes_of() <= device.shared_bytes;
  if (!c.shared && c.mix != Mix::kNone && c.mix != Mix::kWilliamson) c.mix = Mix::kTable;
  // A warp per 1024 elements; for an unrolled mix also a thread per two columns, or per column where that is
  // not many more; for a table mix one per four columns and eight outputs.
  int64_t threads = c.words / 32;
  const int64_t columns = c.tile / p.order;
  if (c.mix == Mix::kSmall || c.mix == Mix::kLarge) {
    threads = std::max(threads, ceil_div(columns, 2));
    if (3 * columns <= 4 * threads) threads = std::max(threads, columns);
  }
  if (c.mix == Mix::kTable) threads = std::max(threads, ceil_div(columns, 4) * ceil_div(p.order, 8));
  if (c.mix == Mix::kWilliamson)
    threads = std::max(threads, columns * ceil_div(kWilliamsonN, kWilliamsonPlaces));
  if (p.quantised && !c.long_row) threads = std::max(threads, c.tile / p.n * size);
  c.threads = int32_t(std::min<int64_t>(ceil_div(threads, 32) * 32, kMaxThreads));
  if (p.quantised) c.team = {4, c.long_row ? c.threads : size, c.long_row ? 1 : c.threads / size, 1};
  c.shared_bytes = c.shared ? int32_t(bytes_of()) : kScratchBytes;
  c.blocks = c.shared ? c.tiles : std::min<int64_t>(c.tiles, 2 * device.multiprocessors);
  c.workspace = c.shared ? 0 : c.blocks * c.words * (goes_to_other_buffer(c.mix) ? 2 : 1);
  return c;
}

inline Error check(const Params& p) {
  if (p.order < 1 || p.two < 1 || (p.two & (p.two - 1)) || p.n % (p.order * p.two))
    return "hadamard: the block is not K times a power of two that divides the row";
  if (p.order > 1 && p.order % 4) return "hadamard: K is not a multiple of four";
  if (p.n > quantize::kMaxRow) return "hadamard: a row has more than 2^30 elements";
  if (p.gated && p.n > quantize::kMaxRow / 2) return "hadamard: a gated row has more than 2^29 elements";
  if ((p.shift || p.gated) && !p.quantised) return "hadamard: a shift or a gate needs quantised output";
  if (!p.quantised) return nullptr;
  if (!p.adjust.index && p.n_out != p.n) return "hadamard: without an index there is a code per element";
  if (!p.to.scale && p.to.clip != 0) return "hadamard: static codes have clip 0";
  return quantize::check_output(p.to, p.n_out);
}

inline std::string explain(const Config& c) {
  const char* mix[] = {"power of two", "unrolled K <= 28", "unrolled K <= 60", "K from a table",
                       "K of Williamson"};
  return std::to_string(c.tiles) + " tiles of " + std::to_string(c.tile) + " elements, " +
         std::to_string(c.threads) + " threads, " + mix[int(c.mix)] + ", " +
         (c.shared ? std::to_string(c.shared_bytes) + " bytes of shared memory"
                   : "workspace of " + std::to_string(c.workspace) + " floats");
}

// What the kernels get.
struct Launch {
  Params p;
  Config c;
};

}  // namespace lowbit::kernels::hadamard
