// The seam to ops: run a chosen kernel.
#pragma once

#include "../../numeric/format.h"
#include "config.h"

namespace lowbit::kernels::fp_gemm {

Error launch_sm80(const Params& p, const Choice& c, Weight weight, Half half, bool grouped, Stream stream);
Error launch_sm90(const Params& p, const Choice& c, Weight weight, Half half, bool grouped,
                  Stream stream);  // 9.0 only

inline Error run(const Params& p, const Choice& c, Weight weight, Half half, bool grouped, Stream stream) {
  return c.tile.kernel == Kernel::kWgmma ? launch_sm90(p, c, weight, half, grouped, stream)
                                         : launch_sm80(p, c, weight, half, grouped, stream);
}

Error dequantize(const DequantizeParams& p, Weight weight, Half half, Stream stream);
Error finish(const FinishParams& p, Half half, Stream stream);
Error encode(const EncodeParams& p, Format format, Stream stream);

}  // namespace lowbit::kernels::fp_gemm
