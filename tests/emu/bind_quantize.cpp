#include "../../csrc/kernels/quantize/fp4.cuh"
#include "../../csrc/kernels/quantize/sm80.cuh"
#include "binding.h"

using namespace lowbit;
using namespace lowbit::kernels;
using namespace lowbit::kernels::quantize;
namespace py = pybind11;

namespace {

Format format_of(const std::string& name) {
  return name == "e2m1" ? Format::kE2M1 : name == "e1m2" ? Format::kE1M2 : Format::kE3M0;
}

py::dict to_dict(const Team& t) {
  py::dict d;
  d["vectors"] = t.vectors, d["size"] = t.size, d["rows"] = t.rows, d["rounds"] = t.rounds;
  return d;
}

}  // namespace

LOWBIT_EMU_BIND(quantize) {
  m.def("quantize_team", [](int64_t chunks, bool wide) { return to_dict(team_of(chunks, wide)); });
  m.def("operand4_at", [](int64_t k) {
    const operand4::Nibble n = operand4::at(k);
    return std::make_pair(n.byte, n.high);
  });
  // Arrays of bytes that hold exactly the rows: a byte before or after them is a violation.
  m.def("quantize", [](py::array x, const std::string& dtype, int64_t rows, int64_t k, int64_t x_stride,
                       std::optional<py::array> shift, const std::string& codes, int bits, double clip, py::array q,
                       int64_t stride, py::array scale, const py::dict& options) {
    Params p{};
    p.x = bind::pointer<const void>(x), p.dtype = bind::dtype_of(dtype), p.rows = rows, p.k = k, p.x_stride = x_stride;
    p.to = {bind::codes_of(codes), bits, float(clip), bind::pointer<void>(q), stride, bind::pointer<float>(scale)};
    std::vector<emu::Buffer> buffers{bind::read("x", x), bind::write("q", q), bind::write("scale", scale)};
    if (shift) p.shift = bind::pointer<const float>(*shift), buffers.push_back(bind::read("shift", *shift));
    if (Error error = check_output(p.to, k)) throw py::value_error(error);
    const Launch launch{p, choose(p)};
    emu::LaunchConfig config;
    config.grid_x = int(launch.c.blocks), config.block = launch.c.team.threads();
    config.smem_bytes = uint32_t(launch.c.shared_bytes);
    const auto kernel = !launch.c.wide               ? quantize_kernel<2, false>
                        : launch.c.team.vectors == 1 ? quantize_kernel<1, true>
                        : launch.c.team.vectors == 2 ? quantize_kernel<2, true>
                                                     : quantize_kernel<4, true>;
    py::dict report;
    if (config.grid_x) report = bind::run(config, options, buffers, [&] { kernel(launch); });
    report["team"] = to_dict(launch.c.team), report["wide"] = launch.c.wide;
    return report;
  });
  m.def("quantize_fp4", [](py::array x, const std::string& dtype, int64_t rows, int64_t k, int64_t x_stride,
                           std::optional<py::array> exponent, const std::string& format, double clip,
                           std::optional<py::array> fixed_scale, py::array q, py::array scale, const py::dict& options) {
    Fp4Params p{};
    p.x = bind::pointer<const void>(x), p.dtype = bind::dtype_of(dtype), p.rows = rows, p.k = k, p.x_stride = x_stride;
    p.rounding = rounding_of(format_of(format)), p.clip = float(clip);
    p.q = bind::pointer<void>(q), p.stride = (k + 1) / 2, p.scale = bind::pointer<float>(scale);
    std::vector<emu::Buffer> buffers{bind::read("x", x), bind::write("q", q), bind::write("scale", scale)};
    if (exponent) {
      p.exponent = bind::pointer<const int8_t>(*exponent);
      buffers.push_back(bind::read("exponent", *exponent));
    }
    if (fixed_scale) {
      p.fixed_scale = bind::pointer<const float>(*fixed_scale);
      buffers.push_back(bind::read("fixed_scale", *fixed_scale));
    }
    const Fp4Launch launch{p, choose(p)};
    emu::LaunchConfig config;
    config.grid_x = int(launch.c.blocks), config.block = launch.c.team.threads();
    config.smem_bytes = uint32_t(launch.c.shared_bytes);
    const auto kernel = !launch.c.wide               ? quantize_fp4_kernel<2, false>
                        : launch.c.team.vectors == 1 ? quantize_fp4_kernel<1, true>
                        : launch.c.team.vectors == 2 ? quantize_fp4_kernel<2, true>
                                                     : quantize_fp4_kernel<4, true>;
    py::dict report;
    if (config.grid_x) report = bind::run(config, options, buffers, [&] { kernel(launch); });
    report["team"] = to_dict(launch.c.team), report["wide"] = launch.c.wide;
    return report;
  });
  m.def("convert_codes", [](const std::string& from, py::array x, int64_t rows, int64_t k, int64_t x_stride,
                            const std::string& to, py::array q, int64_t stride, std::optional<py::array> out_of_range,
                            const py::dict& options) {
    ConvertParams p{bind::codes_of(from), bind::pointer<const void>(x), rows,   k, x_stride, bind::codes_of(to),
                    bind::pointer<void>(q),                       stride, nullptr, {}};
    if (p.from == Codes::kFp4) p.fp4 = magnitudes_of(*fp4_table(format_of(from)));
    std::vector<emu::Buffer> buffers{bind::read("x", x), bind::write("q", q)};
    if (out_of_range) {
      p.out_of_range = bind::pointer<uint32_t>(*out_of_range);
      buffers.push_back(bind::read_write("out_of_range", *out_of_range));
    }
    const ConvertLaunch launch{p, choose(p)};
    emu::LaunchConfig config;
    config.grid_x = int(launch.c.blocks_x), config.grid_y = int(launch.c.blocks_y), config.block = kConvertThreads;
    if (!config.grid_x || !config.grid_y) return py::dict();
    return bind::run(config, options, buffers, [&] { convert_codes_kernel(launch); });
  });
}
