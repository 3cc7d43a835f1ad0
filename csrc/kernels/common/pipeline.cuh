// What the warp-specialised wgmma kernels share: a ring of stages between one producer thread and kTeams
// consumer warpgroups, and the items of a persistent block. C: the kernel's configuration.
#pragma once

#include <type_traits>

#include "../../numeric/ceil_div.h"
#include "../../ptx/mbarrier.h"
#include "../../ptx/sync.h"
#include "splits.h"

namespace lowbit::kernels {

// The ring: stage i % kStages is full in the phase i / kStages.
template <class C>
struct Ring {
  ptx::smem_ptr<uint8_t> base;

  LOWBIT_DEVICE ptx::smem_ptr<uint8_t> stage(int i) const {
    return base.plus_bytes(slot(i) * C::kStageBytes);
  }
  LOWBIT_DEVICE ptx::smem_ptr<uint64_t> full(int i) const {
    return base.plus_bytes(C::kBarrierAt + 16 * slot(i)).template as<uint64_t>();
  }
  LOWBIT_DEVICE ptx::smem_ptr<uint64_t> empty(int i) const { return full(i) + 1; }
  // Powers of two as unsigned: then it is a mask. Of other numbers the signed remainder takes two
  // instructions less.
  using Index = std::conditional_t<(C::kStages & (C::kStages - 1)) == 0, uint32_t, int>;
  static LOWBIT_DEVICE uint32_t slot(int i) { return uint32_t(Index(i) % Index(C::kStages)); }
  static LOWBIT_DEVICE uint32_t phase(int i) { return uint32_t(Index(i) / Index(C::kStages)) & 1u; }

  // All threads of the block, before anything else.
  LOWBIT_DEVICE void start() const {
    if (ptx::thread_index() == 0) {
      for (int i = 0; i < C::kStages; ++i) {
        ptx::mbarrier_init(full(i), 1);               // the producer, and the bytes
        ptx::mbarrier_init(empty(i), 4 * C::kTeams);  // one lane of each consumer warp
      }
      ptx::fence_mbarrier_init();
    }
    ptx::syncthreads();
  }
  // A consumer warp has read stage i.
  LOWBIT_DEVICE void release(int i) const {
    ptx::syncwarp();
    if (ptx::lane_index() == 0) ptx::mbarrier_arrive(empty(i));
  }
};

// What a block does: the items of its number, and the stages of k of each.
template <class C>
struct Schedule {
  int row_tiles, token_tiles, items, stages, stages_per_split;

  template <class Params>
  explicit LOWBIT_DEVICE Schedule(const Params& p)
      : row_tiles(ceil_div(p.n, C::kRows)),
        token_tiles(ceil_div(p.m, C::kTokens)),
        items(row_tiles * token_tiles * p.splits),
        stages(ceil_div(p.k, C::kStageK)),
        stages_per_split(p.stages_per_split) {}
  LOWBIT_DEVICE Item item(int i) const { return item_at(i, row_tiles, token_tiles); }
  LOWBIT_DEVICE int begin(const Item& i) const { return i.split * stages_per_split; }
  LOWBIT_DEVICE int end(const Item& i) const {
    const int e = begin(i) + stages_per_split;
    return e < stages ? e : stages;
  }
};

}  // namespace lowbit::kernels
