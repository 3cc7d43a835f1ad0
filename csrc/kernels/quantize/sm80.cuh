// Quantise rows of floats to codes; convert codes between layouts. One source for sm_80 and every later card.
#pragma once

#include "../common/fp4.cuh"
#include "codes.cuh"

namespace lowbit::kernels::quantize {

template <int kVectors, bool kWide>
LOWBIT_KERNEL(kMaxThreads, 1)
quantize_kernel(const Launch a) {
  const Params& p = a.p;
  const Team& team = a.c.team;
  const int thread = ptx::thread_index() % team.size, in_block = ptx::thread_index() / team.size;
  const int64_t row = int64_t(ptx::block_index_x()) * team.rows + in_block;
  const bool active = row < p.rows;
  const char* x = static_cast<const char*>(p.x) + (active ? row : 0) * p.x_stride * size_of(p.dtype);
  const int count = active ? int(p.k) : 0;  // a team without a row takes part in the collectives with zeros
  quantize_rows<kVectors, kVectors == kLongVectors>(
      IntegerCoder{p.to, int(p.k), a.c.wide_store}, team, int(a.c.chunks), row, active,
      ptx::dynamic_smem<uint32_t>(), [&](float (&v)[kVectors][kChunk], int round) {
        const int first = thread + round * kVectors * team.size;
        RawChunk raw[kVectors];
        LOWBIT_UNROLL
        for (int i = 0; i < kVectors; ++i)
          load_chunk<kWide>(raw[i], x, p.dtype, (first + i * team.size) * kChunk, count);
        LOWBIT_UNROLL
        for (int i = 0; i < kVectors; ++i) to_float(v[i], raw[i], p.dtype);
        if (p.shift) {
          LOWBIT_UNROLL
          for (int i = 0; i < kVectors; ++i)
            subtract_shift<kWide>(v[i], p.shift, (first + i * team.size) * kChunk, count);
        }
      });
}

// Sixteen bytes of the row at p, from byte `begin`; `fill` past `count`. wide: p + begin lies on 16 bytes.
LOWBIT_DEVICE void load_bytes(uint32_t (&w)[4], const uint8_t* p, int begin, int count, uint32_t fill,
                              bool wide) {
  if (wide && begin + 16 <= count) {
    const auto v = ptx::ld_global<ptx::Load::kNc>(reinterpret_cast<const ptx::u32x4*>(p + begin));
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) w[i] = v[i];
    return;
  }
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    w[i] = 0;
    LOWBIT_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int at = begin + 4 * i + j;
      w[i] |= (at < count ? uint32_t(ptx::ld_global<ptx::Load::kNc>(p + at)) : fill) << (8 * j);
    }
  }
}

// Two bytes of packed4 (in the low half) as four bytes, each with one nibble, still offset by 8.
LOWBIT_DEVICE uint32_t spread_nibbles(uint32_t two) {
  const uint32_t twice = ptx::prmt(two, 0, 0x1100);
  return ptx::lop3<0xe4>(twice, twice >> 4, 0x00ff00ffu) & 0x0f0f0f0fu;
}

// Offset-8 nibbles in bytes, as signed bytes: (b ^ 8) - 8 without a borrow between bytes.
LOWBIT_DEVICE uint32_t signed_bytes(uint32_t nibbles) {
  const uint32_t v = nibbles ^ 0x08080808u;  // two's complement nibbles
  return v | ((v & 0x08080808u) >> 3) * 0xf0u;
}

// int8 codes of k begin .. begin + 15, zero past k.
LOWBIT_DEVICE void load_int8(uint32_t (&w)[4], const ConvertParams& p, const uint8_t* row, int begin,
                             bool wide) {
  if (p.from == Codes::kInt8) return load_bytes(w, row, begin, int(p.k), 0, wide);
  const uint8_t* from = row + begin / 2;
  const int k = int(p.k), left = (k + 1) / 2 - begin / 2;
  uint32_t packed[2] = {0x88888888u, 0x88888888u};  // zeros, of int4 and of FP4
  if (wide && left >= 8) {
    const auto v = ptx::ld_global<ptx::Load::kNc>(reinterpret_cast<const ptx::u32x2*>(from));
    packed[0] = v[0], packed[1] = v[1];
  } else {
    LOWBIT_UNROLL
    for (int i = 0; i < 8; ++i)
      if (i < left) {
        const uint32_t byte = ptx::ld_global<ptx::Load::kNc>(from + i);
        const int shift = 8 * (i % 4);
        packed[i / 4] = (packed[i / 4] & ~(0xffu << shift)) | byte << shift;
      }
  }
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) {
    const uint32_t four = packed[i / 2] >> (16 * (i % 2));
    w[i] = p.from == Codes::kFp4 ? fp4_values(p.fp4, four, four ^ kFp4Signs)
                                 : signed_bytes(spread_nibbles(four));
  }
  if (k % 2 && begin <= k && k < begin + 16) {  // the pad nibble of an odd k, whatever it holds
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i)
      if (k - begin >= 4 * i && k - begin < 4 * i + 4) w[i] &= (1u << (8 * ((k - begin) % 4))) - 1;
  }
}

LOWBIT_DEVICE bool beyond_int4(uint32_t bytes) {  // some byte is not the sign extension of its low nibble
  return (bytes ^ signed_bytes((bytes & 0x0f0f0f0fu) ^ 0x08080808u)) != 0;
}

// Two times sixteen int8 codes (k 0..15 in a, 16..31 in b) as 16 bytes of nibbles.
LOWBIT_DEVICE void nibble_words(uint32_t (&w)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], Codes to) {
  if (to == Codes::kOperand4) {
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) w[i] = ptx::lop3<0xe4>(a[i], b[i] << 4, 0x0f0f0f0fu);
  } else {
    LOWBIT_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t first[2] = {a[2 * i], a[2 * i + 1]}, second[2] = {b[2 * i], b[2 * i + 1]};
      w[i] = packed4_word(first), w[2 + i] = packed4_word(second);
    }
  }
}

// A thread makes the 16 bytes `piece` of one row.
LOWBIT_KERNEL(kConvertThreads, 4)
convert_codes_kernel(const ConvertLaunch a) {
  const ConvertParams& p = a.p;
  const int index = ptx::block_index_y() * kConvertThreads + ptx::thread_index(),
            in_block = index / a.c.pieces;
  const int64_t row = int64_t(ptx::block_index_x()) * a.c.rows + in_block;
  const int piece = index - in_block * a.c.pieces, k = int(p.k);
  if (in_block >= a.c.rows || row >= p.rows) return;
  const uint8_t* from = static_cast<const uint8_t*>(p.x) + row * p.x_stride;
  uint8_t* to = static_cast<uint8_t*>(p.q) + row * p.stride + 16 * piece;
  uint32_t w[4];
  if (p.to == Codes::kInt8) {
    load_int8(w, p, from, 16 * piece, a.c.wide_load);
  } else if (p.from == Codes::kPacked4) {  // to operand4: nibbles to nibbles
    uint32_t packed[4];
    load_bytes(packed, from, 16 * piece, (k + 1) / 2, 0x88, a.c.wide_load);
    const int last = k - 32 * piece;  // the pad nibble of an odd k, whatever it holds
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i)
      if (last % 2 && last > 8 * i && last < 8 * i + 8)
        packed[i] = (packed[i] & ~(0xf0u << (4 * (last % 8 - 1)))) | 0x80u << (4 * (last % 8 - 1));
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint32_t low = spread_nibbles(packed[i / 2] >> (16 * (i % 2)));
      const uint32_t high = spread_nibbles(packed[2 + i / 2] >> (16 * (i % 2)));
      w[i] = (low | high << 4) ^ 0x88888888u;
    }
  } else {
    uint32_t low[4], high[4];
    load_int8(low, p, from, 32 * piece, a.c.wide_load);
    load_int8(high, p, from, 32 * piece + 16, a.c.wide_load);
    nibble_words(w, low, high, p.to);
    bool beyond = false;
    LOWBIT_UNROLL
    for (int i = 0; i < 4; ++i) beyond = beyond || beyond_int4(low[i]) || beyond_int4(high[i]);
    if (p.out_of_range && beyond) ptx::red_add_global_s32(reinterpret_cast<int32_t*>(p.out_of_range), 1);
  }
  const int left = (p.to == Codes::kPacked4 ? (k + 1) / 2 : int(p.stride)) - 16 * piece;
  if (a.c.wide_store && left >= 16)
    return ptx::st_global(reinterpret_cast<ptx::u32x4*>(to), ptx::u32x4{{w[0], w[1], w[2], w[3]}});
  LOWBIT_UNROLL
  for (int i = 0; i < 4; ++i) store_bytes(to + 4 * i, w[i], left - 4 * i);
}

}  // namespace lowbit::kernels::quantize
