// The compiled instances, for sm_80, sm_90a and PTX: by what precedes the codes, by the number of chunks that
// a thread holds, and by whether floats leave instead of codes. dtype, activation, kind of codes, residual,
// index and scale are run-time arguments.
#include "../common/launch.cuh"
#include "sm80.cuh"

namespace lowbit::kernels::fused_rows {

namespace {  // the launch functions of two files must not be merged

template <Kind kKind, bool kFloats>
Error launch_kind(const Params& p, const Config& c, Stream stream) {
  const auto kernel = !c.wide               ? fused_rows_kernel<kKind, 2, false, kFloats>
                      : c.team.vectors == 1 ? fused_rows_kernel<kKind, 1, true, kFloats>
                      : c.team.vectors == 2 ? fused_rows_kernel<kKind, 2, true, kFloats>
                                            : fused_rows_kernel<kKind, 4, true, kFloats>;
  return launch(kernel, {c.blocks}, c.team.threads(), c.shared_bytes, stream, Launch{p, c});
}

}  // namespace

Error fused_rows_launch(const Params& p, const Device& device, Stream stream) {
  if (Error error = check(p)) return error;
  const Config c = choose(p, device);
  const bool norm = p.kind == Kind::kNorm;
  if (p.to.codes == quantize::Codes::kFloats)
    return norm ? launch_kind<Kind::kNorm, true>(p, c, stream)
                : launch_kind<Kind::kGated, true>(p, c, stream);
  if (norm) return launch_kind<Kind::kNorm, false>(p, c, stream);
  if (p.kind == Kind::kGated) return launch_kind<Kind::kGated, false>(p, c, stream);
  return launch_kind<Kind::kPlain, false>(p, c, stream);
}

}  // namespace lowbit::kernels::fused_rows
