// Weight-only linear layers in 4- and 6-bit formats on CUDA: choose, launch, or dequantise for torch's
// matmul; and the codec.
#include "fp_gemm.h"

#include <array>

#include "../kernels/fp_gemm/launch.h"
#include "cuda.h"

namespace lowbit::ops {
namespace {

namespace gemm = kernels::fp_gemm;

constexpr FpPieces kCudaFpBlocks{fp_fragment::kN, fp_fragment::kK};
constexpr int64_t kPanelBytes = int64_t(32) << 20;  // of weights: what is written is read again from L2

// Four times an e1m2 is an integer: prepack_fp_weight stores it as int4.
gemm::Weight weight_of(Format f) {
  return f == Format::kE3M2   ? gemm::Weight::kE3M2
         : f == Format::kE2M3 ? gemm::Weight::kE2M3
         : f == Format::kE2M1 ? gemm::Weight::kE2M1
         : f == Format::kE3M0 ? gemm::Weight::kE3M0
                              : gemm::Weight::kInt4;
}

// One call of fp_linear on one card.
struct Call {
  const char* op;
  OnDevice on;
  FpLayer layer;
  int64_t m;
  gemm::Weight weight;
  gemm::Half half;
  float factor;  // of the values of e1m2
  gemm::Scales scales = gemm::Scales::kNone;
  int32_t group_shift = 0;
  std::vector<Tensor> kept;  // alive until the launch

  Call(const char* op, const Tensor& x, const Rows& rows, const Tensor& tiles, std::string_view format,
       const Tensor& w_scale, const OptTensor& group_scale, const OptTensor& bias)
      : op(op),
        on(x, op),
        layer(op, kCudaFpBlocks, rows.length, tiles, format, w_scale, group_scale, bias),
        m(rows.count),
        weight(weight_of(layer.format)),
        half(x.scalar_type() == ScalarType::Half ? gemm::Half::kF16 : gemm::Half::kBF16),
        factor(layer.format == Format::kE1M2 ? 0.25f : 1.f) {
    check(m < (int64_t(1) << 31) && layer.n < (int64_t(1) << 31), op,
          ": expected fewer than 2^31 rows of x and of weight");
    check(layer.k < (int64_t(1) << 24), op, ": K is ", layer.k, ", expected fewer than 2^24");
    if (!layer.group) return;
    const bool bytes = layer.group_scale->scalar_type() == ScalarType::Byte;
    scales = bytes ? gemm::Scales::kE8M0 : gemm::Scales::kF16;
    group_shift = layer.group == 32 ? 5 : layer.group == 64 ? 6 : 7;
  }

  template <class T>
  const T* keep(const Tensor& t) {
    return keep_aligned<T>(t, kept);
  }

  // x [m, k], contiguous but for rows that are padded to 16 bytes. The weight is decoded in the loop.
  void multiply(const Tensor& x, const OptTensor& residual, Tensor& y) {
    gemm::Params p{};
    p.m = int32_t(m), p.n = int32_t(layer.n), p.k = int32_t(layer.k);
    p.weight = keep<uint8_t>(layer.weight), p.w_scale = keep<float>(layer.w_scale);
    if (layer.bias) p.bias = keep<float>(*layer.bias);
    if (layer.group) p.group_scale = keep<uint8_t>(*layer.group_scale);
    p.scales = scales, p.group_shift = group_shift;
    const int64_t past = layer.k % 8 ? 8 - layer.k % 8 : 0;
    p.x = keep<uint8_t>(past ? torch::stable::pad(x, {0, past}) : x), p.x_stride = 2 * (layer.k + past);
    if (residual) p.residual = keep<uint16_t>(*residual);
    p.y = y.mutable_data_ptr();
    const gemm::Choice c = gemm::choose(p.m, p.n, p.k, weight, layer.group != 0, on.device);
    p.factor = factor * gemm::factor_of(c.tile, weight, half, layer.group != 0);
    p.splits = c.splits, p.stages_per_split = c.stages_per_split;
    if (c.splits > 1) {
      kept.push_back(empty_cuda({c.partial_words}, ScalarType::Float, on.device.index));
      p.partial = static_cast<float*>(kept.back().mutable_data_ptr());
      p.tickets = zeroed_tickets(c.tickets, on.device.index, kept);
    }
    check_cuda(gemm::run(p, c, weight, half, layer.group != 0, on.stream), op);
  }

  // Panel by panel of channels: the weight in fp16 or bf16, torch's matmul to fp32, scale, bias and residual.
  // The numbers are rounded where multiply() rounds them on wgmma.
  void dequantize_and_multiply(const Tensor& x, const OptTensor& residual, Tensor& y) {
    const ScalarType type = x.scalar_type();
    const int64_t row_bytes = 2 * layer.k, blocks = ceil_div(layer.n, fp_fragment::kN);
    int64_t per_panel = kPanelBytes / (row_bytes * fp_fragment::kN);
    if (per_panel < 1) per_panel = 1;
    const int64_t block_bytes = ceil_div(layer.k, fp_fragment::kK) * fp_fragment::block_bytes(weight);
    const uint8_t* const tiles = keep<uint8_t>(layer.weight);
    const uint8_t* const group_scale = layer.group ? keep<uint8_t>(*layer.group_scale) : nullptr;
    const uint16_t* const add = residual ? keep<uint16_t>(*residual) : nullptr;
    const int64_t scale_bytes =
        layer.group ? layer.group_scale->size(1) * gemm::group_bytes(scales) : 0;  // of a block of channels
    for (int64_t block = 0; block < blocks; block += per_panel) {
      const int64_t first = block * fp_fragment::kN;
      const int64_t n =
          layer.n - first < per_panel * fp_fragment::kN ? layer.n - first : per_panel * fp_fragment::kN;
      Tensor panel = empty_cuda({n, layer.k}, type, on.device.index);
      gemm::DequantizeParams d{};
      d.n = int32_t(n), d.k = int32_t(layer.k), d.factor = factor * gemm::factor_of(weight, half);
      d.weight = tiles + block * block_bytes;
      if (group_scale) d.group_scale = group_scale + block * scale_bytes;
      d.scales = scales, d.group_shift = group_shift;
      d.out = panel.mutable_data_ptr(), d.out_stride = layer.k;
      check_cuda(gemm::dequantize(d, weight, half, on.stream), op);

      const Tensor sums = matmul_to_float(x, panel);
      gemm::FinishParams f{};
      f.m = int32_t(m), f.n = int32_t(n), f.y_stride = layer.n;
      f.sum = static_cast<const float*>(sums.const_data_ptr());
      f.w_scale = static_cast<const float*>(layer.w_scale.const_data_ptr()) + first;
      if (layer.bias) f.bias = static_cast<const float*>(layer.bias->const_data_ptr()) + first;
      if (add) f.residual = add + first;
      f.y = static_cast<uint16_t*>(y.mutable_data_ptr()) + first;
      check_cuda(gemm::finish(f, half, on.stream), op);
    }
  }

  // x [m, k] w [n, k]^T in fp32: aten::mm with an output type of its own.
  static Tensor matmul_to_float(const Tensor& x, const Tensor& w) {
    using torch::stable::detail::from;
    std::array<StableIValue, 3> stack{from(x), from(torch::stable::transpose(w, 0, 1)),
                                      from(ScalarType::Float)};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::mm", "dtype", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }
};

Tensor fp_linear(const Tensor& x_in, const Tensor& weight, std::string_view format, const Tensor& w_scale,
                 const OptTensor& group_scale, const OptTensor& bias, const OptTensor& residual_in) {
  constexpr const char* op = "fp_linear";
  const ScalarType type = x_in.scalar_type();
  check(type == ScalarType::Half || type == ScalarType::BFloat16, op, ": x has dtype ", name_of(type),
        ", expected float16 or bfloat16 on CUDA");
  check_same_device(op, {"x", x_in},
                    {{"weight", weight},
                     {"w_scale", w_scale},
                     {"group_scale", group_scale},
                     {"bias", bias},
                     {"residual", residual_in}});
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x");
  Call call(op, x, rows, weight, format, w_scale, group_scale, bias);
  Shape shape = shape_of(x);
  shape.back() = call.layer.n;
  const OptTensor residual = residual_of(op, residual_in, shape, type);
  Tensor y = empty_cuda(shape, type, call.on.device.index);
  if (!rows.count || !call.layer.n) return y;
  const Tensor x2 = torch::stable::view(x, {rows.count, rows.length});
  if (gemm::by_torch(rows.count, rows.length, call.on.device)) call.dequantize_and_multiply(x2, residual, y);
  else call.multiply(x2, residual, y);
  return y;
}

Tensor encode_fp(const Tensor& x_in, std::string_view format, bool ties_away) {
  constexpr const char* op = "encode_fp";
  gemm::EncodeParams p{};
  const Format f = format_of(format, op, "format", kFloatFormats);
  p.dtype = float_dtype(x_in.scalar_type(), op, "x");
  const Tensor x = as_contiguous(x_in);
  const OnDevice on(x, op);
  Tensor codes = empty_cuda(shape_of(x), ScalarType::Byte, on.device.index);
  p.count = x.numel(), p.x = x.const_data_ptr(), p.ties_away = ties_away;
  p.codes = static_cast<uint8_t*>(codes.mutable_data_ptr());
  check_cuda(gemm::encode(p, f, on.stream), op);
  return codes;
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  using namespace lowbit::ops;
  m.impl("fp_linear", TORCH_BOX(&fp_linear));
  m.impl("encode_fp", TORCH_BOX(&encode_fp));
}
