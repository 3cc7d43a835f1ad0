// Softmax over the tokens of a split, and over the splits of a sequence: what decode attention does alike for
// every cache. Sums have sixteen lanes, token i in lane i % 16, on every instruction set. Included once per
// instruction set.
#pragma once

#include <type_traits>

#include "exp-inl.h"
#include "hadamard-inl.h"  // store_some

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kMaxQuery = 512;
constexpr int kHeadsAtOnce = 4;

struct Lanes {
  V v[16 / kLanes];
  Lanes() {
    for (V& x : v) x = set1(0.f);
  }
  float sum() const {
    alignas(64) float t[16];
    for (int i = 0; i < 16; i += kLanes) store(t + i, v[i / kLanes]);
    return neighbour_sum(t, 16);
  }
};

// score[t] -> exp(score[t] - max), 0 up to a multiple of 16; max and sum. exact[t] of a prefix likewise,
// added to the sum one by one.
static inline void softmax(float* score, int64_t tokens, float* exact, int64_t prefix, float* most,
                           float* sum) {
  const int64_t padded = (tokens + 15) / 16 * 16;
  for (int64_t t = tokens; t < padded; ++t) score[t] = score[0];
  V top = set1(-__builtin_inff());
  for (int64_t t = 0; t < padded; t += kLanes) top = max(top, load(score + t));
  *most = lane_max(top);
  for (int64_t t = 0; t < prefix; ++t) *most = exact[t] > *most ? exact[t] : *most;
  for (int64_t t = 0; t < padded; t += kLanes)
    store(score + t, exponential(sub(load(score + t), set1(*most))));
  for (int64_t t = tokens; t < padded; ++t) score[t] = 0.f;
  Lanes total;
  for (int64_t t = 0; t < padded; t += kLanes) {
    V& lanes = total.v[t % 16 / kLanes];
    lanes = add(lanes, load(score + t));
  }
  *sum = total.sum();
  alignas(64) float lanes[kLanes];
  for (int64_t t = 0; t < prefix; ++t) {
    store(lanes, exponential(set1(exact[t] - *most)));
    exact[t] = lanes[0], *sum = *sum + exact[t];
  }
}

// Of row r, a head of a sequence: acc = sum over splits of exp(max - largest max) * values; gives 1 / the
// same of the sums, 0 without splits. `stride`: floats of a partial result.
template <class Params>
static inline float merge_splits(const Params& p, int64_t r, int64_t stride, float* acc) {
  const int64_t b = r / p.heads, splits = p.first_split[b + 1] - p.first_split[b];
  const int64_t step = p.heads * stride, size = stride - kKvPartialHead;
  const float* partial = p.partial + (p.first_split[b] * p.heads + r % p.heads) * stride;
  float most = -__builtin_inff(), sum = 0.f;
  alignas(64) float t[kLanes];
  for (int64_t s = 0; s < splits; ++s) most = partial[s * step] > most ? partial[s * step] : most;
  for (int64_t i = 0; i < size; i += kLanes) store(acc + i, set1(0.f));
  for (int64_t s = 0; s < splits; ++s, partial += step) {
    const V factor = exponential(set1(partial[0] - most));
    store(t, factor);
    sum = sum + t[0] * partial[1];
    for (int64_t i = 0; i < size; i += kLanes)
      store(acc + i, add(load(acc + i), mul(factor, load(partial + kKvPartialHead + i))));
  }
  return splits ? 1.f / sum : 0.f;
}

// y[d] = acc * inverse, rounded; acc has room for a last register
template <class T>
static inline void store_merged(T* y, const float* acc, int64_t d, float inverse) {
  const V inv = set1(inverse);
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) store(y + i, mul(load(acc + i), inv));
  if (i < d) store_some(y + i, mul(load(acc + i), inv), d - i);
}

// The tokens of a split of sequence b, page by page: f(page, count). Gives their number.
template <class Params, class F>
static inline int64_t each_page(const Params& p, int64_t b, int64_t split, const F& f) {
  const int64_t page = p.cache.page, begin = split * kKvSplit, left = p.tokens[b] - begin;
  const int64_t tokens = left < kKvSplit ? left : kKvSplit;
  for (int64_t t = 0; t < tokens; t += page)
    f(p.block_table[b * p.max_pages + (begin + t) / page], tokens - t < page ? tokens - t : page);
  return tokens;
}

// Items are splits times kv heads. of(b, split of the sequence, kv head) makes what attend(heads at once,
// first query head, number of the split) reads.
template <class Params, class Of, class Attend>
static inline void each_item(const Params& p, int64_t begin, int64_t end, const Of& of,
                             const Attend& attend) {
  const int64_t kv_heads = p.cache.kv_heads, group = p.heads / kv_heads;
  int64_t b = 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t split = item / kv_heads, head = item % kv_heads;
    while (p.first_split[b + 1] <= split) ++b;
    of(b, split - p.first_split[b], head);
    for (int64_t h = 0; h < group; h += kHeadsAtOnce) {
      const int64_t first = head * group + h, at = b * p.heads + first, result = split * p.heads + first;
      if (group - h >= 4) attend(std::integral_constant<int, 4>(), at, result);
      else if (group - h == 3) attend(std::integral_constant<int, 3>(), at, result);
      else if (group - h == 2) attend(std::integral_constant<int, 2>(), at, result);
      else attend(std::integral_constant<int, 1>(), at, result);
    }
  }
}

}  // namespace lowbit::cpu::LOWBIT_ISA
