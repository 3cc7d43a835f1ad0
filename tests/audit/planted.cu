// Kernels with known faults, for the audit's own tests. Compiled for sm_80 and sm_90a, never run.
#include "../../csrc/ptx/cp_async.h"
#include "../../csrc/ptx/memory.h"
#include "../../csrc/ptx/mma.h"
#include "../../csrc/ptx/sync.h"

namespace planted {

using namespace lowbit::ptx;

// What a kernel should look like: 16-byte loads by cp.async and from shared memory, one mma, no local memory.
LOWBIT_KERNEL(32, 1) clean(const u32x4* x, s32x4* y, int k) {
  const smem_ptr<u32x4> tile = dynamic_smem<u32x4>();
  int32_t d[4] = {};
  LOWBIT_NO_UNROLL
  for (int i = 0; i < k; ++i) {
    cp_async_cg_16(tile + lane_index(), x + i * 32 + lane_index());
    cp_async_wait_all();
    syncwarp();
    const u32x4 a = ld_shared(tile + lane_index() / 2);
    const uint32_t a4[4] = {a[0], a[1], a[2], a[3]}, b[2] = {a[0], a[2]};
    mma_m16n8k32_s32_s8_s8(d, a4, b);
    syncwarp();
  }
  st_global(y + lane_index(), s32x4{{d[0], d[1], d[2], d[3]}});
}

// Native on sm_80; ptxas calls a helper on sm_90.
LOWBIT_KERNEL(32, 1) s4(const u32x4* x, s32x4* y, int k) {
  int32_t d[4] = {};
  LOWBIT_NO_UNROLL
  for (int i = 0; i < k; ++i) {
    const u32x4 a = ld_global(x + i * 32 + lane_index());
    const uint32_t a4[4] = {a[0], a[1], a[2], a[3]}, b[2] = {a[0], a[2]};
    mma_m16n8k64_s32_s4_s4(d, a4, b);
  }
  st_global(y + lane_index(), s32x4{{d[0], d[1], d[2], d[3]}});
}

// An array indexed at run time lives in local memory, inside the loop of the mma.
LOWBIT_KERNEL(32, 1) local_array(const uint32_t* x, s32x4* y, int k) {
  int32_t d[4] = {};
  uint32_t ring[8] = {};
  LOWBIT_NO_UNROLL
  for (int i = 0; i < k; ++i) {
    ring[i % 8] = ld_global(x + i * 32 + lane_index());
    const uint32_t a[4] = {ring[(i + 1) % 8], ring[(i + 2) % 8], ring[(i + 3) % 8], ring[(i + 4) % 8]};
    const uint32_t b[2] = {ring[(i + 5) % 8], ring[i % 8]};
    mma_m16n8k32_s32_s8_s8(d, a, b);
  }
  st_global(y + lane_index(), s32x4{{d[0], d[1], d[2], d[3]}});
}

// 4-byte loads from global memory, and integer work before every mma: three operations for each of 6
// registers.
template <int kShift>
LOWBIT_KERNEL(32, 1)
narrow(const uint32_t* x, s32x4* y, int k) {
  int32_t d[4] = {};
  LOWBIT_NO_UNROLL
  for (int i = 0; i < k; ++i) {
    uint32_t r[6];
    LOWBIT_UNROLL
    for (int j = 0; j < 6; ++j)
      r[j] = ((ld_global(x + (i * 6 + j) * 32 + lane_index()) * 5u) ^ uint32_t(k)) >> kShift;
    const uint32_t a[4] = {r[0], r[1], r[2], r[3]}, b[2] = {r[4], r[5]};
    mma_m16n8k32_s32_s8_s8(d, a, b);
  }
  st_global(y + lane_index(), s32x4{{d[0], d[1], d[2], d[3]}});
}

// 128 values in the 32 registers that 2048 threads leave: ptxas spills.
LOWBIT_KERNEL(1024, 2) spilled(const float* x, float* y, int k) {
  float v[128];
  LOWBIT_UNROLL
  for (int j = 0; j < 128; ++j) v[j] = ld_global(x + j * 1024 + thread_index());
  LOWBIT_NO_UNROLL
  for (int i = 0; i < k; ++i) {
    LOWBIT_UNROLL
    for (int j = 0; j < 128; ++j) v[j] = v[j] * v[(j + 37) % 128] + v[(j + 5) % 128];
  }
  LOWBIT_UNROLL
  for (int j = 0; j < 128; ++j) st_global(y + j * 1024 + thread_index(), v[j]);
}

template __global__ void narrow<3>(const uint32_t*, s32x4*, int);

}  // namespace planted
