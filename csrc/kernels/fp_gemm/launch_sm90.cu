// The compiled instances for sm_90a alone: wgmma, ungrouped weights x activations.
#include "../../ptx/tma_encode.h"
#include "../common/launch.cuh"
#include "formats.h"
#include "launch.h"
#include "sm90.cuh"

namespace lowbit::kernels::fp_gemm {

Error launch_sm90(const Params& p, const Choice& c, Weight weight, Half half, Stream stream) {
  WgmmaParams params{{}, p};
  if (Error error = ptx::encode_tensor_map_2d(&params.x, map_of(p))) return error;
  return with_weight(weight, [&](auto w) {
    return with_half(half, [&](auto h) {
      using C = WgmmaConfig<decltype(w)::value, decltype(h)::value>;
      return launch(gemm_wgmma<C>, {c.blocks}, C::kThreads, c.shared, stream, params);
    });
  });
}

}  // namespace lowbit::kernels::fp_gemm
