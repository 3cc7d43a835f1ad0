// The K-factor: y[j] = sum over quads g of sign * combination of x[4 g .. 4 g + 3], in order, from zero: the
// additions of cpu/hadamard-inl.h mix_columns, so the same bits. x and y are rows of `two` columns.
#pragma once

#include <utility>

#include "../../numeric/hadamard_signs.h"
#include "../quantize/codes.cuh"
#include "params.h"
#include "tile.cuh"

namespace lowbit::kernels::hadamard {

// (x0 +- x1) +- (x2 +- x3), numbered as in cpu::MixTable.
LOWBIT_DEVICE void combine(float (&sum)[8], const float (&x)[4]) {
  const float first[2] = {ptx::add_rn(x[0], x[1]), ptx::sub_rn(x[0], x[1])};
  const float second[2] = {ptx::add_rn(x[2], x[3]), ptx::sub_rn(x[2], x[3])};
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    sum[2 * i] = ptx::add_rn(first[i / 2], second[i % 2]);
    sum[2 * i + 1] = ptx::sub_rn(first[i / 2], second[i % 2]);
  }
}

// The signs are template arguments: every output costs one addition per quad and nothing else.
template <int kOrder, int kQuad, int kOutput>
LOWBIT_DEVICE void add_combination(float& acc, const float (&sum)[8]) {
  using T = HadamardTerm<kOrder, kOutput, kQuad>;
  acc = T::negative ? ptx::sub_rn(acc, sum[T::combination]) : ptx::add_rn(acc, sum[T::combination]);
}

template <int kOrder, int kQuad, int... kOutput>
LOWBIT_DEVICE void add_quad(float (&acc)[kOrder], const float (&x)[4],
                            std::integer_sequence<int, kOutput...>) {
  float sum[8];
  combine(sum, x);
  (add_combination<kOrder, kQuad, kOutput>(acc[kOutput], sum), ...);
}

template <int kOrder, class Load, int... kQuad>
LOWBIT_DEVICE void add_quads(float (&acc)[kOrder], const Load& load, std::integer_sequence<int, kQuad...>) {
  float x[4];
  ((load(x, kQuad), add_quad<kOrder, kQuad>(acc, x, std::make_integer_sequence<int, kOrder>())), ...);
}

// A thread owns a column (two >= 64): reads its K floats, then writes y through put(element of the tile,
// value), which may be in place. Collective over the block, without a barrier.
template <int kOrder, bool kShared, class Put>
LOWBIT_DEVICE void mix_unrolled(const Tile<kShared>& tile, int count, int stages, const Put& put) {
  const int two = 1 << stages;
  for (int q = ptx::thread_index(); q < count / kOrder; q += ptx::thread_count()) {
    const int first = (q >> stages) * kOrder * two + (q & (two - 1));
    const int low = first ^ Tile<kShared>::low_part(first);  // bit 5 is the same in the whole column
    float acc[kOrder];
    LOWBIT_UNROLL
    for (int j = 0; j < kOrder; ++j) acc[j] = 0.f;
    add_quads<kOrder>(
        acc,
        [&](float (&x)[4], int g) {
          LOWBIT_UNROLL
          for (int i = 0; i < 4; ++i) {
            const int e = low + (4 * g + i) * two;
            x[i] = tile.template load_at<1>(e ^ Tile<kShared>::high_part(e))[0];
          }
        },
        std::make_integer_sequence<int, kOrder / 4>());
    // The places are those of the loads, but K of them are more than the registers hold: `again` is `two`,
    // hidden from the compiler, so that it computes them anew.
    const int again = int(ptx::prmt(uint32_t(two), 0, 0x3210));
    LOWBIT_UNROLL
    for (int j = 0; j < kOrder; ++j) put(first + j * again, acc[j]);
  }
}

// Any K, signs from memory: a thread makes eight outputs of four columns, in another buffer. One fma with
// +-1 per input and output, K instead of K / 4 operations. Collective over the block, without a barrier.
// Returns the largest magnitude that the thread made, as bits.
template <bool kMost, bool kShared>
LOWBIT_DEVICE uint32_t mix_table(const Tile<kShared>& from, const Tile<kShared>& to, const float* table,
                                 int count, int order, int stages) {
  constexpr int kOutputs = 8;
  const int two = 1 << stages, columns = count / order, quads = (columns + 3) / 4;
  uint32_t most = 0;
  const int items = quads * ((order + kOutputs - 1) / kOutputs);
  for (int item = ptx::thread_index(); item < items; item += ptx::thread_count()) {
    const int q = item % quads * 4, j0 = item / quads * kOutputs;
    int first[4];  // of each column
    LOWBIT_UNROLL
    for (int c = 0; c < 4; ++c) {
      const int column = q + c < columns ? q + c : columns - 1;
      first[c] = (column >> stages) * order * two + (column & (two - 1));
    }
    float acc[kOutputs][4];
    LOWBIT_UNROLL
    for (int r = 0; r < kOutputs; ++r) {
      LOWBIT_UNROLL
      for (int c = 0; c < 4; ++c) acc[r][c] = 0.f;
    }
    for (int i = 0; i < order; i += 4) {
      float x[4][4];  // input, column
      LOWBIT_UNROLL
      for (int k = 0; k < 4; ++k) {
        if (two >= 4) {
          const auto v = from.template load_at<4>(Tile<kShared>::place(first[0] + (i + k) * two));
          LOWBIT_UNROLL
          for (int c = 0; c < 4; ++c) x[k][c] = v[c];
        } else {
          LOWBIT_UNROLL
          for (int c = 0; c < 4; ++c)
            x[k][c] = from.template load_at<1>(Tile<kShared>::place(first[c] + (i + k) * two))[0];
        }
      }
      LOWBIT_UNROLL
      for (int r = 0; r < kOutputs; ++r) {
        const int j = j0 + r < order ? j0 + r : order - 1;
        const auto s = ptx::ld_global<ptx::Load::kNcEvictLast>(reinterpret_cast<const ptx::f32x4*>(table) +
                                                               (int64_t(j) * order + i) / 4);
        LOWBIT_UNROLL
        for (int c = 0; c < 4; ++c) {  // a product with +-1 is exact, so each fma is one addition
          const float first_two = ptx::fma_rn(s[0], x[1][c], x[0][c]);
          const float last_two = ptx::fma_rn(s[1], x[3][c], x[2][c]);
          acc[r][c] = ptx::fma_rn(s[3], ptx::fma_rn(s[2], last_two, first_two), acc[r][c]);
        }
      }
    }
    LOWBIT_UNROLL
    for (int r = 0; r < kOutputs; ++r) {
      if (j0 + r >= order) continue;
      if (kMost) most = quantize::max_magnitude(most, acc[r]);  // columns past the last repeat it
      if (two >= 4) {
        const ptx::Vector<float, 4> v{{acc[r][0], acc[r][1], acc[r][2], acc[r][3]}};
        to.store_at(Tile<kShared>::place(first[0] + (j0 + r) * two), v);
      } else {
        LOWBIT_UNROLL
        for (int c = 0; c < 4; ++c)
          if (q + c < columns)
            to.store_at(Tile<kShared>::place(first[c] + (j0 + r) * two), ptx::Vector<float, 1>{{acc[r][c]}});
      }
    }
  }
  return most;
}

}  // namespace lowbit::kernels::hadamard
