#include "hadamard.h"

namespace lowbit::ops {
namespace {

void run(const Tensor& x, Tensor& y, double scale, std::optional<int64_t> block, bool transpose,
         const char* op) {
  const Rows rows = rows_of(x, op, "x");
  if (!rows.count || !rows.length) return;
  const Transform t = transform_of(rows.length, block, transpose, op);
  cpu::HadamardParams p{};
  p.x = x.const_data_ptr(), p.y = y.mutable_data_ptr(), p.dtype = float_dtype(x.scalar_type(), op, "x");
  p.n = rows.length, p.order = t.order, p.two = t.two, p.mix = t.mix, p.scale = float(scale);
  if (scale != scale) p.scale = __builtin_nanf("");  // no payload: vec_avx2.h counts on it
  const cpu::Kernels& kernels = cpu::active();
  const int64_t scratch = (kernels.hadamard_scratch(p) + 15) / 16 * 16;
  Workspace work(scratch * 4 * threads());
  parallel(rows.count, 1 + 16384 / rows.length, [&](int64_t thread, int64_t begin, int64_t end) {
    kernels.hadamard_rows(p, work.as<float>() + thread * scratch, begin, end);
  });
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  using namespace lowbit::ops;
  m.impl("hadamard", TORCH_BOX(&hadamard<run>));
  m.impl("hadamard_", TORCH_BOX(&hadamard_inplace<run>));
}
