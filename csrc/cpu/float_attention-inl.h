// Decode attention over pages of keys and values as they are, one query token per sequence. Included once per
// instruction set.
//
// Sixteen elements of a head are one register (pair): a product with a key is sixteen chains of fused
// multiply-adds over the blocks of the head, then their tree; an element of the result is one chain over the
// tokens of the split. The same bits on every instruction set.
#pragma once

#include "split_softmax-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kBlock = 16;

static int64_t kv_partial_floats(const KvFloatAttentionParams& p) {
  return kKvPartialHead + (p.cache.d + kBlock - 1) / kBlock * kBlock;
}

// What widen makes of sixteen elements.
template <class T>
using Widened = decltype(widen(static_cast<const T*>(nullptr)));

// The tokens of a split as runs in pages, for one kv head.
template <class T>
struct FloatSplit {
  struct Run {
    const T *key, *value;
    int64_t count;
  };
  Run run[kKvSplit / 16];  // pages of 16 tokens at least
  int runs;
  int64_t tokens, stride, d;  // stride: elements between tokens

  void find(const KvFloatAttentionParams& p, int64_t b, int64_t split, int64_t head) {
    const KvFloatPages& c = p.cache;
    stride = c.kv_heads * c.d, d = c.d, runs = 0;
    tokens = each_page(p, b, split, [&](int64_t page, int64_t count) {
      const int64_t at = page * c.page * stride + head * d;
      run[runs++] = {static_cast<const T*>(c.key) + at, static_cast<const T*>(c.value) + at, count};
    });
  }
};

// Elements 16 b .. 16 b + 15 of x[d], zeros from d on.
template <class T>
static inline Widened<T> block_of(const T* x, int64_t b, int64_t d) {
  if (d - b * kBlock >= kBlock) return widen(x + b * kBlock);
  T t[kBlock] = {};
  __builtin_memcpy(t, x + b * kBlock, size_t(d - b * kBlock) * sizeof(T));
  return widen(t);
}

template <int kHeads, class T>
using Queries = Widened<T>[kHeads][kMaxQuery / kBlock];

// score[h][t + i] = q[h] . key[i], kTokens at a time
template <int kHeads, int kTokens, class T>
static inline void score_keys(const FloatSplit<T>& s, const T* key, int64_t t, const Queries<kHeads, T>& q,
                              float (*score)[kKvSplit]) {
  static_assert(kHeads * kTokens <= 4);
  Widened<T> acc[4] = {};
  for (int64_t b = 0; b * kBlock < s.d; ++b) {
    Widened<T> k[kTokens];
#pragma GCC unroll 4
    for (int i = 0; i < kTokens; ++i) k[i] = block_of(key + i * s.stride, b, s.d);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) multiply_add(acc[h * kTokens + i], k[i], q[h][b]);
  }
  float dot[4];
  lane_sums(acc, dot);
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
    for (int i = 0; i < kTokens; ++i) score[h][t + i] = dot[h * kTokens + i];
}

// out[h] = sum over tokens of weight[h][t] * value[t]: blocks b .. b + kBlocks - 1
template <int kHeads, int kBlocks, class T>
static inline void weigh_values(const FloatSplit<T>& s, int64_t b, const float (*weight)[kKvSplit],
                                float* out, int64_t out_stride) {
  Widened<T> acc[kHeads][kBlocks] = {};
  int64_t at = 0;
  for (int r = 0; r < s.runs; ++r) {
    const T* from = s.run[r].value;
    for (const int64_t end = at + s.run[r].count; at < end; ++at, from += s.stride)
#pragma GCC unroll 4
      for (int j = 0; j < kBlocks; ++j) {
        const Widened<T> v = block_of(from, b + j, s.d);
#pragma GCC unroll 4
        for (int h = 0; h < kHeads; ++h) multiply_add(acc[h][j], v, weight[h][at]);
      }
  }
  for (int h = 0; h < kHeads; ++h)
    for (int j = 0; j < kBlocks; ++j)
      store_wide(out + h * out_stride + (b + j) * kBlock, in_order(acc[h][j]));
}

constexpr int64_t kAhead = 16;  // tokens
template <class T>
static inline void prefetch_head(const T* x, int64_t d) {
  for (int64_t i = 0; i < d; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(x + i);
}

template <int kHeads, class T>
static void attend_floats(const FloatSplit<T>& s, const T* q, float softmax_scale, float* partial,
                          int64_t stride) {
  constexpr int kTokens = 4 / kHeads, kBlocks = kValueBlocks[kHeads];  // what 16 registers hold
  Queries<kHeads, T> query;
  alignas(64) float weight[kHeads][kKvSplit];
  const int64_t blocks = (s.d + kBlock - 1) / kBlock;
  for (int h = 0; h < kHeads; ++h)
    for (int64_t b = 0; b < blocks; ++b) {
      alignas(64) float x[kBlock];
      store_wide(x, in_order(block_of(q + h * s.d, b, s.d)));
      for (int64_t i = 0; i < kBlock; i += kLanes) store(x + i, mul(load(x + i), set1(softmax_scale)));
      arrange(load_wide(x), query[h][b]);
    }
  int64_t at = 0;
  for (int r = 0; r < s.runs; at += s.run[r++].count) {
    const T *key = s.run[r].key, *value = s.run[r].value;
    int64_t t = 0;
    for (; t + kTokens <= s.run[r].count; t += kTokens) {
      for (int i = 0; i < kTokens; ++i) {
        prefetch_head(key + (t + i + kAhead) * s.stride, s.d);
        prefetch_head(value + (t + i) * s.stride, s.d);
      }
      score_keys<kHeads, kTokens>(s, key + t * s.stride, at + t, query, weight);
    }
    for (; t < s.run[r].count; ++t) score_keys<kHeads, 1>(s, key + t * s.stride, at + t, query, weight);
  }
  for (int h = 0; h < kHeads; ++h)
    softmax(weight[h], s.tokens, nullptr, 0, partial + h * stride, partial + h * stride + 1);
  int64_t b = 0;
  for (; b + kBlocks <= blocks; b += kBlocks)
    weigh_values<kHeads, kBlocks>(s, b, weight, partial + kKvPartialHead, stride);
  for (; b < blocks; ++b) weigh_values<kHeads, 1>(s, b, weight, partial + kKvPartialHead, stride);
}

template <class T>
static void kv_attend_typed(const KvFloatAttentionParams& p, int64_t begin, int64_t end) {
  const int64_t stride = kv_partial_floats(p);
  FloatSplit<T> s;
  each_item(
      p, begin, end, [&](int64_t b, int64_t split, int64_t head) { s.find(p, b, split, head); },
      [&](auto heads, int64_t at, int64_t result) {
        attend_floats<heads.value>(s, static_cast<const T*>(p.q) + at * s.d, p.softmax_scale,
                                   p.partial + result * stride, stride);
      });
}

template <class T>
static void kv_merge_typed(const KvFloatAttentionParams& p, int64_t begin, int64_t end) {
  const int64_t d = p.cache.d, stride = kv_partial_floats(p);
  alignas(64) float acc[kMaxQuery + 16];
  for (int64_t r = begin; r < end; ++r) {
    const float inverse = merge_splits(p, r, stride, acc);
    store_merged(static_cast<T*>(p.y) + r * d, acc, d, inverse);
  }
}

static void kv_attend_items(const KvFloatAttentionParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) kv_attend_typed<float>(p, begin, end);
  if (p.dtype == DType::bf16) kv_attend_typed<bf16>(p, begin, end);
  if (p.dtype == DType::f16) kv_attend_typed<f16>(p, begin, end);
}

static void kv_merge_rows(const KvFloatAttentionParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) kv_merge_typed<float>(p, begin, end);
  if (p.dtype == DType::bf16) kv_merge_typed<bf16>(p, begin, end);
  if (p.dtype == DType::f16) kv_merge_typed<f16>(p, begin, end);
}

}  // namespace lowbit::cpu::LOWBIT_ISA
