// Fast Walsh-Hadamard transform of order K * 2^m. Included once per instruction set after its vec header.
//
// Butterflies of stride 1, 2, 4, ... in fp32. One pass over memory does several strides: the first, on 8 registers,
// does all that fit inside them; each later pass combines 8 (then 4, 2) registers a stride apart. The order of the
// additions that make up one output never changes, so every instruction set gives the same bits.
#pragma once

#include "dispatch.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kChunk = 8 * kLanes;  // elements of the first pass
constexpr int kChunkStages = 3 + kLogLanes;

static inline int log2_of(int64_t n) { return __builtin_ctzll(uint64_t(n)); }

static inline void butterfly(V& a, V& b) {
  const V sum = add(a, b);
  b = sub(a, b);
  a = sum;
}

template <int kEnd, int kCount>  // strides 1, 2, ..., kEnd / 2 between registers
static inline void butterflies(V (&v)[kCount]) {
#pragma GCC unroll 3
  for (int s = 1; s < kEnd; s *= 2)
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i)
      if (!(i & s)) butterfly(v[i], v[i + s]);
}

template <int kStages, class In, class Out>
static void first_pass(const In* x, Out* y, int64_t n, float scale, bool scaled) {
  const V s = set1(scale);
  for (int64_t i = 0; i < n; i += kChunk) {
    V v[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      v[j] = load(x + i + j * kLanes);
      if constexpr (kStages > 0 && kLogLanes > 0) v[j] = butterfly_within<0>(v[j]);
      if constexpr (kStages > 1 && kLogLanes > 1) v[j] = butterfly_within<1>(v[j]);
      if constexpr (kStages > 2 && kLogLanes > 2) v[j] = butterfly_within<2>(v[j]);
      if constexpr (kStages > 3 && kLogLanes > 3) v[j] = butterfly_within<3>(v[j]);
    }
    constexpr int kBetween = kStages > kLogLanes ? 1 << (kStages - kLogLanes) : 1;
    butterflies<kBetween>(v);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) store(y + i + j * kLanes, scaled ? mul(v[j], s) : v[j]);
  }
}

template <int kRadix, class Out>
static void later_pass(const float* x, Out* y, int64_t n, int64_t stride, float scale, bool scaled) {
  const V s = set1(scale);
  for (int64_t base = 0; base < n; base += kRadix * stride)
    for (int64_t i = base; i < base + stride; i += kLanes) {
      V v[kRadix];
#pragma GCC unroll 8
      for (int j = 0; j < kRadix; ++j) v[j] = load(x + i + j * stride);
      butterflies<kRadix>(v);
#pragma GCC unroll 8
      for (int j = 0; j < kRadix; ++j) store(y + i + j * stride, scaled ? mul(v[j], s) : v[j]);
    }
}

template <int kStages, class In, class Out>
static inline void dispatch_first(int stages, const In* x, Out* y, int64_t n, float scale, bool scaled) {
  if (stages == kStages) return first_pass<kStages>(x, y, n, scale, scaled);
  if constexpr (kStages > 0) dispatch_first<kStages - 1>(stages, x, y, n, scale, scaled);
}

// What is left of a chunk, elements at a time: the same butterflies in the same order.
template <class In, class Out>
static void fwht_small(const In* x, Out* y, int64_t n, int64_t two, float scale) {
  float t[kChunk];
  alignas(64) In padded_in[kChunk] = {};
  alignas(64) Out padded_out[kChunk];
  for (int64_t i = 0; i < n; ++i) padded_in[i] = x[i];
  for (int i = 0; i < kChunk; i += kLanes) store(t + i, load(padded_in + i));
  for (int64_t s = 1; s < two; s *= 2)
    for (int64_t i = 0; i < n; ++i)
      if (!(i & s)) {
        const float a = t[i], b = t[i + s];
        t[i] = a + b, t[i + s] = a - b;
      }
  for (int i = 0; i < kChunk; i += kLanes) store(padded_out + i, mul(load(t + i), set1(scale)));
  for (int64_t i = 0; i < n; ++i) y[i] = padded_out[i];
}

// y[n] = scale * (I x H_two) x[n], n a multiple of two. work: two floats, or null where y itself is fp32.
template <class In, class Out>
static void fwht(const In* x, Out* y, float* work, int64_t n, int64_t two, float scale) {
  const int stages = log2_of(two);
  if (stages <= kChunkStages) {
    const int64_t whole = n - n % kChunk;
    dispatch_first<kChunkStages>(stages, x, y, whole, scale, true);
    if (whole < n) fwht_small(x + whole, y + whole, n - whole, two, scale);
    return;
  }
  for (int64_t base = 0; base < n; base += two) {
    float* w = work;
    if constexpr (sizeof(Out) == 4)
      if (!work) w = y + base;
    first_pass<kChunkStages>(x + base, w, two, 1.f, false);
    int64_t stride = kChunk;
    for (; stride * 8 < two; stride *= 8) later_pass<8>(w, w, two, stride, 1.f, false);
    if (stride * 8 == two) later_pass<8>(w, y + base, two, stride, scale, true);
    if (stride * 4 == two) later_pass<4>(w, y + base, two, stride, scale, true);
    if (stride * 2 == two) later_pass<2>(w, y + base, two, stride, scale, true);
  }
}

// kCols registers of columns from c on: y[j, c] = scale * sum_i h[j, i] x[i, c], i in order.
// 4 outputs x kCols chains of additions: with two columns a sign, loaded once, serves two of them.
template <int kCols, class Out>
static inline void mix_columns(const float* x, Out* y, const float* h, int64_t order, int64_t two, float scale) {
  constexpr int kRows = 4;  // order is a multiple of 4
  const V s = set1(scale);
  for (int64_t j = 0; j < order; j += kRows) {
    V acc[kRows][kCols];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < kCols; ++c) acc[r][c] = mul(set1(h[(j + r) * order]), load(x + c * kLanes));
    for (int64_t i = 1; i < order; ++i) {
      V v[kCols];
#pragma GCC unroll 2
      for (int c = 0; c < kCols; ++c) v[c] = load(x + i * two + c * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const V sign = set1(h[(j + r) * order + i]);
#pragma GCC unroll 2
        for (int c = 0; c < kCols; ++c) acc[r][c] = add_signed(acc[r][c], sign, v[c]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
      for (int c = 0; c < kCols; ++c) store(y + (j + r) * two + c * kLanes, mul(acc[r][c], s));
  }
}

template <class Out>
static void mix(const float* x, Out* y, const float* h, int64_t order, int64_t two, float scale) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= two; c += 2 * kLanes) mix_columns<2>(x + c, y + c, h, order, two, scale);
  for (; c + kLanes <= two; c += kLanes) mix_columns<1>(x + c, y + c, h, order, two, scale);
  for (; c < two; ++c)
    for (int64_t j = 0; j < order; ++j) {
      float acc = h[j * order] * x[c];
      for (int64_t i = 1; i < order; ++i) acc = acc + h[j * order + i] * x[i * two + c];
      alignas(64) float t[kLanes] = {acc * scale};
      Out o[kLanes];
      store(o, load(t));
      y[j * two + c] = o[0];
    }
}

// y[n] = scale * transform of x[n] over blocks of order * two; y may be x. work: n floats.
template <class In, class Out>
static void hadamard_row(const In* x, Out* y, float* work, int64_t n, int64_t order, int64_t two, const float* h,
                         float scale) {
  if (order == 1) return fwht(x, y, work, n, two, scale);
  fwht(x, work, static_cast<float*>(nullptr), n, two, 1.f);
  for (int64_t base = 0; base < n; base += order * two) mix(work + base, y + base, h, order, two, scale);
}

static int64_t hadamard_scratch(const HadamardParams& p) { return p.n; }

template <class T>
static void hadamard_typed(const HadamardParams& p, float* scratch, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  if (p.order == 1)  // rows are contiguous: short ones share a chunk
    return fwht(x + begin * p.n, y + begin * p.n, sizeof(T) == 4 ? nullptr : scratch, (end - begin) * p.n, p.two,
                p.scale);
  for (int64_t r = begin; r < end; ++r)
    hadamard_row(x + r * p.n, y + r * p.n, scratch, p.n, p.order, p.two, p.h, p.scale);
}

static void hadamard_rows(const HadamardParams& p, float* scratch, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) hadamard_typed<float>(p, scratch, begin, end);
  if (p.dtype == DType::bf16) hadamard_typed<bf16>(p, scratch, begin, end);
  if (p.dtype == DType::f16) hadamard_typed<f16>(p, scratch, begin, end);
}

}  // namespace lowbit::cpu::LOWBIT_ISA
