#include "kv_cache.h"

namespace lowbit::ops {
namespace {

std::tuple<Tensor, Tensor> kv4_quantize(const Tensor& x_in, double clip) {
  constexpr const char* op = "kv4_quantize";
  const Kv4Input in(op, x_in, clip);
  const Rows rows = in.rows;
  Tensor packed = empty(in.packed, ScalarType::Byte), params = empty(in.params, ScalarType::Half);
  cpu::Kv4Params p{};
  p.x = in.x.const_data_ptr(), p.dtype = in.dtype, p.d = rows.length, p.clip = float(clip);
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
  const Kv4Stored in("kv4_dequantize", packed_in, params_in, dtype, d);
  const Rows rows = in.rows;
  Tensor packed = in.packed, params = in.params, y = empty(in.shape, in.out);
  cpu::Kv4Params p{};
  p.y = y.mutable_data_ptr(), p.dtype = in.dtype, p.d = in.shape.back();
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
