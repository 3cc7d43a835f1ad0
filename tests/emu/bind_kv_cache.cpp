#include "../../csrc/kernels/kv_cache/sm80.cuh"
#include "binding.h"

using namespace lowbit;
using namespace lowbit::kernels;
using namespace lowbit::kernels::kv_cache;
namespace py = pybind11;

namespace {

py::dict run(const Params& p, const Config& c, const std::vector<emu::Buffer>& buffers, const py::dict& options,
             void (*kernel)(const Launch)) {
  emu::LaunchConfig config;
  config.grid_x = int(c.blocks), config.block = kThreads;
  const Launch launch{p, c};
  py::dict report;
  if (config.grid_x) report = bind::run(config, options, buffers, [&] { kernel(launch); });
  report["team"] = c.team.size, report["rounds"] = c.team.rounds, report["wide"] = c.wide;
  return report;
}

}  // namespace

LOWBIT_EMU_BIND(kv_cache) {
  // Arrays of bytes that hold exactly the heads.
  m.def("kv4_quantize", [](py::array x, const std::string& dtype, int64_t rows, int64_t d, double clip,
                           py::array packed, py::array params, const py::dict& options) {
    const Params p{bind::pointer<const void>(x), nullptr,    bind::dtype_of(dtype),
                   rows,                         d,          float(clip),
                   bind::pointer<uint8_t>(packed), bind::pointer<uint16_t>(params)};
    return run(p, choose(p, p.x), {bind::read("x", x), bind::write("packed", packed), bind::write("params", params)},
               options, kv4_quantize_kernel);
  });
  m.def("kv4_dequantize", [](py::array packed, py::array params, int64_t rows, int64_t d, const std::string& dtype,
                             py::array y, const py::dict& options) {
    const Params p{nullptr, bind::pointer<void>(y),         bind::dtype_of(dtype),
                   rows,    d,                              1.f,
                   bind::pointer<uint8_t>(packed), bind::pointer<uint16_t>(params)};
    return run(p, choose(p, p.y), {bind::read("packed", packed), bind::read("params", params), bind::write("y", y)},
               options, kv4_dequantize_kernel);
  });
}
