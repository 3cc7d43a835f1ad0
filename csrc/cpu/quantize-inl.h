// Per-token symmetric quantisation, plain or after a Hadamard transform. Included once per instruction set.
#pragma once

#include "dispatch.h"
#include "hadamard-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

static inline bool transformed(const QuantizeParams& p) { return p.order != 0 || p.shift != nullptr; }

static inline int64_t padded(int64_t k) { return (k + 63) / 64 * 64; }

// row in fp32, the codes of a packed row (bytes), and what the transform needs
static int64_t quantize_scratch(const QuantizeParams& p) {
  return padded(p.k) + padded(p.k) / 4 + (p.order > 1 ? mix_scratch(p.order, p.two) : p.k);
}

template <class T>
static inline int32_t max_abs(const T* x, int64_t k) {
  I m0 = zero_bits(), m1 = m0, m2 = m0, m3 = m0;
  int64_t i = 0;
  for (; i + 4 * kLanes <= k; i += 4 * kLanes) {
    m0 = max_abs_bits(m0, load(x + i)), m1 = max_abs_bits(m1, load(x + i + kLanes));
    m2 = max_abs_bits(m2, load(x + i + 2 * kLanes)), m3 = max_abs_bits(m3, load(x + i + 3 * kLanes));
  }
  for (; i + kLanes <= k; i += kLanes) m0 = max_abs_bits(m0, load(x + i));
  if (i < k) m0 = max_abs_bits(m0, load_some(x + i, k - i));
  int32_t best = 0;
  for (const I m : {m0, m1, m2, m3}) {
    const int32_t b = lane_max_bits(m);
    best = b > best ? b : best;
  }
  return best;
}

template <class T>
static inline void write_codes(const T* x, int64_t k, float inv, int qmax, int8_t* q) {
  const int qmin = qmax == 7 ? -8 : -127;  // int8 is kept symmetric: the s16 sums of AVX2 count on it
  const V s = set1(inv), lo = set1(float(qmin)), hi = set1(float(qmax));
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) store_i8(q + i, to_codes(load(x + i), s, lo, hi));
  if (i < k) {
    int8_t t[kLanes];
    store_i8(t, to_codes(load_some(x + i, k - i), s, lo, hi));
    for (int64_t j = 0; i + j < k; ++j) q[i + j] = t[j];
  }
}

template <class T>
static void quantize_row(const QuantizeParams& p, const T* x, int8_t* q, float* scale) {
  const int qmax = p.bits == 4 ? 7 : 127;
  const uint32_t bits = uint32_t(max_abs(x, p.k));
  float s = bits_float(bits) * p.clip / float(qmax), inv = 0.f;
  if (bits >= 0x7f800000u) s = bits_float(0x7fc00000u);  // NaN or inf in the row: scale NaN, codes 0
  else if (s < 1.17549435e-38f) s = 1.f;                 // a zero row, or one whose 1 / scale would overflow
  else inv = 1.f / s;
  *scale = s;
  if (inv == 0.f) __builtin_memset(q, 0, size_t(p.k));
  else write_codes(x, p.k, inv, qmax, q);
}

static inline void pack_nibbles(const int8_t* q, int64_t k, uint8_t* out) {
  for (int64_t i = 0; i < k / 2; ++i) out[i] = uint8_t((q[2 * i] + 8) | ((q[2 * i + 1] + 8) << 4));
  if (k % 2) out[k / 2] = uint8_t((q[k - 1] + 8) | 0x80);
}

template <class T>
static void quantize_typed(const QuantizeParams& p, float* scratch, int64_t begin, int64_t end) {
  float* row = scratch;
  int8_t* codes = reinterpret_cast<int8_t*>(row + padded(p.k));
  float* work = row + padded(p.k) + padded(p.k) / 4;
  for (int64_t r = begin; r < end; ++r) {
    const T* x = static_cast<const T*>(p.x) + r * p.x_stride;
    int8_t* q = static_cast<int8_t*>(p.q) + r * p.q_stride;
    int8_t* to = p.packed ? codes : q;
    if (!transformed(p)) {
      quantize_row(p, x, to, p.scale + r);
    } else {
      const float* from = row;
      if (p.shift) {
        int64_t i = 0;
        for (; i + kLanes <= p.k; i += kLanes) store(row + i, sub(load(x + i), load(p.shift + i)));
        if (i < p.k) {
          alignas(64) float t[kLanes];
          store(t, sub(load_some(x + i, p.k - i), load_some(p.shift + i, p.k - i)));
          for (int64_t j = 0; i + j < p.k; ++j) row[i + j] = t[j];
        }
      }
      if (p.order) {
        const float norm = float(1.0 / __builtin_sqrt(double(p.order * p.two)));
        if (p.shift) hadamard(row, row, work, p.k, p.order, p.two, p.mix, norm);
        else hadamard(x, row, work, p.k, p.order, p.two, p.mix, norm);
      }
      quantize_row(p, from, to, p.scale + r);
    }
    if (p.packed) pack_nibbles(codes, p.k, reinterpret_cast<uint8_t*>(q));
    else
      for (int64_t i = p.k; i < p.q_stride; ++i) q[i] = 0;
  }
}

static void quantize_rows(const QuantizeParams& p, float* scratch, int64_t begin, int64_t end) {
  if (p.x_dtype == DType::f32) quantize_typed<float>(p, scratch, begin, end);
  if (p.x_dtype == DType::bf16) quantize_typed<bf16>(p, scratch, begin, end);
  if (p.x_dtype == DType::f16) quantize_typed<f16>(p, scratch, begin, end);
}

}  // namespace lowbit::cpu::LOWBIT_ISA
