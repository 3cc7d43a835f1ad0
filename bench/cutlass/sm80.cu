// s4 and s8 products by CUTLASS 2.x as a user of device::Gemm writes them, with its default tile: what QuaRot
// runs (s4 x s4 -> s32, row-major x column-major, compute capability 8.0), and its pass over the sums behind.
#include <cutlass/gemm/device/gemm.h>

#include "call.h"

namespace {

template <class Code>
using Gemm = cutlass::gemm::device::Gemm<Code, cutlass::layout::RowMajor, Code, cutlass::layout::ColumnMajor,
                                         int32_t, cutlass::layout::RowMajor, int32_t,
                                         cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80>;

__global__ void scale_sums(const int32_t* sum, const float* x_scale, const float* w_scale, half* y, int n) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (column >= n) return;
  const size_t at = size_t(row) * n + column;
  y[at] = __float2half_rn(float(sum[at]) * w_scale[column] * x_scale[row]);
}

template <class Code>
const char* run(const peers::Call& c) {
  Gemm<Code> gemm;
  const typename Gemm<Code>::Arguments arguments({c.m, c.n, c.k}, {static_cast<const Code*>(c.x), c.k},
                                                 {static_cast<const Code*>(c.w), c.k}, {c.sum, c.n},
                                                 {c.sum, c.n}, {1, 0});
  if (cutlass::Status status = gemm.can_implement(arguments); status != cutlass::Status::kSuccess)
    return cutlassGetStatusString(status);
  if (cutlass::Status status = gemm(arguments, nullptr, c.stream); status != cutlass::Status::kSuccess)
    return cutlassGetStatusString(status);
  scale_sums<<<dim3((c.n + 255) / 256, c.m), 256, 0, c.stream>>>(c.sum, c.x_scale, c.w_scale, c.y, c.n);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

PEER(cutlass_s4_sm80) { return run<cutlass::int4b_t>(*c); }
PEER(cutlass_s8_sm80) { return run<int8_t>(*c); }
