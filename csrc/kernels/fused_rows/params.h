// Rows to integer codes together with the layer in front of them: RMSNorm with a residual, a gated
// activation, or nothing. What the kernel takes. No torch.
#pragma once

#include <cstdint>

#include "../quantize/params.h"

namespace lowbit::kernels::fused_rows {

enum class Kind : int32_t { kPlain, kGated, kNorm };
enum class Activation : int32_t { kSilu, kGeluTanh };

// A row has k values: x itself; activation(gate) * up; or, normalised, x + residual rounded to the dtype.
// Value index[j] times factor[j] minus shift[j] becomes code j.
struct Params {
  Kind kind;
  const void* x;  // [rows, k]; gated: [rows, 2 k], the gate first
  DType dtype;    // of x, residual and sum
  int64_t rows, k, k_out;
  const int32_t* index;  // [k_out], each in [0, k) (a larger one is read as k - 1), or null: k_out = k
  const float* factor;   // [k_out], or null; the weight of a norm, never null
  const float* shift;    // [k_out] subtracted last, or null
  Activation activation;
  const void* residual;    // norm: [rows, k] or null
  void* sum;               // norm: [rows, k], x + residual; with a residual only
  float eps, gain_offset;  // norm: the factor is factor + gain_offset, where that is not zero
  quantize::Output
      to;  // scale null: the codes of the values themselves; then clip is 0, so that they are clamped
};

Error fused_rows_launch(const Params& p, const Device& device, Stream stream);

}  // namespace lowbit::kernels::fused_rows
