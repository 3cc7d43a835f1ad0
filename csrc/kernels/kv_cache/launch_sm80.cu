// The compiled instances, for sm_80, sm_90a and PTX: one each. Dtype and head size are run-time arguments.
#include "../common/launch.cuh"
#include "sm80.cuh"

namespace lowbit::kernels::kv_cache {

Error kv4_quantize_launch(const Params& p, const Device&, Stream stream) {
  const Config c = choose(p, p.x);
  return launch(kv4_quantize_kernel, {c.blocks}, kThreads, 0, stream, Launch{p, c});
}

Error kv4_dequantize_launch(const Params& p, const Device&, Stream stream) {
  const Config c = choose(p, p.y);
  return launch(kv4_dequantize_kernel, {c.blocks}, kThreads, 0, stream, Launch{p, c});
}

}  // namespace lowbit::kernels::kv_cache
