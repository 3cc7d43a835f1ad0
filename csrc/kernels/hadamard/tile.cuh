// The tile that a CTA transforms in place, in shared memory or in the workspace, and its butterflies.
#pragma once

#include "../../layout/hadamard_tile.h"
#include "../../ptx/bits.h"
#include "../../ptx/memory.h"
#include "../../ptx/sync.h"

namespace lowbit::kernels::hadamard {

template <bool kShared>
struct Tile;

// Floats at swizzled places. N = 1, 2 or 4 elements at a multiple of N stay together.
template <>
struct Tile<true> {
  ptx::smem_ptr<float> base;

  template <int N>
  LOWBIT_DEVICE ptx::Vector<float, N> load_at(int place) const {
    return ptx::ld_shared((base + place).as<ptx::Vector<float, N>>());
  }
  template <int N>
  LOWBIT_DEVICE void store_at(int place, const ptx::Vector<float, N>& v) const {
    ptx::st_shared((base + place).as<ptx::Vector<float, N>>(), v);
  }
  LOWBIT_DEVICE static int place(int e) { return hadamard_tile::place(e); }
  LOWBIT_DEVICE static int high_part(int e) { return hadamard_tile::high_part(e); }
  LOWBIT_DEVICE static int low_part(int e) { return hadamard_tile::low_part(e); }
};

// For rows that no shared memory holds: floats in order, in memory that the L2 cache mostly keeps.
template <>
struct Tile<false> {
  float* base;

  template <int N>
  LOWBIT_DEVICE ptx::Vector<float, N> load_at(int place) const {
    return ptx::ld_global(reinterpret_cast<const ptx::Vector<float, N>*>(base + place));
  }
  template <int N>
  LOWBIT_DEVICE void store_at(int place, const ptx::Vector<float, N>& v) const {
    ptx::st_global(reinterpret_cast<ptx::Vector<float, N>*>(base + place), v);
  }
  LOWBIT_DEVICE static int place(int e) { return e; }
  LOWBIT_DEVICE static int high_part(int) { return 0; }
  LOWBIT_DEVICE static int low_part(int) { return 0; }
};

LOWBIT_DEVICE void butterfly(float& a, float& b) {
  const float sum = ptx::add_rn(a, b);
  b = ptx::sub_rn(a, b);
  a = sum;
}

// One stage between registers `stride` apart.
template <int kStride, int N>
LOWBIT_DEVICE void butterfly_stage(float (&v)[N]) {
  LOWBIT_UNROLL
  for (int i = 0; i < N; ++i)
    if (!(i & kStride)) butterfly(v[i], v[i + kStride]);
}

// Strides 1, 2, ..., 2^(kStages - 1) between registers.
template <int kStages, int N>
LOWBIT_DEVICE void butterflies(float (&v)[N]) {
  butterfly_stage<1>(v);
  if constexpr (kStages > 1) butterfly_stage<2>(v);
  if constexpr (kStages > 2) butterfly_stage<4>(v);
  if constexpr (kStages > 3) butterfly_stage<8>(v);
  if constexpr (kStages > 4) butterfly_stage<16>(v);
}

}  // namespace lowbit::kernels::hadamard
