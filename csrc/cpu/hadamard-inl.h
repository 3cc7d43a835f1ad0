// Fast Walsh-Hadamard transform of order K * 2^m. Included once per instruction set after its vec header.
//
// Butterflies of stride 1, 2, 4, ... in fp32. One pass over memory does several strides: the first, on 8
// registers, does all that fit inside them; each later pass combines 8 (then 4, 2) registers a stride apart.
// The order of the additions that make up one output never changes, so every instruction set gives the same
// bits.
#pragma once

#include <type_traits>

#include "dispatch.h"
#include "hadamard_mix-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kChunk = 8 * kLanes;  // elements of the first pass
constexpr int64_t kInputAhead = 8192;   // bytes of the input asked for in advance, in later rows
constexpr int kChunkStages = 3 + kLogLanes;

static inline int log2_of(int64_t n) { return __builtin_ctzll(uint64_t(n)); }

// Two registers of 2 kLanes neighbours, as they follow or as the even and the odd ones: bf16 comes apart and
// goes together by words.
template <bool kWords, class T>
static inline void load_both(const T* p, V& a, V& b) {
  if constexpr (kWords) load_even_odd(p, a, b);
  else a = load(p), b = load(p + kLanes);
}
template <class T>
static inline void store_pair(T* p, V a, V b) {
  store(p, a), store(p + kLanes, b);
}
template <bool kWords, class T>
static inline void store_both(T* p, V a, V b) {
  if constexpr (kWords) store_even_odd(p, a, b);
  else store_pair(p, a, b);
}

static inline void butterfly(V& a, V& b) {
  const V sum = add(a, b);
  b = sub(a, b);
  a = sum;
}

template <int kEnd, int kFrom = 1, int kCount>  // strides kFrom, ..., kEnd / 2 between registers
static inline void butterflies(V (&v)[kCount]) {
#pragma GCC unroll 3
  for (int s = kFrom; s < kEnd; s *= 2)
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i)
      if (!(i & s)) butterfly(v[i], v[i + s]);
}

// kWords: registers hold even and odd elements by turns, so the first stride is between two of them.
template <int kStages, bool kWords, class In, class Out>
static void first_pass(const In* x, Out* y, int64_t n, float scale, bool scaled) {
  constexpr int kWithin = kStages - kWords;  // strides inside a register, and later ones
  constexpr int kBetween = kWithin > kLogLanes ? 1 << (kWithin - kLogLanes) : 1;
  constexpr bool kStore = kWords && std::is_same_v<Out, bf16>;
  const V s = set1(scale);
  for (int64_t i = 0; i < n; i += kChunk) {
    V v[8];
    for (int j = 0; j < int(kChunk * sizeof(In)); j += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(x + i) + kInputAhead + j);
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) load_both<kWords>(x + i + j * kLanes, v[j], v[j + 1]);
    if constexpr (kWords && kStages > 0) butterflies<2>(v);
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      if constexpr (kWithin > 0 && kLogLanes > 0) v[j] = butterfly_within<0>(v[j]);
      if constexpr (kWithin > 1 && kLogLanes > 1) v[j] = butterfly_within<1>(v[j]);
      if constexpr (kWithin > 2 && kLogLanes > 2) v[j] = butterfly_within<2>(v[j]);
      if constexpr (kWithin > 3 && kLogLanes > 3) v[j] = butterfly_within<3>(v[j]);
    }
    if constexpr (kWords) butterflies<2 * kBetween, 2>(v);
    else butterflies<kBetween>(v);
    if (scaled)
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) v[j] = mul(v[j], s);
#pragma GCC unroll 4
    for (int j = 0; j < 8; j += 2) store_both<kStore>(y + i + j * kLanes, v[j], v[j + 1]);
  }
}

template <int kRadix, bool kWords, class Out>
static void later_pass(const float* x, Out* y, int64_t n, int64_t stride, float scale, bool scaled) {
  constexpr int kWide = sizeof(Out) == 2 ? 2 : 1;  // 16-bit results leave two registers at a time
  const V s = set1(scale);
  for (int64_t base = 0; base < n; base += kRadix * stride)
    for (int64_t i = base; i < base + stride; i += kWide * kLanes) {
      V v[kWide][kRadix];
#pragma GCC unroll 2
      for (int w = 0; w < kWide; ++w) {
#pragma GCC unroll 8
        for (int j = 0; j < kRadix; ++j) v[w][j] = load(x + i + j * stride + w * kLanes);
        butterflies<kRadix>(v[w]);
        if (scaled)
#pragma GCC unroll 8
          for (int j = 0; j < kRadix; ++j) v[w][j] = mul(v[w][j], s);
      }
#pragma GCC unroll 8
      for (int j = 0; j < kRadix; ++j) {
        if constexpr (kWide == 2) store_both<kWords>(y + i + j * stride, v[0][j], v[1][j]);
        else store(y + i + j * stride, v[0][j]);
      }
    }
}

template <int kStages, bool kWords, class In, class Out>
static inline void dispatch_first(int stages, const In* x, Out* y, int64_t n, float scale, bool scaled) {
  if (stages == kStages) return first_pass<kStages, kWords>(x, y, n, scale, scaled);
  if constexpr (kStages > 0) dispatch_first<kStages - 1, kWords>(stages, x, y, n, scale, scaled);
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
  constexpr bool kWords = kLanes > 1 && std::is_same_v<In, bf16> && std::is_same_v<Out, bf16>;
  const int stages = log2_of(two);
  if (stages <= kChunkStages) {
    const int64_t whole = n - n % kChunk;
    dispatch_first<kChunkStages, kWords>(stages, x, y, whole, scale, scale != 1.f);
    if (whole < n) fwht_small(x + whole, y + whole, n - whole, two, scale);
    return;
  }
  for (int64_t base = 0; base < n; base += two) {
    float* w = work;
    if constexpr (sizeof(Out) == 4)
      if (!work) w = y + base;
    first_pass<kChunkStages, kWords>(x + base, w, two, 1.f, false);
    int64_t stride = kChunk;
    for (; stride * 8 < two; stride *= 8) later_pass<8, false>(w, w, two, stride, 1.f, false);
    if (stride * 8 == two) later_pass<8, kWords>(w, y + base, two, stride, scale, true);
    if (stride * 4 == two) later_pass<4, kWords>(w, y + base, two, stride, scale, true);
    if (stride * 2 == two) later_pass<2, kWords>(w, y + base, two, stride, scale, true);
  }
}

template <class T>
static inline V load_some(const T* x, int64_t count) {  // the first count < kLanes lanes, others zero
  alignas(64) T t[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) t[i] = x[i];
  return load(t);
}

template <class T>
static inline void store_some(T* y, V v, int64_t count) {
  alignas(64) T t[kLanes];
  store(t, v);
  for (int64_t i = 0; i < count; ++i) y[i] = t[i];
}

// y[n] = scale * transform of x[n] over blocks of order * two; y may be x. work: mix_scratch floats; order 1:
// n, or null where y is fp32.
template <class In, class Out>
static void hadamard(const In* x, Out* y, float* work, int64_t n, int64_t order, int64_t two,
                     const MixTable* h, float scale) {
  if (order == 1) return fwht(x, y, work, n, two, scale);
  const int64_t block = order * two, most = mix_blocks(two);
  const MixShape shape = mix_shape(order, two);
  for (int64_t i = 0; i < n; i += most * block) {
    const int64_t blocks = std::min((n - i) / block, most);
    if (shape.stride == two) fwht(x + i, work, static_cast<float*>(nullptr), blocks * block, two, 1.f);
    else
      for (int64_t r = 0; r < blocks * order; ++r)
        fwht(x + i + r * two, work + r * shape.stride, static_cast<float*>(nullptr), two, two, 1.f);
    const char* next = reinterpret_cast<const char*>(x + i + blocks * block);
    mix(work, y + i, *h, shape, blocks, work + most * order * shape.stride, scale,
        {next, reinterpret_cast<const char*>(x + n), sizeof(In)});
  }
}

static inline int64_t hadamard_scratch(const HadamardParams& p) {
  return p.order == 1 ? p.n : mix_scratch(p.order, p.two);
}

// Rows are contiguous, so a row is only so many blocks: short ones share a pass.
template <class T>
static void hadamard_typed(const HadamardParams& p, float* scratch, int64_t begin, int64_t end) {
  const bool in_place = p.order == 1 && sizeof(T) == 4;
  hadamard(static_cast<const T*>(p.x) + begin * p.n, static_cast<T*>(p.y) + begin * p.n,
           in_place ? nullptr : scratch, (end - begin) * p.n, p.order, p.two, p.mix, p.scale);
}

static inline void hadamard_rows(const HadamardParams& p, float* scratch, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) hadamard_typed<float>(p, scratch, begin, end);
  if (p.dtype == DType::bf16) hadamard_typed<bf16>(p, scratch, begin, end);
  if (p.dtype == DType::f16) hadamard_typed<f16>(p, scratch, begin, end);
}

}  // namespace lowbit::cpu::LOWBIT_ISA
