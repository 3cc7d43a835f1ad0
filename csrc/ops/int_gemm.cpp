// Integer linear layers and the layouts that their kernels read.
#include <cstring>

#include "../layout/weight_tile.h"
#include "int_gemm_cpu.h"

namespace lowbit::ops {
namespace {

Tensor prepack_int4_weight(const Tensor& weight_in) {
  constexpr const char* op = "prepack_int4_weight";
  check_dtype(weight_in, ScalarType::Byte, op, "weight_packed");
  check(weight_in.dim() == 2, op, ": weight_packed has ", weight_in.dim(),
        " dimensions, expected [N, ceil(K / 2)]");
  const Tensor weight = as_contiguous(weight_in);
  const int64_t n = weight.size(0), bytes = weight.size(1), k_tiles = ceil_div(2 * bytes, tile::kK);
  Tensor tiles = empty({ceil_div(n, tile::kN), k_tiles, tile::kInt4Bytes}, ScalarType::Byte);
  uint8_t* to = static_cast<uint8_t*>(tiles.mutable_data_ptr());
  memset(to, int4::kZeroByte, size_t(ceil_div(n, tile::kN) * k_tiles * tile::kInt4Bytes));
  const uint8_t* from = static_cast<const uint8_t*>(weight.const_data_ptr());
  const auto put = [&](int64_t row, int64_t k, int code) {
    const tile::Nibble at = tile::int4_at(row, k, k_tiles);
    to[at.byte] = uint8_t(at.high ? (to[at.byte] & 15) | (code << 4) : (to[at.byte] & 0xf0) | code);
  };
  parallel(ceil_div(n, tile::kN), 1 + 65536 / (bytes * 16 + 1), [&](int64_t, int64_t begin, int64_t end) {
    const int64_t last = end * tile::kN < n ? end * tile::kN : n;
    for (int64_t row = begin * tile::kN; row < last; ++row)
      for (int64_t b = 0; b < bytes; ++b) {
        put(row, 2 * b, from[row * bytes + b] & 15);
        put(row, 2 * b + 1, from[row * bytes + b] >> 4);
      }
  });
  return tiles;
}

Tensor prepack_int8_weight(const Tensor& weight_in) {
  constexpr const char* op = "prepack_int8_weight";
  check_dtype(weight_in, ScalarType::Char, op, "weight");
  check(weight_in.dim() == 2, op, ": weight has ", weight_in.dim(), " dimensions, expected [N, K]");
  const Tensor weight = as_contiguous(weight_in);
  const int64_t n = weight.size(0), k = weight.size(1), k_tiles = ceil_div(k, tile::kK);
  Tensor tiles = empty({ceil_div(n, tile::kN), k_tiles, tile::kInt8Bytes}, ScalarType::Char);
  int8_t* to = static_cast<int8_t*>(tiles.mutable_data_ptr());
  memset(to, 0, size_t(ceil_div(n, tile::kN) * k_tiles * tile::kInt8Bytes));
  const int8_t* from = static_cast<const int8_t*>(weight.const_data_ptr());
  for (int64_t row = 0; row < n; ++row)
    for (int64_t i = 0; i < k; ++i) to[tile::int8_at(row, i, k_tiles)] = from[row * k + i];
  return tiles;
}

Tensor prepack_group_scale(const Tensor& scale_in) {
  constexpr const char* op = "prepack_group_scale";
  check_dtype(scale_in, ScalarType::Byte, op, "group_scale");
  check(scale_in.dim() == 2, op, ": group_scale has ", scale_in.dim(),
        " dimensions, expected [N, K / group]");
  const Tensor scale = as_contiguous(scale_in);
  const int64_t n = scale.size(0), g = scale.size(1), blocks = ceil_div(n, tile::kN);
  Tensor tiles = empty({blocks, g, tile::kN}, ScalarType::Byte);
  const uint8_t* from = static_cast<const uint8_t*>(scale.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(tiles.mutable_data_ptr());
  for (int64_t row = 0; row < blocks * tile::kN; ++row)
    for (int64_t i = 0; i < g; ++i) {
      const int v = row < n ? from[row * g + i] : 1;
      check(v >= 1 && v <= 16, op, ": group_scale[", row, ", ", i, "] is ", v, ", expected 1 to 16");
      to[((row / tile::kN) * g + i) * tile::kN + row % tile::kN] = uint8_t(v);
    }
  return tiles;
}

Tensor integer_linear(const char* op, bool int8_weight, const Tensor& x_in, const OptTensor& x_scale_in,
                      const Tensor& weight, const Tensor& w_scale, const OptTensor& group_scale,
                      const OptTensor& bias, std::optional<ScalarType> out_dtype, const OptTensor& residual,
                      const OptTensor& low_rank, const OptTensor& low_rank_up) {
  const bool packed = check_codes(op, int8_weight, x_in, weight);
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x_q");
  const int64_t k = packed ? 2 * rows.length : rows.length;
  CpuLayer layer(op, rows.count, k, weight, w_scale, group_scale, bias);
  layer.p.max_code = packed ? 8 : 128;
  const OptTensor x_scale = check_x_scale(op, x_scale_in, rows.count);
  if (x_scale) layer.p.x_scale = static_cast<const float*>(x_scale->const_data_ptr());
  const ScalarType out = out_dtype.value_or(ScalarType::Float);
  const DType dtype = float_dtype(out, op, "out_dtype");
  const Shape shape = output_shape(x, layer.p.n);
  const Addends addends(op, shape, out, residual, low_rank, low_rank_up);
  layer.add(addends);
  Tensor y = empty(shape, out);

  const int64_t stride = (k + 7) / 8 * 8;
  const bool direct = !packed && stride == k;
  Workspace codes(direct ? 0 : rows.count * stride);
  if (!direct) {
    int8_t* to = codes.as<int8_t>();
    parallel(rows.count, 1 + 65536 / (k + 1), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        int8_t* row = to + r * stride;
        memset(row + k, 0, size_t(stride - k));
        if (packed) {
          const uint8_t* from = static_cast<const uint8_t*>(x.const_data_ptr()) + r * rows.length;
          cpu::active().unpack_nibbles(from, rows.length, row);
        } else {
          memcpy(row, static_cast<const int8_t*>(x.const_data_ptr()) + r * k, size_t(k));
        }
      }
    });
  }
  layer.p.x = direct ? static_cast<const int8_t*>(x.const_data_ptr()) : codes.as<int8_t>();
  layer.p.x_stride = stride;
  layer.run(y, dtype);
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
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x");
  CpuLayer layer(op, rows.count, rows.length, weight, w_scale, group_scale, bias);
  const Shape shape = output_shape(x, layer.p.n);
  const Addends addends(op, shape, x.scalar_type(), residual);
  layer.add(addends);
  Tensor y = empty(shape, x.scalar_type());

  cpu::QuantizeParams q{};
  q.x = x.const_data_ptr(), q.x_dtype = dtype, q.k = q.x_stride = rows.length;
  const OptTensor shift = check_shift(op, shift_in, rows.length);
  if (shift) q.shift = static_cast<const float*>(shift->const_data_ptr());
  if (hadamard_block && rows.length) {
    const Transform t = transform_of(rows.length, hadamard_block, false, op);
    q.order = t.order, q.two = t.two, q.mix = t.mix;
  }
  q.bits = int(activation_bits), q.clip = float(clip), q.q_stride = (rows.length + 7) / 8 * 8;
  const cpu::Kernels& kernels = cpu::active();
  const int64_t scratch = (kernels.quantize_scratch(q) + 15) / 16 * 16;
  const bool plain = !q.order && !q.shift;  // reads x itself: no scratch
  const int64_t scales = (rows.count + 15) / 16 * 16, codes = (rows.count * q.q_stride + 63) / 64 * 64;
  Workspace work(scales * 4 + codes + (plain ? 0 : scratch * 4 * threads()));
  float* scale = work.as<float>();
  int8_t* code = reinterpret_cast<int8_t*>(scale + scales);
  float* row = reinterpret_cast<float*>(code + codes);
  q.scale = scale, q.q = code;
  layer.p.max_code = q.bits == 4 ? 8 : 127;
  layer.p.x = code, layer.p.x_stride = q.q_stride, layer.p.x_scale = scale;
  layer.run(y, dtype, [&](int64_t thread, int64_t begin, int64_t end) {
    kernels.quantize_rows(q, plain ? nullptr : row + thread * scratch, begin, end);
  });
  if (layer.p.n) check_finite(scale, rows.count, op);
  return y;
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  using namespace lowbit::ops;
  m.impl("prepack_int4_weight", TORCH_BOX(&prepack_int4_weight));
  m.impl("prepack_int8_weight", TORCH_BOX(&prepack_int8_weight));
  m.impl("prepack_group_scale", TORCH_BOX(&prepack_group_scale));
  m.impl("int4_linear", TORCH_BOX(&int4_linear));
  m.impl("int8_linear", TORCH_BOX(&int8_linear));
  m.impl("dynamic_linear", TORCH_BOX(&dynamic_linear));
}
