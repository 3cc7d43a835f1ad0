// One instruction set, one translation unit, one namespace: no inline code crosses to another.
#define LOWBIT_ISA avx2
#include "vec_avx2.h"

#include "fp_gemm-inl.h"
#include "hadamard-inl.h"
#include "int_gemm-inl.h"
#include "kv_cache-inl.h"
#include "quantize-inl.h"
#include "table-inl.h"
