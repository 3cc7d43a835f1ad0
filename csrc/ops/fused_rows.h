// What the fused row ops check alike on every device: rows -> values -> (picked, times a step, minus a shift)
// -> codes, or floats. A static op has no scale that could carry a NaN on: NaN becomes the lowest code,
// infinity an end.
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

// What an op asks to be made of its values; codes, where it does not say that they leave as they are.
struct Coding {
  int64_t bits;
  OptTensor index{}, inverse_step{}, shift{};
  bool static_scale = false;
  double clip = 1;
  bool unpacked = false;
  std::optional<ScalarType> floats{};
};
inline Coding floats_of(const Tensor& x) {
  Coding c{8};
  c.static_scale = true, c.floats = x.scalar_type();
  return c;
}

// How n values of a row become k codes, and the shapes of the results.
struct RowCodes {
  int bits;
  bool floats;  // no codes: the values, in the dtype of x, and no scale
  bool bytes;   // one code per byte; else 4-bit codes are packed
  bool static_scale;
  float clip;
  int64_t n, k;
  OptTensor index;                // int32 [k], values in 0..n-1: only the CPU looks, CUDA would have to wait
  OptTensor inverse_step, shift;  // fp32 [k]
  Shape q, scale;                 // of the results; scale is [0] with a static scale
  ScalarType q_dtype;

  // rows: the input's shape, whose last dimension counts as n
  RowCodes(const char* op, const Shape& rows, int64_t n, const Coding& how)
      : bits(int(how.bits)),
        floats(bool(how.floats)),
        bytes(bits == 8 || how.unpacked),
        static_scale(how.static_scale),
        clip(float(how.clip)),
        n(n),
        k(n),
        q(rows) {
    check(how.bits == 4 || how.bits == 8, op, ": bits is ", how.bits, ", expected 4 or 8");
    check_clip(op, how.clip);
    check(!static_scale || how.clip == 1, op, ": clip is ", how.clip, " with static_scale, expected 1");
    if (how.index) {
      check_dtype(*how.index, ScalarType::Int, op, "index");
      check(how.index->dim() == 1, op, ": index has ", how.index->dim(), " dimensions, expected [K']");
      index = as_contiguous(*how.index), k = index->numel();
    }
    inverse_step = float_columns(op, "inverse_step", how.inverse_step, k);
    shift = float_columns(op, "shift", how.shift, k);
    scale = rows;
    scale.pop_back();
    if (static_scale) scale = {0};
    q.back() = bytes ? k : (k + 1) / 2;
    q_dtype = how.floats.value_or(bytes ? ScalarType::Char : ScalarType::Byte);
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

  StaticInput(const char* op, const Tensor& x_in, const Coding& how, std::optional<int64_t> hadamard_block)
      : dtype(float_dtype(x_in.scalar_type(), op, "x")),
        x(as_contiguous(x_in)),
        rows(rows_of(x, op, "x")),
        codes(op, shape_of(x), rows.length, how),
        transform(row_transform(op, rows.length, hadamard_block)) {}
};

// Arguments of rms_norm and rms_norm_quantize. `weight` belongs to the columns after `index`.
struct NormInput {
  DType dtype;
  Tensor x;
  Rows rows;
  RowCodes codes;
  Tensor weight;
  OptTensor residual;  // as x; the sum of both is a result
  float eps, gain_offset;
  Shape sum;  // of the last result: x's, or [0] without a residual

  NormInput(const char* op, const Tensor& x_in, const Tensor& weight_in, double eps_in,
            const OptTensor& residual_in, double gain_offset, const Coding& how)
      : dtype(float_dtype(x_in.scalar_type(), op, "x")),
        x(as_contiguous(x_in)),
        rows(rows_of(x, op, "x")),
        codes(op, shape_of(x), rows.length, how),
        weight(*float_columns(op, "weight", weight_in, codes.k)),
        eps(float(eps_in)),
        gain_offset(float(gain_offset)),
        sum{0} {
    check(eps_in >= 0, op, ": eps is ", eps_in, ", expected at least 0");
    residual = residual_of(op, residual_in, shape_of(x), x.scalar_type());
    if (residual) sum = shape_of(x);
  }
};

// Arguments of gated and gated_quantize: rows of n gates and n ups.
struct GatedInput {
  DType dtype;
  Tensor gate_up;
  Rows rows;  // rows.length = 2 n
  bool gelu;  // gelu_tanh; else silu
  RowCodes codes;
  std::optional<Transform> transform;

  GatedInput(const char* op, const Tensor& gate_up_in, std::string_view activation,
             std::optional<int64_t> hadamard_block, const Coding& how)
      : dtype(float_dtype(gate_up_in.scalar_type(), op, "gate_up")),
        gate_up(as_contiguous(gate_up_in)),
        rows(rows_of(gate_up, op, "gate_up")),
        gelu(activation == "gelu_tanh"),
        codes(op, shape_of(gate_up), rows.length / 2, how),
        transform(row_transform(op, rows.length / 2, hadamard_block)) {
    check(gelu || activation == "silu", op, ": activation is \"", activation,
          "\", expected \"silu\" or \"gelu_tanh\"");
    check(rows.length % 2 == 0, op, ": gate_up has a last dimension of ", rows.length,
          ", expected gates and ups side by side, an even number");
  }
};

}  // namespace lowbit::ops
