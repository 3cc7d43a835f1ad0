// exp and the sum over neighbours, bit for bit the same on every backend: the polynomial and the order of its
// roundings are part of the numeric contract. Included once per instruction set.
#pragma once

#include <cstdint>

namespace lowbit::cpu::LOWBIT_ISA {

// exp(x), x clamped to [-87, 88]; NaN stays NaN
static inline V exponential(V x) {
  const V t = max(min(x, set1(88.f)), set1(-87.f)), n = round_even(mul(t, set1(1.44269504f)));
  const V r = sub(sub(t, mul(n, set1(0.693359375f))), mul(n, set1(-2.12194440e-4f)));
  V p = set1(1.9875691500e-4f);
  p = add(mul(p, r), set1(1.3981999507e-3f));
  p = add(mul(p, r), set1(8.3334519073e-3f));
  p = add(mul(p, r), set1(4.1665795894e-2f));
  p = add(mul(p, r), set1(1.6666665459e-1f));
  p = add(mul(p, r), set1(5.0000001201e-1f));
  p = add(add(mul(p, mul(r, r)), r), set1(1.f));
  return times_power(p, n);
}

// v[0] + ... + v[n - 1], n >= 1, neighbours first; an odd one goes on as it is. Overwrites v.
static inline float neighbour_sum(float* v, int64_t n) {
  for (; n > 1; n = (n + 1) / 2) {
    for (int64_t i = 0; i < n / 2; ++i) v[i] = v[2 * i] + v[2 * i + 1];
    if (n % 2) v[n / 2] = v[n - 1];
  }
  return v[0];
}

}  // namespace lowbit::cpu::LOWBIT_ISA
