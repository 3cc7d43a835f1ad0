#include "../../csrc/kernels/fused_rows/sm80.cuh"
#include "binding.h"

using namespace lowbit;
using namespace lowbit::kernels;
using namespace lowbit::kernels::fused_rows;
namespace py = pybind11;

namespace {

template <Kind kKind, bool kFloats = false>
void (*kernel_of(const Config& c))(const Launch) {
  return !c.wide               ? fused_rows_kernel<kKind, 2, false, kFloats>
         : c.team.vectors == 1 ? fused_rows_kernel<kKind, 1, true, kFloats>
         : c.team.vectors == 2 ? fused_rows_kernel<kKind, 2, true, kFloats>
                               : fused_rows_kernel<kKind, 4, true, kFloats>;
}

}  // namespace

LOWBIT_EMU_BIND(fused_rows) {
  // `in` and `out` hold arrays of bytes that are exactly the rows; those absent are null.
  m.def("fused_rows", [](const std::string& kind, const std::string& dtype, int64_t rows, int64_t k, int64_t k_out,
                         const py::dict& in, const py::dict& out, const std::string& codes, int bits, double clip,
                         int64_t stride, double eps, double gain_offset, const std::string& activation, int shared,
                         const py::dict& options) {
    std::vector<emu::Buffer> buffers;
    const auto array = [&](const py::dict& from, const char* name, emu::Access access) -> void* {
      if (!from.contains(name)) return nullptr;
      const auto a = from[name].cast<py::array>();
      buffers.push_back(bind::buffer(name, a, access));
      return bind::pointer<void>(a);
    };
    const auto input = [&](const char* name) { return array(in, name, emu::Access::kRead); };
    const auto output = [&](const char* name) { return array(out, name, emu::Access::kWrite); };
    Params p{};
    p.kind = kind == "norm" ? Kind::kNorm : kind == "gated" ? Kind::kGated : Kind::kPlain;
    p.activation = activation == "silu" ? Activation::kSilu : Activation::kGeluTanh;
    p.dtype = bind::dtype_of(dtype), p.rows = rows, p.k = k, p.k_out = k_out;
    p.x = input("x"), p.residual = input("residual"), p.sum = output("sum");
    p.adjust = {static_cast<const int32_t*>(input("index")), static_cast<const float*>(input("factor")),
                static_cast<const float*>(input("shift"))};
    p.eps = float(eps), p.gain_offset = float(gain_offset);
    p.to = {bind::codes_of(codes), bits, float(clip), output("q"), stride, static_cast<float*>(output("scale")),
            p.dtype};
    if (Error error = check(p)) throw py::value_error(error);
    const Launch launch{p, choose(p, {80, 108, shared, 0})};
    emu::LaunchConfig config;
    config.grid_x = int(launch.c.blocks), config.block = launch.c.team.threads();
    config.smem_bytes = uint32_t(launch.c.shared_bytes);
    const bool norm = p.kind == Kind::kNorm, floats = p.to.codes == quantize::Codes::kFloats;
    const auto kernel = floats && norm           ? kernel_of<Kind::kNorm, true>(launch.c)
                        : floats                 ? kernel_of<Kind::kGated, true>(launch.c)
                        : norm                   ? kernel_of<Kind::kNorm>(launch.c)
                        : p.kind == Kind::kGated ? kernel_of<Kind::kGated>(launch.c)
                                                 : kernel_of<Kind::kPlain>(launch.c);
    py::dict report;
    if (config.grid_x) report = bind::run(config, options, buffers, [&] { kernel(launch); });
    report["wide"] = launch.c.wide, report["staged"] = launch.c.staged;
    report["rounds"] = launch.c.team.rounds, report["vectors"] = launch.c.team.vectors;
    report["threads"] = launch.c.team.threads(), report["shared_bytes"] = launch.c.shared_bytes;
    return report;
  });
}
