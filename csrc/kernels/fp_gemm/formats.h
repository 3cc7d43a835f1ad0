// The table of formats: calls f(constant of the weight), f(constant of the activations).
#pragma once

#include <type_traits>

#include "../common/device.h"
#include "params.h"

namespace lowbit::kernels::fp_gemm {
namespace {  // as the launch functions that it instantiates: one per file

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
}  // namespace lowbit::kernels::fp_gemm
