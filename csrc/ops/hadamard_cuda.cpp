#include "transform_cuda.h"

namespace lowbit::ops {
namespace {

void run(const Tensor& x, Tensor& y, double scale, std::optional<int64_t> block, bool transpose,
         const char* op) {
  const Rows rows = rows_of(x, op, "x");
  if (!rows.count || !rows.length) return;
  const Transform t = transform_of(rows.length, block, transpose, op);
  const OnDevice on(x, op);
  kernels::hadamard::Params p{};
  p.x = x.const_data_ptr(), p.y = y.mutable_data_ptr(), p.rows = rows.count, p.n = rows.length;
  p.dtype = kernels::DType(int(float_dtype(x.scalar_type(), op, "x"))), p.scale = float(scale);
  run_hadamard(op, p, t, transpose, on);
}

Tensor hadamard(const Tensor& x_in, double scale, std::optional<int64_t> block, bool transpose) {
  float_dtype(x_in.scalar_type(), "hadamard", "x");
  const Tensor x = as_contiguous(x_in);
  Tensor y = empty_cuda(shape_of(x), x.scalar_type(), x.get_device_index());
  run(x, y, scale, block, transpose, "hadamard");
  return y;
}

void hadamard_inplace(Tensor x, double scale, std::optional<int64_t> block, bool transpose) {
  float_dtype(x.scalar_type(), "hadamard_", "x");
  if (x.is_contiguous()) return run(x, x, scale, block, transpose, "hadamard_");
  Tensor y = torch::stable::contiguous(x);
  run(y, y, scale, block, transpose, "hadamard_");
  torch::stable::copy_(x, y);
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  m.impl("hadamard", TORCH_BOX(&lowbit::ops::hadamard));
  m.impl("hadamard_", TORCH_BOX(&lowbit::ops::hadamard_inplace));
}
