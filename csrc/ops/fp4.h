// What the FP4 ops check alike on every device. The sentences name argument, expected, got.
#pragma once

#include "../numeric/fp4_table.h"
#include "fp_gemm.h"
#include "int_gemm.h"

namespace lowbit::ops {

constexpr std::initializer_list<Format> kFp4Formats = {Format::kE2M1, Format::kE1M2, Format::kE3M0};
constexpr std::initializer_list<Format> kFp4OrInt8 = {Format::kE2M1, Format::kE1M2, Format::kE3M0,
                                                      Format::kInt8};

// The arguments of fp4_linear: codes as integers, and the power of two that they are too large by.
struct Fp4Operands {
  const Fp4Table *weight, *x;  // x null: int8 codes
  int64_t k;
  int max_code;  // largest |x|

  Fp4Operands(const char* op, const Tensor& x_q, std::string_view x_format, const Tensor& weight_tiles,
              std::string_view w_format)
      : weight(fp4_table(format_of(w_format, op, "w_format", kFp4Formats))),
        x(fp4_table(format_of(x_format, op, "x_format", kFp4OrInt8))) {
    check(x_q.scalar_type() == (x ? ScalarType::Byte : ScalarType::Char), op, ": x_q has dtype ",
          name_of(x_q.scalar_type()), ", expected ", x ? "packed uint8" : "int8", " for x_format \"",
          x_format, "\"");
    check(weight_tiles.scalar_type() == ScalarType::Byte, op, ": weight has dtype ",
          name_of(weight_tiles.scalar_type()), ", expected the uint8 tiles of prepack_int4_weight");
    k = rows_of(x_q, op, "x_q").length * (x ? 2 : 1);
    max_code = x ? x->max : 128;
  }
  float factor() const { return 1.f / float(weight->int_scale * (x ? x->int_scale : 1)); }
  // the 32-bit sum of that many products
  int64_t deepest() const { return 0x7fffffff / (int64_t(weight->max) * max_code); }
};

// The arguments of quantize_fp4.
struct Fp4Quantiser {
  Format format;
  DType dtype;
  OptTensor scale, exponent;

  Fp4Quantiser(const char* op, const Tensor& x, std::string_view name, const OptTensor& scale_in,
               const OptTensor& exponent_in, double clip)
      : format(format_of(name, op, "format", kFp4Formats)), dtype(float_dtype(x.scalar_type(), op, "x")) {
    check_clip(op, clip);
    const Rows rows = rows_of(x, op, "x");
    if (scale_in) {
      check_dtype(*scale_in, ScalarType::Float, op, "scale");
      check_shape(*scale_in, {1}, op, "scale");
      check(clip == 1, op, ": clip is ", clip, " with a given scale, expected 1");
      scale = as_contiguous(*scale_in);
    }
    if (exponent_in) {
      check_dtype(*exponent_in, ScalarType::Char, op, "exponent");
      check_shape(*exponent_in, {rows.length}, op, "exponent");
      exponent = as_contiguous(*exponent_in);
    }
  }
};

}  // namespace lowbit::ops
