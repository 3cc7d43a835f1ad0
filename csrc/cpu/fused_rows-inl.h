// Rows that leave as codes: static quantisation alone, and quantisation fused with RMSNorm (and the residual
// sum) or with the gate of an MLP. Included once per instruction set.
#pragma once

#include <type_traits>

#include "dispatch.h"
#include "exp-inl.h"
#include "quantize-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

// f(i, count) for the registers of n elements; count is kLanes but for the last.
template <class F>
static inline void each_register(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, std::integral_constant<int64_t, kLanes>());
  if (i < n) f(i, n - i);
}

template <class T>
static inline V part(const T* x, int64_t count) {
  return load_some(x, count);
}
template <class T>
static inline V part(const T* x, std::integral_constant<int64_t, kLanes>) {
  return load(x);
}
template <class T>
static inline void set_part(T* y, V v, int64_t count) {
  store_some(y, v, count);
}
template <class T>
static inline void set_part(T* y, V v, std::integral_constant<int64_t, kLanes>) {
  store(y, v);
}
static inline void set_codes(int8_t* q, V codes, int64_t count) {
  int8_t t[kLanes];
  store_i8(t, codes);
  for (int64_t i = 0; i < count; ++i) q[i] = t[i];
}
static inline void set_codes(int8_t* q, V codes, std::integral_constant<int64_t, kLanes>) {
  store_i8(q, codes);
}

// ---- sums in a fixed order: neighbours first, so that the width of a register does not show ----

// Eight registers to one: the sums of eight neighbours each.
static inline V fold(const V (&v)[8]) {
  return pair_sums(pair_sums(pair_sums(v[0], v[1]), pair_sums(v[2], v[3])),
                   pair_sums(pair_sums(v[4], v[5]), pair_sums(v[6], v[7])));
}

static inline int64_t tree_scratch(int64_t n) { return n / 8 + 2 * kChunk; }

// The sum of value(i, count) over registers of n elements. sums: tree_scratch(n) floats; each level of the
// tree takes an eighth of the one before. Zeros that fill up a level change nothing.
template <class F>
static inline float tree_sum(int64_t n, float* sums, const F& value) {
  const V zero = set1(0.f);
  int64_t i = 0;
  for (; i + kChunk <= n; i += kChunk) {
    V v[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) v[j] = value(i + j * kLanes, std::integral_constant<int64_t, kLanes>());
    store(sums + i / 8, fold(v));
  }
  if (i < n) {
    V v[8] = {zero, zero, zero, zero, zero, zero, zero, zero};
    each_register(n - i, [&](int64_t at, auto count) { v[at / kLanes] = value(i + at, count); });
    store(sums + i / 8, fold(v));
  }
  for (int64_t count = (n + 7) / 8; count > 1; count = (count + 7) / 8) {
    for (i = count; i % kChunk; ++i) sums[i] = 0.f;
    for (i = 0; i < count; i += kChunk) {
      V v[8];
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) v[j] = load(sums + i + j * kLanes);
      store(sums + i / 8, fold(v));
    }
  }
  return n ? sums[0] : 0.f;
}

// ---- activations: the polynomial and the order of its roundings are part of the numeric contract ----

static inline V sigmoid(V x) {
  const V one = set1(1.f);
  return div(one, add(one, exponential(sub(set1(0.f), x))));
}

template <bool kGelu>
static inline V activation(V g) {
  if (!kGelu) return mul(g, sigmoid(g));
  const V cube = mul(mul(g, g), g);
  return mul(g, sigmoid(mul(set1(1.59576912f), add(g, mul(set1(0.044715f), cube)))));
}

// ---- from values to codes ----

// What a thread works in.
struct RowSpace {
  float* row;     // n or k values
  float* picked;  // k values, with an index
  int8_t* codes;  // k, before they are packed
  float* work;    // of a transform or a sum
};

struct RowSizes {  // of these, in floats
  int64_t row, picked, codes, work;
  explicit RowSizes(const FusedRowsParams& p)
      : row(padded(p.n > p.codes.k ? p.n : p.codes.k)),
        picked(p.codes.index ? padded(p.codes.k) : 0),
        codes(padded(p.codes.k) / 4),
        work(p.weight      ? tree_scratch(p.n)
             : p.order > 1 ? mix_scratch(p.order, p.two)
                           : 0) {}
  RowSpace at(float* scratch) const {
    return {scratch, scratch + row, reinterpret_cast<int8_t*>(scratch + row + picked),
            scratch + row + picked + codes};
  }
};

static inline int64_t fused_rows_scratch(const FusedRowsParams& p) {
  const RowSizes size(p);
  return size.row + size.picked + size.codes + size.work;
}

template <class T>
static inline const T* pick(const RowCodesParams& c, const T* from, float* to) {
  if (!c.index) return from;
  T* y = reinterpret_cast<T*>(to);
  const int32_t* index = c.index;
#pragma GCC unroll 4
  for (int64_t j = 0; j < c.k; ++j) y[j] = from[index[j]];
  return y;
}

// Codes of row r from its values, which scaled(v, j, count) may first multiply. Out: of floats.
template <class Out, class T, class F>
static inline void write_row(const RowCodesParams& c, const T* values, int64_t r, const RowSpace& space,
                             const F& scaled) {
  values = pick(c, values, space.picked);
  if (c.floats) {
    Out* y = static_cast<Out*>(c.q) + r * c.k;
    return each_register(c.k, [&](int64_t j, auto count) {
      set_part(y + j, scaled(part(values + j, count), j, count), count);
    });
  }
  int8_t* q = c.bits == 4 ? space.codes : static_cast<int8_t*>(c.q) + r * c.k;
  const float *inverse_step = c.inverse_step, *shift = c.shift;
  I most = zero_bits();
  const auto value = [&](int64_t j, auto count) {
    V v = scaled(part(values + j, count), j, count);
    if (inverse_step) v = mul(v, part(inverse_step + j, count));
    if (shift) v = sub(v, part(shift + j, count));
    most = max_abs_bits(most, v);
    return v;
  };
  if (c.static_scale) {
    const V one = set1(1.f), lo = set1(c.bits == 4 ? -8.f : -127.f), hi = set1(c.bits == 4 ? 7.f : 127.f);
    each_register(c.k, [&](int64_t j, auto count) {
      set_codes(q + j, to_codes(max(lo, value(j, count)), one, lo, hi), count);  // of NaN: lo
    });
    if (c.scale) c.scale[r] = uint32_t(lane_max_bits(most)) < 0x7f800000u ? 1.f : bits_float(0x7fc00000u);
  } else {
    const int qmax = c.bits == 4 ? 7 : 127;
    each_register(c.k, [&](int64_t j, auto count) { store(space.row + j, value(j, count)); });
    const uint32_t bits = uint32_t(lane_max_bits(most));
    const float inv = finish_scale(bits, bits_float(bits) * c.clip / float(qmax), c.scale + r);
    if (inv == 0.f) __builtin_memset(q, 0, size_t(c.k));
    else write_codes(space.row, c.k, inv, qmax, q);
  }
  if (c.bits == 4) pack_nibbles(q, c.k, static_cast<uint8_t*>(c.q) + r * ((c.k + 1) / 2));
}

template <class Out, class T>
static inline void write_row(const RowCodesParams& c, const T* values, int64_t r, const RowSpace& space) {
  write_row<Out>(c, values, r, space, [](V v, int64_t, auto) { return v; });
}

template <class T>
static inline void transform(const FusedRowsParams& p, const T* x, const RowSpace& space) {
  float* work = p.order > 1 ? space.work : nullptr;
  const float norm = float(1.0 / __builtin_sqrt(double(p.order * p.two)));
  hadamard(x, space.row, work, p.n, p.order, p.two, p.mix, norm);
}

// ---- the ops, a row at a time ----

struct StaticRow {
  template <class T>
  static inline void run(const FusedRowsParams& p, int64_t r, const RowSpace& space) {
    const T* x = static_cast<const T*>(p.x) + r * p.n;
    if (!p.order) return write_row<T>(p.codes, x, r, space);
    transform(p, x, space);
    write_row<T>(p.codes, static_cast<const float*>(space.row), r, space);
  }
};

struct NormRow {
  template <class T>
  static inline void run(const FusedRowsParams& p, int64_t r, const RowSpace& space) {
    const T *x = static_cast<const T*>(p.x) + r * p.n, *values = x;
    const T* residual = p.residual ? static_cast<const T*>(p.residual) + r * p.n : nullptr;
    T* sum = p.residual ? static_cast<T*>(p.sum) + r * p.n : nullptr;
    if (sum) values = sum;
    const float squares = tree_sum(p.n, space.work, [&](int64_t i, auto count) {
      if (sum) set_part(sum + i, add(part(x + i, count), part(residual + i, count)), count);
      const V s = part(values + i, count);  // the sum as its dtype rounded it
      return mul(s, s);
    });
    const V inv = set1(1.f / __builtin_sqrtf(squares / float(p.n) + p.eps)), offset = set1(p.gain_offset);
    // an offset of 0 is added too: it changes no more than the sign of a weight of zero
    write_row<T>(p.codes, values, r, space, [&](V v, int64_t j, auto count) {
      return mul(mul(v, inv), add(part(p.weight + j, count), offset));
    });
  }
};

struct GatedRow {
  template <bool kGelu, class T>
  static inline void gate(const T* x, int64_t n, float* row) {
    each_register(n, [&](int64_t i, auto count) {
      store(row + i, mul(activation<kGelu>(part(x + i, count)), part(x + n + i, count)));
    });
  }
  template <class T>
  static inline void run(const FusedRowsParams& p, int64_t r, const RowSpace& space) {
    const T* x = static_cast<const T*>(p.x) + r * 2 * p.n;
    if (p.gelu) gate<true>(x, p.n, space.row);
    else gate<false>(x, p.n, space.row);
    if (p.order) transform(p, static_cast<const float*>(space.row), space);
    write_row<T>(p.codes, static_cast<const float*>(space.row), r, space);
  }
};

template <class Op>
static void fused_rows(const FusedRowsParams& p, float* scratch, int64_t begin, int64_t end) {
  const RowSpace space = RowSizes(p).at(scratch);
  for (int64_t r = begin; r < end; ++r) {
    if (p.dtype == DType::f32) Op::template run<float>(p, r, space);
    if (p.dtype == DType::bf16) Op::template run<bf16>(p, r, space);
    if (p.dtype == DType::f16) Op::template run<f16>(p, r, space);
  }
}

}  // namespace lowbit::cpu::LOWBIT_ISA
