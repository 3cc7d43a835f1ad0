// Where element e of a transform lies in shared memory (in words): a permutation inside every 1024 words that
// moves groups of four.
//
//   place bits 4 3 2  =  e bits 4 3 2  ^  e bits 9 8 5
//
// So that no pass has a bank conflict:
//   8 consecutive e per lane, 16 bytes at a time: lanes l and l + 4 differ in e bit 5       -> bit 2
//   lanes over e bits 0..2 and 8, 9 (registers over bits 3..7): the last two                -> bits 3, 4
//   4 or fewer consecutive e per lane, lanes consecutive: bits 5 and up are fixed for the banks' 128 bytes
#pragma once

#include "../numeric/host_device.h"

namespace lowbit::hadamard_tile {

constexpr int kWords = 1024;

LOWBIT_HOST_DEVICE constexpr int high_part(int e) { return (e >> 5) & 0x18; }
LOWBIT_HOST_DEVICE constexpr int low_part(int e) { return (e >> 3) & 0x4; }
LOWBIT_HOST_DEVICE constexpr int place(int e) { return e ^ high_part(e) ^ low_part(e); }

static_assert(place(0x20) == 0x24 && place(0x100) == 0x108 && place(0x200) == 0x210 && place(0x3ff) == 0x3e3);
static_assert(place(place(0x2a5)) == 0x2a5 && place(1024 + 33) == 1024 + 37);

}  // namespace lowbit::hadamard_tile
