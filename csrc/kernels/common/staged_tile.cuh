// A tile of sums on its way from tensor-core fragments to rows of y: staged in shared memory as
// [tokens][kPitch] words, so that neighbouring threads store neighbouring channels.
#pragma once

#include "../../layout/mma_fragment.h"
#include "../../ptx/memory.h"

namespace lowbit::kernels {

constexpr int kWide = 4;  // neighbouring channels of a thread: 16 bytes of sums, a warp reads 512 in a row

// Puts the D fragment of 16 channels and 8 tokens into the staged tile. A pitch of 4 mod 16 has no bank
// conflict.
template <int kPitch, class T>
LOWBIT_DEVICE void stage_fragment(ptx::smem_ptr<T> tile, int channel, int token, const T* d) {
  const int lane = ptx::lane_index();
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i)
    ptx::st_shared(tile + ((token + fragment::d_col(lane, i)) * kPitch + channel + fragment::d_row(lane, i)),
                   d[i]);
}

// Channels [0, valid) of `from`, the rest zero.
LOWBIT_DEVICE ptx::f32x4 load_channels(const float* from, int valid, bool wide) {
  if (wide) return ptx::ld_global<ptx::Load::kNc>(reinterpret_cast<const ptx::f32x4*>(from));
  ptx::f32x4 v;
  LOWBIT_UNROLL
  for (int i = 0; i < kWide; ++i) v[i] = i < valid ? ptx::ld_global<ptx::Load::kNc>(from + i) : 0.f;
  return v;
}

template <class Word>
LOWBIT_DEVICE void store_channels(void* y, int64_t element, int valid, bool wide,
                                  const ptx::Vector<Word, kWide>& v) {
  Word* to = static_cast<Word*>(y) + element;
  if (wide) return ptx::st_global(reinterpret_cast<ptx::Vector<Word, kWide>*>(to), v);
  LOWBIT_UNROLL
  for (int i = 0; i < kWide; ++i)
    if (i < valid) ptx::st_global(to + i, v[i]);
}

}  // namespace lowbit::kernels
