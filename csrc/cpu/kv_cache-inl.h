// INT4 keys and values: asymmetric, fp16 scale and zero per token and head. Included once per instruction
// set.
#pragma once

#include "../numeric/float16.h"
#include "dispatch.h"
#include "quantize-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int64_t kKvChunk = 256;  // elements of a head that are unpacked at a time

template <class T>
static void kv4_quantize_row(const T* x, int64_t d, float clip, uint8_t* packed, uint16_t* params) {
  V low = set1(__builtin_inff()), high = set1(-__builtin_inff());
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) low = min(low, load(x + i)), high = max(high, load(x + i));
  float lo = lane_min(low), hi = lane_max(high);
  if (i < d) {
    alignas(64) float t[kLanes];
    store(t, load_some(x + i, d - i));
    for (int64_t j = 0; i + j < d; ++j) lo = t[j] < lo ? t[j] : lo, hi = t[j] > hi ? t[j] : hi;
  }
  const bool finite = uint32_t(max_abs(x, d)) < 0x7f800000u;
  uint16_t scale = float_to_fp16((hi * clip - lo * clip) / 15.f), zero = float_to_fp16(lo * clip);
  if (!finite || (scale & 0x7c00) == 0x7c00 || (zero & 0x7c00) == 0x7c00) scale = zero = 0x7e00;  // NaN
  params[0] = scale, params[1] = zero;
  const float s = fp16_to_float(scale), z = fp16_to_float(zero);
  if (!(s > 0.f)) {
    __builtin_memset(packed, 0, size_t((d + 1) / 2));
    return;
  }
  const V vz = set1(z), inv = set1(1.f / s), first = set1(0.f), last = set1(15.f);
  for (int64_t base = 0; base < d; base += kKvChunk) {
    const int64_t count = d - base < kKvChunk ? d - base : kKvChunk;
    int8_t q[kKvChunk + kLanes];
    for (i = 0; i < count; i += kLanes) {
      const V v = i + kLanes <= count ? load(x + base + i) : load_some(x + base + i, count - i);
      store_i8(q + i, to_codes(sub(v, vz), inv, first, last));
    }
    for (i = 0; i < count / 2; ++i) packed[base / 2 + i] = uint8_t(q[2 * i] | (q[2 * i + 1] << 4));
    if (count % 2) packed[(base + count) / 2] = uint8_t(q[count - 1]);
  }
}

template <class T>
static void kv4_quantize_typed(const Kv4Params& p, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r)
    kv4_quantize_row(static_cast<const T*>(p.x) + r * p.d, p.d, p.clip, p.packed + r * ((p.d + 1) / 2),
                     p.params + 2 * r);
}

template <class T>
static void kv4_dequantize_typed(const Kv4Params& p, int64_t begin, int64_t end) {
  const int64_t bytes = (p.d + 1) / 2;
  for (int64_t r = begin; r < end; ++r) {
    const uint8_t* packed = p.packed + r * bytes;
    T* y = static_cast<T*>(p.y) + r * p.d;
    const V scale = set1(fp16_to_float(p.params[2 * r])), zero = set1(fp16_to_float(p.params[2 * r + 1]));
    for (int64_t base = 0; base < p.d; base += kKvChunk) {
      const int64_t count = p.d - base < kKvChunk ? p.d - base : kKvChunk;
      uint8_t q[kKvChunk + kLanes];
      T out[kLanes];
      for (int64_t i = 0; i < (count + 1) / 2; ++i) {
        const uint8_t b = packed[base / 2 + i];
        q[2 * i] = b & 15, q[2 * i + 1] = b >> 4;
      }
      for (int64_t i = 0; i < count; i += kLanes) {
        const V v = add(mul(from_u8(q + i), scale), zero);
        if (i + kLanes <= count) {
          store(y + base + i, v);
        } else {
          store(out, v);
          for (int64_t j = 0; i + j < count; ++j) y[base + i + j] = out[j];
        }
      }
    }
  }
}

static void kv4_quantize_rows(const Kv4Params& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) kv4_quantize_typed<float>(p, begin, end);
  if (p.dtype == DType::bf16) kv4_quantize_typed<bf16>(p, begin, end);
  if (p.dtype == DType::f16) kv4_quantize_typed<f16>(p, begin, end);
}

static void kv4_dequantize_rows(const Kv4Params& p, int64_t begin, int64_t end) {
  if (p.dtype == DType::f32) kv4_dequantize_typed<float>(p, begin, end);
  if (p.dtype == DType::bf16) kv4_dequantize_typed<bf16>(p, begin, end);
  if (p.dtype == DType::f16) kv4_dequantize_typed<f16>(p, begin, end);
}

}  // namespace lowbit::cpu::LOWBIT_ISA
