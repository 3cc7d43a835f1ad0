// From s32 sums to y: reduction over the splits of K, staging through shared memory, scales, rounding, store.
#pragma once

#include "../../ptx/bits.h"
#include "../../ptx/sync.h"
#include "../common/staged_tile.cuh"
#include "../common/team.cuh"
#include "config.h"

namespace lowbit::kernels::int_gemm {

// All splits but the last to arrive leave their sums in `partial` and return false; the last one adds them to
// its own. Integer sums: the order cannot be seen. `flag`: one shared word. The ticket returns to zero.
template <int kThreads, int kSums>
LOWBIT_DEVICE bool reduce_splits(const Team<kThreads>& team, int32_t (&sums)[kSums], int split, int splits,
                                 int32_t* partial, int64_t split_stride, uint32_t* ticket,
                                 ptx::smem_ptr<uint32_t> flag) {
  static_assert(kSums % 4 == 0);
  const int t = team.thread();
  LOWBIT_UNROLL
  for (int i = 0; i < kSums; i += 4)
    ptx::st_global(reinterpret_cast<ptx::s32x4*>(partial + split * split_stride + (i * kThreads + 4 * t)),
                   ptx::s32x4{{sums[i], sums[i + 1], sums[i + 2], sums[i + 3]}});
  ptx::threadfence();
  team.sync();
  if (t == 0) ptx::st_shared(flag, ptx::atom_add_acq_rel_global_u32(ticket, 1));
  team.sync();
  if (ptx::ld_shared(flag) != uint32_t(splits - 1)) return false;
  ptx::threadfence();
  LOWBIT_NO_UNROLL
  for (int s = 0; s < splits; ++s) {
    if (s == split) continue;
    LOWBIT_UNROLL
    for (int i = 0; i < kSums; i += 4) {
      const auto v = ptx::ld_global(
          reinterpret_cast<const ptx::s32x4*>(partial + s * split_stride + (i * kThreads + 4 * t)));
      LOWBIT_UNROLL
      for (int j = 0; j < 4; ++j) sums[i + j] += v[j];
    }
  }
  if (t == 0) ptx::st_release_global_u32(ticket, 0);
  return true;
}

// y of a staged tile: float(sum) * w_scale, * x_scale, + bias, three roundings in this order as on every
// backend. The power of two of FP4 codes (kFactor) goes into w_scale, which it does not round.
template <int kRows, int kShift, bool kFactor, int kThreads>
LOWBIT_DEVICE void write_tile(const Team<kThreads>& team, const Params& p, ptx::smem_ptr<int32_t> tile,
                              int row, int token, int tokens) {
  constexpr int kAcross = kRows / kWide;  // threads of a token
  const int first = team.thread() % kAcross * kWide, valid = p.n - row - first;
  if (valid <= 0) return;
  const bool wide = p.n % kWide == 0;  // then valid >= kWide, and every row of y and of the scales is aligned
  auto w_scale = load_channels(p.w_scale + row + first, valid, wide);
  if constexpr (kFactor) {
    LOWBIT_UNROLL
    for (int i = 0; i < kWide; ++i) w_scale[i] = ptx::mul_rn(w_scale[i], p.w_factor);
  }
  ptx::f32x4 bias = {};
  if (p.bias) bias = load_channels(p.bias + row + first, valid, wide);
  for (int t = team.thread() / kAcross; t < tokens && token + t < p.m; t += kThreads / kAcross) {
    const auto sums = ptx::ld_shared((tile + (t * (kRows + kPad) + first)).template as<ptx::s32x4>());
    const float x_scale = p.x_scale ? ptx::ld_global<ptx::Load::kNc>(p.x_scale + token + t) : 1.f;
    ptx::f32x4 v;
    LOWBIT_UNROLL
    for (int i = 0; i < kWide; ++i) {
      v[i] = ptx::mul_rn(ptx::cvt_rn_f32_s32(sums[i] >> kShift), w_scale[i]);
      if (p.x_scale) v[i] = ptx::mul_rn(v[i], x_scale);
      if (p.bias) v[i] = ptx::add_rn(v[i], bias[i]);
    }
    const int64_t element = int64_t(token + t) * p.n + row + first;
    if (p.out == DType::f32) {
      store_channels(p.y, element, valid, wide, v);
    } else {
      ptx::u16x4 h;
      LOWBIT_UNROLL
      for (int i = 0; i < kWide; ++i)
        h[i] = p.out == DType::bf16 ? ptx::cvt_rn_bf16_f32(v[i]) : ptx::cvt_rn_f16_f32(v[i]);
      store_channels(p.y, element, valid, wide, h);
    }
  }
}

}  // namespace lowbit::kernels::int_gemm
