// Which element of A, B and D each register of each lane holds (PTX 9.7.14.5, 9.7.15.5).
//
// One byte map serves every MMA whose k covers 32 bytes: s4 k64, s8 k32, f16 and bf16 k16, wgmma m64 with A
// in registers. e = elements per 32-bit register (s4: 8, s8: 4, f16: 2); element 0 is in the lowest bits. g =
// lane / 4, q = lane % 4.
//
//   A [16, 32 bytes]  register i: row g + 8 (i & 1), bytes [16 (i >> 1) + 4 q, +4)       4 registers
//   B [ 8, 32 bytes]  register i: n = g,             bytes [16 i + 4 q, +4)              2 registers
//   D [16, 8]         register i: row g + 8 (i >> 1), n = 2 q + (i & 1)                  4 registers
//   wgmma: warp w of the warpgroup adds 16 w to the row; D [64, N] has N / 2 registers in blocks of 4, one
//   per 8 columns.
//
// Checked against CuTe: 205,760 comparisons (reference/ptx-semantics.md 1.1).
#pragma once

#include "../numeric/host_device.h"

namespace lowbit::fragment {

// mma.sync m16n8, 32 bytes of k.
LOWBIT_HOST_DEVICE constexpr int a_row(int lane, int i) { return lane / 4 + 8 * (i & 1); }
LOWBIT_HOST_DEVICE constexpr int a_byte(int lane, int i) { return 16 * (i >> 1) + 4 * (lane % 4); }
LOWBIT_HOST_DEVICE constexpr int b_col(int lane) { return lane / 4; }
LOWBIT_HOST_DEVICE constexpr int b_byte(int lane, int i) { return 16 * i + 4 * (lane % 4); }
LOWBIT_HOST_DEVICE constexpr int d_row(int lane, int i) { return lane / 4 + 8 * (i >> 1); }
LOWBIT_HOST_DEVICE constexpr int d_col(int lane, int i) { return 2 * (lane % 4) + (i & 1); }

// k of element j of register i, e elements per register.
LOWBIT_HOST_DEVICE constexpr int a_k(int lane, int i, int j, int e) { return a_byte(lane, i) * e / 4 + j; }
LOWBIT_HOST_DEVICE constexpr int b_k(int lane, int i, int j, int e) { return b_byte(lane, i) * e / 4 + j; }

// wgmma m64nN; t is the thread in its warpgroup, 0..127.
LOWBIT_HOST_DEVICE constexpr int wgmma_a_row(int t, int i) { return 16 * (t / 32) + a_row(t % 32, i); }
LOWBIT_HOST_DEVICE constexpr int wgmma_a_byte(int t, int i) { return a_byte(t % 32, i); }
LOWBIT_HOST_DEVICE constexpr int wgmma_d_row(int t, int i) { return 16 * (t / 32) + d_row(t % 32, i & 3); }
LOWBIT_HOST_DEVICE constexpr int wgmma_d_col(int t, int i) { return 8 * (i >> 2) + d_col(t % 32, i & 3); }

// Where a lane points for an ldmatrix.x4 that fills A from K-major rows: row, and byte in the row.
LOWBIT_HOST_DEVICE constexpr int ldmatrix_a_row(int lane) { return lane % 16; }
LOWBIT_HOST_DEVICE constexpr int ldmatrix_a_byte(int lane) { return 16 * (lane / 16); }
// For B with x4 and two 8-column blocks: registers 0, 1 are block 0, registers 2, 3 block 1. With x2 only
// lanes 0..15 count.
LOWBIT_HOST_DEVICE constexpr int ldmatrix_b_col(int lane) { return lane % 8 + 8 * (lane / 16); }
LOWBIT_HOST_DEVICE constexpr int ldmatrix_b_byte(int lane) { return 16 * ((lane / 8) % 2); }

static_assert(a_row(31, 3) == 15 && a_k(31, 3, 3, 4) == 31 && a_k(31, 3, 7, 8) == 63 &&
              a_k(31, 3, 1, 2) == 15);
static_assert(b_col(31) == 7 && b_k(31, 1, 3, 4) == 31);
static_assert(d_row(31, 3) == 15 && d_col(31, 3) == 7);
static_assert(wgmma_d_row(127, 127) == 63 && wgmma_d_col(127, 127) == 255);

}  // namespace lowbit::fragment
