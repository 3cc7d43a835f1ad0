// The one place that launches a kernel. Included by launch_sm80.cu and launch_sm90.cu only.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>

#include "device.h"

namespace lowbit::kernels {

struct Grid {
  long long x = 1, y = 1, z = 1;
};

// Lets `kernel` have `bytes` of dynamic shared memory on the current device. Past 48 KB that must be asked
// for per function and per device; the limit here only grows, so launches from several threads cannot lower
// it under each other, and a second GPU gets its own entry (a call_once would miss it).
inline cudaError_t allow_shared(const void* kernel, int bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> limits;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  const std::lock_guard<std::mutex> lock(mutex);
  int& limit = limits[{kernel, device}];
  if (bytes <= limit) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) limit = bytes;
  return error;
}

template <class T>
struct Same {
  using Type = T;
};

// kernel<<<grid, threads, smem_bytes, stream>>>(params...) on the current device. An empty grid is no work.
template <class... Params>
Error launch(void (*kernel)(Params...), Grid grid, int threads, int smem_bytes, Stream stream,
             const typename Same<Params>::Type&... params) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return nullptr;
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
    return "the grid is larger than CUDA allows (2^31 - 1, 65535, 65535)";
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = allow_shared(function, smem_bytes);
  if (error == cudaSuccess) {
    void* arguments[] = {const_cast<void*>(static_cast<const void*>(&params))...};
    error = cudaLaunchKernel(function, dim3(unsigned(grid.x), unsigned(grid.y), unsigned(grid.z)),
                             dim3(threads), arguments, size_t(smem_bytes), static_cast<cudaStream_t>(stream));
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // ours to report: what torch asks next must not find it
  return cudaGetErrorString(error);
}

}  // namespace lowbit::kernels
