// One spelling for functions that packer, kernel and emulator share. nvcc refuses to call a plain constexpr
// function from a kernel, so the attribute is needed (tried with CUDA 13.0); g++ sees an ordinary inline
// function.
#pragma once

#if defined(__CUDACC__)
#define LOWBIT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LOWBIT_HOST_DEVICE inline
#endif
