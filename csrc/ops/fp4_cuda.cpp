// FP4 activations and linear layers on FP4 codes, on CUDA.
#include "../kernels/quantize/config.h"
#include "fp4.h"
#include "int_gemm_cuda.h"

namespace lowbit::ops {
namespace {

std::tuple<Tensor, Tensor> quantize_fp4(const Tensor& x_in, std::string_view format,
                                        const OptTensor& scale_in, const OptTensor& exponent, double clip) {
  constexpr const char* op = "quantize_fp4";
  const Fp4Quantiser quantiser(op, x_in, format, scale_in, exponent, clip);
  check_same_device(op, {"x", x_in}, {{"scale", scale_in}, {"exponent", exponent}});
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x");
  const OnDevice on(x, op);
  Shape q_shape = shape_of(x), scale_shape = q_shape;
  scale_shape.pop_back();
  q_shape.back() = (rows.length + 1) / 2;
  Tensor q = empty_cuda(q_shape, ScalarType::Byte, on.device.index);
  Tensor scale = empty_cuda(scale_shape, ScalarType::Float, on.device.index);

  quant::Fp4Params p{};
  p.x = x.const_data_ptr(), p.dtype = quantiser.dtype, p.rows = rows.count, p.k = p.x_stride = rows.length;
  if (quantiser.exponent) p.exponent = static_cast<const int8_t*>(quantiser.exponent->const_data_ptr());
  p.rounding = quant::rounding_of(quantiser.format), p.clip = float(clip);
  // its value is not looked at: that would wait for the card
  if (quantiser.scale) p.fixed_scale = static_cast<const float*>(quantiser.scale->const_data_ptr());
  p.q = q.mutable_data_ptr(), p.stride = q_shape.back();
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  check_cuda(quant::quantize_fp4_launch(p, on.device, on.stream), op);
  return {q, scale};
}

Tensor fp4_linear(const Tensor& x_in, std::string_view x_format, const OptTensor& x_scale_in,
                  const Tensor& weight, std::string_view w_format, const Tensor& w_scale,
                  const OptTensor& bias, std::optional<ScalarType> out_dtype) {
  constexpr const char* op = "fp4_linear";
  const Fp4Operands operands(op, x_in, x_format, weight, w_format);
  check_same_device(op, {"x_q", x_in},
                    {{"x_scale", x_scale_in}, {"weight", weight}, {"w_scale", w_scale}, {"bias", bias}});
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x_q");
  CudaLayer call(op, x, rows.count, operands.k, weight, w_scale, std::nullopt, bias, operands.deepest());
  call.kind = gemm::Weight::kFp4;
  call.p.set_fp4(*operands.weight, operands.factor());
  const OptTensor x_scale = check_x_scale(op, x_scale_in, rows.count);
  if (x_scale) call.p.x_scale = static_cast<const float*>(x_scale->const_data_ptr());
  const ScalarType out = out_dtype.value_or(ScalarType::Float);
  const DType dtype = float_dtype(out, op, "out_dtype");
  Tensor y = empty_cuda(output_shape(x, call.layer.n), out, call.on.device.index);

  call.bring_codes(x, rows, operands.x ? quant::Codes::kFp4 : quant::Codes::kInt8, gemm::Codes::kInt8,
                   operands.x ? magnitudes_of(*operands.x) : Fp4Magnitudes{});
  call.run(y, dtype, gemm::Codes::kInt8);
  return y;
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  using namespace lowbit::ops;
  m.impl("quantize_fp4", TORCH_BOX(&quantize_fp4));
  m.impl("fp4_linear", TORCH_BOX(&fp4_linear));
}
