#include "../../csrc/kernels/int_gemm/sm80.cuh"
#include "../../csrc/kernels/int_gemm/sm90.cuh"
#include "../../csrc/ptx/tma_encode.h"
#include "binding.h"

using namespace lowbit;
using namespace lowbit::kernels;
using namespace lowbit::kernels::int_gemm;
namespace py = pybind11;

namespace {

template <class C>
void mma(const Params& p, const Addends& add) {
  gemm_mma<C>(p, add);
}

template <class C>
void wgmma(const Params& p, const Addends& add) {
  WgmmaParams params{{}, p, add};
  const ptx::TensorMap2d x{p.x, uint64_t(p.m), uint64_t(p.x_bytes), uint64_t(p.x_stride), C::kTokens, kStageK,
                           ptx::Swizzle::k128B};
  if (Error error = ptx::encode_tensor_map_2d(&params.x, x)) throw py::value_error(error);
  gemm_wgmma<C>(params);
}

template <Weight kWeight, Codes kCodes>
void (*mma_tile(int tokens))(const Params&, const Addends&) {
  return tokens == 16   ? mma<MmaConfig<kMmaSmall, kWeight, kCodes>>
         : tokens == 64 ? mma<MmaConfig<kMmaMiddle, kWeight, kCodes>>
                        : mma<MmaConfig<kMmaLarge, kWeight, kCodes>>;
}

template <Weight kWeight>
void (*kernel_of(const Tile& tile, Codes codes, bool adds))(const Params&, const Addends&) {
  if (tile.kernel == Kernel::kWgmma)
    return tile.tokens == 64    ? wgmma<WgmmaConfig<kWgmmaSmall, kWeight, true>>
           : tile.tokens == 128 ? wgmma<WgmmaConfig<kWgmmaMiddle, kWeight, true>>
           : adds               ? wgmma<WgmmaConfig<kWgmmaLarge, kWeight, true>>
                                : wgmma<WgmmaConfig<kWgmmaLarge, kWeight, false>>;
  if constexpr (kWeight == Weight::kInt4)
    if (codes == Codes::kOperand4) return mma_tile<Weight::kInt4, Codes::kOperand4>(tile.tokens);
  return mma_tile<kWeight, Codes::kInt8>(tile.tokens);
}

py::dict to_dict(const Choice& c, Codes codes, const Device& device) {
  py::dict d;
  d["kernel"] = c.tile.kernel == Kernel::kWgmma ? "wgmma" : "mma";
  d["rows"] = c.tile.rows, d["tokens"] = c.tile.tokens, d["threads"] = c.tile.threads;
  d["row_tiles"] = c.row_tiles, d["token_tiles"] = c.token_tiles, d["stages"] = c.stages;
  d["splits"] = c.splits, d["stages_per_split"] = c.stages_per_split, d["blocks"] = c.blocks;
  d["shared"] = c.shared, d["partial_words"] = c.partial_words, d["tickets"] = c.tickets;
  d["resident"] = resident(c.shared, c.tile.blocks_per_sm, device);
  d["text"] = explain(c, codes, device);
  return d;
}

// The table of "e2m1", "e1m2" or "e3m0", else null.
const Fp4Table* table_of(const std::string& name) {
  for (const Format f : {Format::kE2M1, Format::kE1M2, Format::kE3M0})
    if (name == kFormatNames[int(f)]) return fp4_table(f);
  return nullptr;
}

Weight weight_of(const std::string& name) {
  if (table_of(name)) return Weight::kFp4;
  return name == "int4" ? Weight::kInt4 : name == "int4_group" ? Weight::kInt4Group : Weight::kInt8;
}

Device device_of(int sm, int multiprocessors) {
  return {sm, multiprocessors, sm == 90 ? 232448 : sm == 80 ? 166912 : 101376, 0};
}

}  // namespace

LOWBIT_EMU_BIND(int_gemm) {
  m.def("int_gemm_choose", [](int rows, int n, int k, const std::string& weight, bool operand4, int sm, int sms) {
    const Device device = device_of(sm, sms);
    const Codes codes = operand4 ? Codes::kOperand4 : Codes::kInt8;
    return to_dict(choose(rows, n, k, weight_of(weight), codes, device), codes, device);
  });
  m.def("int_gemm_items", [](int items, int row_tiles, int token_tiles) {
    std::vector<std::tuple<int, int, int>> out;
    for (int i = 0; i < items; ++i) {
      const Item at = item_at(i, row_tiles, token_tiles);
      out.emplace_back(at.row_tile, at.token_tile, at.split);
    }
    return out;
  });
  // The kernel that `choose` picks on such a card, or the tile of `tokens` tokens if that is not zero.
  m.def("int_gemm", [](const std::string& weight_kind, bool operand4, int k, int group, py::array x, int x_bytes,
                       py::array weight, py::array group_scale, py::array w_scale, py::array x_scale, py::array bias,
                       py::array y, const std::string& out, int sm, int sms, int splits, double w_factor,
                       const py::dict& added, const py::dict& options) {
    const Weight kind = weight_of(weight_kind);
    const Codes codes = operand4 ? Codes::kOperand4 : Codes::kInt8;
    const Device device = device_of(sm, sms);
    Params p{};
    p.m = int(y.shape(0)), p.n = int(y.shape(1)), p.k = k, p.group_shift = group == 32 ? 5 : group == 64 ? 6 : 7;
    const Choice c = choose(p.m, p.n, k, kind, codes, device, splits);
    p.x = bind::pointer<const uint8_t>(x), p.x_stride = x.strides(0), p.x_bytes = x_bytes;
    p.weight = bind::pointer<const uint8_t>(weight);
    if (const Fp4Table* table = table_of(weight_kind)) p.set_fp4(*table, float(w_factor));
    p.w_scale = bind::pointer<const float>(w_scale), p.y = bind::pointer<void>(y);
    p.out = out == "float32" ? DType::f32 : out == "bfloat16" ? DType::bf16 : DType::f16;
    p.splits = c.splits, p.stages_per_split = c.stages_per_split;
    std::vector<emu::Buffer> buffers{bind::read("x", x), bind::read("weight", weight), bind::read("w_scale", w_scale),
                                     bind::write("y", y)};
    if (group_scale.size()) {
      p.group_scale = bind::pointer<const uint8_t>(group_scale);
      buffers.push_back(bind::read("group_scale", group_scale));
    }
    if (x_scale.size()) p.x_scale = bind::pointer<const float>(x_scale), buffers.push_back(bind::read("x_scale", x_scale));
    if (bias.size()) p.bias = bind::pointer<const float>(bias), buffers.push_back(bind::read("bias", bias));
    Addends add{};  // low_rank [m, rank], low_rank_up [rank, n], residual [m, n], where they are given
    const auto given = [&](const char* name) -> const void* {
      if (!added.contains(name)) return nullptr;
      const auto a = added[name].cast<py::array>();
      buffers.push_back(bind::read(name, a));
      return bind::pointer<const void>(a);
    };
    add.residual = given("residual"), add.low_rank = static_cast<const float*>(given("low_rank"));
    add.low_rank_up = static_cast<const float*>(given("low_rank_up"));
    if (add.low_rank) add.rank = int32_t(added["low_rank"].cast<py::array>().shape(1));
    const bool adds = add.rank || add.residual;
    std::vector<int32_t> partial(c.partial_words + 4);
    std::vector<uint32_t> tickets(c.tickets + 4);
    p.partial = partial.data(), p.tickets = tickets.data();
    buffers.push_back({"partial", partial.data(), partial.size() * 4, emu::Access::kWrite});
    buffers.push_back({"tickets", tickets.data(), tickets.size() * 4, emu::Access::kReadWrite});
    emu::LaunchConfig config;
    config.grid_x = c.blocks, config.block = c.tile.threads, config.smem_bytes = uint32_t(c.shared);
    config.max_smem_bytes = uint32_t(device.shared_bytes);
    const auto kernel = kind == Weight::kInt4        ? kernel_of<Weight::kInt4>(c.tile, codes, adds)
                        : kind == Weight::kInt4Group ? kernel_of<Weight::kInt4Group>(c.tile, codes, adds)
                        : kind == Weight::kFp4       ? kernel_of<Weight::kFp4>(c.tile, codes, adds)
                                                     : kernel_of<Weight::kInt8>(c.tile, codes, adds);
    py::dict report = bind::run(config, options, buffers, [&] { kernel(p, add); });
    for (uint32_t t : tickets)
      if (t) throw std::runtime_error("a ticket was left at " + std::to_string(t));
    report["choice"] = to_dict(c, codes, device);
    return report;
  });
}
