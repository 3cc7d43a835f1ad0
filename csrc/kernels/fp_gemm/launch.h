// The seam to ops: run a chosen kernel.
#pragma once

#include "../../numeric/format.h"
#include "config.h"

namespace lowbit::kernels::fp_gemm {

Error run(const Params& p, const Choice& c, Weight weight, Half half, bool grouped, Stream stream);
Error dequantize(const DequantizeParams& p, Weight weight, Half half, Stream stream);
Error finish(const FinishParams& p, Half half, Stream stream);
Error encode(const EncodeParams& p, Format format, Stream stream);

}  // namespace lowbit::kernels::fp_gemm
