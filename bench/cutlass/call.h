// What the CUTLASS peers share: y [M, N] fp16 = x [M, K] w [N, K]^T * x_scale [M] * w_scale [N], on codes.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace peers {

struct Call {
  const void *x, *w;  // row by row: s8, or s4 in two's complement, the even k in the low nibble
  const float *x_scale, *w_scale;
  int32_t* sum;  // [M, N], for those whose epilogue does not scale
  half* y;
  int m, n, k;
  cudaStream_t stream;
};

}  // namespace peers

// Each gives null, or a sentence of CUTLASS's.
#define PEER(NAME) extern "C" __attribute__((visibility("default"))) const char* NAME(const peers::Call* c)
