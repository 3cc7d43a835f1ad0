// The compiled instances for sm_90a: mma.sync tiles for few tokens, wgmma for more.
#include "../../ptx/tma_encode.h"
#include "instances_mma.h"
#include "sm90.cuh"

namespace lowbit::kernels::int_gemm {
namespace {

template <const Tile& kTile, Weight kWeight>
Error launch_wgmma(const Params& p, const Choice& c, Stream stream) {
  using C = WgmmaConfig<kTile, kWeight>;
  WgmmaParams params{{}, p};
  const ptx::TensorMap2d x{p.x,        uint64_t(p.m), uint64_t(p.x_bytes), uint64_t(p.x_stride),
                           C::kTokens, kStageK,       ptx::Swizzle::k128B};
  if (Error error = ptx::encode_tensor_map_2d(&params.x, x)) return error;
  return launch(gemm_wgmma<C>, {c.blocks}, C::kThreads, c.shared, stream, params);
}

template <Weight kWeight>
Error launch_weight(const Params& p, const Choice& c, Stream stream) {
  if (c.tile.kernel == Kernel::kMma) return launch_one<kMmaSmall, kWeight, Codes::kInt8>(p, c, stream);
  if (c.tile.tokens == kWgmmaSmall.tokens) return launch_wgmma<kWgmmaSmall, kWeight>(p, c, stream);
  if (c.tile.tokens == kWgmmaMiddle.tokens) return launch_wgmma<kWgmmaMiddle, kWeight>(p, c, stream);
  return launch_wgmma<kWgmmaLarge, kWeight>(p, c, stream);
}

}  // namespace

Error launch_sm90(const Params& p, const Choice& c, Weight weight, Stream stream) {
  if (weight == Weight::kInt4) return launch_weight<Weight::kInt4>(p, c, stream);
  if (weight == Weight::kInt4Group) return launch_weight<Weight::kInt4Group>(p, c, stream);
  if (weight == Weight::kFp4) return launch_weight<Weight::kFp4>(p, c, stream);
  return launch_weight<Weight::kInt8>(p, c, stream);
}

}  // namespace lowbit::kernels::int_gemm
