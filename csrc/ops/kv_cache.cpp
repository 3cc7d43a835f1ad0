#include "common.h"

namespace lowbit::ops {
namespace {

std::tuple<Tensor, Tensor> kv4_quantize(const Tensor& x_in, double clip) {
  constexpr const char* op = "kv4_quantize";
  check(clip > 0 && clip <= 1, op, ": clip is ", clip, ", expected 0 < clip <= 1");
  cpu::Kv4Params p{};
  p.dtype = float_dtype(x_in.scalar_type(), op, "x");
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x");
  check(rows.length > 0, op, ": x has a last dimension of 0, expected at least 1");
  Shape packed_shape = shape_of(x), params_shape = packed_shape;
  packed_shape.back() = (rows.length + 1) / 2, params_shape.back() = 2;
  Tensor packed = empty(packed_shape, ScalarType::Byte), params = empty(params_shape, ScalarType::Half);
  p.x = x.const_data_ptr(), p.d = rows.length, p.clip = float(clip);
  p.packed = static_cast<uint8_t*>(packed.mutable_data_ptr());
  p.params = static_cast<uint16_t*>(params.mutable_data_ptr());
  parallel(rows.count, 1 + 16384 / rows.length,
           [&](int64_t, int64_t begin, int64_t end) { cpu::active().kv4_quantize_rows(p, begin, end); });
  if (checked_mode())
    for (int64_t r = 0; r < rows.count; ++r)
      check((p.params[2 * r] & 0x7fff) <= 0x7c00, op, ": x has NaN or infinity in row ", r,
            ", expected finite values (LOWBIT_CHECKED)");
  return {packed, params};
}

Tensor kv4_dequantize(const Tensor& packed_in, const Tensor& params_in, std::optional<ScalarType> dtype,
                      std::optional<int64_t> d) {
  constexpr const char* op = "kv4_dequantize";
  check_dtype(packed_in, ScalarType::Byte, op, "packed");
  check_dtype(params_in, ScalarType::Half, op, "params");
  const Tensor packed = as_contiguous(packed_in), params = as_contiguous(params_in);
  const Rows rows = rows_of(packed, op, "packed");
  Shape shape = shape_of(packed);
  shape.back() = 2;
  check_shape(params, shape, op, "params");
  shape.back() = d ? *d : 2 * rows.length;
  check((shape.back() + 1) / 2 == rows.length, op, ": d is ", shape.back(), ", expected ", 2 * rows.length,
        " or one less for ", rows.length, " bytes");
  cpu::Kv4Params p{};
  const ScalarType out = dtype.value_or(ScalarType::Float);
  p.dtype = float_dtype(out, op, "dtype");
  Tensor y = empty(shape, out);
  p.y = y.mutable_data_ptr(), p.d = shape.back();
  p.packed = static_cast<uint8_t*>(packed.mutable_data_ptr());
  p.params = static_cast<uint16_t*>(params.mutable_data_ptr());
  if (p.d)
    parallel(rows.count, 1 + 16384 / p.d,
             [&](int64_t, int64_t begin, int64_t end) { cpu::active().kv4_dequantize_rows(p, begin, end); });
  return y;
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  m.impl("kv4_quantize", TORCH_BOX(&lowbit::ops::kv4_quantize));
  m.impl("kv4_dequantize", TORCH_BOX(&lowbit::ops::kv4_dequantize));
}
