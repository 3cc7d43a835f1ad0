// (H_K x H_2^m) of rows, the whole block on chip. One source for sm_80 and every later card.
//
//   first_stages   memory -> registers: strides 1, 2, 4 -> tile; strides 8 .. 128 inside the warp
//   later_stages   strides 256 ..: each pass combines up to 32 elements of the tile
//   mix            the K-factor, column by column
//   the end        times the scale: rounded and stored, or quantised
//
// The stages run in the order of their strides and every output is one chain of additions, so the bits are
// those of the CPU kernels.
#pragma once

#include "../quantize/codes.cuh"
#include "config.h"
#include "finish.cuh"
#include "mix.cuh"
#include "williamson.cuh"

namespace lowbit::kernels::hadamard {

// The chunk at e of the tile: minus the shift, strides 1, 2, 4, into the tile.
template <bool kQuantised, bool kShared>
LOWBIT_DEVICE void finish_chunk(Work<kShared>& w, const Launch& a, int e, float (&x)[kChunk]) {
  const Params& p = a.p;
  if (kQuantised && p.shift && a.c.wide && e < w.count)
    quantize::subtract_shift<true>(x, p.shift, e % int(p.n), int(p.n));
  if (a.c.stages >= 3) {
    butterflies<3>(x);
  } else {
    if (a.c.stages > 0) butterfly_stage<1>(x);
    if (a.c.stages > 1) butterfly_stage<2>(x);
  }
  if (kQuantised && a.c.last == Last::kChunk) w.most = quantize::max_magnitude(w.most, x);
  put_chunk(w.tile, e, x);
}

// Four chunks of a lane, 256 apart. 16-bit ones are all in flight before the first is used; fp32 goes two at
// a time, which is as many bytes and half the registers.
template <bool kQuantised, bool kShared>
LOWBIT_DEVICE void load_chunks(Work<kShared>& w, const Launch& a, int e) {
  const DType dtype = a.p.dtype;
  const bool gates = kQuantised && a.p.gated;
  if (a.c.wide && dtype != DType::f32 && !gates) {
    ptx::u32x4 raw[4];
    LOWBIT_UNROLL
    for (int c = 0; c < 4; ++c) {
      raw[c] = ptx::u32x4{};
      if (e + c * 256 < w.count)
        raw[c] = ptx::ld_global(reinterpret_cast<const ptx::u32x4*>(w.x(a) + 2 * e) + c * 32);
    }
    LOWBIT_UNROLL
    for (int c = 0; c < 4; ++c) {
      float x[kChunk];
      halves_to_float(x, raw[c].v, dtype);
      finish_chunk<kQuantised>(w, a, e + c * 256, x);
    }
    return;
  }
  LOWBIT_NO_UNROLL
  for (int c = 0; c < 4; ++c, e += 256) {
    float x[kChunk];
    if (a.c.wide && gates) {
      load_gated(w, a, e, x);
    } else if (a.c.wide) {
      RawChunk raw;
      load_chunk<true>(raw, w.x(a), DType::f32, e, w.count);
      to_float(x, raw, DType::f32);
    } else {
      get_chunk(w.tile, e, x);
    }
    finish_chunk<kQuantised>(w, a, e, x);
  }
}

// kStages strides from 8 on in the 1024 elements of a warp. A lane holds 32 of them, 8 apart:
// e = begin + 256 (lane / 8) + 8 i + lane % 8.
template <int kStages, bool kQuantised, bool kShared>
LOWBIT_DEVICE void warp_stages(Work<kShared>& w, const Launch& a, int begin) {
  const int lane = ptx::thread_index() & 31, e = begin + ((lane & ~7) << 5) + (lane & 7);
  int base[4];  // of i = 0..3; 4 more i flip bit 2 of the place, 8 more are at the same swizzle
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) base[i] = Tile<kShared>::place(e + 8 * i);
  const auto place = [&](int i) {
    return (base[i & 3] ^ Tile<kShared>::low_part(8 * (i & 4))) + 8 * (i & ~3);
  };
  const auto order = [](int i) { return (i & 3) | (i & 12) << 1 | (i & 16) >> 2; };  // i & 4 last
  float x[32];
  LOWBIT_UNROLL
  for (int i = 0; i < 32; ++i) x[order(i)] = w.tile.template load_at<1>(place(order(i)))[0];
  butterflies<kStages>(x);
  if (kQuantised && a.c.last == Last::kWarp) w.most = quantize::max_magnitude(w.most, x);
  LOWBIT_UNROLL
  for (int i = 0; i < 32; ++i) w.tile.store_at(place(order(i)), ptx::Vector<float, 1>{{x[order(i)]}});
}

// Strides 1 .. 128, a warp per 1024 elements. Where nothing follows, the result goes to y from here.
template <bool kQuantised, bool kShared>
LOWBIT_DEVICE void first_stages(Work<kShared>& w, const Launch& a) {
  const bool to_y = !kQuantised && (a.c.last == Last::kChunk || a.c.last == Last::kWarp);
  for (int begin = (ptx::thread_index() >> 5) * 1024; begin < a.c.words; begin += ptx::thread_count() * 32) {
    if (!a.c.wide) load_narrow<kQuantised>(w, a, begin);
    load_chunks<kQuantised>(w, a, begin + (ptx::thread_index() & 31) * kChunk);
    ptx::syncwarp();
    if (a.c.stages > kFirstStages) {
      // A copy for each number of stages: conditions between them would cost a move per pair.
      if (a.c.stages >= 8) warp_stages<5, kQuantised>(w, a, begin);
      else if (a.c.stages == 7) warp_stages<4, kQuantised>(w, a, begin);
      else if (a.c.stages == 6) warp_stages<3, kQuantised>(w, a, begin);
      else if (a.c.stages == 5) warp_stages<2, kQuantised>(w, a, begin);
      else warp_stages<1, kQuantised>(w, a, begin);
      ptx::syncwarp();
    }
    if (to_y) store_warp(w, a, begin);
  }
}

// Strides 2^bit .. 2^(bit + kBits - 1): 2^kBits elements of kCols neighbouring columns at a time. The last
// such pass of a power of two writes y; all else goes back to where it came from. kBit: `bit` where it is
// known, so that places are constants away from at most four.
template <int kBit, int kBits, bool kQuantised, bool kShared>
LOWBIT_DEVICE void later_pass(Work<kShared>& w, const Launch& a, int bit) {
  constexpr int kRadix = 1 << kBits, kCols = kBits <= 3 ? 4 : kBits == 4 ? 2 : 1;
  constexpr int kBases = kBit == 8 && kRadix > 2 ? 4 : kBit == 8 ? 2 : 1;
  if constexpr (kBit > 0) bit = kBit;
  const bool last = a.c.last == Last::kLater && bit + kBits == a.c.stages;
  const int per_run = (1 << bit) / kCols;
  for (int s = ptx::thread_index(); s < w.count / (kRadix * kCols); s += ptx::thread_count()) {
    const int e = s / per_run * (kRadix << bit) + s % per_run * kCols;
    int base[kBases];
    LOWBIT_UNROLL
    for (int i = 0; i < kBases; ++i) base[i] = Tile<kShared>::place(e + (i << bit));
    const auto place = [&](int i) { return base[i % kBases] + (i / kBases * kBases << bit); };
    float x[kCols][kRadix];
    LOWBIT_UNROLL
    for (int i = 0; i < kRadix; ++i) {
      const auto v = w.tile.template load_at<kCols>(place(i));
      LOWBIT_UNROLL
      for (int c = 0; c < kCols; ++c) x[c][i] = v[c];
    }
    LOWBIT_UNROLL
    for (int c = 0; c < kCols; ++c) butterflies<kBits>(x[c]);
    if (!kQuantised && last && a.c.wide) {
      LOWBIT_UNROLL
      for (int i = 0; i < kRadix; ++i) {
        float v[kCols];
        LOWBIT_UNROLL
        for (int c = 0; c < kCols; ++c) v[c] = ptx::mul_rn(x[c][i], a.p.scale);
        store_elements(w.y(a), a.p.dtype, e + (i << bit), v, true);
      }
    } else {
      if (kQuantised && last) {
        LOWBIT_UNROLL
        for (int c = 0; c < kCols; ++c) w.most = quantize::max_magnitude(w.most, x[c]);
      }
      LOWBIT_UNROLL
      for (int i = 0; i < kRadix; ++i) {
        ptx::Vector<float, kCols> v;
        LOWBIT_UNROLL
        for (int c = 0; c < kCols; ++c) v[c] = x[c][i];
        w.tile.store_at(place(i), v);
      }
    }
  }
}

template <int kBit, bool kQuantised, bool kShared>
LOWBIT_DEVICE void some_bits(Work<kShared>& w, const Launch& a, int bit, int bits) {
  if (bits == 1) later_pass<kBit, 1, kQuantised>(w, a, bit);
  if (bits == 2) later_pass<kBit, 2, kQuantised>(w, a, bit);
  if (bits == 3) later_pass<kBit, 3, kQuantised>(w, a, bit);
  if (bits == 4) later_pass<kBit, 4, kQuantised>(w, a, bit);
  if constexpr (kBit != 11)  // of 2^16, which no shared memory holds
    if (bits == 5) later_pass<kBit, 5, kQuantised>(w, a, bit);
}

// Strides 256 and up: three bits at a time with four columns, at the end up to five.
template <bool kQuantised, bool kShared>
LOWBIT_DEVICE void later_stages(Work<kShared>& w, const Launch& a) {
  for (int bit = kWarpStages, left = a.c.stages - kWarpStages; left > 0;) {
    ptx::syncthreads();
    const int bits = left <= 5 ? left : 3;
    if constexpr (!kShared) some_bits<0, kQuantised>(w, a, bit, bits);
    else if (bit == 8) some_bits<8, kQuantised>(w, a, bit, bits);
    else some_bits<11, kQuantised>(w, a, bit, bits);
    bit += bits, left -= bits;
  }
}

// The K-factor. Unrolled ones write y directly, a column's neighbours being its warp's other lanes; those
// that are quantised stay in the tile. The others leave their result in w.other.
template <Mix kMix, bool kQuantised, bool kShared>
LOWBIT_DEVICE void mix(Work<kShared>& w, const Launch& a) {
  const Params& p = a.p;
  const int stages = a.c.stages;
  const auto put = [&](int e, float value) {
    if constexpr (kQuantised) {
      const float one[1] = {value};
      w.most = quantize::max_magnitude(w.most, one);
      w.tile.store_at(Tile<kShared>::place(e), ptx::Vector<float, 1>{{value}});
    } else {
      const float scaled[1] = {ptx::mul_rn(value, p.scale)};
      store_elements(w.y(a), p.dtype, e, scaled, true);
    }
  };
  if constexpr (kMix == Mix::kTable) {
    if (a.c.mix == Mix::kWilliamson) w.most = mix_williamson<kQuantised>(w.tile, w.other, w.count, stages);
    else w.most = mix_table<kQuantised>(w.tile, w.other, p.mix, w.count, int(p.order), stages);
  } else if constexpr (kMix == Mix::kSmall) {
    if (p.order == 12) mix_unrolled<12>(w.tile, w.count, stages, put);
    if (p.order == 20) mix_unrolled<20>(w.tile, w.count, stages, put);
    if (p.order == 28) mix_unrolled<28>(w.tile, w.count, stages, put);
  } else if constexpr (kMix == Mix::kLarge) {
    if (p.order == 36) mix_unrolled<36>(w.tile, w.count, stages, put);
    if (p.order == 44) mix_unrolled<44>(w.tile, w.count, stages, put);
    if (p.order == 52) mix_unrolled<52>(w.tile, w.count, stages, put);
    if (p.order == 60) mix_unrolled<60>(w.tile, w.count, stages, put);
  }
}

template <bool kShared>
LOWBIT_DEVICE Tile<kShared> buffer(const Launch& a, int index) {
  if constexpr (kShared) {
    return {ptx::dynamic_smem<float>() + (kScratchBytes / 4 + index * a.c.words)};
  } else {
    const int buffers = goes_to_other_buffer(a.c.mix) ? 2 : 1;
    return {a.p.workspace + (int64_t(ptx::block_index_x()) * buffers + index) * a.c.words};
  }
}

// Mix::kTable is the general one: it takes powers of two as well.
template <bool kShared, Mix kMix, bool kQuantised>
LOWBIT_DEVICE void transform_tile(const Launch& a, int64_t tile) {
  const Params& p = a.p;
  const int64_t left = p.rows * p.n - tile * a.c.tile;
  Work<kShared> w{buffer<kShared>(a, 0), buffer<kShared>(a, 1), tile, int(left < a.c.tile ? left : a.c.tile),
                  0};
  first_stages<kQuantised>(w, a);
  later_stages<kQuantised>(w, a);
  ptx::syncthreads();
  if (kMix != Mix::kNone && a.c.last == Last::kMix) {
    mix<kMix, kQuantised>(w, a);
    ptx::syncthreads();
    if (kMix == Mix::kTable) w.tile = w.other;
  }
  if constexpr (kQuantised) {
    if (p.to.codes == quantize::Codes::kFloats) store_float_rows(w, a);
    else if (a.c.long_row) quantize_long_row(w, a);
    else quantize_short_rows(w, a);
  } else if (a.c.last == Last::kMix ? kMix == Mix::kTable : a.c.last == Last::kLater && !a.c.wide) {
    for (int begin = (ptx::thread_index() >> 5) * 1024; begin < a.c.words; begin += ptx::thread_count() * 32)
      store_warp(w, a, begin);
  }
}

template <bool kShared, Mix kMix, bool kQuantised>
LOWBIT_KERNEL(kMaxThreads, kMix == Mix::kNone || kMix == Mix::kSmall ? 2 : 1)
hadamard_kernel(const Launch a) {
  if constexpr (kShared) {
    transform_tile<kShared, kMix, kQuantised>(a, ptx::block_index_x());
  } else {
    for (int64_t tile = ptx::block_index_x(); tile < a.c.tiles; tile += ptx::grid_size_x()) {
      ptx::syncthreads();  // of the last reads of the workspace
      transform_tile<kShared, kMix, kQuantised>(a, tile);
    }
  }
}

}  // namespace lowbit::kernels::hadamard
