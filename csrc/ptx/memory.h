// Loads, stores and atomics (PTX 9.7.9, 9.7.13). Per thread. Addresses are aligned to the size of T: 1, 2, 4,
// 8 or 16 bytes. Volatile, so the compiler keeps them in program order among themselves and barriers; ptxas
// still schedules loads freely.
#pragma once

#include "common.h"

namespace lowbit::ptx {

// How a global load treats the caches (9.7.9.8, 9.7.9.9).
enum class Load {
  kPlain,         // ld.global
  kNc,            // ld.global.nc: nobody writes the buffer during the grid
  kNcNoAllocate,  // ld.global.nc.L1::no_allocate.L2::256B: read once, such as weights at small M
  kNcEvictLast,   // ld.global.nc.L1::evict_last: read again soon, such as scales
};

#if !defined(LOWBIT_EMULATE)
namespace detail {

#define LOWBIT_LD_GLOBAL(modifiers)                                                        \
  if constexpr (sizeof(T) == 16) {                                                         \
    asm volatile("ld.global" modifiers ".v4.u32 {%0, %1, %2, %3}, [%4];"                   \
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])                          \
                 : "l"(p)                                                                  \
                 : "memory");                                                              \
  } else if constexpr (sizeof(T) == 8) {                                                   \
    asm volatile("ld.global" modifiers ".v2.u32 {%0, %1}, [%2];"                           \
                 : "=r"(w[0]), "=r"(w[1])                                                  \
                 : "l"(p)                                                                  \
                 : "memory");                                                              \
  } else if constexpr (sizeof(T) == 4) {                                                   \
    asm volatile("ld.global" modifiers ".u32 %0, [%1];" : "=r"(w[0]) : "l"(p) : "memory"); \
  } else if constexpr (sizeof(T) == 2) {                                                   \
    asm volatile("{ .reg .u16 h; ld.global" modifiers ".u16 h, [%1]; cvt.u32.u16 %0, h; }" \
                 : "=r"(w[0])                                                              \
                 : "l"(p)                                                                  \
                 : "memory");                                                              \
  } else {                                                                                 \
    asm volatile("ld.global" modifiers ".u8 %0, [%1];" : "=r"(w[0]) : "l"(p) : "memory");  \
  }

template <Load kHow, class T>
LOWBIT_DEVICE void ld_global_words(uint32_t (&w)[4], const T* p) {
  if constexpr (kHow == Load::kPlain) {
    LOWBIT_LD_GLOBAL("")
  } else if constexpr (kHow == Load::kNc) {
    LOWBIT_LD_GLOBAL(".nc")
  } else if constexpr (kHow == Load::kNcNoAllocate) {
    LOWBIT_LD_GLOBAL(".nc.L1::no_allocate.L2::256B")
  } else {
    LOWBIT_LD_GLOBAL(".nc.L1::evict_last")
  }
}
#undef LOWBIT_LD_GLOBAL

}  // namespace detail
#endif

#define LOWBIT_CHECK_SIZE(name)                                                                          \
  static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, \
                name ": one access moves 1, 2, 4, 8 or 16 bytes")

template <Load kHow = Load::kPlain, class T>
LOWBIT_DEVICE T ld_global(const T* p) {
  LOWBIT_CHECK_SIZE("ld_global");
  T value;
#if !defined(LOWBIT_EMULATE)
  uint32_t w[4];
  detail::ld_global_words<kHow>(w, p);
  memcpy(&value, w, sizeof(T));
#else
  emu::ld_global(&value, p, sizeof(T));
#endif
  return value;
}

// st.global (9.7.9.12).
template <class T>
LOWBIT_DEVICE void st_global(T* p, const T& value) {
  LOWBIT_CHECK_SIZE("st_global");
#if !defined(LOWBIT_EMULATE)
  uint32_t w[4] = {};
  memcpy(w, &value, sizeof(T));
  if constexpr (sizeof(T) == 16)
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(w[0]), "r"(w[1]), "r"(w[2]),
                 "r"(w[3])
                 : "memory");
  else if constexpr (sizeof(T) == 8)
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(w[0]), "r"(w[1]) : "memory");
  else if constexpr (sizeof(T) == 4) asm volatile("st.global.u32 [%0], %1;" ::"l"(p), "r"(w[0]) : "memory");
  else if constexpr (sizeof(T) == 2)
    asm volatile("st.global.u16 [%0], %1;" ::"l"(p), "h"(uint16_t(w[0])) : "memory");
  else asm volatile("st.global.u8 [%0], %1;" ::"l"(p), "r"(w[0]) : "memory");
#else
  emu::st_global(p, &value, sizeof(T));
#endif
}

// ld.shared (9.7.9.8).
template <class T>
LOWBIT_DEVICE T ld_shared(smem_ptr<T> p) {
  LOWBIT_CHECK_SIZE("ld_shared");
  T value;
#if !defined(LOWBIT_EMULATE)
  uint32_t w[4];
  if constexpr (sizeof(T) == 16)
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                 : "r"(p.address)
                 : "memory");
  else if constexpr (sizeof(T) == 8)
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(w[0]), "=r"(w[1]) : "r"(p.address) : "memory");
  else if constexpr (sizeof(T) == 4)
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w[0]) : "r"(p.address) : "memory");
  else if constexpr (sizeof(T) == 2)
    asm volatile("{ .reg .u16 h; ld.shared.u16 h, [%1]; cvt.u32.u16 %0, h; }"
                 : "=r"(w[0])
                 : "r"(p.address)
                 : "memory");
  else asm volatile("ld.shared.u8 %0, [%1];" : "=r"(w[0]) : "r"(p.address) : "memory");
  memcpy(&value, w, sizeof(T));
#else
  emu::ld_shared(&value, p.address, sizeof(T));
#endif
  return value;
}

// st.shared (9.7.9.12).
template <class T>
LOWBIT_DEVICE void st_shared(smem_ptr<T> p, const T& value) {
  LOWBIT_CHECK_SIZE("st_shared");
#if !defined(LOWBIT_EMULATE)
  uint32_t w[4] = {};
  memcpy(w, &value, sizeof(T));
  if constexpr (sizeof(T) == 16)
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(p.address), "r"(w[0]), "r"(w[1]), "r"(w[2]),
                 "r"(w[3])
                 : "memory");
  else if constexpr (sizeof(T) == 8)
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(p.address), "r"(w[0]), "r"(w[1]) : "memory");
  else if constexpr (sizeof(T) == 4)
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(p.address), "r"(w[0]) : "memory");
  else if constexpr (sizeof(T) == 2)
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(p.address), "h"(uint16_t(w[0])) : "memory");
  else asm volatile("st.shared.u8 [%0], %1;" ::"r"(p.address), "r"(w[0]) : "memory");
#else
  emu::st_shared(p.address, &value, sizeof(T));
#endif
}
#undef LOWBIT_CHECK_SIZE

// red.relaxed.gpu.global.add.s32 (9.7.13.8): modulo 2^32, so the sum does not depend on the order of CTAs.
LOWBIT_DEVICE void red_add_global_s32(int32_t* p, int32_t value) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#else
  emu::red_add_global_s32(p, value);
#endif
}

// atom.acq_rel.gpu.global.add.u32 (9.7.13.7), returns the old value: tickets. It orders the calling thread's
// accesses; those of its CTA come in by a syncthreads before (release) and after (acquire). The emulator runs
// CTAs one after another: a kernel may let the last one finish the work, and may never spin on another CTA.
LOWBIT_DEVICE uint32_t atom_add_acq_rel_global_u32(uint32_t* p, uint32_t value) {
#if !defined(LOWBIT_EMULATE)
  uint32_t old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
  return old;
#else
  return emu::atom_add_acq_rel_global_u32(p, value);
#endif
}

// ld.acquire.gpu and st.release.gpu (9.7.9.8, 9.7.9.12).
LOWBIT_DEVICE uint32_t ld_acquire_global_u32(const uint32_t* p) {
#if !defined(LOWBIT_EMULATE)
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
#else
  return emu::ld_acquire_global_u32(p);
#endif
}

LOWBIT_DEVICE void st_release_global_u32(uint32_t* p, uint32_t value) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#else
  emu::st_release_global_u32(p, value);
#endif
}

}  // namespace lowbit::ptx
