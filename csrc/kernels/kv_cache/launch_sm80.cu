// The compiled instances, for sm_80, sm_90a and PTX. One each: dtypes and
// head sizes are run-time arguments.
#include "../common/launch.cuh"
#include "append.cuh"

namespace lowbit::kernels::kv_cache {

Error kv4_quantize_launch(const Params& p, const Device&, Stream stream) {
  const Config c = choose(p, p.x);
  return launch(kv4_quantize_kernel, {c.blocks}, kThreads, 0, stream, Launch{p, c});
}

Error kv4_dequantize_launch(const Params& p, const Device&, Stream stream) {
  const Config c = choose(p, p.y);
  return launch(kv4_dequantize_kernel, {c.blocks}, kThreads, 0, stream, Launch{p, c});
}

Error kv4_append_launch(const AppendParams& p, const Device&, Stream stream) {
  return launch(kv4_append_kernel, {append_blocks(p)}, kThreads, 0, stream, p);
}

}  // namespace lowbit::kernels::kv_cache
