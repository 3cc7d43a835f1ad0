// Python in front of the emulator: numpy arrays become registered buffers, the report becomes a dict.
//
//   LOWBIT_EMU_BIND(family) {                            // runs when the module is imported
//     m.def("kernel", [](py::array x, py::array y, py::dict options) {
//       emu::LaunchConfig config;  config.grid_x = ...;  config.block = 128;  config.smem_bytes = ...;
//       return bind::run(config, options, {bind::read("x", x), bind::write("y", y)},
//                        [&] { kernel<...>(bind::pointer<const uint8_t>(x), bind::pointer<float>(y)); });
//     });
//   }
// `options` may hold seed, smem_base_mod, async_early, max_smem_bytes.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../../csrc/emu/launch.h"
#include "../../csrc/kernels/quantize/params.h"

namespace lowbit::bind {

namespace py = pybind11;

// As torch names them.
inline DType dtype_of(const std::string& name) {
  return name == "float32" ? DType::f32 : name == "bfloat16" ? DType::bf16 : DType::f16;
}

// As the tests name them.
inline kernels::quantize::Codes codes_of(const std::string& name) {
  using kernels::quantize::Codes;
  if (name == "packed4") return Codes::kPacked4;
  if (name == "operand4") return Codes::kOperand4;
  if (name == "floats") return Codes::kFloats;
  return name == "int8" ? Codes::kInt8 : Codes::kFp4;  // or the name of a format
}

// A kernel's pointer argument. The dtype is the caller's business; the emulator checks every byte.
template <class T>
T* pointer(const py::array& array) {
  return static_cast<T*>(const_cast<void*>(array.data()));
}

inline emu::Buffer buffer(const char* name, const py::array& array, emu::Access access) {
  if (!(array.flags() & py::array::c_style))
    throw py::value_error(std::string(name) + ": expected a C-contiguous array");
  if (access != emu::Access::kRead && !array.writeable())
    throw py::value_error(std::string(name) + ": expected a writeable array");
  return {name, const_cast<void*>(array.data()), size_t(array.nbytes()), access};
}
inline emu::Buffer read(const char* name, const py::array& a) { return buffer(name, a, emu::Access::kRead); }
inline emu::Buffer write(const char* name, const py::array& a) {
  return buffer(name, a, emu::Access::kWrite);
}
inline emu::Buffer read_write(const char* name, const py::array& a) {
  return buffer(name, a, emu::Access::kReadWrite);
}

inline py::dict to_dict(const emu::Report& report) {
  auto memory = [](const std::map<std::string, emu::MemoryCount>& counts) {
    py::dict out;
    for (const auto& [key, c] : counts) {
      py::dict one;
      one["requests"] = c.requests;
      one["bytes"] = c.bytes;
      one["actual"] = c.actual;
      one["ideal"] = c.ideal;
      out[py::str(key)] = one;
    }
    return out;
  };
  py::dict out, buffers;
  out["instructions"] = report.instructions;
  out["shared"] = memory(report.shared);
  out["global"] = memory(report.global);
  for (const auto& [key, c] : report.buffers) {
    py::dict one;
    one["bytes_read"] = c.bytes_read;
    one["bytes_written"] = c.bytes_written;
    one["read_min"] = c.read_min;
    one["read_max"] = c.read_max;
    one["write_min"] = c.write_min;
    one["write_max"] = c.write_max;
    buffers[py::str(key)] = one;
  }
  out["buffers"] = buffers;
  return out;
}

inline py::dict run(emu::LaunchConfig config, const py::dict& options,
                    const std::vector<emu::Buffer>& buffers, const std::function<void()>& kernel) {
  for (const auto& [key, value] : options) {
    const std::string name = py::cast<std::string>(key);
    if (name == "seed") config.seed = py::cast<uint64_t>(value);
    else if (name == "smem_base_mod") config.smem_base_mod = py::cast<int>(value);
    else if (name == "async_early") config.async_early = py::cast<int>(value);
    else if (name == "max_smem_bytes") config.max_smem_bytes = py::cast<uint32_t>(value);
    else
      throw py::value_error("options: expected seed, smem_base_mod, async_early or max_smem_bytes, got " +
                            name);
  }
  return to_dict(emu::launch(config, buffers, kernel));
}

using Registrar = void (*)(py::module_&);
std::vector<Registrar>& registrars();

#define LOWBIT_EMU_BIND(family)                                             \
  static void lowbit_bind_##family(pybind11::module_& m);                   \
  static const bool lowbit_bound_##family =                                 \
      (::lowbit::bind::registrars().push_back(lowbit_bind_##family), true); \
  static void lowbit_bind_##family([[maybe_unused]] pybind11::module_& m)

}  // namespace lowbit::bind
