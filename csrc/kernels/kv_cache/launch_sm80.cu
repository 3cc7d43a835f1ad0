// The compiled instances, for sm_80, sm_90a and PTX. Dtypes are run-time arguments, and so is the head size
// of all but attention.
#include "../common/launch.cuh"
#include "append.cuh"
#include "attention.cuh"

namespace lowbit::kernels::kv_cache {
namespace {

template <int kHead>
Error launch_attention(const AttentionParams& p, const AttentionChoice& c, Stream stream) {
  const auto kernel = p.append ? kv4_attention_kernel<kHead, true> : kv4_attention_kernel<kHead, false>;
  return launch(kernel, {c.sequences, c.blocks_per_sequence}, kThreads, c.shared, stream,
                AttentionLaunch{p, c});
}

}  // namespace

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

Error kv4_attention_launch(const AttentionParams& p, const Device& device, Stream stream) {
  const AttentionChoice c = choose(p, device);
  switch (p.pages.d) {
    case 64:
      return launch_attention<64>(p, c, stream);
    case 80:
      return launch_attention<80>(p, c, stream);
    case 96:
      return launch_attention<96>(p, c, stream);
    case 128:
      return launch_attention<128>(p, c, stream);
    case 256:
      return launch_attention<256>(p, c, stream);
    default:
      return "attention over the INT4 cache has kernels for heads of 64, 80, 96, 128 and 256";
  }
}

}  // namespace lowbit::kernels::kv_cache
