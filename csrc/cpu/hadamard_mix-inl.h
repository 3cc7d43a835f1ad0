// The factor K of a transform: y[j, c] = scale * sum_i H_K[j, i] x[i, c]. Included once per instruction set
// after its vec header.
//
// Four inputs have only eight signed sums up to a sign. An output adds one of them per four inputs, in order,
// from zero: K / 4 additions instead of K. For the K of numeric/hadamard_signs.h that is straight-line code;
// for others a table says which sum and which sign; Williamson's matrices have an order of their own.
#pragma once

#include <algorithm>
#include <utility>

#include "../numeric/hadamard_signs.h"
#include "hadamard_williamson-inl.h"

namespace lowbit::cpu::LOWBIT_ISA {

constexpr int kMixCols = 8;  // column registers that share an index and a sign of the table
constexpr int64_t kMixWidth = kMixCols * kLanes;
constexpr int64_t kMixFloats = 6144;  // what sums may take of the L1 cache
constexpr int64_t kMixQuads = kMixFloats / (8 * kMixWidth);
static_assert(kMixFloats >= 2 * 4 * kWilliamsonN * kLanes, "the inputs of a column register, twice");

// A power of two would put the inputs of an output into the same few sets of the L1 cache.
static inline MixShape mix_shape(int64_t order, int64_t two) {
  return {order, two, two < 128 ? two : two + 16};
}

// Blocks that fill kMixCols registers, where the columns of one do not.
static inline int64_t mix_blocks(int64_t two) { return two < kMixWidth ? kMixWidth / two : 1; }

// Workspace of a transform: the blocks, sums and what outputs have added up; blocks laid side by side.
static inline int64_t mix_scratch(int64_t order, int64_t two) {
  const int64_t beside = two < kLanes ? 2 * order * kMixWidth : 0;
  return order == 1 ? 0
                    : mix_blocks(two) * order * mix_shape(order, two).stride + kMixFloats +
                          order * kMixWidth + beside;
}

// sum[8][kCols] = (x0 +- x1) +- (x2 +- x3), numbered as in MixTable, for each of so many quads of rows.
template <int kCols>
static inline void combine(const float* x, int64_t stride, int64_t quads, const int64_t* column, float* sum) {
  constexpr int64_t kWidth = kCols * kLanes;
  for (int64_t g = 0; g < quads; ++g, x += 4 * stride, sum += 8 * kWidth)
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
      V v[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) v[k] = load(x + k * stride + column[c]);
      const V first[2] = {add(v[0], v[1]), sub(v[0], v[1])}, second[2] = {add(v[2], v[3]), sub(v[2], v[3])};
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        store(sum + 2 * k * kWidth + c * kLanes, add(first[k / 2], second[k % 2]));
        store(sum + (2 * k + 1) * kWidth + c * kLanes, sub(first[k / 2], second[k % 2]));
      }
    }
}

// ---- any K ----

// The column registers q .. q + kCols - 1. As many quads at a time as have their sums in L1; between, what
// the outputs have added up waits in work.
template <int kCols, class Out>
static void mix_columns(const float* x, Out* y, const MixTable& h, const MixShape& shape, int64_t q,
                        float* work, float scale, Ahead& ahead) {
  constexpr int64_t kWidth = kCols * kLanes;
  const int64_t per_block = shape.two / kLanes, quads = shape.order / 4;
  int64_t from[kCols], to[kCols];
  for (int c = 0; c < kCols; ++c) {
    const int64_t block = (q + c) / per_block * shape.order, column = (q + c) % per_block * kLanes;
    from[c] = block * shape.stride + column, to[c] = block * shape.two + column;
  }
  float *sums = work, *added = work + kMixFloats;
  const V s = set1(scale);
  for (int64_t first = 0; first < quads; first += kMixQuads) {
    const int64_t count = std::min(quads - first, kMixQuads);
    combine<kCols>(x + 4 * first * shape.stride, shape.stride, count, from, sums);
    for (int64_t j = 0; j < shape.order; ++j) {
      const uint8_t* which = h.combination + j * quads + first;
      const float* sign = h.sign + j * quads + first;
      V acc[kCols];
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c) acc[c] = first ? load(added + j * kWidth + c * kLanes) : set1(0.f);
      for (int64_t g = 0; g < count; ++g) {
        const V plus_minus = set1(sign[g]);
        const float* sum = sums + (8 * g + which[g]) * kWidth;
#pragma GCC unroll 8
        for (int c = 0; c < kCols; ++c) acc[c] = add_signed(acc[c], plus_minus, load(sum + c * kLanes));
      }
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c) {
        if (first + count < quads) store(added + j * kWidth + c * kLanes, acc[c]);
        else store(y + j * shape.two + to[c], mul(acc[c], s));
      }
      if (!first) ahead.ask(kWidth);
    }
  }
}

// ---- K whose signs are constants ----

constexpr int kMixOutputs = kLanes == 16 ? 30 : 14;  // registers for outputs
constexpr int kMixAgain =
    20;  // up to this K sums are cheaper made again, for each tile of outputs, than kept

static constexpr int mix_tile_of(int order) {  // outputs at a time: an even divisor
  int n = kMixOutputs;
  while (order % n) n -= 2;
  return n;
}

template <class T>
static inline void store_two(T* p, T* q, V a, V b) {
  store(p, a), store(q, b);
}

template <int kOrder, int kFirst, int kQuad, int kSum, int kOutput, int kCount>
static inline void add_to_output(V (&acc)[kCount], V sum) {
  using T = HadamardTerm<kOrder, kFirst + kOutput, kQuad>;
  V& to = acc[kOutput];
  if constexpr (T::combination == kSum) {  // by turns, for CPUs that add and multiply in different ports
    if constexpr (kOutput % 2) to = add_signed(to, set1(T::negative ? -1.f : 1.f), sum);
    else to = T::negative ? sub(to, sum) : add(to, sum);
  }
}

// To those of the outputs kFirst.. that have sum kSum of quad kQuad
template <int kOrder, int kFirst, int kQuad, int kSum, int... kOutput>
static inline void add_sum(V (&acc)[sizeof...(kOutput)], V sum, std::integer_sequence<int, kOutput...>) {
  (add_to_output<kOrder, kFirst, kQuad, kSum, kOutput>(acc, sum), ...);
}

// From what combine<1> left, or from the inputs themselves (the rows x, stride apart)
template <int kOrder, int kFirst, int kQuad, int kCount, int... kSum>
static inline void add_quad(V (&acc)[kCount], const float* x, int64_t stride,
                            std::integer_sequence<int, kSum...>) {
  constexpr auto outputs = std::make_integer_sequence<int, kCount>();
  if constexpr (kOrder > kMixAgain) {
    (add_sum<kOrder, kFirst, kQuad, kSum>(acc, load(x + (8 * kQuad + kSum) * kLanes), outputs), ...);
  } else {
    const float* row = x + 4 * kQuad * stride;
    const V v[4] = {load(row), load(row + stride), load(row + 2 * stride), load(row + 3 * stride)};
    const V first[2] = {add(v[0], v[1]), sub(v[0], v[1])}, second[2] = {add(v[2], v[3]), sub(v[2], v[3])};
    (add_sum<kOrder, kFirst, kQuad, kSum>(acc, (kSum % 2 ? sub : add)(first[kSum / 4], second[kSum / 2 % 2]),
                                          outputs),
     ...);
  }
}

// Outputs kFirst.. of one column register. Not inlined, so that no address outlives it.
template <int kOrder, int kFirst, class Out, int... kQuad>
[[gnu::noinline]] static void mix_outputs(const float* x, int64_t stride, Out* y, int64_t two, float scale,
                                          std::integer_sequence<int, kQuad...>) {
  constexpr int kCount = mix_tile_of(kOrder);
  V acc[kCount];
#pragma GCC unroll 32
  for (int r = 0; r < kCount; ++r) acc[r] = set1(0.f);
  (add_quad<kOrder, kFirst, kQuad>(acc, x, stride, std::make_integer_sequence<int, 8>()), ...);
  const V s = set1(scale);
#pragma GCC unroll 32
  for (int r = 0; r < kCount; r += 2)
    store_two(y + (kFirst + r) * two, y + (kFirst + r + 1) * two, mul(acc[r], s), mul(acc[r + 1], s));
}

// Two column registers by turns: together they are whole cache lines of y.
template <int kOrder, class Out, int... kTile>
static inline void mix_pair(const float* x, Out* y, const MixShape& shape, int cols, float* sums, float scale,
                            Ahead& ahead, std::integer_sequence<int, kTile...>) {
  constexpr auto quads = std::make_integer_sequence<int, kOrder / 4>();
  constexpr int kTileOutputs = mix_tile_of(kOrder);
  constexpr bool kKept = kOrder > kMixAgain;
  constexpr int64_t zero = 0, kSums = 2 * kOrder * kLanes;
  if constexpr (kKept)
    for (int c = 0; c < cols; ++c)
      combine<1>(x + c * kLanes, shape.stride, kOrder / 4, &zero, sums + c * kSums);
  const auto tile = [&](auto first) {
    for (int c = 0; c < cols; ++c)
      mix_outputs<kOrder, decltype(first)::value>(kKept ? sums + c * kSums : x + c * kLanes, shape.stride,
                                                  y + c * kLanes, shape.two, scale, quads);
    ahead.ask(cols * kTileOutputs * kLanes);
  };
  (tile(std::integral_constant<int, kTile * kTileOutputs>()), ...);
}

template <int kOrder, class Out>
static void mix_unrolled(const float* x, Out* y, const MixShape& shape, int64_t blocks, float* sums,
                         float scale, Ahead& ahead) {
  constexpr auto tiles = std::make_integer_sequence<int, kOrder / mix_tile_of(kOrder)>();
  for (int64_t b = 0; b < blocks; ++b, x += kOrder * shape.stride, y += kOrder * shape.two)
    for (int64_t i = 0; i < shape.two; i += 2 * kLanes)
      mix_pair<kOrder>(x + i, y + i, shape, i + kLanes < shape.two ? 2 : 1, sums, scale, ahead, tiles);
}

template <class Out>
static void mix_wide(const float* x, Out* y, const MixTable& h, const MixShape& shape, int64_t blocks,
                     float* work, float scale, Ahead& ahead) {
  if (!h.transposed) switch (shape.order) {
      case 12:
        return mix_unrolled<12>(x, y, shape, blocks, work, scale, ahead);
      case 20:
        return mix_unrolled<20>(x, y, shape, blocks, work, scale, ahead);
      case 28:
        return mix_unrolled<28>(x, y, shape, blocks, work, scale, ahead);
      case 36:
        return mix_unrolled<36>(x, y, shape, blocks, work, scale, ahead);
      case 4 * kWilliamsonN:
        return mix_williamson<kWilliamsonN>(x, y, shape, blocks, work, scale, ahead);
    }
  const int64_t columns = blocks * (shape.two / kLanes);
  int64_t q = 0;
  for (; q + 8 <= columns; q += 8) mix_columns<8>(x, y, h, shape, q, work, scale, ahead);
  for (; q + 4 <= columns; q += 4) mix_columns<4>(x, y, h, shape, q, work, scale, ahead);
  for (; q < columns; ++q) mix_columns<1>(x, y, h, shape, q, work, scale, ahead);
}

// Blocks of fewer columns than a register has lanes, laid side by side.
template <class Out>
static void mix_narrow(const float* x, Out* y, const MixTable& h, const MixShape& shape, int64_t blocks,
                       float* work, float scale, Ahead& ahead) {
  const int64_t order = shape.order, two = shape.two, columns = blocks * two;
  const MixShape beside = {order, (columns + kLanes - 1) / kLanes * kLanes, kMixWidth};
  float* row = work + kMixFloats + order * kMixWidth;
  Out* mixed = reinterpret_cast<Out*>(row + order * kMixWidth);
  for (int64_t i = 0; i < order; ++i) {
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t c = 0; c < two; ++c) row[i * kMixWidth + b * two + c] = x[(b * order + i) * two + c];
    for (int64_t c = columns; c < beside.two; ++c) row[i * kMixWidth + c] = 0.f;
  }
  mix_wide(row, mixed, h, beside, 1, work, scale, ahead);
  for (int64_t i = 0; i < order; ++i)
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t c = 0; c < two; ++c) y[(b * order + i) * two + c] = mixed[i * beside.two + b * two + c];
}

// x: what the butterflies left of the blocks. work: kMixFloats, and what else mix_scratch counts after the
// blocks.
template <class Out>
static void mix(const float* x, Out* y, const MixTable& h, const MixShape& shape, int64_t blocks, float* work,
                float scale, Ahead ahead) {
  if (shape.two < kLanes) mix_narrow(x, y, h, shape, blocks, work, scale, ahead);
  else mix_wide(x, y, h, shape, blocks, work, scale, ahead);
}

}  // namespace lowbit::cpu::LOWBIT_ISA
