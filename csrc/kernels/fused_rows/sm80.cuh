// Rows to codes with the layer in front of them, in one launch. One source for sm_80 and every later card.
//
//   values    x; or activation(gate) * up; or x + residual, which is stored and whose squares are summed
//   gather    where there is an index: the row waits in shared memory
//   adjust    times factor, minus shift
//   codes     quantize/codes.cuh, with a scale of the row or without
//
// A transform behind the gate is the Hadamard kernel's, which takes gates and ups itself.
#pragma once

#include <type_traits>

#include "../common/activation.cuh"
#include "../quantize/adjust.cuh"
#include "config.h"
#include "row_sum.cuh"

namespace lowbit::kernels::fused_rows {

// The values of one row, before the gather. `other`: the up half, or the residual, or null.
template <Kind kKind, bool kWide>
struct Source {
  const Params& p;
  const char *x, *other;
  char* sum;
  int count;  // 0: a team without a row takes part in the collectives with zeros

  LOWBIT_DEVICE Source(const Params& p, int64_t row, bool active) : p(p), count(active ? int(p.k) : 0) {
    const int64_t bytes = p.k * size_of(p.dtype), at = active ? row * bytes : 0;
    x = static_cast<const char*>(p.x) + (kKind == Kind::kGated ? 2 * at : at);
    other = nullptr, sum = nullptr;
    if (kKind == Kind::kGated) other = x + bytes;
    if (kKind == Kind::kNorm && p.residual)
      other = static_cast<const char*>(p.residual) + at, sum = static_cast<char*>(p.sum) + at;
  }

  // Chunks first, first + step, ... Loads are in flight together where registers allow.
  template <int kVectors>
  LOWBIT_DEVICE void chunks(float (&v)[kVectors][kChunk], int first, int step) const {
    RawChunk raw[kVectors];
    LOWBIT_UNROLL
    for (int i = 0; i < kVectors; ++i)
      load_chunk<kWide>(raw[i], x, p.dtype, (first + i * step) * kChunk, count);
    LOWBIT_UNROLL
    for (int i = 0; i < kVectors; ++i) to_float(v[i], raw[i], p.dtype);
    if constexpr (kKind != Kind::kPlain)
      if (other) second(v, raw, first, step);
  }

  template <int kVectors>
  LOWBIT_DEVICE void second(float (&v)[kVectors][kChunk], RawChunk (&raw)[kVectors], int first,
                            int step) const {
    LOWBIT_UNROLL
    for (int i = 0; i < kVectors; ++i)
      load_chunk<kWide>(raw[i], other, p.dtype, (first + i * step) * kChunk, count);
    LOWBIT_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      float y[kChunk];
      to_float(y, raw[i], p.dtype);
      LOWBIT_UNROLL
      for (int j = 0; j < kChunk; ++j)
        v[i][j] = kKind == Kind::kGated ? gated(v[i][j], y[j], p.activation) : ptx::add_rn(v[i][j], y[j]);
      if (kKind == Kind::kNorm) {
        round_chunk(raw[i], v[i], p.dtype);
        if (p.dtype != DType::f32) to_float(v[i], raw[i], p.dtype);
        store_raw<kWide>(sum, p.dtype, (first + i * step) * kChunk, count, raw[i]);
      }
    }
  }

  LOWBIT_DEVICE float element(int k) const {
    const float a = load_element(x, p.dtype, k);
    if (!other) return a;
    const float b = load_element(other, p.dtype, k);
    if constexpr (kKind == Kind::kGated) {
      return gated(a, b, p.activation);
    } else {
      const float s = ptx::add_rn(a, b);
      return p.dtype == DType::f32    ? s
             : p.dtype == DType::bf16 ? ptx::cvt_f32_bf16(ptx::cvt_rn_bf16_f32(s))
                                      : ptx::cvt_f32_f16(ptx::cvt_rn_f16_f32(s));
    }
  }
};

// A row in shared memory, transposed: the first elements of all chunks, then the second ones, ... Lanes that
// store or gather elements of neighbouring chunks are free of bank conflicts, which an index is that is
// mostly in order.
struct Staged {
  ptx::smem_ptr<float> row;
  int chunks;

  LOWBIT_DEVICE void put(int chunk, const float (&x)[kChunk]) const {
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i) ptx::st_shared(row + (i * chunks + chunk), x[i]);
  }
  LOWBIT_DEVICE float get(int k) const {
    return ptx::ld_shared(row + ((k & (kChunk - 1)) * chunks + k / kChunk));
  }
};

// The norm's factor: v * inverse_rms * (factor + offset).
template <bool kWide>
LOWBIT_DEVICE void apply_norm(float (&v)[kChunk], const Params& p, int begin, int count, float inverse_rms) {
  RawChunk raw;
  load_chunk<kWide>(raw, p.adjust.factor, DType::f32, begin, count);
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) {
    float f = ptx::bit_cast<float>(raw.w[i]);
    if (p.gain_offset != 0.f) f = ptx::add_rn(f, p.gain_offset);
    v[i] = ptx::mul_rn(ptx::mul_rn(v[i], inverse_rms), f);
  }
}

// kFloats: rows of values instead of codes. Both in one kernel would take 20 registers more.
template <Kind kKind, int kVectors, bool kWide, bool kFloats>
LOWBIT_KERNEL(kMaxThreads, 1)
fused_rows_kernel(const Launch a) {
  constexpr bool kRounds = kVectors == quantize::kLongVectors;
  using Coder = std::conditional_t<kFloats, quantize::FloatRows<kWide>, quantize::RowCoder>;
  const Params& p = a.p;
  const Team& team = a.c.team;
  const int thread = ptx::thread_index() % team.size, in_block = ptx::thread_index() / team.size;
  const int64_t row = int64_t(ptx::block_index_x()) * team.rows + in_block;
  const bool active = row < p.rows, long_row = team.size > 32;
  const auto smem = ptx::dynamic_smem<float>();
  const Staged staged{smem + (a.c.staged_at + in_block * a.c.staged_words), a.c.inputs};
  const Source<kKind, kWide> source(p, row, active);
  const int rounds = kRounds ? team.rounds : 1, step = team.size;
  const auto first_of = [&](int round) { return thread + round * kVectors * step; };

  float x[kVectors][kChunk];
  float inverse_rms = 1.f;
  if (kKind == Kind::kNorm || rounds == 1) {  // several rounds: once for the sum, then again
    RowSum sum{team, smem + kMaxWords};
    for (int round = 0; round < rounds; ++round) {
      source.chunks(x, first_of(round), step);
      if (kKind == Kind::kNorm) sum.add(x, round);
      LOWBIT_UNROLL
      for (int v = 0; v < kVectors; ++v)
        if (a.c.staged && first_of(0) + v * step < a.c.inputs) staged.put(first_of(0) + v * step, x[v]);
    }
    if (kKind == Kind::kNorm || a.c.staged) {
      if (long_row) ptx::syncthreads();
      else ptx::syncwarp();
    }
    if (kKind == Kind::kNorm) {
      const float mean = ptx::div_rn(sum.template total<kVectors>(rounds), float(int(p.k)));
      inverse_rms = ptx::div_rn(1.f, ptx::sqrt_rn(ptx::add_rn(mean, p.eps)));
    }
  }
  const int count = active ? int(p.k_out) : 0;
  quantize::quantize_rows<kVectors, kRounds>(
      Coder{p.to, int(p.k_out), a.c.wide_store}, team, a.c.chunks, row, active, smem.template as<uint32_t>(),
      [&](float (&v)[kVectors][kChunk], int round) {
        if (!p.adjust.index && rounds > 1) source.chunks(x, first_of(round), step);
        LOWBIT_UNROLL
        for (int i = 0; i < kVectors; ++i) {
          const int begin = (first_of(round) + i * step) * kChunk;
          if (!p.adjust.index) {
            LOWBIT_UNROLL
            for (int j = 0; j < kChunk; ++j) v[i][j] = x[i][j];
          } else if (a.c.staged) {
            quantize::gather_chunk<kWide>(v[i], p.adjust, int(p.k), begin, count,
                                          [&](int k) { return staged.get(k); });
          } else {
            quantize::gather_chunk<kWide>(v[i], p.adjust, int(p.k), begin, count,
                                          [&](int k) { return source.element(k); });
          }
          if (kKind == Kind::kNorm) apply_norm<kWide>(v[i], p, begin, count, inverse_rms);
          else quantize::multiply_factor<kWide>(v[i], p.adjust.factor, begin, count);
          if (p.adjust.shift) quantize::subtract_shift<kWide>(v[i], p.adjust.shift, begin, count);
        }
      });
}

}  // namespace lowbit::kernels::fused_rows
