// The factor K = 4 n of a Williamson matrix, with n additions per element instead of 4 n
// (numeric/williamson.h).
#pragma once

#include <utility>

#include "../numeric/williamson.h"
#include "dispatch.h"

namespace lowbit::cpu::LOWBIT_ISA {

// order rows of `two` columns, and the floats from one row of x to the next. Rows of y are `two` apart.
struct MixShape {
  int64_t order, two, stride;
};

// The input of the next blocks, asked for while these are mixed: as much as is mixed.
struct Ahead {
  const char *at, *end;
  int64_t size;  // of an element
  inline void ask(int64_t elements) {
    const char* to = at + elements * size;
    for (const char* stop = to < end ? to : end; at < stop; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// z[4] += S[d] x[4]
template <int kN, int kD, int... kInput>
static inline void add_unit(V (&z)[4], const float* x, std::integer_sequence<int, kInput...>) {
  const auto add_input = [&](auto term, V v) {
    V& to = z[term.to];
    to = term.minus ? sub(to, v) : add(to, v);
  };
  (add_input(WilliamsonTerm<kN, kD, kInput>(), load(x + kInput * kLanes)), ...);
}

template <int kN, int... kBefore>
static inline void add_units(V (&z)[4], const float* x, std::integer_sequence<int, kBefore...>) {
  (add_unit<kN, kBefore + 1>(z, x + 4 * (kBefore + 1) * kLanes, std::make_integer_sequence<int, 4>()), ...);
}

// sum + w x, w row kRow of W[d]
template <int kN, int kD, int kRow>
static inline V add_row(V sum, const V (&x)[4]) {
  using T = WilliamsonRow<kN, kD, kRow>;
  const V first = T::sign1 == T::sign0 ? add(x[0], x[1]) : sub(x[0], x[1]);
  const V last = T::sign3 == T::sign2 ? add(x[2], x[3]) : sub(x[2], x[3]);
  const V all = T::sign2 == T::sign0 ? add(first, last) : sub(first, last);
  return T::sign0 > 0 ? add(sum, all) : sub(sum, all);
}

// work: two times the inputs of a column register, [n][4], so that n places behind each other never end.
template <int kN, class Out>
static void mix_williamson(const float* x, Out* y, const MixShape& shape, int64_t blocks, float* work,
                           float scale, Ahead& ahead) {
  constexpr int kPlace = 4 * kLanes;
  const V s = set1(scale), zero = set1(0.f);
  const auto write = [&](Out* to, V sum) { store(to, mul(sum, s)); };
  for (int64_t b = 0; b < blocks; ++b, x += 4 * kN * shape.stride, y += 4 * kN * shape.two)
    for (int64_t column = 0; column < shape.two; column += kLanes) {
      for (int i = 0; i < kN; ++i)
        for (int c = 0; c < 4; ++c) {
          const V v = load(x + (c * kN + i) * shape.stride + column);
          store(work + i * kPlace + c * kLanes, v), store(work + (kN + i) * kPlace + c * kLanes, v);
        }
      for (int i = 0; i < kN; ++i) {
        const float* at = work + i * kPlace;
        V z[4] = {zero, zero, zero, zero};
        add_units<kN>(z, at, std::make_integer_sequence<int, kN - 1>());
        const V v[4] = {load(at), load(at + kLanes), load(at + 2 * kLanes), load(at + 3 * kLanes)};
        Out* to = y + i * shape.two + column;
        write(to, add_row<kN, 0, 0>(add_row<kN, 1, 0>(zero, z), v));
        write(to + kN * shape.two, add_row<kN, 0, 1>(add_row<kN, 1, 1>(zero, z), v));
        write(to + 2 * kN * shape.two, add_row<kN, 0, 2>(add_row<kN, 1, 2>(zero, z), v));
        write(to + 3 * kN * shape.two, add_row<kN, 0, 3>(add_row<kN, 1, 3>(zero, z), v));
        ahead.ask(kPlace);
      }
    }
}

}  // namespace lowbit::cpu::LOWBIT_ISA
