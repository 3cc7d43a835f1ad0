#include "../../csrc/kernels/hadamard/sm80.cuh"
#include "binding.h"

using namespace lowbit;
using namespace lowbit::kernels;
using namespace lowbit::kernels::hadamard;
namespace py = pybind11;

namespace {

py::dict to_dict(const Config& c) {
  const char* mix[] = {"none", "small", "large", "table", "williamson"};
  py::dict d;
  d["tile"] = c.tile, d["tiles"] = c.tiles, d["words"] = c.words, d["threads"] = c.threads;
  d["mix"] = mix[int(c.mix)], d["shared"] = c.shared, d["wide"] = c.wide, d["long_row"] = c.long_row;
  d["shared_bytes"] = c.shared_bytes, d["workspace"] = c.workspace, d["blocks"] = c.blocks, d["chunks"] = c.chunks;
  d["text"] = explain(c);
  return d;
}

template <bool kQuantised>
void (*kernel_of(const Config& c))(const Launch) {
  return !c.shared              ? hadamard_kernel<false, Mix::kTable, kQuantised>
         : c.mix == Mix::kNone  ? hadamard_kernel<true, Mix::kNone, kQuantised>
         : c.mix == Mix::kSmall ? hadamard_kernel<true, Mix::kSmall, kQuantised>
         : c.mix == Mix::kLarge ? hadamard_kernel<true, Mix::kLarge, kQuantised>
                                : hadamard_kernel<true, Mix::kTable, kQuantised>;
}

// x, y, q: arrays of bytes that hold exactly the rows. `out`: {"y"} (absent: in place) or {"codes", "bits", "clip",
// "q", "stride", "scale", "shift"}, and "activation" where x holds gates and ups.
py::dict run(py::array x, const std::string& dtype, int64_t rows, int64_t n, int64_t order, int64_t two, bool transposed,
             double scale, py::array table, const py::dict& out, const Device& device, const py::dict& options) {
  Params p{};
  p.x = bind::pointer<const void>(x), p.dtype = bind::dtype_of(dtype), p.rows = rows, p.n = n, p.order = order, p.two = two;
  p.transposed = transposed, p.scale = float(scale), p.mix = bind::pointer<const float>(table);
  std::vector<emu::Buffer> buffers{bind::read("table", table)};
  p.quantised = out.contains("q");
  if (p.quantised) {
    const auto q = out["q"].cast<py::array>(), s = out["scale"].cast<py::array>();
    p.to = {bind::codes_of(out["codes"].cast<std::string>()), out["bits"].cast<int>(), out["clip"].cast<float>(),
            bind::pointer<void>(q), out["stride"].cast<int64_t>(), s.size() ? bind::pointer<float>(s) : nullptr, p.dtype};
    buffers.push_back(bind::write("q", q));
    if (s.size()) buffers.push_back(bind::write("scale", s));  // none: static codes
    const auto column = [&](const char* name) -> const void* {
      if (!out.contains(name)) return nullptr;
      const auto held = out[name].cast<py::array>();
      buffers.push_back(bind::read(name, held));
      return bind::pointer<const void>(held);
    };
    p.adjust = {static_cast<const int32_t*>(column("index")), static_cast<const float*>(column("factor")),
                static_cast<const float*>(column("after"))};
    p.gated = out.contains("activation");
    if (p.gated && out["activation"].cast<std::string>() != "silu") p.activation = Activation::kGeluTanh;
    p.n_out = out.contains("n_out") ? out["n_out"].cast<int64_t>() : n;
    if (!out["shift"].is_none()) {
      const auto shift = out["shift"].cast<py::array>();
      p.shift = bind::pointer<const float>(shift);
      buffers.push_back(bind::read("shift", shift));
    }
    buffers.push_back(bind::read("x", x));
  } else if (out.contains("y")) {
    const auto y = out["y"].cast<py::array>();
    p.y = bind::pointer<void>(y);
    buffers.push_back(bind::read("x", x));
    buffers.push_back(bind::write("y", y));
  } else {
    p.y = bind::pointer<void>(x);
    buffers.push_back(bind::read_write("x", x));
  }
  if (Error error = check(p)) throw py::value_error(error);
  const Config c = choose(p, device);
  std::vector<ptx::f32x4> workspace(size_t(c.workspace / 4 + 1));
  p.workspace = workspace[0].v;
  if (c.workspace) buffers.push_back({"workspace", p.workspace, size_t(c.workspace) * 4, emu::Access::kWrite});
  emu::LaunchConfig config;
  config.grid_x = int(c.blocks), config.block = c.threads, config.smem_bytes = uint32_t(c.shared_bytes);
  config.max_smem_bytes = uint32_t(device.shared_bytes);
  const auto kernel = p.quantised ? kernel_of<true>(c) : kernel_of<false>(c);
  const Launch launch{p, c};
  py::dict report = bind::run(config, options, buffers, [&] { kernel(launch); });
  report["config"] = to_dict(c);
  return report;
}

Device device_of(int sm, int multiprocessors) {
  return {sm, multiprocessors, sm == 90 ? 232448 : sm == 80 ? 166912 : 101376, 0};
}

template <int kOrder>
std::vector<uint64_t> rows() {
  return {HadamardSigns<kOrder>::row, HadamardSigns<kOrder>::row + kOrder};
}

}  // namespace

LOWBIT_EMU_BIND(hadamard) {
  m.def("hadamard", [](py::array x, const std::string& dtype, int64_t rows, int64_t n, int64_t order, int64_t two,
                       bool transposed, double scale, py::array table, const py::dict& out, int sm, int sms,
                       const py::dict& options) {
    return run(x, dtype, rows, n, order, two, transposed, scale, table, out, device_of(sm, sms), options);
  });
  m.def("hadamard_config", [](const std::string& dtype, int64_t rows, int64_t n, int64_t order, int64_t two,
                              bool quantised, bool transposed, int sm, int sms) {
    Params p{};
    p.dtype = bind::dtype_of(dtype), p.rows = rows, p.n = n, p.order = order, p.two = two;
    p.quantised = quantised, p.transposed = transposed, p.n_out = n;
    p.to = {quantize::Codes::kPacked4, 4, 0.f, nullptr, (n + 1) / 2, nullptr};
    if (Error error = check(p)) throw py::value_error(error);
    return to_dict(choose(p, device_of(sm, sms)));
  });
  m.def("hadamard_place", [](int e) { return hadamard_tile::place(e); });
  m.def("hadamard_signs", [](int order) {
    return order == 12   ? rows<12>()
           : order == 20 ? rows<20>()
           : order == 28 ? rows<28>()
           : order == 36 ? rows<36>()
           : order == 44 ? rows<44>()
           : order == 52 ? rows<52>()
                         : rows<60>();
  });
}
