// How heads are dealt to threads: the teams of the quantiser. Pure functions; tested without a GPU.
#pragma once

#include "../quantize/config.h"
#include "params.h"

namespace lowbit::kernels::kv_cache {

using quantize::Team;

// A thread holds one chunk of eight at a time: heads are short (64 to 256), and many.
constexpr int kThreads = 256;

struct Config {
  Team team;       // threads per head: a power of two up to 32
  int32_t chunks;  // per head
  bool wide;       // heads of x or y start on 16 bytes, those of packed on 4
  int64_t blocks;
};

inline Config choose(const Params& p, const void* x) {
  Config c{};
  c.chunks = int32_t(ceil_div(p.d, 8));
  int32_t size = 1;
  while (size < 32 && size < c.chunks) size *= 2;
  c.team = {1, size, kThreads / size, int32_t(ceil_div(c.chunks, size))};
  c.wide = reinterpret_cast<uintptr_t>(x) % 16 == 0 && reinterpret_cast<uintptr_t>(p.packed) % 4 == 0 &&
           p.d % 8 == 0;
  c.blocks = ceil_div(p.rows, c.team.rows);
  return c;
}

// Blocks of the append: a warp per head of a token.
inline int64_t append_blocks(const AppendParams& p) {
  return ceil_div(int64_t(p.tokens) * (p.heads + 2 * p.pages.kv_heads), int64_t(kThreads / 32));
}

constexpr int kMaxHead = 256;  // of the paged kernels: eight elements per lane

// What the kernels get.
struct Launch {
  Params p;
  Config c;
};

}  // namespace lowbit::kernels::kv_cache
