// How many pieces the K of a GEMM is cut into.
#pragma once

#include <cstdint>

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

}  // namespace lowbit::kernels
