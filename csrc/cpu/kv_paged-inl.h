// Keys and values on their way into a paged cache: RMSNorm and RoPE; then the keys' Hadamard and
// kv4_quantize's codes, or nothing. Included once per instruction set.
#pragma once

#include "exp-inl.h"
#include "hadamard-inl.h"
#include "kv_cache-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kMaxHead = 512, kHeadFloats = kMaxHead + 16;  // room for the last register

// One head of a token into its slot. A negative slot skips it.
template <class T>
static void kv4_append_head(const Kv4AppendParams& p, const T* x, int64_t slot, int64_t head, bool is_key) {
  if (slot < 0) return;
  const Kv4Pages& c = p.cache;
  const int64_t at = ((slot / c.page) * c.kv_heads + head) * c.page + slot % c.page;
  uint8_t* codes = (is_key ? c.key_codes : c.value_codes) + at * ((c.d + 1) / 2);
  uint16_t* params = (is_key ? c.key_params : c.value_params) + 2 * at;
  if (!is_key || p.key_block == 1) return kv4_quantize_row(x, c.d, p.clip, codes, params);
  alignas(64) float y[kHeadFloats];
  hadamard(x, y, static_cast<float*>(nullptr), c.d, 1, p.key_block, nullptr, p.key_scale);
  kv4_quantize_row(y, c.d, p.clip, codes, params);
}

template <class T>
static void kv4_append_typed(const Kv4AppendParams& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t slot = p.slots[r / p.cache.kv_heads], head = r % p.cache.kv_heads;
    kv4_append_head(p, static_cast<const T*>(p.key) + r * p.cache.d, slot, head, true);
    kv4_append_head(p, static_cast<const T*>(p.value) + r * p.cache.d, slot, head, false);
  }
}

// x[d] -> (x * inv) * weight, inv = 1 / sqrt(mean of squares + eps)
static inline void norm_head(float* x, int64_t d, const float* weight, float eps) {
  alignas(64) float square[kHeadFloats];
  for (int64_t i = 0; i < d; i += kLanes) store(square + i, mul(load(x + i), load(x + i)));
  const V inv = set1(1.f / __builtin_sqrtf(neighbour_sum(square, d) / float(d) + eps));
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) store(x + i, mul(mul(load(x + i), inv), load(weight + i)));
  if (i < d) store(x + i, mul(mul(load(x + i), inv), load_some(weight + i, d - i)));
}

// The first 2 * half elements in pairs (i, i + half), rotated. Element i: x[i] * cos[i] - x[i + half] *
// sin[i].
static inline void rotate_head(float* x, int64_t half, const float* cos, const float* sin) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t count = half - i;
    const bool whole = count >= kLanes;
    const auto at = [&](const float* p) { return whole ? load(p) : load_some(p, count); };
    const V a = at(x + i), b = at(x + i + half);
    const V low = sub(mul(a, at(cos + i)), mul(b, at(sin + i)));
    const V high = add(mul(b, at(cos + i + half)), mul(a, at(sin + i + half)));
    if (whole) store(x + i, low), store(x + i + half, high);
    else store_some(x + i, low, count), store_some(x + i + half, high, count);
  }
}

// append(head, slot, kv_head, is_key) stores a head of k or v; query(head, to) one of q.
template <class T, class Append, class Query>
static void rope_typed(const KvRopeParams& p, int64_t begin, int64_t end, const Append& append,
                       const Query& query) {
  const int64_t d = p.d, kv_heads = p.kv_heads, all = p.heads + 2 * kv_heads;
  const size_t size = size_t(d) * sizeof(T);
  alignas(64) float x[kHeadFloats];
  alignas(64) T rounded[kHeadFloats];
  for (int64_t r = begin; r < end; ++r) {
    const int64_t token = r / all, head = r % all, kv_head = (head - p.heads) % kv_heads;
    const T* from = static_cast<const T*>(p.qkv) + r * d;
    const int64_t slot = p.slots[token];
    if (head >= p.heads + kv_heads) {
      if (p.v) __builtin_memcpy(static_cast<T*>(p.v) + (token * kv_heads + kv_head) * d, from, size);
      append(from, slot, kv_head, false);
      continue;
    }
    const bool is_query = head < p.heads;
    int64_t i = 0;
    for (; i + kLanes <= d; i += kLanes) store(x + i, load(from + i));
    if (i < d) store(x + i, load_some(from + i, d - i));
    const float* weight = is_query ? p.q_norm : p.k_norm;
    if (weight) norm_head(x, d, weight, p.eps);
    rotate_head(x, p.rotary / 2, p.cos + token * p.rotary, p.sin + token * p.rotary);
    for (i = 0; i < d; i += kLanes) store(rounded + i, load(x + i));
    if (is_query) {
      query(rounded, static_cast<T*>(p.q) + (token * p.heads + head) * d);
      continue;
    }
    if (p.k) __builtin_memcpy(static_cast<T*>(p.k) + (token * kv_heads + kv_head) * d, rounded, size);
    append(rounded, slot, kv_head, true);
  }
}

template <class T>
static void kv4_rope_typed(const Kv4RopeParams& p, int64_t begin, int64_t end) {
  const Kv4AppendParams& to = p.append;
  const bool turn = p.transform_q && to.key_block > 1;
  alignas(64) float work[kHeadFloats];
  alignas(64) T turned[kHeadFloats];
  rope_typed<T>(
      p, begin, end,
      [&](const T* x, int64_t slot, int64_t head, bool is_key) {
        kv4_append_head(to, x, slot, head, is_key);
      },
      [&](const T* x, T* q) {
        if (turn) hadamard(x, turned, work, p.d, 1, to.key_block, nullptr, to.key_scale);
        __builtin_memcpy(q, turn ? turned : x, size_t(p.d) * sizeof(T));
      });
}

template <class T>
static void kv_rope_typed(const KvFloatRopeParams& p, int64_t begin, int64_t end) {
  const size_t size = size_t(p.d) * sizeof(T);
  rope_typed<T>(
      p, begin, end,
      [&](const T* x, int64_t slot, int64_t head, bool is_key) {
        if (slot < 0) return;
        T* to = static_cast<T*>(is_key ? p.cache.key : p.cache.value);
        __builtin_memcpy(to + (slot * p.kv_heads + head) * p.d, x, size);
      },
      [&](const T* x, T* q) { __builtin_memcpy(q, x, size); });
}

static void kv4_append_rows(const Kv4AppendParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) kv4_append_typed<float>(p, begin, end);
  if (p.dtype == DType::bf16) kv4_append_typed<bf16>(p, begin, end);
  if (p.dtype == DType::f16) kv4_append_typed<f16>(p, begin, end);
}

static void kv4_rope_rows(const Kv4RopeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) kv4_rope_typed<float>(p, begin, end);
  if (p.dtype == DType::bf16) kv4_rope_typed<bf16>(p, begin, end);
  if (p.dtype == DType::f16) kv4_rope_typed<f16>(p, begin, end);
}

static void kv_rope_rows(const KvFloatRopeParams& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) kv_rope_typed<float>(p, begin, end);
  if (p.dtype == DType::bf16) kv_rope_typed<bf16>(p, begin, end);
  if (p.dtype == DType::f16) kv_rope_typed<f16>(p, begin, end);
}

}  // namespace lowbit::cpu::LOWBIT_ISA
