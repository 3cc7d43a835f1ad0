// Per-token quantisation and the packed int4 format on CUDA.
#include "transform_cuda.h"

namespace lowbit::ops {
namespace {

namespace quant = kernels::quantize;

std::tuple<Tensor, Tensor> quantize(const Tensor& x_in, int bits, double clip,
                                    const std::optional<Transform>& t, const char* op) {
  check_clip(op, clip);
  const DType dtype = float_dtype(x_in.scalar_type(), op, "x");
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x");
  const OnDevice on(x, op);
  Shape q_shape = shape_of(x), scale_shape = q_shape;
  scale_shape.pop_back();
  if (bits == 4) q_shape.back() = (rows.length + 1) / 2;
  Tensor q = empty_cuda(q_shape, bits == 4 ? ScalarType::Byte : ScalarType::Char, on.device.index);
  Tensor scale = empty_cuda(scale_shape, ScalarType::Float, on.device.index);
  const quant::Output to{bits == 4 ? quant::Codes::kPacked4 : quant::Codes::kInt8,
                         bits,
                         float(clip),
                         q.mutable_data_ptr(),
                         q_shape.back(),
                         static_cast<float*>(scale.mutable_data_ptr())};
  quantise_rows(op, x, rows, dtype, std::nullopt, t, to, on);
  return {q, scale};
}

std::tuple<Tensor, Tensor> quantize_int4(const Tensor& x, double clip) {
  return quantize(x, 4, clip, std::nullopt, "quantize_int4");
}

std::tuple<Tensor, Tensor> quantize_int8(const Tensor& x, double clip) {
  return quantize(x, 8, clip, std::nullopt, "quantize_int8");
}

std::tuple<Tensor, Tensor> hadamard_quantize(const Tensor& x, int64_t bits, double clip,
                                             std::optional<int64_t> block) {
  constexpr const char* op = "hadamard_quantize";
  check(bits == 4 || bits == 8, op, ": bits is ", bits, ", expected 4 or 8");
  const Rows rows = rows_of(x, op, "x");
  const Transform t = rows.length ? transform_of(rows.length, block, false, op) : Transform{};
  return quantize(x, int(bits), clip, t, op);
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  using namespace lowbit::ops;
  m.impl("quantize_int4", TORCH_BOX(&quantize_int4));
  m.impl("quantize_int8", TORCH_BOX(&quantize_int8));
  m.impl("hadamard_quantize", TORCH_BOX(&hadamard_quantize));
}
