#include "../../csrc/kernels/fp_gemm/codec.cuh"
#include "../../csrc/kernels/fp_gemm/formats.h"
#include "../../csrc/kernels/fp_gemm/sm80.cuh"
#include "../../csrc/kernels/fp_gemm/sm90.cuh"
#include "../../csrc/numeric/format.h"
#include "../../csrc/ptx/tma_encode.h"
#include "binding.h"

using namespace lowbit;
using namespace lowbit::kernels;
using namespace lowbit::kernels::fp_gemm;
namespace py = pybind11;

namespace {

using Run = void (*)(const Params&);

template <class C>
void run(const Params& p) {
  gemm<C>(p);
}

template <class C>
void run_wgmma(const Params& p) {
  WgmmaParams params{{}, p};
  if (Error error = ptx::encode_tensor_map_2d(&params.x, map_of(p))) throw py::value_error(error);
  gemm_wgmma<C>(params);
}

template <Weight kWeight, Half kHalf, bool kGrouped>
Run kernel_of(const Tile& tile) {
  if (tile.kernel == Kernel::kWgmma) return run_wgmma<WgmmaConfig<kWeight, kHalf, kGrouped>>;
  return tile.tokens == kSmall.tokens ? run<Config<kSmall, kWeight, kHalf, kGrouped>>
                                      : run<Config<kMiddle, kWeight, kHalf, kGrouped>>;
}
Run kernel_of(Weight w, const Tile& tile, Half half, bool grouped) {
  Run kernel = nullptr;
  with_weight(w, [&](auto weight) {
    return with_half(half, [&](auto type) -> Error {
      constexpr Weight kWeight = decltype(weight)::value;
      constexpr Half kHalf = decltype(type)::value;
      kernel = grouped ? kernel_of<kWeight, kHalf, true>(tile) : kernel_of<kWeight, kHalf, false>(tile);
      return nullptr;
    });
  });
  return kernel;
}

void dequantize(Weight w, const DequantizeParams& p, Half half) {
  with_weight(w, [&](auto weight) {
    return with_half(half, [&](auto type) -> Error {
      dequantize_kernel<decltype(weight)::value, decltype(type)::value>(p);
      return nullptr;
    });
  });
}

emu::LaunchConfig codec_grid(int64_t blocks, uint32_t shared) {
  emu::LaunchConfig config;
  config.grid_x = int(blocks), config.block = kCodecThreads, config.smem_bytes = shared;
  return config;
}

Weight weight_of(const std::string& name) {
  const char* names[] = {"e3m2", "e2m3", "e2m1", "e3m0", "int4"};
  for (int i = 0; i < 5; ++i)
    if (name == names[i]) return Weight(i);
  throw py::value_error("no such format: " + name);
}

py::dict to_dict(const Choice& c, Weight w, bool grouped, const Device& device) {
  py::dict d;
  d["kernel"] = c.tile.kernel == Kernel::kWgmma ? "wgmma" : "mma";
  d["rows"] = c.tile.rows, d["tokens"] = c.tile.tokens, d["threads"] = c.tile.threads;
  d["row_tiles"] = c.row_tiles, d["token_tiles"] = c.token_tiles, d["stages"] = c.stages;
  d["splits"] = c.splits, d["stages_per_split"] = c.stages_per_split, d["blocks"] = c.blocks;
  d["shared"] = c.shared, d["partial_words"] = c.partial_words, d["tickets"] = c.tickets;
  d["resident"] = resident(c.shared, c.tile.blocks_per_sm, device), d["ring"] = stages_of(c.tile, w, grouped);
  d["text"] = explain(c, w, grouped, device);
  return d;
}

Scales scales_of(int group, const py::array& scale) {
  return !group ? Scales::kNone : scale.itemsize() == 1 ? Scales::kE8M0 : Scales::kF16;
}
int shift_of(int group) { return group == 32 ? 5 : group == 64 ? 6 : 7; }

Device device_of(int sm, int multiprocessors) {
  return {sm, multiprocessors, sm == 90 ? 232448 : sm == 80 ? 166912 : 101376, 0};
}

}  // namespace

LOWBIT_EMU_BIND(fp_gemm) {
  m.def("fp_gemm_choose", [](int rows, int n, int k, const std::string& weight, bool grouped, int sm, int sms) {
    const Device device = device_of(sm, sms);
    return to_dict(choose(rows, n, k, weight_of(weight), grouped, device), weight_of(weight), grouped, device);
  });
  m.def("fp_gemm_items", [](int items, int row_tiles, int token_tiles) {
    std::vector<std::tuple<int, int, int>> out;
    for (int i = 0; i < items; ++i) {
      const Item at = item_at(i, row_tiles, token_tiles);
      out.emplace_back(at.row_tile, at.token_tile, at.split);
    }
    return out;
  });
  m.def("fp_gemm_instructions", [](const std::string& weight, bool bf16) {
    return fp_fragment::instructions(weight_of(weight), bf16 ? Half::kBF16 : Half::kF16);
  });
  // (byte, pair, second) of weight (n, k), and (word, bit) of each bit of a pair's first code
  m.def("fp_gemm_code_at", [](const std::string& weight, int64_t n, int64_t k, int64_t k_blocks) {
    const auto c = fp_fragment::code_at(weight_of(weight), n, k, k_blocks);
    return py::make_tuple(c.byte, c.pair, c.second);
  });
  m.def("fp_gemm_place", [](const std::string& weight, int pair, int bit) {
    const auto p = fp_fragment::place(weight_of(weight), pair, bit);
    return py::make_tuple(p.word, p.bit);
  });
  // out [n, stride] as uint16
  m.def("fp_gemm_dequantize", [](const std::string& format, bool bf16, int k, int group, py::array weight,
                                 py::array group_scale, py::array out, const py::dict& options) {
    const Half half = bf16 ? Half::kBF16 : Half::kF16;
    DequantizeParams p{};
    p.n = int(out.shape(0)), p.k = k, p.weight = bind::pointer<const uint8_t>(weight);
    p.factor = factor_of(weight_of(format), half);
    p.out = bind::pointer<void>(out), p.out_stride = out.shape(1);
    p.group_scale = bind::pointer<const uint8_t>(group_scale);
    p.scales = scales_of(group, group_scale), p.group_shift = shift_of(group);
    const auto blocks = ceil_div(p.n, fp_fragment::kN) * ceil_div(k, fp_fragment::kK);
    return bind::run(codec_grid(blocks, kDequantizeShared), options,
                     {bind::read("weight", weight), bind::read("group_scale", group_scale), bind::write("out", out)},
                     [&] { dequantize(weight_of(format), p, half); });
  });
  m.def("fp_gemm_finish", [](bool bf16, py::array sum, py::array w_scale, py::array bias, py::array residual,
                             py::array y, int first, const py::dict& options) {
    FinishParams p{};
    p.m = int(sum.shape(0)), p.n = int(sum.shape(1)), p.y_stride = y.shape(1);
    p.sum = bind::pointer<const float>(sum), p.w_scale = bind::pointer<const float>(w_scale) + first;
    std::vector<emu::Buffer> buffers{bind::read("sum", sum), bind::read("w_scale", w_scale), bind::write("y", y)};
    if (bias.size()) {
      p.bias = bind::pointer<const float>(bias) + first;
      buffers.push_back(bind::read("bias", bias));
    }
    if (residual.size()) {
      p.residual = bind::pointer<uint16_t>(residual) + first;
      buffers.push_back(bind::read("residual", residual));
    }
    p.y = bind::pointer<uint16_t>(y) + first;
    const int64_t threads = int64_t(p.m) * (p.n / finish_step(p));
    return bind::run(codec_grid(ceil_div(threads, int64_t(kCodecThreads)), 0), options, buffers, [&] {
      if (bf16) finish_kernel<Half::kBF16>(p);
      else finish_kernel<Half::kF16>(p);
    });
  });
  // x [count] of float32, or float16 or bfloat16 as uint16
  m.def("fp_gemm_encode", [](const std::string& format, const std::string& dtype, py::array x, bool ties_away,
                             py::array codes, const py::dict& options) {
    EncodeParams p{};
    p.count = x.size(), p.x = x.data(), p.ties_away = ties_away, p.codes = bind::pointer<uint8_t>(codes);
    p.dtype = dtype == "float32" ? DType::f32 : dtype == "float16" ? DType::f16 : DType::bf16;
    py::dict report;
    for (int f = int(Format::kE3M2); f <= int(Format::kE3M0); ++f) {
      if (format != kFormatNames[f]) continue;
      with_minifloat(Format(f), [&](auto number) {
        report = bind::run(codec_grid(encode_blocks(p), 0), options,
                           {bind::read("x", x), bind::write("codes", codes)},
                           [&] { encode_kernel<decltype(number)>(p, is_aligned(p)); });
      });
    }
    return report;
  });
  // The kernel that `choose` picks on such a card. bf16 arrays come as uint16.
  m.def("fp_gemm", [](const std::string& format, bool bf16, int k, int group, py::array x, py::array weight,
                      py::array group_scale, double factor, py::array w_scale, py::array bias,
                      py::array residual, py::array y, int sm, int sms, int splits, const py::dict& options) {
    const Weight w = weight_of(format);
    const Half half = bf16 ? Half::kBF16 : Half::kF16;
    const Device device = device_of(sm, sms);
    Params p{};
    p.m = int(y.shape(0)), p.n = int(y.shape(1)), p.k = k;
    p.scales = scales_of(group, group_scale), p.group_shift = shift_of(group);
    const Choice c = choose(p.m, p.n, k, w, group > 0, device, splits);
    p.x = bind::pointer<const uint8_t>(x), p.x_stride = x.strides(0);
    p.weight = bind::pointer<const uint8_t>(weight);
    p.factor = factor_of(c.tile, w, half, group > 0) * float(factor);
    p.w_scale = bind::pointer<const float>(w_scale), p.y = bind::pointer<void>(y);
    p.splits = c.splits, p.stages_per_split = c.stages_per_split;
    std::vector<emu::Buffer> buffers{bind::read("x", x), bind::read("weight", weight),
                                     bind::read("w_scale", w_scale), bind::write("y", y)};
    if (group) {
      p.group_scale = bind::pointer<const uint8_t>(group_scale);
      buffers.push_back(bind::read("group_scale", group_scale));
    }
    if (bias.size()) p.bias = bind::pointer<const float>(bias), buffers.push_back(bind::read("bias", bias));
    if (residual.size()) {
      p.residual = bind::pointer<const void>(residual);
      buffers.push_back(bind::read("residual", residual));
    }
    std::vector<float> partial(c.partial_words + 4);
    std::vector<uint32_t> tickets(c.tickets + 4);
    p.partial = partial.data(), p.tickets = tickets.data();
    buffers.push_back({"partial", partial.data(), partial.size() * 4, emu::Access::kWrite});
    buffers.push_back({"tickets", tickets.data(), tickets.size() * 4, emu::Access::kReadWrite});
    emu::LaunchConfig config;
    config.grid_x = c.blocks, config.block = c.tile.threads, config.smem_bytes = uint32_t(c.shared);
    config.max_smem_bytes = uint32_t(device.shared_bytes);
    const Run kernel = kernel_of(w, c.tile, half, group > 0);
    py::dict report = bind::run(config, options, buffers, [&] { kernel(p); });
    for (uint32_t t : tickets)
      if (t) throw std::runtime_error("a ticket was left at " + std::to_string(t));
    report["choice"] = to_dict(c, w, group > 0, device);
    return report;
  });
}
