// Integer GEMM on mma.sync: sm_80 and everything after it; on sm_90 up to 16 tokens.
//
// The weight is the m16 operand, so a tile of eight tokens wastes nothing. Weights and activations come
// through a cp.async ring; a lane's 16 bytes of weight are its fragments for two k32 steps
// (layout/mma_weight.h).
#pragma once

#include "../../layout/mma_fragment.h"
#include "../../layout/mma_weight.h"
#include "../../layout/swizzle.h"
#include "../../ptx/cp_async.h"
#include "../../ptx/ldmatrix.h"
#include "../../ptx/mma.h"
#include "epilogue.cuh"
#include "unpack.cuh"

namespace lowbit::kernels::int_gemm {

// kWarpsN x kWarpsM warps share the tile: channels x tokens.
template <const Tile& kTile, Weight kWeightOf, Codes kCodesOf>
struct MmaConfig {
  static constexpr Weight kWeight = kWeightOf;
  static constexpr int kWarpsN = warps_across(kTile, kWeight);
  static constexpr Codes kCodes = kCodesOf;
  static constexpr bool kS4 = kCodes == Codes::kOperand4;
  static constexpr int kRows = kTile.rows, kTokens = kTile.tokens, kThreads = kTile.threads;
  static constexpr int kBlocksPerSm = kTile.blocks_per_sm;
  static constexpr int kStages = stages_of(kTile, kWeight, kCodes);
  static constexpr int kWarpsM = kThreads / 32 / kWarpsN;
  static constexpr int kSlabs = kRows / 16 / kWarpsN;          // 16 channels each, per warp
  static constexpr int kTokenBlocks = kTokens / 8 / kWarpsM;   // 8 tokens each, per warp
  static constexpr int kXBytes = kS4 ? kStageK / 2 : kStageK;  // of a token in a stage, and the swizzle width
  static constexpr int kSlabBytes = Slab<kWeight>::kBytes;
  static constexpr int kWeightAt = x_stage_bytes(kTokens, kCodes);
  static constexpr int kScaleAt = kWeightAt + weight_stage_bytes(kRows, kWeight);
  static constexpr int kStageBytes = stage_bytes(kTile, kWeight, kCodes);
  static_assert(kTokenBlocks % 2 == 0, "ldmatrix.x4 takes two blocks of tokens");
  static_assert(!kS4 || kWeight == Weight::kInt4, "s4 needs plain int4 weights");
};

// Copies one stage: x rows swizzled, weights and group scales as they lie. What lies outside is zero. Each
// thread brings the same pieces of every stage, so what does not depend on the stage is computed once.
template <class C>
struct Loader {
  static constexpr int kAllX = C::kTokens * C::kXBytes / 16, kTokenStep = C::kThreads * 16 / C::kXBytes;
  static constexpr int kBlock = 4 * C::kSlabBytes, kPair = 2 * kBlock;  // 64 channels: 64 k, and a stage
  static constexpr int kStep = C::kThreads * 16;
  static_assert(kTokenStep % 8 == 0 && kPair % kStep == 0, "the pieces of a thread differ by constants");

  const uint8_t *x_from, *weight_from, *scale_from;
  int64_t x_step, channel_step;  // bytes between pieces of x, and between blocks of 64 channels
  int tokens_left, x_left, channels_left, k_left, scales_left;
  uint32_t x_to;
  int group_shift, scale_block;

  LOWBIT_DEVICE Loader(const Params& p, int row, int token) {
    const int t = ptx::thread_index(), r = t * 16 / C::kXBytes, at = t * 16 % C::kXBytes;
    tokens_left = p.m - token - r, x_left = p.x_bytes - at;
    // a piece that is never inside still needs an address that is
    x_from = tokens_left > 0 && x_left > 0 ? p.x + (token + r) * p.x_stride + at : p.x;
    x_step = kTokenStep * p.x_stride;
    x_to = swizzle::apply(16 * t, C::kXBytes);
    const int k_blocks = ceil_div(p.k, mma_weight::kK);
    channel_step = int64_t(k_blocks) * kBlock;
    channels_left = ceil_div(p.n, mma_weight::kN) - row / 64, k_left = k_blocks - 16 * t % kPair / kBlock;
    weight_from = k_left > 0 ? p.weight + row / 64 * channel_step + 16 * t : p.weight;
    if constexpr (C::kWeight == Weight::kInt4Group) {
      group_shift = p.group_shift;
      const int groups = (p.k + (1 << group_shift) - 1) >> group_shift,
                g = t / 4 & ((128 >> group_shift) - 1);
      scale_block = t / 4 >> (7 - group_shift);
      scales_left = scale_block < channels_left && scale_block < C::kRows / 64 ? groups - g : 0;
      scale_from = p.group_scale;
      if (scales_left > 0) scale_from += (int64_t(row / 64 + scale_block) * groups + g) * 64 + t % 4 * 16;
    }
  }

  LOWBIT_DEVICE void operator()(ptx::smem_ptr<uint8_t> stage, int index) const {
    const int left = x_left - index * C::kXBytes, bytes = left < 16 ? left : 16;
    LOWBIT_UNROLL
    for (int i = 0; i < ceil_div(kAllX, C::kThreads); ++i) {
      if (kAllX % C::kThreads && ptx::thread_index() >= kAllX) break;
      const bool inside = i * kTokenStep < tokens_left && left > 0;
      ptx::cp_async_cg_16_zfill(stage.plus_bytes(x_to + i * kStep),
                                inside ? x_from + i * x_step + int64_t(index) * C::kXBytes : x_from,
                                inside ? bytes : 0);
    }
    LOWBIT_UNROLL
    for (int i = 0; i < C::kRows / 64 * kPair / kStep; ++i) {
      const int block = i * kStep / kPair, at = i * kStep % kPair;
      const bool inside = block < channels_left && 2 * index + at / kBlock < k_left;
      ptx::cp_async_cg_16_zfill(
          stage.plus_bytes(C::kWeightAt + 16 * ptx::thread_index() + i * kStep),
          weight_from + (inside ? block * channel_step + int64_t(index) * kPair + at : 0), inside ? 16 : 0);
    }
    if constexpr (C::kWeight == Weight::kInt4Group) {
      const int groups = 128 >> group_shift;
      if (scale_block >= C::kRows / 64) return;
      const bool inside = index * groups < scales_left;
      ptx::cp_async_cg_16_zfill(stage.plus_bytes(C::kScaleAt + 16 * ptx::thread_index()),
                                scale_from + (inside ? index * groups * 64 : 0), inside ? 16 : 0);
    }
  }
};

// Where this lane points for the B fragments of the warp's tokens. Eight tokens on, the swizzle is the same.
template <class C>
struct TokenLane {
  uint32_t row, chunk;

  explicit LOWBIT_DEVICE TokenLane(int token) {
    const int lane = ptx::lane_index(), col = fragment::ldmatrix_b_col(lane);
    row = uint32_t(token + col) * C::kXBytes;
    chunk = (swizzle::apply(row, C::kXBytes) ^ row) ^ fragment::ldmatrix_b_byte(lane);
  }
  // The fragments at byte `at` of the rows: 32 bytes of k.
  LOWBIT_DEVICE void load(uint32_t (&b)[C::kTokenBlocks][2], ptx::smem_ptr<uint8_t> stage, int at) const {
    const auto from = stage.plus_bytes(row + (chunk ^ at));
    LOWBIT_UNROLL
    for (int j = 0; j < C::kTokenBlocks; j += 2) {
      uint32_t four[4];
      ptx::ldmatrix_x4(four, from.plus_bytes(8 * j * C::kXBytes));
      b[j][0] = four[0], b[j][1] = four[1], b[j + 1][0] = four[2], b[j + 1][1] = four[3];
    }
  }
};

template <class C>
using Sums = int32_t[C::kSlabs][C::kTokenBlocks][4];

// sums += the 64 k of half a stage
template <class C>
LOWBIT_DEVICE void multiply(Sums<C>& sums, const Params& p, ptx::smem_ptr<uint8_t> stage, int half,
                            int first_slab, const TokenLane<C>& tokens) {
  Slab<C::kWeight> slab[C::kSlabs];
  LOWBIT_UNROLL
  for (int s = 0; s < C::kSlabs; ++s) {
    const int at = (first_slab + s) / 4 * 2 + half;  // [64 channels][half][slab]
    slab[s].load(stage.plus_bytes(C::kWeightAt + (at * 4 + (first_slab + s) % 4) * C::kSlabBytes));
  }
  uint32_t a[4], b[C::kTokenBlocks][2];
  if constexpr (C::kS4) {
    tokens.load(b, stage, 32 * half);
    LOWBIT_UNROLL
    for (int s = 0; s < C::kSlabs; ++s) {
      slab[s].fragment_s4(a);
      LOWBIT_UNROLL
      for (int j = 0; j < C::kTokenBlocks; ++j) ptx::mma_m16n8k64_s32_s4_s4(sums[s][j], a, b[j]);
    }
  } else {
    LOWBIT_UNROLL
    for (int c = 0; c < 2; ++c) {
      tokens.load(b, stage, 64 * half + 32 * c);
      LOWBIT_UNROLL
      for (int s = 0; s < C::kSlabs; ++s) {
        if constexpr (C::kWeight == Weight::kInt4Group) {
          uint32_t s1[2];
          load_group_scale(stage.plus_bytes(C::kScaleAt), first_slab + s, 2 * half + c, p.group_shift, s1);
          slab[s].fragment(c, a, s1);
        } else if constexpr (C::kWeight == Weight::kFp4) {
          slab[s].fragment(c, a, p.fp4());
        } else {
          slab[s].fragment(c, a);
        }
        LOWBIT_UNROLL
        for (int j = 0; j < C::kTokenBlocks; ++j) ptx::mma_m16n8k32_s32_s8_s8(sums[s][j], a, b[j]);
      }
    }
  }
}

template <class C>
LOWBIT_KERNEL(C::kThreads, C::kBlocksPerSm)
gemm_mma(const Params p, const Addends add) {
  const Team<C::kThreads> block{0};
  const auto smem = ptx::dynamic_smem<uint8_t, 1024>();
  const int row_tiles = ceil_div(p.n, C::kRows), token_tiles = ceil_div(p.m, C::kTokens);
  const Item item = item_at(ptx::block_index_x(), row_tiles, token_tiles);
  const int row = item.row_tile * C::kRows, token = item.token_tile * C::kTokens;
  const int begin = item.split * p.stages_per_split, all = ceil_div(p.k, kStageK);
  const int end = begin + p.stages_per_split < all ? begin + p.stages_per_split : all;
  const int warp = ptx::warp_index(), slab = warp % (C::kRows / 16 / C::kSlabs) * C::kSlabs;
  const int warp_token = warp / (C::kRows / 16 / C::kSlabs) * (8 * C::kTokenBlocks);
  const Loader<C> load(p, row, token);
  const TokenLane<C> tokens(warp_token);
  const auto stage = [&](int i) { return smem.plus_bytes(uint32_t(i % C::kStages) * C::kStageBytes); };

  Sums<C> sums = {};
  LOWBIT_UNROLL
  for (int i = 0; i < C::kStages - 1; ++i) {
    if (begin + i < end) load(stage(i), begin + i);
    ptx::cp_async_commit_group();
  }
  LOWBIT_NO_UNROLL
  for (int i = 0; i < end - begin; ++i) {
    ptx::cp_async_wait_group<C::kStages - 2>();  // stage i has landed,
    ptx::syncthreads();                          // for every thread; and stage i - 1 is read
    if (begin + i + C::kStages - 1 < end) load(stage(i + C::kStages - 1), begin + i + C::kStages - 1);
    ptx::cp_async_commit_group();
    multiply<C>(sums, p, stage(i), 0, slab, tokens);
    multiply<C>(sums, p, stage(i), 1, slab, tokens);
  }
  ptx::cp_async_wait_all();
  ptx::syncthreads();  // the ring becomes the staged tile

  const auto staged = smem.template as<int32_t>();
  if (p.splits > 1) {
    constexpr int kSums = C::kSlabs * C::kTokenBlocks * 4;
    const int tile = ptx::block_index_x() % (row_tiles * token_tiles);
    const int64_t stride = int64_t(row_tiles) * token_tiles * (C::kThreads * kSums);
    if (!reduce_splits(block, reinterpret_cast<int32_t (&)[kSums]>(sums), item.split, p.splits,
                       p.partial + int64_t(tile) * (C::kThreads * kSums), stride, p.tickets + tile,
                       smem.template as<uint32_t>()))
      return;
    block.sync();  // the flag's word is part of the staged tile
  }
  LOWBIT_UNROLL
  for (int s = 0; s < C::kSlabs; ++s) LOWBIT_UNROLL
  for (int j = 0; j < C::kTokenBlocks; ++j)
    stage_fragment<C::kRows + kPad>(staged, 16 * (slab + s), warp_token + 8 * j, sums[s][j]);
  block.sync();
  constexpr int kShift = C::kS4 ? 0 : Slab<C::kWeight>::kShift;
  constexpr int kGroup = C::kTokens < 64 ? 2 : 4;
  write_tile<C::kRows, C::kTokens, kGroup, kShift, C::kWeight == Weight::kFp4>(block, p, add, staged, row,
                                                                               token);
}

}  // namespace lowbit::kernels::int_gemm
