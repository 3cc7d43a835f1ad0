// Rows on their way into the tile, and plain ones on their way out.
#pragma once

#include "../common/activation.cuh"
#include "../quantize/adjust.cuh"
#include "config.h"
#include "tile.cuh"

namespace lowbit::kernels::hadamard {

// What a CTA works on: `count` elements of x and y, row-major, the rows and blocks in it whole.
template <bool kShared>
struct Work {
  Tile<kShared> tile, other;  // `other`: the table mix writes there
  int64_t index;              // of the tile
  int count;
  uint32_t most;  // largest magnitude that this thread saw come out of the last stage, when quantised

  LOWBIT_DEVICE const uint8_t* x(const Launch& a) const {
    const int64_t tile = a.p.gated ? 2 * a.c.tile : a.c.tile;
    return static_cast<const uint8_t*>(a.p.x) + index * (tile * size_of(a.p.dtype));
  }
  LOWBIT_DEVICE uint8_t* y(const Launch& a) const {
    return static_cast<uint8_t*>(a.p.y) + index * (a.c.tile * size_of(a.p.dtype));
  }
};

template <bool kShared>
LOWBIT_DEVICE void put_chunk(const Tile<kShared>& tile, int e, const float (&x)[kChunk]) {
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h)
    tile.store_at(Tile<kShared>::place(e + 4 * h),
                  ptx::Vector<float, 4>{{x[4 * h], x[4 * h + 1], x[4 * h + 2], x[4 * h + 3]}});
}

template <bool kShared>
LOWBIT_DEVICE void get_chunk(const Tile<kShared>& tile, int e, float (&x)[kChunk]) {
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) {
    const auto v = tile.template load_at<4>(Tile<kShared>::place(e + 4 * h));
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) x[4 * h + i] = v[i];
  }
}

// A warp's 1024 elements from `begin` into the tile, one by one, where x is not made of whole 16 bytes.
template <bool kQuantised, bool kShared>
LOWBIT_DEVICE void load_narrow(const Work<kShared>& w, const Launch& a, int begin) {
  const Params& p = a.p;
  LOWBIT_NO_UNROLL
  for (int e = begin + ptx::lane_index(); e < begin + 1024; e += 32) {
    float x = 0.f;
    if (kQuantised && p.gated && e < w.count) {
      const int n = int(p.n), at = e + e / n * n;
      x = gated(load_element(w.x(a), p.dtype, at), load_element(w.x(a), p.dtype, at + n), p.activation);
    } else if (e < w.count) {
      x = load_element(w.x(a), p.dtype, e);
    }
    if (kQuantised && p.shift && e < w.count) x = ptx::sub_rn(x, ptx::ld_global(p.shift + e % int(p.n)));
    w.tile.store_at(Tile<kShared>::place(e), ptx::Vector<float, 1>{{x}});
  }
  ptx::syncwarp();
}

// A warp's 1024 elements out of the tile, times the scale, to y: 16 bytes per lane, neighbours side by side.
template <bool kShared>
LOWBIT_DEVICE void store_warp(const Work<kShared>& w, const Launch& a, int begin) {
  const Params& p = a.p;
  const int lane = ptx::thread_index() & 31;
  if (!a.c.wide) {
    LOWBIT_NO_UNROLL
    for (int e = begin + lane; e < begin + 1024 && e < w.count; e += 32) {
      const float x[1] = {ptx::mul_rn(w.tile.template load_at<1>(Tile<kShared>::place(e))[0], p.scale)};
      store_elements(w.y(a), p.dtype, e, x, true);
    }
  } else if (p.dtype == DType::f32) {
    LOWBIT_UNROLL
    for (int c = 0; c < 8; ++c) {
      const int e = begin + c * 128 + lane * 4;
      if (e >= w.count) continue;
      auto x = w.tile.template load_at<4>(Tile<kShared>::place(e));
      LOWBIT_UNROLL
      for (int i = 0; i < 4; ++i) x[i] = ptx::mul_rn(x[i], p.scale);
      store_elements(w.y(a), p.dtype, e, x.v, true);
    }
  } else {
    LOWBIT_UNROLL
    for (int c = 0; c < 4; ++c) {
      const int e = begin + c * 256 + lane * kChunk;
      if (e >= w.count) continue;
      float x[kChunk];
      get_chunk(w.tile, e, x);
      LOWBIT_UNROLL
      for (int i = 0; i < kChunk; ++i) x[i] = ptx::mul_rn(x[i], p.scale);
      store_chunk<true>(w.y(a), p.dtype, e, w.count, x);
    }
  }
}

// activation(gate) * up of the chunk at e, whose row has its gates before its ups.
template <bool kShared>
LOWBIT_DEVICE void load_gated(const Work<kShared>& w, const Launch& a, int e, float (&x)[kChunk]) {
  const Params& p = a.p;
  const int n = int(p.n), at = e + e / n * n, end = at + (e < w.count ? kChunk : 0);
  RawChunk gate, up;
  load_chunk<true>(gate, w.x(a), p.dtype, at, end);
  load_chunk<true>(up, w.x(a), p.dtype, at + n, end + n);
  float y[kChunk];
  to_float(x, gate, p.dtype);
  to_float(y, up, p.dtype);
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) x[i] = gated(x[i], y[i], p.activation);
}

}  // namespace lowbit::kernels::hadamard
