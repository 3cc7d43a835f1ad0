// y[m, n] = (sum_k x[m, k] w[n, k]) * w_scale[n] + bias[n] + residual[m, n] on CUDA, w in 4 or 6 bits, x in
// fp16 or bf16: what the kernels take. No torch.
#pragma once

#include <cstdint>

#include "../../layout/fp_fragment.h"
#include "../../numeric/dtype.h"
#include "../../numeric/host_device.h"

namespace lowbit::kernels::fp_gemm {

using fp_fragment::Half;
using fp_fragment::Weight;

// The sums come out too small by this power of two: exact in fp32 for any fp16 (28 * 65504 * 2^-12 and
// 2^-16 * 2^-24 are far from the ends). bf16 weights are put right before they are multiplied.
constexpr float factor_of(Weight w, Half half) {
  return half == Half::kF16 ? float(1 << fp_fragment::exponent_shift(w, half)) : 1.f;
}

// Of groups of 32, 64 or 128 (E8M0: of 32), [n / 64][groups][64].
enum class Scales : int32_t { kNone, kE8M0, kF16 };
LOWBIT_HOST_DEVICE constexpr int groups_of(int k, int group_shift) {
  return (k + (1 << group_shift) - 1) >> group_shift;
}
LOWBIT_HOST_DEVICE constexpr int group_bytes(Scales s) {
  return s == Scales::kE8M0 ? 64 : 128;
}  // of 64 channels

struct Params {
  int32_t m, n, k;
  const uint8_t* weight;       // layout/fp_fragment.h
  const uint8_t* group_scale;  // [n / 64][groups][64], for the grouped kernels
  Scales scales;
  int32_t group_shift;   // log2 of the group size: 5, 6 or 7
  const uint8_t* x;      // [m, x_stride] of fp16 or bf16, 16-byte aligned; elements past k are taken as zero
  int64_t x_stride;      // bytes, multiple of 16
  float factor;          // the power of two of factor_of, or more where the format is scaled integers
  const float* w_scale;  // [n], 16-byte aligned, as bias
  const float* bias;     // [n] or null
  const void* residual;  // [m, n] in the type of x, 16-byte aligned, or null
  void* y;               // [m, n] in the type of x, 16-byte aligned
  // how the work is cut (config.h)
  int32_t splits, stages_per_split;
  float* partial;     // [splits][tiles][tile sums], when splits > 1
  uint32_t* tickets;  // one per tile, zero before and after, when splits > 1
};

// out[n, k] = value of the code, exact in fp16 and bf16, times the scale of its group, rounded: the weight of
// torch's matmul. Whole blocks of channels.
struct DequantizeParams {
  int32_t n, k;
  const uint8_t* weight;       // layout/fp_fragment.h
  const uint8_t* group_scale;  // as in Params, or null
  Scales scales;
  int32_t group_shift;
  float factor;
  void* out;  // [n, k] with rows of out_stride elements, a multiple of 8; 16-byte aligned
  int64_t out_stride;
};

// y[m, n] = sum[m, n] * w_scale[n] + bias[n] + residual[m, n], rounded to fp16 or bf16: what follows torch's
// matmul.
struct FinishParams {
  int32_t m, n;
  const float* sum;      // [m, n]
  const float* w_scale;  // [n]
  const float* bias;     // [n] or null
  const void* residual;  // as y, on 8 bytes if n and y_stride are multiples of 4; or null
  void* y;               // rows of y_stride elements
  int64_t y_stride;
};

// codes[i] of x[i] for i < count.
struct EncodeParams {
  int64_t count;
  const void* x;
  DType dtype;
  bool ties_away;
  uint8_t* codes;
};

}  // namespace lowbit::kernels::fp_gemm
