// hadamard and hadamard_ on any device, around the device's own run(x, y, scale, block, transpose, op).
#pragma once

#include "common.h"

namespace lowbit::ops {

using RunHadamard = void (*)(const Tensor& x, Tensor& y, double scale, std::optional<int64_t> block,
                             bool transpose, const char* op);

template <RunHadamard kRun>
Tensor hadamard(const Tensor& x_in, double scale, std::optional<int64_t> block, bool transpose) {
  float_dtype(x_in.scalar_type(), "hadamard", "x");
  const Tensor x = as_contiguous(x_in);
  Tensor y = empty_beside(x, shape_of(x), x.scalar_type());
  kRun(x, y, scale, block, transpose, "hadamard");
  return y;
}

template <RunHadamard kRun>
void hadamard_inplace(Tensor x, double scale, std::optional<int64_t> block, bool transpose) {
  float_dtype(x.scalar_type(), "hadamard_", "x");
  if (x.is_contiguous()) return kRun(x, x, scale, block, transpose, "hadamard_");
  Tensor y = torch::stable::contiguous(x);
  kRun(y, y, scale, block, transpose, "hadamard_");
  torch::stable::copy_(x, y);
}

}  // namespace lowbit::ops
