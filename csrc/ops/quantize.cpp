// Per-token quantisation and the packed int4 format.
#include "common.h"

namespace lowbit::ops {
namespace {

std::tuple<Tensor, Tensor> quantize(const Tensor& x_in, int bits, double clip, const Transform& t,
                                    const char* op) {
  check_clip(op, clip);
  const DType dtype = float_dtype(x_in.scalar_type(), op, "x");
  const Tensor x = as_contiguous(x_in);
  const Rows rows = rows_of(x, op, "x");
  Shape q_shape = shape_of(x), scale_shape = q_shape;
  scale_shape.pop_back();
  if (bits == 4) q_shape.back() = (rows.length + 1) / 2;
  Tensor q = empty(q_shape, bits == 4 ? ScalarType::Byte : ScalarType::Char);
  Tensor scale = empty(scale_shape, ScalarType::Float);
  cpu::QuantizeParams p{};
  p.x = x.const_data_ptr(), p.x_dtype = dtype, p.k = p.x_stride = rows.length;
  p.order = t.order, p.two = t.two, p.mix = t.mix;
  p.bits = bits, p.clip = float(clip), p.packed = bits == 4;
  p.q = q.mutable_data_ptr(), p.q_stride = q_shape.back(),
  p.scale = static_cast<float*>(scale.mutable_data_ptr());
  const cpu::Kernels& kernels = cpu::active();
  const int64_t scratch = (kernels.quantize_scratch(p) + 15) / 16 * 16;
  Workspace work(scratch * 4 * threads());
  const int64_t grain = 1 + 16384 / (rows.length + 1);
  parallel(rows.count, grain, [&](int64_t thread, int64_t begin, int64_t end) {
    kernels.quantize_rows(p, work.as<float>() + thread * scratch, begin, end);
  });
  check_finite(p.scale, rows.count, op);
  return {q, scale};
}

std::tuple<Tensor, Tensor> quantize_int4(const Tensor& x, double clip) {
  return quantize(x, 4, clip, {}, "quantize_int4");
}

std::tuple<Tensor, Tensor> quantize_int8(const Tensor& x, double clip) {
  return quantize(x, 8, clip, {}, "quantize_int8");
}

std::tuple<Tensor, Tensor> hadamard_quantize(const Tensor& x, int64_t bits, double clip,
                                             std::optional<int64_t> block) {
  check(bits == 4 || bits == 8, "hadamard_quantize: bits is ", bits, ", expected 4 or 8");
  const Rows rows = rows_of(x, "hadamard_quantize", "x");
  const Transform t =
      rows.length ? transform_of(rows.length, block, false, "hadamard_quantize") : Transform{};
  return quantize(x, int(bits), clip, t, "hadamard_quantize");
}

Tensor pack_int4(const Tensor& q_in) {
  check_dtype(q_in, ScalarType::Char, "pack_int4", "q");
  const Tensor q = as_contiguous(q_in);
  const Rows rows = rows_of(q, "pack_int4", "q");
  Shape shape = shape_of(q);
  shape.back() = (rows.length + 1) / 2;
  Tensor packed = empty(shape, ScalarType::Byte);
  const int8_t* from = static_cast<const int8_t*>(q.const_data_ptr());
  uint8_t* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
  int low = 0, high = 0;
  for (int64_t i = 0; i < rows.count * rows.length; ++i) {
    low = from[i] < low ? from[i] : low;
    high = from[i] > high ? from[i] : high;
  }
  check(low >= int4::kMin && high <= int4::kMax, "pack_int4: q has values ", low, " to ", high,
        ", expected -8 to 7");
  for (int64_t r = 0; r < rows.count; ++r)
    for (int64_t i = 0; i < shape.back(); ++i) {
      const int8_t* pair = from + r * rows.length + 2 * i;
      *to++ = int4::encode(pair[0], 2 * i + 1 < rows.length ? pair[1] : 0);
    }
  return packed;
}

Tensor unpack_int4(const Tensor& packed_in, std::optional<int64_t> k_arg) {
  check_dtype(packed_in, ScalarType::Byte, "unpack_int4", "packed");
  const Tensor packed = as_contiguous(packed_in);
  const Rows rows = rows_of(packed, "unpack_int4", "packed");
  const int64_t k = k_arg ? *k_arg : 2 * rows.length;
  check((k + 1) / 2 == rows.length, "unpack_int4: k is ", k, ", expected ", 2 * rows.length,
        " or one less for ", rows.length, " bytes");
  Shape shape = shape_of(packed);
  shape.back() = k;
  Tensor q = empty(shape, ScalarType::Char);
  const uint8_t* from = static_cast<const uint8_t*>(packed.const_data_ptr());
  int8_t* to = static_cast<int8_t*>(q.mutable_data_ptr());
  for (int64_t r = 0; r < rows.count; ++r)
    for (int64_t i = 0; i < k; ++i) {
      const uint8_t b = from[r * rows.length + i / 2];
      *to++ = int8_t(i % 2 ? int4::decode_high(b) : int4::decode_low(b));
    }
  return q;
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CPU, m) {
  using namespace lowbit::ops;
  m.impl("pack_int4", TORCH_BOX(&pack_int4));
  m.impl("unpack_int4", TORCH_BOX(&unpack_int4));
  m.impl("quantize_int4", TORCH_BOX(&quantize_int4));
  m.impl("quantize_int8", TORCH_BOX(&quantize_int8));
  m.impl("hadamard_quantize", TORCH_BOX(&hadamard_quantize));
}
