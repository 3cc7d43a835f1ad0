#include "binding.h"
#include "fault_kernels.cuh"

#include "../../csrc/ptx/tma_encode.h"

using namespace lowbit;
namespace py = pybind11;
using bind::pointer;

namespace {

template <class Fault, size_t kNames>
Fault find(const char* const (&names)[kNames], const std::string& name) {
  for (size_t i = 0; i < kNames; ++i)
    if (name == names[i]) return Fault(i);
  throw py::value_error("no fault is called " + name);
}

ptx::TensorMap encode(const py::array& matrix, uint32_t box_rows, uint32_t box_bytes, ptx::Swizzle swizzle) {
  ptx::TensorMap map;
  const char* error =
      ptx::encode_tensor_map_2d(&map, {matrix.data(), uint64_t(matrix.shape(0)), uint64_t(matrix.strides(0)),
                                       uint64_t(matrix.strides(0)), box_rows, box_bytes, swizzle});
  if (error) throw py::value_error(error);
  return map;
}

}  // namespace

LOWBIT_EMU_BIND(faults) {
  m.attr("faults_sm80") =
      std::vector<std::string>(std::begin(faults::kSm80Names), std::end(faults::kSm80Names));
  m.attr("faults_sm90") =
      std::vector<std::string>(std::begin(faults::kSm90Names), std::end(faults::kSm90Names));
  m.def("fault_sm80", [](const std::string& fault, py::array x, py::array w, py::array y,
                         const py::dict& options) {
    const int rows = int(x.shape(0)), k = int(x.shape(1));
    const auto which = find<faults::Sm80>(faults::kSm80Names, fault);
    emu::LaunchConfig config;
    config.grid_x = (rows + 31) / 32;
    config.block = 64;
    config.smem_bytes = faults::kSmem80 + (which == faults::Sm80::kUninitialised ? 16 : 0);
    if (options.contains("smem_base_mod")) config.smem_bytes += 512 - 16;
    return bind::run(config, options, {bind::read("x", x), bind::read("w", w), bind::write("y", y)}, [&] {
      faults::gemm_sm80(which, pointer<const int8_t>(x), pointer<const int8_t>(w), pointer<int32_t>(y), rows,
                        k);
    });
  });
  m.def("fault_sm90", [](const std::string& fault, py::array x, py::array w, py::array y,
                         const py::dict& options) {
    emu::LaunchConfig config;
    config.block = 160;
    config.smem_bytes = faults::kSmem90;
    const ptx::TensorMap map_x = encode(x, faults::kN, 128, ptx::Swizzle::k128B);
    const ptx::TensorMap map_y = encode(y, faults::kN, 256, ptx::Swizzle::kNone);
    const auto which = find<faults::Sm90>(faults::kSm90Names, fault);
    return bind::run(config, options, {bind::read("x", x), bind::read("w", w), bind::write("y", y)}, [&] {
      faults::gemm_sm90(which, map_x, pointer<const int8_t>(w), map_y, int(w.shape(1)));
    });
  });
  m.def("relative_swizzle", [](py::array x, bool absolute, py::array out, const py::dict& options) {
    emu::LaunchConfig config;
    config.smem_bytes = 2048;
    const ptx::TensorMap map = encode(x, 8, 128, ptx::Swizzle::k128B);
    return bind::run(config, options, {bind::read("x", x), bind::write("out", out)},
                     [&] { faults::relative_swizzle(map, absolute, pointer<uint8_t>(out)); });
  });
}
