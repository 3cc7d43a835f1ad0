// Barriers, fences and register budgets (PTX 9.7.13, 9.7.20). Collective over the warp unless marked per
// thread.
#pragma once

#include "common.h"

namespace lowbit::ptx {

// bar.sync 0 (9.7.13.1): all threads of the CTA. Orders memory among them, generic proxy only.
LOWBIT_DEVICE void syncthreads() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("bar.sync 0;" ::: "memory");
#else
  emu::syncthreads();
#endif
}

// bar.warp.sync, full mask (9.7.13.2). Orders memory among the lanes.
LOWBIT_DEVICE void syncwarp() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
#else
  emu::syncwarp();
#endif
}

// bar.sync id, threads (9.7.13.1): ids 1..15 (0 is syncthreads), threads a multiple of 32.
LOWBIT_DEVICE void bar_sync(int id, int threads) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emu::bar_sync(id, threads);
#endif
}

// bar.arrive id, threads (9.7.13.1): counts this warp in and goes on; releases what it wrote.
LOWBIT_DEVICE void bar_arrive(int id, int threads) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  emu::bar_arrive(id, threads);
#endif
}

// fence.proxy.async.shared::cta (9.7.13.4). Per thread: each thread that wrote with st.shared, stmatrix or
// cp.async calls it, before the barrier, when wgmma or a TMA store will read the bytes. sm_90.
LOWBIT_DEVICE void fence_proxy_async() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  emu::fence_proxy_async();
#endif
}

// fence.acq_rel.gpu, CUDA's __threadfence (9.7.13.4). Per thread: before a ticket that hands global data to
// another CTA.
LOWBIT_DEVICE void threadfence() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#else
  emu::threadfence();
#endif
}

// elect.sync (9.7.13.14): true in one lane of the converged warp. Which one is not specified. sm_90.
LOWBIT_DEVICE bool elect_sync() {
#if !defined(LOWBIT_EMULATE)
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected)
      :
      : "memory");
  return elected != 0;
#else
  return emu::elect_sync();
#endif
}

// setmaxnreg.inc / .dec (9.7.20.5): all warps of a warpgroup; honoured only with both launch bounds. sm_90a.
template <int kRegisters>
LOWBIT_DEVICE void setmaxnreg_inc() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0,
                "setmaxnreg: 24..256, multiple of 8");
#if !defined(LOWBIT_EMULATE)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#else
  emu::setmaxnreg(kRegisters, true);
#endif
}

template <int kRegisters>
LOWBIT_DEVICE void setmaxnreg_dec() {
  static_assert(kRegisters >= 24 && kRegisters <= 256 && kRegisters % 8 == 0,
                "setmaxnreg: 24..256, multiple of 8");
#if !defined(LOWBIT_EMULATE)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#else
  emu::setmaxnreg(kRegisters, false);
#endif
}

// Programmatic dependent launch, griddepcontrol (9.7.13.13). Per thread. sm_90; the emulator runs one grid at
// a time.
LOWBIT_DEVICE void griddepcontrol_wait() {
#if !defined(LOWBIT_EMULATE)
  asm volatile("griddepcontrol.wait;" ::: "memory");
#else
  emu::count_call("griddepcontrol.wait");
#endif
}

}  // namespace lowbit::ptx
