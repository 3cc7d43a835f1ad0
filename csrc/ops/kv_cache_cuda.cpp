// INT4 keys and values on CUDA. LOWBIT_CHECKED is the CPU's: reading a result back would stall the stream.
#include "../kernels/kv_cache/params.h"
#include "cuda.h"
#include "kv_cache.h"

namespace lowbit::ops {
namespace {

namespace kv = kernels::kv_cache;

std::tuple<Tensor, Tensor> kv4_quantize(const Tensor& x, double clip) {
  constexpr const char* op = "kv4_quantize";
  const Kv4Input in(op, x, clip);
  const OnDevice on(in.x, op);
  Tensor packed = empty_cuda(in.packed, ScalarType::Byte, on.device.index);
  Tensor params = empty_cuda(in.params, ScalarType::Half, on.device.index);
  kv::Params p{};
  p.x = in.x.const_data_ptr(), p.dtype = in.dtype, p.rows = in.rows.count;
  p.d = in.rows.length, p.clip = float(clip);
  p.packed = static_cast<uint8_t*>(packed.mutable_data_ptr());
  p.params = static_cast<uint16_t*>(params.mutable_data_ptr());
  check_cuda(kv::kv4_quantize_launch(p, on.device, on.stream), op);
  return {packed, params};
}

Tensor kv4_dequantize(const Tensor& packed_in, const Tensor& params_in, std::optional<ScalarType> dtype,
                      std::optional<int64_t> d) {
  constexpr const char* op = "kv4_dequantize";
  const Kv4Stored in(op, packed_in, params_in, dtype, d);
  check_same_device(op, {"packed", packed_in}, {{"params", params_in}});
  const OnDevice on(in.packed, op);
  Tensor packed = in.packed, params = in.params;
  // a row of params is read as one word; only a view into a larger tensor can start between two
  if (reinterpret_cast<uintptr_t>(params.const_data_ptr()) % 4) params = torch::stable::clone(params);
  Tensor y = empty_cuda(in.shape, in.out, on.device.index);
  kv::Params p{};
  p.y = y.mutable_data_ptr(), p.dtype = in.dtype, p.rows = in.rows.count;
  p.d = in.shape.back();
  p.packed = const_cast<uint8_t*>(static_cast<const uint8_t*>(packed.const_data_ptr()));
  p.params = const_cast<uint16_t*>(static_cast<const uint16_t*>(params.const_data_ptr()));
  if (p.d) check_cuda(kv::kv4_dequantize_launch(p, on.device, on.stream), op);
  return y;
}

}  // namespace
}  // namespace lowbit::ops

STABLE_TORCH_LIBRARY_IMPL(lowbit, CUDA, m) {
  m.impl("kv4_quantize", TORCH_BOX(&lowbit::ops::kv4_quantize));
  m.impl("kv4_dequantize", TORCH_BOX(&lowbit::ops::kv4_dequantize));
}
