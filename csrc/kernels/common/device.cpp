// Host code that needs CUDA's headers; nvcc passes it on to the host compiler.
#include "device.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

namespace lowbit::kernels {

Error find_device(int index, Device* device) {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = known.find(index); found != known.end()) {
    *device = found->second;
    return nullptr;
  }
  int major = 0, minor = 0;
  Device d{};
  const struct {
    cudaDeviceAttr name;
    int* value;
  } questions[] = {{cudaDevAttrComputeCapabilityMajor, &major},
                   {cudaDevAttrComputeCapabilityMinor, &minor},
                   {cudaDevAttrMultiProcessorCount, &d.multiprocessors},
                   {cudaDevAttrMaxSharedMemoryPerBlockOptin, &d.shared_bytes}};
  for (const auto& q : questions)
    if (const cudaError_t error = cudaDeviceGetAttribute(q.value, q.name, index)) {
      cudaGetLastError();  // ours to report
      return cudaGetErrorString(error);
    }
  d.sm = 10 * major + minor;
  d.index = index;
  if (d.sm < 80) return "the kernels need compute capability 8.0 or later";
  *device = known[index] = d;
  return nullptr;
}

Error bind_context(int index) {
  const cudaError_t error = cudaSetDevice(index);
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

}  // namespace lowbit::kernels
