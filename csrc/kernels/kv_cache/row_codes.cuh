// Rows of attention's output to codes: what a launch of its own would do, done by the block that finishes a
// sequence's last head.
#pragma once

#include "../quantize/adjust.cuh"
#include "staging.cuh"

namespace lowbit::kernels::kv_cache {

// The row of the block's sequence, all of which is in y. Collective over the block.
template <class S>
LOWBIT_DEVICE void code_row(const Work<S>& w, const AttentionLaunch& a) {
  constexpr int kVectors = quantize::kLongVectors;
  const AttentionParams& p = a.p;
  const int k = p.heads * S::kHead;
  const void* y = static_cast<const uint8_t*>(p.y) + int64_t(w.sequence) * k * size_of(p.dtype);
  quantize::quantize_rows<kVectors, true>(
      quantize::RowCoder{p.codes, p.columns, a.c.wide_codes}, a.c.code_team, a.c.code_chunks, w.sequence,
      true, w.scores(0).template as<uint32_t>(), [&](float (&v)[kVectors][kChunk], int round) {
        LOWBIT_UNROLL
        for (int i = 0; i < kVectors; ++i) {
          const int begin = (ptx::thread_index() + (round * kVectors + i) * kThreads) * kChunk;
          if (p.adjust.index)
            quantize::gather_chunk<false>(v[i], p.adjust, k, begin, p.columns,
                                          [&](int at) { return load_element(y, p.dtype, at); });
          else load_floats(v[i], y, p.dtype, begin, p.columns, true);
          quantize::multiply_factor<false>(v[i], p.adjust.factor, begin, p.columns);
          if (p.adjust.shift) quantize::subtract_shift<false>(v[i], p.adjust.shift, begin, p.columns);
        }
      });
}

}  // namespace lowbit::kernels::kv_cache
