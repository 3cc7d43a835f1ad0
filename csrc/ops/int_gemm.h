// What the linear ops check alike on every device. The sentences name argument, expected, got.
#pragma once

#include "../layout/mma_weight.h"
#include "../layout/weight_tile.h"
#include "common.h"

namespace lowbit::ops {

// The pieces that a prepacked weight is made of.
struct Pieces {
  int64_t n, k, int4_bytes, int8_bytes;
};
constexpr Pieces kCpuTiles{tile::kN, tile::kK, tile::kInt4Bytes, tile::kInt8Bytes};
constexpr Pieces kCudaBlocks{mma_weight::kN, mma_weight::kK, mma_weight::kInt4Bytes, mma_weight::kInt8Bytes};

// Weight, scales and bias of int4_linear, int8_linear and dynamic_linear.
struct LinearLayer {
  int64_t m, n, k, group = 0;
  bool int8;
  Tensor weight, w_scale;
  OptTensor group_scale, bias;

  LinearLayer(const char* op, const Pieces& pieces, int64_t m, int64_t k, const Tensor& weight_in,
              const Tensor& w_scale_in, const OptTensor& group_scale_in, const OptTensor& bias_in)
      : m(m), k(k), weight(as_contiguous(weight_in)), w_scale(as_contiguous(w_scale_in)) {
    int8 = weight.scalar_type() == ScalarType::Char;
    check(int8 || weight.scalar_type() == ScalarType::Byte, op, ": weight has dtype ",
          name_of(weight.scalar_type()),
          ", expected the uint8 or int8 tiles of prepack_int4_weight or "
          "prepack_int8_weight");
    check_dtype(w_scale, ScalarType::Float, op, "w_scale");
    n = w_scale.numel();
    check_shape(weight,
                {ceil_div(n, pieces.n), ceil_div(k, pieces.k), int8 ? pieces.int8_bytes : pieces.int4_bytes},
                op, "weight (tiles)");
    if (group_scale_in) set_groups(op, pieces, as_contiguous(*group_scale_in));
    bias = float_bias(bias_in, n, op);
  }

  void check_depth(const char* op, int64_t deepest) const {
    check(k <= deepest, op, ": K is ", k, ", expected at most ", deepest, ", or the 32-bit sum could wrap");
  }

 private:
  void set_groups(const char* op, const Pieces& pieces, const Tensor& tiles) {
    check_dtype(tiles, ScalarType::Byte, op, "group_scale");
    check(!int8, op, ": group_scale is given with int8 weight tiles, expected int4 weight tiles");
    check(tiles.dim() == 3 && tiles.size(0) == ceil_div(n, pieces.n) && tiles.size(2) == pieces.n, op,
          ": group_scale has shape ", text(shape_of(tiles)), ", expected the [", ceil_div(n, pieces.n),
          ", groups, ", pieces.n, "] of prepack_group_scale");
    for (const int64_t g : {32, 64, 128})
      if (!group && ceil_div(k, g) == tiles.size(1)) group = g;
    check(group != 0, op, ": group_scale has ", tiles.size(1), " groups for K = ", k,
          ", expected ceil(K / g) with g of 32, 64 or 128");
    group_scale = tiles;
  }
};

inline Shape output_shape(const Tensor& x, int64_t n) {
  Shape s = shape_of(x);
  s.back() = n;
  return s;
}

// Whether x_q is packed int4; the dtypes of x_q and weight fit each other.
inline bool check_codes(const char* op, bool int8_weight, const Tensor& x_q, const Tensor& weight) {
  const bool packed = x_q.scalar_type() == ScalarType::Byte;
  check((packed && !int8_weight) || x_q.scalar_type() == ScalarType::Char, op, ": x_q has dtype ",
        name_of(x_q.scalar_type()), ", expected int8", int8_weight ? "" : " or packed uint8");
  check((weight.scalar_type() == ScalarType::Char) == int8_weight, op, ": weight has dtype ",
        name_of(weight.scalar_type()), ", expected the tiles of prepack_int", int8_weight ? 8 : 4, "_weight");
  return packed;
}

inline OptTensor check_x_scale(const char* op, const OptTensor& x_scale, int64_t rows) {
  if (!x_scale) return std::nullopt;
  check_dtype(*x_scale, ScalarType::Float, op, "x_scale");
  check(x_scale->numel() == rows, op, ": x_scale has ", x_scale->numel(), " elements, expected ", rows,
        ", one per row of x_q");
  return as_contiguous(*x_scale);
}

// What the epilogue adds to the product and the bias: low_rank [.., r] @ low_rank_up [r, n], and a residual
// of the result's shape and dtype. Contiguous.
struct Addends {
  OptTensor low_rank, low_rank_up, residual;
  int64_t rank = 0;

  Addends(const char* op, const Shape& y, ScalarType out, const OptTensor& residual_in,
          const OptTensor& low_rank_in = std::nullopt, const OptTensor& low_rank_up_in = std::nullopt)
      : residual(residual_of(op, residual_in, y, out)) {
    check(low_rank_in.has_value() == low_rank_up_in.has_value(), op,
          ": expected low_rank and low_rank_up together, got one of them");
    if (!low_rank_in) return;
    check_dtype(*low_rank_in, ScalarType::Float, op, "low_rank");
    check_dtype(*low_rank_up_in, ScalarType::Float, op, "low_rank_up");
    check(low_rank_up_in->dim() == 2 && low_rank_up_in->size(1) == y.back(), op, ": low_rank_up has shape ",
          text(shape_of(*low_rank_up_in)), ", expected [r, ", y.back(), "]");
    rank = low_rank_up_in->size(0);
    Shape shape = y;
    shape.back() = rank;
    check_shape(*low_rank_in, shape, op, "low_rank");
    low_rank = as_contiguous(*low_rank_in), low_rank_up = as_contiguous(*low_rank_up_in);
  }
};

inline void check_quantiser(const char* op, int64_t activation_bits, double clip) {
  check(activation_bits == 4 || activation_bits == 8, op, ": activation_bits is ", activation_bits,
        ", expected 4 or 8");
  check_clip(op, clip);
}

inline OptTensor check_shift(const char* op, const OptTensor& shift, int64_t k) {
  if (!shift) return std::nullopt;
  check_dtype(*shift, ScalarType::Float, op, "shift");
  check_shape(*shift, {k}, op, "shift");
  return as_contiguous(*shift);
}

}  // namespace lowbit::ops
