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

// Attention. A split is a part of a sequence that has a result of its own; splits of a sequence are merged in
// ascending order, so how many of them a block does never shows.
constexpr int kSplit = 256;     // tokens
constexpr int kGroup = 8;       // query heads that share a block: n of mma.sync
constexpr int kMaxPrefix = 16;  // exact tokens: a lane each

// Shared memory of a block for heads of d. Staged rows of codes are whole ldmatrix rows: 32 elements.
struct AttentionLayout {
  int row;    // bytes of a staged row of codes
  int q_row;  // bytes of a query head: fp16, padded so that eight rows lie in different banks
  int keys, values, params, scores, q, stats, prefix, total;  // where they start
};
constexpr int kScorePitch = kSplit + 4;        // floats: two heads apart is eight banks
constexpr int kWeightPitch = 2 * kSplit + 16;  // bytes: eight rows in different banks
constexpr int kPrefixPitch = kMaxPrefix + 4;   // floats: as scores

constexpr AttentionLayout attention_layout(int d) {
  AttentionLayout l{};
  l.row = ceil_div(d, 32) * 16, l.q_row = 4 * l.row + 16;
  const int codes = kSplit * l.row, weights = 2 * kGroup * kWeightPitch;
  l.values = codes > weights ? codes : weights;  // the weights take the place of the keys
  l.params = l.values + codes;
  l.scores = l.params + 2 * kSplit * 4;
  l.q = l.scores + kGroup * kScorePitch * 4;
  l.stats = l.q + 2 * kGroup * l.q_row;
  l.prefix = l.stats + kGroup * (8 + 16) + 16;
  l.total = l.prefix + kGroup * kPrefixPitch * 4;
  return l;
}

struct AttentionChoice {
  int groups, per_group;    // of query heads that share a kv head
  int splits;               // of the longest sequence that the tables can hold
  int64_t sequences;        // times kv heads times groups
  int blocks_per_sequence;  // each does every so many-th split
  int shared;
  int64_t partial_floats, tickets;  // workspace; none where there is one split and no row of codes
  int64_t row_tickets;              // where those of the rows begin
  Team code_team;                   // a block per row
  int32_t code_chunks;
  bool wide_codes;
};

// What the attention kernel leaves behind for a split of a group: max and sum of each head (and two floats
// for alignment), then the weighted values.
LOWBIT_HOST_DEVICE constexpr int64_t split_floats(int per_group, int d) {
  return int64_t(per_group) * (4 + d);
}

inline AttentionChoice choose(const AttentionParams& p, const Device& device) {
  AttentionChoice c{};
  const int share = p.heads / p.pages.kv_heads;
  c.groups = ceil_div(share, kGroup), c.per_group = c.groups ? ceil_div(share, c.groups) : 0;
  c.splits = int(ceil_div(int64_t(p.max_pages) << p.pages.page_shift, int64_t(kSplit)));
  if (c.splits < 1) c.splits = 1;  // zeros still have to be written
  c.shared = attention_layout(p.pages.d).total;
  c.sequences = int64_t(p.batch) * p.pages.kv_heads * c.groups;
  // Four rounds of resident blocks even out the lengths; more blocks would mostly find nothing to do.
  const int resident = (device.shared_bytes + 1024) / (c.shared + 1024);
  const int64_t slots = int64_t(4) * device.multiprocessors * (resident < 1 ? 1 : resident);
  const int64_t fit = c.sequences ? ceil_div(slots, c.sequences) : 1;
  c.blocks_per_sequence = int(fit < c.splits ? fit : c.splits);
  if (c.splits > 1) {
    c.partial_floats = c.sequences * c.splits * split_floats(c.per_group, p.pages.d);
    c.tickets = c.sequences;
  }
  c.row_tickets = c.tickets;
  if (p.codes.q) {
    c.tickets += p.batch;
    c.code_chunks = int32_t(quantize::chunks_of(p.codes, p.columns));
    const int held = kThreads * quantize::kLongVectors;
    c.code_team = {quantize::kLongVectors, kThreads, 1, int32_t(ceil_div(c.code_chunks, held))};
    c.wide_codes = quantize::wide_codes(p.codes);
  }
  return c;
}

struct AttentionLaunch {
  AttentionParams p;
  AttentionChoice c;
};

// What the kernels get.
struct Launch {
  Params p;
  Config c;
};

}  // namespace lowbit::kernels::kv_cache
