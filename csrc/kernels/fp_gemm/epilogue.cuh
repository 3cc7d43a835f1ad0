// From fp32 sums to y: reduction over the splits of K, staging through shared memory, scale, bias, rounding.
#pragma once

#include "../../ptx/bits.h"
#include "../../ptx/memory.h"
#include "../../ptx/sync.h"
#include "../common/staged_tile.cuh"
#include "../common/team.cuh"
#include "config.h"

namespace lowbit::kernels::fp_gemm {

// sums [slab][block of 8 tokens][4 registers] of every thread of the team. Every split leaves its sums in
// `partial`; the last one to arrive adds all of them in the order of the splits, so the same bits come out in
// every run. The others return false. Only the first `live` blocks have tokens. `flag`: one shared word. The
// ticket returns to zero.
template <int kSlabs, int kBlocks, int kThreads>
LOWBIT_DEVICE bool reduce_splits(const Team<kThreads>& team, float* sums, int live, int split, int splits,
                                 float* partial, int64_t split_stride, uint32_t* ticket,
                                 ptx::smem_ptr<uint32_t> flag) {
  const int t = team.thread();
  const auto place = [&](int from, int s, int j) {
    return reinterpret_cast<ptx::f32x4*>(partial + from * split_stride +
                                         ((j * kSlabs + s) * kThreads + t) * 4);
  };
  LOWBIT_UNROLL
  for (int s = 0; s < kSlabs; ++s) LOWBIT_UNROLL
  for (int j = 0; j < kBlocks; ++j) {
    const float* v = sums + (s * kBlocks + j) * 4;
    if (j < live) ptx::st_global(place(split, s, j), ptx::f32x4{{v[0], v[1], v[2], v[3]}});
  }
  ptx::threadfence();
  team.sync();
  if (t == 0) ptx::st_shared(flag, ptx::atom_add_acq_rel_global_u32(ticket, 1));
  team.sync();
  if (ptx::ld_shared(flag) != uint32_t(splits - 1)) return false;
  ptx::threadfence();
  LOWBIT_NO_UNROLL
  for (int from = 0; from < splits; ++from) {
    LOWBIT_UNROLL
    for (int s = 0; s < kSlabs; ++s) LOWBIT_UNROLL
    for (int j = 0; j < kBlocks; ++j) {
      if (j >= live) continue;
      const auto v = ptx::ld_global(place(from, s, j));
      float* sum = sums + (s * kBlocks + j) * 4;
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) sum[i] = from == 0 ? v[i] : ptx::add_rn(sum[i], v[i]);
    }
  }
  if (t == 0) ptx::st_release_global_u32(ticket, 0);
  return true;
}

// Four channels of a row of fp16 or bf16, as floats; those from `valid` on zero.
template <Half kHalf>
LOWBIT_DEVICE ptx::f32x4 load_halves(const void* from, int64_t element, int valid, bool wide) {
  const auto* h = static_cast<const uint16_t*>(from) + element;
  ptx::u16x4 bits{};
  if (wide) {
    bits = ptx::ld_global<ptx::Load::kNc>(reinterpret_cast<const ptx::u16x4*>(h));
  } else {
    LOWBIT_UNROLL
    for (int i = 0; i < kWide; ++i)
      if (i < valid) bits[i] = ptx::ld_global<ptx::Load::kNc>(h + i);
  }
  ptx::f32x4 v;
  LOWBIT_UNROLL
  for (int i = 0; i < kWide; ++i)
    v[i] = kHalf == Half::kF16 ? ptx::cvt_f32_f16(bits[i]) : ptx::cvt_f32_bf16(bits[i]);
  return v;
}

// y of a staged tile: sum * factor (exact), * w_scale, + bias, + residual, then fp16 or bf16: a rounding
// each, in this order.
template <Half kHalf, int kRows, int kThreads>
LOWBIT_DEVICE void write_tile(const Team<kThreads>& team, const Params& p, ptx::smem_ptr<float> tile, int row,
                              int token, int tokens) {
  constexpr int kAcross = kRows / kWide;  // threads of a token
  const int first = team.thread() % kAcross * kWide, valid = p.n - row - first;
  if (valid <= 0) return;
  const bool wide = p.n % kWide == 0;  // then valid >= kWide, and every row of y and of the scales is aligned
  const auto w_scale = load_channels(p.w_scale + row + first, valid, wide);
  ptx::f32x4 bias = {};
  if (p.bias) bias = load_channels(p.bias + row + first, valid, wide);
  for (int t = team.thread() / kAcross; t < tokens && token + t < p.m; t += kThreads / kAcross) {
    const auto sums = ptx::ld_shared((tile + (t * (kRows + kPad) + first)).template as<ptx::f32x4>());
    const int64_t element = int64_t(token + t) * p.n + row + first;
    ptx::f32x4 residual = {};
    if (p.residual) residual = load_halves<kHalf>(p.residual, element, valid, wide);
    ptx::u16x4 h;
    LOWBIT_UNROLL
    for (int i = 0; i < kWide; ++i) {
      float v = ptx::mul_rn(ptx::mul_rn(sums[i], p.factor), w_scale[i]);
      if (p.bias) v = ptx::add_rn(v, bias[i]);
      if (p.residual) v = ptx::add_rn(v, residual[i]);
      h[i] = kHalf == Half::kF16 ? ptx::cvt_rn_f16_f32(v) : ptx::cvt_rn_bf16_f32(v);
    }
    store_channels(p.y, element, valid, wide, h);
  }
}

}  // namespace lowbit::kernels::fp_gemm
