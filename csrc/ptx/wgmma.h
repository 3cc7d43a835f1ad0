// wgmma: matrix multiply of a warpgroup, asynchronous (PTX 9.7.15). Collective over 128 threads, sm_90a only.
//
// D [64, N] (+)= A [64, 32 bytes] * B [32 bytes, N]: 8-bit integers, fp16 or bf16. A comes from registers
// here (the weights, unpacked there); B is K-major in shared memory: N rows of k bytes, seen through a
// descriptor that is equal in all four warps. Order of use: write A -> wgmma_fence -> wgmma ... ->
// wgmma_commit_group -> wgmma_wait_group<n>. Until a wait covers a wgmma, its D and its A registers are
// neither read nor written (keep A arrays in scope until that wait) and its bytes of shared memory are not
// overwritten. ptxas lines C75xx mean that it saw a breach and serialised.
#pragma once

#include "common.h"
#include "tma.h"

namespace lowbit::ptx {

// Shared-memory matrix descriptor (9.7.15.5.1.2.2). K-major bytes; the tile starts on its swizzle repeat (128
// B: 1024).
struct WgmmaDescriptor {
  uint64_t bits;

  // `stride_bytes`: between groups of 8 rows (packed: 8 * swizzle width). `leading_bytes`: first to second
  // 16-byte column, only without swizzle.
  template <class T>
  static LOWBIT_DEVICE WgmmaDescriptor make(smem_ptr<T> tile, Swizzle swizzle, uint32_t stride_bytes,
                                            uint32_t leading_bytes = 16) {
    const uint64_t mode =
        swizzle == Swizzle::kNone ? 0 : 4 - uint64_t(swizzle);  // hardware: 1 = 128 B .. 3 = 32 B
    return {uint64_t((tile.address & 0x3ffffu) >> 4) | uint64_t(leading_bytes >> 4) << 16 |
            uint64_t(stride_bytes >> 4) << 32 | mode << 62};
  }

  // The next k step: inside a swizzle atom simply +32 bytes, for the XOR uses absolute address bits.
  LOWBIT_HOST_DEVICE constexpr WgmmaDescriptor plus_bytes(uint32_t bytes) const {
    return {bits + (bytes >> 4)};
  }
};

// wgmma.fence.sync.aligned (9.7.15.7.1).
LOWBIT_DEVICE void wgmma_fence() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  emu::wgmma_fence();
#endif
}

// wgmma.commit_group.sync.aligned (9.7.15.7.2).
LOWBIT_DEVICE void wgmma_commit_group() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  emu::wgmma_commit_group();
#endif
}

// wgmma.wait_group.sync.aligned (9.7.15.7.3).
template <int kPending>
LOWBIT_DEVICE void wgmma_wait_group() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#else
  emu::wgmma_wait_group(kPending);
#endif
}

// No instruction: keeps the compiler from moving reads and writes of these registers across this point. Call
// it on the accumulators before the first wgmma and after the wait. The emulator reports registers still in
// flight.
template <class T, int N>
LOWBIT_DEVICE void warpgroup_fence_operand(T (&registers)[N]) {
  static_assert(sizeof(T) == 4);
#if !defined(LOWBIT_EMULATE)
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (static_cast<T>(0.5f) != T(0)) asm volatile("" : "+f"(registers[i])::"memory");
    else asm volatile("" : "+r"(registers[i])::"memory");
  }
#else
  emu::wgmma_fence_operand(registers, N);
#endif
}

// wgmma.mma_async m64nNk32 s8.s8, A in registers (9.7.15.5). N = 2 * R with R registers of D per thread;
// scale_d false starts a new sum. Operand lists are in wgmma_operands.h.
template <int R>
LOWBIT_DEVICE void wgmma_m64k32_s32_s8_s8(int32_t (&d)[R], const uint32_t (&a)[4], WgmmaDescriptor b,
                                          bool scale_d);

// wgmma.mma_async m64nNk16 of halves with fp32 sums, A in registers (9.7.15.5). The order of a sum is the
// hardware's.
template <int R>
LOWBIT_DEVICE void wgmma_m64k16_f32_f16_f16(float (&d)[R], const uint32_t (&a)[4], WgmmaDescriptor b,
                                            bool scale_d);
template <int R>
LOWBIT_DEVICE void wgmma_m64k16_f32_bf16_bf16(float (&d)[R], const uint32_t (&a)[4], WgmmaDescriptor b,
                                              bool scale_d);

}  // namespace lowbit::ptx

#include "wgmma_operands.h"
