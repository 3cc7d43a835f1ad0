// The AVX-512 source over SIMDe's portable intrinsics: proves its bits on any x86. For the tests, never in a
// wheel.
#define LOWBIT_ISA avx512_simde
#define LOWBIT_SIMDE
#include "vec_avx512.h"

#include "fp_gemm-inl.h"
#include "hadamard-inl.h"
#include "int_gemm-inl.h"
#include "kv_cache-inl.h"
#include "quantize-inl.h"
#include "table-inl.h"
