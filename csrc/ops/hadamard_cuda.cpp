#include "hadamard.h"
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
  p.dtype = float_dtype(x.scalar_type(), op, "x"), p.scale = float(scale);
  run_hadamard(op, p, t, transpose, on);
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  using namespace lowbit::ops;
  m.impl("hadamard", TORCH_BOX(&hadamard<run>));
  m.impl("hadamard_", TORCH_BOX(&hadamard_inplace<run>));
}
