// Per-token symmetric quantisation and the layouts of codes on CUDA: what the kernels take. No torch.
#pragma once

#include <cstdint>

#include "../common/device.h"
#include "../../numeric/dtype.h"
#include "../../numeric/fp4_table.h"

namespace lowbit::kernels::quantize {

enum class Codes : int32_t {
  kPacked4,   // the public layout: uint8 [rows, ceil(k / 2)], low nibble = even k, value + 8; pad nibble 8
  kInt8,      // int8 [rows, stride], zero past k; holds int4 values too (Hopper's int4 activations)
  kOperand4,  // layout/operand4.h: what the sm_80 s4 GEMM reads, zero past k
  kFp4,       // uint8 [rows, ceil(k / 2)], low nibble = even k, FP4 codes; pad nibble 0
  kFloats,    // the values, rounded to `dtype`, zero past k: of families that make their rows
};

// Where the codes of [rows, k] go.
struct Output {
  Codes codes;
  int32_t bits;  // 4 or 8: qmax 7 or 127; kPacked4 and kOperand4 need 4
  float clip;    // share of a row's largest magnitude that qmax stands for
  void* q;
  int64_t stride;  // bytes per row: ceil(k / 2); >= k; a multiple of 32 that is >= ceil(k / 2); >= k floats
  float* scale;    // [rows]; null where a family knows static codes: those of the values themselves
  DType dtype{};   // of kFloats, which have no scale
};

// What a row meets on its way to codes: value index[j] times factor[j] minus shift[j] becomes code j.
struct Adjust {
  const int32_t* index;  // [k_out], each in [0, k) (a larger one is read as k - 1), or null: k_out = k
  const float* factor;   // [k_out] or null
  const float* shift;    // [k_out] or null
};

struct Params {
  const void* x;  // [rows, k], row r at x + r * x_stride elements
  DType dtype;
  int64_t rows, k, x_stride;
  const float* shift;  // [k] subtracted first, or null
  Output to;
};

// How floats become codes of a format (numeric/minifloat.h).
struct Fp4Rounding {
  uint32_t top;  // bits of the largest value
  int32_t first_binade, mantissa_bits;
};

// Rows of floats to FP4 codes (Codes::kFp4).
struct Fp4Params {
  const void* x;  // as in Params
  DType dtype;
  int64_t rows, k, x_stride;
  const int8_t* exponent;  // [k]: x counts 2^exponent times; or null
  Fp4Rounding rounding;
  float clip;                // share of a row's largest magnitude that the largest value stands for
  const float* fixed_scale;  // one scale for all rows, or null
  void* q;
  int64_t stride;  // bytes per row: ceil(k / 2)
  float* scale;    // [rows]
};

// Codes from one layout to another, exactly.
struct ConvertParams {
  Codes from;  // kPacked4, kFp4 (to kInt8 only) or kInt8 (values -8..7 where `to` has nibbles)
  const void* x;
  int64_t rows, k, x_stride;  // bytes
  Codes to;
  void* q;
  int64_t stride;          // as in Output
  uint32_t* out_of_range;  // null, or: incremented per row piece that holds a value outside -8..7
  Fp4Magnitudes fp4;       // of kFp4
};

Error quantize_launch(const Params& p, const Device& device, Stream stream);
Error quantize_fp4_launch(const Fp4Params& p, const Device& device, Stream stream);
Error convert_codes_launch(const ConvertParams& p, const Device& device, Stream stream);

}  // namespace lowbit::kernels::quantize
