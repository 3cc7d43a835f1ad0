// Host code: makes a TensorMap. The driver entry point is looked up at run time, so nothing links libcuda and
// the library loads on a machine without a driver.
#pragma once

#include "tma.h"

#if !defined(LOWBIT_EMULATE)
#include <cuda.h>
#include <cuda_runtime_api.h>
#endif

namespace lowbit::ptx {

// The rules of cuTensorMapEncodeTiled for a byte matrix (reference/ptx-semantics.md 4.1), as sentences: the
// driver only says INVALID_VALUE. Returns nullptr when all hold.
inline const char* check_tensor_map_2d(const TensorMap2d& t) {
  const uint32_t width = t.swizzle == Swizzle::kNone ? 256 : 16u << uint32_t(t.swizzle);
  if (reinterpret_cast<uintptr_t>(t.pointer) % 16) return "tensor map: the pointer must be 16-byte aligned";
  if (t.rows == 0 || t.row_bytes == 0) return "tensor map: rows and row_bytes must be at least 1";
  if (t.rows >> 32 || t.row_bytes >> 32) return "tensor map: rows and row_bytes must be at most 2^32 - 1";
  if (t.pitch_bytes % 16 || t.pitch_bytes >> 40)
    return "tensor map: pitch_bytes must be a multiple of 16 below 2^40";
  if (t.pitch_bytes < t.row_bytes) return "tensor map: pitch_bytes must be at least row_bytes";
  if (t.box_rows < 1 || t.box_rows > 256) return "tensor map: box_rows must be 1..256";
  if (t.box_bytes < 16 || t.box_bytes > 256 || t.box_bytes % 16)
    return "tensor map: box_bytes must be a multiple of 16 up to 256";
  // The driver asks for at most the width; a narrower box leaves holes that a reader has to know about.
  if (t.swizzle != Swizzle::kNone && t.box_bytes != width)
    return "tensor map: box_bytes must be the swizzle width";
  return nullptr;
}

// nullptr on success, else a sentence. On CUDA it needs a driver and a current context; not a stream
// operation: a captured graph keeps the pointer and the sizes of this call.
inline const char* encode_tensor_map_2d(TensorMap* map, const TensorMap2d& t) {
  if (const char* broken = check_tensor_map_2d(t)) return broken;
#if !defined(LOWBIT_EMULATE)
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  void* function = nullptr;
  cudaDriverEntryPointQueryResult status;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                       &status) != cudaSuccess ||
      status != cudaDriverEntryPointSuccess)
    return "tensor map: the driver has no cuTensorMapEncodeTiled (CUDA 12.0 or later is needed)";
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap) && alignof(CUtensorMap) <= alignof(TensorMap));
  const cuuint64_t dims[2] = {t.row_bytes, t.rows}, pitch[1] = {t.pitch_bytes};
  const cuuint32_t box[2] = {t.box_bytes, t.box_rows}, steps[2] = {1, 1};
  const CUresult result = reinterpret_cast<Encode>(function)(
      reinterpret_cast<CUtensorMap*>(map), CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(t.pointer),
      dims, pitch, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, static_cast<CUtensorMapSwizzle>(t.swizzle),
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "tensor map: cuTensorMapEncodeTiled refused the parameters";
#else
  *map = {t.pointer, t.rows, t.row_bytes, t.pitch_bytes, t.box_rows, t.box_bytes, uint32_t(t.swizzle)};
  return nullptr;
#endif
}

}  // namespace lowbit::ptx
