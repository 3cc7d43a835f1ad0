// The compiled instances, for sm_80, sm_90a and PTX: by what precedes the codes and by the number of chunks
// that a thread holds. dtype, activation, kind of codes, residual, index and scale are run-time arguments.
#include "../common/launch.cuh"
#include "sm80.cuh"

namespace lowbit::kernels::fused_rows {

namespace {  // the launch functions of two files must not be merged

template <Kind kKind>
Error launch_kind(const Params& p, const Config& c, Stream stream) {
  const auto kernel = !c.wide               ? fused_rows_kernel<kKind, 2, false>
                      : c.team.vectors == 1 ? fused_rows_kernel<kKind, 1, true>
                      : c.team.vectors == 2 ? fused_rows_kernel<kKind, 2, true>
                                            : fused_rows_kernel<kKind, 4, true>;
  return launch(kernel, {c.blocks}, c.team.threads(), c.shared_bytes, stream, Launch{p, c});
}

}  // namespace

Error fused_rows_launch(const Params& p, const Device& device, Stream stream) {
  if (Error error = check(p)) return error;
  const Config c = choose(p, device);
  if (p.kind == Kind::kNorm) return launch_kind<Kind::kNorm>(p, c, stream);
  if (p.kind == Kind::kGated) return launch_kind<Kind::kGated>(p, c, stream);
  return launch_kind<Kind::kPlain>(p, c, stream);
}

}  // namespace lowbit::kernels::fused_rows
