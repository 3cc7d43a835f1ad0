// FP4 activations, and linear layers on FP4 codes: exact integer products of 16-entry tables.
#include "fp4.h"

#include <cstring>

#include "int_gemm_cpu.h"

namespace lowbit::ops {
namespace {

float power_of_two(int exponent) {  // exact for all of int8; 2^-127 and 2^-128 are subnormal
  return bits_float(exponent > -127 ? uint32_t(exponent + 127) << 23 : 0x00400000u >> (-127 - exponent));
}

std::tuple<Tensor, Tensor> quantize_fp4(const Tensor& x_in, std::string_view format,
                                        const OptTensor& scale_in, const OptTensor& exponent, double clip) {
  constexpr const char* op = "quantize_fp4";
  const Fp4Quantiser quantiser(op, x_in, format, scale_in, exponent, clip);
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x");
  Shape q_shape = shape_of(x), scale_shape = q_shape;
  scale_shape.pop_back();
  q_shape.back() = (rows.length + 1) / 2;
  Tensor q = empty(q_shape, ScalarType::Byte);
  Tensor scale = empty(scale_shape, ScalarType::Float);

  cpu::QuantizeFp4Params p{};
  p.x = x.const_data_ptr(), p.x_dtype = quantiser.dtype, p.k = rows.length;
  p.format = quantiser.format, p.clip = float(clip);
  p.q = static_cast<uint8_t*>(q.mutable_data_ptr()), p.scale = static_cast<float*>(scale.mutable_data_ptr());
  if (quantiser.scale) {
    p.fixed_scale = *static_cast<const float*>(quantiser.scale->const_data_ptr());
    check(p.fixed_scale >= 1.17549435e-38f && p.fixed_scale <= 3.4028234663852886e38f, op, ": scale is ",
          p.fixed_scale, ", expected a finite number of at least 2^-126");
  }
  Workspace powers(quantiser.exponent ? rows.length * 4 : 0);
  if (quantiser.exponent) {
    const int8_t* e = static_cast<const int8_t*>(quantiser.exponent->const_data_ptr());
    for (int64_t i = 0; i < rows.length; ++i) powers.as<float>()[i] = power_of_two(e[i]);
    p.power = powers.as<float>();
  }
  parallel(rows.count, 1 + 16384 / (rows.length + 1),
           [&](int64_t, int64_t begin, int64_t end) { cpu::active().quantize_fp4_rows(p, begin, end); });
  check_finite(p.scale, rows.count, op);
  return {q, scale};
}

Tensor fp4_linear(const Tensor& x_in, std::string_view x_format, const OptTensor& x_scale_in,
                  const Tensor& weight, std::string_view w_format, const Tensor& w_scale,
                  const OptTensor& bias, std::optional<ScalarType> out_dtype) {
  constexpr const char* op = "fp4_linear";
  const Fp4Operands operands(op, x_in, x_format, weight, w_format);
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x_q");
  const int64_t k = operands.k, stride = (k + 7) / 8 * 8;
  CpuLayer layer(op, rows.count, k, weight, w_scale, std::nullopt, bias);
  layer.check_depth(op, operands.deepest());
  layer.p.fp4 = operands.weight, layer.p.max_code = operands.max_code, layer.p.w_factor = operands.factor();
  const OptTensor x_scale = check_x_scale(op, x_scale_in, rows.count);
  if (x_scale) layer.p.x_scale = static_cast<const float*>(x_scale->const_data_ptr());
  const ScalarType out = out_dtype.value_or(ScalarType::Float);
  const DType dtype = float_dtype(out, op, "out_dtype");
  Tensor y = empty(output_shape(x, layer.n), out);

  const bool direct = !operands.x && stride == k;
  Workspace codes(direct ? 0 : rows.count * stride);
  if (!direct) {
    parallel(rows.count, 1 + 65536 / (k + 1), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        int8_t* row = codes.as<int8_t>() + r * stride;
        const uint8_t* from = static_cast<const uint8_t*>(x.const_data_ptr()) + r * rows.length;
        memset(row + k, 0, size_t(stride - k));
        if (operands.x)
          for (int64_t i = 0; i < rows.length; ++i)
            row[2 * i] = operands.x->value[from[i] & 15], row[2 * i + 1] = operands.x->value[from[i] >> 4];
        else memcpy(row, from, size_t(k));
      }
    });
  }
  layer.p.x = direct ? static_cast<const int8_t*>(x.const_data_ptr()) : codes.as<int8_t>();
  layer.p.x_stride = stride;
  layer.run(y, dtype);
  return y;
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  using namespace lowbit::ops;
  m.impl("quantize_fp4", TORCH_BOX(&quantize_fp4));
  m.impl("fp4_linear", TORCH_BOX(&fp4_linear));
}
