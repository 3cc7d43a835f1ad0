// What decode attention puts into shared memory: codes and parameters of a split, queries, the new token.
#pragma once

#include "../../layout/swizzle.h"
#include "../../ptx/cp_async.h"
#include "head.cuh"

namespace lowbit::kernels::kv_cache {

template <int kHeadSize>
struct AttentionShape {
  static constexpr int kHead = kHeadSize;
  static constexpr AttentionLayout kAt = attention_layout(kHead);
  static constexpr int kRow = kAt.row, kChunks = kRow / 16;  // ldmatrix rows: 32 elements each
  static constexpr int kPiece = kHead % 32 ? 8 : 16, kPieces = kHead / 2 / kPiece;  // bytes that are copied
  static constexpr int kParts = kThreads / 32 / kChunks;  // of a split's tokens, in `weigh`
  static_assert(kHead * 4 / 8 % kPiece == 0 && kSplit / 32 == kThreads / 32 && kGroup == kThreads / 32);
  static_assert((kParts - 1) * kChunks * 1024 <= kGroup * kScorePitch * 4,
                "parts meet where the scores were");
};

constexpr float kLog2E = 1.44269504f;

// Nibbles i and i + 4 of a word as a pair of fp16: the subnormals code * 2^-18. Bits 6 to 9, as high as they
// go: a tensor core aligns a subnormal as if it were 2^-14, and what lies far below is cut.
constexpr float kCode = 0x1p-18f;
LOWBIT_DEVICE uint32_t code_pair(uint32_t word, int i) {
  return (i < 2 ? word << (6 - 4 * i) : word >> (4 * i - 6)) & 0x03c003c0u;
}

// Blocks of a multiprocessor: while one computes, the others' loads keep memory busy. Three leave 80
// registers, two 128; instances that would spill there have fewer.
constexpr int attention_blocks(int head, bool append) { return head > 128 ? 1 : append || head % 32 ? 2 : 3; }

// A block's places in shared memory, and what it works on.
template <class S>
struct Work {
  ptx::smem_ptr<uint8_t> smem;
  int sequence, kv_head, first_head, heads;  // query heads
  int stored, total;                         // tokens in the cache, and those attended to
  int splits;

  LOWBIT_DEVICE ptx::smem_ptr<uint8_t> codes(bool values, int token, int byte) const {
    return smem.plus_bytes((values ? S::kAt.values : S::kAt.keys) +
                           swizzle::tile_offset(token, byte, S::kRow));
  }
  LOWBIT_DEVICE ptx::smem_ptr<uint32_t> params(bool values) const {
    return smem.plus_bytes(S::kAt.params).template as<uint32_t>() + (values ? kSplit : 0);
  }
  LOWBIT_DEVICE ptx::smem_ptr<float> scores(int head) const {
    return smem.plus_bytes(S::kAt.scores).template as<float>() + head * kScorePitch;
  }
  LOWBIT_DEVICE ptx::smem_ptr<uint8_t> q(bool low, int head) const {
    return smem.plus_bytes(S::kAt.q + ((low ? kGroup : 0) + head) * S::kAt.q_row);
  }
  LOWBIT_DEVICE ptx::smem_ptr<uint8_t> weights(bool low, int head) const {
    return smem.plus_bytes(((low ? kGroup : 0) + head) * kWeightPitch);
  }
  // Per head: sum of q and the factor of its scores; then max, sum, sum of weighted zeros, factor of the
  // values.
  LOWBIT_DEVICE ptx::smem_ptr<ptx::f32x2> q_stats() const {
    return smem.plus_bytes(S::kAt.stats).template as<ptx::f32x2>();
  }
  LOWBIT_DEVICE ptx::smem_ptr<ptx::f32x4> v_stats() const {
    return smem.plus_bytes(S::kAt.stats + 8 * kGroup).template as<ptx::f32x4>();
  }
  // Of each exact token the score, then the probability.
  LOWBIT_DEVICE ptx::smem_ptr<float> prefix(int head) const {
    return smem.plus_bytes(S::kAt.prefix).template as<float>() + head * kPrefixPitch;
  }
  LOWBIT_DEVICE ptx::smem_ptr<uint32_t> flag() const {
    return smem.plus_bytes(S::kAt.stats + 24 * kGroup).template as<uint32_t>();
  }
};

// The power of two that brings a largest magnitude into [2^12, 2^13), where fp16 has 37 bits between it and
// the smallest subnormal: two fp16 then hold an fp32 as well as fp32 needs. `back` undoes it, and kCode,
// but for 2^6.
struct Power {
  float up, back;
};
LOWBIT_DEVICE Power power_of(float largest) {
  int e = int(ptx::bit_cast<uint32_t>(largest) >> 23 & 0xff);
  e = e < 12 ? 12 : e > 242 ? 242 : e;
  return {ptx::bit_cast<float>(uint32_t(266 - e) << 23), ptx::bit_cast<float>(uint32_t(e) << 23)};
}
constexpr float kCodeUnit = 64.f;  // back * this = 1 / (up * kCode)

LOWBIT_DEVICE float warp_max(float x) { return unordered(ptx::redux_sync_max_s32(ordered(x))); }
LOWBIT_DEVICE float warp_sum(float x) {
  LOWBIT_UNROLL
  for (int step = 1; step < 32; step *= 2) x = ptx::add_rn(x, ptx::shfl_sync_xor(x, step));
  return x;
}

// Two floats as fp16 pairs: rounded, and what is missing.
LOWBIT_DEVICE void halve(float a, float b, uint32_t* high, uint32_t* low) {
  *high = ptx::cvt_rn_f16x2_f32(a, b);
  *low = ptx::cvt_rn_f16x2_f32(ptx::sub_rn(a, ptx::cvt_f32_f16(uint16_t(*high))),
                               ptx::sub_rn(b, ptx::cvt_f32_f16(uint16_t(*high >> 16))));
}

LOWBIT_DEVICE const void* head_at(const AttentionParams& p, int64_t row, int head) {
  return static_cast<const uint8_t*>(p.q) + (row + head) * p.pages.d * size_of(p.dtype);
}

// Scores of the first `prefix` exact tokens, times log2(e), for the head of this warp; its query in x.
template <class S>
LOWBIT_DEVICE void score_prefix(const Work<S>& w, const AttentionParams& p, int prefix,
                                const float (&x)[kChunk]) {
  const int warp = ptx::warp_index(), lane = ptx::lane_index(), begin = lane * kChunk;
  LOWBIT_NO_UNROLL
  for (int t = 0; t < prefix; ++t) {
    const float* key = p.prefix_key + (t * p.pages.kv_heads + w.kv_head) * S::kHead + begin;
    float product[kChunk];
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; i += 4) {
      const auto k = load_four(key + i, begin < S::kHead);
      LOWBIT_UNROLL
      for (int j = 0; j < 4; ++j) product[i + j] = ptx::mul_rn(x[i + j], k[j]);
    }
    const float score = ptx::mul_rn(tree_sum(product), p.softmax_scale * kLog2E);
    if (lane == 0) ptx::st_shared(w.prefix(warp) + t, score);
  }
}

// Query head of this warp into shared memory, in the order of the nibbles: an ldmatrix row holds elements i
// and i + 4 of the four words of a chunk, i = 0..3. Scores `prefix` exact tokens on the way.
template <class S, bool kAppend>
LOWBIT_DEVICE void put_query(const Work<S>& w, const AttentionParams& p, int prefix) {
  const int warp = ptx::warp_index(), lane = ptx::lane_index();
  float x[kChunk] = {};
  if (warp < w.heads) {
    const int64_t row = int64_t(w.sequence) * (kAppend ? p.heads + 2 * p.pages.kv_heads : p.heads);
    const Head h{head_at(p, row, w.first_head + warp), p.dtype, S::kHead,
                 kAppend ? p.rotation.q_norm : nullptr};
    if constexpr (kAppend) {
      load_head(x, h, p.rotation, w.sequence);
      transform_head(x, p.rotation.key_block, p.rotation.key_scale);
      round_chunk(x, p.dtype);
    } else {
      load_floats(x, h.x, h.dtype, lane * kChunk, S::kHead, true);
    }
  }
  score_prefix(w, p, prefix, x);
  float most = 0.f;
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) most = ptx::max_f32(most, ptx::abs_f32(x[i]));
  const Power power = power_of(warp_max(most));
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) x[i] = ptx::mul_rn(x[i], power.up);
  const float sum = tree_sum(x);
  if (lane == 0)
    ptx::st_shared(
        w.q_stats() + warp,
        ptx::f32x2{{sum * kCode, ptx::mul_rn(power.back, p.softmax_scale * (kLog2E * kCodeUnit))}});
  if (lane >= 4 * S::kChunks) return;
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    uint32_t high, low;
    halve(x[i], x[i + 4], &high, &low);
    const int at = (lane / 4 * 4 + i) * 16 + lane % 4 * 4;
    ptx::st_shared(w.q(false, warp).plus_bytes(at).template as<uint32_t>(), high);
    if (p.dtype == DType::f32) ptx::st_shared(w.q(true, warp).plus_bytes(at).template as<uint32_t>(), low);
  }
}

// The split's codes on their way, keys in one group, values in the next; parameters in place. Rows of tokens
// that are not stored yet are zeros up to the next 32; row `fresh` is left to put_token.
template <class S>
LOWBIT_DEVICE void stage(const Work<S>& w, const AttentionParams& p, int first, int fresh) {
  const int left = w.total - first, rows = left < kSplit ? (left + 31) / 32 * 32 : kSplit,
            t = ptx::thread_index();
  const int32_t* table = p.table + int64_t(w.sequence) * p.max_pages;
  const auto row_in_cache = [&](int row) {  // any, where nothing is read
    const int token = first + row < w.stored && row < rows ? first + row : 0;
    const int page = w.stored ? ptx::ld_global<ptx::Load::kNc>(table + (token >> p.pages.page_shift)) : 0;
    return ((page * p.pages.kv_heads + w.kv_head) << p.pages.page_shift) +
           (token & ((1 << p.pages.page_shift) - 1));
  };
  int from[S::kPieces];  // all loads of the table at once
  LOWBIT_UNROLL
  for (int i = 0; i < S::kPieces; ++i) from[i] = row_in_cache((t + i * kThreads) / S::kPieces);
  LOWBIT_UNROLL
  for (int values = 0; values < 2; ++values) {
    const uint8_t* codes = values ? p.pages.value_codes : p.pages.key_codes;
    LOWBIT_UNROLL
    for (int i = 0; i < S::kPieces; ++i) {
      const int piece = t + i * kThreads, row = piece / S::kPieces, byte = piece % S::kPieces * S::kPiece;
      if (row >= rows || row == fresh) continue;
      const int bytes = first + row < w.stored ? S::kPiece : 0;
      const uint8_t* source = codes + (int64_t(from[i]) * (S::kHead / 2) + byte);
      if constexpr (S::kPiece == 16) ptx::cp_async_cg_16_zfill(w.codes(values, row, byte), source, bytes);
      else ptx::cp_async_ca_zfill<S::kPiece>(w.codes(values, row, byte), source, bytes);
    }
    ptx::cp_async_commit_group();
  }
  if (t >= rows) return;
  if constexpr (S::kHead % 32 != 0) {  // the end of a row that is no whole ldmatrix row
    ptx::st_shared(w.codes(false, t, S::kHead / 2).template as<ptx::u32x2>(), ptx::u32x2{});
    ptx::st_shared(w.codes(true, t, S::kHead / 2).template as<ptx::u32x2>(), ptx::u32x2{});
  }
  if (t == fresh) return;
  uint32_t k = 0, v = 0;
  if (first + t < w.stored) {
    const int params_from = row_in_cache(t);
    k = ptx::ld_global(p.pages.key_params + params_from);
    v = ptx::ld_global(p.pages.value_params + params_from);
  }
  ptx::st_shared(w.params(false) + t, k);
  ptx::st_shared(w.params(true) + t, v);
}

// The token that is appended: its key by warp 0, its value by warp 1, into shared memory, and by the first
// group of the kv head into the cache too.
template <class S>
LOWBIT_DEVICE void put_token(const Work<S>& w, const AttentionParams& p, int fresh, bool store) {
  const int warp = ptx::warp_index(), lane = ptx::lane_index();
  if (warp >= 2) return;
  const int64_t row = int64_t(w.sequence) * (p.heads + 2 * p.pages.kv_heads);
  const Head h{head_at(p, row, p.heads + warp * p.pages.kv_heads + w.kv_head), p.dtype, S::kHead,
               warp ? nullptr : p.rotation.k_norm};
  Rotation rotation = p.rotation;
  if (warp) rotation.cos = nullptr;
  float x[kChunk];
  load_head(x, h, rotation, w.sequence);
  if (warp == 0) transform_head(x, rotation.key_block, rotation.key_scale);
  const Quantised q = quantise_head(x, S::kHead, p.clip);
  if (lane * kChunk < S::kHead)
    ptx::st_shared(w.codes(warp, fresh, 4 * lane).template as<uint32_t>(), q.word);
  if (lane == 0) ptx::st_shared(w.params(warp) + fresh, q.params);
  if (!store) return;
  const int64_t page = ptx::ld_global<ptx::Load::kNc>(p.table + int64_t(w.sequence) * p.max_pages +
                                                      (w.stored >> p.pages.page_shift));
  const int64_t slot = (page << p.pages.page_shift) + (w.stored & ((1 << p.pages.page_shift) - 1));
  store_head(q, warp ? p.pages.value_codes : p.pages.key_codes,
             warp ? p.pages.value_params : p.pages.key_params, row_of(p.pages, slot, w.kv_head), S::kHead);
}

}  // namespace lowbit::kernels::kv_cache
