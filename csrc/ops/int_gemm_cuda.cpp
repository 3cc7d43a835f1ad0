// Integer linear layers on CUDA: bring the codes into the layout that the kernel reads, choose, launch.
#include "int_gemm_cuda.h"
#include "transform_cuda.h"

namespace lowbit::ops {
namespace {

Tensor integer_linear(const char* op, bool int8_weight, const Tensor& x_in, const OptTensor& x_scale_in,
                      const Tensor& weight, const Tensor& w_scale, const OptTensor& group_scale,
                      const OptTensor& bias, std::optional<ScalarType> out_dtype, const OptTensor& residual,
                      const OptTensor& low_rank, const OptTensor& low_rank_up) {
  const bool packed = check_codes(op, int8_weight, x_in, weight);
  check_same_device(op, {"x_q", x_in},
                    {{"x_scale", x_scale_in},
                     {"weight", weight},
                     {"w_scale", w_scale},
                     {"group_scale", group_scale},
                     {"bias", bias},
                     {"residual", residual},
                     {"low_rank", low_rank},
                     {"low_rank_up", low_rank_up}});
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x_q");
  const int64_t k = packed ? 2 * rows.length : rows.length;
  CudaLayer call(op, x, rows.count, k, weight, w_scale, group_scale, bias);
  const OptTensor x_scale = check_x_scale(op, x_scale_in, rows.count);
  if (x_scale) call.p.x_scale = static_cast<const float*>(x_scale->const_data_ptr());
  const ScalarType out = out_dtype.value_or(ScalarType::Float);
  const DType dtype = float_dtype(out, op, "out_dtype");
  const Shape shape = output_shape(x, call.layer.n);
  call.add(Addends(op, shape, out, residual, low_rank, low_rank_up));
  Tensor y = empty_cuda(shape, out, call.on.device.index);

  const gemm::Codes codes = gemm::codes_for(call.kind, packed ? 4 : 8, call.on.device.sm);
  call.bring_codes(x, rows, packed ? quant::Codes::kPacked4 : quant::Codes::kInt8, codes);
  call.run(y, dtype, codes);
  return y;
}

Tensor int4_linear(const Tensor& x_q, const OptTensor& x_scale, const Tensor& weight, const Tensor& w_scale,
                   const OptTensor& group_scale, const OptTensor& bias, std::optional<ScalarType> out_dtype,
                   const OptTensor& residual, const OptTensor& low_rank, const OptTensor& low_rank_up) {
  return integer_linear("int4_linear", false, x_q, x_scale, weight, w_scale, group_scale, bias, out_dtype,
                        residual, low_rank, low_rank_up);
}

Tensor int8_linear(const Tensor& x_q, const OptTensor& x_scale, const Tensor& weight, const Tensor& w_scale,
                   const OptTensor& bias, std::optional<ScalarType> out_dtype, const OptTensor& residual,
                   const OptTensor& low_rank, const OptTensor& low_rank_up) {
  return integer_linear("int8_linear", true, x_q, x_scale, weight, w_scale, std::nullopt, bias, out_dtype,
                        residual, low_rank, low_rank_up);
}

Tensor dynamic_linear(const Tensor& x_in, const Tensor& weight, const Tensor& w_scale,
                      const OptTensor& group_scale, const OptTensor& bias, int64_t activation_bits,
                      double clip, std::optional<int64_t> hadamard_block, const OptTensor& shift_in,
                      const OptTensor& residual) {
  constexpr const char* op = "dynamic_linear";
  check_quantiser(op, activation_bits, clip);
  const DType dtype = float_dtype(x_in.scalar_type(), op, "x");
  check_same_device(op, {"x", x_in},
                    {{"weight", weight},
                     {"w_scale", w_scale},
                     {"group_scale", group_scale},
                     {"bias", bias},
                     {"shift", shift_in},
                     {"residual", residual}});
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x");
  CudaLayer call(op, x, rows.count, rows.length, weight, w_scale, group_scale, bias);
  const OptTensor shift = check_shift(op, shift_in, rows.length);
  const Shape shape = output_shape(x, call.layer.n);
  call.add(Addends(op, shape, x_in.scalar_type(), residual));
  Tensor y = empty_cuda(shape, x_in.scalar_type(), call.on.device.index);

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
