// Integer GEMM on wgmma: sm_90a, more than 16 tokens.
//
// The weight is the register operand: each consumer warpgroup unpacks 64 channels while its last wgmma runs,
// and multiplies them with all tokens of the tile, which TMA puts into shared memory. One producer thread,
// two consumer warpgroups, a ring of stages of 128 k, and a persistent loop over tiles and splits of K.
#pragma once

#include "../../layout/mma_fragment.h"
#include "../../layout/mma_weight.h"
#include "../../ptx/tma.h"
#include "../../ptx/wgmma.h"
#include "../common/pipeline.cuh"
#include "epilogue.cuh"
#include "unpack.cuh"

namespace lowbit::kernels::int_gemm {

struct WgmmaParams {
  ptx::TensorMap x;  // boxes of kTokens rows x 128 bytes, 128-byte swizzle
  Params p;
  Addends add;
};

// kAdds: the epilogue has addends. In the largest tile, whose sums leave few registers, even those that are
// not given lengthen the main loop.
template <const Tile& kTile, Weight kWeightOf, bool kAddsOf>
struct WgmmaConfig {
  static constexpr Weight kWeight = kWeightOf;
  static constexpr bool kAdds = kAddsOf;
  static constexpr int kRows = kTile.rows, kTokens = kTile.tokens, kThreads = kTile.threads;
  static constexpr int kStages = stages_of(kTile, kWeight, Codes::kInt8);
  static constexpr int kTeams = 2, kStageK = int_gemm::kStageK;
  static constexpr int kSums = kTokens / 2;     // registers of a thread
  static constexpr int kGroup = kAdds ? 2 : 1;  // tokens of a thread in the epilogue
  static constexpr int kWeightAt = x_stage_bytes(kTokens, Codes::kInt8);
  static constexpr int kScaleAt = kWeightAt + weight_stage_bytes(kRows, kWeight);
  static constexpr int kStageBytes = stage_bytes(kTile, kWeight, Codes::kInt8);
  static constexpr int kStagedAt = kStages * kStageBytes;
  static constexpr int kStagedWords = kStagedTokens * (64 + kPad);  // of a warpgroup
  static constexpr int kBarrierAt = kStagedAt + 2 * kStagedWords * 4;
  static constexpr int kBlockBytes =
      kWeight == Weight::kInt8 ? mma_weight::kInt8Bytes : mma_weight::kInt4Bytes;
  static_assert(kRows == 128 && kThreads == 384, "two consumer warpgroups of 64 channels and a producer");
};

// One thread brings every stage of every item. A block of weights or scales past the end is the last one
// again: its channels are not stored, and its k meets activations of zero.
template <class C>
LOWBIT_DEVICE void produce(const WgmmaParams& params, const Ring<C>& ring, const Schedule<C>& work) {
  const Params& p = params.p;
  const int k_blocks = ceil_div(p.k, mma_weight::kK), n_blocks = ceil_div(p.n, mma_weight::kN);
  const bool grouped = C::kWeight == Weight::kInt4Group;
  const int per_stage = grouped ? 128 >> p.group_shift : 0;
  const int groups = (p.k + (1 << p.group_shift) - 1) >> p.group_shift;
  const uint32_t bytes = uint32_t(C::kTokens * kStageK + 4 * C::kBlockBytes + 2 * per_stage * 64);
  int step = 0;
  for (int i = ptx::block_index_x(); i < work.items; i += ptx::grid_size_x()) {
    const Item item = work.item(i);
    for (int s = work.begin(item); s < work.end(item); ++s, ++step) {
      const auto stage = ring.stage(step);
      const auto full = ring.full(step);
      ptx::mbarrier_wait_parity(ring.empty(step), Ring<C>::phase(step) ^ 1u);
      ptx::mbarrier_arrive_expect_tx(full, bytes);
      ptx::cp_async_bulk_tensor_2d_load(stage, params.x, s * kStageK, item.token_tile * C::kTokens, full);
      for (int b = 0; b < 2; ++b) {
        const int at = 2 * item.row_tile + b, n = at < n_blocks ? at : n_blocks - 1;
        for (int half = 0; half < 2; ++half) {
          const int k = 2 * s + half < k_blocks ? 2 * s + half : k_blocks - 1;
          ptx::cp_async_bulk_load(stage.plus_bytes(C::kWeightAt + (2 * b + half) * C::kBlockBytes),
                                  p.weight + (int64_t(n) * k_blocks + k) * C::kBlockBytes, C::kBlockBytes,
                                  full);
        }
        for (int g = 0; g < per_stage; ++g) {
          const int group = s * per_stage + g < groups ? s * per_stage + g : groups - 1;
          ptx::cp_async_bulk_load(stage.plus_bytes(C::kScaleAt + (b * per_stage + g) * 64),
                                  p.group_scale + (int64_t(n) * groups + group) * 64, 64, full);
        }
      }
    }
  }
}

// A fragments of both k32 steps of half a stage, for this warp's slab of the warpgroup's 64 channels.
template <class C>
LOWBIT_DEVICE void unpack_half(uint32_t (&a)[2][4], const Params& p, ptx::smem_ptr<uint8_t> stage, int half,
                               int team) {
  const int slab = ptx::warp_index() % 4;
  Slab<C::kWeight> w;
  w.load(
      stage.plus_bytes(C::kWeightAt + (2 * team + half) * C::kBlockBytes + slab * Slab<C::kWeight>::kBytes));
  LOWBIT_UNROLL
  for (int c = 0; c < 2; ++c) {
    if constexpr (C::kWeight == Weight::kInt4Group) {
      uint32_t s1[2];
      load_group_scale(stage.plus_bytes(C::kScaleAt), 4 * team + slab, 2 * half + c, p.group_shift, s1);
      w.fragment(c, a[c], s1);
    } else if constexpr (C::kWeight == Weight::kFp4) {
      w.fragment(c, a[c], p.fp4());
    } else {
      w.fragment(c, a[c]);
    }
  }
}

// sums (+)= the 64 k of half a stage, as one group of two wgmma.
template <class C>
LOWBIT_DEVICE void issue_half(int32_t (&sums)[C::kSums], const uint32_t (&a)[2][4],
                              ptx::smem_ptr<uint8_t> stage, int half, bool add) {
  const auto x = ptx::WgmmaDescriptor::make(stage, ptx::Swizzle::k128B, 1024);
  ptx::wgmma_fence();
  ptx::wgmma_m64k32_s32_s8_s8(sums, a[0], x.plus_bytes(64 * half), add);
  ptx::wgmma_m64k32_s32_s8_s8(sums, a[1], x.plus_bytes(64 * half + 32), true);
  ptx::wgmma_commit_group();
}

// The sums of one item. While one half stage is multiplied, the next is unpacked into the other set of
// registers; a set is written again only after the wait that covers its last use.
template <class C>
LOWBIT_DEVICE int multiply_item(int32_t (&sums)[C::kSums], const Params& p, const Ring<C>& ring, int step,
                                int count, int team) {
  uint32_t first[2][4], second[2][4];
  ptx::warpgroup_fence_operand(sums);
  LOWBIT_NO_UNROLL
  for (int i = 0; i < count; ++i, ++step) {
    const auto stage = ring.stage(step);
    ptx::mbarrier_wait_parity(ring.full(step), Ring<C>::phase(step));
    unpack_half<C>(first, p, stage, 0, team);  // free: the wait below covered it
    issue_half<C>(sums, first, stage, 0, i > 0);
    ptx::wgmma_wait_group<1>();  // the last stage is multiplied
    if (i > 0) ring.release(step - 1);
    unpack_half<C>(second, p, stage, 1, team);
    issue_half<C>(sums, second, stage, 1, true);
    ptx::wgmma_wait_group<1>();
  }
  ptx::wgmma_wait_group<0>();
  ptx::warpgroup_fence_operand(sums);
  if (count > 0) ring.release(step - 1);
  return step;
}

// Stages and writes the warpgroup's 64 channels, kStagedTokens tokens at a time.
template <class C>
LOWBIT_DEVICE void finish_item(int32_t (&sums)[C::kSums], const Params& p, const Addends& add,
                               const Schedule<C>& work, const Item& item, int number,
                               ptx::smem_ptr<int32_t> staged, int team) {
  const Team<128> group{1 + team};
  if (p.splits > 1) {
    const int tiles = work.row_tiles * work.token_tiles, at = (number % tiles) * 2 + team;
    if (!reduce_splits(group, sums, item.split, p.splits, p.partial + int64_t(at) * (128 * C::kSums),
                       int64_t(tiles) * 2 * (128 * C::kSums), p.tickets + at, staged.template as<uint32_t>()))
      return group.sync();  // the flag is read before the next item writes it
    group.sync();
  }
  const int slab = 16 * (ptx::warp_index() % 4), row = item.row_tile * C::kRows + 64 * team;
  LOWBIT_UNROLL
  for (int t = 0; t < C::kTokens; t += kStagedTokens) {
    LOWBIT_UNROLL
    for (int j = 0; j < kStagedTokens; j += 8)
      stage_fragment<64 + kPad>(staged, slab, j, sums + (t + j) / 8 * 4);
    group.sync();
    write_tile<64, kStagedTokens, C::kGroup, Slab<C::kWeight>::kShift, C::kWeight == Weight::kFp4, C::kAdds>(
        group, p, add, staged, row, item.token_tile * C::kTokens + t);
    group.sync();
  }
}

template <class C>
LOWBIT_DEVICE void consume(const Params& p, const Addends& add, const Ring<C>& ring, const Schedule<C>& work,
                           int team) {
  const auto staged = ring.base.plus_bytes(C::kStagedAt + team * C::kStagedWords * 4).template as<int32_t>();
  int step = 0;
  for (int i = ptx::block_index_x(); i < work.items; i += ptx::grid_size_x()) {
    const Item item = work.item(i);
    int32_t sums[C::kSums] = {};
    step = multiply_item<C>(sums, p, ring, step, work.end(item) - work.begin(item), team);
    finish_item<C>(sums, p, add, work, item, i, staged, team);
  }
}

template <class C>
LOWBIT_KERNEL(C::kThreads, 1)
gemm_wgmma(const LOWBIT_GRID_CONSTANT WgmmaParams params) {
  const Ring<C> ring{ptx::dynamic_smem<uint8_t, 1024>()};
  const Schedule<C> work(params.p);
  ring.start();
  if (ptx::warpgroup_index() == 0) {
    ptx::setmaxnreg_dec<40>();
    if (ptx::thread_index() == 0) produce<C>(params, ring, work);
  } else {
    ptx::setmaxnreg_inc<232>();
    consume<C>(params.p, params.add, ring, work, ptx::warpgroup_index() - 1);
  }
}

}  // namespace lowbit::kernels::int_gemm
