// From floats on chip to codes in memory: the scale of a row, eight codes at a time, and a team of threads
// that quantises a row. Shared by the quantiser and the fused transform. The arithmetic is that of
// cpu/quantize-inl.h, rounding for rounding.
#pragma once

#include "../../layout/operand4.h"
#include "../../ptx/sync.h"
#include "../../ptx/warp.h"
#include "../common/elements.cuh"
#include "config.h"

namespace lowbit::kernels::quantize {

// Largest |x| as integer bits: NaN > infinity > finite.
template <int kCount>
LOWBIT_DEVICE uint32_t max_magnitude(uint32_t most, const float (&x)[kCount]) {
  LOWBIT_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const uint32_t bits = ptx::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return most;
}

// x - shift for the k from `begin` on.
template <bool kWide>
LOWBIT_DEVICE void subtract_shift(float (&x)[kChunk], const float* shift, int begin, int count) {
  RawChunk raw;
  load_chunk<kWide>(raw, shift, DType::f32, begin, count);
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) x[i] = ptx::sub_rn(x[i], ptx::bit_cast<float>(raw.w[i]));
}

struct Scale {
  float scale, inverse;  // inverse 0: all codes are zero
};

// The scale of a row whose largest magnitude has the bits `most`.
LOWBIT_DEVICE Scale finish_scale(uint32_t most, float scale) {
  Scale s{scale, 0.f};
  if (most >= 0x7f800000u) s.scale = ptx::bit_cast<float>(0x7fc00000u);  // NaN or infinity in the row
  else if (s.scale < 1.17549435e-38f) s.scale = 1.f;  // a zero row, or one whose inverse would overflow
  else s.inverse = ptx::div_rn(1.f, s.scale);
  return s;
}

LOWBIT_DEVICE Scale scale_of(uint32_t most, const Output& to) {
  const float qmax = to.bits == 4 ? 7.f : 127.f;
  return finish_scale(most, ptx::div_rn(ptx::mul_rn(ptx::bit_cast<float>(most), to.clip), qmax));
}

// A float in [-2^22, 2^22] plus 1.5 * 2^23 has its nearest even integer in the low bits.
constexpr float kRoundToInteger = 12582912.f;

// rint(clamp(x * inverse)) of eight k as bytes: k 0..3 in [0], k 4..7 in [1]; lowest byte first.
// Without clipping the clamp changes nothing: |x| * inverse <= qmax (1 + 2^-21), which rounds to qmax.
LOWBIT_DEVICE void code_bytes(uint32_t (&word)[2], const float (&x)[kChunk], float inverse,
                              const Output& to) {
  const float high = to.bits == 4 ? 7.f : 127.f, low = to.bits == 4 ? -8.f : -127.f;
  float v[kChunk];
  LOWBIT_UNROLL
  for (int i = 0; i < kChunk; ++i) v[i] = ptx::mul_rn(x[i], inverse);
  if (to.clip < 1.f) {
    LOWBIT_UNROLL
    for (int i = 0; i < kChunk; ++i) v[i] = ptx::min_f32(ptx::max_f32(v[i], low), high);
  }
  LOWBIT_UNROLL
  for (int h = 0; h < 2; ++h) {
    uint32_t u[4];
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) u[i] = ptx::bit_cast<uint32_t>(ptx::add_rn(v[4 * h + i], kRoundToInteger));
    word[h] = ptx::prmt(ptx::prmt(u[0], u[1], 0x0040), ptx::prmt(u[2], u[3], 0x0040), 0x5410);
    if (inverse == 0.f) word[h] = 0;  // x may be NaN there
  }
}

// word's lowest `bytes` bytes (at most 4), one by one.
LOWBIT_DEVICE void store_bytes(uint8_t* p, uint32_t word, int bytes) {
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i)
    if (i < bytes) ptx::st_global(p + i, uint8_t(word >> (8 * i)));
}

// Nibbles: even k in the low, odd k in the high half of each byte, plus 8.
LOWBIT_DEVICE uint32_t packed4_word(const uint32_t (&code)[2]) {
  const uint32_t even = ptx::prmt(code[0], code[1], 0x6420), odd = ptx::prmt(code[0], code[1], 0x7531);
  return ptx::lop3<0xe4>(even, odd << 4, 0x0f0f0f0fu) ^ 0x88888888u;  // 0xe4: c ? a : b, bit by bit
}

// The codes of chunk `chunk` of the row at `row`. Collective over the warp (operand4 exchanges halves between
// lanes whose chunks are 2 apart: chunk = lane modulo 4). Lanes with active == false store nothing.
LOWBIT_DEVICE void store_codes(const Output& to, uint8_t* row, int k, int chunk, const uint32_t (&code)[2],
                               bool wide, bool active) {
  if (to.codes == Codes::kOperand4) {
    const bool upper = (chunk & 2) != 0;
    const uint32_t got = ptx::shfl_sync_xor(upper ? code[0] : code[1], 2);
    const uint32_t low = upper ? got : code[0], high = upper ? code[1] : got;
    const uint32_t word = ptx::lop3<0xe4>(low, high << 4, 0x0f0f0f0fu);
    if (active) ptx::st_global(reinterpret_cast<uint32_t*>(row + operand4::chunk_word_byte(chunk)), word);
  } else if (to.codes == Codes::kPacked4) {
    const uint32_t word = packed4_word(code);
    uint8_t* p = row + 4 * chunk;
    const int left = (k + 1) / 2 - 4 * chunk;
    if (active && wide && left >= 4) ptx::st_global(reinterpret_cast<uint32_t*>(p), word);
    else if (active) store_bytes(p, word, left);
  } else {
    uint8_t* p = row + kChunk * chunk;
    const int left = int(to.stride) - kChunk * chunk;
    if (active && wide && left >= 8) {
      ptx::st_global(reinterpret_cast<ptx::u32x2*>(p), ptx::u32x2{{code[0], code[1]}});
    } else if (active) {
      store_bytes(p, code[0], left);
      store_bytes(p + 4, code[1], left - 4);
    }
  }
}

// Largest of the team's values, in every thread of it. Collective over the block; once per block, or with a
// barrier in between.
LOWBIT_DEVICE uint32_t team_max(uint32_t value, const Team& team, ptx::smem_ptr<uint32_t> per_warp) {
  if (team.size < 32) {
    for (int step = team.size / 2; step > 0; step /= 2) {
      const uint32_t other = ptx::shfl_sync_xor(value, step);
      value = other > value ? other : value;
    }
    return value;
  }
  value = ptx::redux_sync_max_u32(value);
  if (team.size == 32) return value;
  if (ptx::lane_index() == 0) ptx::st_shared(per_warp + ptx::warp_index(), value);
  ptx::syncthreads();
  const bool mine = ptx::lane_index() < team.size / 32;
  return ptx::redux_sync_max_u32(mine ? ptx::ld_shared(per_warp + ptx::lane_index()) : 0);
}

// How a row becomes integer codes.
struct IntegerCoder {
  const Output& to;
  int k;
  bool wide;

  LOWBIT_DEVICE bool fixed() const { return false; }
  LOWBIT_DEVICE float* scales() const { return to.scale; }
  LOWBIT_DEVICE uint8_t* row(int64_t r) const { return static_cast<uint8_t*>(to.q) + r * to.stride; }
  LOWBIT_DEVICE Scale scale(uint32_t most) const { return scale_of(most, to); }
  LOWBIT_DEVICE void store(uint8_t* q, int chunk, const float (&x)[kChunk], float inverse,
                           bool active) const {
    uint32_t code[2];
    code_bytes(code, x, inverse, to);
    store_codes(to, q, k, chunk, code, wide, active);
  }
};

// One row by each team of the block. load(x, round): the thread's chunks t + (round * vectors + v) * size of
// the row as floats, zeros past k. Rows of several rounds need kRounds. Where the coder's scale is fixed (1),
// the row's maximum is not asked for, nor a scale stored. Collective over the block.
template <int kVectors, bool kRounds, class Coder, class Load>
LOWBIT_DEVICE void quantize_rows(const Coder& coder, const Team& team, int chunks, int64_t row, bool active,
                                 ptx::smem_ptr<uint32_t> per_warp, const Load& load) {
  const int thread = ptx::thread_index() & (team.size <= 32 ? team.size - 1 : -1);
  float x[kVectors][kChunk];
  uint32_t most = 0;
  const int rounds = kRounds ? team.rounds : 1;
  Scale s{1.f, 1.f};
  if (!kRounds || rounds == 1 || !coder.fixed()) {
    for (int round = 0; round < rounds; ++round) {
      load(x, round);
      if (coder.fixed()) continue;
      LOWBIT_UNROLL
      for (int v = 0; v < kVectors; ++v) most = max_magnitude(most, x[v]);
    }
  }
  if (!coder.fixed()) {
    s = coder.scale(team_max(most, team, per_warp));
    if (active && thread == 0) ptx::st_global(coder.scales() + row, s.scale);
  }
  uint8_t* q = coder.row(row);
  for (int round = 0; round < rounds; ++round) {
    if (kRounds && rounds > 1) load(x, round);
    LOWBIT_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int chunk = thread + (round * kVectors + v) * team.size;
      coder.store(q, chunk, x[v], s.inverse, active && chunk < chunks);
    }
  }
}

}  // namespace lowbit::kernels::quantize
