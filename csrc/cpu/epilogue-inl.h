// What becomes of the sums of a GEMM, integers or floats: included after a vec header.
#pragma once

#include "dispatch.h"

namespace lowbit::cpu::LOWBIT_ISA {

// y = sum * w_scale, * x_scale, + bias, + each low-rank product, + residual: every step rounded, in this
// order, on every backend. A power of two goes into w_scale, which it does not round.
struct Epilogue {
  int64_t n;
  const float* w_scale;  // [n]
  float w_factor;        // a power of two
  const float* x_scale;  // [m] or null
  const float* bias;     // [n] or null
  int64_t rank;          // 0: no low-rank term
  const float* low_rank;
  const float* low_rank_up;
  const void* residual;  // [m, n] of y's dtype, or null; may be y itself
  void* y;
  DType dtype;
};

constexpr int kVectors = 16 / kLanes;  // of a channel tile

// 16 channels of which `valid` exist: where they are, or a copy with zeros after them.
template <class T>
static inline const T* channels(const T* from, int64_t valid, T (&copy)[16]) {
  if (valid == 16) return from;
  for (int64_t i = 0; i < 16; ++i) copy[i] = i < valid ? from[i] : T{};
  return copy;
}

// The addends that few layers have.
template <class Out>
static void add_more(const Epilogue& e, V (&v)[kVectors], Out (&tail)[16], int64_t valid, int64_t m,
                     int64_t n) {
  float copy[16];
  for (int64_t r = 0; r < e.rank; ++r) {
    const float* up = channels(e.low_rank_up + r * e.n + n, valid, copy);
    const V x = set1(e.low_rank[m * e.rank + r]);
    for (int i = 0; i < kVectors; ++i) v[i] = add(v[i], mul(x, load(up + i * kLanes)));
  }
  if (!e.residual) return;
  const Out* residual = channels(static_cast<const Out*>(e.residual) + m * e.n + n, valid, tail);
  for (int i = 0; i < kVectors; ++i) v[i] = add(v[i], load(residual + i * kLanes));
}

static inline V to_floats(const int32_t* sum) { return from_i32(sum); }
static inline V to_floats(const float* sum) { return load(sum); }

// kPlain: 16 channels, without the addends that few layers have, so that nothing leaves registers on its way.
template <class Out, bool kPlain, class Sum>
static inline void finish_rows(const Epilogue& e, float sum_scale, const Sum* sum, int64_t stride,
                               int64_t row, int64_t rows, int64_t n) {
  const int64_t valid = kPlain || e.n - n > 16 ? 16 : e.n - n;
  float copy[16];
  const float* from = channels(e.w_scale + n, valid, copy);
  V w_scale[kVectors], bias[kVectors] = {};
  for (int i = 0; i < kVectors; ++i) w_scale[i] = mul(load(from + i * kLanes), set1(e.w_factor));
  from = e.bias ? channels(e.bias + n, valid, copy) : copy;
  for (int i = 0; e.bias && i < kVectors; ++i) bias[i] = load(from + i * kLanes);
  const float* x_scale = e.x_scale;
  const bool has_bias = e.bias;
  Out* y = static_cast<Out*>(e.y) + row * e.n + n;
  for (int64_t m = row; m < row + rows; ++m, sum += stride, y += e.n) {
    V v[kVectors];
    for (int i = 0; i < kVectors; ++i)
      v[i] = mul(mul(to_floats(sum + i * kLanes), set1(sum_scale)), w_scale[i]);
    if (x_scale)
      for (int i = 0; i < kVectors; ++i) v[i] = mul(v[i], set1(x_scale[m]));
    if (has_bias)
      for (int i = 0; i < kVectors; ++i) v[i] = add(v[i], bias[i]);
    if constexpr (kPlain) {
      for (int i = 0; i < kVectors; ++i) store(y + i * kLanes, v[i]);
    } else {
      Out tail[16];
      add_more(e, v, tail, valid, m, n);
      Out* to = valid == 16 ? y : tail;
      for (int i = 0; i < kVectors; ++i) store(to + i * kLanes, v[i]);
      for (int64_t i = 0; valid < 16 && i < valid; ++i) y[i] = tail[i];
    }
  }
}

template <class Out, class Sum>
static inline void finish_tile(const Epilogue& e, float sum_scale, const Sum* sum, int64_t stride,
                               int64_t row, int64_t rows, int64_t n) {
  const bool plain = e.n - n >= 16 && !e.rank && !e.residual;
  if (plain) finish_rows<Out, true>(e, sum_scale, sum, stride, row, rows, n);
  else finish_rows<Out, false>(e, sum_scale, sum, stride, row, rows, n);
}

// y[row .. row + rows] of `tiles` channel tiles from their sums, `stride` from row to row, times sum_scale, a
// power of two.
template <class Sum>
static inline void finish(const Epilogue& e, float sum_scale, const Sum* sums, int64_t stride, int64_t row,
                          int64_t rows, int64_t tile, int64_t tiles) {
  for (int64_t t = 0; t < tiles; ++t) {
    const Sum* sum = sums + t * 16;
    const int64_t n = (tile + t) * 16;
    if (e.dtype == DType::f32) finish_tile<float>(e, sum_scale, sum, stride, row, rows, n);
    if (e.dtype == DType::bf16) finish_tile<bf16>(e, sum_scale, sum, stride, row, rows, n);
    if (e.dtype == DType::f16) finish_tile<f16>(e, sum_scale, sum, stride, row, rows, n);
  }
}

}  // namespace lowbit::cpu::LOWBIT_ISA
