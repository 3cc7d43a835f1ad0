// Decode attention over the paged INT4 cache on mma.sync m16n8k16: one query token per sequence.
//
// A block takes splits of 256 tokens of one kv head, with up to eight query heads that share it:
//
//   stage     codes of keys and values to shared memory by cp.async, all in flight at once
//   query     a warp per head: norm, RoPE, Hadamard where the token is appended too; fp16 halves in place
//   score     keys (m16 x k16, from nibbles) times queries (n8): a warp per 32 tokens
//   softmax   a warp per head: max, sum, weights = probability * scale of the value, in fp16 halves
//   weigh     values (m16 x k16, transposed by ldmatrix) times weights (n8): a warp per 32 elements
//   finish    out, or into the workspace for the last block of the sequence to merge
//   codes     where they are wanted: the row that all heads have left, by the last of their blocks
//
// A nibble is an fp16 by itself: the subnormal code * 2^-18, which tensor cores multiply exactly. So decoding
// is a shift and an AND for two codes; the power of two comes off in fp32.
#pragma once

#include "../../ptx/ldmatrix.h"
#include "../../ptx/mma.h"
#include "merge.cuh"
#include "row_codes.cuh"

namespace lowbit::kernels::kv_cache {

// Scores of 32 tokens, times log2(e). low: q has more bits than an fp16.
template <class S>
LOWBIT_DEVICE void score(const Work<S>& w, int tokens, bool low) {
  const int lane = ptx::lane_index(), first = 32 * ptx::warp_index();
  if (first >= tokens) return;
  float dot[2][4] = {};
  LOWBIT_UNROLL
  for (int c = 0; c < S::kChunks; ++c) {
    uint32_t k[4], high[4], rest[4];
    ptx::ldmatrix_x4(k, w.codes(false, first + lane, 16 * c));
    const int at = (4 * c + lane / 8) * 16;
    ptx::ldmatrix_x4(high, w.q(false, lane % 8).plus_bytes(at));
    if (low) ptx::ldmatrix_x4(rest, w.q(true, lane % 8).plus_bytes(at));
    LOWBIT_UNROLL
    for (int half = 0; half < 2; ++half) LOWBIT_UNROLL
    for (int m = 0; m < 2; ++m) {
      const int i = 2 * half;
      const uint32_t a[4] = {code_pair(k[2 * m], i), code_pair(k[2 * m + 1], i), code_pair(k[2 * m], i + 1),
                             code_pair(k[2 * m + 1], i + 1)};
      const uint32_t b[2] = {high[2 * half], high[2 * half + 1]};
      ptx::mma_m16n8k16_f32_f16_f16(dot[m], a, b);
      if (low) {
        const uint32_t b_low[2] = {rest[2 * half], rest[2 * half + 1]};
        ptx::mma_m16n8k16_f32_f16_f16(dot[m], a, b_low);
      }
    }
  }
  const int head = lane % 4 * 2;
  const auto of_heads = ptx::ld_shared((w.q_stats() + head).template as<ptx::f32x4>());
  LOWBIT_UNROLL
  for (int r = 0; r < 4; ++r) {  // 8 tokens each
    const int token = first + 8 * r + lane / 4;
    const uint32_t affine = ptx::ld_shared(w.params(false) + token);
    const float scale = ptx::cvt_f32_f16(uint16_t(affine)), zero = ptx::cvt_f32_f16(uint16_t(affine >> 16));
    LOWBIT_UNROLL
    for (int h = 0; h < 2; ++h) {
      const float s = ptx::fma_rn(dot[r / 2][r % 2 * 2 + h], scale, ptx::mul_rn(of_heads[2 * h], zero));
      if (head + h < w.heads) ptx::st_shared(w.scores(head + h) + token, ptx::mul_rn(s, of_heads[2 * h + 1]));
    }
  }
}

// Scores of this warp's head to weights, and those of `prefix` exact tokens to probabilities. Heads that
// there are not weigh nothing.
template <class S>
LOWBIT_DEVICE void softmax(const Work<S>& w, int tokens, int prefix) {
  const int warp = ptx::warp_index(), lane = ptx::lane_index(), rows = (tokens + 31) / 32 * 32;
  const bool live = warp < w.heads;
  float x[kChunk], zero[kChunk], most = -__builtin_inff();
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) {  // four tokens, and the four of 128 tokens later
    const int token = 4 * lane + 32 * (i & 4) + i % 4;
    if (i % 4 == 0 && live && token < rows) {
      const auto s = ptx::ld_shared((w.scores(warp) + token).template as<ptx::f32x4>());
      LOWBIT_UNROLL
      for (int j = 0; j < 4; ++j) x[i + j] = s[j];
    }
    if (!live || token >= tokens) x[i] = -__builtin_inff();
    most = ptx::max_f32(most, x[i]);
  }
  float exact = -__builtin_inff();
  if (lane < prefix) exact = ptx::ld_shared(w.prefix(warp) + lane);
  most = warp_max(ptx::max_f32(most, exact));
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i)
    x[i] = live && 4 * lane + 32 * (i & 4) + i % 4 < tokens ? ptx::ex2_approx(ptx::sub_rn(x[i], most)) : 0.f;
  float sum = tree_sum(x);
  if (prefix > 0) {
    exact = lane < prefix ? ptx::ex2_approx(ptx::sub_rn(exact, most)) : 0.f;
    if (lane < prefix) ptx::st_shared(w.prefix(warp) + lane, exact);
    sum = ptx::add_rn(sum, warp_sum(exact));
  }
  float largest = 0.f;
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; i += 4) {
    const int token = 4 * lane + 32 * i;
    ptx::u32x4 affine{};
    if (token < rows) affine = ptx::ld_shared((w.params(true) + token).template as<ptx::u32x4>());
    LOWBIT_UNROLL
    for (int j = 0; j < 4; ++j) {
      zero[i + j] = ptx::mul_rn(x[i + j], ptx::cvt_f32_f16(uint16_t(affine[j] >> 16)));
      x[i + j] = ptx::mul_rn(x[i + j], ptx::cvt_f32_f16(uint16_t(affine[j])));
      largest = ptx::max_f32(largest, x[i + j]);
    }
  }
  const float zeros = tree_sum(zero);
  const Power power = power_of(warp_max(largest));
  if (lane == 0) ptx::st_shared(w.v_stats() + warp, ptx::f32x4{{most, sum, zeros, power.back * kCodeUnit}});
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; i += 4) {
    const int token = 4 * lane + 32 * i;
    if (token >= rows) continue;
    ptx::u32x2 high, low;
    LOWBIT_UNROLL
    for (int j = 0; j < 2; ++j)
      halve(ptx::mul_rn(x[i + 2 * j], power.up), ptx::mul_rn(x[i + 2 * j + 1], power.up), &high[j], &low[j]);
    ptx::st_shared(w.weights(false, warp).plus_bytes(2 * token).template as<ptx::u32x2>(), high);
    ptx::st_shared(w.weights(true, warp).plus_bytes(2 * token).template as<ptx::u32x2>(), low);
  }
}

// Weighted codes of 32 elements (chunk warp % kChunks) over a part of the tokens: acc[j][i] is of element
// 4 g + 2 j + i / 2 of the chunk and head 2t + i % 2 in lane 4g + t.
template <class S>
LOWBIT_DEVICE void weigh(const Work<S>& w, int tokens, float (&acc)[2][4]) {
  const int warp = ptx::warp_index(), lane = ptx::lane_index(), part = warp / S::kChunks;
  if (part >= S::kParts) return;
  constexpr int kTokens = kSplit / S::kParts;
  const int begin = part * kTokens, end = begin + kTokens < tokens ? begin + kTokens : tokens;
  LOWBIT_NO_UNROLL
  for (int first = begin; first < end; first += 32) {
    uint32_t v[4];
    ptx::ldmatrix_x4_trans(v, w.codes(true, first + lane, warp % S::kChunks * 16));
    LOWBIT_UNROLL
    for (int step = 0; step < 2; ++step) {
      uint32_t b[4];  // high and low halves of 16 weights
      ptx::ldmatrix_x4(
          b, w.weights(lane / 16, lane % 8).plus_bytes((first + 16 * step) * 2 + lane / 8 % 2 * 16));
      const uint32_t high[2] = {b[0], b[1]}, low[2] = {b[2], b[3]};
      LOWBIT_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int i = 2 * j;
        const uint32_t a[4] = {code_pair(v[2 * step], i), code_pair(v[2 * step], i + 1),
                               code_pair(v[2 * step + 1], i), code_pair(v[2 * step + 1], i + 1)};
        ptx::mma_m16n8k16_f32_f16_f16(acc[j], a, high);
        ptx::mma_m16n8k16_f32_f16_f16(acc[j], a, low);
      }
    }
  }
}

// The parts' sums to part 0, in their order. Collective over the block.
template <class S>
LOWBIT_DEVICE void add_parts(const Work<S>& w, float (&acc)[2][4]) {
  if constexpr (S::kParts == 1) return;
  const int warp = ptx::warp_index(), part = warp / S::kChunks;
  const auto place = [&](int of_part, int j) {
    const int at = (((of_part - 1) * S::kChunks + warp % S::kChunks) * 2 + j) * 32 + ptx::lane_index();
    return w.scores(0).template as<ptx::f32x4>() + at;
  };
  LOWBIT_UNROLL
  for (int j = 0; j < 2; ++j)
    if (part > 0 && part < S::kParts)
      ptx::st_shared(place(part, j), ptx::f32x4{{acc[j][0], acc[j][1], acc[j][2], acc[j][3]}});
  ptx::syncthreads();
  if (part > 0) return;
  LOWBIT_UNROLL
  for (int other = 1; other < S::kParts; ++other) LOWBIT_UNROLL
  for (int j = 0; j < 2; ++j) {
    const auto v = ptx::ld_shared(place(other, j));
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) acc[j][i] = ptx::add_rn(acc[j][i], v[i]);
  }
}

template <int kHead, bool kAppend>
LOWBIT_KERNEL(kThreads, attention_blocks(kHead, kAppend))
kv4_attention_kernel(const AttentionLaunch a) {
  using S = AttentionShape<kHead>;
  const AttentionParams& p = a.p;
  const int item = ptx::block_index_x(), mine = ptx::block_index_y(), step = a.c.blocks_per_sequence;
  const int group = item % a.c.groups, of_head = item / a.c.groups, share = p.heads / p.pages.kv_heads;
  Work<S> w{ptx::dynamic_smem()};
  w.sequence = of_head / p.pages.kv_heads, w.kv_head = of_head - w.sequence * p.pages.kv_heads;
  w.first_head = w.kv_head * share + group * a.c.per_group;
  w.heads = share - group * a.c.per_group < a.c.per_group ? share - group * a.c.per_group : a.c.per_group;
  const int length = ptx::ld_global<ptx::Load::kNc>(p.lengths + w.sequence);
  const int room = p.max_pages << p.pages.page_shift;
  w.stored = length < 0 ? 0 : length < room ? length : room;
  w.total = kAppend && length >= 0 && length < room ? w.stored + 1 : w.stored;
  w.splits = w.total == 0 && p.prefix > 0 ? 1 : ceil_div(w.total, kSplit);
  const int blocks = w.splits < step ? w.splits : step;
  if (mine >= blocks && mine > 0) return;
  if (w.splits == 0) {
    const float none[4] = {};  // no token at all
    for (int i = 4 * ptx::thread_index(); i < w.heads * kHead; i += 4 * kThreads)
      write_out(w, p, i / kHead, i % kHead, none);
  }
  float* partial = p.partial + int64_t(item) * a.c.splits * split_floats(a.c.per_group, kHead);
  LOWBIT_NO_UNROLL
  for (int split = mine; split < w.splits; split += step) {
    const int prefix = split == 0 ? p.prefix : 0;
    const int first = split * kSplit, tokens = w.total - first < kSplit ? w.total - first : kSplit;
    const int fresh = w.total > w.stored && split == w.splits - 1 ? w.stored - first : -1;
    if (split > mine) ptx::syncthreads();  // the last split's weights and values are read
    stage(w, p, first, fresh);
    if (split == mine) put_query<S, kAppend>(w, p, prefix);
    if constexpr (kAppend)
      if (fresh >= 0) put_token(w, p, fresh, group == 0);
    ptx::cp_async_wait_group<1>();  // the keys have landed
    ptx::syncthreads();
    score(w, tokens, p.dtype == DType::f32);
    ptx::syncthreads();  // the keys become the weights
    softmax(w, tokens, prefix);
    ptx::cp_async_wait_all();
    ptx::syncthreads();  // and the scores the parts
    float acc[2][4] = {};
    weigh(w, tokens, acc);
    add_parts(w, acc);
    write_split(w, p, prefix, partial + split * split_floats(a.c.per_group, kHead), a.c.per_group, acc);
  }
  if (w.splits > 1) {
    if (!last_to_finish(p.tickets + item, blocks, w.flag())) return;
    merge(w, p, partial, a.c.per_group);
  }
  if constexpr (kAppend)
    if (p.codes.q)
      if (last_to_finish(p.tickets + a.c.row_tickets + w.sequence, p.pages.kv_heads * a.c.groups, w.flag()))
        code_row(w, a);
}

}  // namespace lowbit::kernels::kv_cache
