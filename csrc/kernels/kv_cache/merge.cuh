// What becomes of the splits of a sequence: results out, or through the workspace to the last block, which
// merges them in ascending order.
#pragma once

#include "../../ptx/sync.h"
#include "staging.cuh"

namespace lowbit::kernels::kv_cache {

// Four elements of the output from `element` on.
template <class S>
LOWBIT_DEVICE void write_out(const Work<S>& w, const AttentionParams& p, int head, int element,
                             const float (&x)[4]) {
  const int64_t row = int64_t(w.sequence) * p.heads + w.first_head + head;
  store_elements(static_cast<uint8_t*>(p.y) + row * S::kHead * size_of(p.dtype), p.dtype, element, x, true);
}

// The split's result, with that of `prefix` exact tokens: out if there is no other, else into its place in
// the workspace.
template <class S>
LOWBIT_DEVICE void write_split(const Work<S>& w, const AttentionParams& p, int prefix, float* place,
                               int per_group, const float (&acc)[2][4]) {
  const int lane = ptx::lane_index(), warp = ptx::warp_index(), t = ptx::thread_index();
  const int element = 32 * warp + lane / 4 * 4;
  if (w.splits > 1 && t < w.heads) {
    const auto stats = ptx::ld_shared(w.v_stats() + t);
    ptx::st_global(reinterpret_cast<ptx::f32x2*>(place + 4 * t), ptx::f32x2{{stats[0], stats[1]}});
  }
  if (warp >= S::kChunks || element >= S::kHead) return;
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int head = lane % 4 * 2 + h;
    if (head >= w.heads) continue;
    const auto stats = ptx::ld_shared(w.v_stats() + head);
    float x[4];
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) x[i] = ptx::fma_rn(acc[i / 2][i % 2 * 2 + h], stats[3], stats[2]);
    LOWBIT_NO_UNROLL
    for (int t = 0; t < prefix; ++t) {
      const float* value = p.prefix_value + (t * p.pages.kv_heads + w.kv_head) * S::kHead + element;
      const auto v = ptx::ld_global(reinterpret_cast<const ptx::f32x4*>(value));
      const float weight = ptx::ld_shared(w.prefix(head) + t);
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) x[i] = ptx::fma_rn(v[i], weight, x[i]);
    }
    if (w.splits > 1) {
      ptx::st_global(reinterpret_cast<ptx::f32x4*>(place + 4 * per_group + head * S::kHead + element),
                     ptx::f32x4{{x[0], x[1], x[2], x[3]}});
    } else {
      const float inverse = ptx::div_rn(1.f, stats[1]);
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) x[i] = ptx::mul_rn(x[i], inverse);
      write_out(w, p, head, element, x);
    }
  }
}

// Merges the splits of a sequence in ascending order. Collective over the block.
template <class S>
LOWBIT_DEVICE void merge(const Work<S>& w, const AttentionParams& p, const float* partial, int per_group) {
  constexpr int kItems = ceil_div(kGroup * S::kHead / 4, kThreads), kBatch = 64, kAcross = S::kHead / 4;
  const int t = ptx::thread_index(), warp = ptx::warp_index();
  const int64_t step = split_floats(per_group, S::kHead);
  const auto most = w.v_stats().template as<float>();  // [heads]
  const auto weight =
      w.scores(0).template as<ptx::f32x2>();  // [splits of a batch][kGroup]: of values, of sums
  if (warp < w.heads) {
    float m = -__builtin_inff();
    for (int s = ptx::lane_index(); s < w.splits; s += 32)
      m = ptx::max_f32(m, ptx::ld_global(partial + s * step + 4 * warp));
    m = warp_max(m);
    if (ptx::lane_index() == 0) ptx::st_shared(most + warp, m);
  }
  ptx::syncthreads();
  float sum[kItems] = {}, x[kItems][4] = {};
  for (int first = 0; first < w.splits; first += kBatch) {
    const int count = w.splits - first < kBatch ? w.splits - first : kBatch;
    for (int i = t; i < count * kGroup; i += kThreads) {
      const int head = i % kGroup;
      if (head >= w.heads) continue;
      const auto stats = ptx::ld_global(
          reinterpret_cast<const ptx::f32x2*>(partial + (first + i / kGroup) * step + 4 * head));
      const float scale = ptx::ex2_approx(ptx::sub_rn(stats[0], ptx::ld_shared(most + head)));
      ptx::st_shared(weight + i, ptx::f32x2{{scale, ptx::mul_rn(stats[1], scale)}});
    }
    ptx::syncthreads();
    LOWBIT_UNROLL
    for (int k = 0; k < kItems; ++k) {
      const int item = t + k * kThreads, head = item / kAcross;
      if (head >= w.heads) continue;
      const float* from = partial + first * step + 4 * per_group + head * S::kHead + item % kAcross * 4;
      for (int s = 0; s < count; ++s) {
        const auto v = ptx::ld_global(reinterpret_cast<const ptx::f32x4*>(from + s * step));
        const auto scale = ptx::ld_shared(weight + (s * kGroup + head));
        sum[k] = ptx::add_rn(sum[k], scale[1]);
        LOWBIT_UNROLL
        for (int i = 0; i < 4; ++i) x[k][i] = ptx::add_rn(x[k][i], ptx::mul_rn(v[i], scale[0]));
      }
    }
    ptx::syncthreads();
  }
  LOWBIT_UNROLL
  for (int k = 0; k < kItems; ++k) {
    const int item = t + k * kThreads, head = item / kAcross;
    if (head >= w.heads) continue;
    const float inverse = ptx::div_rn(1.f, sum[k]);
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) x[k][i] = ptx::mul_rn(x[k][i], inverse);
    write_out(w, p, head, item % kAcross * 4, x[k]);
  }
}

// Whether this block is the last of `blocks` to come here. The ticket returns to zero. Collective over the
// block.
LOWBIT_DEVICE bool last_to_finish(uint32_t* ticket, int blocks, ptx::smem_ptr<uint32_t> flag) {
  ptx::threadfence();
  ptx::syncthreads();
  if (ptx::thread_index() == 0) ptx::st_shared(flag, ptx::atom_add_acq_rel_global_u32(ticket, 1));
  ptx::syncthreads();
  if (ptx::ld_shared(flag) != uint32_t(blocks - 1)) return false;
  ptx::threadfence();
  if (ptx::thread_index() == 0) ptx::st_release_global_u32(ticket, 0);
  return true;
}

}  // namespace lowbit::kernels::kv_cache
