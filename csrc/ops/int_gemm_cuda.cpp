// Integer linear layers on CUDA: bring the codes into the layout that the kernel reads, choose, launch.
#include "../kernels/int_gemm/launch.h"
#include "../kernels/quantize/params.h"
#include "cuda.h"
#include "int_gemm.h"
#include "transform_cuda.h"

namespace lowbit::ops {
namespace {

namespace gemm = kernels::int_gemm;
namespace quant = kernels::quantize;

int64_t rounded(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// The kernels read 16 bytes at a time; only a view into a larger tensor can start elsewhere.
Tensor as_aligned(const Tensor& t) { return aligned(t.const_data_ptr()) ? t : torch::stable::clone(t); }

// One call of a linear op on one card.
struct Call {
  const char* op;
  OnDevice on;
  LinearLayer layer;
  gemm::Weight kind;
  gemm::Params p{};
  std::vector<Tensor> kept;  // alive until the launch

  Call(const char* op, const Tensor& x, int64_t m, int64_t k, const Tensor& weight, const Tensor& w_scale,
       const OptTensor& group_scale, const OptTensor& bias)
      : op(op), on(x, op), layer(op, kCudaBlocks, m, k, weight, w_scale, group_scale, bias) {
    layer.check_depth(op, 131071);  // per-channel codes are carried times 16
    check(m < (int64_t(1) << 31) && layer.n < (int64_t(1) << 31), op,
          ": expected fewer than 2^31 rows of x and of weight");
    kind = layer.int8          ? gemm::Weight::kInt8
           : layer.group_scale ? gemm::Weight::kInt4Group
                               : gemm::Weight::kInt4;
    p.m = int32_t(m), p.n = int32_t(layer.n), p.k = int32_t(k),
    p.group_shift = layer.group == 32   ? 5
                    : layer.group == 64 ? 6
                                        : 7;
    p.weight = keep<uint8_t>(layer.weight), p.w_scale = keep<float>(layer.w_scale);
    if (layer.group_scale) p.group_scale = keep<uint8_t>(*layer.group_scale);
    if (layer.bias) p.bias = keep<float>(*layer.bias);
  }

  template <class T>
  const T* keep(const Tensor& t) {
    kept.push_back(as_aligned(t));
    return static_cast<const T*>(kept.back().const_data_ptr());
  }

  // Where the codes go that this call makes itself: rows padded, so that nothing past k is left to chance.
  void* own_codes(gemm::Codes codes) {
    const bool s4 = codes == gemm::Codes::kOperand4;
    p.x_stride = s4 ? rounded(layer.k, 64) / 2 : rounded(layer.k, 64);
    p.x_bytes = int32_t(p.x_stride);
    kept.push_back(empty_cuda({layer.m, p.x_stride}, ScalarType::Byte, on.device.index));
    p.x = static_cast<const uint8_t*>(kept.back().const_data_ptr());
    return kept.back().mutable_data_ptr();
  }

  void run(Tensor& y, DType dtype, gemm::Codes codes) {
    if (!layer.m || !layer.n) return;
    p.y = y.mutable_data_ptr(), p.out = dtype;
    const gemm::Choice c = gemm::choose(p.m, p.n, p.k, kind, codes, on.device);
    p.splits = c.splits, p.stages_per_split = c.stages_per_split;
    if (c.splits > 1) {
      kept.push_back(empty_cuda({c.partial_words}, ScalarType::Int, on.device.index));
      p.partial = static_cast<int32_t*>(kept.back().mutable_data_ptr());
      Tensor tickets = empty_cuda({c.tickets}, ScalarType::Int, on.device.index);
      torch::stable::zero_(tickets);
      kept.push_back(tickets);
      p.tickets = static_cast<uint32_t*>(tickets.mutable_data_ptr());
    }
    check_cuda(gemm::run(p, c, kind, codes, on.device, on.stream), op);
  }
};

Tensor integer_linear(const char* op, bool int8_weight, const Tensor& x_in, const OptTensor& x_scale_in,
                      const Tensor& weight, const Tensor& w_scale, const OptTensor& group_scale,
                      const OptTensor& bias, std::optional<ScalarType> out_dtype) {
  const bool packed = check_codes(op, int8_weight, x_in, weight);
  check_same_device(op, {"x_q", x_in},
                    {{"x_scale", x_scale_in},
                     {"weight", weight},
                     {"w_scale", w_scale},
                     {"group_scale", group_scale},
                     {"bias", bias}});
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x_q");
  const int64_t k = packed ? 2 * rows.length : rows.length;
  Call call(op, x, rows.count, k, weight, w_scale, group_scale, bias);
  const OptTensor x_scale = check_x_scale(op, x_scale_in, rows.count);
  if (x_scale) call.p.x_scale = static_cast<const float*>(x_scale->const_data_ptr());
  const ScalarType out = out_dtype.value_or(ScalarType::Float);
  const DType dtype = float_dtype(out, op, "out_dtype");
  Tensor y = empty_cuda(output_shape(x, call.layer.n), out, call.on.device.index);

  const gemm::Codes codes = gemm::codes_for(call.kind, packed ? 4 : 8, call.on.device.sm);
  if (!packed && k % 16 == 0 && aligned(x.const_data_ptr())) {
    call.p.x = static_cast<const uint8_t*>(x.const_data_ptr()), call.p.x_stride = k,
    call.p.x_bytes = int32_t(k);
  } else if (rows.count && k) {
    quant::ConvertParams convert{};
    convert.from = packed ? quant::Codes::kPacked4 : quant::Codes::kInt8;
    convert.x = x.const_data_ptr(), convert.rows = rows.count, convert.k = k, convert.x_stride = rows.length;
    convert.to = codes == gemm::Codes::kOperand4 ? quant::Codes::kOperand4 : quant::Codes::kInt8;
    convert.q = call.own_codes(codes), convert.stride = call.p.x_stride;
    check_cuda(quant::convert_codes_launch(convert, call.on.device, call.on.stream), op);
  }
  call.run(y, dtype, codes);
  return y;
}

Tensor int4_linear(const Tensor& x_q, const OptTensor& x_scale, const Tensor& weight, const Tensor& w_scale,
                   const OptTensor& group_scale, const OptTensor& bias, std::optional<ScalarType> out_dtype) {
  return integer_linear("int4_linear", false, x_q, x_scale, weight, w_scale, group_scale, bias, out_dtype);
}

Tensor int8_linear(const Tensor& x_q, const OptTensor& x_scale, const Tensor& weight, const Tensor& w_scale,
                   const OptTensor& bias, std::optional<ScalarType> out_dtype) {
  return integer_linear("int8_linear", true, x_q, x_scale, weight, w_scale, std::nullopt, bias, out_dtype);
}

Tensor dynamic_linear(const Tensor& x_in, const Tensor& weight, const Tensor& w_scale,
                      const OptTensor& group_scale, const OptTensor& bias, int64_t activation_bits,
                      double clip, std::optional<int64_t> hadamard_block, const OptTensor& shift_in) {
  constexpr const char* op = "dynamic_linear";
  check_quantiser(op, activation_bits, clip);
  const DType dtype = float_dtype(x_in.scalar_type(), op, "x");
  check_same_device(op, {"x", x_in},
                    {{"weight", weight},
                     {"w_scale", w_scale},
                     {"group_scale", group_scale},
                     {"bias", bias},
                     {"shift", shift_in}});
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x");
  Call call(op, x, rows.count, rows.length, weight, w_scale, group_scale, bias);
  const OptTensor shift = check_shift(op, shift_in, rows.length);
  Tensor y = empty_cuda(output_shape(x, call.layer.n), x_in.scalar_type(), call.on.device.index);

  const gemm::Codes codes = gemm::codes_for(call.kind, int(activation_bits), call.on.device.sm);
  quant::Output to{};
  to.codes = codes == gemm::Codes::kOperand4 ? quant::Codes::kOperand4 : quant::Codes::kInt8;
  to.bits = int(activation_bits), to.clip = float(clip);
  to.q = call.own_codes(codes), to.stride = call.p.x_stride;
  Tensor scale = empty_cuda({rows.count}, ScalarType::Float, call.on.device.index);
  to.scale = static_cast<float*>(scale.mutable_data_ptr());
  call.p.x_scale = to.scale;
  std::optional<Transform> transform;
  if (hadamard_block && rows.length) transform = transform_of(rows.length, hadamard_block, false, op);
  quantise_rows(op, x, rows, dtype, shift, transform, to, call.on);
  call.run(y, dtype, codes);
  return y;
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  using namespace lowbit::ops;
  m.impl("int4_linear", TORCH_BOX(&int4_linear));
  m.impl("int8_linear", TORCH_BOX(&int8_linear));
  m.impl("dynamic_linear", TORCH_BOX(&dynamic_linear));
}
