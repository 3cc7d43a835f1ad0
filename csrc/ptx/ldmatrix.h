// ldmatrix (PTX 9.7.14.5.15) and stmatrix (9.7.14.5.16): 8 x 16-byte matrices between shared memory and
// fragments. Collective over the warp; weak memory operations, they order nothing. Each lane names one row,
// 16-byte aligned: lanes 8 i .. 8 i + 7 the rows of matrix i; lanes past the last matrix may hold anything.
// Lane t gets bytes [4 (t % 4), +4) of row t / 4; `trans` moves 16-bit elements, so it cannot transpose int8
// or int4. A of any 16-row mma from K-major rows: lane l points at row l % 16, byte 16 (l / 16).
#pragma once

#include "common.h"

namespace lowbit::ptx {

template <class T>
LOWBIT_DEVICE void ldmatrix_x1(uint32_t (&r)[1], smem_ptr<T> row) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(row.address)
               : "memory");
#else
  emu::ldmatrix(r, 1, false, row.address);
#endif
}

template <class T>
LOWBIT_DEVICE void ldmatrix_x2(uint32_t (&r)[2], smem_ptr<T> row) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row.address)
               : "memory");
#else
  emu::ldmatrix(r, 2, false, row.address);
#endif
}

template <class T>
LOWBIT_DEVICE void ldmatrix_x4(uint32_t (&r)[4], smem_ptr<T> row) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address)
               : "memory");
#else
  emu::ldmatrix(r, 4, false, row.address);
#endif
}

template <class T>
LOWBIT_DEVICE void ldmatrix_x1_trans(uint32_t (&r)[1], smem_ptr<T> row) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(row.address)
               : "memory");
#else
  emu::ldmatrix(r, 1, true, row.address);
#endif
}

template <class T>
LOWBIT_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], smem_ptr<T> row) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row.address)
               : "memory");
#else
  emu::ldmatrix(r, 2, true, row.address);
#endif
}

template <class T>
LOWBIT_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], smem_ptr<T> row) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row.address)
               : "memory");
#else
  emu::ldmatrix(r, 4, true, row.address);
#endif
}

// sm_90 and later.
template <class T>
LOWBIT_DEVICE void stmatrix_x4(smem_ptr<T> row, const uint32_t (&r)[4]) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               :
               : "r"(row.address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
  emu::stmatrix(r, 4, false, row.address);
#endif
}

// sm_90 and later.
template <class T>
LOWBIT_DEVICE void stmatrix_x4_trans(smem_ptr<T> row, const uint32_t (&r)[4]) {
#if !defined(LOWBIT_EMULATE)
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
               :
               : "r"(row.address), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
  emu::stmatrix(r, 4, true, row.address);
#endif
}

}  // namespace lowbit::ptx
