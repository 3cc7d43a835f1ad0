// Decode attention over the paged INT4 cache, one query token per sequence. Included once per instruction
// set.
//
// A key is scale * code + zero, so q . k = scale * (q . code) + zero * (sum of q): the codes go from nibbles
// to fp32 in registers and are never dequantised. Values likewise: their codes are weighted by probability *
// scale, and the zeros add up in one number. Sums of a vector have sixteen lanes, one per word of four
// nibbles, on every instruction set, and fused multiply-adds: the same bits everywhere.
#pragma once

#include "hadamard-inl.h"
#include "split_softmax-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kWordBytes = 32, kBlockCodes = 64;  // a register of words
constexpr float kNibbleScale[4] = {1.f, 1.f / 16, 1.f / 256, 1.f / 4096};

static inline int64_t code_blocks(int64_t d) { return (d + kBlockCodes - 1) / kBlockCodes; }

// The weighted values of a split are unordered.
static int64_t kv4_partial_floats(const Kv4AttentionParams& p) {
  return kKvPartialHead + kBlockCodes * code_blocks(p.cache.d);
}

// Element d of a vector is in block d / 64, word d / 4 % 16, nibble d % 4; blocks hold [nibble][word].
static inline int64_t place_of(int64_t d) { return d / kBlockCodes * kBlockCodes + d % 4 * 16 + d / 4 % 16; }

// One run of tokens in one page, for one head.
struct KvRun {
  const uint8_t *key_codes, *value_codes;
  const uint16_t *key_params, *value_params;
  int64_t count;
};

// Runs at the end of the pool are read from a copy: a register of words can reach past the last token.
struct KvTail {
  alignas(32) uint8_t bytes[256 * kMaxQuery / 2 + 16 * kWordBytes];
  int64_t used = 0;
  const uint8_t* readable(const uint8_t* codes, int64_t size, const uint8_t* pool_end) {
    if (codes + size + kWordBytes <= pool_end) return codes;
    uint8_t* copy = bytes + used;
    used += size + kWordBytes;
    __builtin_memcpy(copy, codes, size_t(size));
    __builtin_memset(copy + size, 0, kWordBytes);
    return copy;
  }
};

struct KvSplit {
  KvRun run[16];  // pages of 16 tokens at least
  int runs;
  int64_t tokens, bytes;                              // of a token
  alignas(64) float scale[kKvSplit], zero[kKvSplit];  // of keys, then of values; zeros up to a multiple of 16
};

// Exact tokens that come before the split's, as one kv head has them.
struct KvPrefix {
  int64_t count, stride;  // floats between tokens
  const float *key, *value;
};

template <bool kKeys>
static void read_params(KvSplit& s) {
  int64_t at = 0;
  for (int r = 0; r < s.runs; ++r) {
    const uint16_t* from = kKeys ? s.run[r].key_params : s.run[r].value_params;
    for (int64_t i = 0; i < s.run[r].count; i += kLanes) {
      V scale, zero;
      load_pairs(from + 2 * i, scale, zero);
      store(s.scale + at + i, scale), store(s.zero + at + i, zero);
    }
    at += s.run[r].count;
  }
  for (; at % 16; ++at) s.scale[at] = s.zero[at] = 0.f;
}

// score[h][t] = scale[t] * (q[h] . code[t]) + zero[t] * sum[h], kTokens at a time
template <int kHeads, int kTokens>
static inline void score_tokens(const KvSplit& s, const uint8_t* codes, int64_t t, const float* q,
                                int64_t blocks, const float* sum, float (*score)[kKvSplit]) {
  static_assert(kHeads * kTokens <= 4);
  Split acc[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) acc[i] = no_split();
  for (int64_t b = 0; b < blocks; ++b) {
    Words w[kTokens];
#pragma GCC unroll 4
    for (int i = 0; i < kTokens; ++i) w[i] = load_words(codes + i * s.bytes + b * kWordBytes);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      Split k[kTokens];
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) k[i] = nibbles(w[i], j);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const Split x = load_split(q + (h * blocks + b) * kBlockCodes + j * 16);
#pragma GCC unroll 4
        for (int i = 0; i < kTokens; ++i) multiply_add(acc[h * kTokens + i], k[i], x);
      }
    }
  }
  float dot[4];
  lane_sums(acc, dot);
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
    for (int i = 0; i < kTokens; ++i)
      score[h][t + i] = s.scale[t + i] * dot[h * kTokens + i] + s.zero[t + i] * sum[h];
}

template <int kHeads>
static void score_split(const KvSplit& s, const float* q, int64_t blocks, const float* sum,
                        const uint8_t* pool_end, KvTail& tail, float (*score)[kKvSplit]) {
  constexpr int kTokens = 4 / kHeads;
  int64_t at = 0;
  tail.used = 0;
  for (int r = 0; r < s.runs; ++r) {
    const int64_t count = s.run[r].count;
    const uint8_t* codes = tail.readable(s.run[r].key_codes, count * s.bytes, pool_end);
    int64_t t = 0;
    for (; t + kTokens <= count; t += kTokens)
      score_tokens<kHeads, kTokens>(s, codes + t * s.bytes, at + t, q, blocks, sum, score);
    for (; t < count; ++t) score_tokens<kHeads, 1>(s, codes + t * s.bytes, at + t, q, blocks, sum, score);
    at += count;
  }
}

// probability[t] -> weight[t] = probability[t] * scale[t]; gives the sum of the weighted zeros.
static inline float weigh_params(const KvSplit& s, float* probability) {
  Lanes zeros;
  for (int64_t t = 0; t < s.tokens; t += kLanes) {
    const V x = load(probability + t);
    V& lanes = zeros.v[t % 16 / kLanes];
    lanes = add(lanes, mul(x, load(s.zero + t)));
    store(probability + t, mul(x, load(s.scale + t)));
  }
  return zeros.sum();
}

// out[h] = sum over tokens of weight[h][t] * code[t], + zero[h]: kNibbles nibbles of each word of one block
template <int kHeads, int kNibbles>
static inline void weigh_block(const KvSplit& s, const uint8_t* const* codes, int64_t block, int first,
                               const float (*weight)[kKvSplit], const float* zero, float* out,
                               int64_t stride) {
  Split acc[kHeads][kNibbles];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
    for (int j = 0; j < kNibbles; ++j) acc[h][j] = no_split();
  int64_t at = 0;
  for (int r = 0; r < s.runs; ++r) {
    const uint8_t* from = codes[r] + block * kWordBytes;
    for (const int64_t end = at + s.run[r].count; at < end; ++at, from += s.bytes) {
      const Words w = load_words(from);
#pragma GCC unroll 4
      for (int j = 0; j < kNibbles; ++j) {
        const Split v = nibbles(w, first + j);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) multiply_add(acc[h][j], v, weight[h][at]);
      }
    }
  }
  for (int h = 0; h < kHeads; ++h)
    for (int j = 0; j < kNibbles; ++j) {
      float* to = out + h * stride + block * kBlockCodes + (first + j) * 16;
      store_split(to, acc[h][j]);
      const V scale = set1(kNibbleScale[first + j]), z = set1(zero[h]);
      for (int i = 0; i < 16; i += kLanes) store(to + i, add(mul(load(to + i), scale), z));
    }
}

template <int kHeads>
static void weigh_split(const KvSplit& s, int64_t blocks, const float (*weight)[kKvSplit], const float* zero,
                        const uint8_t* pool_end, KvTail& tail, float* out, int64_t stride) {
  constexpr int kNibbles = kValueBlocks[kHeads];
  const uint8_t* codes[16];
  tail.used = 0;
  for (int r = 0; r < s.runs; ++r)
    codes[r] = tail.readable(s.run[r].value_codes, s.run[r].count * s.bytes, pool_end);
  for (int64_t b = 0; b < blocks; ++b)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j += kNibbles)
      weigh_block<kHeads, kNibbles>(s, codes, b, j, weight, zero, out, stride);
}

// Floats that stand where place_of puts them, into the lanes of the words; `to` may be `placed`
static inline void arrange_placed(const float* placed, float* to, int64_t size) {
  for (int64_t i = 0; i < size; i += 16) {
    Split s;
    arrange(load_wide(placed + i), s);
    store_split(to + i, s);
  }
}

// out[h] += weight[h][t] * value[t] for the tokens of the prefix, in the order of the words
static inline void weigh_prefix(const KvPrefix& p, int64_t d, const float (*weight)[kKvPrefix], int heads,
                                float* out, int64_t stride) {
  alignas(64) float placed[kMaxQuery];
  const int64_t size = code_blocks(d) * kBlockCodes;
  for (int64_t t = 0; t < p.count; ++t) {
    for (int64_t i = 0; i < size; ++i) placed[place_of(i)] = i < d ? p.value[t * p.stride + i] : 0.f;
    arrange_placed(placed, placed, size);
    for (int h = 0; h < heads; ++h) {
      float* to = out + h * stride;
      const V w = set1(weight[h][t]);
      for (int64_t i = 0; i < size; i += kLanes) store(to + i, add(load(to + i), mul(w, load(placed + i))));
    }
  }
}

// q * softmax_scale in the order of the words, its sum, and what the places of the nibbles divide it by;
// exact: its products with the keys of the prefix
template <class T>
static inline float arrange_query(const T* q, int64_t d, float softmax_scale, const KvPrefix& prefix,
                                  float* to, float* exact) {
  alignas(64) float x[kMaxQuery + 16], placed[kMaxQuery];
  const int64_t blocks = code_blocks(d);
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) store(x + i, mul(load(q + i), set1(softmax_scale)));
  if (i < d) store(x + i, mul(load_some(q + i, d - i), set1(softmax_scale)));
  for (i = d; i < blocks * kBlockCodes; ++i) x[i] = 0.f;
  for (i = 0; i < blocks * kBlockCodes; ++i) placed[place_of(i)] = x[i] * kNibbleScale[i % 4];
  arrange_placed(placed, to, blocks * kBlockCodes);
  for (int64_t t = 0; t < prefix.count; ++t) {
    for (i = 0; i < d; ++i) placed[i] = x[i] * prefix.key[t * prefix.stride + i];
    exact[t] = neighbour_sum(placed, d);
  }
  return neighbour_sum(x, d);
}

template <int kHeads, class T>
static void attend_heads(const Kv4AttentionParams& p, const KvPrefix& prefix, KvSplit& s, KvTail& tail,
                         const T* q, float* partial) {
  const int64_t d = p.cache.d, blocks = code_blocks(d), stride = kv4_partial_floats(p);
  const int64_t pool = p.cache.pages * p.cache.kv_heads * p.cache.page * s.bytes;
  alignas(64) float query[kHeads * kMaxQuery], weight[kHeads][kKvSplit];
  float sum[kHeads], zero[kHeads], exact[kHeads][kKvPrefix];
  for (int h = 0; h < kHeads; ++h)
    sum[h] = arrange_query(q + h * d, d, p.softmax_scale, prefix, query + h * blocks * kBlockCodes, exact[h]);
  read_params<true>(s);
  score_split<kHeads>(s, query, blocks, sum, p.cache.key_codes + pool, tail, weight);
  read_params<false>(s);
  for (int h = 0; h < kHeads; ++h) {
    float* result = partial + h * stride;
    softmax(weight[h], s.tokens, exact[h], prefix.count, result, result + 1);
    zero[h] = weigh_params(s, weight[h]);
  }
  weigh_split<kHeads>(s, blocks, weight, zero, p.cache.value_codes + pool, tail, partial + kKvPartialHead,
                      stride);
  weigh_prefix(prefix, d, exact, kHeads, partial + kKvPartialHead, stride);
}

// The tokens of split `split` of sequence b, as runs of pages
static void find_split(const Kv4AttentionParams& p, int64_t b, int64_t split, int64_t head, KvSplit& s) {
  const Kv4Pages& c = p.cache;
  s.bytes = (c.d + 1) / 2, s.runs = 0;
  s.tokens = each_page(p, b, split, [&](int64_t page, int64_t count) {
    const int64_t at = (page * c.kv_heads + head) * c.page;
    s.run[s.runs++] = {c.key_codes + at * s.bytes, c.value_codes + at * s.bytes, c.key_params + 2 * at,
                       c.value_params + 2 * at, count};
  });
}

template <class T>
static void kv4_attend_typed(const Kv4AttentionParams& p, int64_t begin, int64_t end) {
  const int64_t d = p.cache.d, stride = kv4_partial_floats(p), of_token = p.cache.kv_heads * d;
  KvSplit s;
  KvTail tail;
  KvPrefix prefix;
  each_item(
      p, begin, end,
      [&](int64_t b, int64_t split, int64_t head) {
        find_split(p, b, split, head, s);
        prefix = {};
        if (p.prefix && split == 0)
          prefix = {p.prefix, of_token, p.prefix_key + head * d, p.prefix_value + head * d};
      },
      [&](auto heads, int64_t at, int64_t result) {
        attend_heads<heads.value>(p, prefix, s, tail, static_cast<const T*>(p.q) + at * d,
                                  p.partial + result * stride);
      });
}

// y = the merged splits, from the order of the words to that of the head; zeros without tokens
template <class T>
static void kv4_merge_typed(const Kv4AttentionParams& p, int64_t begin, int64_t end) {
  const int64_t d = p.cache.d, stride = kv4_partial_floats(p), size = stride - kKvPartialHead;
  alignas(64) float acc[kMaxQuery], y[kMaxQuery + 16];
  for (int64_t r = begin; r < end; ++r) {
    const float inverse = merge_splits(p, r, stride, acc);
    for (int64_t i = 0; i < size; i += 16) {
      float lanes[16];
      store_wide(lanes, in_order(load_split(acc + i)));
      for (int k = 0; k < 16; ++k) y[i / kBlockCodes * kBlockCodes + 4 * k + i / 16 % 4] = lanes[k];
    }
    store_merged(static_cast<T*>(p.y) + r * d, y, d, inverse);
  }
}

static void kv4_attend_items(const Kv4AttentionParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) kv4_attend_typed<float>(p, begin, end);
  if (p.dtype == DType::bf16) kv4_attend_typed<bf16>(p, begin, end);
  if (p.dtype == DType::f16) kv4_attend_typed<f16>(p, begin, end);
}

static void kv4_merge_rows(const Kv4AttentionParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) kv4_merge_typed<float>(p, begin, end);
  if (p.dtype == DType::bf16) kv4_merge_typed<bf16>(p, begin, end);
  if (p.dtype == DType::f16) kv4_merge_typed<f16>(p, begin, end);
}

}  // namespace lowbit::cpu::LOWBIT_ISA
