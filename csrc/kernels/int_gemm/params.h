// y[m, n] = epilogue(sum_k x[m, k] w[n, k]) on CUDA: what the kernels take. No torch.
#pragma once

#include <cstdint>

#include "../../numeric/dtype.h"
#include "../../numeric/fp4_table.h"

namespace lowbit::kernels::int_gemm {

// fp4: nibbles that Params::fp4() turns into integers, laid out as int4
enum class Weight : int32_t { kInt4, kInt4Group, kInt8, kFp4 };
// int8: codes, one byte each (int4 activations too, where there is no s4 tensor core); operand4: nibbles in
// the order of layout/operand4.h
enum class Codes : int32_t { kInt8, kOperand4 };

// NOTE the fields of fp4 lie where padding would be: with a larger struct ptxas makes the main loop of the s4
// kernel 14 % longer.
struct Params {
  int32_t m, n, k;
  float w_factor = 1;          // fp4: a power of two that goes into w_scale
  const uint8_t* weight;       // layout/mma_weight.h
  const uint8_t* group_scale;  // the same, for kInt4Group; 1..16
  int32_t group_shift;         // log2 of the group size: 5, 6 or 7
  uint32_t fp4_low;            // fp4: the magnitudes of codes 0..3, a byte each
  const uint8_t* x;            // [m, x_stride], 16-byte aligned; bytes past x_bytes are taken as zero
  int64_t x_stride;            // bytes, multiple of 16
  int32_t x_bytes;
  uint32_t fp4_high;     // fp4: those of codes 4..7
  const float* w_scale;  // [n], 16-byte aligned, as bias
  const float* x_scale;  // [m] or null
  const float* bias;     // [n] or null
  void* y;               // [m, n], 16-byte aligned
  DType out;
  // how the work is cut (config.h)
  int32_t splits, stages_per_split;
  int32_t* partial;   // [splits][tiles][tile sums], when splits > 1
  uint32_t* tickets;  // one per tile and warpgroup, zero before and after, when splits > 1

  LOWBIT_HOST_DEVICE Fp4Magnitudes fp4() const { return {fp4_low, fp4_high}; }
  void set_fp4(const Fp4Table& weight, float factor) {
    const Fp4Magnitudes m = magnitudes_of(weight);
    fp4_low = m.low, fp4_high = m.high, w_factor = factor;
  }
};

// What is added to the scaled sum and its bias, each product and each sum rounded: low_rank[m, i] *
// low_rank_up[i, n], i = 0, 1, ..., then the residual. An argument of its own, for the same reason.
struct Addends {
  const float* low_rank;     // [m, rank]
  const float* low_rank_up;  // [rank, n], 16-byte aligned
  const void* residual;      // [m, n] of y's dtype, 16-byte aligned, or null; may be y itself
  int32_t rank;              // 0: no low-rank term
};

}  // namespace lowbit::kernels::int_gemm
