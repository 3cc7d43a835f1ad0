// What every wrapper header uses: the attributes, register vectors, the shared-memory pointer, indices.
//
// One source, two compilers. nvcc compiles the asm half; a plain g++ with -DLOWBIT_EMULATE compiles one call
// into emu/ and needs no CUDA header. In nvcc's host pass the asm half is parsed and dropped with the body,
// so it needs no third half.
#pragma once

#include <cstdint>
#include <cstring>

#include "../numeric/host_device.h"

#if defined(LOWBIT_EMULATE)
#include "../emu/api.h"
#define LOWBIT_DEVICE inline
#define LOWBIT_KERNEL(max_threads, min_blocks) inline void
#define LOWBIT_GRID_CONSTANT
#define LOWBIT_UNROLL
#define LOWBIT_NO_UNROLL
#elif defined(__CUDACC__)
#define LOWBIT_DEVICE __device__ __forceinline__
// Both bounds always: ptxas ignores setmaxnreg (info C7508) when only one is given.
#define LOWBIT_KERNEL(max_threads, min_blocks) __global__ void __launch_bounds__(max_threads, min_blocks)
// A tensor map must be a parameter declared so: a local copy has no address that the TMA unit can read.
#define LOWBIT_GRID_CONSTANT __grid_constant__
#define LOWBIT_UNROLL _Pragma("unroll")
#define LOWBIT_NO_UNROLL _Pragma("unroll 1")
#else
#error "ptx/ compiles with nvcc, or with -DLOWBIT_EMULATE"
#endif

namespace lowbit::ptx {

constexpr int kWarpSize = 32;
constexpr int kWarpgroupSize = 128;

// N registers that move as one access: alignment is the size, as ld/st .v2 and .v4 demand.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T v[N];
  LOWBIT_HOST_DEVICE constexpr T& operator[](int i) { return v[i]; }
  LOWBIT_HOST_DEVICE constexpr const T& operator[](int i) const { return v[i]; }
};
using u32x2 = Vector<uint32_t, 2>;
using u32x4 = Vector<uint32_t, 4>;
using s32x2 = Vector<int32_t, 2>;
using s32x4 = Vector<int32_t, 4>;
using f32x2 = Vector<float, 2>;
using f32x4 = Vector<float, 4>;
using u16x4 = Vector<uint16_t, 4>;
using u16x8 = Vector<uint16_t, 8>;
using u8x16 = Vector<uint8_t, 16>;
static_assert(sizeof(u32x4) == 16 && alignof(u32x4) == 16);

// The same bytes under another type. No instruction.
template <class To, class From>
LOWBIT_HOST_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// A place in the shared memory of this CTA. It never decays to a C++ pointer: all access goes through
// ld_shared, st_shared, ldmatrix, cp_async, TMA and mbarrier wrappers, so that the emulator sees each one.
// `address` is absolute in the shared window: the hardware swizzles XOR absolute bits 7..9, so a swizzle
// computed from an offset is right only when the base is aligned to its repeat (128 B swizzle: 1024).
template <class T>
struct smem_ptr {
  uint32_t address;

  LOWBIT_HOST_DEVICE constexpr smem_ptr operator+(int elements) const {
    return {address + uint32_t(elements) * uint32_t(sizeof(T))};
  }
  LOWBIT_HOST_DEVICE constexpr smem_ptr operator-(int elements) const {
    return {address - uint32_t(elements) * uint32_t(sizeof(T))};
  }
  LOWBIT_HOST_DEVICE constexpr smem_ptr& operator+=(int elements) {
    address += uint32_t(elements) * uint32_t(sizeof(T));
    return *this;
  }
  LOWBIT_HOST_DEVICE constexpr smem_ptr plus_bytes(uint32_t bytes) const { return {address + bytes}; }
  template <class U>
  LOWBIT_HOST_DEVICE constexpr smem_ptr<U> as() const {
    return {address};
  }
};

#if !defined(LOWBIT_EMULATE)
extern __shared__ __align__(1024) unsigned char dynamic_smem_bytes[];
#endif

// Start of the dynamic shared memory rounded up to kAlign. Past 16, ask for kAlign - 16 bytes more at the
// launch: static shared memory or the system area may move the base (the emulator does so on purpose).
template <class T = uint8_t, int kAlign = 16>
LOWBIT_DEVICE smem_ptr<T> dynamic_smem() {
  static_assert(kAlign >= 16 && (kAlign & (kAlign - 1)) == 0,
                "dynamic_smem: alignment is a power of two >= 16");
#if !defined(LOWBIT_EMULATE)
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_smem_bytes));
#else
  const uint32_t base = emu::dynamic_smem_base();
#endif
  return {(base + (kAlign - 1)) & ~uint32_t(kAlign - 1)};
}

// Special registers %tid, %laneid, %warpid by convention, %ctaid, %nctaid (PTX 10). Blocks are
// one-dimensional.
#if !defined(LOWBIT_EMULATE)
LOWBIT_DEVICE int thread_index() { return int(threadIdx.x); }
LOWBIT_DEVICE int thread_count() { return int(blockDim.x); }
LOWBIT_DEVICE int block_index_x() { return int(blockIdx.x); }
LOWBIT_DEVICE int block_index_y() { return int(blockIdx.y); }
LOWBIT_DEVICE int block_index_z() { return int(blockIdx.z); }
LOWBIT_DEVICE int grid_size_x() { return int(gridDim.x); }
LOWBIT_DEVICE int grid_size_y() { return int(gridDim.y); }
LOWBIT_DEVICE int grid_size_z() { return int(gridDim.z); }
#else
LOWBIT_DEVICE int thread_index() { return emu::thread_index(); }
LOWBIT_DEVICE int thread_count() { return emu::thread_count(); }
LOWBIT_DEVICE int block_index_x() { return emu::block_index(0); }
LOWBIT_DEVICE int block_index_y() { return emu::block_index(1); }
LOWBIT_DEVICE int block_index_z() { return emu::block_index(2); }
LOWBIT_DEVICE int grid_size_x() { return emu::grid_size(0); }
LOWBIT_DEVICE int grid_size_y() { return emu::grid_size(1); }
LOWBIT_DEVICE int grid_size_z() { return emu::grid_size(2); }
#endif
LOWBIT_DEVICE int lane_index() { return thread_index() % kWarpSize; }
LOWBIT_DEVICE int warp_index() { return thread_index() / kWarpSize; }
LOWBIT_DEVICE int warpgroup_index() { return thread_index() / kWarpgroupSize; }

}  // namespace lowbit::ptx
