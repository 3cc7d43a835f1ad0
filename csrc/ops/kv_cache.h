// What the KV-cache ops check alike on every device.
#pragma once

#include "common.h"

namespace lowbit::ops {

// Arguments of kv4_quantize, and the shapes of its results.
struct Kv4Input {
  DType dtype;
  Tensor x;
  Rows rows;
  Shape packed, params;

  Kv4Input(const char* op, const Tensor& x_in, double clip)
      : dtype((check_clip(op, clip), float_dtype(x_in.scalar_type(), op, "x"))),
        x(as_contiguous(x_in)),
        rows(rows_of(x, op, "x")),
        packed(shape_of(x)),
        params(packed) {
    check(rows.length > 0, op, ": x has a last dimension of 0, expected at least 1");
    packed.back() = (rows.length + 1) / 2, params.back() = 2;
  }
};

// Arguments of kv4_dequantize, and the shape and dtype of its result.
struct Kv4Stored {
  Tensor packed, params;
  Rows rows;
  Shape shape;
  ScalarType out;
  DType dtype;

  Kv4Stored(const char* op, const Tensor& packed_in, const Tensor& params_in,
            std::optional<ScalarType> out_dtype, std::optional<int64_t> d)
      : packed((check_dtype(packed_in, ScalarType::Byte, op, "packed"), as_contiguous(packed_in))),
        params((check_dtype(params_in, ScalarType::Half, op, "params"), as_contiguous(params_in))),
        rows(rows_of(packed, op, "packed")),
        shape(shape_of(packed)),
        out(out_dtype.value_or(ScalarType::Float)) {
    shape.back() = 2;
    check_shape(params, shape, op, "params");
    shape.back() = d ? *d : 2 * rows.length;
    check((shape.back() + 1) / 2 == rows.length, op, ": d is ", shape.back(), ", expected ", 2 * rows.length,
          " or one less for ", rows.length, " bytes");
    dtype = float_dtype(out, op, "dtype");
  }
};

}  // namespace lowbit::ops
