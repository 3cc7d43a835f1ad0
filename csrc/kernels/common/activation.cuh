// Gated activations: the same bits on every backend, so exp is a polynomial and every operation rounds once.
#pragma once

#include "../../ptx/bits.h"
#include "activation.h"

namespace lowbit::kernels {

// e^t for t in [-87, 88]: 2^n times a polynomial in the rest, which is at most ln 2 / 2.
LOWBIT_DEVICE float exponential(float t) {
  constexpr float kToInteger =
      12582912.f;  // 1.5 * 2^23 plus x has the nearest even integer to x in its low bits
  t = ptx::min_f32(ptx::max_f32(t, -87.f), 88.f);
  const float shifted = ptx::add_rn(ptx::mul_rn(t, 1.44269504f), kToInteger);
  const float n = ptx::sub_rn(shifted, kToInteger);
  const float r = ptx::sub_rn(ptx::sub_rn(t, ptx::mul_rn(n, 0.693359375f)), ptx::mul_rn(n, -2.12194440e-4f));
  constexpr float c[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                         5.0000001201e-1f};
  float p = 1.9875691500e-4f;
  LOWBIT_UNROLL
  for (int i = 0; i < 5; ++i) p = ptx::add_rn(ptx::mul_rn(p, r), c[i]);
  p = ptx::add_rn(ptx::add_rn(ptx::mul_rn(p, ptx::mul_rn(r, r)), r), 1.f);
  return ptx::bit_cast<float>(ptx::bit_cast<uint32_t>(p) + (ptx::bit_cast<uint32_t>(shifted) << 23));
}

LOWBIT_DEVICE float sigmoid(float x) { return ptx::rcp_rn(ptx::add_rn(1.f, exponential(-x))); }

// activation(gate) * up; gelu_tanh(g) = g sigmoid(2 sqrt(2 / pi) (g + 0.044715 g^3)).
LOWBIT_DEVICE float gated(float gate, float up, Activation activation) {
  float at = gate;
  if (activation == Activation::kGeluTanh) {
    const float cube = ptx::mul_rn(ptx::mul_rn(gate, gate), gate);
    at = ptx::mul_rn(1.59576912f, ptx::add_rn(gate, ptx::mul_rn(0.044715f, cube)));
  }
  return ptx::mul_rn(ptx::mul_rn(gate, sigmoid(at)), up);
}

}  // namespace lowbit::kernels
