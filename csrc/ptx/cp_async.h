// cp.async: copies from global to shared memory without registers (PTX 9.7.9.25.3). Per thread, sm_80 and
// later. The bytes become visible to the ISSUING thread only, at its wait; other threads need a barrier after
// that wait. It is generic proxy: before wgmma or a TMA store reads the bytes, the writer also needs
// fence_proxy_async. Source and destination are aligned to the size. `src_bytes` < size writes zeros past it
// and reads only src_bytes (0: nothing is read, still pass a valid address).
#pragma once

#include "common.h"

namespace lowbit::ptx {

// cp.async.cg, 16 bytes, L2 only, with a prefetch of the 128-byte line.
template <class T, class U>
LOWBIT_DEVICE void cp_async_cg_16(smem_ptr<T> dst, const U* src) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(dst.address),
               "l"(__cvta_generic_to_global(src))
               : "memory");
#else
  emu::cp_async(16, 16, dst.address, src);
#endif
}

template <class T, class U>
LOWBIT_DEVICE void cp_async_cg_16_zfill(smem_ptr<T> dst, const U* src, int src_bytes) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst.address),
               "l"(__cvta_generic_to_global(src)), "r"(src_bytes)
               : "memory");
#else
  emu::cp_async(16, src_bytes, dst.address, src);
#endif
}

// cp.async.ca, 4, 8 or 16 bytes, all cache levels.
template <int kBytes, class T, class U>
LOWBIT_DEVICE void cp_async_ca(smem_ptr<T> dst, const U* src) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async.ca copies 4, 8 or 16 bytes");
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(dst.address),
               "l"(__cvta_generic_to_global(src)), "n"(kBytes)
               : "memory");
#else
  emu::cp_async(kBytes, kBytes, dst.address, src);
#endif
}

template <int kBytes, class T, class U>
LOWBIT_DEVICE void cp_async_ca_zfill(smem_ptr<T> dst, const U* src, int src_bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async.ca copies 4, 8 or 16 bytes");
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(dst.address),
               "l"(__cvta_generic_to_global(src)), "n"(kBytes), "r"(src_bytes)
               : "memory");
#else
  emu::cp_async(kBytes, src_bytes, dst.address, src);
#endif
}

// cp.async.commit_group (9.7.9.25.3.2): closes this thread's group; an empty group is allowed and complete.
LOWBIT_DEVICE void cp_async_commit_group() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emu::cp_async_commit_group();
#endif
}

// cp.async.wait_group (9.7.9.25.3.3): at most the kPending newest groups of this thread are still in flight.
template <int kPending>
LOWBIT_DEVICE void cp_async_wait_group() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#else
  emu::cp_async_wait_group(kPending);
#endif
}

// cp.async.wait_all: commit and wait for everything, committed or not.
LOWBIT_DEVICE void cp_async_wait_all() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.wait_all;" ::: "memory");
#else
  emu::cp_async_wait_all();
#endif
}

// cp.async.mbarrier.arrive.noinc (9.7.13.15.14): arrives when this thread's cp.async so far have landed. The
// barrier's count includes it.
LOWBIT_DEVICE void cp_async_mbarrier_arrive_noinc(smem_ptr<uint64_t> barrier) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier.address) : "memory");
#else
  emu::cp_async_mbarrier_arrive_noinc(barrier.address);
#endif
}

}  // namespace lowbit::ptx
