// Rows to integer codes together with the layer in front of them: RMSNorm with a residual, a gated
// activation, or nothing. What the kernel takes. No torch.
#pragma once

#include <cstdint>

#include "../common/activation.h"
#include "../quantize/params.h"

namespace lowbit::kernels::fused_rows {

enum class Kind : int32_t { kPlain, kGated, kNorm };

// A row has k values: x itself; activation(gate) * up; or, normalised, x + residual rounded to the dtype.
struct Params {
  Kind kind;
  const void* x;  // [rows, k]; gated: [rows, 2 k], the gate first
  DType dtype;    // of x, residual and sum
  int64_t rows, k, k_out;
  quantize::Adjust adjust;  // the factor of a norm is its weight, never null
  Activation activation;
  const void* residual;    // norm: [rows, k] or null
  void* sum;               // norm: [rows, k], x + residual; with a residual only
  float eps, gain_offset;  // norm: the factor is factor + gain_offset, where that is not zero
  quantize::Output to;     // scale null: static codes; then clip is 0, so that values are clamped
};

Error fused_rows_launch(const Params& p, const Device& device, Stream stream);

}  // namespace lowbit::kernels::fused_rows
