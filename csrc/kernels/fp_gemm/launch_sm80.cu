// The compiled instances, for every card: weights x activations x groups x tile, and the codecs.
#include "../common/launch.cuh"
#include "codec.cuh"
#include "formats.h"
#include "launch.h"
#include "sm80.cuh"

namespace lowbit::kernels::fp_gemm {
namespace {

template <Weight kWeight, Half kHalf, bool kGrouped>
Error launch_tile(const Params& p, const Choice& c, Stream stream) {
  const auto kernel = c.tile.tokens == kSmall.tokens ? gemm<Config<kSmall, kWeight, kHalf, kGrouped>>
                                                     : gemm<Config<kMiddle, kWeight, kHalf, kGrouped>>;
  return launch(kernel, {c.blocks}, c.tile.threads, c.shared, stream, p);
}

}  // namespace

Error launch_sm80(const Params& p, const Choice& c, Weight weight, Half half, bool grouped, Stream stream) {
  return with_weight(weight, [&](auto w) {
    return with_half(half, [&](auto h) {
      constexpr Weight kWeight = decltype(w)::value;
      constexpr Half kHalf = decltype(h)::value;
      return grouped ? launch_tile<kWeight, kHalf, true>(p, c, stream)
                     : launch_tile<kWeight, kHalf, false>(p, c, stream);
    });
  });
}

Error dequantize(const DequantizeParams& p, Weight weight, Half half, Stream stream) {
  const long long blocks = int64_t(ceil_div(p.n, fp_fragment::kN)) * ceil_div(p.k, fp_fragment::kK);
  return with_weight(weight, [&](auto w) {
    return with_half(half, [&](auto h) {
      return launch(dequantize_kernel<decltype(w)::value, decltype(h)::value>, {blocks}, kCodecThreads,
                    kDequantizeShared, stream, p);
    });
  });
}

Error finish(const FinishParams& p, Half half, Stream stream) {
  const long long blocks = ceil_div(int64_t(p.m) * (p.n / finish_step(p)), int64_t(kCodecThreads));
  return with_half(half, [&](auto h) {
    return launch(finish_kernel<decltype(h)::value>, {blocks}, kCodecThreads, 0, stream, p);
  });
}

Error encode(const EncodeParams& p, Format format, Stream stream) {
  Error error = nullptr;
  with_minifloat(format, [&](auto f) {
    error =
        launch(encode_kernel<decltype(f)>, {encode_blocks(p)}, kCodecThreads, 0, stream, p, is_aligned(p));
  });
  return error;
}

}  // namespace lowbit::kernels::fp_gemm
