// The compiled instances, for sm_80, sm_90a and PTX: by the number of chunks that a thread holds. The dtype
// and the kind of codes are run-time arguments.
#include "../common/launch.cuh"
#include "fp4.cuh"
#include "sm80.cuh"

namespace lowbit::kernels::quantize {

Error quantize_launch(const Params& p, const Device&, Stream stream) {
  if (Error error = check_codes(p.to, p.k)) return error;
  const Config c = choose(p);
  const auto kernel = !c.wide               ? quantize_kernel<2, false>
                      : c.team.vectors == 1 ? quantize_kernel<1, true>
                      : c.team.vectors == 2 ? quantize_kernel<2, true>
                                            : quantize_kernel<4, true>;
  return launch(kernel, {c.blocks}, c.team.threads(), c.shared_bytes, stream, Launch{p, c});
}

Error quantize_fp4_launch(const Fp4Params& p, const Device&, Stream stream) {
  if (p.k > kMaxRow) return "quantize: a row has more than 2^30 elements";
  const Config c = choose(p);
  const auto kernel = !c.wide               ? quantize_fp4_kernel<2, false>
                      : c.team.vectors == 1 ? quantize_fp4_kernel<1, true>
                      : c.team.vectors == 2 ? quantize_fp4_kernel<2, true>
                                            : quantize_fp4_kernel<4, true>;
  return launch(kernel, {c.blocks}, c.team.threads(), c.shared_bytes, stream, Fp4Launch{p, c});
}

Error convert_codes_launch(const ConvertParams& p, const Device&, Stream stream) {
  if (p.from == Codes::kOperand4) return "convert_codes: operand4 is an output only";
  if (p.to == Codes::kFp4) return "convert_codes: FP4 codes are an input only";
  if (p.from == Codes::kFp4 && p.to != Codes::kInt8) return "convert_codes: FP4 codes become int8 only";
  if (p.from == p.to && p.to == Codes::kPacked4) return "convert_codes: packed4 to packed4 is a copy";
  if (Error error = check_codes({p.to, 4, 1.f, p.q, p.stride, nullptr}, p.k)) return error;
  const ConvertConfig c = choose(p);
  return launch(convert_codes_kernel, {c.blocks_x, c.blocks_y}, kConvertThreads, 0, stream,
                ConvertLaunch{p, c});
}

}  // namespace lowbit::kernels::quantize
