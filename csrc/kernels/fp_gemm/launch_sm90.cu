// The compiled instances for sm_90a alone: wgmma, weights x activations x groups.
#include "../../ptx/tma_encode.h"
#include "../common/launch.cuh"
#include "formats.h"
#include "launch.h"
#include "sm90.cuh"

namespace lowbit::kernels::fp_gemm {
namespace {

template <Weight kWeight, Half kHalf, bool kGrouped>
Error launch_wgmma(const WgmmaParams& p, const Choice& c, Stream stream) {
  using C = WgmmaConfig<kWeight, kHalf, kGrouped>;
  return launch(gemm_wgmma<C>, {c.blocks}, C::kThreads, c.shared, stream, p);
}

}  // namespace

Error launch_sm90(const Params& p, const Choice& c, Weight weight, Half half, bool grouped, Stream stream) {
  WgmmaParams params{{}, p};
  if (Error error = ptx::encode_tensor_map_2d(&params.x, map_of(p))) return error;
  return with_weight(weight, [&](auto w) {
    return with_half(half, [&](auto h) {
      constexpr Weight kWeight = decltype(w)::value;
      constexpr Half kHalf = decltype(h)::value;
      return grouped ? launch_wgmma<kWeight, kHalf, true>(params, c, stream)
                     : launch_wgmma<kWeight, kHalf, false>(params, c, stream);
    });
  });
}

}  // namespace lowbit::kernels::fp_gemm
