#include "binding.h"
#include "wrapper_kernels.cuh"

#include "../../csrc/layout/mma_fragment.h"
#include "../../csrc/layout/swizzle.h"
#include "../../csrc/ptx/tma_encode.h"

using namespace lowbit;
namespace py = pybind11;
using bind::pointer;
using bind::read;
using bind::read_write;
using bind::write;

namespace {

emu::LaunchConfig one_block(int block, uint32_t smem) {
  emu::LaunchConfig config;
  config.block = block;
  config.smem_bytes = smem;
  return config;
}

ptx::TensorMap make_map(const py::array& matrix, int box_rows, int box_bytes, int swizzle) {
  ptx::TensorMap map;
  const char* error = ptx::encode_tensor_map_2d(
      &map, {matrix.data(), uint64_t(matrix.shape(0)), uint64_t(matrix.shape(1)), uint64_t(matrix.strides(0)),
             uint32_t(box_rows), uint32_t(box_bytes), ptx::Swizzle(swizzle)});
  if (error) throw py::value_error(error);
  return map;
}

template <int N, int kSteps, class Kind = wrappers::Int8>
py::dict run_wgmma(py::array a, py::array tile, py::array d, bool swizzled, bool accumulate, int repeat,
                   const py::dict& options) {
  const uint32_t bytes = uint32_t(tile.nbytes()) + 1024;
  return bind::run(
      one_block(128, bytes), options, {read("a", a), read("tile", tile), read_write("d", d)}, [&] {
        wrappers::wgmma_kernel<N, kSteps, Kind>(pointer<const uint32_t>(a), pointer<const uint8_t>(tile),
                                                pointer<typename Kind::Sum>(d), swizzled, accumulate, repeat);
      });
}

using RunWgmma = py::dict (*)(py::array, py::array, py::array, bool, bool, int, const py::dict&);
struct WgmmaShape {
  int n, steps;
  RunWgmma run;
};
// Every N with rows of 128 bytes, two of them with shorter rows.
const WgmmaShape kWgmmaShapes[] = {
    {8, 4, run_wgmma<8, 4>},     {16, 4, run_wgmma<16, 4>},   {32, 4, run_wgmma<32, 4>},
    {64, 4, run_wgmma<64, 4>},   {96, 4, run_wgmma<96, 4>},   {128, 4, run_wgmma<128, 4>},
    {192, 4, run_wgmma<192, 4>}, {256, 4, run_wgmma<256, 4>}, {32, 1, run_wgmma<32, 1>},
    {32, 2, run_wgmma<32, 2>},   {128, 1, run_wgmma<128, 1>}, {128, 2, run_wgmma<128, 2>},
};

// Halves: [bf16][shape], rows of 128 bytes.
const WgmmaShape kWgmmaHalves[2][4] = {
    {{8, 4, run_wgmma<8, 4, wrappers::Fp16>},
     {64, 4, run_wgmma<64, 4, wrappers::Fp16>},
     {128, 4, run_wgmma<128, 4, wrappers::Fp16>},
     {256, 4, run_wgmma<256, 4, wrappers::Fp16>}},
    {{8, 4, run_wgmma<8, 4, wrappers::Bf16>},
     {64, 4, run_wgmma<64, 4, wrappers::Bf16>},
     {128, 4, run_wgmma<128, 4, wrappers::Bf16>},
     {256, 4, run_wgmma<256, 4, wrappers::Bf16>}},
};

py::dict lane_maps(int e) {
  py::list a, b, d, wa, wd;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < e; ++j)
        a.append(py::make_tuple(fragment::a_row(lane, i), fragment::a_k(lane, i, j, e)));
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < e; ++j)
        b.append(py::make_tuple(fragment::b_col(lane), fragment::b_k(lane, i, j, e)));
    for (int i = 0; i < 4; ++i) d.append(py::make_tuple(fragment::d_row(lane, i), fragment::d_col(lane, i)));
  }
  for (int t = 0; t < 128; ++t) {
    for (int i = 0; i < 4; ++i)
      wa.append(py::make_tuple(fragment::wgmma_a_row(t, i), fragment::wgmma_a_byte(t, i)));
    for (int i = 0; i < 128; ++i)
      wd.append(py::make_tuple(fragment::wgmma_d_row(t, i), fragment::wgmma_d_col(t, i)));
  }
  return py::dict(py::arg("a") = a, py::arg("b") = b, py::arg("d") = d, py::arg("wgmma_a") = wa,
                  py::arg("wgmma_d") = wd);
}

}  // namespace

LOWBIT_EMU_BIND(wrappers_sm80) {
  m.def("lane_maps", lane_maps);
  m.def("swizzle", [](uint32_t address, int width) { return swizzle::apply(address, width); });
  m.def("mma", [](int kind, py::array a, py::array b, py::array d, int repeat, const py::dict& options) {
    return bind::run(one_block(32, 0), options, {read("a", a), read("b", b), read_write("d", d)}, [&] {
      wrappers::mma_kernel(kind, pointer<uint32_t>(a), pointer<uint32_t>(b), pointer<uint32_t>(d), repeat);
    });
  });
  m.def("ldmatrix",
        [](int matrices, bool trans, py::array bytes, py::array rows, py::array r, const py::dict& options) {
          return bind::run(one_block(32, 640), options,
                           {read("bytes", bytes), read("rows", rows), write("r", r)}, [&] {
                             wrappers::ldmatrix_kernel(matrices, trans, pointer<uint8_t>(bytes),
                                                       pointer<int>(rows), pointer<uint32_t>(r));
                           });
        });
  m.def("stmatrix", [](bool trans, py::array r, py::array rows, py::array bytes, const py::dict& options) {
    return bind::run(
        one_block(32, 640), options, {read("r", r), read("rows", rows), write("bytes", bytes)}, [&] {
          wrappers::stmatrix_kernel(trans, pointer<uint32_t>(r), pointer<int>(rows), pointer<uint8_t>(bytes));
        });
  });
  m.def("warp", [](py::array value, py::array n, py::array out, const py::dict& options) {
    return bind::run(one_block(32, 0), options, {read("value", value), read("n", n), write("out", out)}, [&] {
      wrappers::warp_kernel(pointer<uint32_t>(value), pointer<int>(n), pointer<uint32_t>(out));
    });
  });
  m.def("cp_async", [](py::array src, py::array src_bytes, py::array out, const py::dict& options) {
    return bind::run(one_block(32, 2048), options,
                     {read("src", src), read("src_bytes", src_bytes), write("out", out)}, [&] {
                       wrappers::cp_async_kernel(pointer<uint8_t>(src), pointer<int>(src_bytes),
                                                 pointer<uint8_t>(out));
                     });
  });
  m.def("bits", [](py::array a, py::array b, py::array c, py::array out, const py::dict& options) {
    return bind::run(one_block(32, 0), options, {read("a", a), read("b", b), read("c", c), write("out", out)},
                     [&] {
                       wrappers::bits_kernel(pointer<uint32_t>(a), pointer<uint32_t>(b), pointer<uint32_t>(c),
                                             pointer<uint32_t>(out), int(a.size()));
                     });
  });
  m.def("memory", [](py::array in, py::array out, const py::dict& options) {
    return bind::run(one_block(32, 512), options, {read("in", in), write("out", out)},
                     [&] { wrappers::memory_kernel(pointer<uint8_t>(in), pointer<uint8_t>(out)); });
  });
  m.def("ticket",
        [](py::array x, py::array sum, py::array ticket, py::array y, bool acquire, const py::dict& options) {
          emu::LaunchConfig config = one_block(32, 0);
          config.grid_x = int(x.shape(0));
          return bind::run(
              config, options,
              {read("x", x), read_write("sum", sum), read_write("ticket", ticket), write("y", y)}, [&] {
                wrappers::ticket_kernel(pointer<int32_t>(x), pointer<int32_t>(sum), pointer<uint32_t>(ticket),
                                        pointer<int32_t>(y), acquire);
              });
        });
  m.def("bank", [](int bytes, py::array address, int total, py::array out, const py::dict& options) {
    return bind::run(
        one_block(32, uint32_t(total) + 1024), options, {read("address", address), write("out", out)},
        [&] { wrappers::bank_kernel(bytes, pointer<int>(address), total, pointer<uint8_t>(out)); });
  });
  m.def("named_barrier", [](py::array out, const py::dict& options) {
    return bind::run(one_block(64, 128), options, {write("out", out)},
                     [&] { wrappers::named_barrier_kernel(pointer<uint32_t>(out)); });
  });
}

LOWBIT_EMU_BIND(wrappers_sm90) {
  m.def("check_tensor_map", [](uint64_t pointer, uint64_t rows, uint64_t row_bytes, uint64_t pitch,
                               uint32_t box_rows, uint32_t box_bytes, int swizzle) {
    const char* error = ptx::check_tensor_map_2d({reinterpret_cast<const void*>(pointer), rows, row_bytes,
                                                  pitch, box_rows, box_bytes, ptx::Swizzle(swizzle)});
    return std::string(error ? error : "");
  });
  m.def("tma_load", [](py::array matrix, int box_rows, int box_bytes, int swizzle, int x, int y,
                       py::array out, const py::dict& options) {
    const ptx::TensorMap map = make_map(matrix, box_rows, box_bytes, swizzle);
    const int bytes = box_rows * box_bytes;
    // the array's own rows may be a slice of wider ones: register what it spans
    const emu::Buffer source{"matrix", const_cast<void*>(matrix.data()),
                             size_t((matrix.shape(0) - 1) * matrix.strides(0) + matrix.shape(1)),
                             emu::Access::kRead};
    return bind::run(one_block(32, uint32_t(bytes) + 2048), options, {source, write("out", out)},
                     [&] { wrappers::tma_load_kernel(map, x, y, bytes, pointer<uint8_t>(out)); });
  });
  m.def("bulk", [](py::array in, py::array matrix, int box_rows, int box_bytes, int swizzle, int x, int y,
                   py::array out, const py::dict& options) {
    const ptx::TensorMap map = make_map(matrix, box_rows, box_bytes, swizzle);
    const int bytes = box_rows * box_bytes;
    return bind::run(one_block(32, uint32_t(bytes) + 2048), options,
                     {read("in", in), read_write("matrix", matrix), write("out", out)}, [&] {
                       wrappers::bulk_kernel(pointer<uint8_t>(in), bytes, map, x, y, pointer<uint8_t>(out));
                     });
  });
  py::list shapes;
  for (const WgmmaShape& shape : kWgmmaShapes) shapes.append(py::make_tuple(shape.n, shape.steps));
  m.attr("wgmma_shapes") = shapes;
  m.def("wgmma", [](int n, py::array a, py::array tile, py::array d, bool swizzled, bool accumulate,
                    int repeat, const py::dict& options) {
    for (const WgmmaShape& shape : kWgmmaShapes)
      if (shape.n == n && shape.steps == int(a.shape(0)))
        return shape.run(a, tile, d, swizzled, accumulate, repeat, options);
    throw py::value_error("wgmma: no such shape is compiled");
  });
  m.def("wgmma_half", [](bool bf16, int n, py::array a, py::array tile, py::array d, bool swizzled,
                         bool accumulate, int repeat, const py::dict& options) {
    for (const WgmmaShape& shape : kWgmmaHalves[bf16])
      if (shape.n == n && shape.steps == int(a.shape(0)))
        return shape.run(a, tile, d, swizzled, accumulate, repeat, options);
    throw py::value_error("wgmma_half: no such shape is compiled");
  });
  m.def("cp_async_mbarrier", [](py::array in, py::array out, const py::dict& options) {
    return bind::run(one_block(64, 1024), options, {read("in", in), write("out", out)}, [&] {
      wrappers::cp_async_mbarrier_kernel(pointer<uint8_t>(in), pointer<uint8_t>(out));
    });
  });
  m.def("barrier_life", [](py::array in, py::array out, const py::dict& options) {
    return bind::run(one_block(64, 1024), options, {read("in", in), write("out", out)},
                     [&] { wrappers::barrier_life_kernel(pointer<uint8_t>(in), pointer<uint32_t>(out)); });
  });
  m.def("setmaxnreg", [](py::array in, py::array out, const py::dict& options) {
    return bind::run(one_block(384, 0), options, {read("in", in), write("out", out)},
                     [&] { wrappers::setmaxnreg_kernel(pointer<uint32_t>(in), pointer<uint32_t>(out)); });
  });
}
