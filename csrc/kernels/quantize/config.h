// How rows are dealt to threads. Pure functions; tested without a GPU.
//
// A chunk is eight k. A team of threads owns a row: thread t holds chunks t, t + team, ... in registers, up
// to `vectors` of them at a time. Past 32768 k (16384 where rows are not aligned) a row goes in several
// rounds and is read twice, the second time from L2.
#pragma once

#include "../../numeric/ceil_div.h"
#include "../../numeric/format.h"
#include "params.h"

namespace lowbit::kernels::quantize {

constexpr int kMaxThreads = 1024;
constexpr int kLongVectors = 2;  // the instances that know rounds

struct Team {
  int32_t vectors;  // chunks a thread holds: 1, 2 or 4
  int32_t size;     // threads per row: 4, 8, 16, 32, or a multiple of 32 up to 1024
  int32_t rows;     // per block; 1 when size > 32
  int32_t rounds;   // ceil(chunks / (size * vectors))
  int32_t threads() const { return size * rows; }
};

// 128 threads of short rows per block keep blocks small enough to spread over the card; four chunks of a long
// row per thread are four 16-byte loads in flight: with 64 registers, 1024 threads and 64 KB per SM. Rows
// that are loaded element by element need more registers per chunk. `most`: threads per block.
inline constexpr Team team_of(int64_t chunks, bool wide, int most = kMaxThreads) {
  const bool four = wide && chunks > 64 && chunks <= 4 * most;
  Team t{four ? 4 : wide && chunks <= 32 ? 1 : kLongVectors, 32, 4, 1};
  if (chunks <= 16) {
    t.size = chunks <= 4 ? 4 : chunks <= 8 ? 8 : 16;
    t.rows = 128 / t.size;
  } else if (chunks > 32 * t.vectors) {
    const int64_t warps = ceil_div(ceil_div(chunks, t.vectors), 32);
    t.rounds = int32_t(ceil_div(warps, most / 32));
    t.size = int32_t(ceil_div(warps, t.rounds)) * 32;
    t.rows = 1;
  }
  return t;
}

// Eight k each; those past k hold zeros.
inline constexpr int64_t chunks_of(const Output& to, int64_t k) {
  return to.codes == Codes::kPacked4  ? ceil_div(k, 8)
         : to.codes == Codes::kInt8   ? ceil_div(to.stride, 8)
         : to.codes == Codes::kFloats ? ceil_div(to.stride, 8 * size_of(to.dtype))
                                      : to.stride / 4;
}

// Whether every chunk's codes lie on a multiple of their 4 or 8 bytes, or its floats on 16.
inline bool wide_codes(const Output& to) {
  const int64_t unit = to.codes == Codes::kFloats ? 16 : to.codes == Codes::kInt8 ? 8 : 4;
  return to.stride % unit == 0 && reinterpret_cast<uintptr_t>(to.q) % unit == 0;
}

struct Config {
  Team team;
  int64_t chunks;  // per row
  bool wide;       // every row of x, and shift, start and end on 16 bytes
  bool wide_store;
  int32_t shared_bytes;  // one word per warp
  int64_t blocks;
};

inline Config config_of(int64_t rows, int64_t chunks, bool wide, bool wide_store) {
  Config c{team_of(chunks, wide), chunks, wide, wide_store, 0, 0};
  c.shared_bytes = c.team.size > 32 ? c.team.size / 32 * 4 : 0;
  c.blocks = ceil_div(rows, c.team.rows);
  return c;
}

// Rows of x (and whatever else starts at `start`) on 16 bytes.
inline bool wide_rows(uintptr_t start, DType dtype, int64_t k, int64_t x_stride) {
  return start % 16 == 0 && x_stride * size_of(dtype) % 16 == 0 && k * size_of(dtype) % 16 == 0;
}

inline Config choose(const Params& p) {
  const auto start = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.shift);
  return config_of(p.rows, chunks_of(p.to, p.k), wide_rows(start, p.dtype, p.k, p.x_stride),
                   wide_codes(p.to));
}

inline Config choose(const Fp4Params& p) {
  // the exponents of a chunk are 8 bytes
  const bool powers = !p.exponent || (reinterpret_cast<uintptr_t>(p.exponent) % 8 == 0 && p.k % 8 == 0);
  const bool wide = powers && wide_rows(reinterpret_cast<uintptr_t>(p.x), p.dtype, p.k, p.x_stride);
  const bool wide_store = p.stride % 4 == 0 && reinterpret_cast<uintptr_t>(p.q) % 4 == 0;
  return config_of(p.rows, ceil_div(p.k, 8), wide, wide_store);
}

inline Fp4Rounding rounding_of(Format format) {
  Fp4Rounding r{};
  with_minifloat(format, [&](auto f) {
    using F = decltype(f);
    r = {float_bits(F::kMax), 128 - F::kExponentBias, F::kM};
  });
  return r;
}

constexpr int64_t kMaxRow = 1 << 30;  // offsets inside a row are 32-bit

// nullptr, or what is wrong with the output.
inline Error check_output(const Output& to, int64_t k) {
  const bool floats = to.codes == Codes::kFloats;
  if (k > kMaxRow || to.stride > kMaxRow * (floats ? size_of(to.dtype) : 1))
    return "quantize: a row has more than 2^30 elements";
  if (floats && to.scale) return "quantize: floats have no scale";
  if (floats && (to.stride < k * size_of(to.dtype) || to.stride % size_of(to.dtype)))
    return "quantize: a row of floats has too few bytes, or a part of an element";
  if (floats) return nullptr;
  if (to.bits != 4 && to.bits != 8) return "quantize: bits must be 4 or 8";
  if (to.codes != Codes::kInt8 && to.bits != 4) return "quantize: packed codes need bits = 4";
  if (to.codes == Codes::kPacked4 && to.stride < (k + 1) / 2) return "quantize: a row has too few bytes";
  if (to.codes == Codes::kInt8 && to.stride < k) return "quantize: a row has too few bytes";
  if (to.codes == Codes::kOperand4 &&
      (to.stride % 32 || to.stride * 2 < k || reinterpret_cast<uintptr_t>(to.q) % 4))
    return "quantize: operand4 rows are aligned multiples of 32 bytes that hold k nibbles";
  return nullptr;
}

// Of kernels that store codes alone.
inline Error check_codes(const Output& to, int64_t k) {
  if (to.codes == Codes::kFloats) return "quantize: floats are an output of kernels that make their rows";
  return check_output(to, k);
}

// convert_codes: a thread makes 16 bytes of output (operand4, packed4: 32 k; int8: 16 k). A block has several
// short rows, or part of a long one.
constexpr int kConvertThreads = 256;

struct ConvertConfig {
  int32_t pieces;  // per row
  int32_t rows;    // per block
  bool wide_load, wide_store;
  int64_t blocks_x, blocks_y;  // groups of rows, parts of a row
};

inline ConvertConfig choose(const ConvertParams& p) {
  ConvertConfig c{};
  const int64_t row = p.to == Codes::kPacked4 ? ceil_div(p.k, 2) : p.stride;
  c.pieces = int32_t(ceil_div(row, 16));
  c.rows = c.pieces && c.pieces < kConvertThreads ? kConvertThreads / c.pieces : 1;
  const int64_t unit = p.from != Codes::kInt8 && p.to == Codes::kInt8 ? 8 : 16;
  c.wide_load = reinterpret_cast<uintptr_t>(p.x) % unit == 0 && p.x_stride % unit == 0;
  c.wide_store = reinterpret_cast<uintptr_t>(p.q) % 16 == 0 && p.stride % 16 == 0;
  c.blocks_x = ceil_div(p.rows, c.rows), c.blocks_y = ceil_div(c.pieces, kConvertThreads);
  return c;
}

// What the kernels get.
struct Launch {
  Params p;
  Config c;
};
struct Fp4Launch {
  Fp4Params p;
  Config c;
};
struct ConvertLaunch {
  ConvertParams p;
  ConvertConfig c;
};

}  // namespace lowbit::kernels::quantize
