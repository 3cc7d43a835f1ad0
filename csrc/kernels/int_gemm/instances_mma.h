// The table of mma.sync instances, compiled by launch_sm80.cu and launch_sm90.cu for their architectures.
#pragma once

#include "../common/launch.cuh"
#include "launch.h"
#include "sm80.cuh"

namespace lowbit::kernels::int_gemm {
namespace {  // one kernel and one launch function per file: under one name the linker would keep one of the
             // two

template <const Tile& kTile, Weight kWeight, Codes kCodes>
struct Compiled : MmaConfig<kTile, kWeight, kCodes> {};

template <const Tile& kTile, Weight kWeight, Codes kCodes>
Error launch_one(const Params& p, const Addends& add, const Choice& c, Stream stream) {
  using C = Compiled<kTile, kWeight, kCodes>;
  return launch(gemm_mma<C>, {c.blocks}, C::kThreads, c.shared, stream, p, add);
}

}  // namespace
}  // namespace lowbit::kernels::int_gemm
