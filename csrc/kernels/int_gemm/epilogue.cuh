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

// Four channels of a row of y's dtype, as floats.
LOWBIT_DEVICE ptx::f32x4 load_outputs(const void* from, DType dtype, int64_t element, int valid, bool wide) {
  if (dtype == DType::f32) {
    const float* f = static_cast<const float*>(from) + element;
    if (wide) return ptx::ld_global(reinterpret_cast<const ptx::f32x4*>(f));
    ptx::f32x4 v;
    LOWBIT_UNROLL
    for (int i = 0; i < kWide; ++i) v[i] = i < valid ? ptx::ld_global(f + i) : 0.f;
    return v;
  }
  const uint16_t* h = static_cast<const uint16_t*>(from) + element;
  ptx::u16x4 bits{};
  if (wide) {
    bits = ptx::ld_global(reinterpret_cast<const ptx::u16x4*>(h));
  } else {
    LOWBIT_UNROLL
    for (int i = 0; i < kWide; ++i)
      if (i < valid) bits[i] = ptx::ld_global(h + i);
  }
  ptx::f32x4 v;
  LOWBIT_UNROLL
  for (int i = 0; i < kWide; ++i)
    v[i] = dtype == DType::bf16 ? ptx::cvt_f32_bf16(bits[i]) : ptx::cvt_f32_f16(bits[i]);
  return v;
}

// v[j] += low_rank[token + j * step, i] * up[i, channel ..], i ascending. A thread's tokens share the loads
// of `up`, which is what keeps this bound by arithmetic.
template <int kGroup>
LOWBIT_DEVICE void add_low_rank(ptx::f32x4 (&v)[kGroup], const Params& p, const Addends& add, int channel,
                                int token, int step, int valid, bool wide) {
  LOWBIT_NO_UNROLL
  for (int i = 0; i < add.rank; ++i) {
    const auto up = load_channels(add.low_rank_up + int64_t(i) * p.n + channel, valid, wide);
    LOWBIT_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      const int t = token + j * step;
      const float x =
          ptx::ld_global<ptx::Load::kNc>(add.low_rank + int64_t(t < p.m ? t : p.m - 1) * add.rank + i);
      LOWBIT_UNROLL
      for (int c = 0; c < kWide; ++c) v[j][c] = ptx::add_rn(v[j][c], ptx::mul_rn(x, up[c]));
    }
  }
}

// y of a staged tile of kTokens: float(sum) * w_scale, * x_scale, + bias, + low rank, + residual, each
// rounded, in this order as on every backend. The power of two of FP4 codes (kFactor) goes into w_scale,
// which it does not round. kGroup: tokens of a thread at a time. Without kAdds there are no addends.
template <int kRows, int kTokens, int kGroup, int kShift, bool kFactor, bool kAdds = true, int kThreads>
LOWBIT_DEVICE void write_tile(const Team<kThreads>& team, const Params& p, const Addends& add,
                              ptx::smem_ptr<int32_t> tile, int row, int token) {
  constexpr int kAcross = kRows / kWide;  // threads of a token
  constexpr int kStep = kThreads / kAcross;
  static_assert(kTokens % (kStep * kGroup) == 0, "every thread has whole groups of tokens");
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
  for (int t = team.thread() / kAcross; t < kTokens && token + t < p.m; t += kGroup * kStep) {
    ptx::f32x4 v[kGroup];
    LOWBIT_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      const int at = t + j * kStep;
      const auto sums = ptx::ld_shared((tile + (at * (kRows + kPad) + first)).template as<ptx::s32x4>());
      float x_scale = 1.f;
      if (p.x_scale && token + at < p.m) x_scale = ptx::ld_global<ptx::Load::kNc>(p.x_scale + token + at);
      LOWBIT_UNROLL
      for (int i = 0; i < kWide; ++i) {
        v[j][i] = ptx::mul_rn(ptx::cvt_rn_f32_s32(sums[i] >> kShift), w_scale[i]);
        if (p.x_scale) v[j][i] = ptx::mul_rn(v[j][i], x_scale);
        if (p.bias) v[j][i] = ptx::add_rn(v[j][i], bias[i]);
      }
    }
    if (kAdds && add.rank) add_low_rank(v, p, add, row + first, token + t, kStep, valid, wide);
    LOWBIT_UNROLL
    for (int j = 0; j < kGroup; ++j) {
      if (token + t + j * kStep >= p.m) break;
      const int64_t element = int64_t(token + t + j * kStep) * p.n + row + first;
      if (kAdds && add.residual) {
        const auto r = load_outputs(add.residual, p.out, element, valid, wide);
        LOWBIT_UNROLL
        for (int i = 0; i < kWide; ++i) v[j][i] = ptx::add_rn(v[j][i], r[i]);
      }
      if (p.out == DType::f32) {
        store_channels(p.y, element, valid, wide, v[j]);
      } else {
        ptx::u16x4 h;
        LOWBIT_UNROLL
        for (int i = 0; i < kWide; ++i)
          h[i] = p.out == DType::bf16 ? ptx::cvt_rn_bf16_f32(v[j][i]) : ptx::cvt_rn_f16_f32(v[j][i]);
        store_channels(p.y, element, valid, wide, h);
      }
    }
  }
}

}  // namespace lowbit::kernels::int_gemm
