// Exchanges inside a warp: shfl.sync (PTX 9.7.9.6), vote.sync (9.7.13.9), redux.sync (9.7.13.11). Collective
// over the warp, always with the full mask; registers only, no memory ordering.
#pragma once

#include "common.h"

namespace lowbit::ptx {

// shfl.sync modes over 32-bit values. xor and idx read lane (lane ^ n), n; up and down keep their own value
// when the source lies outside the warp.
#if !defined(LOWBIT_EMULATE)
#define LOWBIT_SHFL(mode, clamp)                                           \
  static_assert(sizeof(T) == 4, "shfl.sync moves 32 bits");                \
  uint32_t out;                                                            \
  asm volatile("shfl.sync." mode ".b32 %0, %1, %2, " clamp ", 0xffffffff;" \
               : "=r"(out)                                                 \
               : "r"(bit_cast<uint32_t>(value)), "r"(n));                  \
  return bit_cast<T>(out)
#else
#define LOWBIT_SHFL_EMU(mode)                               \
  static_assert(sizeof(T) == 4, "shfl.sync moves 32 bits"); \
  return bit_cast<T>(emu::shfl(mode, bit_cast<uint32_t>(value), n))
#endif

template <class T>
LOWBIT_DEVICE T shfl_sync_xor(T value, int n) {
#if !defined(LOWBIT_EMULATE)
  LOWBIT_SHFL("bfly", "0x1f");
#else
  LOWBIT_SHFL_EMU(emu::Shfl::kXor);
#endif
}

template <class T>
LOWBIT_DEVICE T shfl_sync_idx(T value, int n) {
#if !defined(LOWBIT_EMULATE)
  LOWBIT_SHFL("idx", "0x1f");
#else
  LOWBIT_SHFL_EMU(emu::Shfl::kIdx);
#endif
}

template <class T>
LOWBIT_DEVICE T shfl_sync_up(T value, int n) {
#if !defined(LOWBIT_EMULATE)
  LOWBIT_SHFL("up", "0x0");
#else
  LOWBIT_SHFL_EMU(emu::Shfl::kUp);
#endif
}

template <class T>
LOWBIT_DEVICE T shfl_sync_down(T value, int n) {
#if !defined(LOWBIT_EMULATE)
  LOWBIT_SHFL("down", "0x1f");
#else
  LOWBIT_SHFL_EMU(emu::Shfl::kDown);
#endif
}
#undef LOWBIT_SHFL
#undef LOWBIT_SHFL_EMU

// redux.sync: one instruction for the whole warp; integers only on sm_80..90. add wraps.
#if !defined(LOWBIT_EMULATE)
#define LOWBIT_REDUX(op, type, name)                                                \
  LOWBIT_DEVICE type redux_sync_##name(type value) {                                \
    type out;                                                                       \
    asm volatile("redux.sync." op " %0, %1, 0xffffffff;" : "=r"(out) : "r"(value)); \
    return out;                                                                     \
  }
#else
#define LOWBIT_REDUX(op, type, name) \
  LOWBIT_DEVICE type redux_sync_##name(type value) { return type(emu::redux(op, uint32_t(value))); }
#endif
LOWBIT_REDUX("add.s32", int32_t, add_s32)
LOWBIT_REDUX("max.s32", int32_t, max_s32)
LOWBIT_REDUX("min.s32", int32_t, min_s32)
LOWBIT_REDUX("max.u32", uint32_t, max_u32)
LOWBIT_REDUX("or.b32", uint32_t, or_b32)
#undef LOWBIT_REDUX

// vote.sync.ballot: bit l is lane l's predicate.
LOWBIT_DEVICE uint32_t ballot_sync(bool predicate) {
#if !defined(LOWBIT_EMULATE)
  return __ballot_sync(0xffffffffu, predicate);
#else
  return emu::ballot(predicate);
#endif
}

LOWBIT_DEVICE bool any_sync(bool predicate) { return ballot_sync(predicate) != 0; }
LOWBIT_DEVICE bool all_sync(bool predicate) { return ballot_sync(predicate) == 0xffffffffu; }

}  // namespace lowbit::ptx
