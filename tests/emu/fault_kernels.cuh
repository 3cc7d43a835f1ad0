// Two small kernels that are right, and the same with one mistake planted. test_faults.py asks that each
// mistake is named and that the right kernel passes on many seeds.
#pragma once

#include "../../csrc/layout/mma_fragment.h"
#include "../../csrc/layout/swizzle.h"
#include "../../csrc/ptx/bits.h"
#include "../../csrc/ptx/cp_async.h"
#include "../../csrc/ptx/ldmatrix.h"
#include "../../csrc/ptx/mbarrier.h"
#include "../../csrc/ptx/memory.h"
#include "../../csrc/ptx/mma.h"
#include "../../csrc/ptx/sync.h"
#include "../../csrc/ptx/tma.h"
#include "../../csrc/ptx/warp.h"
#include "../../csrc/ptx/wgmma.h"

namespace lowbit::faults {

using namespace lowbit::ptx;

enum class Sm80 {
  kNone,
  kNoWait,
  kOneGroupTooFew,
  kNoSyncthreads,
  kNoSyncwarp,
  kWrongSwizzle,
  kHalfWarp,
  kDivergent,
  kMisalignedRow,
  kSharedTail,
  kGlobalTail,
  kGlobalStoreTail,
  kLeakedCopies,
  kOverwrittenStage,
  kUninitialised,
  kReadOnly,
  kReadOutput,
  kBlockRace,
  kBarCount,
  kDeadlock,
  kEarlyExit,
  kMisalignedGlobal,
  kUnregistered,
  kSyncthreadsInBranch,
  kSpin,
  kCount
};
inline const char* const kSm80Names[] = {"none",
                                         "no_wait",
                                         "one_group_too_few",
                                         "no_syncthreads",
                                         "no_syncwarp",
                                         "wrong_swizzle",
                                         "half_warp",
                                         "divergent",
                                         "misaligned_row",
                                         "shared_tail",
                                         "global_tail",
                                         "global_store_tail",
                                         "leaked_copies",
                                         "overwritten_stage",
                                         "uninitialised",
                                         "read_only",
                                         "read_output",
                                         "block_race",
                                         "bar_count",
                                         "deadlock",
                                         "early_exit",
                                         "misaligned_global",
                                         "unregistered",
                                         "syncthreads_in_branch",
                                         "spin"};
static_assert(sizeof(kSm80Names) / sizeof(kSm80Names[0]) == size_t(Sm80::kCount));

// y [m, 8] = x [m, K] * w [8, K]^T, int8: 2 warps of 16 rows, 3 stages of 64 bytes of k, 64-byte swizzle.
constexpr int kStages80 = 3, kStageBytes80 = 40 * 64, kSmem80 = kStages80 * kStageBytes80 + 32 * 8 * 4;

LOWBIT_KERNEL(64, 1) gemm_sm80(Sm80 fault, const int8_t* x, const int8_t* w, int32_t* y, int m, int k) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t, 512>();
  const int thread = thread_index(), lane = lane_index(), warp = warp_index();
  const int first_row = fault == Sm80::kBlockRace ? 0 : 32 * block_index_x();
  const int rows = m - first_row;
  auto at = [&](int step, int row, int chunk) {
    return smem + step % kStages80 * kStageBytes80 + int(swizzle::tile_offset(row, 16 * chunk, 64));
  };
  auto load = [&](int step) {  // 32 rows of x and 8 of w, 4 chunks each
    for (int i = thread; i < 160; i += 64) {
      const int row = i / 4, chunk = i % 4;
      const bool inside = row >= 32 || row < rows || fault == Sm80::kGlobalTail;
      const int8_t* from = row >= 32 ? w + (row - 32) * k : x + int64_t(first_row + (inside ? row : 0)) * k;
      if (fault == Sm80::kMisalignedGlobal && i == 3) from += 8;
      if (fault == Sm80::kUnregistered && i == 3) from += 1 << 24;
      cp_async_cg_16_zfill(at(step, row, chunk), from + 64 * step + 16 * chunk, inside ? 16 : 0);
    }
  };
  if (fault == Sm80::kEarlyExit && thread == 40) return;
  const uint32_t* flag = reinterpret_cast<const uint32_t*>(x);
  if (fault == Sm80::kSpin)
    for (const uint32_t before = ld_acquire_global_u32(flag); ld_acquire_global_u32(flag) == before;) {}
  const int steps = k / 64;
  for (int s = 0; s < kStages80 - 1; ++s) {
    if (s < steps) load(s);
    cp_async_commit_group();
  }
  int32_t acc[4] = {0, 0, 0, 0};
  for (int step = 0; step < steps; ++step) {
    if (fault == Sm80::kOneGroupTooFew) cp_async_wait_group<kStages80 - 1>();
    else if (fault != Sm80::kNoWait) cp_async_wait_group<kStages80 - 2>();
    if (fault == Sm80::kOverwrittenStage && step + kStages80 - 1 < steps) load(step + kStages80 - 1);
    if (fault == Sm80::kSyncthreadsInBranch && lane >= 16) syncwarp();
    if (fault != Sm80::kNoSyncthreads) syncthreads();
    if (fault != Sm80::kOverwrittenStage && step + kStages80 - 1 < steps) load(step + kStages80 - 1);
    cp_async_commit_group();
    for (int half = 0; half < 2; ++half) {
      uint32_t a[4], b[2];
      const int row = 16 * warp + fragment::ldmatrix_a_row(lane), chunk = 2 * half + lane / 16;
      smem_ptr<uint8_t> from = at(step, row, chunk);
      if (fault == Sm80::kWrongSwizzle) from = at(step, row, chunk ^ (row & 1));
      if (fault == Sm80::kMisalignedRow && lane == 5) from = from + 8;
      if (fault == Sm80::kHalfWarp && lane < 16) continue;
      ldmatrix_x4(a, from);
      if (fault == Sm80::kDivergent && lane == 7) mma_m16n8k32_s32_s8_s8(acc, a, b);
      ldmatrix_x2(b, at(step, 32 + lane % 8, 2 * half + (lane / 8) % 2));
      mma_m16n8k32_s32_s8_s8(acc, a, b);
    }
  }
  cp_async_wait_group<0>();
  if (fault == Sm80::kBarCount) bar_sync(1, warp == 0 ? 64 : 32);
  if (fault == Sm80::kDeadlock && warp == 1) bar_sync(2, 64);
  // through shared memory, so that a lane writes a whole row of its warp
  const smem_ptr<int32_t> out = (smem + kStages80 * kStageBytes80).as<int32_t>();
  for (int i = 0; i < 4; ++i)
    st_shared(out + (16 * warp + fragment::d_row(lane, i)) * 8 + fragment::d_col(lane, i), acc[i]);
  if (fault != Sm80::kNoSyncwarp) syncwarp();
  const int row = 16 * warp + lane / 2, col = 4 * (lane % 2);
  if (fault == Sm80::kSharedTail && thread == 63) ld_shared((out + 8 * (row + 1) + col).as<s32x4>());
  if (fault == Sm80::kUninitialised && thread == 9) ld_shared((smem + kSmem80).as<uint32_t>());
  if (fault == Sm80::kReadOnly && thread == 9) st_global(const_cast<int8_t*>(w), int8_t(1));
  if (fault == Sm80::kReadOutput && thread == 9) ld_global(y + 1);
  if (row < rows || fault == Sm80::kGlobalStoreTail)
    st_global(reinterpret_cast<s32x4*>(y + int64_t(first_row + row) * 8 + col),
              ld_shared((out + 8 * row + col).as<s32x4>()));
  if (fault == Sm80::kLeakedCopies) {
    syncthreads();
    if (thread == 3) cp_async_cg_16(smem, x);
  }
}

enum class Sm90 {
  kNone,
  kDoubleArrive,
  kOverArrive,
  kStalePhase,
  kStaleProducer,
  kMissingExpect,
  kShortExpect,
  kLongExpect,
  kNoInitFence,
  kNoInitBarrier,
  kNoProxyFence,
  kOneProxyFence,
  kEarlyRelease,
  kRewrittenA,
  kReadAccumulator,
  kFenceOperand,
  kWrittenAccumulator,
  kNoWgmmaFence,
  kUnevenDescriptor,
  kLeakedWgmma,
  kLeakedStore,
  kDeadlock,
  kPartialWarpgroup,
  kStoreReused,
  kNoStoreFence,
  kTmaUnaligned,
  kTmaOutOfShared,
  kMissingWait,
  kPlainAccess,
  kCount
};
inline const char* const kSm90Names[] = {"none",
                                         "double_arrive",
                                         "over_arrive",
                                         "stale_phase",
                                         "stale_producer",
                                         "missing_expect",
                                         "short_expect",
                                         "long_expect",
                                         "no_init_fence",
                                         "no_init_barrier",
                                         "no_proxy_fence",
                                         "one_proxy_fence",
                                         "early_release",
                                         "rewritten_a",
                                         "read_accumulator",
                                         "fence_operand",
                                         "written_accumulator",
                                         "no_wgmma_fence",
                                         "uneven_descriptor",
                                         "leaked_wgmma",
                                         "leaked_store",
                                         "deadlock",
                                         "partial_warpgroup",
                                         "store_reused",
                                         "no_store_fence",
                                         "tma_unaligned",
                                         "tma_out_of_shared",
                                         "missing_wait",
                                         "plain_access"};
static_assert(sizeof(kSm90Names) / sizeof(kSm90Names[0]) == size_t(Sm90::kCount));

// y [N, 64] = x [N, K] * w [64, K]^T: x by TMA through 2 stages of 128 swizzled bytes, w as the register
// operand; warpgroup 0 multiplies, warp 4 copies. The first k step of x is copied to a spare tile by threads,
// to have a generic writer.
constexpr int kN = 32, kStages90 = 2, kTile90 = kN * 128;
constexpr int kFull = 0, kEmpty = kStages90 * 8, kBarrierBytes = 1024;
constexpr int kOut90 = kBarrierBytes + (kStages90 + 1) * kTile90, kSmem90 = kOut90 + 64 * kN * 4 + 1008;

LOWBIT_DEVICE void produce(Sm90 fault, const TensorMap& x, smem_ptr<uint8_t> smem, int steps) {
  const smem_ptr<uint64_t> full = smem.as<uint64_t>(), empty = full + kStages90;
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages90, round = step / kStages90;
    const uint32_t parity = uint32_t(round & 1) ^ 1;
    mbarrier_wait_parity(empty + stage, fault == Sm90::kStaleProducer ? 1 : parity);
    const uint32_t bytes = fault == Sm90::kShortExpect  ? kTile90 - 64
                           : fault == Sm90::kLongExpect ? kTile90 + 64
                                                        : kTile90;
    if (fault == Sm90::kMissingExpect) mbarrier_arrive(full + stage);
    else mbarrier_arrive_expect_tx(full + stage, bytes);
    if (fault == Sm90::kDoubleArrive) mbarrier_arrive(full + stage);
    smem_ptr<uint8_t> tile = smem + kBarrierBytes + stage * kTile90;
    if (fault == Sm90::kTmaUnaligned) tile = tile + 64;
    if (fault == Sm90::kTmaOutOfShared) tile = tile + (kSmem90 - kTile90);
    cp_async_bulk_tensor_2d_load(tile, x, 128 * step, 0, full + stage);
  }
}

// The A registers of one k step of 32: w [64, K] straight from global memory.
LOWBIT_DEVICE void load_a(uint32_t (&a)[4], const int8_t* w, int k, int byte) {
  const int t = thread_index() % 128;
  for (int i = 0; i < 4; ++i)
    a[i] = ld_global(reinterpret_cast<const uint32_t*>(w + fragment::wgmma_a_row(t, i) * k + byte +
                                                       fragment::wgmma_a_byte(t, i)));
}

// Rewrites the tile of step 0 as it is, but with generic stores: from the stage to the spare tile.
LOWBIT_DEVICE smem_ptr<uint8_t> copy_tile(Sm90 fault, smem_ptr<uint8_t> from, smem_ptr<uint8_t> to) {
  const int t = thread_index() % 128;
  for (int i = 16 * t; i < kTile90; i += 16 * 128)
    st_shared((to + i).as<u32x4>(), ld_shared((from + i).as<u32x4>()));
  if (fault == Sm90::kOneProxyFence ? t == 0 : fault != Sm90::kNoProxyFence) fence_proxy_async();
  bar_sync(1, 128);
  return to;
}

LOWBIT_DEVICE void store_out(Sm90 fault, const TensorMap& y, smem_ptr<uint8_t> out,
                             const int32_t (&acc)[kN / 2]) {
  const int t = thread_index() % 128;
  for (int i = 0; i < kN / 2; ++i)
    st_shared((out + (fragment::wgmma_d_col(t, i) * 64 + fragment::wgmma_d_row(t, i)) * 4).as<int32_t>(),
              acc[i]);
  if (fault != Sm90::kNoStoreFence) fence_proxy_async();
  bar_sync(1, 128);
  if (t == 0) {
    cp_async_bulk_tensor_2d_store(y, 0, 0, out);
    cp_async_bulk_commit_group();
    if (fault == Sm90::kStoreReused) st_shared(out.as<int32_t>(), 0);
    if (fault != Sm90::kLeakedStore) cp_async_bulk_wait_group<0>();
  }
}

LOWBIT_DEVICE void consume(Sm90 fault, const int8_t* w, const TensorMap& y, smem_ptr<uint8_t> smem, int k) {
  const smem_ptr<uint64_t> full = smem.as<uint64_t>(), empty = full + kStages90;
  const int t = thread_index() % 128, steps = k / 128;
  int32_t acc[kN / 2];
  for (int i = 0; i < kN / 2; ++i) acc[i] = 0;
  uint32_t a[4][4];
  for (int step = 0; step < steps; ++step) {
    const int stage = step % kStages90, round = step / kStages90;
    smem_ptr<uint8_t> tile = smem + kBarrierBytes + stage * kTile90;
    if (fault != Sm90::kMissingWait || step != 1)
      mbarrier_wait_parity(full + stage, fault == Sm90::kStalePhase ? 0 : uint32_t(round & 1));
    if (step == 0) tile = copy_tile(fault, tile, smem + kBarrierBytes + kStages90 * kTile90);
    const smem_ptr<uint8_t> seen = fault == Sm90::kUnevenDescriptor && t >= 96 ? tile + 1024 : tile;
    const WgmmaDescriptor b = WgmmaDescriptor::make(seen, Swizzle::k128B, 1024);
    for (int s = 0; s < 4; ++s) load_a(a[s], w, k, 128 * step + 32 * s);
    if (fault != Sm90::kNoWgmmaFence) wgmma_fence();
    if (fault == Sm90::kPartialWarpgroup && t >= 96) return;
    for (int s = 0; s < 4; ++s) wgmma_m64k32_s32_s8_s8(acc, a[s], b.plus_bytes(uint32_t(32 * s)), true);
    wgmma_commit_group();
    if (fault == Sm90::kRewrittenA && t == 77) load_a(a[2], w, k, 0);
    if (fault == Sm90::kWrittenAccumulator && t == 77) acc[3] = 5;
    if (fault == Sm90::kFenceOperand) warpgroup_fence_operand(acc);
    if (fault == Sm90::kReadAccumulator && t == 77) cvt_rn_f32_s32(acc[3]);
    if (fault == Sm90::kEarlyRelease) mbarrier_arrive(empty + stage);
    if (fault != Sm90::kLeakedWgmma || step + 1 < steps) wgmma_wait_group<0>();
    const bool releases = fault != Sm90::kEarlyRelease && (fault != Sm90::kDeadlock || t != 5);
    if (releases) mbarrier_arrive(empty + stage);
    if (fault == Sm90::kOverArrive && t == 0) mbarrier_arrive(full + stage);
  }
  if (fault == Sm90::kLeakedWgmma) return;
  warpgroup_fence_operand(acc);
  if (fault == Sm90::kPlainAccess && t == 0) ld_shared(full);
  store_out(fault, y, smem + kOut90, acc);
}

LOWBIT_KERNEL(160, 1)
gemm_sm90(Sm90 fault, const LOWBIT_GRID_CONSTANT TensorMap x, const int8_t* w,
          const LOWBIT_GRID_CONSTANT TensorMap y, int k) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t, 1024>();
  const smem_ptr<uint64_t> full = smem.as<uint64_t>(), empty = full + kStages90;
  if (thread_index() == 0) {
    for (int s = 0; s < kStages90; ++s) {
      mbarrier_init(full + s, 1);
      mbarrier_init(empty + s, 128);
    }
    if (fault != Sm90::kNoInitFence) fence_mbarrier_init();
  }
  if (fault != Sm90::kNoInitBarrier) syncthreads();
  if (warpgroup_index() == 0) {
    consume(fault, w, y, smem, k);
  } else if (lane_index() == 0) {
    produce(fault, x, smem, k / 128);
  }
}

// A tile that TMA swizzled, read back with a swizzle of the OFFSET: right only at an aligned base.
LOWBIT_KERNEL(32, 1) relative_swizzle(const LOWBIT_GRID_CONSTANT TensorMap x, bool absolute, uint8_t* out) {
  const smem_ptr<uint8_t> smem = dynamic_smem<uint8_t, 128>();
  const smem_ptr<uint64_t> full = smem.as<uint64_t>();
  const smem_ptr<uint8_t> tile = smem + 128;
  if (thread_index() == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, 8 * 128);
    cp_async_bulk_tensor_2d_load(tile, x, 0, 0, full);
  }
  syncthreads();
  mbarrier_wait_parity(full, 0);
  for (int i = lane_index(); i < 64; i += 32) {
    smem_ptr<uint8_t> from = tile + int(swizzle::apply(uint32_t(16 * i), 128));
    if (absolute) from = {swizzle::apply((tile + 16 * i).address, 128)};
    st_global(reinterpret_cast<u32x4*>(out) + i, ld_shared(from.as<u32x4>()));
  }
}

}  // namespace lowbit::faults
