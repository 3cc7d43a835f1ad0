#include "binding.h"
#include "example_kernel.cuh"

using namespace lowbit;
namespace py = pybind11;

LOWBIT_EMU_BIND(example) {
  m.def("example_int8_gemm", [](py::array x, py::array w, py::array y, const py::dict& options) {
    const int rows = int(x.shape(0)), k = int(x.shape(1));
    emu::LaunchConfig config;
    config.grid_x = (rows + 15) / 16;
    config.block = 32;
    config.smem_bytes = example::kStages * example::kStageBytes;
    return bind::run(config, options, {bind::read("x", x), bind::read("w", w), bind::write("y", y)}, [&] {
      example::int8_gemm(bind::pointer<const int8_t>(x), bind::pointer<const int8_t>(w),
                         bind::pointer<int32_t>(y), rows, k);
    });
  });
}
