// The seam to ops: run a chosen kernel.
#pragma once

#include "config.h"

namespace lowbit::kernels::int_gemm {

Error launch_sm80(const Params& p, const Addends& add, const Choice& c, Weight weight, Codes codes,
                  Stream stream);
Error launch_sm90(const Params& p, const Addends& add, const Choice& c, Weight weight,
                  Stream stream);  // 9.0 only; int8 codes

inline Error run(const Params& p, const Addends& add, const Choice& c, Weight weight, Codes codes,
                 const Device& device, Stream stream) {
  return is_hopper(device) ? launch_sm90(p, add, c, weight, stream)
                           : launch_sm80(p, add, c, weight, codes, stream);
}

}  // namespace lowbit::kernels::int_gemm
