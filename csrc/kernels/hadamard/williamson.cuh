// The factor K = 4 n of a Williamson matrix (numeric/williamson.h): the additions of
// cpu/hadamard_williamson-inl.h in the same order, so the same bits.
#pragma once

#include <utility>

#include "../../numeric/williamson.h"
#include "../quantize/codes.cuh"
#include "config.h"
#include "tile.cuh"

namespace lowbit::kernels::hadamard {

// z[4] += S[kD] x, of one input
template <int kD, int kInput>
LOWBIT_DEVICE void add_unit(float (&z)[4], float x) {
  if constexpr (kD > 0 && kD < kWilliamsonN) {
    using T = WilliamsonTerm<kWilliamsonN, kD, kInput>;
    z[T::to] = T::minus ? ptx::sub_rn(z[T::to], x) : ptx::add_rn(z[T::to], x);
  }
}

// One input kAhead places from the first, to each of the places.
template <int kAhead, int kInput, int... kPlace>
LOWBIT_DEVICE void add_input(float (&z)[kWilliamsonPlaces][4], float x,
                             std::integer_sequence<int, kPlace...>) {
  (add_unit<kAhead - kPlace, kInput>(z[kPlace], x), ...);
}

template <class Load, int... kBefore>
LOWBIT_DEVICE void add_inputs(float (&z)[kWilliamsonPlaces][4], const Load& load,
                              std::integer_sequence<int, kBefore...>) {
  constexpr auto places = std::make_integer_sequence<int, kWilliamsonPlaces>();
  float x[4];
  ((load(x, kBefore + 1), add_input<kBefore + 1, 0>(z, x[0], places),
    add_input<kBefore + 1, 1>(z, x[1], places), add_input<kBefore + 1, 2>(z, x[2], places),
    add_input<kBefore + 1, 3>(z, x[3], places)),
   ...);
}

// sum + w x, w row kRow of W[kD]
template <int kD, int kRow>
LOWBIT_DEVICE float add_row(float sum, const float (&x)[4]) {
  using T = WilliamsonRow<kWilliamsonN, kD, kRow>;
  const float first = T::sign1 == T::sign0 ? ptx::add_rn(x[0], x[1]) : ptx::sub_rn(x[0], x[1]);
  const float last = T::sign3 == T::sign2 ? ptx::add_rn(x[2], x[3]) : ptx::sub_rn(x[2], x[3]);
  const float all = T::sign2 == T::sign0 ? ptx::add_rn(first, last) : ptx::sub_rn(first, last);
  return T::sign0 > 0 ? ptx::add_rn(sum, all) : ptx::sub_rn(sum, all);
}

// A thread makes the four outputs of each of kWilliamsonPlaces places of a column, in another buffer.
// Collective over the block, without a barrier. Returns the largest magnitude that the thread made, as bits.
template <bool kMost, bool kShared>
LOWBIT_DEVICE uint32_t mix_williamson(const Tile<kShared>& from, const Tile<kShared>& to, int count,
                                      int stages) {
  constexpr int kN = kWilliamsonN, kPlaces = kWilliamsonPlaces;
  const int two = 1 << stages, columns = count / (4 * kN);
  uint32_t most = 0;
  const int items = columns * ((kN + kPlaces - 1) / kPlaces);
  for (int item = ptx::thread_index(); item < items; item += ptx::thread_count()) {
    const int q = item % columns, i = item / columns * kPlaces;
    const int first = (q >> stages) * (4 * kN) * two + (q & (two - 1));
    const auto load = [&](float (&x)[4], int ahead) {  // the places go round
      const int e = first + (i + ahead < kN ? i + ahead : i + ahead - kN) * two;
      LOWBIT_UNROLL
      for (int c = 0; c < 4; ++c) x[c] = from.template load_at<1>(Tile<kShared>::place(e + c * kN * two))[0];
    };
    float z[kPlaces][4];
    LOWBIT_UNROLL
    for (int p = 0; p < kPlaces; ++p) {
      LOWBIT_UNROLL
      for (int c = 0; c < 4; ++c) z[p][c] = 0.f;
    }
    add_inputs(z, load, std::make_integer_sequence<int, kN + kPlaces - 2>());
    LOWBIT_UNROLL
    for (int p = 0; p < kPlaces; ++p) {
      if (i + p >= kN) continue;
      float x[4];
      load(x, p);
      const float y[4] = {
          add_row<0, 0>(add_row<1, 0>(0.f, z[p]), x), add_row<0, 1>(add_row<1, 1>(0.f, z[p]), x),
          add_row<0, 2>(add_row<1, 2>(0.f, z[p]), x), add_row<0, 3>(add_row<1, 3>(0.f, z[p]), x)};
      if (kMost) most = quantize::max_magnitude(most, y);
      LOWBIT_UNROLL
      for (int r = 0; r < 4; ++r)
        to.store_at(Tile<kShared>::place(first + (r * kN + i + p) * two), ptx::Vector<float, 1>{{y[r]}});
    }
  }
  return most;
}

}  // namespace lowbit::kernels::hadamard
