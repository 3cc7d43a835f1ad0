// One head of one token in a warp, lane l with its elements 8l .. 8l + 7: norm, RoPE, Hadamard, quantisation
// into a page. Shared by append and by decode attention, so both store the same bits. All collective over the
// warp.
#pragma once

#include "sm80.cuh"

namespace lowbit::kernels::kv_cache {

// Where a head is in memory, and what its elements are multiplied by before RoPE.
struct Head {
  const void* x;  // on 16 bytes
  DType dtype;
  int d;              // a multiple of 8, at most 256
  const float* norm;  // [d] or null
};

// Neighbours first, then neighbouring sums: the bits of tree_sum on every backend. In all lanes.
LOWBIT_DEVICE float tree_sum(const float (&v)[kChunk]) {
  float s = ptx::add_rn(ptx::add_rn(ptx::add_rn(v[0], v[1]), ptx::add_rn(v[2], v[3])),
                        ptx::add_rn(ptx::add_rn(v[4], v[5]), ptx::add_rn(v[6], v[7])));
  LOWBIT_UNROLL
  for (int step = 1; step < 32; step *= 2) s = ptx::add_rn(s, ptx::shfl_sync_xor(s, step));
  return s;
}

LOWBIT_DEVICE float inverse_rms(const float (&x)[kChunk], int d, float eps) {
  float square[kChunk];
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) square[i] = ptx::mul_rn(x[i], x[i]);
  const float mean = ptx::div_rn(tree_sum(square), float(d));
  return ptx::div_rn(1.f, ptx::sqrt_rn(ptx::add_rn(mean, eps)));
}

// Four floats of a table that is long enough, or zeros.
LOWBIT_DEVICE ptx::f32x4 load_four(const float* from, bool inside) {
  ptx::f32x4 v{};
  if (inside) v = ptx::ld_global(reinterpret_cast<const ptx::f32x4*>(from));
  return v;
}

// Rotate-half RoPE where the halves are whole chunks: the partner's chunk comes from its lane.
LOWBIT_DEVICE void rope_by_chunks(float (&x)[kChunk], const float* cos, const float* sin, int rotary) {
  const int lane = ptx::lane_index(), half = rotary / 16;
  const int partner = lane < half ? lane + half : lane < 2 * half ? lane - half : lane;
  LOWBIT_UNROLL
  for (int h = 0; h < kChunk; h += 4) {  // four at a time: registers
    const auto c = load_four(cos + lane * kChunk + h, lane < 2 * half);
    const auto s = load_four(sin + lane * kChunk + h, lane < 2 * half);
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const float other = ptx::shfl_sync_idx(x[h + i], partner), turned = lane < half ? -other : other;
      if (lane < 2 * half) x[h + i] = ptx::add_rn(ptx::mul_rn(x[h + i], c[i]), ptx::mul_rn(turned, s[i]));
    }
  }
}

// Any even `rotary`: the partner's element is read, and normalised, again. Rare, and each row is in L1 by
// now.
LOWBIT_DEVICE void rope_by_elements(float (&x)[kChunk], const Head& h, float inverse, const float* cos,
                                    const float* sin, int rotary) {
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) {
    const int at = ptx::lane_index() * kChunk + i;
    if (at >= rotary) continue;
    const bool first = at < rotary / 2;
    const int partner = first ? at + rotary / 2 : at - rotary / 2;
    float other = load_element(h.x, h.dtype, partner);
    if (h.norm) other = ptx::mul_rn(ptx::mul_rn(other, inverse), ptx::ld_global(h.norm + partner));
    if (first) other = -other;
    x[i] = ptx::add_rn(ptx::mul_rn(x[i], ptx::ld_global(cos + at)),
                       ptx::mul_rn(other, ptx::ld_global(sin + at)));
  }
}

// One rounding to dtype and back.
LOWBIT_DEVICE void round_chunk(float (&x)[kChunk], DType dtype) {
  if (dtype == DType::f32) return;
  uint32_t w[4];
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) w[i] = round_halves(x[2 * i], x[2 * i + 1], dtype);
  halves_to_float(x, w, dtype);
}

// The lane's chunk after norm and RoPE, rounded to its dtype; zeros past d. `token`: row of cos and sin.
LOWBIT_DEVICE void load_head(float (&x)[kChunk], const Head& h, const Rotation& r, int64_t token) {
  const int begin = ptx::lane_index() * kChunk;
  load_floats(x, h.x, h.dtype, begin, h.d, true);
  float inverse = 1.f;
  if (h.norm) {
    inverse = inverse_rms(x, h.d, r.eps);
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; i += 4) {
      const auto weight = load_four(h.norm + begin + i, begin < h.d);
      LOWBIT_UNROLL
      for (int j = 0; j < 4; ++j) x[i + j] = ptx::mul_rn(ptx::mul_rn(x[i + j], inverse), weight[j]);
    }
  }
  if (r.cos) {
    const float *cos = r.cos + token * r.rotary, *sin = r.sin + token * r.rotary;
    if (r.rotary % 16 == 0) rope_by_chunks(x, cos, sin, r.rotary);
    else rope_by_elements(x, h, inverse, cos, sin, r.rotary);
  }
  round_chunk(x, h.dtype);
}

// Blocks of `block` (a power of two), strides 1, 2, 4, ..., then one multiply.
LOWBIT_DEVICE void transform_head(float (&x)[kChunk], int block, float scale) {
  if (block == 1) return;
  LOWBIT_UNROLL
  for (int stride = 1; stride < kChunk; stride *= 2) {
    if (stride >= block) break;
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      if (i & stride) continue;
      const float a = x[i], b = x[i + stride];
      x[i] = ptx::add_rn(a, b), x[i + stride] = ptx::sub_rn(a, b);
    }
  }
  LOWBIT_NO_UNROLL
  for (int step = 1; step * kChunk < block; step *= 2) {
    const bool second = (ptx::lane_index() & step) != 0;
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      const float other = ptx::shfl_sync_xor(x[i], step);
      x[i] = second ? ptx::sub_rn(other, x[i]) : ptx::add_rn(x[i], other);
    }
  }
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) x[i] = ptx::mul_rn(x[i], scale);
}

// A quantised head: eight codes of the lane, parameters in every lane.
struct Quantised {
  uint32_t word, params;
};

LOWBIT_DEVICE Quantised quantise_head(const float (&x)[kChunk], int d, float clip) {
  Range range{0x7fffffff, -0x7fffffff - 1};
  if (ptx::lane_index() * kChunk < d) {
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i) {
      const int32_t key = ordered(x[i]);
      range = {key < range.low ? key : range.low, key > range.high ? key : range.high};
    }
  }
  const Affine affine = affine_of(team_range(range, 32), clip);
  return {nibbles(x, affine), affine.scale | uint32_t(affine.zero) << 16};
}

// Row of a token in codes and parameters: of `slot` as seen by one kv head.
LOWBIT_DEVICE int64_t row_of(const Pages& p, int64_t slot, int head) {
  const int64_t page = slot >> p.page_shift, offset = slot & ((1 << p.page_shift) - 1);
  return ((page * p.kv_heads + head) << p.page_shift) + offset;
}

LOWBIT_DEVICE void store_head(const Quantised& q, uint8_t* codes, uint32_t* params, int64_t row, int d) {
  const int lane = ptx::lane_index();
  if (lane * kChunk < d) ptx::st_global(reinterpret_cast<uint32_t*>(codes + row * (d / 2)) + lane, q.word);
  if (lane == 0) ptx::st_global(params + row, q.params);
}

}  // namespace lowbit::kernels::kv_cache
