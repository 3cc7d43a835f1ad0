// Weight-only GEMM on wgmma: sm_90a, more than 64 tokens.
//
// The weight is the register operand: a warp's 16 channels of wgmma m64k16 are the A fragment of mma.sync, so
// unpack.cuh and the layout serve both. Each consumer warpgroup decodes 64 channels while its last wgmma run,
// and multiplies them with all tokens of the tile, which TMA puts into shared memory. One producer thread,
// three consumer warpgroups, a ring of stages of 128 k, and a persistent loop over tiles and splits of K.
// Scales of groups multiply the decoded weights, which rounds them to the type of x.
#pragma once

#include "../../ptx/tma.h"
#include "../../ptx/wgmma.h"
#include "../common/pipeline.cuh"
#include "epilogue.cuh"
#include "group_scale.cuh"
#include "unpack.cuh"

namespace lowbit::kernels::fp_gemm {

struct WgmmaParams {
  ptx::TensorMap x;  // boxes of kWgmma.tokens rows x 64 k
  Params p;
};

inline ptx::TensorMap2d map_of(const Params& p) {
  constexpr uint32_t kBoxRows = kWgmma.tokens;
  return {p.x, uint64_t(p.m), 2 * uint64_t(p.k), uint64_t(p.x_stride), kBoxRows, 128, ptx::Swizzle::k128B};
}

template <Weight kWeightOf, Half kHalfOf, bool kGroupedOf>
struct WgmmaConfig {
  static constexpr Weight kWeight = kWeightOf;
  static constexpr Half kHalf = kHalfOf;
  static constexpr bool kGrouped = kGroupedOf;
  static constexpr int kRows = kWgmma.rows, kTokens = kWgmma.tokens, kThreads = kWgmma.threads;
  static constexpr int kStages = stages_of(kWgmma, kWeight, kGrouped);
  static constexpr int kTeams = kRows / 64, kStageK = fp_gemm::kStageK;
  static constexpr int kTokenBlocks = kTokens / 8;
  static constexpr int kSums = 4 * kTokenBlocks;    // registers of a thread
  static constexpr int kHalfBytes = kTokens * 128;  // 64 k of x: rows of 128 bytes, 128-byte swizzle
  static constexpr int kBlockBytes = fp_fragment::block_bytes(kWeight);
  static constexpr int kWeightAt = x_stage_bytes(kTokens);
  static constexpr int kScaleAt = kWeightAt + weight_stage_bytes(kRows, kWeight);
  static constexpr int kScaleBytes = scale_stage_bytes(64, kGrouped);
  static constexpr int kStageBytes = stage_bytes(kWgmma, kWeight, kGrouped);
  static constexpr int kStagedAt = kStages * kStageBytes;
  static constexpr int kStagedWords = kStagedTokens * (64 + kPad);  // of a warpgroup
  static constexpr int kBarrierAt = kStagedAt + kTeams * kStagedWords * 4;
  static_assert(kThreads == 128 * (kTeams + 1), "consumer warpgroups of 64 channels and a producer");
  static_assert(kWeightAt == 2 * kHalfBytes && kStages >= 3);
};

// One thread brings every stage of every item. A block of weights past the end is the last one again: its
// channels are not stored. x past the end of k or of the tokens arrives as zeros.
template <class C>
LOWBIT_DEVICE void produce(const WgmmaParams& params, const Ring<C>& ring, const Schedule<C>& work) {
  const Params& p = params.p;
  const int n_blocks = ceil_div(p.n, fp_fragment::kN);
  const int scales = C::kGrouped ? groups_of(p.k, p.group_shift) * group_bytes(p.scales) : 0;
  const int stage_scales = C::kGrouped ? (128 >> p.group_shift) * group_bytes(p.scales) : 0;
  int step = 0;
  for (int i = ptx::block_index_x(); i < work.items; i += ptx::grid_size_x()) {
    const Item item = work.item(i);
    for (int s = work.begin(item); s < work.end(item); ++s, ++step) {
      const auto stage = ring.stage(step);
      const auto full = ring.full(step);
      ptx::mbarrier_wait_parity(ring.empty(step), Ring<C>::phase(step) ^ 1u);
      const int left = scales - s * stage_scales, scale_bytes = left < stage_scales ? left : stage_scales;
      ptx::mbarrier_arrive_expect_tx(full, C::kWeightAt + C::kTeams * (C::kBlockBytes + scale_bytes));
      for (int half = 0; half < 2; ++half)
        ptx::cp_async_bulk_tensor_2d_load(stage.plus_bytes(half * C::kHalfBytes), params.x,
                                          s * 2 * kStageK + half * 128, item.token_tile * C::kTokens, full);
      for (int b = 0; b < C::kTeams; ++b) {
        const int at = C::kTeams * item.row_tile + b, n = at < n_blocks ? at : n_blocks - 1;
        ptx::cp_async_bulk_load(stage.plus_bytes(C::kWeightAt + b * C::kBlockBytes),
                                p.weight + (int64_t(n) * work.stages + s) * C::kBlockBytes, C::kBlockBytes,
                                full);
        if constexpr (C::kGrouped)
          ptx::cp_async_bulk_load(stage.plus_bytes(C::kScaleAt + b * C::kScaleBytes),
                                  p.group_scale + (int64_t(n) * scales + s * stage_scales), scale_bytes,
                                  full);
      }
    }
  }
}

template <class C>
LOWBIT_DEVICE void wgmma(float (&sums)[C::kSums], const uint32_t (&a)[4], ptx::WgmmaDescriptor b, bool add) {
  if constexpr (C::kHalf == Half::kF16) ptx::wgmma_m64k16_f32_f16_f16(sums, a, b, add);
  else ptx::wgmma_m64k16_f32_bf16_bf16(sums, a, b, add);
}

// The weights of 32 k times the scales of their groups. left: groups from the stage's first on; k past the
// last one takes its scale.
template <class C>
LOWBIT_DEVICE void scale_fragments(uint32_t (*a)[4], const Params& p, ptx::smem_ptr<uint8_t> scales, int k32,
                                   int left) {
  const int inside = 32 * k32 >> p.group_shift, group = inside < left ? inside : left - 1;
  float scale[2];  // of channels g and g + 8
  load_scales(scale, p.scales, scales, 64 * group + 16 * (ptx::warp_index() % 4) + ptx::lane_index() / 4);
  const PairScale<C::kHalf> of[2] = {PairScale<C::kHalf>(scale[0]), PairScale<C::kHalf>(scale[1])};
  LOWBIT_UNROLL
  for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = of[i % 2].template times<C::kWeight>(a[i / 4][i % 4]);
}

// A registers of the four k16 steps of half a stage. Fenced: a mask of the decode that sinks below
// wgmma_fence makes ptxas serialise (C7520).
template <class C>
LOWBIT_DEVICE void decode_half(uint32_t (&a)[4][4], const Slab<C::kWeight>& slab, int half, const Params& p,
                               ptx::smem_ptr<uint8_t> scales, int left) {
  LOWBIT_UNROLL
  for (int c = 0; c < 2; ++c) {
    slab.template fragments<C::kHalf>(2 * half + c, a + 2 * c);
    if constexpr (C::kGrouped) scale_fragments<C>(a + 2 * c, p, scales, 2 * half + c, left);
  }
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) ptx::warpgroup_fence_operand(a[i]);
}

// sums (+)= the 64 k of half a stage, as one group of four wgmma. Groups of two, with twice the waits, ptxas
// serialises (C7513).
template <class C>
LOWBIT_DEVICE void issue_half(float (&sums)[C::kSums], const uint32_t (&a)[4][4],
                              ptx::smem_ptr<uint8_t> stage, int half, bool add) {
  const auto x =
      ptx::WgmmaDescriptor::make(stage, ptx::Swizzle::k128B, 1024).plus_bytes(half * C::kHalfBytes);
  ptx::wgmma_fence();
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) wgmma<C>(sums, a[i], x.plus_bytes(32 * i), add || i > 0);
  ptx::wgmma_commit_group();
}

// The sums of one item. While half a stage is multiplied, the next is decoded into the other set of
// registers; a set is written again only after the wait that covers its last use.
template <class C>
LOWBIT_DEVICE int multiply_item(float (&sums)[C::kSums], const Params& p, const Ring<C>& ring, int step,
                                int first, int count, int team) {
  const int slab_at = C::kWeightAt + team * C::kBlockBytes +
                      ptx::warp_index() % 4 * Slab<C::kWeight>::kBytes;  // [64 channels][slab]
  uint32_t a[2][4][4];                                                   // [set][k16][register]
  const int per_stage = C::kGrouped ? 128 >> p.group_shift : 0;
  int groups = C::kGrouped ? groups_of(p.k, p.group_shift) - first * per_stage : 0;
  ptx::warpgroup_fence_operand(sums);
  LOWBIT_NO_UNROLL
  for (int i = 0; i < count; ++i, ++step, groups -= per_stage) {
    const auto stage = ring.stage(step);
    ptx::mbarrier_wait_parity(ring.full(step), Ring<C>::phase(step));
    Slab<C::kWeight> slab;
    slab.load(stage.plus_bytes(slab_at));
    LOWBIT_UNROLL
    for (int half = 0; half < 2; ++half) {
      decode_half<C>(a[half], slab, half, p, stage.plus_bytes(C::kScaleAt + team * C::kScaleBytes), groups);
      issue_half<C>(sums, a[half], stage, half, i > 0 || half > 0);
      ptx::wgmma_wait_group<1>();                      // the other set is free,
      if (half == 0 && i > 0) ring.release(step - 1);  // and the last stage is multiplied
    }
  }
  ptx::wgmma_wait_group<0>();
  ptx::warpgroup_fence_operand(sums);
  if (count > 0) ring.release(step - 1);
  return step;
}

// Stages and writes the warpgroup's 64 channels, kStagedTokens tokens at a time.
template <class C>
LOWBIT_DEVICE void finish_item(float (&sums)[C::kSums], const Params& p, const Schedule<C>& work,
                               const Item& item, int number, ptx::smem_ptr<float> staged, int team) {
  const Team<128> group{1 + team};
  const int token = item.token_tile * C::kTokens, left = p.m - token;
  if (p.splits > 1) {
    constexpr int kTeamWords = 128 * C::kSums;
    const int tiles = work.row_tiles * work.token_tiles, at = (number % tiles) * C::kTeams + team;
    const int live = left < C::kTokens ? ceil_div(left, 8) : C::kTokenBlocks;
    if (!reduce_splits<1, C::kTokenBlocks>(
            group, sums, live, item.split, p.splits, p.partial + int64_t(at) * kTeamWords,
            int64_t(tiles) * C::kTeams * kTeamWords, p.tickets + at, staged.template as<uint32_t>()))
      return group.sync();  // the flag is read before the next item writes it
    group.sync();
  }
  const int slab = 16 * (ptx::warp_index() % 4), row = item.row_tile * C::kRows + 64 * team;
  LOWBIT_UNROLL
  for (int t = 0; t < C::kTokens; t += kStagedTokens) {
    if (t >= left) break;
    LOWBIT_UNROLL
    for (int j = 0; j < kStagedTokens; j += 8)
      stage_fragment<64 + kPad>(staged, slab, j, sums + (t + j) / 8 * 4);
    group.sync();
    write_tile<C::kHalf, 64>(group, p, staged, row, token + t, kStagedTokens);
    group.sync();
  }
}

template <class C>
LOWBIT_DEVICE void consume(const Params& p, const Ring<C>& ring, const Schedule<C>& work, int team) {
  const auto staged = ring.base.plus_bytes(C::kStagedAt + team * C::kStagedWords * 4).template as<float>();
  int step = 0;
  for (int i = ptx::block_index_x(); i < work.items; i += ptx::grid_size_x()) {
    const Item item = work.item(i);
    float sums[C::kSums] = {};
    const int first = work.begin(item);
    step = multiply_item<C>(sums, p, ring, step, first, work.end(item) - first, team);
    finish_item<C>(sums, p, work, item, i, staged, team);
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
    ptx::setmaxnreg_inc<152>();
    consume<C>(params.p, ring, work, ptx::warpgroup_index() - 1);
  }
}

}  // namespace lowbit::kernels::fp_gemm
