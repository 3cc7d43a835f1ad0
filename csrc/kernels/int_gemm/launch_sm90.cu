// The compiled instances for sm_90a: mma.sync tiles for few tokens, wgmma for more.
#include "../../ptx/tma_encode.h"
#include "instances_mma.h"
#include "sm90.cuh"

namespace lowbit::kernels::int_gemm {
namespace {

template <const Tile& kTile, Weight kWeight, bool kAdds = true>
Error launch_wgmma(const Params& p, const Addends& add, const Choice& c, Stream stream) {
  using C = WgmmaConfig<kTile, kWeight, kAdds>;
  WgmmaParams params{{}, p, add};
  const ptx::TensorMap2d x{p.x,        uint64_t(p.m), uint64_t(p.x_bytes), uint64_t(p.x_stride),
                           C::kTokens, kStageK,       ptx::Swizzle::k128B};
  if (Error error = ptx::encode_tensor_map_2d(&params.x, x)) return error;
  return launch(gemm_wgmma<C>, {c.blocks}, C::kThreads, c.shared, stream, params);
}

template <Weight kWeight>
Error launch_weight(const Params& p, const Addends& add, const Choice& c, Stream stream) {
  if (c.tile.kernel == Kernel::kMma) return launch_one<kMmaSmall, kWeight, Codes::kInt8>(p, add, c, stream);
  if (c.tile.tokens == kWgmmaSmall.tokens) return launch_wgmma<kWgmmaSmall, kWeight>(p, add, c, stream);
  if (c.tile.tokens == kWgmmaMiddle.tokens) return launch_wgmma<kWgmmaMiddle, kWeight>(p, add, c, stream);
  if constexpr (kWeight != Weight::kFp4) {
    if (add.rank || add.residual) return launch_wgmma<kWgmmaLarge, kWeight>(p, add, c, stream);
  }
  return launch_wgmma<kWgmmaLarge, kWeight, false>(p, add, c, stream);
}

}  // namespace

Error launch_sm90(const Params& p, const Addends& add, const Choice& c, Weight weight, Stream stream) {
  if (weight == Weight::kFp4 && (add.rank || add.residual)) return "int_gemm: FP4 weights take no addends";
  if (weight == Weight::kInt4) return launch_weight<Weight::kInt4>(p, add, c, stream);
  if (weight == Weight::kInt4Group) return launch_weight<Weight::kInt4Group>(p, add, c, stream);
  if (weight == Weight::kFp4) return launch_weight<Weight::kFp4>(p, add, c, stream);
  return launch_weight<Weight::kInt8>(p, add, c, stream);
}

}  // namespace lowbit::kernels::int_gemm
