// The compiled instances, for sm_80, sm_90a and PTX. The size, the dtype and what becomes of the result are
// run-time arguments.
#include "../common/launch.cuh"
#include "sm80.cuh"

namespace lowbit::kernels::hadamard {

namespace {  // the launch functions of two files must not be merged

template <bool kQuantised>
Error launch_one(const Params& p, const Config& c, Stream stream) {
  const auto kernel = !c.shared              ? hadamard_kernel<false, Mix::kTable, kQuantised>
                      : c.mix == Mix::kNone  ? hadamard_kernel<true, Mix::kNone, kQuantised>
                      : c.mix == Mix::kSmall ? hadamard_kernel<true, Mix::kSmall, kQuantised>
                      : c.mix == Mix::kLarge ? hadamard_kernel<true, Mix::kLarge, kQuantised>
                                             : hadamard_kernel<true, Mix::kTable, kQuantised>;
  return launch(kernel, {c.blocks}, c.threads, c.shared_bytes, stream, Launch{p, c});
}

}  // namespace

Error hadamard_launch(const Params& p, const Config& c, const Device&, Stream stream) {
  if (Error error = check(p)) return error;
  return p.quantised ? launch_one<true>(p, c, stream) : launch_one<false>(p, c, stream);
}

}  // namespace lowbit::kernels::hadamard
