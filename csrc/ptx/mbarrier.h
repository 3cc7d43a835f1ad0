// mbarrier: phase barriers in shared memory (PTX 9.7.13.15). Per thread; a 64-bit object, 8-byte aligned.
// sm_90 here. A ring of S stages, k-th use: wait full with parity (k / S) & 1, wait empty with parity ((k /
// S) & 1) ^ 1: on a fresh barrier parity 1 passes at once, so the producer's first round does not block.
// Arrive releases and wait acquires at CTA scope.
#pragma once

#include "common.h"

namespace lowbit::ptx {

// mbarrier.init (9.7.13.15.9). One thread; then fence_mbarrier_init and a CTA barrier before anyone else uses
// it.
LOWBIT_DEVICE void mbarrier_init(smem_ptr<uint64_t> barrier, int count) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier.address), "r"(count) : "memory");
#else
  emu::mbarrier_init(barrier.address, count);
#endif
}

// mbarrier.inval (9.7.13.15.10): before the bytes serve another use.
LOWBIT_DEVICE void mbarrier_inval(smem_ptr<uint64_t> barrier) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier.address) : "memory");
#else
  emu::mbarrier_inval(barrier.address);
#endif
}

// mbarrier.arrive with count 1 (9.7.13.15.13).
LOWBIT_DEVICE void mbarrier_arrive(smem_ptr<uint64_t> barrier) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier.address) : "memory");
#else
  emu::mbarrier_arrive(barrier.address);
#endif
}

// mbarrier.arrive.expect_tx (9.7.13.15.13): first tx += bytes, then arrive. The usual call before a TMA load.
LOWBIT_DEVICE void mbarrier_arrive_expect_tx(smem_ptr<uint64_t> barrier, uint32_t bytes) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier.address), "r"(bytes)
               : "memory");
#else
  emu::mbarrier_arrive_expect_tx(barrier.address, bytes);
#endif
}

// mbarrier.expect_tx (9.7.13.15.11): does not arrive.
LOWBIT_DEVICE void mbarrier_expect_tx(smem_ptr<uint64_t> barrier, uint32_t bytes) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier.address), "r"(bytes)
               : "memory");
#else
  emu::mbarrier_expect_tx(barrier.address, bytes);
#endif
}

// mbarrier.try_wait.parity (9.7.13.15.16): true if the phase of that parity has completed. May return false
// early.
LOWBIT_DEVICE bool mbarrier_try_wait_parity(smem_ptr<uint64_t> barrier, uint32_t parity) {
#if !defined(LOWBIT_EMULATE)
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(done)
      : "r"(barrier.address), "r"(parity)
      : "memory");
  return done != 0;
#else
  return emu::mbarrier_try_wait_parity(barrier.address, parity);
#endif
}

// The loop that try_wait needs: it may be suspended up to a system limit and then return false.
LOWBIT_DEVICE void mbarrier_wait_parity(smem_ptr<uint64_t> barrier, uint32_t parity) {
#if !defined(LOWBIT_EMULATE)
  while (!mbarrier_try_wait_parity(barrier, parity)) {}
#else
  emu::mbarrier_wait_parity(barrier.address, parity);
#endif
}

// fence.mbarrier_init.release.cluster (9.7.13.4): makes inits visible to other threads and to the async
// proxy.
LOWBIT_DEVICE void fence_mbarrier_init() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
  emu::fence_mbarrier_init();
#endif
}

}  // namespace lowbit::ptx
