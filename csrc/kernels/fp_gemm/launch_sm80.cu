// The compiled instances, for every card: weights x activations x groups x tile, and the codecs.
#include "../common/launch.cuh"
#include "codec.cuh"
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

// Calls f(constant of the weight, constant of the activations): the table of formats.
template <Half kHalf>
using HalfOf = std::integral_constant<Half, kHalf>;
template <Weight kWeight>
using WeightOf = std::integral_constant<Weight, kWeight>;

template <class F>
Error with_weight(Weight weight, const F& f) {
  switch (weight) {
    case Weight::kE3M2:
      return f(WeightOf<Weight::kE3M2>{});
    case Weight::kE2M3:
      return f(WeightOf<Weight::kE2M3>{});
    case Weight::kE2M1:
      return f(WeightOf<Weight::kE2M1>{});
    case Weight::kE3M0:
      return f(WeightOf<Weight::kE3M0>{});
    default:
      return f(WeightOf<Weight::kInt4>{});
  }
}
template <class F>
Error with_half(Half half, const F& f) {
  return half == Half::kF16 ? f(HalfOf<Half::kF16>{}) : f(HalfOf<Half::kBF16>{});
}

}  // namespace

Error run(const Params& p, const Choice& c, Weight weight, Half half, bool grouped, Stream stream) {
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
