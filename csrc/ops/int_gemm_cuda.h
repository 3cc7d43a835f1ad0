// The integer GEMM on CUDA: a checked layer, the codes it makes itself, the choice of a kernel, the launch.
#pragma once

#include "../kernels/int_gemm/launch.h"
#include "../kernels/quantize/params.h"
#include "cuda.h"
#include "int_gemm.h"

namespace lowbit::ops {

namespace gemm = kernels::int_gemm;
namespace quant = kernels::quantize;

constexpr int64_t kDeepest = 131071;  // per-channel int4 codes are carried times 16

inline int64_t rounded(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

// One call of a linear op on one card.
struct CudaLayer {
  const char* op;
  OnDevice on;
  LinearLayer layer;
  gemm::Weight kind;
  gemm::Params p{};
  gemm::Addends addends{};
  std::vector<Tensor> kept;  // alive until the launch

  CudaLayer(const char* op, const Tensor& x, int64_t m, int64_t k, const Tensor& weight,
            const Tensor& w_scale, const OptTensor& group_scale, const OptTensor& bias,
            int64_t deepest = kDeepest)
      : op(op), on(x, op), layer(op, kCudaBlocks, m, k, weight, w_scale, group_scale, bias) {
    layer.check_depth(op, deepest);
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
    return keep_aligned<T>(t, kept);
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

  // The rows of x, whose codes are as `from`, in the layout that the kernel reads: as they lie where that is
  // it.
  void bring_codes(const Tensor& x, const Rows& rows, quant::Codes from, gemm::Codes codes,
                   Fp4Magnitudes fp4 = {}) {
    const int64_t k = layer.k;
    if (from == quant::Codes::kInt8 && k % 16 == 0 && aligned(x.const_data_ptr())) {
      p.x = static_cast<const uint8_t*>(x.const_data_ptr()), p.x_stride = k, p.x_bytes = int32_t(k);
    } else if (rows.count && k) {
      quant::ConvertParams convert{};
      convert.from = from, convert.fp4 = fp4;
      convert.x = x.const_data_ptr(), convert.rows = rows.count, convert.k = k,
      convert.x_stride = rows.length;
      convert.to = codes == gemm::Codes::kOperand4 ? quant::Codes::kOperand4 : quant::Codes::kInt8;
      convert.q = own_codes(codes), convert.stride = p.x_stride;
      check_cuda(quant::convert_codes_launch(convert, on.device, on.stream), op);
    }
  }

  void add(const Addends& a) {
    if (a.residual) addends.residual = keep<char>(*a.residual);
    if (!a.rank) return;
    check(a.rank < (int64_t(1) << 31), op, ": expected a rank below 2^31, got ", a.rank);
    addends.rank = int32_t(a.rank);
    addends.low_rank = keep<float>(*a.low_rank), addends.low_rank_up = keep<float>(*a.low_rank_up);
  }

  void run(Tensor& y, DType dtype, gemm::Codes codes) {
    if (!layer.m || !layer.n) return;
    p.y = y.mutable_data_ptr(), p.out = dtype;
    const gemm::Choice c = gemm::choose(p.m, p.n, p.k, kind, codes, on.device);
    p.splits = c.splits, p.stages_per_split = c.stages_per_split;
    if (c.splits > 1) {
      kept.push_back(empty_cuda({c.partial_words}, ScalarType::Int, on.device.index));
      p.partial = static_cast<int32_t*>(kept.back().mutable_data_ptr());
      p.tickets = zeroed_tickets(c.tickets, on.device.index, kept);
    }
    check_cuda(gemm::run(p, addends, c, kind, codes, on.device, on.stream), op);
  }
};

}  // namespace lowbit::ops
