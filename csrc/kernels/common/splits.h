// How the work of a GEMM is cut: the pieces of K, and the order of tiles and pieces.
#pragma once

#include <cstdint>

#include "../../numeric/host_device.h"

namespace lowbit::kernels {

// As many as give every multiprocessor its blocks (`slots` of them for `tiles` tiles), each piece at least
// kLeast pipeline stages deep: below that the partial sums cost more than the idle multiprocessors.
constexpr int splits_for(int64_t tiles, int stages, int64_t slots) {
  constexpr int kLeast = 4, kMost = 16;
  int64_t splits = tiles ? slots / tiles : 1;
  if (splits > stages / kLeast) splits = stages / kLeast;
  if (splits > kMost) splits = kMost;
  return splits < 1 ? 1 : int(splits);
}

// Item number -> tile and split. Splits are outermost; within a split, bands of eight token tiles sweep the
// channels, so that blocks that run together share weights and activations in L2.
struct Item {
  int row_tile, token_tile, split;
};
LOWBIT_HOST_DEVICE constexpr Item item_at(int item, int row_tiles, int token_tiles) {
  const int tiles = row_tiles * token_tiles, split = item / tiles, t = item % tiles;
  const int band = t / (8 * row_tiles), first = 8 * band;
  const int height = token_tiles - first < 8 ? token_tiles - first : 8, in_band = t - first * row_tiles;
  return {in_band / height, first + in_band % height, split};
}

}  // namespace lowbit::kernels
