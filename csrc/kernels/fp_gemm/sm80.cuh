// Weight-only GEMM on mma.sync m16n8k16: sm_80 and everything after it.
//
// The weight is the m16 operand, so eight tokens fill an instruction. Weights, activations and group scales
// come through a cp.async ring of stages of 128 k. Four warps share a tile: each decodes 32 channels, once,
// and multiplies them with all of its tokens. layout/fp_fragment.h has the weights in the order of the lanes.
#pragma once

#include "../../layout/mma_fragment.h"
#include "../../layout/swizzle.h"
#include "../../ptx/cp_async.h"
#include "../../ptx/ldmatrix.h"
#include "../../ptx/mma.h"
#include "epilogue.cuh"
#include "group_scale.cuh"
#include "unpack.cuh"

namespace lowbit::kernels::fp_gemm {

template <const Tile& kTile, Weight kWeightOf, Half kHalfOf, bool kGroupedOf>
struct Config {
  static constexpr Weight kWeight = kWeightOf;
  static constexpr Half kHalf = kHalfOf;
  static constexpr bool kGrouped = kGroupedOf;
  static constexpr int kRows = kTile.rows, kTokens = kTile.tokens, kThreads = kTile.threads;
  static constexpr int kBlocksPerSm = kTile.blocks_per_sm;
  static constexpr int kStages = stages_of(kTile, kWeight, kGrouped);
  static constexpr int kSlabs = kRows / 16 / (kThreads / 32);  // 16 channels each, per warp
  static constexpr int kTokenBlocks = kTokens / 8;
  static constexpr int kHalfBytes = kTokens * 128;  // 64 k of x: rows of 128 bytes, 128-byte swizzle
  static constexpr int kSlabBytes = fp_fragment::slab_bytes(kWeight);
  static constexpr int kBlockBytes = fp_fragment::block_bytes(kWeight);
  static constexpr int kWeightAt = x_stage_bytes(kTokens);
  static constexpr int kScaleAt = kWeightAt + weight_stage_bytes(kRows, kWeight);
  static constexpr int kStageBytes = stage_bytes(kTile, kWeight, kGrouped);
  static_assert(4 % kSlabs == 0, "a warp's slabs are in one block of 64 channels");
  static_assert(kStages >= 3, "a stage is read, one lands and one is asked for");
};

// Copies stage after stage: x swizzled, weights and group scales as they lie. What lies outside is zero. Each
// thread brings the same pieces of every stage, so only one pointer each moves on.
template <class C>
struct Loader {
  static constexpr int kTokenStep = C::kThreads / 16, kStep = C::kThreads * 16;  // a token's stage: 16 pieces
  static constexpr int kPieces = C::kTokens / kTokenStep, kBlocks = C::kRows / 64;
  static_assert(kTokenStep % 8 == 0 && C::kBlockBytes % kStep == 0,
                "the pieces of a thread differ by constants");

  const uint8_t *x_start, *x_from, *weight_from[kBlocks], *scale_from;
  uint32_t x_row[kPieces], x_to, scale_to;
  int x_left, tokens_left, weight_bytes[kBlocks], scale_stage, scale_left;  // bytes

  LOWBIT_DEVICE Loader(const Params& p, int row, int token, int first_stage) {
    const int t = ptx::thread_index(), r = t / 16, at = t % 16 * 16;
    x_start = p.x + token * p.x_stride, x_from = x_start + (first_stage * 256 + at);
    x_left = p.k * 2 - at - first_stage * 256, tokens_left = p.m - token - r;
    x_to = at / 128 * C::kHalfBytes + swizzle::tile_offset(r, at % 128, 128);
    LOWBIT_UNROLL
    for (int i = 0; i < kPieces; ++i) {  // a piece that is not inside still needs an address that is
      const int inside = r + i * kTokenStep < p.m - token ? r + i * kTokenStep : 0;
      x_row[i] = uint32_t(inside) * uint32_t(p.x_stride);
    }
    const int k_blocks = ceil_div(p.k, fp_fragment::kK), n_blocks = ceil_div(p.n, fp_fragment::kN);
    LOWBIT_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const bool inside = row / 64 + b < n_blocks;
      weight_from[b] =
          p.weight + (int64_t(inside ? row / 64 + b : 0) * k_blocks + first_stage) * C::kBlockBytes + 16 * t;
      weight_bytes[b] = inside ? 16 : 0;
    }
    if constexpr (C::kGrouped) set_scales(p, row / 64, n_blocks, first_stage);
  }
  // A stage holds scale_stage bytes of scales of each 64 channels.
  LOWBIT_DEVICE void set_scales(const Params& p, int first_block, int n_blocks, int first_stage) {
    const int groups = groups_of(p.k, p.group_shift), of_group = group_bytes(p.scales),
              t = ptx::thread_index();
    scale_stage = (128 >> p.group_shift) * of_group;
    const int block = 16 * t / scale_stage, at = 16 * t % scale_stage + first_stage * scale_stage;
    scale_left = block >= kBlocks ? -1 : first_block + block < n_blocks ? groups * of_group - at : 0;
    scale_from = p.group_scale + (scale_left > 0 ? int64_t(first_block + block) * groups * of_group + at : 0);
    scale_to = C::kScaleAt + 16 * t;
  }

  LOWBIT_DEVICE void next(ptx::smem_ptr<uint8_t> stage) {
    const int bytes = x_left < 0 ? 0 : x_left < 16 ? x_left : 16;
    const uint8_t* from = x_left > 0 ? x_from : x_start;
    LOWBIT_UNROLL
    for (int i = 0; i < kPieces; ++i)
      ptx::cp_async_cg_16_zfill(stage.plus_bytes(x_to + i * kTokenStep * 128), from + x_row[i],
                                i * kTokenStep < tokens_left ? bytes : 0);
    x_from += 256, x_left -= 256;
    LOWBIT_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      LOWBIT_UNROLL
      for (int at = 0; at < C::kBlockBytes; at += kStep)
        ptx::cp_async_cg_16_zfill(
            stage.plus_bytes(C::kWeightAt + 16 * ptx::thread_index() + b * C::kBlockBytes + at),
            weight_from[b] + at, weight_bytes[b]);
      weight_from[b] += C::kBlockBytes;
    }
    if constexpr (C::kGrouped) {
      if (scale_left == -1) return;
      ptx::cp_async_cg_16_zfill(stage.plus_bytes(scale_to), scale_from, scale_left > 0 ? 16 : 0);
      if (scale_left > scale_stage) scale_from += scale_stage;
      scale_left = scale_left > scale_stage ? scale_left - scale_stage : 0;
    }
  }
};

// Where this lane points for the B fragments: token lane % 8 of a block of eight, 16 bytes lane / 8 of 32 k.
template <class C>
struct TokenLane {
  uint32_t row, chunk;

  LOWBIT_DEVICE TokenLane() {
    const int lane = ptx::lane_index();
    row = uint32_t(lane % 8) * 128;
    chunk = (swizzle::apply(row, 128) ^ row) ^ (16 * (lane / 8));
  }
  // B of both k16 steps of 32 k for eight tokens.
  LOWBIT_DEVICE void load(uint32_t (&b)[2][2], ptx::smem_ptr<uint8_t> stage, int token_block, int k32) const {
    uint32_t four[4];
    ptx::ldmatrix_x4(four, stage.plus_bytes(k32 / 2 * C::kHalfBytes + 8 * token_block * 128 + row +
                                            (chunk ^ (k32 % 2 * 64))));
    b[0][0] = four[0], b[0][1] = four[1], b[1][0] = four[2], b[1][1] = four[3];
  }
};

// sums[slab][block of tokens][register]; the sums of the group at hand apart from the total, where there are
// groups.
template <class C>
struct Sums {
  float total[C::kSlabs][C::kTokenBlocks][4];
  float group[C::kGrouped ? C::kSlabs : 1][C::kGrouped ? C::kTokenBlocks : 1][4];

  LOWBIT_DEVICE auto& of_group() {
    if constexpr (C::kGrouped) return group;
    else return total;
  }
};

// total += sums of the group * its scale
template <class C>
LOWBIT_DEVICE void close_group(Sums<C>& sums, const Params& p, ptx::smem_ptr<uint8_t> stage, int first_slab,
                               int k32) {
  float scale[2 * C::kSlabs];  // channels g and g + 8 of each slab
  const int group = (first_slab / 4 << (7 - p.group_shift)) + (32 * k32 >> p.group_shift);
  load_scales(scale, p.scales, stage.plus_bytes(C::kScaleAt),
              64 * group + first_slab % 4 * 16 + ptx::lane_index() / 4);
  LOWBIT_UNROLL
  for (int s = 0; s < C::kSlabs; ++s) LOWBIT_UNROLL
  for (int j = 0; j < C::kTokenBlocks; ++j) LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    float& sum = sums.group[s][j][i];
    sums.total[s][j][i] = ptx::fma_rn(sum, scale[2 * s + (i >> 1)], sums.total[s][j][i]);
    sum = 0;
  }
}

template <class C>
LOWBIT_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (C::kHalf == Half::kF16) ptx::mma_m16n8k16_f32_f16_f16(d, a, b);
  else ptx::mma_m16n8k16_f32_bf16_bf16(d, a, b);
}

// sums += the 128 k of a stage
template <class C>
LOWBIT_DEVICE void multiply(Sums<C>& sums, const Params& p, ptx::smem_ptr<uint8_t> stage, int first_slab,
                            const TokenLane<C>& tokens) {
  Slab<C::kWeight> slab[C::kSlabs];
  LOWBIT_UNROLL
  for (int s = 0; s < C::kSlabs; ++s)  // [64 channels][slab]
    slab[s].load(stage.plus_bytes(C::kWeightAt + (first_slab + s) * C::kSlabBytes));
  LOWBIT_UNROLL
  for (int k32 = 0; k32 < 4; ++k32) {
    uint32_t a[C::kSlabs][2][4];
    LOWBIT_UNROLL
    for (int s = 0; s < C::kSlabs; ++s) slab[s].template fragments<C::kHalf>(k32, a[s]);
    LOWBIT_UNROLL
    for (int j = 0; j < C::kTokenBlocks; ++j) {
      uint32_t b[2][2];
      tokens.load(b, stage, j, k32);
      LOWBIT_UNROLL
      for (int s = 0; s < C::kSlabs; ++s) LOWBIT_UNROLL
      for (int step = 0; step < 2; ++step) mma<C>(sums.of_group()[s][j], a[s][step], b[step]);
    }
    // Keeps ptxas from bringing the B fragments of the next 32 k into registers: without it the middle tile
    // spills.
    if constexpr (!C::kGrouped && C::kTokenBlocks > 2) ptx::syncwarp();
    if constexpr (C::kGrouped)
      if (((k32 + 1) * 32 & ((1 << p.group_shift) - 1)) == 0) close_group<C>(sums, p, stage, first_slab, k32);
  }
}

template <class C>
LOWBIT_KERNEL(C::kThreads, C::kBlocksPerSm)
gemm(const Params p) {
  const auto smem = ptx::dynamic_smem<uint8_t, 1024>();
  const int row_tiles = ceil_div(p.n, C::kRows), token_tiles = ceil_div(p.m, C::kTokens);
  const Item item = item_at(ptx::block_index_x(), row_tiles, token_tiles);
  const int row = item.row_tile * C::kRows, token = item.token_tile * C::kTokens;
  const int begin = item.split * p.stages_per_split, all = ceil_div(p.k, kStageK);
  const int end = begin + p.stages_per_split < all ? begin + p.stages_per_split : all;
  const int slab = ptx::warp_index() * C::kSlabs;
  Loader<C> load(p, row, token, begin);
  const TokenLane<C> tokens;
  const auto stage = [&](int i) { return smem.plus_bytes(uint32_t(i % C::kStages) * C::kStageBytes); };

  Sums<C> sums = {};
  LOWBIT_UNROLL
  for (int i = 0; i < C::kStages - 1; ++i) {
    if (begin + i < end) load.next(stage(i));
    ptx::cp_async_commit_group();
  }
  LOWBIT_NO_UNROLL
  for (int i = 0; i < end - begin; ++i) {
    ptx::cp_async_wait_group<C::kStages - 2>();  // stage i has landed,
    ptx::syncthreads();                          // for every thread; and stage i - 1 is read
    if (begin + i + C::kStages - 1 < end) load.next(stage(i + C::kStages - 1));
    ptx::cp_async_commit_group();
    multiply<C>(sums, p, stage(i), slab, tokens);
  }
  ptx::cp_async_wait_all();
  ptx::syncthreads();  // the ring becomes the staged tile

  const Team<C::kThreads> team{0};
  const int tokens_left = p.m - token,
            live = tokens_left < C::kTokens ? ceil_div(tokens_left, 8) : C::kTokenBlocks;
  if (p.splits > 1) {
    const int tile = ptx::block_index_x() % (row_tiles * token_tiles);
    constexpr int kTileWords = C::kRows * C::kTokens;
    if (!reduce_splits<C::kSlabs, C::kTokenBlocks>(
            team, sums.total[0][0], live, item.split, p.splits, p.partial + int64_t(tile) * kTileWords,
            int64_t(row_tiles) * token_tiles * kTileWords, p.tickets + tile, smem.template as<uint32_t>()))
      return;
    team.sync();  // the flag's word is part of the staged tile
  }
  const auto staged = smem.template as<float>();
  LOWBIT_UNROLL
  for (int s = 0; s < C::kSlabs; ++s) LOWBIT_UNROLL
  for (int j = 0; j < C::kTokenBlocks; ++j)
    if (j < live) stage_fragment<C::kRows + kPad>(staged, 16 * (slab + s), 8 * j, sums.total[s][j]);
  team.sync();
  write_tile<C::kHalf, C::kRows>(team, p, staged, row, token, C::kTokens);
}

}  // namespace lowbit::kernels::fp_gemm
