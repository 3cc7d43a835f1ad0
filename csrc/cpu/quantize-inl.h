// Per-token symmetric quantisation, plain or after a Hadamard transform, and quantisation to FP4. Included
// once per instruction set.
#pragma once

#include "../numeric/format.h"
#include "../numeric/int4.h"
#include "dispatch.h"
#include "hadamard-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

static inline bool transformed(const QuantizeParams& p) { return p.order != 0 || p.shift != nullptr; }

static inline int64_t padded(int64_t k) { return (k + 63) / 64 * 64; }

// row in fp32, the codes of a packed row (bytes), and what the transform needs
static inline int64_t quantize_scratch(const QuantizeParams& p) {
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

// The scale of a row whose largest |x| has these bits; returns its inverse, or 0 where all codes are zero.
static inline float finish_scale(uint32_t bits, float s, float* scale) {
  float inv = 0.f;
  if (bits >= 0x7f800000u) s = bits_float(0x7fc00000u);  // NaN or inf in the row: scale NaN, codes 0
  else if (s < 1.17549435e-38f) s = 1.f;                 // a zero row, or one whose 1 / scale would overflow
  else inv = 1.f / s;
  *scale = s;
  return inv;
}

template <class T>
static void quantize_row(const QuantizeParams& p, const T* x, int8_t* q, float* scale) {
  const int qmax = p.bits == 4 ? 7 : 127;
  const uint32_t bits = uint32_t(max_abs(x, p.k));
  const float inv = finish_scale(bits, bits_float(bits) * p.clip / float(qmax), scale);
  if (inv == 0.f) __builtin_memset(q, 0, size_t(p.k));
  else write_codes(x, p.k, inv, qmax, q);
}

static inline void unpack_nibbles(const uint8_t* from, int64_t bytes, int8_t* to) {
  for (int64_t i = 0; i < bytes; ++i)
    to[2 * i] = int8_t(int4::decode_low(from[i])), to[2 * i + 1] = int8_t(int4::decode_high(from[i]));
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

static inline void quantize_rows(const QuantizeParams& p, float* scratch, int64_t begin, int64_t end) {
  if (p.x_dtype == DType::f32) quantize_typed<float>(p, scratch, begin, end);
  if (p.x_dtype == DType::bf16) quantize_typed<bf16>(p, scratch, begin, end);
  if (p.x_dtype == DType::f16) quantize_typed<f16>(p, scratch, begin, end);
}

// ---- FP4 ----

constexpr int64_t kFp4Block = 256;  // elements on their way from floats to nibbles

// The next elements of a row, at most kFp4Block, as floats times their powers of two.
template <class T>
static inline int64_t read_block(const QuantizeFp4Params& p, const T* x, int64_t begin, float* y) {
  const int64_t count = p.k - begin < kFp4Block ? p.k - begin : kFp4Block;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t at = begin + i;
    const bool whole = i + kLanes <= count;
    V v = whole ? load(x + at) : load_some(x + at, count - i);
    if (p.power) v = mul(v, whole ? load(p.power + at) : load_some(p.power + at, count - i));
    store(y + i, v);
  }
  return count;
}

template <class F, class T>
static void quantize_fp4_row(const QuantizeFp4Params& p, const T* x, uint8_t* q, float* scale) {
  alignas(64) float y[kFp4Block];
  uint8_t code[kFp4Block + 1];
  uint32_t most = 0;  // largest |x| as integer bits
  for (int64_t i = 0; i < p.k; i += kFp4Block) {
    const uint32_t m = uint32_t(max_abs(y, read_block(p, x, i, y)));
    most = m > most ? m : most;
  }
  const float dynamic = bits_float(most) * p.clip / F::kMax;
  const float inv = finish_scale(most, p.fixed_scale > 0.f ? p.fixed_scale : dynamic, scale);
  if (inv == 0.f) {
    __builtin_memset(q, 0, size_t((p.k + 1) / 2));
    return;
  }
  for (int64_t i = 0; i < p.k; i += kFp4Block, q += kFp4Block / 2) {
    const int64_t count = read_block(p, x, i, y);
    for (int64_t j = 0; j < count; j += kLanes) store_u8(code + j, encode<F>(mul(load(y + j), set1(inv))));
    code[count] = 0;  // the pad nibble of an odd row
    for (int64_t j = 0; j < (count + 1) / 2; ++j) q[j] = uint8_t(code[2 * j] | (code[2 * j + 1] << 4));
  }
}

template <class T>
static void quantize_fp4_typed(const QuantizeFp4Params& p, int64_t begin, int64_t end) {
  with_minifloat(p.format, [&](auto format) {
    using F = decltype(format);
    if constexpr (F::kBits == 4)
      for (int64_t r = begin; r < end; ++r)
        quantize_fp4_row<F>(p, static_cast<const T*>(p.x) + r * p.k, p.q + r * ((p.k + 1) / 2), p.scale + r);
  });
}

static inline void quantize_fp4_rows(const QuantizeFp4Params& p, int64_t begin, int64_t end) {
  if (p.x_dtype == DType::f32) quantize_fp4_typed<float>(p, begin, end);
  if (p.x_dtype == DType::bf16) quantize_fp4_typed<bf16>(p, begin, end);
  if (p.x_dtype == DType::f16) quantize_fp4_typed<f16>(p, begin, end);
}

// ---- codes of a minifloat, one per byte ----

// Registers do ties to even; NaN, which they do not know, and what does not fill a register goes one by one.
template <class F, Ties kTies, class T>
static void encode_run(const T* x, uint8_t* codes, int64_t n) {
  for (int64_t i = 0; i < n; i += kFp4Block) {
    const int64_t count = n - i < kFp4Block ? n - i : kFp4Block;
    int64_t j = i;
    if (kTies == Ties::kEven && uint32_t(max_abs(x + i, count)) <= 0x7f800000u)
      for (; j + kLanes <= i + count; j += kLanes) store_u8(codes + j, encode<F>(load(x + j)));
    for (; j < i + count; ++j) codes[j] = F::template encode<kTies>(to_float(x[j]));
  }
}

static inline void encode_fp(const EncodeParams& p, int64_t begin, int64_t end) {
  const auto run = [&](const auto* x) {
    with_minifloat(p.format, [&](auto format) {
      using F = decltype(format);
      if (p.ties_away) encode_run<F, Ties::kAway>(x + begin, p.codes + begin, end - begin);
      else encode_run<F, Ties::kEven>(x + begin, p.codes + begin, end - begin);
    });
  };
  if (p.dtype == DType::f32) run(static_cast<const float*>(p.x));
  if (p.dtype == DType::bf16) run(static_cast<const bf16*>(p.x));
  if (p.dtype == DType::f16) run(static_cast<const f16*>(p.x));
}

}  // namespace lowbit::cpu::LOWBIT_ISA
