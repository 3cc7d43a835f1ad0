// The sum of a row's squares, neighbours first (tree_sum): the same bits on every backend. Chunks of eight
// are summed in registers, lanes by shuffles, warps through shared memory: lane l of warp w holds chunk l +
// 32 (w + warps * slot), so the order of the tree is that of lane, warp, slot, round.
#pragma once

#include "../../ptx/sync.h"
#include "../../ptx/warp.h"
#include "../common/elements.cuh"
#include "config.h"

namespace lowbit::kernels::fused_rows {

LOWBIT_DEVICE float sum_of_squares(const float (&x)[kChunk]) {
  float s[kChunk];
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) s[i] = ptx::mul_rn(x[i], x[i]);
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) s[i] = ptx::add_rn(s[2 * i], s[2 * i + 1]);
  return ptx::add_rn(ptx::add_rn(s[0], s[1]), ptx::add_rn(s[2], s[3]));
}

LOWBIT_DEVICE float add_lane(float s, int step) { return ptx::add_rn(s, ptx::shfl_sync_xor(s, step)); }

// The sums over the warp of kSlots (1, 2 or 4) values of each lane: lane l gets that of slot slot_of(l).
// Lanes share the work: the first steps halve the slots of each.
template <int kSlots>
LOWBIT_DEVICE int slot_of(int lane) {
  return kSlots == 4 ? 2 * (lane & 1) + (lane >> 1 & 1) : kSlots == 2 ? lane & 1 : 0;
}

template <int kSlots>
LOWBIT_DEVICE float warp_sums(const float (&s)[kSlots]) {
  const int lane = ptx::lane_index();
  const bool odd = lane & 1, upper = lane & 2;
  float one;
  if constexpr (kSlots == 4) {
    const float low = ptx::add_rn(odd ? s[2] : s[0], ptx::shfl_sync_xor(odd ? s[0] : s[2], 1));
    const float high = ptx::add_rn(odd ? s[3] : s[1], ptx::shfl_sync_xor(odd ? s[1] : s[3], 1));
    one = ptx::add_rn(upper ? high : low, ptx::shfl_sync_xor(upper ? low : high, 2));
  } else {
    if constexpr (kSlots == 2) one = ptx::add_rn(odd ? s[1] : s[0], ptx::shfl_sync_xor(odd ? s[0] : s[1], 1));
    else one = add_lane(s[0], 1);
    one = add_lane(one, 2);
  }
  return add_lane(add_lane(add_lane(one, 4), 8), 16);
}

// From the sum of the lane's slot to that of all slots, in every lane.
template <int kSlots>
LOWBIT_DEVICE float add_slots(float s) {
  if constexpr (kSlots == 4) s = add_lane(s, 2);
  if constexpr (kSlots > 1) s = add_lane(s, 1);
  return s;
}

struct RowSum {
  const Team& team;
  ptx::smem_ptr<float> warps;  // of rows that more than one warp owns
  float whole = 0.f;           // of other rows

  // Collective over the block. A barrier lies between the last add and total.
  template <int kVectors>
  LOWBIT_DEVICE void add(const float (&x)[kVectors][kChunk], int round) {
    float s[kVectors];
    LOWBIT_UNROLL
    for (int v = 0; v < kVectors; ++v) s[v] = sum_of_squares(x[v]);
    if (team.size < 32) {  // such rows end inside slot 0
      whole = s[0];
      for (int step = 1; step < team.size; step *= 2) whole = add_lane(whole, step);
      return;
    }
    const float slot = warp_sums(s);
    if (team.size == 32) {
      whole = add_slots<kVectors>(slot);
    } else if (ptx::lane_index() < kVectors) {
      const int e =
          (round * kVectors + slot_of<kVectors>(ptx::lane_index())) * (team.size / 32) + ptx::warp_index();
      ptx::st_shared(warps + sum_place(e), slot);
    }
  }

  // 128 warps' sums at a time; the result of group g waits in lane g.
  template <int kVectors>
  LOWBIT_DEVICE float total(int rounds) const {
    if (team.size <= 32) return whole;
    const int count = rounds * kVectors * (team.size / 32);
    float groups[1] = {0.f};
    for (int g = 0; g * 128 < count; ++g) {
      float s[4];
      LOWBIT_UNROLL
      for (int j = 0; j < 4; ++j) {
        const int e = 128 * g + 32 * j + ptx::lane_index();
        s[j] = e < count ? ptx::ld_shared(warps + sum_place(e)) : 0.f;
      }
      const float sum = add_slots<4>(warp_sums(s));
      if (count <= 128) return sum;
      if (ptx::lane_index() == g) groups[0] = sum;
    }
    return warp_sums(groups);
  }
};

}  // namespace lowbit::kernels::fused_rows
