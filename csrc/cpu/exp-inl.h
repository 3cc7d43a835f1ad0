// exp and the sum over neighbours, bit for bit the same on every backend (docs/ops.md). Included once per
// instruction set.
#pragma once

#include "dispatch.h"

namespace lowbit::cpu::LOWBIT_ISA {

// exp(t), t clamped to [-87, 88]; NaN stays NaN. Every operation rounds once.
static inline V exponential(V t) {
  t = max(min(t, set1(88.f)), set1(-87.f));
  const V n = to_codes(t, set1(1.44269504f), set1(-256.f), set1(256.f));  // no clamp: |n| < 128
  const V r = sub(sub(t, mul(n, set1(0.693359375f))), mul(n, set1(-2.12194440e-4f)));
  V p = set1(1.9875691500e-4f);
  for (const float c :
       {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = add(mul(p, r), set1(c));
  return times_power(add(add(mul(p, mul(r, r)), r), set1(1.f)), n);
}

// v[0] + ... + v[n - 1], n >= 1, neighbours first; an odd one goes on as it is. Overwrites v.
static inline float tree_sum(float* v, int64_t n) {
  for (; n > 1; n = (n + 1) / 2) {
    for (int64_t i = 0; i < n / 2; ++i) v[i] = v[2 * i] + v[2 * i + 1];
    if (n % 2) v[n / 2] = v[n - 1];
  }
  return v[0];
}

}  // namespace lowbit::cpu::LOWBIT_ISA
