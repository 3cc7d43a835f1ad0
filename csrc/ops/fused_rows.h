// What the fused row ops check alike on every device: rows -> values -> (picked, times a step, minus a shift)
// -> codes. A static op has no scale that could carry a NaN on: NaN becomes the lowest code, infinity an end.
#pragma once

#include <string_view>

#include "common.h"

namespace lowbit::ops {

// A vector of fp32 [k], one element per column, contiguous.
inline OptTensor float_columns(const char* op, const char* arg, const OptTensor& t, int64_t k) {
  if (!t) return std::nullopt;
  check_dtype(*t, ScalarType::Float, op, arg);
  check_shape(*t, {k}, op, arg);
  return as_contiguous(*t);
}

// How n values of a row become k codes, and the shapes of the results.
struct RowCodes {
  int bits;
  bool bytes;  // one code per byte; else 4-bit codes are packed
  bool static_scale;
  float clip;
  int64_t n, k;
  OptTensor index;                // int32 [k], values in 0..n-1: only the CPU looks, CUDA would have to wait
  OptTensor inverse_step, shift;  // fp32 [k]
  Shape q, scale;                 // of the results; scale is [0] with a static scale
  ScalarType q_dtype;

  // rows: the input's shape, whose last dimension counts as n
  RowCodes(const char* op, const Shape& rows, int64_t n, int64_t bits_in, const OptTensor& index_in,
           const OptTensor& inverse_step_in, const OptTensor& shift_in, bool static_scale, double clip_in,
           bool unpacked)
      : bits(int(bits_in)),
        bytes(bits == 8 || unpacked),
        static_scale(static_scale),
        clip(float(clip_in)),
        n(n),
        k(n),
        q(rows) {
    check(bits_in == 4 || bits_in == 8, op, ": bits is ", bits_in, ", expected 4 or 8");
    check_clip(op, clip_in);
    check(!static_scale || clip_in == 1, op, ": clip is ", clip_in, " with static_scale, expected 1");
    if (index_in) {
      check_dtype(*index_in, ScalarType::Int, op, "index");
      check(index_in->dim() == 1, op, ": index has ", index_in->dim(), " dimensions, expected [K']");
      index = as_contiguous(*index_in), k = index->numel();
    }
    inverse_step = float_columns(op, "inverse_step", inverse_step_in, k);
    shift = float_columns(op, "shift", shift_in, k);
    scale = rows;
    scale.pop_back();
    if (static_scale) scale = {0};
    q.back() = bytes ? k : (k + 1) / 2;
    q_dtype = bytes ? ScalarType::Char : ScalarType::Byte;
  }
};

// The CPU's kernels read where an index says: its values are in range. `run` and `code_rows` look as well.
void check_index(const char* op, const RowCodes& codes);

// On the CPU: the rows of x, [.., n] contiguous, to codes and scales.
std::tuple<Tensor, Tensor> code_rows(const char* op, const char* arg, const Tensor& x, DType dtype,
                                     const RowCodes& codes);

// hadamard_block of an op: nothing = no transform, 0 = one over all of n.
inline std::optional<Transform> row_transform(const char* op, int64_t n, std::optional<int64_t> block) {
  if (!block || !n) return std::nullopt;
  return transform_of(n, block, false, op);
}

// Arguments of quantize_static.
struct StaticInput {
  DType dtype;
  Tensor x;
  Rows rows;
  RowCodes codes;
  std::optional<Transform> transform;

  StaticInput(const char* op, const Tensor& x_in, int64_t bits, const OptTensor& inverse_step,
              const OptTensor& shift, const OptTensor& index, std::optional<int64_t> hadamard_block,
              bool unpacked)
      : dtype(float_dtype(x_in.scalar_type(), op, "x")),
        x(as_contiguous(x_in)),
        rows(rows_of(x, op, "x")),
        codes(op, shape_of(x), rows.length, bits, index, inverse_step, shift, true, 1, unpacked),
        transform(row_transform(op, rows.length, hadamard_block)) {}
};

// Arguments of rms_norm_quantize. `weight` belongs to the columns after `index`.
struct NormInput {
  DType dtype;
  Tensor x;
  Rows rows;
  RowCodes codes;
  Tensor weight;
  OptTensor residual;  // as x; the sum of both is a result
  float eps, gain_offset;
  Shape sum;  // of the third result: x's, or [0] without a residual

  NormInput(const char* op, const Tensor& x_in, const Tensor& weight_in, double eps_in, int64_t bits,
            const OptTensor& residual_in, const OptTensor& index, const OptTensor& shift, bool static_scale,
            double clip, double gain_offset, bool unpacked)
      : dtype(float_dtype(x_in.scalar_type(), op, "x")),
        x(as_contiguous(x_in)),
        rows(rows_of(x, op, "x")),
        codes(op, shape_of(x), rows.length, bits, index, std::nullopt, shift, static_scale, clip, unpacked),
        weight(*float_columns(op, "weight", weight_in, codes.k)),
        eps(float(eps_in)),
        gain_offset(float(gain_offset)),
        sum{0} {
    check(eps_in >= 0, op, ": eps is ", eps_in, ", expected at least 0");
    if (!residual_in) return;
    check_dtype(*residual_in, x.scalar_type(), op, "residual");
    check_shape(*residual_in, shape_of(x), op, "residual");
    residual = as_contiguous(*residual_in), sum = shape_of(x);
  }
};

// Arguments of gated_quantize: rows of n gates and n ups.
struct GatedInput {
  DType dtype;
  Tensor gate_up;
  Rows rows;  // rows.length = 2 n
  bool gelu;  // gelu_tanh; else silu
  RowCodes codes;
  std::optional<Transform> transform;

  GatedInput(const char* op, const Tensor& gate_up_in, int64_t bits, std::string_view activation,
             std::optional<int64_t> hadamard_block, const OptTensor& inverse_step, const OptTensor& shift,
             const OptTensor& index, bool static_scale, double clip, bool unpacked)
      : dtype(float_dtype(gate_up_in.scalar_type(), op, "gate_up")),
        gate_up(as_contiguous(gate_up_in)),
        rows(rows_of(gate_up, op, "gate_up")),
        gelu(activation == "gelu_tanh"),
        codes(op, shape_of(gate_up), rows.length / 2, bits, index, inverse_step, shift, static_scale, clip,
              unpacked),
        transform(row_transform(op, rows.length / 2, hadamard_block)) {
    check(gelu || activation == "silu", op, ": activation is \"", activation,
          "\", expected \"silu\" or \"gelu_tanh\"");
    check(rows.length % 2 == 0, op, ": gate_up has a last dimension of ", rows.length,
          ", expected gates and ups side by side, an even number");
  }
};

}  // namespace lowbit::ops
